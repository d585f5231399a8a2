//! Fill: `out[i] = value`, over a buffer of any shape.
//!
//! The gradient arena is filled with zeros before the backward pass, because parameter gradients accumulate.

use crate::backend::Real;

/// Assigns `value` to every element of `out`; an empty buffer is fine.
pub fn fill<T: Real>(out: &mut [T], value: T) {
    for x in out {
        *x = value;
    }
}
