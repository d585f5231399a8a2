//! The engine of a CUDA device: model, data set, order and metrics live on it, and a training step is one replayed
//! graph.
//!
//! Inside an epoch the host only launches: [`Engine::train`] copies the steps' numbers to a table on the device and
//! launches one graph a step; the device itself counts through the table, gathers its rows and adds up its metrics.
//! Nothing waits but [`Engine::poll`] and whoever asks for results.

use super::batch::{Rows, gather};
use super::buffer::{DeviceVec, Ids, View, ViewMut, clear, download, pinned_to_read, upload};
use super::context::Context;
use super::cross_entropy::{self, Losses, MetricSums};
use super::graph::Graph;
use super::lstm_sequence::{self, Plan, Trace, Weights};
use super::{Clip, Cuda, adam, dense, embedding, fill};
use crate::backend::checks;
use crate::backend::{
    AdamConfig, CrossEntropyDims, DenseDims, DeviceInfo, EmbeddingDims, Engine, Part, Parts, SequenceDims,
    StepState, TrainState,
};
use crate::data::Examples;
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::model::{Cell, Model, ModelConfig};
use cudarc::driver::{CudaEvent, PinnedHostSlice, result};
use std::collections::HashMap;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

/// Steps that the device's table holds.
const TABLE_STEPS: usize = 1024;
/// Rows that an evaluation or prediction takes at a time, unless one batch has more.
const CHUNK_ROWS: usize = 1024;
/// Numbers of activations that a chunk may need (256 MiB), unless one batch needs more.
const CHUNK_NUMBERS: usize = 1 << 26;
/// Reports of metrics that may be on their way to the host.
const REPORTS: usize = 4;

/// An engine on a CUDA device.
#[derive(Debug)]
pub struct CudaEngine {
    loaded: Option<Loaded>,
    graphs_recorded: u64,
    cuda: Cuda,
}

impl CudaEngine {
    /// An engine on this device.
    pub fn new(cuda: Cuda) -> Self {
        Self { loaded: None, graphs_recorded: 0, cuda }
    }

    /// The device.
    pub fn cuda(&self) -> &Cuda {
        &self.cuda
    }

    /// How many training steps were recorded so far: one for each size of batch, not one for each epoch.
    pub fn graphs_recorded(&self) -> u64 {
        self.graphs_recorded
    }

    fn loaded(&mut self) -> Result<(Arc<Context>, &mut Loaded)> {
        match &mut self.loaded {
            Some(loaded) => Ok((self.cuda.ctx.clone(), loaded)),
            None => Err(checks::no_model()),
        }
    }
}

/// Where each parameter lies in an arena.
#[derive(Clone, Debug)]
struct Places {
    embeddings: Range<usize>,
    w: Range<usize>,
    u: Range<usize>,
    b: Range<usize>,
    dense_w: Range<usize>,
    dense_b: Range<usize>,
    /// `w`, `u` and `b`: the range whose gradients are partial sums.
    layer: Range<usize>,
}

impl Places {
    fn new(model: &Model) -> Result<Self> {
        let find = |name: &str| {
            let spec = model.table.find(name).map(|spec| spec.range());
            spec.ok_or_else(|| Error::Failed(format!("the model has no parameter {name}")))
        };
        let (w, u, b) = (find("lstm/kernel")?, find("lstm/recurrent_kernel")?, find("lstm/bias")?);
        let (dense_w, dense_b) = (find("dense/kernel")?, find("dense/bias")?);
        // The kernels' partial sums of the layer are one run of numbers.
        if w.end != u.start || u.end != b.start || dense_w.end != dense_b.start {
            return Err(Error::Failed(format!(
                "the CUDA back end needs the layers' parameters one after the other in the arena, found kernel {w:?}, \
                 recurrent_kernel {u:?}, bias {b:?}, dense/kernel {dense_w:?}, dense/bias {dense_b:?}"
            )));
        }
        let layer = w.start..b.end;
        Ok(Self { embeddings: find("embedding/embeddings")?, w, u, b, dense_w, dense_b, layer })
    }
}

/// A part of the data set on the device.
#[derive(Debug)]
struct Resident {
    /// `[N,T]`, every id below the model's vocabulary.
    x: DeviceVec<u32>,
    /// `[N]`, every label below the model's classes.
    y: DeviceVec<u32>,
    rows: usize,
    t: usize,
}

