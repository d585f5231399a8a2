//! What can go wrong, as values.

use std::fmt;

/// What kind of mistake a kernel made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FaultKind {
    /// An access outside every allocation, variable or array.
    OutOfBounds,
    /// An access to memory that was freed.
    UseAfterFree,
    /// An address that is no multiple of the access's size.
    Misaligned,
    /// A read of memory or of a register that nothing wrote.
    Uninitialised,
    /// A write to constant memory.
    ReadOnly,
    /// Two threads at one place of shared memory, one of them writing, with no barrier between; or two blocks at one of global memory.
    Race,
    /// A barrier or warp-wide instruction that part of its threads do not reach, or not together.
    Divergence,
    /// The kernel executed `trap`.
    Trap,
    /// The launch executed more instructions than it may.
    Budget,
}

/// A mistake of a kernel, with where it happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What kind it is.
    pub kind: FaultKind,
    /// The kernel's name.
    pub kernel: String,
    /// The line of the instruction in the PTX text, from 1.
    pub line: u32,
    /// That line.
    pub text: String,
    /// The block.
    pub block: [u32; 3],
    /// The thread in its block.
    pub thread: [u32; 3],
    /// The address, where there is one.
    pub address: Option<u64>,
    /// What is wrong, in words.
    pub why: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ([bx, by, bz], [tx, ty, tz]) = (self.block, self.thread);
        write!(
            f,
            "kernel `{}`, block ({bx},{by},{bz}), thread ({tx},{ty},{tz}), PTX line {} `{}`: {}",
            self.kernel, self.line, self.text, self.why
        )?;
        match self.address {
            Some(a) => write!(f, " (address {a:#x})"),
            None => Ok(()),
        }
    }
}

/// Why a call to the device failed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// PTX that cannot be loaded: an opcode or form this device does not know, or text that is not PTX.
    Ptx {
        /// Its line, from 1.
        line: u32,
        /// That line.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// A launch refused before any thread ran.
    Launch(String),
    /// A call on memory or a symbol that cannot be done.
    Memory(String),
    /// A kernel made a mistake.
    Fault(Box<Fault>),
}

impl Error {
    /// An error of the PTX `source` at `line`.
    pub(crate) fn ptx(source: &str, line: u32, why: impl Into<String>) -> Error {
        Error::Ptx { line, text: line_text(source, line), why: why.into() }
    }

    /// The fault, if a kernel made one.
    pub fn fault(&self) -> Option<&Fault> {
        match self {
            Error::Fault(f) => Some(f),
            _ => None,
        }
    }
}

/// Line `line` (from 1) of `source`, without its margins.
pub(crate) fn line_text(source: &str, line: u32) -> String {
    source.lines().nth((line as usize).saturating_sub(1)).unwrap_or("").trim().replace('\t', " ")
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Ptx { line, text, why } => write!(f, "PTX line {line} `{text}`: {why}"),
            Error::Launch(why) => write!(f, "launch refused: {why}"),
            Error::Memory(why) => write!(f, "device memory: {why}"),
            Error::Fault(fault) => fault.fmt(f),
        }
    }
}

impl std::error::Error for Error {}
