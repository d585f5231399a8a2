#!/usr/bin/env python3
"""Makes the golden numbers of tests/golden.rs with Keras: small.json, options.json and reference_shape.json, beside this
script.

    KERAS_BACKEND=jax python tests/golden/make.py            # writes the files
    KERAS_BACKEND=jax python tests/golden/make.py --check    # writes nothing; fails if they would differ

Needs keras, jax and numpy (the versions that made a file stand inside it). With the same versions on the same
kind of processor two runs give the same bytes; another instruction set may change last digits.

Why JAX and not TensorFlow: on TensorFlow, Keras 3 hands Adam the embedding's gradient as (id, row) pairs and squares
them before it sums duplicate ids, so its second moment is sum(g^2) instead of (sum g)^2. On JAX it is dense.

Why the loss is `SparseCategoricalCrossentropy(from_logits=True)` over a linear Dense: that is what Keras on TensorFlow
computes for Dense(softmax), because a TensorFlow tensor carries its logits along (`_keras_logits`). JAX arrays take no
attributes, so Keras on JAX falls back to probabilities clipped to [1e-7, 1 - 1e-7]. `small` computes both and asserts
that loss and gradients agree where nothing is clipped, and that they differ where something is.

How Adam's betas round (asserted in `check_adam`): Keras takes beta^t in the variable's type. With float64 variables
on JAX nothing is rounded; with float32 ones the powers and 1 - beta^t are float32, which makes alpha 6.7e-6 of itself
too small at t = 1. (On TensorFlow a Python float becomes a float32 tensor before it is cast, so there even float64
variables see betas rounded to float32.)

How float64 stays float64: Keras' type promotion turns float64 into float32 on JAX whatever floatx says (the table
BIT64_TO_BIT32_DTYPE; keras-team/keras issue 23223), and its tanh goes through it, so that a "float64" LSTM is off by
1e-7. The float64 part sets that one entry right and leaves the rest of Keras alone; NumPy checks the result.
"""

import argparse
import hashlib
import json
import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
NAMES = [
    "embedding/embeddings",
    "lstm/kernel",
    "lstm/recurrent_kernel",
    "lstm/bias",
    "dense/kernel",
    "dense/bias",
]


def build(vocab, embed, steps, hidden, classes, activation=None):
    """Embedding -> LSTM -> Dense as Keras' own layers."""
    import keras

    model = keras.Sequential(
        [
            keras.Input((steps,), dtype="int32"),
            keras.layers.Embedding(vocab, embed, name="embedding"),
            keras.layers.LSTM(hidden, name="lstm"),
            keras.layers.Dense(classes, activation=activation, name="dense"),
        ]
    )
    assert [v.dtype for v in model.trainable_variables] == [keras.config.floatx()] * 6
    return model


def named(model, arrays):
    """`arrays`, in the order of the model's variables, under the names of the parameter table."""
    import numpy as np

    paths = [v.path for v in model.trainable_variables]
    # Keras puts the model's name in front, and the cell's between the layer's and the variable's.
    paths = ["/".join(p.replace("lstm/lstm_cell/", "lstm/").split("/")[-2:]) for p in paths]
    assert paths == NAMES, paths
    return {n: np.asarray(a) for n, a in zip(NAMES, arrays)}


def flat(array):
    """A list whose JSON text has just the digits that the array's type needs to be read back exactly."""
    import numpy as np

    array = np.asarray(array)
    assert np.all(np.isfinite(array))
    if array.dtype == np.float32:
        return [float(str(x)) for x in array.ravel()]
    return array.ravel().tolist()


# ---------------------------------------------------------------- the small model


DIMS = dict(vocab=23, embed=5, steps=7, hidden=6, classes=3)
ROWS = [9, 9, 4]  # the last batch is smaller
# A power of two: StepState holds the rate as f32, and the f64 comparison must not see that rounding.
LR = 2.0**-10