impl Resident {
    /// Checked examples.
    fn new(ctx: &Context, examples: &Examples) -> Result<Self> {
        Ok(Self {
            x: DeviceVec::from_slice(ctx, "the data set", &examples.x)?,
            y: DeviceVec::from_slice(ctx, "the data set's labels", &examples.y)?,
            rows: examples.rows(),
            t: examples.t,
        })
    }
}

/// An array that grows to the largest batch seen.
#[derive(Debug)]
struct Growing<T>(Option<DeviceVec<T>>);

impl<T> Default for Growing<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: bytemuck::Pod> Growing<T> {
    fn fits(&self, n: usize) -> bool {
        self.0.as_ref().is_some_and(|array| array.len() >= n)
    }

    /// Makes room for the product of `dims`. The old array goes first, so that both need not fit.
    fn fit(&mut self, ctx: &Context, what: &str, n: usize) -> Result<()> {
        if !self.fits(n) {
            self.0 = None;
            self.0 = Some(DeviceVec::new(ctx, what, n)?);
        }
        Ok(())
    }

    fn missing() -> Error {
        Error::Failed("a training step without room for its batch; please report this".into())
    }

    fn front(&self, n: usize) -> Result<View<'_, T>> {
        self.0.as_ref().ok_or_else(Self::missing)?.front(n)
    }

    fn front_mut(&mut self, n: usize) -> Result<ViewMut<'_, T>> {
        self.0.as_mut().ok_or_else(Self::missing)?.front_mut(n)
    }
}

/// The activations and gradients of a batch; of a smaller one, the front of each array is used.
#[derive(Debug, Default)]
struct Workspace {
    /// `[T,B]`
    ids: Growing<u32>,
    /// `[B]`
    labels: Growing<u32>,
    /// `[T,B,E]`
    embedded: Growing<f32>,
    /// `[T,B,4H]`
    gates: Growing<f32>,
    /// `[T+1,B,H]`
    h: Growing<f32>,
    /// `[T+1,B,H]`
    c: Growing<f32>,
    /// `[B,C]`
    logits: Growing<f32>,
    /// `[B,C]`
    probs: Growing<f32>,
    /// `[B]`
    loss: Growing<f32>,
    /// `[B]`
    hits: Growing<f32>,
    /// `[B,C]`
    dlogits: Growing<f32>,
    /// `[B,H]`
    dh_last: Growing<f32>,
    /// `[T,B,4H]`
    dpre: Growing<f32>,
    /// `[T,B,E]`
    dembedded: Growing<f32>,
    /// `[B,H]`
    dc0: Growing<f32>,
    /// The plan's.
    partials: Growing<f32>,
}

/// The numbers that every array's size is made of.
#[derive(Clone, Copy, Debug)]
struct Dims {
    rows: usize,
    t: usize,
    config: ModelConfig,
}

impl Dims {
    /// A product that must fit memory.
    fn product(&self, what: &str, dims: &[usize]) -> Result<usize> {
        dims.iter().try_fold(1usize, |product, &d| product.checked_mul(d)).ok_or_else(|| {
            Error::Failed(format!(
                "{what} of a batch, {dims:?} numbers, does not fit into memory; use a smaller batch"
            ))
        })
    }

    fn tokens(&self) -> usize {
        self.rows.saturating_mul(self.t)
    }

    fn states(&self) -> usize {
        self.t.saturating_add(1).saturating_mul(self.rows).saturating_mul(self.config.hidden)
    }

    fn embedding(&self) -> EmbeddingDims {
        EmbeddingDims { n: self.tokens(), v: self.config.vocab, e: self.config.embed }
    }

    fn sequence(&self) -> SequenceDims {
        SequenceDims { t: self.t, b: self.rows, e: self.config.embed, h: self.config.hidden }
    }

    fn dense(&self) -> DenseDims {
        DenseDims { b: self.rows, inputs: self.config.hidden, outputs: self.config.classes }
    }

    fn cross_entropy(&self) -> CrossEntropyDims {
        CrossEntropyDims { b: self.rows, c: self.config.classes }
    }

    /// Numbers of activations a row.
    fn numbers_a_row(&self) -> usize {
        let ModelConfig { embed, hidden, .. } = self.config;
        self.t.saturating_add(1).saturating_mul(embed.saturating_add(hidden.saturating_mul(6)))
    }
}

