"""A call of `Trainer.fit` from its beginning to its end: all that surrounds the loop.

Callbacks are called as Keras calls them, the results of an epoch are kept, printed and saved, and
a training that diverges ends with the weights of its best epoch.
"""

from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from tpcnn import arguments
from tpcnn.messages import warn

LOGS = ("loss", "accuracy", "val_loss", "val_accuracy")
DIVERGED = """\
The training diverged: after epoch {epoch} {found}, so it ended there. The weights are again those \
{best}. Likely causes, the likeliest first:
{causes}
Start again with a new model and a new optimizer: this one remembers the failed steps."""
CAUSES = [
    "The learning rate, {rate}, is too large. Try a tenth of it.",
    "The loss does not fit the model: from_logits=True is for a model without softmax.",
    "Images or labels are wrong: NaN or infinite pixels in a dataset, labels beyond the classes.",
    "A layer or loss of your own divides by zero, or takes the log or root of such a number.",
]


class Run:
    """One call of `Trainer.fit`. The loop stands in its ``with`` block.

    Args:
        trainer: the `Trainer`.
        train: its training data, `batches.Arrays` or `batches.Stream`.
        val: its validation data.
        epochs, verbose, callbacks, checkpoints: as for `Trainer.fit`.

    Attributes:
        n_epochs: how many epochs are asked for.
        train, val: as given.
        callbacks: the callbacks, one by one, and Keras' own `History`.
        history: that callback; `Trainer.history` is its dictionary.
        best_epoch: the number of the epoch with the lowest validation loss so far, from 1 on; None
            before there is one.
        best_val_loss: that loss.
        best_weights: the weights after that epoch; before the first one, those of the start.
    """

    def __init__(self, trainer, train, val, epochs, verbose, callbacks, checkpoints):
        self.trainer, self.model = trainer, trainer.model
        self.train, self.val = train, val
        self.n_epochs = arguments.positive_integer("epochs", epochs)
        self._verbose = verbose
        self._compiled_metrics = _built_metrics(self.model)
        if not trainer.optimizer.built:
            trainer.optimizer.build(self.model.trainable_variables)
        self._hooks = keras.callbacks.CallbackList(
            arguments.check_callbacks(callbacks),
            add_history=True,
            model=self.model,
            verbose=verbose,
            epochs=self.n_epochs,
            steps=train.steps,
        )
        self.callbacks = self._hooks.callbacks
        self.history = next(c for c in self.callbacks if isinstance(c, keras.callbacks.History))
        self._by_batch = any(_listens(c, "batch", "train_batch") for c in self.callbacks)
        self._by_val_batch = any(_listens(c, "test_batch") for c in self.callbacks)
        self._checkpoints = trainer.checkpoints_class(checkpoints, self)
        self.best_epoch, self.best_val_loss, self.best_weights = None, np.inf, None
        self._first_epoch, self._epoch = 0, None
        self._logs = None
        self._diverged = False

    def __enter__(self):
        self._checkpoints.lock()
        try:
            # Where callbacks say when to stop, and Keras' BackupAndRestore where to begin.
            self.model.stop_training, self.model._initial_epoch = False, None
            self._hooks.on_train_begin()
            self.best_weights = self.model.get_weights()
            self.trainer.history = self.history.history
            restored = self._checkpoints.restore()
            self._first_epoch = (self.model._initial_epoch or 0) if restored is None else restored
            if restored:
                self._logs = {name: self.trainer.history[name][-1] for name in LOGS}
        except BaseException:
            self._checkpoints.unlock()
            raise
        return self

    def __exit__(self, error, *_):
        try:
            if error is None:
                if self._diverged:
                    self._return_to_best()
                else:
                    # As in Keras: an optimizer that averages the weights over the steps sets them.
                    self.trainer.optimizer.finalize_variable_values(self.model.trainable_variables)
                self._hooks.on_train_end(self._logs)
        finally:
            self._checkpoints.unlock()

    def epochs(self) -> Iterator[int]:
        """Yield the number of each epoch that is left, the first being 0."""
        for epoch in range(self._first_epoch, self.n_epochs):
            self._hooks.on_epoch_begin(epoch)
            yield epoch
            if self._diverged or self.model.stop_training:
                break

    def training_parts(self) -> Iterator[tuple]:
        """Yield the parts of an epoch: single batches if a callback listens to them, else many."""
        loss, accuracy = self.trainer.train_loss, self.trainer.train_accuracy
        for step, part in enumerate(self.train.parts(self.trainer, self._by_batch)):
            self._hooks.on_train_batch_begin(step)
            yield part
            logs = self._results(loss, accuracy)  # this waits until the device is done
            self._hooks.on_train_batch_end(step, logs)
            if self.model.stop_training:
                break
        self._logs = self._results(loss, accuracy, "x_train")

    def validation_batches(self) -> Iterator[tuple]:
        """Yield the batches of the validation images."""
        loss, accuracy = self.trainer.val_loss, self.trainer.val_accuracy
        self.model.stop_evaluating = False
        self._hooks.on_test_begin()
        for step, batch in enumerate(self.val.batches(self.trainer)):
            self._hooks.on_test_batch_begin(step)
            yield batch
            if self._by_val_batch:
                self._hooks.on_test_batch_end(step, self._results(loss, accuracy))
            if self.model.stop_evaluating:
                break
        logs = self._results(loss, accuracy, "x_val")
        self._hooks.on_test_end(logs)
        self._logs |= {f"val_{name}": value for name, value in logs.items()}

    def end_epoch(self, epoch: int) -> None:
        """Tell the callbacks, print, and keep what must not be lost."""
        logs, self._epoch = self._logs, epoch + 1
        if self._verbose:
            print(
                f"Epoch {epoch + 1}/{self.n_epochs} - loss: {logs['loss']:.6f} - "
                f"train acc: {logs['accuracy']:.2%} - val acc: {logs['val_accuracy']:.2%}"
            )
        self._hooks.on_epoch_end(epoch, logs)
        self._diverged = not (np.isfinite(list(logs.values())).all() and _all_finite(self.model))
        if self._diverged:
            return
        if logs["val_loss"] < self.best_val_loss:
            self.best_epoch, self.best_val_loss = epoch + 1, logs["val_loss"]
            self.best_weights = self.model.get_weights()
        self._checkpoints.save(epoch + 1)

    def _results(self, loss, accuracy, name: str | None = None) -> dict[str, float]:
        """Return what two metrics say, and let the model's own metrics say the same.

        Raises:
            ValueError: they have seen no image of the dataset `name`.
        """
        if name and tf.convert_to_tensor(loss.count) == 0:
            raise ValueError(
                f"{name}: the dataset held no image in this epoch. It must begin anew each time "
                "it is gone through, and hold at least one batch that is not empty."
            )
        for of_model, ours in zip(self._compiled_metrics, (loss, accuracy), strict=True):
            for variable, value in zip(of_model.variables, ours.variables, strict=True):
                variable.assign(value)
        return {"loss": float(loss.result()), "accuracy": float(accuracy.result())}

    def _return_to_best(self) -> None:
        self.model.set_weights(self.best_weights)
        best = "from before the training"
        if self.best_epoch:
            best = f"of epoch {self.best_epoch}, the best"
        loss, val_loss = self._logs["loss"], self._logs["val_loss"]
        found = f"the loss is {loss} and the validation loss {val_loss}"
        causes = CAUSES
        if np.isfinite([loss, val_loss]).all():
            # ReLU makes 0 of a NaN, and so hides it from the loss.
            found = f"some weights are NaN or infinite, though {found}"
            causes = [CAUSES[2], *CAUSES[:2], CAUSES[3]]
        rate = _learning_rate(self.trainer.optimizer)
        listed = "\n".join(f"{i}. {cause.format(rate=rate)}" for i, cause in enumerate(causes, 1))
        warn(
            DIVERGED.format(epoch=self._epoch, found=found, best=best, causes=listed),
            RuntimeWarning,
        )


