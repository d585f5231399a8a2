//! Every operation alone, over a grid of shapes (the reference workload's first: B 32, T 32, E 16, H 32, V 10000, C 2),
//! on the oracle's plain loops in f32, on the CPU back end with one thread and with all, and on a GPU; the LSTM cell by
//! cell against the whole sequence.
//!
//! * Before a row is timed its answer is compared with the f64 oracle's, by the parity tests' own code.
//! * `GFLOP/s`: 10^9 flops, two for each multiply-add of a product; activations are not counted. `GB/s`: 10^9 compulsory
//!   bytes, each input read once and each output written once (`costs/mod.rs`).
//! * A line after each row of the CPU back end gives its best sample's GFLOP/s as a share of the FMA peak that as many
//!   threads were measured to reach on registers alone when the bench began.
//! * Rows of a GPU are timed by the device's own clock, from before the first to after the last call of a sample, with
//!   everything on the device already. Where a call is shorter than it takes to launch, that is what is measured.
//! * Each row calls again and again with the same buffers: small shapes measure the cache, not memory. What accumulates
//!   goes on accumulating.
//! * The oracle is left out where a call would take longer than some 50 ms. A GPU that is not there says so; the software
//!   device of the tests is never timed.
//!
//! `cargo bench --bench ops`; `-- --test` checks the smaller shapes once and times nothing.

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{Bencher, BenchmarkGroup, Criterion, Throughput};
use recurve::backend::cpu::{Cpu, fma_peak, processor_name};
use recurve::backend::reference::Reference;
use recurve::backend::{CellDims, CrossEntropyDims, DenseDims, EmbeddingDims, MatmulDims, Ops, SequenceDims};
use std::cell::Cell;
use std::time::{Duration, Instant};

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

/// The size (see [`costs::size`]) up to which the oracle is timed, and shapes are checked in test mode: some 50 ms of plain
/// loops.
const SMALL: usize = 25_000_000;

/// Wall time whose throughput is in true units: criterion's own call a flop an element, and count bytes by 1024.
struct Rates;

impl Measurement for Rates {
    type Intermediate = Instant;
    type Value = Duration;

    fn start(&self) -> Instant {
        WallTime.start()
    }

    fn end(&self, begun: Instant) -> Duration {
        WallTime.end(begun)
    }

    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        *a + *b
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        WallTime.to_f64(value)
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        self
    }
}

impl ValueFormatter for Rates {
    fn scale_values(&self, typical: f64, values: &mut [f64]) -> &'static str {
        WallTime.formatter().scale_values(typical, values)
    }

    /// Values are nanoseconds: something a nanosecond is 10^9 of it a second. Criterion asks for the elements, here
    /// flops, and the bytes one after the other.
    fn scale_throughputs(&self, _: f64, throughput: &Throughput, values: &mut [f64]) -> &'static str {
        let (amount, unit) = match *throughput {
            Throughput::Elements(n) | Throughput::ElementsAndBytes { elements: n, .. } => (n, "GFLOP/s"),
            Throughput::Bytes(n) | Throughput::BytesDecimal(n) => (n, "GB/s"),
            Throughput::Bits(n) => (n, "Gbit/s"),
        };
        values.iter_mut().for_each(|ns| *ns = amount as f64 / *ns);
        unit
    }

    fn scale_for_machines(&self, values: &mut [f64]) -> &'static str {
        WallTime.formatter().scale_for_machines(values)
    }
}

/// The GPU, or why there is none.
#[cfg(feature = "cuda")]
type Gpu = Result<recurve::backend::cuda::Cuda, String>;
#[cfg(not(feature = "cuda"))]
type Gpu = Result<std::convert::Infallible, String>;

#[cfg(feature = "cuda")]
fn gpu() -> Gpu {
    use recurve::backend::cuda::{Cuda, Missing, devices};
    match devices() {
        Err(Missing::Driver) => return Err("no GPU".into()),
        Err(Missing::Unusable(why)) => return Err(format!("no GPU that can be used ({why})")),
        Ok(_) => {}
    }
    match Cuda::new(0) {
        Ok(cuda) if cuda.is_software() => Err(format!("no GPU ({} is none)", cuda.device_name())),
        Ok(cuda) => Ok(cuda),
        Err(error) => Err(format!("no GPU that can be used ({error})")),
    }
}

#[cfg(not(feature = "cuda"))]
fn gpu() -> Gpu {
    Err("this build has no CUDA back end".into())
}

/// What everything is timed on.
struct Machines {
    reference: Reference<f32>,
    /// And the operations a second that each reaches at most.
    cpus: Vec<(Cpu, f64)>,
    gpu: Gpu,
}

struct Bench {
    criterion: Criterion<Rates>,
    machines: Machines,
    /// Check the smaller shapes only.
    quick: bool,
}

/// The rows of one operation at one shape.
struct Rows<'a> {
    group: BenchmarkGroup<'a, Rates>,
    machines: &'a Machines,
    name: String,
    /// Whether a row ran: the command line may ask for other ones.
    ran: Cell<bool>,
}

