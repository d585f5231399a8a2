//! A layer over a whole sequence, by the kernels that [`path`] names: those of a row in a block, which are launched here, the
//! persistent ones, or a cell's for each time step; and the products before and after them.

use super::adam::Partials;
use super::buffer::{View, ViewMut, clear, copy};
use super::context::Context;
use super::gemm::{Slices, column_sums, gemm};
use super::half::{Stored, in_place};
use super::kernels::{Kernel, STAGED_ROW_BYTES, Typed};
use super::launch::{Call, size};
use super::lstm_cell::{self, Input, StateGradient};
use super::lstm_persistent::{self, Groups};
use super::path::{Accumulates, Path, PathChoice, path};
use crate::backend::{CellDims, MatmulDims, SequenceDims};
use crate::error::Result;
use crate::tuning::{GEMM_TILE, SEQUENCE_PARTIALS};

/// How the parameter gradients of a batch are cut into partial sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    path: Path,
    /// Partial sums.
    pub(super) count: u32,
    /// Elements of one: dW, dU and db, one after the other.
    pub(super) stride: usize,
}

impl Plan {
    /// The plan for a shape; it depends on nothing else.
    pub(super) fn new(d: SequenceDims, choice: PathChoice) -> Result<Self> {
        let path = path(d.h, d.e, choice);
        let rows = size("lstm_sequence_backward", "x [T,B,E]", d.t.saturating_mul(d.b))?;
        let batch = size("lstm_sequence_backward", "x [T,B,E]", d.b)?;
        let count = match path {
            Path::Sequence {
                accumulates: Accumulates::All { .. } | Accumulates::RecurrentAndBias, ..
            } => batch.min(SEQUENCE_PARTIALS),
            _ => {
                let tile = GEMM_TILE as usize;
                let tiles = d.h.div_ceil(tile).saturating_mul(d.h.saturating_mul(4).div_ceil(tile)).max(1);
                let wanted = u32::try_from(256 / tiles).unwrap_or(1);
                wanted.clamp(1, rows.div_ceil(128).max(1))
            }
        };
        let units = d.e.checked_add(d.h).and_then(|rows| rows.checked_add(1));
        let stride = units.and_then(|rows| rows.checked_mul(4)?.checked_mul(d.h)).unwrap_or(usize::MAX);
        Ok(Self { path, count: count.max(1), stride })
    }

    /// Elements of all partial sums; `usize::MAX` if that is too many for memory.
    pub(super) fn extent(&self) -> usize {
        (self.count as usize).saturating_mul(self.stride)
    }

    /// The partial sums in `parts`, from element `offset` of each on.
    pub(super) fn partials<'a>(&self, parts: View<'a, f32>, offset: usize) -> Result<Partials<'a>> {
        let len = parts.len();
        Ok(Partials { parts: parts.part(offset.min(len)..len)?, count: self.count, stride: self.stride })
    }
}

/// The parameters of a layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weights<'a, S> {
    /// `[E,4H]`
    pub(super) w: View<'a, S>,
    /// `[H,4H]`
    pub(super) u: View<'a, S>,
    /// `[4H]`
    pub(super) b: View<'a, f32>,
}

/// What a forward pass writes, for a backward pass to read.
pub(super) struct Trace<'a, S> {
    /// `[T,B,4H]`: room for `x·W + b`, which is not stored in 16 bits; in f32 None: `gates` has it.
    pub(super) pre: Option<ViewMut<'a, f32>>,
    /// `[T,B,4H]`
    pub(super) gates: ViewMut<'a, S>,
    /// `[T+1,B,H]`
    pub(super) h: ViewMut<'a, S>,
    /// `[T+1,B,H]`
    pub(super) c: ViewMut<'a, f32>,
}

