//! The recurrent layer, the dense layer and the loss over a block of batch rows, forward and back through all time
//! steps, on packed weights: what one thread does without waiting for another.
//!
//! Lanes are hidden units. A *unit vector* is [`LANES`](Simd::LANES) of them; the last is filled up with units whose
//! weights are all zero, which stay at zero.
//!
//! | array | layout |
//! | --- | --- |
//! | cell weights, their gradient | `[unit vector][E+H+1][gate][lane]`: rows of W, of U, and the bias |
//! | back weights | panels of up to three of the vectors of `Wᵀ`, then of `Uᵀ`, each `[unit vector][gate][lane][vector][lane]` |
//! | `x` | `[entry][E]`, rows [apart]: the embedding of each distinct token of a piece, an *entry* |
//! | `entries` | `[T][row]`: the entry of each token, counted from its piece's first |
//! | `projected` | `[unit vector][entry][gate][lane]` of a piece: x·W + b on the way forward, sums of gradients on the way back |
//! | `h` | `[T+1][row][units]`, rows [apart]: the h that a time step starts from |
//! | `gates` | `[T][unit vector][row][gate][lane]`; backward leaves the gradients by pre-activations in it |
//! | `c` | `[T+1][unit vector][row][lane]`, `tanh_c` without the last step |
//! | dense weights | `[C][units]`, then the bias `[C]` |
//!
//! Words repeat: of 256 tokens of text some 160 are distinct. A *piece* is a run of time steps, as many as have few enough
//! distinct tokens for the second cache, or for the third where that saves enough products. Products with W are made once
//! for each distinct token of a piece; on the way back the gradients by the pre-activations are summed over a token's
//! occurrences, last time step first, before they meet W and x.

use super::NEGLIGIBLE;
use super::activation::{activate, tanhs};
use super::cross_entropy;
use super::simd::{Kernel, Simd};
use super::tile::{self, Evenly, GATES, ROWS, with_tile};
use crate::backend::shapes::gate;
use crate::error::{Error, Result};

/// Rows (batch rows × time steps) whose part of the weights' gradient is added in one go: a unit vector's pre-activation
/// gradients of so many rows stay in the first cache.
const RANK_ROWS: usize = 64;
/// Elements of `projected` that a piece may have, where one time step has no more: half of a second cache of 1 MiB.
const PIECE: usize = 1 << 17;
/// The same where longer pieces make enough fewer entries: in the third cache.
const LARGE_PIECE: usize = 1 << 20;
/// Rows of W for each token that longer pieces must save: with fewer, the way to the third cache costs more.
const WORTH: usize = 16;

/// Distance between rows of `n` elements that a product reads a few columns at a time: a power of two's multiple would
/// leave them a few sets of the first cache.
fn apart(n: usize) -> usize {
    // 512 bytes apart, rows share 8 of 64 sets.
    if n.is_multiple_of(128) { n + 16 } else { n }
}

/// The sizes that every layout above is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    /// Elements of a vector.
    pub lanes: usize,
    /// Input width.
    pub e: usize,
    /// Hidden units.
    pub h: usize,
    /// Classes.
    pub classes: usize,
}

impl Sizes {
    /// Unit vectors.
    pub(super) fn unit_vectors(self) -> usize {
        self.h.div_ceil(self.lanes)
    }

    /// Hidden units, filled up.
    pub(super) fn units(self) -> usize {
        self.unit_vectors() * self.lanes
    }

    /// Input width, filled up.
    pub(super) fn inputs(self) -> usize {
        self.e.next_multiple_of(self.lanes)
    }

    /// Distance between rows of an inference's `joined`.
    pub(super) fn joined(self) -> usize {
        self.e + self.units()
    }

    /// Most entries of a piece of `rows` rows that has so many elements.
    fn piece(self, rows: usize, elements: usize) -> usize {
        (elements / (GATES * self.units())).max(rows)
    }

    /// Elements of a row of all gates of a unit vector.
    pub(super) fn gates(self) -> usize {
        GATES * self.lanes
    }

    /// Rows of a cell panel, the bias among them.
    pub(super) fn panel_rows(self) -> usize {
        self.e + self.h + 1
    }

    /// Elements of the cell panel of one unit vector.
    pub(super) fn panel(self) -> usize {
        self.panel_rows() * self.gates()
    }

    /// Elements of all cell panels.
    pub(super) fn panels(self) -> usize {
        self.unit_vectors() * self.panel()
    }

    /// Vectors that a back product gives for each row.
    pub(super) fn back_vectors(self) -> usize {
        (self.inputs() + self.units()) / self.lanes
    }

    /// Most vectors of a back panel: three where a tile of 8 rows by 3 fits the registers.
    pub(super) fn back_width(self) -> usize {
        if self.lanes == 16 { 3 } else { 2 }
    }

    /// First vector and vectors of each back panel: those of Wᵀ, then those of Uᵀ.
    pub(super) fn back_panels(self) -> impl Iterator<Item = (usize, usize)> {
        let inputs = self.inputs() / self.lanes;
        self.cut_backs(0, inputs).chain(self.cut_backs(inputs, self.unit_vectors()))
    }

    /// `n` vectors from `first` on, cut evenly into panels.
    fn cut_backs(self, first: usize, n: usize) -> impl Iterator<Item = (usize, usize)> {
        Evenly::new(n, self.back_width()).map(move |(at, width)| (first + at, width))
    }

    /// Elements of all back panels.
    pub(super) fn backs(self) -> usize {
        self.back_vectors() * self.lanes * self.unit_vectors() * self.gates()
    }

    /// Elements of the dense layer.
    pub(super) fn dense(self) -> usize {
        self.classes * (self.units() + 1)
    }

