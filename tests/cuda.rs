//! The CUDA engine against the oracle's: whole training steps with graphs, evaluation, prediction, state, errors. What
//! executed is printed (see `parity/device.rs`).
#![cfg(feature = "cuda")]
// A test that cannot go on fails; clippy allows that inside of test functions only, not in their helpers.
#![allow(clippy::unwrap_used)]

#[path = "parity/device.rs"]
mod device;

use recurve::Error;
use recurve::backend::cuda::{Activation, Cuda, CudaEngine, ImageChoice};
use recurve::backend::host::HostEngine;
use recurve::backend::reference::Reference;
use recurve::backend::{
    Adam, AdamConfig, DeviceInfo, EmbeddingBackward, EmbeddingDims, EmbeddingForward, Engine, Matmul,
    MatmulDims, Ops as _, Part, Parts, SequenceBackward, SequenceDims, SequenceForward, StepState,
    TrainState,
};
use recurve::data::Examples;
use recurve::metrics::Metrics;
use recurve::model::{Model, ModelConfig};
use recurve::rng::{Purpose, Rng};

const T: usize = 7;
const ROWS: usize = 45;
const BATCH: usize = 16;
const LR: f32 = 0.01;

fn model(embed: usize, hidden: usize) -> Model {
    Model::new(ModelConfig { vocab: 70, embed, hidden, classes: 3, ..Default::default() }).unwrap()
}

fn examples(rows: usize, seed: u32) -> Examples {
    let mut rng = Rng::new(5, Purpose::User, seed);
    let x: Vec<u32> = (0..rows * T).map(|_| rng.below(70) as u32).collect();
    Examples { y: x.chunks(T).map(|row| row[T - 1] % 3).collect(), x, t: T }
}

fn oracle() -> HostEngine<f64, Reference<f64>> {
    let info =
        DeviceInfo { device: "reference".into(), name: String::new(), executed: "f64".into(), threads: 1 };
    HostEngine::new(Reference::<f64>::new(), info)
}

fn cuda_engine() -> Option<CudaEngine> {
    let cuda = device::open(ImageChoice::from_env().unwrap())?;
    println!("executed by: {}", cuda.name());
    Some(CudaEngine::new(cuda))
}

/// An order that is not the file's.
fn order(epoch: u64) -> Vec<u32> {
    let mut rng = Rng::new(epoch, Purpose::User, 9);
    let mut order: Vec<u32> = (0..ROWS as u32).collect();
    for k in (1..order.len()).rev() {
        order.swap(k, rng.below(k as u64 + 1) as usize);
    }
    order
}

/// The steps of an epoch: two whole batches and one of 13 rows.
fn steps(t: u64, clip_norm: f32, weight_decay: f32) -> Vec<StepState> {
    let step = |k: u32| {
        let start = k * BATCH as u32;
        let rows = (BATCH as u32).min(ROWS as u32 - start);
        StepState { clip_norm, weight_decay, ..StepState::new(t + 1 + u64::from(k), LR, start, rows) }
    };
    (0..3).map(step).collect()
}

/// Loads `engine` and trains two epochs, the second in two calls; metrics of both, state, evaluations, predictions.
fn two_epochs(
    engine: &mut dyn Engine,
    model: &Model,
    clip_norm: f32,
    weight_decay: f32,
) -> (Vec<Metrics>, TrainState, Vec<f32>) {
    let (train, test) = (examples(ROWS, 1), examples(33, 2));
    let parts = Parts { train: Some(&train), test: Some(&test), ..Parts::default() };
    let state = TrainState::new(model.init(3));
    engine.load(model, &state, AdamConfig::default(), parts).unwrap();
    let mut metrics = Vec::new();
    engine.set_order(&order(1), Metrics::default()).unwrap();
    engine.train(&steps(0, clip_norm, weight_decay)).unwrap();
    metrics.push(engine.poll(true).unwrap());
    metrics.push(engine.evaluate(Part::Test, 10).unwrap());
    let before = Metrics { loss_sum: 2.5, batches: 2, correct: 7, examples: 20 };
    engine.set_order(&order(2), before).unwrap();
    let second = steps(3, clip_norm, weight_decay);
    engine.train(&second[..1]).unwrap();
    engine.train(&second[1..]).unwrap();
    metrics.push(engine.poll(true).unwrap());
    metrics.push(engine.evaluate(Part::Train, 16).unwrap());
    let state = engine.read_state().unwrap();
    let probabilities = engine.predict(&test.x, test.rows()).unwrap();
    (metrics, state, probabilities)
}

