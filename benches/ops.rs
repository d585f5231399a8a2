//! Each operation of the CPU back end alone, at the shape of the reference workload (B 32, T 32, E 16, H 32, V 10000,
//! C 2) and at a larger one, on one thread and on all cores. Before an operation is timed its answer is compared with
//! the oracle's, by the parity tests' own code. Throughput is multiply-adds for products and recurrent layers
//! (activations not counted), elements of the gathered rows, logits or arena for the rest.
//!
//! `cargo bench --bench ops`; `-- --test` only checks.

use criterion::{Criterion, Throughput};
use recurve::backend::cpu::{Cpu, processor_name};
use recurve::backend::{CellDims, CrossEntropyDims, DenseDims, EmbeddingDims, MatmulDims, Ops, SequenceDims};

#[path = "../tests/parity/harness.rs"]
mod harness;

#[path = "../tests/parity/adam.rs"]
mod adam;
#[path = "../tests/parity/cross_entropy.rs"]
mod cross_entropy;
#[path = "../tests/parity/dense.rs"]
mod dense;
#[path = "../tests/parity/embedding.rs"]
mod embedding;
#[path = "../tests/parity/lstm_cell.rs"]
mod lstm_cell;
#[path = "../tests/parity/lstm_sequence.rs"]
mod lstm_sequence;
#[path = "../tests/parity/matmul.rs"]
mod matmul;

use harness::{Buffers, Operation, Random, verify};

/// Checks, then times, one operation at one shape.
fn time<P: Operation>(criterion: &mut Criterion, cpus: &[Cpu], shape: &str, case: P::Case, elements: usize) {
    let mut group = criterion.benchmark_group(format!("{}/{shape}", P::NAME));
    group.throughput(Throughput::Elements(elements as u64));
    for cpu in cpus {
        verify::<P, _>(cpu, &case);
        let mut buffers = Buffers::upload(cpu, &P::arrays(&case, &mut Random::new(0)));
        group.bench_function(format!("{} threads", cpu.threads()), |bencher| {
            bencher.iter(|| {
                P::call(cpu, &case, &mut buffers).expect("it has just worked");
                cpu.synchronize().expect("a host is always done");
            });
        });
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(std::time::Duration::from_millis(300))
        .measurement_time(std::time::Duration::from_secs(1))
        .configure_from_args();
    let c = &mut criterion;
    let mut cpus = vec![Cpu::new(1).expect("one thread")];
    let all = Cpu::new(0).expect("threads");
    if all.threads() > 1 {
        cpus.push(all);
    }
    for cpu in &cpus {
        println!("runs on: {} ({})", cpu.name(), processor_name());
    }

    for (shape, m, k, n) in [("reference", 1024, 48, 128), ("large", 512, 512, 512)] {
        let case = matmul::Case { d: MatmulDims { m, k, n, ta: false, tb: false }, accumulate: false };
        time::<matmul::Product>(c, &cpus, shape, case, m * k * n);
    }
    for (shape, n, v, e) in [("reference", 1024, 10_000, 16), ("large", 16_384, 50_000, 64)] {
        let d = EmbeddingDims { n, v, e };
        time::<embedding::Forward>(c, &cpus, shape, d, n * e);
        time::<embedding::Backward>(c, &cpus, shape, d, n * e);
    }
    for (shape, b, e, h) in [("reference", 32, 16, 32), ("large", 64, 64, 256)] {
        let d = CellDims { b, e, h };
        let work = b * (e + h) * 4 * h;
        time::<lstm_cell::Forward>(c, &cpus, shape, d, work);
        time::<lstm_cell::Backward>(c, &cpus, shape, d, 2 * work);
    }
    for (shape, t, b, e, h) in [("reference", 32, 32, 16, 32), ("large", 32, 64, 64, 128)] {
        let case =
            lstm_sequence::Case { d: SequenceDims { t, b, e, h }, dh: false, dh_last: true, dc_last: false };
        let work = t * b * (e + h) * 4 * h;
        time::<lstm_sequence::Forward>(c, &cpus, shape, case, work);
        time::<lstm_sequence::Backward>(c, &cpus, shape, case, 2 * work);
    }
    for (shape, b, inputs, outputs) in [("reference", 32, 32, 2), ("large", 256, 512, 20)] {
        let d = DenseDims { b, inputs, outputs };
        time::<dense::Forward>(c, &cpus, shape, d, b * inputs * outputs);
        time::<dense::Backward>(c, &cpus, shape, d, 2 * b * inputs * outputs);
    }
    for (shape, b, classes) in [("reference", 32, 2), ("large", 256, 1000)] {
        let case = cross_entropy::Case {
            d: CrossEntropyDims { b, c: classes },
            logits: cross_entropy::Logits::Plain,
        };
        time::<cross_entropy::Forward>(c, &cpus, shape, case, b * classes);
        time::<cross_entropy::Backward>(c, &cpus, shape, case, b * classes);
    }
    for (shape, n) in [("reference", 166_338), ("large", 4_000_000)] {
        let case = adam::Case { n, first: 1, steps: 1, weight_decay: 0.0, clip_norm: 0.0 };
        time::<adam::Steps>(c, &cpus, shape, case, n);
    }
    criterion.final_summary();
}