    /// Where the weight of input `k` (of W, then U, then the bias) for a gate of a unit stands in the cell panels.
    pub(super) fn cell_index(self, k: usize, gate: usize, unit: usize) -> usize {
        let (vector, lane) = (unit / self.lanes, unit % self.lanes);
        vector * self.panel() + k * self.gates() + gate * self.lanes + lane
    }
}

/// Consecutive time steps, and the entries of their distinct tokens.
#[derive(Clone, Copy, Debug)]
struct TimePiece {
    begin: usize,
    end: usize,
    /// Its entries' first.
    first: usize,
    /// Its entries.
    distinct: usize,
}

/// All that a block of rows needs on the way forward and back. Buffers keep their size from batch to batch.
#[derive(Debug, Default)]
pub(super) struct Tape {
    x: Vec<f32>,
    entries: Vec<u32>,
    pieces: Vec<TimePiece>,
    projected: Vec<f32>,
    h: Vec<f32>,
    gates: Vec<f32>,
    c: Vec<f32>,
    tanh_c: Vec<f32>,
    /// `[row][units]`
    dh: Vec<f32>,
    /// `[unit vector][row][lane]`
    dc: Vec<f32>,
    logits: Vec<f32>,
    probs: Vec<f32>,
}

/// Makes `buffer` hold at least the product of `dims`.
pub(super) fn grow(buffer: &mut Vec<f32>, dims: [usize; 3]) -> Result<()> {
    let too_large = || {
        Error::Failed(format!(
            "a buffer of {} by {} by {} numbers for one batch does not fit into memory; use a smaller batch",
            dims[0], dims[1], dims[2]
        ))
    };
    let n = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).ok_or_else(too_large)?;
    if n > buffer.len() {
        buffer.try_reserve_exact(n - buffer.len()).map_err(|_| too_large())?;
        buffer.resize(n, 0.0);
    }
    Ok(())
}

impl Tape {
    /// Makes room for `rows` rows and `t` time steps; where `keep`, for the sums of all pieces.
    pub(super) fn fit(&mut self, d: Sizes, rows: usize, t: usize, keep: bool) -> Result<()> {
        let units = d.units();
        let tokens = rows.saturating_mul(t);
        let projected = if keep { tokens } else { tokens.min(d.piece(rows, LARGE_PIECE)) };
        for (buffer, dims) in [
            (&mut self.x, [t, rows, apart(d.e)]),
            (&mut self.projected, [1, projected, GATES * units]),
            (&mut self.h, [t + 1, rows, apart(units)]),
            (&mut self.gates, [t, rows, GATES * units]),
            (&mut self.c, [t + 1, rows, units]),
            (&mut self.tanh_c, [t, rows, units]),
            (&mut self.dh, [1, rows, units]),
            (&mut self.dc, [1, rows, units]),
            (&mut self.logits, [1, 1, d.classes]),
            (&mut self.probs, [1, 1, d.classes]),
        ] {
            grow(buffer, dims)?;
        }
        if self.entries.len() < tokens {
            self.entries.resize(tokens, 0);
        }
        Ok(())
    }

    /// Cuts the time steps of `rows` rows of `t` ids, `row(r)` each, into pieces, finds the distinct tokens of each piece,
    /// and gathers their embeddings. `known [V]` is all zero and is left so. Writes the entries' ids, piece by piece in the
    /// order of time step and row, to `ids` and returns their number.
    #[allow(clippy::too_many_arguments)] // what is read, and where to
    pub(super) fn gather<'a>(
        &mut self,
        d: Sizes,
        rows: usize,
        t: usize,
        row: impl Fn(usize) -> &'a [u32],
        embeddings: &[f32],
        known: &mut [u32],
        ids: &mut [u32],
    ) -> usize {
        let most = |elements| d.piece(rows, elements);
        let mut n = self.cut(rows, t, &row, most(PIECE), known, ids);
        if self.pieces.len() > 1 {
            let fewer = self.cut(rows, t, &row, most(LARGE_PIECE), known, ids);
            if n.saturating_sub(fewer) * d.e >= WORTH * rows * t {
                n = fewer;
            } else {
                self.cut(rows, t, &row, most(PIECE), known, ids);
            }
        }
        for (x, &id) in self.x.chunks_exact_mut(apart(d.e)).zip(&ids[..n]) {
            x[..d.e].copy_from_slice(&embeddings[id as usize * d.e..][..d.e]);
        }
        n
    }

    /// [`Tape::gather`] without the embeddings, into pieces of at most `most` entries.
    fn cut<'a>(
        &mut self,
        rows: usize,
        t: usize,
        row: &impl Fn(usize) -> &'a [u32],
        most: usize,
        known: &mut [u32],
        ids: &mut [u32],
    ) -> usize {
        self.pieces.clear();
        let (mut begin, mut first, mut distinct) = (0, 0, 0);
        for step in 0..t {
            for r in 0..rows {
                let id = row(r)[step];
                let entry = &mut known[id as usize];
                if *entry == 0 {
                    ids[first + distinct] = id;
                    distinct += 1;
                    // Below 2³²: a buffer holds as many.
                    *entry = distinct as u32;
                }
                self.entries[step * rows + r] = *entry - 1;
            }
            if distinct + rows > most || step + 1 == t {
                for &id in &ids[first..first + distinct] {
                    known[id as usize] = 0;
                }
                self.pieces.push(TimePiece { begin, end: step + 1, first, distinct });
                (begin, first, distinct) = (step + 1, first + distinct, 0);
            }
        }
        first
    }

    /// Where the sums of a piece stand in `projected`: after those of the pieces before it where `keep`, else all in one
    /// place.
    fn sums(&self, d: Sizes, piece: TimePiece, keep: bool) -> std::ops::Range<usize> {
        let width = GATES * d.units();
        let first = if keep { piece.first * width } else { 0 };
        first..first + piece.distinct * width
    }
}

