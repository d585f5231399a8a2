"""What every peer shares: the flags, the data, Keras' initial weights, and the protocol of `scripts/peers`.

A peer's script defines a class with `train(rows)`, `evaluate()` and, where it can, `inference(rows)`, and hands it to
`main`. It prints one JSON line a measurement; with --worker it prints `ready` first and then answers requests such as
{"what": "train_epoch"} from standard input, so that several peers can take turns without starting anew.

    train_epoch  one pass over the training rows, in the next prepared order; seconds of the whole pass
    train_step   the same, seconds of a step
    evaluate     loss and accuracy of the test rows
    inference    calls of `rows` rows for a third of a second; mean seconds of a call, and its median and 99th percentile

--whole is a user's program from its start to its end: read the archive, prepare it, train --epochs epochs with a
shuffle buffer of 10,000, evaluate after each.

NumPy and the peer are all that is needed.
"""

import argparse
import json
import sys
import time

import numpy as np

LR, BETA1, BETA2, EPS = 1e-3, 0.9, 0.999, 1e-7


def options(description: str, variants: list) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, epilog=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=variants, default=variants[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=0, help="0: what the peer takes by itself")
    for name, default in dict(batch=32, time=32, embed=16, hidden=32, vocab=10_000).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--steps", type=int, default=0, help="steps of a measurement of train_step; 0: all rows")
    parser.add_argument("--epochs", type=int, default=0, help="epochs of --whole (10), measurements of train_epoch (3)")
    parser.add_argument("--repeat", type=int, default=3, help="measurements of each")
    parser.add_argument("--what", default="train_epoch", help="train_epoch,train_step,evaluate,inference")
    parser.add_argument("--rows", type=int, default=1, help="rows of a call of inference")
    parser.add_argument("--worker", action="store_true", help="answer requests from standard input")
    parser.add_argument("--whole", action="store_true", help="train and evaluate as a program of its own")
    parser.add_argument("--data", help="what peer_shapes --prepare wrote, or Keras' imdb.npz (--whole); else synthetic rows")
    parser.add_argument("--weights", help="initial weights, .npz in Keras' layout; else random ones")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


# Data -----------------------------------------------------------------------------------------------------------------


def pad(sequences, maxlen: int) -> np.ndarray:
    """Keras' `pad_sequences`, padding and truncating before."""
    x = np.zeros((len(sequences), maxlen), np.int32)
    for row, ids in zip(x, sequences):
        kept = ids[-maxlen:]
        row[maxlen - len(kept):] = kept
    return x


def imdb_part(x, y, rng, num_words: int, maxlen: int):
    """One part as Keras' `imdb.load_data(num_words)` prepares it, then padded."""
    indices = np.arange(len(x))
    rng.shuffle(indices)
    rows = []
    for ids in x[indices]:
        ids = [1] + [word + 3 for word in ids[-maxlen:]]
        rows.append([word if word < num_words else 2 for word in ids])
    return pad(rows, maxlen), y[indices].astype(np.int32)


class Data:
    """x [N,T] and y [N] for training and testing, and an order of the training rows for each epoch."""

    def __init__(self, o: argparse.Namespace):
        orders = None
        if o.data is None:
            rows = o.steps * o.batch or 25_000
            (self.x_train, self.y_train), (self.x_test, self.y_test) = (synthetic(n, o, s) for n, s in ((rows, 0), (max(1024, rows), 1)))
        else:
            with np.load(o.data, allow_pickle=True) as archive:
                x, y, x_test, y_test = (archive[name] for name in ("x_train", "y_train", "x_test", "y_test"))
                orders = archive["orders"] if "orders" in archive else None
            if x.dtype == object:
                rng = np.random.RandomState(113)
                x, y = imdb_part(x, y, rng, o.vocab, o.time)
                x_test, y_test = imdb_part(x_test, y_test, rng, o.vocab, o.time)
            self.x_train, self.y_train, self.x_test, self.y_test = x, y, x_test, y_test
        if orders is None:
            orders = [shuffled(len(self.x_train), 10_000, np.random.default_rng(o.seed + epoch)) for epoch in range(max(1, o.epochs))]
        self.orders = orders


def synthetic(rows: int, o: argparse.Namespace, seed: int):
    """Ids as skewed as words are. For trying a script alone: compared runs read a prepared file."""
    rng = np.random.default_rng(seed)
    x = (3 + rng.random((rows, o.time)) ** 3 * (o.vocab - 4)).astype(np.int32)
    return x, (x % 2 == 1).mean(1).round().astype(np.int32)


def shuffled(rows: int, buffer: int, rng) -> np.ndarray:
    """An order as a shuffle buffer of `tf.data` gives it."""
    buffer = min(buffer, rows)
    slots, order = np.arange(buffer), np.empty(rows, np.int64)
    draws = rng.integers(0, buffer, rows - buffer).tolist()
    slots = slots.tolist()
    for k, slot in enumerate(draws):
        order[k] = slots[slot]
        slots[slot] = buffer + k
    order[rows - buffer:] = rng.permutation(slots)
    return order


# Weights --------------------------------------------------------------------------------------------------------------


