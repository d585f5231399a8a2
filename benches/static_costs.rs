//! What the CUDA kernels do, counted: every operation at several shapes, a training step and an evaluation, on the
//! software device of the tests. Instructions, sectors of memory, bank conflicts, launches, waits of the host: counts, and
//! no times. They are the same on every run.
//!
//! Each answer is compared with the oracle's before it is counted. `cargo bench --bench static_costs` prints Markdown;
//! `-- --record FILE` writes it to a file too; `-- --test` counts a smaller grid, twice, and compares.

use recurve::backend::cuda::{Cuda, CudaEngine, ImageChoice, PathChoice};
use recurve::backend::{
    AdamConfig, CellDims, CrossEntropyDims, DenseDims, EmbeddingDims, Engine as _, MatmulDims, Ops as _,
    Part, Parts, SequenceDims, StepState, TrainState,
};
use recurve::data::Examples;
use recurve::metrics::Metrics;
use recurve::model::{Model, ModelConfig};
use recurve::rng::{Purpose, Rng};
use recurve::tuning::SEQUENCE_STREAMED;
use softcuda::{Counters, KernelCounters, Scope, Soft};
use std::fmt::Write as _;

#[path = "../tests/parity/harness.rs"]
mod harness;

#[path = "../tests/parity/adam.rs"]
mod adam;
mod costs;
#[path = "../tests/parity/cross_entropy.rs"]
mod cross_entropy;
#[path = "../tests/parity/dense.rs"]
mod dense;
#[path = "../tests/parity/embedding.rs"]
mod embedding;
#[path = "../tests/parity/fill.rs"]
mod fill;
#[path = "../tests/parity/lstm_cell.rs"]
mod lstm_cell;
#[path = "../tests/parity/lstm_sequence.rs"]
mod lstm_sequence;
#[path = "../tests/parity/matmul.rs"]
mod matmul;

use costs::{Work, cells};
use harness::{Buffers, Random, verify};

/// Bytes of a sector, the least that a GPU moves.
const SECTOR: u64 = 32;
/// The reference workload's batch, and its time steps.
const BATCH: u32 = 32;
const TIME: usize = 32;

/// One of a kernel's counts.
type Count = fn(&KernelCounters) -> u64;

/// The columns of a kernel's counts.
const KERNEL_COLUMNS: &[(&str, Count)] = &[
    ("launches", |k| k.launches),
    ("blocks", |k| k.blocks),
    ("warp instructions", |k| k.warp_instructions),
    ("fma32", |k| k.fma32),
    ("other fp32", |k| k.fp32),
    ("int", |k| k.int),
    ("special", |k| k.special),
    ("global loads", |k| k.global_loads),
    ("sectors loaded", |k| k.global_load_sectors),
    ("global stores", |k| k.global_stores),
    ("sectors stored", |k| k.global_store_sectors),
    ("shared accesses", |k| k.shared_accesses),
    ("passes", |k| k.shared_passes),
    ("bank conflicts", |k| k.bank_conflicts),
    ("barriers", |k| k.warp_barriers),
];

/// Counts on their way to tables.
struct Report<'a> {
    soft: &'a Soft,
    cuda: Cuda,
    quick: bool,
    /// Rows of the table of operations.
    operations: String,
    /// Rows of the table of kernels.
    kernels: String,
}

/// What `f` makes the device do.
fn counted(soft: &Soft, f: impl FnOnce()) -> Counters {
    soft.clear_counters(Scope::Process);
    f();
    soft.counters(Scope::Process)
}

/// The share of a warp's lanes that took part, over all its instructions, in percent.
fn lanes(k: &KernelCounters) -> f64 {
    100.0 * k.instructions() as f64 / (32 * k.warp_instructions).max(1) as f64
}

fn ratio(found: u64, least: u64) -> String {
    if least == 0 { "–".into() } else { format!("{:.2}", found as f64 / least as f64) }
}

fn kernel_rows(out: &mut String, what: &str, counters: &Counters) {
    for (name, k) in counters.kernels.iter().filter(|(_, k)| k.launches > 0) {
        let counts: Vec<String> = KERNEL_COLUMNS.iter().map(|(_, of)| of(k).to_string()).collect();
        let _ = writeln!(out, "| {what} | {name} | {:.0} | {} |", lanes(k), counts.join(" | "));
    }
}