def small_inputs():
    """Weights on a grid of 1/256 (exact in f32, short in JSON) and three batches."""
    import numpy as np

    rng = np.random.default_rng(20240917)
    v, e, t, h, c = DIMS.values()
    limits = dict(zip(NAMES, [1.5, 1.25, 1.0, 2.0, 1.0, 0.5]))
    shapes = dict(zip(NAMES, [(v, e), (e, 4 * h), (h, 4 * h), (4 * h,), (h, c), (c,)]))
    weights = {n: np.round(rng.uniform(-limits[n], limits[n], shapes[n]) * 256) / 256 for n in NAMES}
    ids = []
    for step, rows in enumerate(ROWS):
        # Ids 12 to 19 are in the first batch only, so that their rows move on momentum alone; 20 and more in none.
        batch = rng.integers(1, 20 if step == 0 else 12, (rows, t))
        for row in range(rows):
            batch[row, : rng.integers(0, 4)] = 0  # padded in front
        batch[0] = batch[0, -1]  # one id throughout: seven duplicates in one row
        ids.append(batch)
    labels = [rng.integers(0, c, rows) for rows in ROWS]
    labels[0][:c] = np.arange(c)
    first, later = set(ids[0].ravel()), set(ids[1].ravel()) | set(ids[2].ravel())
    assert first - later, "some ids must be absent after the first batch"
    assert max(first | later) < v - 1, "some ids must be in no batch"
    return weights, ids, labels


def grads_of(model, loss, x, y):
    """Gradients of the batch's mean loss by every variable, through Keras' stateless call."""
    import jax

    def f(variables):
        out, _ = model.stateless_call(variables, [v.value for v in model.non_trainable_variables], x)
        return loss(y, out)

    return jax.value_and_grad(f)([v.value for v in model.trainable_variables])


def small(floatx):
    import jax
    import keras
    import numpy as np

    assert keras.backend.backend() == "jax"
    keras.config.set_floatx(floatx)
    if floatx == "float64":
        from keras.src.backend.common import dtypes

        one = np.ones(1)
        assert keras.ops.tanh(one).dtype == "float32", "Keras was mended: this workaround can go"
        dtypes.BIT64_TO_BIT32_DTYPE["float64"] = "float64"
        assert keras.ops.tanh(one).dtype == "float64"
    weights, ids, labels = small_inputs()
    v, e, t, h, c = DIMS.values()

    model = build(**DIMS)
    model.set_weights([weights[n].astype(floatx) for n in NAMES])
    from_logits = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.Adam(LR)
    model.compile(optimizer, from_logits, metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")])

    # One layer that gives every time step's output and the last states, with the same weights.
    every = keras.layers.LSTM(h, return_sequences=True, return_state=True)
    embedded = keras.layers.Embedding(v, e)
    x0, y0 = ids[0].astype("int32"), labels[0].astype("int32")
    every(embedded(x0))
    embedded.set_weights([weights[NAMES[0]]])
    every.set_weights([weights[n] for n in NAMES[1:4]])
    h_sequence, h_last, c_last = every(embedded(x0))
    np.testing.assert_array_equal(h_sequence[:, -1], h_last)
    if floatx == "float64":
        check_forward(weights, ids[0], h_sequence, c_last)

    logits = model(x0)
    probs = keras.activations.softmax(logits)
    loss, grads = grads_of(model, from_logits, x0, y0)
    row_losses = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=None)(y0, logits)
    out = {
        "logits": logits,
        "probabilities": probs,
        "row_losses": row_losses,
        "h_sequence": h_sequence,
        "c_last": c_last,
    }
    out |= {f"grad/{n}": g for n, g in named(model, grads).items()}

    # Dense(softmax) with the loss from probabilities: the same numbers while nothing is clipped.
    softmaxed = build(**DIMS, activation="softmax")
    softmaxed.set_weights(model.get_weights())
    from_probs = keras.losses.SparseCategoricalCrossentropy()
    loss2, grads2 = grads_of(softmaxed, from_probs, x0, y0)
    tol = 1e-13 if floatx == "float64" else 1e-5
    assert abs(loss - loss2) <= tol * abs(loss)
    for a, b in zip(grads, grads2):
        assert np.max(np.abs(a - b)) <= tol * np.max(np.abs(a)), floatx

    # Saturated logits: what an unclipped loss says of them, and that Keras on JAX clips probabilities.
    extreme = np.array([[40, -40, 0], [-90, 5, 5.5], [3, 3, 3], [0, -120, 120]], floatx)
    extreme_labels = np.array([1, 0, 2, 2], "int32")
    unreduced = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=None)
    out["extreme/row_losses"] = unreduced(extreme_labels, extreme)
    out["extreme/probabilities"] = keras.activations.softmax(extreme)
    out["extreme/dlogits"] = jax.grad(lambda z: from_logits(extreme_labels, z))(jax.numpy.asarray(extreme))
    assert out["extreme/row_losses"][0] == 80
    clipped = from_probs(extreme_labels[:1], keras.activations.softmax(extreme[:1]))
    assert abs(clipped + np.log(1e-7)) < 1e-3, clipped

    # Three steps of Keras' own training loop.
    losses, accuracies, all_grads = [], [], []
    for step, (x, y) in enumerate(zip(ids, labels)):
        x, y = x.astype("int32"), y.astype("int32")
        all_grads.append([np.asarray(g) for g in grads_of(model, from_logits, x, y)[1]])
        model.reset_metrics()  # train_on_batch would report the mean since the last reset
        loss_and_accuracy = model.train_on_batch(x, y)
        losses.append(np.asarray(loss_and_accuracy[0], floatx))
        accuracies.append(np.asarray(loss_and_accuracy[1], floatx))
        if step in (0, 2):
            after = named(model, model.get_weights())
            out |= {f"after{step + 1}/{n}": w for n, w in after.items()}
    # train_on_batch goes through Keras' `Mean`, which multiplies by the rows and divides again.
    assert abs(losses[0] - loss) <= (1e-15 if floatx == "float64" else 3e-7)
    out["loss"] = np.asarray(losses)
    out["accuracy"] = np.asarray(accuracies)

    m = named(model, [w.value for w in optimizer._momentums])
    second = named(model, [w.value for w in optimizer._velocities])
    out |= {f"adam_m/{n}": w for n, w in m.items()}
    out |= {f"adam_v/{n}": w for n, w in second.items()}
    check_adam(weights, all_grads, out, floatx)

    for name, array in out.items():
        assert np.asarray(array).dtype == floatx, (name, np.asarray(array).dtype)
    versions = {"keras": keras.__version__, "jax": jax.__version__, "numpy": np.__version__}
    return {"versions": versions, "arrays": {n: flat(a) for n, a in out.items()}}


