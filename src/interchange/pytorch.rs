//! PyTorch state dicts in `.safetensors` files.
//!
//! Written are the names of
//! ```python
//! class Classifier(torch.nn.Module):
//!     def __init__(self, V, E, H, C):
//!         super().__init__()
//!         self.embedding = torch.nn.Embedding(V, E)
//!         self.lstm = torch.nn.LSTM(E, H, batch_first=True)
//!         self.linear = torch.nn.Linear(H, C)
//!
//!     def forward(self, ids):                          # [B,T]
//!         _, (h, _) = self.lstm(self.embedding(ids))
//!         return self.linear(h[-1])                    # logits [B,C]
//! ```
//! Read is any state dict of those three modules, whatever their names: the LSTM's tensors by their own names
//! (`weight_ih_l0`, …), the other two by what stands beside them and by shape. PyTorch has our gate order (i, f, g, o), every
//! matrix transposed, and two biases whose sum is ours; the second is written as zeros. A `Linear` with one output is taken
//! as the logit of the second of two classes.
//!
//! The same ending has our own model files, told by their metadata, and arrays under Keras' names.

use super::{ABOUT_KEY, About, Array, Arrays, Imported, Weights};
use crate::checkpoint::{self, Tensor};
use crate::error::{Error, Result};
use crate::files;
use safetensors::tensor::SafeTensors;
use std::collections::BTreeMap;
use std::path::Path;

pub(super) fn read(path: &Path) -> Result<Imported> {
    let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
    let not =
        |e: safetensors::SafeTensorError| Error::format(path, "", format!("not a safetensors file: {e}"));
    let tensors = SafeTensors::deserialize(&bytes).map_err(not)?;
    let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(not)?;
    let about = metadata.metadata().as_ref().and_then(|m| m.get(ABOUT_KEY));
    let about = about.map(|json| About::from_json(json)).transpose();
    let about = about.map_err(|message| Error::format(path, ABOUT_KEY, message))?;

    let own = checkpoint::is_model_file(&bytes);
    let mut arrays = Arrays::new();
    for name in tensors.names() {
        if own && checkpoint::is_training_state(name) {
            continue;
        }
        let view = tensors.tensor(name).map_err(|e| Error::format(path, name, e.to_string()))?;
        let values =
            checkpoint::floats(&view).map_err(|message| Error::format(path, shown(name), message))?;
        arrays.insert(name.to_string(), Array { shape: view.shape().to_vec(), values });
    }
    if !own && !arrays.contains_key("embedding/embeddings") {
        arrays = rename(path, arrays)?;
    }
    Ok(Imported { weights: Weights::from_arrays(path, &arrays)?, about, maxlen: None })
}

/// An untrusted name in a message.
fn shown(name: &str) -> String {
    let shown: String = name.chars().take(80).flat_map(char::escape_debug).collect();
    format!("tensor {shown}")
}

