"""The workload in JAX, written by hand: no layer library.

    scan  a whole epoch in one jitted lax.scan
    step  one jitted training step, called from Python
    scan-f32  scan, without TF32: on a GPU XLA multiplies f32 in TF32 (10 bits of mantissa) unless it is told not to

The input projection of all time steps is one matrix product before the scan over time; Adam has Keras' form. XLA uses every
core that the process may run on; --threads 1 therefore binds the process to one.
"""

import os

import common

o = common.options(__doc__, ["scan", "step", "scan-f32"])
if o.threads and o.device == "cpu":
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:o.threads])
    if o.threads == 1:
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
o.threads = len(os.sched_getaffinity(0))
os.environ["JAX_PLATFORMS"] = o.device
# Others work on the same GPU meanwhile: no three quarters of its memory in advance.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

from functools import partial  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax import lax  # noqa: E402

if o.variant == "scan-f32":
    jax.config.update("jax_default_matmul_precision", "highest")


def logits_of(p: dict, x):
    """x [B,T] to logits [B,C]."""
    hidden = p["lstm/recurrent_kernel"].shape[0]
    pre = p["embedding/embeddings"][x.T] @ p["lstm/kernel"] + p["lstm/bias"]  # [T,B,4H]

    def cell(carry, pre):
        h, c = carry
        i, f, g, out = jnp.split(pre + h @ p["lstm/recurrent_kernel"], 4, axis=1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return (jax.nn.sigmoid(out) * jnp.tanh(c), c), None

    zeros = jnp.zeros((x.shape[0], hidden), pre.dtype)
    (h, _), _ = lax.scan(cell, (zeros, zeros), pre)
    return h @ p["dense/kernel"] + p["dense/bias"]


def losses_of(logits, y):
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1)[:, 0]


def loss_of(p: dict, x, y):
    logits = logits_of(p, x)
    return losses_of(logits, y).mean(), (logits.argmax(1) == y).sum()


def step(state, batch):
    p, m, v, t = state
    (loss, hits), grads = jax.value_and_grad(loss_of, has_aux=True)(p, *batch)
    t = t + 1
    alpha = common.LR * jnp.sqrt(1 - common.BETA2**t) / (1 - common.BETA1**t)
    m = jax.tree.map(lambda m, g: m + (1 - common.BETA1) * (g - m), m, grads)
    v = jax.tree.map(lambda v, g: v + (1 - common.BETA2) * (g * g - v), v, grads)
    p = jax.tree.map(lambda p, m, v: p - alpha * m / (jnp.sqrt(v) + common.EPS), p, m, v)
    return (p, m, v, t), (loss, hits)


jitted_step = jax.jit(step, donate_argnums=0)


@partial(jax.jit, donate_argnums=0)
def scanned_epoch(state, x, y, order):
    """Whole batches of `order` in one scan, then a smaller last one, if there is one."""
    whole = len(order) // o.batch * o.batch
    batches = order[:whole].reshape(-1, o.batch)
    state, (losses, hits) = lax.scan(lambda state, rows: step(state, (x[rows], y[rows])), state, batches)
    loss_sum, correct, count = losses.sum(), hits.sum(), len(batches)
    if whole < len(order):
        rows = order[whole:]
        state, (loss, more) = step(state, (x[rows], y[rows]))
        loss_sum, correct, count = loss_sum + loss, correct + more, count + 1
    return state, loss_sum / count, correct


@jax.jit
def judged(p, x, y):
    logits = logits_of(p, x)
    return losses_of(logits, y), logits.argmax(1) == y


@jax.jit
def probabilities(p, x):
    return jax.nn.softmax(logits_of(p, x))


class Bench:
    evaluation_batch = 256 if o.device == "cpu" else 1024  # the fastest of 32 to 25,000 on a CPU

    def __init__(self, data: common.Data):
        self.orders = data.orders
        self.x, self.y, self.x_test, self.y_test = (jnp.asarray(a, jnp.int32) for a in (data.x_train, data.y_train, data.x_test, data.y_test))
        p = {name: jnp.asarray(array) for name, array in common.initial_weights(o).items()}
        zeros = lambda: jax.tree.map(jnp.zeros_like, p)  # noqa: E731
        self.state = (p, zeros(), zeros(), jnp.zeros((), jnp.float32))
        self.epoch = 0

    def train(self, rows: int):
        order = np.asarray(self.orders[self.epoch % len(self.orders)][:rows], np.int32)
        self.epoch += 1
        if o.variant.startswith("scan"):
            self.state, loss, correct = scanned_epoch(self.state, self.x, self.y, jnp.asarray(order))
            return float(loss), int(correct) / rows
        x, y = np.asarray(self.x)[order], np.asarray(self.y)[order]
        losses, hits = [], []
        for start in range(0, rows, o.batch):
            self.state, (loss, hit) = jitted_step(self.state, (x[start:start + o.batch], y[start:start + o.batch]))
            losses.append(loss)
            hits.append(hit)
        return float(np.mean(jax.device_get(losses))), int(np.sum(jax.device_get(hits))) / rows

    def evaluate(self):
        size = self.evaluation_batch
        parts = [judged(self.state[0], self.x_test[k:k + size], self.y_test[k:k + size]) for k in range(0, len(self.x_test), size)]
        losses, hits = (np.concatenate(each) for each in zip(*jax.device_get(parts)))
        return common.metrics(losses, hits, o.batch)

    def predict(self, x: np.ndarray):
        return np.asarray(probabilities(self.state[0], x))


common.main(o, "jax", jax.__version__, Bench)
