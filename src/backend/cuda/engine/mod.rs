//! The engine of a CUDA device: model, data set, order and metrics live on it, and training steps are replayed graphs.
//!
//! Inside an epoch the host only launches: [`Engine::train`] copies the steps' numbers to a table on the device, has their
//! tokens sorted, and launches graphs; the device itself counts through the table, gathers its rows and adds up its
//! metrics. Nothing waits but [`Engine::poll`] and whoever asks for results.
//!
//! Four paths, by the shape and what a block may have of shared memory ([`Fused`], [`path`](super::path); `recurve info` lists
//! them):
//!
//! | path | kernels a step | a graph |
//! | --- | --- | --- |
//! | fused | 2: `fused_step`, `adam_step` | as many steps as [`GRAPH_STEPS`] says, of any number of rows |
//! | fused, [`PathChoice::Steps`] | 1 for up to [`MOST_STEPS`](super::fused_steps::MOST_STEPS) steps: `fused_steps` | none |
//! | sequence | one an operation, one for all time steps of the LSTM | one step, for each number of rows |
//! | persistent | the same | the same |
//! | cells | one an operation, one for each time step of the LSTM | one step, for each number of rows |
//!
//! The fused path and the sequence's have one order of every sum, and so have the persistent one and the cells': what a device
//! has of shared memory and multiprocessors changes no result. One exception: for E from 33 to 64 the sequence's path sums W's gradient by a
//! product, in another order; there the path is the same on every device ([`Fused::within`]). A step that clips needs the
//! norm of the whole gradient before Adam: it takes the sequence's path (or the cells'), with the gradients in an arena.
//!
//! bf16 and f16 ([`precision`](crate::backend::precision)) take the same paths by the same rules, through kernels over the
//! type that numbers are stored in, [`Stored`]. A step in f16 has one kernel more before Adam on the fused path, `loss_scale`, and
//! two on the others, which first look for gradients that are not finite.
//!
//! `places` says where parameters lie in an arena, `workspace` holds what a batch needs and the passes through it, `reports` the
//! metrics on their way to the host; recording, evaluating and predicting are here.

mod places;
mod reports;
mod workspace;

use super::batch::Rows;
use super::buffer::{DeviceVec, Ids, clear, download, upload};
use super::context::Context;
use super::cross_entropy::{self, Losses, MetricSums};
use super::fused::{Fused, Unfused};
use super::fused_steps::{self, FusedSteps};
use super::graph::Graph;
use super::half::{self, Bf16, F16, FLAGS, Scaling, Stored, all_finite, loss_scale};
use super::lstm_sequence::Plan;
use super::path::PathChoice;
use super::steps::{CURSORS, Step};
use super::tokens::{Buckets, Pair, Sorted, sort_tokens};
use super::{Clip, Cuda, adam, fill, fused};
use crate::backend::checks;
use crate::backend::{
    AdamConfig, DeviceInfo, Engine, LossScale, Part, Parts, Precision, StepState, TrainState,
};
use crate::data::Examples;
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::model::{Model, ModelConfig};
use crate::tuning::SEQUENCE_PARTIALS;
use places::Places;
use reports::Reports;
use std::collections::HashMap;
use std::sync::Arc;
use workspace::{Dims, Growing, Want, Workspace};

/// Steps that the device's table holds.
const TABLE_STEPS: usize = 1024;
/// Bytes that the sorted tokens of a table's steps may take, unless one step needs more: larger batches, fewer steps.
const SORTED_BYTES: usize = 1 << 24;
/// Fused steps of a graph, most first: what a range of steps is cut into.
const GRAPH_STEPS: [u32; 4] = [64, 16, 4, 1];
/// Rows that an evaluation or prediction takes at a time, unless one batch has more.
const CHUNK_ROWS: usize = 1024;
/// Numbers of activations that a chunk may need (256 MiB), unless one batch needs more.
const CHUNK_NUMBERS: usize = 1 << 26;

/// An engine on a CUDA device.
#[derive(Debug)]
pub struct CudaEngine {
    loaded: Option<Box<dyn Session>>,
    graphs_recorded: u64,
    path: PathChoice,
    precision: Precision,
    cuda: Cuda,
}

impl CudaEngine {
    /// An engine on this device.
    pub fn new(cuda: Cuda) -> Self {
        let path = cuda.path;
        Self::with_path(cuda, path)
    }

    /// An engine on this device that takes this path.
    pub fn with_path(cuda: Cuda, path: PathChoice) -> Self {
        Self { loaded: None, graphs_recorded: 0, path, precision: Precision::F32, cuda }
    }

    /// This engine in another precision, without what was loaded.
    pub fn in_precision(self, precision: Precision) -> Self {
        Self { loaded: None, precision, ..self }
    }

