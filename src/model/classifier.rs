//! The training step, composed of operations: ids → embedding → recurrent layer → dense → softmax cross entropy, and
//! the way back.
//!
//! ```text
//! forward    ids [T,B] → embedded [T,B,E] → h [T+1,B,H] → its last row → logits [B,C]
//! loss       logits, labels → probs [B,C], loss [B], hits [B]
//! backward   dlogits → dense → dh_last → backpropagation through time → dembedded → the embedding's rows
//! ```
//! The functions are generic over the host back ends ([`HostOps`]); everything that they compute on the way lies in a
//! [`Workspace`] that is reused from batch to batch. Ids are time-major, so that one time step of the batch is one
//! contiguous block for the recurrent layer, and a token's gradients are summed in the order of (time step, row).
//! [`to_time_major`] and [`gather`] bring them there.
//!
//! A new cell is one more arm of the matches on [`Cell`] below and its buffers in the workspace.

use super::config::{Cell, ModelConfig};
use super::{Model, ParamTable};
use crate::backend::checks;
use crate::backend::reference::cross_entropy::probabilities;
use crate::backend::{
    CrossEntropyBackward, CrossEntropyDims, CrossEntropyForward, DenseBackward, DenseDims, DenseForward,
    EmbeddingBackward, EmbeddingDims, EmbeddingForward, Ops, Real, SequenceBackward, SequenceDims,
    SequenceForward,
};
use crate::data::Examples;
use crate::error::{Error, Result};

/// Operations on host memory: buffers are slices of `T`, ids are slices of `u32`.
pub trait HostOps<T: Real>: Ops<Buf = [T], Ids = [u32], OwnedBuf = Vec<T>, OwnedIds = Vec<u32>> {}

impl<T: Real, O> HostOps<T> for O where O: Ops<Buf = [T], Ids = [u32], OwnedBuf = Vec<T>, OwnedIds = Vec<u32>> {}

/// How far a workspace's batch has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Empty,
    Forward,
    Loss,
}

/// The activations and their gradients of one batch. Buffers grow to the largest batch seen and stay; a smaller batch
/// uses their front.
#[derive(Clone, Debug)]
pub struct Workspace<T> {
    stage: Stage,
    config: ModelConfig,
    rows: usize,
    t: usize,
    /// `[T,B,E]`
    embedded: Vec<T>,
    /// `[B,H]`, the state before the first time step: zeros.
    zeros: Vec<T>,
    /// `[T,B,4H]`
    gates: Vec<T>,
    /// `[T+1,B,H]`
    h: Vec<T>,
    /// `[T+1,B,H]`
    c: Vec<T>,
    /// `[B,C]`
    logits: Vec<T>,
    /// `[B,C]`
    probs: Vec<T>,
    /// `[B]`
    loss: Vec<T>,
    /// `[B]`
    hits: Vec<T>,
    /// `[B,C]`
    dlogits: Vec<T>,
    /// `[B,H]`
    dh_last: Vec<T>,
    /// `[T,B,E]`
    dembedded: Vec<T>,
    /// `[B,H]`, computed by the recurrent layer and read by nobody: the initial state is a constant.
    dh0: Vec<T>,
    /// `[B,H]`, likewise.
    dc0: Vec<T>,
}

impl<T: Real> Default for Workspace<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Real> Workspace<T> {
    /// An empty one; the first [`forward`] gives it its size.
    pub fn new() -> Self {
        Self {
            stage: Stage::Empty,
            config: ModelConfig::default(),
            rows: 0,
            t: 0,
            embedded: Vec::new(),
            zeros: Vec::new(),
            gates: Vec::new(),
            h: Vec::new(),
            c: Vec::new(),
            logits: Vec::new(),
            probs: Vec::new(),
            loss: Vec::new(),
            hits: Vec::new(),
            dlogits: Vec::new(),
            dh_last: Vec::new(),
            dembedded: Vec::new(),
            dh0: Vec::new(),
            dc0: Vec::new(),
        }
    }

    /// Rows of the batch, `B`; 0 before the first [`forward`].
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// `[B,C]`, after [`forward`]; empty before.
    pub fn logits(&self) -> &[T] {
        self.since(Stage::Forward, &self.logits, self.config.classes)
    }

    /// `[B,C]`, after [`loss`]; empty before.
    pub fn probs(&self) -> &[T] {
        self.since(Stage::Loss, &self.probs, self.config.classes)
    }

    /// `[B]`: each row's loss, after [`loss`]; empty before.
    pub fn loss(&self) -> &[T] {
        self.since(Stage::Loss, &self.loss, 1)
    }

