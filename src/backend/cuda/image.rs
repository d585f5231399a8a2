//! The compiled kernels that this binary holds, and what each kernel needs of a multiprocessor.
//!
//! Filled by the build script (see build.rs): one [`Module`] for each kernels/*.cu.

use std::fmt;

/// The images of one kernels/*.cu. At least one is there; those that are all do the same.
#[derive(Debug)]
pub struct Module {
    /// `fill` of kernels/fill.cu.
    pub stem: &'static str,
    /// What the PTX is for, e.g. `compute_75`: the oldest GPUs that run it.
    pub baseline: &'static str,
    /// The PTX of kernels/ptx, made by the pinned NVRTC; absent if it does not belong to the sources of this build.
    pub committed_ptx: Option<&'static str>,
    /// The PTX that this build made; absent if there was no NVRTC, and where it has the committed one's bytes.
    pub built_ptx: Option<&'static str>,
    /// This build made PTX, and it has the committed one's bytes.
    pub built_equals_committed: bool,
    /// Machine code made by this build.
    pub cubins: &'static [Cubin],
}

/// Machine code for one architecture.
pub struct Cubin {
    /// `sm_90a`.
    pub arch: &'static str,
    /// An ELF file, aligned to 16 bytes.
    pub bytes: &'static [u8],
}

impl fmt::Debug for Cubin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cubin({}, {} bytes)", self.arch, self.bytes.len())
    }
}

/// Something a driver can load.
#[derive(Clone, Copy, Debug)]
pub enum Image {
    /// Machine code made by this build.
    Cubin(&'static Cubin),
    /// PTX made by this build, other than the committed one.
    BuiltPtx(&'static str),
    /// PTX of kernels/ptx.
    CommittedPtx(&'static str),
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Image::Cubin(cubin) => write!(f, "cubin for {}", cubin.arch),
            Image::BuiltPtx(_) => f.write_str("built PTX"),
            Image::CommittedPtx(_) => f.write_str("committed PTX"),
        }
    }
}

impl Module {
    /// What to try, in this order, on a device of compute capability `major.minor`: the cubin made for exactly it,
    /// the built PTX, the committed PTX.
    pub fn images(&self, major: u32, minor: u32) -> Vec<Image> {
        let arch = format!("sm_{major}{minor}");
        let fits = |cubin: &&Cubin| cubin.arch.trim_end_matches('a') == arch;
        self.cubins.iter().filter(fits).map(Image::Cubin).chain(self.ptx()).collect()
    }

    /// The PTX images, which differ from each other: what every test runs.
    pub fn ptx(&self) -> impl Iterator<Item = Image> {
        let built = self.built_ptx.map(Image::BuiltPtx);
        built.into_iter().chain(self.committed_ptx.map(Image::CommittedPtx))
    }
}

/// Where the images come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This build compiled the kernels.
    Built {
        /// NVRTC's version, e.g. `12.1.105`.
        nvrtc: &'static str,
    },
    /// There was no NVRTC: the committed PTX only.
    Committed {
        /// The version of the NVRTC that made it.
        nvrtc: &'static str,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Built { nvrtc } => write!(f, "built by NVRTC {nvrtc}"),
            Origin::Committed { nvrtc } => write!(f, "committed PTX, made by NVRTC {nvrtc}"),
        }
    }
}

/// What one kernel needs on one architecture, by the compiler's own account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct KernelResources {
    /// `fill` of kernels/fill.cu.
    pub stem: &'static str,
    /// The kernel's name.
    pub kernel: &'static str,
    /// `sm_75`, …
    pub arch: &'static str,
    /// Registers a thread.
    pub registers: u32,
    /// Static shared bytes a block.
    pub shared_bytes: u32,
    /// Stack bytes a thread: arrays that are not in registers.
    pub stack_bytes: u32,
    /// Bytes stored because registers ran out.
    pub spill_store_bytes: u32,
    /// Bytes loaded back.
    pub spill_load_bytes: u32,
}

/// Every kernel on every architecture in the table, by file, then architecture.
pub fn resources() -> &'static [KernelResources] {
    RESOURCES
}

/// The NVRTC that made the committed PTX, if that is embedded.
pub fn committed_by() -> Option<&'static str> {
    COMMITTED_BY
}

/// The module of kernels/`stem`.cu.
pub fn module(stem: &str) -> Option<&'static Module> {
    MODULES.iter().find(|module| module.stem == stem)
}

/// Gives a cubin the alignment of an ELF file's tables.
#[repr(C, align(16))]
struct Aligned<T>(T);

mod generated {
    //! Written by the build script.
    #![allow(missing_docs)]
    use super::{Aligned, Cubin, KernelResources, Module, Origin};
    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}
use generated::{COMMITTED_BY, RESOURCES};
/// One for each kernels/*.cu, sorted by stem; where they come from.
pub use generated::{MODULES, ORIGIN};
