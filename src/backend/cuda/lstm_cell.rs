//! Launches `lstm_cell_forward` and `lstm_cell_backward`: one time step.

use super::buffer::{View, ViewMut};
use super::context::Context;
use super::half::{Stored, in_place};
use super::launch::{Call, blocks, size};
use crate::backend::CellDims;
use crate::error::{Error, Result};
use crate::tuning::{CELL_ROWS, CELL_THREADS, CELL_UNITS};

/// The most blocks along the batch: the limit of a grid's second side.
const MOST_ROW_BLOCKS: u32 = 65_535;

fn grid(op: &'static str, d: CellDims) -> Result<[u32; 3]> {
    let units = blocks(op, "h [B,H]", &[d.h], CELL_UNITS)?;
    let rows = blocks(op, "h [B,H]", &[d.b], CELL_ROWS)?;
    if rows > MOST_ROW_BLOCKS {
        return Err(Error::Shape {
            op,
            what: "h [B,H]",
            expected: format!("at most {} rows; use a smaller batch", MOST_ROW_BLOCKS * CELL_ROWS),
            found: d.b.to_string(),
        });
    }
    Ok([units, rows, 1])
}

/// What pre-activations start from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Input<'a, S> {
    /// `x·W + b`, computed by the kernel: `x` `[B,E]`, `w` `[E,4H]`, `b` `[4H]`.
    Layer { x: View<'a, S>, w: View<'a, S>, b: View<'a, f32> },
    /// `x·W + b` `[B,4H]`, computed before; in f32 None: what `gates` holds.
    Computed(Option<View<'a, f32>>),
}

/// Assigns `gates` `[B,4H]`, `h` and `c` `[B,H]` from `h_prev` and `c_prev` `[B,H]` and `u` `[H,4H]`.
#[allow(clippy::too_many_arguments)] // the kernel's
pub(super) fn forward<S: Stored>(
    ctx: &Context,
    d: CellDims,
    input: Input<'_, S>,
    h_prev: View<'_, S>,
    c_prev: View<'_, f32>,
    u: View<'_, S>,
    mut gates: ViewMut<'_, S>,
    mut h: ViewMut<'_, S>,
    mut c: ViewMut<'_, f32>,
) -> Result<()> {
    let CellDims { b: batch, h: hidden, .. } = d;
    let (layer, e) = match input {
        Input::Layer { x, w, b } => (Some((x, w, b)), d.e),
        Input::Computed(_) => (None, 0),
    };
    let call = Call::new(ctx, &S::of(&ctx.kernels).lstm_cell_forward)
        .input_or_null("x [B,E]", layer.map(|l| l.0), &[batch, e])?
        .input("h_prev [B,H]", h_prev, &[batch, hidden])?
        .input("c_prev [B,H]", c_prev, &[batch, hidden])?
        .input_or_null("w [E,4H]", layer.map(|l| l.1), &[e, 4, hidden])?
        .input("u [H,4H]", u, &[hidden, 4, hidden])?
        .input_or_null("b [4H]", layer.map(|l| l.2), &[4, hidden])?;
    let own;
    let pre = match input {
        Input::Layer { .. } => None,
        Input::Computed(Some(pre)) => Some(pre),
        Input::Computed(None) => {
            own = in_place(gates.again())?;
            Some(own.view())
        }
    };
    let call = call
        .input_or_null("pre [B,4H]", pre, &[batch, 4, hidden])?
        .output("gates [B,4H]", &mut gates, &[batch, 4, hidden])?
        .output("h [B,H]", &mut h, &[batch, hidden])?
        .output("c [B,H]", &mut c, &[batch, hidden])?
        .size("B", batch)?
        .size("E", e)?
        .size("H", hidden)?;
    size("lstm_cell_forward", "gates [4H]", hidden.saturating_mul(4))?;
    let grid = grid("lstm_cell_forward", d)?;
    // SAFETY: the parameters are `x, h_prev, c_prev, w, u, b, pre, gates, h, c, batch, e, hidden`, each of the size that
    // was checked. `x`, `w` and `b` are null only with `pre`, which makes E 0, and `pre` may be `gates`: an element is
    // read by the thread that writes it.
    unsafe { call.launch(grid, CELL_THREADS, 0) }
}

/// What the backward pass of one time step reads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backward<'a, S> {
    /// `[B,4H]`: the later time step's `dpre`, whose product with `Uᵀ` is added to `dh`.
    pub(super) dpre_next: Option<View<'a, S>>,
    /// `[H,4H]`
    pub(super) u: View<'a, S>,
    /// `[B,4H]`
    pub(super) gates: View<'a, S>,
    /// `[B,H]`
    pub(super) c_prev: View<'a, f32>,
    /// `[B,H]`
    pub(super) c: View<'a, f32>,
    /// `[B,H]`
    pub(super) dh: Option<View<'a, f32>>,
    /// `[B,H]`, added to `dh`.
    pub(super) dh_more: Option<View<'a, f32>>,
}

/// Where the gradient by the cell state comes from.
#[derive(Clone, Copy, Debug)]
pub(super) enum StateGradient<'a> {
    /// Nowhere: it is zero.
    Zero,
    /// `[B,H]`
    From(View<'a, f32>),
    /// What `dc_prev` holds, which is replaced.
    InPlace,
}

/// Assigns `dpre` `[B,4H]`, which must not be `dpre_next`, and `dc_prev` `[B,H]`.
pub(super) fn backward<S: Stored>(
    ctx: &Context,
    d: CellDims,
    a: Backward<'_, S>,
    dc: StateGradient<'_>,
    mut dpre: ViewMut<'_, S>,
    mut dc_prev: ViewMut<'_, f32>,
) -> Result<()> {
    let CellDims { b: batch, h: hidden, .. } = d;
    let state = &[batch, hidden];
    let dc = match dc {
        StateGradient::Zero => None,
        StateGradient::From(view) => Some(view),
        StateGradient::InPlace => Some(dc_prev.view()),
    };
    let call = Call::new(ctx, &S::of(&ctx.kernels).lstm_cell_backward)
        .input_or_null("dpre_next [B,4H]", a.dpre_next, &[batch, 4, hidden])?
        .input("u [H,4H]", a.u, &[hidden, 4, hidden])?
        .input("gates [B,4H]", a.gates, &[batch, 4, hidden])?
        .input("c_prev [B,H]", a.c_prev, state)?
        .input("c [B,H]", a.c, state)?
        .input_or_null("dh [B,H]", a.dh, state)?
        .input_or_null("dh_more [B,H]", a.dh_more, state)?
        .input_or_null("dc [B,H]", dc, state)?
        .output("dpre [B,4H]", &mut dpre, &[batch, 4, hidden])?
        .output("dc_prev [B,H]", &mut dc_prev, state)?
        .size("B", batch)?
        .size("H", hidden)?;
    size("lstm_cell_backward", "gates [4H]", hidden.saturating_mul(4))?;
    let grid = grid("lstm_cell_backward", d)?;
    // SAFETY: the parameters are `dpre_next, u, gates, c_prev, c, dh, dh_more, dc, dpre, dc_prev, batch, hidden`, each of
    // the size that was checked. `dc` may be `dc_prev`: an element is read by the thread that writes it; `dpre` is
    // borrowed for writing, so it is no other array.
    unsafe { call.launch(grid, CELL_THREADS, 0) }
}