def initial_weights(o: argparse.Namespace, classes: int = 2) -> dict:
    """Keras' names and layout: a file's, or Keras' initialisers from --seed."""
    if o.weights:
        with np.load(o.weights) as archive:
            return {name: archive[name].astype(np.float32) for name in archive.files}
    rng = np.random.default_rng(o.seed)

    def glorot(*shape):
        limit = np.sqrt(6 / sum(shape))
        return rng.uniform(-limit, limit, shape)

    q, r = np.linalg.qr(rng.normal(size=(4 * o.hidden, o.hidden)))
    bias = np.zeros(4 * o.hidden)
    bias[o.hidden:2 * o.hidden] = 1
    arrays = {
        "embedding/embeddings": rng.uniform(-0.05, 0.05, (o.vocab, o.embed)),
        "lstm/kernel": glorot(o.embed, 4 * o.hidden),
        "lstm/recurrent_kernel": (q * np.sign(np.diag(r))).T,
        "lstm/bias": bias,
        "dense/kernel": glorot(o.hidden, classes),
        "dense/bias": np.zeros(classes),
    }
    return {name: array.astype(np.float32) for name, array in arrays.items()}


# Metrics --------------------------------------------------------------------------------------------------------------


def metrics(losses: np.ndarray, hits: np.ndarray, batch: int):
    """Keras' `Mean` of batch losses (a smaller last batch weighs the same) and the accuracy, from every row's."""
    return float(np.mean([losses[k:k + batch].mean() for k in range(0, len(losses), batch)])), float(hits.mean())


def metrics_of(probabilities: np.ndarray, labels: np.ndarray):
    """Loss and accuracy of probabilities."""
    losses = -np.log(probabilities[np.arange(len(labels)), labels])
    return float(losses.mean()), float((probabilities.argmax(1) == labels).mean())


# The protocol ---------------------------------------------------------------------------------------------------------


class Runner:
    def __init__(self, o: argparse.Namespace, peer: str, version: str, make):
        self.o, self.peer, self.version = o, peer, version
        self.data = Data(o)
        self.bench = make(self.data)

    def measure(self, what: str, rows: int) -> dict:
        more = {}
        if what in ("train_epoch", "train_step"):
            of = len(self.data.x_train)
            if what == "train_step" and self.o.steps:
                of = min(of, self.o.steps * self.o.batch)
            begun = time.perf_counter()
            loss, accuracy = self.bench.train(of)
            seconds = time.perf_counter() - begun
            count = -(-of // self.o.batch)
            if what == "train_step":
                seconds /= count
        elif what == "evaluate":
            begun = time.perf_counter()
            loss, accuracy = self.bench.evaluate()
            seconds, count = time.perf_counter() - begun, len(self.data.x_test)
        elif what == "inference":
            seconds, loss, accuracy, more = self.infer(rows)
            count = rows
        else:
            sys.exit(f"there is no measurement {what!r}")
        return dict(self.line(what), seconds=[seconds], loss=loss, accuracy=accuracy, count=count, **more)

    def infer(self, rows: int):
        x, y = self.data.x_test, self.data.y_test
        rows, known = min(rows, len(x)), min(len(x), 1024)
        predict = self.bench.predict
        loss, accuracy = metrics_of(np.asarray(predict(x[:known])), y[:known])
        starts = range(0, len(x) - rows + 1, rows)
        calls = []
        for start in (list(starts) * 3)[:3]:
            predict(x[start:start + rows])
        end = time.perf_counter() + 0.3
        while len(calls) < 3 or time.perf_counter() < end:
            start = starts[len(calls) % len(starts)]
            batch = x[start:start + rows]
            begun = time.perf_counter()
            predict(batch)
            calls.append(time.perf_counter() - begun)
        mean = sum(calls) / len(calls)
        calls.sort()
        return mean, loss, accuracy, {"latency": [calls[len(calls) // 2], calls[len(calls) * 99 // 100]]}

    def line(self, what: str) -> dict:
        o = self.o
        shape = {name: getattr(o, name) for name in ("batch", "time", "embed", "hidden", "vocab")}
        return {"peer": self.peer, "version": self.version, "variant": o.variant, "device": o.device, "threads": o.threads, "shape": shape, "what": what}

    def whole(self):
        for epoch in range(self.o.epochs or 10):
            loss, accuracy = self.bench.train(len(self.data.x_train))
            test_loss, test_accuracy = self.bench.evaluate()
            print(f"Epoch {epoch + 1}, Loss: {loss:.4f}, Accuracy: {100 * accuracy:.2f}, Test Loss: {test_loss:.4f}, Test Accuracy: {100 * test_accuracy:.2f}", flush=True)


def say(answer: dict):
    print(json.dumps(answer), flush=True)


def main(o: argparse.Namespace, peer: str, version: str, make):
    """`make(data)` gives an object with train, evaluate and predict as far as the peer has them."""
    if o.whole:
        o.epochs = o.epochs or 10
    runner = Runner(o, peer, version, make)
    if o.whole:
        runner.whole()
    elif o.worker:
        say(dict(runner.line("ready"), seconds=[], loss=0.0, accuracy=0.0, count=0))
        for line in sys.stdin:
            request = json.loads(line)
            say(runner.measure(request["what"], request.get("rows", 1)))
    else:
        for what in o.what.split(","):
            for _ in range(o.epochs or o.repeat):
                say(runner.measure(what, o.rows))