/// What is wanted of a forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    /// Probabilities alone; there are no labels.
    Probabilities,
    /// Probabilities, and each row's loss and hit.
    Losses,
}

impl Workspace {
    /// The arrays and sizes that a pass of these dimensions needs.
    fn fit(&mut self, ctx: &Context, d: &Dims, plan: Option<&Plan>) -> Result<()> {
        let ModelConfig { embed: e, hidden: h, classes: c, .. } = d.config;
        let (b, t) = (d.rows, d.t);
        let states = t.saturating_add(1);
        let n = |what, dims: &[usize]| d.product(what, dims);
        self.ids.fit(ctx, "a batch's ids", n("ids", &[t, b])?)?;
        self.labels.fit(ctx, "a batch's labels", b)?;
        self.embedded.fit(ctx, "a batch's embedding", n("embedding", &[t, b, e])?)?;
        self.gates.fit(ctx, "a batch's gates", n("gates", &[t, b, 4, h])?)?;
        self.h.fit(ctx, "a batch's outputs", n("outputs", &[states, b, h])?)?;
        self.c.fit(ctx, "a batch's states", n("states", &[states, b, h])?)?;
        self.logits.fit(ctx, "a batch's logits", n("logits", &[b, c])?)?;
        self.probs.fit(ctx, "a batch's probabilities", n("probabilities", &[b, c])?)?;
        self.loss.fit(ctx, "a batch's losses", b)?;
        self.hits.fit(ctx, "a batch's hits", b)?;
        let Some(plan) = plan else { return Ok(()) };
        self.dlogits.fit(ctx, "a batch's gradients by logits", n("logits", &[b, c])?)?;
        self.dh_last.fit(ctx, "a batch's gradients by outputs", n("outputs", &[b, h])?)?;
        self.dpre.fit(ctx, "a batch's gradients by pre-activations", n("gates", &[t, b, 4, h])?)?;
        self.dembedded.fit(ctx, "a batch's gradients by embeddings", n("embedding", &[t, b, e])?)?;
        self.dc0.fit(ctx, "a batch's gradients by states", n("states", &[b, h])?)?;
        self.partials.fit(ctx, "partial sums of the gradients", plan.extent())
    }

    /// Whether [`Self::fit`] would find everything there.
    fn fits(&self, d: &Dims, plan: Option<&Plan>) -> bool {
        let ModelConfig { embed: e, hidden: h, classes: c, .. } = d.config;
        let (b, n) = (d.rows, d.tokens());
        let gates = n.saturating_mul(4).saturating_mul(h);
        let forward = self.ids.fits(n)
            && self.labels.fits(b)
            && self.embedded.fits(n.saturating_mul(e))
            && self.gates.fits(gates)
            && self.h.fits(d.states())
            && self.c.fits(d.states())
            && self.logits.fits(b.saturating_mul(c))
            && self.probs.fits(b.saturating_mul(c))
            && self.loss.fits(b)
            && self.hits.fits(b);
        forward
            && plan.is_none_or(|plan| {
                self.dlogits.fits(b.saturating_mul(c))
                    && self.dh_last.fits(b.saturating_mul(h))
                    && self.dpre.fits(gates)
                    && self.dembedded.fits(n.saturating_mul(e))
                    && self.dc0.fits(b.saturating_mul(h))
                    && self.partials.fits(plan.extent())
            })
    }

    /// Gathers the rows' ids, and their labels if they are wanted.
    fn gather(
        &mut self,
        ctx: &Context,
        d: &Dims,
        x: View<'_, u32>,
        y: Option<View<'_, u32>>,
        from: Rows<'_>,
    ) -> Result<()> {
        let x = Ids { view: x, below: d.config.vocab };
        let y = y.map(|view| Ids { view, below: d.config.classes });
        let labels = self.labels.front_mut(d.rows)?;
        gather(ctx, x, y, from, d.rows, d.t, self.ids.front_mut(d.tokens())?, Some(labels))
    }

