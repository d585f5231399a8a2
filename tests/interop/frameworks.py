#!/usr/bin/env python3
"""The frameworks' side of tests/interop.rs and tests/interchange.rs. Every command prints one line of JSON with the versions it met.

    frameworks.py keras MODEL IDS OUT      Keras loads MODEL (.keras, or .weights.h5 into a fresh model of the shapes in the
                                           file) and writes its predictions for the rows of IDS
    frameworks.py onnx MODEL IDS OUT       onnx.checker (full_check), then ONNX Runtime predicts, whole and row by row of a few
    frameworks.py torch MODEL IDS OUT      PyTorch loads the state dict, strictly, and predicts
    frameworks.py make-keras FOLDER        freshly initialised Keras models in FOLDER, each with ids and its predictions
    frameworks.py make-torch FOLDER        the same of PyTorch
    frameworks.py text MODEL TEXTS OUT     turns texts (JSON list) into rows of ids by what MODEL (.onnx) says of itself

IDS and OUT are .npz files (`ids`, `probabilities`).
"""

import json
import os
import pathlib
import sys
import warnings
import zipfile

warnings.filterwarnings("ignore")
os.environ["KERAS_BACKEND"] = "jax"
os.environ["JAX_PLATFORMS"] = "cpu"

import numpy as np

# V, E, H, C, T: all different, so that no two axes can be mistaken for each other; E = H is a case of its own.
SHAPES = {"plain": (23, 5, 7, 3, 9), "square": (19, 6, 6, 2, 8)}
SEED = 11


def read_ids(path):
    return np.load(path)["ids"].astype(np.int64)


def write(path, probabilities, **more):
    np.savez(path, probabilities=np.asarray(probabilities, dtype=np.float32), **more)


# Keras ----------------------------------------------------------------------------------------------------------------


def keras_versions():
    import h5py
    import jax
    import keras

    return {"keras": keras.__version__, "jax": jax.__version__, "h5py": h5py.__version__}


def keras_predict(model, ids, out):
    import h5py
    import keras

    if model.endswith(".keras"):
        # With every check that Keras has, and ready to train as well.
        loaded = keras.models.load_model(model)
    else:
        with h5py.File(model) as file:
            v, e = file["layers/embedding/vars/0"].shape
            h, c = file["layers/dense/vars/0"].shape
        loaded = keras.Sequential([keras.layers.Embedding(v, e), keras.layers.LSTM(h), keras.layers.Dense(c, activation="softmax")])
        loaded.build((None, None))
        loaded.load_weights(model)
    assert [type(layer).__name__ for layer in loaded.layers] == ["Embedding", "LSTM", "Dense"], loaded.layers
    write(out, loaded.predict(read_ids(ids), batch_size=250, verbose=0))
    # Another length of rows than it was trained on.
    assert loaded.predict(read_ids(ids)[:3, 2:], verbose=0).shape[0] == 3
    return keras_versions()


