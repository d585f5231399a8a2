//! Launches `fill`.

use super::buffer::ViewMut;
use super::context::Context;
use super::launch::{Call, blocks, fours};
use crate::error::Result;
use crate::tuning::FILL_THREADS;

/// Assigns `value` to every element of `out`.
pub(super) fn fill(ctx: &Context, mut out: ViewMut<'_, f32>, value: f32) -> Result<()> {
    let n = out.len();
    let grid = blocks("fill", "out [n]", &[n], fours(FILL_THREADS))?;
    let call = Call::new(ctx, &ctx.kernels.fill).output("out [n]", &mut out, &[n])?;
    let call = call.size("n", n)?.f32(value);
    // SAFETY: the parameters are `out, n, value`; threads beyond `n` store nothing, and `n` elements were checked.
    unsafe { call.launch([grid, 1, 1], FILL_THREADS, 0) }
}
