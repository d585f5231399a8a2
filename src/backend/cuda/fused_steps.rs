//! Launches `fused_steps`: many training steps at once, by blocks that stay on the device and wait for each other.

use super::adam::{self, Arena, State};
use super::buffer::{View, ViewMut, clear};
use super::context::Context;
use super::cross_entropy::MetricSums;
use super::fused::{self, Fused, Source};
use super::half::{Scaling, Stored};
use super::kernels::{Kernel, Typed};
use super::launch::{Call, size};
use super::steps::{CURSORS, Step};
use super::tokens::{Buckets, Pair};
use crate::backend::AdamConfig;
use crate::error::Result;
use crate::model::ModelConfig;
use crate::tuning::{EMBEDDING_TILE, SIGNAL_PITCH, STAGED_QUADS};

/// Steps of one launch, at most.
pub const MOST_STEPS: usize = 64;
/// Numbers that the blocks signal by.
pub(super) const SIGNALS: usize = 2 * SIGNAL_PITCH as usize;
/// The fewest blocks that update parameters, beside one for each row; fewer would keep the others waiting.
pub const LEAST_UPDATERS: usize = 8;

/// How a device's multiprocessors are shared out, a block each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FusedSteps {
    fused: Fused,
    /// Blocks of rows: of the largest batch.
    rows: usize,
    /// Blocks of the dense layer.
    dense: usize,
    /// Blocks of the LSTM's W, U and b.
    layer: usize,
    /// Blocks of the table, and how its rows are dealt out among them.
    pub(super) buckets: Buckets,
    /// Bytes of shared memory of a block.
    bytes: usize,
}

impl FusedSteps {
    /// The blocks for batches of at most `rows` rows of `t` ids; None if the device has not so many multiprocessors, not so
    /// much shared memory, or cannot launch blocks together.
    pub(super) fn of(
        ctx: &Context,
        fused: Fused,
        config: &ModelConfig,
        rows: usize,
        t: usize,
    ) -> Option<Self> {
        let found = Self::within(ctx.multiprocessors as usize, fused, config, rows, t)?;
        (ctx.cooperative && found.bytes <= ctx.fused_bytes).then_some(found)
    }

    /// With a block on each of so many multiprocessors: a block of these kernels fits every multiprocessor there is (by their
    /// launch bounds and what a block may have of shared memory).
    fn within(
        multiprocessors: usize,
        fused: Fused,
        config: &ModelConfig,
        rows: usize,
        t: usize,
    ) -> Option<Self> {
        let ModelConfig { vocab, embed, hidden, classes, .. } = *config;
        let updaters = updaters(multiprocessors, rows)?;
        // A warp for the metrics and for each element of the dense layer; of the LSTM's elements, of which there is a part for each
        // row to be read, half as many blocks as there are, if each has two warps' elements.
        let elements = hidden.saturating_add(1).saturating_mul(classes).saturating_add(1);
        let dense = elements.div_ceil(fused.warps()).min(updaters / 8);
        let layer = fused::stride(config).div_ceil(64).min(updaters / 2);
        let buckets = Buckets::dealt(vocab, embed, updaters - dense - layer);
        // As `Bucket` of fused_steps.cuh lays it out; a row's ids come behind what fused_step keeps of it.
        let bits = (buckets.owned as usize).div_ceil(32);
        let table = 4 * (4 * STAGED_QUADS + 2 * EMBEDDING_TILE + STAGED_QUADS + 1) as usize + 4 * bits;
        let bytes = fused.step_bytes.saturating_add(t.saturating_mul(4)).max(table);
        Some(Self { fused, rows, dense, layer, buckets, bytes })
    }

    fn blocks(&self) -> usize {
        self.rows + self.dense + self.layer + self.buckets.count
    }

