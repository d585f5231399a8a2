//! The engine of the CPU: a training step in two fused phases on all threads.
//!
//! 1. Blocks of batch rows go forward, through the loss and back in time, each with the gradient of the recurrent and
//!    the dense layer summed for itself, and the one of each of its distinct tokens (`block`).
//! 2. Adam: pieces of the embedding, whose touched rows sum their gradients in the order of the blocks; the recurrent
//!    layer's panels, which sum the blocks' parts in their order and lay down the transposes for the next
//!    step; the dense layer.
//!
//! Weights too large for a gradient for each block get a phase between the two, in which each panel's gradient is summed
//! over all blocks. Blocks and pieces depend on shapes alone, so bits do not depend on threads.
//!
//! Parameters and moments of the recurrent and the dense layer live in the layout that the blocks want; [`TrainState`]
//! has them in the model's.

use super::adam::{self, Constants};
use super::block::{
    Answers, Infer, Partial, Project, RankPanel, Sizes, Source, State, Tape, TrainBlock, Weights, grow,
};
use super::simd::{Kernel, Simd};
use super::tile::GATES;
use super::{Cpu, processor_name};
use crate::backend::checks;
use crate::backend::{AdamConfig, DeviceInfo, Engine, Part, Parts, StepState, TrainState};
use crate::data::Examples;
use crate::error::Result;
use crate::metrics::Metrics;
use crate::model::Model;

/// Rows of a block: enough for register tiles, few enough that a batch of 32 feeds four threads.
const BLOCK_ROWS: usize = 8;
/// Rows of a block where the weights do not stay in the second cache: they are read once for a block and time step.
const LARGE_BLOCK_ROWS: usize = 16;
/// Elements of the recurrent weights from which on blocks are large.
const LARGE_WEIGHTS: usize = 1 << 16;
/// Elements of the recurrent weights from which on blocks have no gradients of their own.
const SHARED_GRADIENT: usize = 1 << 17;
/// Most sums of gradients that are kept apart; runs of blocks share one.
const MAX_PARTIALS: usize = 16;
/// Pieces that the embedding is cut into for Adam.
const PIECES: usize = 24;
/// Largest projected table, in elements: 32 MiB. It is made once as many tokens as it has rows are asked for.
const MAX_TABLE: usize = 1 << 23;
/// The end of a chain of entries, and a row without one.
const NONE: u32 = 0;

/// An engine that trains, evaluates and predicts on the threads of a [`Cpu`]. Everything it is asked for is done when a
/// call returns.
#[derive(Debug)]
pub struct CpuEngine {
    cpu: Cpu,
    executed: String,
    loaded: Option<Loaded>,
}

/// Parameters and their moments in one layout.
#[derive(Debug, Default)]
struct Trained {
    p: Vec<f32>,
    m: Vec<f32>,
    v: Vec<f32>,
}

impl Trained {
    fn zeros(n: usize) -> Self {
        Self { p: vec![0.0; n], m: vec![0.0; n], v: vec![0.0; n] }
    }
}

/// What a thread keeps between blocks.
#[derive(Debug, Default)]
struct Scratch {
    tape: Tape,
    /// `[V]`, all zero between blocks.
    known: Vec<u32>,
}

#[derive(Debug)]
struct Loaded {
    model: Model,
    adam: AdamConfig,
    sizes: Sizes,
    /// `[V][E]`, as in the model.
    embeddings: Trained,
    /// Cell panels.
    cell: Trained,
    /// Dense weights as blocks want them.
    dense: Trained,
    /// Back panels.
    backs: Vec<f32>,
    t: u64,
    train: Option<Examples>,
    validation: Option<Examples>,
    test: Option<Examples>,
    class_weights: Option<Vec<f32>>,
    order: Vec<u32>,
    metrics: Metrics,
    /// A thread's each.
    scratch: Vec<Scratch>,
    /// A block's each where the gradient of the weights is summed after all blocks.
    tapes: Vec<Tape>,
    partials: Vec<Partial>,
    /// The panels' gradient where blocks have none.
    shared: Vec<f32>,
    /// `[block][entry][inputs]`, room for an entry for each token: gradients by the inputs.
    dx: Vec<f32>,
    /// The id of each entry.
    ids: Vec<u32>,
    /// Entries of each block.
    entries: Vec<usize>,
    /// The first entry of each vocabulary row, plus one; all [`NONE`] between steps.
    head: Vec<u32>,
    /// The next entry with the same id, plus one.
    next: Vec<u32>,
    loss: Vec<f32>,
    hits: Vec<f32>,
    labels: Vec<u32>,
    /// The projected embedding, while it holds for the weights.
    table: Vec<f32>,
    table_is_valid: bool,
    /// Tokens that were predicted since the weights changed.
    tokens: usize,
    state: State,
}