    /// `[B]`: 1 where the row is classified rightly, else 0; after [`loss`], empty before.
    pub fn hits(&self) -> &[T] {
        self.since(Stage::Loss, &self.hits, 1)
    }

    /// The batch's rows of `buffer`, or nothing while `stage` has not been reached.
    fn since<'a>(&self, stage: Stage, buffer: &'a [T], width: usize) -> &'a [T] {
        if self.stage < stage { &[] } else { &buffer[..self.rows * width] }
    }

    /// Grows the buffers that [`forward`] and [`loss`] write.
    fn fit_forward(&mut self, d: &Dims) -> Result<()> {
        let Dims { t, b, e, h, c, .. } = *d;
        // One row more than time steps: the initial state.
        let states = t.saturating_add(1);
        for (buffer, dims) in [
            (&mut self.embedded, [t, b, e]),
            (&mut self.zeros, [1, b, h]),
            // 4H cannot overflow: a configuration's H is far smaller.
            (&mut self.gates, [t, b, 4 * h]),
            (&mut self.h, [states, b, h]),
            (&mut self.c, [states, b, h]),
            (&mut self.logits, [1, b, c]),
            (&mut self.probs, [1, b, c]),
            (&mut self.loss, [1, 1, b]),
            (&mut self.hits, [1, 1, b]),
        ] {
            grow(buffer, dims)?;
        }
        Ok(())
    }

    /// Grows the buffers that only [`backward`] writes, so that prediction does not pay for them.
    fn fit_backward(&mut self, d: &Dims) -> Result<()> {
        let Dims { t, b, e, h, c, .. } = *d;
        for (buffer, dims) in [
            (&mut self.dlogits, [1, b, c]),
            (&mut self.dh_last, [1, b, h]),
            (&mut self.dembedded, [t, b, e]),
            (&mut self.dh0, [1, b, h]),
            (&mut self.dc0, [1, b, h]),
        ] {
            grow(buffer, dims)?;
        }
        Ok(())
    }

    /// The dimensions of the batch in here, if it was brought to `stage` by the same model.
    fn dims(&self, doing: &str, stage: Stage, model: &Model) -> Result<Dims> {
        if self.stage < stage {
            let missing = if self.stage == Stage::Empty { "forward" } else { "loss" };
            return Err(Error::Failed(format!(
                "classifier {doing}: the workspace holds no batch that {missing} was called for; call {missing} first"
            )));
        }
        if self.config != model.config {
            return Err(Error::Failed(format!(
                "classifier {doing}: the workspace holds a batch of another model, {:?}; expected {:?}; \
                 call forward with this model first",
                self.config, model.config
            )));
        }
        Dims::new(&self.config, self.rows, self.t)
    }
}

/// The numbers that every buffer's size is made of.
#[derive(Clone, Copy)]
struct Dims {
    t: usize,
    b: usize,
    e: usize,
    h: usize,
    v: usize,
    c: usize,
    /// Tokens, `T·B`.
    n: usize,
}

impl Dims {
    fn new(config: &ModelConfig, rows: usize, t: usize) -> Result<Self> {
        let n = rows.checked_mul(t).ok_or_else(|| too_large([t, rows, 1]))?;
        Ok(Self { t, b: rows, e: config.embed, h: config.hidden, v: config.vocab, c: config.classes, n })
    }

    fn embedding(&self) -> EmbeddingDims {
        EmbeddingDims { n: self.n, v: self.v, e: self.e }
    }

    fn sequence(&self) -> SequenceDims {
        SequenceDims { t: self.t, b: self.b, e: self.e, h: self.h }
    }

    fn dense(&self) -> DenseDims {
        DenseDims { b: self.b, inputs: self.h, outputs: self.c }
    }

    fn cross_entropy(&self) -> CrossEntropyDims {
        CrossEntropyDims { b: self.b, c: self.c }
    }

    /// Elements of one time step's state, `B·H`.
    fn state(&self) -> usize {
        self.b * self.h
    }
}

