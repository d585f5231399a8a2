//! What only the software device can show of the CUDA engine: how much it launches, when it waits, and that devices of
//! every generation give the same bits. One test: the counts and the options are the process's.

#![cfg(all(feature = "cuda", target_os = "linux"))]
// A test that cannot go on fails; clippy allows that inside of test functions only, not in their helpers.
#![allow(clippy::unwrap_used)]

use recurve::backend::cuda::{Cuda, CudaEngine, PathChoice};
use recurve::backend::{AdamConfig, Engine, Part, Parts, Precision, StepState, TrainState};
use recurve::data::Examples;
use recurve::metrics::Metrics;
use recurve::model::{Model, ModelConfig};
use recurve::rng::{Purpose, Rng};
use recurve::tuning::SEQUENCE_STREAMED;
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
    engine_with(PathChoice::Best, model, examples)
}

fn engine_with(path: PathChoice, model: &Model, examples: &Examples) -> CudaEngine {
    load(CudaEngine::with_path(Cuda::new(0).unwrap(), path), model, examples)
}

fn load(mut engine: CudaEngine, model: &Model, examples: &Examples) -> CudaEngine {
    let parts = Parts { train: Some(examples), test: Some(examples), ..Parts::default() };
    engine.load(model, &TrainState::new(model.init(3)), AdamConfig::default(), parts).unwrap();
    let order: Vec<u32> = (0..ROWS as u32).collect();
    engine.set_order(&order, Metrics::default()).unwrap();
    engine
}

/// The fused path: two kernels a step, and for any number of steps a few graphs of many steps.
fn two_kernels_a_step_and_no_waiting_within_an_epoch(soft: &Soft) {
    let model = Model::new(ModelConfig { vocab: 50, embed: 5, hidden: 7, ..Default::default() }).unwrap();
    let examples = examples();
    let mut engine = engine(&model, &examples);
    let mut t = 0;
    // Over and over the epoch's five batches, of which the last has 6 rows.
    let mut many = |count: usize| -> Vec<StepState> {
        let steps = steps(0).into_iter().cycle().take(count);
        let numbered = steps.zip(t + 1..).map(|(step, t)| StepState { t, ..step }).collect();
        t += count as u64;
        numbered
    };
    engine.train(&many(1)).unwrap();
    engine.train(&many(85)).unwrap();
    engine.poll(true).unwrap();
    engine.evaluate(Part::Test, 16).unwrap();
    let recorded = engine.graphs_recorded();
    assert_eq!(recorded, 4, "of 64, 16, 4 and 1 steps");
    for (count, graphs) in [(64, 1), (16, 1), (1, 1), (83, 2 + 3), (5, 2)] {
        let order: Vec<u32> = (0..ROWS as u32).rev().collect();
        engine.set_order(&order, Metrics::default()).unwrap();
        soft.clear_counters(Scope::Process);
        engine.train(&many(count)).unwrap();
        let asked = soft.counters(Scope::Process);
        let metrics = engine.poll(true).unwrap();
        let done = soft.counters(Scope::Process);
        println!(
            "{count} steps: {} graphs launched, {} kernels in them, {} launched alone, on {}",
            done.totals.graph_launches,
            done.totals.graph_kernel_nodes,
            done.totals.direct_launches,
            engine.cuda().device_name()
        );
        assert_eq!(metrics.batches, count as u64);
        assert_eq!(asked.totals.graph_launches, graphs, "{count} steps");
        // The software device works only when something waits for it.
        assert_eq!(asked.totals.graph_kernel_nodes, 0, "something waited before the poll");
        assert_eq!(done.totals.graph_kernel_nodes, 2 * count as u64, "two kernels a step");
        assert_eq!(done.kernel("adam_step").launches, count as u64);
        // One sort of the tokens of all steps.
        assert_eq!((done.totals.direct_launches, done.kernel("sort_tokens").launches), (1, 1));
        assert_eq!((asked.totals.blocking_copies, asked.totals.allocations), (0, 0));
        soft.clear_counters(Scope::Process);
        engine.evaluate(Part::Test, 16).unwrap();
        let evaluation = soft.counters(Scope::Process).totals;
        assert_eq!((evaluation.direct_launches, evaluation.graph_launches), (2, 0), "forward and metrics");
    }
    assert_eq!(engine.graphs_recorded(), recorded, "not once an epoch, and not for the smaller batch");
}

fn one_graph_a_step_where_it_is_not_fused(soft: &Soft) {
    let model = Model::new(ModelConfig { vocab: 50, embed: 5, hidden: 7, ..Default::default() }).unwrap();
    let examples = examples();
    let mut engine = engine_with(PathChoice::Unfused, &model, &examples);
    engine.train(&steps(0)).unwrap();
    engine.poll(true).unwrap();
    engine.evaluate(Part::Test, 16).unwrap();
    for epoch in 1..3u64 {
        soft.clear_counters(Scope::Process);
        engine.train(&steps(5 * epoch)).unwrap();
        let asked = soft.counters(Scope::Process);
        engine.poll(true).unwrap();
        let done = soft.counters(Scope::Process);
        assert_eq!(asked.totals.graph_launches, 5, "one graph a step");
        assert_eq!(asked.totals.graph_kernel_nodes, 0, "something waited before the poll");
        assert_eq!(done.totals.direct_launches, 1, "the sort of the tokens");
        assert_eq!(done.totals.graph_kernel_nodes, 5 * 11, "the same kernels in every step");
        assert_eq!((asked.totals.blocking_copies, asked.totals.allocations), (0, 0));
        engine.evaluate(Part::Test, 16).unwrap();
    }
    assert_eq!(engine.graphs_recorded(), 2, "16 rows and 6, not once an epoch");
}