    fn kernel<'k>(&self, k: &'k Typed) -> &'k Kernel {
        match (self.fused.padded, self.fused.inputs) {
            (32, 16) => &k.fused_steps_h32_e16,
            (32, 32) => &k.fused_steps_h32_e32,
            (32, _) => &k.fused_steps_h32_e64,
            (_, 16) => &k.fused_steps_h64_e16,
            _ => &k.fused_steps_h64_e32,
        }
    }
}

/// The blocks that update parameters, if the rows leave enough multiprocessors to them.
pub(super) fn updaters(multiprocessors: usize, rows: usize) -> Option<usize> {
    multiprocessors.checked_sub(rows).filter(|&left| left >= LEAST_UPDATERS)
}

/// What the steps are made of besides [`Source`]: the table of steps, and its tokens as
/// [`sort_tokens`](super::tokens::sort_tokens) left them.
pub(super) struct Table<'a> {
    pub(super) steps: View<'a, Step>,
    pub(super) cursor: ViewMut<'a, u32>,
    /// `[steps,capacity]`
    pub(super) sorted: View<'a, Pair>,
    /// `[steps,buckets+1]`
    pub(super) begins: View<'a, u32>,
    /// `[SIGNALS]`
    pub(super) signals: ViewMut<'a, u32>,
}

