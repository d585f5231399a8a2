//! The shared object from a test: where it is, how it is opened, and its controls.
//!
//! A test that links this crate and opens the shared object has two copies of everything that lives as long as the process. What
//! the driver does is in the shared object's copy, so options, counts and faults are reached through [`Soft`] alone.
//!
//! ```no_run
//! // Before the process's first call of cudarc:
//! let soft = softcuda::open()?;
//! // `CudaContext::new(0)` and all the rest of cudarc now run on it.
//! soft.clear_counters(softcuda::Scope::Process);
//! # Ok::<(), String>(())
//! ```

#[cfg(not(target_os = "linux"))]
mod elsewhere;
#[cfg(target_os = "linux")]
mod linux;

#[cfg(not(target_os = "linux"))]
pub use elsewhere::{Soft, library, open};
#[cfg(target_os = "linux")]
pub use linux::{Soft, library, open};

/// A fault as the driver tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultReport {
    /// Its kind, as [`FaultKind`](crate::FaultKind) is written, `Planted` for one that an option caused, `Copy` for a copy's or a fill's.
    pub kind: String,
    /// Kernel, block, thread, PTX line and reason.
    pub text: String,
}

/// Whose counts or faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Those of the whole process.
    Process = 0,
    /// Those of the context that is current in the calling thread. With a context of its own (`CudaContext::new_non_primary`), a test sees
    /// nothing of the tests beside it.
    Context = 1,
}
