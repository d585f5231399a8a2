//! `dense_forward` and `dense_backward`.

use std::borrow::{Borrow as _, BorrowMut as _};

use crate::harness::*;
use recurve::backend::{DenseBackward, DenseDims, DenseForward, Ops};

pub struct Forward;
pub struct Backward;

fn cases() -> Vec<DenseDims> {
    let dims = |(b, inputs, outputs)| DenseDims { b, inputs, outputs };
    let shapes = [
        (1, 1, 1),
        (32, 32, 2),
        (19, 257, 31),
        (257, 33, 19),
        (99, 99, 99),
        (33, 31, 257),
        (1, 19, 33),
        (0, 3, 2),
        (3, 0, 2),
        (3, 2, 0),
    ];
    shapes.map(dims).to_vec()
}

/// The tolerance of a sum of `n` products of two uniform numbers within ±1.
fn sum(n: usize) -> Tolerance {
    sum_of(n, 1.0 / 3.0)
}

impl Operation for Forward {
    const NAME: &'static str = "dense_forward";
    type Case = DenseDims;

    fn cases() -> Vec<DenseDims> {
        cases()
    }

    fn arrays(d: &DenseDims, random: &mut Random) -> Arrays {
        let DenseDims { b, inputs, outputs } = *d;
        Arrays {
            inputs: vec![
                random.uniform(b * inputs, 1.0),
                random.uniform(inputs * outputs, 1.0),
                random.uniform(outputs, 1.0),
            ],
            outputs: vec![assigned("y", b * outputs, sum(inputs + 1))],
            ..Arrays::default()
        }
    }

    fn call<O: Ops>(ops: &O, d: &DenseDims, on: &mut Buffers<O>) -> recurve::Result<()> {
        let [x, w, b] = &on.inputs[..] else { unreachable!() };
        let [y] = &mut on.outputs[..] else { unreachable!() };
        ops.dense_forward(*d, DenseForward { x: x.borrow(), w: w.borrow(), b: b.borrow(), y: y.borrow_mut() })
    }
}

impl Operation for Backward {
    const NAME: &'static str = "dense_backward";
    type Case = DenseDims;

    fn cases() -> Vec<DenseDims> {
        cases()
    }

    fn arrays(d: &DenseDims, random: &mut Random) -> Arrays {
        let DenseDims { b, inputs, outputs } = *d;
        Arrays {
            inputs: vec![
                random.uniform(b * inputs, 1.0),
                random.uniform(inputs * outputs, 1.0),
                random.uniform(b * outputs, 1.0),
            ],
            outputs: vec![
                assigned("dx", b * inputs, sum(outputs)),
                updated("dw", random.uniform(inputs * outputs, 1.0), sum(b + 1)),
                // Here the terms are not products.
                updated("db", random.uniform(outputs, 1.0), sum_of(b + 1, 0.58)),
            ],
            ..Arrays::default()
        }
    }

    fn call<O: Ops>(ops: &O, d: &DenseDims, on: &mut Buffers<O>) -> recurve::Result<()> {
        let [x, w, dy] = &on.inputs[..] else { unreachable!() };
        let [dx, dw, db] = &mut on.outputs[..] else { unreachable!() };
        ops.dense_backward(
            *d,
            DenseBackward {
                x: x.borrow(),
                w: w.borrow(),
                dy: dy.borrow(),
                dx: dx.borrow_mut(),
                dw: dw.borrow_mut(),
                db: db.borrow_mut(),
            },
        )
    }
}
