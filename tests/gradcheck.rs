//! The oracle against calculus: every gradient in f64 against central differences of its own forward pass, and the
//! boundary of every operation against wrong arguments.
//!
//! Outputs that an operation assigns start as NaN, so that an element it does not write fails; gradients that it
//! accumulates start as random numbers, which are subtracted from what comes out. `RECURVE_TEST_SEED=n` draws other
//! inputs; `--nocapture` shows the worst error of every case.

#![allow(clippy::unwrap_used)] // in its helpers too, a test fails by panicking
#![allow(clippy::neg_cmp_op_on_partial_ord)] // `!(error <= tolerance)` also holds for a NaN

use recurve::Error;
use recurve::backend::reference::{Reference, adam};
use recurve::backend::*;
use recurve::data::Examples;
use recurve::model::classifier::{self, Workspace};
use recurve::model::{Model, ModelConfig};
use recurve::rng::{Purpose, Rng};

/// Largest relative error of a gradient. The fourth-order stencil leaves a truncation error near `STEP⁴/30`.
const TOLERANCE: f64 = 1e-6;
/// Distance of the stencil's points.
const STEP: f64 = 1e-3;
/// A gradient below this share of `1 + |loss|` is compared on that scale. The loss is rounded to about 1e-16 of itself
/// and of each of its terms, which the stencil divides by `STEP`: differences cannot tell two gradients apart that
/// are within 1e-12 of each other, and this floor times the tolerance is just that.
const FLOOR: f64 = 1e-6;

type Result<T = ()> = std::result::Result<T, Error>;

fn ops() -> Reference<f64> {
    Reference::new()
}

/// Random inputs; `index` gives each test a stream of its own.
struct Draw(Rng);

impl Draw {
    fn new(index: u32) -> Self {
        let seed = match std::env::var("RECURVE_TEST_SEED") {
            Ok(text) => text.parse().expect("RECURVE_TEST_SEED is a number"),
            Err(_) => 20_240_229,
        };
        Self(Rng::new(seed, Purpose::User, index))
    }

    fn normal(&mut self, n: usize) -> Vec<f64> {
        (0..n).map(|_| 0.7 * self.0.normal()).collect()
    }

    fn ids(&mut self, n: usize, below: usize) -> Vec<u32> {
        (0..n).map(|_| u32::try_from(self.0.below(below as u64)).unwrap()).collect()
    }
}

