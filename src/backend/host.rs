//! The engine of host back ends: a training step composed of their operations.

use super::checks;
use super::reference::Rounded;
use super::{AdamConfig, DeviceInfo, Engine, LossScale, Part, Parts, Real, StepState, TrainState};
use crate::data::Examples;
use crate::error::Result;
use crate::metrics::Metrics;
use crate::model::Model;
use crate::model::classifier::{self, HostOps, Workspace};

/// Rows that an evaluation or prediction takes at a time: enough to feed all threads, few enough for the caches.
const CHUNK_ROWS: usize = 256;

/// An engine over host operations `O` in precision `T`. Everything it is asked for is done when a call returns.
#[derive(Debug)]
pub struct HostEngine<T, O> {
    ops: O,
    info: DeviceInfo,
    /// Whether the loss is scaled.
    scales: bool,
    loaded: Option<Loaded<T>>,
}

/// Everything that [`Engine::load`] brings.
#[derive(Debug)]
struct Loaded<T> {
    model: Model,
    adam: AdamConfig,
    params: Vec<T>,
    grads: Vec<T>,
    m: Vec<T>,
    v: Vec<T>,
    t: u64,
    loss_scale: LossScale,
    train: Option<Examples>,
    validation: Option<Examples>,
    test: Option<Examples>,
    class_weights: Option<Vec<T>>,
    order: Vec<u32>,
    metrics: Metrics,
    workspace: Workspace<T>,
    /// The batch in hand, time-major, and its labels.
    ids: Vec<u32>,
    labels: Vec<u32>,
}

impl<T: Real, O: HostOps<T>> HostEngine<T, O> {
    /// An engine over `ops`, which calls itself `info`.
    pub fn new(ops: O, info: DeviceInfo) -> Self {
        Self { ops, info, scales: false, loaded: None }
    }

    fn loaded(&mut self) -> Result<(&O, &mut Loaded<T>)> {
        match &mut self.loaded {
            Some(loaded) => Ok((&self.ops, loaded)),
            None => Err(checks::no_model()),
        }
    }
}

impl<T: Real> HostEngine<T, Rounded<T>> {
    /// An engine over operations that round, which calls itself `info`: with f16 it scales its loss.
    pub fn rounded(ops: Rounded<T>, info: DeviceInfo) -> Self {
        Self { scales: ops.precision().scales_loss(), ..Self::new(ops, info) }
    }
}

fn widen<T: Real>(values: &[f32]) -> Vec<T> {
    values.iter().map(|&x| T::from_f64(f64::from(x))).collect()
}

fn narrow<T: Real>(values: &[T]) -> Vec<f32> {
    values.iter().map(|x| x.as_f64() as f32).collect()
}

impl<T: Real, O: HostOps<T>> Engine for HostEngine<T, O> {
    fn info(&self) -> DeviceInfo {
        self.info.clone()
    }

    fn load(&mut self, model: &Model, state: &TrainState, adam: AdamConfig, parts: Parts<'_>) -> Result<()> {
        checks::state(model, state)?;
        checks::class_weights(model, parts.class_weights)?;
        for examples in [parts.train, parts.validation, parts.test].into_iter().flatten() {
            examples.check(model.config.vocab, model.config.classes)?;
        }
        self.loaded = Some(Loaded {
            model: model.clone(),
            adam,
            params: widen(&state.params),
            grads: vec![T::zero(); model.table.len()],
            m: widen(&state.m),
            v: widen(&state.v),
            t: state.t,
            loss_scale: state.loss_scale,
            train: parts.train.cloned(),
            validation: parts.validation.cloned(),
            test: parts.test.cloned(),
            class_weights: parts.class_weights.map(widen),
            order: Vec::new(),
            metrics: Metrics::default(),
            workspace: Workspace::new(),
            ids: Vec::new(),
            labels: Vec::new(),
        });
        Ok(())
    }

    fn set_order(&mut self, order: &[u32], metrics: Metrics) -> Result<()> {
        let (_, loaded) = self.loaded()?;
        loaded.order = order.to_vec();
        loaded.metrics = metrics;
        Ok(())
    }

    fn train(&mut self, steps: &[StepState]) -> Result<()> {
        let scales = self.scales;
        let (ops, loaded) = self.loaded()?;
        for step in steps {
            loaded.step(ops, step, scales)?;
        }
        Ok(())
    }

    fn poll(&mut self, _wait: bool) -> Result<Metrics> {
        Ok(self.loaded()?.1.metrics)
    }

    fn evaluate(&mut self, part: Part, batch_size: usize) -> Result<Metrics> {
        let (ops, loaded) = self.loaded()?;
        loaded.evaluate(ops, part, batch_size)
    }

    fn predict(&mut self, x: &[u32], rows: usize) -> Result<Vec<f32>> {
        let (ops, loaded) = self.loaded()?;
        loaded.predict(ops, x, rows)
    }

    fn read_state(&mut self) -> Result<TrainState> {
        let (_, loaded) = self.loaded()?;
        Ok(TrainState {
            params: narrow(&loaded.params),
            m: narrow(&loaded.m),
            v: narrow(&loaded.v),
            t: loaded.t,
            loss_scale: loaded.loss_scale,
        })
    }