fn kernel_table(first: &str, rows: &str) -> String {
    let names: Vec<&str> = KERNEL_COLUMNS.iter().map(|(name, _)| *name).collect();
    let rule = "--- | ".repeat(names.len() + 2);
    format!("| {first} | kernel | lanes % | {} |\n| --- | {}\n{rows}", names.join(" | "), rule.trim_end())
}

impl Report<'_> {
    /// Checks and counts one operation at one shape.
    fn count<P: Work>(&mut self, shape: &str, case: &P::Case) {
        let cuda = &self.cuda;
        verify::<P, _>(cuda, case);
        let arrays = P::arrays(case, &mut Random::new(0));
        let once = || {
            let mut buffers = Buffers::upload(cuda, &arrays);
            cuda.synchronize().expect("uploads");
            counted(self.soft, || {
                P::call(cuda, case, &mut buffers).expect("it has just worked");
                cuda.synchronize().expect("it has just worked");
            })
        };
        let counters = once();
        if self.quick {
            let again = once();
            assert_eq!(
                counters.kernels,
                again.kernels,
                "{}, {shape}: counts differ from run to run",
                P::NAME
            );
        }
        let mut all = KernelCounters::default();
        counters.kernels.values().for_each(|k| all.add(k));
        let multiply_adds = P::multiply_adds(case) as u64;
        let (read, written) = costs::bytes::<P>(case);
        let (loaded, stored) = (SECTOR * all.global_load_sectors, SECTOR * all.global_store_sectors);
        let _ = writeln!(
            self.operations,
            "| {} | {shape} | {} | {multiply_adds} | {} | {} | {read} | {loaded} | {} | {written} | {stored} | {} | {} |",
            P::NAME,
            all.launches,
            all.fma32,
            ratio(all.fma32, multiply_adds),
            ratio(loaded, read),
            ratio(stored, written),
            ratio(all.shared_passes, all.shared_accesses),
        );
        kernel_rows(&mut self.kernels, &format!("{}, {shape}", P::NAME), &counters);
    }

    /// The shapes of a table, or in test mode the first two.
    fn shapes<'s, T>(&self, all: &'s [T]) -> &'s [T] {
        if self.quick { &all[..all.len().min(2)] } else { all }
    }

    fn operations(&mut self) {
        for &(m, k, n, ta, tb) in self.shapes(&[
            (1024, 16, 128, false, false),
            (1024, 128, 16, false, true),
            (16, 1024, 128, true, false),
            (32, 32, 128, false, false),
            (99, 257, 131, false, false),
            (99, 257, 131, true, true),
            (256, 256, 256, false, false),
            (256, 256, 256, false, true),
            (256, 256, 256, true, false),
            (1024, 64, 768, false, false),
        ]) {
            let case = matmul::Case { d: MatmulDims { m, k, n, ta, tb }, accumulate: false };
            let stored = |transposed| if transposed { "ᵀ" } else { "" };
            self.count::<matmul::Product>(&format!("M {m}, K {k}{}, N {n}{}", stored(ta), stored(tb)), &case);
        }
        for &(n, v, e) in
            self.shapes(&[(1024, 10_000, 16), (999, 257, 33), (1024, 10_000, 64), (4096, 10_000, 32)])
        {
            let d = EmbeddingDims { n, v, e };
            let shape = format!("N {n}, V {v}, E {e}");
            self.count::<embedding::Forward>(&shape, &d);
            self.count::<embedding::Backward>(&shape, &d);
        }
        for &(b, e, h) in self.shapes(&[(32, 16, 32), (19, 33, 99), (32, 64, 128), (32, 64, 256)]) {
            let d = CellDims { b, e, h };
            let shape = format!("B {b}, E {e}, H {h}");
            self.count::<lstm_cell::Forward>(&shape, &d);
            self.count::<lstm_cell::Backward>(&shape, &d);
        }
        for &(t, b, e, h) in self.shapes(&[
            (32, 32, 16, 32),
            (9, 7, 33, 129),
            (33, 19, 31, 33),
            (32, 32, 16, 64),
            (32, 32, 64, 96),
            (32, 32, 64, 128),
            (128, 32, 16, 32),
            (16, 32, 64, 256),
        ]) {
            let d = SequenceDims { t, b, e, h };
            let case = lstm_sequence::Case { d, dh: false, dh_last: true, dc_last: false };
            let shape = format!("T {t}, B {b}, E {e}, H {h}");
            self.count::<lstm_sequence::Forward>(&shape, &case);
            self.count::<lstm_sequence::Backward>(&shape, &case);
            // Cell by cell, where that is not too slow here.
            if t * h <= 4096 {
                self.count::<cells::Forward>(&shape, &case);
                self.count::<cells::Backward>(&shape, &case);
            }
        }
        for &(b, inputs, outputs) in self.shapes(&[(32, 32, 2), (99, 257, 31), (256, 128, 20)]) {
            let d = DenseDims { b, inputs, outputs };
            let shape = format!("B {b}, inputs {inputs}, outputs {outputs}");
            self.count::<dense::Forward>(&shape, &d);
            self.count::<dense::Backward>(&shape, &d);
        }
        for &(b, c) in self.shapes(&[(32, 2), (99, 31), (256, 1000)]) {
            let d = CrossEntropyDims { b, c };
            let case = cross_entropy::Case { d, logits: cross_entropy::Logits::Plain, weighted: false };
            let shape = format!("B {b}, C {c}");
            self.count::<cross_entropy::Forward>(&shape, &case);
            self.count::<cross_entropy::Backward>(&shape, &case);
        }
        for &(n, weight_decay, clip_norm) in
            self.shapes(&[(166_338, 0.0, 0.0), (40_009, 0.1, 0.5), (1_000_000, 0.0, 0.0)])
        {
            let clipped = if clip_norm > 0.0 { ", decay and clipping" } else { "" };
            let case = adam::Case { n, first: 1, steps: 1, weight_decay, clip_norm };
            self.count::<adam::Steps>(&format!("N {n}{clipped}"), &case);
        }
        for &n in self.shapes(&[166_338, 40_009]) {
            self.count::<fill::Fill>(&format!("N {n}"), &n);
        }
    }
}

