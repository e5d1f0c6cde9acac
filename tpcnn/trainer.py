"""Trainer, the class of the lab sheet: it trains a Keras model with a loop that you can read.

Whatever else a training run needs (early stopping, checkpoints, TensorBoard) plugs in as a Keras
callback.
"""

import operator
import warnings
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from tpcnn import plots

ANY_NUMBER_OF_LABELS = tf.TensorSpec([None], tf.int32)


class Trainer:
    """Train a model, follow its progress, predict with it.

    Args:
        model: a `keras.Model` that maps images to one score per class: probabilities (it ends in
            softmax) or logits (it does not).
        loss_function: a Keras loss for integer labels, as a rule
            `keras.losses.SparseCategoricalCrossentropy`, with ``from_logits=True`` for logits.
        optimizer: a Keras optimizer.

    Attributes:
        history: for each of ``loss``, ``accuracy``, ``val_loss``, ``val_accuracy``, a list with
            one float per epoch of the last call of `fit`; accuracies in [0, 1].
    """

    def __init__(
        self,
        model: keras.Model,
        loss_function: keras.losses.Loss,
        optimizer: keras.optimizers.Optimizer,
    ):
        self.model = model
        self.loss_function = keras.losses.get(loss_function)
        self.optimizer = keras.optimizers.get(optimizer)
        # Our loop does not need it, but callbacks look for the optimizer on the model.
        model.compile(self.optimizer, self.loss_function, metrics=["accuracy"])
        self.train_loss = keras.metrics.Mean()
        self.train_accuracy = keras.metrics.SparseCategoricalAccuracy()
        self.val_loss = keras.metrics.Mean()
        self.val_accuracy = keras.metrics.SparseCategoricalAccuracy()
        self.history: dict[str, list[float]] = {}
        self._shuffle_seed = keras.random.SeedGenerator()
        self._warned_of_pixels = False

    def fit(
        self,
        x_train,
        y_train,
        x_val,
        y_val,
        epochs: int,
        verbose: bool = True,
        *,
        batch_size: int = 128,
        shuffle: bool = True,
        callbacks: Sequence[keras.callbacks.Callback] | None = None,
    ) -> dict[str, list[float]]:
        """Train the model.

        Args:
            x_train: images, float in [0, 1], of the shape the model expects with a leading n.
            y_train: integer labels, shape (n,), from 0 to the number of classes minus one.
            x_val: validation images; they are only looked at, after each epoch.
            y_val: their labels.
            epochs: how many times to go through the training images.
            verbose: print a line after each epoch.
            batch_size: images per step; the last batch of an epoch may be smaller.
            shuffle: draw a new order for each epoch.
            callbacks: Keras callbacks. One that listens to training batches makes an epoch
                slower, since the loop then returns to Python after each batch. Hooks on
                validation batches are not called, and an epoch to resume from is not read.

        Returns:
            `history`.

        Raises:
            ValueError: an argument has the wrong shape, range or value.
            TypeError: labels, `epochs` or `batch_size` are not integers.
        """
        epochs = _positive_integer("epochs", epochs)
        batch_size = _positive_integer("batch_size", batch_size)
        x_train, y_train = self._checked("train", x_train, y_train)
        x_val, y_val = self._checked("val", x_val, y_val)
        self.optimizer.build(self.model.trainable_variables)

        callbacks = keras.callbacks.CallbackList(
            callbacks, model=self.model, epochs=epochs, verbose=int(verbose)
        )
        by_batch = any(_listens_to_batches(callback) for callback in callbacks.callbacks)
        self.history = {"loss": [], "accuracy": [], "val_loss": [], "val_accuracy": []}
        x_train, y_train = tf.constant(x_train, tf.float32), tf.constant(y_train)
        train_batches = self._train_batches.get_concrete_function(
            _any_number_of(x_train), ANY_NUMBER_OF_LABELS, ANY_NUMBER_OF_LABELS, batch_size
        )

        self.model.stop_training = False
        callbacks.on_train_begin()
        for epoch in range(epochs):
            self._reset_metrics()
            callbacks.on_epoch_begin(epoch)
            order = self._epoch_order(len(x_train), shuffle)
            # Where a callback listens to batches, Python takes over again after each of them.
            orders = tf.split(order, _sizes(len(order), batch_size)) if by_batch else [order]
            for step, order in enumerate(orders):
                callbacks.on_train_batch_begin(step)
                train_batches(x_train, y_train, order)
                logs = self._results("", self.train_loss, self.train_accuracy)
                callbacks.on_train_batch_end(step, logs)
                if self.model.stop_training:
                    break
            logs |= self._evaluate(x_val, y_val, batch_size, callbacks)
            for name, value in logs.items():
                self.history[name].append(value)
            if verbose:
                print(
                    f"Epoch {epoch + 1}/{epochs} - loss: {logs['loss']:.6f} - "
                    f"train acc: {logs['accuracy']:.2%} - val acc: {logs['val_accuracy']:.2%}"
                )
            callbacks.on_epoch_end(epoch, logs)
            if self.model.stop_training:
                break
        # As in Keras: an optimizer that averages the weights over the steps sets them now.
        self.optimizer.finalize_variable_values(self.model.trainable_variables)
        callbacks.on_train_end(logs)
        return self.history

    def predict(self, x, batch_size: int = 256) -> tf.Tensor:
        """Return the probability of each class for each image.

        Args:
            x: images, as for `fit`; any number of them.
            batch_size: images that pass through the model at a time; it bounds the memory.

        Returns:
            float32 tensor of shape (n, classes); each row sums to 1.

        Raises:
            ValueError: `x` has the wrong shape or holds NaN or infinite pixels.
        """
        batch_size = _positive_integer("batch_size", batch_size)
        x = self._checked_images("x", x)
        predict_step = self._predict_step.get_concrete_function(_any_number_of(x))
        batches = [
            predict_step(tf.constant(x[start : start + batch_size], tf.float32))
            for start in range(0, len(x), batch_size)
        ]
        return tf.concat(batches, axis=0)

    def plot_history(self):
        """Draw loss and accuracy, training and validation, against the epoch.

        Returns:
            The Matplotlib figure.

        Raises:
            RuntimeError: `fit` has not been called.
        """
        if not self.history:
            raise RuntimeError("There is no history to plot yet: call fit first.")
        return plots.history(self.history)

    @tf.function(reduce_retracing=True)
    def _train_step(self, x, y):
        """Take one step down the gradient of the loss on one batch."""
        with tf.GradientTape() as tape:
            predictions = self.model(x, training=True)
            loss = self._loss(y, predictions)
        gradients = tape.gradient(loss, self.model.trainable_variables)
        self.optimizer.apply(gradients, self.model.trainable_variables)
        # Weighted by the size of the batch: the last one may be smaller than the others.
        self.train_loss.update_state(loss, sample_weight=tf.shape(x)[0])
        self.train_accuracy.update_state(y, predictions)

    @tf.function(reduce_retracing=True)
    def _eval_step(self, x, y):
        """Measure the loss and the accuracy on one batch; the model does not change."""
        predictions = self.model(x, training=False)
        self.val_loss.update_state(self._loss(y, predictions), sample_weight=tf.shape(x)[0])
        self.val_accuracy.update_state(y, predictions)

    @tf.function(reduce_retracing=True)
    def _predict_step(self, x):
        outputs = tf.cast(self.model(x, training=False), tf.float32)
        return outputs if self._ends_in_softmax() else tf.nn.softmax(outputs)

    @tf.function(reduce_retracing=True)
    def _train_batches(self, x, y, order, batch_size):
        """Take one step per batch of the images that `order` names, without leaving TensorFlow.

        One call for a whole epoch saves what a return to Python after each batch costs.
        """
        for start in tf.range(0, tf.size(order), batch_size):
            batch = order[start : start + batch_size]
            self._train_step(tf.gather(x, batch), tf.gather(y, batch))

    def _evaluate(self, x, y, batch_size, callbacks):
        callbacks.on_test_begin()
        eval_step = self._eval_step.get_concrete_function(_any_number_of(x), ANY_NUMBER_OF_LABELS)
        for start in range(0, len(x), batch_size):
            batch = slice(start, start + batch_size)
            eval_step(tf.constant(x[batch], tf.float32), tf.constant(y[batch]))
        logs = self._results("val_", self.val_loss, self.val_accuracy)
        callbacks.on_test_end(logs)
        return logs

    @staticmethod
    def _results(prefix, loss, accuracy):
        return {
            f"{prefix}loss": float(loss.result()),
            f"{prefix}accuracy": float(accuracy.result()),
        }

    def _loss(self, y, predictions):
        """Return the mean loss of a batch, plus what the layers' regularizers add."""
        loss = tf.reduce_mean(self.loss_function(y, predictions))
        return tf.add_n([loss, *self.model.losses])

    def _epoch_order(self, n, shuffle):
        order = tf.range(n)
        return keras.random.shuffle(order, seed=self._shuffle_seed) if shuffle else order

    def _reset_metrics(self):
        for metric in (
            self.train_loss,
            self.train_accuracy,
            self.val_loss,
            self.val_accuracy,
        ):
            metric.reset_state()

    def _ends_in_softmax(self) -> bool:
        """Whether the model gives probabilities already."""
        # A model that is trained on logits gives logits. A loss that does not say, a plain
        # function, leaves it to the model's last layer.
        if hasattr(self.loss_function, "from_logits"):
            return not self.loss_function.from_logits
        last = self.model
        while isinstance(last, keras.Model) and last.layers:
            last = last.layers[-1]
        softmax = (keras.activations.softmax, tf.nn.softmax)
        return (
            isinstance(last, keras.layers.Softmax) or getattr(last, "activation", None) in softmax
        )

    def _checked(self, part, images, labels):
        images = self._checked_images(f"x_{part}", images)
        classes = self.model(images[:1].astype(np.float32), training=False).shape[-1]
        return images, _checked_labels(f"y_{part}", labels, len(images), classes)

    def _checked_images(self, name, images):
        """Return `images` as an array of the shape that the model expects, uncopied.

        They become float32 batch by batch, so that any number of them needs no second copy.
        """
        images = np.asarray(images)
        if images.dtype.kind not in "biuf":
            raise ValueError(f"{name}: expected numbers, got an array of {images.dtype}.")
        if images.size == 0:
            raise ValueError(f"{name}: expected at least one image, got shape {images.shape}.")
        # A subclassed model, or one without an input layer, does not say what it expects.
        expected = getattr(self.model, "input_shape", images.shape)[1:]
        fits = images.ndim == len(expected) + 1 and all(
            wanted in (None, got) for wanted, got in zip(expected, images.shape[1:], strict=False)
        )
        if not fits:
            shape = "(n, " + ", ".join("any" if d is None else str(d) for d in expected) + ")"
            advice = (
                "Add the channel axis with add_channel."
                if (*images.shape[1:], 1) == expected
                else "Prepare the images as for the model's first layer."
            )
            raise ValueError(f"{name}: expected shape {shape}, got {images.shape}. {advice}")
        low, high = images.min(), images.max()  # both are NaN if any pixel is
        if not max(abs(float(low)), abs(float(high))) <= np.finfo(np.float32).max:
            raise ValueError(
                f"{name}: expected finite pixels, got NaN or infinite ones. "
                "Look for a division by zero in the preparation of the images."
            )
        if (low < 0 or high > 1) and not self._warned_of_pixels:
            self._warned_of_pixels = True
            warnings.warn(
                f"{name}: pixels range from {low} to {high}; networks train best on [0, 1]. "
                "normalize scales 0..255 to that range.",
                stacklevel=4,
            )
        if not self.model.built:
            self.model(images[:1].astype(np.float32), training=False)
        return images


