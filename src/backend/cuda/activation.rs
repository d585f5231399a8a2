//! Launches `activate`: the strict activations by themselves, for tests and benches.

use super::buffer::{View, ViewMut};
use super::context::Context;
use super::launch::{Call, blocks, fours};
use crate::error::Result;
use crate::tuning::ELEMENT_THREADS;

/// One of the functions that the kernels share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `e^x`.
    Exp,
    /// `1/(1+e^−x)`.
    Sigmoid,
    /// The hyperbolic tangent.
    Tanh,
    /// The natural logarithm.
    Log,
}

/// `out = activation(x)`, element by element.
pub(super) fn activate(
    ctx: &Context,
    activation: Activation,
    x: View<'_, f32>,
    mut out: ViewMut<'_, f32>,
) -> Result<()> {
    let n = x.len();
    let which = match activation {
        Activation::Exp => 0,
        Activation::Sigmoid => 1,
        Activation::Tanh => 2,
        Activation::Log => 3,
    };
    let grid = blocks("activate", "x [n]", &[n], fours(ELEMENT_THREADS))?;
    let call = Call::new(ctx, &ctx.kernels.activate);
    let call = call.input("x [n]", x, &[n])?.output("out [n]", &mut out, &[n])?.size("n", n)?.u32(which);
    // SAFETY: the parameters are `x, out, n, which`; threads beyond `n` do nothing, and both hold `n` elements.
    unsafe { call.launch([grid, 1, 1], ELEMENT_THREADS, 0) }
}
