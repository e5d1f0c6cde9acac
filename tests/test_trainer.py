"""Trainer, with Keras as the oracle."""

import copy
import gc
import os
import subprocess
import sys
import warnings
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import with_xla_too
from keras import layers

import tpcnn
from tpcnn import Trainer

N, N_VAL, BATCH_SIZE = 200, 70, 32  # neither is a multiple of the batch size


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    x = rng.random((N + N_VAL, 8, 8, 1), dtype=np.float32)
    y = rng.integers(0, 10, N + N_VAL)
    return x[:N], y[:N], x[N:], y[N:]


def network(batch_norm=False, softmax=True, regularizer=None):
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            # Before batch normalisation a bias has no effect: its gradient is mere rounding, which
            # Adam would turn into steps of full length.
            layers.Conv2D(4, 3, use_bias=not batch_norm, kernel_regularizer=regularizer),
            *([layers.BatchNormalization()] if batch_norm else []),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(10, activation="softmax" if softmax else None),
        ]
    )


def make_trainer(model=None, optimizer=None, from_logits=False):
    return Trainer(
        model or network(),
        keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits),
        optimizer or keras.optimizers.Adam(0.01),
    )


OPTIMIZERS = {
    "SGD with momentum": lambda: keras.optimizers.SGD(0.05, momentum=0.9),
    "Adam": lambda: keras.optimizers.Adam(0.01),
    "AdamW": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.01),
}


@with_xla_too
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_training_agrees_with_keras(arrays, optimizer, batch_norm):
    x, y, x_val, y_val = arrays
    ours, theirs = network(batch_norm), network(batch_norm)
    trainer = make_trainer(ours, OPTIMIZERS[optimizer]())
    history = trainer.fit(*arrays, 3, False, batch_size=BATCH_SIZE, shuffle=False)

    theirs.compile(OPTIMIZERS[optimizer](), "sparse_categorical_crossentropy", metrics=["accuracy"])
    expected = theirs.fit(
        x,
        y,
        BATCH_SIZE,
        epochs=3,
        verbose=0,
        shuffle=False,
        validation_data=(x_val, y_val),
    ).history

    for our_weights, their_weights in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(our_weights, their_weights, rtol=1e-4, atol=1e-5)
    assert history.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(history[name], expected[name], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        trainer.predict(x_val), theirs.predict(x_val, verbose=0), rtol=1e-4, atol=1e-5
    )


@with_xla_too
def test_regularizers_count_in_the_loss_as_in_keras(arrays):
    x, y, *_ = arrays
    ours, theirs = network(regularizer="l2"), network(regularizer="l2")
    history = make_trainer(ours).fit(*arrays, 2, False, batch_size=BATCH_SIZE, shuffle=False)
    theirs.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    expected = theirs.fit(x, y, BATCH_SIZE, epochs=2, verbose=0, shuffle=False).history
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-5)


@with_xla_too
def test_same_seed_gives_the_same_bits(arrays):
    def train():
        model = network(batch_norm=True)
        model.add(layers.Dropout(0.1))
        history = make_trainer(model).fit(*arrays, 2, False, batch_size=BATCH_SIZE)
        return model.get_weights(), history

    (weights, history), (weights_again, history_again) = train(), train()
    assert history == history_again
    for first, second in zip(weights, weights_again, strict=True):
        np.testing.assert_array_equal(first, second)


@with_xla_too
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_agrees_with_keras(arrays, policy):
    """The loss is given by name, and a penalty is added to it in the precision of the weights."""
    x, y, x_val, y_val = arrays
    keras.config.set_dtype_policy(policy)
    try:
        ours, theirs = (network(batch_norm=True, regularizer="l2") for _ in range(2))
    finally:
        keras.config.set_dtype_policy("float32")
    loss, optimizers = "sparse_categorical_crossentropy", [keras.optimizers.SGD(0.05) for _ in "12"]
    trainer = Trainer(ours, loss, optimizers[0])
    history = trainer.fit(*arrays, 2, False, batch_size=BATCH_SIZE, shuffle=False)
    theirs.compile(optimizers[1], loss, metrics=["accuracy"])
    expected = theirs.fit(
        x, y, BATCH_SIZE, 2, verbose=0, shuffle=False, validation_data=(x_val, y_val)
    ).history
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-2)
    np.testing.assert_allclose(history["val_loss"], expected["val_loss"], rtol=1e-2)
    for our_weights, their_weights in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(our_weights, their_weights, atol=5e-3)
    np.testing.assert_allclose(np.sum(trainer.predict(x_val), axis=1), 1, rtol=1e-2)
    variables = len(trainer.optimizer.variables)
    trainer.fit(*arrays, 1, False)  # the factor by which the loss is scaled goes on from there
    assert len(trainer.optimizer.variables) == variables


def test_eval_step_changes_neither_weights_nor_statistics(arrays):
    x, y, *_ = arrays
    model = network(batch_norm=True)
    trainer = make_trainer(model)
    before = model.get_weights()
    trainer._eval_step(x, y)
    for first, second in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(first, second)
    assert trainer.train_loss.result() == 0
    assert trainer.val_loss.result() > 0


@with_xla_too
def test_metrics_start_anew_at_each_epoch(arrays):
    *_, x_val, y_val = arrays
    trainer = make_trainer()
    history = trainer.fit(*arrays, 5, False)
    # Averaged over the epochs, they would lag behind what the final network measures.
    expected = trainer.model.evaluate(x_val, y_val, verbose=0)
    np.testing.assert_allclose(
        (history["val_loss"][-1], history["val_accuracy"][-1]), expected, rtol=1e-5
    )
    assert abs(np.mean(history["val_loss"]) - expected[0]) > 1e-4
    assert trainer.train_loss.count == N


class Seen(layers.Layer):
    """Notes the first pixel of each image that passes in training."""

    def __init__(self):
        super().__init__()
        self.pixels = []
        self.supports_jit = False  # XLA knows no py_function

    def call(self, x, training=False):
        if training:
            tf.py_function(lambda p: self.pixels.extend(p.numpy()), [x[:, 0, 0, 0]], [])
        return x


