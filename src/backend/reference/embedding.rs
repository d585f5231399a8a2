//! Embedding: `out[i] = table[ids[i]]`; backward `dtable[ids[i]] += dout[i]`.
//!
//! Shapes: `table` `[V,E]`, `ids` `[n]`, `out` `[n,E]`. In the classifier `n` is `T·B` and ids are time-major, so a
//! token's gradients are summed in the order of (time step, batch row).

use super::{at, check_ids};
use crate::backend::{EmbeddingBackward, EmbeddingDims, EmbeddingForward, Real};
use crate::error::Result;

/// Assigns `out`.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if an argument does not have the extent that `d` asks for or an id is not
/// below `V`; nothing has been written then.
pub fn forward<T: Real>(d: EmbeddingDims, a: EmbeddingForward<'_, [T], [u32]>) -> Result<()> {
    a.check(d)?;
    check_ids("embedding_forward", "ids [n]", a.ids, d.v)?;
    for (i, &id) in a.ids.iter().enumerate() {
        for col in 0..d.e {
            a.out[at(d.e, i, col)] = a.table[at(d.e, id as usize, col)];
        }
    }
    Ok(())
}

/// Accumulates into `dtable`: an id that occurs more than once gets the sum, added in the order of `i`; rows without
/// an id keep what they held.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if an argument does not have the extent that `d` asks for or an id is not
/// below `V`; nothing has been written then.
pub fn backward<T: Real>(d: EmbeddingDims, a: EmbeddingBackward<'_, [T], [u32]>) -> Result<()> {
    a.check(d)?;
    check_ids("embedding_backward", "ids [n]", a.ids, d.v)?;
    for (i, &id) in a.ids.iter().enumerate() {
        for col in 0..d.e {
            a.dtable[at(d.e, id as usize, col)] += a.dout[at(d.e, i, col)];
        }
    }
    Ok(())
}
