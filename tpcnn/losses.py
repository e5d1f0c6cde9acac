"""The loss of a `Trainer`, and whether its network ends as that expects: in softmax or not."""

import inspect
from collections.abc import Iterator

import keras
import tensorflow as tf

from tpcnn.messages import warn

# Keras' losses for integer labels, as they are called in lower case. The others want labels as
# wide as the outputs, and do not always complain: ten labels against ten rows of ten outputs is a
# valid operation.
FOR_INTEGER_LABELS = ("sparsecategoricalcrossentropy", "categoricalgeneralizedcrossentropy")
# In prediction these layers pass the numbers on as they are.
PASS_ON = (
    keras.layers.ActivityRegularization,
    keras.layers.Dropout,
    keras.layers.Flatten,
    keras.layers.Identity,
    keras.layers.Reshape,
)
ACTIVATIONS = (
    keras.layers.ELU,
    keras.layers.LeakyReLU,
    keras.layers.PReLU,
    keras.layers.ReLU,
    keras.layers.Softmax,
)
NO_PROBABILITIES = (
    "model: expected probabilities, which the loss needs, but it ends {}. The network would learn "
    "far less than it could. End it in Dense(classes, activation='softmax'), or in Dense(classes) "
    "and make the loss with from_logits=True."
)


def mean(loss_function, y, predictions) -> tf.Tensor:
    """Return the mean loss of a batch, a scalar, as Keras computes it.

    Args:
        loss_function: a Keras loss, or a function of labels and predictions.
        y: integer labels, shape (n,).
        predictions: shape (n, classes).
    """
    if not isinstance(loss_function, keras.losses.Loss):
        y = tf.cast(y, tf.float32)  # as Keras passes labels to a function
    return tf.reduce_mean(loss_function(y, tf.cast(predictions, tf.float32)))


def check_ending(model: keras.Model, loss_function) -> None:
    """Warn where a loss expects probabilities and the model does not give any, or vice versa.

    Raises:
        ValueError: it is one of Keras' losses for labels that are no integers.
    """
    owner = loss_function if inspect.isfunction(loss_function) else type(loss_function)
    if _is_keras(owner, keras.losses) and _lower(owner) not in FOR_INTEGER_LABELS:
        raise ValueError(
            f"loss_function: expected one for integer labels, got {owner.__name__}. Take "
            "keras.losses.SparseCategoricalCrossentropy, and labels that are integers from 0 to "
            "the number of classes minus one; one-hot labels become integers with "
            "y.argmax(axis=1)."
        )
    last, wants_logits = last_activation(model), _wants_logits(loss_function)
    if wants_logits and last not in (None, "linear", "log_softmax"):
        mend = "Leave from_logits out" if last == "softmax" else "End the model in Dense(classes)"
        warn(
            f"model: expected logits, since the loss has from_logits=True, but it ends in {last}. "
            f"The network would learn less than it could. {mend}."
        )
    elif wants_logits is False and last not in (None, "softmax"):
        warn(NO_PROBABILITIES.format("without softmax" if last == "linear" else f"in {last}"))


def check_outputs(model: keras.Model, loss_function, images) -> None:
    """Warn where the outputs for `images` show what `check_ending` could not see."""
    if last_activation(model) is None and _wants_logits(loss_function) is False:
        outputs = tf.cast(model(tf.cast(images, tf.float32), training=False), tf.float32)
        if tf.reduce_all(tf.math.is_finite(outputs)) and not _are_probabilities(outputs):
            warn(NO_PROBABILITIES.format("in numbers that are below 0 or do not sum to 1"))


def probabilities(outputs: tf.Tensor, model: keras.Model, loss_function) -> tf.Tensor:
    """Return the outputs of a model, shape (n, classes), as probabilities."""
    last, wants_logits = last_activation(model), _wants_logits(loss_function)
    if last == "softmax":
        return outputs
    if last is None and not wants_logits:  # it cannot be seen: so look at the numbers
        softmaxed = _are_probabilities(outputs)
        return tf.cond(softmaxed, lambda: outputs, lambda: tf.nn.softmax(outputs))
    return tf.nn.softmax(outputs)


def _are_probabilities(outputs: tf.Tensor) -> tf.Tensor:
    sums = tf.reduce_sum(outputs, axis=1)
    return tf.reduce_all(outputs >= 0) & tf.reduce_all(tf.abs(sums - 1) < 0.01)


def last_activation(model: keras.Model) -> str | None:
    """Return the name of a model's last activation function, None where it cannot be seen."""
    for layer in _from_the_end(model):
        if isinstance(layer, keras.Model):
            return last_activation(layer)
        if isinstance(layer, PASS_ON):
            continue
        if isinstance(layer, ACTIVATIONS):
            return _lower(type(layer))
        function = getattr(layer, "activation", None)
        if isinstance(function, ACTIVATIONS):
            return _lower(type(function))
        if not _is_keras(function, keras.activations) and not _is_keras(function, tf.nn):
            return None
        name = function.__name__.removesuffix("_v2")  # as TensorFlow calls its softmax
        if name != "linear" or not isinstance(layer, keras.layers.Activation):
            return name
    return None


def _from_the_end(model: keras.Model) -> Iterator[keras.Layer]:
    """Yield the layers of a model from the last one on, as far as they form a chain."""
    if isinstance(model, keras.Sequential):
        yield from reversed(model.layers)
        return
    outputs = getattr(model, "outputs", None) or []  # a subclassed model does not say
    while len(outputs) == 1:
        operation, node, _ = outputs[0]._keras_history
        yield operation
        outputs = operation._inbound_nodes[node].input_tensors


def _wants_logits(loss_function) -> bool | None:
    """Whether a loss expects logits; None where it does not say."""
    owner = loss_function if inspect.isfunction(loss_function) else type(loss_function)
    default = False if _lower(owner) in FOR_INTEGER_LABELS else None
    return getattr(loss_function, "from_logits", default)


def _is_keras(thing, module) -> bool:
    """Whether a function or a class is one of those that a public module of Keras offers."""
    name = getattr(thing, "__name__", "").removesuffix("_v2")
    own = (getattr(thing, "__module__", None) or "").startswith(("keras.", "tensorflow."))
    return own and hasattr(module, name)


def _lower(thing) -> str:
    return getattr(thing, "__name__", "").replace("_", "").lower()
