//! Keras 3's files.
//!
//! `.keras` is a ZIP of `config.json` (the layers), `model.weights.h5` (HDF5) and `metadata.json`; `.weights.h5` is the second
//! alone. Weights lie by the layers' classes, whatever their names: `layers/embedding/vars/0`, `layers/lstm/cell/vars/0` to
//! `2` (kernel, recurrent kernel, bias), `layers/dense/vars/0` and `1`. Layouts and gate order are ours.
//!
//! Read is a Sequential or functional chain of one `Embedding`, one `LSTM` and one `Dense`, with `Input` before and dropout
//! (which does nothing when predicting) between; whatever would make it compute something else (`mask_zero`, another
//! activation, `return_sequences`, …) is refused by the name of the first such layer. `Dense(1, activation="sigmoid")` is
//! read as the second of two classes. A `.weights.h5` file does not say what its layers compute; they are taken as Keras'
//! defaults, and a dense layer of one output as a sigmoid.
//!
//! HDF5 goes through the crate `hdf5-pure`, which needs no system library. It sees bytes that are in memory already, and of a
//! dataset only what was checked first: floats in one piece inside of the file, as Keras stores them, so that nothing is
//! allocated by a number in it. `tests/hostile_interchange.rs` holds it to that; versions of it before 1.0 may differ.

use super::{ABOUT_KEY, About, Array, Arrays, Imported, Weights, two_classes};
use crate::archive::{Archive, Kind};
use crate::data::DataOptions;
use crate::error::{Error, Result};
use crate::files;
use hdf5_pure::{AttrValue, DType, File, FileBuilder, Layout};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

const KIND: Kind = Kind { name: ".keras", maker: "Keras 3 (model.save)" };
const CONFIG: &str = "config.json";
const METADATA: &str = "metadata.json";
const WEIGHTS: &str = "model.weights.h5";
/// The largest `config.json` that is read; three layers take 4 kB.
const MAX_CONFIG: u64 = 1 << 20;
/// The largest `metadata.json`: ours holds the words.
const MAX_METADATA: u64 = 64 << 20;
/// The first Keras whose files look so; the same layers load in all later ones.
const KERAS_VERSION: &str = "3.0.0";

/// What a configuration says besides shapes.
#[derive(Clone, Copy, Debug)]
struct Plan {
    lstm_bias: bool,
    dense_bias: bool,
    maxlen: Option<usize>,
}

pub(super) fn read(path: &Path) -> Result<Imported> {
    let mut archive = Archive::open(path, KIND)?;
    let config = archive.read(CONFIG, MAX_CONFIG)?;
    let config: Value = serde_json::from_slice(&config)
        .map_err(|e| Error::format(path, CONFIG, format!("{e}; expected a model's configuration")))?;
    let plan = plan(&config).map_err(|(place, message)| {
        let place = if place.is_empty() { CONFIG.to_string() } else { format!("{CONFIG}, {place}") };
        Error::format(path, place, message)
    })?;
    drop(config);
    let about = if archive.names()?.iter().any(|name| name == METADATA) {
        let metadata = archive.read(METADATA, MAX_METADATA)?;
        let metadata: Metadata = serde_json::from_slice(&metadata)
            .map_err(|e| Error::format(path, METADATA, format!("{e}; expected Keras' metadata")))?;
        metadata.about
    } else {
        None
    };
    let arrays = arrays(path, archive.read(WEIGHTS, u64::MAX)?, plan)?;
    Ok(Imported { weights: Weights::from_arrays(path, &arrays)?, about, maxlen: plan.maxlen })
}

pub(super) fn read_weights(path: &Path) -> Result<Imported> {
    let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
    let plan = Plan { lstm_bias: true, dense_bias: true, maxlen: None };
    let arrays = arrays(path, bytes, plan)?;
    Ok(Imported { weights: Weights::from_arrays(path, &arrays)?, about: None, maxlen: None })
}

