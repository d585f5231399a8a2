//! Softmax and sparse cross entropy, through log-softmax and without clipping.
//!
//! ```text
//! z = logits − max(logits)          shifted, so that no exponential overflows
//! lse = log(sum of exp(z))
//! probs = exp(z) / sum of exp(z)    loss = w·(lse − z[label])   hit = (first largest logit is the label's)
//! dlogits = w·(probs − onehot(label)) / B                       w = class_weights[label], or 1
//! ```
//! Shapes: `logits probs dlogits` `[B,C]`, `labels loss hits` `[B]`, `class_weights` `[C]`. `dlogits` is the derivative
//! of the batch's mean loss; `loss` holds each row's own.

use super::{at, check_ids};
use crate::backend::{CrossEntropyBackward, CrossEntropyDims, CrossEntropyForward, Real};
use crate::error::{Error, Result};

/// Assigns `probs`, `loss` and `hits`. A row whose loss is NaN (a NaN among its logits, or an infinite largest logit)
/// hits nothing.
///
/// # Errors
/// [`Error::Shape`] if an argument does not have the extent that `d` asks for or a label is not below `C`; nothing has
/// been written then.
pub fn forward<T: Real>(d: CrossEntropyDims, a: CrossEntropyForward<'_, [T], [u32]>) -> Result<()> {
    a.check(d)?;
    check_ids("cross_entropy_forward", "labels [B]", a.labels, d.c)?;
    for (row, &label) in a.labels.iter().enumerate() {
        let logits = &a.logits[row * d.c..(row + 1) * d.c];
        let label = label as usize;
        let largest = first_largest(logits);
        let sum = softmax(logits, &mut a.probs[row * d.c..(row + 1) * d.c]);
        let mut loss = sum.ln() - (logits[label] - logits[largest]);
        if let Some(weights) = a.class_weights {
            loss *= weights[label];
        }
        a.loss[row] = loss;
        a.hits[row] = if largest == label && !loss.is_nan() { T::one() } else { T::zero() };
    }
    Ok(())
}

/// Assigns `dlogits`.
///
/// # Errors
/// [`Error::Shape`] if an argument does not have the extent that `d` asks for or a label is not below `C`; nothing has
/// been written then.
pub fn backward<T: Real>(d: CrossEntropyDims, a: CrossEntropyBackward<'_, [T], [u32]>) -> Result<()> {
    a.check(d)?;
    check_ids("cross_entropy_backward", "labels [B]", a.labels, d.c)?;
    let rows = T::from_f64(d.b as f64);
    for (row, &label) in a.labels.iter().enumerate() {
        for col in 0..d.c {
            let onehot = if col == label as usize { T::one() } else { T::zero() };
            let mut dlogit = (a.probs[at(d.c, row, col)] - onehot) / rows;
            if let Some(weights) = a.class_weights {
                dlogit *= weights[label as usize];
            }
            a.dlogits[at(d.c, row, col)] = dlogit;
        }
    }
    Ok(())
}

/// Softmax alone, for prediction: assigns `probs` `[B,C]` from `logits` `[B,C]`, with the same values as [`forward`].
///
/// # Errors
/// [`Error::Shape`] if a buffer is not `[B,C]`; nothing has been written then.
pub fn probabilities<T: Real>(d: CrossEntropyDims, logits: &[T], probs: &mut [T]) -> Result<()> {
    for (what, found) in [("logits [B,C]", logits.len()), ("probs [B,C]", probs.len())] {
        if d.b.checked_mul(d.c) != Some(found) {
            return Err(Error::Shape {
                op: "softmax",
                what,
                expected: format!("{} by {} elements", d.b, d.c),
                found: found.to_string(),
            });
        }
    }
    if d.c > 0 {
        for (logits, probs) in logits.chunks_exact(d.c).zip(probs.chunks_exact_mut(d.c)) {
            softmax(logits, probs);
        }
    }
    Ok(())
}

/// Index of the largest value, the first of several equal ones. A NaN is larger than nothing and nothing is larger
/// than it.
fn first_largest<T: Real>(values: &[T]) -> usize {
    let mut largest = 0;
    for (index, &value) in values.iter().enumerate() {
        if value > values[largest] {
            largest = index;
        }
    }
    largest
}

/// Assigns one row's probabilities; returns the sum of `exp(logit − largest logit)`.
fn softmax<T: Real>(logits: &[T], probs: &mut [T]) -> T {
    let largest = logits[first_largest(logits)];
    let mut sum = T::zero();
    for (prob, &logit) in probs.iter_mut().zip(logits) {
        *prob = (logit - largest).exp();
        sum += *prob;
    }
    for prob in probs {
        *prob = *prob / sum;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Probabilities, losses and hits of rows of three logits.
    fn run(logits: &[f32], labels: &[u32]) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let b = labels.len();
        let (mut probs, mut loss, mut hits) = (vec![9.0; 3 * b], vec![9.0; b], vec![9.0; b]);
        forward(
            CrossEntropyDims { b, c: 3 },
            CrossEntropyForward {
                logits,
                labels,
                class_weights: None,
                probs: &mut probs,
                loss: &mut loss,
                hits: &mut hits,
            },
        )
        .unwrap();
        (probs, loss, hits)
    }

    #[test]
    fn ties_go_to_the_lowest_index() {
        let (probs, loss, hits) = run(&[2.0, 2.0, 2.0, 1.0, 5.0, 5.0, 1.0, 5.0, 5.0], &[0, 1, 2]);
        assert_eq!(hits, [1.0, 1.0, 0.0]);
        assert_eq!(probs[..3], [1.0 / 3.0; 3]);
        assert_eq!(loss[0], 3f32.ln());
    }

    #[test]
    fn extreme_logits_stay_finite_and_are_not_clipped() {
        let (probs, loss, hits) = run(&[3e38, 0.0, -3e38, 1000.0, 0.0, -1000.0], &[0, 2]);
        assert_eq!(probs[..3], [1.0, 0.0, 0.0]);
        assert_eq!(loss, [0.0, 2000.0]);
        assert_eq!(hits, [1.0, 0.0]);
    }

    #[test]
    fn a_nan_logit_gives_a_nan_loss_and_no_hit() {
        for at in 0..3 {
            for label in 0..3 {
                let mut logits = [1.0, 3.0, 2.0];
                logits[at] = f32::NAN;
                let (probs, loss, hits) = run(&logits, &[label]);
                assert!(loss[0].is_nan() && probs.iter().all(|p| p.is_nan()), "NaN at {at}, label {label}");
                assert_eq!(hits, [0.0], "NaN at {at}, label {label}");
            }
        }
    }

    #[test]
    fn probabilities_are_forwards_bits() {
        let logits = [0.3, -1.0, 2.5, 4.0, 4.0, -7.0];
        let mut probs = [9.0; 6];
        probabilities(CrossEntropyDims { b: 2, c: 3 }, &logits, &mut probs).unwrap();
        assert_eq!(run(&logits, &[0, 1]).0, probs);
        assert!(probabilities(CrossEntropyDims { b: 2, c: 3 }, &logits, &mut probs[..5]).is_err());
        assert!(probabilities(CrossEntropyDims { b: 2, c: 3 }, &logits[..5], &mut probs).is_err());
        probabilities::<f32>(CrossEntropyDims { b: 2, c: 0 }, &[], &mut []).unwrap();
    }
}
