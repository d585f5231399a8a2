//! Launches `sort_tokens`: the tokens of each step's batch by the row of the embedding table that they stand for.

use super::buffer::{Ids, View, ViewMut};
use super::context::Context;
use super::launch::{Call, size};
use super::steps::Step;
use crate::error::Result;
use crate::tuning::{ADAM_THREADS, EMBEDDING_TILE, SORT_THREADS};

/// Two numbers of a token (tokens.cu): its id's key and the token among the sorted, its id and its place there among the tokens.
pub(super) type Pair = [u32; 2];

/// How `adam_step`, or `fused_steps`, divides a table `[V,E]` among its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Buckets {
    /// Rows of the table that a block owns: a thread has four columns of one row.
    pub(super) owned: u32,
    /// Blocks along the rows.
    pub(super) count: usize,
    /// Blocks along the columns.
    pub(super) tiles: usize,
    /// Passes of the sort: bits of a key, even.
    bits: u32,
}

impl Buckets {
    /// `adam_step`'s, for a table of `v` rows and `e` columns, neither 0.
    pub(super) fn new(v: usize, e: usize) -> Self {
        let tile = EMBEDDING_TILE as usize;
        let quads = e.min(tile).div_ceil(4).max(1);
        Self::owning(ADAM_THREADS as usize / quads, v, e)
    }

    fn owning(owned: usize, v: usize, e: usize) -> Self {
        let count = v.div_ceil(owned);
        // A key is below count·owned.
        let bits = usize::BITS - count.saturating_mul(owned).saturating_sub(1).leading_zeros();
        Self {
            owned: u32::try_from(owned).unwrap_or(u32::MAX),
            count,
            tiles: e.div_ceil(EMBEDDING_TILE as usize),
            bits: bits.next_multiple_of(2),
        }
    }

    /// `fused_steps`': at most so many blocks, each of which owns as many rows as that takes; E is within a tile.
    pub(super) fn dealt(v: usize, e: usize, blocks: usize) -> Self {
        let owned = v.div_ceil(blocks.max(1)).max(1);
        Self::owning(owned, v, e)
    }

    /// Numbers of `begins` a step.
    pub(super) fn bounds(&self) -> usize {
        self.count + 1
    }
}

/// Where the sorted tokens of a table of steps go; each step has room for `capacity`.
pub(super) struct Sorted<'a> {
    /// `[steps,capacity]`
    pub(super) sorted: ViewMut<'a, Pair>,
    /// `[steps,capacity]`: each token's id, and which of the sorted pairs it is; behind a row's, its label.
    pub(super) tokens: ViewMut<'a, Pair>,
    /// `[steps,buckets+1]`
    pub(super) begins: ViewMut<'a, u32>,
    /// At least the rows of the largest batch times T + 1.
    pub(super) capacity: usize,
}

/// Sorts the tokens of all `steps`, of which each has at most `capacity/(T+1)` rows within `order`.
pub(super) fn sort_tokens(
    ctx: &Context,
    (x, labels): (Ids<'_>, Ids<'_>),
    t: usize,
    order: View<'_, u32>,
    steps: View<'_, Step>,
    buckets: &Buckets,
    to: Sorted<'_>,
) -> Result<()> {
    let Sorted { mut sorted, mut tokens, mut begins, capacity } = to;
    let count = steps.len();
    let call = Call::new(ctx, &ctx.kernels.sort_tokens)
        .input("x [N,T]", x.view, &[t])?
        .input("labels [N]", labels.view, &[1])?
        .input("order [N]", order, &[])?
        .input("steps", steps, &[count])?
        .output("sorted", &mut sorted, &[count, capacity])?
        .output("tokens", &mut tokens, &[count, capacity])?
        .output("begins", &mut begins, &[count, buckets.bounds()])?
        .size("T", t)?
        .u32(buckets.bits)
        .u32(buckets.owned)
        .size("buckets", buckets.count)?
        .u64(capacity as u64);
    let grid = size("sort_tokens", "steps", count)?;
    size("sort_tokens", "keys", buckets.count.saturating_mul(buckets.owned as usize))?;
    // SAFETY: the parameters are `x, labels, order, steps, sorted, tokens, begins, t, bits, owned, buckets, capacity`. A block
    // has one step: `rows·(t+1)` pairs, at most `capacity`, as the engine has checked along with that the step's rows lie
    // within the order, and the order's within `x` and `labels`; ids are below V, so every key is below buckets·owned, which
    // was checked to fit 32 bits, and no bucket is beyond `buckets`.
    unsafe { call.launch([grid, 1, 1], SORT_THREADS, 0) }
}
