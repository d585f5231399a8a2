//! Models that travel, against files that Keras and PyTorch made (tests/fixtures/interchange, by tests/interop/frameworks.py)
//! and, where `scripts/interop` has installed them, against Keras, ONNX Runtime and PyTorch themselves.
// clippy.toml allows it in tests, but clippy does not count their helpers as such.
#![allow(clippy::unwrap_used)]

use recurve::backend::{AdamConfig, Device, Parts, TrainState};
use recurve::checkpoint::Checkpoint;
use recurve::data::npz::{NpzArchive, Values};
use recurve::data::text::Vocabulary;
use recurve::data::{self, DataOptions, Dataset, Source, Words};
use recurve::interchange::{About, FORMATS, Format, Weights, export, load_model};
use recurve::model::{Model, ModelConfig};
use recurve::rng::{Purpose, Rng};
use recurve::train::{TrainOptions, train};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Of probabilities, between programs that sum in different orders in f32: what was asked of the project. Differences that
/// are met are a tenth of it and less, and printed; a wrong gate order, bias or layout gives 1e-2 and more with these weights.
const TOLERANCE: f64 = 1e-5;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/interchange")
}

fn array(path: &Path, name: &str) -> (Vec<usize>, Values) {
    let array = NpzArchive::open(path).unwrap().read(name).unwrap();
    (array.shape, array.values)
}

fn floats(path: &Path, name: &str) -> Vec<f64> {
    let (_, Values::Float(values)) = array(path, name) else { panic!("{name} is not of floats") };
    values
}

fn ids(path: &Path) -> (usize, Vec<u32>) {
    let (shape, Values::Int(values)) = array(path, "ids") else { panic!("ids are not integers") };
    (shape[0], values.iter().map(|&id| u32::try_from(id).unwrap()).collect())
}

fn predict(weights: &Weights, ids: &[u32], rows: usize) -> Vec<f32> {
    let mut engine = Device::Cpu.engine(1).unwrap();
    let state = TrainState::new(weights.params.clone());
    engine.load(&weights.model, &state, AdamConfig::default(), Parts::default()).unwrap();
    engine.predict(ids, rows).unwrap()
}

/// The largest difference of probabilities, which must stay within the tolerance.
fn compare(what: &str, found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len(), "{what}");
    let worst = found.iter().zip(expected).map(|(&a, &b)| (f64::from(a) - b).abs()).fold(0.0, f64::max);
    // A NaN anywhere fails too.
    let all = found.iter().zip(expected).all(|(&a, &b)| (f64::from(a) - b).abs() <= TOLERANCE);
    assert!(all, "{what}: differs by {worst:e}, expected at most {TOLERANCE:e}");
    // Predictions that say the same of every row would prove little.
    let spread =
        expected.iter().fold(f64::MIN, |a, &b| a.max(b)) - expected.iter().fold(f64::MAX, |a, &b| a.min(b));
    assert!(spread > 0.02, "{what}: probabilities within {spread}");
    worst
}

/// Every model in a folder that a framework made, against the predictions that lie beside it; then what must be refused.
fn frameworks_models_predict_here(folder: &Path, endings: &[&str], made_by: &str) -> usize {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut models = 0;
    for path in &files {
        let name = path.file_name().unwrap().to_str().unwrap();
        let Some(ending) = endings.iter().find(|ending| name.ends_with(**ending)) else { continue };
        let stem = name.strip_suffix(ending).unwrap();
        if stem.starts_with("refused-") {
            continue;
        }
        let answers = folder.join(format!("{stem}.npz"));
        let (rows, ids) = ids(&answers);
        let weights = Weights::load(path).unwrap();
        let expected = floats(&answers, "probabilities");
        let worst = compare(name, &predict(&weights, &ids, rows), &expected);
        let checkpoint = load_model(path).unwrap();
        assert_eq!(checkpoint.state.params, weights.params);
        println!("{name}: {rows} rows within {worst:.1e} of {made_by}");
        models += 1;
    }
    models
}

