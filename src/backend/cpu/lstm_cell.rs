//! One time step of an LSTM layer, on a block of batch rows at a time; [`lstm_sequence`](super::lstm_sequence) runs
//! the same blocks through time.
//!
//! Forward multiplies `[x|h_prev]` by `[W;U]` in one product of depth `E+H`. Backward does the same with the
//! transposes, and sums the parameters' gradients as one product `[x|h_prev|1]ᵀ · dpre`, several time steps at a
//! time, so that its result is visited once for many rows. Each block has a partial sum of its own; these are added
//! to the gradient in the blocks' order.

use super::activation::{self, tanhs};
use super::matmul::Panels;
use super::simd::{Kernel, Simd};
use super::{Cpu, NEGLIGIBLE, take};
use crate::backend::shapes::gate;
use crate::backend::{CellBackward, CellDims, CellForward};
use crate::error::Result;

/// Most blocks that a batch is cut into: bounds the memory for partial gradients.
const MAX_BLOCKS: usize = 8;
/// Fewest rows of a block (but for the last): each block reads all weights in every time step.
const MIN_ROWS: usize = 4;
/// Most elements of all partial gradients together (256 MiB); very wide layers get fewer blocks.
const MAX_PARTIAL: usize = 1 << 26;
/// Rows (batch rows × time steps) of `dpre` that a block gathers before it adds their part of the parameters'
/// gradients: at least this many, and more as long as they stay within [`GATHER_ELEMENTS`].
const GATHER_ROWS: usize = 64;
/// See [`GATHER_ROWS`].
const GATHER_ELEMENTS: usize = 1 << 15;
/// Elements of the gradient that one task of the final sum handles.
const SUM_CHUNK: usize = 1 << 14;

/// The batch's rows in blocks, by shapes alone: the rows of each.
pub(super) fn blocks(b: usize, e: usize, h: usize) -> Vec<usize> {
    let partial = ((e + h + 1) * 4 * h).max(1);
    let count = b.div_ceil(MIN_ROWS).min(MAX_BLOCKS).min(MAX_PARTIAL / partial).max(1);
    let rows = b.div_ceil(count).next_multiple_of(MIN_ROWS).max(1);
    (0..b).step_by(rows).map(|first| rows.min(b - first)).collect()
}

/// `[x|h]`, row by row, into `joined [rows, E+H]`.
fn join(x: &[f32], e: usize, h_prev: &[f32], h: usize, joined: &mut [f32]) {
    for (row, line) in joined.chunks_exact_mut((e + h).max(1)).enumerate() {
        let (left, right) = line.split_at_mut(e);
        left.copy_from_slice(&x[row * e..][..e]);
        right.copy_from_slice(&h_prev[row * h..][..h]);
    }
}

/// The weights as forward wants them.
pub(super) struct ForwardWeights<'a> {
    e: usize,
    h: usize,
    /// `[W;U]`, `[E+H,4H]`.
    wu: Panels,
    b: &'a [f32],
}

impl<'a> ForwardWeights<'a> {
    /// Packs `w [E,4H]`, `u [H,4H]`; `b` is `[4H]`.
    pub(super) fn new(cpu: &Cpu, e: usize, h: usize, w: &[f32], u: &[f32], b: &'a [f32]) -> Self {
        let mut wu = Panels::zeros(cpu, e + h, 4 * h);
        wu.set_rows(0, w);
        wu.set_rows(e, u);
        Self { e, h, wu, b }
    }

    /// One time step of a block. All slices hold the block's rows; `joined [rows,E+H]` is scratch.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)] // the arrays of one equation
    pub(super) fn step<S: Simd>(
        &self,
        s: S,
        x: &[f32],
        h_prev: &[f32],
        c_prev: &[f32],
        joined: &mut [f32],
        gates: &mut [f32],
        h: &mut [f32],
        c: &mut [f32],
    ) {
        let units = self.h;
        if units == 0 {
            return;
        }
        join(x, self.e, h_prev, units, joined);
        let rows = h.len() / units;
        for row in gates.chunks_exact_mut(4 * units) {
            row.copy_from_slice(self.b);
        }
        self.wu.product(s, joined, self.e + units, self.e + units, rows, gates);
        for (row, gates) in gates.chunks_exact_mut(4 * units).enumerate() {
            let at = row * units..(row + 1) * units;
            activate(s, gates, &c_prev[at.clone()], &mut h[at.clone()], &mut c[at]);
        }
    }
}