impl CpuEngine {
    /// An engine on these threads.
    pub fn new(cpu: Cpu) -> Self {
        let executed = cpu.executed();
        Self { cpu, executed, loaded: None }
    }

    /// Adds to what [`DeviceInfo::executed`] says.
    pub(in crate::backend) fn say(&mut self, more: &str) {
        self.executed.push_str(more);
    }

    fn loaded(&mut self) -> Result<(&Cpu, &mut Loaded)> {
        match &mut self.loaded {
            Some(loaded) => Ok((&self.cpu, loaded)),
            None => Err(checks::no_model()),
        }
    }
}

impl Engine for CpuEngine {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            device: "cpu".into(),
            name: processor_name(),
            executed: self.executed.clone(),
            threads: self.cpu.threads(),
        }
    }

    fn load(&mut self, model: &Model, state: &TrainState, adam: AdamConfig, parts: Parts<'_>) -> Result<()> {
        checks::state(model, state)?;
        checks::class_weights(model, parts.class_weights)?;
        for examples in [parts.train, parts.validation, parts.test].into_iter().flatten() {
            examples.check(model.config.vocab, model.config.classes)?;
        }
        let config = &model.config;
        let sizes = Sizes {
            lanes: self.cpu.isa().lanes(),
            e: config.embed,
            h: config.hidden,
            classes: config.classes,
        };
        let mut loaded = Loaded {
            model: model.clone(),
            adam,
            sizes,
            embeddings: Trained::default(),
            cell: Trained::zeros(sizes.panels()),
            dense: Trained::zeros(sizes.dense()),
            backs: vec![0.0; sizes.backs()],
            t: 0,
            train: parts.train.cloned(),
            validation: parts.validation.cloned(),
            test: parts.test.cloned(),
            class_weights: parts.class_weights.map(<[f32]>::to_vec),
            order: Vec::new(),
            metrics: Metrics::default(),
            scratch: Vec::new(),
            tapes: Vec::new(),
            partials: Vec::new(),
            shared: Vec::new(),
            dx: Vec::new(),
            ids: Vec::new(),
            entries: Vec::new(),
            head: Vec::new(),
            next: Vec::new(),
            loss: Vec::new(),
            hits: Vec::new(),
            labels: Vec::new(),
            table: Vec::new(),
            table_is_valid: false,
            tokens: 0,
            state: State::default(),
        };
        loaded.write(state);
        self.loaded = Some(loaded);
        Ok(())
    }

    fn set_order(&mut self, order: &[u32], metrics: Metrics) -> Result<()> {
        let (_, loaded) = self.loaded()?;
        loaded.order = order.to_vec();
        loaded.metrics = metrics;
        Ok(())
    }

    fn train(&mut self, steps: &[StepState]) -> Result<()> {
        let (cpu, loaded) = self.loaded()?;
        for step in steps {
            loaded.step(cpu, step)?;
        }
        Ok(())
    }

    fn poll(&mut self, _wait: bool) -> Result<Metrics> {
        Ok(self.loaded()?.1.metrics)
    }

    fn evaluate(&mut self, part: Part, batch_size: usize) -> Result<Metrics> {
        let (cpu, loaded) = self.loaded()?;
        loaded.evaluate(cpu, part, batch_size)
    }

    fn predict(&mut self, x: &[u32], rows: usize) -> Result<Vec<f32>> {
        let (cpu, loaded) = self.loaded()?;
        loaded.predict(cpu, x, rows)
    }

    fn read_state(&mut self) -> Result<TrainState> {
        Ok(self.loaded()?.1.read())
    }

    fn write_state(&mut self, state: &TrainState) -> Result<()> {
        let (_, loaded) = self.loaded()?;
        checks::state(&loaded.model, state)?;
        loaded.write(state);
        Ok(())
    }
}

