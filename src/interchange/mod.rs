//! Models that travel: the files through which other programs hand their models to this one and get ours.
//!
//! | file | what it is | |
//! | --- | --- | --- |
//! | `.npz` | arrays under Keras' names and layouts | read, written |
//! | `.keras` | a Keras 3 model ([`keras`]) | read, written |
//! | `.weights.h5` | a Keras 3 model's weights | read, written |
//! | `.safetensors` | a PyTorch state dict ([`pytorch`]); also read: our own model files, and arrays under Keras' names | read, written |
//! | `.onnx` | a model for ONNX Runtime and others ([`onnx`]) | written |
//!
//! [`FORMATS`] is that table; a file name's ending decides, and of `.safetensors` the content. Every reader turns its file
//! into arrays under the names of the [`ParamTable`](crate::model::ParamTable), in Keras' layout; what they must have in
//! common is checked once, in [`Weights`]. Class names, words and how rows are padded ([`About`]) travel along wherever a
//! format has room for text.

#[cfg(feature = "keras")]
pub mod keras;
pub mod npz;
pub mod onnx;
pub mod pytorch;

use crate::backend::{AdamConfig, TrainState};
use crate::checkpoint::{self, Checkpoint, HeaderWords};
use crate::data::batch::Side;
use crate::data::{DataOptions, Encoding, INDEX_FROM, OOV, PAD, START, Words};
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::model::{Cell, Model, ModelConfig};
use crate::options::TrainOptions;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// The metadata key of [`About`] in every format that has metadata.
pub const ABOUT_KEY: &str = "recurve.text";

/// What a file is, by the end of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Arrays under Keras' names.
    Npz,
    /// A Keras 3 model.
    Keras,
    /// A Keras 3 model's weights.
    KerasWeights,
    /// A PyTorch state dict, or one of our own files.
    Safetensors,
    /// An ONNX model.
    Onnx,
}

/// One row of [`FORMATS`].
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The format.
    pub format: Format,
    /// The end of its files' names.
    pub suffix: &'static str,
    /// Is it read?
    pub read: bool,
    /// Is it written?
    pub written: bool,
}

/// The table of formats. Of two suffixes that fit a name the first is taken.
pub const FORMATS: [Row; 6] = [
    Row { format: Format::Npz, suffix: ".npz", read: true, written: true },
    Row { format: Format::Keras, suffix: ".keras", read: true, written: true },
    Row { format: Format::KerasWeights, suffix: ".weights.h5", read: true, written: true },
    // Keras 3 saves weights under no other ending, but files get renamed.
    Row { format: Format::KerasWeights, suffix: ".h5", read: true, written: false },
    Row { format: Format::Safetensors, suffix: ".safetensors", read: true, written: true },
    Row { format: Format::Onnx, suffix: ".onnx", read: false, written: true },
];

impl Format {
    fn find(path: &Path) -> Option<&'static Row> {
        let name = path.file_name()?.to_str()?;
        FORMATS.iter().find(|row| name.ends_with(row.suffix) && name.len() > row.suffix.len())
    }

    /// The format of a file that `flag` asks to read.
    pub fn to_read(path: &Path, flag: &str) -> Result<Self> {
        match Self::find(path) {
            Some(Row { format, read: true, .. }) => Ok(*format),
            row => {
                let what = match (row, path.extension().and_then(|e| e.to_str())) {
                    (Some(_), _) => "is of a format that is written and not read".to_string(),
                    (None, Some("pt" | "pth" | "bin")) => {
                        "is a pickle, which can run code and is not read; in PyTorch, save it again: \
                         safetensors.torch.save_file(model.state_dict(), \"model.safetensors\")"
                            .to_string()
                    }
                    _ => "has an ending that names no format".to_string(),
                };
                Err(Error::usage(
                    flag,
                    format!("{} {what}; read are {}", path.display(), list(|row| row.read)),
                ))
            }
        }
    }

    /// The format of a file that `flag` asks to write.
    pub fn to_write(path: &Path, flag: &str) -> Result<Self> {
        match Self::find(path) {
            Some(Row { format, written: true, .. }) => Ok(*format),
            _ => Err(Error::usage(
                flag,
                format!("{} does not end in one of {}", path.display(), list(|row| row.written)),
            )),
        }
    }
}

fn list(wanted: impl Fn(&Row) -> bool) -> String {
    FORMATS.iter().filter(|row| wanted(row)).map(|row| row.suffix).collect::<Vec<_>>().join(", ")
}

/// One array of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// As many as the shape says.
    pub values: Vec<f32>,
}

impl Array {
    /// `[a,b]` as `[b,a]`; anything else as it is.
    fn transposed(self) -> Self {
        let [rows, cols] = self.shape[..] else { return self };
        let mut values = Vec::with_capacity(self.values.len());
        for col in 0..cols {
            values.extend((0..rows).map(|row| self.values[row * cols + col]));
        }
        Self { shape: vec![cols, rows], values }
    }
}