/// `[B,H]` to `[B,H]`, zeros where there is nothing.
fn copy_or_zero<T: bytemuck::Pod>(
    ctx: &Context,
    what: &str,
    from: Option<View<'_, T>>,
    to: ViewMut<'_, T>,
    n: usize,
) -> Result<()> {
    match from {
        Some(from) => copy(ctx, what, from.part(0..n)?, to),
        None => clear(ctx, what, to.part(0..n)?),
    }
}

/// Pushes `x·W + b` `[T,B,4H]`: `pre`, or in f32 the array of the gates.
pub(super) fn with_sums<'c, S: Stored>(
    call: Call<'c>,
    pre: Option<&ViewMut<'_, f32>>,
    gates: &mut ViewMut<'_, S>,
    dims: &[usize],
) -> Result<Call<'c>> {
    const WHAT: &str = "pre [T,B,4H]";
    match pre {
        Some(pre) => call.input(WHAT, pre.view(), dims),
        None => call.input(WHAT, in_place(gates.again())?.view(), dims),
    }
}

fn kernel(k: &Typed, padded: u32, forward: bool) -> &Kernel {
    match (padded, forward) {
        (32, true) => &k.lstm_sequence_forward_h32,
        (64, true) => &k.lstm_sequence_forward_h64,
        (96, true) => &k.lstm_sequence_forward_h96,
        (_, true) => &k.lstm_sequence_forward_h128,
        (32, false) => &k.lstm_sequence_backward_h32,
        (64, false) => &k.lstm_sequence_backward_h64,
        (96, false) => &k.lstm_sequence_backward_h96,
        (_, false) => &k.lstm_sequence_backward_h128,
    }
}

/// Rows of U that a kernel of `padded` units keeps in dynamic shared memory, and its bytes.
fn staged(ctx: &Context, padded: u32, kernel: &Kernel) -> Result<(u32, u32)> {
    let rows = if padded == 128 { ctx.staged_rows(kernel)? } else { 0 };
    Ok((rows, rows * STAGED_ROW_BYTES))
}

/// Assigns `gates`, `h` and `c` from `x` `[T,B,E]` and the initial state `[B,H]`, zeros where absent.
#[allow(clippy::too_many_arguments)] // two of them are the initial state
pub(super) fn forward<S: Stored>(
    ctx: &Context,
    d: SequenceDims,
    choice: PathChoice,
    x: View<'_, S>,
    h0: Option<View<'_, S>>,
    c0: Option<View<'_, f32>>,
    weights: Weights<'_, S>,
    trace: Trace<'_, S>,
) -> Result<()> {
    let SequenceDims { t, b: batch, e, h: hidden } = d;
    let Trace { mut pre, mut gates, mut h, mut c } = trace;
    let state = batch.saturating_mul(hidden);
    if state == 0 {
        return Ok(());
    }
    if t == 0 {
        copy_or_zero(ctx, "h0", h0, h, state)?;
        return copy_or_zero(ctx, "c0", c0, c, state);
    }
    let columns = hidden.saturating_mul(4);
    let rows = t.saturating_mul(batch);
    let product = MatmulDims { m: rows, k: e, n: columns, ta: false, tb: false };
    let sums = match &mut pre {
        Some(pre) => pre.again(),
        None => in_place(gates.again())?,
    };
    gemm(ctx, product, x, weights.w, Some(weights.b), sums, Slices::WHOLE, false)?;

    let path = path(hidden, e, choice);
    let Path::Sequence { padded, .. } = path else {
        copy_or_zero(ctx, "h0", h0, h.again(), state)?;
        copy_or_zero(ctx, "c0", c0, c.again(), state)?;
        if let Some(groups) = Groups::of(ctx, path, d) {
            return lstm_persistent::forward(ctx, groups, d, weights.u, pre, gates, h, c);
        }
        let d = CellDims { b: batch, e: 0, h: hidden };
        for s in 0..t {
            let (h_before, h_next) = h.again().split((s + 1) * state)?;
            let (c_before, c_next) = c.again().split((s + 1) * state)?;
            let before = s * state..(s + 1) * state;
            let step = s * batch * columns..(s + 1) * batch * columns;
            lstm_cell::forward(
                ctx,
                d,
                Input::Computed(pre.as_ref().map(|pre| pre.view().part(step.clone())).transpose()?),
                h_before.view().part(before.clone())?,
                c_before.view().part(before)?,
                weights.u,
                gates.again().part(step)?,
                h_next,
                c_next,
            )?;
        }
        return Ok(());
    };
    let kernel = kernel(S::of(&ctx.kernels), padded, true);
    let (staged, bytes) = staged(ctx, padded, kernel)?;
    let states = t.saturating_add(1);
    let call = Call::new(ctx, kernel)
        .input_or_null("h0 [B,H]", h0, &[batch, hidden])?
        .input_or_null("c0 [B,H]", c0, &[batch, hidden])?
        .input("u [H,4H]", weights.u, &[hidden, columns])?;
    let call = with_sums(call, pre.as_ref(), &mut gates, &[rows, columns])?
        .output("gates [T,B,4H]", &mut gates, &[rows, columns])?
        .output("h [T+1,B,H]", &mut h, &[states, batch, hidden])?
        .output("c [T+1,B,H]", &mut c, &[states, batch, hidden])?
        .size("T", t)?
        .size("B", batch)?
        .size("H", hidden)?
        .u32(staged);
    let grid = size("lstm_sequence_forward", "h0 [B,H]", batch)?;
    // SAFETY: the parameters are `h0, c0, u, pre, gates, h, c, t, batch, hidden, staged`, each array of the size that was
    // checked; `pre` may be `gates`: an element is read before the same thread writes it; a block has one row below B and
    // units below H, which the kernel is wide enough for (`path`); `bytes` is what `staged` rows take, and was allowed when
    // the kernel was loaded.
    unsafe { call.launch([grid, 1, 1], 4 * padded, bytes) }
}