/// What a block reads while it trains.
#[derive(Clone, Copy)]
pub(super) struct Weights<'a> {
    pub sizes: Sizes,
    pub panels: &'a [f32],
    pub backs: &'a [f32],
    pub dense: &'a [f32],
}

/// Gradients that blocks add to.
#[derive(Debug, Default)]
pub(super) struct Partial {
    /// As the cell weights; the biases alone, `[unit vector][gate][lane]`, where W and U are summed over all blocks by
    /// [`RankPanel`].
    pub panels: Vec<f32>,
    /// As the dense weights.
    pub dense: Vec<f32>,
}

/// One block's training step up to its gradients. `tape` holds the inputs, see [`Tape::gather`].
pub(super) struct TrainBlock<'a> {
    pub weights: Weights<'a>,
    pub tape: &'a mut Tape,
    pub rows: usize,
    pub t: usize,
    /// Rows of the whole batch.
    pub batch: usize,
    /// `[rows]`
    pub labels: &'a [u32],
    /// `[C]`
    pub class_weights: Option<&'a [f32]>,
    /// `[rows]`, assigned.
    pub loss: &'a mut [f32],
    /// `[rows]`, assigned.
    pub hits: &'a mut [f32],
    /// `[entry][inputs]`, assigned.
    pub dx: &'a mut [f32],
    pub partial: &'a mut Partial,
    /// Assign `partial` instead of adding to it.
    pub first: bool,
    /// Leave W and U to [`RankPanel`].
    pub biases_only: bool,
}

impl Kernel for TrainBlock<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Weights { sizes: d, panels, backs, dense } = self.weights;
        let (rows, t) = (self.rows, self.t);
        let Partial { panels: d_panels, dense: d_dense } = self.partial;
        if self.first {
            d_dense.fill(0.0);
        }
        forward(s, d, panels, self.tape, rows, t);
        let Self { batch, labels, class_weights, loss, hits, .. } = self;
        head(s, d, dense, d_dense, self.tape, rows, t, batch, labels, class_weights, loss, hits);
        backward(s, d, backs, d_panels, self.tape, rows, t, self.dx, self.first, self.biases_only);
    }
}

/// All time steps from a state of zeros, piece by piece.
#[inline(always)]
fn forward<S: Simd>(s: S, d: Sizes, panels: &[f32], tape: &mut Tape, rows: usize, t: usize) {
    let units = d.units();
    tape.c[..rows * units].fill(0.0);
    tape.h[..rows * apart(units)].fill(0.0);
    for index in 0..tape.pieces.len() {
        let TimePiece { first, distinct, .. } = tape.pieces[index];
        let ld = apart(d.e);
        let x = &tape.x[first * ld..][..distinct * ld];
        let out = &mut tape.projected[..distinct * GATES * units];
        Project { sizes: d, panels, x, ld, out, by_vector: true }.run(s);
        forward_piece(s, d, panels, tape, rows, t, tape.pieces[index]);
    }
}

/// The time steps of one piece, of which `projected` holds what they start from.
#[inline(always)]
fn forward_piece<S: Simd>(
    s: S,
    d: Sizes,
    panels: &[f32],
    tape: &mut Tape,
    rows: usize,
    t: usize,
    piece: TimePiece,
) {
    let units = d.units();
    assert!(d.lanes == S::LANES && panels.len() == d.panels());
    let ld = apart(units);
    assert!(tape.h.len() >= (t + 1) * rows * ld && tape.gates.len() >= t * rows * GATES * units);
    assert!(tape.c.len() >= (t + 1) * rows * units && tape.tanh_c.len() >= t * rows * units);
    assert!(piece.end <= t);
    let projected = &tape.projected[..piece.distinct * GATES * units];
    let (h, gates) = (tape.h.as_mut_ptr(), tape.gates.as_mut_ptr());
    let (c, tanh_c) = (tape.c.as_mut_ptr(), tape.tanh_c.as_mut_ptr());
    for step in piece.begin..piece.end {
        // The first h is zero.
        let k = if step == 0 { 0 } else { d.h };
        for vector in 0..d.unit_vectors() {
            let u = &panels[vector * d.panel() + d.e * d.gates()..][..d.h * d.gates()];
            let projected = &projected[vector * piece.distinct * d.gates()..][..piece.distinct * d.gates()];
            for (first, count) in Evenly::new(rows, ROWS) {
                let at = (step * d.unit_vectors() + vector) * rows + first;
                let entries = &tape.entries[step * rows + first..][..count];
                // SAFETY: row `first` + r, r < `count`, of time steps `step` and `step + 1` ≤ t, and of unit vector
                // `vector`, lies within the lengths that were asserted above.
                unsafe {
                    let a = h.add((step * rows + first) * ld);
                    let h = h.add(((step + 1) * rows + first) * ld + vector * S::LANES);
                    let gates = gates.add(at * GATES * S::LANES);
                    let c_prev = c.add(at * S::LANES);
                    let c = c_prev.add(rows * units);
                    let tanh_c = tanh_c.add(at * S::LANES);
                    with_tile!(S, count, R, N => {
                        let mut pre = [[s.splat(0.0); GATES]; R];
                        for part in (0..GATES).step_by(N) {
                            let mut sums = [[s.splat(0.0); N]; R];
                            for (sums, &entry) in sums.iter_mut().zip(entries) {
                                let from = &projected[entry as usize * d.gates()..][..d.gates()];
                                *sums = tile::load_row(s, from.as_ptr().add(part * S::LANES));
                            }
                            let u = u.as_ptr().add(part * S::LANES);
                            tile::cell(s, &mut sums, a, ld, u, GATES * S::LANES, k);
                            for r in 0..R {
                                pre[r][part..part + N].copy_from_slice(&sums[r]);
                            }
                        }
                        activate(s, &mut pre);
                        let mut states = [s.splat(0.0); R];
                        for (r, pre) in pre.iter().enumerate() {
                            let prev = s.load(c_prev.add(r * S::LANES));
                            states[r] = s.mul_add(pre[gate::F], prev, s.mul(pre[gate::I], pre[gate::G]));
                            s.store(c.add(r * S::LANES), states[r]);
                            for (g, &gate) in pre.iter().enumerate() {
                                s.store(gates.add((r * GATES + g) * S::LANES), gate);
                            }
                        }
                        let squashed = tanhs(s, states);
                        for r in 0..R {
                            s.store(tanh_c.add(r * S::LANES), squashed[r]);
                            s.store(h.add(r * ld), s.mul(pre[r][gate::O], squashed[r]));
                        }
                    });
                }
            }
        }
    }
}

