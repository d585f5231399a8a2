//! The oracle of half precision: the operations of [`Reference`] with numbers rounded where
//! [`precision`](crate::backend::precision) says that 16 bits store them. Everything stays in arrays of `T`: what is stored in
//! 16 bits holds numbers that 16 bits can hold, and operands that may be something else are rounded before they are read.

use super::{Reference, cross_entropy, dense, embedding, lstm_cell, lstm_sequence, matmul};
use crate::backend::{
    Adam, AdamConfig, CellBackward, CellDims, CellForward, CrossEntropyBackward, CrossEntropyDims,
    CrossEntropyForward, DenseBackward, DenseDims, DenseForward, EmbeddingBackward, EmbeddingDims,
    EmbeddingForward, Matmul, MatmulDims, Ops, Precision, Real, SequenceBackward, SequenceDims,
    SequenceForward, StepState,
};
use crate::error::Result;

/// The oracle in arithmetic of type `T`, rounded to 16 bits where they would be stored.
#[derive(Clone, Copy, Debug)]
pub struct Rounded<T> {
    precision: Precision,
    exact: Reference<T>,
}

impl<T: Real> Rounded<T> {
    /// The oracle of this precision.
    pub fn new(precision: Precision) -> Self {
        Self { precision, exact: Reference::new() }
    }

    /// What it rounds to.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    fn round(&self, values: &[T]) -> Vec<T> {
        self.precision.rounded(values)
    }

    fn round_in_place(&self, values: &mut [T]) {
        for x in values {
            *x = self.precision.round(*x);
        }
    }

    /// One time step whose operands are rounded: the state follows from the gates as they are, then they are stored.
    fn cell_forward(&self, d: CellDims, a: CellForward<'_, [T]>) -> Result<()> {
        let CellForward { x, h_prev, c_prev, w, u, b, gates, h, c } = a;
        let a = CellForward { x, h_prev, c_prev, w, u, b, gates: &mut *gates, h: &mut *h, c };
        lstm_cell::forward(d, a)?;
        self.round_in_place(gates);
        self.round_in_place(h);
        Ok(())
    }

    /// One time step back whose operands are rounded.
    fn cell_backward(&self, d: CellDims, a: CellBackward<'_, [T]>) -> Result<()> {
        lstm_cell::backward_storing(d, a, |dpre| self.precision.round(dpre))
    }
}

impl<T: Real> Ops for Rounded<T> {
    type Buf = [T];
    type Ids = [u32];
    type OwnedBuf = Vec<T>;
    type OwnedIds = Vec<u32>;

    fn name(&self) -> String {
        format!("{} rounded to {}", self.exact.name(), self.precision)
    }

    fn upload(&self, values: &[f64]) -> Result<Vec<T>> {
        self.exact.upload(values)
    }

    fn upload_ids(&self, ids: &[u32]) -> Result<Vec<u32>> {
        self.exact.upload_ids(ids)
    }

    fn download(&self, buf: &[T]) -> Result<Vec<f64>> {
        self.exact.download(buf)
    }

    fn synchronize(&self) -> Result<()> {
        self.exact.synchronize()
    }

    fn fill(&self, buf: &mut [T], value: f64) -> Result<()> {
        self.exact.fill(buf, value)
    }

    /// The operands are rounded, the result is not.
    fn matmul(&self, d: MatmulDims, a: Matmul<'_, [T]>) -> Result<()> {
        a.check(d)?;
        matmul::matmul(d, Matmul { a: &self.round(a.a), b: &self.round(a.b), ..a })
    }

    fn embedding_forward(&self, d: EmbeddingDims, a: EmbeddingForward<'_, [T], [u32]>) -> Result<()> {
        let EmbeddingForward { table, ids, out } = a;
        embedding::forward(d, EmbeddingForward { table, ids, out: &mut *out })?;
        self.round_in_place(out);
        Ok(())
    }

    fn embedding_backward(&self, d: EmbeddingDims, a: EmbeddingBackward<'_, [T], [u32]>) -> Result<()> {
        embedding::backward(d, a)
    }

    fn lstm_cell_forward(&self, d: CellDims, a: CellForward<'_, [T]>) -> Result<()> {
        a.check(d)?;
        let (x, h_prev, w, u) = (self.round(a.x), self.round(a.h_prev), self.round(a.w), self.round(a.u));
        self.cell_forward(d, CellForward { x: &x[..], h_prev: &h_prev, w: &w, u: &u, ..a })
    }

    fn lstm_cell_backward(&self, d: CellDims, a: CellBackward<'_, [T]>) -> Result<()> {
        a.check(d)?;
        let (x, h_prev, w, u, gates) =
            (self.round(a.x), self.round(a.h_prev), self.round(a.w), self.round(a.u), self.round(a.gates));
        self.cell_backward(d, CellBackward { x: &x[..], h_prev: &h_prev, w: &w, u: &u, gates: &gates, ..a })
    }

    fn lstm_sequence_forward(&self, d: SequenceDims, a: SequenceForward<'_, [T]>) -> Result<()> {
        a.check(d)?;
        let (x, h0, w, u) = (self.round(a.x), self.round(a.h0), self.round(a.w), self.round(a.u));
        let a = SequenceForward { x: &x[..], h0: &h0, w: &w, u: &u, ..a };
        lstm_sequence::forward_by(d, a, |d, a| self.cell_forward(d, a))
    }

    fn lstm_sequence_backward(&self, d: SequenceDims, a: SequenceBackward<'_, [T]>) -> Result<()> {
        a.check(d)?;
        let (x, w, u, gates, h) =
            (self.round(a.x), self.round(a.w), self.round(a.u), self.round(a.gates), self.round(a.h));
        let a = SequenceBackward { x: &x[..], w: &w, u: &u, gates: &gates, h: &h, ..a };
        lstm_sequence::backward_by(d, a, |d, a| self.cell_backward(d, a))
    }

    fn dense_forward(&self, d: DenseDims, a: DenseForward<'_, [T]>) -> Result<()> {
        a.check(d)?;
        dense::forward(d, DenseForward { x: &self.round(a.x), w: &self.round(a.w), ..a })
    }

    fn dense_backward(&self, d: DenseDims, a: DenseBackward<'_, [T]>) -> Result<()> {
        a.check(d)?;
        dense::backward(d, DenseBackward { x: &self.round(a.x), w: &self.round(a.w), ..a })
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
        self.exact.adam(config, step, a)
    }
}
