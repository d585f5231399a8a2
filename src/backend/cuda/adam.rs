//! Launches `adam_step`, `adam`, `reduce_partials`, `gradient_norm` and `clip_scale`.

use super::buffer::{View, ViewMut};
use super::context::Context;
use super::cross_entropy::MetricSums;
use super::half::{Scaling, Stored};
use super::launch::{Call, blocks, size};
use super::steps::{CURSORS, Step};
use super::tokens::{Buckets, Pair};
use crate::backend::AdamConfig;
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::tuning::{ADAM_THREADS, ELEMENT_THREADS, NORM_BLOCKS, SEQUENCE_PARTIALS};

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

/// The step that the device is at: a row of `steps`, by the number in `cursor`.
#[derive(Clone, Copy, Debug)]
pub(super) struct At<'a> {
    /// A table of steps.
    pub(super) steps: View<'a, Step>,
    /// [`CURSORS`] numbers, below the length of `steps` whenever a kernel runs.
    pub(super) cursor: View<'a, u32>,
}

/// What Adam updates, each `[n]`.
pub(super) struct State<'a> {
    pub(super) params: ViewMut<'a, f32>,
    pub(super) m: ViewMut<'a, f32>,
    pub(super) v: ViewMut<'a, f32>,
}

/// `1 − beta1`, `1 − beta2` and `eps`, rounded once.
pub(super) fn constants(config: &AdamConfig) -> [f32; 3] {
    [(1.0 - config.beta1) as f32, (1.0 - config.beta2) as f32, config.eps as f32]
}

/// What an update writes besides, and reads, where parameters are stored as `S`.
pub(super) struct Copy<'a, S> {
    /// `[n]`: the parameters in 16 bits, updated where they are.
    pub(super) stored: ViewMut<'a, S>,
    /// Of f16: what `loss_scale` said of the step.
    pub(super) scaling: Option<View<'a, Scaling>>,
}

/// The last parameters of `adam` and `adam_step` over `S`: none in f32.
fn push<'c, S>(call: Call<'c>, copy: Option<Copy<'_, S>>, n: usize) -> Result<Call<'c>> {
    let Some(Copy { mut stored, scaling }) = copy else { return Ok(call) };
    let call = call.output("stored [n]", &mut stored, &[n])?;
    match scaling {
        Some(scaling) => call.input("scaling", scaling, &[1]),
        None => Ok(call),
    }
}

/// One step with the gradients `grads` `[n]`, multiplied with `scale` (one number), if given.
pub(super) fn adam<S: Stored>(
    ctx: &Context,
    config: &AdamConfig,
    at: At<'_>,
    scale: Option<View<'_, f64>>,
    state: State<'_>,
    grads: View<'_, f32>,
    copy: Option<Copy<'_, S>>,
) -> Result<()> {
    let State { mut params, mut m, mut v } = state;
    let n = params.len();
    let grid = blocks("adam", "params [n]", &[n], 4 * ADAM_THREADS)?;
    let [one_minus_beta1, one_minus_beta2, eps] = constants(config);
    let call = Call::new(ctx, &S::of(&ctx.kernels).adam)
        .input("steps", at.steps, &[1])?
        .input("cursor", at.cursor, &[1])?
        .input_or_null("scale", scale, &[1])?
        .output_fours("params [n]", &mut params, &[n])?
        .output_fours("m [n]", &mut m, &[n])?
        .output_fours("v [n]", &mut v, &[n])?
        .input_fours("grads [n]", grads, &[n])?
        .f32(one_minus_beta1)
        .f32(one_minus_beta2)
        .f32(eps)
        .size("n", n)?;
    let call = push(call, copy, n)?;
    // SAFETY: the parameters are `steps, cursor, scale, params, m, v, grads, one_minus_beta1, one_minus_beta2, eps, n`, and in
    // 16 bits `stored`, and of f16 `scaling`. A thread has four elements of the arrays, those of them that are below `n`: all
    // were checked. The cursor is below the length of `steps` (see `At`).
    unsafe { call.launch([grid, 1, 1], ADAM_THREADS, 0) }
}

/// Where the parameters of a model lie in an arena: the table from 0 on, the LSTM's from `layer`, a multiple of 4, the
/// dense layer's from `dense` to the end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arena {
    pub(super) layer: usize,
    pub(super) dense: usize,
}

/// Whether an arena of `n` numbers holds the model's parameters there.
pub(super) fn check_arena(arena: Arena, n: usize, model: &ModelConfig) -> Result<()> {
    let ModelConfig { vocab, embed, hidden, classes, .. } = *model;
    let dense = hidden.saturating_add(1).saturating_mul(classes);
    let fits = arena.layer.is_multiple_of(4)
        && vocab.saturating_mul(embed) <= arena.layer
        && arena.layer <= arena.dense
        && arena.dense.checked_add(dense) == Some(n);
    if fits {
        Ok(())
    } else {
        Err(Error::Failed(format!("an arena of {n} numbers, but {arena:?}; please report this")))
    }
}

/// What the last kernel of a training step sums the gradients of, and what else it reads and moves on.
pub(super) struct Summands<'a, S> {
    /// `[T,B,E]`
    pub(super) dx: View<'a, f32>,
    /// As [`sort_tokens`](super::tokens::sort_tokens) left them, for every step of the table.
    pub(super) sorted: View<'a, Pair>,
    pub(super) begins: View<'a, u32>,
    /// Room for a step's tokens in `sorted`.
    pub(super) capacity: usize,
    /// The LSTM's gradients in parts.
    pub(super) partials: Partials<'a>,
    /// Each row of the step has a part, and rows of `partials.count` that it does not have are not read.
    pub(super) by_rows: bool,
    /// `[B,H]`
    pub(super) h_last: View<'a, S>,
    /// `[B,C]`
    pub(super) dlogits: View<'a, f32>,
    /// `[B]`
    pub(super) loss: View<'a, f32>,
    /// `[B]`
    pub(super) hits: View<'a, f32>,
}