fn examples(rows: u32) -> Examples {
    let mut rng = Rng::new(1, Purpose::User, 0);
    // As skewed as words are: most tokens are among the frequent ones.
    let x: Vec<u32> =
        (0..rows as usize * TIME).map(|_| 3 + (rng.uniform().powi(3) * 9996.0) as u32).collect();
    Examples { y: x.chunks(TIME).map(|row| row[TIME - 1] % 2).collect(), x, t: TIME }
}

/// The reference workload through the engine: tables of what the host and the kernels did.
fn engine(soft: &Soft, cuda: Cuda, quick: bool) -> (String, String) {
    let steps: u32 = if quick { 4 } else { 64 };
    let examples = examples(steps * BATCH);
    let rows = examples.y.len();
    let model = Model::new(ModelConfig::default()).expect("the default model is valid");
    let loaded = |cuda: Cuda, path: PathChoice| {
        let mut engine = CudaEngine::with_path(cuda, path);
        let parts = Parts { train: Some(&examples), test: Some(&examples), ..Parts::default() };
        let state = TrainState::new(model.init(1));
        engine.load(&model, &state, AdamConfig::default(), parts).expect("the examples fit the model");
        let order: Vec<u32> = (0..steps * BATCH).collect();
        engine.set_order(&order, Metrics::default()).expect("the engine is loaded");
        engine
    };
    let step = |k: u32| StepState::new(u64::from(k) + 1, 0.001, k % steps * BATCH, BATCH);
    let train = |engine: &mut CudaEngine, first: u32, count: u32| {
        let steps: Vec<StepState> = (first..first + count).map(step).collect();
        counted(soft, || {
            engine.train(&steps).expect("the engine trains");
            engine.poll(true).expect("trained");
        })
    };
    let mut engine = loaded(cuda, PathChoice::Best);
    let recorded = train(&mut engine, 0, 1);
    let one = train(&mut engine, 1, 1);
    let many = train(&mut engine, 2, steps);
    let evaluation = counted(soft, || {
        engine.evaluate(Part::Test, BATCH as usize).expect("the engine evaluates");
    });
    let evaluated = format!("an evaluation of {rows} rows");
    let mut engine = loaded(engine.into_cuda(), PathChoice::Steps);
    train(&mut engine, 0, 1);
    let together = train(&mut engine, 1, steps);

    let (mut host, mut kernels) = (String::new(), String::new());
    kernel_rows(&mut kernels, "a training step", &one);
    kernel_rows(&mut kernels, &format!("{steps} steps, one launch"), &together);
    kernel_rows(&mut kernels, &evaluated, &evaluation);
    for (what, counters) in [
        ("the first step, recorded, and a poll", &recorded),
        ("a step and a poll", &one),
        (&format!("{steps} steps and a poll"), &many),
        (&format!("{steps} steps by one launch (`RECURVE_CUDA_PATH=steps`), and a poll"), &together),
        (&evaluated, &evaluation),
    ] {
        let t = counters.totals;
        let counts = [
            counters.kernels.values().map(|k| k.launches).sum(),
            t.direct_launches,
            t.graph_launches,
            t.synchronisations,
            t.blocking_copies,
            t.htod_copies,
            t.htod_bytes,
            t.dtoh_copies,
            t.dtoh_bytes,
            t.memsets,
            t.allocations,
        ];
        let _ = writeln!(host, "| {what} | {} |", counts.map(|n| n.to_string()).join(" | "));
    }
    (host, kernels)
}

