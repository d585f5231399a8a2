"""The workload in TensorFlow and Keras, as the reference program writes it.

    function  a loop over a tf.data set around a `tf.function` training step, and the same for the test set
    xla       the same with jit_compile=True

Keras 3 on TensorFlow squares an embedding gradient before it sums duplicate ids: its losses part from the dense Adam of the
other peers in the third digit.
"""

import os

import common

o = common.options(__doc__, ["function", "xla"])
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if o.device == "cpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
if o.threads == 1:
    # XLA's own pool heeds nothing else.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

if o.threads:
    tf.config.threading.set_intra_op_parallelism_threads(o.threads)
    tf.config.threading.set_inter_op_parallelism_threads(o.threads)
o.threads = o.threads or len(os.sched_getaffinity(0))


class Classifier(tf.keras.Model):
    def __init__(self):
        super().__init__()
        self.embedding = tf.keras.layers.Embedding(o.vocab, o.embed)
        self.lstm = tf.keras.layers.LSTM(o.hidden)
        self.dense = tf.keras.layers.Dense(2, activation="softmax")

    def call(self, x):
        return self.dense(self.lstm(self.embedding(x)))


class Bench:
    def __init__(self, data: common.Data):
        self.data = data
        self.epoch = 0
        self.model = model = Classifier()
        model(tf.zeros((1, o.time), tf.int32))
        w = common.initial_weights(o)
        model.embedding.set_weights([w["embedding/embeddings"]])
        model.lstm.set_weights([w["lstm/kernel"], w["lstm/recurrent_kernel"], w["lstm/bias"]])
        model.dense.set_weights([w["dense/kernel"], w["dense/bias"]])
        entropy = tf.keras.losses.SparseCategoricalCrossentropy()
        optimizer = tf.keras.optimizers.Adam()
        optimizer.build(model.trainable_variables)
        self.loss, self.accuracy = tf.keras.metrics.Mean(), tf.keras.metrics.SparseCategoricalAccuracy()
        self.test_set = tf.data.Dataset.from_tensor_slices((data.x_test, data.y_test)).batch(o.batch)
        xla = o.variant == "xla"

        def forward_backward(x, y):
            with tf.GradientTape() as tape:
                predictions = model(x)
                loss = entropy(y, predictions)
            grads = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(grads, model.trainable_variables))
            self.loss(loss)
            self.accuracy(y, predictions)

        def judge(x, y):
            predictions = model(x)
            self.loss(entropy(y, predictions))
            self.accuracy(y, predictions)

        self.train_step = tf.function(forward_backward, jit_compile=xla)
        self.test_step = tf.function(judge, jit_compile=xla)
        self.predictor = tf.function(model.call, jit_compile=xla)

    def results(self):
        both = float(self.loss.result()), float(self.accuracy.result())
        self.loss.reset_state()
        self.accuracy.reset_state()
        return both

    def train(self, rows: int):
        order = np.asarray(self.data.orders[self.epoch % len(self.data.orders)][:rows])
        self.epoch += 1
        batches = tf.data.Dataset.from_tensor_slices((self.data.x_train[order], self.data.y_train[order])).batch(o.batch)
        for x, y in batches:
            self.train_step(x, y)
        return self.results()

    def evaluate(self):
        for x, y in self.test_set:
            self.test_step(x, y)
        return self.results()

    def predict(self, x: np.ndarray):
        return self.predictor(tf.constant(x)).numpy()


common.main(o, "tensorflow", f"{tf.__version__} (Keras {tf.keras.version()})", Bench)