fn compare(name: &str, found: &[f32], truth: &[f32], atol: f32) {
    assert_eq!(found.len(), truth.len(), "{name}");
    let mut worst = (0.0, 0);
    for (index, (found, truth)) in found.iter().zip(truth).enumerate() {
        let diff = (found - truth).abs();
        assert!(
            diff <= atol,
            "{name}[{index}] = {found:e}, truth {truth:e}: off by {diff:e}, allowed {atol:e}"
        );
        if diff > worst.0 {
            worst = (diff, index);
        }
    }
    println!("  {name}: worst off by {:.2e} at {} of {}, allowed {atol:.1e}", worst.0, worst.1, found.len());
}

#[test]
fn training_follows_the_oracle_in_every_path() {
    // Each kernel of the sequence, and the path beyond them.
    for (embed, hidden) in [(16, 32), (5, 7), (19, 33), (40, 20), (3, 90), (6, 128), (5, 130)] {
        let model = model(embed, hidden);
        // Clipping and weight decay know nothing of the path: one that sums in parts and one that does not will do.
        let both = matches!(hidden, 7 | 130);
        let plain = (0.0, 0.0);
        for (clip_norm, weight_decay) in if both { vec![plain, (0.05, 0.1)] } else { vec![plain] } {
            let Some(mut engine) = cuda_engine() else { return };
            let (metrics, state, probabilities) = two_epochs(&mut engine, &model, clip_norm, weight_decay);
            let (truth, true_state, true_probabilities) =
                two_epochs(&mut oracle(), &model, clip_norm, weight_decay);
            println!("E {embed}, H {hidden}, clip {clip_norm}, weight decay {weight_decay}");
            for (found, truth) in metrics.iter().zip(&truth) {
                assert_eq!((found.batches, found.examples), (truth.batches, truth.examples));
                assert!((found.loss_sum - truth.loss_sum).abs() < 1e-4, "{found:?}, truth {truth:?}");
                assert!(found.correct.abs_diff(truth.correct) <= 1, "{found:?}, truth {truth:?}");
            }
            // Six steps move a parameter by up to 0.06, whatever its gradient's size: a gradient that is off by 1e-4 of
            // itself, because it is a small sum of large terms, moves it by 1e-4 of that. Gradients are below 0.5 here,
            // and their sums' roundings below 1e-6.
            compare("params", &state.params, &true_state.params, 1e-5);
            compare("m", &state.m, &true_state.m, 2e-7);
            compare("v", &state.v, &true_state.v, 1e-9);
            compare("probabilities", &probabilities, &true_probabilities, 1e-6);
            assert_eq!(state.t, 6);
            // Fused: graphs of one step. Else 16 and 13 rows, however many epochs.
            let fused = hidden <= 64 && clip_norm == 0.0;
            assert_eq!(engine.graphs_recorded(), if fused { 1 } else { 2 });
        }
    }
}

#[test]
fn the_same_training_gives_the_same_bits() {
    let model = model(16, 32);
    let Some(mut first) = cuda_engine() else { return };
    let a = two_epochs(&mut first, &model, 0.0, 0.0);
    // The same engine again, and another one.
    assert_eq!(two_epochs(&mut first, &model, 0.0, 0.0), a);
    let mut second = cuda_engine().unwrap();
    assert_eq!(two_epochs(&mut second, &model, 0.0, 0.0), a);
}

#[test]
fn a_state_written_back_goes_on_with_the_same_bits() {
    let model = model(5, 7);
    let Some(mut engine) = cuda_engine() else { return };
    let train = examples(ROWS, 1);
    let parts = Parts { train: Some(&train), ..Parts::default() };
    engine.load(&model, &TrainState::new(model.init(3)), AdamConfig::default(), parts).unwrap();
    engine.set_order(&order(1), Metrics::default()).unwrap();
    engine.train(&steps(0, 0.0, 0.0)).unwrap();
    let middle = engine.read_state().unwrap();
    assert_eq!(middle.t, 3);
    engine.train(&steps(3, 0.0, 0.0)).unwrap();
    let end = engine.read_state().unwrap();
    assert_ne!(end, middle);
    engine.write_state(&middle).unwrap();
    assert_eq!(engine.read_state().unwrap(), middle);
    engine.train(&steps(3, 0.0, 0.0)).unwrap();
    assert_eq!(engine.read_state().unwrap(), end);
}

