"""Trainer, the class of the lab sheet: a loop. What surrounds it: arguments, batches, runs."""

import keras
import tensorflow as tf
from keras.metrics import Mean, SparseCategoricalAccuracy

from tpcnn import arguments, batches, fused_adam, losses, plots
from tpcnn.checkpoints import Checkpoints, copy_of
from tpcnn.fingerprints import describe
from tpcnn.messages import explain_errors
from tpcnn.runs import Run


class Trainer:
    """Train a model, follow its progress, predict with it.

    Args:
        model: a `keras.Model` from images to probabilities (softmax) or logits; compiled here.
        loss_function: a Keras loss for integer labels, as a rule
            `keras.losses.SparseCategoricalCrossentropy`, with ``from_logits=True`` for logits.
        optimizer: a Keras optimizer. A plain Adam or AdamW is changed for good: it makes the same
            update in one pass over the memory (`tpcnn.fused_adam`).

    Attributes:
        history: for each of ``loss``, ``accuracy``, ``val_loss``, ``val_accuracy`` a list with one
            float per epoch of the last run; accuracies in [0, 1]. A callback may add others.

    Raises:
        TypeError, ValueError: model, loss and optimizer do not go together.
    """

    checkpoints_class = Checkpoints
    __deepcopy__ = copy_of  # what TensorFlow has recorded cannot be copied, and need not be

    def __init__(self, model: keras.Model, loss_function, optimizer):
        self.model = model
        self.loss_function, optimizer = arguments.check_network(self, loss_function, optimizer)
        model.compile(optimizer, self.loss_function, metrics=["accuracy"])  # callbacks ask it
        self.optimizer = model.optimizer  # with mixed_float16 one around it, which scales the loss
        self.optimizer_description = describe(self.optimizer)  # as it began, for checkpoints
        fused_adam.fuse(self.optimizer)
        # XLA compiles the step where Keras would let it: on a GPU, if every layer allows for it.
        self._step = tf.function(self._train_step, jit_compile=model.jit_compile or None)
        self.train_loss, self.train_accuracy = Mean(), SparseCategoricalAccuracy()
        self.val_loss, self.val_accuracy = Mean(), SparseCategoricalAccuracy()
        self.shuffle_seed = keras.random.SeedGenerator()
        self.history: dict[str, list[float]] = {}

    @explain_errors
    def fit(
        self, x_train, y_train, x_val, y_val, epochs: int, verbose: bool = True, *,
        batch_size: int = arguments.BATCH_SIZE, shuffle=True, callbacks=None, checkpoints=None,
    ) -> dict[str, list[float]]:  # fmt: skip
        """Train the model, look at the validation images after each epoch, and return `history`.

        A loss or weight that is not finite ends it, with a warning and the best epoch's weights.

        Args:
            x_train: images in [0, 1], of shape (n, ...) as the model expects; or a
                `tf.data.Dataset` of batches of images and labels, and None for `y_train`.
            y_train: integer labels, shape (n,), from 0 to the number of classes minus one.
            x_val, y_val: the same for validation. They move no weight.
            epochs: how often to go through the training images.
            verbose: print a line after each epoch.
            batch_size: images per step; the last batch may be smaller. A dataset brings its own.
            shuffle: draw a new order for each epoch. A dataset keeps its own.
            callbacks: Keras callbacks. One that listens to batches makes an epoch slower.
            checkpoints: a folder that keeps the run. Call `fit` with it again, and the run goes on
                and ends as if it had never been interrupted (`tpcnn.checkpoints.Checkpoints`).

        Raises:
            TypeError, ValueError: an argument is not as above, or the folder holds another run.
            OSError, RuntimeError, MemoryError: the folder cannot be used, or is; memory is short.
        """
        train, val = arguments.check_data(self, x_train, y_train, x_val, y_val, batch_size, shuffle)
        train_on = self._train_stream if isinstance(train, batches.Stream) else self._train_batches
        with Run(self, train, val, epochs, verbose, callbacks, checkpoints) as run:
            for epoch in run.epochs():
                self._reset_metrics()
                for part in run.training_parts():
                    train_on(*part)
                for x, y in run.validation_batches():
                    self._eval_step(x, y)
                run.end_epoch(epoch)
        return self.history

    def _reset_metrics(self):
        for metric in (self.train_loss, self.train_accuracy, self.val_loss, self.val_accuracy):
            metric.reset_state()

    @tf.function(reduce_retracing=True)
    def _train_batches(self, x, y, order, batch_size):
        """Take a step for each batch of the images at the places `order`, int32 (m,)."""
        for start in tf.range(0, tf.size(order), batch_size):
            batch = order[start : start + batch_size]
            self._step(tf.gather(x, batch), tf.gather(y, batch))

    @tf.function(reduce_retracing=True)
    def _train_stream(self, x, y, others, over):
        """Step on a batch `x`, `y`, then on each that `others`, an iterator, gives until `over`."""
        self._step(x, y)
        while not over:
            batch = others.get_next_as_optional()
            if not batch.has_value():
                break
            self._step(*batch.get_value())

    @tf.function(reduce_retracing=True)
    def _train_step(self, x, y):
        """Take one step down the gradient of the loss of a batch."""
        with tf.GradientTape() as tape:
            predictions = self.model(tf.cast(x, tf.float32), training=True)
            loss = self._loss(y, predictions)
            scaled_loss = self.optimizer.scale_loss(loss)  # only where 16 bits are too few
        gradients = tape.gradient(scaled_loss, self.model.trainable_variables)
        self.optimizer.apply(gradients, self.model.trainable_variables)
        self.train_loss.update_state(loss, sample_weight=tf.shape(x)[0])
        self.train_accuracy.update_state(y, predictions)

    def _loss(self, y, predictions):
        """Return the mean loss of a batch, plus what regularizers ask for."""
        loss = losses.mean(self.loss_function, y, predictions)
        return loss + sum(tf.reduce_sum(tf.cast(p, tf.float32)) for p in self.model.losses)

    @tf.function(reduce_retracing=True)
    def _eval_step(self, x, y):
        """Measure loss and accuracy of a batch; the model does not change."""
        predictions = self.model(tf.cast(x, tf.float32), training=False)
        self.val_loss.update_state(self._loss(y, predictions), sample_weight=tf.shape(x)[0])
        self.val_accuracy.update_state(y, predictions)

    @explain_errors
    def predict(self, x, batch_size: int = 256) -> tf.Tensor:
        """Return the probability of each class for each image: float32, shape (n, classes).

        Args:
            x: an array of images, as for `fit` and with the same errors; any number of them.
            batch_size: images that pass through the model at a time; it bounds the memory.
        """
        images = arguments.image_batches(self, x, batch_size)
        return tf.concat([self._predict_step(batch) for batch in images], axis=0)

    @tf.function(reduce_retracing=True)
    def _predict_step(self, x):
        outputs = tf.cast(self.model(tf.cast(x, tf.float32), training=False), tf.float32)
        return losses.probabilities(outputs, self.model, self.loss_function)

    def plot_history(self):
        """Draw loss and accuracy against the epoch; return the Matplotlib figure."""
        return plots.history(arguments.check_history(self.history))