/// What an assigned buffer holds before the operation.
fn poison(n: usize) -> Vec<f64> {
    vec![f64::NAN; n]
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// What was added to `before`.
fn added(after: &[f64], before: &[f64]) -> Vec<f64> {
    after.iter().zip(before).map(|(a, b)| a - b).collect()
}

/// Compares `analytic[k]` with the differences of `loss` by each element of `inputs[k]`; returns the worst error.
fn compare(
    case: &str,
    names: &[&str],
    inputs: &mut [Vec<f64>],
    analytic: &[Vec<f64>],
    mut loss: impl FnMut(&[Vec<f64>]) -> f64,
) -> f64 {
    assert!(names.len() == inputs.len() && names.len() == analytic.len(), "{case}");
    let mut worst = 0.0;
    let floor = FLOOR * (1.0 + loss(inputs).abs());
    for (k, name) in names.iter().enumerate() {
        assert_eq!(inputs[k].len(), analytic[k].len(), "{case}: {name}");
        for index in 0..inputs[k].len() {
            let x = inputs[k][index];
            let mut moved = |steps: f64| {
                inputs[k][index] = x + steps * STEP;
                loss(inputs)
            };
            let near = moved(1.0) - moved(-1.0);
            let far = moved(2.0) - moved(-2.0);
            inputs[k][index] = x;
            let numeric = (8.0 * near - far) / (12.0 * STEP);
            let found = analytic[k][index];
            let diff = (found - numeric).abs();
            let scale = found.abs().max(numeric.abs()).max(floor);
            let error = if diff == 0.0 { 0.0 } else { diff / scale };
            if !(error <= TOLERANCE) {
                panic!(
                    "{case}: gradient by {name}[{index}] is {found:e}, differences give {numeric:e}: \
                     relative error {error:e}, allowed {TOLERANCE:e}"
                );
            }
            worst = f64::max(worst, error);
        }
    }
    worst
}

/// Prints what was compared, where, and how well it fits.
fn report(what: &str, cases: usize, worst: f64) {
    println!("{}: {what}: {cases} cases, worst relative error {worst:.1e}", ops().name());
}

// ---------------------------------------------------------------- gradients

#[test]
fn matmul_in_every_layout() {
    let mut draw = Draw::new(1);
    let (mut worst, mut cases) = (0.0, 0);
    for (m, k, n) in [(1, 1, 1), (2, 3, 5), (7, 19, 3), (5, 1, 2), (19, 5, 7)] {
        for layout in 0..8 {
            let (ta, tb, accumulate) = (layout & 1 > 0, layout & 2 > 0, layout & 4 > 0);
            let d = MatmulDims { m, k, n, ta, tb };
            let case = format!("{d:?}, accumulate {accumulate}");
            let mut inputs = [draw.normal(m * k), draw.normal(k * n)];
            let r = draw.normal(m * n);
            let before = draw.normal(m * n);
            let product = |inputs: &[Vec<f64>]| {
                let mut out = if accumulate { before.clone() } else { poison(m * n) };
                ops().matmul(d, Matmul { a: &inputs[0], b: &inputs[1], out: &mut out, accumulate }).unwrap();
                out
            };
            // The definition, from operands copied into the plain layout.
            let plain = |x: &[f64], rows: usize, cols: usize, transposed: bool| -> Vec<f64> {
                let from = |i: usize| if transposed { i % cols * rows + i / cols } else { i };
                (0..rows * cols).map(|i| x[from(i)]).collect()
            };
            let (a, b) = (plain(&inputs[0], m, k, ta), plain(&inputs[1], k, n, tb));
            for (index, found) in product(&inputs).into_iter().enumerate() {
                let (row, col) = (index / n, index % n);
                let sum: f64 = (0..k).map(|i| a[row * k + i] * b[i * n + col]).sum();
                let expected = sum + if accumulate { before[index] } else { 0.0 };
                assert!((found - expected).abs() <= 1e-14, "{case}: {found} at {index}, expected {expected}");
            }
            // d op(a) = r·op(b)ᵀ and d op(b) = op(a)ᵀ·r, transposed once more where the operand is.
            let (mut da, mut db) = (poison(m * k), poison(k * n));
            let (left, right) = if ta { (&inputs[1], &r) } else { (&r, &inputs[1]) };
            let by_a = MatmulDims {
                m: if ta { k } else { m },
                k: n,
                n: if ta { m } else { k },
                ta: ta && tb,
                tb: ta || !tb,
            };
            ops().matmul(by_a, Matmul { a: left, b: right, out: &mut da, accumulate: false }).unwrap();
            let (left, right) = if tb { (&r, &inputs[0]) } else { (&inputs[0], &r) };
            let by_b = MatmulDims {
                m: if tb { n } else { k },
                k: m,
                n: if tb { k } else { n },
                ta: tb || !ta,
                tb: tb && ta,
            };
            ops().matmul(by_b, Matmul { a: left, b: right, out: &mut db, accumulate: false }).unwrap();
            let loss = |inputs: &[Vec<f64>]| dot(&product(inputs), &r);
            worst = f64::max(worst, compare(&case, &["a", "b"], &mut inputs, &[da, db], loss));
            cases += 1;
        }
    }
    report("matmul", cases, worst);
}

#[test]
fn embedding_with_duplicates() {
    let mut draw = Draw::new(2);
    let (mut worst, mut cases) = (0.0, 0);
    for (n, v, e) in [(1, 1, 1), (19, 3, 5), (7, 19, 2), (5, 1, 7), (3, 7, 19)] {
        let d = EmbeddingDims { n, v, e };
        let ids = draw.ids(n, v);
        let r = draw.normal(n * e);
        let mut inputs = [draw.normal(v * e)];
        let before = draw.normal(v * e);
        let mut dtable = before.clone();
        ops().embedding_backward(d, EmbeddingBackward { ids: &ids, dout: &r, dtable: &mut dtable }).unwrap();
        let loss = |inputs: &[Vec<f64>]| {
            let mut out = poison(n * e);
            let a = EmbeddingForward::<[f64], [u32]> { table: &inputs[0], ids: &ids, out: &mut out };
            ops().embedding_forward(d, a).unwrap();
            dot(&out, &r)
        };
        let analytic = [added(&dtable, &before)];
        worst = f64::max(worst, compare(&format!("{d:?}"), &["table"], &mut inputs, &analytic, loss));
        for (row, (after, before)) in dtable.chunks(e).zip(before.chunks(e)).enumerate() {
            let absent = !ids.iter().any(|&id| id as usize == row);
            assert!(!absent || after == before, "{d:?}: row {row} has no id and changed");
        }
        cases += 1;
    }
    report("embedding", cases, worst);
}

#[test]
fn duplicates_are_summed_in_the_order_of_the_ids() {
    // 1e8 + 1 rounds to 1e8 in f32: only this order gives 0.
    let mut dtable = [0.0f32; 2];
    Reference::<f32>::new()
        .embedding_backward(
            EmbeddingDims { n: 3, v: 2, e: 1 },
            EmbeddingBackward { ids: &[1, 1, 1][..], dout: &[1e8, 1.0, -1e8], dtable: &mut dtable },
        )
        .unwrap();
    assert_eq!(dtable, [0.0, 0.0]);
}

#[test]
fn lstm_cell_by_every_input() {
    let mut draw = Draw::new(3);
    let (mut worst, mut cases) = (0.0, 0);
    for (b, e, h) in [(1, 1, 1), (2, 3, 5), (3, 19, 2), (5, 7, 3), (7, 2, 1), (19, 1, 2), (2, 5, 19)] {
        let d = CellDims { b, e, h };
        let names = ["x", "h_prev", "c_prev", "w", "u", "b"];
        let lengths = [b * e, b * h, b * h, e * 4 * h, h * 4 * h, 4 * h];
        let mut inputs = lengths.map(|n| draw.normal(n));
        let (dh, dc) = (draw.normal(b * h), draw.normal(b * h));
        let forward = |inputs: &[Vec<f64>]| {
            let [x, h_prev, c_prev, w, u, bias] = inputs else { unreachable!() };
            let (mut gates, mut out_h, mut out_c) = (poison(b * 4 * h), poison(b * h), poison(b * h));
            let (h, c) = (&mut out_h, &mut out_c);
            let a = CellForward::<[f64]> { x, h_prev, c_prev, w, u, b: bias, gates: &mut gates, h, c };
            ops().lstm_cell_forward(d, a).unwrap();
            (gates, out_h, out_c)
        };
        let (gates, _, c) = forward(&inputs);
        let [x, h_prev, c_prev, w, u, _] = &inputs;
        let [mut dx, mut dh_prev, mut dc_prev] = [b * e, b * h, b * h].map(poison);
        let before = [e * 4 * h, h * 4 * h, 4 * h].map(|n| draw.normal(n));
        let [mut dw, mut du, mut db] = before.clone();
        ops()
            .lstm_cell_backward(
                d,
                CellBackward {
                    x,
                    h_prev,
                    c_prev,
                    w,
                    u,
                    gates: &gates,
                    c: &c,
                    dh: &dh,
                    dc: &dc,
                    dx: &mut dx,
                    dh_prev: &mut dh_prev,
                    dc_prev: &mut dc_prev,
                    dw: &mut dw,
                    du: &mut du,
                    db: &mut db,
                },
            )
            .unwrap();
        let [dw, du, db] = [(dw, 0), (du, 1), (db, 2)].map(|(after, k)| added(&after, &before[k]));
        let analytic = [dx, dh_prev, dc_prev, dw, du, db];
        let loss = |inputs: &[Vec<f64>]| {
            let (_, h, c) = forward(inputs);
            dot(&h, &dh) + dot(&c, &dc)
        };
        worst = f64::max(worst, compare(&format!("{d:?}"), &names, &mut inputs, &analytic, loss));
        cases += 1;
    }
    report("lstm_cell", cases, worst);
}

/// `gates, h, c` of a sequence from `x, h0, c0, w, u, b`.
fn sequence_forward(d: SequenceDims, inputs: &[Vec<f64>]) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let SequenceDims { t, b, h, .. } = d;
    let [x, h0, c0, w, u, bias] = inputs else { unreachable!() };
    let (mut gates, mut hs, mut cs) =
        (poison(t * b * 4 * h), poison((t + 1) * b * h), poison((t + 1) * b * h));
    let a = SequenceForward::<[f64]> { x, h0, c0, w, u, b: bias, gates: &mut gates, h: &mut hs, c: &mut cs };
    ops().lstm_sequence_forward(d, a).unwrap();
    (gates, hs, cs)
}

