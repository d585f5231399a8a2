//! Launches `cross_entropy_forward`, `cross_entropy_backward` and `metrics`.

use super::buffer::{Ids, View, ViewMut};
use super::context::Context;
use super::dense::WARP_THREADS;
use super::embedding::check_below;
use super::half::Scaling;
use super::launch::{Call, blocks};
use crate::backend::CrossEntropyDims;
use crate::error::Result;
use crate::metrics::Metrics;
use crate::tuning::{DENSE_WARPS, ELEMENT_THREADS, METRIC_THREADS};

/// [`Metrics`] as the device holds them.
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct MetricSums {
    loss_sum: f64,
    batches: u64,
    correct: u64,
    examples: u64,
}

impl From<Metrics> for MetricSums {
    fn from(m: Metrics) -> Self {
        let Metrics { loss_sum, batches, correct, examples } = m;
        Self { loss_sum, batches, correct, examples }
    }
}

impl From<MetricSums> for Metrics {
    fn from(sums: MetricSums) -> Self {
        let MetricSums { loss_sum, batches, correct, examples } = sums;
        Self { loss_sum, batches, correct, examples }
    }
}

/// Where the losses of a batch go, and what they are computed from.
pub(super) struct Losses<'a> {
    /// `[B]`
    pub(super) labels: Ids<'a>,
    /// `[C]`
    pub(super) class_weights: Option<View<'a, f32>>,
    /// `[B]`, assigned.
    pub(super) loss: ViewMut<'a, f32>,
    /// `[B]`, assigned.
    pub(super) hits: ViewMut<'a, f32>,
}

/// Assigns `probs` `[B,C]` from `logits` `[B,C]`, and the losses if they are asked for.
pub(super) fn forward(
    ctx: &Context,
    d: CrossEntropyDims,
    logits: View<'_, f32>,
    mut probs: ViewMut<'_, f32>,
    losses: Option<Losses<'_>>,
) -> Result<()> {
    let CrossEntropyDims { b: batch, c: classes } = d;
    let (labels, class_weights, mut loss, mut hits) = match losses {
        Some(Losses { labels, class_weights, loss, hits }) => {
            (Some(labels), class_weights, Some(loss), Some(hits))
        }
        None => (None, None, None, None),
    };
    if let Some(labels) = labels {
        check_below("cross_entropy_forward", labels, classes)?;
    }
    let grid = blocks("cross_entropy_forward", "logits [B,C]", &[batch], DENSE_WARPS)?;
    let call = Call::new(ctx, &ctx.kernels.cross_entropy_forward)
        .input("logits [B,C]", logits, &[batch, classes])?
        .input_or_null("labels [B]", labels.map(|l| l.view), &[batch])?
        .input_or_null("class_weights [C]", class_weights, &[classes])?
        .output("probs [B,C]", &mut probs, &[batch, classes])?
        .output_or_null("loss [B]", loss.as_mut(), &[batch])?
        .output_or_null("hits [B]", hits.as_mut(), &[batch])?
        .size("B", batch)?
        .size("C", classes)?;
    // SAFETY: the parameters are `logits, labels, class_weights, probs, loss, hits, batch, classes`; a warp reads and writes
    // one row below B of each, and the logit and weight of its label, which is below C: all were checked. Without labels `loss` and
    // `hits` are null too.
    unsafe { call.launch([grid, 1, 1], WARP_THREADS, 0) }
}

/// Assigns `dlogits` `[B,C]` from `probs` `[B,C]`, `labels` `[B]` and `class_weights` `[C]`, times the scale of `scaling`, if
/// given.
#[allow(clippy::too_many_arguments)] // the kernel's
pub(super) fn backward(
    ctx: &Context,
    d: CrossEntropyDims,
    probs: View<'_, f32>,
    labels: Ids<'_>,
    class_weights: Option<View<'_, f32>>,
    scaling: Option<View<'_, Scaling>>,
    mut dlogits: ViewMut<'_, f32>,
) -> Result<()> {
    let CrossEntropyDims { b: batch, c: classes } = d;
    check_below("cross_entropy_backward", labels, classes)?;
    let grid = blocks("cross_entropy_backward", "dlogits [B,C]", &[batch, classes], ELEMENT_THREADS)?;
    let call = Call::new(ctx, &ctx.kernels.cross_entropy_backward)
        .input("probs [B,C]", probs, &[batch, classes])?
        .input("labels [B]", labels.view, &[batch])?
        .input_or_null("class_weights [C]", class_weights, &[classes])?
        .input_or_null("scaling", scaling, &[1])?
        .output("dlogits [B,C]", &mut dlogits, &[batch, classes])?
        .size("B", batch)?
        .size("C", classes)?;
    // SAFETY: the parameters are `probs, labels, class_weights, scaling, dlogits, batch, classes`; a thread has one element
    // below `B·C`, its row's label, that one's weight and the scale: all were checked.
    unsafe { call.launch([grid, 1, 1], ELEMENT_THREADS, 0) }
}

/// Adds `rows` losses and hits to `sums` (one), in batches of `batch_size`; then moves `cursor` (one number), if given,
/// to the next step.
pub(super) fn metrics(
    ctx: &Context,
    loss: View<'_, f32>,
    hits: View<'_, f32>,
    mut sums: ViewMut<'_, MetricSums>,
    mut cursor: Option<ViewMut<'_, u32>>,
    rows: usize,
    batch_size: usize,
) -> Result<()> {
    let call = Call::new(ctx, &ctx.kernels.metrics)
        .input("loss [B]", loss, &[rows])?
        .input("hits [B]", hits, &[rows])?
        .output("sums", &mut sums, &[1])?
        .output_or_null("cursor", cursor.as_mut(), &[1])?
        .size("B", rows)?
        .size("rows of a batch", batch_size.max(1))?;
    // SAFETY: the parameters are `loss, hits, sums, cursor, rows, batch_size`; the one block reads `rows` elements of
    // each array and updates one `sums` and one `cursor`: all were checked.
    unsafe { call.launch([1, 1, 1], METRIC_THREADS, 0) }
}
