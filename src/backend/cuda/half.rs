//! The types that numbers are stored in on the device, and the scale of f16's loss.

use super::buffer::{DeviceVec, View, ViewMut};
use super::context::Context;
use super::kernels::{Kernel, Kernels, Typed};
use super::launch::{Call, blocks, fours};
use super::steps::{CURSORS, Step};
use crate::backend::{AdamConfig, LossScale, Precision};
use crate::error::{Error, Result};
use crate::tuning::{ELEMENT_THREADS, NORM_BLOCKS};
use bytemuck::Pod;
use std::fmt;

/// A bfloat16, as [`Precision::Bf16`] rounds to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub(super) struct Bf16(u16);

/// A binary16, as [`Precision::F16`] rounds to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub(super) struct F16(u16);

/// What the operands of products are stored in: f32, or 16 bits.
pub(super) trait Stored: Pod + Default + fmt::Debug + Send {
    const PRECISION: Precision;

    /// The kernels over this type.
    fn of(k: &Kernels) -> &Typed;

    /// The same array, if this is f32.
    fn as_f32(view: ViewMut<'_, Self>) -> Option<ViewMut<'_, f32>>;

    /// Room for `n` parameters in 16 bits; None in f32.
    fn copies(ctx: &Context, n: usize) -> Result<Option<DeviceVec<Self>>>;

    /// The parameters as products read them: themselves, or their copy.
    fn weights<'a>(params: View<'a, f32>, copy: Option<&'a DeviceVec<Self>>) -> Result<View<'a, Self>>;

    /// The kernel that rounds parameters to their copy; None in f32.
    fn store(k: &Kernels) -> Option<&Kernel>;
}

/// The same array, which has to be one of f32.
pub(super) fn in_place<S: Stored>(array: ViewMut<'_, S>) -> Result<ViewMut<'_, f32>> {
    S::as_f32(array)
        .ok_or_else(|| Error::Failed("sums of f32 in an array of 16 bits; please report this".into()))
}

impl Stored for f32 {
    const PRECISION: Precision = Precision::F32;

    fn of(k: &Kernels) -> &Typed {
        &k.f32
    }

    fn as_f32(view: ViewMut<'_, f32>) -> Option<ViewMut<'_, f32>> {
        Some(view)
    }

    fn copies(_: &Context, _: usize) -> Result<Option<DeviceVec<f32>>> {
        Ok(None)
    }

    fn weights<'a>(params: View<'a, f32>, _: Option<&'a DeviceVec<f32>>) -> Result<View<'a, f32>> {
        Ok(params)
    }

    fn store(_: &Kernels) -> Option<&Kernel> {
        None
    }
}

macro_rules! stored_in_16_bits {
    ($type:ident, $kernels:ident, $store:ident) => {
        impl Stored for $type {
            const PRECISION: Precision = Precision::$type;

            fn of(k: &Kernels) -> &Typed {
                &k.$kernels
            }

            fn as_f32(_: ViewMut<'_, Self>) -> Option<ViewMut<'_, f32>> {
                None
            }

            fn copies(ctx: &Context, n: usize) -> Result<Option<DeviceVec<Self>>> {
                DeviceVec::new(ctx, "the parameters in 16 bits", n).map(Some)
            }

            fn weights<'a>(_: View<'a, f32>, copy: Option<&'a DeviceVec<Self>>) -> Result<View<'a, Self>> {
                copy.map(DeviceVec::view).ok_or_else(|| {
                    Error::Failed("parameters without their copy in 16 bits; please report this".into())
                })
            }

            fn store(k: &Kernels) -> Option<&Kernel> {
                Some(&k.$store)
            }
        }
    };
}
stored_in_16_bits!(Bf16, bf16, store_bf16);
stored_in_16_bits!(F16, f16, store_f16);

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

/// `to[i] = from[i]` rounded to nearest even; nothing in f32.
pub(super) fn store<S: Stored>(ctx: &Context, from: View<'_, f32>, mut to: ViewMut<'_, S>) -> Result<()> {
    let Some(kernel) = S::store(&ctx.kernels) else { return Ok(()) };
    let n = to.len();
    let grid = blocks("store", "to [n]", &[n], fours(ELEMENT_THREADS))?;
    let call = Call::new(ctx, kernel)
        .input("from [n]", from, &[n])?
        .output("to [n]", &mut to, &[n])?
        .size("n", n)?;
    // SAFETY: the parameters are `from, to, n`; threads beyond `n` touch nothing, and `n` elements of both were checked. The
    // kernel is the one of `S`.
    unsafe { call.launch([grid, 1, 1], ELEMENT_THREADS, 0) }
}

/// Flags that `all_finite` leaves.
pub(super) const FLAGS: usize = NORM_BLOCKS as usize;

/// Whether all numbers of the three arrays are finite, share by share: `finite` `[FLAGS]`, assigned.
pub(super) fn all_finite(
    ctx: &Context,
    arrays: [View<'_, f32>; 3],
    mut finite: ViewMut<'_, u32>,
) -> Result<()> {
    let mut call = Call::new(ctx, &ctx.kernels.all_finite);
    for array in arrays {
        call = call.input("array [n]", array, &[array.len()])?.u64(array.len() as u64);
    }
    let call = call.output("finite", &mut finite, &[FLAGS])?;
    // SAFETY: the parameters are `a, a_size, b, b_size, c, c_size, finite`; the blocks read as many elements of each array as
    // it has, and each writes its flag: all were checked.
    unsafe { call.launch([NORM_BLOCKS, 1, 1], ELEMENT_THREADS, 0) }
}

/// Between a step in f16 and its Adam: whether the step is done, with which alpha, and what scale comes next. `finite`
/// `[rows,flags]` of at most `rows` rows that the step has, or with no `rows` `[flags]`.
pub(super) fn loss_scale(
    ctx: &Context,
    config: &AdamConfig,
    (rows, flags): (Option<usize>, usize),
    steps: View<'_, Step>,
    cursor: View<'_, u32>,
    finite: View<'_, u32>,
    mut scaling: ViewMut<'_, Scaling>,
) -> Result<()> {
    let call = Call::new(ctx, &ctx.kernels.loss_scale)
        .input("steps", steps, &[1])?
        .input("cursor", cursor, &[CURSORS])?
        .input("finite [B,flags]", finite, &[rows.unwrap_or(1), flags])?
        .output("scaling", &mut scaling, &[1])?
        .size("flags", flags)?
        .u32(u32::from(rows.is_some()))
        .f64(config.beta1)
        .f64(config.beta2);
    // SAFETY: the parameters are `steps, cursor, finite, scaling, flags, by_rows, beta1, beta2`; the one warp reads the step at
    // hand, which has at most `rows` rows, and its flags, and writes one `Scaling`: all were checked.
    unsafe { call.launch([1, 1, 1], 32, 0) }
}