@with_xla_too
def test_an_optimizer_that_averages_weights_ends_as_in_keras(arrays):
    x, y, *_ = arrays
    ours, theirs = network(), network()
    optimizers = [keras.optimizers.AdamW(0.01, use_ema=True) for _ in range(2)]
    make_trainer(ours, optimizers[0]).fit(*arrays, 2, False, batch_size=BATCH_SIZE, shuffle=False)
    theirs.compile(optimizers[1], "sparse_categorical_crossentropy")
    theirs.fit(x, y, BATCH_SIZE, epochs=2, verbose=0, shuffle=False)
    for our_weights, their_weights in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(our_weights, their_weights, rtol=1e-4, atol=1e-5)


@with_xla_too
@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_visits_every_image_once(arrays, shuffle):
    x, y, x_val, y_val = arrays
    x[:, 0, 0, 0] = np.arange(N) / N
    seen = Seen()
    model = keras.Sequential([keras.Input((8, 8, 1)), seen, *network().layers])
    make_trainer(model).fit(x, y, x_val, y_val, 2, False, batch_size=BATCH_SIZE, shuffle=shuffle)
    first, second = np.split(np.array(seen.pixels), 2)
    np.testing.assert_array_equal(np.sort(first), x[:, 0, 0, 0])
    np.testing.assert_array_equal(np.sort(second), x[:, 0, 0, 0])
    in_order = np.array_equal(first, x[:, 0, 0, 0])
    assert in_order != shuffle
    assert np.array_equal(first, second) != shuffle


@pytest.mark.parametrize("softmax", [True, False])
def test_predict_gives_probabilities(arrays, softmax):
    x = arrays[0]
    trainer = make_trainer(network(softmax=softmax), from_logits=not softmax)
    probabilities = trainer.predict(x)
    assert isinstance(probabilities, tf.Tensor)
    expected = network(softmax=True)
    expected.set_weights(trainer.model.get_weights())
    np.testing.assert_allclose(probabilities, expected(x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(trainer.predict(x, batch_size=7), probabilities, atol=1e-6)


def test_predict_knows_a_softmax_that_is_not_in_the_last_layer(arrays):
    nested = keras.Sequential([keras.Input((8, 8, 1)), network()])
    for loss in (
        keras.losses.SparseCategoricalCrossentropy(),
        keras.losses.sparse_categorical_crossentropy,
    ):
        trainer = Trainer(nested, loss, keras.optimizers.Adam())
        np.testing.assert_allclose(trainer.predict(arrays[0]), nested(arrays[0]), atol=1e-6)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(10)

    def call(self, x):
        return self.dense(tf.reshape(x, [-1, 64]))


@with_xla_too
def test_a_subclassed_model_trains_and_predicts(arrays):
    trainer = make_trainer(Subclassed(), from_logits=True)
    history = trainer.fit(*arrays, 5, False)
    assert history["loss"][-1] < history["loss"][0]
    np.testing.assert_allclose(np.sum(trainer.predict(arrays[0]), axis=1), 1, rtol=1e-5)


@with_xla_too
def test_no_function_is_traced_again_for_the_last_batch(arrays):
    traces = []

    class Counting(layers.Layer):
        def call(self, x):
            if not tf.executing_eagerly():
                traces.append(x.shape)  # runs when a function is traced, not when it is replayed
            return x

    model = keras.Sequential([keras.Input((8, 8, 1)), Counting(), *network().layers])
    trainer = make_trainer(model)
    traces.clear()
    trainer.fit(*arrays, 2, False, batch_size=BATCH_SIZE)
    trainer.fit(*arrays, 2, False, batch_size=BATCH_SIZE)
    assert len(traces) == 2  # one for the training step, one for the evaluation
    for n in (N, N_VAL, 1):
        trainer.predict(arrays[0][:n])
    assert len(traces) == 3


@with_xla_too
def test_no_function_is_traced_again_in_many_fits(arrays):
    """Whatever TensorFlow traces, it builds as a function of its runtime."""
    x, y, *_ = arrays
    trainer = make_trainer()

    def fit_in_each_way():
        trainer.fit(*arrays, 2, False, batch_size=BATCH_SIZE)
        trainer.fit(*arrays, 1, False, batch_size=BATCH_SIZE, shuffle=False)
        trainer.fit(stream(x, y), None, stream(x, y), None, 1, False)

    fit_in_each_way()
    functions = [
        trainer._train_batches, trainer._train_stream, trainer._train_step, trainer._eval_step
    ]  # fmt: skip
    traced = [function.experimental_get_tracing_count() for function in functions]
    for _ in range(3):
        fit_in_each_way()
    assert [function.experimental_get_tracing_count() for function in functions] == traced
    assert traced[0] == traced[1] == traced[3] == 1


PREDICT_MANY = """
import resource, sys
import numpy as np
import tpcnn, keras
x = np.memmap(sys.argv[1], np.uint8, "w+", shape=(600_000, 8, 8, 1))
model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
trainer = tpcnn.Trainer(model, loss, keras.optimizers.SGD())
trainer.predict(x[:1000])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert trainer.predict(x, batch_size=10_000).shape == (600_000, 10)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


FIT_IN_MEMORY = """
import resource, sys
import numpy as np
import tpcnn, keras
n = int(sys.argv[1])
model = keras.Sequential(
    [keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(10, "softmax")]
)
loss = keras.losses.SparseCategoricalCrossentropy()
trainer = tpcnn.Trainer(model, loss, keras.optimizers.SGD())
rng = np.random.default_rng(0)
if sys.argv[2] == "uint8":
    x = rng.integers(0, 256, (n, 28, 28, 1), np.uint8)
else:
    x = rng.random((n, 28, 28, 1), np.float32)
y = np.arange(n) % 10
trainer.fit(x[:1000], y[:1000], x[:1000], y[:1000], 1, False, batch_size=500)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
trainer.fit(x, y, x[:1000], y[:1000], 1, False, batch_size=500)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("dtype, size", [("float32", 4), ("uint8", 1)])
def test_fit_needs_the_memory_of_the_images_once_more(dtype, size):
    n = 120_000
    command = [sys.executable, "-c", FIT_IN_MEMORY, str(n), dtype]
    grown = int(subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL))
    assert grown < n * 784 * size / 1e6 + 100


@pytest.mark.parametrize("kept", [False, True])
def test_fit_keeps_no_images(arrays, tmp_path, kept):
    """Or each call with other images would take their memory, until Python looks for cycles."""
    x, y, x_val, y_val = arrays
    trainer = make_trainer()
    images = x.copy()
    reference = weakref.ref(images)
    gc.disable()
    try:
        folder = tmp_path if kept else None
        trainer.fit(images, y, x_val, y_val, 1, False, checkpoints=folder)
        del images
        assert reference() is None
    finally:
        gc.enable()


INTERRUPT = """
import itertools, os, signal, threading, time
import tpcnn, keras, numpy as np, tensorflow as tf

def interrupted(units, x, y, after=150, **options):
    layers = [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(units, "relu")]
    model = keras.Sequential([*layers, keras.layers.Dense(10, "softmax")])
    trainer = tpcnn.Trainer(model, "sparse_categorical_crossentropy", keras.optimizers.SGD())

    def interrupt():
        while int(trainer.optimizer.iterations.value) < after:  # well within the epoch
            time.sleep(0.01)
        trainer.interrupted = time.perf_counter()
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    few = np.zeros((10, 8, 8, 1), np.float32), np.zeros(10, int)
    try:
        trainer.fit(x, y, *few, 1, False, **options)
    except KeyboardInterrupt:
        print(time.perf_counter() - trainer.interrupted)
    try:
        trainer.plot_history()
    except RuntimeError as error:
        print(error)

def endless(seconds=0):
    for number in itertools.count():
        time.sleep(float(seconds) if number >= 600 else 0)
        yield np.zeros((32, 8, 8, 1), np.float32), np.zeros(32, np.int64)

x, y = np.zeros((1_000_000, 8, 8, 1), np.float32), np.zeros(1_000_000, int)
interrupted(32, x, y, batch_size=8)
interrupted(8192, x, y, batch_size=512)
signature = tf.TensorSpec((32, 8, 8, 1)), tf.TensorSpec((32,), tf.int64)
for options in {"after": 150}, {"after": 610, "args": [0.1]}:
    args = options.pop("args", [0.0])
    stream = tf.data.Dataset.from_generator(endless, args=args, output_signature=signature)
    interrupted(32, stream, None, **options)
"""


def test_ctrl_c_ends_a_training_within_two_seconds():
    """Short steps, long ones, streams without an end, and one of them becomes slow."""
    command = [sys.executable, "-c", INTERRUPT]
    printed = subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL, timeout=120)
    lines = printed.splitlines()
    assert all(float(seconds) < 2 for seconds in lines[::2]) and len(lines) == 8, printed
    assert all("no history to plot yet" in line for line in lines[1::2]), printed


