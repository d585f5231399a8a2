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

/// The figures of one epoch. Accuracies are fractions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpochMetrics {
    /// 1-based.
    pub epoch: u32,
    /// Mean of the batch losses while training.
    pub loss: f64,
    /// Share of training rows classified rightly, each before its batch's step.
    pub accuracy: f64,
    /// After the epoch, where there is a validation part.
    pub validation_loss: Option<f64>,
    /// After the epoch, where there is a validation part.
    pub validation_accuracy: Option<f64>,
    /// After the epoch, where there is a test part.
    pub test_loss: Option<f64>,
    /// After the epoch, where there is a test part.
    pub test_accuracy: Option<f64>,
}

/// How well a class is told apart.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassReport {
    /// The class' name.
    pub class: String,
    /// Rows of this class.
    pub support: u64,
    /// Of the rows called this class, the share that are; 0 if none was.
    pub precision: f64,
    /// Of the rows of this class, the share found; 0 if there are none.
    pub recall: f64,
    /// Harmonic mean of precision and recall; 0 if both are.
    pub f1: f64,
}

/// What `recurve eval` reports besides loss and accuracy.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// `confusion[actual][predicted]`, counts.
    pub confusion: Vec<Vec<u64>>,
    /// One entry a class.
    pub classes: Vec<ClassReport>,
    /// Mean of the classes' F1.
    pub macro_f1: f64,
    /// Area under the ROC curve of class 1, for two classes of which both occur.
    pub auc: Option<f64>,
}

/// The class of the largest probability; the first of equals.
pub fn argmax(probabilities: &[f32]) -> usize {
    let mut best = 0;
    for (class, &p) in probabilities.iter().enumerate() {
        if p > probabilities[best] {
            best = class;
        }
    }
    best
}

/// Compares probabilities `[N,C]` with labels `[N]`.
pub fn report(probabilities: &[f32], labels: &[u32], names: &[String]) -> Report {
    let c = names.len();
    let mut confusion = vec![vec![0u64; c]; c];
    for (row, &label) in probabilities.chunks_exact(c).zip(labels) {
        confusion[label as usize][argmax(row)] += 1;
    }
    let ratio = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
    let classes: Vec<ClassReport> = (0..c)
        .map(|k| {
            let hits = confusion[k][k];
            let support: u64 = confusion[k].iter().sum();
            let called: u64 = confusion.iter().map(|row| row[k]).sum();
            ClassReport {
                class: names[k].clone(),
                support,
                precision: ratio(hits, called),
                recall: ratio(hits, support),
                f1: ratio(2 * hits, support + called),
            }
        })
        .collect();
    let macro_f1 = classes.iter().map(|class| class.f1).sum::<f64>() / c as f64;
    let auc = if c == 2 {
        let scores: Vec<f32> = probabilities.chunks_exact(2).map(|row| row[1]).collect();
        auc(&scores, labels)
    } else {
        None
    };
    Report { confusion, classes, macro_f1, auc }
}

/// Area under the ROC curve by ranks (Mann–Whitney): the chance that a row of class 1 scores above one of class 0,
/// ties counting half. `None` unless both classes occur.
pub fn auc(scores: &[f32], labels: &[u32]) -> Option<f64> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    let positives = labels.iter().filter(|&&y| y == 1).count() as f64;
    let negatives = labels.len() as f64 - positives;
    if positives == 0.0 || negatives == 0.0 {
        return None;
    }
    let mut rank_sum = 0.0;
    let mut start = 0;
    while start < order.len() {
        let mut end = start + 1;
        while end < order.len() && scores[order[end]] == scores[order[start]] {
            end += 1;
        }
        // Ranks start+1 ..= end share their mean.
        let mean_rank = (start + 1 + end) as f64 / 2.0;
        let tied = order[start..end].iter().filter(|&&row| labels[row] == 1).count();
        rank_sum += mean_rank * tied as f64;
        start = end;
    }
    Some((rank_sum - positives * (positives + 1.0) / 2.0) / (positives * negatives))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loss_is_the_mean_of_batch_means() {
        let mut metrics = Metrics::default();
        metrics.add_batch(&[1.0f32, 3.0], &[1.0, 0.0]);
        metrics.add_batch(&[5.0f32], &[1.0]);
        assert_eq!(metrics.loss(), 3.5);
        assert_eq!(metrics.accuracy(), 2.0 / 3.0);
        assert!(Metrics::default().loss().is_nan());
    }

    #[test]
    fn a_nan_loss_stays_nan() {
        let mut metrics = Metrics::default();
        metrics.add_batch(&[f32::NAN], &[0.0]);
        metrics.add_batch(&[1.0f32], &[1.0]);
        assert!(metrics.loss().is_nan());
    }

    #[test]
    fn auc_is_the_share_of_ordered_pairs() {
        let scores = [0.1, 0.4, 0.35, 0.8, 0.4, 0.4];
        let labels = [0, 0, 1, 1, 1, 0];
        let mut pairs = 0.0;
        for i in 0..6 {
            for j in 0..6 {
                if labels[i] == 1 && labels[j] == 0 {
                    pairs += if scores[i] > scores[j] {
                        1.0
                    } else if scores[i] == scores[j] {
                        0.5
                    } else {
                        0.0
                    };
                }
            }
        }
        assert!((auc(&scores, &labels).unwrap() - pairs / 9.0).abs() < 1e-12);
        assert_eq!(auc(&[0.5, 0.6], &[1, 1]), None);
    }

    #[test]
    fn the_report_counts_rows_by_actual_and_predicted_class() {
        let names = ["a".to_string(), "b".to_string(), "c".to_string()];
        let probabilities = [0.8, 0.1, 0.1, 0.2, 0.5, 0.3, 0.6, 0.3, 0.1, 0.4, 0.4, 0.2];
        let report = report(&probabilities, &[0, 1, 1, 0], &names);
        assert_eq!(report.confusion, [[2, 0, 0], [1, 1, 0], [0, 0, 0]]);
        assert_eq!(report.classes[0].precision, 2.0 / 3.0);
        assert_eq!(report.classes[1].recall, 0.5);
        assert_eq!(report.classes[2].f1, 0.0);
        assert_eq!(report.auc, None);
    }
}
