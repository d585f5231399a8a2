//! Model files: parameters, Adam's moments, progress, configuration and vocabulary in one safetensors file.
//!
//! Tensors: every parameter under its name in the [`ParamTable`](crate::model::ParamTable), `adam/m/…` and `adam/v/…`
//! of the same shapes, and `data/train_rows`, the sorted fingerprints of the training rows. Everything else is JSON
//! under the one metadata key `recurve`, so that equal models are equal bytes. Files for other programs, and theirs, are
//! in [`interchange`](crate::interchange).

use crate::backend::{AdamConfig, LossScale, TrainState};
use crate::data::text::Vocabulary;
use crate::data::{self, DataOptions, Dataset, Encoding, Words, row_fingerprint};
use crate::error::{Error, Result};
use crate::files;
use crate::metrics::{EpochMetrics, Metrics};
use crate::model::{Model, ModelConfig};
use crate::options::TrainOptions;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::Path;

/// The metadata key.
const KEY: &str = "recurve";
/// Raised when a file of the format before could be misread.
const FORMAT: u32 = 1;
const TRAIN_ROWS: &str = "data/train_rows";

/// Where a training stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Epochs that are done.
    pub epoch: u32,
    /// Batches of the epoch after them that are done.
    pub batch: u64,
    /// Metrics of those batches.
    pub metrics: Metrics,
    /// Each finished epoch.
    pub history: Vec<EpochMetrics>,
}

/// A model file's contents.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Shapes and parameter table.
    pub model: Model,
    /// Parameters, moments and step.
    pub state: TrainState,
    /// Adam's constants.
    pub adam: AdamConfig,
    /// How text becomes ids.
    pub encoding: Encoding,
    /// Class names.
    pub classes: Vec<String>,
    /// What it was trained on.
    pub data: DataOptions,
    /// The data set's short name.
    pub data_name: String,
    /// The data set's hash; empty for a model from elsewhere.
    pub data_sha256: String,
    /// Sorted [`row_fingerprint`]s of the training rows.
    pub train_rows: Vec<u32>,
    /// How it was trained.
    pub options: TrainOptions,
    /// How far.
    pub progress: Progress,
}

/// [`Checkpoint`] as JSON, less what is a tensor.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format: u32,
    config: ModelConfig,
    adam: AdamConfig,
    step: u64,
    #[serde(default)]
    loss_scale: LossScale,
    maxlen: usize,
    words: HeaderWords,
    classes: Vec<String>,
    data: DataOptions,
    data_name: String,
    data_sha256: String,
    options: TrainOptions,
    progress: Progress,
}

/// [`Words`] as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum HeaderWords {
    Known(Vec<String>),
    ImdbIndex,
    Prepared,
}

impl From<&Words> for HeaderWords {
    fn from(words: &Words) -> Self {
        match words {
            Words::Known(vocabulary) => Self::Known(vocabulary.words().to_vec()),
            Words::ImdbIndex => Self::ImdbIndex,
            Words::Prepared => Self::Prepared,
        }
    }
}

impl HeaderWords {
    /// The words, if their ids fit an embedding of `vocab` rows.
    pub(crate) fn open(self, vocab: usize) -> std::result::Result<Words, String> {
        match self {
            Self::Known(words) => {
                let vocabulary = Vocabulary::from_words(words).map_err(|e| e.to_string())?;
                if vocabulary.ids() > vocab {
                    return Err(format!("{} ids for an embedding of {vocab}", vocabulary.ids()));
                }
                Ok(Words::Known(vocabulary))
            }
            Self::ImdbIndex => Ok(Words::ImdbIndex),
            Self::Prepared => Ok(Words::Prepared),
        }
    }
}

impl Checkpoint {
    /// A training that has not begun.
    pub fn new(
        model: Model,
        params: Vec<f32>,
        adam: AdamConfig,
        dataset: &Dataset,
        options: TrainOptions,
    ) -> Self {
        let mut train_rows: Vec<u32> =
            (0..dataset.train.rows()).map(|row| row_fingerprint(dataset.train.row(row))).collect();
        train_rows.sort_unstable();
        Self {
            model,
            state: TrainState::new(params),
            adam,
            encoding: dataset.encoding.clone(),
            classes: dataset.classes.clone(),
            data: dataset.options.clone(),
            data_name: dataset.name.clone(),
            data_sha256: dataset.sha256.clone(),
            train_rows,
            options,
            progress: Progress::default(),
        }
    }

    /// Writes the file whole or not at all.
    pub fn save(&self, path: &Path) -> Result<()> {
        let bytes = self.to_bytes().map_err(|message| Error::format(path, "", message))?;
        files::write_bytes(path, &bytes)
    }