FIT_A_STREAM = """
import resource
import numpy as np
import tpcnn, keras, tensorflow as tf

def images(batches):
    def batch(i):
        seed = tf.stack([i, i])
        return (
            tf.random.stateless_uniform((1000, 28, 28, 1), seed),
            tf.random.stateless_uniform((1000,), seed, maxval=10, dtype=tf.int32),
        )
    return tf.data.Dataset.range(batches).map(batch).prefetch(1)

model = keras.Sequential(
    [keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(10, "softmax")]
)
loss = keras.losses.SparseCategoricalCrossentropy()
trainer = tpcnn.Trainer(model, loss, keras.optimizers.SGD())
trainer.fit(images(30), None, images(30), None, 1, False)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
# All images together are 1.9 GB; from here on, there is room for less than half of them.
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 800_000_000,) * 2)
trainer.fit(images(600), None, images(30), None, 1, False)
assert float(trainer.train_loss.count) == 600_000
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_stream_of_ten_times_mnist_needs_no_more_memory_than_a_short_one():
    command = [sys.executable, "-c", FIT_A_STREAM]
    # Each thread's arena would take address space, which is what the script limits.
    one_arena = os.environ | {"MALLOC_ARENA_MAX": "1"}
    grown = int(
        subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL, env=one_arena)
    )
    assert grown < 150  # the images are 1900


def test_predict_needs_memory_for_a_batch_not_for_all_images(tmp_path):
    # In a process of its own: the peak of this one may lie behind it.
    command = [sys.executable, "-c", PREDICT_MANY, str(tmp_path / "images")]
    grown = int(subprocess.check_output(command, text=True))
    # 600 000 images are 37 MB as bytes, and the pages of their file count as memory once read;
    # the answer is 23 MB, and exists twice while its batches are joined. As float32 the images
    # would be 146 MB more.
    assert grown < 37 + 2 * 23 + 40


@with_xla_too
@pytest.mark.parametrize("frozen", ["a layer", "all"])
def test_layers_that_are_frozen_after_a_fit_are_not_trained_on_unseen(arrays, frozen):
    """The recorded step would go on to train them."""
    trainer = make_trainer()
    trainer.fit(*arrays, 1, False)
    (trainer.model.layers[0] if frozen == "a layer" else trainer.model).trainable = False
    with pytest.raises(ValueError, match=r"model: expected the 4 trainable weights.*new Trainer"):
        trainer.fit(*arrays, 1, False)


@with_xla_too
def test_keras_callbacks_do_their_work(arrays, tmp_path):
    batches = []
    trainer = make_trainer()
    trainer.fit(
        *arrays,
        50,
        False,
        batch_size=BATCH_SIZE,
        callbacks=[
            keras.callbacks.EarlyStopping("val_loss", patience=1, restore_best_weights=True),
            keras.callbacks.ModelCheckpoint(str(tmp_path / "best.keras"), save_best_only=True),
            keras.callbacks.ReduceLROnPlateau("val_loss", factor=0.5, patience=0),
            keras.callbacks.CSVLogger(str(tmp_path / "log.csv")),
            keras.callbacks.LambdaCallback(
                on_train_batch_end=lambda step, logs: batches.append((step, logs["loss"]))
            ),
        ],
    )
    epochs = len(trainer.history["val_loss"])
    assert epochs < 50
    assert trainer.optimizer.learning_rate < 0.01
    assert [step for step, _ in batches] == list(range(7)) * epochs
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 1 + epochs
    saved = keras.models.load_model(tmp_path / "best.keras")
    for best, restored in zip(saved.get_weights(), trainer.model.get_weights(), strict=True):
        np.testing.assert_array_equal(best, restored)


@with_xla_too
def test_a_callback_that_listens_to_batches_changes_no_result(arrays):
    fast, slow = make_trainer(network()), make_trainer(network())
    keras.utils.set_random_seed(3)
    fast.fit(*arrays, 2, False, batch_size=BATCH_SIZE, shuffle=False)
    listener = keras.callbacks.LambdaCallback(on_train_batch_end=lambda step, logs: None)
    slow.fit(*arrays, 2, False, batch_size=BATCH_SIZE, shuffle=False, callbacks=[listener])
    assert fast.history == slow.history


def stream(x, y, batch_size=BATCH_SIZE):
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(batch_size)


@with_xla_too
@pytest.mark.parametrize("by_batch", [False, True])
def test_a_stream_trains_as_the_same_images_from_memory(arrays, by_batch):
    x, y, x_val, y_val = arrays
    listener = [keras.callbacks.LambdaCallback(on_train_batch_end=lambda step, logs: None)]
    expected, streamed = make_trainer(network(True)), make_trainer(network(True))
    expected.fit(*arrays, 2, False, batch_size=BATCH_SIZE, shuffle=False)
    history = streamed.fit(
        stream(x, y),
        None,
        stream(x_val, y_val, 20),
        None,
        2,
        False,
        callbacks=listener if by_batch else None,
    )
    for name in history:
        np.testing.assert_allclose(history[name], expected.history[name], rtol=1e-6)
    for ours, theirs in zip(
        streamed.model.get_weights(), expected.model.get_weights(), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)


def test_a_stream_goes_together_with_arrays(arrays):
    x, y, x_val, y_val = arrays
    history = make_trainer().fit(stream(x, y), None, x_val, y_val, 1, False)
    other = make_trainer().fit(
        x, y, stream(x_val, y_val), None, 1, False, batch_size=BATCH_SIZE, shuffle=False
    )
    np.testing.assert_allclose(history["val_loss"], other["val_loss"], rtol=1e-6)


@with_xla_too
def test_a_stream_may_hold_bytes_and_batches_of_any_kind_of_integer(arrays):
    x, y, *_ = arrays
    data = stream((255 * x).astype(np.uint8), y.astype(np.uint8))
    from_memory = make_trainer().fit(
        (255 * x).astype(np.uint8).astype(np.float32), y, x, y, 1, False,
        batch_size=BATCH_SIZE, shuffle=False,
    )  # fmt: skip
    history = make_trainer(Unbuilt()).fit(data, None, x, y, 1, False)
    assert np.isfinite(history["loss"]).all()
    history = make_trainer().fit(data, None, x, y, 1, False)
    np.testing.assert_allclose(history["loss"], from_memory["loss"], rtol=1e-6)


class Unbuilt(keras.Model):
    def __init__(self, activation="softmax"):
        super().__init__()
        self.dense = layers.Dense(10, activation=activation)

    def call(self, x):
        return self.dense(tf.reshape(x, [-1, 64]))


def once(x, y):
    """A dataset that can be gone through a single time."""
    batches = iter([(x, y)])
    signature = (tf.TensorSpec((None, 8, 8, 1)), tf.TensorSpec((None,), tf.int32))
    return tf.data.Dataset.from_generator(lambda: batches, output_signature=signature)


STREAM_MISTAKES = {
    "labels too": (lambda x, y: (stream(x, y), y), {}, "y_train: expected None, .* got ndarray"),
    "batch_size": (lambda x, y: (stream(x, y), None), {"batch_size": 64}, "batch_size: .*batch.64"),
    "single images": (
        lambda x, y: (tf.data.Dataset.from_tensor_slices((x, y)), None),
        {},
        r"x_train: expected a dataset of batches .*dataset\.batch",
    ),
    "with weights": (
        lambda x, y: (tf.data.Dataset.from_tensor_slices((x, y, y)).batch(8), None),
        {},
        r"x_train: expected a dataset of \(images, labels\).*lambda x, y, weights: \(x, y\)",
    ),
    "with names": (
        lambda x, y: (tf.data.Dataset.from_tensor_slices({"image": x, "label": y}), None),
        {},
        r"x_train: expected a dataset of .*d\['image'\], d\['label'\]",
    ),
    "another order": (lambda x, y: (stream(y, x), None), {}, "x_train: .*Change their order"),
    "no channel axis": (lambda x, y: (stream(x[..., 0], y), None), {}, r"x\[\.\.\., None\]"),
    "text": (lambda x, y: (stream(x.astype(str), y), None), {}, "images of numbers, got string"),
    "names for labels": (lambda x, y: (stream(x, y.astype(str)), None), {}, "StringLookup"),
    "no labels": (
        lambda x, y: (tf.data.Dataset.from_tensor_slices(x).batch(8), None),
        {},
        r"x_train: expected a dataset of \(images, labels\)",
    ),
    "other size": (lambda x, y: (stream(x[:, 1:], y), None), {}, r"x_train: .*\(n, 8, 8, 1\)"),
    "one-hot": (lambda x, y: (stream(x, np.eye(10)[y]), None), {}, r"argmax\(y, axis=1\)"),
    "label column": (lambda x, y: (stream(x, y[:, None]), None), {}, r"\(x, y\[:, 0\]\)"),
    "label 10": (lambda x, y: (stream(x, y + 1), None), {}, "from 0 to 9 in the dataset, got 10"),
    "float labels": (lambda x, y: (stream(x, y / 1), None), {}, "x_train: .*got float64"),
    "endless": (lambda x, y: (stream(x, y).repeat(), None), {}, "x_train: .*take"),
    "empty": (lambda x, y: (stream(x, y).take(0), None), {}, "x_train: .*no image"),
    "used up": (lambda x, y: (once(x, y), None), {}, "x_train: .*begin anew"),
}


@pytest.mark.parametrize("mistake", STREAM_MISTAKES)
def test_mistakes_with_streams_are_named(arrays, mistake):
    x, y, x_val, y_val = arrays
    change, options, message = STREAM_MISTAKES[mistake]
    with pytest.raises((ValueError, TypeError), match=message):
        make_trainer().fit(*change(x, y), x_val, y_val, 2, False, **options)


class NaNFrom(layers.Layer):
    """Makes one batch NaN, the one with this number in training."""

    def __init__(self, number):
        super().__init__()
        self.number = number
        self.step = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x, training=False):
        if not training:
            return x
        self.step.assign_add(1)
        return tf.where(self.step == self.number, np.nan, x)


@with_xla_too
@pytest.mark.parametrize("where", ["stream", "layer"])
def test_a_run_that_diverges_ends_with_its_best_weights(arrays, where):
    x, y, x_val, y_val = arrays
    expected = make_trainer(network(True))
    expected.fit(*arrays, 2, False, batch_size=BATCH_SIZE, shuffle=False)
    kept = expected.history["val_loss"]
    assert kept[1] < kept[0]  # or the best epoch would not be the last

    ended = []
    trainer = make_trainer(network(True))
    data = stream(x, y)
    if where == "stream":
        # Not before its third epoch.
        passes = tf.Variable(0)

        def spoiled(x, y):
            count = passes.assign_add(1)
            return tf.where(count == 2 * 7 + 4, np.nan, x), y

        data = data.map(spoiled, num_parallel_calls=1)
    else:
        spoil = NaNFrom(2 * 7 + 4)
        model = keras.Sequential([keras.Input((8, 8, 1)), spoil, *network(True).layers])
        trainer = make_trainer(model)
    note = keras.callbacks.LambdaCallback(on_train_end=lambda logs: ended.append(logs))
    with pytest.warns(RuntimeWarning, match="diverged: after epoch 3 the loss is nan") as caught:
        history = trainer.fit(data, None, x_val, y_val, 9, False, callbacks=[note])
    (warning,) = [w for w in caught if w.category is RuntimeWarning]
    assert warning.filename == __file__  # it points at the call
    assert "those of epoch 2, the best" in str(warning.message)
    assert str(warning.message).index("learning rate") < str(warning.message).index("from_logits")
    assert [len(values) for values in history.values()] == [3] * 4
    assert np.isnan(history["loss"][2]) and np.isnan(ended[0]["loss"])
    weights = [w for w in trainer.model.get_weights() if w.shape]
    for ours, theirs in zip(weights, expected.model.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_best_weights_are_called_what_they_are(arrays):
    """A validation loss that is infinite from the first epoch on is no epoch's best."""
    logits = network(softmax=False)
    trainer = Trainer(logits, Unbounded(), keras.optimizers.SGD(3000.0))
    before = logits.get_weights()
    with pytest.warns(RuntimeWarning, match="those from before the training"):
        trainer.fit(*arrays, 3, False)
    for first, second in zip(before, logits.get_weights(), strict=True):
        np.testing.assert_array_equal(first, second)


