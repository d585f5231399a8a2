//! What a model must beat.

use super::{Examples, INDEX_FROM};

/// Test accuracies (0 to 1) of two models that need no training loop.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Baselines {
    /// Always the most frequent training class.
    pub majority: f64,
    /// Multinomial naive Bayes with add-one smoothing over the same padded ids that the model sees.
    pub naive_bayes: f64,
}

/// Fits on `train`, scores on `test`.
///
/// Naive Bayes counts the ids of words alone: padding and the start mark say nothing, and unknown words, rare in
/// training but not in new text, mislead it. Its prior is the classes' shares of the training rows. Ties go to the
/// lower class. With no test rows both accuracies are 0.
///
/// Ids are below `vocab` and labels below `classes` ([`Examples::check`]); what is not, is passed over.
pub fn baselines(train: &Examples, test: &Examples, vocab: usize, classes: usize) -> Baselines {
    let bayes = NaiveBayes::fit(train, vocab, classes);
    let majority = first_of_largest(bayes.rows.iter().map(|&rows| rows as f64));
    let share = |answer: &dyn Fn(usize) -> Option<u32>| {
        let correct = (0..test.rows()).filter(|&row| answer(row) == Some(test.y[row])).count();
        if test.rows() == 0 { 0.0 } else { correct as f64 / test.rows() as f64 }
    };
    Baselines { majority: share(&|_| majority), naive_bayes: share(&|row| bayes.predict(test.row(row))) }
}

/// The index of the largest score (the first of equals); NaN never wins.
fn first_of_largest(scores: impl Iterator<Item = f64>) -> Option<u32> {
    let mut best: Option<(u32, f64)> = None;
    for (k, score) in (0u32..).zip(scores) {
        if best.map_or(!score.is_nan(), |(_, top)| score > top) {
            best = Some((k, score));
        }
    }
    best.map(|(k, _)| k)
}

/// The ids that count.
fn counted(ids: &[u32], vocab: usize) -> impl Iterator<Item = usize> {
    ids.iter().filter(|&&id| id >= INDEX_FROM).map(|&id| id as usize).filter(move |&id| id < vocab)
}

/// A model of a training part.
struct NaiveBayes {
    /// Training rows of each class `[C]`.
    rows: Vec<u64>,
    /// Log probability of each id `[C,V]`.
    log_probabilities: Vec<f64>,
    vocab: usize,
}

impl NaiveBayes {
    fn fit(train: &Examples, vocab: usize, classes: usize) -> Self {
        let mut rows = vec![0; classes];
        let mut totals = vec![0u64; classes];
        // Counts to begin with: they are exact in f64 up to 2^53.
        let mut log_probabilities = vec![0f64; classes.saturating_mul(vocab)];
        for (row, &y) in train.y.iter().enumerate() {
            let class = y as usize;
            if class >= classes {
                continue;
            }
            rows[class] += 1;
            for id in counted(train.row(row), vocab) {
                log_probabilities[class * vocab + id] += 1.0;
                totals[class] += 1;
            }
        }
        // PAD and START are no outcomes of the multinomial, so they take no share of the smoothing.
        // The ids that stand for words, which begin behind id 3.
        let outcomes = vocab.saturating_sub(INDEX_FROM as usize + 1).max(1) as f64;
        // Once for each id of the vocabulary, not for each word of the test rows.
        for (of_class, &total) in log_probabilities.chunks_exact_mut(vocab.max(1)).zip(&totals) {
            let total = (total as f64 + outcomes).ln();
            for count in of_class {
                // ln 1 = 0 is what most ids of a large vocabulary get.
                let log = if *count == 0.0 { 0.0 } else { (*count + 1.0).ln() };
                *count = log - total;
            }
        }
        Self { rows, log_probabilities, vocab }
    }

    /// The class with the largest log posterior.
    fn predict(&self, ids: &[u32]) -> Option<u32> {
        first_of_largest((0..self.rows.len()).map(|class| {
            if self.rows[class] == 0 {
                return f64::NEG_INFINITY;
            }
            // The prior's denominator is the same for every class: left out.
            let prior = (self.rows[class] as f64).ln();
            let of_class = &self.log_probabilities[class * self.vocab..(class + 1) * self.vocab];
            prior + counted(ids, self.vocab).map(|id| of_class[id]).sum::<f64>()
        }))
    }
}