impl Bench {
    /// The rows of `P` at a shape, unless they are too many for test mode.
    fn rows<P: Work>(&mut self, shape: &str, case: &P::Case) -> Option<Rows<'_>> {
        if self.quick && costs::size::<P>(case) > SMALL {
            return None;
        }
        let name = format!("{}/{shape}", P::NAME);
        let mut group = self.criterion.benchmark_group(&name);
        let (read, written) = costs::bytes::<P>(case);
        group.throughput(match costs::flops::<P>(case) {
            0 => Throughput::Bytes(read + written),
            elements => Throughput::ElementsAndBytes { elements, bytes: read + written },
        });
        Some(Rows { group, machines: &self.machines, name, ran: Cell::new(false) })
    }

    fn time<P: Work>(&mut self, shape: &str, case: P::Case) {
        if let Some(mut rows) = self.rows::<P>(shape, &case) {
            rows.add::<P>("", &case);
            rows.finish();
        }
    }
}

impl Rows<'_> {
    /// A row for each machine. `how` begins their names.
    fn add<P: Work>(&mut self, how: &str, case: &P::Case) {
        let machines = self.machines;
        if costs::size::<P>(case) <= SMALL {
            self.host::<P, _>(&format!("{how}reference"), &machines.reference, case);
        }
        for (cpu, peak) in &machines.cpus {
            let plural = if cpu.threads() == 1 { "" } else { "s" };
            let row = format!("{how}cpu, {} thread{plural}", cpu.threads());
            let best = self.host::<P, _>(&row, cpu, case);
            let flops = costs::flops::<P>(case) as f64 / best;
            if flops > 0.0 {
                println!(
                    "{}/{row}: at best {:.1} GFLOP/s, {:.0} % of the measured FMA peak of {:.1} GFLOP/s",
                    self.name,
                    flops / 1e9,
                    100.0 * flops / peak,
                    peak / 1e9
                );
            }
        }
        #[cfg(feature = "cuda")]
        if let Ok(cuda) = &machines.gpu {
            self.row::<P, _>(&format!("{how}cuda"), cuda, case, |bencher, buffers| {
                bencher.iter_custom(|iterations| {
                    let us = cuda
                        .time_us(|| (0..iterations).try_for_each(|_| P::call(cuda, case, buffers)))
                        .expect("it has just worked");
                    Duration::from_secs_f64(us / 1e6)
                });
            });
        }
    }

    /// Returns the seconds of a call in the best sample; infinite where none was timed.
    fn host<P: Work, O: Ops>(&mut self, name: &str, ops: &O, case: &P::Case) -> f64 {
        let best = Cell::new(f64::INFINITY);
        self.row::<P, O>(name, ops, case, |bencher, buffers| {
            bencher.iter_custom(|iterations| {
                let begun = Instant::now();
                for _ in 0..iterations {
                    P::call(ops, case, buffers).expect("it has just worked");
                    ops.synchronize().expect("a host is always done");
                }
                let took = begun.elapsed();
                best.set(best.get().min(took.as_secs_f64() / iterations as f64));
                took
            });
        });
        best.get()
    }

    /// Checks, then times, one row, if the command line asks for it.
    fn row<P: Work, O: Ops>(
        &mut self,
        name: &str,
        ops: &O,
        case: &P::Case,
        time: impl Fn(&mut Bencher<'_, Rates>, &mut Buffers<O>),
    ) {
        let ran = &self.ran;
        let mut buffers = None;
        self.group.bench_function(name, |bencher| {
            // Criterion comes here several times for one row.
            let buffers = buffers.get_or_insert_with(|| {
                verify::<P, O>(ops, case);
                ran.set(true);
                Buffers::upload(ops, &P::arrays(case, &mut Random::new(0)))
            });
            time(bencher, buffers);
        });
    }

    fn finish(self) {
        if let (true, Err(why)) = (self.ran.get(), &self.machines.gpu) {
            println!("{}/cuda: not run: {why}", self.name);
        }
        self.group.finish();
    }
}

fn products(bench: &mut Bench) {
    let shapes = [
        // The input's product of all time steps, its gradient by the weights, and by the input.
        (1024, 16, 128, false, false),
        (16, 1024, 128, true, false),
        (1024, 128, 16, false, true),
        // One time step's.
        (32, 32, 128, false, false),
        (64, 128, 512, false, false),
        (6400, 128, 512, false, false),
        (99, 257, 131, false, false),
        (257, 99, 131, true, true),
        (256, 256, 256, false, false),
        (512, 512, 512, false, false),
        (1024, 1024, 1024, false, false),
    ];
    for (m, k, n, ta, tb) in shapes {
        let case = matmul::Case { d: MatmulDims { m, k, n, ta, tb }, accumulate: false };
        let stored = |transposed| if transposed { "t" } else { "" };
        bench.time::<matmul::Product>(&format!("M{m}_K{k}{}_N{n}{}", stored(ta), stored(tb)), case);
    }
}