/// What we read of `metadata.json`.
#[derive(serde::Deserialize)]
struct Metadata {
    #[serde(rename = "recurve.text")]
    about: Option<About>,
}

// Configuration --------------------------------------------------------------------------------------------------------

/// Which layer does not fit (empty: the model), and why.
type Misfit = (String, String);

/// Checks that the model computes what ours does.
fn plan(config: &Value) -> std::result::Result<Plan, Misfit> {
    const EXPECTED: &str = "expected a chain of one Embedding, one LSTM and one Dense layer";
    let model = config["class_name"].as_str().unwrap_or("?");
    let of_model = |message: String| (String::new(), message);
    let functional = match model {
        "Sequential" => false,
        "Functional" | "Model" => true,
        other => {
            return Err(of_model(format!(
                "a model of class {}; expected Sequential or Functional",
                short(other)
            )));
        }
    };
    let layers = config["config"]["layers"]
        .as_array()
        .ok_or_else(|| of_model(format!("no list of layers; {EXPECTED}")))?;
    let mut plan = Plan { lstm_bias: true, dense_bias: true, maxlen: None };
    // How far the chain has come, and the layer before.
    let mut chain = ["Embedding", "LSTM", "Dense"].iter();
    let mut before: Option<&str> = None;
    for layer in layers {
        let class = layer["class_name"].as_str().unwrap_or("?");
        let config = &layer["config"];
        let name = config["name"].as_str().unwrap_or("?");
        let misfit = |message: String| (format!("layer {} ({})", short(name), short(class)), message);
        if functional {
            inputs_are(layer, before).map_err(misfit)?;
        }
        before = Some(name);
        match class {
            "InputLayer" => {
                let shape = &config["batch_shape"];
                let time = shape[1].as_u64().and_then(|t| usize::try_from(t).ok());
                plan.maxlen = time.filter(|t| (1..=DataOptions::MAXLEN_MAX).contains(t));
                continue;
            }
            // They do nothing when predicting.
            "Dropout" | "SpatialDropout1D" => continue,
            _ => {}
        }
        match chain.next() {
            Some(next) if *next == class => {}
            Some(next) => return Err(misfit(format!("stands where {next} should; {EXPECTED}"))),
            None => return Err(misfit(format!("stands after the Dense layer; {EXPECTED}"))),
        }
        if !config["quantization_config"].is_null() {
            return Err(misfit("is quantised; expected float32 weights".into()));
        }
        let must = |key: &str, wanted: &Value, why: &str| match &config[key] {
            found if found == wanted || found.is_null() => Ok(()),
            found => Err(misfit(format!("{key} is {}, expected {wanted}: {why}", short(&found.to_string())))),
        };
        match class {
            "Embedding" => must(
                "mask_zero",
                &json!(false),
                "here padding is an id like the others and not skipped; train it without the mask",
            )?,
            "LSTM" => {
                for key in ["return_sequences", "return_state", "go_backwards", "stateful"] {
                    must(
                        key,
                        &json!(false),
                        "the classifier reads the last state of one pass from the left",
                    )?;
                }
                for (key, wanted) in [("activation", "tanh"), ("recurrent_activation", "sigmoid")] {
                    let found = activation(&config[key]);
                    if found != wanted {
                        let message = format!(
                            "{key} is {}, which is not computed here; expected {wanted}",
                            short(found)
                        );
                        return Err(misfit(message));
                    }
                }
                plan.lstm_bias = config["use_bias"].as_bool().unwrap_or(true);
            }
            _ => {
                let units = config["units"].as_u64().unwrap_or(0);
                match (activation(&config["activation"]), units) {
                    ("softmax", 2..) | ("sigmoid", 1) => {}
                    ("softmax", _) => {
                        return Err(misfit(format!(
                            "a softmax over {units} output is the constant 1.0; expected 2 or more outputs, or \
                             activation sigmoid"
                        )));
                    }
                    (found, _) => {
                        return Err(misfit(format!(
                            "activation is {} over {units} outputs, expected softmax, or sigmoid over one; if its \
                             outputs are logits, save the weights alone (model.save_weights): they are read as such",
                            short(found)
                        )));
                    }
                }
                plan.dense_bias = config["use_bias"].as_bool().unwrap_or(true);
            }
        }
    }
    match chain.next() {
        None => Ok(plan),
        Some(missing) => Err(of_model(format!("there is no {missing} layer; {EXPECTED}"))),
    }
}

