"""The check of a network before it is trained."""

import keras
import numpy as np
import tensorflow as tf

from tpcnn.checks import session
from tpcnn.checks.mistakes import Mistake, Section, blank, check, raised, run
from tpcnn.models import CLASSES, IMAGE_SHAPE

# Of softmax applied to probabilities: e for a class that had 1, and 1 for each that had 0.
LARGEST_AFTER_TWO_SOFTMAX = np.e / (np.e + CLASSES - 1)

SECTIONS = {
    "fully_connected": Section.FULLY_CONNECTED,
    "cnn": Section.CNN,
    "fashion": Section.FASHION,
}


@check
def model(model, loss_function, step: str) -> None:
    """Check a network and its loss before training; note the bonuses.

    Args:
        model: the student's Keras model, of any style.
        loss_function: the loss that the Trainer will get.
        step: ``"fully_connected"``, ``"cnn"`` or ``"fashion"``; bonuses count for the last two.

    Raises:
        Mistake: see its message.
    """
    section = SECTIONS[step]
    session.passed.pop(step, None)
    for bonus in ("batch normalisation", "dropout"):
        session.bonuses[bonus].discard(step)
    if model is None or model is Ellipsis:
        raise blank("The model", section)
    if loss_function is None or loss_function is Ellipsis:
        raise blank("The loss function", Section.LOSS)
    if isinstance(loss_function, (str, type)):
        raise Mistake(
            "loss_function is the name of a loss, or its class, and not yet a loss.",
            "Your Trainer calls it as it is, and would stop. Write "
            "keras.losses.SparseCategoricalCrossentropy(), with the parentheses.",
            Section.LOSS,
        )
    x = np.random.default_rng(0).random((64, *IMAGE_SHAPE), dtype=np.float32)
    outputs, error = run(_outputs, model, x)
    if error:
        raise raised(f"the model, given images of shape {x.shape},", error, section)
    _find_wrong_classes(outputs, section)
    is_softmax = bool(np.all(outputs >= 0) and np.allclose(outputs.sum(axis=1), 1, atol=1e-3))
    if is_softmax and _is_softmax_twice(model, x):
        raise Mistake(
            "the model applies softmax twice.",
            f"No probability can be above {LARGEST_AFTER_TWO_SOFTMAX:.0%} then: the loss stays "
            "high and the gradient small. Keep the last softmax only.",
            Section.SCORES,
        )
    _find_missing_nonlinearity(model, x, is_softmax)
    _find_wrong_loss(loss_function, is_softmax)

    if step in ("cnn", "fashion") and not _has(model, "Conv"):
        raise Mistake(
            "the network has no convolutional layer.",
            "This step is about them: let it begin with layers.Conv2D. A dense network hardly "
            "reaches the accuracy that is asked for here.",
            section,
        )
    session.passed[step] = model
    earned = _bonuses(model) if step in ("cnn", "fashion") else []
    for bonus in earned:
        session.bonuses[bonus].add(step)
    print(
        f"Right: {CLASSES} classes, not linear, and the loss fits the "
        f"{'probabilities' if is_softmax else 'logits'}."
        + (f"\nBonus earned: {', '.join(earned)}." if earned else "")
    )


def _outputs(model, x) -> np.ndarray:
    return np.asarray(model(x, training=False), dtype=np.float64)


def _find_wrong_classes(outputs, section):
    if outputs.shape == (64, CLASSES):
        return
    if outputs.ndim != 2:
        raise Mistake(
            f"the model returns shape {outputs.shape} for 64 images, expected (64, {CLASSES}).",
            "Before the last dense layer, each image must be one row of numbers: is Flatten, or "
            "a global pooling, missing?",
            section,
        )
    raise Mistake(
        f"the model has the wrong number of classes: {outputs.shape[1]} outputs, expected "
        f"{CLASSES}.",
        "Each class needs an output of its own: with fewer, the labels have none to point to, "
        "and the loss becomes NaN or stops; more are never right.",
        section,
    )


def _is_softmax_twice(model, x) -> bool:
    """Whether the outputs are softmax of probabilities, as their logarithms then show."""
    for scale in (1, 10, 100, 1000):  # large pixels make an ordinary network sure of itself
        p = _outputs(model, scale * x)
        if p.max() > LARGEST_AFTER_TWO_SOFTMAX + 1e-4:
            return False
        logs = np.log(np.maximum(p, 1e-30))
        first = logs + (1 - logs.sum(axis=1, keepdims=True)) / CLASSES
        if first.min() < -1e-3:
            return False
    return bool(np.ptp(first) > 0.5)  # a network that always says the same shows nothing


