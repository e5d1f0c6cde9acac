"""Dense networks as functions of their weights, against `Trainer` and Keras."""

import keras
import numpy as np
import pytest

import tpcnn
from tpcnn import trials

SETTINGS = {"units": 17, "hidden_layers": 2, "learning_rate": 0.1, "batch_size": 32}


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return rng.uniform(size=(150, 20)).astype("float32"), rng.integers(10, size=150)


def keras_network(pixels, units, hidden_layers):
    hidden = [keras.layers.Dense(units, "relu") for _ in range(hidden_layers)]
    return keras.Sequential([keras.Input((pixels,)), *hidden, keras.layers.Dense(10)])


@pytest.mark.parametrize("hidden_layers", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 32, 150])
def test_a_run_ends_at_the_weights_of_trainer(images, hidden_layers, batch_size):
    """From the same weights at the start, with the same batches and the same schedule."""
    x, y = images
    settings = SETTINGS | {"hidden_layers": hidden_layers, "batch_size": batch_size}
    rng = np.random.default_rng([3, 1])
    model = keras_network(20, 17, hidden_layers)
    model.set_weights(trials.initial_weights(20, 17, hidden_layers, rng))
    order = np.concatenate([rng.permutation(150), rng.permutation(150)])
    # In steps; with batches of 32, the last of the ten begins after 288 of the 300 images.
    schedule = keras.optimizers.schedules.PolynomialDecay(0.1, 300 / batch_size, 0)
    loss_function = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer = tpcnn.Trainer(model, loss_function, keras.optimizers.SGD(schedule))
    x_order, y_order = x[order], y[order]
    options = {"verbose": False, "batch_size": batch_size, "shuffle": False}
    trainer.fit(x_order, y_order, x, y, 1, **options)

    ours = trials.train(x, y, **settings, epochs=2, seed=[3, 1])
    for by_hand, by_keras in zip(ours, model.get_weights(), strict=True):
        np.testing.assert_allclose(by_hand, by_keras, atol=1e-4)
    np.testing.assert_array_equal(trials.classify(x, ours), np.argmax(trainer.predict(x), axis=1))


def test_the_same_seed_gives_the_same_weights_and_another_one_others(images):
    first, again, other = (
        trials.train(*images, **SETTINGS, dropout=0.3, epochs=1, seed=seed)
        for seed in ([0, 1], [0, 1], [0, 2])
    )
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c)


@pytest.fixture
def all_but_the_masks(monkeypatch):
    """Give every run the same weights at the start and the same order, whatever its seed."""
    rng = np.random.default_rng(0)
    weights = trials.initial_weights(20, 17, 2, rng)
    monkeypatch.setattr(trials, "initial_weights", lambda *_: weights)

    class OneOrder:
        def __init__(self, seed):
            self.integers = np.random.Generator(np.random.PCG64(seed)).integers

        def permutation(self, n):
            return np.arange(n)

    monkeypatch.setattr(trials.np.random, "default_rng", OneOrder)


@pytest.mark.usefixtures("all_but_the_masks")
def test_the_masks_of_dropout_come_from_the_seed(images):
    def end(seed, dropout):
        return trials.train(*images, **SETTINGS, dropout=dropout, epochs=1, seed=seed)[0]

    np.testing.assert_array_equal(end(1, 0.0), end(2, 0.0))
    assert not np.array_equal(end(1, 0.3), end(2, 0.3))
    np.testing.assert_array_equal(end(1, 0.3), end(1, 0.3))


def test_each_step_and_each_layer_has_masks_of_its_own():
    ones = [np.eye(50, dtype="float32"), np.zeros(50, "float32")] * 3
    ones[-2] = np.eye(50, dtype="float32")
    x = np.ones((1, 50), "float32")

    def kept(layers, step):
        return np.array(trials._scores(x, ones[: 2 * layers] + ones[-2:], 0.5, 7, step))[0] != 0

    first, second, both = kept(1, 0), kept(1, 32), kept(2, 0)
    assert not np.array_equal(first, second)
    assert 0 < both.sum() < first.sum()  # the second layer drops units that the first has kept
    assert 15 < first.sum() < 35


def test_dropout_is_for_training_only_and_keeps_the_mean():
    rng = np.random.default_rng(0)
    weights = trials.initial_weights(20, 2000, 1, rng)
    weights[2:] = [np.full((2000, 10), 1 / 2000, "float32"), np.zeros(10, "float32")]
    x = np.ones((1, 20), "float32")
    without = np.array(trials._scores(x, weights))
    np.testing.assert_array_equal(without, np.array(trials._scores(x, weights)))
    for rate in (0.2, 0.5):
        np.testing.assert_allclose(trials._scores(x, weights, rate, 3), without, rtol=0.1)


def test_the_first_weights_suit_relu_and_the_biases_are_zero():
    weights = trials.initial_weights(400, 300, 2, np.random.default_rng(0))
    assert [w.shape for w in weights[::2]] == [(400, 300), (300, 300), (300, 10)]
    for kernel, bias in zip(weights[::2], weights[1::2], strict=True):
        assert kernel.std() == pytest.approx(np.sqrt(2 / len(kernel)), rel=0.05)
        assert kernel.shape[1:] == bias.shape and not bias.any()


def test_one_recording_serves_every_width_and_batch_size(images):
    for units, batch_size in [(5, 10), (17, 32), (40, 64)]:
        settings = SETTINGS | {"units": units, "batch_size": batch_size}
        weights = trials.train(*images, **settings, epochs=1, seed=0)
        assert [w.shape[-1] for w in weights] == [units, units, units, units, 10, 10]
    assert trials._recorded(2).experimental_get_tracing_count() == 1


def test_a_run_that_diverges_says_one_class_for_all(images):
    weights = trials.train(*images, **SETTINGS | {"learning_rate": 1e20}, epochs=3, seed=0)
    assert not all(np.isfinite(w).all() for w in weights)
    assert set(trials.classify(images[0], weights)) == {0}


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"units": 0}, ValueError, "units: expected 1 or more, got 0"),
        ({"units": 8.5}, TypeError, "units: expected an integer, got 8.5. Round it"),
        ({"hidden_layers": 0}, ValueError, "hidden_layers: expected 1 or more"),
        ({"batch_size": -1}, ValueError, "batch_size: expected 1 or more, got -1"),
        ({"epochs": 0}, ValueError, "epochs: expected 1 or more"),
        ({"learning_rate": 0}, ValueError, "learning_rate: expected a number above 0, got 0"),
        ({"learning_rate": float("nan")}, ValueError, "learning_rate: expected a number above 0"),
        ({"dropout": 1}, ValueError, "dropout: expected a share .* got 1. Pass 0 for none"),
        ({"x": np.zeros((4, 28, 28, 1))}, ValueError, r"x: .*\(4, 28, 28, 1\). Flatten the"),
        ({"x": np.zeros((0, 20))}, ValueError, r"x: expected one row .* shape \(0, 20\)"),
        ({"y": np.zeros(3, int)}, ValueError, r"y: expected .* shape \(150,\), got shape \(3,\)"),
        ({"y": np.zeros(150)}, TypeError, "y: expected integers, got float64. Use y.astype"),
        ({"y": np.full(150, 10)}, ValueError, "y: expected classes from 0 to 9, got .* 10 to 10"),
    ],
)
def test_a_wrong_argument_is_named(images, wrong, error, message):
    arguments = {"x": images[0], "y": images[1], "epochs": 1, "seed": 0} | SETTINGS | wrong
    with pytest.raises(error, match=message):
        trials.train(**arguments)