/// Checks that a functional model's layer has one input, the layer before.
fn inputs_are(layer: &Value, before: Option<&str>) -> std::result::Result<(), String> {
    let nodes = layer["inbound_nodes"].as_array().map_or(&[][..], Vec::as_slice);
    let Some(before) = before else {
        let first = if nodes.is_empty() {
            Ok(())
        } else {
            Err("has an input, but no layer is before it".to_string())
        };
        return first;
    };
    let [node] = nodes else {
        return Err(format!("is used {} times, expected once, on the layer before it", nodes.len()));
    };
    let arguments = node["args"].as_array().map_or(&[][..], Vec::as_slice);
    let [argument] = arguments else {
        return Err(format!("has {} inputs, expected one, the layer before it", arguments.len()));
    };
    if argument["config"]["keras_history"][0].as_str() != Some(before) {
        return Err(format!("does not read {} alone, the layer before it", short(before)));
    }
    for (key, value) in node["kwargs"].as_object().into_iter().flatten() {
        if !value.is_null() && key != "training" {
            return Err(format!("is called with {}, which is not computed here", short(key)));
        }
    }
    Ok(())
}

/// An activation's name: a string, or a function's configuration. None is linear.
fn activation(value: &Value) -> &str {
    let name = value.as_str().or_else(|| value["config"].as_str());
    if value.is_null() { "linear" } else { name.unwrap_or("a function of its own") }
}

/// Untrusted text in a message: escaped, and cut where it is long.
fn short(text: &str) -> String {
    let mut shown: String = text.chars().take(60).flat_map(char::escape_debug).collect();
    if text.chars().nth(60).is_some() {
        shown.push('…');
    }
    shown
}

/// Our model as Keras' configuration. What is left out has Keras' default.
fn config(weights: &Weights) -> Value {
    let c = weights.model.config;
    let layer = |class: &str, config: Value, shape: Value| {
        json!({
            "module": "keras.layers", "class_name": class, "config": config, "registered_name": null,
            "build_config": { "input_shape": shape },
        })
    };
    json!({
        "module": "keras",
        "class_name": "Sequential",
        "config": {
            "name": "recurve",
            "layers": [
                {
                    "module": "keras.layers", "class_name": "InputLayer", "registered_name": null,
                    "config": { "batch_shape": [null, null], "dtype": "int32", "name": "ids" },
                },
                layer(
                    "Embedding",
                    json!({ "name": "embedding", "input_dim": c.vocab, "output_dim": c.embed, "mask_zero": false }),
                    json!([null, null]),
                ),
                layer(
                    "LSTM",
                    json!({
                        "name": "lstm", "units": c.hidden, "activation": "tanh", "recurrent_activation": "sigmoid",
                        "use_bias": true, "return_sequences": false,
                    }),
                    json!([null, null, c.embed]),
                ),
                layer(
                    "Dense",
                    json!({ "name": "dense", "units": c.classes, "activation": "softmax", "use_bias": true }),
                    json!([null, c.hidden]),
                ),
            ],
            "build_input_shape": [null, null],
        },
        "registered_name": null,
        "build_config": { "input_shape": [null, null] },
        "compile_config": {},
    })
}

// Weights --------------------------------------------------------------------------------------------------------------