/// Sum of `a[k]·b[k]`, both a multiple of the vector's length: lane by lane, then over the lanes in order.
#[inline(always)]
fn dot<S: Simd>(s: S, a: &[f32], b: &[f32]) -> f32 {
    let mut sum = s.splat(0.0);
    for (a, b) in a.chunks_exact(S::LANES).zip(b.chunks_exact(S::LANES)) {
        sum = s.mul_add(s.get(a), s.get(b), sum);
    }
    let mut lanes = [0.0; 16];
    s.put(&mut lanes, sum);
    lanes[..S::LANES].iter().sum()
}

/// `y += a·x`, both a multiple of the vector's length.
#[inline(always)]
fn add_scaled<S: Simd>(s: S, a: f32, x: &[f32], y: &mut [f32]) {
    let a = s.splat(a);
    for (x, y) in x.chunks_exact(S::LANES).zip(y.chunks_exact_mut(S::LANES)) {
        let sum = s.mul_add(a, s.get(x), s.get(y));
        s.put(y, sum);
    }
}

/// Logits of rows of `h`, `[C]` each.
#[inline(always)]
fn logits<S: Simd>(s: S, d: Sizes, dense: &[f32], h: &[f32], out: &mut [f32]) {
    let (weights, bias) = dense.split_at(d.classes * d.units());
    for ((w, b), y) in weights.chunks_exact(d.units()).zip(bias).zip(out) {
        *y = b + dot(s, h, w);
    }
}

/// Dense layer, softmax and loss, and their derivatives: leaves the gradient by the last h in `tape.dh`.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // the arrays of one equation
fn head<S: Simd>(
    s: S,
    d: Sizes,
    dense: &[f32],
    d_dense: &mut [f32],
    tape: &mut Tape,
    rows: usize,
    t: usize,
    batch: usize,
    labels: &[u32],
    class_weights: Option<&[f32]>,
    loss: &mut [f32],
    hits: &mut [f32],
) {
    let (units, classes) = (d.units(), d.classes);
    let weights = &dense[..classes * units];
    let (dw, db) = d_dense.split_at_mut(classes * units);
    for row in 0..rows {
        let h = &tape.h[(t * rows + row) * apart(units)..][..units];
        let line = &mut tape.logits[..classes];
        let probs = &mut tape.probs[..classes];
        logits(s, d, dense, h, line);
        let label = labels[row] as usize;
        let weight = class_weights.map_or(1.0, |weights| weights[label]);
        (loss[row], hits[row]) = cross_entropy::row(line, label, probs);
        loss[row] *= weight;
        let dh = &mut tape.dh[row * units..][..units];
        dh.fill(0.0);
        for class in 0..classes {
            let target = if class == label { 1.0 } else { 0.0 };
            let dy = (probs[class] - target) / batch as f32 * weight;
            add_scaled(s, dy, &weights[class * units..][..units], dh);
            add_scaled(s, dy, h, &mut dw[class * units..][..units]);
            db[class] += dy;
        }
    }
}

/// Backpropagation through all time steps from `tape.dh`.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // the arrays of one equation
fn backward<S: Simd>(
    s: S,
    d: Sizes,
    backs: &[f32],
    d_panels: &mut [f32],
    tape: &mut Tape,
    rows: usize,
    t: usize,
    dx: &mut [f32],
    first: bool,
    biases_only: bool,
) {
    let units = d.units();
    let panel = if biases_only { d.gates() } else { d.panel() };
    assert!(d_panels.len() == d.unit_vectors() * panel);
    if first {
        for panel in d_panels.chunks_exact_mut(panel) {
            let bias = panel.len() - d.gates();
            panel[bias..].fill(0.0);
        }
    }
    tape.dc[..rows * units].fill(0.0);
    let chunk = (RANK_ROWS / rows.max(1)).max(1);
    let mut end = t;
    let mut pieces = tape.pieces.len();
    for step in (0..t).rev() {
        // Pieces are read backwards, the last first, and cover all time steps.
        if pieces > 0 && tape.pieces[pieces - 1].end == step + 1 {
            pieces -= 1;
            let sums = tape.sums(d, tape.pieces[pieces], biases_only);
            tape.projected[sums].fill(0.0);
        }
        let piece = tape.pieces[pieces];
        let sums = tape.sums(d, piece, biases_only);
        for (vector, panel) in d_panels.chunks_exact_mut(panel).enumerate() {
            let bias = panel.len() - d.gates();
            d_activate(s, d, &mut panel[bias..], vector, tape, rows, step, piece.distinct, sums.start);
        }
        if step > 0 {
            let gates = &tape.gates[step * rows * GATES * units..][..rows * GATES * units];
            back_product(s, d, d.inputs() / S::LANES, d.unit_vectors(), backs, gates, rows, &mut tape.dh);
        }
        if !biases_only && (end - step == chunk || step == 0) {
            for (vector, panel) in d_panels.chunks_exact_mut(panel).enumerate() {
                rank_recurrent(s, d, panel, vector, tape, rows, step, end, first && end == t);
            }
            end = step;
        }
        if step == piece.begin {
            let dx = &mut dx[piece.first * d.inputs()..][..piece.distinct * d.inputs()];
            let sums = &tape.projected[sums];
            back_product(s, d, 0, d.inputs() / S::LANES, backs, sums, piece.distinct, dx);
            if !biases_only {
                for (vector, panel) in d_panels.chunks_exact_mut(panel).enumerate() {
                    rank_inputs(s, d, panel, vector, tape, piece, sums, first && piece.end == t);
                }
            }
        }
    }
}