/// The last kernel of the step at the cursor, of at most `rows` rows: the sums, Adam, metrics; then the cursor moves on.
#[allow(clippy::too_many_arguments)] // the kernel's
pub(super) fn step<S: Stored>(
    ctx: &Context,
    config: &AdamConfig,
    model: &ModelConfig,
    (rows, t): (usize, usize),
    steps: View<'_, Step>,
    mut cursor: ViewMut<'_, u32>,
    arena: Arena,
    state: State<'_>,
    from: Summands<'_, S>,
    mut sums: ViewMut<'_, MetricSums>,
    copy: Option<Copy<'_, S>>,
) -> Result<()> {
    let State { mut params, mut m, mut v } = state;
    let ModelConfig { vocab, embed: e, hidden, classes, .. } = *model;
    let n = params.len();
    let buckets = Buckets::new(vocab, e);
    check_arena(arena, n, model)?;
    let layer = arena.dense - arena.layer;
    let dense = hidden.saturating_add(1).saturating_mul(classes);
    let layer_blocks = blocks("adam_step", "layer", &[layer], ADAM_THREADS)?;
    let dense_blocks = blocks("adam_step", "dense", &[dense], ADAM_THREADS / 32)?;
    let embedding_blocks = size("adam_step", "embedding", buckets.count.saturating_mul(buckets.tiles))?;
    let grid =
        [1, layer_blocks, dense_blocks, embedding_blocks].iter().try_fold(0u32, |sum, &k| sum.checked_add(k));
    let grid = grid.filter(|&grid| i32::try_from(grid).is_ok()).unwrap_or(u32::MAX);
    let most = if from.by_rows { rows.min(SEQUENCE_PARTIALS as usize) } else { from.partials.count as usize };
    let extent = Partials { count: size("adam_step", "partials", most)?, ..from.partials }.extent(layer);
    let [one_minus_beta1, one_minus_beta2, eps] = constants(config);
    let call = Call::new(ctx, &S::of(&ctx.kernels).adam_step)
        .input("steps", steps, &[1])?
        .output("cursor", &mut cursor, &[CURSORS])?
        .output_fours("params [n]", &mut params, &[n])?
        .output_fours("m [n]", &mut m, &[n])?
        .output_fours("v [n]", &mut v, &[n])?
        .input_fours("dx [T,B,E]", from.dx, &[t, rows, e])?
        .input("sorted", from.sorted, &[steps.len(), from.capacity])?
        .input("begins", from.begins, &[steps.len(), buckets.bounds()])?
        .input("partials", from.partials.parts, &[extent])?
        .input("h_last [B,H]", from.h_last, &[rows, hidden])?
        .input("dlogits [B,C]", from.dlogits, &[rows, classes])?
        .input("loss [B]", from.loss, &[rows])?
        .input("hits [B]", from.hits, &[rows])?
        .output("sums", &mut sums, &[1])?
        .size("V", vocab)?
        .size("E", e)?
        .u32(buckets.owned)
        .size("buckets", buckets.count)?
        .u64(from.capacity as u64)
        .size("layer", arena.layer)?
        .u32(layer_blocks)
        .size("dense", arena.dense)?
        .u32(dense_blocks)
        .size("H", hidden)?
        .size("C", classes)?
        .u64(from.partials.stride as u64)
        .size("partials", most)?
        .u32(u32::from(from.by_rows))
        .f32(one_minus_beta1)
        .f32(one_minus_beta2)
        .f32(eps);
    let call = push(call, copy, n)?;
    // SAFETY: the parameters are `steps, cursor, params, m, v, dx, sorted, begins, partials, h_last, dlogits, loss, hits,
    // sums, vocab, e, owned, buckets, capacity, layer_begin, layer_blocks, dense_begin, dense_blocks, hidden, classes, stride,
    // most_partials, by_rows, one_minus_beta1, one_minus_beta2, eps`, and in 16 bits `stored`, and of f16
    // `scaling`. The step has at most `rows` rows and so `capacity` tokens, which the engine has checked; blocks of the layer,
    // the dense layer and the table stay within their ranges of the arena, whose sizes were checked above, and threads of the
    // table within its V·E numbers.
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
/// assigned. With `scaling` they are those of the scaled loss, and the factor also takes them to those of the loss.
pub(super) fn clip_scale(
    ctx: &Context,
    sums: View<'_, f64>,
    at: At<'_>,
    scaling: Option<View<'_, Scaling>>,
    mut scale: ViewMut<'_, f64>,
) -> Result<()> {
    let call = Call::new(ctx, &ctx.kernels.clip_scale)
        .input("sums", sums, &[NORM_BLOCKS as usize])?
        .input("steps", at.steps, &[1])?
        .input("cursor", at.cursor, &[1])?
        .input_or_null("scaling", scaling, &[1])?
        .output("scale", &mut scale, &[1])?;
    // SAFETY: the parameters are `sums, steps, cursor, scaling, scale`; the one warp reads NORM_BLOCKS sums, the step at hand
    // (see `At`) and the loss' scale, and writes one number: all were checked.
    unsafe { call.launch([1, 1, 1], 32, 0) }
}
