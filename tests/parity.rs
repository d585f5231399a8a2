//! Every back end against the oracle in f64, one module per operation. See [`harness`].

#[path = "parity/harness.rs"]
mod harness;

#[cfg(feature = "cuda")]
#[path = "parity/device.rs"]
mod device;

#[path = "parity/adam.rs"]
mod adam;
#[path = "parity/boundary.rs"]
mod boundary;
#[path = "parity/cross_entropy.rs"]
mod cross_entropy;
#[path = "parity/dense.rs"]
mod dense;
#[path = "parity/embedding.rs"]
mod embedding;
#[path = "parity/fill.rs"]
mod fill;
#[path = "parity/lstm_cell.rs"]
mod lstm_cell;
#[path = "parity/lstm_sequence.rs"]
mod lstm_sequence;
#[path = "parity/matmul.rs"]
mod matmul;

use harness::{Operation, same_bits, verify};
use recurve::backend::Ops;
use recurve::backend::cpu::{Cpu, Isa};
use recurve::backend::reference::Reference;
use std::io::Write as _;

/// Threads that the CPU back end is tested with: none to wake, an even cut, an odd one, more than there are tasks.
const THREADS: [usize; 4] = [1, 2, 3, 8];

/// All cases of one operation on one back end. The same body serves every back end there will be.
fn check<P: Operation, O: Ops>(ops: &O) {
    let mut worst = (0.0, "all exact".to_string());
    let cases = P::cases();
    for case in &cases {
        let found = verify::<P, O>(ops, case);
        if found.0 > worst.0 {
            worst = found;
        }
    }
    let line = format!("{} on {}: {} cases, {}", P::NAME, ops.name(), cases.len(), worst.1);
    if ops.name().starts_with("cuda") {
        // Past the test runner's capture: a passing run shows, kernel by kernel, which device it passed on.
        let _ = writeln!(std::io::stderr(), "{line}");
    } else {
        println!("{line}");
    }
}

/// The tests of one operation.
macro_rules! parity {
    ($($module:ident: $($operation:ident),*;)*) => {$(
        mod $module {
            #[test]
            fn cpu() {
                for isa in super::super::Isa::available() {
                    for threads in super::super::THREADS {
                        let cpu = super::super::Cpu::with_isa(threads, isa).unwrap();
                        $( super::super::check::<crate::$module::$operation, _>(&cpu); )*
                    }
                }
            }

            #[test]
            fn cpu_bits_do_not_depend_on_threads() {
                for isa in super::super::Isa::available() {
                    let cpus = super::super::THREADS.map(|n| super::super::Cpu::with_isa(n, isa).unwrap());
                    $( super::super::same_bits::<crate::$module::$operation, _>(&cpus.each_ref()); )*
                }
            }

            #[cfg(feature = "cuda")]
            #[test]
            fn cuda() {
                for cuda in super::super::device::images() {
                    $( super::super::check::<crate::$module::$operation, _>(cuda); )*
                }
            }

            #[cfg(feature = "cuda")]
            #[test]
            fn cuda_bits_do_not_depend_on_the_image_or_the_run() {
                let images = super::super::device::images();
                let all: Vec<_> = images.first().into_iter().chain(images).collect();
                $( super::super::same_bits::<crate::$module::$operation, _>(&all); )*
            }

            #[test]
            fn reference_f32() {
                $( super::super::check::<crate::$module::$operation, _>(
                    &super::super::Reference::<f32>::new()
                ); )*
            }
        }
    )*};
}

mod on {
    parity! {
        matmul: Product;
        embedding: Forward, Backward;
        lstm_cell: Forward, Backward;
        lstm_sequence: Forward, Backward;
        dense: Forward, Backward;
        cross_entropy: Forward, Backward;
        adam: Steps;
        fill: Fill;
    }
}