def _find_missing_nonlinearity(model, x, is_softmax):
    """A linear network maps the midpoint of two images to the midpoint of their logits."""

    def logits(images):
        z = _outputs(model, images)
        z = np.log(np.maximum(z, 1e-30)) if is_softmax else z
        return z - z.mean(axis=1, keepdims=True)

    a, b = x[:32], x[32:]
    bend = np.abs(logits((a + b) / 2) - (logits(a) + logits(b)) / 2).max()
    spread = np.abs(logits(a) - logits(b)).max()
    weighted = [layer for layer in model._flatten_layers() if hasattr(layer, "kernel")]
    if spread and bend < 1e-4 * spread and len(weighted) == 1:
        raise Mistake(
            "the network has no hidden layer.",
            "It is the smallest network of the chapter *The Trainer*, which can only add up "
            "pixels. Put a Dense layer with activation='relu' before the last one.",
            Section.FULLY_CONNECTED,
        )
    if spread and bend < 1e-4 * spread:
        raise Mistake(
            "the network has no non-linearity between its layers (no activation such as ReLU).",
            "Weighted sums of weighted sums are weighted sums: however many layers, it can do no "
            "more than a single one. Give each hidden layer activation='relu'.",
            Section.FULLY_CONNECTED,
        )


def _find_wrong_loss(loss_function, is_softmax):
    """Compare what the loss says with the cross-entropy, right and misread.

    On outputs of a network that is sure of itself: those of an untrained one are so much alike that
    a wrong loss could agree by chance.
    """
    logits = tf.constant(3 * np.random.default_rng(0).normal(size=(64, CLASSES)), tf.float32)
    y = np.arange(64) % CLASSES
    probabilities = tf.nn.softmax(logits)
    outputs = probabilities if is_softmax else logits
    loss_function = keras.losses.get(loss_function)

    def loss_of(labels, predictions):
        value, error = run(loss_function, tf.constant(labels), predictions)
        return np.nan if error else float(np.mean(value))

    def cross_entropy(predictions, from_logits=False):
        losses = keras.losses.sparse_categorical_crossentropy(y, predictions, from_logits)
        return float(np.mean(losses))

    said = loss_of(y, outputs)
    if np.isclose(said, cross_entropy(probabilities), rtol=1e-3):
        return
    if is_softmax and np.isclose(said, cross_entropy(outputs, from_logits=True), rtol=1e-3):
        raise Mistake(
            "the loss does not fit the output: the model ends in softmax, and the loss expects "
            "logits (from_logits=True).",
            "Softmax is applied twice, by the model and by the loss: the gradient is small and "
            "training slow. Use from_logits=False, or leave out the model's softmax.",
            Section.SCORES,
        )
    if not is_softmax and np.isclose(said, cross_entropy(outputs), rtol=1e-3):
        raise Mistake(
            "the loss does not fit the output: the model ends without softmax, and the loss "
            "expects probabilities (from_logits=False).",
            "The logarithm of a logit means nothing: the loss jumps or stands still. Use "
            "from_logits=True, or let the model end in softmax.",
            Section.SCORES,
        )
    one_hot = tf.one_hot(y, CLASSES)
    kinds = (
        keras.losses.CategoricalCrossentropy,
        keras.losses.CategoricalFocalCrossentropy,
        keras.losses.BinaryCrossentropy,
    )
    if isinstance(loss_function, kinds) or np.isnan(said):
        raise Mistake(
            "the loss does not fit the labels: they are numbers of classes, and it wants another "
            "form (such as one-hot rows).",
            "It stops, or compares a class number with a probability. Use "
            "keras.losses.SparseCategoricalCrossentropy.",
            Section.LOSS,
        )
    # Some other loss: it must at least prefer right answers to wrong ones, sure or less sure.
    scores = [tf.constant(strength * (2 * one_hot - 1)) for strength in (-2.0, 0.0, 1.0, 2.0)]
    falling = [loss_of(y, tf.nn.softmax(s) if is_softmax else s) for s in scores]
    if not np.all(np.diff(falling) < 0):
        raise Mistake(
            "the loss does not fit the output: it does not fall when the probability of the true "
            "class rises.",
            "The network learns something else than the classes. Use "
            "keras.losses.SparseCategoricalCrossentropy.",
            Section.LOSS,
        )


def _bonuses(model) -> list[str]:
    earned = ["batch normalisation"] if _has(model, "BatchNormalization") else []
    return [*earned, "dropout"] if _has(model, "Dropout", "rate") else earned


def _has(model, kind: str, attribute: str | None = None) -> bool:
    """Whether a layer is of this kind, by the name of its class or of one that it comes from."""
    return any(
        any(kind in base.__name__ for base in type(layer).__mro__)
        and (attribute is None or getattr(layer, attribute, 0))
        for layer in model._flatten_layers()
    )