#[test]
fn a_poll_that_does_not_wait_shows_what_has_finished() {
    let model = model(5, 7);
    let Some(mut engine) = cuda_engine() else { return };
    let train = examples(ROWS, 1);
    let parts = Parts { train: Some(&train), ..Parts::default() };
    engine.load(&model, &TrainState::new(model.init(3)), AdamConfig::default(), parts).unwrap();
    let begun = Metrics { loss_sum: 1.0, batches: 1, correct: 1, examples: 2 };
    engine.set_order(&order(1), begun).unwrap();
    assert_eq!(engine.poll(false).unwrap(), begun);
    for step in &steps(0, 0.0, 0.0) {
        engine.train(std::slice::from_ref(step)).unwrap();
        let seen = engine.poll(false).unwrap();
        assert!((1..=4).contains(&seen.batches), "{seen:?}");
    }
    let all = engine.poll(true).unwrap();
    assert_eq!((all.batches, all.examples), (4, 2 + ROWS as u64));
    assert_eq!(engine.poll(false).unwrap(), all);
}

#[test]
fn a_step_without_rows_only_moves_on_momentum() {
    let model = model(5, 7);
    let Some(mut engine) = cuda_engine() else { return };
    let mut oracle = oracle();
    let train = examples(ROWS, 1);
    let mut last = Vec::new();
    for engine in [&mut engine as &mut dyn Engine, &mut oracle] {
        let parts = Parts { train: Some(&train), ..Parts::default() };
        engine.load(&model, &TrainState::new(model.init(3)), AdamConfig::default(), parts).unwrap();
        engine.set_order(&order(1), Metrics::default()).unwrap();
        engine.train(&[StepState::new(1, LR, 0, 16), StepState::new(2, LR, 45, 0)]).unwrap();
        assert_eq!(engine.poll(true).unwrap().batches, 1);
        last.push(engine.read_state().unwrap());
        engine.train(&[]).unwrap();
    }
    compare("params", &last[0].params, &last[1].params, 1e-5);
}

#[test]
fn wrong_calls_are_errors_and_nothing_runs() {
    let model = model(5, 7);
    let Some(mut engine) = cuda_engine() else { return };
    let message = |result: recurve::Result<()>| result.unwrap_err().to_string();
    assert!(message(engine.train(&[])).contains("call load first"));
    let state = TrainState::new(model.init(3));
    let mut bad = examples(4, 1);
    bad.x[9] = 70;
    let parts = Parts { train: Some(&bad), ..Parts::default() };
    let error = message(engine.load(&model, &state, AdamConfig::default(), parts));
    assert!(error.contains("row 1 holds id 70"), "{error}");
    let short = TrainState::new(vec![0.0; 3]);
    let error = message(engine.load(&model, &short, AdamConfig::default(), Parts::default()));
    assert!(error.contains("params must be"), "{error}");

    engine.load(&model, &state, AdamConfig::default(), Parts::default()).unwrap();
    let error = message(engine.train(&[StepState::new(1, LR, 0, 1)]));
    assert!(error.contains("no training examples"), "{error}");
    let error = engine.evaluate(Part::Test, 8).unwrap_err().to_string();
    assert!(error.contains("no Test examples"), "{error}");

    let train = examples(ROWS, 1);
    let parts = Parts { train: Some(&train), ..Parts::default() };
    engine.load(&model, &state, AdamConfig::default(), parts).unwrap();
    engine.set_order(&order(1), Metrics::default()).unwrap();
    let error = message(engine.train(&[StepState::new(1, LR, 40, 6)]));
    assert!(error.contains("6 rows from 40"), "{error}");
    let error = message(engine.train(&[StepState::new(0, LR, 0, 6)]));
    assert!(error.contains("steps count from 1"), "{error}");
    engine.set_order(&[0, 45], Metrics::default()).unwrap();
    let error = message(engine.train(&[StepState::new(1, LR, 0, 2)]));
    assert!(error.contains("45 at index 1"), "{error}");
    let error = engine.predict(&[1, 2, 3], 2).unwrap_err().to_string();
    assert!(error.contains("multiple of 2"), "{error}");
    let error = engine.predict(&[1, 70], 2).unwrap_err().to_string();
    assert!(error.contains("70 at index 1"), "{error}");
    assert!(engine.predict(&[], 0).unwrap().is_empty());
    assert_eq!(engine.read_state().unwrap(), state);
}

