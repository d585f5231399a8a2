//! A whole training step (forward, loss, backward, Adam) and an evaluation through the engine, at the reference
//! workload: V 10,000, E 16, H 32, C 2, batch 32, T 32.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use recurve::backend::{AdamConfig, Device, Engine, Part, Parts, StepState, TrainState};
use recurve::data::Examples;
use recurve::metrics::Metrics;
use recurve::model::{Model, ModelConfig};
use recurve::rng::{Purpose, Rng};
use std::hint::black_box;

const ROWS: u32 = 2048;
const BATCH: u32 = 32;

fn examples() -> Examples {
    let mut rng = Rng::new(1, Purpose::User, 0);
    // As skewed as words are: most tokens are among the frequent ones.
    let x: Vec<u32> = (0..ROWS * 32).map(|_| 3 + (rng.uniform().powi(3) * 9996.0) as u32).collect();
    Examples { y: x.chunks(32).map(|row| row[31] % 2).collect(), x, t: 32 }
}

fn steps(t: u64) -> Vec<StepState> {
    (0..ROWS / BATCH).map(|k| StepState::new(t + 1 + u64::from(k), 0.001, k * BATCH, BATCH)).collect()
}

fn loaded(device: &Device, threads: usize, examples: &Examples) -> Box<dyn Engine> {
    let model = Model::new(ModelConfig::default()).expect("the default model is valid");
    let mut engine = device.engine(threads).expect("a host back end is always there");
    let parts = Parts { train: Some(examples), test: Some(examples), ..Parts::default() };
    let state = TrainState::new(model.init(1));
    engine.load(&model, &state, AdamConfig::default(), parts).expect("the examples fit the model");
    let order: Vec<u32> = (0..ROWS).collect();
    engine.set_order(&order, Metrics::default()).expect("the engine is loaded");
    engine
}

/// The loss of the first steps must be the oracle's, or there is nothing to time.
fn check(engine: &mut dyn Engine, examples: &Examples) {
    let first = &steps(0)[..4];
    let mut oracle = loaded(&Device::Reference, 1, examples);
    oracle.train(first).expect("the oracle trains");
    engine.train(first).expect("the engine trains");
    let (expected, found) =
        (oracle.poll(true).expect("trained").loss(), engine.poll(true).expect("trained").loss());
    assert!((expected - found).abs() < 1e-5, "loss {found}, the oracle's is {expected}");
}

fn train_step(c: &mut Criterion) {
    let examples = examples();
    for threads in [1, 0] {
        let mut engine = loaded(&Device::Cpu, threads, &examples);
        check(engine.as_mut(), &examples);
        let info = engine.info();
        println!("ran on: {} ({}), {}, threads: {}", info.device, info.name, info.executed, info.threads);
        let mut group = c.benchmark_group(format!("reference_workload/threads_{}", info.threads));
        group.sample_size(20);
        group.throughput(Throughput::Elements(u64::from(ROWS)));
        let mut t = 4;
        group.bench_function("train_64_steps", |b| {
            b.iter(|| {
                engine.train(&steps(t)).expect("the engine trains");
                t += u64::from(ROWS / BATCH);
                black_box(engine.poll(true).expect("trained"))
            });
        });
        group.bench_function("evaluate_2048_rows", |b| {
            b.iter(|| black_box(engine.evaluate(Part::Test, 32).expect("the engine evaluates")));
        });
        let row = examples.row(0).to_vec();
        group.throughput(Throughput::Elements(1));
        group.bench_function("predict_1_row", |b| {
            b.iter(|| black_box(engine.predict(&row, 1).expect("the engine predicts")));
        });
        group.finish();
    }
}

criterion_group!(benches, train_step);
criterion_main!(benches);