/// A batch cut into blocks: by shapes alone.
struct Plan {
    /// First row and rows of each block.
    blocks: Vec<(usize, usize)>,
    /// Blocks of each sum of gradients, in order.
    runs: Vec<std::ops::Range<usize>>,
    /// Whether blocks leave the weights' gradients to a phase of their own.
    shared: bool,
}

impl Plan {
    fn new(d: Sizes, rows: usize) -> Self {
        let shared = d.panels() >= SHARED_GRADIENT;
        let most = if d.panels() >= LARGE_WEIGHTS { LARGE_BLOCK_ROWS } else { BLOCK_ROWS };
        let count = match rows {
            0 => 0,
            1..8 => 1,
            8..16 => rows.div_ceil(most).next_multiple_of(2),
            _ => rows.div_ceil(most).next_multiple_of(4),
        };
        let blocks = cut(rows, count);
        let slots = if shared { count } else { count.min(MAX_PARTIALS) };
        let runs = cut(count, slots).into_iter().map(|(first, n)| first..first + n).collect();
        Self { blocks, runs, shared }
    }
}

/// `n` cut evenly into so many pieces: first and length of each.
fn cut(n: usize, pieces: usize) -> Vec<(usize, usize)> {
    (0..pieces).map(|k| (n * k / pieces, n * (k + 1) / pieces - n * k / pieces)).collect()
}

/// A task of the first phase: a run of blocks.
struct Forth<'a> {
    /// Where the tape is read after all blocks; else the thread's own is used.
    tape: Option<&'a mut Tape>,
    partial: &'a mut Partial,
    blocks: &'a [(usize, usize)],
    entries: &'a mut [usize],
    ids: &'a mut [u32],
    dx: &'a mut [f32],
    loss: &'a mut [f32],
    hits: &'a mut [f32],
}

/// Parameters, first and second moments of a task.
struct Piece<'a>([&'a mut [f32]; 3]);

/// A task of the last phase.
enum Update<'a> {
    Embedding { head: &'a mut [u32], piece: Piece<'a> },
    Panel { vector: usize, piece: Piece<'a>, backs: Vec<&'a mut [f32]> },
    Dense { piece: Piece<'a> },
}

/// What all tasks of the last phase read.
struct Gradients<'a> {
    k: Constants,
    sizes: Sizes,
    next: &'a [u32],
    dx: &'a [f32],
    /// Gradients of the panels, to be summed in this order.
    panels: Vec<&'a [f32]>,
    /// Gradients of the dense layer, likewise.
    dense: Vec<&'a [f32]>,
}

impl Gradients<'_> {
    /// Sums the gradients of a chain of entries into `sum [inputs]`.
    #[inline(always)]
    fn entries<S: Simd>(&self, s: S, mut entry: u32, sum: &mut [f32]) {
        let width = self.sizes.inputs();
        sum.fill(0.0);
        while entry != NONE {
            let at = (entry - 1) as usize;
            for (sum, dx) in
                sum.chunks_exact_mut(S::LANES).zip(self.dx[at * width..][..width].chunks_exact(S::LANES))
            {
                let total = s.add(s.get(sum), s.get(dx));
                s.put(sum, total);
            }
            entry = self.next[at];
        }
    }
}

/// The sum of one vector of each of `parts`, in their order.
#[inline(always)]
fn sum_at<S: Simd>(s: S, parts: &[&[f32]], at: usize) -> S::V {
    let mut sum = s.splat(0.0);
    for part in parts {
        sum = s.add(sum, s.get(&part[at..]));
    }
    sum
}

