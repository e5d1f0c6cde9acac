"""What the chapters write from scratch, taken from their cells, against Keras on random inputs."""

import functools
import itertools
import linecache
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import code_cells

import tpcnn

SEEDS = range(3)


def defined_in(chapter: str, function: str, **names):
    """Return a function or class as a cell of the chapter defines it; `names` are what it uses."""
    for _, code in code_cells(chapter):
        for definition in re.split(r"\n{3,}", code):
            if re.search(rf"(?m)^(def|class) {function}\b", definition):
                names = {"np": np, "tf": tf, "keras": keras} | names
                file = f"<{chapter}: {function}>"
                # TensorFlow translates the source of a function, and looks for it here.
                lines = definition.splitlines(keepends=True)
                linecache.cache[file] = (len(definition), None, lines, file)
                exec(compile(definition, file, "exec"), names)
                return names[function]
    raise LookupError(f"{chapter} defines no {function}")


@pytest.fixture(params=SEEDS)
def rng(request):
    keras.utils.set_random_seed(request.param)
    return np.random.default_rng(request.param)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_the_convolutional_layer(rng, padding, size):
    layer = keras.layers.Conv2D(4, size, padding=padding, bias_initializer="normal")
    x = rng.normal(size=(2, 9, 7, 3)).astype("float32")
    by_keras = layer(x)
    by_hand = defined_in("convolution", "convolutional_layer")(x, *layer.get_weights(), padding)
    np.testing.assert_allclose(by_hand, by_keras, atol=1e-5)


def test_the_convolution_of_one_filter(rng):
    image = rng.normal(size=(9, 7)).astype("float32")
    layer = keras.layers.Conv2D(1, 3, use_bias=False)
    by_keras = layer(image[np.newaxis, :, :, np.newaxis])[0, :, :, 0]
    by_hand = defined_in("convolution", "convolve")(image, layer.get_weights()[0][:, :, 0, 0])
    np.testing.assert_allclose(by_hand, by_keras, atol=1e-5)


@pytest.mark.parametrize(("freedom", "printed"), [(2, 4.303), (4, 2.776), (14, 2.145), (30, 2.042)])
def test_the_factors_of_the_t_distribution_are_those_of_printed_tables(freedom, printed):
    factor = defined_in("accuracy", "factor", functools=functools)
    assert factor(freedom) == pytest.approx(printed, abs=0.002)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("n", [20, 100, 10000])
def test_the_ends_of_the_wilson_interval_are_as_far_as_they_may_be(share, n):
    for end in defined_in("accuracy", "wilson")(share, n):
        assert abs(share - end) == pytest.approx(1.96 * np.sqrt(end * (1 - end) / n), abs=1e-8)


def test_batch_normalisation(rng):
    batch_norm = defined_in("batchnorm", "batch_norm")
    layer = keras.layers.BatchNormalization()
    layer.build((None, 5))
    layer.set_weights([rng.uniform(0.5, 2, size=5) for _ in range(4)])
    gamma, beta, mean, variance = layer.get_weights()
    z = rng.normal(1, 3, size=(32, 5)).astype("float32")
    in_prediction = batch_norm(z, mean, variance, gamma, beta)
    np.testing.assert_allclose(in_prediction, layer(z, training=False), atol=1e-4)
    in_training = batch_norm(z, z.mean(axis=0), z.var(axis=0), gamma, beta)
    np.testing.assert_allclose(in_training, layer(z, training=True), atol=1e-4)