#[test]
fn lstm_sequence_by_every_input_with_and_without_each_output_gradient() {
    let mut draw = Draw::new(4);
    let (mut worst, mut cases) = (0.0, 0);
    for (t, b, e, h) in [
        (1, 1, 1, 1),
        (2, 3, 5, 7),
        (3, 7, 1, 2),
        (5, 2, 19, 3),
        (7, 5, 2, 5),
        (19, 1, 3, 2),
        (3, 19, 2, 1),
        (2, 1, 3, 19),
    ] {
        for present in 0..8 {
            let d = SequenceDims { t, b, e, h };
            let case = format!("{d:?}, output gradients {present:03b}");
            let names = ["x", "h0", "c0", "w", "u", "b"];
            let lengths = [t * b * e, b * h, b * h, e * 4 * h, h * 4 * h, 4 * h];
            let mut inputs = lengths.map(|n| draw.normal(n));
            let (dh, dh_last, dc_last) = (draw.normal(t * b * h), draw.normal(b * h), draw.normal(b * h));
            let dh = (present & 1 > 0).then_some(&dh[..]);
            let dh_last = (present & 2 > 0).then_some(&dh_last[..]);
            let dc_last = (present & 4 > 0).then_some(&dc_last[..]);

            let (gates, hs, cs) = sequence_forward(d, &inputs);
            let [x, h0, c0, w, u, _] = &inputs;
            assert!(hs[..b * h] == h0[..] && cs[..b * h] == c0[..], "{case}: row 0 is the initial state");
            assert!(gates.iter().chain(&hs).chain(&cs).all(|x| x.is_finite()), "{case}: all is written");
            let [mut dx, mut dh0, mut dc0] = [t * b * e, b * h, b * h].map(poison);
            let before = [e * 4 * h, h * 4 * h, 4 * h].map(|n| draw.normal(n));
            let [mut dw, mut du, mut db] = before.clone();
            ops()
                .lstm_sequence_backward(
                    d,
                    SequenceBackward {
                        x,
                        w,
                        u,
                        gates: &gates,
                        h: &hs,
                        c: &cs,
                        dh,
                        dh_last,
                        dc_last,
                        dx: &mut dx,
                        dh0: &mut dh0,
                        dc0: &mut dc0,
                        dw: &mut dw,
                        du: &mut du,
                        db: &mut db,
                    },
                )
                .unwrap();
            let [dw, du, db] = [(dw, 0), (du, 1), (db, 2)].map(|(after, k)| added(&after, &before[k]));
            let analytic = [dx, dh0, dc0, dw, du, db];
            let loss = |inputs: &[Vec<f64>]| {
                let (_, h_rows, c_rows) = sequence_forward(d, inputs);
                let last = t * b * h;
                dh.map_or(0.0, |dh| dot(dh, &h_rows[b * h..]))
                    + dh_last.map_or(0.0, |dh| dot(dh, &h_rows[last..]))
                    + dc_last.map_or(0.0, |dc| dot(dc, &c_rows[last..]))
            };
            if present == 0 {
                // Only rounding of `(before + 0) − before`, which is none.
                assert!(analytic.iter().flatten().all(|&g| g == 0.0), "{case}: all gradients are zero");
            }
            worst = f64::max(worst, compare(&case, &names, &mut inputs, &analytic, loss));
            cases += 1;
        }
    }
    report("lstm_sequence", cases, worst);
}

#[test]
fn dense_by_every_input() {
    let mut draw = Draw::new(5);
    let (mut worst, mut cases) = (0.0, 0);
    for (b, inputs_, outputs) in [(1, 1, 1), (2, 3, 5), (7, 19, 2), (5, 2, 7), (19, 5, 3)] {
        let d = DenseDims { b, inputs: inputs_, outputs };
        let mut inputs = [b * inputs_, inputs_ * outputs, outputs].map(|n| draw.normal(n));
        let dy = draw.normal(b * outputs);
        let mut dx = poison(b * inputs_);
        let before = [inputs_ * outputs, outputs].map(|n| draw.normal(n));
        let [mut dw, mut db] = before.clone();
        let [x, w, _] = &inputs;
        let a = DenseBackward::<[f64]> { x, w, dy: &dy, dx: &mut dx, dw: &mut dw, db: &mut db };
        ops().dense_backward(d, a).unwrap();
        let analytic = [dx, added(&dw, &before[0]), added(&db, &before[1])];
        let loss = |inputs: &[Vec<f64>]| {
            let mut y = poison(b * outputs);
            let a = DenseForward::<[f64]> { x: &inputs[0], w: &inputs[1], b: &inputs[2], y: &mut y };
            ops().dense_forward(d, a).unwrap();
            dot(&y, &dy)
        };
        worst = f64::max(worst, compare(&format!("{d:?}"), &["x", "w", "b"], &mut inputs, &analytic, loss));
        cases += 1;
    }
    report("dense", cases, worst);
}