    /// From the gathered ids to probabilities, and losses.
    fn forward(
        &mut self,
        ctx: &Context,
        d: &Dims,
        params: View<'_, f32>,
        places: &Places,
        want: Want,
    ) -> Result<()> {
        let ModelConfig { embed: e, hidden: h, classes: c, .. } = d.config;
        let (n, state) = (d.tokens(), d.rows * h);
        let param = |range: &Range<usize>| params.part(range.clone());
        embedding::forward(
            ctx,
            d.embedding(),
            param(&places.embeddings)?,
            Ids { view: self.ids.front(n)?, below: d.config.vocab },
            self.embedded.front_mut(n * e)?,
        )?;
        let weights = Weights { w: param(&places.w)?, u: param(&places.u)?, b: param(&places.b)? };
        match d.config.cell {
            Cell::Lstm => lstm_sequence::forward(
                ctx,
                d.sequence(),
                self.embedded.front(n * e)?,
                None,
                None,
                weights,
                Trace {
                    gates: self.gates.front_mut(n * 4 * h)?,
                    h: self.h.front_mut(d.states())?,
                    c: self.c.front_mut(d.states())?,
                },
            )?,
        }
        let last = self.h.front(d.states())?.part(d.t * state..d.states())?;
        let (dense_w, dense_b) = (param(&places.dense_w)?, param(&places.dense_b)?);
        dense::forward(ctx, d.dense(), last, dense_w, dense_b, self.logits.front_mut(d.rows * c)?)?;
        let losses = match want {
            Want::Probabilities => None,
            Want::Losses => Some(Losses {
                labels: Ids { view: self.labels.front(d.rows)?, below: c },
                loss: self.loss.front_mut(d.rows)?,
                hits: self.hits.front_mut(d.rows)?,
            }),
        };
        let probs = self.probs.front_mut(d.rows * c)?;
        cross_entropy::forward(ctx, d.cross_entropy(), self.logits.front(d.rows * c)?, probs, losses)
    }

    /// From the losses to the gradients: `grads` is assigned but for the layer's range, whose gradients are the plan's
    /// partial sums.
    fn backward(
        &mut self,
        ctx: &Context,
        d: &Dims,
        plan: &Plan,
        params: View<'_, f32>,
        mut grads: ViewMut<'_, f32>,
        places: &Places,
    ) -> Result<()> {
        let ModelConfig { embed: e, hidden: h, classes: c, .. } = d.config;
        let (n, state) = (d.tokens(), d.rows * h);
        let param = |range: &Range<usize>| params.part(range.clone());
        let labels = Ids { view: self.labels.front(d.rows)?, below: c };
        let probs = self.probs.front(d.rows * c)?;
        cross_entropy::backward(ctx, d.cross_entropy(), probs, labels, self.dlogits.front_mut(d.rows * c)?)?;

        let dy = self.dlogits.front(d.rows * c)?;
        let dh_last = self.dh_last.front_mut(state)?;
        dense::backward_input(ctx, d.dense(), dy, param(&places.dense_w)?, dh_last)?;
        let last = self.h.front(d.states())?.part(d.t * state..d.states())?;
        let head = places.dense_w.start..places.dense_b.end;
        let (dw, db) = grads.again().part(head)?.split(places.dense_w.len())?;
        dense::backward_weights(ctx, d.dense(), last, dy, dw, db, false)?;

        match d.config.cell {
            Cell::Lstm => lstm_sequence::backward(
                ctx,
                d.sequence(),
                plan,
                lstm_sequence::Backward {
                    x: self.embedded.front(n * e)?,
                    w: param(&places.w)?,
                    u: param(&places.u)?,
                    gates: self.gates.front(n * 4 * h)?,
                    h: self.h.front(d.states())?,
                    c: self.c.front(d.states())?,
                    dh: None,
                    dh_last: Some(self.dh_last.front(state)?),
                    dc_last: None,
                },
                lstm_sequence::Gradients {
                    dpre: self.dpre.front_mut(n * 4 * h)?,
                    dx: self.dembedded.front_mut(n * e)?,
                    dh0: None,
                    dc0: self.dc0.front_mut(state)?,
                    partials: self.partials.front_mut(plan.extent())?,
                },
            )?,
        }
        let dtable = grads.part(places.embeddings.clone())?;
        let dout = self.dembedded.front(n * e)?;
        let ids = Ids { view: self.ids.front(n)?, below: d.config.vocab };
        embedding::backward(ctx, d.embedding(), ids, dout, dtable, false)
    }
}

/// Metrics on their way to the host.
#[derive(Debug)]
struct Reports {
    /// Room for [`REPORTS`] of them.
    memory: PinnedHostSlice<u8>,
    /// One for each place: after it, the report has arrived.
    arrived: Vec<CudaEvent>,
    /// Places whose reports have been asked for and not been read, oldest first.
    pending: VecDeque<usize>,
    next: usize,
    /// The newest report read.
    latest: Metrics,
}