    fn write_state(&mut self, state: &TrainState) -> Result<()> {
        let (_, loaded) = self.loaded()?;
        checks::state(&loaded.model, state)?;
        loaded.params = widen(&state.params);
        loaded.m = widen(&state.m);
        loaded.v = widen(&state.v);
        loaded.t = state.t;
        loaded.loss_scale = state.loss_scale;
        Ok(())
    }
}

impl<T: Real> Loaded<T> {
    /// One batch: forward, loss, backward, Adam; with `scales` as [`precision`](super::precision) says.
    fn step<O: HostOps<T>>(&mut self, ops: &O, step: &StepState, scales: bool) -> Result<()> {
        let Some(train) = &self.train else {
            return Err(checks::no_training_examples());
        };
        let rows = checks::batch(&self.order, step)?;
        classifier::gather(train, rows, &mut self.ids, &mut self.labels)?;
        classifier::forward(
            ops,
            &self.model,
            &self.params,
            &self.ids,
            rows.len(),
            train.t,
            &mut self.workspace,
        )?;
        classifier::loss(ops, &self.model, &self.labels, self.class_weights.as_deref(), &mut self.workspace)?;
        ops.fill(&mut self.grads, 0.0)?;
        // Whatever multiplies a row's loss multiplies its `dlogits`: the scale is one more weight of every class.
        let scaled = scales.then(|| {
            let scale = T::from_f64(f64::from(self.loss_scale.scale));
            match &self.class_weights {
                None => vec![scale; self.model.config.classes],
                Some(weights) => weights.iter().map(|&weight| weight * scale).collect(),
            }
        });
        classifier::backward(
            ops,
            &self.model,
            &self.params,
            &mut self.grads,
            &self.ids,
            &self.labels,
            scaled.as_deref().or(self.class_weights.as_deref()),
            &mut self.workspace,
        )?;
        let finite = !scales || self.grads.iter().all(|g| g.is_finite());
        if finite {
            let mut update = *step;
            if scales {
                step.check()?;
                // Adam counts the updates.
                update.t = step.t.saturating_sub(self.loss_scale.skipped).max(1);
                let inverse = T::from_f64(f64::from(self.loss_scale.inverse()));
                for g in &mut self.grads {
                    *g *= inverse;
                }
            }
            ops.adam(
                &self.adam,
                &update,
                super::Adam { grads: &self.grads, params: &mut self.params, m: &mut self.m, v: &mut self.v },
            )?;
        }
        if scales {
            self.loss_scale.update(finite);
        }
        self.t = step.t;
        self.metrics.add_batch(self.workspace.loss(), self.workspace.hits());
        Ok(())
    }

    fn evaluate<O: HostOps<T>>(&mut self, ops: &O, part: Part, batch_size: usize) -> Result<Metrics> {
        let examples = match part {
            Part::Train => &self.train,
            Part::Validation => &self.validation,
            Part::Test => &self.test,
        };
        let Some(examples) = examples else {
            return Err(checks::no_examples(part));
        };
        let batch_size = batch_size.max(1);
        // Whole batches at a time, so that the mean of batch losses is the one of batch-wise evaluation.
        let chunk = batch_size * (CHUNK_ROWS / batch_size).max(1);
        let mut metrics = Metrics::default();
        let mut rows = Vec::with_capacity(chunk.min(examples.rows()));
        for start in (0..examples.rows()).step_by(chunk) {
            rows.clear();
            // Examples hold at most 2^32 rows: an order of them is made of u32.
            rows.extend(
                (start..(start + chunk).min(examples.rows())).filter_map(|row| u32::try_from(row).ok()),
            );
            classifier::gather(examples, &rows, &mut self.ids, &mut self.labels)?;
            let count = rows.len();
            classifier::forward(
                ops,
                &self.model,
                &self.params,
                &self.ids,
                count,
                examples.t,
                &mut self.workspace,
            )?;
            classifier::loss(ops, &self.model, &self.labels, None, &mut self.workspace)?;
            let (loss, hits) = (self.workspace.loss(), self.workspace.hits());
            for (loss, hits) in loss.chunks(batch_size).zip(hits.chunks(batch_size)) {
                metrics.add_batch(loss, hits);
            }
        }
        Ok(metrics)
    }

    fn predict<O: HostOps<T>>(&mut self, ops: &O, x: &[u32], rows: usize) -> Result<Vec<f32>> {
        if rows == 0 {
            return Ok(Vec::new());
        }
        let t = checks::width(x, rows)?;
        let classes = self.model.config.classes;
        let mut probabilities = Vec::with_capacity(rows * classes);
        let mut chunk_probabilities = Vec::new();
        for chunk in x.chunks(CHUNK_ROWS * t) {
            let count = chunk.len() / t;
            classifier::to_time_major(chunk.chunks_exact(t), t, &mut self.ids);
            chunk_probabilities.clear();
            chunk_probabilities.resize(count * classes, T::zero());
            classifier::predict(
                ops,
                &self.model,
                &self.params,
                &self.ids,
                count,
                t,
                &mut self.workspace,
                &mut chunk_probabilities,
            )?;
            probabilities.extend(narrow(&chunk_probabilities));
        }
        Ok(probabilities)
    }
}