def make_keras(folder):
    import keras
    from keras import layers

    folder = pathlib.Path(folder)

    def save(name, model, t, *endings):
        rng = np.random.default_rng(SEED)
        # Biases start as zeros or ones, which would hide a mistaken order.
        for variable in model.trainable_variables:
            variable.assign(np.asarray(variable) + rng.normal(0, 0.3, variable.shape).astype(np.float32))
        vocab = model.get_layer(index=[type(layer).__name__ for layer in model.layers].index("Embedding")).input_dim
        ids = rng.integers(0, vocab, (40, t))
        probabilities = model.predict(ids, verbose=0)
        if probabilities.shape[1] == 1:
            probabilities = np.concatenate([1 - probabilities, probabilities], axis=1)
        write(folder / f"{name}.npz", probabilities, ids=ids)
        for ending in endings:
            if ending == ".keras":
                model.save(folder / f"{name}.keras")
            else:
                model.save_weights(folder / f"{name}.weights.h5")

    def chain(v, e, h, c, activation="softmax", embedding={}, lstm={}, dense={}, between=list):
        return [layers.Embedding(v, e, **embedding), *between(), layers.LSTM(h, **lstm), *between(), layers.Dense(c, activation=activation, **dense)]

    keras.utils.set_random_seed(SEED)
    for shape, (v, e, h, c, t) in SHAPES.items():
        save(f"sequential-{shape}", keras.Sequential([keras.Input((t,), dtype="int32"), *chain(v, e, h, c)]), t, ".keras", ".weights.h5")
    v, e, h, c, t = SHAPES["plain"]
    # Built late, compiled and fitted: the optimizer's state is in the file.
    fitted = keras.Sequential(chain(v, e, h, c))
    fitted.compile("adam", "sparse_categorical_crossentropy")
    fitted.fit(np.zeros((4, t), int), np.zeros(4, int), verbose=0)
    save("fitted", fitted, t, ".keras", ".weights.h5")
    x = keras.Input((None,), dtype="int32")
    y = x
    for layer in chain(v, e, h, c, between=lambda: [layers.Dropout(0.4)]):
        y = layer(y)
    save("functional-dropout", keras.Model(x, y), t, ".keras", ".weights.h5")
    names = dict(embedding={"name": "words"}, lstm={"name": "reader"}, dense={"name": "answer"})
    save("named", keras.Sequential([keras.Input((t,), dtype="int32"), *chain(v, e, h, c, **names)]), t, ".keras", ".weights.h5")
    save("sigmoid", keras.Sequential([keras.Input((t,), dtype="int32"), *chain(v, e, h, 1, "sigmoid")]), t, ".keras", ".weights.h5")
    no_bias = dict(lstm={"use_bias": False}, dense={"use_bias": False})
    save("no-bias", keras.Sequential([keras.Input((t,), dtype="int32"), *chain(v, e, h, c, **no_bias)]), t, ".keras")

    # What must be refused: the file, and the words that the message must hold.
    refused = {
        "mask": (chain(v, e, h, c, embedding={"mask_zero": True, "name": "words"}), ["words", "mask_zero"]),
        "relu": (chain(v, e, h, c, lstm={"activation": "relu", "name": "reader"}), ["reader", "relu", "tanh"]),
        "hard": (chain(v, e, h, c, lstm={"recurrent_activation": "hard_sigmoid"}), ["lstm", "hard_sigmoid"]),
        "logits": (chain(v, e, h, c, None, dense={"name": "answer"}), ["answer", "linear", "save_weights"]),
        "one": (chain(v, e, h, 1), ["dense", "constant 1.0"]),
        "backwards": (chain(v, e, h, c, lstm={"go_backwards": True}), ["lstm", "go_backwards"]),
        "gru": ([layers.Embedding(v, e), layers.GRU(h), layers.Dense(c, activation="softmax")], ["gru", "GRU", "LSTM"]),
        "two": ([layers.Embedding(v, e), layers.LSTM(h, return_sequences=True, name="first"), layers.LSTM(h), layers.Dense(c, activation="softmax")], ["first", "return_sequences"]),
        "bidirectional": ([layers.Embedding(v, e), layers.Bidirectional(layers.LSTM(h)), layers.Dense(c, activation="softmax")], ["Bidirectional"]),
        "dense": ([layers.Embedding(v, e), layers.LSTM(h), layers.Dense(4, activation="relu", name="middle"), layers.Dense(c, activation="softmax")], ["middle", "relu"]),
    }
    words = {}

    def save_config(name, model):
        """Without the weights, which are not reached."""
        path = folder / f"refused-{name}.keras"
        model.save(path)
        with zipfile.ZipFile(path) as file:
            config = file.read("config.json")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr(zipfile.ZipInfo("config.json"), config, zipfile.ZIP_DEFLATED)

    for name, (parts, expected) in refused.items():
        save_config(name, keras.Sequential([keras.Input((t,), dtype="int32"), *parts]))
        words[f"refused-{name}.keras"] = expected
    embedded = layers.Embedding(v, e)(x)
    last = layers.Concatenate(name="both")([layers.LSTM(h)(embedded), layers.LSTM(h, name="other")(embedded)])
    save_config("branches", keras.Model(x, layers.Dense(c, activation="softmax")(last)))
    words["refused-branches.keras"] = ["other"]
    (folder / "refused.json").write_text(json.dumps(words))
    return keras_versions()


# ONNX -----------------------------------------------------------------------------------------------------------------


def onnx_predict(model, ids, out):
    import onnx
    import onnxruntime

    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [("ids", "tensor(int64)", ["batch", "time"])], session.get_inputs()
    ids = read_ids(ids)
    probabilities = session.run(["probabilities"], {"ids": ids})[0]
    # Both axes are free.
    for row in range(3):
        one = session.run(None, {"ids": ids[row : row + 1]})[0]
        assert np.abs(one - probabilities[row : row + 1]).max() < 1e-6
    assert session.run(None, {"ids": ids[:2, 3:]})[0].shape == (2, probabilities.shape[1])
    write(out, probabilities)
    return {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}