/// What a command prints on one line.
fn says(program: &str, arguments: &[&str]) -> String {
    let output = std::process::Command::new(program).args(arguments).output();
    let said =
        output.ok().filter(|o| o.status.success()).map(|o| String::from_utf8_lossy(&o.stdout).trim().into());
    said.unwrap_or_else(|| "unknown".into())
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let flag = |name: &str| arguments.iter().any(|argument| argument == name);
    let quick = flag("--test") || !flag("--bench");
    let record = arguments
        .iter()
        .position(|a| a == "--record")
        .map(|at| arguments.get(at + 1).unwrap_or_else(|| panic!("--record needs a file")).clone());
    if !cfg!(target_os = "linux") {
        println!("static costs: not run: the software CUDA device needs Linux");
        return;
    }
    let soft = softcuda::open().unwrap_or_else(|error| panic!("{error}"));
    soft.set("detail", 1).unwrap_or_else(|error| panic!("{error}"));
    let open = || Cuda::with_image(0, ImageChoice::Committed).unwrap_or_else(|error| panic!("{error}"));
    let cuda = open();
    assert!(cuda.is_software(), "{} is no software device: its counts cannot be read", cuda.name());
    let (name, staged) = (cuda.name(), cuda.staged_rows().unwrap_or_else(|error| panic!("{error}")));

    let (operations, kernels) = (String::new(), String::new());
    let mut report = Report { soft, cuda, quick, operations, kernels };
    report.operations();
    let Report { operations, kernels, .. } = report;
    let (host, engine_kernels) = engine(soft, open(), quick);

    // What a device with more shared memory does differently: more of U of 128 units is staged.
    soft.set("compute_capability", 90).unwrap_or_else(|error| panic!("{error}"));
    let cuda = open();
    let staged_most = cuda.staged_rows().unwrap_or_else(|error| panic!("{error}"));
    let mut most = Report { soft, cuda, quick, operations: String::new(), kernels: String::new() };
    let case = |d| lstm_sequence::Case { d, dh: false, dh_last: true, dc_last: false };
    let (d, shape) = if quick {
        (SequenceDims { t: 3, b: 2, e: 4, h: 128 }, "T 3, B 2, E 4, H 128")
    } else {
        (SequenceDims { t: 32, b: 32, e: 64, h: 128 }, "T 32, B 32, E 64, H 128")
    };
    most.count::<lstm_sequence::Forward>(shape, &case(d));
    most.count::<lstm_sequence::Backward>(shape, &case(d));
    let most_kernels: String =
        most.kernels.lines().filter(|row| row.contains("_h128 ")).map(|row| format!("{row}\n")).collect();
    let text = format!(
        include_str!("costs/static_costs.md"),
        date = says("date", &["-u", "+%F"]),
        commit = says("git", &["rev-parse", "--short", "HEAD"]),
        rustc = says("rustc", &["--version"]),
        name = name,
        staged = staged,
        batch = BATCH,
        time = TIME,
        sector = SECTOR,
        host = host,
        engine_table = kernel_table("what", &engine_kernels),
        operations = operations,
        kernel_table = kernel_table("operation", &kernels),
        staged_most = staged_most,
        streamed = SEQUENCE_STREAMED,
        most_table = kernel_table("operation", &most_kernels),
    );
    println!("{text}");
    if let Some(file) = record {
        std::fs::write(&file, text).unwrap_or_else(|error| panic!("{file}: {error}"));
    }
}
