//! bf16 on CUDA beside the oracle that rounds where it does, on whatever device `parity/device.rs` opens; every test
//! prints which one ran it.
#![cfg(feature = "cuda")]
// A test that cannot go on fails; clippy allows that inside of test functions only, not in their helpers.
#![allow(clippy::unwrap_used)]

#[path = "parity/device.rs"]
mod device;

use recurve::backend::cuda::{CudaEngine, PathChoice};
use recurve::backend::{AdamConfig, Device, Engine, Ops as _, Part, Parts, Precision, StepState, TrainState};
use recurve::data::Examples;
use recurve::metrics::Metrics;
use recurve::model::{Model, ModelConfig};
use recurve::rng::{Purpose, Rng};

fn engines() -> Vec<CudaEngine> {
    device::engines().into_iter().map(|engine| engine.in_precision(Precision::Bf16).unwrap()).collect()
}

/// Random ids of which half are among the first three, and labels that depend on the last of them.
fn examples(rows: usize, t: usize, vocab: u32, classes: u32) -> Examples {
    let mut rng = Rng::new(7, Purpose::User, 0);
    let mut id = |_| {
        let limit = if rng.below(2) == 0 { 3.min(vocab) } else { vocab };
        rng.below(u64::from(limit)) as u32
    };
    let x: Vec<u32> = (0..rows * t).map(&mut id).collect();
    Examples { y: x.chunks(t).map(|row| row[t - 1] % classes).collect(), x, t }
}

fn model(vocab: usize, embed: usize, hidden: usize, classes: usize) -> Model {
    Model::new(ModelConfig { vocab, embed, hidden, classes, ..ModelConfig::default() }).unwrap()
}

fn load(engine: &mut dyn Engine, model: &Model, examples: &Examples) -> recurve::Result<()> {
    let parts = Parts { train: Some(examples), test: Some(examples), ..Parts::default() };
    engine.load(model, &TrainState::new(model.init(5)), AdamConfig::default(), parts)?;
    let order: Vec<u32> = (0..u32::try_from(examples.rows()).unwrap()).collect();
    engine.set_order(&order, Metrics::default())
}

fn bits(state: &TrainState) -> [Vec<u32>; 3] {
    [&state.params, &state.m, &state.v].map(|array| array.iter().map(|x| x.to_bits()).collect())
}

/// The first step's gradient, which is ten times `m`; loss, hits, an evaluation and probabilities. Every width of the kernels;
/// shapes that pad and do not, sides that are and are not multiples of four, one row and one time step.
#[test]
fn a_step_in_bf16_is_the_rounding_oracles() {
    let unit = Precision::Bf16.roundoff();
    // rows, T, V, E, H, C
    for (rows, t, vocab, embed, hidden, classes) in [
        (1, 1, 3, 1, 1, 2),
        (9, 7, 9, 3, 5, 3),
        (32, 32, 60, 16, 32, 2),
        (6, 5, 40, 19, 30, 4),
        (7, 11, 50, 64, 9, 2),
        (5, 9, 33, 15, 33, 2),
        (4, 6, 33, 20, 64, 5),
    ] {
        let (model, examples) =
            (model(vocab, embed, hidden, classes), examples(rows, t, vocab as u32, classes as u32));
        let step = [StepState::new(1, 0.01, 0, rows as u32)];
        let mut oracle = Device::Reference.engine_in(Precision::Bf16, 1).unwrap();
        let mut exact = Device::Reference.engine(1).unwrap();
        let of_host = |engine: &mut dyn Engine| {
            load(engine, &model, &examples).unwrap();
            engine.train(&step).unwrap();
            let trained = engine.poll(true).unwrap();
            (trained, engine.read_state().unwrap(), engine.evaluate(Part::Test, 4).unwrap())
        };
        let (trained, state, evaluated) = of_host(oracle.as_mut());
        let (_, in_f32, _) = of_host(exact.as_mut());
        let probabilities = oracle.predict(&examples.x, rows).unwrap();
        for mut engine in engines() {
            load(&mut engine, &model, &examples).unwrap();
            engine.train(&step).unwrap();
            let found = engine.poll(true).unwrap();
            // The two sum in f32 in different orders. Where that tips a number over a midpoint, it differs by one unit of
            // bf16, two roundings, and takes part of that along to what follows from it.
            assert!((found.loss_sum - trained.loss_sum).abs() < 2.0 * unit, "{found:?} {trained:?}");
            let after = engine.read_state().unwrap();
            for spec in model.table.specs() {
                let (ours, theirs) = (&after.m[spec.range()], &state.m[spec.range()]);
                let largest = theirs.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                let worst = ours.iter().zip(theirs).fold(0.0f64, |m, (a, b)| m.max(f64::from((a - b).abs())));
                let off = in_f32.m[spec.range()].iter().zip(theirs);
                let rounding = off.fold(0.0f64, |m, (a, b)| m.max(f64::from((a - b).abs())));
                let relative = |d: f64| d / f64::from(largest).max(1e-30) / unit;
                println!(
                    "E {embed}, H {hidden}, {}: gradient within {:.4} roundings of its largest number (f32: {:.2}) on {}",
                    spec.name,
                    relative(worst),
                    relative(rounding),
                    engine.cuda().name()
                );
                assert!(relative(worst) <= 4.0, "{}: {}", spec.name, relative(worst));
            }
            let ours = engine.evaluate(Part::Test, 4).unwrap();
            let (a, b) = (ours.loss_sum / ours.batches as f64, evaluated.loss_sum / evaluated.batches as f64);
            assert!((a - b).abs() < 4.0 * unit, "{a} {b}");
            let ours = engine.predict(&examples.x, rows).unwrap();
            let apart =
                ours.iter().zip(&probabilities).fold(0.0f64, |m, (a, b)| m.max(f64::from((a - b).abs())));
            assert!(apart < 2.0 * unit, "probabilities differ by {apart}");
        }
    }
}