/// The arrays of a `.weights.h5` file.
fn arrays(path: &Path, bytes: Vec<u8>, plan: Plan) -> Result<Arrays> {
    let len = bytes.len() as u64;
    let bad = |place: &str, message: String| Error::format(path, place, message);
    let file = File::from_bytes(bytes).map_err(|e| {
        bad("", format!("not an HDF5 file: {e}; expected Keras 3's weights (model.save_weights)"))
    })?;
    let layers = file.group("layers").and_then(|group| group.groups()).map_err(|e| {
        bad(
            "",
            format!(
                "no group `layers` ({e}); expected the weights of a Sequential or functional Keras 3 model"
            ),
        )
    })?;
    let passed_over = ["input_layer", "dropout", "spatial_dropout1d"];
    for layer in &layers {
        let idle = passed_over.iter().any(|known| {
            layer.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
        });
        if !idle && !["embedding", "lstm", "dense"].contains(&layer.as_str()) {
            let message = "expected the layers embedding, lstm and dense, each once";
            return Err(bad(&format!("layer {}", short(layer)), message.to_string()));
        }
    }
    let read = |place: &str| array(&file, len, place).map_err(|message| bad(place, message));
    let mut arrays = Arrays::new();
    for (name, place) in [
        ("embedding/embeddings", "layers/embedding/vars/0"),
        ("lstm/kernel", "layers/lstm/cell/vars/0"),
        ("lstm/recurrent_kernel", "layers/lstm/cell/vars/1"),
    ] {
        arrays.insert(name.to_string(), read(place)?);
    }
    let zeros = |width: usize| Array { shape: vec![width], values: vec![0.0; width] };
    // The kernel's own width: what a file claims was compared with its length when the kernel was read.
    let width = |array: &Array| array.shape.last().copied().unwrap_or(0).min(array.values.len());
    let bias = if plan.lstm_bias {
        read("layers/lstm/cell/vars/2")?
    } else {
        zeros(arrays.get("lstm/kernel").map_or(0, width))
    };
    arrays.insert("lstm/bias".to_string(), bias);
    let kernel = read("layers/dense/vars/0")?;
    let bias = if plan.dense_bias { read("layers/dense/vars/1")? } else { zeros(width(&kernel)) };
    let (kernel, bias) = two_classes(kernel, bias);
    arrays.insert("dense/kernel".to_string(), kernel);
    arrays.insert("dense/bias".to_string(), bias);
    Ok(arrays)
}

/// One dataset of floats, stored in one piece inside of a file of `len` bytes.
fn array(file: &File, len: u64, place: &str) -> std::result::Result<Array, String> {
    let dataset = file.dataset(place).map_err(|e| format!("it cannot be read: {e}"))?;
    let failed = |e: hdf5_pure::Error| format!("it cannot be read: {e}; the file is damaged");
    let shape = dataset.shape().map_err(failed)?;
    let size = match dataset.dtype().map_err(failed)? {
        DType::F32 => 4,
        DType::F64 => 8,
        other => return Err(format!("type {}, expected f32 or f64", short(&other.to_string()))),
    };
    let stored = match dataset.layout().map_err(failed)? {
        Layout::Contiguous { address: Some(_), size } | Layout::Compact { size } => size,
        Layout::Contiguous { address: None, .. } => return Err("it was never written".to_string()),
        _ => return Err("stored in chunks; expected one piece, as Keras writes it".to_string()),
    };
    let needed = shape.iter().try_fold(size, |product: u64, &dim| product.checked_mul(dim));
    if needed != Some(stored) || stored > len {
        return Err(format!("shape {shape:?} in {stored} bytes of a file of {len}; the file is damaged"));
    }
    let values: Vec<f32> = if size == 4 {
        dataset.read_f32().map_err(failed)?
    } else {
        dataset.read_f64().map_err(failed)?.into_iter().map(|x| x as f32).collect()
    };
    let shape: Option<Vec<usize>> = shape.iter().map(|&dim| usize::try_from(dim).ok()).collect();
    let shape = shape.ok_or("larger than this machine can address")?;
    Ok(Array { shape, values })
}