def test_layer_normalisation(rng):
    batch_norm = defined_in("batchnorm", "batch_norm")
    layer_norm = defined_in("batchnorm", "layer_norm", batch_norm=batch_norm)
    layer = keras.layers.LayerNormalization()
    layer.build((None, 6))
    layer.set_weights([rng.uniform(0.5, 2, size=6) for _ in range(2)])
    z = rng.normal(1, 3, size=(32, 6)).astype("float32")
    np.testing.assert_allclose(layer_norm(z, *layer.get_weights()), layer(z), atol=1e-4)


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_group_normalisation(rng, groups):
    batch_norm = defined_in("batchnorm", "batch_norm")
    layer_norm = defined_in("batchnorm", "layer_norm", batch_norm=batch_norm)
    group_norm = defined_in("batchnorm", "group_norm", layer_norm=layer_norm)
    layer = keras.layers.GroupNormalization(groups)
    layer.build((None, 6))
    layer.set_weights([rng.uniform(0.5, 2, size=6) for _ in range(2)])
    z = rng.normal(1, 3, size=(32, 6)).astype("float32")
    np.testing.assert_allclose(group_norm(z, groups, *layer.get_weights()), layer(z), atol=1e-4)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout(rng, rate):
    x = rng.uniform(1, 2, size=(200, 50)).astype("float32")
    by_keras = np.array(keras.layers.Dropout(rate)(x, training=True))
    by_hand = defined_in("dropout", "dropout")(x, kept=by_keras != 0, rate=rate)
    np.testing.assert_allclose(by_hand, by_keras, rtol=1e-5)


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_the_price_of_dropout_is_the_mean_over_all_masks(rng, rate):
    dropout, price = (defined_in("dropout", name) for name in ("dropout", "dropout_price"))
    x, targets, weights = rng.normal(size=(5, 6)), rng.normal(size=5), rng.normal(size=6)
    expected = 0.0
    for kept in itertools.product([True, False], repeat=6):
        chance = np.prod(np.where(kept, 1 - rate, rate))
        sums = np.array(dropout(x, np.array(kept), rate)) @ weights
        expected += chance * np.sum((targets - sums) ** 2)
    by_hand = np.sum((targets - x @ weights) ** 2) + price(x, rate) @ weights**2
    assert by_hand == pytest.approx(expected, rel=1e-6)


def test_the_gradient_of_a_dense_layer_with_softmax(rng):
    model = keras.Sequential([keras.Input((784,)), keras.layers.Dense(10, "softmax")])
    x, y = rng.uniform(size=(20, 784)).astype("float32"), rng.integers(10, size=20)
    with tf.GradientTape() as tape:
        loss = keras.losses.SparseCategoricalCrossentropy()(y, model(x))
    by_tape = tape.gradient(loss, model.trainable_variables)[0]
    errors = defined_in("minibatches", "errors_of")(x, y, *model.get_weights())
    by_hand = defined_in("minibatches", "batch_gradient")(x, errors)
    np.testing.assert_allclose(by_hand, by_tape, atol=1e-5)


def test_an_epoch_of_mini_batches_with_a_smaller_last_one(rng):
    ours = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, "softmax")])
    theirs = keras.models.clone_model(ours)
    theirs.set_weights(ours.get_weights())
    loss_function = keras.losses.SparseCategoricalCrossentropy()
    x, y = rng.normal(size=(50, 6)).astype("float32"), rng.integers(3, size=50).astype("int32")

    names = {"model": ours, "loss_function": loss_function}
    one_epoch = defined_in("minibatches", "one_epoch", **names)
    one_epoch(tf.constant(x), tf.constant(y), tf.constant(16), tf.constant(0.1))
    theirs.compile(keras.optimizers.SGD(0.1), loss_function)
    theirs.fit(x, y, batch_size=16, shuffle=False, verbose=0)
    for by_hand, by_keras in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(by_hand, by_keras, atol=1e-5)