/// One task of the last phase.
struct Apply<'a, 'b> {
    gradients: &'a Gradients<'b>,
    task: &'a mut Update<'b>,
    /// `[inputs]`, scratch.
    sum: &'a mut [f32],
}

impl Kernel for Apply<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let gradients = self.gradients;
        let (k, d) = (gradients.k, gradients.sizes);
        match self.task {
            Update::Embedding { head, piece: Piece([p, m, v]) } => {
                let e = d.e;
                let mut row = 0;
                while row < head.len() {
                    // Rows without an entry, all at once.
                    let idle =
                        head[row..].iter().position(|&entry| entry != NONE).unwrap_or(head.len() - row);
                    let at = row * e..(row + idle) * e;
                    adam::update(
                        s,
                        k,
                        |_| s.splat(0.0),
                        |_, tail| tail.fill(0.0),
                        &mut p[at.clone()],
                        &mut m[at.clone()],
                        &mut v[at],
                    );
                    row += idle;
                    if row == head.len() {
                        break;
                    }
                    gradients.entries(s, std::mem::replace(&mut head[row], NONE), self.sum);
                    let sum = &self.sum[..e];
                    let at = row * e..(row + 1) * e;
                    adam::update(
                        s,
                        k,
                        |at| s.get(&sum[at..]),
                        |at, tail| tail.copy_from_slice(&sum[at..]),
                        &mut p[at.clone()],
                        &mut m[at.clone()],
                        &mut v[at],
                    );
                    row += 1;
                }
            }
            Update::Panel { vector, piece: Piece([p, m, v]), backs } => {
                let first = *vector * d.panel();
                // Panels are made of whole vectors.
                adam::update(s, k, |at| sum_at(s, &gradients.panels, first + at), |_, _| {}, p, m, v);
                transpose(d, p, backs);
            }
            Update::Dense { piece: Piece([p, m, v]) } => adam::update(
                s,
                k,
                |at| sum_at(s, &gradients.dense, at),
                |at, tail| {
                    tail.fill(0.0);
                    for part in &gradients.dense {
                        for (sum, x) in tail.iter_mut().zip(&part[at..]) {
                            *sum += x;
                        }
                    }
                },
                p,
                m,
                v,
            ),
        }
    }
}

/// Lays a cell panel's transpose down in its pieces of the back panels.
#[inline(always)]
fn transpose(d: Sizes, panel: &[f32], backs: &mut [&mut [f32]]) {
    let (gates, inputs) = (d.gates(), d.inputs());
    for ((first, width), back) in d.back_panels().zip(backs) {
        let width = width * d.lanes;
        for lane in 0..width {
            let column = first * d.lanes + lane;
            let k = if column < inputs { column } else { d.e + column - inputs };
            let filled_up = if column < inputs { column >= d.e } else { column - inputs >= d.h };
            if !filled_up {
                let row = &panel[k * gates..][..gates];
                for (x, to) in row.iter().zip(back[lane..].iter_mut().step_by(width)) {
                    *to = *x;
                }
            }
        }
    }
}

/// Pieces of the back panels by unit vector.
fn split_backs(d: Sizes, mut backs: &mut [f32]) -> Vec<Vec<&mut [f32]>> {
    let mut split: Vec<Vec<&mut [f32]>> = (0..d.unit_vectors()).map(|_| Vec::new()).collect();
    for (_, width) in d.back_panels() {
        for pieces in &mut split {
            pieces.push(super::take(&mut backs, width * d.lanes * d.gates()));
        }
    }
    split
}

/// Squares of a task's gradients, summed.
struct SquareSum<'a, 'b> {
    gradients: &'a Gradients<'b>,
    task: &'a Update<'b>,
    sum: &'a mut [f32],
}

