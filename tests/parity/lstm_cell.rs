//! `lstm_cell_forward` and `lstm_cell_backward`.

use std::borrow::{Borrow as _, BorrowMut as _};

use crate::harness::*;
use recurve::backend::{CellBackward, CellDims, CellForward, Ops};

pub struct Forward;
pub struct Backward;

fn cases() -> Vec<CellDims> {
    let dims = |(b, e, h)| CellDims { b, e, h };
    let shapes = [
        (1, 1, 1),
        (32, 16, 32),
        (19, 31, 33),
        (33, 19, 99),
        (99, 257, 31),
        (257, 33, 19),
        (1, 99, 257),
        (31, 1, 1),
        (0, 3, 4),
        (3, 0, 4),
    ];
    shapes.map(dims).to_vec()
}

/// Weights small enough that gates do not saturate: pre-activations of about 1, whatever the width.
fn weights(d: &CellDims, random: &mut Random) -> [Vec<f64>; 3] {
    let CellDims { e, h, .. } = *d;
    let scale = 2.0 / ((e + h) as f64).sqrt();
    [random.uniform(e * 4 * h, scale), random.uniform(h * 4 * h, scale), random.uniform(4 * h, 1.0)]
}

impl Operation for Forward {
    const NAME: &'static str = "lstm_cell_forward";
    type Case = CellDims;

    fn cases() -> Vec<CellDims> {
        cases()
    }

    fn arrays(d: &CellDims, random: &mut Random) -> Arrays {
        let CellDims { b, e, h } = *d;
        let [w, u, bias] = weights(d, random);
        // A pre-activation is a sum of E+H terms that stays below about 3: √(E+H) roundings of that size are left of
        // it. The slopes of the activations are at most 1; they add 3 roundings, and the state a few more.
        let tolerance = roundings(4.0, 6.0 + ((e + h) as f64).sqrt(), 1.0);
        Arrays {
            inputs: vec![
                random.uniform(b * e, 1.0),
                random.uniform(b * h, 1.0),
                random.uniform(b * h, 1.0),
                w,
                u,
                bias,
            ],
            outputs: vec![
                assigned("gates", b * 4 * h, tolerance),
                assigned("h", b * h, tolerance),
                assigned("c", b * h, tolerance),
            ],
            ..Arrays::default()
        }
    }

    fn call<O: Ops>(ops: &O, d: &CellDims, on: &mut Buffers<O>) -> recurve::Result<()> {
        let [x, h_prev, c_prev, w, u, b] = &on.inputs[..] else { unreachable!() };
        let [gates, h, c] = &mut on.outputs[..] else { unreachable!() };
        ops.lstm_cell_forward(
            *d,
            CellForward {
                x: x.borrow(),
                h_prev: h_prev.borrow(),
                c_prev: c_prev.borrow(),
                w: w.borrow(),
                u: u.borrow(),
                b: b.borrow(),
                gates: gates.borrow_mut(),
                h: h.borrow_mut(),
                c: c.borrow_mut(),
            },
        )
    }
}

impl Operation for Backward {
    const NAME: &'static str = "lstm_cell_backward";
    type Case = CellDims;

    fn cases() -> Vec<CellDims> {
        cases()
    }

    fn arrays(d: &CellDims, random: &mut Random) -> Arrays {
        let CellDims { b, e, h } = *d;
        let [w, u, _] = weights(d, random);
        // Any numbers of the right range will do for what forward left: the equations are polynomials in them.
        let mut gates = random.uniform(b * 4 * h, 0.5);
        for (index, gate) in gates.iter_mut().enumerate() {
            // i, f and o in (0,1), g in (−1,1).
            *gate = if index / h.max(1) % 4 == 2 { 2.0 * *gate } else { 0.5 + *gate };
            *gate = f64::from(*gate as f32);
        }
        // `dpre` is made of products of numbers below 1, which leave a standard deviation of about 0.2. Sums of 4H of
        // these, times small weights, for dx and dh_prev; of B for the parameters.
        let back = roundings(4.0, 8.0 + ((4 * h) as f64).sqrt(), 1.0);
        let parameter = sum_of(b + 1, 0.2);
        let inputs = vec![
            random.uniform(b * e, 1.0),
            random.uniform(b * h, 1.0),
            random.uniform(b * h, 1.0),
            w,
            u,
            gates,
            random.uniform(b * h, 1.0),
            random.uniform(b * h, 1.0),
            random.uniform(b * h, 1.0),
        ];
        Arrays {
            inputs,
            outputs: vec![
                assigned("dx", b * e, back),
                assigned("dh_prev", b * h, back),
                assigned("dc_prev", b * h, back),
                updated("dw", random.uniform(e * 4 * h, 1.0), parameter),
                updated("du", random.uniform(h * 4 * h, 1.0), parameter),
                updated("db", random.uniform(4 * h, 1.0), parameter),
            ],
            ..Arrays::default()
        }
    }

    fn call<O: Ops>(ops: &O, d: &CellDims, on: &mut Buffers<O>) -> recurve::Result<()> {
        let [x, h_prev, c_prev, w, u, gates, c, dh, dc] = &on.inputs[..] else { unreachable!() };
        let [dx, dh_prev, dc_prev, dw, du, db] = &mut on.outputs[..] else { unreachable!() };
        ops.lstm_cell_backward(
            *d,
            CellBackward {
                x: x.borrow(),
                h_prev: h_prev.borrow(),
                c_prev: c_prev.borrow(),
                w: w.borrow(),
                u: u.borrow(),
                gates: gates.borrow(),
                c: c.borrow(),
                dh: dh.borrow(),
                dc: dc.borrow(),
                dx: dx.borrow_mut(),
                dh_prev: dh_prev.borrow_mut(),
                dc_prev: dc_prev.borrow_mut(),
                dw: dw.borrow_mut(),
                du: du.borrow_mut(),
                db: db.borrow_mut(),
            },
        )
    }
}