#[test]
fn cross_entropy_by_the_logits() {
    let mut draw = Draw::new(6);
    let (mut worst, mut cases) = (0.0, 0);
    for (b, c) in [(1, 1), (1, 2), (2, 3), (7, 2), (5, 19), (19, 7)] {
        let d = CrossEntropyDims { b, c };
        let labels = draw.ids(b, c);
        let mut inputs = [draw.normal(b * c)];
        let forward = |logits: &[f64]| {
            let (mut probs, mut loss, mut hits) = (poison(b * c), poison(b), poison(b));
            let (probs_, loss_, hits_) = (&mut probs[..], &mut loss[..], &mut hits[..]);
            let a = CrossEntropyForward {
                logits,
                labels: &labels[..],
                class_weights: None,
                probs: probs_,
                loss: loss_,
                hits: hits_,
            };
            ops().cross_entropy_forward(d, a).unwrap();
            (probs, loss, hits)
        };
        let (probs, _, hits) = forward(&inputs[0]);
        for (row, hit) in hits.iter().enumerate() {
            let logits = &inputs[0][row * c..(row + 1) * c];
            let is_largest = logits.iter().all(|&l| l <= logits[labels[row] as usize]);
            assert_eq!(*hit, f64::from(u8::from(is_largest)), "{d:?}: row {row}");
            let sum: f64 = probs[row * c..(row + 1) * c].iter().sum();
            assert!((sum - 1.0).abs() <= 1e-15 * c as f64, "{d:?}: row {row}'s probabilities sum to {sum}");
        }
        let mut dlogits = poison(b * c);
        let a = CrossEntropyBackward::<[f64], [u32]> {
            probs: &probs,
            labels: &labels,
            class_weights: None,
            dlogits: &mut dlogits,
        };
        ops().cross_entropy_backward(d, a).unwrap();
        let loss = |inputs: &[Vec<f64>]| forward(&inputs[0]).1.iter().sum::<f64>() / b as f64;
        worst = f64::max(worst, compare(&format!("{d:?}"), &["logits"], &mut inputs, &[dlogits], loss));
        cases += 1;
    }
    report("cross_entropy", cases, worst);
}

// ---------------------------------------------------------------- the classifier

/// A model with random parameters of order 1 and a random batch.
struct Case {
    model: Model,
    params: Vec<f64>,
    ids: Vec<u32>,
    labels: Vec<u32>,
    rows: usize,
    t: usize,
}

impl Case {
    fn new(draw: &mut Draw, [t, rows, embed, hidden, classes, vocab]: [usize; 6]) -> Self {
        let config = ModelConfig { vocab, embed, hidden, classes, ..Default::default() };
        let model = Model::new(config).unwrap();
        let params = draw.normal(model.table.len());
        Self { params, ids: draw.ids(t * rows, vocab), labels: draw.ids(rows, classes), model, rows, t }
    }

    fn forward(&self, params: &[f64], ws: &mut Workspace<f64>) -> Result {
        classifier::forward(&ops(), &self.model, params, &self.ids, self.rows, self.t, ws)?;
        classifier::loss(&ops(), &self.model, &self.labels, None, ws)
    }

    fn backward(&self, params: &[f64], grads: &mut [f64], ws: &mut Workspace<f64>) -> Result {
        classifier::backward(&ops(), &self.model, params, grads, &self.ids, &self.labels, None, ws)
    }
}

#[test]
fn the_classifier_by_every_parameter() {
    let mut draw = Draw::new(7);
    let (mut worst, mut cases) = (0.0, 0);
    // One workspace for all, so that it grows and shrinks.
    let mut ws = Workspace::new();
    // T, B, E, H, C, V: few words, so that they repeat.
    for sizes in [
        [1, 1, 1, 1, 2, 1],
        [2, 3, 5, 7, 2, 5],
        [7, 5, 3, 2, 19, 3],
        [3, 19, 2, 5, 3, 7],
        [19, 2, 1, 3, 2, 2],
        [5, 1, 7, 2, 5, 19],
        [2, 2, 3, 19, 3, 2],
    ] {
        let case = Case::new(&mut draw, sizes);
        case.forward(&case.params, &mut ws).unwrap();
        let before = draw.normal(case.params.len());
        let mut grads = before.clone();
        case.backward(&case.params, &mut grads, &mut ws).unwrap();
        let grads = added(&grads, &before);
        // By name, so that the scale of each parameter's gradient is its own.
        let specs = case.model.table.specs();
        let names: Vec<&str> = specs.iter().map(|spec| spec.name).collect();
        let mut inputs: Vec<Vec<f64>> = specs.iter().map(|s| case.params[s.range()].to_vec()).collect();
        let analytic: Vec<Vec<f64>> = specs.iter().map(|s| grads[s.range()].to_vec()).collect();
        let loss = |inputs: &[Vec<f64>]| {
            case.forward(&inputs.concat(), &mut ws).unwrap();
            ws.loss().iter().sum::<f64>() / case.rows as f64
        };
        let name = format!("T, B, E, H, C, V = {sizes:?}");
        worst = f64::max(worst, compare(&name, &names, &mut inputs, &analytic, loss));
        cases += 1;
    }
    report("classifier", cases, worst);
}

#[test]
fn a_workspace_leaves_nothing_of_one_batch_in_the_next() {
    let mut draw = Draw::new(8);
    let run = |case: &Case, params: &[f64], ws: &mut Workspace<f64>| {
        let mut grads = vec![0.0; params.len()];
        case.forward(params, ws).unwrap();
        case.backward(params, &mut grads, ws).unwrap();
        (grads, ws.logits().to_vec(), ws.probs().to_vec(), ws.loss().to_vec(), ws.hits().to_vec())
    };
    let large = Case::new(&mut draw, [7, 7, 7, 7, 7, 7]);
    let small = Case::new(&mut draw, [5, 3, 2, 3, 2, 5]);
    let mut ws = Workspace::new();
    let poisoned = run(&large, &poison(large.params.len()), &mut ws);
    assert!(poisoned.0.iter().chain(&poisoned.1).all(|x| x.is_nan()), "a NaN in, NaN everywhere");
    assert_eq!(poisoned.4, [0.0; 7], "a NaN hits nothing");
    let reused = run(&small, &small.params, &mut ws);
    assert_eq!(reused, run(&small, &small.params, &mut Workspace::new()));
    assert_eq!((ws.rows(), ws.logits().len(), ws.loss().len()), (3, 6, 3));
}

#[test]
fn prediction_gives_the_probabilities_of_training() {
    let case = Case::new(&mut Draw::new(9), [5, 7, 3, 2, 3, 5]);
    let (mut ws, mut other) = (Workspace::new(), Workspace::new());
    case.forward(&case.params, &mut ws).unwrap();
    let mut probs = poison(7 * 3);
    let Case { model, params, ids, .. } = &case;
    classifier::predict(&ops(), model, params, ids, 7, 5, &mut other, &mut probs).unwrap();
    assert_eq!(probs, ws.probs());
    assert!(other.probs().is_empty() && other.loss().is_empty(), "no labels, no loss");
    let short = classifier::predict(&ops(), model, params, ids, 7, 5, &mut other, &mut probs[1..]);
    assert!(matches!(short, Err(Error::Shape { what: "probs [B,C]", .. })));
}