impl Reports {
    fn new(ctx: &Context) -> Result<Self> {
        let memory = pinned_to_read(ctx, REPORTS * size_of::<MetricSums>())?;
        let event = |_| ctx.cuda.new_event(None).map_err(|e| ctx.error("making an event", e));
        let arrived = (0..REPORTS).map(event).collect::<Result<_>>()?;
        Ok(Self { memory, arrived, pending: VecDeque::new(), next: 0, latest: Metrics::default() })
    }

    /// Forgets what is on its way and starts from `metrics`.
    fn restart(&mut self, metrics: Metrics) {
        self.pending.clear();
        self.latest = metrics;
    }

    /// Asks for a report of `sums` as they will be once everything asked for so far is done.
    fn ask(&mut self, ctx: &Context, sums: View<'_, MetricSums>) -> Result<()> {
        let fail = |error| ctx.error("asking for metrics", error);
        let place = self.next;
        self.next = (place + 1) % REPORTS;
        // A report that is overwritten before it was read is an older one than this.
        self.pending.retain(|&p| p != place);
        let size = size_of::<MetricSums>();
        let to = &mut self.memory.as_mut_slice().map_err(fail)?[place * size..(place + 1) * size];
        let Some(from) = sums.address(ctx, 1) else {
            return Err(Error::Failed("metrics on another device; please report this".into()));
        };
        ctx.cuda.bind_to_thread().map_err(fail)?;
        // SAFETY: `from` holds one `MetricSums`; the place it goes to is not read before its event has come, and
        // lives as long as the event.
        unsafe { result::memcpy_dtoh_async(to, from, ctx.stream.cu_stream()) }.map_err(fail)?;
        self.arrived[place].record(&ctx.stream).map_err(fail)?;
        self.pending.push_back(place);
        Ok(())
    }

    /// The newest report that has arrived; with `wait`, the newest that was asked for.
    fn read(&mut self, ctx: &Context, doing: &str, wait: bool) -> Result<Metrics> {
        let fail = |error| ctx.error(doing, error);
        while let Some(&place) = self.pending.front() {
            if wait {
                self.arrived[place].synchronize().map_err(fail)?;
            } else if !self.arrived[place].try_is_complete().map_err(fail)? {
                break;
            }
            self.pending.pop_front();
            let size = size_of::<MetricSums>();
            let bytes = &self.memory.as_slice().map_err(fail)?[place * size..(place + 1) * size];
            self.latest = bytemuck::pod_read_unaligned::<MetricSums>(bytes).into();
        }
        Ok(self.latest)
    }
}

/// Everything that [`Engine::load`] brings. Graphs stand first: they are dropped before the arrays they refer to.
#[derive(Debug)]
struct Loaded {
    /// A recorded step for each number of rows, without and with clipping.
    graphs: HashMap<(u32, bool), Graph>,
    model: Model,
    places: Places,
    adam: AdamConfig,
    params: DeviceVec<f32>,
    grads: DeviceVec<f32>,
    m: DeviceVec<f32>,
    v: DeviceVec<f32>,
    t: u64,
    train: Option<Resident>,
    validation: Option<Resident>,
    test: Option<Resident>,
    /// The epoch's order, on the host to check steps against and on the device to gather by.
    order: Vec<u32>,
    device_order: Growing<u32>,
    steps: DeviceVec<StepState>,
    /// The step at hand: its place in `steps`.
    cursor: DeviceVec<u32>,
    clip: Clip,
    /// The epoch's metrics.
    sums: DeviceVec<MetricSums>,
    /// An evaluation's.
    evaluated: DeviceVec<MetricSums>,
    reports: Reports,
    work: Workspace,
    /// Rows to predict, `[N,T]`.
    x: Growing<u32>,
}

