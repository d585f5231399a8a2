//! The epoch loop through the library: stops in mid-epoch, early stopping, divergence, threads.

// A test that cannot go on fails; clippy allows that inside of test functions only, not in their helpers.
#![allow(clippy::unwrap_used)]

use recurve::backend::{AdamConfig, Device, Engine, Precision};
use recurve::checkpoint::Checkpoint;
use recurve::data::{self, DataOptions, Dataset, Examples, Source};
use recurve::metrics::Metrics;
use recurve::model::{Model, ModelConfig};
use recurve::rng::{Purpose, Rng};
use recurve::train::{
    ClassWeight, Ending, EpochSeconds, LrSchedule, Observer, TrainOptions, best_epoch, train,
};
use recurve::{Error, Result};
use std::time::Duration;

/// Random ids whose label is whether the last one is even: 103 rows, so that the last batch of 16 has 7.
fn dataset() -> Dataset {
    let mut rng = Rng::new(1, Purpose::User, 0);
    let mut part = |rows: usize| {
        let x: Vec<u32> = (0..rows * 6).map(|_| 3 + rng.below(20) as u32).collect();
        Examples { y: x.chunks(6).map(|row| row[5] % 2).collect(), x, t: 6 }
    };
    // Only a loaded set has the remaining fields; the sample gives them.
    let sample = data::load(&DataOptions { source: Source::Sample, ..Default::default() }, None).unwrap();
    Dataset { train: part(103), validation: Some(part(40)), test: Some(part(33)), vocab: 23, ..sample }
}

fn fresh(dataset: &Dataset, options: TrainOptions) -> Checkpoint {
    let config = ModelConfig { vocab: 23, embed: 5, hidden: 7, ..Default::default() };
    let mut checkpoint = {
        let model = Model::new(config).unwrap();
        let params = model.init(options.seed);
        Checkpoint::new(model, params, AdamConfig::default(), dataset, options)
    };
    // The words belong to the sample, not to these ids.
    checkpoint.encoding.words = data::Words::Prepared;
    checkpoint
}

fn options() -> TrainOptions {
    TrainOptions { epochs: 4, batch_size: 16, lr: 0.01, seed: 2, ..Default::default() }
}

fn engine(device: &Device, threads: usize) -> Box<dyn Engine> {
    engine_in(Precision::F32, device, threads)
}

fn engine_in(precision: Precision, device: &Device, threads: usize) -> Box<dyn Engine> {
    let engine = device.engine_in(precision, threads).unwrap();
    println!("executed by: {:?}", engine.info());
    engine
}

/// Stops once `after` batches have been seen in all.
struct StopAfter {
    seen: u64,
    after: u64,
}

impl Observer for StopAfter {
    fn batches(&mut self, _: u32, _: &Metrics, _: u64, _: Duration) {
        self.seen += 1;
    }
    fn stop(&self) -> bool {
        self.seen >= self.after
    }
}

#[test]
fn a_training_stopped_anywhere_and_continued_has_the_same_bits() {
    let dataset = dataset();
    for (device, precision) in [
        (Device::Cpu, Precision::F32),
        (Device::Reference, Precision::F32),
        (Device::Reference, Precision::Bf16),
        (Device::Reference, Precision::F16),
    ] {
        let begin = || {
            let mut checkpoint = fresh(&dataset, TrainOptions { precision, ..options() });
            // With f16 the first steps are skipped.
            checkpoint.state.loss_scale.scale = 2f32.powi(22);
            checkpoint
        };
        let mut whole = begin();
        train(engine_in(precision, &device, 2).as_mut(), &mut whole, &dataset, &mut ()).unwrap();
        assert_eq!(whole.state.loss_scale.skipped > 0, precision == Precision::F16);
        assert_eq!(whole.progress.epoch, 4);
        assert_eq!(whole.state.t, 4 * 7);
        let mut mid_epoch = 0;
        for after in 1..=9 {
            let mut pieces = begin();
            let mut calls = 0;
            loop {
                // Through the file, as a user's resume goes.
                let folder = tempfile::tempdir().unwrap();
                let path = folder.path().join("model.safetensors");
                pieces.save(&path).unwrap();
                let reloaded = Checkpoint::load(&path).unwrap();
                assert_eq!(reloaded, pieces);
                pieces = reloaded;
                // Any number of threads.
                let mut engine = engine_in(precision, &device, 1 + calls % 3);
                let mut stop = StopAfter { seen: 0, after };
                let outcome = train(engine.as_mut(), &mut pieces, &dataset, &mut stop).unwrap();
                mid_epoch += u32::from(pieces.progress.batch > 0);
                calls += 1;
                if outcome.ending == Ending::Finished {
                    break;
                }
                assert!(calls < 100);
            }
            assert_eq!(whole, pieces, "{device:?} in {precision}, stopped after {after} looks");
        }
        assert!(mid_epoch > 0, "no stop fell into an epoch: the test shows nothing");
    }
}