    /// The device.
    pub fn cuda(&self) -> &Cuda {
        &self.cuda
    }

    /// The device, without what was loaded.
    pub fn into_cuda(self) -> Cuda {
        self.cuda
    }

    /// How many graphs were recorded so far: a few, not some for each epoch. On the fused path one for each number of steps
    /// that a graph may have, else one for each size of batch.
    pub fn graphs_recorded(&self) -> u64 {
        self.graphs_recorded
    }

    fn loaded(&mut self) -> Result<(Arc<Context>, &mut (dyn Session + 'static))> {
        match &mut self.loaded {
            Some(loaded) => Ok((self.cuda.ctx.clone(), loaded.as_mut())),
            None => Err(checks::no_model()),
        }
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

/// What a graph holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Recorded {
    /// So many fused steps of any number of rows.
    Fused(u32),
    /// One step of so many rows, without or with clipping.
    Single { rows: u32, clips: bool },
}

/// What is launched at once of a table of steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Launch {
    /// A graph, of the steps at the cursor.
    Graph(Recorded),
    /// One kernel: the table's steps from the first on, and how many.
    Together(usize, usize),
}

/// Everything that [`Engine::load`] brings, with the operands of products stored as `S`. Graphs stand first: they are dropped
/// before the arrays they refer to.
#[derive(Debug)]
struct Loaded<S> {
    graphs: HashMap<Recorded, Graph>,
    /// The fused kernels of the training examples' T, or why there are none.
    fused: Result<Fused, Unfused>,
    /// How fused steps are launched together, if they are.
    together: Option<FusedSteps>,
    path: PathChoice,
    buckets: Buckets,
    model: Model,
    places: Places,
    adam: AdamConfig,
    params: DeviceVec<f32>,
    /// The parameters in 16 bits: not in f32.
    stored: Option<DeviceVec<S>>,
    /// The scale of the loss, of f16.
    scaling: Option<DeviceVec<Scaling>>,
    /// Only of steps that clip, or have no rows.
    grads: Growing<f32>,
    m: DeviceVec<f32>,
    v: DeviceVec<f32>,
    t: u64,
    train: Option<Resident>,
    validation: Option<Resident>,
    test: Option<Resident>,
    class_weights: Option<DeviceVec<f32>>,
    /// The epoch's order, on the host to check steps against and on the device to gather by.
    order: Vec<u32>,
    device_order: Growing<u32>,
    steps: DeviceVec<Step>,
    /// The step at hand: its place in `steps`.
    cursor: DeviceVec<u32>,
    /// What the blocks of steps that are launched together signal by.
    signals: DeviceVec<u32>,
    /// The steps' tokens by the rows of the table that they stand for.
    sorted: Growing<Pair>,
    /// Each token's id and its place among the sorted ones.
    tokens: Growing<Pair>,
    begins: Growing<u32>,
    /// Rows of the largest batch that there is room for.
    batch_rows: usize,
    /// An evaluation's losses and hits, and a prediction's probabilities, on the fused path.
    eval_loss: Growing<f32>,
    eval_hits: Growing<f32>,
    eval_probs: Growing<f32>,
    clip: Clip,
    /// The epoch's metrics.
    sums: DeviceVec<MetricSums>,
    /// An evaluation's.
    evaluated: DeviceVec<MetricSums>,
    reports: Reports,
    work: Workspace<S>,
    /// Rows to predict, `[N,T]`.
    x: Growing<u32>,
}

impl<S: Stored> Loaded<S> {
    fn new(
        ctx: &Context,
        model: &Model,
        state: &TrainState,
        adam: AdamConfig,
        parts: Parts<'_>,
        path: PathChoice,
    ) -> Result<Self> {
        let places = Places::new(model)?;
        let scales = S::PRECISION.scales_loss();
        let resident = |examples: Option<&Examples>| examples.map(|e| Resident::new(ctx, e)).transpose();
        let mut loaded = Self {
            graphs: HashMap::new(),
            fused: fused_path(ctx, path, &model.config, parts.train.map_or(1, |train| train.t)),
            together: None,
            path,
            buckets: Buckets::new(model.config.vocab, model.config.embed),
            adam,
            params: places.upload_new(ctx, "the parameters", &state.params)?,
            stored: S::copies(ctx, places.len)?,
            scaling: scales.then(|| DeviceVec::new(ctx, "the loss' scale", 1)).transpose()?,
            grads: Growing::default(),
            m: places.upload_new(ctx, "Adam's first moment", &state.m)?,
            v: places.upload_new(ctx, "Adam's second moment", &state.v)?,
            places,
            t: state.t,
            train: resident(parts.train)?,
            validation: resident(parts.validation)?,
            test: resident(parts.test)?,
            class_weights: parts
                .class_weights
                .map(|weights| DeviceVec::from_slice(ctx, "the classes' weights", weights))
                .transpose()?,
            order: Vec::new(),
            device_order: Growing::default(),
            steps: DeviceVec::new(ctx, "the steps", TABLE_STEPS)?,
            cursor: DeviceVec::new(ctx, "the steps' cursor", CURSORS)?,
            signals: DeviceVec::new(ctx, "the blocks' signals", fused_steps::SIGNALS)?,
            sorted: Growing::default(),
            tokens: Growing::default(),
            begins: Growing::default(),
            batch_rows: 0,
            eval_loss: Growing::default(),
            eval_hits: Growing::default(),
            eval_probs: Growing::default(),
            clip: Clip::new(ctx)?,
            sums: DeviceVec::from_slice(ctx, "the metrics", &[MetricSums::default()])?,
            evaluated: DeviceVec::new(ctx, "the metrics", 1)?,
            reports: Reports::new(ctx)?,
            work: Workspace::new(path),
            x: Growing::default(),
            model: model.clone(),
        };
        loaded.store(ctx, state.loss_scale)?;
        Ok(loaded)
    }

