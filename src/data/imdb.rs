//! Keras' IMDB archive and archives of the same layout: `x_train, y_train` and, optionally, `x_test, y_test`.

use super::Sequences;
use crate::error::Result;
use std::path::Path;

/// The inputs of one part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inputs {
    /// Lists of word ranks, already turned into ids: `[START] + (rank + INDEX_FROM)`, ids ≥ `num_words` as `OOV`.
    Ragged(Sequences),
    /// Prepared ids `[N,T]`, taken as they are.
    Padded {
        /// `[N,T]`
        ids: Vec<u32>,
        /// Width.
        t: usize,
    },
}

/// One part of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelledInputs {
    /// Inputs.
    pub x: Inputs,
    /// Labels as stored, which must be non-negative.
    pub y: Vec<u32>,
}

/// A whole archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Archive {
    /// `x_train, y_train`
    pub train: LabelledInputs,
    /// `x_test, y_test`, where the archive has both.
    pub test: Option<LabelledInputs>,
}

/// Reads an archive with Keras' `load_data` semantics.
pub fn load(path: &Path, num_words: usize) -> Result<Archive> {
    todo!("{path:?} {num_words}")
}