#[test]
fn empty_batches_and_empty_sequences_are_batches() {
    let mut draw = Draw::new(10);
    let mut ws = Workspace::new();
    for [t, b] in [[0, 3], [3, 0], [0, 0]] {
        let case = Case::new(&mut draw, [t, b, 2, 3, 2, 5]);
        let mut grads = vec![0.0; case.params.len()];
        case.forward(&case.params, &mut ws).unwrap();
        case.backward(&case.params, &mut grads, &mut ws).unwrap();
        assert_eq!(ws.loss().len(), b);
        let biases = case.model.table.views(&case.params).dense_b;
        assert!(ws.logits().chunks(2).all(|row| row == biases), "without a time step h is zero");
    }
}

#[test]
fn the_classifier_refuses_what_does_not_fit() {
    let case = Case::new(&mut Draw::new(11), [3, 2, 2, 3, 2, 5]);
    let other = Case::new(&mut Draw::new(12), [3, 2, 2, 3, 7, 5]);
    let Case { model, params, ids, labels, .. } = &case;
    let n = params.len();
    let mut ws = Workspace::new();
    let mut grads = vec![0.5; n];

    let failed = |result: Result, words: &str| match result {
        Err(Error::Failed(message)) => assert!(message.contains(words), "{message}"),
        result => panic!("expected a failure with {words:?}, found {result:?}"),
    };
    let shape = |result: Result, name: &str| match result {
        Err(Error::Shape { what, .. }) => assert!(what.starts_with(name), "{what} is not {name}"),
        result => panic!("expected a shape error about {name}, found {result:?}"),
    };
    failed(classifier::loss(&ops(), model, labels, None, &mut ws), "call forward first");
    failed(case.backward(params, &mut grads, &mut ws), "call forward first");

    for (params, ids, rows, name) in [
        (&params[1..], &ids[..], 2, "params"),
        (&params[..], &ids[1..], 2, "ids"),
        (params, ids, 3, "ids"),
        (params, &[0, 1, 2, 3, 4, 5][..], 2, "ids"),
    ] {
        shape(classifier::forward(&ops(), model, params, ids, rows, 3, &mut ws), name);
        assert!(ws.logits().is_empty());
    }
    failed(classifier::forward(&ops(), model, params, &[], usize::MAX, 3, &mut ws), "smaller batch");

    case.forward(params, &mut ws).unwrap();
    shape(classifier::loss(&ops(), model, &labels[1..], None, &mut ws), "labels");
    shape(classifier::loss(&ops(), model, &[0, 2], None, &mut ws), "labels");
    failed(case.backward(params, &mut grads, &mut ws), "call loss first");
    failed(classifier::loss(&ops(), &other.model, labels, None, &mut ws), "another model");
    classifier::loss(&ops(), model, labels, None, &mut ws).unwrap();
    shape(case.backward(&params[1..], &mut grads, &mut ws), "params");
    shape(case.backward(params, &mut grads[1..], &mut ws), "grads");
    let mut backward = |ids: &[u32], labels| {
        classifier::backward(&ops(), model, params, &mut grads, ids, labels, None, &mut ws)
    };
    shape(backward(&ids[1..], labels), "ids");
    shape(backward(ids, &labels[1..]), "labels");
    assert_eq!(grads, vec![0.5; n], "nothing was added");
}

#[test]
fn examples_are_gathered_time_major() {
    let examples = Examples { x: (0..12).collect(), y: vec![0, 1, 2, 3], t: 3 };
    let (mut ids, mut labels) = (vec![9; 99], vec![9; 99]);
    classifier::gather(&examples, &[2, 0], &mut ids, &mut labels).unwrap();
    assert_eq!(ids, [6, 0, 7, 1, 8, 2]);
    assert_eq!(labels, [2, 0]);
    let error = classifier::gather(&examples, &[1, 4], &mut ids, &mut labels).unwrap_err();
    assert_eq!(
        error.to_string(),
        "gather: rows [B] must be below 4, the number of examples, at every index, found 4 at index 1"
    );
    assert_eq!((ids.len(), labels.len()), (6, 2));
    classifier::gather(&examples, &[], &mut ids, &mut labels).unwrap();
    assert!(ids.is_empty() && labels.is_empty());
}

// ---------------------------------------------------------------- empty dimensions

#[test]
fn the_state_and_its_gradient_pass_through_no_time_steps() {
    let mut draw = Draw::new(13);
    let d = SequenceDims { t: 0, b: 3, e: 2, h: 5 };
    let inputs = [0, 15, 15, 40, 100, 20].map(|n| draw.normal(n));
    let (gates, h, c) = sequence_forward(d, &inputs);
    assert_eq!((&h, &c), (&inputs[1], &inputs[2]));
    let (dh_last, dc_last) = (draw.normal(15), draw.normal(15));
    for present in 0..4 {
        let dh_last = (present & 1 > 0).then_some(&dh_last[..]);
        let dc_last = (present & 2 > 0).then_some(&dc_last[..]);
        let [mut dh0, mut dc0] = [15, 15].map(poison);
        let before = [40, 100, 20].map(|n| draw.normal(n));
        let [mut dw, mut du, mut db] = before.clone();
        let a = SequenceBackward {
            x: &[][..],
            w: &inputs[3],
            u: &inputs[4],
            gates: &gates,
            h: &h,
            c: &c,
            dh: Some(&[][..]),
            dh_last,
            dc_last,
            dx: &mut [][..],
            dh0: &mut dh0,
            dc0: &mut dc0,
            dw: &mut dw,
            du: &mut du,
            db: &mut db,
        };
        ops().lstm_sequence_backward(d, a).unwrap();
        assert_eq!(dh0, dh_last.unwrap_or(&[0.0; 15]));
        assert_eq!(dc0, dc_last.unwrap_or(&[0.0; 15]));
        assert_eq!([dw, du, db], before);
    }
}