/// Our parameters as Keras' HDF5 file.
fn hdf5(path: &Path, weights: &Weights) -> Result<Vec<u8>> {
    let arrays = weights.arrays(path)?;
    let mut builder = FileBuilder::new();
    // The model has no variables besides its layers', but older versions of Keras 3 (3.0.5, 3.5.0) insist on the group.
    let mut vars = builder.create_group("vars");
    vars.set_attr("name", AttrValue::String("recurve".to_string()));
    builder.add_group(vars.finish());
    let mut layers = builder.create_group("layers");
    for layer in ["embedding", "lstm", "dense"] {
        let mut group = layers.create_group(layer);
        let mut vars = group.create_group("vars");
        vars.set_attr("name", AttrValue::String(layer.to_string()));
        // A recurrent layer's variables are its cell's.
        let mut cell = (layer == "lstm").then(|| group.create_group("cell"));
        let mut cell_vars = cell.as_mut().map(|cell| cell.create_group("vars"));
        if let Some(cell_vars) = &mut cell_vars {
            cell_vars.set_attr("name", AttrValue::String("lstm_cell".to_string()));
        }
        let own = arrays.iter().filter(|(name, _)| name.split('/').next() == Some(layer));
        for (number, (_, array)) in own.enumerate() {
            let shape: Vec<u64> = array.shape.iter().map(|&dim| dim as u64).collect();
            let group = cell_vars.as_mut().unwrap_or(&mut vars);
            group.create_dataset(&number.to_string()).with_f32_data(&array.values).with_shape(&shape);
        }
        if let (Some(mut cell), Some(cell_vars)) = (cell, cell_vars) {
            cell.add_group(cell_vars.finish());
            group.add_group(cell.finish());
        }
        group.add_group(vars.finish());
        layers.add_group(group.finish());
    }
    builder.add_group(layers.finish());
    builder.finish().map_err(|e| Error::format(path, "", format!("cannot be written as HDF5: {e}")))
}

pub(super) fn write_weights(path: &Path, weights: &Weights) -> Result<()> {
    files::write_bytes(path, &hdf5(path, weights)?)
}

pub(super) fn write(path: &Path, weights: &Weights, about: Option<&About>) -> Result<()> {
    let json = |value: &Value| {
        serde_json::to_vec(value).map_err(|e| Error::format(path, "", format!("cannot be written: {e}")))
    };
    // No date, which Keras does not read: equal models are equal bytes.
    let mut metadata = json!({ "keras_version": KERAS_VERSION });
    if let Some(about) = about {
        metadata[ABOUT_KEY] = serde_json::to_value(about)
            .map_err(|e| Error::format(path, "", format!("cannot be written: {e}")))?;
    }
    let members =
        [(METADATA, json(&metadata)?), (CONFIG, json(&config(weights))?), (WEIGHTS, hdf5(path, weights)?)];
    files::write_atomically(path, |out| {
        let failed = |error: zip::result::ZipError| match error {
            zip::result::ZipError::Io(source) => Error::io(path, "write")(source),
            error => Error::format(path, "", format!("cannot be written: {error}")),
        };
        let mut zip = ZipWriter::new(out);
        for (name, bytes) in &members {
            // Stored, as Keras does it.
            let options = SimpleFileOptions::default()
                .compression_method(CompressionMethod::Stored)
                .last_modified_time(zip::DateTime::default())
                .unix_permissions(0o644)
                .system(zip::System::Unix)
                .large_file(bytes.len() >= (1 << 31));
            zip.start_file(*name, options).map_err(failed)?;
            zip.write_all(bytes).map_err(Error::io(path, "write"))?;
        }
        zip.finish().map(drop).map_err(failed)
    })
}
