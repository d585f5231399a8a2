//! Numbers of 16 bits on the device, the copy of the parameters that is stored in them, and the scale of f16's loss.

use super::buffer::{DeviceVec, View, ViewMut, download, upload};
use super::context::{Context, Kernel, Kernels};
use super::launch::{Call, blocks};
use super::steps::{CURSORS, Step};
use crate::backend::{AdamConfig, LossScale, Precision};
use crate::error::Result;
use crate::tuning::ELEMENT_THREADS;

/// A bfloat16, as [`Precision::Bf16`] rounds to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub(super) struct Bf16(u16);

/// A binary16, as [`Precision::F16`] rounds to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub(super) struct F16(u16);

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

impl Stored for F16 {
    fn fused(k: &Kernels, units: u32, inputs: u32) -> (&Kernel, &Kernel) {
        match (units, inputs) {
            (32, 16) => (&k.fused_step_h32_e16_f16, &k.fused_forward_h32_e16_f16),
            (32, 32) => (&k.fused_step_h32_e32_f16, &k.fused_forward_h32_e32_f16),
            (32, _) => (&k.fused_step_h32_e64_f16, &k.fused_forward_h32_e64_f16),
            (_, 16) => (&k.fused_step_h64_e16_f16, &k.fused_forward_h64_e16_f16),
            _ => (&k.fused_step_h64_e32_f16, &k.fused_forward_h64_e32_f16),
        }
    }
}

/// [`LossScale`] on the device, and what a step makes of it (`Scaling` in half.cuh).
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct Scaling {
    scale: f32,
    good_steps: u32,
    skipped: u64,
    alpha: f32,
    inverse: f32,
    done: u32,
    reserved: u32,
}

impl From<LossScale> for Scaling {
    fn from(LossScale { scale, good_steps, skipped }: LossScale) -> Self {
        Self { scale, good_steps, skipped, ..Self::default() }
    }
}

impl From<Scaling> for LossScale {
    fn from(Scaling { scale, good_steps, skipped, .. }: Scaling) -> Self {
        Self { scale, good_steps, skipped }
    }
}

/// The copy of the parameters that the fused kernels multiply with, where it is not the parameters themselves.
#[derive(Debug)]
pub(super) enum Copies {
    Bf16(DeviceVec<Bf16>),
    F16(DeviceVec<F16>, DeviceVec<Scaling>),
}

/// [`Copies`] as the last kernel of a step writes and reads them.
pub(super) enum CopiesMut<'a> {
    Bf16(ViewMut<'a, Bf16>),
    F16(ViewMut<'a, F16>, View<'a, Scaling>),
}

impl Copies {
    /// Room for a copy of `n` parameters; None in f32.
    pub(super) fn new(ctx: &Context, precision: Precision, n: usize) -> Result<Option<Self>> {
        let what = "the parameters in 16 bits";
        Ok(match precision {
            Precision::F32 => None,
            Precision::Bf16 => Some(Self::Bf16(DeviceVec::new(ctx, what, n)?)),
            Precision::F16 => {
                Some(Self::F16(DeviceVec::new(ctx, what, n)?, DeviceVec::new(ctx, "the loss' scale", 1)?))
            }
        })
    }

    /// Rounds `params` into the copy, and sets the scale.
    pub(super) fn store(&mut self, ctx: &Context, params: View<'_, f32>, scale: LossScale) -> Result<()> {
        match self {
            Self::Bf16(to) => store(ctx, &ctx.kernels.store_bf16, params, to.view_mut()),
            Self::F16(to, scaling) => {
                upload(ctx, "the loss' scale", scaling.view_mut(), &[Scaling::from(scale)])?;
                store(ctx, &ctx.kernels.store_f16, params, to.view_mut())
            }
        }
    }

    /// What the scale has come to.
    pub(super) fn loss_scale(&self, ctx: &Context) -> Result<LossScale> {
        match self {
            Self::Bf16(_) => Ok(LossScale::default()),
            Self::F16(_, scaling) => {
                let scaling = download(ctx, "the loss' scale", scaling.view())?;
                Ok(scaling.first().copied().map_or_else(LossScale::default, LossScale::from))
            }
        }
    }

    pub(super) fn view_mut(&mut self) -> CopiesMut<'_> {
        match self {
            Self::Bf16(copy) => CopiesMut::Bf16(copy.view_mut()),
            Self::F16(copy, scaling) => CopiesMut::F16(copy.view_mut(), scaling.view()),
        }
    }
}

/// `to[i] = from[i]` rounded to nearest even.
fn store<S>(ctx: &Context, kernel: &Kernel, from: View<'_, f32>, mut to: ViewMut<'_, S>) -> Result<()> {
    let n = to.len();
    let grid = blocks("store", "to [n]", &[n], ELEMENT_THREADS)?;
    let call = Call::new(ctx, kernel)
        .input("from [n]", from, &[n])?
        .output("to [n]", &mut to, &[n])?
        .size("n", n)?;
    // SAFETY: the parameters are `from, to, n`; threads beyond `n` touch nothing, and `n` elements of both were checked. The
    // kernel is the one of `S`, which the two callers above name.
    unsafe { call.launch([grid, 1, 1], ELEMENT_THREADS, 0) }
}

/// Between a fused step in f16 and its `adam_step`: whether the step is done, with which alpha, and what scale comes next.
/// `finite` `[rows,warps]` as the fused step left it, which has at most `rows` rows.
pub(super) fn loss_scale(
    ctx: &Context,
    config: &AdamConfig,
    (rows, warps): (usize, usize),
    steps: View<'_, Step>,
    cursor: View<'_, u32>,
    finite: View<'_, u32>,
    mut scaling: ViewMut<'_, Scaling>,
) -> Result<()> {
    let call = Call::new(ctx, &ctx.kernels.loss_scale)
        .input("steps", steps, &[1])?
        .input("cursor", cursor, &[CURSORS])?
        .input("finite [B,warps]", finite, &[rows, warps])?
        .output("scaling", &mut scaling, &[1])?
        .size("warps", warps)?
        .f64(config.beta1)
        .f64(config.beta2);
    // SAFETY: the parameters are `steps, cursor, finite, scaling, warps, beta1, beta2`; the one warp reads the step at hand,
    // which has at most `rows` rows, and their flags, and writes one `Scaling`: all were checked.
    unsafe { call.launch([1, 1, 1], 32, 0) }
}