fn refused(folder: &Path, list: &str) -> usize {
    let words: BTreeMap<String, Vec<String>> =
        serde_json::from_slice(&std::fs::read(folder.join(list)).unwrap()).unwrap();
    for (file, expected) in &words {
        let message = Weights::load(&folder.join(file)).unwrap_err().to_string();
        println!("{message}");
        for word in expected.iter().chain([file]) {
            assert!(message.contains(word.as_str()), "{file}: {message:?} does not say {word:?}");
        }
        let shown = load_model(&folder.join(file)).unwrap_err().to_string();
        assert_eq!(shown, message);
    }
    words.len()
}

#[cfg(feature = "keras")]
#[test]
fn kerass_models_predict_the_same_here() {
    let n = frameworks_models_predict_here(&fixtures(), &[".keras", ".weights.h5"], "Keras (a fixture)");
    assert_eq!(n, 13);
}

#[cfg(feature = "keras")]
#[test]
fn keras_models_that_compute_something_else_are_refused_by_their_layer() {
    assert_eq!(refused(&fixtures(), "refused.json"), 11);
}

#[test]
fn pytorchs_models_predict_the_same_here() {
    let n = frameworks_models_predict_here(&fixtures(), &[".safetensors"], "PyTorch (a fixture)");
    assert_eq!(n, 5);
    assert_eq!(refused(&fixtures(), "refused-torch.json"), 5);
}

#[test]
fn a_state_dict_that_two_readings_fit_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.safetensors");
    let write = |names: &[(&str, &[usize])]| {
        let bytes: Vec<Vec<u8>> =
            names.iter().map(|(_, shape)| vec![0; 4 * shape.iter().product::<usize>()]).collect();
        let views = names.iter().zip(&bytes).map(|((name, shape), bytes)| {
            (
                *name,
                safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.to_vec(), bytes).unwrap(),
            )
        });
        std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        Weights::load(&path).map_err(|error| error.to_string())
    };
    let lstm: [(&str, &[usize]); 2] = [("rnn.weight_ih_l0", &[8, 2]), ("rnn.weight_hh_l0", &[8, 2])];
    // Without biases and with E = H, only names tell the embedding.
    let message = write(&[&lstm[..], &[("a.weight", &[5, 2]), ("b.weight", &[3, 2])]].concat()).unwrap_err();
    assert!(message.contains("a.weight") && message.contains("`embedding`"), "{message}");
    let weights = write(&[&lstm[..], &[("a.weight", &[5, 2]), ("b_emb.weight", &[3, 2])]].concat()).unwrap();
    assert_eq!((weights.model.config.vocab, weights.model.config.classes), (3, 5));
    // A bias tells too.
    let more: [(&str, &[usize]); 3] = [("a.weight", &[5, 2]), ("a.bias", &[5]), ("b.weight", &[3, 2])];
    assert_eq!(write(&[&lstm[..], &more].concat()).unwrap().model.config.classes, 5);
    for (extra, words) in [
        (("norm.running_mean", &[2][..]), "norm.running_mean"),
        (("c.weight", &[2, 2][..]), "two matrices"),
        (("other.weight_hh_l0", &[8, 2][..]), "second recurrent layer"),
    ] {
        let message = write(&[&lstm[..], &more, &[extra]].concat()).unwrap_err();
        assert!(message.contains(words), "{message}");
    }
    let message = write(&[("a.weight", &[5, 2])]).unwrap_err();
    assert!(message.contains("weight_hh_l0"), "{message}");
}

/// Weights that hide nothing: no zeros, no ones, no symmetry.
fn odd_weights(seed: u64, config: ModelConfig) -> Weights {
    let model = Model::new(config).unwrap();
    let mut rng = Rng::new(seed, Purpose::User, 0);
    let params = (0..model.table.len()).map(|_| (rng.normal() * 0.4) as f32).collect();
    Weights { model, params }
}

fn about(words: Words, classes: &[&str]) -> (data::Encoding, Vec<String>) {
    let side = data::batch::Side::Post;
    let encoding = data::Encoding { maxlen: 13, padding: side, truncating: side, words };
    (encoding, classes.iter().map(|class| class.to_string()).collect())
}