impl Kernel for SquareSum<'_, '_> {
    type Output = f64;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        let (gradients, d) = (self.gradients, self.gradients.sizes);
        let square = |xs: &[f32]| xs.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
        let of_parts = |parts: &[&[f32]], range: std::ops::Range<usize>| {
            range
                .map(|at| {
                    let mut sum = 0.0f32;
                    for part in parts {
                        sum += part[at];
                    }
                    f64::from(sum) * f64::from(sum)
                })
                .sum::<f64>()
        };
        match self.task {
            Update::Embedding { head, .. } => {
                let mut total = 0.0;
                for &entry in head.iter().filter(|&&entry| entry != NONE) {
                    gradients.entries(s, entry, self.sum);
                    total += square(&self.sum[..d.e]);
                }
                total
            }
            Update::Panel { vector, .. } => {
                of_parts(&gradients.panels, vector * d.panel()..(vector + 1) * d.panel())
            }
            Update::Dense { .. } => of_parts(&gradients.dense, 0..d.dense()),
        }
    }
}

/// The gradient of one panel over all blocks.
struct Between<'a>(usize, &'a mut [f32]);

impl Loaded {
    /// Takes a state in the model's layout.
    fn write(&mut self, state: &TrainState) {
        let d = self.sizes;
        for (arena, embeddings, cell, dense) in [
            (&state.params, &mut self.embeddings.p, &mut self.cell.p, &mut self.dense.p),
            (&state.m, &mut self.embeddings.m, &mut self.cell.m, &mut self.dense.m),
            (&state.v, &mut self.embeddings.v, &mut self.cell.v, &mut self.dense.v),
        ] {
            let views = self.model.table.views(arena);
            *embeddings = views.embeddings.to_vec();
            let rows = views.w.chunks_exact(GATES * d.h).chain(views.u.chunks_exact(GATES * d.h));
            for (k, row) in rows.chain([views.b]).enumerate() {
                for (column, &x) in row.iter().enumerate() {
                    cell[d.cell_index(k, column / d.h, column % d.h)] = x;
                }
            }
            for (index, &x) in views.dense_w.iter().enumerate() {
                dense[index % d.classes * d.units() + index / d.classes] = x;
            }
            dense[d.classes * d.units()..].copy_from_slice(views.dense_b);
        }
        for (panel, mut backs) in self.cell.p.chunks_exact(d.panel()).zip(split_backs(d, &mut self.backs)) {
            transpose(d, panel, &mut backs);
        }
        self.t = state.t;
        self.table_is_valid = false;
        self.tokens = 0;
    }

    /// The state in the model's layout.
    fn read(&self) -> TrainState {
        let d = self.sizes;
        let arena = |embeddings: &[f32], cell: &[f32], dense: &[f32]| {
            let mut arena = vec![0.0; self.model.table.len()];
            let views = self.model.table.views_mut(&mut arena);
            views.embeddings.copy_from_slice(embeddings);
            let rows = views.w.chunks_exact_mut(GATES * d.h).chain(views.u.chunks_exact_mut(GATES * d.h));
            for (k, row) in rows.chain([views.b]).enumerate() {
                for (column, x) in row.iter_mut().enumerate() {
                    *x = cell[d.cell_index(k, column / d.h, column % d.h)];
                }
            }
            for (index, x) in views.dense_w.iter_mut().enumerate() {
                *x = dense[index % d.classes * d.units() + index / d.classes];
            }
            views.dense_b.copy_from_slice(&dense[d.classes * d.units()..]);
            arena
        };
        TrainState {
            params: arena(&self.embeddings.p, &self.cell.p, &self.dense.p),
            m: arena(&self.embeddings.m, &self.cell.m, &self.dense.m),
            v: arena(&self.embeddings.v, &self.cell.v, &self.dense.v),
            t: self.t,
            loss_scale: Default::default(),
        }
    }

