"""Short training runs of dense networks, many of them, as a search for hyper-parameters needs them.

TensorFlow records the training of each new Keras model again, which takes longer than the run of a
small one. Here the network is a function of its weights, so one recording serves all networks of
the same depth, whatever their width.
"""

import functools
import itertools
import math
import operator

import numpy as np
import tensorflow as tf

CLASSES = 10


def train(
    x,
    y,
    *,
    units: int,
    hidden_layers: int,
    learning_rate: float,
    batch_size: int,
    dropout: float = 0.0,
    epochs: int,
    seed,
) -> list[np.ndarray]:
    """Train a new dense network with plain gradient descent, and return its weights.

    The learning rate falls along a straight line, from `learning_rate` at the first step to zero
    after the last one. The first run of each depth takes a second or so longer, since TensorFlow
    records it.

    Args:
        x: images, one row of pixels for each, shape (n, pixels).
        y: their classes, integers from 0 to 9, shape (n,).
        units: width of each hidden layer, which ends in ReLU.
        hidden_layers: how many there are, 1 or more.
        learning_rate: at the first step.
        batch_size: images per step; the last step of a run may have fewer.
        dropout: share of the outputs of each hidden layer that is set to zero, in [0, 1).
        epochs: how often the run sees each image.
        seed: an integer or a list of integers, as for `numpy.random.default_rng`. The weights at
            the start, the order of the images and the masks of dropout all come from it.

    Returns:
        Kernel and bias of each layer, in the order of `keras.Model.get_weights`: hidden layers of
        shapes (inputs, units) and (units,), then (units, 10) and (10,). A run that diverges
        returns weights that are not finite.

    Raises:
        TypeError: a number that must be an integer is none.
        ValueError: an argument is outside its range, or the shapes do not fit.
    """
    x, y = _images_and_classes(x, y)
    units = _whole("units", units)
    hidden_layers = _whole("hidden_layers", hidden_layers)
    batch_size = _whole("batch_size", batch_size)
    epochs = _whole("epochs", epochs)
    if not 0 < learning_rate < math.inf:
        raise ValueError(
            f"learning_rate: expected a number above 0, got {learning_rate}. Draw it between "
            "0.003 and 3, for example."
        )
    if not 0 <= dropout < 1:
        raise ValueError(
            f"dropout: expected a share from 0 up to, but not including, 1, got {dropout}. "
            "Pass 0 for none."
        )
    rng = np.random.default_rng(seed)
    weights = initial_weights(x.shape[1], units, hidden_layers, rng)
    order = np.concatenate([rng.permutation(len(x)) for _ in range(epochs)]).astype("int32")
    masks = int(rng.integers(2**31))
    run = _recorded(hidden_layers)
    trained = run(weights, x, y, order, batch_size, float(learning_rate), float(dropout), masks)
    return [w.numpy() for w in trained]


def classify(x, weights) -> np.ndarray:
    """Return the class that a network gives to each image.

    Args:
        x: images, one row of pixels for each, shape (n, pixels).
        weights: as `train` returns them.

    Returns:
        Integers of shape (n,). Of a run that has diverged, the class is 0 for every image.
    """
    z = np.asarray(_scores(tf.convert_to_tensor(x, tf.float32), weights))
    return np.argmax(np.where(np.isfinite(z), z, -np.inf), axis=1)


def initial_weights(pixels: int, units: int, hidden_layers: int, rng) -> list[np.ndarray]:
    """Return kernels drawn as He et al. (2015) do for ReLU, and biases of zero.

    Args:
        pixels: inputs of the first layer.
        units: width of each hidden layer.
        hidden_layers: how many there are.
        rng: a `numpy.random.Generator`.
    """
    sizes = [pixels] + [units] * hidden_layers + [CLASSES]
    weights = []
    for inputs, outputs in itertools.pairwise(sizes):
        weights.append(rng.normal(0, np.sqrt(2 / inputs), (inputs, outputs)).astype("float32"))
        weights.append(np.zeros(outputs, "float32"))
    return weights


def _scores(x, weights, dropout=None, seed=0, step=0):
    """Return the logits, in training with dropout: for each seed, step and layer its own masks."""
    hidden_layers = len(weights) // 2 - 1
    for layer in range(hidden_layers):
        x = tf.nn.relu(x @ weights[2 * layer] + weights[2 * layer + 1])
        if dropout is not None:
            of_layer = [seed, step * hidden_layers + layer]
            x = tf.nn.experimental.stateless_dropout(x, dropout, seed=of_layer)
    return x @ weights[-2] + weights[-1]


def _train(weights, x, y, order, batch_size, learning_rate, dropout, seed):
    total = tf.size(order)
    for start in tf.range(0, total, batch_size):
        batch = order[start : start + batch_size]
        with tf.GradientTape() as tape:
            tape.watch(weights)
            z = _scores(tf.gather(x, batch), weights, dropout, seed, step=start)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.gather(y, batch), z)
            loss = tf.reduce_mean(losses)
        gradients = tape.gradient(loss, weights)
        rate = learning_rate * tf.cast(1 - start / total, tf.float32)
        weights = [w - rate * gradient for w, gradient in zip(weights, gradients, strict=True)]
    return weights


@functools.cache
def _recorded(hidden_layers: int):
    """Return `_train` as TensorFlow records it for networks of this depth and of any width."""
    weights = [tf.TensorSpec([None, None]), tf.TensorSpec([None])] * (hidden_layers + 1)
    x, y = tf.TensorSpec([None, None]), tf.TensorSpec([None], tf.int32)
    whole, number = tf.TensorSpec([], tf.int32), tf.TensorSpec([])
    order = tf.TensorSpec([None], tf.int32)
    signature = [weights, x, y, order, whole, number, number, whole]
    return tf.function(_train, input_signature=signature)


def _images_and_classes(x, y) -> tuple[tf.Tensor, tf.Tensor]:
    if len(np.shape(x)) != 2 or len(x) == 0:
        raise ValueError(
            f"x: expected one row of pixels for each image, shape (n, pixels), got shape "
            f"{tuple(np.shape(x))}. Flatten the images: x.reshape(len(x), -1)."
        )
    if tuple(np.shape(y)) != (len(x),):
        raise ValueError(
            f"y: expected one class per image, shape ({len(x)},), got shape {tuple(np.shape(y))}. "
            "Take as many of them as of the images."
        )
    classes = np.asarray(y)
    if classes.dtype.kind not in "iu":
        raise TypeError(f"y: expected integers, got {classes.dtype}. Use y.astype(int).")
    if classes.min() < 0 or classes.max() >= CLASSES:
        raise ValueError(
            f"y: expected classes from 0 to {CLASSES - 1}, got classes from {classes.min()} to "
            f"{classes.max()}. Number them from 0."
        )
    return tf.cast(x, tf.float32), tf.cast(y, tf.int32)


def _whole(name: str, number) -> int:
    try:
        number = operator.index(number)
    except TypeError:
        raise TypeError(
            f"{name}: expected an integer, got {number!r}. Round it, and pass it as int."
        ) from None
    if number < 1:
        raise ValueError(f"{name}: expected 1 or more, got {number}.")
    return number
