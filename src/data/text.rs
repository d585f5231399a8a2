//! Raw text to ids: Keras' tokenizer and a vocabulary.

use crate::error::Result;
use std::path::Path;

/// Splits text as Keras' `text_to_word_sequence` does: lower case, the punctuation filter, spaces.
pub fn tokenize(text: &str) -> Vec<String> {
    todo!("{text}")
}

/// The words that have ids: word k of the list (0-based) has rank k+1 and id `k + 1 + INDEX_FROM`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vocabulary {}

impl Vocabulary {
    /// The most frequent words of `texts`; ids stay below `num_words`.
    pub fn fit<'a>(texts: impl IntoIterator<Item = &'a str>, num_words: usize) -> Self {
        let _ = (texts.into_iter().count(), num_words);
        todo!()
    }
    /// Keras' `imdb_word_index.json`, word → rank, as far as ids stay below `num_words`.
    pub fn from_word_index(path: &Path, num_words: usize) -> Result<Self> {
        todo!("{path:?} {num_words}")
    }
    /// From words in the order of their ranks, as [`Self::words`] gives them (a model file).
    pub fn from_words(words: Vec<String>) -> Result<Self> {
        todo!("{words:?}")
    }
    /// The words in the order of their ranks.
    pub fn words(&self) -> &[String] {
        todo!()
    }
    /// One more than the largest id.
    pub fn ids(&self) -> usize {
        todo!()
    }
    /// `[START] + ids`, unknown words as `OOV`.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        todo!("{text}")
    }
}

/// Class names and what the file's labels mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels {
    /// Class names by index.
    pub names: Vec<String>,
}

impl Labels {
    /// The classes of a training part: sorted by number if every label is a number, by name otherwise.
    pub fn fit<'a>(labels: impl IntoIterator<Item = &'a str>) -> Self {
        let _ = labels.into_iter().count();
        todo!()
    }
    /// The class of a label.
    pub fn index(&self, label: &str) -> Option<u32> {
        todo!("{label}")
    }
}

/// A seeded split that keeps each class' share: row indices (ascending) of the rest and of the drawn fraction.
pub fn stratified_split(y: &[u32], fraction: f64, seed: u64, index: u32) -> (Vec<u32>, Vec<u32>) {
    todo!("{y:?} {fraction} {seed} {index}")
}
