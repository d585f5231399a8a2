//! What an operation must do at a shape: the work that throughput is measured by, and that counts are compared with.
//!
//! * Multiply-adds of products and recurrent layers. Two flops each; activations, sums and Adam's arithmetic are not counted.
//! * Compulsory bytes: each input read once, each output written once (and read once, where it is updated), 4 bytes a
//!   number. Of an embedding table only rows that a token asks for. What a back end reads twice or keeps in between is
//!   its own affair.

#![allow(dead_code)] // each benchmark uses its part

pub mod cells;

use crate::harness::{Operation, Random};
use crate::{adam, cross_entropy, dense, embedding, fill, lstm_cell, lstm_sequence, matmul};
use recurve::backend::{CellDims, CrossEntropyDims, DenseDims, EmbeddingDims, MatmulDims, SequenceDims};

/// An operation whose work is known.
pub trait Work: Operation {
    /// Multiply-adds of products.
    fn multiply_adds(case: &Self::Case) -> usize;
    /// Numbers of 4 bytes that are read and that are written.
    fn numbers(case: &Self::Case) -> (usize, usize);
}

/// Flops of a call.
pub fn flops<P: Work>(case: &P::Case) -> u64 {
    2 * P::multiply_adds(case) as u64
}

/// Compulsory bytes of a call, read and written.
pub fn bytes<P: Work>(case: &P::Case) -> (u64, u64) {
    let (read, written) = P::numbers(case);
    (4 * read as u64, 4 * written as u64)
}

/// How long a call takes, very roughly: its multiply-adds, or the numbers that it moves.
pub fn size<P: Work>(case: &P::Case) -> usize {
    let (read, written) = P::numbers(case);
    P::multiply_adds(case) + read + written
}

impl Work for matmul::Product {
    fn multiply_adds(case: &matmul::Case) -> usize {
        let MatmulDims { m, k, n, .. } = case.d;
        m * k * n
    }

    fn numbers(case: &matmul::Case) -> (usize, usize) {
        let MatmulDims { m, k, n, .. } = case.d;
        (m * k + k * n + if case.accumulate { m * n } else { 0 }, m * n)
    }
}

/// Rows of the table that the tokens of a case ask for.
fn distinct<P: Operation>(case: &P::Case) -> usize {
    let mut arrays = P::arrays(case, &mut Random::new(0));
    let mut ids = arrays.ids.swap_remove(0);
    ids.sort_unstable();
    ids.dedup();
    ids.len()
}

impl Work for embedding::Forward {
    fn multiply_adds(_: &EmbeddingDims) -> usize {
        0
    }

    fn numbers(d: &EmbeddingDims) -> (usize, usize) {
        (d.n + distinct::<Self>(d) * d.e, d.n * d.e)
    }
}

impl Work for embedding::Backward {
    fn multiply_adds(_: &EmbeddingDims) -> usize {
        0
    }

    fn numbers(d: &EmbeddingDims) -> (usize, usize) {
        let rows = distinct::<Self>(d) * d.e;
        (d.n + d.n * d.e + rows, rows)
    }
}

/// Parameters of an LSTM layer.
fn parameters(e: usize, h: usize) -> usize {
    (e + h + 1) * 4 * h
}

impl Work for lstm_cell::Forward {
    fn multiply_adds(d: &CellDims) -> usize {
        d.b * (d.e + d.h) * 4 * d.h
    }

    fn numbers(d: &CellDims) -> (usize, usize) {
        let CellDims { b, e, h } = *d;
        // x, h_prev, c_prev and the parameters; gates, h, c.
        (b * (e + 2 * h) + parameters(e, h), b * 6 * h)
    }
}

impl Work for lstm_cell::Backward {
    fn multiply_adds(d: &CellDims) -> usize {
        2 * d.b * (d.e + d.h) * 4 * d.h
    }

    fn numbers(d: &CellDims) -> (usize, usize) {
        let CellDims { b, e, h } = *d;
        // x, h_prev, c_prev, gates, c, dh, dc, w, u and the parameters' gradients; dx, dh_prev, dc_prev and these.
        let weights = (e + h) * 4 * h;
        (b * (e + 9 * h) + weights + parameters(e, h), b * (e + 2 * h) + parameters(e, h))
    }
}

impl Work for lstm_sequence::Forward {
    fn multiply_adds(case: &lstm_sequence::Case) -> usize {
        let SequenceDims { t, b, e, h } = case.d;
        t * b * (e + h) * 4 * h
    }

    fn numbers(case: &lstm_sequence::Case) -> (usize, usize) {
        let SequenceDims { t, b, e, h } = case.d;
        // x, h0, c0 and the parameters; gates, h, c.
        (b * (t * e + 2 * h) + parameters(e, h), b * (t * 4 * h + 2 * (t + 1) * h))
    }
}

impl Work for lstm_sequence::Backward {
    fn multiply_adds(case: &lstm_sequence::Case) -> usize {
        let SequenceDims { t, b, e, h } = case.d;
        2 * t * b * (e + h) * 4 * h
    }

    fn numbers(case: &lstm_sequence::Case) -> (usize, usize) {
        let SequenceDims { t, b, e, h } = case.d;
        // x, gates, rows 0 to T−1 of h, all of c, the output's gradients, w, u and the parameters' gradients; dx, dh0,
        // dc0 and these.
        let given = t * usize::from(case.dh) + usize::from(case.dh_last) + usize::from(case.dc_last);
        let weights = (e + h) * 4 * h;
        let read = b * (t * e + t * 4 * h + t * h + (t + 1) * h + given * h) + weights + parameters(e, h);
        (read, b * (t * e + 2 * h) + parameters(e, h))
    }
}

impl Work for dense::Forward {
    fn multiply_adds(d: &DenseDims) -> usize {
        d.b * d.inputs * d.outputs
    }

    fn numbers(d: &DenseDims) -> (usize, usize) {
        (d.b * d.inputs + (d.inputs + 1) * d.outputs, d.b * d.outputs)
    }
}

impl Work for dense::Backward {
    fn multiply_adds(d: &DenseDims) -> usize {
        2 * d.b * d.inputs * d.outputs
    }

    fn numbers(d: &DenseDims) -> (usize, usize) {
        let gradients = (d.inputs + 1) * d.outputs;
        let read = d.b * d.inputs + d.inputs * d.outputs + d.b * d.outputs + gradients;
        (read, d.b * d.inputs + gradients)
    }
}

impl Work for cross_entropy::Forward {
    fn multiply_adds(_: &cross_entropy::Case) -> usize {
        0
    }

    fn numbers(case: &cross_entropy::Case) -> (usize, usize) {
        let CrossEntropyDims { b, c } = case.d;
        (b * c + b, b * c + 2 * b)
    }
}

impl Work for cross_entropy::Backward {
    fn multiply_adds(_: &cross_entropy::Case) -> usize {
        0
    }

    fn numbers(case: &cross_entropy::Case) -> (usize, usize) {
        let CrossEntropyDims { b, c } = case.d;
        (b * c + b, b * c)
    }
}

impl Work for adam::Steps {
    fn multiply_adds(_: &adam::Case) -> usize {
        0
    }

    fn numbers(case: &adam::Case) -> (usize, usize) {
        let steps = usize::try_from(case.steps).expect("a few steps");
        (steps * 4 * case.n, steps * 3 * case.n)
    }
}

impl Work for fill::Fill {
    fn multiply_adds(_: &usize) -> usize {
        0
    }

    fn numbers(n: &usize) -> (usize, usize) {
        (0, *n)
    }
}
