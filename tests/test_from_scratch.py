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


def random_settings(rng):
    """Yield image shapes, sizes of the window (even ones too), paddings and strides."""
    for _ in range(8):
        size, padding, stride = rng.integers([1, 0, 1], [6, 3, 4])
        height, width = rng.integers(size, size + 8, size=2)  # the window fits in
        yield (2, height, width, rng.integers(1, 5)), int(size), int(padding), int(stride)


@pytest.mark.parametrize("function", ["layer_by_loops", "convolutional_layer"])
def test_the_convolutional_layer_with_padding_and_stride(rng, function):
    by_hand = defined_in("convolution", function)
    places = defined_in("convolution", "places")
    for shape, size, padding, stride in random_settings(rng):
        layer = keras.layers.Conv2D(4, size, stride, bias_initializer="normal")
        x = rng.normal(size=shape).astype("float32")
        by_keras = layer(keras.layers.ZeroPadding2D(padding)(x))
        ours = by_hand(x, *layer.get_weights(), padding, stride)
        np.testing.assert_allclose(ours, by_keras, atol=1e-5)
        assert ours.shape[1:3] == tuple(places(n, size, padding, stride) for n in shape[1:3])


@pytest.mark.parametrize("size", [1, 3, 5])
def test_the_padding_that_keeps_the_size_is_that_of_keras(rng, size):
    layer = keras.layers.Conv2D(4, size, padding="same", bias_initializer="normal")
    x = rng.normal(size=(2, 9, 7, 3)).astype("float32")
    by_keras = layer(x)
    by_hand = defined_in("convolution", "convolutional_layer")
    ours = by_hand(x, *layer.get_weights(), padding=(size - 1) // 2)
    np.testing.assert_allclose(ours, by_keras, atol=1e-5)


def test_the_uneven_padding_of_keras(rng):
    by_hand = defined_in("convolution", "convolutional_layer")
    same_padding = defined_in("convolution", "same_padding")
    for shape, size, _, stride in random_settings(rng):
        layer = keras.layers.Conv2D(4, size, stride, padding="same", bias_initializer="normal")
        x = rng.normal(size=shape).astype("float32")
        by_keras = layer(x)
        zeros = [same_padding(n, size, stride) for n in shape[1:3]]
        padded = np.pad(x, [(0, 0), *zeros, (0, 0)])
        ours = by_hand(padded, *layer.get_weights(), 0, stride)
        np.testing.assert_allclose(ours, by_keras, atol=1e-5)


def test_the_convolution_of_one_filter(rng):
    convolve = defined_in("convolution", "convolve")
    for shape, size, _, _ in random_settings(rng):
        image = rng.normal(size=shape[1:3]).astype("float32")
        layer = keras.layers.Conv2D(1, size, use_bias=False)
        by_keras = layer(image[np.newaxis, :, :, np.newaxis])[0, :, :, 0]
        by_hand = convolve(image, layer.get_weights()[0][:, :, 0, 0])
        np.testing.assert_allclose(by_hand, by_keras, atol=1e-5)


def test_max_pooling(rng):
    by_hand = defined_in("convolution", "max_pool")
    for shape, size, _, stride in random_settings(rng):
        x = rng.normal(size=shape).astype("float32")
        by_keras = keras.layers.MaxPooling2D(size, stride)(x)
        np.testing.assert_array_equal(by_hand(x, size, stride), by_keras)


def test_the_way_back_through_a_convolution(rng):
    by_hand = defined_in("convolution", "convolve_back")
    for shape, size, _, _ in random_settings(rng):
        image, weights = rng.normal(size=shape[1:3]), rng.normal(size=(size, size))
        x = tf.Variable(image[np.newaxis, :, :, np.newaxis])
        w = tf.Variable(weights[:, :, np.newaxis, np.newaxis])
        with tf.GradientTape() as tape:
            feature_map = tf.nn.conv2d(x, w, 1, "VALID")
        errors = rng.normal(size=feature_map.shape)
        by_w, by_x = tape.gradient(feature_map, [w, x], output_gradients=tf.constant(errors))
        of_weights, of_image = by_hand(image, weights, errors[0, :, :, 0])
        np.testing.assert_allclose(of_weights, by_w[:, :, 0, 0], atol=1e-9)
        np.testing.assert_allclose(of_image, by_x[0, :, :, 0], atol=1e-9)


def test_the_way_back_through_max_pooling(rng):
    by_hand = defined_in("convolution", "max_pool_back")
    for height, width in rng.integers(2, 12, size=(8, 2)):
        x = tf.Variable(rng.normal(size=(1, height, width, 1)))
        with tf.GradientTape() as tape:
            pooled = tf.nn.max_pool2d(x, 2, 2, "VALID")
        errors = rng.normal(size=pooled.shape)
        by_tape = tape.gradient(pooled, x, output_gradients=tf.constant(errors))
        ours = by_hand(x.numpy()[0, :, :, 0], errors[0, :, :, 0])
        np.testing.assert_array_equal(ours, by_tape[0, :, :, 0])


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


def cnn_functions():
    """Return what the chapter on the CNN writes itself: the prediction, and the two maps."""
    names = {"layers": keras.layers}
    names |= {name: defined_in("cnn", name) for name in ("convolve", "pool", "score")}
    wanted = ("predict_by_hand", "occlusion", "grad_cam")
    return [defined_in("cnn", name, **names) for name in wanted]


def random_weights(model, rng):
    """Give every weight a random number; what batch normalisation divides by is positive."""
    for layer in model.layers:
        new = [rng.normal(scale=0.3, size=weight.shape) for weight in layer.get_weights()]
        if isinstance(layer, keras.layers.BatchNormalization):
            new[3] = rng.uniform(0.5, 2, size=new[3].shape)
        layer.set_weights(new)


@pytest.mark.parametrize("build", [tpcnn.build_cnn, tpcnn.build_fc])
def test_the_prediction_of_a_whole_network(rng, build):
    model = build()
    random_weights(model, rng)
    x = rng.uniform(size=(5, 28, 28, 1)).astype("float32")
    predict_by_hand, _, _ = cnn_functions()
    np.testing.assert_allclose(predict_by_hand(model, x), model(x, training=False), atol=1e-3)


@pytest.mark.parametrize("size", [3, 7, 28])
def test_an_occlusion_map(rng, size):
    model = tpcnn.build_cnn(filters=2)
    model.layers[-1].activation = keras.activations.linear  # the scores are the output
    random_weights(model, rng)
    image = rng.uniform(size=(28, 28, 1)).astype("float32")
    _, occlusion, _ = cnn_functions()
    falls = occlusion(model, image, 3, size)
    assert falls.shape == (29 - size, 29 - size)
    for row, column in rng.integers(29 - size, size=(5, 2)):
        covered = image.copy()
        covered[row : row + size, column : column + size] = 0
        before, after = np.array(model(np.stack([image, covered]), training=False))[:, 3]
        assert falls[row, column] == pytest.approx(before - after, abs=1e-3)


def test_grad_cam_weighs_each_map_with_the_mean_slope_of_the_score(rng):
    """Slopes by differences: raise a whole map by a little, and see how far the score rises."""
    kernel = keras.layers.Conv2D(3, 3, padding="same")
    stack = [keras.Input((28, 28, 1)), kernel, keras.layers.ReLU()]
    stack += [keras.layers.Flatten(), keras.layers.Dense(10, "softmax")]
    model = keras.Sequential(stack)
    random_weights(model, rng)
    image = rng.uniform(size=(28, 28, 1)).astype("float32")
    maps = np.array(kernel(image[np.newaxis]), dtype="float64")[0]
    weights, offset = (table[..., 4].astype("float64") for table in model.layers[-1].get_weights())

    def score(maps):
        return np.maximum(maps, 0).ravel() @ weights + offset

    small = 1e-7
    worth = [(score(maps + small * np.eye(3)[k]) - score(maps)) / small / 28**2 for k in range(3)]
    _, _, grad_cam = cnn_functions()
    expected = np.maximum(0, maps @ np.array(worth))
    np.testing.assert_allclose(grad_cam(model, image, 4), expected, atol=1e-4)


def test_the_recorded_training_is_that_of_keras_with_momentum_and_a_rate_that_falls_to_zero(rng):
    network = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    network.build((None, 6))
    loss_function = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    train = defined_in("fashion", "recorded_training", loss_function=loss_function)(network)
    x, y = rng.normal(size=(20, 6)).astype("float32"), rng.integers(0, 3, 20, dtype="int32")
    batches = rng.integers(0, 20, (8, 5), dtype="int32")
    start = network.get_weights()
    for _ in range(2):  # the second run must not begin with the velocities of the first
        network.set_weights(start)
        train(x, y, batches, np.float32(0.2))
    by_hand = network.get_weights()

    network.set_weights(start)
    falling = keras.optimizers.schedules.PolynomialDecay(0.2, 8, 0.0)
    network.compile(keras.optimizers.SGD(falling, momentum=0.9), loss_function)
    for batch in batches:
        network.train_on_batch(x[batch], y[batch])
    for ours, theirs in zip(by_hand, network.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_new_statistics_are_those_of_the_images(rng):
    layers = [keras.Input((4,)), keras.layers.Dense(5), keras.layers.BatchNormalization()]
    network = keras.Sequential(layers)
    x = rng.normal(1, 3, size=(50, 4)).astype("float32")
    renewed = defined_in("fashion", "with_new_statistics")(network, network.get_weights(), x)
    sums = np.array(renewed.layers[0](x))
    np.testing.assert_allclose(renewed.layers[1].moving_mean, sums.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(renewed.layers[1].moving_variance, sums.var(axis=0), rtol=1e-3)
    np.testing.assert_allclose(renewed(x, training=False), renewed(x, training=True), atol=1e-3)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_temperature_divides_the_logits(rng, temperature):
    logits = rng.normal(0, 2, size=(50, 10))
    cooled = defined_in("fashion", "with_temperature")(
        np.array(keras.ops.softmax(logits)), temperature
    )
    by_keras = keras.ops.softmax(logits / temperature)
    np.testing.assert_allclose(cooled, by_keras, atol=1e-4)


def test_the_calibration_error_is_the_mean_gap_of_ten_groups(rng):
    claims = np.sort(rng.uniform(0.5, 1, 100))
    probabilities = np.stack([claims, 1 - claims], axis=1)
    labels = rng.integers(0, 2, 100)
    gaps = [
        abs(claims[i : i + 10].mean() - np.mean(labels[i : i + 10] == 0)) for i in range(0, 100, 10)
    ]
    by_groups = defined_in("fashion", "claimed_and_delivered")
    error = defined_in("fashion", "calibration_error", claimed_and_delivered=by_groups)
    assert error(probabilities, labels) == pytest.approx(100 * np.mean(gaps))


@pytest.mark.parametrize("workers", [2, 3, 5])
@pytest.mark.parametrize("size", [1, 7, 30])
def test_the_ring_all_reduce(rng, workers, size):
    """Also where the gradient has fewer numbers than there are workers, or chunks of two sizes."""
    gradients = rng.normal(size=(workers, size))
    reduced, sent = defined_in("scaling", "ring_all_reduce")(gradients)
    for result in reduced:
        np.testing.assert_allclose(result, gradients.sum(axis=0))
    chunk = -(-size // workers)
    assert np.all(sent <= 2 * (workers - 1) * chunk)
    assert sent.sum() == 2 * (workers - 1) * size


def test_the_smallest_batch_for_an_efficiency(rng):
    """The formula that the page solves for the batch, put back into the time of a step."""
    for _ in range(20):
        costs = {"fixed_cost": rng.uniform(0, 0.1), "cost_per_image": rng.uniform(1e-5, 1e-2)}
        network = rng.uniform(1e-6, 1e-2), rng.uniform(1e6, 1e10), int(rng.integers(1, 50))
        exchange_seconds = defined_in("scaling", "exchange_seconds", G=rng.uniform(1e3, 1e9))
        names = costs | {"exchange_seconds": exchange_seconds}
        faster, efficiency = rng.uniform(0.1, 100), rng.uniform(0.5, 0.99)
        smallest_batch = defined_in("scaling", "smallest_batch", **names)
        step_seconds = defined_in("scaling", "step_seconds", **names)
        batch = smallest_batch(efficiency, *network, faster=faster)
        one, two = (step_seconds(n, batch, *network, faster=faster) for n in (1, 2))
        assert one / (2 * two) == pytest.approx(efficiency)
