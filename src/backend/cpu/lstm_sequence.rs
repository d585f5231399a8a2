//! An LSTM layer over whole sequences: blocks of batch rows in parallel, each through all its time steps on one
//! thread, so that nothing waits for anything between time steps. See [`lstm_cell`](super::lstm_cell).

use super::lstm_cell::{BackwardBlock, BackwardWeights, ForwardWeights, add_partials, blocks, work};
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

/// See [`SequenceForward`].
pub(super) fn forward(cpu: &Cpu, d: SequenceDims, a: SequenceForward<'_, [f32]>) -> Result<()> {
    a.check(d)?;
    let SequenceDims { t, b, e, h } = d;
    a.h[..b * h].copy_from_slice(a.h0);
    a.c[..b * h].copy_from_slice(a.c0);
    let weights = ForwardWeights::new(e, h, a.w, a.u, a.b);
    let blocks = blocks(b, e, h);
    let gates = split(a.gates, t, 4 * h, &blocks);
    let hs = split(a.h, t + 1, h, &blocks);
    let cs = split(a.c, t + 1, h, &blocks);
    let tasks: Vec<_> = spans(&blocks).zip(gates).zip(hs.into_iter().zip(cs)).collect();
    cpu.each(t * work(b, e, h), tasks, |(((first, rows), mut gates), (mut hs, mut cs))| {
        let mut joined = vec![0.0; rows * (e + h)];
        for step in 0..t {
            let (h_prev, h_next) = hs.split_at_mut(step + 1);
            let (c_prev, c_next) = cs.split_at_mut(step + 1);
            let x = &a.x[(step * b + first) * e..][..rows * e];
            let (h_prev, c_prev) = (&h_prev[step], &c_prev[step]);
            weights.step(x, h_prev, c_prev, &mut joined, gates[step], h_next[0], c_next[0]);
        }
    });
    Ok(())
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
    let weights = BackwardWeights::new(e, h, a.w, a.u);
    let blocks = blocks(b, e, h);
    let dxs = split(a.dx, t, e, &blocks);
    let (mut dh0, mut dc0) = (a.dh0, a.dc0);
    let mut partials = vec![Vec::new(); blocks.len()];
    let tasks: Vec<_> = spans(&blocks)
        .zip(dxs)
        .zip(&mut partials)
        .map(|(((first, rows), dxs), partial)| {
            (first, rows, dxs, take(&mut dh0, rows * h), take(&mut dc0, rows * h), partial)
        })
        .collect();
    cpu.each(2 * t * work(b, e, h), tasks, |(first, rows, mut dxs, dh, dc, partial)| {
        let mut block = BackwardBlock::new(&weights, rows, t);
        for step in (0..t).rev() {
            let row = step * b + first;
            if let Some(by_output) = a.dh {
                for (dh, add) in dh.iter_mut().zip(&by_output[row * h..]) {
                    *dh += add;
                }
            }
            block.step(
                &a.x[row * e..][..rows * e],
                &a.h[row * h..][..rows * h],
                &a.c[row * h..][..rows * h],
                &a.gates[row * 4 * h..][..rows * 4 * h],
                &a.c[(row + b) * h..][..rows * h],
                dh,
                dc,
                dxs[step],
            );
        }
        *partial = block.finish();
    });
    add_partials(cpu, &partials, a.dw, a.du, a.db);
    Ok(())
}