    /// Rounds the parameters to what they are stored in, if that is not f32, and sets the loss' scale.
    fn store(&mut self, ctx: &Context, scale: LossScale) -> Result<()> {
        if let Some(scaling) = &mut self.scaling {
            upload(ctx, "the loss' scale", scaling.view_mut(), &[Scaling::from(scale)])?;
        }
        match &mut self.stored {
            None => Ok(()),
            Some(stored) => half::store(ctx, self.params.view(), stored.view_mut()),
        }
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

    /// The step's launches, of `d.rows` rows, one operation after the other: what is recorded.
    fn single_step(&mut self, ctx: &Context, d: &Dims, plan: &Plan, clips: bool) -> Result<()> {
        let Some(train) = &self.train else { return Err(checks::no_training_examples()) };
        if d.rows > 0 {
            let order = self.device_order.front(self.order.len())?;
            let from = Rows::Step { order, steps: self.steps.view(), cursor: self.cursor.view_mut() };
            self.work.gather(ctx, d, train.x.view(), Some(train.y.view()), from)?;
            let weights = self.places.weights(&self.params, self.stored.as_ref())?;
            let class_weights = self.class_weights.as_ref().map(DeviceVec::view);
            let scaling = self.scaling.as_ref().map(DeviceVec::view);
            self.work.forward(ctx, d, &weights, Want::Losses { class_weights })?;
            self.work.backward(ctx, d, plan, &weights, class_weights, scaling)?;
        }
        if d.rows > 0 && !clips {
            self.rescale(ctx, d, Some(plan))?;
            return self.adam_step(ctx, d, Some(plan));
        }
        // No rows: the gradient is zero, and Adam's momentum goes on. Clipping: the norm is over the whole arena.
        let mut grads = self.grads.front_mut(self.places.len)?;
        if d.rows == 0 {
            fill::fill(ctx, grads, 0.0)?;
        } else {
            self.work.gradients(ctx, d, plan, grads.again(), &self.places)?;
        }
        self.rescale(ctx, d, None)?;
        let grads = self.grads.front(self.places.len)?;
        let at = adam::At { steps: self.steps.view(), cursor: self.cursor.view() };
        let mut scale = None;
        if clips {
            self.clip.scale(ctx, grads, at, self.scaling.as_ref().map(DeviceVec::view))?;
            scale = Some(self.clip.scale.view());
        }
        let state =
            adam::State { params: self.params.view_mut(), m: self.m.view_mut(), v: self.v.view_mut() };
        let copy = copy(&mut self.stored, &self.scaling);
        adam::adam(ctx, &self.adam, at, scale, state, grads, copy)?;
        let (loss, hits) = (self.work.loss.front(d.rows)?, self.work.hits.front(d.rows)?);
        let cursor = self.cursor.view_mut();
        cross_entropy::metrics(ctx, loss, hits, self.sums.view_mut(), Some(cursor), d.rows, d.rows)
    }

    /// In f16, between a step's gradients, in the plan's parts or in the arena, and Adam: whether the step is done, and what scale
    /// comes next.
    fn rescale(&mut self, ctx: &Context, d: &Dims, parts: Option<&Plan>) -> Result<()> {
        let Some(scaling) = &mut self.scaling else { return Ok(()) };
        let arrays = match parts {
            Some(plan) => [
                self.work.dembedded.front(d.tokens().saturating_mul(d.config.embed))?,
                self.work.partials.front(plan.extent())?,
                self.work.dlogits.front(d.rows.saturating_mul(d.config.classes))?,
            ],
            None => {
                let grads = self.grads.front(self.places.len)?;
                [grads, grads.part(0..0)?, grads.part(0..0)?]
            }
        };
        all_finite(ctx, arrays, self.work.finite.front_mut(FLAGS)?)?;
        let (steps, cursor, finite) = (self.steps.view(), self.cursor.view(), self.work.finite.front(FLAGS)?);
        loss_scale(ctx, &self.adam, (None, FLAGS), steps, cursor, finite, scaling.view_mut())
    }

    /// The launches of a fused step of at most `d.rows` rows.
    fn fused_step(&mut self, ctx: &Context, d: &Dims, fused: &Fused) -> Result<()> {
        let (table, capacity) = (self.table_steps(d.t), d.pairs());
        let from = fused::Source {
            tokens: self.tokens.front(table.saturating_mul(capacity))?,
            capacity,
            class_weights: self.class_weights.as_ref().map(DeviceVec::view),
        };
        let (to, finite) = self.work.fused_gradients(d)?;
        let (steps, cursor, shape) = (self.steps.front(table)?, self.cursor.view_mut(), (d.rows, d.t));
        let weights = self.places.weights(&self.params, self.stored.as_ref())?;
        let says = self.scaling.as_ref().map(|scaling| (scaling.view(), finite));
        fused::step(ctx, fused, &d.config, shape, steps, cursor, from, weights, to, says)?;
        if let Some(scaling) = &mut self.scaling {
            let finite = self.work.finite.front(d.rows.saturating_mul(fused.warps()))?;
            let cursor = self.cursor.view();
            let by_rows = (Some(d.rows), fused.warps());
            loss_scale(ctx, &self.adam, by_rows, steps, cursor, finite, scaling.view_mut())?;
        }
        self.adam_step(ctx, d, None)
    }

    /// Launches the table's steps from `first` on, `count` of them, of at most `d.rows` rows each.
    fn steps_together(
        &mut self,
        ctx: &Context,
        d: &Dims,
        together: &FusedSteps,
        (first, count): (usize, usize),
    ) -> Result<()> {
        let (table, capacity) = (self.table_steps(d.t), d.pairs());
        let pairs = table.saturating_mul(capacity);
        let from = fused::Source {
            tokens: self.tokens.front(pairs)?,
            capacity,
            class_weights: self.class_weights.as_ref().map(DeviceVec::view),
        };
        let table = fused_steps::Table {
            steps: self.steps.front(table)?,
            cursor: self.cursor.view_mut(),
            sorted: self.sorted.front(pairs)?,
            begins: self.begins.front(table.saturating_mul(self.buckets.bounds()))?,
            signals: self.signals.view_mut(),
        };
        let state =
            adam::State { params: self.params.view_mut(), m: self.m.view_mut(), v: self.v.view_mut() };
        let (to, finite) = self.work.fused_gradients(d)?;
        let scaling = self.scaling.as_mut().map(|scaling| (scaling.view_mut(), finite));
        let stored = self.stored.as_mut().map(DeviceVec::view_mut);
        fused_steps::train(
            ctx,
            together,
            &self.adam,
            &d.config,
            d.t,
            (first, count),
            table,
            from,
            self.places.arena(),
            state,
            to,
            self.sums.view_mut(),
            stored,
            scaling,
        )
    }

    /// The last launch of a step: of `d.rows` rows, whose gradients are in the plan's parts; or after a fused step, of at
    /// most `d.rows` rows, each of which has its part.
    fn adam_step(&mut self, ctx: &Context, d: &Dims, plan: Option<&Plan>) -> Result<()> {
        let ModelConfig { embed: e, hidden: h, classes: c, .. } = d.config;
        let capacity = self.dims(self.batch_rows, d.t).pairs();
        let table = self.table_steps(d.t);
        let steps = self.steps.front(table)?;
        let (partials, h_last) = match plan {
            Some(plan) => (
                plan.partials(self.work.partials.front(plan.extent())?, 0)?,
                self.work.h.front(d.states())?.part(d.t * d.rows * h..d.states())?,
            ),
            None => {
                let stride = fused::stride(&d.config);
                let parts = self.work.partials.front(d.rows.saturating_mul(stride))?;
                (adam::Partials { parts, count: 0, stride }, self.work.h_last.front(d.rows * h)?)
            }
        };
        let from = adam::Summands {
            dx: self.work.dembedded.front(d.tokens().saturating_mul(e))?,
            sorted: self.sorted.front(table.saturating_mul(capacity))?,
            begins: self.begins.front(table.saturating_mul(self.buckets.bounds()))?,
            capacity,
            partials,
            by_rows: plan.is_none(),
            h_last,
            dlogits: self.work.dlogits.front(d.rows * c)?,
            loss: self.work.loss.front(d.rows)?,
            hits: self.work.hits.front(d.rows)?,
        };
        let state =
            adam::State { params: self.params.view_mut(), m: self.m.view_mut(), v: self.v.view_mut() };
        let (arena, cursor) = (self.places.arena(), self.cursor.view_mut());
        let shape = (d.rows, d.t);
        let copy = copy(&mut self.stored, &self.scaling);
        let sums = self.sums.view_mut();
        adam::step(ctx, &self.adam, &d.config, shape, steps, cursor, arena, state, from, sums, copy)
    }

    /// Whether a step takes the fused path.
    fn fuses(&self, step: &StepState) -> Option<Fused> {
        let fused = self.fused.ok().filter(|_| self.batch_rows <= SEQUENCE_PARTIALS as usize);
        fused.filter(|_| !step.clips())
    }

    /// Steps that the table of steps holds: as many as there is room for their sorted tokens.
    fn table_steps(&self, t: usize) -> usize {
        let bytes = self.dims(self.batch_rows, t).pairs().saturating_mul(2 * size_of::<Pair>());
        (SORTED_BYTES / bytes.max(1)).clamp(1, TABLE_STEPS)
    }

    /// What to launch for `steps`, the first ones of the table.
    fn cut(&self, steps: &[StepState]) -> Vec<Launch> {
        let mut plan = Vec::new();
        let mut first = 0;
        for run in steps.chunk_by(|a, b| self.fuses(a).is_some() && self.fuses(b).is_some()) {
            let end = first + run.len();
            if run.first().is_none_or(|step| self.fuses(step).is_none()) {
                let single = |step: &StepState| Recorded::Single { rows: step.rows, clips: step.clips() };
                plan.extend(run.iter().map(|step| Launch::Graph(single(step))));
            } else if self.together.is_some() {
                let most = fused_steps::MOST_STEPS;
                plan.extend((first..end).step_by(most).map(|at| Launch::Together(at, most.min(end - at))));
            } else {
                let mut rest = run.len();
                for many in GRAPH_STEPS {
                    let fit = rest / many as usize;
                    plan.extend(std::iter::repeat_n(Launch::Graph(Recorded::Fused(many)), fit));
                    rest -= fit * many as usize;
                }
            }
            first = end;
        }
        plan
    }

    fn record(&mut self, ctx: &Context, what: Recorded, t: usize) -> Result<Graph> {
        match (what, self.fused) {
            (Recorded::Fused(many), Ok(fused)) => {
                let d = self.dims(self.batch_rows, t);
                Graph::record(ctx, || (0..many).try_for_each(|_| self.fused_step(ctx, &d, &fused)))
            }
            (Recorded::Fused(_), Err(_)) => {
                Err(Error::Failed("a fused step without kernels; please report this".into()))
            }
            (Recorded::Single { rows, clips }, _) => {
                let d = self.dims(rows as usize, t);
                let plan = Plan::new(d.sequence(), self.path)?;
                self.fit(ctx, &d, Some(&plan))?;
                Graph::record(ctx, || self.single_step(ctx, &d, &plan, clips))
            }
        }
    }

    /// Sorts the tokens of the table's first `count` steps.
    fn sort(&mut self, ctx: &Context, count: usize, t: usize) -> Result<()> {
        let Some(train) = &self.train else { return Err(checks::no_training_examples()) };
        let capacity = self.dims(self.batch_rows, t).pairs();
        let pairs = count.saturating_mul(capacity);
        let to = Sorted {
            sorted: self.sorted.front_mut(pairs)?,
            tokens: self.tokens.front_mut(pairs)?,
            begins: self.begins.front_mut(count.saturating_mul(self.buckets.bounds()))?,
            capacity,
        };
        let x = Ids { view: train.x.view(), below: self.model.config.vocab };
        let labels = Ids { view: train.y.view(), below: self.model.config.classes };
        let order = self.device_order.front(self.order.len())?;
        sort_tokens(ctx, (x, labels), t, order, self.steps.front(count)?, &self.buckets, to)
    }

    /// Room for `steps`, whose largest batch has `rows` rows. Recorded steps refer to the arrays by address, so they go if
    /// the arrays grow.
    fn prepare(&mut self, ctx: &Context, rows: usize, t: usize, steps: &[StepState]) -> Result<()> {
        let rows = rows.max(1);
        if rows > self.batch_rows {
            self.forget_graphs(ctx)?;
            self.batch_rows = rows;
            let ModelConfig { vocab, embed, .. } = self.model.config;
            self.together = match self.fused {
                Ok(fused) if self.path == PathChoice::Steps => {
                    FusedSteps::of(ctx, fused, &self.model.config, rows, t)
                }
                _ => None,
            };
            self.buckets =
                self.together.map_or_else(|| Buckets::new(vocab, embed), |together| together.buckets);
        }
        let table = self.table_steps(t);
        let pairs = table.saturating_mul(self.dims(self.batch_rows, t).pairs());
        let bounds = table.saturating_mul(self.buckets.bounds());
        if !(self.sorted.fits(pairs) && self.tokens.fits(pairs) && self.begins.fits(bounds)) {
            self.forget_graphs(ctx)?;
            self.sorted.fit(ctx, "the steps' tokens", pairs)?;
            self.tokens.fit(ctx, "the steps' tokens", pairs)?;
            self.begins.fit(ctx, "the steps' tokens", bounds)?;
        }
        let all = self.dims(self.batch_rows, t);
        if steps.iter().any(|step| self.fuses(step).is_some()) && !self.work.fits_fused(&all) {
            self.forget_graphs(ctx)?;
            self.work.fit_fused(ctx, &all)?;
        }
        let single = || steps.iter().filter(|step| self.fuses(step).is_none());
        if single().any(|step| step.clips() || step.rows == 0) && !self.grads.fits(self.places.len) {
            self.grads.fit(ctx, "the gradients", self.places.len)?;
        }
        let single = steps.iter().filter(|step| self.fuses(step).is_none());
        match single.map(|step| step.rows as usize).max() {
            Some(rows) => self.prepare_single(ctx, rows, t),
            None => Ok(()),
        }
    }

    /// Room for steps of `rows` rows that are not fused, and for the chunks of the evaluations that will come between
    /// epochs: steps would have to be recorded again if the arrays grew then.
    fn prepare_single(&mut self, ctx: &Context, rows: usize, t: usize) -> Result<()> {
        let d = self.dims(rows, t);
        let plan = Plan::new(d.sequence(), self.path)?;
        if rows == 0 || self.work.fits(&d, Some(&plan)) {
            return self.fit(ctx, &d, Some(&plan));
        }
        for part in [Part::Validation, Part::Test] {
            if let Some((part_rows, part_t)) = self.part(part).map(|part| (part.rows, part.t)) {
                let d = self.dims(rows, part_t);
                let chunk = chunk::<S>(&d).min(part_rows);
                if self.forward_fused(ctx, part_t).is_none() {
                    self.fit(ctx, &self.dims(chunk, part_t), None)?;
                }
            }
        }
        self.fit(ctx, &d, Some(&plan))
    }

    /// The fused forward pass for rows of `t` ids, if there is one.
    fn forward_fused(&self, ctx: &Context, t: usize) -> Option<Fused> {
        let fused = if self.path.fuses() { Fused::new(&self.model.config, t).ok() } else { None };
        fused.and_then(|fused| fused.forward_within(ctx.fused_bytes))
    }

    fn evaluate_in_chunks(
        &mut self,
        ctx: &Context,
        part: Part,
        all: usize,
        t: usize,
        batch_size: usize,
    ) -> Result<()> {
        let chunk = chunk::<S>(&self.dims(batch_size, t)).min(all);
        self.fit(ctx, &self.dims(chunk, t), None)?;
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
            let want = Want::Losses { class_weights: None };
            let weights = self.places.weights(&self.params, self.stored.as_ref())?;
            self.work.forward(ctx, &d, &weights, want)?;
            let (loss, hits) = (self.work.loss.front(d.rows)?, self.work.hits.front(d.rows)?);
            let sums = self.evaluated.view_mut();
            cross_entropy::metrics(ctx, loss, hits, sums, None, d.rows, batch_size)?;
        }
        Ok(())
    }
}

/// What an update writes and reads besides, if not in f32.
fn copy<'a, S: Stored>(
    stored: &'a mut Option<DeviceVec<S>>,
    scaling: &'a Option<DeviceVec<Scaling>>,
) -> Option<adam::Copy<'a, S>> {
    let scaling = scaling.as_ref().map(DeviceVec::view);
    stored.as_mut().map(|stored| adam::Copy { stored: stored.view_mut(), scaling })
}

