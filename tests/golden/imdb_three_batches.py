#!/usr/bin/env python3
"""The binary against Keras, from the same weights over the same three batches of IMDB.

    KERAS_BACKEND=jax python tests/golden/imdb_three_batches.py make DATA OUT
    recurve train OUT/three.npz --init OUT/w0.npz --shuffle-buffer 0 --epochs 1 --save OUT/ours
    python tests/golden/imdb_three_batches.py compare OUT/three_after.npz OURS.npz

`make` reads DATA/imdb.npz and writes into OUT, which must lie outside the repository (the reviews carry no licence):
  w0.npz           Keras' own initial weights of the reference model, under their Keras names
  three.npz        the first 96 training rows as the file stores them: x_train (an object array of lists), y_train
  three_after.npz  the weights after one pass of Keras over those rows: three batches of 32 in order, float32
  mixed.npz, mixed_after.npz
                   the same with 48 rows from the front and 48 from the end of the file, in turn: the file is sorted
                   by label, so that three.npz holds one label alone
`compare` prints the largest difference of each array and exits with 1 if one is above 2e-6: a thousandth of what
Adam moved (up to 0.001 a weight and step), and above the 1e-7 by which two float32 evaluations of it differ.

The file's order is not load_data's: that permutes the rows first, and recurve is to read them as they lie.
"""

import argparse
import os
import pathlib
import sys

import numpy as np

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

ROWS, BATCH, MAXLEN, NUM_WORDS = 96, 32, 32, 10_000
START, OOV, INDEX_FROM = 1, 2, 3
TOLERANCE = 2e-6


def load_data_ids(ranks):
    """What Keras' load_data makes of one stored review."""
    ids = [START] + [rank + INDEX_FROM for rank in ranks]
    return [i if i < NUM_WORDS else OOV for i in ids]


def check_against_keras(path, x_train, y_train):
    """`load_data_ids` is Keras' own rule: undo the permutation of load_data and compare every row."""
    from keras.src.datasets import imdb

    # The rebuilt file has not the official digest: hand it over without a download.
    imdb.get_file = lambda *args, **kwargs: str(path)
    (x, y), _ = imdb.load_data(num_words=NUM_WORDS)
    order = np.arange(len(x_train))
    np.random.RandomState(113).shuffle(order)
    for place, row in enumerate(order):
        assert x[place] == load_data_ids(x_train[row]) and y[place] == y_train[row], row


def make(data, out):
    sys.dont_write_bytecode = True  # no __pycache__ beside the fixtures
    import make as golden  # the model is the golden fixture's
    import keras

    assert keras.backend.backend() == "jax", "on TensorFlow Adam squares before it sums duplicate ids"
    repository = pathlib.Path(__file__).resolve().parents[2]
    resolved = out.resolve()
    assert repository != resolved and repository not in resolved.parents, "write outside the repository"
    out.mkdir(parents=True, exist_ok=True)
    path = data / "imdb.npz"
    with np.load(path, allow_pickle=True) as file:
        x_train, y_train = file["x_train"], file["y_train"]
    check_against_keras(path, x_train, y_train)

    keras.utils.set_random_seed(1)
    weights = golden.build(**golden.REFERENCE).get_weights()
    half = np.arange(ROWS // 2)
    sets = {
        "three": np.arange(ROWS),
        "mixed": np.stack([half, len(x_train) - 1 - half], axis=1).ravel(),
    }
    for name, chosen in sets.items():
        x = np.empty(ROWS, object)
        x[:] = [list(x_train[row]) for row in chosen]
        y = y_train[chosen]
        np.savez(out / f"{name}.npz", x_train=x, y_train=y)
        print(f"{name}: labels {np.bincount(y, minlength=2).tolist()}")
        train(golden, out, name, weights, x, y)
    print(f"wrote to {out}")


def train(golden, out, name, weights, x, y):
    """One pass of Keras over three batches, from `weights`."""
    import keras

    ids = keras.utils.pad_sequences(
        [load_data_ids(row) for row in x], value=0, padding="pre", truncating="pre", maxlen=MAXLEN
    )
    model = golden.build(**golden.REFERENCE)
    model.set_weights(weights)
    save(out / "w0.npz", golden.named(model, weights))
    # From logits, as Keras on TensorFlow does for Dense(softmax); see make.py.
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(), loss, metrics=[keras.metrics.SparseCategoricalAccuracy()])
    losses, accuracies = [], []
    for start in range(0, ROWS, BATCH):
        model.reset_metrics()
        part = slice(start, start + BATCH)
        batch_loss, accuracy = model.train_on_batch(ids[part], y[part])
        losses.append(float(batch_loss))
        accuracies.append(float(accuracy))
        print(f"  batch of rows {start} to {start + BATCH - 1}: loss {batch_loss:.7f}, accuracy {accuracy:.5f}")
    # What the epoch's line should say: the mean of the batches' losses, and the share of examples.
    print(f"  epoch: loss {np.mean(losses):.7f}, accuracy {100 * np.mean(accuracies):.4f} %")
    save(out / f"{name}_after.npz", golden.named(model, model.get_weights()))


def save(path, weights):
    np.savez(path, **{name: array.astype("<f4") for name, array in weights.items()})


def compare(a, b):
    worst = 0
    with np.load(a) as a, np.load(b) as b:
        if set(a.files) != set(b.files):
            print(f"different arrays: {sorted(a.files)} and {sorted(b.files)}")
            return 1
        for name in a.files:
            if a[name].shape != b[name].shape:
                print(f"{name}: shapes {a[name].shape} and {b[name].shape}  FAILS")
                worst = 1
                continue
            diff = np.max(np.abs(a[name].astype("f8") - b[name].astype("f8")))
            good = diff <= TOLERANCE  # false for NaN
            print(f"{name}: largest difference {diff:.3e}{'' if good else '  FAILS'}")
            worst |= not good
    print(f"tolerance {TOLERANCE:g}: {'FAILED' if worst else 'passed'}")
    return int(worst)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("make")
    command.add_argument("data", type=pathlib.Path, help="folder with imdb.npz")
    command.add_argument("out", type=pathlib.Path, help="folder to write to, outside the repository")
    command = commands.add_parser("compare")
    command.add_argument("a", type=pathlib.Path)
    command.add_argument("b", type=pathlib.Path)
    args = parser.parse_args()
    if args.command == "make":
        return make(args.data, args.out)
    return compare(args.a, args.b)


if __name__ == "__main__":
    sys.exit(main())