def _checked_labels(name, labels, n, classes):
    """Return `labels` as an integer array of shape (n,) with values below `classes`."""
    labels = np.asarray(labels)
    if labels.ndim != 1:
        one_hot = labels.ndim == 2 and labels.shape[1] > 1
        advice = f"One-hot labels become integers with {name}.argmax(axis=1)." if one_hot else ""
        raise ValueError(f"{name}: expected shape ({n},), got {labels.shape}. {advice}".rstrip())
    if len(labels) != n:
        raise ValueError(f"{name}: expected one label per image, {n}, got {len(labels)}.")
    if labels.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integer labels, got {labels.dtype}.")
    low, high = labels.min(), labels.max()
    if low < 0 or high >= classes:
        raise ValueError(
            f"{name}: expected labels from 0 to {classes - 1}, since the model has {classes} "
            f"outputs, got labels from {low} to {high}."
        )
    return labels.astype(np.int32)


def _any_number_of(images):
    """Return what a TensorFlow function is traced for, once, whatever the size of a batch."""
    return tf.TensorSpec([None, *images.shape[1:]], tf.float32)


def _sizes(n, batch_size):
    """Return the sizes of the batches of `n` images; the last may be smaller."""
    return [min(batch_size, n - start) for start in range(0, n, batch_size)]


def _positive_integer(name, value):
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {value!r}.") from None
    if number < 1:
        raise ValueError(f"{name}: expected 1 or more, got {value}.")
    return number


def _listens_to_batches(callback) -> bool:
    hooks = (
        "on_batch_begin",
        "on_batch_end",
        "on_train_batch_begin",
        "on_train_batch_end",
    )
    return any(
        getattr(getattr(callback, hook), "__func__", None)
        is not getattr(keras.callbacks.Callback, hook)
        for hook in hooks
    )
