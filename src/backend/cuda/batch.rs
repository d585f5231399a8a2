//! Launches `gather_batch`: rows of a data set on the device become a time-major batch.

use super::buffer::{Ids, View, ViewMut};
use super::context::Context;
use super::launch::{Call, blocks};
use super::steps::{CURSORS, Step};
use crate::error::Result;
use crate::tuning::ELEMENT_THREADS;

/// Which rows of the data set a batch has.
#[derive(Debug)]
pub(super) enum Rows<'a> {
    /// Consecutive ones from this on.
    From(usize),
    /// Those that `order` names from `batch_start` of the step at the cursor on.
    Step {
        /// Row numbers of the data set, each below its rows.
        order: View<'a, u32>,
        /// Every step's start and rows lie within the order.
        steps: View<'a, Step>,
        /// [`CURSORS`] numbers, below the length of `steps` whenever the kernel runs; the second is assigned.
        cursor: ViewMut<'a, u32>,
    },
}

/// Assigns `ids` `[T,B]` from `x` `[N,T]`, and `batch_labels` `[B]` from `labels` `[N]` if they are given.
///
/// With [`Rows::Step`], what the device's `steps` and `order` hold is the caller's to have checked: every row they name
/// is below `N`.
#[allow(clippy::too_many_arguments)] // the kernel's
pub(super) fn gather(
    ctx: &Context,
    x: Ids<'_>,
    labels: Option<Ids<'_>>,
    from: Rows<'_>,
    rows: usize,
    t: usize,
    mut ids: ViewMut<'_, u32>,
    mut batch_labels: Option<ViewMut<'_, u32>>,
) -> Result<()> {
    let (order, steps, mut cursor, first) = match from {
        Rows::From(first) => (None, None, None, first),
        Rows::Step { order, steps, cursor } => (Some(order), Some(steps), Some(cursor), 0),
    };
    // With an order, a batch has at most as many rows as the data set.
    let read = first.saturating_add(rows);
    let elements = rows.checked_mul(t).map_or(usize::MAX, |n| n.max(rows));
    let grid = blocks("gather_batch", "ids [T,B]", &[elements], ELEMENT_THREADS)?;
    let batch_labels = if labels.is_some() { batch_labels.as_mut() } else { None };
    let labels = labels.filter(|_| batch_labels.is_some());
    let call = Call::new(ctx, &ctx.kernels.gather_batch)
        .input("x [N,T]", x.view, &[read, t])?
        .input_or_null("labels [N]", labels.map(|l| l.view), &[read])?
        .input_or_null("order", order, &[rows])?
        .input_or_null("steps", steps, &[1])?
        .output_or_null("cursor", cursor.as_mut(), &[CURSORS])?
        .size("first row", first)?
        .output("ids [T,B]", &mut ids, &[rows, t])?
        .output_or_null("batch_labels [B]", batch_labels, &[rows])?
        .size("B", rows)?
        .size("T", t)?;
    // SAFETY: the parameters are `x, labels, order, steps, cursor, first, ids, batch_labels, rows, t`. Threads beyond
    // `rows·t` (and `rows`) do nothing; `ids` and `batch_labels` were checked for them. Without an order the rows
    // read are below `first + rows`, checked above; with one, the engine has checked on the host that every step's
    // rows lie within the order and every row of the order within the data set.
    unsafe { call.launch([grid, 1, 1], ELEMENT_THREADS, 0) }
}