/// What a backward pass reads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backward<'a, S> {
    /// `[T,B,E]`
    pub(super) x: View<'a, S>,
    /// `[E,4H]`
    pub(super) w: View<'a, S>,
    /// `[H,4H]`
    pub(super) u: View<'a, S>,
    /// `[T,B,4H]`
    pub(super) gates: View<'a, S>,
    /// `[T+1,B,H]`
    pub(super) h: View<'a, S>,
    /// `[T+1,B,H]`
    pub(super) c: View<'a, f32>,
    /// `[T,B,H]`
    pub(super) dh: Option<View<'a, f32>>,
    /// `[B,H]`
    pub(super) dh_last: Option<View<'a, f32>>,
    /// `[B,H]`
    pub(super) dc_last: Option<View<'a, f32>>,
}

/// What a backward pass writes; all of it is assigned.
pub(super) struct Gradients<'a, S> {
    /// `[T,B,4H]`
    pub(super) dpre: ViewMut<'a, S>,
    /// `[T,B,E]`
    pub(super) dx: ViewMut<'a, f32>,
    /// `[B,H]`, if anyone wants it.
    pub(super) dh0: Option<ViewMut<'a, f32>>,
    /// `[B,H]`: the gradient by the initial cell state, and on the way there by the state at hand.
    pub(super) dc0: ViewMut<'a, f32>,
    /// The plan's partial sums of dW, dU and db.
    pub(super) partials: ViewMut<'a, f32>,
}