def _learning_rate(optimizer) -> str:
    try:
        return f"now {float(keras.ops.convert_to_numpy(optimizer.learning_rate)):g}"
    except AttributeError:  # one that is made of several has several
        return f"that of {type(optimizer).__name__}"


def _built_metrics(model: keras.Model) -> list[keras.metrics.Metric]:
    """Return the loss and the accuracy that a compiled model keeps for callbacks to look at."""
    loss, compiled = keras.Model.metrics.fget(model)[:2]  # a model may have a list of its own
    if not compiled.built:
        # Any labels and outputs of the right kind: Keras takes from them which accuracy is meant.
        compiled.update_state(tf.zeros([1], tf.int32), tf.zeros([1, 2]))
    return [loss, *compiled.metrics]


def _all_finite(model: keras.Model) -> bool:
    """Whether no weight is NaN, and no trainable one infinite."""
    # A layer may hold infinity on purpose, such as in a mask.
    trainable = all(tf.reduce_all(tf.math.is_finite(v)) for v in model.trainable_variables)
    others = (v for v in model.non_trainable_variables if tf.as_dtype(v.dtype).is_floating)
    return trainable and not any(tf.reduce_any(tf.math.is_nan(v)) for v in others)


def _listens(callback: keras.callbacks.Callback, *events: str) -> bool:
    """Whether a callback has a hook of its own before or after such an event."""
    savers = (keras.callbacks.ModelCheckpoint, keras.callbacks.BackupAndRestore)
    if type(callback) in savers and callback.save_freq == "epoch":
        return False  # they have the hooks, and do nothing there
    hooks = [f"on_{event}_{when}" for event in events for when in ("begin", "end")]
    return any(
        getattr(getattr(callback, hook), "__func__", None)
        is not getattr(keras.callbacks.Callback, hook)
        for hook in hooks
    )
