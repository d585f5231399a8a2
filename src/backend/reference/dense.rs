//! Dense layer: `y = x·W + b`; backward `dx = dy·Wᵀ`, `dW += xᵀ·dy`, `db += sum of dy over the batch`.
//!
//! Shapes: `x` `[B,inputs]`, `w` `[inputs,outputs]`, `b` `[outputs]`, `y` `[B,outputs]`.

use super::at;
use crate::backend::{DenseBackward, DenseDims, DenseForward, Real};
use crate::error::Result;

/// Assigns `y`.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if an argument does not have the extent that `d` asks for; nothing has been
/// written then.
pub fn forward<T: Real>(d: DenseDims, a: DenseForward<'_, [T]>) -> Result<()> {
    a.check(d)?;
    let DenseDims { b: batch, inputs, outputs } = d;
    for row in 0..batch {
        for (col, &bias) in a.b.iter().enumerate() {
            let mut sum = bias;
            for k in 0..inputs {
                sum += a.x[at(inputs, row, k)] * a.w[at(outputs, k, col)];
            }
            a.y[at(outputs, row, col)] = sum;
        }
    }
    Ok(())
}

/// Assigns `dx`; accumulates into `dw` and `db`, batch row by batch row.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if an argument does not have the extent that `d` asks for; nothing has been
/// written then.
pub fn backward<T: Real>(d: DenseDims, a: DenseBackward<'_, [T]>) -> Result<()> {
    a.check(d)?;
    let DenseDims { b: batch, inputs, outputs } = d;
    for row in 0..batch {
        for k in 0..inputs {
            let mut sum = T::zero();
            for col in 0..outputs {
                let dy = a.dy[at(outputs, row, col)];
                sum += dy * a.w[at(outputs, k, col)];
                a.dw[at(outputs, k, col)] += a.x[at(inputs, row, k)] * dy;
            }
            a.dx[at(inputs, row, k)] = sum;
        }
        for (col, db) in a.db.iter_mut().enumerate() {
            *db += a.dy[at(outputs, row, col)];
        }
    }
    Ok(())
}
