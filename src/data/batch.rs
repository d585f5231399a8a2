//! Padding and the order of an epoch.

use super::{PAD, Sequences};
use crate::rng::{Purpose, Rng};

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
///
/// A sequence longer than `maxlen` loses ids on the `truncating` side, a shorter one gains [`PAD`] on the `padding`
/// side. `maxlen` is at least 1; 0 gives an array of no elements.
pub fn pad_sequences(sequences: &Sequences, maxlen: usize, padding: Side, truncating: Side) -> Vec<u32> {
    let mut x = Vec::with_capacity(sequences.len().saturating_mul(maxlen));
    for ids in sequences.iter() {
        let surplus = ids.len().saturating_sub(maxlen);
        let kept = match truncating {
            Side::Pre => &ids[surplus..],
            Side::Post => &ids[..ids.len() - surplus],
        };
        let pads = std::iter::repeat_n(PAD, maxlen - kept.len());
        match padding {
            Side::Pre => {
                x.extend(pads);
                x.extend_from_slice(kept);
            }
            Side::Post => {
                x.extend_from_slice(kept);
                x.extend(pads);
            }
        }
    }
    x
}

/// The order in which epoch `epoch` reads `rows` rows; a pure function of its arguments.
///
/// As in the reference program, the rows are permuted once on load (the same for every epoch) and then pass through
/// a shuffle buffer with tf.data's semantics, reshuffled every epoch: the buffer is filled, each row read is drawn
/// uniformly from its `buffer` slots, the next row takes the slot, and at the end the buffer is drained in random
/// order. So the row at position p of the epoch stood before position p + `buffer` of the permutation.
///
/// A buffer of at least `rows` shuffles fully, of 1 gives the permutation itself, and of 0 the order of the file,
/// without any permutation.
pub fn epoch_order(rows: u32, buffer: usize, seed: u64, epoch: u32) -> Vec<u32> {
    if buffer == 0 {
        return (0..rows).collect();
    }
    let loaded = Rng::new(seed, Purpose::Permutation, 0).permutation(rows);
    if buffer == 1 {
        return loaded;
    }
    let mut rng = Rng::new(seed, Purpose::Shuffle, epoch);
    let (filling, refills) = loaded.split_at(buffer.min(loaded.len()));
    let mut slots = filling.to_vec();
    let mut order = Vec::with_capacity(loaded.len());
    for &next in refills {
        let slot = rng.below(slots.len() as u64) as usize;
        order.push(std::mem::replace(&mut slots[slot], next));
    }
    while !slots.is_empty() {
        let slot = rng.below(slots.len() as u64) as usize;
        order.push(slots.swap_remove(slot));
    }
    order
}