class Unbounded(keras.losses.Loss):
    def call(self, y, logits):
        y = tf.cast(y, tf.int32)
        return -tf.math.log(tf.gather(tf.nn.softmax(logits), y, axis=1, batch_dims=1))


def test_a_NaN_that_the_loss_does_not_show_ends_the_run_too(arrays):
    """ReLU makes 0 of it, and the network goes on with weights that are NaN."""
    x, y, *_ = arrays
    spoiled = x.copy()
    spoiled[N // 2, 3, 3] = np.nan
    trainer = make_trainer(
        ending_in(layers.Dense(8, activation="relu"), layers.Dense(10, activation="softmax"))
    )
    before = trainer.model.get_weights()
    with pytest.warns(RuntimeWarning, match=r"(?s)some weights are NaN.*1\. Images or labels"):
        history = trainer.fit(stream(spoiled, y), None, x, y, 3, False)
    assert np.isfinite(history["loss"]).all()
    for first, second in zip(before, trainer.model.get_weights(), strict=True):
        np.testing.assert_array_equal(first, second)


@with_xla_too
@pytest.mark.parametrize("averages", [False, True])
def test_where_the_first_epoch_diverges_the_first_weights_are_kept(arrays, averages):
    trainer = make_trainer(optimizer=keras.optimizers.SGD(1e38, use_ema=averages))
    before = trainer.model.get_weights()
    with pytest.warns(RuntimeWarning, match="(?s)epoch 1 .*from before the training.* 1e.38"):
        history = trainer.fit(*arrays, 3, False, batch_size=BATCH_SIZE)
    assert len(history["loss"]) == 1
    for first, second in zip(before, trainer.model.get_weights(), strict=True):
        np.testing.assert_array_equal(first, second)


def test_verbose_prints_the_lines_of_the_lab_sheet(arrays, capsys):
    trainer = make_trainer()
    history = trainer.fit(*arrays, 2)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"Epoch {i + 1}/2 - loss: {history['loss'][i]:.6f} - "
        f"train acc: {100 * history['accuracy'][i]:.2f}% - "
        f"val acc: {100 * history['val_accuracy'][i]:.2f}%"
        for i in range(2)
    ]
    trainer.fit(*arrays, 1, verbose=False)
    assert capsys.readouterr().out == ""
    trainer.fit(*arrays, 1, verbose="auto")
    assert capsys.readouterr().out.startswith("Epoch 1/1 - loss: ")