/// Computes the logits of a batch into `ws`, whatever it held.
///
/// * `params`: an arena of the model's table.
/// * `ids`: `[T,B]`, time-major (see [`to_time_major`]); `rows` is `B`. `T = 0` and `B = 0` are allowed.
///
/// # Errors
/// [`Error::Shape`] if a length does not fit or an id is not below `V`; [`Error::Failed`] if there is no memory for
/// the batch. `ws` then holds no batch.
pub fn forward<T: Real, O: HostOps<T> + ?Sized>(
    ops: &O,
    model: &Model,
    params: &[T],
    ids: &[u32],
    rows: usize,
    t: usize,
    ws: &mut Workspace<T>,
) -> Result<()> {
    ws.stage = Stage::Empty;
    check_arena("classifier_forward", "params", &model.table, params.len())?;
    let d = Dims::new(&model.config, rows, t)?;
    // Before anything grows: a wrong `rows` must not cost memory.
    check_ids("classifier_forward", &d, ids.len())?;
    ws.fit_forward(&d)?;
    (ws.config, ws.rows, ws.t) = (model.config, rows, t);
    let p = model.table.views(params);

    let embedded = &mut ws.embedded[..d.n * d.e];
    ops.embedding_forward(d.embedding(), EmbeddingForward { table: p.embeddings, ids, out: embedded })?;

    let states = d.state() * (t + 1);
    match model.config.cell {
        Cell::Lstm => ops.lstm_sequence_forward(
            d.sequence(),
            SequenceForward {
                x: embedded,
                h0: &ws.zeros[..d.state()],
                c0: &ws.zeros[..d.state()],
                w: p.w,
                u: p.u,
                b: p.b,
                gates: &mut ws.gates[..d.n * 4 * d.h],
                h: &mut ws.h[..states],
                c: &mut ws.c[..states],
            },
        )?,
    }

    ops.dense_forward(
        d.dense(),
        DenseForward {
            x: &ws.h[d.state() * t..states],
            w: p.dense_w,
            b: p.dense_b,
            y: &mut ws.logits[..d.b * d.c],
        },
    )?;
    ws.stage = Stage::Forward;
    Ok(())
}

/// Computes probabilities, each row's loss and its hit from the logits that [`forward`] left in `ws`.
///
/// * `labels`: `[B]`.
/// * `class_weights`: `[C]`, multiply the losses of their classes' rows.
///
/// # Errors
/// [`Error::Shape`] if there is not one label a row, a label is not below `C`, or there is not one weight a class;
/// [`Error::Failed`] if `ws` holds no batch of this model.
pub fn loss<T: Real, O: HostOps<T> + ?Sized>(
    ops: &O,
    model: &Model,
    labels: &[u32],
    class_weights: Option<&[T]>,
    ws: &mut Workspace<T>,
) -> Result<()> {
    let d = ws.dims("loss", Stage::Forward, model)?;
    ws.stage = Stage::Forward;
    ops.cross_entropy_forward(
        d.cross_entropy(),
        CrossEntropyForward {
            logits: &ws.logits[..d.b * d.c],
            labels,
            class_weights,
            probs: &mut ws.probs[..d.b * d.c],
            loss: &mut ws.loss[..d.b],
            hits: &mut ws.hits[..d.b],
        },
    )?;
    ws.stage = Stage::Loss;
    Ok(())
}

/// Adds the gradient of the batch's mean loss to `grads`, an arena of the model's table that the caller has filled
/// (with zeros, to get the gradient alone). Needs what [`forward`] and [`loss`] left in `ws`, which stays.
///
/// * `params`, `ids`, `labels`, `class_weights`: as [`forward`] and [`loss`] took them.
///
/// # Errors
/// [`Error::Shape`] if a length does not fit, an id is not below `V` or a label is not below `C`; [`Error::Failed`] if
/// `ws` holds no batch of this model whose loss was computed, or there is no memory for the gradients.
#[allow(clippy::too_many_arguments)] // the arrays of one equation
pub fn backward<T: Real, O: HostOps<T> + ?Sized>(
    ops: &O,
    model: &Model,
    params: &[T],
    grads: &mut [T],
    ids: &[u32],
    labels: &[u32],
    class_weights: Option<&[T]>,
    ws: &mut Workspace<T>,
) -> Result<()> {
    let d = ws.dims("backward", Stage::Loss, model)?;
    check_arena("classifier_backward", "params", &model.table, params.len())?;
    check_arena("classifier_backward", "grads", &model.table, grads.len())?;
    // Here and not in the embedding's backward, before which the other gradients are added.
    check_ids("classifier_backward", &d, ids.len())?;
    ws.fit_backward(&d)?;
    let p = model.table.views(params);
    let g = model.table.views_mut(grads);

    let dlogits = &mut ws.dlogits[..d.b * d.c];
    ops.cross_entropy_backward(
        d.cross_entropy(),
        CrossEntropyBackward { probs: &ws.probs[..d.b * d.c], labels, class_weights, dlogits },
    )?;

    let states = d.state() * (d.t + 1);
    let dh_last = &mut ws.dh_last[..d.state()];
    ops.dense_backward(
        d.dense(),
        DenseBackward {
            x: &ws.h[d.state() * d.t..states],
            w: p.dense_w,
            dy: dlogits,
            dx: dh_last,
            dw: g.dense_w,
            db: g.dense_b,
        },
    )?;

    let dembedded = &mut ws.dembedded[..d.n * d.e];
    match model.config.cell {
        Cell::Lstm => ops.lstm_sequence_backward(
            d.sequence(),
            SequenceBackward {
                x: &ws.embedded[..d.n * d.e],
                w: p.w,
                u: p.u,
                gates: &ws.gates[..d.n * 4 * d.h],
                h: &ws.h[..states],
                c: &ws.c[..states],
                dh: None,
                dh_last: Some(dh_last),
                dc_last: None,
                dx: dembedded,
                dh0: &mut ws.dh0[..d.state()],
                dc0: &mut ws.dc0[..d.state()],
                dw: g.w,
                du: g.u,
                db: g.b,
            },
        )?,
    }

    ops.embedding_backward(d.embedding(), EmbeddingBackward { ids, dout: dembedded, dtable: g.embeddings })
}