/// One time step of a unit vector from gradients by h and c to those by the pre-activations (in place of the gates) and
/// by c_prev (in place of `dc`); adds to the bias' gradient and to the sums of the piece's `distinct` tokens, which begin
/// at `projected[sums]`.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // the arrays of one equation
fn d_activate<S: Simd>(
    s: S,
    d: Sizes,
    bias: &mut [f32],
    vector: usize,
    tape: &mut Tape,
    rows: usize,
    step: usize,
    distinct: usize,
    sums: usize,
) {
    let (lanes, units) = (S::LANES, d.units());
    let one = s.splat(1.0);
    let limit = s.splat(NEGLIGIBLE);
    let at = (step * d.unit_vectors() + vector) * rows;
    let gates = &mut tape.gates[at * d.gates()..][..rows * d.gates()];
    let c_prev = &tape.c[at * lanes..][..rows * lanes];
    let tanh_c = &tape.tanh_c[at * lanes..][..rows * lanes];
    let dc = &mut tape.dc[vector * rows * lanes..][..rows * lanes];
    let sums = &mut tape.projected[sums + vector * distinct * d.gates()..][..distinct * d.gates()];
    let entries = &tape.entries[step * rows..][..rows];
    let mut db = [s.splat(0.0); GATES];
    for g in 0..GATES {
        db[g] = s.get(&bias[g * lanes..]);
    }
    for row in 0..rows {
        let gates = &mut gates[row * GATES * lanes..][..GATES * lanes];
        let i = s.get(&gates[gate::I * lanes..]);
        let f = s.get(&gates[gate::F * lanes..]);
        let g = s.get(&gates[gate::G * lanes..]);
        let o = s.get(&gates[gate::O * lanes..]);
        let y = s.get(&tanh_c[row * lanes..]);
        let dh = s.get(&tape.dh[row * units + vector * lanes..]);
        let dc = &mut dc[row * lanes..][..lanes];
        // dc + dh·o·(1 − y²)
        let dc_all = s.mul_add(s.mul(dh, o), s.neg_mul_add(y, y, one), s.get(dc));
        let d_pre = [
            s.mul(s.mul(dc_all, g), s.neg_mul_add(i, i, i)),
            s.mul(s.mul(dc_all, s.get(&c_prev[row * lanes..])), s.neg_mul_add(f, f, f)),
            s.mul(s.mul(dc_all, i), s.neg_mul_add(g, g, one)),
            s.mul(s.mul(dh, y), s.neg_mul_add(o, o, o)),
        ];
        let sums = &mut sums[entries[row] as usize * GATES * lanes..][..GATES * lanes];
        for k in 0..GATES {
            let d_pre = s.without_below(d_pre[k], limit);
            db[k] = s.add(db[k], d_pre);
            s.put(&mut gates[k * lanes..], d_pre);
            let sum = s.add(s.get(&sums[k * lanes..]), d_pre);
            s.put(&mut sums[k * lanes..], sum);
        }
        s.put(dc, s.without_below(s.mul(dc_all, f), limit));
    }
    for g in 0..GATES {
        s.put(&mut bias[g * lanes..], db[g]);
    }
}

/// The products of rows of gradients by pre-activations, `[unit vector][row][gate][lane]`, with `vectors` vectors from
/// `begin` on of the back panels: gradients by x, or by h_prev. Assigns `out [row][vectors]`.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // the arrays of one equation
fn back_product<S: Simd>(
    s: S,
    d: Sizes,
    begin: usize,
    vectors: usize,
    backs: &[f32],
    gates: &[f32],
    rows: usize,
    out: &mut [f32],
) {
    let (units, ld) = (d.units(), vectors * S::LANES);
    let pieces = d.unit_vectors();
    assert!(d.lanes == S::LANES && backs.len() == d.backs() && begin + vectors <= d.back_vectors());
    assert!(gates.len() >= rows * GATES * units && out.len() >= rows * ld);
    let most_rows = if S::WIDE { 8 } else { 4 };
    for (first_vector, width) in d.cut_backs(begin, vectors) {
        let panel = &backs[first_vector * S::LANES * GATES * units..][..width * S::LANES * GATES * units];
        for (first, rows_here) in Evenly::new(rows, most_rows) {
            macro_rules! tile {
                ($r:literal, $n:literal) => {
                    // SAFETY: `gates` holds `rows` rows of each of the unit vectors, `panel` its vectors for every gate
                    // of every unit, `out` the rows and vectors that are written: asserted above.
                    unsafe {
                        let mut sums = [[s.splat(0.0); $n]; $r];
                        let a = gates.as_ptr().add(first * d.gates());
                        let stride = rows * d.gates();
                        tile::back(s, &mut sums, a, stride, pieces, panel.as_ptr(), $n * S::LANES);
                        let out = out.as_mut_ptr().add(first * ld + (first_vector - begin) * S::LANES);
                        for r in 0..$r {
                            for v in 0..$n {
                                s.store(out.add(r * ld + v * S::LANES), sums[r][v]);
                            }
                        }
                    }
                };
            }
            macro_rules! rows {
                ($n:literal) => {
                    match rows_here {
                        1 => tile!(1, $n),
                        2 => tile!(2, $n),
                        3 => tile!(3, $n),
                        4 => tile!(4, $n),
                        5 if S::WIDE => tile!(5, $n),
                        6 if S::WIDE => tile!(6, $n),
                        7 if S::WIDE => tile!(7, $n),
                        8 if S::WIDE => tile!(8, $n),
                        rows => unreachable!("a tile of {rows} rows"),
                    }
                };
            }
            match width {
                1 => rows!(1),
                2 => rows!(2),
                3 if S::WIDE => rows!(3),
                n => unreachable!("a panel of {n} vectors"),
            }
        }
    }
}

