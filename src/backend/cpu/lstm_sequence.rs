//! An LSTM layer over whole sequences: blocks of batch rows in parallel, each through all its time steps on one
//! thread, so that nothing waits for anything between time steps. See [`lstm_cell`](super::lstm_cell).

use super::lstm_cell::{BackwardBlock, BackwardWeights, ForwardWeights, add_partials, blocks, work};
use super::simd::{Kernel, Simd};
use super::{Cpu, take};
use crate::backend::{SequenceBackward, SequenceDims, SequenceForward};
use crate::error::Result;

/// One block's rows of `[steps,B,width]`: a slice for each time step.
fn split<'a>(array: &'a mut [f32], steps: usize, width: usize, blocks: &[usize]) -> Vec<Vec<&'a mut [f32]>> {
    let mut split: Vec<Vec<&mut [f32]>> = blocks.iter().map(|_| Vec::with_capacity(steps)).collect();
    let mut rest = array;
    for _ in 0..steps {
        for (&rows, slices) in blocks.iter().zip(&mut split) {
            slices.push(take(&mut rest, rows * width));
        }
    }
    split
}

/// First row and rows of every block.
fn spans(blocks: &[usize]) -> impl Iterator<Item = (usize, usize)> {
    blocks.iter().scan(0, |first, &rows| {
        let span = (*first, rows);
        *first += rows;
        Some(span)
    })
}

/// A block's way forward. The first dimension of its arrays is the time step.
struct Forth<'a> {
    weights: &'a ForwardWeights<'a>,
    d: SequenceDims,
    /// First batch row, and rows.
    span: (usize, usize),
    x: &'a [f32],
    gates: Vec<&'a mut [f32]>,
    h: Vec<&'a mut [f32]>,
    c: Vec<&'a mut [f32]>,
}

impl Kernel for Forth<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let SequenceDims { b, e, h, .. } = self.d;
        let (first, rows) = self.span;
        let mut joined = vec![0.0; rows * (e + h)];
        for (step, gates) in self.gates.iter_mut().enumerate() {
            let (h_prev, h_next) = self.h.split_at_mut(step + 1);
            let (c_prev, c_next) = self.c.split_at_mut(step + 1);
            let x = &self.x[(step * b + first) * e..][..rows * e];
            let (h_prev, c_prev) = (&h_prev[step], &c_prev[step]);
            self.weights.step(s, x, h_prev, c_prev, &mut joined, gates, h_next[0], c_next[0]);
        }
    }
}

/// See [`SequenceForward`].
pub(super) fn forward(cpu: &Cpu, d: SequenceDims, a: SequenceForward<'_, [f32]>) -> Result<()> {
    a.check(d)?;
    let SequenceDims { t, b, e, h } = d;
    a.h[..b * h].copy_from_slice(a.h0);
    a.c[..b * h].copy_from_slice(a.c0);
    let weights = ForwardWeights::new(cpu, e, h, a.w, a.u, a.b);
    let blocks = blocks(b, e, h);
    let gates = split(a.gates, t, 4 * h, &blocks);
    let hs = split(a.h, t + 1, h, &blocks);
    let cs = split(a.c, t + 1, h, &blocks);
    let tasks: Vec<_> = spans(&blocks)
        .zip(gates)
        .zip(hs.into_iter().zip(cs))
        .map(|((span, gates), (h, c))| Forth { weights: &weights, d, span, x: a.x, gates, h, c })
        .collect();
    cpu.each(t * work(b, e, h), tasks, |block| cpu.isa().run(block));
    Ok(())
}

/// A block's way back.
struct Back<'a> {
    block: BackwardBlock<'a>,
    d: SequenceDims,
    span: (usize, usize),
    x: &'a [f32],
    gates: &'a [f32],
    h: &'a [f32],
    c: &'a [f32],
    by_output: Option<&'a [f32]>,
    dx: Vec<&'a mut [f32]>,
    dh: &'a mut [f32],
    dc: &'a mut [f32],
    partial: &'a mut Vec<f32>,
}

impl Kernel for Back<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let SequenceDims { b, e, h, .. } = self.d;
        let (first, rows) = self.span;
        for (step, dx) in self.dx.iter_mut().enumerate().rev() {
            let row = step * b + first;
            if let Some(by_output) = self.by_output {
                for (dh, add) in self.dh.iter_mut().zip(&by_output[row * h..]) {
                    *dh += add;
                }
            }
            self.block.step(
                s,
                &self.x[row * e..][..rows * e],
                &self.h[row * h..][..rows * h],
                &self.c[row * h..][..rows * h],
                &self.gates[row * 4 * h..][..rows * 4 * h],
                &self.c[(row + b) * h..][..rows * h],
                self.dh,
                self.dc,
                dx,
            );
        }
        *self.partial = self.block.finish(s);
    }
}

/// See [`SequenceBackward`].
pub(super) fn backward(cpu: &Cpu, d: SequenceDims, a: SequenceBackward<'_, [f32]>) -> Result<()> {
    a.check(d)?;
    let SequenceDims { t, b, e, h } = d;
    // `dh0` and `dc0` carry the gradients from time step to time step.
    match a.dh_last {
        Some(dh_last) => a.dh0.copy_from_slice(dh_last),
        None => a.dh0.fill(0.0),
    }
    match a.dc_last {
        Some(dc_last) => a.dc0.copy_from_slice(dc_last),
        None => a.dc0.fill(0.0),
    }
    let weights = BackwardWeights::new(cpu, e, h, a.w, a.u);
    let blocks = blocks(b, e, h);
    let dxs = split(a.dx, t, e, &blocks);
    let (mut dh0, mut dc0) = (a.dh0, a.dc0);
    let mut partials = vec![Vec::new(); blocks.len()];
    let tasks: Vec<_> = spans(&blocks)
        .zip(dxs)
        .zip(&mut partials)
        .map(|((span, dx), partial)| Back {
            block: BackwardBlock::new(cpu, &weights, span.1, t),
            d,
            span,
            x: a.x,
            gates: a.gates,
            h: a.h,
            c: a.c,
            by_output: a.dh,
            dx,
            dh: take(&mut dh0, span.1 * h),
            dc: take(&mut dc0, span.1 * h),
            partial,
        })
        .collect();
    cpu.each(2 * t * work(b, e, h), tasks, |block| cpu.isa().run(block));
    add_partials(cpu, &partials, a.dw, a.du, a.db);
    Ok(())
}