#[test]
fn an_empty_sum_is_zero_and_fill_fills() {
    let mut out = [f64::NAN; 6];
    let d = MatmulDims { m: 2, k: 0, n: 3, ta: false, tb: false };
    ops().matmul(d, Matmul { a: &[][..], b: &[], out: &mut out, accumulate: false }).unwrap();
    assert_eq!(out, [0.0; 6]);
    ops().fill(&mut out, 2.5).unwrap();
    ops().matmul(d, Matmul { a: &[][..], b: &[], out: &mut out, accumulate: true }).unwrap();
    assert_eq!(out, [2.5; 6]);
    ops().fill(&mut [], 1.0).unwrap();
    assert_eq!(
        (ops().name(), Reference::<f32>::new().name()),
        ("reference f64".into(), "reference f32".into())
    );
    let there = ops().upload(&[0.1, -2.0]).unwrap();
    assert_eq!(ops().download(&there).unwrap(), [0.1, -2.0]);
}

// ---------------------------------------------------------------- Adam

/// Adam as Kingma & Ba write it (Algorithm 1, bias-corrected moments), with eps where Keras has it.
fn textbook_adam(
    config: &AdamConfig,
    step: &StepState,
    grads: &[f64],
    p: &mut [f64],
    m: &mut [f64],
    v: &mut [f64],
) {
    let lr = f64::from(step.lr);
    let norm = grads.iter().map(|g| g * g).sum::<f64>().sqrt();
    let t = i32::try_from(step.t).unwrap();
    for k in 0..p.len() {
        let clip = f64::from(step.clip_norm);
        let g = if clip > 0.0 && norm > clip { grads[k] / norm * clip } else { grads[k] };
        p[k] *= 1.0 - lr * f64::from(step.weight_decay);
        m[k] = config.beta1 * m[k] + (1.0 - config.beta1) * g;
        v[k] = config.beta2 * v[k] + (1.0 - config.beta2) * g * g;
        let corrected_m = m[k] / (1.0 - config.beta1.powi(t));
        let correction_v = 1.0 - config.beta2.powi(t);
        let corrected_v = v[k] / correction_v;
        p[k] -= lr * corrected_m / (corrected_v.sqrt() + config.eps / correction_v.sqrt());
    }
}

#[test]
fn adam_is_the_textbooks() {
    // f64: a few hundred roundings at most. f32: the same of 6e-8 each, on parameters of order 1.
    let (tolerance, tolerance_f32) = (1e-13, 2e-6);
    let mut draw = Draw::new(14);
    let config = AdamConfig { beta1: 0.85, beta2: 0.97, eps: 1e-3 };
    let (mut worst, mut worst_f32) = (0.0, 0.0);
    for (weight_decay, clip_norm) in [(0.0, 0.0), (0.3, 0.0), (0.0, 0.7), (0.2, 1.1), (0.1, 1e6)] {
        for n in [0, 1, 19, 257] {
            let start = [draw.normal(n), draw.normal(n), draw.normal(n).iter().map(|x| x * x).collect()];
            let [mut params, mut m, mut v] = start.clone();
            let [mut params_f32, mut m_f32, mut v_f32] =
                start.clone().map(|x| Reference::<f32>::new().upload(&x).unwrap());
            let [mut p_expected, mut m_expected, mut v_expected] = start;
            for t in 1..=7 {
                let step = StepState { weight_decay, clip_norm, ..StepState::new(t, 0.05, 3, 5) };
                let grads = draw.normal(n);
                let copy = grads.clone();
                let a = Adam { grads: &grads[..], params: &mut params, m: &mut m, v: &mut v };
                ops().adam(&config, &step, a).unwrap();
                assert_eq!(grads, copy, "the gradients stay");
                let grads_f32 = Reference::<f32>::new().upload(&grads).unwrap();
                let (params, m, v) = (&mut params_f32[..], &mut m_f32[..], &mut v_f32[..]);
                let a = Adam { grads: &grads_f32[..], params, m, v };
                Reference::<f32>::new().adam(&config, &step, a).unwrap();
                textbook_adam(&config, &step, &grads, &mut p_expected, &mut m_expected, &mut v_expected);
            }
            for (name, found, found_f32, expected) in [
                ("params", &params, &params_f32, &p_expected),
                ("m", &m, &m_f32, &m_expected),
                ("v", &v, &v_f32, &v_expected),
            ] {
                for k in 0..n {
                    let scale = expected[k].abs().max(1.0);
                    let error = (found[k] - expected[k]).abs() / scale;
                    let error_f32 = (f64::from(found_f32[k]) - expected[k]).abs() / scale;
                    assert!(
                        error <= tolerance && error_f32 <= tolerance_f32,
                        "weight decay {weight_decay}, clip {clip_norm}, {name}[{k}]: {} and, in f32, {}, \
                         expected {}",
                        found[k],
                        found_f32[k],
                        expected[k]
                    );
                    worst = f64::max(worst, error);
                    worst_f32 = f64::max(worst_f32, error_f32);
                }
            }
        }
    }
    report("adam", 20, worst);
    println!("{}: adam: 20 cases, worst relative error {worst_f32:.1e}", Reference::<f32>::new().name());
}

#[test]
fn adams_factors_are_what_step_computes_from() {
    let config = AdamConfig::default();
    let step = StepState { weight_decay: 0.3, clip_norm: 0.7, ..StepState::new(3, 0.05, 0, 1) };
    let grads = Draw::new(15).normal(19);
    let [mut params, mut m, mut v] = [vec![1.0; 19], vec![0.1; 19], vec![0.2; 19]];
    let [mut params_, mut m_, mut v_] = [params.clone(), m.clone(), v.clone()];
    adam::step(&config, &step, Adam { grads: &grads[..], params: &mut params, m: &mut m, v: &mut v })
        .unwrap();
    let lr = f64::from(step.lr);
    let factors = adam::Factors {
        alpha: config.alpha(lr, 3),
        decay: lr * f64::from(step.weight_decay),
        scale: adam::clip_scale(&grads, f64::from(step.clip_norm)),
    };
    let a = Adam { grads: &grads[..], params: &mut params_, m: &mut m_, v: &mut v_ };
    adam::update(&config, factors, a).unwrap();
    assert_eq!((params, m, v), (params_, m_, v_));
}

