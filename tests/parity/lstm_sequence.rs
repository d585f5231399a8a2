//! `lstm_sequence_forward` and `lstm_sequence_backward`. Backward starts from what the oracle's forward left, rounded
//! to f32, so that its errors are its own.

use std::borrow::{Borrow as _, BorrowMut as _};

use crate::harness::*;
use recurve::backend::reference::Reference;
use recurve::backend::{Ops, SequenceBackward, SequenceDims, SequenceForward};

/// Which of the optional output gradients are there.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub d: SequenceDims,
    pub dh: bool,
    pub dh_last: bool,
    pub dc_last: bool,
}

pub struct Forward;
pub struct Backward;

fn cases() -> Vec<Case> {
    let shapes = [
        (1, 1, 1, 1),
        (32, 32, 16, 32),
        (19, 33, 31, 33),
        (31, 19, 33, 19),
        (3, 33, 19, 99),
        (2, 257, 33, 31),
        (5, 19, 1, 257),
        (99, 1, 31, 33),
        (257, 2, 19, 1),
        // Every width of kernel that a device may have, at its edges and beyond the widest.
        (5, 33, 16, 64),
        (3, 140, 33, 64),
        (4, 131, 17, 65),
        (7, 19, 5, 96),
        (3, 133, 19, 128),
        (6, 33, 40, 129),
        // Several tiles of a group's rows, and a group of fewer rows than a tile.
        (3, 45, 3, 130),
        (4, 9, 5, 259),
        // The batch's last time steps may be all there is.
        (1, 99, 257, 19),
        (0, 19, 3, 5),
        (3, 0, 5, 4),
        (3, 2, 0, 4),
    ];
    shapes
        .into_iter()
        .enumerate()
        .map(|(index, (t, b, e, h))| Case {
            d: SequenceDims { t, b, e, h },
            // Every combination turns up; the first is what the classifier asks for.
            dh: index & 1 != 0,
            dh_last: index & 2 == 0,
            dc_last: index & 4 != 0,
        })
        .collect()
}

/// `x, h0, c0, w, u, b` of a case.
fn forward_inputs(d: &SequenceDims, random: &mut Random) -> Vec<Vec<f64>> {
    let SequenceDims { t, b, e, h } = *d;
    let scale = 2.0 / ((e + h) as f64).sqrt();
    vec![
        random.uniform(t * b * e, 1.0),
        random.uniform(b * h, 1.0),
        random.uniform(b * h, 1.0),
        random.uniform(e * 4 * h, scale),
        random.uniform(h * 4 * h, scale),
        random.uniform(4 * h, 1.0),
    ]
}

impl Operation for Forward {
    const NAME: &'static str = "lstm_sequence_forward";
    type Case = Case;

    fn cases() -> Vec<Case> {
        cases()
    }

    fn arrays(case: &Case, random: &mut Random) -> Arrays {
        let SequenceDims { t, b, e, h } = case.d;
        // As one cell, four times over: with these weights an error fades from time step to time step, and what
        // earlier steps left is no larger than what a few steps add.
        let tolerance = roundings(4.0, 4.0 * (6.0 + ((e + h) as f64).sqrt()), 1.0);
        Arrays {
            inputs: forward_inputs(&case.d, random),
            outputs: vec![
                assigned("gates", t * b * 4 * h, tolerance),
                assigned("h", (t + 1) * b * h, tolerance),
                assigned("c", (t + 1) * b * h, tolerance),
            ],
            ..Arrays::default()
        }
    }

    fn call<O: Ops>(ops: &O, case: &Case, on: &mut Buffers<O>) -> recurve::Result<()> {
        let [x, h0, c0, w, u, b] = &on.inputs[..] else { unreachable!() };
        let [gates, h, c] = &mut on.outputs[..] else { unreachable!() };
        ops.lstm_sequence_forward(
            case.d,
            SequenceForward {
                x: x.borrow(),
                h0: h0.borrow(),
                c0: c0.borrow(),
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
    const NAME: &'static str = "lstm_sequence_backward";
    type Case = Case;

    fn cases() -> Vec<Case> {
        cases()
    }

    fn arrays(case: &Case, random: &mut Random) -> Arrays {
        let SequenceDims { t, b, e, h } = case.d;
        let forward = Forward::arrays(case, random);
        let left = run::<Forward, _>(&Reference::<f64>::new(), case, &forward);
        let to_f32 = |values: &Vec<f64>| values.iter().map(|&x| f64::from(x as f32)).collect();
        let mut inputs =
            vec![forward.inputs[0].clone(), forward.inputs[3].clone(), forward.inputs[4].clone()];
        inputs.extend(left.iter().map(to_f32));
        inputs.extend([
            random.uniform(t * b * h, 1.0),
            random.uniform(b * h, 1.0),
            random.uniform(b * h, 1.0),
        ]);
        // As for one cell, with what the time steps add: gradients by outputs and states stay of order 1 and their
        // errors fade on the way back; the parameters' are sums over T·B rows.
        let back = roundings(4.0, 4.0 * (8.0 + ((4 * h) as f64).sqrt()), 1.0);
        let parameter = sum_of(t * b + 1, 0.2);
        Arrays {
            inputs,
            outputs: vec![
                assigned("dx", t * b * e, back),
                assigned("dh0", b * h, back),
                assigned("dc0", b * h, back),
                updated("dw", random.uniform(e * 4 * h, 1.0), parameter),
                updated("du", random.uniform(h * 4 * h, 1.0), parameter),
                updated("db", random.uniform(4 * h, 1.0), parameter),
            ],
            ..Arrays::default()
        }
    }

    fn call<O: Ops>(ops: &O, case: &Case, on: &mut Buffers<O>) -> recurve::Result<()> {
        let [x, w, u, gates, h, c, dh, dh_last, dc_last] = &on.inputs[..] else { unreachable!() };
        let [dx, dh0, dc0, dw, du, db] = &mut on.outputs[..] else { unreachable!() };
        ops.lstm_sequence_backward(
            case.d,
            SequenceBackward {
                x: x.borrow(),
                w: w.borrow(),
                u: u.borrow(),
                gates: gates.borrow(),
                h: h.borrow(),
                c: c.borrow(),
                dh: case.dh.then(|| dh.borrow()),
                dh_last: case.dh_last.then(|| dh_last.borrow()),
                dc_last: case.dc_last.then(|| dc_last.borrow()),
                dx: dx.borrow_mut(),
                dh0: dh0.borrow_mut(),
                dc0: dc0.borrow_mut(),
                dw: dw.borrow_mut(),
                du: du.borrow_mut(),
                db: db.borrow_mut(),
            },
        )
    }
}