/// One row from pre-activations to gates, `c` and `h`.
#[inline(always)]
fn activate<S: Simd>(s: S, gates: &mut [f32], c_prev: &[f32], h: &mut [f32], c: &mut [f32]) {
    let units = h.len();
    let [i_row, f_row, g_row, o_row] = gate_rows(gates, units);
    for at in (0..units).step_by(S::LANES) {
        let at = at..units.min(at + S::LANES);
        let pre = [&*i_row, &*f_row, &*g_row, &*o_row].map(|row| s.get_part(&row[at.clone()]));
        let [i, f, g, o] = activation::apply(s, activation::GATE_FUNCTIONS, pre);
        let state = s.mul_add(f, s.get_part(&c_prev[at.clone()]), s.mul(i, g));
        s.put_part(&mut i_row[at.clone()], i);
        s.put_part(&mut f_row[at.clone()], f);
        s.put_part(&mut g_row[at.clone()], g);
        s.put_part(&mut o_row[at.clone()], o);
        s.put_part(&mut c[at.clone()], state);
        let [squashed] = tanhs(s, [state]);
        s.put_part(&mut h[at], s.mul(o, squashed));
    }
}

/// The four gates of one row, each `[H]`.
#[inline(always)]
fn gate_rows(gates: &mut [f32], units: usize) -> [&mut [f32]; 4] {
    let (i, rest) = gates.split_at_mut(units);
    let (f, rest) = rest.split_at_mut(units);
    let (g, o) = rest.split_at_mut(units);
    [i, f, g, o]
}

/// The weights as backward wants them.
pub(super) struct BackwardWeights {
    e: usize,
    h: usize,
    /// `[Wᵀ|Uᵀ]`, `[4H,E+H]`.
    wu: Panels,
}

impl BackwardWeights {
    /// Packs the transposes of `w [E,4H]` and `u [H,4H]`.
    pub(super) fn new(cpu: &Cpu, e: usize, h: usize, w: &[f32], u: &[f32]) -> Self {
        let mut wu = Panels::zeros(cpu, 4 * h, e + h);
        wu.set_columns(0, w);
        wu.set_columns(e, u);
        Self { e, h, wu }
    }
}

/// A block of rows on its way back through time.
pub(super) struct BackwardBlock<'w> {
    weights: &'w BackwardWeights,
    rows: usize,
    /// Rows that fit `inputs` and `dpre`.
    room: usize,
    /// Rows gathered.
    gathered: usize,
    /// `[E+H+1,room]`: `[x|h_prev|1]ᵀ`; the line of ones makes the bias' gradient part of the product.
    inputs: Vec<f32>,
    /// `[room,4H]`: gradients by the pre-activations.
    dpre: Vec<f32>,
    /// `[room,4H]` packed.
    packed: Panels,
    /// `[rows,E+H]`: `[dx|dh_prev]` of one time step.
    joined: Vec<f32>,
    /// `[E+H+1,4H]`: the block's part of `dw`, `du` and `db`.
    partial: Vec<f32>,
}

impl<'w> BackwardBlock<'w> {
    /// For `rows` batch rows and `t` time steps.
    pub(super) fn new(cpu: &Cpu, weights: &'w BackwardWeights, rows: usize, t: usize) -> Self {
        let (e, h) = (weights.e, weights.h);
        let most = GATHER_ROWS.max(GATHER_ELEMENTS / (4 * h).max(1));
        let room = (most / rows.max(1)).clamp(1, t.max(1)) * rows;
        let mut inputs = vec![0.0; (e + h + 1) * room];
        inputs[(e + h) * room..].fill(1.0);
        Self {
            weights,
            rows,
            room,
            gathered: 0,
            inputs,
            dpre: vec![0.0; room * 4 * h],
            packed: Panels::zeros(cpu, room, 4 * h),
            joined: vec![0.0; rows * (e + h)],
            partial: vec![0.0; (e + h + 1) * 4 * h],
        }
    }

