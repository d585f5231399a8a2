//! Loss and accuracy as the reference program counts them.

use serde::{Deserialize, Serialize};

/// Running sums of an epoch or an evaluation. The loss is Keras' `Mean` of batch losses: every batch weighs the
/// same, a smaller last one too; the accuracy counts examples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// Sum of the batches' mean losses.
    pub loss_sum: f64,
    /// Batches added.
    pub batches: u64,
    /// Examples classified rightly.
    pub correct: u64,
    /// Examples seen.
    pub examples: u64,
}

impl Metrics {
    /// Adds a batch from each row's loss and hit (1 or 0), summed in f64 in the rows' order.
    pub fn add_batch<T: crate::backend::Real>(&mut self, loss: &[T], hits: &[T]) {
        if loss.is_empty() {
            return;
        }
        let sum: f64 = loss.iter().map(|l| l.as_f64()).sum();
        self.loss_sum += sum / loss.len() as f64;
        self.batches += 1;
        self.correct += hits.iter().filter(|h| h.as_f64() > 0.5).count() as u64;
        self.examples += loss.len() as u64;
    }

    /// Mean of the batch losses; NaN before the first batch.
    pub fn loss(&self) -> f64 {
        self.loss_sum / self.batches as f64
    }

    /// Share of examples classified rightly, 0 to 1; NaN before the first batch.
    pub fn accuracy(&self) -> f64 {
        self.correct as f64 / self.examples as f64
    }
}