def test_plot_history_draws_the_four_curves(arrays):
    trainer = make_trainer()
    with pytest.raises(RuntimeError, match="call fit first"):
        trainer.plot_history()
    history = trainer.fit(*arrays, 3, False)
    loss, accuracy = trainer.plot_history().axes
    for axis, name, scale in ((loss, "loss", 1), (accuracy, "accuracy", 100)):
        training, validation = axis.lines
        np.testing.assert_allclose(training.get_ydata(), scale * np.array(history[name]))
        np.testing.assert_allclose(validation.get_ydata(), scale * np.array(history[f"val_{name}"]))
        np.testing.assert_array_equal(training.get_xdata(), [1, 2, 3])


def with_pixel(x, value):
    x = x.copy()
    x[3, 2, 1, 0] = value
    return x


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return np.zeros((8, 8, 8, 1)), np.zeros(8)


# Each: what is done to the four arrays and the keywords, and what the error must say.
MISTAKES = {
    "no channel axis": (
        lambda a: {"x_train": a["x_train"][..., 0]},
        r"x_train.*add_channel",
    ),
    "three channels": (
        lambda a: {"x_val": np.repeat(a["x_val"], 3, 3)},
        r"x_val.*\(70, 8, 8, 3\)",
    ),
    "other size": (
        lambda a: {"x_train": a["x_train"][:, 1:]},
        r"x_train.*\(200, 7, 8, 1\)",
    ),
    "text": (
        lambda a: {"x_train": a["x_train"].astype(str)},
        "x_train: expected numbers",
    ),
    "no image": (lambda a: {"x_train": a["x_train"][:0]}, r"x_train.*\(0, 8, 8, 1\)"),
    "NaN": (lambda a: {"x_train": with_pixel(a["x_train"], np.nan)}, "x_train.*NaN"),
    "too large": (lambda a: {"x_val": a["x_val"].astype(float) * 1e300}, "x_val.*infinite"),
    "infinite": (
        lambda a: {"x_val": with_pixel(a["x_val"], np.inf)},
        "x_val.*infinite",
    ),
    "label 10": (
        lambda a: {"y_train": a["y_train"] + 1},
        "y_train.*from 0 to 9.*to 10",
    ),
    "label -1": (lambda a: {"y_val": a["y_val"] - 1}, "y_val.*got labels from -1"),
    "one-hot": (lambda a: {"y_train": np.eye(10)[a["y_train"]]}, "y_train.*argmax"),
    "column": (lambda a: {"y_train": a["y_train"][:, None]}, r"y_train.*\(200, 1\).*ravel\(\)"),
    "no labels": (lambda a: {"y_val": None}, "y_val: expected an array of labels, got None"),
    "no validation": (lambda a: {"x_val": None, "y_val": None}, r"x_val: .*None.*split\(x, y\)"),
    "generator": (
        lambda a: {"x_train": (x for x in ())},
        "x_train: .*got generator.*from_generator",
    ),
    "PyDataset": (lambda a: {"x_train": Batches()}, "x_train: .*got Batches.*tf.data.Dataset"),
    "images of two sizes": (
        lambda a: {"x_train": [np.zeros((8, 8, 1)), np.zeros((7, 8, 1))]},
        "x_train: expected images of one shape",
    ),
    "keyword of Keras": (
        lambda a: {"validation_split": 0.2},
        "fit: .*'validation_split'.*Split the images first",
    ),
    "a class for a callback": (
        lambda a: {"callbacks": [keras.callbacks.TerminateOnNaN]},
        "callbacks: .*got the class TerminateOnNaN",
    ),
    "no callback": (lambda a: {"callbacks": [None]}, "callbacks: .*got None"),
    "labels in a generator": (
        lambda a: {"y_train": (y for y in ())},
        "y_train: expected an array of labels, got generator",
    ),
    "unknown keyword": (lambda a: {"batches": 3}, "fit: .*'batches'. Its arguments are x_train"),
    "length": (lambda a: {"y_train": a["y_train"][:-1]}, "y_train.*200, got 199"),
    "float labels": (lambda a: {"y_train": a["y_train"] + 0.5}, "y_train.*float64"),
    "no epoch": (lambda a: {"epochs": 0}, "epochs: expected 1 or more, got 0"),
    "half an epoch": (
        lambda a: {"epochs": 1.5},
        "epochs: expected an integer, got 1.5",
    ),
    "empty batch": (
        lambda a: {"batch_size": 0},
        "batch_size: expected 1 or more, got 0",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(arrays, mistake):
    arguments = dict(zip(("x_train", "y_train", "x_val", "y_val"), arrays, strict=True))
    arguments["epochs"] = 1
    change, message = MISTAKES[mistake]
    trainer = make_trainer()
    before = trainer.model.get_weights()
    with pytest.raises((ValueError, TypeError), match=message):
        trainer.fit(**arguments | change(arguments))
    for first, second in zip(before, trainer.model.get_weights(), strict=True):
        np.testing.assert_array_equal(first, second)


def test_predict_names_mistakes_too(arrays):
    trainer = make_trainer()
    with pytest.raises(
        ValueError, match=r"x: expected shape \(n, 8, 8, 1\), got \(8, 8, 1\).*x\[:1\]"
    ):
        trainer.predict(arrays[0][0])
    with pytest.raises(ValueError, match="x: expected finite pixels"):
        trainer.predict(with_pixel(arrays[0], np.nan))
    with pytest.raises(ValueError, match="batch_size"):
        trainer.predict(arrays[0], batch_size=0)
    with pytest.raises(ValueError, match="x: expected an array of images, got a dataset"):
        trainer.predict(stream(*arrays[:2]))


def ending_in(*last):
    return keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), *last])