/// Arrays by their names in the parameter table.
type Arrays = BTreeMap<String, Array>;

/// Parameters alone, with the shapes they imply.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    /// The model they fit.
    pub model: Model,
    /// The arena.
    pub params: Vec<f32>,
}

/// What a file said of a model.
struct Imported {
    weights: Weights,
    about: Option<About>,
    /// Ids of a row, where the file says nothing else of the text.
    maxlen: Option<usize>,
}

impl Weights {
    /// Reads any file of [`FORMATS`] that is read, a model file of ours among them; shapes are inferred.
    ///
    /// # Errors
    /// If the file is damaged, or is not of an Embedding → LSTM → Dense classifier: the first layer or array that does
    /// not fit is named. Memory stays in proportion to the file.
    pub fn load(path: &Path) -> Result<Self> {
        Ok(import(path, "--init")?.weights)
    }

    /// Writes the parameters alone, in the format of the file name.
    pub fn save(&self, path: &Path) -> Result<()> {
        export(path, self, None)
    }

    /// Fits arrays to each other; what is not in the table is ignored.
    fn from_arrays(path: &Path, arrays: &Arrays) -> Result<Self> {
        let shape = |name: &str, axes: usize| match arrays.get(name) {
            Some(Array { shape, .. }) if shape.len() == axes => Ok(shape),
            Some(Array { shape, .. }) => {
                Err(Error::format(path, name, format!("shape {shape:?}, expected {axes} axes")))
            }
            None => {
                let names: Vec<&String> = arrays.keys().take(20).collect();
                Err(Error::format(path, "", format!("no array {name}; found {names:?}")))
            }
        };
        let embeddings = shape("embedding/embeddings", 2)?;
        let config = ModelConfig {
            vocab: embeddings[0],
            embed: embeddings[1],
            cell: Cell::Lstm,
            hidden: shape("lstm/recurrent_kernel", 2)?[0],
            layers: 1,
            classes: shape("dense/bias", 1)?[0],
        };
        let model = Model::new(config).map_err(|e| Error::format(path, "", e.to_string()))?;
        let mut params = Vec::new();
        for spec in model.table.specs() {
            let array = arrays
                .get(spec.name)
                .ok_or_else(|| Error::format(path, "", format!("no array {}", spec.name)))?;
            if array.shape != spec.shape || array.values.len() != spec.len() {
                let message =
                    format!("shape {:?}, expected {:?} beside the other arrays", array.shape, spec.shape);
                return Err(Error::format(path, spec.name, message));
            }
            params.extend_from_slice(&array.values);
        }
        Ok(Self { model, params })
    }

    /// The parameters as arrays, in the table's order.
    fn arrays(&self, path: &Path) -> Result<Vec<(&'static str, Array)>> {
        if self.params.len() != self.model.table.len() {
            let found = format!("{} parameters, expected {}", self.params.len(), self.model.table.len());
            return Err(Error::format(path, "", found));
        }
        let array = |range: std::ops::Range<usize>| self.params[range].to_vec();
        let specs = self.model.table.specs().iter();
        Ok(specs.map(|s| (s.name, Array { shape: s.shape.clone(), values: array(s.range()) })).collect())
    }
}

/// What goes with the parameters: how text becomes rows of ids, and what the classes are called.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct About {
    format: u32,
    classes: Vec<String>,
    maxlen: usize,
    padding: Side,
    truncating: Side,
    /// For who reads the file elsewhere; here these are constants.
    #[serde(skip_deserializing)]
    ids: Ids,
    words: HeaderWords,
}

/// Ids that are no words; word k of the list (from 0) has `first_word` plus k.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Ids {
    padding: u32,
    start: u32,
    unknown: u32,
    first_word: u32,
}

impl Default for Ids {
    fn default() -> Self {
        Self { padding: PAD, start: START, unknown: OOV, first_word: INDEX_FROM + 1 }
    }
}

impl About {
    const FORMAT: u32 = 1;

    /// Of a model.
    pub fn new(encoding: &Encoding, classes: &[String]) -> Self {
        Self {
            format: Self::FORMAT,
            classes: classes.to_vec(),
            maxlen: encoding.maxlen,
            padding: encoding.padding,
            truncating: encoding.truncating,
            ids: Ids::default(),
            words: HeaderWords::from(&encoding.words),
        }
    }

    fn to_json(&self, path: &Path) -> Result<String> {
        serde_json::to_string(self).map_err(|e| Error::format(path, "", format!("cannot be written: {e}")))
    }

    fn from_json(json: &str) -> std::result::Result<Self, String> {
        serde_json::from_str(json).map_err(|e| format!("not recurve's: {e}"))
    }