    /// The file's bytes, or what keeps this from being one.
    pub fn to_bytes(&self) -> std::result::Result<Vec<u8>, String> {
        let header = Header {
            format: FORMAT,
            config: self.model.config,
            adam: self.adam,
            step: self.state.t,
            loss_scale: self.state.loss_scale,
            maxlen: self.encoding.maxlen,
            words: HeaderWords::from(&self.encoding.words),
            classes: self.classes.clone(),
            data: self.data.clone(),
            data_name: self.data_name.clone(),
            data_sha256: self.data_sha256.clone(),
            options: self.options.clone(),
            progress: self.progress.clone(),
        };
        let json = serde_json::to_string(&header).map_err(|e| e.to_string())?;
        let mut tensors = Vec::new();
        for (prefix, arena) in
            [("", &self.state.params), ("adam/m/", &self.state.m), ("adam/v/", &self.state.v)]
        {
            tensors.extend(arena_tensors(&self.model, prefix, arena)?);
        }
        let rows = little_endian(&self.train_rows, u32::to_le_bytes);
        let shape = vec![self.train_rows.len()];
        tensors.push((TRAIN_ROWS.to_string(), Tensor { dtype: Dtype::U32, shape, bytes: rows }));
        to_safetensors(&tensors, Some((KEY, json)))
    }

    /// Reads a model file.
    ///
    /// # Errors
    /// If it is not one, is of a later format, or its tensors do not fit its configuration. Memory stays in
    /// proportion to the file.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
        Self::from_bytes(&bytes, path)
    }

    /// [`Self::load`] from bytes; `path` is for messages.
    pub fn from_bytes(bytes: &[u8], path: &Path) -> Result<Self> {
        let bad = |place: &str, message: String| Error::format(path, place, message);
        let (_, metadata) = SafeTensors::read_metadata(bytes)
            .map_err(|e| bad("", format!("not a model file: {e}; expected a safetensors file")))?;
        let json = metadata.metadata().as_ref().and_then(|m| m.get(KEY)).ok_or_else(|| {
            bad(
                "",
                "a safetensors file without recurve's configuration (weights alone?); train from it with --init".into(),
            )
        })?;
        let header: Header =
            serde_json::from_str(json).map_err(|e| bad("metadata", format!("not recurve's: {e}")))?;
        if header.format != FORMAT {
            let found = format!("format {}, expected {FORMAT}; use a newer recurve", header.format);
            return Err(bad("metadata", found));
        }
        let model = Model::new(header.config).map_err(|e| bad("configuration", e.to_string()))?;
        if header.classes.len() != header.config.classes {
            let found = format!("{} names for {} classes", header.classes.len(), header.config.classes);
            return Err(bad("classes", found));
        }
        if !(1..=DataOptions::MAXLEN_MAX).contains(&header.maxlen) {
            let found = format!("{}; expected 1 to {}", header.maxlen, DataOptions::MAXLEN_MAX);
            return Err(bad("maxlen", found));
        }
        header.options.check_ranges().map_err(|e| bad("options", e.to_string()))?;
        let progress = &header.progress;
        if progress.batch > header.step || progress.history.len() != progress.epoch as usize {
            let found = format!(
                "epoch {} with {} history rows, batch {} of step {}: these do not fit each other",
                progress.epoch,
                progress.history.len(),
                progress.batch,
                header.step
            );
            return Err(bad("progress", found));
        }
        header.loss_scale.check(header.step).map_err(|found| bad("loss scale", found))?;
        let words = header.words.open(header.config.vocab).map_err(|message| bad("vocabulary", message))?;
        let tensors = SafeTensors::deserialize(bytes).map_err(|e| bad("", e.to_string()))?;
        let arena = |prefix| read_arena(&model, &tensors, prefix).map_err(|message| bad("tensors", message));
        let state = TrainState {
            params: arena("")?,
            m: arena("adam/m/")?,
            v: arena("adam/v/")?,
            t: header.step,
            loss_scale: header.loss_scale,
        };
        let rows = tensors
            .tensor(TRAIN_ROWS)
            .ok()
            .filter(|rows| rows.dtype() == Dtype::U32)
            .ok_or_else(|| bad("tensors", format!("{TRAIN_ROWS} is missing or not U32")))?;
        let train_rows =
            rows.data().chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        Ok(Self {
            encoding: Encoding {
                maxlen: header.maxlen,
                padding: header.data.padding,
                truncating: header.data.truncating,
                words,
            },
            model,
            state,
            adam: header.adam,
            classes: header.classes,
            data: header.data,
            data_name: header.data_name,
            data_sha256: header.data_sha256,
            train_rows,
            options: header.options,
            progress: header.progress,
        })
    }

    /// Loads the data set that the model was trained on.
    ///
    /// # Errors
    /// If it cannot be loaded any more, or is not the same.
    pub fn dataset(&self) -> Result<Dataset> {
        let vocabulary = match &self.encoding.words {
            Words::Known(vocabulary) => Some(vocabulary.clone()),
            Words::ImdbIndex | Words::Prepared => None,
        };
        if self.data_sha256.is_empty() {
            return Err(Error::Failed(
                "the model's file does not say what it was trained on; name a labelled file to measure it on"
                    .into(),
            ));
        }
        let dataset = data::load(&self.data, vocabulary)?;
        if dataset.sha256 != self.data_sha256 {
            return Err(Error::Failed(format!(
                "the data ({}) is not what this model was trained on: SHA-256 {} instead of {}. Put the data back; or \
                 start from the model's weights with --init, or name a labelled file to measure it on",
                dataset.description, dataset.sha256, self.data_sha256
            )));
        }
        Ok(dataset)
    }

    /// True if a row of these ids (or one that looks the same, once in some hundred thousand) was trained on.
    pub fn trained_on(&self, ids: &[u32]) -> bool {
        self.train_rows.binary_search(&row_fingerprint(ids)).is_ok()
    }
}

