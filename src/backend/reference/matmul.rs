//! Matrix product: `out[row,col] (+)= sum over k of op(a)[row,k] · op(b)[k,col]`.
//!
//! Shapes: `op(a)` `[m,k]`, `op(b)` `[k,n]`, `out` `[m,n]`; an operand may be stored transposed. An empty sum
//! (`k = 0`) is zero.

use super::at;
use crate::backend::{Matmul, MatmulDims, Real};
use crate::error::Result;

/// `out = op(a)·op(b)`, or `out += op(a)·op(b)` if `a.accumulate`. Each element's sum is formed first, in the order
/// of `k`, and then assigned or added.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if an argument does not have the extent that `d` asks for; nothing has been
/// written then.
pub fn matmul<T: Real>(d: MatmulDims, a: Matmul<'_, [T]>) -> Result<()> {
    a.check(d)?;
    let MatmulDims { m, k, n, ta, tb } = d;
    for row in 0..m {
        for col in 0..n {
            let mut sum = T::zero();
            for inner in 0..k {
                let left = if ta { at(m, inner, row) } else { at(k, row, inner) };
                let right = if tb { at(k, col, inner) } else { at(n, inner, col) };
                sum += a.a[left] * a.b[right];
            }
            let out = &mut a.out[at(n, row, col)];
            *out = if a.accumulate { *out + sum } else { sum };
        }
    }
    Ok(())
}
