//! Where examples come from: files in, padded ids out.
//!
//! [`npz`] and [`pickle`] read what NumPy wrote, [`imdb`] gives it Keras' meaning, [`table`] and [`text`] read raw
//! text, [`sample`] holds the embedded data set, [`batch`] pads and shuffles, [`fetch`] downloads, and [`load`]
//! brings them together.

mod load;

pub mod baseline;
pub mod batch;
#[cfg(feature = "fetch")]
pub mod fetch;
pub mod imdb;
pub mod npz;
pub mod pickle;
pub mod sample;
pub mod table;
pub mod text;

pub use load::{
    DataOptions, Dataset, Encoding, IMDB_ARCHIVE, IMDB_WORD_INDEX, Source, Words, data_folder, imdb_folders,
    imdb_vocabulary, load, load_for_eval, row_fingerprint,
};

use crate::error::{Error, Result};

/// Id of padding.
pub const PAD: u32 = 0;
/// Id that starts every sequence (Keras' `start_char`).
pub const START: u32 = 1;
/// Id of a word outside the vocabulary (Keras' `oov_char`).
pub const OOV: u32 = 2;
/// The word of rank r has id `r + INDEX_FROM`, where the most frequent word has rank 1 (Keras' `index_from`); so id 3
/// stands for no word.
pub const INDEX_FROM: u32 = 3;

/// Labelled sequences of one length: what an engine is loaded with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Examples {
    /// Token ids `[N,T]`.
    pub x: Vec<u32>,
    /// Class indices `[N]`.
    pub y: Vec<u32>,
    /// Time steps, `T`; at least 1.
    pub t: usize,
}

impl Examples {
    /// Rows, `N`.
    pub fn rows(&self) -> usize {
        self.y.len()
    }

    /// The ids of one row, `[T]`.
    pub fn row(&self, row: usize) -> &[u32] {
        &self.x[row * self.t..(row + 1) * self.t]
    }

    /// The given rows, in the given order.
    pub fn select(&self, rows: &[u32]) -> Self {
        let mut x = Vec::with_capacity(rows.len() * self.t);
        for &row in rows {
            x.extend_from_slice(self.row(row as usize));
        }
        Self { x, y: rows.iter().map(|&row| self.y[row as usize]).collect(), t: self.t }
    }

    /// Checks that the arrays fit each other, ids are below `vocab` and labels below `classes`.
    pub fn check(&self, vocab: usize, classes: usize) -> Result<()> {
        if self.t == 0 || Some(self.x.len()) != self.rows().checked_mul(self.t) {
            return Err(Error::Shape {
                op: "examples",
                what: "x [N,T]",
                expected: format!("{} rows of {} ids", self.rows(), self.t),
                found: format!("{} ids", self.x.len()),
            });
        }
        if let Some(at) = self.x.iter().position(|&id| id as usize >= vocab) {
            return Err(Error::Failed(format!(
                "row {} holds id {}, but the vocabulary has {vocab} ids (0 to {}); raise --num-words",
                at / self.t,
                self.x[at],
                vocab - 1
            )));
        }
        if let Some(at) = self.y.iter().position(|&y| y as usize >= classes) {
            return Err(Error::Failed(format!(
                "row {at} has label {}, but there are {classes} classes (0 to {}); raise --classes",
                self.y[at],
                classes - 1
            )));
        }
        Ok(())
    }
}

/// Sequences of different lengths, end to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequences<T = u32> {
    values: Vec<T>,
    /// `ends[k]` is where sequence k ends; it starts where the one before ends.
    ends: Vec<usize>,
}

impl<T> Default for Sequences<T> {
    fn default() -> Self {
        Self { values: Vec::new(), ends: Vec::new() }
    }
}

impl<T> Sequences<T> {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes room for so many sequences and values more.
    fn reserve_exact(&mut self, sequences: usize, values: usize) {
        self.ends.reserve_exact(sequences);
        self.values.reserve_exact(values);
    }

    /// Appends one sequence.
    pub fn push(&mut self, values: impl IntoIterator<Item = T>) {
        self.values.extend(values);
        self.ends.push(self.values.len());
    }

    /// How many sequences there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Sequence `k`.
    pub fn row(&self, k: usize) -> &[T] {
        let start = if k == 0 { 0 } else { self.ends[k - 1] };
        &self.values[start..self.ends[k]]
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = &[T]> {
        (0..self.len()).map(|k| self.row(k))
    }
}

impl<T, I: IntoIterator<Item = T>> FromIterator<I> for Sequences<T> {
    fn from_iter<S: IntoIterator<Item = I>>(sequences: S) -> Self {
        let mut all = Self::new();
        sequences.into_iter().for_each(|values| all.push(values));
        all
    }
}
