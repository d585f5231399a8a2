//! The shapes of a model.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// The recurrent cell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cell {
    /// Long short-term memory with Keras' defaults: sigmoid gates, tanh candidate and output, one bias.
    #[default]
    Lstm,
}

/// Embedding(V,E) → LSTM(H) → Dense(C) softmax.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Rows of the embedding, `V`: ids are `0..vocab`.
    pub vocab: usize,
    /// Width of the embedding, `E`.
    pub embed: usize,
    /// The recurrent layer's cell.
    pub cell: Cell,
    /// Hidden units, `H`.
    pub hidden: usize,
    /// Recurrent layers; one, for now.
    pub layers: usize,
    /// Classes, `C`.
    pub classes: usize,
}

impl Default for ModelConfig {
    /// The reference program's model: 10000, 16, 32 and two classes.
    fn default() -> Self {
        Self { vocab: 10_000, embed: 16, cell: Cell::Lstm, hidden: 32, layers: 1, classes: 2 }
    }
}

impl ModelConfig {
    /// The largest value of each of V, E, H and C; keeps every product of them far from overflow.
    pub const MAX: usize = 1 << 24;

    /// Refuses what cannot be a classifier.
    ///
    /// # Errors
    /// [`Error::Usage`] that names the flag.
    pub fn check(&self) -> Result<()> {
        for (flag, value) in [
            ("--num-words", self.vocab),
            ("--embed", self.embed),
            ("--hidden", self.hidden),
            ("--classes", self.classes),
        ] {
            if value == 0 || value > Self::MAX {
                return Err(Error::usage(
                    flag,
                    format!("{value} is out of range; expected 1 to {}", Self::MAX),
                ));
            }
        }
        if self.classes == 1 {
            return Err(Error::usage(
                "--classes",
                "a softmax over one class is the constant 1.0: nothing could be learned. \
                 For a yes/no question use two classes",
            ));
        }
        if self.layers != 1 {
            return Err(Error::usage(
                "layers",
                format!("{} recurrent layers; this version has one", self.layers),
            ));
        }
        Ok(())
    }
}
