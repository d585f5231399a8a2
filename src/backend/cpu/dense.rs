//! `y = x·W + b` and its derivative, made of [`matmul`](super::matmul)'s product.

use super::Cpu;
use super::matmul::{Panels, add_product, transpose};
use crate::backend::{DenseBackward, DenseDims, DenseForward};
use crate::error::Result;

/// See [`DenseForward`].
pub(super) fn forward(cpu: &Cpu, d: DenseDims, a: DenseForward<'_, [f32]>) -> Result<()> {
    a.check(d)?;
    let DenseDims { b, inputs, outputs } = d;
    for row in a.y.chunks_exact_mut(outputs.max(1)) {
        row.copy_from_slice(a.b);
    }
    add_product(cpu, a.x, &Panels::pack(cpu, a.w, inputs, outputs), b, a.y);
    Ok(())
}

/// See [`DenseBackward`].
pub(super) fn backward(cpu: &Cpu, d: DenseDims, a: DenseBackward<'_, [f32]>) -> Result<()> {
    a.check(d)?;
    let DenseDims { b, inputs, outputs } = d;
    a.dx.fill(0.0);
    add_product(cpu, a.dy, &Panels::pack_transposed(cpu, a.w, outputs, inputs), b, a.dx);
    let dy = Panels::pack(cpu, a.dy, b, outputs);
    add_product(cpu, &transpose(a.x, b, inputs), &dy, inputs, a.dw);
    add_product(cpu, &vec![1.0; b], &dy, 1, a.db);
    Ok(())
}