#[test]
fn predictions_come_in_chunks_with_the_same_bits() {
    let model = model(3, 4);
    let Some(mut engine) = cuda_engine() else { return };
    let state = TrainState::new(model.init(3));
    engine.load(&model, &state, AdamConfig::default(), Parts::default()).unwrap();
    let many = examples(1100, 4);
    let all = engine.predict(&many.x, 1100).unwrap();
    let last = engine.predict(&many.x[1090 * T..], 10).unwrap();
    assert_eq!(all[1090 * 3..], last);
}

/// A device, a buffer of another, ids out of range, and the wrong length.
#[test]
fn the_boundary_of_the_operations_holds() {
    let (Some(cuda), Some(other)) = (device::open(ImageChoice::Best), device::open(ImageChoice::Best)) else {
        return;
    };
    let message = |result: recurve::Result<()>| result.unwrap_err().to_string();
    let d = EmbeddingDims { n: 3, v: 5, e: 2 };
    let ids = cuda.upload_ids(&[0, 4, 5]).unwrap();
    let table = cuda.upload(&[1.0; 10]).unwrap();
    let mut out = cuda.upload(&[7.0; 6]).unwrap();
    let error =
        message(cuda.embedding_forward(d, EmbeddingForward { table: &table, ids: &ids, out: &mut out }));
    assert!(error.contains("embedding_forward: ids [n]") && error.contains("5 at index 2"), "{error}");
    assert_eq!(cuda.download(&out).unwrap(), [7.0; 6]);
    let dout = cuda.upload(&[1.0; 6]).unwrap();
    let mut dtable = cuda.upload(&[7.0; 10]).unwrap();
    let error = message(
        cuda.embedding_backward(d, EmbeddingBackward { ids: &ids, dout: &dout, dtable: &mut dtable }),
    );
    assert!(error.contains("embedding_backward: ids [n]") && error.contains("5 at index 2"), "{error}");

    let d = MatmulDims { m: 2, k: 2, n: 2, ta: false, tb: false };
    let (a, b) = (other.upload(&[1.0; 4]).unwrap(), cuda.upload(&[1.0; 4]).unwrap());
    let mut out = cuda.upload(&[0.0; 4]).unwrap();
    let error = message(cuda.matmul(d, Matmul { a: &a, b: &b, out: &mut out, accumulate: false }));
    assert!(error.contains("another context's"), "{error}");
    let d = MatmulDims { k: 3, ..d };
    let error = message(cuda.matmul(d, Matmul { a: &b, b: &b, out: &mut out, accumulate: false }));
    assert!(error.contains("a [m,k]"), "{error}");

    let grads = cuda.upload(&[1.0]).unwrap();
    let (mut params, mut m, mut v) =
        (cuda.upload(&[1.0]).unwrap(), cuda.upload(&[0.0]).unwrap(), cuda.upload(&[0.0]).unwrap());
    let adam = Adam { grads: &grads, params: &mut params, m: &mut m, v: &mut v };
    let error = message(cuda.adam(&AdamConfig::default(), &StepState::new(0, LR, 0, 1), adam));
    assert!(error.contains("steps count from 1"), "{error}");
}

#[test]
fn a_device_that_is_not_there_is_an_error_that_says_so() {
    if device::open(ImageChoice::Best).is_none() {
        return;
    }
    let error = Cuda::new(999).unwrap_err();
    assert!(matches!(&error, Error::Device { device, .. } if device == "cuda:999"), "{error}");
    assert!(error.to_string().contains("there is no such device"), "{error}");
}