    /// One time step. `dh` and `dc` hold the gradients by this step's `h` and `c` and receive those by `h_prev` and
    /// `c_prev`; `dx` is assigned.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)] // the arrays of one equation
    pub(super) fn step<S: Simd>(
        &mut self,
        s: S,
        x: &[f32],
        h_prev: &[f32],
        c_prev: &[f32],
        gates: &[f32],
        c: &[f32],
        dh: &mut [f32],
        dc: &mut [f32],
        dx: &mut [f32],
    ) {
        let (e, h, rows) = (self.weights.e, self.weights.h, self.rows);
        if h == 0 {
            dx.fill(0.0);
            return;
        }
        let dpre = &mut self.dpre[self.gathered * 4 * h..][..rows * 4 * h];
        for row in 0..rows {
            let (at, at4) = (row * h..(row + 1) * h, row * 4 * h..(row + 1) * 4 * h);
            d_activate(
                s,
                &gates[at4.clone()],
                &c_prev[at.clone()],
                &c[at.clone()],
                &dh[at.clone()],
                &mut dc[at],
                &mut dpre[at4],
            );
        }
        self.joined.fill(0.0);
        self.weights.wu.product(s, dpre, 4 * h, 4 * h, rows, &mut self.joined);
        for (row, line) in self.joined.chunks_exact(e + h).enumerate() {
            dx[row * e..][..e].copy_from_slice(&line[..e]);
            dh[row * h..][..h].copy_from_slice(&line[e..]);
        }
        for row in 0..rows {
            let column = self.gathered + row;
            for (k, &value) in x[row * e..][..e].iter().chain(&h_prev[row * h..][..h]).enumerate() {
                self.inputs[k * self.room + column] = value;
            }
        }
        self.gathered += rows;
        if self.gathered + rows > self.room {
            self.add_gathered(s);
        }
    }

    /// Adds the gathered rows' part of the parameters' gradients to `partial`.
    #[inline(always)]
    fn add_gathered<S: Simd>(&mut self, s: S) {
        let (e, h) = (self.weights.e, self.weights.h);
        self.packed.set_rows(0, &self.dpre[..self.gathered * 4 * h]);
        self.packed.product(s, &self.inputs, self.room, self.gathered, e + h + 1, &mut self.partial);
        self.gathered = 0;
    }

    /// The block's part of `dw`, `du` and `db`, one after the other.
    #[inline(always)]
    pub(super) fn finish<S: Simd>(mut self, s: S) -> Vec<f32> {
        self.add_gathered(s);
        self.partial
    }
}

/// One row from gradients by `h` and `c` to those by the pre-activations and by `c_prev` (in place of `dc`).
#[inline(always)]
#[allow(clippy::too_many_arguments)] // the arrays of one equation
fn d_activate<S: Simd>(
    s: S,
    gates: &[f32],
    c_prev: &[f32],
    c: &[f32],
    dh: &[f32],
    dc: &mut [f32],
    dpre: &mut [f32],
) {
    let units = dc.len();
    let one = s.splat(1.0);
    let limit = s.splat(NEGLIGIBLE);
    let [di_row, df_row, dg_row, do_row] = gate_rows(dpre, units);
    for at in (0..units).step_by(S::LANES) {
        let at = at..units.min(at + S::LANES);
        let part = |xs: &[f32]| s.get_part(&xs[at.clone()]);
        let i = part(&gates[gate::I * units..][..units]);
        let f = part(&gates[gate::F * units..][..units]);
        let g = part(&gates[gate::G * units..][..units]);
        let o = part(&gates[gate::O * units..][..units]);
        let ([y], dh) = (tanhs(s, [part(c)]), part(dh));
        let dc_all = s.mul_add(s.mul(dh, o), s.neg_mul_add(y, y, one), part(dc));
        let di = s.mul(s.mul(dc_all, g), s.neg_mul_add(i, i, i));
        let df = s.mul(s.mul(dc_all, part(c_prev)), s.neg_mul_add(f, f, f));
        let dg = s.mul(s.mul(dc_all, i), s.neg_mul_add(g, g, one));
        let d_o = s.mul(s.mul(dh, y), s.neg_mul_add(o, o, o));
        s.put_part(&mut di_row[at.clone()], s.without_below(di, limit));
        s.put_part(&mut df_row[at.clone()], s.without_below(df, limit));
        s.put_part(&mut dg_row[at.clone()], s.without_below(dg, limit));
        s.put_part(&mut do_row[at.clone()], s.without_below(d_o, limit));
        s.put_part(&mut dc[at.clone()], s.without_below(s.mul(dc_all, f), limit));
    }
}

