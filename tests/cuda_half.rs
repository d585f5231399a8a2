//! bf16 and f16 on CUDA beside the oracle that rounds where it does, on whatever device `parity/device.rs` opens; every test
//! prints which one ran it.
#![cfg(feature = "cuda")]
// A test that cannot go on fails; clippy allows that inside of test functions only, not in their helpers.
#![allow(clippy::unwrap_used)]

#[path = "parity/device.rs"]
mod device;

use recurve::backend::cuda::{CudaEngine, PathChoice};
use recurve::backend::{
    AdamConfig, Device, Engine, LossScale, Ops as _, Part, Parts, Precision, StepState, TrainState,
};
use recurve::data::Examples;
use recurve::metrics::Metrics;
use recurve::model::{Model, ModelConfig};
use recurve::rng::{Purpose, Rng};

fn engines(precision: Precision) -> Vec<CudaEngine> {
    device::engines().into_iter().map(|engine| engine.in_precision(precision)).collect()
}

const HALVES: [Precision; 2] = [Precision::Bf16, Precision::F16];

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
    load_from(engine, model, examples, LossScale::default())
}

/// From this scale of the loss on.
fn load_from(
    engine: &mut dyn Engine,
    model: &Model,
    examples: &Examples,
    loss_scale: LossScale,
) -> recurve::Result<()> {
    let parts = Parts { train: Some(examples), test: Some(examples), ..Parts::default() };
    let state = TrainState { loss_scale, ..TrainState::new(model.init(5)) };
    engine.load(model, &state, AdamConfig::default(), parts)?;
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
    a_step_is_the_rounding_oracles(Precision::Bf16);
}

/// Likewise; what is scaled is unscaled again.
#[test]
fn a_step_in_f16_is_the_rounding_oracles() {
    a_step_is_the_rounding_oracles(Precision::F16);
}

fn a_step_is_the_rounding_oracles(precision: Precision) {
    let unit = precision.roundoff();
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
        let mut oracle = Device::Reference.engine_in(precision, 1).unwrap();
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
        for mut engine in engines(precision) {
            load(&mut engine, &model, &examples).unwrap();
            engine.train(&step).unwrap();
            let found = engine.poll(true).unwrap();
            // The two sum in f32 in different orders. Where that tips a number over a midpoint, it differs by one unit of
            // the type, two roundings, and takes part of that along to what follows from it.
            assert!((found.loss_sum - trained.loss_sum).abs() < 2.0 * unit, "{found:?} {trained:?}");
            let after = engine.read_state().unwrap();
            assert_eq!(after.loss_scale, state.loss_scale);
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
                // Measured: up to .08, in sums of which a few numbers tipped; where one of the type's roundings is left out,
                // more (scripts/mutants).
                assert!(relative(worst) <= 0.25, "{}: {}", spec.name, relative(worst));
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
fn it_has_the_same_bits_however_its_steps_are_asked_for() {
    let (model, examples) = (model(40, 6, 10, 2), examples(22, 5, 40, 2));
    let steps: Vec<_> = (0..9)
        .map(|s| StepState::new(s + 1, 0.01, s as u32 % 2 * 16, if s % 2 == 0 { 16 } else { 6 }))
        .collect();
    let mut all: Option<[Vec<u32>; 3]> = None;
    // Scales of which the first is skipped.
    let scale = LossScale { scale: 2f32.powi(24), ..LossScale::default() };
    for (precision, way) in HALVES.into_iter().flat_map(|p| [0, 1, 2].map(|way| (p, way))) {
        if way == 0 {
            all = None;
        }
        for mut engine in engines(precision) {
            load_from(&mut engine, &model, &examples, scale).unwrap();
            match way {
                0 => engine.train(&steps).unwrap(),
                1 => steps.iter().for_each(|step| engine.train(&[*step]).unwrap()),
                _ => {
                    engine.train(&steps[..4]).unwrap();
                    let state = engine.read_state().unwrap();
                    assert_eq!(state.loss_scale.skipped > 0, precision == Precision::F16);
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
fn what_16_bits_cannot_do_on_cuda_is_refused() {
    for mut engine in engines(Precision::Bf16) {
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
    }
    for engine in device::engines() {
        let unfused = CudaEngine::with_path(engine.into_cuda(), PathChoice::Unfused);
        let mut unfused = unfused.in_precision(Precision::F16);
        assert!(load(&mut unfused, &model(20, 4, 6, 2), &examples(4, 3, 20, 2)).is_err());
    }
}

/// Steps that overflow: skipped on the device as on the oracle, with the same scales, and Adam counts what was done.
#[test]
fn a_step_that_overflows_is_skipped_on_the_device_too() {
    let (model, examples) = (model(40, 6, 10, 2), examples(16, 5, 40, 2));
    let steps: Vec<_> = (0..20).map(|s| StepState::new(s + 1, 0.01, 0, 16)).collect();
    // The scale grows within these steps, and is halved again at once.
    let first = LossScale { scale: 2f32.powi(24), good_steps: LossScale::GROWTH_STEPS - 3, skipped: 0 };
    let mut oracle = Device::Reference.engine_in(Precision::F16, 1).unwrap();
    load_from(oracle.as_mut(), &model, &examples, first).unwrap();
    for mut engine in engines(Precision::F16) {
        load_from(&mut engine, &model, &examples, first).unwrap();
        load_from(oracle.as_mut(), &model, &examples, first).unwrap();
        for (done, step) in steps.iter().enumerate() {
            let before = engine.read_state().unwrap();
            if done == 12 {
                // Near its next growth.
                let near = |state: TrainState| TrainState {
                    loss_scale: LossScale { good_steps: LossScale::GROWTH_STEPS - 2, ..state.loss_scale },
                    ..state
                };
                engine.write_state(&near(before.clone())).unwrap();
                let state = oracle.read_state().unwrap();
                oracle.write_state(&near(state)).unwrap();
            }
            engine.train(&[*step]).unwrap();
            oracle.train(&[*step]).unwrap();
            let (after, expected) = (engine.read_state().unwrap(), oracle.read_state().unwrap());
            assert_eq!(after.loss_scale, expected.loss_scale, "step {}", step.t);
            if after.loss_scale.skipped > before.loss_scale.skipped {
                assert_eq!(bits(&after), bits(&before), "step {} was skipped, and changed something", step.t);
            }
            let worst =
                after.params.iter().zip(&expected.params).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
            // So many steps of at most 0.01; where a gradient is but roundings, they may go the other way.
            assert!(worst < 0.005, "step {}: parameters differ by {worst}", step.t);
        }
        let state = engine.read_state().unwrap();
        println!("{:?} after 20 steps on {}", state.loss_scale, engine.cuda().name());
        assert!(state.loss_scale.skipped > 0 && state.loss_scale.skipped < 12, "{:?}", state.loss_scale);
        let metrics = engine.poll(true).unwrap();
        assert_eq!(metrics.batches, 20);
    }
}