/// Where a row of T 40 at H 64 does not fit a block (compute capability 7.5), the sequence's path gives the bits that the
/// fused one gives where it does.
fn the_same_bits_whether_it_fits_or_not(soft: &Soft) {
    let model = Model::new(ModelConfig { vocab: 50, embed: 20, hidden: 40, ..Default::default() }).unwrap();
    let mut rng = Rng::new(11, Purpose::User, 0);
    let x: Vec<u32> = (0..ROWS * 40).map(|_| rng.below(50) as u32).collect();
    let examples = Examples { y: x.chunks(40).map(|row| row[5] % 2).collect(), x, t: 40 };
    let mut found = Vec::new();
    for capability in [75, 90] {
        soft.reset();
        soft.set("compute_capability", capability).unwrap();
        let mut engine = engine(&model, &examples);
        soft.clear_counters(Scope::Process);
        engine.train(&steps(0)[3..]).unwrap();
        let metrics = engine.poll(true).unwrap();
        let fused = soft.counters(Scope::Process).kernel("fused_step_h64_e32").launches;
        assert_eq!(fused, if capability == 75 { 0 } else { 2 }, "compute capability {capability}");
        found.push((metrics, engine.read_state().unwrap()));
    }
    soft.reset();
    assert!(found[0] == found[1], "other bits where a row does not fit");
}

/// U of 100 units: 72 rows in registers, of the rest none, some or all in shared memory.
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
            "compute capability {capability}: {} of {SEQUENCE_STREAMED} rows staged, loss {}, on {}",
            engine.cuda().staged_rows().unwrap(),
            metrics.loss(),
            engine.cuda().device_name()
        );
        let (_, expected) = first.get_or_insert((metrics, bits.clone()));
        assert!(bits == *expected, "other bits at compute capability {capability}");
        assert_eq!(first.as_ref().unwrap().0, metrics);
    }
    soft.reset();
}

/// A row's numbers lie in shared memory so that none of a warp's accesses has to be done over; also not because the compiler
/// made four of one.
fn no_bank_conflicts_in_fused_kernels(soft: &Soft) {
    soft.set("detail", 1).unwrap();
    for (embed, hidden, name) in [(16, 32, "h32_e16"), (33, 20, "h32_e64"), (32, 64, "h64_e32")] {
        let model = Model::new(ModelConfig { vocab: 50, embed, hidden, ..Default::default() }).unwrap();
        let mut engine = engine(&model, &examples());
        soft.clear_counters(Scope::Process);
        engine.train(&steps(0)).unwrap();
        engine.poll(true).unwrap();
        engine.evaluate(Part::Test, 16).unwrap();
        let counters = soft.counters(Scope::Process);
        for kernel in ["fused_step", "fused_forward"] {
            let counted = counters.kernel(&format!("{kernel}_{name}"));
            assert!(counted.shared_accesses > 0, "{kernel}_{name} did not run");
            assert_eq!(counted.bank_conflicts, 0, "{kernel}_{name}: {counted:?}");
        }
    }
    soft.reset();
}

/// Whatever is trained, no more kernel files are loaded than it launches kernels of. (A recording may not load any: the
/// software device refuses that.)
fn what_is_launched_is_loaded_and_nothing_else() {
    let files = |hidden, path, precision| {
        let model = Model::new(ModelConfig { vocab: 50, embed: 5, hidden, ..Default::default() }).unwrap();
        let examples = examples();
        let engine = CudaEngine::with_path(Cuda::new(0).unwrap(), path).in_precision(precision);
        assert_eq!(engine.cuda().loaded(), ["fill"], "nothing was launched");
        let mut engine = load(engine, &model, &examples);
        engine.train(&steps(0)).unwrap();
        engine.poll(true).unwrap();
        engine.evaluate(Part::Test, 16).unwrap();
        engine.cuda().loaded()
    };
    let [f32, f16] = [Precision::F32, Precision::F16];
    let fused = ["adam", "cross_entropy", "fill", "fused", "tokens"];
    assert_eq!(files(7, PathChoice::Best, f32), fused);
    assert_eq!(files(7, PathChoice::Steps, f32), ["cross_entropy", "fill", "fused", "fused_steps", "tokens"]);
    assert_eq!(
        files(7, PathChoice::Best, f16),
        ["adam", "cross_entropy", "fill", "fused_half", "loss_scale", "store", "tokens"]
    );
    let unfused = |layer| {
        let mut files =
            vec!["adam", "batch", "cross_entropy", "dense", "embedding", "fill", "gemm", layer, "tokens"];
        files.sort_unstable();
        files
    };
    assert_eq!(files(7, PathChoice::Unfused, f32), unfused("lstm_sequence"));
    assert_eq!(files(7, PathChoice::Persistent, f32), unfused("lstm_persistent"));
    assert_eq!(files(7, PathChoice::Cells, f32), unfused("lstm_cell"));
}

#[test]
fn launches_waits_and_generations() {
    let soft = softcuda::open().unwrap_or_else(|error| panic!("{error}"));
    two_kernels_a_step_and_no_waiting_within_an_epoch(soft);
    one_graph_a_step_where_it_is_not_fused(soft);
    the_same_bits_whether_it_fits_or_not(soft);
    the_same_bits_on_every_generation(soft);
    no_bank_conflicts_in_fused_kernels(soft);
    what_is_launched_is_loaded_and_nothing_else();
}