/// What is loaded, whatever operands are stored in: the methods of [`Engine`] of these names.
trait Session: std::fmt::Debug + Send {
    fn set_order(&mut self, ctx: &Context, order: &[u32], metrics: Metrics) -> Result<()>;
    /// Counts the graphs that it has `recorded`.
    fn train(&mut self, ctx: &Context, steps: &[StepState], recorded: &mut u64) -> Result<()>;
    fn poll(&mut self, ctx: &Context, wait: bool) -> Result<Metrics>;
    fn evaluate(&mut self, ctx: &Context, part: Part, batch_size: usize) -> Result<Metrics>;
    fn predict(&mut self, ctx: &Context, x: &[u32], rows: usize) -> Result<Vec<f32>>;
    fn read_state(&self, ctx: &Context) -> Result<TrainState>;
    fn write_state(&mut self, ctx: &Context, state: &TrainState) -> Result<()>;
}

impl<S: Stored> Session for Loaded<S> {
    fn set_order(&mut self, ctx: &Context, order: &[u32], metrics: Metrics) -> Result<()> {
        if !self.device_order.fits(order.len()) {
            self.forget_graphs(ctx)?;
            self.device_order.fit(ctx, "the epoch's order", order.len())?;
        }
        upload(ctx, "the epoch's order", self.device_order.front_mut(order.len())?, order)?;
        upload(ctx, "the metrics", self.sums.view_mut(), &[MetricSums::from(metrics)])?;
        self.order = order.to_vec();
        self.reports.restart(metrics);
        Ok(())
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
        self.prepare(ctx, largest, t, steps)?;
        for steps in steps.chunks(self.table_steps(t)) {
            let plan = self.cut(steps);
            for launch in &plan {
                let Launch::Graph(what) = launch else { continue };
                if !self.graphs.contains_key(what) {
                    let graph = self.record(ctx, *what, t)?;
                    *recorded += 1;
                    self.graphs.insert(*what, graph);
                }
            }
            let table: Vec<Step> = steps.iter().map(|step| Step::new(&self.adam, step)).collect();
            upload(ctx, "the steps", self.steps.view_mut(), &table)?;
            clear(ctx, "the steps' cursor", self.cursor.view_mut())?;
            self.sort(ctx, steps.len(), t)?;
            for launch in &plan {
                match (launch, self.together) {
                    (Launch::Graph(what), _) => match self.graphs.get(what) {
                        Some(graph) => graph.launch(ctx)?,
                        None => {
                            return Err(Error::Failed(
                                "a step that was not recorded; please report this".into(),
                            ));
                        }
                    },
                    (&Launch::Together(first, count), Some(together)) => {
                        let d = self.dims(self.batch_rows, t);
                        self.steps_together(ctx, &d, &together, (first, count))?;
                    }
                    (Launch::Together(..), None) => {
                        return Err(Error::Failed("steps without their kernel; please report this".into()));
                    }
                }
            }
            if let Some(last) = steps.last() {
                self.t = last.t;
            }
            self.reports.ask(ctx, self.sums.view())?;
        }
        Ok(())
    }