/// Adds the part that time steps `begin..end` have in the gradient of U to one unit vector's panel.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // the arrays of one equation
fn rank_recurrent<S: Simd>(
    s: S,
    d: Sizes,
    panel: &mut [f32],
    vector: usize,
    tape: &Tape,
    rows: usize,
    begin: usize,
    end: usize,
    assign: bool,
) {
    let (ld, vectors) = (apart(d.units()), d.unit_vectors());
    // The first h is zero.
    let begin = begin.max(1).min(end);
    let a = Pieces { from: &tape.h[begin * rows * ld..], stride: rows * ld };
    let b = Pieces {
        // Beyond the end where no time step is left.
        from: tape.gates.get((begin * vectors + vector) * rows * d.gates()..).unwrap_or_default(),
        stride: vectors * rows * d.gates(),
    };
    rank_rows(s, d, &mut panel[d.e * d.gates()..][..d.h * d.gates()], a, ld, b, end - begin, rows, assign);
}

/// Adds (or assigns) the part that a piece has in the gradient of W to one unit vector's panel, from the piece's `sums`.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // the arrays of one equation
fn rank_inputs<S: Simd>(
    s: S,
    d: Sizes,
    panel: &mut [f32],
    vector: usize,
    tape: &Tape,
    piece: TimePiece,
    sums: &[f32],
    assign: bool,
) {
    let panel = &mut panel[..d.e * d.gates()];
    for begin in (0..piece.distinct).step_by(RANK_ROWS) {
        let rows = RANK_ROWS.min(piece.distinct - begin);
        let a = Pieces { from: &tape.x[(piece.first + begin) * apart(d.e)..], stride: 0 };
        let b = Pieces { from: &sums[(vector * piece.distinct + begin) * d.gates()..], stride: 0 };
        rank_rows(s, d, panel, a, apart(d.e), b, 1, rows, assign && begin == 0);
    }
}

/// Pieces of an array: where the first begins, and how far apart they are.
#[derive(Clone, Copy)]
struct Pieces<'a> {
    from: &'a [f32],
    stride: usize,
}

/// Adds (or assigns) aᵀ·b to rows of a panel: of each of `pieces` pieces `rows` rows, those of `a` being `lda` apart, those
/// of `b` `[gate][lane]`.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // the arrays of one equation
fn rank_rows<S: Simd>(
    s: S,
    d: Sizes,
    panel: &mut [f32],
    a: Pieces<'_>,
    lda: usize,
    b: Pieces<'_>,
    pieces: usize,
    rows: usize,
    assign: bool,
) {
    let columns = panel.len() / d.gates();
    assert!(d.lanes == S::LANES && panel.len() == columns * d.gates() && columns <= lda);
    if pieces > 0 {
        assert!(a.from.len() >= (pieces - 1) * a.stride + rows * lda);
        assert!(b.from.len() >= (pieces - 1) * b.stride + rows * d.gates());
    }
    for (first, count) in Evenly::new(columns, ROWS) {
        with_tile!(S, count, R, N => {
            // SAFETY: columns `first..first + R` are below `columns` ≤ `lda`, the rows those of the pieces: within the
            // lengths asserted above.
            unsafe {
                for part in (0..GATES).step_by(N) {
                    let out = panel.as_mut_ptr().add(first * d.gates() + part * S::LANES);
                    let mut sums = [[s.splat(0.0); N]; R];
                    if !assign {
                        for (r, sums) in sums.iter_mut().enumerate() {
                            *sums = tile::load_row(s, out.add(r * d.gates()));
                        }
                    }
                    for piece in 0..pieces {
                        let a = a.from.as_ptr().add(piece * a.stride + first);
                        let b = b.from.as_ptr().add(piece * b.stride + part * S::LANES);
                        tile::rank(s, &mut sums, a, lda, b, rows);
                    }
                    for (r, sums) in sums.iter().enumerate() {
                        for (v, &sum) in sums.iter().enumerate() {
                            s.store(out.add(r * d.gates() + v * S::LANES), sum);
                        }
                    }
                }
            }
        });
    }
}

/// The gradient of one unit vector's panel over all blocks, assigned.
pub(super) struct RankPanel<'a> {
    pub sizes: Sizes,
    pub vector: usize,
    pub panel: &'a mut [f32],
    /// Every block's tape, its gradients, and its rows.
    pub blocks: &'a [(&'a Tape, &'a Partial, usize)],
    pub t: usize,
}

