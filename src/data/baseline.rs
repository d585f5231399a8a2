//! What a model must beat.

use super::Examples;

/// Test accuracies (0 to 1) of two models that need no training loop.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Baselines {
    /// Always the most frequent training class.
    pub majority: f64,
    /// Multinomial naive Bayes with add-one smoothing over the same padded ids that the model sees.
    pub naive_bayes: f64,
}

/// Fits on `train`, scores on `test`.
pub fn baselines(train: &Examples, test: &Examples, vocab: usize, classes: usize) -> Baselines {
    todo!("{train:?} {test:?} {vocab} {classes}")
}
