"""Trainer, the class of the lab sheet: it trains a Keras model with a loop that you can read.

Whatever else a training run needs (early stopping, checkpoints, TensorBoard) plugs in as a Keras
callback.
"""

import operator
import warnings
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from tpcnn import checkpoints as saved_runs
from tpcnn import fused_adam, plots

BATCH_SIZE = 128
ANY_NUMBER_OF_LABELS = tf.TensorSpec([None], tf.int32)

DIVERGED = """\
The training diverged: after epoch {epoch} the loss is {loss} and the validation loss {val_loss}, \
so it ended there. The weights are again those {best}. Likely causes, the likeliest first:
1. The learning rate, now {rate:g}, is too large. Try a tenth of it.
2. The loss does not fit the model: from_logits=True is for a model that does not end in softmax.
3. Images or labels are wrong: NaN or infinite pixels in a dataset, labels beyond the classes.
4. A layer or loss of your own divides by zero, or takes the logarithm or root of such a number.
Start again with a new model and a new optimizer: this one remembers the failed steps."""


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
        # With mixed_float16, Keras has wrapped it in one that scales the loss.
        self.optimizer = model.optimizer
        fused_adam.fuse(self.optimizer)
        self.train_loss = keras.metrics.Mean()
        self.train_accuracy = keras.metrics.SparseCategoricalAccuracy()
        self.val_loss = keras.metrics.Mean()
        self.val_accuracy = keras.metrics.SparseCategoricalAccuracy()
        self.history: dict[str, list[float]] = {}
        self._shuffle_seed = keras.random.SeedGenerator()
        self._best = {"val_loss": np.inf, "weights": []}
        # Now, since callbacks change the learning rate.
        self._optimizer_description = saved_runs.description(self.optimizer)
        self._warned_of_pixels = False
        self._trainable = None

    def fit(
        self,
        x_train,
        y_train,
        x_val,
        y_val,
        epochs: int,
        verbose: bool = True,
        *,
        batch_size: int = BATCH_SIZE,
        shuffle: bool = True,
        callbacks: Sequence[keras.callbacks.Callback] | None = None,
        checkpoints: str | Path | None = None,
    ) -> dict[str, list[float]]:
        """Train the model.

        For more images than fit in memory, pass a `tf.data.Dataset` of batches in place of
        `x_train`, `x_val` or both, and None for the labels. Its pixels and labels cannot be checked
        beforehand.

        A loss that is NaN or infinite at the end of an epoch ends the training with a warning. The
        model then has the weights of the epoch with the lowest validation loss, or those from
        before the training; the history ends with the epoch that failed.

        Args:
            x_train: images, float in [0, 1], of the shape the model expects with a leading n. Or a
                dataset of ``(images, labels)``, already in batches and, if wanted, shuffled.
            y_train: integer labels, shape (n,), from 0 to the number of classes minus one.
            x_val: validation images; they are only looked at, after each epoch.
            y_val: their labels.
            epochs: how many times to go through the training images.
            verbose: print a line after each epoch.
            batch_size: images per step; the last batch of an epoch may be smaller. Not for a
                dataset.
            shuffle: draw a new order for each epoch. A dataset keeps its own.
            callbacks: Keras callbacks. One that listens to training batches makes an epoch
                slower, since the loop then returns to Python after each batch. Hooks on
                validation batches are not called.
            checkpoints: a folder to keep the state of this run in, written after each epoch. If it
                holds a state, the run goes on from there and ends as if it had never been
                interrupted; if it holds as many epochs already, nothing is left to do. What
                callbacks have counted is restored, numbers and arrays. Not restored are the place
                in a dataset whose order changes from epoch to epoch, and random numbers that a
                layer of your own draws without a `keras.random.SeedGenerator`.

        Returns:
            `history`.

        Raises:
            ValueError: an argument has the wrong shape, range or value, or `checkpoints` holds a
                run with another model, optimizer, dataset or setting.
            TypeError: labels, `epochs` or `batch_size` are not integers.
            OSError: the folder for the checkpoints cannot be written.
            RuntimeError: another run is using that folder.
        """
        epochs = _positive_integer("epochs", epochs)
        batch_size = _positive_integer("batch_size", batch_size)
        train = self._checked("train", x_train, y_train, batch_size)
        val = self._checked("val", x_val, y_val, batch_size)
        self._refuse_other_trainable_weights()
        self.optimizer.build(self.model.trainable_variables)
        callbacks = keras.callbacks.CallbackList(
            callbacks, model=self.model, epochs=epochs, verbose=int(verbose)
        )
        self.history = {"loss": [], "accuracy": [], "val_loss": [], "val_accuracy": []}
        # Where callbacks say when to stop, and Keras' BackupAndRestore where to begin.
        self.model.stop_training, self.model._initial_epoch = False, None
        inputs = {
            "training dataset": train,
            "validation dataset": val,
            "batch_size": batch_size,
            "shuffle": shuffle,
        }

        with self._saved_run(checkpoints, callbacks.callbacks) as saved:
            callbacks.on_train_begin()
            self._best = {"val_loss": np.inf, "weights": self.model.get_weights()}
            first = saved.restore(epochs, inputs) if checkpoints else self.model._initial_epoch or 0
            if first < epochs:
                train = _in_tensorflow(train)
            for epoch in range(first, epochs):
                self._reset_metrics()
                callbacks.on_epoch_begin(epoch)
                logs = self._train_epoch(train, batch_size, shuffle, callbacks)
                logs |= self._evaluate(val, batch_size, callbacks)
                for name, value in logs.items():
                    self.history[name].append(value)
                if verbose:
                    print(
                        f"Epoch {epoch + 1}/{epochs} - loss: {logs['loss']:.6f} - "
                        f"train acc: {logs['accuracy']:.2%} - val acc: {logs['val_accuracy']:.2%}"
                    )
                callbacks.on_epoch_end(epoch, logs)
                if self._diverged():
                    break
                self._keep_best(logs["val_loss"])
                saved.save(epoch + 1)
                if self.model.stop_training:
                    break
            if self._diverged():
                self._return_to_best()
            else:
                # As in Keras: an optimizer that averages the weights over the steps sets them now.
                self.optimizer.finalize_variable_values(self.model.trainable_variables)
            callbacks.on_train_end(self._last_results())
        return self.history

    def _saved_run(self, folder, callbacks):
        return saved_runs.Checkpoints(folder, self, callbacks)

    def predict(self, x, batch_size: int = 256) -> tf.Tensor:
        """Return the probability of each class for each image.

        Args:
            x: an array of images, as for `fit`; any number of them.
            batch_size: images that pass through the model at a time; it bounds the memory.

        Returns:
            float32 tensor of shape (n, classes); each row sums to 1.

        Raises:
            ValueError: `x` is no array, has the wrong shape, or holds NaN or infinite pixels.
            TypeError: `batch_size` is not an integer.
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
        """Take one step down the gradient of the loss on one batch.

        Args:
            x: float32 images, shape (batch, height, width, channels), or as the model expects.
            y: integer labels, shape (batch,).
        """
        with tf.GradientTape() as tape:
            predictions = self.model(x, training=True)
            loss = self._loss(y, predictions)
            # Scaled only where 16-bit gradients would vanish; the optimizer divides them again.
            scaled_loss = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled_loss, self.model.trainable_variables)
        self.optimizer.apply(gradients, self.model.trainable_variables)
        # Weighted by the size of the batch: the last one may be smaller than the others.
        self.train_loss.update_state(loss, sample_weight=tf.shape(x)[0])
        self.train_accuracy.update_state(y, predictions)

    @tf.function(reduce_retracing=True)
    def _eval_step(self, x, y):
        """Measure the loss and the accuracy on one batch; the model does not change.

        The arguments are those of `_train_step`.
        """
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
        step = self._train_step
        if self.model.jit_compile:  # Keras sets it on a GPU, where every layer allows for it
            step = tf.function(step, jit_compile=True)
        for start in tf.range(0, tf.size(order), batch_size):
            batch = order[start : start + batch_size]
            step(tf.cast(tf.gather(x, batch), tf.float32), tf.gather(y, batch))

    @tf.function(reduce_retracing=True)
    def _train_stream(self, dataset):
        """Take one step per batch of a `tf.data.Dataset`, without leaving TensorFlow."""
        for x, y in dataset:
            self._train_step(tf.cast(x, tf.float32), tf.cast(y, tf.int32))

    def _train_epoch(self, data, batch_size, shuffle, callbacks):
        """Take one step per batch, and return the results over the epoch."""
        # Where a callback listens to batches, Python takes over again after each of them.
        by_batch = any(_listens_to_batches(callback) for callback in callbacks.callbacks)
        for step, (train, part) in enumerate(self._parts(data, batch_size, shuffle, by_batch)):
            callbacks.on_train_batch_begin(step)
            train(*part)
            logs = self._results("", self.train_loss, self.train_accuracy)
            callbacks.on_train_batch_end(step, logs)
            if self.model.stop_training:
                break
        return self._results("", self.train_loss, self.train_accuracy)

    def _parts(self, data, batch_size, shuffle, by_batch):
        """Yield the parts of an epoch, all of it or batch by batch: a function, its arguments."""
        if isinstance(data, tf.data.Dataset):
            if not by_batch:
                yield self._train_stream, (data,)
                return
            images = data.element_spec[0]
            train = self._train_step.get_concrete_function(
                _any_number_of(images), ANY_NUMBER_OF_LABELS
            )
            for x, y in data:
                yield train, (tf.cast(x, tf.float32), tf.cast(y, tf.int32))
            return
        x, y = data
        train = self._train_batches.get_concrete_function(
            _any_number_of(x, x.dtype), ANY_NUMBER_OF_LABELS, ANY_NUMBER_OF_LABELS, batch_size
        )
        order = self._epoch_order(len(x), shuffle)
        for part in tf.split(order, _sizes(len(order), batch_size)) if by_batch else [order]:
            yield train, (x, y, part)

    def _evaluate(self, data, batch_size, callbacks):
        callbacks.on_test_begin()
        if isinstance(data, tf.data.Dataset):
            images, batches = data.element_spec[0], data
        else:
            images, batches = data[0], _batches(*data, batch_size)
        eval_step = self._eval_step.get_concrete_function(
            _any_number_of(images), ANY_NUMBER_OF_LABELS
        )
        for x, y in batches:
            eval_step(tf.cast(x, tf.float32), tf.cast(y, tf.int32))
        logs = self._results("val_", self.val_loss, self.val_accuracy)
        callbacks.on_test_end(logs)
        return logs

    @staticmethod
    def _results(prefix, loss, accuracy):
        if tf.convert_to_tensor(loss.count) == 0:
            name = "x_val" if prefix else "x_train"
            raise ValueError(
                f"{name}: the dataset held no batch in this epoch. It must begin anew each time "
                "it is gone through, and hold at least one batch."
            )
        return {
            f"{prefix}loss": float(loss.result()),
            f"{prefix}accuracy": float(accuracy.result()),
        }

    def _loss(self, y, predictions):
        """Return the mean loss of a batch, plus what the layers' regularizers add."""
        loss = tf.reduce_mean(self.loss_function(y, predictions))
        return tf.add_n([loss, *self.model.losses])

    def _refuse_other_trainable_weights(self):
        """The step is recorded once, with the weights that it moves."""
        trainable = [id(variable) for variable in self.model.trainable_variables]
        if self._trainable not in (None, trainable):
            raise ValueError(
                f"model: expected the {len(self._trainable)} trainable weights of the first fit, "
                f"got {len(trainable)} or others. Make a new Trainer, with a new optimizer, after "
                "you have frozen or thawed layers."
            )
        self._trainable = trainable

    def _epoch_order(self, n, shuffle):
        order = tf.range(n)
        return keras.random.shuffle(order, seed=self._shuffle_seed) if shuffle else order

    def _diverged(self) -> bool:
        """Whether the last epoch ended with a loss that is NaN or infinite."""
        return not np.isfinite(list(self._last_results().values())).all()

    def _last_results(self):
        return {name: values[-1] for name, values in self.history.items() if values}

    def _keep_best(self, val_loss):
        if val_loss < self._best["val_loss"]:
            self._best = {"val_loss": val_loss, "weights": self.model.get_weights()}

    def _return_to_best(self):
        self.model.set_weights(self._best["weights"])
        val_losses = self.history["val_loss"]
        best = "from before the training"
        if self._best["val_loss"] in val_losses:
            best = f"of epoch {val_losses.index(self._best['val_loss']) + 1}, the best"
        message = DIVERGED.format(
            epoch=len(val_losses),
            best=best,
            rate=float(self.optimizer.learning_rate),
            **self._last_results(),
        )
        warnings.warn(message, RuntimeWarning, stacklevel=3)

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

    def _checked(self, part, images, labels, batch_size):
        """Return images and labels as arrays that fit the model, or the dataset that does."""
        if isinstance(images, tf.data.Dataset):
            return self._checked_dataset(part, images, labels, batch_size)
        images = self._checked_images(f"x_{part}", images)
        try:
            outputs = self.model.output_shape
        except AttributeError:  # a subclassed model does not know before it is called
            outputs = self.model(images[:1].astype(np.float32), training=False).shape
        return images, _checked_labels(f"y_{part}", labels, len(images), outputs[-1])

    def _checked_dataset(self, part, dataset, labels, batch_size):
        name = f"x_{part}"
        if labels is not None:
            raise ValueError(
                f"y_{part}: expected None, since {name} is a dataset, which brings its labels "
                f"along, got {type(labels).__name__}."
            )
        if part == "train" and batch_size != BATCH_SIZE:
            raise ValueError(
                f"batch_size: expected none, since {name} is a dataset, which brings its own "
                f"batches, got {batch_size}. Set it there: dataset.batch({batch_size})."
            )
        spec = dataset.element_spec
        shapes = [getattr(item, "shape", None) for item in spec] if type(spec) is tuple else []
        if len(shapes) != 2 or not all(shape is not None and shape.rank for shape in shapes):
            raise ValueError(
                f"{name}: expected a dataset of (images, labels) of known shapes, got {spec}."
            )
        (_, *image), (_, *label) = shapes
        expected = getattr(self.model, "input_shape", (None, *image))[1:]
        if label or not _fits(image, expected):
            raise ValueError(
                f"{name}: expected images of shape {_written(expected)} and labels of shape (n,), "
                f"got {shapes[0]} and {shapes[1]}. Put single images together with "
                "dataset.batch; one-hot labels become integers with tf.argmax."
            )
        if not spec[1].dtype.is_integer:
            raise TypeError(f"{name}: expected integer labels, got {spec[1].dtype.name}.")
        if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise ValueError(f"{name}: the dataset never ends. Say how many batches: dataset.take.")
        if not self.model.built:
            for x, _ in dataset.take(1):
                self.model(tf.cast(x, tf.float32), training=False)
        return dataset

    def _checked_images(self, name, images):
        """Return `images` as an array of the shape that the model expects, uncopied.

        They become float32 batch by batch, so that any number of them needs no second copy.
        """
        if isinstance(images, tf.data.Dataset):
            raise ValueError(
                f"{name}: expected an array of images, got a dataset. Pass it batch by batch, and "
                "join the answers with tf.concat."
            )
        images = np.asarray(images)
        if images.dtype.kind not in "biuf":
            raise ValueError(
                f"{name}: expected numbers, got an array of {images.dtype}. "
                "Pass images as load_mnist returns them."
            )
        if images.size == 0:
            raise ValueError(
                f"{name}: expected at least one image, got shape {images.shape}. "
                "Look at the slice that made it."
            )
        # A subclassed model, or one without an input layer, does not say what it expects.
        expected = getattr(self.model, "input_shape", images.shape)[1:]
        if images.ndim == 0 or not _fits(images.shape[1:], expected):
            advice = (
                "Add the channel axis with add_channel."
                if (*images.shape[1:], 1) == expected
                else "Prepare the images as for the model's first layer."
            )
            raise ValueError(
                f"{name}: expected shape {_written(expected)}, got {images.shape}. {advice}"
            )
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


