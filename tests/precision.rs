//! Half precision on the oracle: rounding, where it happens, the loss scale. What CUDA's kernels are compared with.

// A test that cannot go on fails; clippy allows that inside of test functions only, not in their helpers.
#![allow(clippy::unwrap_used)]

use recurve::backend::host::HostEngine;
use recurve::backend::reference::{Reference, Rounded};
use recurve::backend::{
    AdamConfig, DenseBackward, DenseDims, Device, DeviceInfo, EmbeddingDims, EmbeddingForward, Engine,
    LossScale, Ops, Parts, Precision, Real, SequenceBackward, SequenceDims, SequenceForward, StepState,
    TrainState,
};
use recurve::data::Examples;
use recurve::metrics::Metrics;
use recurve::model::{Model, ModelConfig};
use recurve::rng::{Purpose, Rng};

const HALVES: [Precision; 2] = [Precision::Bf16, Precision::F16];

/// The value of each code of a 16-bit type, by its definition: sign, exponent with bias, fraction.
fn value(precision: Precision, code: u16) -> f64 {
    let fraction_bits = if precision == Precision::F16 { 10 } else { 7 };
    let exponent_bits = 15 - fraction_bits;
    let bias = (1 << (exponent_bits - 1)) - 1;
    let exponent = i32::from((code & 0x7fff) >> fraction_bits);
    let fraction = f64::from(code & ((1 << fraction_bits) - 1)) / f64::from(1u32 << fraction_bits);
    let magnitude = if exponent == (1 << exponent_bits) - 1 {
        if fraction == 0.0 { f64::INFINITY } else { f64::NAN }
    } else if exponent == 0 {
        fraction * 2f64.powi(1 - bias)
    } else {
        (1.0 + fraction) * 2f64.powi(exponent - bias)
    };
    if code >> 15 == 1 { -magnitude } else { magnitude }
}

/// Finite codes of positive numbers, and the first that is not.
fn codes(precision: Precision) -> (std::ops::Range<u16>, u16) {
    let infinity = if precision == Precision::F16 { 0x7c00 } else { 0x7f80 };
    (0..infinity, infinity)
}

/// [`Precision::round`], which agrees with the `half` crate or fails. (Its way from f64 is not asked: in 2.7.1 it makes 0 of what lies
/// between half of bf16's smallest number and that number.)
fn round_f32(precision: Precision, x: f32) -> f32 {
    let rounded = precision.round(x);
    let other = match precision {
        Precision::F16 => half::f16::from_f32(x).to_f32(),
        _ => half::bf16::from_f32(x).to_f32(),
    };
    assert!(rounded.to_bits() == other.to_bits() || rounded.is_nan() && other.is_nan(), "{precision}: {x:e}");
    rounded
}

#[test]
fn every_number_of_16_bits_is_itself_and_what_lies_between_goes_to_the_nearest_or_even() {
    for precision in HALVES {
        let (finite, infinity) = codes(precision);
        for code in finite {
            let here = value(precision, code);
            // The next number: after the largest the one that would follow, whose place infinity takes.
            let (next, next_is) = if code + 1 == infinity {
                (2.0 * here - value(precision, code - 1), f64::INFINITY)
            } else {
                let next = value(precision, code + 1);
                (next, next)
            };
            let middle = (here + next) / 2.0;
            let tie = if code % 2 == 0 { here } else { next_is };
            for sign in [1.0, -1.0] {
                let signed = |x: f64| (sign * x).to_bits();
                for (x, expected) in [(here, here), (middle, tie)] {
                    // Both are f32 too: at most one bit more.
                    let narrow = (sign * x) as f32;
                    assert_eq!(f64::from(narrow), sign * x);
                    assert_eq!(f64::from(round_f32(precision, narrow)).to_bits(), signed(expected), "{x:e}");
                    assert_eq!(precision.round(sign * x).to_bits(), signed(expected), "{x:e}");
                }
                // A little to either side of the middle, in f32 and, closer still, in f64.
                for (below, above) in [
                    (f64::from((middle as f32).next_down()), f64::from((middle as f32).next_up())),
                    (middle.next_down(), middle.next_up()),
                ] {
                    assert_eq!(precision.round(sign * below).to_bits(), signed(here), "below {middle:e}");
                    assert_eq!(precision.round(sign * above).to_bits(), signed(next_is), "above {middle:e}");
                }
                for x in [(middle as f32).next_down(), (middle as f32).next_up()] {
                    round_f32(precision, sign as f32 * x);
                }
            }
        }
        for x in [f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(round_f32(precision, x), x);
        }
        for bits in [0x7fc0_0000, 0xffc0_0000, 0x7f80_0001, 0x7fff_ffff, 0xff80_0001] {
            assert!(round_f32(precision, f32::from_bits(bits)).is_nan(), "{bits:x}");
        }
        assert_eq!(round_f32(precision, f32::MAX), f32::INFINITY);
        let largest = if precision == Precision::F16 { 65504.0 } else { value(precision, 0x7f7f) as f32 };
        assert_eq!(round_f32(precision, largest), largest);
    }
}