impl Loaded {
    fn new(
        ctx: &Context,
        model: &Model,
        state: &TrainState,
        adam: AdamConfig,
        parts: Parts<'_>,
    ) -> Result<Self> {
        let places = Places::new(model)?;
        let resident = |examples: Option<&Examples>| examples.map(|e| Resident::new(ctx, e)).transpose();
        Ok(Self {
            graphs: HashMap::new(),
            places,
            adam,
            params: DeviceVec::from_slice(ctx, "the parameters", &state.params)?,
            grads: DeviceVec::new(ctx, "the gradients", model.table.len())?,
            m: DeviceVec::from_slice(ctx, "Adam's first moment", &state.m)?,
            v: DeviceVec::from_slice(ctx, "Adam's second moment", &state.v)?,
            t: state.t,
            train: resident(parts.train)?,
            validation: resident(parts.validation)?,
            test: resident(parts.test)?,
            order: Vec::new(),
            device_order: Growing::default(),
            steps: DeviceVec::new(ctx, "the steps", TABLE_STEPS)?,
            cursor: DeviceVec::new(ctx, "the steps' cursor", 1)?,
            clip: Clip::new(ctx)?,
            sums: DeviceVec::from_slice(ctx, "the metrics", &[MetricSums::default()])?,
            evaluated: DeviceVec::new(ctx, "the metrics", 1)?,
            reports: Reports::new(ctx)?,
            work: Workspace::default(),
            x: Growing::default(),
            model: model.clone(),
        })
    }

    fn part(&self, part: Part) -> Option<&Resident> {
        match part {
            Part::Train => self.train.as_ref(),
            Part::Validation => self.validation.as_ref(),
            Part::Test => self.test.as_ref(),
        }
    }

    fn dims(&self, rows: usize, t: usize) -> Dims {
        Dims { rows, t, config: self.model.config }
    }

    /// Room for a pass; recorded steps refer to the old arrays, so they go if these do.
    fn fit(&mut self, ctx: &Context, d: &Dims, plan: Option<&Plan>) -> Result<()> {
        if !self.work.fits(d, plan) {
            self.forget_graphs(ctx)?;
            self.work.fit(ctx, d, plan)?;
        }
        Ok(())
    }

    fn forget_graphs(&mut self, ctx: &Context) -> Result<()> {
        if !self.graphs.is_empty() {
            ctx.wait("training")?;
            self.graphs.clear();
        }
        Ok(())
    }

    /// Checks a step against the order and the data set, as a host back end does when it gathers.
    fn check_step(&self, train: &Resident, step: &StepState) -> Result<()> {
        step.check()?;
        checks::rows(checks::batch(&self.order, step)?, train.rows)
    }

    /// Launches everything of one step of `d.rows` rows: what is recorded.
    fn step(&mut self, ctx: &Context, d: &Dims, plan: &Plan, clips: bool) -> Result<()> {
        let Some(train) = &self.train else { return Err(checks::no_training_examples()) };
        let Places { layer, .. } = &self.places;
        let at = adam::At { steps: self.steps.view(), cursor: self.cursor.view() };
        let params = self.params.view();
        let partials = if d.rows == 0 {
            // No rows: the gradient is zero, and Adam's momentum goes on.
            fill::fill(ctx, self.grads.view_mut(), 0.0)?;
            None
        } else {
            let order = self.device_order.front(self.order.len())?;
            let from = Rows::Step { order, steps: at.steps, cursor: at.cursor };
            self.work.gather(ctx, d, train.x.view(), Some(train.y.view()), from)?;
            self.work.forward(ctx, d, params, &self.places, Want::Losses)?;
            self.work.backward(ctx, d, plan, params, self.grads.view_mut(), &self.places)?;
            Some(plan.partials(self.work.partials.front(plan.extent())?, 0)?)
        };
        let mut in_parts = partials.map(|partials| (layer.clone(), partials));
        let mut scale = None;
        if clips {
            // The norm is over the whole arena, so the parts are summed first.
            if let Some((range, partials)) = in_parts.take() {
                let out = self.grads.view_mut().part(range)?;
                adam::reduce_partials(ctx, partials, out, false)?;
            }
            self.clip.scale(ctx, self.grads.view(), at)?;
            scale = Some(self.clip.scale.view());
        }
        let state =
            adam::State { params: self.params.view_mut(), m: self.m.view_mut(), v: self.v.view_mut() };
        adam::adam(ctx, &self.adam, at, scale, state, self.grads.view(), in_parts)?;
        let (loss, hits) = (self.work.loss.front(d.rows)?, self.work.hits.front(d.rows)?);
        let cursor = self.cursor.view_mut();
        cross_entropy::metrics(ctx, loss, hits, self.sums.view_mut(), Some(cursor), d.rows, d.rows)
    }