    fn poll(&mut self, ctx: &Context, wait: bool) -> Result<Metrics> {
        let doing = format!("training, by step {}", self.t);
        self.reports.read(ctx, &doing, wait)
    }

    fn evaluate(&mut self, ctx: &Context, part: Part, batch_size: usize) -> Result<Metrics> {
        let resident = match part {
            Part::Train => &self.train,
            Part::Validation => &self.validation,
            Part::Test => &self.test,
        };
        let Some(resident) = resident else { return Err(checks::no_examples(part)) };
        let (all, t) = (resident.rows, resident.t);
        let batch_size = batch_size.max(1);
        upload(ctx, "the metrics", self.evaluated.view_mut(), &[MetricSums::default()])?;
        if let Some(fused) = self.forward_fused(ctx, t) {
            let config = self.model.config;
            self.eval_loss.fit(ctx, "an evaluation's losses", all)?;
            self.eval_hits.fit(ctx, "an evaluation's hits", all)?;
            let (loss, hits) = (self.eval_loss.front_mut(all)?, self.eval_hits.front_mut(all)?);
            let labels = Ids { view: resident.y.view(), below: config.classes };
            let to = fused::Results {
                probs: None,
                losses: Some(Losses { labels, class_weights: None, loss, hits }),
            };
            let x = Ids { view: resident.x.view(), below: config.vocab };
            let weights = self.places.weights(&self.params, self.stored.as_ref())?;
            fused::forward(ctx, &fused, &config, (all, t), x, weights, to)?;
            let (loss, hits) = (self.eval_loss.front(all)?, self.eval_hits.front(all)?);
            cross_entropy::metrics(ctx, loss, hits, self.evaluated.view_mut(), None, all, batch_size)?;
        } else {
            self.evaluate_in_chunks(ctx, part, all, t, batch_size)?;
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
        let fused = self.forward_fused(ctx, t);
        let chunk = chunk::<S>(&self.dims(1, t)).min(rows);
        match fused {
            Some(_) => self.eval_probs.fit(ctx, "the probabilities", chunk.saturating_mul(classes))?,
            None => self.fit(ctx, &self.dims(chunk, t), None)?,
        }
        self.x.fit(ctx, "the rows to predict", chunk.saturating_mul(t))?;
        let mut probabilities = Vec::with_capacity(rows.saturating_mul(classes));
        for ids in x.chunks(chunk * t) {
            let d = self.dims(ids.len() / t, t);
            upload(ctx, "the rows to predict", self.x.front_mut(ids.len())?, ids)?;
            let x = self.x.front(ids.len())?;
            let probs = match &fused {
                Some(fused) => {
                    let probs = self.eval_probs.front_mut(d.rows * classes)?;
                    let to = fused::Results { probs: Some(probs), losses: None };
                    let x = Ids { view: x, below: vocab };
                    let weights = self.places.weights(&self.params, self.stored.as_ref())?;
                    fused::forward(ctx, fused, &d.config, (d.rows, t), x, weights, to)?;
                    self.eval_probs.front(d.rows * classes)?
                }
                None => {
                    self.work.gather(ctx, &d, x, None, Rows::From(0))?;
                    let weights = self.places.weights(&self.params, self.stored.as_ref())?;
                    self.work.forward(ctx, &d, &weights, Want::Probabilities)?;
                    self.work.probs.front(d.rows * classes)?
                }
            };
            probabilities.extend(download(ctx, "probabilities", probs)?);
        }
        Ok(probabilities)
    }

    fn read_state(&self, ctx: &Context) -> Result<TrainState> {
        let scaling = match &self.scaling {
            Some(scaling) => download(ctx, "the loss' scale", scaling.view())?.first().copied(),
            None => None,
        };
        Ok(TrainState {
            params: self.places.download(ctx, "the parameters", self.params.view())?,
            m: self.places.download(ctx, "Adam's first moment", self.m.view())?,
            v: self.places.download(ctx, "Adam's second moment", self.v.view())?,
            t: self.t,
            loss_scale: scaling.map_or_else(LossScale::default, LossScale::from),
        })
    }

    fn write_state(&mut self, ctx: &Context, state: &TrainState) -> Result<()> {
        checks::state(&self.model, state)?;
        let places = &self.places;
        places.upload(ctx, "the parameters", self.params.view_mut(), &state.params)?;
        places.upload(ctx, "Adam's first moment", self.m.view_mut(), &state.m)?;
        places.upload(ctx, "Adam's second moment", self.v.view_mut(), &state.v)?;
        self.t = state.t;
        self.store(ctx, state.loss_scale)
    }
}

/// The fused kernels that training on rows of `t` ids takes, or why none.
fn fused_path(ctx: &Context, path: PathChoice, config: &ModelConfig, t: usize) -> Result<Fused, Unfused> {
    if path.fuses() { Fused::new(config, t)?.within(ctx.fused_bytes) } else { Err(Unfused::Forbidden) }
}

/// Rows of a chunk: whole batches of `d.rows`, so that the mean of batch losses is the one of batch-wise evaluation.
fn chunk<S: Stored>(d: &Dims) -> usize {
    let rows = CHUNK_ROWS.min(CHUNK_NUMBERS / d.numbers_a_row::<S>().max(1));
    d.rows.saturating_mul((rows / d.rows.max(1)).max(1))
}

impl Engine for CudaEngine {
    fn info(&self) -> DeviceInfo {
        let mut info = self.cuda.info();
        if self.precision != Precision::F32 {
            info.executed = format!("{}, in {}", info.executed, self.precision);
        }
        info
    }