fn embeddings(bench: &mut Bench) {
    for (n, v, e) in [
        (1024, 10_000, 16),
        (1024, 10_000, 64),
        (999, 257, 33),
        (4096, 10_000, 32),
        (4097, 20_001, 129),
        (16_384, 50_000, 128),
    ] {
        let d = EmbeddingDims { n, v, e };
        let shape = format!("N{n}_V{v}_E{e}");
        bench.time::<embedding::Forward>(&shape, d);
        bench.time::<embedding::Backward>(&shape, d);
    }
}

fn lstm(bench: &mut Bench) {
    for (b, e, h) in [(32, 16, 32), (32, 16, 64), (19, 33, 99), (32, 64, 128), (32, 64, 256), (128, 128, 256)]
    {
        let d = CellDims { b, e, h };
        let shape = format!("B{b}_E{e}_H{h}");
        bench.time::<lstm_cell::Forward>(&shape, d);
        bench.time::<lstm_cell::Backward>(&shape, d);
    }
    for (t, b, e, h) in [
        (32, 32, 16, 32),
        (32, 32, 16, 64),
        (9, 7, 33, 129),
        (33, 19, 31, 99),
        (128, 32, 16, 32),
        (32, 64, 64, 128),
        (32, 32, 64, 256),
        (32, 32, 64, 512),
        (257, 64, 64, 64),
    ] {
        let d = SequenceDims { t, b, e, h };
        let case = lstm_sequence::Case { d, dh: false, dh_last: true, dc_last: false };
        let shape = format!("T{t}_B{b}_E{e}_H{h}");
        if let Some(mut rows) = bench.rows::<lstm_sequence::Forward>(&shape, &case) {
            rows.add::<lstm_sequence::Forward>("", &case);
            rows.add::<cells::Forward>("cell by cell: ", &case);
            rows.finish();
        }
        if let Some(mut rows) = bench.rows::<lstm_sequence::Backward>(&shape, &case) {
            rows.add::<lstm_sequence::Backward>("", &case);
            rows.add::<cells::Backward>("cell by cell: ", &case);
            rows.finish();
        }
    }
}

fn heads(bench: &mut Bench) {
    for (b, inputs, outputs) in [(32, 32, 2), (32, 256, 2), (99, 257, 31), (256, 512, 20), (1024, 256, 1000)]
    {
        let d = DenseDims { b, inputs, outputs };
        let shape = format!("B{b}_I{inputs}_O{outputs}");
        bench.time::<dense::Forward>(&shape, d);
        bench.time::<dense::Backward>(&shape, d);
    }
    for (b, c) in [(32, 2), (99, 31), (256, 1000), (4096, 2)] {
        let case = cross_entropy::Case {
            d: CrossEntropyDims { b, c },
            logits: cross_entropy::Logits::Plain,
            weighted: false,
        };
        let shape = format!("B{b}_C{c}");
        bench.time::<cross_entropy::Forward>(&shape, case);
        bench.time::<cross_entropy::Backward>(&shape, case);
    }
}

fn arenas(bench: &mut Bench) {
    for n in [166_338, 40_009, 1_000_000, 16_000_000] {
        let case = adam::Case { n, first: 1, steps: 1, weight_decay: 0.0, clip_norm: 0.0 };
        bench.time::<adam::Steps>(&format!("N{n}"), case);
        bench.time::<fill::Fill>(&format!("N{n}"), n);
    }
    let clipped = adam::Case { n: 166_338, first: 1, steps: 1, weight_decay: 0.1, clip_norm: 0.5 };
    bench.time::<adam::Steps>("N166338, decay and clipping", clipped);
}

fn main() {
    let flag = |name| std::env::args().any(|argument| argument == name);
    let mut cpus = vec![Cpu::new(1).expect("one thread")];
    let all = Cpu::new(0).expect("threads");
    if all.threads() > 1 {
        cpus.push(all);
    }
    let with_peak = |cpu: Cpu| {
        let peak = fma_peak(&cpu, Duration::from_millis(200));
        (cpu, peak)
    };
    let cpus = cpus.into_iter().map(with_peak).collect();
    let machines = Machines { reference: Reference::new(), cpus, gpu: gpu() };
    println!("reference: {} ({})", machines.reference.name(), processor_name());
    for (cpu, peak) in &machines.cpus {
        println!("cpu: {} ({}), FMA peak {:.1} GFLOP/s", cpu.name(), processor_name(), peak / 1e9);
    }
    match &machines.gpu {
        #[cfg(feature = "cuda")]
        Ok(cuda) => println!("cuda: {}", cuda.name()),
        #[cfg(not(feature = "cuda"))]
        Ok(never) => match *never {},
        Err(why) => println!("cuda: not run: {why}"),
    }
    let criterion = Criterion::default()
        .with_measurement(Rates)
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800))
        .configure_from_args();
    let mut bench = Bench { criterion, machines, quick: flag("--test") || !flag("--bench") };
    products(&mut bench);
    embeddings(&mut bench);
    lstm(&mut bench);
    heads(&mut bench);
    arenas(&mut bench);
    bench.criterion.final_summary();
}