def check_forward(weights, ids, h_sequence, c_last):
    """The LSTM's equations in NumPy: that Keras really computes in float64 throughout."""
    import numpy as np

    table, w, u, b = (weights[n] for n in NAMES[:4])
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    h = c = np.zeros_like(c_last)
    for t in range(ids.shape[1]):
        i, f, g, o = np.split(table[ids[:, t]] @ w + h @ u + b, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        assert np.max(np.abs(h - h_sequence[:, t])) < 1e-14
    assert np.max(np.abs(c - c_last)) < 1e-14


def check_adam(weights, all_grads, out, floatx):
    """Replays Keras' three steps from its gradients in NumPy, which settles how its betas round."""
    import keras
    import numpy as np

    def replay(b1, b2):
        worst = 0.0
        for i, n in enumerate(NAMES):
            p, m, v = weights[n].copy(), 0.0, 0.0
            for t, grads in enumerate(all_grads, 1):
                g = grads[i].astype("float64")
                alpha = LR * np.sqrt(1 - b2**t) / (1 - b1**t)
                m = m + (g - m) * (1 - 0.9)
                v = v + (g * g - v) * (1 - 0.999)
                p = p - m * alpha / (np.sqrt(v) + 1e-7)
            worst = max(worst, np.max(np.abs(p - np.asarray(out[f"after3/{n}"], "float64"))))
        return worst

    exact = replay(0.9, 0.999)
    rounded = replay(float(np.float32(0.9)), float(np.float32(0.999)))
    print(f"{floatx}: three Adam steps replayed with exact betas in the bias correction: off by {exact:.1e}, "
          f"with betas rounded to f32: {rounded:.1e}", file=sys.stderr)
    if floatx == "float64":
        assert exact < 1e-15 < 1e-9 < rounded
    else:
        assert exact < 2.5e-7, "rounding of weights up to 2, in each of three steps"
    # Small enough to see alpha itself: one step of a variable at zero, with gradient 1.
    optimizer = keras.optimizers.Adam(LR)
    variable = keras.Variable(np.zeros(1), dtype=floatx)
    optimizer.build([variable])
    optimizer.apply([np.ones(1, floatx)], [variable])
    alpha = LR * np.sqrt(1 - 0.999) / (1 - 0.9)
    off = float(variable.value[0]) / (-alpha * (1 - 0.9) / (np.sqrt(1 - 0.999) + 1e-7)) - 1
    print(f"{floatx}: alpha at t = 1 off by {off:.1e} of itself", file=sys.stderr)
    assert abs(off) < 1e-15 if floatx == "float64" else -6.9e-6 < off < -6.5e-6


# ---------------------------------------------------------------- what may be chosen besides

OPTIONS = dict(weight_decay=2.0**-3, clip_norm=0.5, class_weights=[0.5, 2.0, 1.25], steps=6, warmup_steps=2)


def options():
    """Six steps of the small model with weight decay, clipping, class weights and a scheduled rate at once."""
    import jax
    import keras
    import numpy as np

    assert keras.backend.backend() == "jax"
    weights, ids, labels = small_inputs()
    model = build(**DIMS)
    model.set_weights([weights[n].astype("float32") for n in NAMES])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    warmup, steps = OPTIONS["warmup_steps"], OPTIONS["steps"]
    schedule = keras.optimizers.schedules.CosineDecay(0.0, steps - warmup, warmup_target=LR, warmup_steps=warmup)
    optimizer = keras.optimizers.AdamW(
        schedule, weight_decay=OPTIONS["weight_decay"], global_clipnorm=OPTIONS["clip_norm"]
    )
    model.compile(optimizer, loss)
    losses, norms = [], []
    for step in range(steps):
        x, y = ids[step % 3].astype("int32"), labels[step % 3].astype("int32")
        rows = np.asarray(OPTIONS["class_weights"], "float32")[y]
        grads = grads_of(model, lambda y, z: loss(y, z, sample_weight=rows), x, y)[1]
        norms.append(float(np.sqrt(sum(np.sum(np.square(np.asarray(g, "float64"))) for g in grads))))
        model.reset_metrics()
        found = model.train_on_batch(x, y, class_weight=dict(enumerate(OPTIONS["class_weights"])))
        losses.append(np.asarray(found, "float32"))
    print("norms of the gradients:", norms, file=sys.stderr)
    assert min(norms) < OPTIONS["clip_norm"] < max(norms), "some steps must clip and some not"
    arrays = {f"after/{n}": w for n, w in named(model, model.get_weights()).items()}
    arrays |= {f"adam_m/{n}": w for n, w in named(model, [w.value for w in optimizer._momentums]).items()}
    arrays |= {f"adam_v/{n}": w for n, w in named(model, [w.value for w in optimizer._velocities]).items()}
    arrays["loss"] = np.asarray(losses)
    # Schedules alone, beyond their end too: with and without warm-up, as (rate, steps, warm-up).
    schedules = {}
    for rate, total, warmup in [(LR, steps, 2), (0.001, 7820, 0), (0.003, 1000, 137)]:
        decay = keras.optimizers.schedules.CosineDecay
        made = decay(0.0, total - warmup, warmup_target=rate, warmup_steps=warmup) if warmup else decay(rate, total)
        at = sorted({0, 1, 2, warmup, warmup + 1, total // 3, total // 2, total - 2, total - 1, total, total + 5})
        schedules[f"{rate},{total},{warmup}"] = {"at": at, "rates": flat(np.asarray([float(made(s)) for s in at]))}
    versions = {"keras": keras.__version__, "jax": jax.__version__, "numpy": np.__version__}
    return {"versions": versions, "schedules": schedules, "arrays": {n: flat(a) for n, a in arrays.items()}}


# ---------------------------------------------------------------- the reference shape


class Lcg:
    """Knuth's MMIX generator, x <- a x + c mod 2^64, of which each draw gives the upper 24 bits."""

    def __init__(self, seed):
        self.x = seed

    def next(self):
        self.x = (self.x * 6364136223846793005 + 1442695040888963407) % 2**64
        return self.x >> 40

    def uniform(self, limit):
        """In [-limit, limit), computed in f64."""
        return limit * (self.next() - 2**23) / 2**23


# In the order of the parameter table: shape, limit. Near Keras' initial scales; the bias gets forget part 1 on top.
REFERENCE = dict(vocab=10000, embed=16, steps=32, hidden=32, classes=2)
REFERENCE_LIMITS = [0.05, 0.2, 0.15, 0.05, 0.4, 0.05]
BATCH, BATCHES, DISTINCT, SEED = 32, 3, 300, 1


def reference_inputs():
    """What golden.rs' `reference_inputs` draws, in the same order."""
    import numpy as np

    rng = Lcg(SEED)
    v, e, t, h, c = REFERENCE.values()
    shapes = [(v, e), (e, 4 * h), (h, 4 * h), (4 * h,), (h, c), (c,)]
    weights = []
    for shape, limit in zip(shapes, REFERENCE_LIMITS):
        drawn = np.array([rng.uniform(limit) for _ in range(int(np.prod(shape)))])
        weights.append(drawn.reshape(shape))
    weights[3][h : 2 * h] += 1
    ids = np.zeros((BATCHES * BATCH, t), "int32")
    labels = np.zeros(BATCHES * BATCH, "int32")
    for row in range(BATCHES * BATCH):
        length = 1 + rng.next() % t
        for position in range(t - length, t):
            ids[row, position] = 3 + 33 * (rng.next() % DISTINCT)
        labels[row] = rng.next() % c
    return dict(zip(NAMES, [w.astype("float32") for w in weights])), ids, labels


def reference_shape():
    import jax
    import keras
    import numpy as np

    assert keras.backend.backend() == "jax"
    weights, ids, labels = reference_inputs()
    model = build(**REFERENCE)
    model.set_weights(list(weights.values()))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(), loss)
    losses = []
    for step in range(BATCHES):
        part = slice(step * BATCH, (step + 1) * BATCH)
        losses.append(np.asarray(loss(labels[part], model(ids[part]))))
        model.train_on_batch(ids[part], labels[part])
    after = named(model, model.get_weights())
    table = after.pop(NAMES[0])
    touched = np.unique(ids)
    untouched = np.setdiff1d(np.arange(REFERENCE["vocab"]), touched)
    np.testing.assert_array_equal(table[untouched], weights[NAMES[0]][untouched])
    arrays = {n: flat(w) for n, w in after.items()}
    arrays["touched_rows"] = flat(table[touched])
    arrays["loss"] = flat(np.asarray(losses))
    versions = {"keras": keras.__version__, "jax": jax.__version__, "numpy": np.__version__}
    digest = hashlib.sha256()
    for array in [*(w.astype("<f4") for w in weights.values()), ids.astype("<u4"), labels.astype("<u4")]:
        digest.update(array.tobytes())
    inputs = {"inputs_sha256": digest.hexdigest(), "touched": touched.tolist()}
    return {"versions": versions, "inputs": inputs, "arrays": arrays}


# ---------------------------------------------------------------- files


def text(document):
    """JSON with one array a line."""
    def dump(value, depth):
        if not isinstance(value, dict):
            return json.dumps(value, separators=(",", ":"))
        pad = "  " * (depth + 1)
        rows = ",\n".join(f"{pad}{json.dumps(k)}: {dump(v, depth + 1)}" for k, v in value.items())
        return "{\n" + rows + "\n" + "  " * depth + "}"

    return dump(document, 0) + "\n"


def child(what, x64):
    """A fresh process: floatx and x64 are best set before anything is imported."""
    env = dict(os.environ, KERAS_BACKEND="jax", JAX_ENABLE_X64=str(int(x64)), JAX_PLATFORMS="cpu")
    # One thread: no reduction may depend on how many cores there are.
    env["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    done = subprocess.run([sys.executable, __file__, "--part", what], env=env, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the files instead of writing them")
    parser.add_argument("--part", choices=["float32", "float64", "options", "reference"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        made = {"reference": reference_shape, "options": options}
        part = made[args.part]() if args.part in made else small(args.part)
        json.dump(part, sys.stdout)
        return 0

    weights, ids, labels = small_inputs()
    single, double = child("float32", False), child("float64", True)
    reference, chosen = child("reference", False), child("options", False)
    assert single["versions"] == double["versions"] == reference["versions"]
    head = {"made_by": "tests/golden/make.py, KERAS_BACKEND=jax", "versions": single["versions"]}
    files = {
        "small.json": head
        | {
            "dims": DIMS,
            "adam": {"lr": LR, "beta1": 0.9, "beta2": 0.999, "eps": 1e-7},
            "ids": [flat(x) for x in ids],
            "labels": [flat(y) for y in labels],
            "extreme_logits": [40, -40, 0, -90, 5, 5.5, 3, 3, 3, 0, -120, 120],
            "extreme_labels": [1, 0, 2, 2],
            "weights": {n: flat(w) for n, w in weights.items()},
            "float32": single["arrays"],
            "float64": double["arrays"],
        },
        "options.json": head
        | {"lr": LR}
        | OPTIONS
        | {"schedules": chosen["schedules"], "arrays": chosen["arrays"]},
        "reference_shape.json": head | reference["inputs"] | {"arrays": reference["arrays"]},
    }
    status = 0
    for name, document in files.items():
        made = text(document)
        if args.check:
            same = (HERE / name).read_text() == made
            print(f"{name}: {'as made' if same else 'DIFFERS from what this script makes here'}")
            status |= not same
        else:
            (HERE / name).write_text(made)
            print(f"{name}: {len(made)} bytes")
    return status


if __name__ == "__main__":
    sys.exit(main())
