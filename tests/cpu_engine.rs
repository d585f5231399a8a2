//! The CPU's fused engine as a whole, on every instruction set of this machine: training steps beside the oracle in f64,
//! the same bits on any number of threads, evaluation and prediction.

// A test that cannot go on fails; clippy allows that inside of test functions only, not in their helpers.
#![allow(clippy::unwrap_used)]

mod random;

use random::examples;
use recurve::backend::cpu::{Cpu, CpuEngine, Isa};
use recurve::backend::host::HostEngine;
use recurve::backend::reference::Reference;
use recurve::backend::{AdamConfig, DeviceInfo, Engine, Part, Parts, StepState, TrainState};
use recurve::data::Examples;
use recurve::metrics::Metrics;
use recurve::model::{Model, ModelConfig};

/// None to wake, an even cut, an odd one, more than there are tasks.
const THREADS: [usize; 4] = [1, 2, 3, 8];

fn engine(threads: usize, isa: Isa) -> CpuEngine {
    CpuEngine::new(Cpu::with_isa(threads, isa).unwrap())
}

/// The oracle in f64.
fn oracle() -> HostEngine<f64, Reference<f64>> {
    let info =
        DeviceInfo { device: "reference".into(), name: String::new(), executed: "f64".into(), threads: 1 };
    HostEngine::new(Reference::new(), info)
}

/// Steps over `rows` rows in batches of `batch`, the first being number `t + 1`.
fn steps(rows: usize, batch: usize, t: u64, lr: f32) -> Vec<StepState> {
    (0..rows)
        .step_by(batch)
        .enumerate()
        .map(|(k, start)| {
            let size = batch.min(rows - start);
            StepState::new(t + 1 + k as u64, lr, start.try_into().unwrap(), size.try_into().unwrap())
        })
        .collect()
}

fn model(vocab: usize, embed: usize, hidden: usize, classes: usize) -> Model {
    Model::new(ModelConfig { vocab, embed, hidden, classes, ..ModelConfig::default() }).unwrap()
}

/// An engine with a fresh model and `examples` in every part, in their own order.
fn load(engine: &mut dyn Engine, model: &Model, examples: &Examples) {
    let parts =
        Parts { train: Some(examples), validation: Some(examples), test: Some(examples), ..Parts::default() };
    engine.load(model, &TrainState::new(model.init(5)), AdamConfig::default(), parts).unwrap();
    let order: Vec<u32> = (0..u32::try_from(examples.rows()).unwrap()).rev().collect();
    engine.set_order(&order, Metrics::default()).unwrap();
}

/// The largest difference of two arrays.
fn apart(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |worst, d| if d <= worst { worst } else { d })
}

fn bits(state: &TrainState) -> [Vec<u32>; 3] {
    [&state.params, &state.m, &state.v].map(|array| array.iter().map(|x| x.to_bits()).collect())
}

/// Batch, time steps, V, E, H, C.
const SHAPES: [(usize, usize, usize, usize, usize, usize); 16] = [
    (1, 1, 2, 1, 1, 2),
    (32, 32, 500, 16, 32, 2),
    (19, 31, 40, 19, 33, 3),
    (33, 19, 50, 31, 31, 2),
    (3, 33, 7, 33, 19, 5),
    (9, 5, 257, 1, 99, 2),
    (99, 3, 60, 5, 7, 19),
    (8, 99, 33, 17, 1, 2),
    (31, 2, 30, 64, 64, 2),
    (257, 2, 99, 3, 5, 2),
    // Large blocks.
    (33, 3, 60, 19, 130, 3),
    (49, 2, 31, 33, 99, 2),
    // A phase of its own for the weights' gradients.
    (19, 3, 40, 99, 150, 2),
    (33, 2, 20, 5, 257, 33),
    // Several pieces of time, without that phase and with it.
    (16, 40, 600, 3, 130, 2),
    (16, 31, 500, 19, 180, 2),
];

#[test]
fn training_steps_agree_with_the_oracle_in_f64_at_odd_shapes() {
    // Three steps of at most 0.002 each; where Adam divides two tiny moments, roundings of their quotient stay.
    const TOLERANCE: f32 = 2e-5;
    // A gradient is a sum of up to T·B products, each of them of some roundings, of which a few hundred add up.
    const MOMENT: f32 = 2e-5;
    for (b, t, v, e, h, c) in SHAPES {
        let rows = 2 * b + b.div_ceil(2);
        let (model, examples) = (model(v, e, h, c), examples(rows, t, v as u32, c as u32));
        let mut steps = steps(rows, b, 0, 0.002);
        (steps[1].clip_norm, steps[2].weight_decay) = (0.05, 0.1);
        let mut oracle = oracle();
        load(&mut oracle, &model, &examples);
        oracle.train(&steps).unwrap();
        let expected = (oracle.poll(true).unwrap(), oracle.read_state().unwrap());
        let (test, probabilities) =
            (oracle.evaluate(Part::Test, 7).unwrap(), oracle.predict(&examples.x, rows).unwrap());
        for isa in Isa::available() {
            let mut first = None;
            for threads in THREADS {
                let mut engine = engine(threads, isa);
                load(&mut engine, &model, &examples);
                engine.train(&steps).unwrap();
                let (metrics, state) = (engine.poll(true).unwrap(), engine.read_state().unwrap());
                let what = format!("B {b}, T {t}, E {e}, H {h}, C {c} on {}", engine.info().executed);
                for spec in model.table.specs() {
                    // Moments are compared by their largest: three steps leave them tiny.
                    let largest = |xs: &[f32]| xs.iter().fold(0.0f32, |most, x| most.max(x.abs()));
                    for (name, found, expected, tolerance) in [
                        ("", &state.params, &expected.1.params, TOLERANCE),
                        ("m of ", &state.m, &expected.1.m, MOMENT * largest(&expected.1.m[spec.range()])),
                        ("v of ", &state.v, &expected.1.v, MOMENT * largest(&expected.1.v[spec.range()])),
                    ] {
                        let worst = apart(&found[spec.range()], &expected[spec.range()]);
                        assert!(worst <= tolerance, "{what}: {name}{} off by {worst}", spec.name);
                    }
                }
                assert!(
                    (metrics.loss_sum - expected.0.loss_sum).abs() < 1e-5,
                    "{what}: {metrics:?} {expected:?}"
                );
                assert_eq!((metrics.batches, metrics.examples, state.t), (3, rows as u64, 3), "{what}");
                assert!(metrics.correct.abs_diff(expected.0.correct) <= 1 + rows as u64 / 100, "{what}");
                let evaluated = engine.evaluate(Part::Test, 7).unwrap();
                assert!((evaluated.loss() - test.loss()).abs() < 1e-5, "{what}: {evaluated:?} {test:?}");
                assert_eq!((evaluated.batches, evaluated.examples), (test.batches, test.examples));
                let found = engine.predict(&examples.x, rows).unwrap();
                let worst = apart(&found, &probabilities);
                assert!(worst < 1e-5, "{what}: probabilities off by {worst}");
                let bits = (bits(&state), metrics, found);
                match &first {
                    None => first = Some(bits),
                    Some(first) => assert!(*first == bits, "{what}: other bits on {threads} threads"),
                }
                if threads == 1 {
                    println!("{what}: parameters within {:.1e}", apart(&state.params, &expected.1.params));
                }
            }
        }
    }
}
