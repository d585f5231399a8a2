//! Numbers of 16 bits on the device, and the copy of the parameters that is stored in them.

use super::buffer::{View, ViewMut};
use super::context::{Context, Kernel, Kernels};
use super::launch::{Call, blocks};
use crate::error::Result;
use crate::tuning::ELEMENT_THREADS;

/// A bfloat16, as [`Precision::Bf16`](crate::backend::Precision::Bf16) rounds to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub(super) struct Bf16(u16);

/// What the fused kernels read table, W, U and dense W in.
pub(super) trait Stored: Copy {
    /// The kernels of these units and inputs: a training step, and the forward pass alone.
    fn fused(k: &Kernels, units: u32, inputs: u32) -> (&Kernel, &Kernel);
}

impl Stored for f32 {
    fn fused(k: &Kernels, units: u32, inputs: u32) -> (&Kernel, &Kernel) {
        match (units, inputs) {
            (32, 16) => (&k.fused_step_h32_e16, &k.fused_forward_h32_e16),
            (32, 32) => (&k.fused_step_h32_e32, &k.fused_forward_h32_e32),
            (32, _) => (&k.fused_step_h32_e64, &k.fused_forward_h32_e64),
            (_, 16) => (&k.fused_step_h64_e16, &k.fused_forward_h64_e16),
            _ => (&k.fused_step_h64_e32, &k.fused_forward_h64_e32),
        }
    }
}

impl Stored for Bf16 {
    fn fused(k: &Kernels, units: u32, inputs: u32) -> (&Kernel, &Kernel) {
        match (units, inputs) {
            (32, 16) => (&k.fused_step_h32_e16_bf16, &k.fused_forward_h32_e16_bf16),
            (32, 32) => (&k.fused_step_h32_e32_bf16, &k.fused_forward_h32_e32_bf16),
            (32, _) => (&k.fused_step_h32_e64_bf16, &k.fused_forward_h32_e64_bf16),
            (_, 16) => (&k.fused_step_h64_e16_bf16, &k.fused_forward_h64_e16_bf16),
            _ => (&k.fused_step_h64_e32_bf16, &k.fused_forward_h64_e32_bf16),
        }
    }
}

/// `to[i] = from[i]` rounded to nearest even.
pub(super) fn store_bf16(ctx: &Context, from: View<'_, f32>, mut to: ViewMut<'_, Bf16>) -> Result<()> {
    let n = to.len();
    let grid = blocks("store_bf16", "to [n]", &[n], ELEMENT_THREADS)?;
    let call = Call::new(ctx, &ctx.kernels.store_bf16)
        .input("from [n]", from, &[n])?
        .output("to [n]", &mut to, &[n])?
        .size("n", n)?;
    // SAFETY: the parameters are `from, to, n`; threads beyond `n` touch nothing, and `n` elements of both were checked.
    unsafe { call.launch([grid, 1, 1], ELEMENT_THREADS, 0) }
}