    /// One batch: forward, loss, backward, Adam.
    fn step(&mut self, cpu: &Cpu, step: &StepState) -> Result<()> {
        let Some(train) = &self.train else {
            return Err(checks::no_training_examples());
        };
        let batch = checks::batch(&self.order, step)?;
        checks::rows(batch, train.rows())?;
        step.check()?;
        let (d, t, rows, isa) = (self.sizes, train.t, batch.len(), cpu.isa());
        let plan = Plan::new(d, rows);
        let row = |index: usize| train.row(batch[index] as usize);

        // Room for everything.
        let (tokens, vocab) = (rows * t, self.model.config.vocab);
        grow(&mut self.dx, [t, rows, d.inputs()])?;
        grow(&mut self.loss, [1, 1, rows])?;
        grow(&mut self.hits, [1, 1, rows])?;
        for buffer in [&mut self.next, &mut self.ids] {
            if buffer.len() < tokens {
                buffer.resize(tokens, NONE);
            }
        }
        self.head.resize(vocab, NONE);
        self.entries.resize(plan.blocks.len(), 0);
        if self.partials.len() < plan.runs.len() {
            self.partials.resize_with(plan.runs.len(), Partial::default);
        }
        let panel = if plan.shared { d.gates() } else { d.panel() };
        for partial in &mut self.partials[..plan.runs.len()] {
            partial.panels.resize(d.unit_vectors() * panel, 0.0);
            partial.dense.resize(d.dense(), 0.0);
        }
        let most = plan.blocks.iter().map(|&(_, n)| n).max().unwrap_or(0);
        self.scratch.resize_with(cpu.threads(), Scratch::default);
        for scratch in &mut self.scratch {
            scratch.known.resize(vocab, 0);
            if !plan.shared {
                scratch.tape.fit(d, most, t, false)?;
            }
        }
        if plan.shared {
            grow(&mut self.shared, [1, 1, d.panels()])?;
            self.tapes.resize_with(self.tapes.len().max(plan.runs.len()), Tape::default);
            for tape in &mut self.tapes[..plan.runs.len()] {
                tape.fit(d, most, t, true)?;
            }
        }
        self.labels.clear();
        self.labels.extend(batch.iter().map(|&row| train.y[row as usize]));

        // Forth and back.
        let weights = Weights { sizes: d, panels: &self.cell.p, backs: &self.backs, dense: &self.dense.p };
        let (embeddings, labels) = (&self.embeddings.p, &self.labels);
        let class_weights = self.class_weights.as_deref();
        let mut tasks = Vec::with_capacity(plan.runs.len());
        let (mut dx, mut loss, mut hits) =
            (&mut self.dx[..tokens * d.inputs()], &mut self.loss[..rows], &mut self.hits[..rows]);
        let (mut ids, mut entries) = (&mut self.ids[..tokens], &mut self.entries[..]);
        let mut tapes = self.tapes.iter_mut();
        for (partial, run) in self.partials.iter_mut().zip(&plan.runs) {
            let blocks = &plan.blocks[run.clone()];
            let rows: usize = blocks.iter().map(|&(_, n)| n).sum();
            tasks.push(Forth {
                tape: if plan.shared { tapes.next() } else { None },
                partial,
                blocks,
                entries: super::take(&mut entries, blocks.len()),
                ids: super::take(&mut ids, rows * t),
                dx: super::take(&mut dx, rows * t * d.inputs()),
                loss: super::take(&mut loss, rows),
                hits: super::take(&mut hits, rows),
            });
        }
        cpu.pool.each_with(&mut tasks, &mut self.scratch, |task, scratch| {
            let tape = task.tape.as_deref_mut().unwrap_or(&mut scratch.tape);
            let (mut ids, mut dx) = (&mut *task.ids, &mut *task.dx);
            let (mut loss, mut hits) = (&mut *task.loss, &mut *task.hits);
            for (index, &(first, count)) in task.blocks.iter().enumerate() {
                let (ids, dx) =
                    (super::take(&mut ids, count * t), super::take(&mut dx, count * t * d.inputs()));
                let row = |r| row(first + r);
                let entries = tape.gather(d, count, t, row, embeddings, &mut scratch.known, ids);
                task.entries[index] = entries;
                isa.run(TrainBlock {
                    weights,
                    tape,
                    rows: count,
                    t,
                    batch: rows,
                    labels: &labels[first..first + count],
                    class_weights,
                    loss: super::take(&mut loss, count),
                    hits: super::take(&mut hits, count),
                    dx: &mut dx[..entries * d.inputs()],
                    partial: task.partial,
                    first: index == 0,
                    biases_only: plan.shared,
                });
            }
        });
        drop(tasks);

        // Backwards, so that chains run in the order of the blocks.
        for (&(first, _), &entries) in plan.blocks.iter().zip(&self.entries).rev() {
            for entry in (first * t..first * t + entries).rev() {
                let head = &mut self.head[self.ids[entry] as usize];
                // Below 2³²: an index of a buffer that exists.
                self.next[entry] = std::mem::replace(head, entry as u32 + 1);
            }
        }

        // The gradients of large weights.
        let partials = &self.partials[..plan.runs.len()];
        if plan.shared {
            let blocks: Vec<_> = self
                .tapes
                .iter()
                .zip(partials)
                .zip(&plan.blocks)
                .map(|((tape, partial), &(_, rows))| (tape, partial, rows))
                .collect();
            let mut tasks: Vec<_> = self.shared[..d.panels()]
                .chunks_exact_mut(d.panel())
                .enumerate()
                .map(|(vector, panel)| Between(vector, panel))
                .collect();
            cpu.pool.each(&mut tasks, |Between(vector, panel)| {
                isa.run(RankPanel { sizes: d, vector: *vector, panel, blocks: &blocks, t });
            });
        }

        // Adam.
        let mut gradients = Gradients {
            k: Constants::new(&self.adam, step, 1.0),
            sizes: d,
            next: &self.next,
            dx: &self.dx,
            panels: if plan.shared {
                vec![&self.shared[..d.panels()]]
            } else {
                partials.iter().map(|partial| &partial.panels[..]).collect()
            },
            dense: partials.iter().map(|partial| &partial.dense[..]).collect(),
        };
        let mut tasks = Vec::with_capacity(PIECES + d.unit_vectors() + 1);
        let Trained { p, m, v } = &mut self.cell;
        let panels = p
            .chunks_exact_mut(d.panel())
            .zip(m.chunks_exact_mut(d.panel()).zip(v.chunks_exact_mut(d.panel())))
            .zip(split_backs(d, &mut self.backs));
        for (vector, ((p, (m, v)), backs)) in panels.enumerate() {
            tasks.push(Update::Panel { vector, piece: Piece([p, m, v]), backs });
        }
        let Trained { p, m, v } = &mut self.dense;
        tasks.push(Update::Dense { piece: Piece([p, m, v]) });
        let piece = vocab.div_ceil(PIECES);
        let Trained { p, m, v } = &mut self.embeddings;
        let pieces = p
            .chunks_mut(piece * d.e)
            .zip(m.chunks_mut(piece * d.e).zip(v.chunks_mut(piece * d.e)))
            .zip(self.head.chunks_mut(piece));
        for ((p, (m, v)), head) in pieces {
            tasks.push(Update::Embedding { head, piece: Piece([p, m, v]) });
        }
        if step.clips() {
            let mut sums: Vec<_> = tasks.iter().map(|task| (task, 0.0)).collect();
            cpu.pool.each(&mut sums, |(task, total)| {
                *total = isa.run(SquareSum { gradients: &gradients, task, sum: &mut vec![0.0; d.inputs()] });
            });
            let norm = sums.iter().map(|(_, total)| total).sum::<f64>().sqrt();
            let scale = adam::clip(norm, f64::from(step.clip_norm));
            gradients.k = Constants::new(&self.adam, step, scale);
        }
        cpu.pool.each(&mut tasks, |task| {
            isa.run(Apply { gradients: &gradients, task, sum: &mut vec![0.0; d.inputs()] });
        });

        self.t = step.t;
        self.table_is_valid = false;
        self.tokens = 0;
        self.metrics.add_batch(&self.loss[..rows], &self.hits[..rows]);
        Ok(())
    }

