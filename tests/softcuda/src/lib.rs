//! A software CUDA device for tests: it executes the PTX that ships, and what a GPU would let pass is a fault with its PTX line.
//!
//! - [`device`]: memory, modules, launches: what a program uses.
//! - [`fault`]: every way a kernel or a call can be wrong, as values.
//! - [`ptx`]: from PTX text to instructions over register rows; the arithmetic.
//! - [`exec`]: blocks and warps. Lanes at the lowest pc run together.
//! - [`memory`]: allocations, and which of their bytes were written.
//! - [`race`]: shared-memory races by the clocks of warps.
//!
//! It proves what a kernel computes and that it keeps the rules; it says nothing of speed on a GPU. Approximate instructions are computed
//! in f64 and rounded, and may differ from hardware in the last bits. The memory model is sequential: races in global memory are not found.
//!
//! Not yet: the driver API that `cudarc` loads, streams and graphs, cooperative launches; `match.sync`, `lop3`, `mma.sync`,
//! `ldmatrix`, `cp.async` and half-precision arithmetic, which are refused when a module is loaded.

pub mod counters;
pub mod device;
#[cfg(target_os = "linux")]
pub mod driver;
pub mod exec;
pub mod fault;
#[cfg(target_os = "linux")]
pub mod library;
pub mod memory;
pub mod ptx;
pub mod race;

pub use counters::{Counters, KernelCounters};
pub use device::{Device, Module, Shape, Stats, signatures};
pub use fault::{Error, Fault, FaultKind};
#[cfg(target_os = "linux")]
pub use library::{Scope, Soft, library, open};