#[test]
fn clipping_scales_only_what_is_longer() {
    assert_eq!(adam::clip_scale(&[3.0f32, 4.0], 0.0), 1.0);
    assert_eq!(adam::clip_scale(&[3.0f32, 4.0], 5.0), 1.0);
    assert_eq!(adam::clip_scale(&[3.0f32, 4.0], 2.5), 0.5);
    assert_eq!(adam::clip_scale::<f32>(&[], 1.0), 1.0);
    // 1e30² overflows f32: the sum is in f64.
    assert!((adam::clip_scale(&[1e30f32; 4], 1.0) - 0.5e-30).abs() < 1e-36);
    assert!(adam::clip_scale(&[1.0, f32::NAN], 1.0).is_nan());
}

#[test]
fn adams_step_0_is_refused() {
    let [mut params, mut m, mut v] = [[1.0]; 3];
    let a = Adam { grads: &[1.0][..], params: &mut params, m: &mut m, v: &mut v };
    let error = ops().adam(&AdamConfig::default(), &StepState::new(0, 0.1, 0, 1), a).unwrap_err();
    assert_eq!(error.to_string(), "adam: t must be at least 1 (steps count from 1), found 0");
    assert_eq!([params, m, v], [[1.0]; 3]);
}

// ---------------------------------------------------------------- the boundary

/// Calls an operation with one wrong length at a time. `arguments` are its buffers by name and right length; `call`
/// gets them in that order.
fn refuses_wrong_lengths(
    op: &str,
    arguments: &[(&str, usize)],
    call: impl Fn(&mut [Vec<f64>]) -> Result,
) -> usize {
    // 0.25 is also a valid id: it is truncated to 0.
    let buffers = |wrong: usize, length: usize| -> Vec<Vec<f64>> {
        let lengths = arguments.iter().enumerate();
        lengths.map(|(k, &(_, right))| vec![0.25; if k == wrong { length } else { right }]).collect()
    };
    call(&mut buffers(usize::MAX, 0)).unwrap_or_else(|e| panic!("{op}: the right lengths are refused: {e}"));
    let mut calls = 0;
    for (wrong, &(name, right)) in arguments.iter().enumerate() {
        for length in [0, right - 1, right + 1, 2 * right] {
            let mut given = buffers(wrong, length);
            match call(&mut given) {
                Err(Error::Shape { op: found, what, found: len, .. }) => {
                    assert_eq!(found, op, "{name}");
                    assert_eq!(what.split(' ').next(), Some(name), "{op}: {name} of length {length}");
                    assert_eq!(len, length.to_string(), "{op}: {name}");
                }
                result => panic!("{op}: {name} of length {length}, not {right}: {result:?}"),
            }
            assert_eq!(given, buffers(wrong, length), "{op}: nothing is written when {name} is wrong");
            calls += 1;
        }
    }
    calls
}

fn as_ids(buffer: &[f64]) -> Vec<u32> {
    buffer.iter().map(|&x| x as u32).collect()
}