    /// Encoding and class names, if they fit the model.
    fn open(self, config: &ModelConfig) -> std::result::Result<(Encoding, Vec<String>), String> {
        if self.format != Self::FORMAT {
            return Err(format!("format {}, expected {}; use a newer recurve", self.format, Self::FORMAT));
        }
        if self.classes.len() != config.classes {
            return Err(format!("{} class names for {} classes", self.classes.len(), config.classes));
        }
        if !(1..=DataOptions::MAXLEN_MAX).contains(&self.maxlen) {
            return Err(format!("maxlen {}; expected 1 to {}", self.maxlen, DataOptions::MAXLEN_MAX));
        }
        let words = self.words.open(config.vocab)?;
        let encoding =
            Encoding { maxlen: self.maxlen, padding: self.padding, truncating: self.truncating, words };
        Ok((encoding, self.classes))
    }
}

fn import(path: &Path, flag: &str) -> Result<Imported> {
    match Format::to_read(path, flag)? {
        Format::Npz => npz::read(path),
        Format::Safetensors => pytorch::read(path),
        #[cfg(feature = "keras")]
        Format::Keras => keras::read(path),
        #[cfg(feature = "keras")]
        Format::KerasWeights => keras::read_weights(path),
        #[cfg(not(feature = "keras"))]
        Format::Keras | Format::KerasWeights => Err(without_keras(flag)),
        // `to_read` has refused it.
        Format::Onnx => Err(Error::usage(flag, "ONNX files are written and not read")),
    }
}

#[cfg(not(feature = "keras"))]
fn without_keras(flag: &str) -> Error {
    Error::usage(
        flag,
        "this build is without Keras' files (feature `keras`); use .npz, or build it with the feature",
    )
}

/// Writes a model in the format of the file name, whole or not at all. `about` goes along where the format has room for
/// it (`.keras`, `.safetensors`, `.onnx`). Equal models give equal bytes.
pub fn export(path: &Path, weights: &Weights, about: Option<&About>) -> Result<()> {
    match Format::to_write(path, "--to")? {
        Format::Npz => npz::write(path, weights),
        Format::Safetensors => pytorch::write(path, weights, about),
        #[cfg(feature = "keras")]
        Format::Keras => keras::write(path, weights, about),
        #[cfg(feature = "keras")]
        Format::KerasWeights => keras::write_weights(path, weights),
        #[cfg(not(feature = "keras"))]
        Format::Keras | Format::KerasWeights => Err(without_keras("--to")),
        Format::Onnx => onnx::write(path, weights, about),
    }
}

/// Reads a model to predict with: a model file of ours, or any file of [`FORMATS`] that is read.
///
/// A file from elsewhere gives a model without a history. It has the words and class names that [`export`] put there, or
/// else none: classes are then called by their numbers, and rows are prepared ids.
///
/// # Errors
/// Those of [`Checkpoint::load`] and [`Weights::load`].
pub fn load_model(path: &Path) -> Result<Checkpoint> {
    // A model file may have any name.
    if matches!(Format::find(path), None | Some(Row { format: Format::Safetensors, .. })) {
        let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
        if Format::find(path).is_none() || checkpoint::is_model_file(&bytes) {
            return Checkpoint::from_bytes(&bytes, path);
        }
    }
    let Imported { weights, about, maxlen } = import(path, "--model")?;
    let config = weights.model.config;
    let (encoding, classes) = match about {
        Some(about) => about.open(&config).map_err(|message| Error::format(path, ABOUT_KEY, message))?,
        None => (
            Encoding {
                maxlen: maxlen.unwrap_or(DataOptions::MAXLEN),
                padding: Side::Pre,
                truncating: Side::Pre,
                words: Words::Prepared,
            },
            (0..config.classes).map(|class| class.to_string()).collect(),
        ),
    };
    Ok(Checkpoint {
        state: TrainState::new(weights.params),
        model: weights.model,
        adam: AdamConfig::default(),
        data: DataOptions {
            num_words: config.vocab,
            maxlen: Some(encoding.maxlen),
            padding: encoding.padding,
            truncating: encoding.truncating,
            classes: Some(config.classes),
            ..DataOptions::default()
        },
        encoding,
        classes,
        data_name: "unknown".to_string(),
        data_sha256: String::new(),
        train_rows: Vec::new(),
        options: TrainOptions::default(),
        progress: checkpoint::Progress { metrics: Metrics::default(), ..Default::default() },
    })
}

/// A dense layer of one output as two classes: `sigmoid(z)` is the second value of `softmax([0, z])`. `kernel` is `[H,C]`,
/// `bias` `[C]`; with more than one output both come back as they were.
fn two_classes(kernel: Array, bias: Array) -> (Array, Array) {
    let [hidden, 1] = kernel.shape[..] else { return (kernel, bias) };
    let values = kernel.values.iter().flat_map(|&x| [0.0, x]).collect();
    let bias = std::iter::once(0.0).chain(bias.values).collect();
    (Array { shape: vec![hidden, 2], values }, Array { shape: vec![2], values: bias })
}
