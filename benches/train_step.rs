//! A whole training step (forward, loss, backward, Adam), an evaluation and a prediction through the CPU's engine, at the
//! reference workload (V 10,000, E 16, H 32, C 2, batch 32, T 32) and at larger shapes, on every instruction set of this
//! machine, on one thread and on all cores.
//!
//! `cargo bench --bench train_step`; `-- --test` only checks. Criterion reports examples a second; a line after each
//! training bench gives the fastest steps' GFLOP/s, products of the recurrent layer alone (6·B·T·(E+H)·4H for forward
//! and backward), and their share of the FMA peak that was measured on as many threads when the bench began. Products with W
//! count for every token, though the engine makes them once for each distinct token of a block: wide embeddings can pass
//! the peak.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use recurve::backend::cpu::{Cpu, CpuEngine, Isa, fma_peak};
use recurve::backend::{AdamConfig, Device, Engine, Part, Parts, StepState, TrainState};
use recurve::data::Examples;
use recurve::metrics::Metrics;
use recurve::model::{Model, ModelConfig};
use recurve::rng::{Purpose, Rng};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// One workload.
#[derive(Clone, Copy)]
struct Shape {
    name: &'static str,
    batch: u32,
    t: usize,
    embed: usize,
    hidden: usize,
    /// Steps of one iteration.
    steps: u32,
}

const SHAPES: [Shape; 5] = [
    Shape { name: "reference", batch: 32, t: 32, embed: 16, hidden: 32, steps: 64 },
    Shape { name: "hidden_33", batch: 32, t: 32, embed: 17, hidden: 33, steps: 64 },
    Shape { name: "hidden_128", batch: 64, t: 200, embed: 16, hidden: 128, steps: 1 },
    Shape { name: "hidden_128_embed_128", batch: 64, t: 200, embed: 128, hidden: 128, steps: 1 },
    Shape { name: "hidden_512", batch: 64, t: 100, embed: 128, hidden: 512, steps: 1 },
];

impl Shape {
    fn rows(self) -> u32 {
        self.batch * self.steps
    }

    /// Floating-point operations of an iteration.
    fn flop(self) -> f64 {
        6.0 * f64::from(self.rows()) * (self.t * (self.embed + self.hidden) * 4 * self.hidden) as f64
    }

    fn model(self) -> Model {
        let config = ModelConfig { embed: self.embed, hidden: self.hidden, ..ModelConfig::default() };
        Model::new(config).expect("the model is valid")
    }

    fn examples(self) -> Examples {
        let mut rng = Rng::new(1, Purpose::User, 0);
        // As skewed as words are: the logarithm of an id is uniform.
        let id = |uniform: f64| 3 + (9996f64.powf(uniform) - 1.0) as u32;
        let x: Vec<u32> = (0..self.rows() as usize * self.t).map(|_| id(rng.uniform())).collect();
        Examples { y: x.chunks(self.t).map(|row| row[self.t - 1] % 2).collect(), x, t: self.t }
    }

    fn steps(self, t: u64) -> Vec<StepState> {
        let step = |k| StepState::new(t + 1 + u64::from(k), 0.001, k * self.batch, self.batch);
        (0..self.steps).map(step).collect()
    }

    /// What is compared with the oracle, whose loops would take minutes over long sequences of wide layers: the same
    /// but for the length.
    fn checked(self) -> Self {
        Self { t: if self.hidden > 64 { 4 } else { self.t }, ..self }
    }

    fn load(self, engine: &mut dyn Engine, examples: &Examples) {
        let model = self.model();
        let parts = Parts { train: Some(examples), test: Some(examples), ..Parts::default() };
        let state = TrainState::new(model.init(1));
        engine.load(&model, &state, AdamConfig::default(), parts).expect("the examples fit the model");
        let order: Vec<u32> = (0..self.rows()).collect();
        engine.set_order(&order, Metrics::default()).expect("the engine is loaded");
    }
}

/// The loss of the first steps, to be compared with the oracle's: if they differ, there is nothing to time.
fn first_loss(shape: Shape, engine: &mut dyn Engine) -> f64 {
    let shape = shape.checked();
    shape.load(engine, &shape.examples());
    let steps = shape.steps(0);
    engine.train(&steps[..steps.len().min(4)]).expect("the engine trains");
    engine.poll(true).expect("trained").loss()
}

fn train_step(c: &mut Criterion) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut threads = vec![1];
    if cores > 1 {
        threads.push(cores);
    }
    for shape in SHAPES {
        let examples = shape.examples();
        let mut oracle = Device::Reference.engine(1).expect("the oracle is always there");
        let expected = first_loss(shape, oracle.as_mut());
        for &threads in &threads {
            for isa in Isa::available() {
                let cpu = || Cpu::with_isa(threads, isa).expect("it is available");
                let peak = fma_peak(&cpu(), Duration::from_millis(200));
                let mut engine = CpuEngine::new(cpu());
                let found = first_loss(shape, &mut engine);
                assert!((expected - found).abs() < 1e-5, "loss {found}, the oracle's is {expected}");
                shape.load(&mut engine, &examples);

                let info = engine.info();
                println!("ran on: {}, {}, threads: {threads}", info.name, info.executed);
                let mut group = c.benchmark_group(format!("{}/{isa}/threads_{threads}", shape.name));
                group.sample_size(if shape.steps == 1 { 10 } else { 20 });
                group.throughput(Throughput::Elements(u64::from(shape.rows())));
                let mut t = 0;
                let mut best = f64::INFINITY;
                group.bench_function("train", |b| {
                    b.iter(|| {
                        let steps = shape.steps(t);
                        let begun = Instant::now();
                        engine.train(&steps).expect("the engine trains");
                        best = best.min(begun.elapsed().as_secs_f64());
                        t += u64::from(shape.steps);
                        black_box(engine.poll(true).expect("trained"))
                    });
                });
                if best.is_finite() {
                    let flops = shape.flop() / best;
                    println!(
                        "{}/{isa}/threads_{threads}: at best {:.0} examples/s, {:.1} GFLOP/s, {:.0} % of the \
                         measured FMA peak of {:.1} GFLOP/s",
                        shape.name,
                        f64::from(shape.rows()) / best,
                        flops / 1e9,
                        100.0 * flops / peak,
                        peak / 1e9
                    );
                }
                if shape.name == "reference" {
                    group.bench_function("evaluate", |b| {
                        b.iter(|| black_box(engine.evaluate(Part::Test, 32).expect("it evaluates")));
                    });
                    let row = examples.row(0).to_vec();
                    group.throughput(Throughput::Elements(1));
                    group.bench_function("predict_1_row", |b| {
                        b.iter(|| black_box(engine.predict(&row, 1).expect("it predicts")));
                    });
                }
                group.finish();
            }
        }
    }
}

criterion_group!(benches, train_step);
criterion_main!(benches);
