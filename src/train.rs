//! The epoch loop. It sees a back end only as an [`Engine`], a model file only as a [`Checkpoint`], and whoever
//! watches only as an [`Observer`].

pub use crate::metrics::EpochMetrics;
pub use crate::options::{ClassWeight, LrSchedule, TrainOptions};

use crate::backend::{Engine, Part, Parts};
use crate::checkpoint::Checkpoint;
use crate::data::Dataset;
use crate::data::batch::epoch_order;
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// The seconds of one epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EpochSeconds {
    /// Training alone.
    pub train_seconds: f64,
    /// Both evaluations.
    pub eval_seconds: f64,
}

/// Who watches a training, keeps its files and may stop it.
pub trait Observer {
    /// Some batches of epoch `epoch` (1-based) are done.
    fn batches(&mut self, epoch: u32, metrics: &Metrics, of: u64, elapsed: Duration) {
        let _ = (epoch, metrics, of, elapsed);
    }

    /// An epoch is done; `checkpoint` holds it, and `best` says that it is the best so far.
    fn epoch(&mut self, checkpoint: &Checkpoint, seconds: EpochSeconds, best: bool) -> Result<()> {
        let _ = (checkpoint, seconds, best);
        Ok(())
    }

    /// [`Self::stop`] was heeded in the middle of an epoch; `checkpoint` holds the state to go on from.
    fn interrupted(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let _ = checkpoint;
        Ok(())
    }

    /// True to stop as soon as the batches in flight are done.
    fn stop(&self) -> bool {
        false
    }
}

/// Nobody watches.
impl Observer for () {}

/// Why a training ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// All epochs are done.
    Finished,
    /// The validation loss no longer fell.
    Patience,
    /// The observer said so.
    Interrupted,
}

/// What a training cost.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// Why it ended.
    pub ending: Ending,
    /// Steps of this run (not of the ones it continued).
    pub steps: u64,
    /// Seconds until the engine held model and data.
    pub load_seconds: f64,
}

/// Batches between two looks at the clock: as many as take about this long, so that a key press is heeded soon and
/// a device is rarely waited for.
const POLL: Duration = Duration::from_millis(60);

