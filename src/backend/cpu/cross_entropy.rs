//! Softmax and sparse cross entropy. Rows are few and short: plain loops, with the sums in f64, so that a loss near
//! zero keeps its digits.

use super::activation::exp;
use super::check_ids;
use crate::backend::{CrossEntropyBackward, CrossEntropyDims, CrossEntropyForward};
use crate::error::Result;

/// See [`CrossEntropyForward`].
pub(super) fn forward(d: CrossEntropyDims, a: CrossEntropyForward<'_, [f32], [u32]>) -> Result<()> {
    a.check(d)?;
    check_ids("cross_entropy_forward", "labels [B]", "C", d.c, a.labels)?;
    // Labels below C: no row without classes gets here.
    let width = d.c.max(1);
    let rows = a.logits.chunks_exact(width).zip(a.probs.chunks_exact_mut(width));
    for (row, (logits, probs)) in rows.enumerate() {
        let label = a.labels[row] as usize;
        (a.loss[row], a.hits[row]) = self::row(logits, label, probs);
        if let Some(weights) = a.class_weights {
            a.loss[row] *= weights[label];
        }
    }
    Ok(())
}

/// One row: assigns `probs`, returns loss and hit. There is at least one class, and `label` is one.
pub(super) fn row(logits: &[f32], label: usize, probs: &mut [f32]) -> (f32, f32) {
    let mut best = 0;
    for (class, &x) in logits.iter().enumerate() {
        if x > logits[best] {
            best = class;
        }
    }
    let max = logits[best];
    let mut sum = 0.0;
    for (p, &x) in probs.iter_mut().zip(logits) {
        *p = exp(x - max);
        sum += f64::from(*p);
    }
    for p in probs.iter_mut() {
        *p = (f64::from(*p) / sum) as f32;
    }
    // NaN if any logit is NaN or the largest is infinite; such a row hits nothing.
    let loss = (sum.ln() - (f64::from(logits[label]) - f64::from(max))) as f32;
    (loss, if best == label && !loss.is_nan() { 1.0 } else { 0.0 })
}

/// See [`CrossEntropyBackward`].
pub(super) fn backward(d: CrossEntropyDims, a: CrossEntropyBackward<'_, [f32], [u32]>) -> Result<()> {
    a.check(d)?;
    check_ids("cross_entropy_backward", "labels [B]", "C", d.c, a.labels)?;
    let width = d.c.max(1);
    let batch = d.b as f32;
    let rows = a.probs.chunks_exact(width).zip(a.dlogits.chunks_exact_mut(width));
    for (row, (probs, dlogits)) in rows.enumerate() {
        let label = a.labels[row] as usize;
        for (class, (dx, p)) in dlogits.iter_mut().zip(probs).enumerate() {
            let target = if class == label { 1.0 } else { 0.0 };
            *dx = (p - target) / batch;
            if let Some(weights) = a.class_weights {
                *dx *= weights[label];
            }
        }
    }
    Ok(())
}