    fn train(&mut self, ctx: &Context, steps: &[StepState], recorded: &mut u64) -> Result<()> {
        let Some(train) = &self.train else {
            return if steps.is_empty() { Ok(()) } else { Err(checks::no_training_examples()) };
        };
        let t = train.t;
        for step in steps {
            self.check_step(train, step)?;
        }
        // Room for the largest batch first, so that no step is recorded twice.
        let largest = steps.iter().map(|step| step.rows as usize).max().unwrap_or(0);
        self.prepare(ctx, largest, t)?;
        for steps in steps.chunks(TABLE_STEPS) {
            for step in steps {
                let key = (step.rows, step.clips());
                if !self.graphs.contains_key(&key) {
                    let d = self.dims(step.rows as usize, t);
                    let plan = Plan::new(d.sequence())?;
                    self.fit(ctx, &d, Some(&plan))?;
                    let graph = Graph::record(ctx, || self.step(ctx, &d, &plan, step.clips()))?;
                    *recorded += 1;
                    self.graphs.insert(key, graph);
                }
            }
            upload(ctx, "the steps", self.steps.view_mut(), steps)?;
            clear(ctx, "the steps' cursor", self.cursor.view_mut())?;
            for step in steps {
                if let Some(graph) = self.graphs.get(&(step.rows, step.clips())) {
                    graph.launch(ctx)?;
                }
                self.t = step.t;
            }
            self.reports.ask(ctx, self.sums.view())?;
        }
        Ok(())
    }

    /// Room for training batches of `rows`, and for the chunks of the evaluations that will come between epochs: steps
    /// would have to be recorded again if the arrays grew then.
    fn prepare(&mut self, ctx: &Context, rows: usize, t: usize) -> Result<()> {
        let d = self.dims(rows, t);
        let plan = Plan::new(d.sequence())?;
        if rows == 0 || self.work.fits(&d, Some(&plan)) {
            return self.fit(ctx, &d, Some(&plan));
        }
        for part in [Part::Validation, Part::Test] {
            if let Some((part_rows, part_t)) = self.part(part).map(|part| (part.rows, part.t)) {
                let d = self.dims(rows, part_t);
                let chunk = chunk(&d).min(part_rows);
                self.fit(ctx, &self.dims(chunk, part_t), None)?;
            }
        }
        self.fit(ctx, &d, Some(&plan))
    }

    fn evaluate(&mut self, ctx: &Context, part: Part, batch_size: usize) -> Result<Metrics> {
        let Some((all, t)) = self.part(part).map(|part| (part.rows, part.t)) else {
            return Err(checks::no_examples(part));
        };
        let batch_size = batch_size.max(1);
        let chunk = chunk(&self.dims(batch_size, t)).min(all);
        self.fit(ctx, &self.dims(chunk, t), None)?;
        upload(ctx, "the metrics", self.evaluated.view_mut(), &[MetricSums::default()])?;
        for first in (0..all).step_by(chunk.max(1)) {
            let d = self.dims(chunk.min(all - first), t);
            let resident = match part {
                Part::Train => &self.train,
                Part::Validation => &self.validation,
                Part::Test => &self.test,
            };
            let Some(resident) = resident else { continue };
            let (x, y) = (resident.x.view(), resident.y.view());
            self.work.gather(ctx, &d, x, Some(y), Rows::From(first))?;
            self.work.forward(ctx, &d, self.params.view(), &self.places, Want::Losses)?;
            let (loss, hits) = (self.work.loss.front(d.rows)?, self.work.hits.front(d.rows)?);
            let sums = self.evaluated.view_mut();
            cross_entropy::metrics(ctx, loss, hits, sums, None, d.rows, batch_size)?;
        }
        let sums = download(ctx, &format!("the metrics of evaluating {part:?}"), self.evaluated.view())?;
        Ok(sums.first().copied().unwrap_or_default().into())
    }