impl Kernel for RankPanel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let d = self.sizes;
        let (weights, bias) = self.panel.split_at_mut((d.e + d.h) * d.gates());
        bias.fill(0.0);
        if self.blocks.is_empty() {
            weights.fill(0.0);
        }
        for &(_, partial, _) in self.blocks {
            add_scaled(s, 1.0, &partial.panels[self.vector * d.gates()..][..d.gates()], bias);
        }
        let mut assign = true;
        for &(tape, _, rows) in self.blocks {
            for (index, &piece) in tape.pieces.iter().enumerate() {
                let sums = &tape.projected[tape.sums(d, piece, true)];
                rank_inputs(s, d, self.panel, self.vector, tape, piece, sums, assign && index == 0);
            }
            let chunk = (2 * RANK_ROWS / rows.max(1)).max(1);
            for begin in (0..self.t).step_by(chunk) {
                let end = self.t.min(begin + chunk);
                rank_recurrent(s, d, self.panel, self.vector, tape, rows, begin, end, assign && begin == 0);
            }
            assign = false;
        }
    }
}

/// Projects rows of the embedding: `x·W + b` for all gates, as a forward step would start.
pub(super) struct Project<'a> {
    pub sizes: Sizes,
    pub panels: &'a [f32],
    /// `[rows][E]`, rows `ld` elements apart.
    pub x: &'a [f32],
    pub ld: usize,
    /// `[rows][unit vector][gate][lane]`, assigned.
    pub out: &'a mut [f32],
    /// `[unit vector][rows][gate][lane]` instead.
    pub by_vector: bool,
}

impl Kernel for Project<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let d = self.sizes;
        let (rows, ld) = (self.x.len() / self.ld, self.ld);
        let all = d.unit_vectors() * d.gates();
        assert!(d.lanes == S::LANES && self.panels.len() == d.panels() && self.out.len() == rows * all);
        assert!(ld >= d.e);
        // Between unit vectors, and between rows.
        let (apart, width) = if self.by_vector { (rows * d.gates(), d.gates()) } else { (d.gates(), all) };
        for (vector, panel) in self.panels.chunks_exact(d.panel()).enumerate() {
            for (first, count) in Evenly::new(rows, ROWS) {
                with_tile!(S, count, R, N => {
                    // SAFETY: rows `first..first + R` of x and of `out`, whose lengths were checked above.
                    unsafe {
                        for part in (0..GATES).step_by(N) {
                            let panel = panel.as_ptr().add(part * S::LANES);
                            let bias = tile::load_row(s, panel.add((d.e + d.h) * d.gates()));
                            let mut sums: [[S::V; N]; R] = [bias; R];
                            let x = self.x.as_ptr().add(first * ld);
                            tile::cell(s, &mut sums, x, ld, panel, GATES * S::LANES, d.e);
                            for (r, sums) in sums.iter().enumerate() {
                                let out = self.out.as_mut_ptr().add((first + r) * width + vector * apart);
                                for (v, &sum) in sums.iter().enumerate() {
                                    s.store(out.add((part + v) * S::LANES), sum);
                                }
                            }
                        }
                    }
                });
            }
        }
    }
}

/// What a step without training starts from.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// `[V][E]`
    Embeddings(&'a [f32]),
    /// What [`Project`] made of it.
    Projected(&'a [f32]),
}

/// A state that goes through time in place.
#[derive(Debug, Default)]
pub(super) struct State {
    /// `[2][row][E + units]`: x and the h of two time steps.
    joined: Vec<f32>,
    /// `[unit vector][row][lane]`
    c: Vec<f32>,
    logits: Vec<f32>,
}

/// What is made of the logits.
pub(super) enum Answers<'a> {
    /// Probabilities `[rows][C]`.
    Probabilities(&'a mut [f32]),
    /// Losses and hits, `[rows]` each, from labels.
    Losses { labels: &'a [u32], loss: &'a mut [f32], hits: &'a mut [f32], probs: &'a mut [f32] },
}

/// Forward alone, over rows in blocks.
pub(super) struct Infer<'a> {
    pub sizes: Sizes,
    pub panels: &'a [f32],
    pub dense: &'a [f32],
    pub source: Source<'a>,
    /// `[rows][T]`, each below V.
    pub ids: &'a [u32],
    pub t: usize,
    pub state: &'a mut State,
    pub answers: Answers<'a>,
}

impl Kernel for Infer<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let d = self.sizes;
        let block = 4 * ROWS;
        let rows = self.ids.len() / self.t.max(1);
        let most = block.min(rows);
        for (buffer, n) in [
            (&mut self.state.joined, 2 * most * d.joined()),
            (&mut self.state.c, most * d.units()),
            (&mut self.state.logits, d.classes),
        ] {
            if buffer.len() < n {
                buffer.resize(n, 0.0);
            }
        }
        for first in (0..rows).step_by(block) {
            let count = block.min(rows - first);
            let ids = &self.ids[first * self.t..][..count * self.t];
            walk(s, d, self.panels, self.source, ids, self.t, count, self.state);
            let last = (self.t % 2) * count * d.joined();
            for row in 0..count {
                let h = &self.state.joined[last + row * d.joined() + d.e..][..d.units()];
                let line = &mut self.state.logits[..d.classes];
                logits(s, d, self.dense, h, line);
                let index = first + row;
                match &mut self.answers {
                    Answers::Probabilities(probs) => {
                        cross_entropy::row(line, 0, &mut probs[index * d.classes..][..d.classes]);
                    }
                    Answers::Losses { labels, loss, hits, probs } => {
                        (loss[index], hits[index]) =
                            cross_entropy::row(line, labels[index] as usize, &mut probs[..d.classes]);
                    }
                }
            }
        }
    }
}