/// A state dict's tensors under the table's names and in its layouts.
fn rename(path: &Path, mut tensors: Arrays) -> Result<Arrays> {
    const EXPECTED: &str = "expected the state dict of an nn.Embedding, a one-layer nn.LSTM and an nn.Linear";
    let bad = |name: &str, message: String| Error::format(path, shown(name), message);

    // The LSTM, by its own names.
    let ending =
        |suffix: &str| tensors.keys().filter(|name| name.ends_with(suffix)).cloned().collect::<Vec<_>>();
    let hh = ending("weight_hh_l0");
    let prefix = match &hh[..] {
        [name] => name.strip_suffix("weight_hh_l0").unwrap_or_default().to_string(),
        [] => {
            let names: Vec<&String> = tensors.keys().take(20).collect();
            return Err(Error::format(
                path,
                "",
                format!("no tensor weight_hh_l0, so no LSTM; found {names:?}; {EXPECTED}"),
            ));
        }
        [_, second, ..] => return Err(bad(second, format!("a second recurrent layer; {EXPECTED}"))),
    };
    for (name, array) in &tensors {
        let Some(part) = name.strip_prefix(&prefix) else { continue };
        let of_lstm = ["weight_", "bias_"].iter().any(|start| part.starts_with(start)) && part.contains("_l");
        if !of_lstm || ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"].contains(&part) {
            continue;
        }
        let what = if part.ends_with("_reverse") {
            "of a bidirectional LSTM"
        } else if part.contains("_hr_") {
            "a projection (proj_size)"
        } else {
            "of a second layer"
        };
        return Err(bad(name, format!("{what}, shape {:?}; {EXPECTED}", array.shape)));
    }
    let mut take = |part: &str| tensors.remove(&format!("{prefix}{part}"));
    let (u, w) = (take("weight_hh_l0"), take("weight_ih_l0"));
    let (first, second) = (take("bias_ih_l0"), take("bias_hh_l0"));
    let name_of = |part: &str| format!("{prefix}{part}");
    let u = u.ok_or_else(|| bad(&hh[0], format!("missing; {EXPECTED}")))?;
    let w = w.ok_or_else(|| bad(&name_of("weight_ih_l0"), format!("missing; {EXPECTED}")))?;
    let hidden = match u.shape[..] {
        [rows, h] if h > 0 && h.checked_mul(4) == Some(rows) => h,
        [rows, h] if h > 0 && h.checked_mul(3) == Some(rows) => {
            return Err(bad(&hh[0], format!("shape {:?} is a GRU's; {EXPECTED}", u.shape)));
        }
        [rows, h] if h > 0 && rows == h => {
            return Err(bad(&hh[0], format!("shape {:?} is a plain RNN's; {EXPECTED}", u.shape)));
        }
        _ => return Err(bad(&hh[0], format!("shape {:?}, expected [4H, H]", u.shape))),
    };
    let embed = match w.shape[..] {
        [rows, e] if rows == 4 * hidden => e,
        _ => {
            let message = format!("shape {:?}, expected [{}, E]", w.shape, 4 * hidden);
            return Err(bad(&name_of("weight_ih_l0"), message));
        }
    };
    // Both or none: nn.LSTM(bias=False) has none, which is the same as zeros.
    let mut bias = vec![0.0f32; 4 * hidden];
    for (part, array) in [("bias_ih_l0", first), ("bias_hh_l0", second)] {
        let Some(array) = array else { continue };
        if array.shape != [4 * hidden] {
            let message = format!("shape {:?}, expected [{}]", array.shape, 4 * hidden);
            return Err(bad(&name_of(part), message));
        }
        bias.iter_mut().zip(&array.values).for_each(|(sum, x)| *sum += x);
    }

    // Embedding and Linear: a matrix with a bias beside it is the Linear; of two without, the shapes must tell.
    let mut matrices: BTreeMap<String, (Array, Option<Array>)> = BTreeMap::new();
    let names: Vec<String> = tensors.keys().filter(|name| name.ends_with("weight")).cloned().collect();
    for name in names {
        let Some(array) = tensors.remove(&name) else { continue };
        if array.shape.len() != 2 {
            return Err(bad(&name, format!("shape {:?}; {EXPECTED}", array.shape)));
        }
        let beside = format!("{}bias", name.strip_suffix("weight").unwrap_or_default());
        let bias = tensors.remove(&beside);
        matrices.insert(name, (array, bias));
    }
    if let Some((name, array)) = tensors.first_key_value() {
        return Err(bad(
            name,
            format!("shape {:?} belongs to none of the three layers; {EXPECTED}", array.shape),
        ));
    }
    let list: Vec<String> =
        matrices.iter().map(|(name, (array, _))| format!("{} {:?}", shown(name), array.shape)).collect();
    let mut matrices = matrices.into_iter();
    let (Some(a), Some(b), None) = (matrices.next(), matrices.next(), matrices.next()) else {
        let message = format!("besides the LSTM it has {list:?}, expected two matrices; {EXPECTED}");
        return Err(Error::format(path, "", message));
    };
    let fits = |embedding: &(String, (Array, Option<Array>)), linear: &(String, (Array, Option<Array>))| {
        embedding.1.1.is_none() && embedding.1.0.shape[1] == embed && linear.1.0.shape[1] == hidden
    };
    let ((_, (table, _)), (linear_name, (linear, linear_bias))) = match (fits(&a, &b), fits(&b, &a)) {
        (true, false) => (a, b),
        (false, true) => (b, a),
        (true, true) => {
            // Two matrices without a bias and E = H: only names are left.
            match (a.0.contains("emb"), b.0.contains("emb")) {
                (true, false) => (a, b),
                (false, true) => (b, a),
                _ => {
                    let message = format!(
                        "either of {list:?} could be the embedding; name the nn.Embedding `embedding`, or give the \
                         nn.Linear a bias"
                    );
                    return Err(Error::format(path, "", message));
                }
            }
        }
        (false, false) => {
            let message = format!(
                "{list:?} are not an embedding [V, {embed}] and a linear layer [C, {hidden}], which the LSTM needs"
            );
            return Err(Error::format(path, "", message));
        }
    };
    let classes = linear.shape[0];
    let linear_bias =
        linear_bias.unwrap_or_else(|| Array { shape: vec![classes], values: vec![0.0; classes] });
    if linear_bias.shape != [classes] {
        let message = format!("its bias has shape {:?}, expected [{classes}]", linear_bias.shape);
        return Err(bad(&linear_name, message));
    }
    let (kernel, dense_bias) = super::two_classes(linear.transposed(), linear_bias);
    Ok(Arrays::from(
        [
            ("embedding/embeddings", table),
            ("lstm/kernel", w.transposed()),
            ("lstm/recurrent_kernel", u.transposed()),
            ("lstm/bias", Array { shape: vec![4 * hidden], values: bias }),
            ("dense/kernel", kernel),
            ("dense/bias", dense_bias),
        ]
        .map(|(name, array)| (name.to_string(), array)),
    ))
}

pub(super) fn write(path: &Path, weights: &Weights, about: Option<&About>) -> Result<()> {
    let mut tensors = Vec::new();
    for (name, array) in weights.arrays(path)? {
        let name = match name {
            "embedding/embeddings" => "embedding.weight",
            "lstm/kernel" => "lstm.weight_ih_l0",
            "lstm/recurrent_kernel" => "lstm.weight_hh_l0",
            "lstm/bias" => {
                let zeros = vec![0.0; array.values.len()];
                tensors.push(("lstm.bias_hh_l0".to_string(), Tensor::f32(array.shape.clone(), &zeros)));
                "lstm.bias_ih_l0"
            }
            "dense/kernel" => "linear.weight",
            "dense/bias" => "linear.bias",
            other => {
                return Err(Error::format(path, other, "PyTorch's layers have no place for this parameter"));
            }
        };
        // The embedding alone has the same layout in both.
        let array = if name == "embedding.weight" { array } else { array.transposed() };
        tensors.push((name.to_string(), Tensor::f32(array.shape, &array.values)));
    }
    let about = about.map(|about| about.to_json(path)).transpose()?.map(|json| (ABOUT_KEY, json));
    let bytes = checkpoint::to_safetensors(&tensors, about).map_err(|m| Error::format(path, "", m))?;
    files::write_bytes(path, &bytes)
}