def with_outputs(*units):
    inputs = keras.Input((8, 8, 1))
    features = layers.Flatten()(inputs)
    return keras.Model(inputs, [layers.Dense(n, activation="softmax")(features) for n in units])


class OwnStep(keras.Model):
    def train_step(self, data):
        return {}


def used_optimizer():
    optimizer = keras.optimizers.Adam()
    optimizer.build(network().trainable_variables)
    return optimizer


# Each: the arguments of Trainer that are not as they should be, and what the error must say.
MISTAKES_IN_NETWORKS = {
    "no Flatten": (
        {"model": lambda: keras.Sequential([keras.Input((8, 8, 1)), layers.Dense(10)])},
        r"model: expected scores of shape \(n, classes\), got \(n, 8, 8, 10\). Put a Flatten",
    ),
    "a single output": (
        {"model": lambda: ending_in(layers.Dense(1, "sigmoid")), "loss": lambda: "bce"},
        r"model: expected one output per class, got a single one.*Dense\(2.*Sparse",
    ),
    "two outputs": ({"model": lambda: with_outputs(10, 2)}, "model: expected one output, got 2"),
    "a function for a model": ({"model": lambda: network}, r"model: .*not yet called: network\("),
    "a class for an optimizer": (
        {"optimizer": lambda: keras.optimizers.SGD},
        r"optimizer: .*SGD\(",
    ),
    "labels as wide as outputs": (
        {"loss": keras.losses.CategoricalCrossentropy},
        "loss_function: .*got CategoricalCrossentropy. Take keras.losses.Sparse.*argmax",
    ),
    "a loss that is no classifier's": ({"loss": lambda: "mse"}, "got mean_squared_error. Take"),
    "another order": (
        {"loss": keras.optimizers.SGD, "optimizer": keras.losses.SparseCategoricalCrossentropy},
        "loss_function: .*got SGD. The order is Trainer",
    ),
    "a misspelt name": ({"optimizer": lambda: "adma"}, "optimizer: expected .*got 'adma'"),
    "a metric for a loss": (
        {"loss": keras.metrics.SparseCategoricalAccuracy},
        "loss_function: .*got SparseCategoricalAccuracy",
    ),
    "a step of the model's own": (
        {"model": lambda: OwnStep()},
        "model: expected Keras' own train_step, got one of OwnStep",
    ),
    "another model's optimizer": ({"optimizer": used_optimizer}, "optimizer: expected a new one"),
}