/// Steps `first`, `first + 1`, …, `count` of them, of the table, each of at most `rows` rows of `t` ids. `scaling`: of f16, the
/// loss' scale and each row's flags.
#[allow(clippy::too_many_arguments)] // the kernel's
pub(super) fn train<S: Stored>(
    ctx: &Context,
    together: &FusedSteps,
    config: &AdamConfig,
    model: &ModelConfig,
    t: usize,
    (first, count): (usize, usize),
    table: Table<'_>,
    from: Source<'_>,
    arena: Arena,
    state: State<'_>,
    to: fused::Gradients<'_, S>,
    mut sums: ViewMut<'_, MetricSums>,
    stored: Option<ViewMut<'_, S>>,
    scaling: Option<(ViewMut<'_, Scaling>, ViewMut<'_, u32>)>,
) -> Result<()> {
    const NAME: &str = "fused_steps";
    let Table { steps, mut cursor, sorted, begins, mut signals } = table;
    let State { mut params, mut m, mut v } = state;
    let fused::Gradients { mut dx, mut partials, mut h_last, mut dlogits, mut loss, mut hits } = to;
    let ModelConfig { vocab, embed: e, hidden, classes, .. } = *model;
    let &FusedSteps { rows, buckets, .. } = together;
    let n = params.len();
    adam::check_arena(arena, n, model)?;
    clear(ctx, "the blocks' signals", signals.again())?;
    let [one_minus_beta1, one_minus_beta2, eps] = adam::constants(config);
    let mut call = Call::new(ctx, together.kernel(S::of(&ctx.kernels)))
        .input("steps", steps, &[first + count])?
        .output("cursor", &mut cursor, &[CURSORS])?
        .output("signals", &mut signals, &[SIGNALS])?
        .input("tokens [steps,capacity]", from.tokens, &[first + count, from.capacity])?
        .input("sorted [steps,capacity]", sorted, &[first + count, from.capacity])?
        .input("begins [steps,buckets+1]", begins, &[first + count, buckets.bounds()])?
        .input_or_null("class_weights [C]", from.class_weights, &[classes])?
        .output_fours("params [n]", &mut params, &[n])?
        .output_fours("m [n]", &mut m, &[n])?
        .output_fours("v [n]", &mut v, &[n])?
        .output_fours("dx [T,B,E]", &mut dx, &[t, rows, e])?
        .output("partials [B,stride]", &mut partials, &[rows, fused::stride(model)])?
        .output("h_last [B,H]", &mut h_last, &[rows, hidden])?
        .output("dlogits [B,C]", &mut dlogits, &[rows, classes])?
        .output("loss [B]", &mut loss, &[rows])?
        .output("hits [B]", &mut hits, &[rows])?
        .output("sums", &mut sums, &[1])?
        .u64(from.capacity as u64)
        .size("first", first)?
        .size("count", count)?
        .size("T", t)?
        .size("E", e)?
        .size("H", hidden)?
        .size("C", classes)?
        .size("V", vocab)?
        .u32(buckets.owned)
        .size("buckets", buckets.count)?
        .size("layer", arena.layer)?
        .size("dense", arena.dense)?
        .size("rows", rows)?
        .size("dense blocks", together.dense)?
        .size("layer blocks", together.layer)?
        .f32(one_minus_beta1)
        .f32(one_minus_beta2)
        .f32(eps);
    if let Some(mut stored) = stored {
        call = call.output_fours("stored [n]", &mut stored, &[n])?;
    }
    if let Some((mut scaling, mut finite)) = scaling {
        call = call
            .output("scaling", &mut scaling, &[1])?
            .output("finite [B,warps]", &mut finite, &[rows, together.fused.warps()])?
            .f64(config.beta1)
            .f64(config.beta2);
    }
    let grid = size(NAME, "blocks", together.blocks())?;
    let bytes = size(NAME, "shared bytes", together.bytes)?;
    // SAFETY: the parameters are `steps, cursor, signals, tokens, sorted, begins, class_weights, params, m, v, dx, partials,
    // h_last, dlogits, loss, hits, sums, capacity, first, count, t, e, hidden, classes, vocab, owned, buckets,
    // layer_begin, dense_begin, row_blocks, dense_blocks, layer_blocks, one_minus_beta1, one_minus_beta2, eps`, in 16 bits
    // `stored`, and of f16 `scaling, finite, beta1, beta2`. What holds for `fused_step` (`fused::step`) holds for the blocks of
    // rows, of which there is one for each row of a step; those of parameters stay within their ranges of the arena, which was
    // checked, and those of the table within the rows that `buckets` deals out, by which the tokens were sorted. Steps `first` to
    // `first + count` lie within the table. The grid has no more blocks than the device multiprocessors, and shared memory is
    // what `within` counts, allowed when the kernel was loaded.
    unsafe { call.launch_together([grid, 1, 1], together.fused.step_threads(), bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared_out(multiprocessors: usize, rows: usize, config: &ModelConfig) -> Option<FusedSteps> {
        let fused = Fused::new(config, 32).ok()?;
        FusedSteps::within(multiprocessors, fused, config, rows, 32)
    }

    #[test]
    fn every_block_has_a_multiprocessor_and_every_element_a_block() {
        let found = shared_out(132, 32, &ModelConfig::default()).unwrap();
        assert_eq!((found.rows, found.dense, found.layer, found.buckets.count), (32, 9, 50, 41));
        assert_eq!(found.buckets.owned, 244);
        assert_eq!(found.bytes, found.fused.step_bytes + 4 * 32);
        assert_eq!(shared_out(39, 32, &ModelConfig::default()), None);
        assert_eq!(shared_out(40, 32, &ModelConfig::default()).map(|f| f.blocks()), Some(40));
        for multiprocessors in 1..150 {
            for rows in 1..140 {
                for (vocab, embed, hidden) in
                    [(1, 1, 1), (3, 16, 32), (10_000, 16, 32), (77, 64, 32), (50_000, 32, 64)]
                {
                    let config = ModelConfig { vocab, embed, hidden, ..ModelConfig::default() };
                    let Some(found) = shared_out(multiprocessors, rows, &config) else {
                        assert!(multiprocessors < rows + LEAST_UPDATERS);
                        continue;
                    };
                    assert!(found.blocks() <= multiprocessors, "{found:?}");
                    assert!(found.rows == rows && found.dense > 0 && found.layer > 0, "{found:?}");
                    let Buckets { owned, count, .. } = found.buckets;
                    // No bucket is empty, and the last one has the last rows.
                    assert!(count > 0 && count <= vocab && count * owned as usize >= vocab, "{found:?}");
                }
            }
        }
    }
}
