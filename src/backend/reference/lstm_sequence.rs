//! LSTM over a whole sequence: [`lstm_cell`] once for each time step (Hochreiter & Schmidhuber 1997; Gers et al. 2000),
//! and its backpropagation through time.
//!
//! ```text
//! forward, s = 0 to T−1:   (h[s+1], c[s+1]) = cell(x[s], h[s], c[s]),  h[0] = h0,  c[0] = c0
//! backward, s = T−1 to 0:  dh_all = dh[s] + (from step s+1, or dh_last),  dc_all likewise from dc_last
//! ```
//! Shapes: `x` `[T,B,E]`, `gates` `[T,B,4H]`, `h c` `[T+1,B,H]`, `w` `[E,4H]`, `u` `[H,4H]`, `b` `[4H]`. `T = 0` is an
//! empty loop: the state, and in backward its gradient, passes through.

use super::lstm_cell;
use crate::backend::{
    CellBackward, CellDims, CellForward, Real, SequenceBackward, SequenceDims, SequenceForward,
};
use crate::error::Result;

/// Assigns `gates`, `h` and `c`; row 0 of `h` and `c` is the initial state.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if an argument does not have the extent that `d` asks for; nothing has been
/// written then.
///
/// # Examples
/// One unit with all weights zero but the output gate's and the candidate's bias: `h = 0.5·tanh(c)` and `c` moves half
/// of the way to 1 in each time step.
/// ```
/// use recurve::backend::{SequenceDims, SequenceForward, reference::lstm_sequence};
///
/// let d = SequenceDims { t: 2, b: 1, e: 1, h: 1 };
/// let (mut gates, mut h, mut c) = ([0.0f64; 8], [0.0; 3], [0.0; 3]);
/// lstm_sequence::forward(
///     d,
///     SequenceForward {
///         x: &[1.0, 1.0][..],
///         h0: &[0.0],
///         c0: &[0.0],
///         w: &[0.0, 0.0, 50.0, 0.0], // gates i, f, g, o: the candidate is tanh(50) = 1
///         u: &[0.0; 4],
///         b: &[0.0; 4],
///         gates: &mut gates,
///         h: &mut h,
///         c: &mut c,
///     },
/// )?;
/// assert_eq!(c, [0.0, 0.5, 0.75]); // c = 0.5·c + 0.5·1
/// assert_eq!(h[2], 0.5 * 0.75f64.tanh());
/// # Ok::<(), recurve::Error>(())
/// ```
pub fn forward<T: Real>(d: SequenceDims, a: SequenceForward<'_, [T]>) -> Result<()> {
    forward_by(d, a, lstm_cell::forward)
}

/// [`forward`] by this cell.
pub(super) fn forward_by<T: Real>(
    d: SequenceDims,
    a: SequenceForward<'_, [T]>,
    cell: impl Fn(CellDims, CellForward<'_, [T]>) -> Result<()>,
) -> Result<()> {
    a.check(d)?;
    let SequenceDims { t, b: batch, e, h: hidden } = d;
    let (inputs, state, columns) = (batch * e, batch * hidden, batch * 4 * hidden);
    a.h[..state].copy_from_slice(a.h0);
    a.c[..state].copy_from_slice(a.c0);
    for s in 0..t {
        let (h_prev, h_next) = two_rows(a.h, s, state);
        let (c_prev, c_next) = two_rows(a.c, s, state);
        cell(
            CellDims { b: batch, e, h: hidden },
            CellForward {
                x: row(a.x, s, inputs),
                h_prev,
                c_prev,
                w: a.w,
                u: a.u,
                b: a.b,
                gates: row_mut(a.gates, s, columns),
                h: h_next,
                c: c_next,
            },
        )?;
    }
    Ok(())
}

/// Assigns `dx`, `dh0` and `dc0`; accumulates into `dw`, `du` and `db`, last time step first. Absent `dh`, `dh_last`
/// and `dc_last` count as zeros.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if an argument does not have the extent that `d` asks for; nothing has been
/// written then.
pub fn backward<T: Real>(d: SequenceDims, a: SequenceBackward<'_, [T]>) -> Result<()> {
    backward_by(d, a, lstm_cell::backward)
}

/// [`backward`] by this cell.
pub(super) fn backward_by<T: Real>(
    d: SequenceDims,
    a: SequenceBackward<'_, [T]>,
    cell: impl Fn(CellDims, CellBackward<'_, [T]>) -> Result<()>,
) -> Result<()> {
    a.check(d)?;
    let SequenceDims { t, b: batch, e, h: hidden } = d;
    let (inputs, state, columns) = (batch * e, batch * hidden, batch * 4 * hidden);
    let or_zeros = |gradient: Option<&[T]>| gradient.map_or_else(|| vec![T::zero(); state], <[T]>::to_vec);
    // Gradients by the state after step s; below, by the state before it.
    let (mut dh, mut dc) = (or_zeros(a.dh_last), or_zeros(a.dc_last));
    let (mut dh_prev, mut dc_prev) = (or_zeros(None), or_zeros(None));
    for s in (0..t).rev() {
        if let Some(outputs) = a.dh {
            for (sum, &output) in dh.iter_mut().zip(row(outputs, s, state)) {
                *sum += output;
            }
        }
        cell(
            CellDims { b: batch, e, h: hidden },
            CellBackward {
                x: row(a.x, s, inputs),
                h_prev: row(a.h, s, state),
                c_prev: row(a.c, s, state),
                w: a.w,
                u: a.u,
                gates: row(a.gates, s, columns),
                c: row(a.c, s + 1, state),
                dh: &dh,
                dc: &dc,
                dx: row_mut(a.dx, s, inputs),
                dh_prev: &mut dh_prev,
                dc_prev: &mut dc_prev,
                dw: a.dw,
                du: a.du,
                db: a.db,
            },
        )?;
        std::mem::swap(&mut dh, &mut dh_prev);
        std::mem::swap(&mut dc, &mut dc_prev);
    }
    a.dh0.copy_from_slice(&dh);
    a.dc0.copy_from_slice(&dc);
    Ok(())
}

/// Row `s` of an array whose rows have `len` elements.
fn row<T>(array: &[T], s: usize, len: usize) -> &[T] {
    &array[s * len..(s + 1) * len]
}

/// [`row`] to write to.
fn row_mut<T>(array: &mut [T], s: usize, len: usize) -> &mut [T] {
    &mut array[s * len..(s + 1) * len]
}

/// Row `s` to read and row `s + 1` to write.
fn two_rows<T>(array: &mut [T], s: usize, len: usize) -> (&[T], &mut [T]) {
    let (before, after) = array.split_at_mut((s + 1) * len);
    (&before[s * len..], &mut after[..len])
}