@pytest.mark.parametrize("mistake", MISTAKES_IN_NETWORKS)
def test_what_does_not_go_together_is_named_at_once(mistake):
    wrong, message = MISTAKES_IN_NETWORKS[mistake]
    right = {
        "model": network,
        "loss": keras.losses.SparseCategoricalCrossentropy,
        "optimizer": keras.optimizers.SGD,
    }
    arguments = [make() for make in (right | wrong).values()]
    with pytest.raises((TypeError, ValueError), match=message):
        Trainer(*arguments)


def functional(*last):
    inputs = keras.Input((8, 8, 1))
    outputs = layers.Dense(10)(layers.Flatten()(inputs))
    for layer in last:
        outputs = layer(outputs)
    return keras.Model(inputs, outputs)


# How a network ends, and whether that is softmax.
ENDS = {
    "Dense": (lambda: ending_in(layers.Dense(10)), False),
    "relu": (lambda: ending_in(layers.Dense(10, activation="relu")), False),
    "sigmoid": (lambda: ending_in(layers.Dense(10), layers.Activation("sigmoid")), False),
    "ReLU": (lambda: functional(layers.ReLU()), False),
    "dropout": (lambda: functional(layers.Dropout(0.5)), False),
    "softmax": (lambda: ending_in(layers.Dense(10, activation="softmax")), True),
    "softmax of TensorFlow": (lambda: ending_in(layers.Dense(10, activation=tf.nn.softmax)), True),
    "Softmax": (lambda: functional(layers.Softmax()), True),
    "Softmax as activation": (
        lambda: ending_in(layers.Dense(10, activation=layers.Softmax())),
        True,
    ),
    "Softmax, reshaped": (lambda: functional(layers.Softmax(), layers.Reshape((10,))), True),
    "nested": (lambda: keras.Sequential([keras.Input((8, 8, 1)), network()]), True),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("from_logits", [False, True])
def test_a_loss_that_does_not_fit_the_end_of_the_network_is_warned_of(arrays, end, from_logits):
    make, softmax = ENDS[end]
    fits = softmax != from_logits and not (from_logits and end in ("relu", "ReLU", "sigmoid"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = make_trainer(make(), from_logits=from_logits)
    found = [str(w.message) for w in caught if w.filename == __file__]
    if fits:
        assert found == []
    else:
        (message,) = found
        assert f"model: expected {'logits' if from_logits else 'probabilities'}" in message
    np.testing.assert_allclose(np.sum(trainer.predict(arrays[0][:9]), axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("hidden", ["a class of one's own", "a lambda"])
def test_where_the_end_cannot_be_seen_the_numbers_are_looked_at(arrays, hidden):
    unseen = layers.Dense(10, activation=lambda z: tf.nn.softmax(z))
    model = Unbuilt() if hidden == "a class of one's own" else ending_in(unseen)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer = make_trainer(model)
        trainer.fit(*arrays, 1, False)
    np.testing.assert_allclose(trainer.predict(arrays[0]), model(arrays[0]), rtol=1e-6)

    unseen = layers.Dense(10, activation=lambda z: z)
    model = Unbuilt(None) if hidden == "a class of one's own" else ending_in(unseen)
    with pytest.warns(UserWarning, match="model: expected probabilities.*do not sum to 1"):
        make_trainer(model).fit(*arrays, 1, False)


def test_softmax_that_cannot_be_seen_is_not_applied_twice(arrays):
    """Neither the network nor a loss of one's own says what the outputs are."""
    for activation in ("softmax", None):
        model = Unbuilt(activation)
        trainer = Trainer(model, own_loss if activation else own_loss_of_logits, "sgd")
        outputs = model(arrays[0])
        expected = outputs if activation else tf.nn.softmax(outputs)
        np.testing.assert_allclose(trainer.predict(arrays[0]), expected, rtol=1e-5)


def own_loss(y, predictions):
    return (1 - predictions[:, 0]) * y  # Keras passes the labels as floats


def own_loss_of_logits(y, predictions):
    return own_loss(y, tf.nn.softmax(predictions))


class AddsLosses(layers.Layer):
    """Asks for a penalty for each image."""

    def call(self, x):
        self.add_loss(0.001 * tf.reduce_sum(tf.square(x), axis=1))
        return x


class OwnMetrics(keras.Sequential):
    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        return super().compute_metrics(x, y, y_pred, sample_weight) | {"ink": tf.reduce_mean(x)}


def test_penalties_are_added_up_as_by_keras(arrays):
    x, y, *_ = arrays

    def penalized(kind):
        keras.utils.set_random_seed(1)
        hidden = layers.Dense(10, kernel_regularizer="l2")
        last = [layers.Flatten(), hidden, AddsLosses(), layers.Softmax()]
        return kind([keras.Input((8, 8, 1)), *last])

    ours, theirs = penalized(OwnMetrics), penalized(keras.Sequential)
    history = make_trainer(ours).fit(*arrays, 2, False, batch_size=BATCH_SIZE, shuffle=False)
    theirs.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    expected = theirs.fit(x, y, BATCH_SIZE, epochs=2, verbose=0, shuffle=False).history
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-5)
    for our_weights, their_weights in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(our_weights, their_weights, atol=1e-5)


def test_the_size_of_the_images_may_decide_on_the_number_of_outputs(arrays):
    model = keras.Sequential(
        [keras.Input((None, None, 1)), layers.Conv2D(10, 8), layers.Flatten(), layers.Softmax()]
    )
    assert len(make_trainer(model).fit(*arrays, 1, False)["loss"]) == 1


def test_a_loss_function_is_called_as_by_keras(arrays):
    x, y, *_ = arrays
    ours, theirs = network(), network()
    history = Trainer(ours, own_loss, keras.optimizers.SGD(0.01)).fit(
        *arrays, 2, False, batch_size=BATCH_SIZE, shuffle=False
    )
    theirs.compile(keras.optimizers.SGD(0.01), own_loss)
    expected = theirs.fit(x, y, BATCH_SIZE, epochs=2, verbose=0, shuffle=False).history
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-5)
    for our_weights, their_weights in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(our_weights, their_weights, rtol=1e-4, atol=1e-5)


def test_a_model_that_something_else_has_compiled_since_is_refused(arrays):
    """Callbacks would change the learning rate of another optimizer than that which trains."""
    model = network()
    first, second = make_trainer(model), make_trainer(model)
    with pytest.raises(ValueError, match=r"model: expected the optimizer and the loss of this Tr"):
        first.fit(*arrays, 1, False)
    second.fit(*arrays, 1, False)
    second.optimizer = keras.optimizers.SGD()
    with pytest.raises(ValueError, match="Make a new Trainer, with a new optimizer"):
        second.fit(*arrays, 1, False)


def test_labels_that_the_loss_ignores_may_be_beyond_the_classes(arrays):
    x, y, x_val, y_val = arrays
    loss = keras.losses.SparseCategoricalCrossentropy(ignore_class=255)
    y = np.where(np.arange(N) % 5 == 0, 255, y)
    history = Trainer(network(), loss, "sgd").fit(x, y, x_val, y_val, 1, False)
    assert np.isfinite(history["loss"]).all()


def test_too_little_memory_is_named(arrays):
    """An image of more bytes than any machine has takes the place of a GPU that is too small."""
    huge = [layers.UpSampling2D((400_000, 400_000)), layers.GlobalAveragePooling2D()]
    head = [keras.Input((8, 8, 1)), *huge, layers.Dense(10, activation="softmax")]
    trainer = make_trainer(keras.Sequential(head))
    # TensorFlow waits for ten seconds, in case the memory comes free.
    with pytest.raises(MemoryError, match=r"predict: the device has too little .*smaller batch"):
        trainer.predict(arrays[0][:1])


def test_a_copy_goes_its_own_way(arrays):
    model = network()
    model.add(layers.Dropout(0.1))
    trainer = make_trainer(model)
    trainer.fit(*arrays, 1, False)
    twin = copy.deepcopy(trainer)
    before = trainer.model.get_weights()
    expected = twin.fit(*arrays, 2, False)
    for first, second in zip(before, trainer.model.get_weights(), strict=True):
        np.testing.assert_array_equal(first, second)
    assert trainer.fit(*arrays, 2, False) == expected  # the order and the dropout are the same, too


def test_pixels_beyond_one_are_allowed_with_one_warning(arrays):
    x, y, x_val, y_val = arrays
    trainer = make_trainer()
    with pytest.warns(UserWarning, match="x_train.*normalize") as caught:
        trainer.fit((255 * x).astype(np.uint8), y, 255 * x_val, y_val, 1, False)
    assert len([w for w in caught if "normalize" in str(w.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_trainer().fit(*arrays, 1, False)
        make_trainer().fit(10 * (x - 0.5), y, x_val - 0.5, y_val, 1, False)  # mean 0
        scaling = [keras.Input((8, 8, 1)), layers.Rescaling(1 / 255), *network().layers]
        make_trainer(keras.Sequential(scaling)).fit(255 * x, y, 255 * x_val, y_val, 1, False)


@pytest.mark.parametrize("build", [tpcnn.build_fc, tpcnn.build_cnn])
def test_a_network_learns_a_few_images_by_heart(build):
    learns_by_heart(build)


@with_xla_too  # the other two have a layer that XLA does not support, and so never get it
def test_the_network_for_fashion_mnist_learns_a_few_images_by_heart(xla):
    learns_by_heart(tpcnn.build_fashion_cnn)


def learns_by_heart(build):
    mnist = tpcnn.load_mnist()
    keras.utils.set_random_seed(0)
    trainer = Trainer(
        build(dropout=0.0),
        keras.losses.SparseCategoricalCrossentropy(),
        keras.optimizers.Adam(0.003),
    )
    x, y = mnist.x_train[:200], mnist.y_train[:200]
    history = trainer.fit(x, y, x, y, 25, False, batch_size=50)
    assert trainer.predict(x).shape == (200, 10)
    assert history["accuracy"][-1] > 0.97