    /// Where a walk over so many tokens should start from; makes the projected table where it pays.
    fn project(&mut self, cpu: &Cpu, tokens: usize) {
        let (d, vocab) = (self.sizes, self.model.config.vocab);
        let width = d.unit_vectors() * d.gates();
        self.tokens = self.tokens.saturating_add(tokens);
        if self.table_is_valid || self.tokens < vocab || vocab.saturating_mul(width) > MAX_TABLE {
            return;
        }
        self.table.resize(vocab * width, 0.0);
        let rows = vocab.div_ceil(PIECES);
        let (panels, isa) = (&self.cell.p, cpu.isa());
        let mut tasks: Vec<_> =
            self.embeddings.p.chunks(rows * d.e).zip(self.table.chunks_mut(rows * width)).collect();
        cpu.pool.each(&mut tasks, |(x, out)| {
            isa.run(Project { sizes: d, panels, x, ld: d.e, out, by_vector: false })
        });
        self.table_is_valid = true;
    }

    fn evaluate(&mut self, cpu: &Cpu, part: Part, batch_size: usize) -> Result<Metrics> {
        let examples = match part {
            Part::Train => &self.train,
            Part::Validation => &self.validation,
            Part::Test => &self.test,
        };
        let Some(examples) = examples else {
            return Err(checks::no_examples(part));
        };
        let (rows, tokens) = (examples.rows(), examples.x.len());
        self.project(cpu, tokens);
        let examples = match part {
            Part::Train => &self.train,
            Part::Validation => &self.validation,
            Part::Test => &self.test,
        };
        let Some(Examples { x, y, t }) = examples else { return Ok(Metrics::default()) };
        let d = self.sizes;
        let (mut loss, mut hits) = (vec![0.0f32; rows], vec![0.0f32; rows]);
        let piece = piece_rows(cpu, rows);
        let source = self.source();
        let mut tasks: Vec<_> = x
            .chunks(piece * t)
            .zip(y.chunks(piece))
            .zip(loss.chunks_mut(piece).zip(hits.chunks_mut(piece)))
            .collect();
        cpu.pool.each(&mut tasks, |((ids, labels), (loss, hits))| {
            cpu.isa().run(Infer {
                sizes: d,
                panels: &self.cell.p,
                dense: &self.dense.p,
                source,
                ids,
                t: *t,
                state: &mut State::default(),
                answers: Answers::Losses { labels, loss, hits, probs: &mut vec![0.0; d.classes] },
            });
        });
        let mut metrics = Metrics::default();
        let batch_size = batch_size.max(1);
        for (loss, hits) in loss.chunks(batch_size).zip(hits.chunks(batch_size)) {
            metrics.add_batch(loss, hits);
        }
        Ok(metrics)
    }

