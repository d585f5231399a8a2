//! Padding and the order of an epoch.

use super::Sequences;

/// Which end of a sequence is padded or cut (Keras' `pre` and `post`).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The beginning.
    #[default]
    Pre,
    /// The end.
    Post,
}

/// Keras' `pad_sequences` with `value=0`: ids `[N,maxlen]`.
pub fn pad_sequences(sequences: &Sequences, maxlen: usize, padding: Side, truncating: Side) -> Vec<u32> {
    todo!("{sequences:?} {maxlen} {padding:?} {truncating:?}")
}

/// The order in which epoch `epoch` reads `rows` rows; a pure function of its arguments.
pub fn epoch_order(rows: u32, buffer: usize, seed: u64, epoch: u32) -> Vec<u32> {
    todo!("{rows} {buffer} {seed} {epoch}")
}
