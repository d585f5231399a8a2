//! A software CUDA device for tests: it executes the PTX that ships, and what a GPU would let pass is a fault with its PTX line.
//!
//! It can be used in two ways. As a library, [`Device`] has memory, loads modules and launches kernels. As a driver, the crate's shared
//! object `libsoftcuda.so` exports the CUDA driver API (Linux only): [`open`] makes it the CUDA driver of the process, and unmodified
//! `cudarc` runs on it; a child process takes it by `LD_PRELOAD`.
//!
//! - [`device`]: memory, modules, launches.
//! - [`fault`]: every way a kernel or a call can be wrong, as values.
//! - [`ptx`]: from PTX text to instructions over register rows; the arithmetic.
//! - [`exec`]: blocks and warps. Lanes at the lowest pc run together.
//! - [`memory`]: allocations, and which of their bytes were written.
//! - [`race`]: shared-memory races by the clocks of warps.
//! - [`grid`]: races between blocks that order each other, by the clocks of warps.
//! - [`counters`]: what is counted.
//! - `driver`: the driver API. `driver::options` lists the environment variables.
//! - [`mod@library`]: where the shared object is, how it is opened, its controls.
//!
//! It proves what a kernel computes and that it keeps the rules; it says nothing of speed on a GPU. Approximate instructions are computed
//! in f64 and rounded, and may differ from hardware in the last bits. The memory model is sequential. Races between
//! blocks in global memory are found where the kernel has no fence, acquire or release, and in cooperative launches where it has: there
//! accesses must be ordered by them.
//! Numbers and sizes of kernel arguments are checked where the driver API lets them be seen: in [`Device::launch`] and in the `extra` form of
//! a launch. An array of pointers has no length: there only pointers that cannot be read are found, unless the host promises a last
//! entry (`Soft::arguments_end_at`); [`signatures`] gives tests the sizes to compare with.
//!
//! Not yet: `match.sync`, `lop3`, `mma.sync`, `ldmatrix`, `cp.async` and half-precision arithmetic, which are refused when a module is
//! loaded; of the driver, managed and external memory, peers, textures, clusters, captured allocations, graphs built by hand.

pub mod counters;
pub mod device;
#[cfg(target_os = "linux")]
pub mod driver;
pub mod exec;
pub mod fault;
pub mod grid;
pub mod library;
pub mod memory;
pub mod ptx;
pub mod race;

pub use counters::{Counters, KernelCounters};
pub use device::{Device, Module, Shape, Stats, signatures};
pub use fault::{Error, Fault, FaultKind};
pub use library::{FaultReport, Scope, Soft, library, open};