    fn source(&self) -> Source<'_> {
        if self.table_is_valid {
            Source::Projected(&self.table)
        } else {
            Source::Embeddings(&self.embeddings.p)
        }
    }

    fn predict(&mut self, cpu: &Cpu, x: &[u32], rows: usize) -> Result<Vec<f32>> {
        if rows == 0 {
            return Ok(Vec::new());
        }
        let t = checks::width(x, rows)?;
        super::check_ids("embedding_forward", "ids [n]", "V", self.model.config.vocab, x)?;
        self.project(cpu, x.len());
        let (d, isa) = (self.sizes, cpu.isa());
        let mut probabilities = vec![0.0; rows * d.classes];
        let mut state = std::mem::take(&mut self.state);
        let source = self.source();
        let infer = |ids: &[u32], probs: &mut [f32], state: &mut State| {
            isa.run(Infer {
                sizes: d,
                panels: &self.cell.p,
                dense: &self.dense.p,
                source,
                ids,
                t,
                state,
                answers: Answers::Probabilities(probs),
            });
        };
        if x.len() * d.panels() < super::INLINE_WORK * 8 {
            infer(x, &mut probabilities, &mut state);
        } else {
            let piece = piece_rows(cpu, rows);
            let mut tasks: Vec<_> =
                x.chunks(piece * t).zip(probabilities.chunks_mut(piece * d.classes)).collect();
            cpu.pool.each(&mut tasks, |(ids, probs)| infer(ids, probs, &mut State::default()));
        }
        self.state = state;
        Ok(probabilities)
    }
}

/// Rows of one task of an evaluation. Rows do not meet, so that it changes no bit.
fn piece_rows(cpu: &Cpu, rows: usize) -> usize {
    rows.div_ceil(cpu.threads() * 8).next_multiple_of(24).max(24)
}