def text(model, texts, out):
    import onnx

    about = json.loads({p.key: p.value for p in onnx.load(model).metadata_props}["recurve.text"])
    ids = about["ids"]
    words = {word: number for number, word in enumerate(about["words"]["known"], ids["first_word"])}
    drop = str.maketrans(dict.fromkeys('!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~\t\n\r', " "))
    rows = []
    for line in json.loads(pathlib.Path(texts).read_text()):
        row = [ids["start"]] + [words.get(word, ids["unknown"]) for word in line.lower().translate(drop).split(" ") if word]
        assert about["padding"] == about["truncating"] == "pre"
        row = row[-about["maxlen"] :]
        rows.append([ids["padding"]] * (about["maxlen"] - len(row)) + row)
    np.savez(out, ids=np.array(rows))
    return {"onnx": onnx.__version__}


# PyTorch --------------------------------------------------------------------------------------------------------------


def torch_model(v, e, h, c, names=("embedding", "lstm", "linear"), **options):
    import torch

    class Classifier(torch.nn.Module):
        def __init__(self):
            super().__init__()
            setattr(self, names[0], torch.nn.Embedding(v, e))
            setattr(self, names[1], torch.nn.LSTM(e, h, batch_first=True, bias=options.get("bias", True)))
            setattr(self, names[2], torch.nn.Linear(h, c, bias=options.get("bias", True)))

        def forward(self, ids):
            embedding, lstm, linear = (getattr(self, name) for name in names)
            _, (state, _) = lstm(embedding(ids))
            return linear(state[-1])

    return Classifier().eval()


def torch_probabilities(model, ids):
    import torch

    with torch.no_grad():
        logits = model(torch.from_numpy(ids))
        if logits.shape[1] == 1:
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        return torch.softmax(logits, dim=1).numpy()


def torch_predict(path, ids, out):
    import torch
    from safetensors.numpy import load_file

    state = {name: torch.from_numpy(array.copy()) for name, array in load_file(path).items()}
    v, e = state["embedding.weight"].shape
    c, h = state["linear.weight"].shape
    model = torch_model(v, e, h, c)
    model.load_state_dict(state, strict=True)
    write(out, torch_probabilities(model, read_ids(ids)))
    return torch_versions()


def torch_versions():
    import safetensors
    import torch

    return {"torch": torch.__version__, "safetensors": safetensors.__version__}


def make_torch(folder):
    import torch
    from safetensors.numpy import save_file

    folder = pathlib.Path(folder)
    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    plain, square = SHAPES["plain"], SHAPES["square"]
    cases = {
        "torch-plain": (plain, {}),
        "torch-square": (square, {}),
        "torch-names": (plain, {"names": ("words", "encoder", "classifier")}),
        "torch-no-bias": (plain, {"bias": False}),
        "torch-logit": ((*plain[:3], 1, plain[4]), {}),
    }
    for name, ((v, e, h, c, t), options) in cases.items():
        model = torch_model(v, e, h, c, **options)
        ids = rng.integers(0, v, (40, t))
        write(folder / f"{name}.npz", torch_probabilities(model, ids), ids=ids)
        save_file({key: value.numpy().copy() for key, value in model.state_dict().items()}, folder / f"{name}.safetensors")

    v, e, h, c, _ = plain
    embedding, linear = torch.nn.Embedding(v, e), torch.nn.Linear(h, c)
    refused = {
        "two-layers": (torch.nn.LSTM(e, h, num_layers=2), ["second layer", "_l1"]),
        "bidirectional": (torch.nn.LSTM(e, h, bidirectional=True), ["bidirectional"]),
        "projection": (torch.nn.LSTM(e, h, proj_size=3), ["weight_h"]),
        "gru": (torch.nn.GRU(e, h), ["GRU"]),
        "rnn": (torch.nn.RNN(e, h), ["RNN"]),
    }
    words = {}
    for name, (layer, expected) in refused.items():
        state = {}
        for prefix, module in [("embedding", embedding), ("lstm", layer), ("linear", linear)]:
            state.update({f"{prefix}.{key}": value.numpy().copy() for key, value in module.state_dict().items()})
        save_file(state, folder / f"refused-{name}.safetensors")
        words[f"refused-{name}.safetensors"] = expected
    (folder / "refused-torch.json").write_text(json.dumps(words))
    return torch_versions()


if __name__ == "__main__":
    commands = {"keras": keras_predict, "onnx": onnx_predict, "torch": torch_predict, "make-keras": make_keras, "make-torch": make_torch, "text": text}
    if len(sys.argv) < 2 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    print(json.dumps(commands[sys.argv[1]](*sys.argv[2:])))