/// Backpropagation through time of at least one time step and row, with at least one hidden unit: assigns everything in
/// `g`. The parameters' gradients are the sums of `plan`'s parts.
pub(super) fn backward<S: Stored>(
    ctx: &Context,
    d: SequenceDims,
    plan: &Plan,
    a: Backward<'_, S>,
    g: Gradients<'_, S>,
) -> Result<()> {
    let SequenceDims { t, b: batch, e, h: hidden } = d;
    let Gradients { mut dpre, dx, mut dh0, mut dc0, mut partials } = g;
    let columns = hidden.saturating_mul(4);
    let rows = t.saturating_mul(batch);
    let slices = Slices { count: plan.count, stride: plan.stride };

    let (w_done, u_and_b_done) = match plan.path {
        Path::Persistent { .. } | Path::Cell => {
            match Groups::of(ctx, plan.path, d) {
                Some(groups) => lstm_persistent::backward(ctx, groups, d, a, dpre.again(), dc0)?,
                None => step_by_step(ctx, d, a, dpre.again(), dc0)?,
            }
            if let Some(dh0) = dh0 {
                // dh0 = dpre[0]·Uᵀ
                let product = MatmulDims { m: batch, k: columns, n: hidden, ta: false, tb: true };
                gemm(ctx, product, dpre.view(), a.u, None, dh0, Slices::WHOLE, false)?;
            }
            (false, false)
        }
        Path::Sequence { padded, accumulates } => {
            let k = S::of(&ctx.kernels);
            let kernel = match (padded, accumulates) {
                (32, Accumulates::All { inputs: 16 }) => &k.lstm_sequence_backward_h32_e16,
                (32, Accumulates::All { .. }) => &k.lstm_sequence_backward_h32_e32,
                (64, Accumulates::All { inputs: 16 }) => &k.lstm_sequence_backward_h64_e16,
                (64, Accumulates::All { .. }) => &k.lstm_sequence_backward_h64_e32,
                _ => kernel(k, padded, false),
            };
            let (staged, bytes) = staged(ctx, padded, kernel)?;
            let states = t.saturating_add(1);
            // The kernels of 96 and 128 units run one block for each row up to the same limit, and sum nothing.
            let grid = size("lstm_sequence_backward", "x [T,B,E]", batch)?.min(SEQUENCE_PARTIALS);
            let summed = accumulates != Accumulates::Nothing;
            let parts = if summed { (grid as usize).saturating_mul(plan.stride) } else { 0 };
            let call = Call::new(ctx, kernel)
                .input("x [T,B,E]", a.x, &[rows, e])?
                .input_fours("u [H,4H]", a.u, &[hidden, columns])?
                .input("gates [T,B,4H]", a.gates, &[rows, columns])?
                .input("h [T+1,B,H]", a.h, &[states, batch, hidden])?
                .input("c [T+1,B,H]", a.c, &[states, batch, hidden])?
                .input_or_null("dh [T,B,H]", a.dh, &[rows, hidden])?
                .input_or_null("dh_last [B,H]", a.dh_last, &[batch, hidden])?
                .input_or_null("dc_last [B,H]", a.dc_last, &[batch, hidden])?
                .output("dpre [T,B,4H]", &mut dpre, &[rows, columns])?
                .output_or_null("dh0 [B,H]", dh0.as_mut(), &[batch, hidden])?
                .output("dc0 [B,H]", &mut dc0, &[batch, hidden])?
                .output("partials", &mut partials, &[parts])?
                .size("T", t)?
                .size("B", batch)?
                .size("E", e)?
                .size("H", hidden)?
                .u64(plan.stride as u64)
                .u32(staged);
            // SAFETY: the parameters are `x, u, gates, h, c, dh, dh_last, dc_last, dpre, dh0, dc0, partials, t, batch, e,
            // hidden, stride, staged`, each array of the size that was checked, `partials` for one part a block. The
            // kernel is wide enough for H and, where it sums W's gradient, for E (`path`); `bytes` as in `forward`.
            unsafe { call.launch([grid, 1, 1], 4 * padded, bytes) }?;
            (matches!(accumulates, Accumulates::All { .. }), summed)
        }
    };

    // dW = xᵀ·dpre, dU = (the outputs one time step earlier)ᵀ·dpre, db = the sum of dpre's rows.
    let (w_size, u_size) = (e.saturating_mul(columns), hidden.saturating_mul(columns));
    let product = |m| MatmulDims { m, k: rows, n: columns, ta: true, tb: false };
    if !w_done {
        gemm(ctx, product(e), a.x, dpre.view(), None, partials.again(), slices, false)?;
    }
    if !u_and_b_done {
        let (_, mut after_w) = partials.split(w_size)?;
        gemm(ctx, product(hidden), a.h, dpre.view(), None, after_w.again(), slices, false)?;
        let (_, b_parts) = after_w.split(u_size)?;
        column_sums(ctx, rows, columns, dpre.view(), b_parts, slices, false)?;
    }
    // dx = dpre·Wᵀ
    let product = MatmulDims { m: rows, k: columns, n: e, ta: false, tb: true };
    gemm(ctx, product, dpre.view(), a.w, None, dx, Slices::WHOLE, false)
}