#[test]
fn every_wrong_length_is_an_error_that_names_the_argument() {
    let mut calls = 0;
    // Every dimension another number, so that no two arguments could be mixed up.
    let (t, b, e, h, v, c) = (2, 3, 5, 7, 11, 13);
    for layout in 0..4 {
        let d = MatmulDims { m: 2, k: 3, n: 5, ta: layout & 1 > 0, tb: layout & 2 > 0 };
        calls += refuses_wrong_lengths("matmul", &[("a", 6), ("b", 15), ("out", 10)], |buffers| {
            let [a, b, out] = buffers else { unreachable!() };
            ops().matmul(d, Matmul { a: &a[..], b, out, accumulate: false })
        });
    }
    let d = EmbeddingDims { n: b, v, e };
    let arguments = [("table", v * e), ("ids", b), ("out", b * e)];
    calls += refuses_wrong_lengths("embedding_forward", &arguments, |buffers| {
        let [table, ids, out] = buffers else { unreachable!() };
        ops().embedding_forward(d, EmbeddingForward { table: &table[..], ids: &as_ids(ids), out })
    });
    let arguments = [("ids", b), ("dout", b * e), ("dtable", v * e)];
    calls += refuses_wrong_lengths("embedding_backward", &arguments, |buffers| {
        let [ids, dout, dtable] = buffers else { unreachable!() };
        ops().embedding_backward(d, EmbeddingBackward { ids: &as_ids(ids), dout: &dout[..], dtable })
    });

    let (bh, ew, hu) = (b * h, e * 4 * h, h * 4 * h);
    let arguments = [
        ("x", b * e),
        ("h_prev", bh),
        ("c_prev", bh),
        ("w", ew),
        ("u", hu),
        ("b", 4 * h),
        ("gates", 4 * bh),
        ("h", bh),
        ("c", bh),
    ];
    calls += refuses_wrong_lengths("lstm_cell_forward", &arguments, |buffers| {
        let [x, h_prev, c_prev, w, u, bias, gates, h_, c] = buffers else { unreachable!() };
        let a = CellForward { x: &x[..], h_prev, c_prev, w, u, b: bias, gates, h: h_, c };
        ops().lstm_cell_forward(CellDims { b, e, h }, a)
    });
    let arguments = [
        ("x", b * e),
        ("h_prev", bh),
        ("c_prev", bh),
        ("w", ew),
        ("u", hu),
        ("gates", 4 * bh),
        ("c", bh),
        ("dh", bh),
        ("dc", bh),
        ("dx", b * e),
        ("dh_prev", bh),
        ("dc_prev", bh),
        ("dw", ew),
        ("du", hu),
        ("db", 4 * h),
    ];
    calls += refuses_wrong_lengths("lstm_cell_backward", &arguments, |buffers| {
        let [x, h_prev, c_prev, w, u, gates, c, dh, dc, dx, dh_prev, dc_prev, dw, du, db] = buffers else {
            unreachable!()
        };
        let x = &x[..];
        let a = CellBackward { x, h_prev, c_prev, w, u, gates, c, dh, dc, dx, dh_prev, dc_prev, dw, du, db };
        ops().lstm_cell_backward(CellDims { b, e, h }, a)
    });

    let d = SequenceDims { t, b, e, h };
    let arguments = [
        ("x", t * b * e),
        ("h0", bh),
        ("c0", bh),
        ("w", ew),
        ("u", hu),
        ("b", 4 * h),
        ("gates", t * 4 * bh),
        ("h", (t + 1) * bh),
        ("c", (t + 1) * bh),
    ];
    calls += refuses_wrong_lengths("lstm_sequence_forward", &arguments, |buffers| {
        let [x, h0, c0, w, u, bias, gates, h, c] = buffers else { unreachable!() };
        ops().lstm_sequence_forward(d, SequenceForward { x: &x[..], h0, c0, w, u, b: bias, gates, h, c })
    });
    let arguments = [
        ("x", t * b * e),
        ("w", ew),
        ("u", hu),
        ("gates", t * 4 * bh),
        ("h", (t + 1) * bh),
        ("c", (t + 1) * bh),
        ("dh", t * bh),
        ("dh_last", bh),
        ("dc_last", bh),
        ("dx", t * b * e),
        ("dh0", bh),
        ("dc0", bh),
        ("dw", ew),
        ("du", hu),
        ("db", 4 * h),
    ];
    calls += refuses_wrong_lengths("lstm_sequence_backward", &arguments, |buffers| {
        let [x, w, u, gates, h, c, dh, dh_last, dc_last, dx, dh0, dc0, dw, du, db] = buffers else {
            unreachable!()
        };
        let (x, dh, dh_last, dc_last) = (&x[..], Some(&dh[..]), Some(&dh_last[..]), Some(&dc_last[..]));
        let a = SequenceBackward { x, w, u, gates, h, c, dh, dh_last, dc_last, dx, dh0, dc0, dw, du, db };
        ops().lstm_sequence_backward(d, a)
    });

    let d = DenseDims { b, inputs: h, outputs: c };
    let arguments = [("x", b * h), ("w", h * c), ("b", c), ("y", b * c)];
    calls += refuses_wrong_lengths("dense_forward", &arguments, |buffers| {
        let [x, w, bias, y] = buffers else { unreachable!() };
        ops().dense_forward(d, DenseForward { x: &x[..], w, b: bias, y })
    });
    let arguments = [("x", b * h), ("w", h * c), ("dy", b * c), ("dx", b * h), ("dw", h * c), ("db", c)];
    calls += refuses_wrong_lengths("dense_backward", &arguments, |buffers| {
        let [x, w, dy, dx, dw, db] = buffers else { unreachable!() };
        ops().dense_backward(d, DenseBackward { x: &x[..], w, dy, dx, dw, db })
    });

    let d = CrossEntropyDims { b, c };
    let arguments = [("logits", b * c), ("labels", b), ("probs", b * c), ("loss", b), ("hits", b)];
    calls += refuses_wrong_lengths("cross_entropy_forward", &arguments, |buffers| {
        let [logits, labels, probs, loss, hits] = buffers else { unreachable!() };
        let labels = &as_ids(labels)[..];
        ops().cross_entropy_forward(
            d,
            CrossEntropyForward { logits: &logits[..], labels, class_weights: None, probs, loss, hits },
        )
    });
    let arguments = [("probs", b * c), ("labels", b), ("dlogits", b * c)];
    calls += refuses_wrong_lengths("cross_entropy_backward", &arguments, |buffers| {
        let [probs, labels, dlogits] = buffers else { unreachable!() };
        let labels = &as_ids(labels)[..];
        ops().cross_entropy_backward(
            d,
            CrossEntropyBackward { probs: &probs[..], labels, class_weights: None, dlogits },
        )
    });

    // `params` gives `n`; a wrong one is seen as wrong `grads`.
    let mut params = vec![0.25; 7];
    calls += refuses_wrong_lengths("adam", &[("grads", 7), ("m", 7), ("v", 7)], |buffers| {
        let [grads, m, v] = buffers else { unreachable!() };
        let a = Adam { grads: &grads[..], params: &mut params.clone(), m, v };
        ops().adam(&AdamConfig::default(), &StepState::new(1, 0.1, 0, 1), a)
    });
    params.push(0.25);
    let [grads, mut m, mut v] = [[0.25; 7]; 3];
    let a = Adam { grads: &grads[..], params: &mut params, m: &mut m, v: &mut v };
    let result = ops().adam(&AdamConfig::default(), &StepState::new(1, 0.1, 0, 1), a);
    assert!(matches!(result, Err(Error::Shape { op: "adam", .. })));
    assert!(params == [0.25; 8] && m == [0.25; 7] && v == [0.25; 7]);
    println!("{}: {calls} calls with a wrong length refused", ops().name());
}

#[test]
fn ids_and_labels_out_of_range_are_errors() {
    let (table, ids, mut out) = ([0.5; 6], [0, 2, 3, 9], [0.25; 8]);
    let d = EmbeddingDims { n: 4, v: 3, e: 2 };
    let a = EmbeddingForward { table: &table[..], ids: &ids[..], out: &mut out };
    assert_eq!(
        ops().embedding_forward(d, a).unwrap_err().to_string(),
        "embedding_forward: ids [n] must be below 3 at every index, found 3 at index 2"
    );
    let mut dtable = [0.25; 6];
    let a = EmbeddingBackward { ids: &[0, 1, 2, u32::MAX][..], dout: &out[..], dtable: &mut dtable };
    assert_eq!(
        ops().embedding_backward(d, a).unwrap_err().to_string(),
        "embedding_backward: ids [n] must be below 3 at every index, found 4294967295 at index 3"
    );
    assert!(out == [0.25; 8] && dtable == [0.25; 6], "nothing is written");

    let d = CrossEntropyDims { b: 2, c: 2 };
    let [mut probs, mut dlogits] = [[0.25; 4]; 2];
    let [mut loss, mut hits] = [[0.25; 2]; 2];
    let a = CrossEntropyForward {
        logits: &[0.0; 4][..],
        labels: &[1, 2][..],
        class_weights: None,
        probs: &mut probs,
        loss: &mut loss,
        hits: &mut hits,
    };
    assert_eq!(
        ops().cross_entropy_forward(d, a).unwrap_err().to_string(),
        "cross_entropy_forward: labels [B] must be below 2 at every index, found 2 at index 1"
    );
    let a = CrossEntropyBackward {
        probs: &probs[..],
        labels: &[2, 0][..],
        class_weights: None,
        dlogits: &mut dlogits,
    };
    assert_eq!(
        ops().cross_entropy_backward(d, a).unwrap_err().to_string(),
        "cross_entropy_backward: labels [B] must be below 2 at every index, found 2 at index 0"
    );
    assert!(
        probs == dlogits && probs == [0.25; 4] && loss == hits && hits == [0.25; 2],
        "nothing is written"
    );
}