def test_the_mini_batch_optimizers(rng):
    """Momentum and Adam over many steps, with gradients of very different sizes."""
    zeros = np.zeros((5, 3))
    for _ in range(3):
        rate, beta = rng.uniform(0.001, 0.1), rng.uniform(0.5, 0.99)
        betas = {"beta_1": rng.uniform(0.5, 0.95), "beta_2": rng.uniform(0.9, 0.9999)}
        epsilon = 10 ** rng.uniform(-8, -3)
        cases = [
            ("momentum", zeros, {"beta": beta}, keras.optimizers.SGD(rate, momentum=beta)),
            (
                "adam",
                (0, zeros, zeros),
                {**betas, "epsilon": epsilon},
                keras.optimizers.Adam(rate, **betas, epsilon=epsilon),
            ),
        ]
        gradients = rng.normal(size=(100, 5, 3)) * 10 ** rng.uniform(-4, 1, size=(5, 3))
        for name, memory, settings, optimizer in cases:
            rule = defined_in("minibatches", name)
            by_hand, by_keras = zeros, keras.Variable(zeros, dtype="float32")
            for gradient in gradients.astype("float32"):
                step, memory = rule(gradient, memory, rate, **settings)
                by_hand = by_hand + step
                optimizer.apply([tf.constant(gradient)], [by_keras])
                np.testing.assert_allclose(by_hand, by_keras, rtol=1e-3, atol=1e-4)


def test_plain_descent(rng):
    gradient, rate = rng.normal(size=(5, 3)), rng.uniform(0.001, 0.1)
    step, memory = defined_in("minibatches", "plain")(gradient, "kept", rate)
    by_keras = keras.Variable(np.zeros((5, 3)), dtype="float32")
    keras.optimizers.SGD(rate).apply([tf.constant(gradient, tf.float32)], [by_keras])
    np.testing.assert_allclose(step, by_keras, atol=1e-6)
    assert memory == "kept"


def test_the_trainer_of_the_page_is_that_of_the_module(rng):
    layers = [keras.layers.Dense(6), keras.layers.BatchNormalization(), keras.layers.ReLU()]
    ours = keras.Sequential([keras.Input((5,)), *layers, keras.layers.Dense(3, "softmax")])
    theirs = keras.models.clone_model(ours)
    theirs.set_weights(ours.get_weights())
    x, y = rng.normal(size=(50, 5)).astype("float32"), rng.integers(3, size=50)
    loss_function = keras.losses.SparseCategoricalCrossentropy()

    by_page = defined_in("trainer", "Trainer")(ours, loss_function, keras.optimizers.SGD(0.1))
    history = by_page.fit(x, y, x[:20], y[:20], epochs=3, batch_size=16, shuffle=False)
    by_module = tpcnn.Trainer(theirs, loss_function, keras.optimizers.SGD(0.1))
    by_module.fit(x, y, x[:20], y[:20], 3, batch_size=16, shuffle=False, verbose=False)
    for page, module in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(page, module, atol=1e-5)
    for name, values in by_module.history.items():
        np.testing.assert_allclose(history[name], values, atol=1e-5)
    np.testing.assert_allclose(by_page.predict(x, 7), by_module.predict(x), atol=1e-5)


@pytest.mark.parametrize("hidden", [1, 17])
def test_backpropagation_through_two_layers(rng, hidden):
    model = keras.Sequential(
        [keras.Input((9,)), keras.layers.Dense(hidden, "relu"), keras.layers.Dense(4, "softmax")]
    )
    for weights in model.trainable_variables:
        weights.assign(rng.normal(size=weights.shape))
    x, y = rng.normal(size=(20, 9)).astype("float32"), rng.integers(4, size=20)
    with tf.GradientTape() as tape:
        loss = keras.losses.SparseCategoricalCrossentropy()(y, model(x))
    by_tape = tape.gradient(loss, model.trainable_variables)
    softmax = defined_in("fully_connected", "softmax")
    forward = defined_in("fully_connected", "forward", softmax=softmax)
    backward = defined_in("fully_connected", "backward", forward=forward)
    for by_hand, automatic in zip(backward(x, y, *model.get_weights()), by_tape, strict=True):
        np.testing.assert_allclose(by_hand, automatic, atol=1e-5)