/// Trains `checkpoint` on `engine` until its options' epochs are done, from wherever its progress stands. Afterwards
/// `checkpoint` holds the final state.
///
/// The same checkpoint gives the same bits on the same back end, whether the epochs ran in one call or were stopped
/// and continued, and for any number of threads.
///
/// # Errors
/// What the engine or the observer returns; [`Error::Diverged`] if a loss is not finite, with `checkpoint` as it was
/// after the last whole epoch.
pub fn train(
    engine: &mut dyn Engine,
    checkpoint: &mut Checkpoint,
    dataset: &Dataset,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    let options = checkpoint.options.clone();
    options.check(dataset)?;
    let begun = Instant::now();
    engine.load(
        &checkpoint.model,
        &checkpoint.state,
        checkpoint.adam,
        Parts {
            train: Some(&dataset.train),
            validation: dataset.validation.as_ref(),
            test: dataset.test.as_ref(),
            class_weights: options.class_weights.as_deref(),
        },
    )?;
    let mut outcome =
        Outcome { ending: Ending::Finished, steps: 0, load_seconds: begun.elapsed().as_secs_f64() };
    let rows = dataset.train.rows();
    let narrow_rows =
        u32::try_from(rows).map_err(|_| Error::Failed(format!("{rows} rows are more than 2^32")))?;

    // Batches between two polls; an epoch begins with what the one before came to.
    let mut chunk = 1;
    while checkpoint.progress.epoch < options.epochs {
        if patience_is_over(checkpoint, &options) {
            outcome.ending = Ending::Patience;
            return Ok(outcome);
        }
        if observer.stop() {
            observer.interrupted(checkpoint)?;
            outcome.ending = Ending::Interrupted;
            return Ok(outcome);
        }
        let number = checkpoint.progress.epoch + 1;
        let done = checkpoint.progress.batch;
        let order = epoch_order(narrow_rows, options.shuffle_buffer, options.seed, checkpoint.progress.epoch);
        engine.set_order(&order, checkpoint.progress.metrics)?;
        // `state.t` counts the batches of this epoch that are done already.
        let steps = options.steps(rows, checkpoint.state.t - done)?;
        let of = steps.len() as u64;
        let mut rest = steps.get(usize::try_from(done).unwrap_or(usize::MAX)..).unwrap_or_default();
        let epoch_begun = Instant::now();
        let mut metrics = checkpoint.progress.metrics;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(chunk.min(rest.len()));
            let chunk_begun = Instant::now();
            engine.train(now)?;
            metrics = engine.poll(true)?;
            rest = later;
            outcome.steps += now.len() as u64;
            if !metrics.loss_sum.is_finite() {
                return Err(diverged(number, metrics.batches, metrics.loss_sum));
            }
            observer.batches(number, &metrics, of, epoch_begun.elapsed());
            if observer.stop() && !rest.is_empty() {
                checkpoint.state = engine.read_state()?;
                checkpoint.progress.batch = of - rest.len() as u64;
                checkpoint.progress.metrics = metrics;
                observer.interrupted(checkpoint)?;
                outcome.ending = Ending::Interrupted;
                return Ok(outcome);
            }
            let took = chunk_begun.elapsed();
            chunk = if took < POLL / 2 {
                // The epoch's last batches may be fewer, and say nothing of more.
                if now.len() == chunk { chunk * 2 } else { chunk }
            } else if took > POLL * 2 {
                (chunk / 2).max(1)
            } else {
                chunk
            };
        }
        let train_seconds = epoch_begun.elapsed().as_secs_f64();

        let evaluation_begun = Instant::now();
        let mut evaluate = |part: Part, there: bool| -> Result<Option<Metrics>> {
            if !there {
                return Ok(None);
            }
            let metrics = engine.evaluate(part, options.batch_size)?;
            if !metrics.loss_sum.is_finite() {
                return Err(diverged(number, of, metrics.loss_sum));
            }
            Ok(Some(metrics))
        };
        let validation = evaluate(Part::Validation, dataset.validation.is_some())?;
        let test = evaluate(Part::Test, dataset.test.is_some())?;
        let eval_seconds = evaluation_begun.elapsed().as_secs_f64();

        let epoch = EpochMetrics {
            epoch: number,
            loss: metrics.loss(),
            accuracy: metrics.accuracy(),
            validation_loss: validation.map(|m| m.loss()),
            validation_accuracy: validation.map(|m| m.accuracy()),
            test_loss: test.map(|m| m.loss()),
            test_accuracy: test.map(|m| m.accuracy()),
        };
        checkpoint.state = engine.read_state()?;
        let progress = &mut checkpoint.progress;
        progress.epoch = number;
        progress.batch = 0;
        progress.metrics = Metrics::default();
        progress.history.push(epoch);
        let best = best_epoch(&progress.history).is_some_and(|best| best.epoch == number);
        observer.epoch(checkpoint, EpochSeconds { train_seconds, eval_seconds }, best)?;
    }
    Ok(outcome)
}

/// The epoch whose model is kept as the best: the first with the lowest validation loss, which asks for honest
/// probabilities and not for right answers alone; where there is no validation part, with the lowest training loss.
/// The test part never chooses.
pub fn best_epoch(history: &[EpochMetrics]) -> Option<&EpochMetrics> {
    // Losses are finite: training stops where one is not.
    let judged_by = |epoch: &EpochMetrics| epoch.validation_loss.unwrap_or(epoch.loss);
    history.iter().min_by(|a, b| judged_by(a).total_cmp(&judged_by(b)))
}

/// True if the validation loss has not fallen below its lowest for the given number of epochs.
fn patience_is_over(checkpoint: &Checkpoint, options: &TrainOptions) -> bool {
    match (options.patience, best_epoch(&checkpoint.progress.history)) {
        (Some(patience), Some(best)) => checkpoint.progress.epoch >= best.epoch.saturating_add(patience),
        _ => false,
    }
}

fn diverged(epoch: u32, batch: u64, loss: f64) -> Error {
    Error::Diverged { epoch, batch, loss, kept: None }
}