#[test]
fn every_format_that_is_read_brings_back_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let words = Words::Known(Vocabulary::from_words(vec!["ä\"\\".into(), "b".into()]).unwrap());
    let (encoding, classes) = about(words, &["no", "yes", "\u{1f600}"]);
    for (seed, embed, hidden) in [(1, 5, 7), (2, 6, 6), (3, 1, 1), (4, 19, 33)] {
        let config = ModelConfig { vocab: 23, embed, hidden, classes: 3, ..Default::default() };
        let weights = odd_weights(seed, config);
        let about = About::new(&encoding, &classes);
        for row in FORMATS.iter().filter(|row| row.written) {
            if cfg!(not(feature = "keras")) && matches!(row.format, Format::Keras | Format::KerasWeights) {
                continue;
            }
            let path = folder.path().join(format!("m{}", row.suffix));
            export(&path, &weights, Some(&about)).unwrap();
            let bytes = std::fs::read(&path).unwrap();
            export(&path, &weights, Some(&about)).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), bytes, "{}: equal models, other bytes", row.suffix);
            if !row.read {
                let message = Weights::load(&path).unwrap_err().to_string();
                assert!(message.contains("not read"), "{message}");
                continue;
            }
            let back = Weights::load(&path).unwrap();
            assert_eq!(back, weights, "{}", row.suffix);
            let checkpoint = load_model(&path).unwrap();
            assert_eq!(checkpoint.state.params, weights.params);
            let with_text = matches!(row.format, Format::Keras | Format::Safetensors);
            if with_text {
                assert_eq!(
                    (&checkpoint.encoding, &checkpoint.classes),
                    (&encoding, &classes),
                    "{}",
                    row.suffix
                );
            } else {
                assert_eq!(checkpoint.classes, ["0", "1", "2"]);
                assert_eq!(checkpoint.encoding.words, Words::Prepared);
            }
            assert!(checkpoint.dataset().unwrap_err().to_string().contains("name a labelled file"));
        }
    }
}

#[test]
fn a_file_name_that_fits_no_format_is_wrong_usage() {
    for (name, words) in [
        ("m.pt", "safetensors.torch.save_file"),
        ("m.onnx", "not read"),
        ("m", "names no format"),
        (".keras", "names no format"),
        ("m.pkl", ".safetensors"),
    ] {
        let error = Weights::load(Path::new(name)).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains(words), "{error}");
    }
    let weights =
        odd_weights(1, ModelConfig { vocab: 4, embed: 1, hidden: 1, classes: 2, ..Default::default() });
    for name in ["m.h5", "m.pt", "m"] {
        let error = weights.save(Path::new(name)).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains(".weights.h5"), "{error}");
    }
}

// ONNX, read back by what its specification says ----------------------------------------------------------------------

/// The fields of a protocol buffer message: number, and bytes or integer.
fn fields(mut bytes: &[u8]) -> Vec<(u64, u64, Vec<u8>)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    }
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let value = varint(&mut bytes);
        match key & 7 {
            0 => fields.push((key >> 3, value, Vec::new())),
            2 => {
                let (content, rest) = bytes.split_at(value as usize);
                fields.push((key >> 3, 0, content.to_vec()));
                bytes = rest;
            }
            other => panic!("wire type {other}"),
        }
    }
    fields
}

fn texts(message: &[u8], field: u64) -> Vec<String> {
    let wanted = fields(message).into_iter().filter(|(number, _, _)| *number == field);
    wanted.map(|(_, _, bytes)| String::from_utf8(bytes).unwrap()).collect()
}