/// Class probabilities `[B,C]` of a batch, without labels: [`forward`], then the softmax of its logits into `probs`.
///
/// # Errors
/// As [`forward`]; and [`Error::Shape`] if `probs` is not `[B,C]`.
#[allow(clippy::too_many_arguments)] // those of `forward` and where the answer goes
pub fn predict<T: Real, O: HostOps<T> + ?Sized>(
    ops: &O,
    model: &Model,
    params: &[T],
    ids: &[u32],
    rows: usize,
    t: usize,
    ws: &mut Workspace<T>,
    probs: &mut [T],
) -> Result<()> {
    forward(ops, model, params, ids, rows, t, ws)?;
    probabilities(CrossEntropyDims { b: rows, c: model.config.classes }, ws.logits(), probs)
}

/// Writes rows of `t` ids each into `ids` as `[T,B]` (it is cleared first); `B` is the number of rows.
///
/// # Panics
/// If a row has fewer than `t` ids.
///
/// # Examples
/// ```
/// use recurve::model::classifier::to_time_major;
///
/// let mut ids = Vec::new();
/// to_time_major([&[1, 2, 3][..], &[4, 5, 6]].into_iter(), 3, &mut ids);
/// assert_eq!(ids, [1, 4, 2, 5, 3, 6]);
/// ```
pub fn to_time_major<'a>(rows: impl Iterator<Item = &'a [u32]> + Clone, t: usize, ids: &mut Vec<u32>) {
    ids.clear();
    for s in 0..t {
        ids.extend(rows.clone().map(|row| row[s]));
    }
}

/// Writes the given rows of `examples` into `ids` as `[T,B]` and their labels into `labels` as `[B]` (both are cleared
/// first).
///
/// # Errors
/// [`Error::Shape`] if a row is not below the number of examples; both buffers are as they were then.
pub fn gather(examples: &Examples, rows: &[u32], ids: &mut Vec<u32>, labels: &mut Vec<u32>) -> Result<()> {
    checks::rows(rows, examples.rows())?;
    to_time_major(rows.iter().map(|&row| examples.row(row as usize)), examples.t, ids);
    labels.clear();
    labels.extend(rows.iter().map(|&row| examples.y[row as usize]));
    Ok(())
}

/// Checks that an arena has the table's length.
fn check_arena(op: &'static str, what: &'static str, table: &ParamTable, found: usize) -> Result<()> {
    if found == table.len() {
        return Ok(());
    }
    Err(Error::Shape {
        op,
        what,
        expected: format!("{} elements (the model's parameters)", table.len()),
        found: found.to_string(),
    })
}

/// Checks that there is an id for every row and time step.
fn check_ids(op: &'static str, d: &Dims, found: usize) -> Result<()> {
    if found == d.n {
        return Ok(());
    }
    Err(Error::Shape {
        op,
        what: "ids [T,B]",
        expected: format!("{} ids ({} time steps of {} rows)", d.n, d.t, d.b),
        found: found.to_string(),
    })
}

/// Makes `buffer` hold at least the product of `dims`.
fn grow<T: Real>(buffer: &mut Vec<T>, dims: [usize; 3]) -> Result<()> {
    let [a, b, c] = dims;
    let n = a.checked_mul(b).and_then(|ab| ab.checked_mul(c)).ok_or_else(|| too_large(dims))?;
    if n > buffer.len() {
        buffer.try_reserve_exact(n - buffer.len()).map_err(|_| too_large(dims))?;
        buffer.resize(n, T::zero());
    }
    Ok(())
}

fn too_large(dims: [usize; 3]) -> Error {
    Error::Failed(format!(
        "a buffer of {} by {} by {} numbers for one batch does not fit into memory; use a smaller batch",
        dims[0], dims[1], dims[2]
    ))
}
