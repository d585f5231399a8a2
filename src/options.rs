//! How to train: what a user chooses, and the steps that follow from it.

use crate::backend::{Precision, StepState};
use crate::data::Dataset;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// How the learning rate changes from step to step, after its warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LrSchedule {
    /// It does not.
    #[default]
    Constant,
    /// From the given rate to 0 at the training's end along half a cosine: Keras' `CosineDecay`.
    Cosine,
}

impl std::fmt::Display for LrSchedule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            LrSchedule::Constant => "constant",
            LrSchedule::Cosine => "cosine",
        })
    }
}

impl std::str::FromStr for LrSchedule {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "constant" => Ok(LrSchedule::Constant),
            "cosine" => Ok(LrSchedule::Cosine),
            _ => Err("expected constant or cosine".into()),
        }
    }
}

/// What rows of a class count in the training's loss, as a user says it.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ClassWeight {
    /// All the same.
    #[default]
    None,
    /// The fewer rows a class has, the more each of them: `rows / (classes · rows of the class)`, over the classes
    /// that occur (scikit-learn's `balanced`).
    Balanced,
    /// These classes; the others count 1.
    Named(Vec<(String, f32)>),
}

impl std::fmt::Display for ClassWeight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ClassWeight::None => f.write_str("none"),
            ClassWeight::Balanced => f.write_str("balanced"),
            ClassWeight::Named(weights) => {
                let words: Vec<String> = weights.iter().map(|(name, w)| format!("{name}={w}")).collect();
                f.write_str(&words.join(","))
            }
        }
    }
}

impl std::str::FromStr for ClassWeight {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "none" => return Ok(ClassWeight::None),
            "balanced" => return Ok(ClassWeight::Balanced),
            _ => {}
        }
        let mut weights: Vec<(String, f32)> = Vec::new();
        for word in text.split(',') {
            // The last one: a class' name may hold equals signs.
            let Some((name, weight)) = word.rsplit_once('=') else {
                return Err("expected none, balanced, or NAME=WEIGHT with commas between them".into());
            };
            let weight = weight.parse().ok().filter(|w: &f32| w.is_finite() && *w >= 0.0);
            let weight =
                weight.ok_or_else(|| format!("the weight of {name:?} must be a number of at least 0"))?;
            if weights.iter().any(|(other, _)| other == name) {
                return Err(format!("{name:?} stands there twice"));
            }
            weights.push((name.to_string(), weight));
        }
        Ok(ClassWeight::Named(weights))
    }
}

impl ClassWeight {
    /// A weight for each of `classes`, given the labels of the training rows; None if all count the same.
    ///
    /// # Errors
    /// [`Error::Usage`] if a name is not a class' or no class counts anything.
    pub fn resolve(&self, classes: &[String], labels: &[u32]) -> Result<Option<Vec<f32>>> {
        let mut weights = vec![1.0; classes.len()];
        match self {
            ClassWeight::None => return Ok(None),
            ClassWeight::Balanced => {
                let mut counts = vec![0u64; classes.len()];
                for &label in labels {
                    if let Some(count) = counts.get_mut(label as usize) {
                        *count += 1;
                    }
                }
                let occur = counts.iter().filter(|count| **count > 0).count();
                for (weight, &count) in weights.iter_mut().zip(&counts).filter(|(_, count)| **count > 0) {
                    *weight = (labels.len() as f64 / (occur as f64 * count as f64)) as f32;
                }
            }
            ClassWeight::Named(named) => {
                for (name, weight) in named {
                    let Some(class) = classes.iter().position(|class| class == name) else {
                        return Err(Error::usage(
                            "--class-weight",
                            format!("{name:?} is not a class; the classes are {}", classes.join(", ")),
                        ));
                    };
                    weights[class] = *weight;
                }
                if weights.iter().all(|w| *w == 0.0) {
                    return Err(Error::usage(
                        "--class-weight",
                        "every class has weight 0: nothing could be learned",
                    ));
                }
            }
        }
        Ok(Some(weights))
    }
}

/// How to train.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainOptions {
    /// Passes over the training rows, in all.
    pub epochs: u32,
    /// Rows of a batch; the last one of an epoch may be smaller.
    pub batch_size: usize,
    /// Learning rate; with a warm-up or a schedule, the highest one.
    pub lr: f32,
    /// What becomes of it.
    #[serde(default)]
    pub lr_schedule: LrSchedule,
    /// Steps in which it rises from 0, linearly; 0 is off.
    #[serde(default)]
    pub warmup_steps: u64,
    /// Slots of the shuffle buffer; 0 is the file's order.
    pub shuffle_buffer: usize,
    /// Seed of the initial weights and of every order.
    pub seed: u64,
    /// Decoupled weight decay; 0 is off.
    pub weight_decay: f32,
    /// Largest global norm of the gradient; 0 is off.
    pub clip_norm: f32,
    /// What a training row of each class counts in loss and gradient, see [`ClassWeight::resolve`]; None is 1 for all.
    #[serde(default)]
    pub class_weights: Option<Vec<f32>>,
    /// What the operands of products are stored in.
    #[serde(default)]
    pub precision: Precision,
    /// Stop after this many epochs without a lower validation loss.
    pub patience: Option<u32>,
}