/// Adds the blocks' parts, in their order, to `dw`, `du` and `db`.
pub(super) fn add_partials(cpu: &Cpu, partials: &[Vec<f32>], dw: &mut [f32], du: &mut [f32], db: &mut [f32]) {
    let work = partials.len() * (dw.len() + du.len() + db.len());
    let mut tasks = Vec::new();
    let mut first = 0;
    for sum in [dw, du, db] {
        let n = sum.len();
        tasks.extend(sum.chunks_mut(SUM_CHUNK).enumerate().map(|(k, sum)| (first + k * SUM_CHUNK, sum)));
        first += n;
    }
    cpu.each(work, tasks, |(first, sum)| {
        for partial in partials {
            for (sum, part) in sum.iter_mut().zip(&partial[first..]) {
                *sum += part;
            }
        }
    });
}

/// Multiply-adds of one forward time step of `b` rows; activations count as 32 each.
pub(super) fn work(b: usize, e: usize, h: usize) -> usize {
    b * 4 * h * (e + h + 32)
}

/// One forward time step of a block.
struct ForwardStep<'a> {
    weights: &'a ForwardWeights<'a>,
    x: &'a [f32],
    h_prev: &'a [f32],
    c_prev: &'a [f32],
    gates: &'a mut [f32],
    h: &'a mut [f32],
    c: &'a mut [f32],
}

impl Kernel for ForwardStep<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let joined = &mut vec![0.0; self.x.len() + self.h.len()];
        self.weights.step(s, self.x, self.h_prev, self.c_prev, joined, self.gates, self.h, self.c);
    }
}

/// See [`CellForward`].
pub(super) fn forward(cpu: &Cpu, d: CellDims, a: CellForward<'_, [f32]>) -> Result<()> {
    a.check(d)?;
    let CellDims { b, e, h } = d;
    let weights = ForwardWeights::new(cpu, e, h, a.w, a.u, a.b);
    let (mut gates, mut h_out, mut c_out) = (a.gates, a.h, a.c);
    let mut first = 0;
    let mut tasks = Vec::new();
    for rows in blocks(b, e, h) {
        let state = first * h..(first + rows) * h;
        tasks.push(ForwardStep {
            weights: &weights,
            x: &a.x[first * e..(first + rows) * e],
            h_prev: &a.h_prev[state.clone()],
            c_prev: &a.c_prev[state],
            gates: take(&mut gates, rows * 4 * h),
            h: take(&mut h_out, rows * h),
            c: take(&mut c_out, rows * h),
        });
        first += rows;
    }
    cpu.each(work(b, e, h), tasks, |step| cpu.isa().run(step));
    Ok(())
}

/// One backward time step of a block.
struct BackwardStep<'a> {
    block: BackwardBlock<'a>,
    x: &'a [f32],
    h_prev: &'a [f32],
    c_prev: &'a [f32],
    gates: &'a [f32],
    c: &'a [f32],
    dh: &'a mut [f32],
    dc: &'a mut [f32],
    dx: &'a mut [f32],
    partial: &'a mut Vec<f32>,
}

impl Kernel for BackwardStep<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        self.block.step(s, self.x, self.h_prev, self.c_prev, self.gates, self.c, self.dh, self.dc, self.dx);
        *self.partial = self.block.finish(s);
    }
}

/// See [`CellBackward`].
pub(super) fn backward(cpu: &Cpu, d: CellDims, a: CellBackward<'_, [f32]>) -> Result<()> {
    a.check(d)?;
    let CellDims { b, e, h } = d;
    let weights = BackwardWeights::new(cpu, e, h, a.w, a.u);
    a.dh_prev.copy_from_slice(a.dh);
    a.dc_prev.copy_from_slice(a.dc);
    let (mut dx, mut dh, mut dc) = (a.dx, a.dh_prev, a.dc_prev);
    let blocks = blocks(b, e, h);
    let mut partials = vec![Vec::new(); blocks.len()];
    let mut first = 0;
    let mut tasks = Vec::new();
    for (&rows, partial) in blocks.iter().zip(&mut partials) {
        let state = first * h..(first + rows) * h;
        tasks.push(BackwardStep {
            block: BackwardBlock::new(cpu, &weights, rows, 1),
            x: &a.x[first * e..(first + rows) * e],
            h_prev: &a.h_prev[state.clone()],
            c_prev: &a.c_prev[state.clone()],
            gates: &a.gates[first * 4 * h..(first + rows) * 4 * h],
            c: &a.c[state],
            dh: take(&mut dh, rows * h),
            dc: take(&mut dc, rows * h),
            dx: take(&mut dx, rows * e),
            partial,
        });
        first += rows;
    }
    cpu.each(2 * work(b, e, h), tasks, |step| cpu.isa().run(step));
    add_partials(cpu, &partials, a.dw, a.du, a.db);
    Ok(())
}
