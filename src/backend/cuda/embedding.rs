//! Launches `embedding_forward` and `embedding_backward`.

use super::buffer::{Ids, View, ViewMut};
use super::context::Context;
use super::half::Stored;
use super::launch::{Call, blocks};
use crate::backend::EmbeddingDims;
use crate::error::{Error, Result};
use crate::tuning::{ELEMENT_FOURS, ELEMENT_THREADS, EMBEDDING_ROWS, EMBEDDING_THREADS};

/// Ids that may lie beyond the table: a mistake in this crate, because whoever made them knew the table.
pub(super) fn check_below(op: &'static str, ids: Ids<'_>, limit: usize) -> Result<()> {
    if ids.below <= limit || ids.view.len() == 0 {
        return Ok(());
    }
    Err(Error::Shape {
        op,
        what: "ids",
        expected: format!("below {limit}"),
        found: format!("ids that are only known to be below {}", ids.below),
    })
}

/// Assigns `out` `[n,E]` from `table` `[V,E]` and `ids` `[n]`.
pub(super) fn forward<S: Stored>(
    ctx: &Context,
    d: EmbeddingDims,
    table: View<'_, S>,
    ids: Ids<'_>,
    mut out: ViewMut<'_, S>,
) -> Result<()> {
    let EmbeddingDims { n, v, e } = d;
    check_below("embedding_forward", ids, v)?;
    let grid =
        blocks("embedding_forward", "out [n,E/4]", &[n, e.div_ceil(4)], ELEMENT_THREADS * ELEMENT_FOURS)?;
    let call = Call::new(ctx, &S::of(&ctx.kernels).embedding_forward)
        .input("table [V,E]", table, &[v, e])?
        .input("ids [n]", ids.view, &[n])?
        .output("out [n,E]", &mut out, &[n, e])?
        .size("n", n)?
        .size("E", e)?;
    // SAFETY: the parameters are `table, ids, out, n, e`. A thread reads `ids` below `n`, a row of `table` below every
    // id's limit, which is at most V, and writes `out` below `n·E`: all three were checked.
    unsafe { call.launch([grid, 1, 1], ELEMENT_THREADS, 0) }
}

/// Sums the rows of `dout` `[n,E]` by their ids into `dtable` `[V,E]`: every row is assigned, or with `accumulate` added
/// to.
pub(super) fn backward(
    ctx: &Context,
    d: EmbeddingDims,
    ids: Ids<'_>,
    dout: View<'_, f32>,
    mut dtable: ViewMut<'_, f32>,
    accumulate: bool,
) -> Result<()> {
    let EmbeddingDims { n, v, e } = d;
    check_below("embedding_backward", ids, v)?;
    if e == 0 {
        return Ok(());
    }
    let grid = blocks("embedding_backward", "dtable [V,E]", &[v], EMBEDDING_ROWS)?;
    let call = Call::new(ctx, &ctx.kernels.embedding_backward)
        .input("ids [n]", ids.view, &[n])?
        .input("dout [n,E]", dout, &[n, e])?
        .output("dtable [V,E]", &mut dtable, &[v, e])?
        .size("n", n)?
        .size("V", v)?
        .size("E", e)?
        .u32(u32::from(!accumulate));
    // SAFETY: the parameters are `ids, dout, dtable, n, v, e, assign`. A block owns rows of `dtable` below V and reads
    // `ids` below `n` and `dout` below `n·E`: all three were checked.
    unsafe { call.launch([grid, 1, 1], EMBEDDING_THREADS, 0) }
}