#[test]
fn a_buffer_too_large_says_how_much_was_asked_for() {
    let Some(cuda) = device::open(ImageChoice::Best) else { return };
    let model =
        Model::new(ModelConfig { vocab: 70, embed: 64, hidden: 2000, classes: 2, ..Default::default() });
    let model = model.unwrap();
    let mut engine = CudaEngine::new(cuda);
    let state = TrainState::new(vec![0.0; model.table.len()]);
    engine.load(&model, &state, AdamConfig::default(), Parts::default()).unwrap();
    // One row of very many time steps: 2^24 of them need 4 GiB of embeddings, and 500 GiB of gates.
    let error = engine.predict(&vec![1; 1 << 24], 1).unwrap_err().to_string();
    println!("{error}");
    assert!(error.contains("GiB were asked for") && error.contains("smaller batch"), "{error}");
    // The engine goes on.
    assert_eq!(engine.predict(&[1, 2], 1).unwrap().len(), 2);
}

#[test]
fn activations_and_the_devices_clock_can_be_used_alone() {
    let Some(cuda) = device::open(ImageChoice::Best) else { return };
    let values = [-3.0, -0.5, 0.25, 2.0];
    let x = cuda.upload(&values).unwrap();
    let mut out = cuda.upload(&[0.0; 4]).unwrap();
    let us = cuda.time_us(|| cuda.activate(Activation::Tanh, &x, &mut out)).unwrap();
    println!("{us} us by the clock of {}", cuda.device_name());
    assert!(us >= 0.0);
    for (found, x) in cuda.download(&out).unwrap().into_iter().zip(values) {
        assert!((found - x.tanh()).abs() < 1e-6, "tanh({x}) = {found}");
    }
}

/// The persistent kernels know a number that has not been written by its bits, those of a NaN: one in what they are given
/// (an initial state, weights and gradients of a training that went astray) is a NaN in what they leave, and not waited for.
#[test]
fn a_sequence_full_of_nans_comes_to_its_end() {
    let Some(cuda) = device::open(ImageChoice::from_env().unwrap()) else { return };
    println!("executed by: {}", cuda.name());
    let unwritten = f64::from_bits(u64::MAX);
    assert_eq!((unwritten as f32).to_bits(), u32::MAX);
    let d = SequenceDims { t: 3, b: 5, e: 2, h: 131 };
    let (state, states, gates) = (d.b * d.h, (d.t + 1) * d.b * d.h, d.t * d.b * 4 * d.h);
    let all = |n: usize, value: f64| cuda.upload(&vec![value; n]).unwrap();
    for (h0, u) in [(unwritten, 0.5), (0.5, unwritten), (unwritten, unwritten)] {
        let (x, w, b) = (all(d.t * d.b * d.e, 0.5), all(d.e * 4 * d.h, 0.5), all(4 * d.h, 0.5));
        let (h0, c0, u) = (all(state, h0), all(state, 0.5), all(d.h * 4 * d.h, u));
        let (mut left, mut h, mut c) = (all(gates, 0.0), all(states, 0.0), all(states, 0.0));
        let forward = SequenceForward {
            x: &x,
            h0: &h0,
            c0: &c0,
            w: &w,
            u: &u,
            b: &b,
            gates: &mut left,
            h: &mut h,
            c: &mut c,
        };
        cuda.lstm_sequence_forward(d, forward).unwrap();
        let outputs = cuda.download(&h).unwrap();
        assert!(outputs[state..].iter().all(|h| h.is_nan()), "a number came of NaNs");

        let dh = all(d.t * state, unwritten);
        let mut dx = all(d.t * d.b * d.e, 0.0);
        let (mut dh0, mut dc0) = (all(state, 0.0), all(state, 0.0));
        let (mut dw, mut du, mut db) = (all(d.e * 4 * d.h, 0.0), all(d.h * 4 * d.h, 0.0), all(4 * d.h, 0.0));
        let backward = SequenceBackward {
            x: &x,
            w: &w,
            u: &u,
            gates: &left,
            h: &h,
            c: &c,
            dh: Some(&dh),
            dh_last: None,
            dc_last: None,
            dx: &mut dx,
            dh0: &mut dh0,
            dc0: &mut dc0,
            dw: &mut dw,
            du: &mut du,
            db: &mut db,
        };
        cuda.lstm_sequence_backward(d, backward).unwrap();
        assert!(cuda.download(&dh0).unwrap().iter().all(|g| g.is_nan()), "a gradient came of NaNs");
    }
}