/// `dpre` and `dc0`, one kernel a time step.
fn step_by_step<S: Stored>(
    ctx: &Context,
    d: SequenceDims,
    a: Backward<'_, S>,
    mut dpre: ViewMut<'_, S>,
    mut dc0: ViewMut<'_, f32>,
) -> Result<()> {
    let SequenceDims { t, b: batch, h: hidden, .. } = d;
    let columns = hidden.saturating_mul(4);
    let (state, gates) = (batch.saturating_mul(hidden), batch.saturating_mul(columns));
    let cell = CellDims { b: batch, e: 0, h: hidden };
    for s in (0..t).rev() {
        let last = s + 1 == t;
        let (this, later) = dpre.again().split((s + 1) * gates)?;
        let rows = |row: usize| row * state..(row + 1) * state;
        let dc = match (last, a.dc_last) {
            (false, _) => StateGradient::InPlace,
            (true, Some(dc_last)) => StateGradient::From(dc_last),
            (true, None) => StateGradient::Zero,
        };
        lstm_cell::backward(
            ctx,
            cell,
            lstm_cell::Backward {
                dpre_next: if last { None } else { Some(later.view()) },
                u: a.u,
                gates: a.gates.part(s * gates..(s + 1) * gates)?,
                c_prev: a.c.part(rows(s))?,
                c: a.c.part(rows(s + 1))?,
                dh: a.dh.map(|dh| dh.part(rows(s))).transpose()?,
                dh_more: a.dh_last.filter(|_| last),
            },
            dc,
            this.part(s * gates..(s + 1) * gates)?,
            dc0.again(),
        )?;
    }
    Ok(())
}

/// The gradients of no time steps at all: those by the last state pass through to the initial one.
pub(super) fn backward_of_nothing(
    ctx: &Context,
    d: SequenceDims,
    dh_last: Option<View<'_, f32>>,
    dc_last: Option<View<'_, f32>>,
    dh0: ViewMut<'_, f32>,
    dc0: ViewMut<'_, f32>,
) -> Result<()> {
    let state = d.b.saturating_mul(d.h);
    copy_or_zero(ctx, "dh_last", dh_last, dh0, state)?;
    copy_or_zero(ctx, "dc_last", dc_last, dc0, state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partial_sums_depend_on_the_shape_alone() {
        let plan = |t, b, e, h| Plan::new(SequenceDims { t, b, e, h }, PathChoice::Best).unwrap();
        assert_eq!((plan(32, 32, 16, 32).count, plan(32, 32, 16, 32).stride), (32, 49 * 128));
        assert_eq!(plan(32, 1000, 16, 32).count, 512);
        // 128 units: 2·8 tiles of 64, so 16 slices, if there are enough rows for them.
        assert_eq!(plan(32, 64, 16, 128).count, 16);
        assert_eq!(plan(1, 64, 16, 128).count, 1);
        assert_eq!(plan(0, 0, 0, 200).count, 1);
        assert_eq!(plan(100, 64, 16, 1024).count, 1);
    }
}