fn random(rng: &mut Rng, n: usize, scale: f64) -> Vec<f64> {
    (0..n).map(|_| scale * (2.0 * rng.uniform() - 1.0)).collect()
}

/// Everything that a forward and backward pass of a layer writes.
struct Layer<T> {
    gates: Vec<T>,
    h: Vec<T>,
    c: Vec<T>,
    dx: Vec<T>,
    dh0: Vec<T>,
    dc0: Vec<T>,
    dw: Vec<T>,
    du: Vec<T>,
    db: Vec<T>,
}

const D: SequenceDims = SequenceDims { t: 9, b: 3, e: 5, h: 7 };

/// A layer on inputs that `quantise` has been over.
fn layer<T: Real, O: Ops<Buf = [T], OwnedBuf = Vec<T>>>(ops: &O, quantise: Precision) -> Layer<T> {
    let SequenceDims { t, b, e, h } = D;
    let mut rng = Rng::new(7, Purpose::User, 0);
    let mut draw = |n, scale| ops.upload(&quantise.rounded(&random(&mut rng, n, scale))).unwrap();
    let (x, h0, c0) = (draw(t * b * e, 1.0), draw(b * h, 0.5), draw(b * h, 0.5));
    let (w, u, bias) = (draw(e * 4 * h, 0.6), draw(h * 4 * h, 0.6), draw(4 * h, 0.5));
    let dh_last = draw(b * h, 1.0);
    let nan = |n: usize| vec![T::nan(); n];
    let zeros = |n: usize| vec![T::zero(); n];
    let mut out = Layer {
        gates: nan(t * b * 4 * h),
        h: nan((t + 1) * b * h),
        c: nan((t + 1) * b * h),
        dx: nan(t * b * e),
        dh0: nan(b * h),
        dc0: nan(b * h),
        dw: zeros(e * 4 * h),
        du: zeros(h * 4 * h),
        db: zeros(4 * h),
    };
    ops.lstm_sequence_forward(
        D,
        SequenceForward {
            x: &x,
            h0: &h0,
            c0: &c0,
            w: &w,
            u: &u,
            b: &bias,
            gates: &mut out.gates,
            h: &mut out.h,
            c: &mut out.c,
        },
    )
    .unwrap();
    ops.lstm_sequence_backward(
        D,
        SequenceBackward {
            x: &x,
            w: &w,
            u: &u,
            gates: &out.gates,
            h: &out.h,
            c: &out.c,
            dh: None,
            dh_last: Some(&dh_last),
            dc_last: None,
            dx: &mut out.dx,
            dh0: &mut out.dh0,
            dc0: &mut out.dc0,
            dw: &mut out.dw,
            du: &mut out.du,
            db: &mut out.db,
        },
    )
    .unwrap();
    out
}

fn wide<T: Real>(values: &[T]) -> Vec<f64> {
    values.iter().map(|x| x.as_f64()).collect()
}

/// The largest difference, in units of the roundoff and of the largest number among the expected ones.
fn roundings<T: Real, U: Real>(precision: Precision, found: &[T], expected: &[U]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let (found, expected) = (wide(found), wide(expected));
    let largest = expected.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
    let worst = found.iter().zip(&expected).fold(0.0, |m: f64, (a, b)| {
        let difference = (a - b).abs();
        assert!(!difference.is_nan());
        m.max(difference)
    });
    worst / largest / precision.roundoff()
}

