//! What only the software device can show of the CUDA engine: how much it launches, when it waits, and that devices of
//! every generation give the same bits. One test: the counts and the options are the process's.

#![cfg(all(feature = "cuda", target_os = "linux"))]
// A test that cannot go on fails; clippy allows that inside of test functions only, not in their helpers.
#![allow(clippy::unwrap_used)]

use recurve::backend::cuda::{Cuda, CudaEngine};
use recurve::backend::{AdamConfig, Engine, Part, Parts, StepState, TrainState};
use recurve::data::Examples;
use recurve::metrics::Metrics;
use recurve::model::{Model, ModelConfig};
use recurve::rng::{Purpose, Rng};
use softcuda::{Scope, Soft};

const ROWS: usize = 70;
const BATCH: u32 = 16;

fn examples() -> Examples {
    let mut rng = Rng::new(11, Purpose::User, 0);
    let x: Vec<u32> = (0..ROWS * 6).map(|_| rng.below(50) as u32).collect();
    Examples { y: x.chunks(6).map(|row| row[5] % 2).collect(), x, t: 6 }
}

fn steps(t: u64) -> Vec<StepState> {
    let rows = ROWS as u32;
    (0..rows.div_ceil(BATCH))
        .map(|k| StepState::new(t + 1 + u64::from(k), 0.01, k * BATCH, BATCH.min(rows - k * BATCH)))
        .collect()
}

fn engine(model: &Model, examples: &Examples) -> CudaEngine {
    let mut engine = CudaEngine::new(Cuda::new(0).unwrap());
    let parts = Parts { train: Some(examples), test: Some(examples), ..Parts::default() };
    engine.load(model, &TrainState::new(model.init(3)), AdamConfig::default(), parts).unwrap();
    let order: Vec<u32> = (0..ROWS as u32).collect();
    engine.set_order(&order, Metrics::default()).unwrap();
    engine
}

fn one_graph_a_step_and_no_waiting_within_an_epoch(soft: &Soft) {
    let model = Model::new(ModelConfig { vocab: 50, embed: 5, hidden: 7, ..Default::default() }).unwrap();
    let examples = examples();
    let mut engine = engine(&model, &examples);
    engine.train(&steps(0)).unwrap();
    engine.poll(true).unwrap();
    engine.evaluate(Part::Test, 16).unwrap();
    for epoch in 1..4u64 {
        let order: Vec<u32> = (0..ROWS as u32).rev().collect();
        engine.set_order(&order, Metrics::default()).unwrap();
        soft.clear_counters(Scope::Process);
        engine.train(&steps(5 * epoch)).unwrap();
        let asked = soft.counters(Scope::Process);
        engine.poll(true).unwrap();
        let done = soft.counters(Scope::Process);
        println!(
            "{} steps: {} graphs launched, {} kernels in them, {} launched alone, on {}",
            steps(0).len(),
            done.totals.graph_launches,
            done.totals.graph_kernel_nodes,
            done.totals.direct_launches,
            engine.cuda().device_name()
        );
        assert_eq!(asked.totals.graph_launches, 5, "one graph a step");
        // The software device works only when something waits for it.
        assert_eq!(asked.totals.graph_kernel_nodes, 0, "something waited before the poll");
        assert_eq!(done.totals.direct_launches, 0, "every kernel is in a graph");
        assert_eq!(done.totals.graph_kernel_nodes, 5 * 14, "the same kernels in every step");
        assert_eq!(done.kernel("adam").launches, 5);
        assert_eq!((asked.totals.blocking_copies, asked.totals.allocations), (0, 0));
        engine.evaluate(Part::Test, 16).unwrap();
    }
    assert_eq!(engine.graphs_recorded(), 2, "16 rows and 6, not once an epoch");
}

/// U of 100 units: 64 rows in registers, of the rest none, some or all in shared memory.
fn the_same_bits_on_every_generation(soft: &Soft) {
    let model = Model::new(ModelConfig { vocab: 50, embed: 5, hidden: 100, ..Default::default() }).unwrap();
    let examples = examples();
    let mut first = None;
    for capability in [75, 80, 86, 89, 90, 120] {
        soft.reset();
        soft.set("compute_capability", capability).unwrap();
        let mut engine = engine(&model, &examples);
        engine.train(&steps(0)).unwrap();
        let metrics = engine.poll(true).unwrap();
        let state = engine.read_state().unwrap();
        let bits: Vec<u32> =
            [&state.params, &state.m, &state.v].iter().flat_map(|a| a.iter().map(|x| x.to_bits())).collect();
        println!(
            "compute capability {capability}: {} of 64 rows staged, loss {}, on {}",
            engine.cuda().staged_rows(),
            metrics.loss(),
            engine.cuda().device_name()
        );
        let (_, expected) = first.get_or_insert((metrics, bits.clone()));
        assert!(bits == *expected, "other bits at compute capability {capability}");
        assert_eq!(first.as_ref().unwrap().0, metrics);
    }
    soft.reset();
}

#[test]
fn launches_waits_and_generations() {
    let soft = softcuda::open().unwrap_or_else(|error| panic!("{error}"));
    one_graph_a_step_and_no_waiting_within_an_epoch(soft);
    the_same_bits_on_every_generation(soft);
}