/// The model that an ONNX file holds, computed in f64 by the equations of ONNX' LSTM operator.
fn onnx_reference(path: &Path, ids: &[u32], rows: usize) -> Vec<f64> {
    let model = fields(&std::fs::read(path).unwrap());
    let graph = model.iter().find(|(number, _, _)| *number == 7).unwrap().2.clone();
    let operators: Vec<String> =
        fields(&graph).iter().filter(|(n, _, _)| *n == 1).flat_map(|(_, _, node)| texts(node, 4)).collect();
    assert_eq!(operators, ["Transpose", "Gather", "LSTM", "Squeeze", "Gemm", "Softmax"]);
    let mut tensors = BTreeMap::new();
    for (_, _, tensor) in fields(&graph).iter().filter(|(n, _, _)| *n == 5) {
        let parts = fields(tensor);
        let shape: Vec<usize> =
            parts.iter().filter(|(n, _, _)| *n == 1).map(|(_, dim, _)| *dim as usize).collect();
        let raw = &parts.iter().find(|(n, _, _)| *n == 9).unwrap().2;
        let values: Vec<f64> =
            raw.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect();
        tensors.insert(texts(tensor, 8)[0].clone(), (shape, values));
    }
    let (shape, table) = &tensors["embedding/embeddings"];
    let embed = shape[1];
    let (shape, w) = &tensors["lstm/kernel"];
    let hidden = shape[1] / 4;
    assert_eq!(shape[..], [1, 4 * hidden, embed]);
    let (shape, r) = &tensors["lstm/recurrent_kernel"];
    assert_eq!(shape[..], [1, 4 * hidden, hidden]);
    let (shape, b) = &tensors["lstm/bias"];
    assert_eq!(shape[..], [1, 8 * hidden]);
    let (shape, dense) = &tensors["dense/kernel"];
    let classes = shape[1];
    let bias = &tensors["dense/bias"].1;
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let mut probabilities = Vec::new();
    for row in ids.chunks_exact(ids.len() / rows) {
        let (mut h, mut c) = (vec![0.0; hidden], vec![0.0; hidden]);
        for &id in row {
            let x = &table[id as usize * embed..][..embed];
            let pre: Vec<f64> = (0..4 * hidden)
                .map(|k| {
                    let input: f64 = (0..embed).map(|e| w[k * embed + e] * x[e]).sum();
                    let state: f64 = (0..hidden).map(|j| r[k * hidden + j] * h[j]).sum();
                    input + state + b[k] + b[4 * hidden + k]
                })
                .collect();
            for j in 0..hidden {
                // Gates i, o, f, c.
                let [i, o, f, g] = [0, 1, 2, 3].map(|gate| pre[gate * hidden + j]);
                c[j] = sigmoid(f) * c[j] + sigmoid(i) * g.tanh();
                h[j] = sigmoid(o) * c[j].tanh();
            }
        }
        let logits =
            (0..classes).map(|k| (0..hidden).map(|j| h[j] * dense[j * classes + k]).sum::<f64>() + bias[k]);
        let exps: Vec<f64> = logits.map(f64::exp).collect();
        let sum: f64 = exps.iter().sum();
        probabilities.extend(exps.iter().map(|x| x / sum));
    }
    probabilities
}

#[test]
fn the_onnx_graph_computes_what_we_compute() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    let weights =
        odd_weights(5, ModelConfig { vocab: 23, embed: 5, hidden: 7, classes: 3, ..Default::default() });
    let (encoding, classes) = about(Words::ImdbIndex, &["a", "b", "c"]);
    export(&path, &weights, Some(&About::new(&encoding, &classes))).unwrap();
    let mut rng = Rng::new(6, Purpose::User, 0);
    let ids: Vec<u32> = (0..40 * 9).map(|_| rng.below(23) as u32).collect();
    let worst =
        compare("ONNX by its equations", &predict(&weights, &ids, 40), &onnx_reference(&path, &ids, 40));
    println!("ONNX by its equations in f64: 40 rows within {worst:.1e}");
    let model = std::fs::read(&path).unwrap();
    let entry = &fields(&model).into_iter().find(|(number, _, _)| *number == 14).unwrap().2;
    assert_eq!(texts(entry, 1), ["recurve.text"]);
    let text: serde_json::Value = serde_json::from_str(&texts(entry, 2)[0]).unwrap();
    assert_eq!(text["classes"], serde_json::json!(["a", "b", "c"]));
    assert_eq!(text["ids"], serde_json::json!({"padding": 0, "start": 1, "unknown": 2, "first_word": 4}));
    assert_eq!((&text["maxlen"], &text["padding"]), (&serde_json::json!(13), &serde_json::json!("post")));
}

// The frameworks themselves --------------------------------------------------------------------------------------------

/// A Python that has the frameworks, if `scripts/interop` named one.
fn python(variable: &str, test: &str) -> Option<String> {
    let python = std::env::var(variable).ok();
    if python.is_none() {
        println!("NOT RUN: {test} needs {variable}; scripts/interop sets it");
    }
    python
}

/// Runs tests/interop/frameworks.py and returns the versions that it met, as JSON.
fn run(python: &str, arguments: &[&str]) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/frameworks.py");
    let output = Command::new(python).arg(script).args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap().lines().last().unwrap().to_string()
}

