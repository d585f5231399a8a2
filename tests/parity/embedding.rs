//! `embedding_forward` and `embedding_backward`.

use std::borrow::{Borrow as _, BorrowMut as _};

use crate::harness::*;
use recurve::backend::{EmbeddingBackward, EmbeddingDims, EmbeddingForward, Ops};

pub struct Forward;
pub struct Backward;

fn cases() -> Vec<EmbeddingDims> {
    let dims = |(n, v, e)| EmbeddingDims { n, v, e };
    let shapes = [
        (1, 1, 1),
        (19, 33, 31),
        (257, 99, 33),
        (1024, 257, 16),
        // Enough work for threads, and a table that does not divide into equal parts.
        (9000, 257, 19),
        (99, 3, 257),
        (0, 5, 3),
        (7, 5, 0),
    ];
    shapes.map(dims).to_vec()
}

impl Operation for Forward {
    const NAME: &'static str = "embedding_forward";
    type Case = EmbeddingDims;

    fn cases() -> Vec<EmbeddingDims> {
        cases()
    }

    fn arrays(d: &EmbeddingDims, random: &mut Random) -> Arrays {
        Arrays {
            inputs: vec![random.uniform(d.v * d.e, 1.0)],
            ids: vec![random.ids(d.n, d.v)],
            // A copy.
            outputs: vec![assigned("out", d.n * d.e, EXACT)],
        }
    }

    fn call<O: Ops>(ops: &O, d: &EmbeddingDims, on: &mut Buffers<O>) -> recurve::Result<()> {
        let ([table], [ids], [out]) = (&on.inputs[..], &on.ids[..], &mut on.outputs[..]) else {
            unreachable!()
        };
        ops.embedding_forward(
            *d,
            EmbeddingForward { table: table.borrow(), ids: ids.borrow(), out: out.borrow_mut() },
        )
    }
}

impl Operation for Backward {
    const NAME: &'static str = "embedding_backward";
    type Case = EmbeddingDims;

    fn cases() -> Vec<EmbeddingDims> {
        cases()
    }

    fn arrays(d: &EmbeddingDims, random: &mut Random) -> Arrays {
        // A sixth of the tokens meet in each of the first rows (a third, if there are only three): so many numbers
        // uniform within ±1 are added to one element.
        let tolerance = sum_of(d.n.div_ceil(d.v.min(6)), 0.58);
        Arrays {
            inputs: vec![random.uniform(d.n * d.e, 1.0)],
            ids: vec![random.ids(d.n, d.v)],
            outputs: vec![updated("dtable", random.uniform(d.v * d.e, 1.0), tolerance)],
        }
    }

    fn call<O: Ops>(ops: &O, d: &EmbeddingDims, on: &mut Buffers<O>) -> recurve::Result<()> {
        let ([dout], [ids], [dtable]) = (&on.inputs[..], &on.ids[..], &mut on.outputs[..]) else {
            unreachable!()
        };
        ops.embedding_backward(
            *d,
            EmbeddingBackward { ids: ids.borrow(), dout: dout.borrow(), dtable: dtable.borrow_mut() },
        )
    }
}