/// True if these bytes are a safetensors file with our configuration in it.
pub(crate) fn is_model_file(bytes: &[u8]) -> bool {
    SafeTensors::read_metadata(bytes)
        .is_ok_and(|(_, metadata)| metadata.metadata().as_ref().is_some_and(|m| m.contains_key(KEY)))
}

/// True if a model file's tensor is no parameter.
pub(crate) fn is_training_state(name: &str) -> bool {
    name.starts_with("adam/") || name == TRAIN_ROWS
}

/// A tensor to write.
pub(crate) struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Tensor {
    pub(crate) fn f32(shape: Vec<usize>, values: &[f32]) -> Self {
        Self { dtype: Dtype::F32, shape, bytes: little_endian(values, f32::to_le_bytes) }
    }
}

fn little_endian<T: Copy>(values: &[T], bytes_of: impl Fn(T) -> [u8; 4]) -> Vec<u8> {
    let mut bytes = vec![0; 4 * values.len()];
    for (bytes, &value) in bytes.chunks_exact_mut(4).zip(values) {
        bytes.copy_from_slice(&bytes_of(value));
    }
    bytes
}

fn arena_tensors(
    model: &Model,
    prefix: &str,
    arena: &[f32],
) -> std::result::Result<Vec<(String, Tensor)>, String> {
    if arena.len() != model.table.len() {
        return Err(format!("an arena of {} elements, expected {}", arena.len(), model.table.len()));
    }
    Ok(model
        .table
        .specs()
        .iter()
        .map(|spec| (format!("{prefix}{}", spec.name), Tensor::f32(spec.shape.clone(), &arena[spec.range()])))
        .collect())
}

/// A safetensors file of these tensors, with one entry of metadata. Equal tensors give equal bytes.
pub(crate) fn to_safetensors(
    tensors: &[(String, Tensor)],
    entry: Option<(&str, String)>,
) -> std::result::Result<Vec<u8>, String> {
    let mut views = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let view =
            TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes).map_err(|e| e.to_string())?;
        views.push((name.as_str(), view));
    }
    let metadata = entry.map(|(key, json)| HashMap::from([(key.to_string(), json)]));
    safetensors::serialize(views, metadata).map_err(|e| e.to_string())
}

/// The values of a tensor of F32 or F64.
pub(crate) fn floats(view: &TensorView<'_>) -> std::result::Result<Vec<f32>, String> {
    match view.dtype() {
        Dtype::F32 => {
            Ok(view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
        }
        Dtype::F64 => Ok(view
            .data()
            .chunks_exact(8)
            .map(|b| f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]) as f32)
            .collect()),
        other => Err(format!("type {other:?}, expected F32 or F64; convert it to float32 and save again")),
    }
}

fn read_arena(
    model: &Model,
    tensors: &SafeTensors<'_>,
    prefix: &str,
) -> std::result::Result<Vec<f32>, String> {
    let mut arena = Vec::new();
    for spec in model.table.specs() {
        let name = format!("{prefix}{}", spec.name);
        let view = tensors.tensor(&name).map_err(|_| format!("{name} is missing"))?;
        if view.shape() != spec.shape || view.dtype() != Dtype::F32 {
            return Err(format!(
                "{name} is {:?} {:?}, expected F32 {:?}",
                view.dtype(),
                view.shape(),
                spec.shape
            ));
        }
        arena.extend(floats(&view)?);
    }
    Ok(arena)
}
