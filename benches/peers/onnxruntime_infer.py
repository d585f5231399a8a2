"""Inference in ONNX Runtime: Gather, LSTM, Gemm and Softmax, put together with the `onnx` package from weights in Keras'
layout. ONNX orders the gates i, o, f, c; its two biases are Keras' one and zero.
"""

import os

import common

o = common.options(__doc__, ["inference"])

import numpy as np  # noqa: E402
import onnx  # noqa: E402
import onnxruntime as ort  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402


def iofc(kernel: np.ndarray) -> np.ndarray:
    """Keras' [.., 4H] in the order i, f, c, o to ONNX' rows [4H, ..] in the order i, o, f, c."""
    i, f, c, out = np.split(kernel, 4, axis=-1)
    return np.ascontiguousarray(np.concatenate([i, out, f, c], axis=-1).T)


def model_of(w: dict) -> bytes:
    hidden = w["lstm/recurrent_kernel"].shape[0]
    bias = iofc(w["lstm/bias"])
    constants = {
        "embeddings": w["embedding/embeddings"],
        "w": iofc(w["lstm/kernel"])[None],
        "r": iofc(w["lstm/recurrent_kernel"])[None],
        "b": np.concatenate([bias, np.zeros_like(bias)])[None],
        "dense_w": w["dense/kernel"],
        "dense_b": w["dense/bias"],
        "axis": np.array([0], np.int64),
    }
    nodes = [
        helper.make_node("Transpose", ["x"], ["x_time_major"], perm=[1, 0]),
        helper.make_node("Gather", ["embeddings", "x_time_major"], ["embedded"]),
        helper.make_node("LSTM", ["embedded", "w", "r", "b"], ["", "h_last"], hidden_size=hidden),
        helper.make_node("Squeeze", ["h_last", "axis"], ["h"]),
        helper.make_node("Gemm", ["h", "dense_w", "dense_b"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.INT32, ["B", "T"])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["B", w["dense/bias"].shape[0]])],
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


class Bench:
    def __init__(self, data: common.Data):
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = o.threads
        settings.inter_op_num_threads = 1
        provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[o.device]
        self.session = ort.InferenceSession(model_of(common.initial_weights(o)), settings, providers=[provider])
        if provider not in self.session.get_providers():
            raise SystemExit(f"onnxruntime_infer.py: this build of ONNX Runtime has no {provider}")

    def predict(self, x: np.ndarray):
        return self.session.run(None, {"x": x})[0]


if o.what == "train_epoch":
    o.what = "inference"
o.threads = o.threads or len(os.sched_getaffinity(0))
common.main(o, "onnxruntime", ort.__version__, Bench)
