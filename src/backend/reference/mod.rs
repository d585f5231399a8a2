//! The oracle: each operation as plain loops over its equation, generic over f32 and f64.
//!
//! Nothing here is ever optimised: every other back end is compared with it, so it has to stay readable next to the
//! paper. The functions are free and take host slices, so that a library user can build something other than the
//! classifier out of them; [`Reference`] puts them behind [`Ops`].
//!
//! | module | operations |
//! | --- | --- |
//! | [`fill`](mod@fill) | `out = value` |
//! | [`matmul`](mod@matmul) | `out (+)= op(a) · op(b)` |
//! | [`embedding`] | rows of a table by id |
//! | [`lstm_cell`] | one time step |
//! | [`lstm_sequence`] | `T` time steps, backpropagation through time |
//! | [`dense`] | `y = x·W + b` |
//! | [`cross_entropy`] | softmax and its loss |
//! | [`adam`] | the optimiser, with weight decay and clipping |
//!
//! [`Rounded`] is the same with numbers rounded to 16 bits where half precision stores them.
//!
//! Every function checks its arguments before it writes anything: after an error all buffers are as they were. A
//! NaN or an infinity in the values is no error; it travels on as IEEE 754 says.

pub mod adam;
pub mod cross_entropy;
pub mod dense;
pub mod embedding;
pub mod fill;
pub mod lstm_cell;
pub mod lstm_sequence;
pub mod matmul;
mod rounded;

pub use rounded::Rounded;

use super::{
    Adam, AdamConfig, CellBackward, CellDims, CellForward, CrossEntropyBackward, CrossEntropyDims,
    CrossEntropyForward, DenseBackward, DenseDims, DenseForward, EmbeddingBackward, EmbeddingDims,
    EmbeddingForward, Matmul, MatmulDims, Ops, Real, SequenceBackward, SequenceDims, SequenceForward,
    StepState,
};
use crate::error::{Error, Result};

/// The oracle back end in precision `T`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference<T>(std::marker::PhantomData<T>);

impl<T: Real> Reference<T> {
    /// The oracle.
    pub fn new() -> Self {
        Self(std::marker::PhantomData)
    }
}

impl<T: Real> Ops for Reference<T> {
    type Buf = [T];
    type Ids = [u32];
    type OwnedBuf = Vec<T>;
    type OwnedIds = Vec<u32>;

    fn name(&self) -> String {
        format!("reference {}", T::NAME)
    }

    fn upload(&self, values: &[f64]) -> Result<Vec<T>> {
        Ok(values.iter().map(|&x| T::from_f64(x)).collect())
    }

    fn upload_ids(&self, ids: &[u32]) -> Result<Vec<u32>> {
        Ok(ids.to_vec())
    }

    fn download(&self, buf: &[T]) -> Result<Vec<f64>> {
        Ok(buf.iter().map(|x| x.as_f64()).collect())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn fill(&self, buf: &mut [T], value: f64) -> Result<()> {
        fill::fill(buf, T::from_f64(value));
        Ok(())
    }

    fn matmul(&self, d: MatmulDims, a: Matmul<'_, [T]>) -> Result<()> {
        matmul::matmul(d, a)
    }

    fn embedding_forward(&self, d: EmbeddingDims, a: EmbeddingForward<'_, [T], [u32]>) -> Result<()> {
        embedding::forward(d, a)
    }

    fn embedding_backward(&self, d: EmbeddingDims, a: EmbeddingBackward<'_, [T], [u32]>) -> Result<()> {
        embedding::backward(d, a)
    }

    fn lstm_cell_forward(&self, d: CellDims, a: CellForward<'_, [T]>) -> Result<()> {
        lstm_cell::forward(d, a)
    }

    fn lstm_cell_backward(&self, d: CellDims, a: CellBackward<'_, [T]>) -> Result<()> {
        lstm_cell::backward(d, a)
    }

    fn lstm_sequence_forward(&self, d: SequenceDims, a: SequenceForward<'_, [T]>) -> Result<()> {
        lstm_sequence::forward(d, a)
    }

    fn lstm_sequence_backward(&self, d: SequenceDims, a: SequenceBackward<'_, [T]>) -> Result<()> {
        lstm_sequence::backward(d, a)
    }

    fn dense_forward(&self, d: DenseDims, a: DenseForward<'_, [T]>) -> Result<()> {
        dense::forward(d, a)
    }

    fn dense_backward(&self, d: DenseDims, a: DenseBackward<'_, [T]>) -> Result<()> {
        dense::backward(d, a)
    }

    fn cross_entropy_forward(
        &self,
        d: CrossEntropyDims,
        a: CrossEntropyForward<'_, [T], [u32]>,
    ) -> Result<()> {
        cross_entropy::forward(d, a)
    }

    fn cross_entropy_backward(
        &self,
        d: CrossEntropyDims,
        a: CrossEntropyBackward<'_, [T], [u32]>,
    ) -> Result<()> {
        cross_entropy::backward(d, a)
    }

    fn adam(&self, config: &AdamConfig, step: &StepState, a: Adam<'_, [T]>) -> Result<()> {
        adam::step(config, step, a)
    }
}

/// Position of `(row, col)` in a row-major array of `cols` columns.
fn at(cols: usize, row: usize, col: usize) -> usize {
    row * cols + col
}

/// Checks that every id (or label) is below `limit`, the extent of the axis that it indexes.
fn check_ids(op: &'static str, what: &'static str, ids: &[u32], limit: usize) -> Result<()> {
    // A u32 fits usize on every target that has a heap for such arrays.
    match ids.iter().position(|&id| id as usize >= limit) {
        None => Ok(()),
        Some(index) => Err(Error::Shape {
            op,
            what,
            expected: format!("below {limit} at every index"),
            found: format!("{} at index {index}", ids[index]),
        }),
    }
}
