"""Tiny images, networks and losses that note what a Trainer does with them."""

import inspect
from dataclasses import dataclass, field

import keras
import numpy as np
import tensorflow as tf

from tpcnn.checks.mistakes import Mistake, Section, blank, raised, run
from tpcnn.models import CLASSES, IMAGE_SHAPE

IDS = 8192  # image i has the value i / IDS in its first pixel


def images(n: int, first_id: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return n images that carry their number and their label, and the labels.

    Returns:
        float32 images (n, 28, 28, 1) in [0, 1] and uint8 labels (n,), as the lab prepares them.
    """
    rng = np.random.default_rng(first_id + n)
    x = rng.random((n, *IMAGE_SHAPE), dtype=np.float32) / 2
    y = rng.integers(0, CLASSES, n).astype(np.uint8)
    x[:, 0, 0, 0] = (first_id + np.arange(n)) / IDS
    x[np.arange(n), 2 + 2 * y] += (
        0.5  # one row of its own per class, so that there is much to learn
    )
    return x, y


def ids_of(x) -> np.ndarray:
    return np.rint(np.asarray(x)[:, 0, 0, 0] * IDS).astype(int)


@dataclass
class Batch:
    """What went through the model, and then through the loss."""

    training: bool
    ids: np.ndarray
    y_true: np.ndarray | None = None
    losses: np.ndarray | None = None
    hits: np.ndarray | None = None


@dataclass
class Notes:
    """What the spies have seen."""

    batches: list[Batch] = field(default_factory=list)
    model_called: bool = False  # also while TensorFlow only records a function
    gradient_taken: bool = False
    loss_shapes: list[tuple] = field(default_factory=list)
    metric_calls: list[tuple[str, list]] = field(default_factory=list)

    def clear(self):
        self.__init__()


class Entrance(keras.layers.Layer):
    """Passes images on and notes which."""

    def __init__(self, notes: Notes):
        super().__init__()
        self.notes = notes
        self.supports_jit = False  # XLA knows no py_function

    def call(self, x, training=None):
        notes = self.notes
        notes.model_called = True

        def note(x, training):
            notes.batches.append(Batch(bool(training), ids_of(x)))

        is_training = False if training is None else training
        tf.py_function(note, [x, is_training], [])
        return x


class Exit(keras.layers.Layer):
    """Passes the outputs on and notes when a gradient comes back through them."""

    def __init__(self, notes: Notes):
        super().__init__()
        self.notes = notes

    def call(self, outputs):
        notes = self.notes

        @tf.custom_gradient
        def identity(values):
            def gradient(upstream):
                notes.gradient_taken = True
                return upstream

            return tf.identity(values), gradient

        return identity(outputs)


class NotingLoss(keras.losses.SparseCategoricalCrossentropy):
    """The cross-entropy; it notes its arguments."""

    def __init__(self, notes: Notes, from_logits: bool):
        super().__init__(from_logits=from_logits)
        self.notes = notes

    def call(self, y_true, y_pred):
        notes = self.notes
        notes.loss_shapes.append((tuple(y_true.shape), tuple(y_pred.shape)))
        if self.swapped():
            return tf.reduce_sum(tf.cast(y_true, tf.float32), axis=-1)  # goes on, to be told
        losses = super().call(y_true, y_pred)

        def note(y_true, y_pred, losses):
            if notes.batches and notes.batches[-1].y_true is None:
                batch = notes.batches[-1]
                batch.y_true = y_true.numpy().reshape(-1).astype(int)
                batch.hits = y_pred.numpy().argmax(axis=-1) == batch.y_true
                batch.losses = losses.numpy()

        tf.py_function(note, [y_true, y_pred, losses], [])
        return losses

    def swapped(self) -> bool:
        return any(
            len(y_true) == 2 and y_true[1] == CLASSES and len(y_pred) < 2
            for y_true, y_pred in self.notes.loss_shapes
        )


def network(
    notes: Notes, softmax: bool = True, batch_norm: bool = False, dropout: float = 0.0
) -> keras.Model:
    """Return a tiny classifier of images, with the same weights each time."""
    model = keras.Sequential(
        [
            keras.Input(IMAGE_SHAPE),
            Entrance(notes),
            keras.layers.AveragePooling2D((2, 14)),
            keras.layers.Flatten(),
            keras.layers.Dense(12, activation="relu"),
            *([keras.layers.BatchNormalization()] if batch_norm else []),
            *([keras.layers.Dropout(dropout)] if dropout else []),
            keras.layers.Dense(CLASSES, activation="softmax" if softmax else None),
            Exit(notes),
        ]
    )
    rng = np.random.default_rng(0)
    for weight in model.trainable_variables:
        if weight.path.endswith("kernel"):
            weight.assign(rng.normal(scale=0.5, size=weight.shape))
    notes.clear()
    return model


METRICS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")


class WatchedTrainer:
    """A student's Trainer with a tiny network, a loss and an optimizer that are watched."""

    def __init__(self, trainer_class, learning_rate: float = 0.5, **options):
        if trainer_class is None or trainer_class is Ellipsis:
            raise blank("Trainer", Section.LOOP)
        if not inspect.isclass(trainer_class):
            raise Mistake(
                "this check wants the class `Trainer` itself, not an object made from it.",
                "Write checks.fit(Trainer), with nothing behind the name.",
                Section.USE,
            )
        self.notes = Notes()
        self.softmax = options.get("softmax", True)
        self.model = network(self.notes, **options)
        self.loss = NotingLoss(self.notes, from_logits=not self.softmax)
        self.optimizer = keras.optimizers.SGD(learning_rate)
        self.trainer, error = run(trainer_class, self.model, self.loss, self.optimizer)
        if error:
            raise raised("__init__ of your Trainer", error, Section.LOOP)
        missing = [name for name in METRICS if not hasattr(self.trainer, name)]
        if missing:
            raise Mistake(
                f"your Trainer has no {' and no '.join(missing)}.",
                "The metrics are made in __init__, which the notebook gives you: leave it as it "
                "is.",
                Section.LOOP,
            )
        for name in METRICS:
            self._watch(name)

    def _watch(self, name):
        metric, notes = getattr(self.trainer, name), self.notes
        update_state = metric.update_state

        @tf.autograph.experimental.do_not_convert
        def watched(*args, **kwargs):
            named = [kwargs[key] for key in ("values", "y_true", "y_pred") if key in kwargs]
            shapes = [tuple(getattr(value, "shape", ())) for value in (*args, *named)]
            notes.metric_calls.append((name, shapes))
            return update_state(*args, **kwargs)

        metric.update_state = watched
