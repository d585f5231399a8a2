//! A sequence as so many calls of the cell: what `lstm_sequence_forward` and `lstm_sequence_backward` save. The arrays
//! are theirs, cut into time steps, and so is the work that it is measured by.

use std::borrow::{Borrow as _, BorrowMut as _};

use super::Work;
use crate::harness::{Arrays, Buffers, Operation, Output, Random};
use crate::lstm_sequence::{self, Case};
use recurve::backend::{CellBackward, CellDims, CellForward, Ops};

pub struct Forward;
pub struct Backward;

fn cell(case: &Case) -> CellDims {
    CellDims { b: case.d.b, e: case.d.e, h: case.d.h }
}

/// `rows` pieces of an array of at least so many, of `len` elements each.
fn cut(values: &[f64], rows: usize, len: usize) -> impl Iterator<Item = Vec<f64>> {
    (0..rows).map(move |s| values[s * len..(s + 1) * len].to_vec())
}

fn cut_output(output: &Output, from: usize, rows: usize, len: usize) -> impl Iterator<Item = Output> {
    let Output { name, before, tolerance } = output;
    cut(&before[from * len..], rows, len).map(|before| Output { name, before, tolerance: *tolerance })
}

impl Operation for Forward {
    const NAME: &'static str = "lstm_cell_forward for each time step";
    type Case = Case;

    fn cases() -> Vec<Case> {
        lstm_sequence::Forward::cases()
    }

    /// Inputs: x of each time step, then h0, c0, w, u, b. Outputs: all gates, all h but the first, all such c.
    fn arrays(case: &Case, random: &mut Random) -> Arrays {
        let (t, CellDims { b, e, h }) = (case.d.t, cell(case));
        let mut whole = lstm_sequence::Forward::arrays(case, random);
        let rest = whole.inputs.split_off(1);
        let [gates, h_out, c_out] = &whole.outputs[..] else { unreachable!() };
        Arrays {
            inputs: cut(&whole.inputs[0], t, b * e).chain(rest).collect(),
            outputs: cut_output(gates, 0, t, b * 4 * h)
                .chain(cut_output(h_out, 1, t, b * h))
                .chain(cut_output(c_out, 1, t, b * h))
                .collect(),
            ..Arrays::default()
        }
    }

    fn call<O: Ops>(ops: &O, case: &Case, on: &mut Buffers<O>) -> recurve::Result<()> {
        let t = case.d.t;
        let (x, rest) = on.inputs.split_at(t);
        let [h0, c0, w, u, b] = rest else { unreachable!() };
        let (gates, states) = on.outputs.split_at_mut(t);
        let (h, c) = states.split_at_mut(t);
        for s in 0..t {
            let (h_before, h) = h.split_at_mut(s);
            let (c_before, c) = c.split_at_mut(s);
            ops.lstm_cell_forward(
                cell(case),
                CellForward {
                    x: x[s].borrow(),
                    h_prev: h_before.last().unwrap_or(h0).borrow(),
                    c_prev: c_before.last().unwrap_or(c0).borrow(),
                    w: w.borrow(),
                    u: u.borrow(),
                    b: b.borrow(),
                    gates: gates[s].borrow_mut(),
                    h: h[0].borrow_mut(),
                    c: c[0].borrow_mut(),
                },
            )?;
        }
        Ok(())
    }
}

impl Operation for Backward {
    const NAME: &'static str = "lstm_cell_backward for each time step";
    type Case = Case;

    fn cases() -> Vec<Case> {
        lstm_sequence::Backward::cases().into_iter().filter(|case| !case.dh && case.dh_last).collect()
    }

    /// Inputs: x, gates and h_prev of each time step, c with the last one, w, u, dh_last, dc_last (zeros if the case has
    /// none). Outputs: dx, dh_prev, dc_prev of each time step, dw, du, db.
    fn arrays(case: &Case, random: &mut Random) -> Arrays {
        assert!(!case.dh && case.dh_last, "a cell takes one gradient by its output: {case:?}");
        let (t, CellDims { b, e, h }) = (case.d.t, cell(case));
        let mut whole = lstm_sequence::Backward::arrays(case, random);
        let [x, w, u, gates, h_in, c_in, _, dh_last, dc_last] = &whole.inputs[..] else { unreachable!() };
        let dc_last = if case.dc_last { dc_last.clone() } else { vec![0.0; b * h] };
        let inputs = cut(x, t, b * e)
            .chain(cut(gates, t, b * 4 * h))
            .chain(cut(h_in, t, b * h))
            .chain(cut(c_in, t + 1, b * h))
            .chain([w.clone(), u.clone(), dh_last.clone(), dc_last])
            .collect();
        let parameters = whole.outputs.split_off(3);
        let [dx, dh0, dc0] = &whole.outputs[..] else { unreachable!() };
        // Every time step's gradient by the state is held to the initial one's tolerance.
        let states = |output: &Output| {
            let Output { name, ref before, tolerance } = *output;
            let before = before.clone();
            (0..t).map(move |_| Output { name, before: before.clone(), tolerance })
        };
        let outputs = cut_output(dx, 0, t, b * e).chain(states(dh0)).chain(states(dc0)).chain(parameters);
        Arrays { inputs, outputs: outputs.collect(), ..Arrays::default() }
    }

    fn call<O: Ops>(ops: &O, case: &Case, on: &mut Buffers<O>) -> recurve::Result<()> {
        let t = case.d.t;
        let (x, rest) = on.inputs.split_at(t);
        let (gates, rest) = rest.split_at(t);
        let (h, rest) = rest.split_at(t);
        let (c, rest) = rest.split_at(t + 1);
        let [w, u, dh_last, dc_last] = rest else { unreachable!() };
        let (dx, rest) = on.outputs.split_at_mut(t);
        let (dh, rest) = rest.split_at_mut(t);
        let (dc, rest) = rest.split_at_mut(t);
        let [dw, du, db] = rest else { unreachable!() };
        for s in (0..t).rev() {
            let (dh_prev, dh) = dh[s..].split_at_mut(1);
            let (dc_prev, dc) = dc[s..].split_at_mut(1);
            ops.lstm_cell_backward(
                cell(case),
                CellBackward {
                    x: x[s].borrow(),
                    h_prev: h[s].borrow(),
                    c_prev: c[s].borrow(),
                    w: w.borrow(),
                    u: u.borrow(),
                    gates: gates[s].borrow(),
                    c: c[s + 1].borrow(),
                    dh: dh.first().unwrap_or(dh_last).borrow(),
                    dc: dc.first().unwrap_or(dc_last).borrow(),
                    dx: dx[s].borrow_mut(),
                    dh_prev: dh_prev[0].borrow_mut(),
                    dc_prev: dc_prev[0].borrow_mut(),
                    dw: dw.borrow_mut(),
                    du: du.borrow_mut(),
                    db: db.borrow_mut(),
                },
            )?;
        }
        Ok(())
    }
}

impl Work for Forward {
    fn multiply_adds(case: &Case) -> usize {
        lstm_sequence::Forward::multiply_adds(case)
    }

    fn numbers(case: &Case) -> (usize, usize) {
        lstm_sequence::Forward::numbers(case)
    }
}

impl Work for Backward {
    fn multiply_adds(case: &Case) -> usize {
        lstm_sequence::Backward::multiply_adds(case)
    }

    fn numbers(case: &Case) -> (usize, usize) {
        lstm_sequence::Backward::numbers(case)
    }
}
