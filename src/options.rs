//! How to train: what a user chooses, and the steps that follow from it.

use crate::backend::StepState;
use crate::data::Dataset;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// How to train.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainOptions {
    /// Passes over the training rows, in all.
    pub epochs: u32,
    /// Rows of a batch; the last one of an epoch may be smaller.
    pub batch_size: usize,
    /// Learning rate.
    pub lr: f32,
    /// Slots of the shuffle buffer; 0 is the file's order.
    pub shuffle_buffer: usize,
    /// Seed of the initial weights and of every order.
    pub seed: u64,
    /// Decoupled weight decay; 0 is off.
    pub weight_decay: f32,
    /// Largest global norm of the gradient; 0 is off.
    pub clip_norm: f32,
    /// Stop after this many epochs without a lower validation loss.
    pub patience: Option<u32>,
}

impl Default for TrainOptions {
    /// The reference program's.
    fn default() -> Self {
        Self {
            epochs: 10,
            batch_size: 32,
            lr: 0.001,
            shuffle_buffer: 10_000,
            seed: 0,
            weight_decay: 0.0,
            clip_norm: 0.0,
            patience: None,
        }
    }
}

impl TrainOptions {
    /// The largest `--batch-size`.
    pub const BATCH_SIZE_MAX: usize = 1 << 20;

    /// Refuses values out of range, and early stopping on data without a validation part.
    pub fn check(&self, dataset: &Dataset) -> Result<()> {
        self.check_ranges()?;
        if self.patience.is_some() && dataset.validation.is_none() {
            return Err(Error::usage(
                "--patience",
                "early stopping needs a validation part; add --validation-fraction 0.1 (the test part never chooses)",
            ));
        }
        Ok(())
    }

    /// Refuses values out of range.
    pub fn check_ranges(&self) -> Result<()> {
        let range = |flag: &str, found: String, expected: &str| {
            Err(Error::usage(flag, format!("{found} is out of range; expected {expected}")))
        };
        if !(1..=Self::BATCH_SIZE_MAX).contains(&self.batch_size) {
            return range("--batch-size", self.batch_size.to_string(), "1 to 1048576");
        }
        if !(self.lr.is_finite() && self.lr > 0.0) {
            return range("--lr", self.lr.to_string(), "a number above 0");
        }
        if !(self.weight_decay.is_finite() && self.weight_decay >= 0.0) {
            return range("--weight-decay", self.weight_decay.to_string(), "a number of at least 0");
        }
        if !(self.clip_norm.is_finite() && self.clip_norm >= 0.0) {
            return range("--clip-norm", self.clip_norm.to_string(), "a number of at least 0");
        }
        if self.epochs == 0 {
            return range("--epochs", "0".into(), "at least 1");
        }
        if self.patience == Some(0) {
            return range("--patience", "0".into(), "at least 1");
        }
        Ok(())
    }

    /// Batches of an epoch over `rows` rows.
    pub fn batches(&self, rows: usize) -> usize {
        rows.div_ceil(self.batch_size)
    }

    /// The steps of one epoch over `rows` rows, the first being step `t + 1` of the training.
    pub fn steps(&self, rows: usize, t: u64) -> Result<Vec<StepState>> {
        (0..self.batches(rows))
            .map(|batch| {
                let start = batch * self.batch_size;
                let size = self.batch_size.min(rows - start);
                let narrow = |n: usize| {
                    u32::try_from(n).map_err(|_| Error::Failed(format!("{rows} rows are more than 2^32")))
                };
                Ok(StepState {
                    weight_decay: self.weight_decay,
                    clip_norm: self.clip_norm,
                    ..StepState::new(t + 1 + batch as u64, self.lr, narrow(start)?, narrow(size)?)
                })
            })
            .collect()
    }
}
