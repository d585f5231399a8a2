//! Launches `dense_forward`, `dense_backward_input` and `dense_backward_weights`.

use super::buffer::{View, ViewMut};
use super::context::Context;
use super::half::Stored;
use super::launch::{Call, blocks};
use crate::backend::DenseDims;
use crate::error::Result;
use crate::tuning::{DENSE_WARPS, ELEMENT_THREADS};

/// Threads of a block with [`DENSE_WARPS`] warps.
pub(super) const WARP_THREADS: u32 = 32 * DENSE_WARPS;

/// Assigns `y` `[B,outputs]` from `x` `[B,inputs]`, `w` `[inputs,outputs]` and `b` `[outputs]`.
pub(super) fn forward<S: Stored>(
    ctx: &Context,
    d: DenseDims,
    x: View<'_, S>,
    w: View<'_, S>,
    b: View<'_, f32>,
    mut y: ViewMut<'_, f32>,
) -> Result<()> {
    let DenseDims { b: batch, inputs, outputs } = d;
    let grid = blocks("dense_forward", "y [B,outputs]", &[batch, outputs], DENSE_WARPS)?;
    let call = Call::new(ctx, &S::of(&ctx.kernels).dense_forward)
        .input("x [B,inputs]", x, &[batch, inputs])?
        .input("w [inputs,outputs]", w, &[inputs, outputs])?
        .input("b [outputs]", b, &[outputs])?
        .output("y [B,outputs]", &mut y, &[batch, outputs])?
        .size("B", batch)?
        .size("inputs", inputs)?
        .size("outputs", outputs)?;
    // SAFETY: the parameters are `x, w, b, y, batch, inputs, outputs`; a warp computes one element of `y` below
    // `B·outputs` from a row of `x` and a column of `w`: all were checked.
    unsafe { call.launch([grid, 1, 1], WARP_THREADS, 0) }
}

/// Assigns `dx` `[B,inputs]` from `dy` `[B,outputs]` and `w` `[inputs,outputs]`.
pub(super) fn backward_input<S: Stored>(
    ctx: &Context,
    d: DenseDims,
    dy: View<'_, f32>,
    w: View<'_, S>,
    mut dx: ViewMut<'_, f32>,
) -> Result<()> {
    let DenseDims { b: batch, inputs, outputs } = d;
    let grid = blocks("dense_backward", "dx [B,inputs]", &[batch, inputs], ELEMENT_THREADS)?;
    let call = Call::new(ctx, &S::of(&ctx.kernels).dense_backward_input)
        .input("dy [B,outputs]", dy, &[batch, outputs])?
        .input("w [inputs,outputs]", w, &[inputs, outputs])?
        .output("dx [B,inputs]", &mut dx, &[batch, inputs])?
        .size("B", batch)?
        .size("inputs", inputs)?
        .size("outputs", outputs)?;
    // SAFETY: the parameters are `dy, w, dx, batch, inputs, outputs`; a thread computes one element of `dx` below
    // `B·inputs` from a row of `dy` and a row of `w`: all were checked.
    unsafe { call.launch([grid, 1, 1], ELEMENT_THREADS, 0) }
}

/// `dw` `[inputs,outputs]` and `db` `[outputs]` from `x` `[B,inputs]` and `dy` `[B,outputs]`: assigned, or with
/// `accumulate` added to.
pub(super) fn backward_weights<S: Stored>(
    ctx: &Context,
    d: DenseDims,
    x: View<'_, S>,
    dy: View<'_, f32>,
    mut dw: ViewMut<'_, f32>,
    mut db: ViewMut<'_, f32>,
    accumulate: bool,
) -> Result<()> {
    let DenseDims { b: batch, inputs, outputs } = d;
    let rows = inputs.saturating_add(1);
    let grid = blocks("dense_backward", "dw [inputs,outputs]", &[rows, outputs], DENSE_WARPS)?;
    let call = Call::new(ctx, &S::of(&ctx.kernels).dense_backward_weights)
        .input("x [B,inputs]", x, &[batch, inputs])?
        .input("dy [B,outputs]", dy, &[batch, outputs])?
        .output("dw [inputs,outputs]", &mut dw, &[inputs, outputs])?
        .output("db [outputs]", &mut db, &[outputs])?
        .size("B", batch)?
        .size("inputs", inputs)?
        .size("outputs", outputs)?
        .u32(u32::from(accumulate));
    // SAFETY: the parameters are `x, dy, dw, db, batch, inputs, outputs, accumulate`; a warp computes one element of
    // `[inputs+1, outputs]`, of which the last row is `db`, from columns of `x` and `dy`: all were checked.
    unsafe { call.launch([grid, 1, 1], WARP_THREADS, 0) }
}