    fn predict(&mut self, ctx: &Context, x: &[u32], rows: usize) -> Result<Vec<f32>> {
        if rows == 0 {
            return Ok(Vec::new());
        }
        let t = checks::width(x, rows)?;
        let ModelConfig { vocab, classes, .. } = self.model.config;
        if let Some(at) = x.iter().position(|&id| id as usize >= vocab) {
            return Err(Error::Shape {
                op: "predict",
                what: "x [rows,T]",
                expected: format!("below {vocab} at every index"),
                found: format!("{} at index {at}", x[at]),
            });
        }
        let chunk = chunk(&self.dims(1, t)).min(rows);
        self.fit(ctx, &self.dims(chunk, t), None)?;
        self.x.fit(ctx, "the rows to predict", chunk.saturating_mul(t))?;
        let mut probabilities = Vec::with_capacity(rows.saturating_mul(classes));
        for ids in x.chunks(chunk * t) {
            let d = self.dims(ids.len() / t, t);
            upload(ctx, "the rows to predict", self.x.front_mut(ids.len())?, ids)?;
            let x = self.x.front(ids.len())?;
            self.work.gather(ctx, &d, x, None, Rows::From(0))?;
            self.work.forward(ctx, &d, self.params.view(), &self.places, Want::Probabilities)?;
            probabilities.extend(download(ctx, "probabilities", self.work.probs.front(d.rows * classes)?)?);
        }
        Ok(probabilities)
    }
}

/// Rows of a chunk: whole batches of `d.rows`, so that the mean of batch losses is the one of batch-wise evaluation.
fn chunk(d: &Dims) -> usize {
    let rows = CHUNK_ROWS.min(CHUNK_NUMBERS / d.numbers_a_row().max(1));
    d.rows.saturating_mul((rows / d.rows.max(1)).max(1))
}

impl Engine for CudaEngine {
    fn info(&self) -> DeviceInfo {
        self.cuda.info()
    }

    fn load(&mut self, model: &Model, state: &TrainState, adam: AdamConfig, parts: Parts<'_>) -> Result<()> {
        checks::state(model, state)?;
        for examples in [parts.train, parts.validation, parts.test].into_iter().flatten() {
            examples.check(model.config.vocab, model.config.classes)?;
        }
        // What was loaded makes room first.
        self.loaded = None;
        self.loaded = Some(Loaded::new(&self.cuda.ctx, model, state, adam, parts)?);
        Ok(())
    }

    fn set_order(&mut self, order: &[u32], metrics: Metrics) -> Result<()> {
        let (ctx, loaded) = self.loaded()?;
        if !loaded.device_order.fits(order.len()) {
            loaded.forget_graphs(&ctx)?;
            loaded.device_order.fit(&ctx, "the epoch's order", order.len())?;
        }
        upload(&ctx, "the epoch's order", loaded.device_order.front_mut(order.len())?, order)?;
        upload(&ctx, "the metrics", loaded.sums.view_mut(), &[MetricSums::from(metrics)])?;
        loaded.order = order.to_vec();
        loaded.reports.restart(metrics);
        Ok(())
    }

    fn train(&mut self, steps: &[StepState]) -> Result<()> {
        let mut recorded = 0;
        let (ctx, loaded) = self.loaded()?;
        let trained = loaded.train(&ctx, steps, &mut recorded);
        self.graphs_recorded += recorded;
        trained
    }

    fn poll(&mut self, wait: bool) -> Result<Metrics> {
        let (ctx, loaded) = self.loaded()?;
        let doing = format!("training, by step {}", loaded.t);
        loaded.reports.read(&ctx, &doing, wait)
    }

    fn evaluate(&mut self, part: Part, batch_size: usize) -> Result<Metrics> {
        let (ctx, loaded) = self.loaded()?;
        loaded.evaluate(&ctx, part, batch_size)
    }

    fn predict(&mut self, x: &[u32], rows: usize) -> Result<Vec<f32>> {
        let (ctx, loaded) = self.loaded()?;
        loaded.predict(&ctx, x, rows)
    }

    fn read_state(&mut self) -> Result<TrainState> {
        let (ctx, loaded) = self.loaded()?;
        Ok(TrainState {
            params: download(&ctx, "the parameters", loaded.params.view())?,
            m: download(&ctx, "Adam's first moment", loaded.m.view())?,
            v: download(&ctx, "Adam's second moment", loaded.v.view())?,
            t: loaded.t,
        })
    }

    fn write_state(&mut self, state: &TrainState) -> Result<()> {
        let (ctx, loaded) = self.loaded()?;
        checks::state(&loaded.model, state)?;
        upload(&ctx, "the parameters", loaded.params.view_mut(), &state.params)?;
        upload(&ctx, "Adam's first moment", loaded.m.view_mut(), &state.m)?;
        upload(&ctx, "Adam's second moment", loaded.v.view_mut(), &state.v)?;
        loaded.t = state.t;
        Ok(())
    }
}