/// One call or many, a state taken out and put back: the copy in 16 bits follows the parameters.
#[test]
fn bf16_has_the_same_bits_however_its_steps_are_asked_for() {
    let (model, examples) = (model(40, 6, 10, 2), examples(22, 5, 40, 2));
    let steps: Vec<_> = (0..9)
        .map(|s| StepState::new(s + 1, 0.01, s as u32 % 2 * 16, if s % 2 == 0 { 16 } else { 6 }))
        .collect();
    let mut all: Option<[Vec<u32>; 3]> = None;
    for way in 0..3 {
        for mut engine in engines() {
            load(&mut engine, &model, &examples).unwrap();
            match way {
                0 => engine.train(&steps).unwrap(),
                1 => steps.iter().for_each(|step| engine.train(&[*step]).unwrap()),
                _ => {
                    engine.train(&steps[..4]).unwrap();
                    let state = engine.read_state().unwrap();
                    load(&mut engine, &model, &examples).unwrap();
                    engine.write_state(&state).unwrap();
                    engine.train(&steps[4..]).unwrap();
                }
            }
            let found = bits(&engine.read_state().unwrap());
            assert_eq!(*all.get_or_insert_with(|| found.clone()), found, "way {way}");
        }
    }
}

#[test]
fn what_bf16_cannot_do_on_cuda_is_refused() {
    for mut engine in engines() {
        let of = |error: recurve::Error| {
            assert!(error.is_usage(), "{error}");
            error.to_string()
        };
        let wide = of(load(&mut engine, &model(20, 4, 65, 2), &examples(4, 3, 20, 2)).unwrap_err());
        assert!(
            wide.contains("--precision") && wide.contains("fused path") && wide.contains("H > 64"),
            "{wide}"
        );
        load(&mut engine, &model(20, 4, 6, 2), &examples(4, 3, 20, 2)).unwrap();
        let clips = StepState { clip_norm: 1.0, ..StepState::new(1, 0.01, 0, 4) };
        assert!(of(engine.train(&[clips]).unwrap_err()).contains("clips"));
        assert_eq!(engine.read_state().unwrap().t, 0);
        assert!(of(engine.in_precision(Precision::F16).unwrap_err()).contains("f16"));
    }
    for engine in device::engines() {
        let unfused = CudaEngine::with_path(engine.into_cuda(), PathChoice::Unfused);
        let mut unfused = unfused.in_precision(Precision::Bf16).unwrap();
        assert!(load(&mut unfused, &model(20, 4, 6, 2), &examples(4, 3, 20, 2)).is_err());
    }
}