/// One block of rows through all time steps.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // the arrays of one equation
fn walk<S: Simd>(
    s: S,
    d: Sizes,
    panels: &[f32],
    source: Source<'_>,
    ids: &[u32],
    t: usize,
    rows: usize,
    state: &mut State,
) {
    let (units, ld, width) = (d.units(), d.joined(), d.unit_vectors() * d.gates());
    assert!(d.lanes == S::LANES && panels.len() == d.panels() && ids.len() == rows * t);
    assert!(state.joined.len() >= 2 * rows * ld && state.c.len() >= rows * units);
    state.c[..rows * units].fill(0.0);
    state.joined[..rows * ld].fill(0.0);
    for step in 0..t {
        let (now, next) = ((step % 2) * rows * ld, ((step + 1) % 2) * rows * ld);
        if let Source::Embeddings(table) = source {
            for row in 0..rows {
                let id = ids[row * t + step] as usize;
                state.joined[now + row * ld..][..d.e].copy_from_slice(&table[id * d.e..][..d.e]);
            }
        }
        // The first h is zero.
        let from_h = if step == 0 { 0 } else { d.h };
        if let Source::Projected(table) = source
            && step + 1 < t
        {
            for row in 0..rows {
                let id = ids[row * t + step + 1] as usize;
                for line in table[id * width..][..width].chunks_exact(16) {
                    s.prefetch(&line[0]);
                }
            }
        }
        for (vector, panel) in panels.chunks_exact(d.panel()).enumerate() {
            for (first, count) in Evenly::new(rows, ROWS) {
                with_tile!(S, count, R, N => {
                    // SAFETY: rows `first..first + R` of two time steps in `joined` and of `c`, whose lengths were
                    // checked above.
                    unsafe {
                        let joined = state.joined.as_mut_ptr();
                        let a = joined.add(now + first * ld);
                        let h = joined.add(next + first * ld + d.e + vector * S::LANES);
                        let c = state.c.as_mut_ptr().add((vector * rows + first) * S::LANES);
                        let mut pre = [[s.splat(0.0); GATES]; R];
                        for part in (0..GATES).step_by(N) {
                            let panel = panel.as_ptr().add(part * S::LANES);
                            let mut sums = [[s.splat(0.0); N]; R];
                            match source {
                                Source::Embeddings(_) => {
                                    sums = [tile::load_row(s, panel.add((d.e + d.h) * d.gates())); R];
                                    let k = d.e + from_h;
                                    tile::cell(s, &mut sums, a, ld, panel, GATES * S::LANES, k);
                                }
                                Source::Projected(table) => {
                                    for (r, sums) in sums.iter_mut().enumerate() {
                                        let id = ids[(first + r) * t + step] as usize;
                                        let start = &table[id * width + vector * d.gates()..][..d.gates()];
                                        *sums = tile::load_row(s, start.as_ptr().add(part * S::LANES));
                                    }
                                    let u = panel.add(d.e * d.gates());
                                    tile::cell(s, &mut sums, a.add(d.e), ld, u, GATES * S::LANES, from_h);
                                }
                            }
                            for r in 0..R {
                                pre[r][part..part + N].copy_from_slice(&sums[r]);
                            }
                        }
                        activate(s, &mut pre);
                        let mut states = [s.splat(0.0); R];
                        for (r, pre) in pre.iter().enumerate() {
                            let c = c.add(r * S::LANES);
                            states[r] = s.mul_add(pre[gate::F], s.load(c), s.mul(pre[gate::I], pre[gate::G]));
                            s.store(c, states[r]);
                        }
                        let squashed = tanhs(s, states);
                        for r in 0..R {
                            s.store(h.add(r * ld), s.mul(pre[r][gate::O], squashed[r]));
                        }
                    }
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gathers two rows of T tokens and checks all that the products rely on; the pieces that came of it.
    fn gathered(e: usize, t: usize, vocab: usize, id: impl Fn(usize) -> usize) -> usize {
        let d = Sizes { lanes: 16, e, h: 512, classes: 2 };
        let ids: Vec<u32> = (0..2 * t).map(|at| id(at) as u32).collect();
        let row = |r: usize| &ids[r * t..][..t];
        let embeddings: Vec<f32> = (0..vocab * e).map(|x| x as f32).collect();
        let (mut known, mut found) = (vec![0; vocab], vec![0; 2 * t]);
        let mut tape = Tape::default();
        tape.fit(d, 2, t, false).unwrap();
        let n = tape.gather(d, 2, t, row, &embeddings, &mut known, &mut found);
        assert!(known.iter().all(|&entry| entry == 0));
        let (mut begin, mut entries) = (0, 0);
        for piece in &tape.pieces {
            assert_eq!((piece.begin, piece.first), (begin, entries));
            assert!(tape.projected.len() >= piece.distinct * GATES * d.units());
            (begin, entries) = (piece.end, piece.first + piece.distinct);
            for (step, r) in (piece.begin..piece.end).flat_map(|step| [(step, 0), (step, 1)]) {
                let entry = tape.entries[2 * step + r] as usize;
                assert!(entry < piece.distinct);
                let (id, x) = (row(r)[step], &tape.x[(piece.first + entry) * apart(e)..][..e]);
                assert_eq!(found[piece.first + entry], id);
                assert_eq!(x, &embeddings[id as usize * e..][..e]);
            }
        }
        assert_eq!((begin, entries), (t, n));
        tape.pieces.len()
    }

    #[test]
    fn pieces_are_long_only_where_tokens_repeat_and_inputs_are_wide() {
        // 64 entries fit a piece of the second cache, 512 one of the third.
        assert_eq!(gathered(3, 32, 64, |at| at), 1);
        assert_eq!(gathered(128, 100, 200, |at| at), 4, "nothing repeats");
        assert_eq!(gathered(128, 100, 200, |at| at % 90), 1, "half repeats");
        assert!(gathered(3, 100, 200, |at| at % 90) > 1, "narrow inputs");
        assert_eq!(gathered(128, 1000, 2000, |at| at), 32, "nothing repeats");
    }
}