impl<T: Real> Layer<T> {
    fn arrays(&self) -> [(&'static str, &[T]); 9] {
        [
            ("gates", &self.gates),
            ("h", &self.h),
            ("c", &self.c),
            ("dx", &self.dx),
            ("dh0", &self.dh0),
            ("dc0", &self.dc0),
            ("dw", &self.dw),
            ("du", &self.du),
            ("db", &self.db),
        ]
    }
}

#[test]
fn a_layer_differs_from_the_exact_one_by_a_few_roundings_of_what_is_stored() {
    for precision in HALVES {
        let exact = layer(&Reference::<f64>::new(), precision);
        let rounded = layer(&Rounded::<f64>::new(precision), precision);
        let narrow = layer(&Rounded::<f32>::new(precision), precision);
        for ((name, exact), ((_, rounded), (_, narrow))) in
            exact.arrays().into_iter().zip(rounded.arrays().into_iter().zip(narrow.arrays()))
        {
            let (by_rounding, by_f32) =
                (roundings(precision, rounded, exact), roundings(precision, narrow, rounded));
            println!("{precision} {name}: {by_rounding:.2} roundings from exact, f32 {by_f32:.2} from f64");
            // What is stored is off by one rounding; each of the nine time steps passes on what came before it, less than
            // whole, and adds its own.
            assert!(by_rounding < 9.0, "{precision} {name}: {by_rounding} roundings");
            assert!(by_rounding > 0.01, "{precision} {name} was not rounded at all");
            // f32's own roundings are thousands of times smaller, but where one tips a number over a midpoint it costs a
            // whole unit, two roundings.
            assert!(by_f32 < 3.0, "{precision} {name}: {by_f32} roundings between f32 and f64");
        }
        // Stored in 16 bits: gates and h. Not: c, and the sums.
        for stored in [&narrow.gates, &narrow.h] {
            assert!(stored.iter().all(|&x| precision.round(x) == x));
        }
        for kept in [&narrow.c, &narrow.dx, &narrow.dw, &narrow.du, &narrow.db, &narrow.dc0, &narrow.dh0] {
            assert!(kept.iter().any(|&x| precision.round(x) != x));
        }
    }
}

#[test]
fn operands_are_rounded_before_they_are_read_and_only_they() {
    for precision in HALVES {
        let ops = Rounded::<f32>::new(precision);
        let fine = 1.0f32 + f32::EPSILON;
        assert_eq!(precision.round(fine), 1.0);
        let mut out = [f32::NAN];
        let table = EmbeddingForward { table: &[fine][..], ids: &[0][..], out: &mut out[..] };
        ops.embedding_forward(EmbeddingDims { n: 1, v: 1, e: 1 }, table).unwrap();
        assert_eq!(out, [1.0]);
        let d = DenseDims { b: 1, inputs: 1, outputs: 1 };
        let (mut dx, mut dw, mut db) = ([f32::NAN], [0.0f32], [0.0f32]);
        let a = DenseBackward {
            x: &[fine][..],
            w: &[fine],
            dy: &[fine],
            dx: &mut dx[..],
            dw: &mut dw,
            db: &mut db,
        };
        ops.dense_backward(d, a).unwrap();
        // dy stays as it is.
        assert_eq!((dx, dw, db), ([fine], [fine], [fine]));
    }
}

/// Rows whose label is the parity of the last id.
fn examples(rows: usize) -> Examples {
    let mut rng = Rng::new(3, Purpose::User, 0);
    let x: Vec<u32> = (0..rows * 6).map(|_| rng.below(20) as u32).collect();
    Examples { y: x.chunks(6).map(|row| row[5] % 2).collect(), x, t: 6 }
}

fn model() -> Model {
    Model::new(ModelConfig { vocab: 20, embed: 5, hidden: 7, ..Default::default() }).unwrap()
}

/// An engine with the model in it, from this loss scale on.
fn engine(precision: Precision, scale: LossScale, t: u64, examples: &Examples) -> Box<dyn Engine> {
    let model = model();
    let state = TrainState { loss_scale: scale, t, ..TrainState::new(model.init(5)) };
    let mut engine = Device::Reference.engine_in(precision, 1).unwrap();
    engine
        .load(&model, &state, AdamConfig::default(), Parts { train: Some(examples), ..Default::default() })
        .unwrap();
    let order: Vec<u32> = (0..examples.rows() as u32).collect();
    engine.set_order(&order, Metrics::default()).unwrap();
    engine
}

#[test]
fn a_step_that_overflows_is_skipped_and_leaves_nothing_but_a_halved_scale() {
    let examples = examples(16);
    // dh of the last time step overflows f16 until the scale has come down.
    let first = LossScale { scale: 2f32.powi(24), ..Default::default() };
    let mut engine_with_skips = engine(Precision::F16, first, 0, &examples);
    let before = engine_with_skips.read_state().unwrap();
    let mut skipped = 0;
    loop {
        engine_with_skips.train(&[StepState::new(skipped + 1, 0.01, 0, 16)]).unwrap();
        let state = engine_with_skips.read_state().unwrap();
        assert_eq!(state.t, skipped + 1);
        if state.loss_scale.skipped == skipped {
            break;
        }
        skipped += 1;
        assert_eq!((&state.params, &state.m, &state.v), (&before.params, &before.m, &before.v));
        let expected = LossScale { scale: first.scale / 2f32.powi(skipped as i32), good_steps: 0, skipped };
        assert_eq!(state.loss_scale, expected);
        assert!(skipped < 30, "every step was skipped");
    }
    assert!(skipped > 0, "nothing overflowed: the test shows nothing");
    let after = engine_with_skips.read_state().unwrap();
    assert_ne!(after.params, before.params);
    assert_eq!(after.loss_scale.good_steps, 1);
    // The step that was done is Adam's first: to the bits what it would have been without the others.
    let scale = LossScale { scale: after.loss_scale.scale, ..Default::default() };
    let mut fresh = engine(Precision::F16, scale, 0, &examples);
    fresh.train(&[StepState::new(1, 0.01, 0, 16)]).unwrap();
    let expected = fresh.read_state().unwrap();
    assert_eq!((after.params, after.m, after.v), (expected.params, expected.m, expected.v));
    // Its loss counts all the same.
    let metrics = engine_with_skips.poll(true).unwrap();
    assert_eq!(metrics.batches, skipped + 1);
    let one = fresh.poll(true).unwrap().loss_sum;
    assert!((metrics.loss_sum - one * (skipped + 1) as f64).abs() < 1e-12);
}

#[test]
fn other_precisions_do_not_touch_the_scale() {
    let examples = examples(16);
    for precision in [Precision::F32, Precision::Bf16] {
        let mut engine = engine(precision, LossScale::default(), 0, &examples);
        engine.train(&[StepState::new(1, 0.01, 0, 16)]).unwrap();
        assert_eq!(engine.read_state().unwrap().loss_scale, LossScale::default());
    }
}

#[test]
fn without_rounding_the_rounding_engine_is_the_reference() {
    let examples = examples(40);
    let info = DeviceInfo { device: "test".into(), name: String::new(), executed: String::new(), threads: 1 };
    let mut rounded = HostEngine::rounded(Rounded::<f32>::new(Precision::F32), info);
    let model = model();
    let state = TrainState::new(model.init(5));
    let parts = Parts { train: Some(&examples), ..Default::default() };
    rounded.load(&model, &state, AdamConfig::default(), parts).unwrap();
    rounded.set_order(&(0..40).collect::<Vec<u32>>(), Metrics::default()).unwrap();
    let mut reference = engine(Precision::F32, LossScale::default(), 0, &examples);
    for engine in [&mut rounded as &mut dyn Engine, reference.as_mut()] {
        engine.train(&[StepState::new(1, 0.01, 0, 32), StepState::new(2, 0.01, 32, 8)]).unwrap();
    }
    assert_eq!(rounded.read_state().unwrap(), reference.read_state().unwrap());
}

#[test]
fn f16_with_its_scale_trains_closer_to_f32_than_bf16_does() {
    let examples = examples(320);
    let losses = |precision: Precision| {
        let mut engine = engine(precision, LossScale::default(), 0, &examples);
        let steps: Vec<_> = (0..60).map(|s| StepState::new(s + 1, 0.01, (s as u32 % 10) * 32, 32)).collect();
        steps
            .iter()
            .map(|step| {
                let before = engine.poll(true).unwrap().loss_sum;
                engine.train(&[*step]).unwrap();
                engine.poll(true).unwrap().loss_sum - before
            })
            .collect::<Vec<f64>>()
    };
    let exact = losses(Precision::F32);
    let off = |precision| {
        let found = losses(precision);
        found.iter().zip(&exact).fold(0.0, |m: f64, (a, b)| m.max((a - b).abs()))
    };
    let (bf16, f16) = (off(Precision::Bf16), off(Precision::F16));
    println!("largest difference of a batch's loss from f32's: bf16 {bf16:.5}, f16 {f16:.5}");
    assert!(f16 < bf16 && bf16 < 0.02, "bf16 {bf16}, f16 {f16}");
    assert!(exact[59] < 0.9 * exact[0], "nothing was learned: {exact:?}");
}

#[test]
fn a_device_without_16_bits_says_so() {
    for (device, precision) in [(Device::Cpu, Precision::Bf16), (Device::Cpu, Precision::F16)] {
        let error = device.engine_in(precision, 1).err().unwrap();
        assert!(error.is_usage(), "{error}");
        let text = error.to_string();
        assert!(text.contains("--precision") && text.contains("--device reference"), "{text}");
    }
    for precision in HALVES {
        let info = Device::Reference.engine_in(precision, 1).unwrap().info();
        assert!(info.executed.contains(&format!("rounded to {precision}")), "{info:?}");
    }
}