impl Default for TrainOptions {
    /// The reference program's.
    fn default() -> Self {
        Self {
            epochs: 10,
            batch_size: 32,
            lr: 0.001,
            lr_schedule: LrSchedule::Constant,
            warmup_steps: 0,
            shuffle_buffer: 10_000,
            seed: 0,
            weight_decay: 0.0,
            clip_norm: 0.0,
            class_weights: None,
            precision: Precision::F32,
            patience: None,
        }
    }
}

impl TrainOptions {
    /// The largest `--batch-size`.
    pub const BATCH_SIZE_MAX: usize = 1 << 20;

    /// Refuses values out of range, and early stopping on data without a validation part.
    pub fn check(&self, dataset: &Dataset) -> Result<()> {
        self.check_ranges()?;
        let total = self.total_steps(dataset.train.rows());
        if self.warmup_steps > 0 && self.warmup_steps >= total {
            return Err(Error::usage(
                "--warmup-steps",
                format!(
                    "{} steps of warm-up do not fit: the training has {total} ({} epochs of {})",
                    self.warmup_steps,
                    self.epochs,
                    self.batches(dataset.train.rows())
                ),
            ));
        }
        if self.patience.is_some() && dataset.validation.is_none() {
            return Err(Error::usage(
                "--patience",
                "early stopping needs a validation part; add --validation-fraction 0.1 (the test part never chooses)",
            ));
        }
        Ok(())
    }

    /// Refuses values out of range.
    pub fn check_ranges(&self) -> Result<()> {
        let range = |flag: &str, found: String, expected: &str| {
            Err(Error::usage(flag, format!("{found} is out of range; expected {expected}")))
        };
        if !(1..=Self::BATCH_SIZE_MAX).contains(&self.batch_size) {
            return range("--batch-size", self.batch_size.to_string(), "1 to 1048576");
        }
        if !(self.lr.is_finite() && self.lr > 0.0) {
            return range("--lr", self.lr.to_string(), "a number above 0");
        }
        if !(self.weight_decay.is_finite() && self.weight_decay >= 0.0) {
            return range("--weight-decay", self.weight_decay.to_string(), "a number of at least 0");
        }
        if !(self.clip_norm.is_finite() && self.clip_norm >= 0.0) {
            return range("--clip-norm", self.clip_norm.to_string(), "a number of at least 0");
        }
        if self.epochs == 0 {
            return range("--epochs", "0".into(), "at least 1");
        }
        if self.patience == Some(0) {
            return range("--patience", "0".into(), "at least 1");
        }
        Ok(())
    }

    /// Batches of an epoch over `rows` rows.
    pub fn batches(&self, rows: usize) -> usize {
        rows.div_ceil(self.batch_size)
    }

    /// Steps of all epochs over `rows` rows.
    pub fn total_steps(&self, rows: usize) -> u64 {
        u64::from(self.epochs).saturating_mul(self.batches(rows) as u64)
    }

    /// The learning rate of the step that follows `done` steps of a training of `total`.
    ///
    /// With `w` steps of warm-up it is `lr·done/w` in them, so that the first step has rate 0, and then `lr`, or
    /// `lr·(1 + cos(pi·(done − w)/(total − w)))/2`: Keras' `CosineDecay(0, total − w, warmup_target=lr,
    /// warmup_steps=w)`. Computed in f64.
    pub fn learning_rate(&self, done: u64, total: u64) -> f32 {
        let lr = f64::from(self.lr);
        if done < self.warmup_steps {
            return (lr * (done as f64 / self.warmup_steps as f64)) as f32;
        }
        match self.lr_schedule {
            LrSchedule::Constant => self.lr,
            LrSchedule::Cosine => {
                let (done, total) = (done - self.warmup_steps, total.saturating_sub(self.warmup_steps));
                let fraction = done.min(total) as f64 / total.max(1) as f64;
                (lr * 0.5 * (1.0 + (std::f64::consts::PI * fraction).cos())) as f32
            }
        }
    }

    /// The steps of one epoch over `rows` rows, the first being step `t + 1` of the training.
    pub fn steps(&self, rows: usize, t: u64) -> Result<Vec<StepState>> {
        let total = self.total_steps(rows);
        (0..self.batches(rows))
            .map(|batch| {
                let done = t + batch as u64;
                let start = batch * self.batch_size;
                let size = self.batch_size.min(rows - start);
                let narrow = |n: usize| {
                    u32::try_from(n).map_err(|_| Error::Failed(format!("{rows} rows are more than 2^32")))
                };
                Ok(StepState {
                    weight_decay: self.weight_decay,
                    clip_norm: self.clip_norm,
                    ..StepState::new(done + 1, self.learning_rate(done, total), narrow(start)?, narrow(size)?)
                })
            })
            .collect()
    }
}