#[test]
fn early_stopping_waits_for_the_validation_loss() {
    let mut dataset = dataset();
    // Labels that no training row can teach: the validation loss must rise in the end.
    let mut rng = Rng::new(4, Purpose::User, 0);
    dataset.validation.as_mut().unwrap().y.iter_mut().for_each(|y| *y = rng.below(2) as u32);
    let mut checkpoint =
        fresh(&dataset, TrainOptions { epochs: 300, patience: Some(3), lr: 0.05, ..options() });
    let outcome = train(engine(&Device::Cpu, 1).as_mut(), &mut checkpoint, &dataset, &mut ()).unwrap();
    assert_eq!(outcome.ending, Ending::Patience);
    let history = &checkpoint.progress.history;
    let best = best_epoch(history).unwrap();
    assert_eq!(checkpoint.progress.epoch, best.epoch + 3);
    for epoch in history {
        assert!(epoch.validation_loss >= best.validation_loss);
    }

    let without = Dataset { validation: None, ..dataset };
    let mut checkpoint = fresh(&without, TrainOptions { patience: Some(3), ..options() });
    let error = train(engine(&Device::Cpu, 1).as_mut(), &mut checkpoint, &without, &mut ()).unwrap_err();
    assert!(error.is_usage(), "{error}");
}

#[test]
fn a_loss_that_is_no_number_ends_the_training_with_the_last_whole_epoch() {
    /// Poisons the weights after the second epoch.
    struct Poison(Option<Checkpoint>);
    impl Observer for Poison {
        fn epoch(&mut self, checkpoint: &Checkpoint, _: EpochSeconds, _: bool) -> Result<()> {
            self.0 = Some(checkpoint.clone());
            Ok(())
        }
    }
    let dataset = dataset();
    let mut good = fresh(&dataset, TrainOptions { epochs: 2, ..options() });
    train(engine(&Device::Cpu, 1).as_mut(), &mut good, &dataset, &mut ()).unwrap();
    let mut bad = good.clone();
    bad.options.epochs = 4;
    let dense_bias = bad.model.table.find("dense/bias").unwrap().offset;
    bad.state.params[dense_bias] = f32::NAN;
    let before = bad.clone();
    let mut seen = Poison(None);
    let error = train(engine(&Device::Cpu, 1).as_mut(), &mut bad, &dataset, &mut seen).unwrap_err();
    assert!(matches!(error, Error::Diverged { epoch: 3, .. }), "{error}");
    assert!(seen.0.is_none());
    assert_eq!(bad.progress, before.progress);
}

#[test]
fn weight_decay_and_clipping_reach_the_steps() {
    let steps =
        TrainOptions { weight_decay: 0.25, clip_norm: 3.0, lr: 0.5, ..options() }.steps(103, 7).unwrap();
    assert_eq!(steps.len(), 7);
    let last = steps[6];
    assert_eq!((last.t, last.batch_start, last.rows), (14, 96, 7));
    assert_eq!((last.weight_decay, last.clip_norm, last.lr), (0.25, 3.0, 0.5));
    assert_eq!(steps[0].rows, 16);
}

#[test]
fn a_schedule_runs_through_the_epochs() {
    let options =
        TrainOptions { epochs: 2, lr: 0.5, lr_schedule: LrSchedule::Cosine, warmup_steps: 4, ..options() };
    let steps = [options.steps(103, 0).unwrap(), options.steps(103, 7).unwrap()].concat();
    let rates: Vec<f32> = steps.iter().map(|step| step.lr).collect();
    assert_eq!(rates[..5], [0.0, 0.125, 0.25, 0.375, 0.5]);
    assert_eq!(rates[9], 0.25, "half way from step 4 to step 14");
    assert!(rates[13] > 0.0 && rates[4..].windows(2).all(|pair| pair[1] < pair[0]), "{rates:?}");
}

#[test]
fn class_weights_are_what_was_said() {
    let classes: Vec<String> = ["no", "a=b", "never"].map(String::from).into();
    let labels = [0, 0, 0, 1];
    let resolve = |text: &str| text.parse::<ClassWeight>().unwrap().resolve(&classes, &labels).unwrap();
    assert_eq!(resolve("none"), None);
    assert_eq!(resolve("balanced"), Some(vec![4.0 / 6.0, 2.0, 1.0]));
    assert_eq!(resolve("a=b=3,never=0"), Some(vec![1.0, 3.0, 0.0]));
    for text in ["", "no", "no=", "no=x", "no=1,no=2", "no=inf", "balanced,no=1"] {
        assert!(text.parse::<ClassWeight>().is_err(), "{text:?}");
    }
    for text in ["none", "balanced", "a=b=3,never=0.5"] {
        assert_eq!(text.parse::<ClassWeight>().unwrap().to_string(), text);
    }
}

#[test]
fn both_back_ends_learn_the_same_thing() {
    let dataset = dataset();
    let run = |device: &Device| {
        let mut checkpoint = fresh(&dataset, options());
        train(engine(device, 2).as_mut(), &mut checkpoint, &dataset, &mut ()).unwrap();
        checkpoint
    };
    let (cpu, reference) = (run(&Device::Cpu), run(&Device::Reference));
    for (a, b) in cpu.progress.history.iter().zip(&reference.progress.history) {
        // 28 steps of Adam amplify last-bit differences; a wrong gradient would differ in the second digit.
        assert!((a.loss - b.loss).abs() < 1e-4, "{a:?} {b:?}");
    }
}
