//! Which kernels a shape takes.
//!
//! The answer is the shape's alone, so that the same model gives the same bits on every GPU: where a device cannot run what it
//! names, what takes its place has the same order of every sum.

use crate::error::{Error, Result};
use std::fmt;

/// The environment variable that chooses the path: one of [`PathChoice::NAMES`].
const VARIABLE: &str = "RECURVE_CUDA_PATH";

/// Which path training and evaluation take. All but the first are for tests and comparisons.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PathChoice {
    /// The fused one where the model fits it, else the layer's own.
    #[default]
    Best,
    /// The same, but where it is the fused one many steps are one launch, if the device has multiprocessors for all its blocks.
    Steps,
    /// Never the fused one.
    Unfused,
    /// The persistent kernels wherever they are wide enough, also for fewer units than they are made for.
    Persistent,
    /// One kernel for each time step.
    Cells,
}

impl PathChoice {
    /// The choices by name.
    pub const NAMES: [(&str, Self); 5] = [
        ("best", Self::Best),
        ("steps", Self::Steps),
        ("unfused", Self::Unfused),
        ("persistent", Self::Persistent),
        ("cells", Self::Cells),
    ];

    /// Whether the fused kernels are among the choice.
    pub(super) fn fuses(self) -> bool {
        matches!(self, Self::Best | Self::Steps)
    }

    /// What `RECURVE_CUDA_PATH` says; `Best` if it is not set.
    ///
    /// # Errors
    /// [`Error::Usage`] if it is none of [`NAMES`](Self::NAMES).
    pub fn from_env() -> Result<Self> {
        let Some(found) = std::env::var_os(VARIABLE) else { return Ok(Self::Best) };
        let choice = Self::NAMES.iter().find(|(name, _)| found == *name).map(|&(_, choice)| choice);
        choice.ok_or_else(|| {
            let names = Self::NAMES.map(|(name, _)| name).join(", ");
            Error::usage(VARIABLE, format!("found {found:?}, expected one of {names}"))
        })
    }
}

/// The parameter gradients that a sequence's backward kernel sums while it walks back; products after it give the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accumulates {
    /// Those of W, U and b, with room for so many inputs.
    All {
        /// 16 or 32.
        inputs: u32,
    },
    /// Those of U and b.
    RecurrentAndBias,
    /// None.
    Nothing,
}

/// How a layer of some shape is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// One kernel for the whole sequence, one block for each batch row.
    Sequence {
        /// Hidden units that the kernel is compiled for.
        padded: u32,
        /// What its backward pass sums.
        accumulates: Accumulates,
    },
    /// One kernel for the whole sequence, whose blocks keep U among them and wait for each other. A device that cannot have
    /// them all at once takes one kernel for each time step: the same bits.
    Persistent {
        /// Hidden units that the kernel is compiled for.
        padded: u32,
    },
    /// One kernel for each time step.
    Cell,
}

/// The path of a layer with `hidden` units and `embed` inputs, under this choice.
pub fn path(hidden: usize, embed: usize, choice: PathChoice) -> Path {
    let persistent = match hidden {
        0..=128 => Path::Persistent { padded: 128 },
        129..=256 => Path::Persistent { padded: 256 },
        257..=512 => Path::Persistent { padded: 512 },
        _ => Path::Cell,
    };
    match choice {
        PathChoice::Best | PathChoice::Steps | PathChoice::Unfused => {}
        PathChoice::Persistent => return persistent,
        PathChoice::Cells => return Path::Cell,
    }
    let padded = match hidden {
        0..=32 => 32,
        33..=64 => 64,
        65..=96 => 96,
        97..=128 => 128,
        _ => return persistent,
    };
    let accumulates = match (padded, embed) {
        (96 | 128, _) => Accumulates::Nothing,
        (_, 0..=16) => Accumulates::All { inputs: 16 },
        (_, 17..=32) => Accumulates::All { inputs: 32 },
        _ => Accumulates::RecurrentAndBias,
    };
    Path::Sequence { padded, accumulates }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Cell => f.write_str("one kernel a time step; gradients of W, U and b by matrix products"),
            Path::Persistent { padded } => write!(
                f,
                "one kernel a sequence, up to {padded} units in blocks that wait for each other; gradients of W, U and b by matrix \
                 products"
            ),
            Path::Sequence { padded, accumulates } => {
                write!(f, "one kernel a sequence, {padded} units wide; ")?;
                match accumulates {
                    Accumulates::All { inputs } => {
                        write!(f, "backward sums the gradients of W (up to {inputs} inputs), U and b itself")
                    }
                    Accumulates::RecurrentAndBias => {
                        f.write_str("backward sums the gradients of U and b itself, W's by a matrix product")
                    }
                    Accumulates::Nothing => f.write_str("gradients of W, U and b by matrix products"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_the_narrowest_kernel_that_fits() {
        let sequence = |padded, accumulates| Path::Sequence { padded, accumulates };
        for (hidden, embed, expected) in [
            (1, 1, sequence(32, Accumulates::All { inputs: 16 })),
            (32, 16, sequence(32, Accumulates::All { inputs: 16 })),
            (32, 17, sequence(32, Accumulates::All { inputs: 32 })),
            (33, 32, sequence(64, Accumulates::All { inputs: 32 })),
            (64, 33, sequence(64, Accumulates::RecurrentAndBias)),
            (65, 16, sequence(96, Accumulates::Nothing)),
            (97, 1, sequence(128, Accumulates::Nothing)),
            (128, 1000, sequence(128, Accumulates::Nothing)),
            (129, 1, Path::Persistent { padded: 256 }),
            (256, 1000, Path::Persistent { padded: 256 }),
            (257, 1, Path::Persistent { padded: 512 }),
            (512, 1, Path::Persistent { padded: 512 }),
            (513, 1, Path::Cell),
        ] {
            for choice in [PathChoice::Best, PathChoice::Steps, PathChoice::Unfused] {
                assert_eq!(path(hidden, embed, choice), expected, "{hidden} units, {embed} inputs");
            }
            assert_eq!(path(hidden, embed, PathChoice::Cells), Path::Cell);
            let persistent = matches!(path(hidden, embed, PathChoice::Persistent), Path::Persistent { .. });
            assert_eq!(persistent, hidden <= 512, "{hidden} units");
        }
    }
}