def _fits(shape, expected):
    """Whether images of `shape` can enter a model; None stands for any number, on both sides."""
    return len(shape) == len(expected) and all(
        None in (wanted, got) or wanted == got for wanted, got in zip(expected, shape, strict=True)
    )


def _written(shape):
    return "(n, " + ", ".join("any" if d is None else str(d) for d in shape) + ")"


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


def _in_tensorflow(data):
    """Return arrays as tensors, and a dataset as it is."""
    if isinstance(data, tf.data.Dataset):
        return data
    x, y = data
    # Bytes stay bytes until they are in a batch: as float32 they need four times the memory.
    dtype = tf.uint8 if x.dtype == np.uint8 else tf.float32
    # tf.constant would copy them twice, and hold both copies for a moment. TensorFlow keeps the
    # generator for good, so that must hand the images over and not hold them.
    held = [np.asarray(x, dtype.as_numpy_dtype)]
    single = tf.data.Dataset.from_generator(
        lambda: iter([held.pop()]), output_signature=tf.TensorSpec(x.shape, dtype)
    ).get_single_element()
    return tf.identity(single), tf.constant(y)  # identity: to the GPU, where there is one


def _any_number_of(images, dtype=tf.float32):
    """Return what a TensorFlow function is traced for, once, whatever the size of a batch."""
    return tf.TensorSpec([None, *images.shape[1:]], dtype)


def _batches(x, y, batch_size):
    """Yield `x` and `y` in batches, as tensors; the last may be smaller."""
    for start in range(0, len(x), batch_size):
        batch = slice(start, start + batch_size)
        yield tf.constant(x[batch], tf.float32), tf.constant(y[batch])


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
    savers = (keras.callbacks.ModelCheckpoint, keras.callbacks.BackupAndRestore)
    if type(callback) in savers and callback.save_freq == "epoch":
        return False  # they have the hooks, and do nothing there
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