/// Two epochs on the embedded reviews, and the first 1,000 rows of its test part.
fn trained() -> &'static (Checkpoint, Vec<u32>, Dataset) {
    static TRAINED: OnceLock<(Checkpoint, Vec<u32>, Dataset)> = OnceLock::new();
    TRAINED.get_or_init(|| {
        let dataset =
            data::load(&DataOptions { source: Source::Sample, ..Default::default() }, None).unwrap();
        let config =
            ModelConfig { vocab: dataset.vocab, classes: dataset.classes.len(), ..Default::default() };
        let model = Model::new(config).unwrap();
        let params = model.init(0);
        let options = TrainOptions { epochs: 2, ..Default::default() };
        let mut checkpoint = Checkpoint::new(model, params, AdamConfig::default(), &dataset, options);
        train(Device::Cpu.engine(0).unwrap().as_mut(), &mut checkpoint, &dataset, &mut ()).unwrap();
        let test = dataset.test.as_ref().unwrap();
        let ids = test.x[..1000 * test.t].to_vec();
        (checkpoint, ids, dataset)
    })
}

/// A model trained here, exported with this ending, against what the framework says of 1,000 reviews.
fn ours_predicts_there(python: &str, command: &str, ending: &str) {
    let (checkpoint, ids, dataset) = trained();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let (model, rows, answers) = (path(&format!("ours{ending}")), path("ids.npz"), path("answers.npz"));
    let weights = Weights { model: checkpoint.model.clone(), params: checkpoint.state.params.clone() };
    export(Path::new(&model), &weights, Some(&About::new(&checkpoint.encoding, &checkpoint.classes)))
        .unwrap();
    // Ids are below 2^24: floats hold them exactly, and those are what our writer writes.
    let values: Vec<f32> = ids.iter().map(|&id| id as f32).collect();
    let shape = [1000, ids.len() / 1000];
    let array = data::npz::Output { name: "ids", shape: &shape, values: &values };
    data::npz::write_npz(Path::new(&rows), &[array], false).unwrap();
    let versions = run(python, &[command, &model, &rows, &answers]);
    let expected = floats(Path::new(&answers), "probabilities");
    let worst = compare(command, &predict(&weights, ids, 1000), &expected);
    println!("{ending} of a model trained here: 1000 reviews within {worst:.1e} of {versions}");
    if ending == ".onnx" {
        // The metadata is enough to prepare text elsewhere.
        let texts =
            ["Lovely, moving; \"beautifully\" acted!", "", "unheardofword and the film's end\tis\nbad"];
        std::fs::write(path("texts.json"), serde_json::to_vec(&texts).unwrap()).unwrap();
        run(python, &["text", &model, &path("texts.json"), &path("text-ids.npz")]);
        let expected = dataset.encoding.rows(texts).unwrap();
        assert_eq!(self::ids(Path::new(&path("text-ids.npz"))), (texts.len(), expected));
    }
}

#[cfg(feature = "keras")]
#[test]
fn keras_itself() {
    let Some(python) = python("RECURVE_INTEROP_PYTHON", "keras_itself") else { return };
    ours_predicts_there(&python, "keras", ".keras");
    ours_predicts_there(&python, "keras", ".weights.h5");
    let folder = tempfile::tempdir().unwrap();
    let versions = run(&python, &["make-keras", folder.path().to_str().unwrap()]);
    assert_eq!(frameworks_models_predict_here(folder.path(), &[".keras", ".weights.h5"], &versions), 13);
    assert_eq!(refused(folder.path(), "refused.json"), 11);
}

#[test]
fn onnx_runtime_itself() {
    let Some(python) = python("RECURVE_INTEROP_PYTHON", "onnx_runtime_itself") else { return };
    ours_predicts_there(&python, "onnx", ".onnx");
}

#[test]
fn pytorch_itself() {
    let Some(python) = python("RECURVE_INTEROP_TORCH", "pytorch_itself") else { return };
    ours_predicts_there(&python, "torch", ".safetensors");
    let folder = tempfile::tempdir().unwrap();
    let versions = run(&python, &["make-torch", folder.path().to_str().unwrap()]);
    assert_eq!(frameworks_models_predict_here(folder.path(), &[".safetensors"], &versions), 5);
    assert_eq!(refused(folder.path(), "refused-torch.json"), 5);
}
