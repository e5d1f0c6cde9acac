"""The parts and batches in which a `Trainer` goes through images."""

import threading
import time
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

# TensorFlow takes as many steps in one call as fit in this time: so many that the way back to
# Python costs nothing, so few that Ctrl-C, which Python has to notice, soon ends the training.
SECONDS_PER_PART = 0.3
STEPS_PER_PART = 1000  # at most

ANY_NUMBER = tf.TensorSpec([None], tf.int32)  # of labels, or of places in an array of images


class Arrays:
    """Images and labels in main memory.

    Args:
        x: images, shape (n, ...), numbers of any type.
        y: labels, int32, shape (n,).
        batch_size: images per step.
        shuffle_seed: draws a new order for each epoch; None keeps the order.

    Attributes:
        steps: how many batches there are.
    """

    def __init__(self, x, y, batch_size: int, shuffle_seed: keras.random.SeedGenerator | None):
        self.x, self.y = x, y
        self.batch_size = batch_size
        self.shuffle_seed = shuffle_seed
        self.steps = -(-len(x) // batch_size)
        self._tensors = None
        self._steps_per_part = 1  # the first part also prepares the graph

    def parts(self, trainer, by_batch: bool) -> Iterator[tuple]:
        """Yield the arguments of `Trainer._train_batches` for each part of an epoch.

        They are all images, shape (n, ...), all labels, shape (n,), the places of those of this
        part, int32, and the batch size.

        Args:
            trainer: the `Trainer`.
            by_batch: make each batch a part.
        """
        if self._tensors is None:
            self._tensors = _on_the_device(self.x), tf.constant(self.y)
        x, y = self._tensors
        # Recorded for any number of images; otherwise each size would be a recording of its own.
        trainer._train_batches.get_concrete_function(
            _any_number_of(x), ANY_NUMBER, ANY_NUMBER, self.batch_size
        )
        order = tf.range(len(self.x))
        if self.shuffle_seed:
            order = keras.random.shuffle(order, seed=self.shuffle_seed)
        start = 0
        while start < len(self.x):
            end = start + self._steps_per_part * self.batch_size
            begin = time.perf_counter()
            yield x, y, order[start:end], self.batch_size  # and then until the device is done
            start = end
            if not by_batch:
                self._adapt_steps(time.perf_counter() - begin)

    def _adapt_steps(self, seconds: float) -> None:
        """Choose the steps of the next part, after one that took so long."""
        wanted = int(self._steps_per_part * SECONDS_PER_PART / seconds)
        self._steps_per_part = max(1, min(wanted, 2 * self._steps_per_part, STEPS_PER_PART))

    def batches(self, trainer) -> Iterator[tuple]:
        """Yield the arguments of `Trainer._eval_step`: images, float32, and labels, int32."""
        trainer._eval_step.get_concrete_function(any_images(self.x), ANY_NUMBER)
        for start in range(0, len(self.x), self.batch_size):
            batch = slice(start, start + self.batch_size)
            # As float32 one batch at a time: any number of images needs no second copy.
            yield tf.constant(self.x[batch], tf.float32), tf.constant(self.y[batch])


class Stream:
    """Images and labels that a `tf.data.Dataset` reads or makes, batch by batch.

    Args:
        dataset: gives batches of images, shape (n, ...), and integer labels, shape (n,).

    Attributes:
        steps: how many batches there are, None where the dataset does not know.
    """

    def __init__(self, dataset: tf.data.Dataset):
        self.dataset = dataset
        cardinality = int(dataset.cardinality())
        self.steps = cardinality if cardinality >= 0 else None

    def parts(self, trainer, by_batch: bool) -> Iterator[tuple]:
        """Yield the arguments of `Trainer._train_stream` for each part of an epoch.

        They are the images and labels of one batch, an iterator over those that follow, and a
        variable that becomes True when the time of the part is over: how long the next batch will
        take, nobody knows. The arguments are those of `Arrays.parts`.
        """
        # A strategy takes one batch at a time, and would make a variable of its own.
        by_batch = by_batch or tf.distribute.has_strategy()
        spec = self.dataset.element_spec
        x, y = map(_any_number_of, spec)
        with tf.device("CPU:0"):  # a flag on the GPU would have to come back for each batch
            over = True if by_batch else tf.Variable(False)
        following = tf.data.IteratorSpec(tuple(spec))
        trainer._train_stream.get_concrete_function(x, y, following, over)
        batches = iter(self.dataset)
        for x, y in batches:  # the first of each part; the others are left to TensorFlow
            if by_batch:
                yield x, y, batches, over
                continue
            over.assign(False)
            # Not tf.timestamp, which is not allowed where operations must be deterministic.
            timer = threading.Timer(SECONDS_PER_PART, over.assign, [True])
            timer.start()
            try:
                yield x, y, batches, over
            finally:
                timer.cancel()

    def batches(self, trainer) -> Iterator[tuple]:
        """Yield the arguments of `Trainer._eval_step`: images, float32, and labels, int32."""
        images, _ = self.dataset.element_spec
        trainer._eval_step.get_concrete_function(any_images(images), ANY_NUMBER)
        for x, y in self.dataset:
            yield tf.cast(x, tf.float32), tf.cast(y, tf.int32)


def any_images(images) -> tf.TensorSpec:
    """Return what the steps are recorded for: any number of such images, float32."""
    return tf.TensorSpec([None, *images.shape[1:]], tf.float32)


def _any_number_of(batch) -> tf.TensorSpec:
    return tf.TensorSpec([None, *batch.shape[1:]], batch.dtype)


def _on_the_device(x: np.ndarray) -> tf.Tensor:
    """Return an array as a tensor, with no third copy of it on the way."""
    # Bytes stay bytes until they are in a batch: as float32 they need four times the memory.
    dtype = tf.uint8 if x.dtype == np.uint8 else tf.float32
    # tf.constant would copy them twice, and hold both copies for a moment. TensorFlow keeps the
    # generator for good, so that must hand the images over and not hold them.
    held = [np.asarray(x, dtype.as_numpy_dtype)]
    single = tf.data.Dataset.from_generator(
        lambda: iter([held.pop()]), output_signature=tf.TensorSpec(x.shape, dtype)
    ).get_single_element()
    return tf.identity(single)  # to the GPU, where there is one
