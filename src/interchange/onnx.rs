//! ONNX models, written.
//!
//! ```text
//! ids [B,T] int64 → Transpose → Gather(embedding) [T,B,E] → LSTM → Y_h [1,B,H] → Squeeze → Gemm → Softmax → probabilities [B,C]
//! ```
//! Standard operators of opset 17, both axes of the ids free. ONNX has the LSTM's gates in the order i, o, f, g, its matrices
//! transposed and two biases (the second is zeros). How text becomes ids stands in the metadata under
//! [`ABOUT_KEY`], as JSON.
//!
//! The file is a protocol buffer, written by the forty lines below: it takes two of the wire's types and no reading.
//! Field numbers are those of onnx.proto3.

use super::{ABOUT_KEY, About, Array, Weights};
use crate::error::{Error, Result};
use crate::files;
use std::path::Path;

/// ONNX IR version 8 goes with opset 17 (onnx 1.12, of 2022): read by everything since.
const IR_VERSION: u64 = 8;
const OPSET: u64 = 17;
/// A protocol buffer is not read beyond this.
const MAX_BYTES: usize = i32::MAX as usize;

/// A protocol buffer message in the making.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn int(mut self, field: u64, value: u64) -> Self {
        self.varint(field << 3);
        self.varint(value);
        self
    }

    fn bytes(mut self, field: u64, value: &[u8]) -> Self {
        self.varint(field << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    fn text(self, field: u64, value: &str) -> Self {
        self.bytes(field, value.as_bytes())
    }

    fn message(self, field: u64, value: Self) -> Self {
        self.bytes(field, &value.0)
    }
}

/// `TensorProto` of type FLOAT (1) or INT64 (7).
fn tensor(name: &str, shape: &[usize], kind: u64, raw: &[u8]) -> Message {
    let dims = shape.iter().fold(Message::default(), |message, &dim| message.int(1, dim as u64));
    dims.int(2, kind).text(8, name).bytes(9, raw)
}

fn floats(name: &str, shape: &[usize], values: &[f32]) -> Message {
    let raw: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    tensor(name, shape, 1, &raw)
}

/// `NodeProto`; `attributes` are `AttributeProto`s.
fn node(operator: &str, inputs: &[&str], outputs: &[&str], attributes: Vec<Message>) -> Message {
    let message = inputs.iter().fold(Message::default(), |message, input| message.text(1, input));
    let message = outputs.iter().fold(message, |message, output| message.text(2, output));
    let message = message.text(3, operator).text(4, operator);
    attributes.into_iter().fold(message, |message, attribute| message.message(5, attribute))
}

/// An integer attribute (type INT, 2).
fn int(name: &str, value: u64) -> Message {
    Message::default().text(1, name).int(3, value).int(20, 2)
}

/// A list of integers (type INTS, 7).
fn ints(name: &str, values: &[u64]) -> Message {
    values.iter().fold(Message::default().text(1, name), |message, &value| message.int(8, value)).int(20, 7)
}

/// A size that is free, or fixed.
enum Axis {
    Free(&'static str),
    Fixed(usize),
}

/// `ValueInfoProto` of a tensor.
fn value(name: &str, kind: u64, axes: &[Axis]) -> Message {
    let shape = axes.iter().fold(Message::default(), |shape, axis| {
        let dim = match axis {
            Axis::Free(name) => Message::default().text(2, name),
            Axis::Fixed(size) => Message::default().int(1, *size as u64),
        };
        shape.message(1, dim)
    });
    let tensor = Message::default().int(1, kind).message(2, shape);
    Message::default().text(1, name).message(2, Message::default().message(1, tensor))
}

/// `[n,4H]`, gates i, f, g, o, as `[4H,n]`, gates i, o, f, g.
fn gates(array: Array) -> Array {
    let array = array.transposed();
    // A bias has one axis and is not transposed.
    let quarter = array.values.len() / 4;
    let part = |gate: usize| &array.values[gate * quarter..(gate + 1) * quarter];
    Array { values: [part(0), part(3), part(1), part(2)].concat(), shape: array.shape }
}

pub(super) fn write(path: &Path, weights: &Weights, about: Option<&About>) -> Result<()> {
    files::write_bytes(path, &model(path, weights, about)?)
}

fn model(path: &Path, weights: &Weights, about: Option<&About>) -> Result<Vec<u8>> {
    let c = weights.model.config;
    // Known before it is built: five bytes for each of the few lengths are far less than the rest.
    if weights.params.len().saturating_mul(4) > MAX_BYTES / 8 * 7 {
        return Err(Error::format(
            path,
            "",
            format!(
                "{} parameters are more than an ONNX file of one piece holds; export .npz or .safetensors",
                weights.params.len()
            ),
        ));
    }
    let mut initializers = vec![tensor("zero", &[1], 7, &0i64.to_le_bytes())];
    for (name, array) in weights.arrays(path)? {
        let stored = match name {
            "lstm/kernel" | "lstm/recurrent_kernel" => {
                let array = gates(array);
                floats(name, &[1, array.shape[0], array.shape[1]], &array.values)
            }
            "lstm/bias" => {
                let mut both = gates(array).values;
                both.resize(both.len() * 2, 0.0);
                floats(name, &[1, both.len()], &both)
            }
            _ => floats(name, &array.shape, &array.values),
        };
        initializers.push(stored);
    }
    let nodes = [
        node("Transpose", &["ids"], &["ids_by_time"], vec![ints("perm", &[1, 0])]),
        node("Gather", &["embedding/embeddings", "ids_by_time"], &["embedded"], vec![int("axis", 0)]),
        node(
            "LSTM",
            &["embedded", "lstm/kernel", "lstm/recurrent_kernel", "lstm/bias"],
            &["", "last"],
            vec![int("hidden_size", c.hidden as u64)],
        ),
        node("Squeeze", &["last", "zero"], &["state"], vec![]),
        node("Gemm", &["state", "dense/kernel", "dense/bias"], &["logits"], vec![]),
        node("Softmax", &["logits"], &["probabilities"], vec![int("axis", 1)]),
    ];
    let graph = nodes.into_iter().fold(Message::default(), |graph, node| graph.message(1, node));
    let graph = graph.text(2, "recurve");
    let graph = initializers.into_iter().fold(graph, |graph, tensor| graph.message(5, tensor));
    let graph = graph
        .message(11, value("ids", 7, &[Axis::Free("batch"), Axis::Free("time")]))
        .message(12, value("probabilities", 1, &[Axis::Free("batch"), Axis::Fixed(c.classes)]));
    let mut model = Message::default()
        .int(1, IR_VERSION)
        .text(2, "recurve")
        .text(3, env!("CARGO_PKG_VERSION"))
        .message(7, graph)
        .message(8, Message::default().text(1, "").int(2, OPSET));
    if let Some(about) = about {
        let entry = Message::default().text(1, ABOUT_KEY).text(2, &about.to_json(path)?);
        model = model.message(14, entry);
    }
    Ok(model.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_protocol_buffers_have_them() {
        // The examples of the format's own documentation.
        assert_eq!(Message::default().int(1, 150).0, [0x08, 0x96, 0x01]);
        assert_eq!(Message::default().text(2, "testing").0, b"\x12\x07testing");
        assert_eq!(Message::default().int(20, u64::MAX).0.len(), 2 + 10);
    }

    #[test]
    fn gates_come_in_onnx_order() {
        let array = Array { shape: vec![1, 4], values: vec![1.0, 2.0, 3.0, 4.0] };
        assert_eq!(gates(array), Array { shape: vec![4, 1], values: vec![1.0, 4.0, 2.0, 3.0] });
        let bias = Array { shape: vec![8], values: (0..8).map(|x| x as f32).collect() };
        assert_eq!(gates(bias).values, [0.0, 1.0, 6.0, 7.0, 2.0, 3.0, 4.0, 5.0]);
    }
}