    fn load(&mut self, model: &Model, state: &TrainState, adam: AdamConfig, parts: Parts<'_>) -> Result<()> {
        checks::state(model, state)?;
        checks::class_weights(model, parts.class_weights)?;
        for examples in [parts.train, parts.validation, parts.test].into_iter().flatten() {
            examples.check(model.config.vocab, model.config.classes)?;
        }
        // What was loaded makes room first.
        self.loaded = None;
        let (ctx, path) = (&self.cuda.ctx, self.path);
        self.loaded = Some(match self.precision {
            Precision::F32 => Box::new(Loaded::<f32>::new(ctx, model, state, adam, parts, path)?),
            Precision::Bf16 => Box::new(Loaded::<Bf16>::new(ctx, model, state, adam, parts, path)?),
            Precision::F16 => Box::new(Loaded::<F16>::new(ctx, model, state, adam, parts, path)?),
        });
        Ok(())
    }

    fn set_order(&mut self, order: &[u32], metrics: Metrics) -> Result<()> {
        let (ctx, loaded) = self.loaded()?;
        loaded.set_order(&ctx, order, metrics)
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
        loaded.poll(&ctx, wait)
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
        loaded.read_state(&ctx)
    }

    fn write_state(&mut self, state: &TrainState) -> Result<()> {
        let (ctx, loaded) = self.loaded()?;
        loaded.write_state(&ctx, state)
    }
}
