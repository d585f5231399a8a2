//! Launches `adam`, `reduce_partials`, `gradient_norm` and `clip_scale`.

use super::buffer::{View, ViewMut};
use super::context::Context;
use super::launch::{Call, blocks};
use crate::backend::{AdamConfig, StepState};
use crate::error::{Error, Result};
use crate::tuning::{ADAM_THREADS, ELEMENT_THREADS, NORM_BLOCKS};
use std::ops::Range;

/// Sums that are still in parts: element `i` is the sum over `p < count` of `parts[p·stride + i]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Partials<'a> {
    /// `count` parts, `stride` elements apart.
    pub(super) parts: View<'a, f32>,
    /// Parts.
    pub(super) count: u32,
    /// Elements from a part to the next.
    pub(super) stride: usize,
}

impl Partials<'_> {
    /// Elements of all parts, of which `n` of each are read.
    fn extent(&self, n: usize) -> usize {
        let last = (self.count as usize).saturating_sub(1).checked_mul(self.stride);
        last.and_then(|last| last.checked_add(n)).unwrap_or(usize::MAX)
    }
}

/// The step that the device is at: `steps[*cursor]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct At<'a> {
    /// A table of steps.
    pub(super) steps: View<'a, StepState>,
    /// One number, below the length of `steps` whenever a kernel runs.
    pub(super) cursor: View<'a, u32>,
}

/// What Adam updates, each `[n]`.
pub(super) struct State<'a> {
    pub(super) params: ViewMut<'a, f32>,
    pub(super) m: ViewMut<'a, f32>,
    pub(super) v: ViewMut<'a, f32>,
}

/// One step. The gradients are `grads` `[n]`, but for the range of `partials`, whose parts are summed on the way; all
/// are multiplied with `scale` (one number), if given.
pub(super) fn adam(
    ctx: &Context,
    config: &AdamConfig,
    at: At<'_>,
    scale: Option<View<'_, f64>>,
    state: State<'_>,
    grads: View<'_, f32>,
    partials: Option<(Range<usize>, Partials<'_>)>,
) -> Result<()> {
    let State { mut params, mut m, mut v } = state;
    let n = params.len();
    let grid = blocks("adam", "params [n]", &[n], ADAM_THREADS)?;
    let (range, parts, extent, count, stride) = match partials {
        Some((range, partials)) if range.start <= range.end && range.end <= n => {
            let extent = partials.extent(range.end - range.start);
            (range, Some(partials.parts), extent, partials.count, partials.stride)
        }
        None => (0..0, None, 0, 0, 0),
        Some((range, _)) => {
            return Err(Error::Shape {
                op: "adam",
                what: "range of partial sums",
                expected: format!("within the {n} parameters"),
                found: format!("{range:?}"),
            });
        }
    };
    let call = Call::new(ctx, &ctx.kernels.adam)
        .input("steps", at.steps, &[1])?
        .input("cursor", at.cursor, &[1])?
        .input_or_null("scale", scale, &[1])?
        .output("params [n]", &mut params, &[n])?
        .output("m [n]", &mut m, &[n])?
        .output("v [n]", &mut v, &[n])?
        .input("grads [n]", grads, &[n])?
        .input_or_null("partials", parts, &[extent])?
        .size("partials' begin", range.start)?
        .size("partials' end", range.end)?
        .u32(count)
        .u64(stride as u64)
        .f64(config.beta1)
        .f64(config.beta2)
        .f64(config.eps)
        .size("n", n)?;
    // SAFETY: the parameters are `steps, cursor, scale, params, m, v, grads, partials, partial_begin, partial_end, count,
    // stride, beta1, beta2, eps, n`. A thread has one element below `n` of the four arrays, and for an element of
    // the range its `count` parts: all were checked. `*cursor` is below the length of `steps` (see `At`).
    unsafe { call.launch([grid, 1, 1], ADAM_THREADS, 0) }
}

/// `out[i] (+)= sum of the parts of element i`, in order.
pub(super) fn reduce_partials(
    ctx: &Context,
    partials: Partials<'_>,
    mut out: ViewMut<'_, f32>,
    accumulate: bool,
) -> Result<()> {
    let n = out.len();
    let grid = blocks("reduce_partials", "out [n]", &[n], ELEMENT_THREADS)?;
    if grid == 0 {
        return Ok(());
    }
    let call = Call::new(ctx, &ctx.kernels.reduce_partials)
        .input("partials", partials.parts, &[partials.extent(n)])?
        .output("out [n]", &mut out, &[n])?
        .size("n", n)?
        .u32(partials.count)
        .u64(partials.stride as u64)
        .u32(u32::from(accumulate));
    // SAFETY: the parameters are `partials, out, n, count, stride, accumulate`; a thread has one element of `out` below
    // `n` and its `count` parts: both were checked.
    unsafe { call.launch([grid, 1, 1], ELEMENT_THREADS, 0) }
}

/// The sums of squares of `grads`, one for each block: `sums` `[NORM_BLOCKS]`, assigned.
pub(super) fn gradient_norm(ctx: &Context, grads: View<'_, f32>, sums: &mut ViewMut<'_, f64>) -> Result<()> {
    let n = grads.len();
    let call = Call::new(ctx, &ctx.kernels.gradient_norm)
        .input("grads [n]", grads, &[n])?
        .output("sums", sums, &[NORM_BLOCKS as usize])?
        .size("n", n)?;
    // SAFETY: the parameters are `grads, sums, n`; the blocks read `n` elements and each writes its sum: both were
    // checked.
    unsafe { call.launch([NORM_BLOCKS, 1, 1], ELEMENT_THREADS, 0) }
}

/// The factor that clips the gradient whose sums of squares these are, as the step at hand asks: `scale`, one number,
/// assigned.
pub(super) fn clip_scale(
    ctx: &Context,
    sums: View<'_, f64>,
    at: At<'_>,
    mut scale: ViewMut<'_, f64>,
) -> Result<()> {
    let call = Call::new(ctx, &ctx.kernels.clip_scale)
        .input("sums", sums, &[NORM_BLOCKS as usize])?
        .input("steps", at.steps, &[1])?
        .input("cursor", at.cursor, &[1])?
        .output("scale", &mut scale, &[1])?;
    // SAFETY: the parameters are `sums, steps, cursor, scale`; the one warp reads NORM_BLOCKS sums and the step at hand
    // (see `At`), and writes one number: all were checked.
    unsafe { call.launch([1, 1, 1], 32, 0) }
}
