"""What a `Trainer` may be given, and the parts and batches in which it is trained on.

Each mistake is named: the argument, what was expected, what came, what to do.
"""

import contextlib
import functools
import inspect
import operator
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

BATCH_SIZE = 128
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

    def parts(self, trainer, steps: Callable[[], int]) -> Iterator[tuple]:
        """Yield the arguments of `Trainer._train_batches` for each part of an epoch.

        Args:
            trainer: the `Trainer`.
            steps: says, as a part begins, how many steps it is to take.
        """
        if isinstance(self.x, np.ndarray):
            self.x, self.y = _on_the_device(self.x), tf.constant(self.y)
        # Recorded for any number of images; otherwise each size would be a recording of its own.
        trainer._train_batches.get_concrete_function(
            _any_number_of(self.x), ANY_NUMBER, ANY_NUMBER, self.batch_size
        )
        order = tf.range(len(self.x))
        if self.shuffle_seed:
            order = keras.random.shuffle(order, seed=self.shuffle_seed)
        start = 0
        while start < len(self.x):
            end = start + steps() * self.batch_size
            yield self.x, self.y, order[start:end], self.batch_size
            start = end

    def batches(self, trainer) -> Iterator[tuple]:
        """Yield the arguments of `Trainer._eval_step` for each batch."""
        trainer._eval_step.get_concrete_function(_any_images(self.x), ANY_NUMBER)
        for start in range(0, len(self.x), self.batch_size):
            batch = slice(start, start + self.batch_size)
            # As float32 one batch at a time: any number of images needs no second copy.
            yield tf.constant(self.x[batch], tf.float32), tf.constant(self.y[batch])


class Stream:
    """Images and labels that a `tf.data.Dataset` reads or makes, batch by batch.

    Attributes:
        steps: how many batches there are, None where the dataset does not know.
    """

    def __init__(self, dataset: tf.data.Dataset):
        self.dataset = dataset
        cardinality = int(dataset.cardinality())
        self.steps = cardinality if cardinality >= 0 else None

    def parts(self, trainer, steps: Callable[[], int]) -> Iterator[tuple]:
        """Yield the arguments of `Trainer._train_stream`; see `Arrays.parts`."""
        x, y = map(_any_number_of, self.dataset.element_spec)
        batches = tf.data.IteratorSpec(self.dataset.element_spec)
        trainer._train_stream.get_concrete_function(x, y, batches, tf.TensorSpec([], tf.int32))
        batches = iter(self.dataset)
        for x, y in batches:  # the first of each part; the others are left to TensorFlow
            yield x, y, batches, tf.constant(steps() - 1)

    def batches(self, trainer) -> Iterator[tuple]:
        """Yield the arguments of `Trainer._eval_step` for each batch."""
        images, _ = self.dataset.element_spec
        trainer._eval_step.get_concrete_function(_any_images(images), ANY_NUMBER)
        for x, y in self.dataset:
            yield tf.cast(x, tf.float32), tf.cast(y, tf.int32)


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


def _any_number_of(batch) -> tf.TensorSpec:
    return tf.TensorSpec([None, *batch.shape[1:]], batch.dtype)


def _any_images(images) -> tf.TensorSpec:
    return tf.TensorSpec([None, *images.shape[1:]], tf.float32)


# Errors and warnings


def explain_errors(method):
    """Decorate `fit` or `predict`: wrong arguments and too little memory are said in plain words.

    Raises:
        TypeError: an argument is missing, or there is none of that name.
        MemoryError: the device has too little memory.
    """
    signature = inspect.signature(method)

    @functools.wraps(method)
    def explained(*args, **kwargs):
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            advice = [ADVICE[name] for name in kwargs if name in ADVICE]
            names = ", ".join(list(signature.parameters)[1:])
            raise TypeError(
                f"{method.__name__}: {error}. {' '.join(advice) or f'Its arguments are {names}.'}"
            ) from None
        try:
            return method(*args, **kwargs)
        except (tf.errors.ResourceExhaustedError, tf.errors.InternalError) as error:
            if not OUT_OF_MEMORY.search(str(error)):
                raise
            raise MemoryError(
                f"{method.__name__}: the device has too little memory for this network and batch "
                "size. Take a smaller batch_size; end other programs and notebooks that use the "
                "device; or, if it is the training images that do not fit, pass them as a "
                "tf.data.Dataset, which needs memory for a few batches only."
            ) from error
        except tf.errors.InvalidArgumentError as error:
            found = LABEL_OUT_OF_RANGE.search(str(error))
            if not found:
                raise
            raise ValueError(
                f"x_train or x_val: expected labels from 0 to {int(found[2]) - 1} in the dataset, "
                f"got {found[1]}. The model has one output per class, counted from 0."
            ) from None

    return explained


OUT_OF_MEMORY = re.compile(r"OOM|out of memory|Dst tensor is not initialized", re.IGNORECASE)
LABEL_OUT_OF_RANGE = re.compile(r"label value of (-?\d+) which is outside .* \[0, (\d+)\)")
# What people take over from keras.Model.fit.
ADVICE = {
    "validation_split": "Split the images first, (x_train, y_train), (x_val, y_val) = "
    "tpcnn.split(x, y), and pass all four.",
    "validation_data": "Pass x_val and y_val behind y_train.",
    "validation_batch_size": "The validation images come in batches of batch_size.",
    "x": "The images are called x_train in fit.",
    "y": "The labels are called y_train.",
    "class_weight": "Weights of classes or images belong in a loss of your own.",
    "sample_weight": "Weights of classes or images belong in a loss of your own.",
    "steps_per_epoch": "Cut a dataset to as many batches: dataset.take(steps).",
    "validation_steps": "Cut a dataset to as many batches: dataset.take(steps).",
    "initial_epoch": "To go on with a run, pass a folder as checkpoints.",
}


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn, and point at the line outside this package that called into it."""
    level, frame = 1, sys._getframe()
    while frame.f_back and Path(frame.f_code.co_filename).parent == Path(__file__).parent:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


# Model, loss and optimizer

# Keras' losses for integer labels. The others want labels as wide as the outputs, and do not
# always complain: ten labels against ten rows of ten outputs is a valid operation.
FOR_INTEGER_LABELS = {"sparsecategoricalcrossentropy", "categoricalgeneralizedcrossentropy"}


def check_network(trainer, model, loss_function, optimizer) -> None:
    """Check the arguments of `Trainer`, and warn where they go together badly.

    Raises:
        TypeError: one of them is not a model, a loss or an optimizer.
        ValueError: they cannot be trained together.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"model: expected a keras.Model, got {_kind(model)}.")
    _check_shapes(model)
    loss_function = _found("loss_function", keras.losses, loss_function)
    optimizer = _found("optimizer", keras.optimizers, optimizer)
    owner = loss_function if inspect.isfunction(loss_function) else type(loss_function)
    is_keras = owner.__module__.startswith("keras.") and hasattr(keras.losses, owner.__name__)
    if is_keras and owner.__name__.replace("_", "").lower() not in FOR_INTEGER_LABELS:
        raise ValueError(
            f"loss_function: expected one for integer labels, got {owner.__name__}. Take "
            "keras.losses.SparseCategoricalCrossentropy, and labels that are integers from 0 to "
            "the number of classes minus one; one-hot labels become integers with "
            "y.argmax(axis=1)."
        )
    if tf.distribute.has_strategy() and not hasattr(trainer, "strategy"):
        raise ValueError(
            "Trainer: expected to be made outside of a strategy's scope, got one under "
            f"{type(tf.distribute.get_strategy()).__name__}. Take DistributedTrainer from "
            "tpcnn.distributed, which trains on all of its devices."
        )
    _check_optimizer(optimizer, model)
    _compare_ends(model, loss_function)


def _found(name: str, module, what):
    """Return what Keras makes of `what`, which may be the name of it."""
    with contextlib.suppress(TypeError, ValueError):
        if (found := module.get(what)) is not None:
            return found
    raise TypeError(
        f"{name}: expected one from {module.__name__}, got {_kind(what)}. "
        "The order is Trainer(model, loss_function, optimizer)."
    )


def _check_shapes(model) -> None:
    """Check what a model says of its inputs and outputs; it may not know them yet."""
    entrance, exit = getattr(model, "input_shape", None), _output_shape(model)
    for name, shape in (("input", entrance), ("output", exit)):
        if isinstance(shape, (dict, list)):
            raise ValueError(
                f"model: expected one {name}, got {len(shape)}. A Trainer has images and labels, "
                f"and nothing else; make a keras.Model with a single {name}."
            )
    if exit is None:
        return
    if len(exit) != 2:
        raise ValueError(
            f"model: expected scores of shape (n, classes), got {_written(exit[1:])}. Put a "
            "Flatten or GlobalAveragePooling2D layer before the last Dense layer."
        )
    if exit[1] == 1:
        raise ValueError(
            "model: expected one output per class, got a single one. For two classes end it in "
            "Dense(2, activation='softmax'), and take keras.losses.SparseCategoricalCrossentropy."
        )


def _output_shape(model):
    try:
        return model.output_shape
    except (AttributeError, ValueError):  # it does not know before it is called
        return None


def _check_optimizer(optimizer, model) -> None:
    """Check that an optimizer has trained nothing but the weights that are trainable now."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # in one that scales the loss
    theirs = {id(variable) for variable in getattr(optimizer, "_trainable_variables", [])}
    ours = {id(variable) for variable in model.trainable_variables}
    if not theirs or not ours or theirs == ours:
        return
    if theirs & ours:
        raise ValueError(
            f"model: expected the {len(theirs)} trainable weights that its optimizer knows, got "
            f"{len(ours)} or others. Make a new Trainer, with a new optimizer, after you have "
            "frozen or thawed layers."
        )
    raise ValueError(
        f"optimizer: expected a new one, got an optimizer ({type(optimizer).__name__}) that has "
        "trained another model, whose averages it remembers. Make one for each model."
    )


def _compare_ends(model, loss_function) -> None:
    """Warn where the loss expects probabilities and the model does not give any, or vice versa."""
    last, wants_logits = last_activation(model), _wants_logits(loss_function)
    if wants_logits and last not in (None, "linear", "log_softmax"):
        mend = "Leave from_logits out" if last == "softmax" else "End the model in Dense(classes)"
        warn(
            f"model: expected logits, since the loss has from_logits=True, but it ends in {last}. "
            f"The network would learn less than it could. {mend}."
        )
    elif wants_logits is False and last not in (None, "softmax"):
        found = "without softmax" if last == "linear" else f"in {last}"
        warn(
            f"model: expected probabilities, which the loss needs, but it ends {found}. The "
            "network would learn far less than it could. End it in Dense(classes, "
            "activation='softmax'), or in Dense(classes) and make the loss with from_logits=True."
        )


def _wants_logits(loss_function) -> bool | None:
    """Whether a loss expects logits; None where it does not say."""
    name = getattr(loss_function, "__name__", type(loss_function).__name__)
    if name.replace("_", "").lower() in FOR_INTEGER_LABELS:
        return getattr(loss_function, "from_logits", False)
    return getattr(loss_function, "from_logits", None)


def ends_in_softmax(trainer) -> bool:
    """Whether the model of a `Trainer` gives probabilities."""
    last = last_activation(trainer.model)
    return _wants_logits(trainer.loss_function) is False if last is None else last == "softmax"


# In prediction these pass the numbers on as they are.
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


def last_activation(model: keras.Model) -> str | None:
    """Return the name of a model's last activation function, None where it cannot be seen."""
    for layer in _from_the_end(model):
        if isinstance(layer, keras.Model):
            return last_activation(layer)
        if isinstance(layer, PASS_ON):
            continue
        if isinstance(layer, ACTIVATIONS):
            return type(layer).__name__.lower()
        function = getattr(layer, "activation", None)
        if not getattr(function, "__module__", "").startswith(("keras.", "tensorflow.")):
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


# Images and labels


def check_data(trainer, x_train, y_train, x_val, y_val, batch_size, shuffle):
    """Check the data for `Trainer.fit`, and that the model can be trained on it.

    Returns:
        Training and validation data, each an `Arrays` or a `Stream`.

    Raises:
        TypeError, ValueError: an argument is not as `Trainer.fit` says.
    """
    number = positive_integer("batch_size", batch_size)
    if isinstance(x_train, tf.data.Dataset) and number != BATCH_SIZE:
        raise ValueError(
            "batch_size: expected none, since x_train is a dataset, which brings its own batches, "
            f"got {number}. Set it there: dataset.batch({number})."
        )
    model, seed = trainer.model, trainer.shuffle_seed if shuffle else None
    pixels = {}
    train = _checked(model, "train", x_train, y_train, number, seed, pixels)
    val = _checked(model, "val", x_val, y_val, number, None, pixels)
    _warn_of_pixels(pixels)
    _check_shapes(model)
    _check_optimizer(trainer.optimizer, model)
    trainer.optimizer.build(model.trainable_variables)
    return train, val


def check_images(trainer, x, batch_size) -> Iterator[tf.Tensor]:
    """Check the arguments of `Trainer.predict`; return the images batch by batch.

    Raises:
        TypeError, ValueError: an argument is not as `Trainer.predict` says.
    """
    batch_size = positive_integer("batch_size", batch_size)
    if isinstance(x, tf.data.Dataset):
        raise ValueError(
            "x: expected an array of images, got a dataset. Predict batch by batch, and join the "
            "answers: tf.concat([trainer.predict(x) for x, y in dataset], axis=0)."
        )
    pixels = {}
    images = _checked_images(trainer.model, "x", x, pixels)
    _warn_of_pixels(pixels)
    trainer._predict_step.get_concrete_function(_any_images(images))
    return (
        tf.constant(images[start : start + batch_size], tf.float32)
        for start in range(0, len(images), batch_size)
    )


def check_history(history):
    """Return a history that holds an epoch.

    Raises:
        RuntimeError: there is none yet.
    """
    if not history.get("loss"):
        raise RuntimeError("There is no history to plot yet: call fit first, and let an epoch end.")
    return history


def positive_integer(name: str, value) -> int:
    """Return `value` as an int of 1 or more.

    Raises:
        TypeError: it is no integer.
        ValueError: it is less than 1.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{name}: expected an integer, got {value!r}.")
    if number < 1:
        raise ValueError(f"{name}: expected 1 or more, got {value}.")
    return number


def _checked(model, part: str, images, labels, batch_size, shuffle_seed, pixels):
    if isinstance(images, tf.data.Dataset):
        return _checked_dataset(model, part, images, labels)
    images = _checked_images(model, f"x_{part}", images, pixels)
    shape = _output_shape(model) or model(_first(images), training=False).shape
    labels = _checked_labels(f"y_{part}", labels, len(images), shape[-1])
    return Arrays(images, labels, batch_size, shuffle_seed)


def _checked_dataset(model, part: str, dataset, labels) -> Stream:
    name = f"x_{part}"
    if labels is not None:
        raise ValueError(
            f"y_{part}: expected None, since {name} is a dataset, which brings its labels along, "
            f"got {_kind(labels)}."
        )
    spec = dataset.element_spec
    shapes = [getattr(item, "shape", None) for item in spec] if type(spec) is tuple else []
    if len(shapes) != 2 or not all(shape is not None and shape.rank for shape in shapes):
        raise ValueError(
            f"{name}: expected a dataset of (images, labels) of known shapes, got {spec}. Put "
            "single images together with dataset.batch(128)."
        )
    (_, *image), (_, *label) = shapes
    expected = _image_shape(model, image)
    if not _fits(image, expected):
        raise ValueError(
            f"{name}: expected images of shape {_written(expected)}, got {_written(image)}. Put "
            "single images together with dataset.batch(128)."
        )
    if label:
        to_integers = "y[:, 0]" if label == [1] else "tf.argmax(y, axis=1)"
        raise ValueError(
            f"{name}: expected labels of shape (n,), got {_written(label)}. Make them integers: "
            f"dataset.map(lambda x, y: (x, {to_integers}))."
        )
    if not spec[1].dtype.is_integer:
        raise TypeError(
            f"{name}: expected integer labels, got {spec[1].dtype.name}. Make them integers: "
            "dataset.map(lambda x, y: (x, tf.cast(y, tf.int32)))."
        )
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError(f"{name}: the dataset never ends. Say how many batches: dataset.take.")
    if not model.built:
        for x, _ in dataset.take(1):
            model(tf.cast(x, tf.float32), training=False)
    return Stream(dataset)


def _checked_images(model, name: str, images, pixels: dict) -> np.ndarray:
    """Return `images` as an array of the shape that the model expects, uncopied if it is one.

    Their lowest and highest pixel go into `pixels`, under `name`.
    """
    if not (hasattr(images, "__array__") or isinstance(images, (list, tuple))):
        raise TypeError(f"{name}: expected an array of images, got {_kind(images)}. {ACCEPTED}")
    try:
        images = np.asarray(images)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected images of one size, got others ({error}).") from None
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
    expected = _image_shape(model, images.shape[1:])
    if images.ndim == 0 or not _fits(images.shape[1:], expected):
        if (*images.shape[1:], 1) == expected:
            advice = "Add the channel axis with add_channel."
        elif _fits(images.shape, expected):
            advice = "A single image needs an axis in front of it: x[:1] in place of x[0]."
        else:
            advice = "Prepare the images as for the model's first layer."
        raise ValueError(
            f"{name}: expected shape {_written(expected)}, got {images.shape}. {advice}"
        )
    low, high = images.min(), images.max()  # both are NaN if any pixel is
    if not max(abs(float(low)), abs(float(high))) <= float(np.finfo(np.float32).max):
        raise ValueError(
            f"{name}: expected finite pixels, got NaN or infinite ones. "
            "Look for a division by zero in the preparation of the images."
        )
    pixels[name] = low, high
    if not model.built:
        model(_first(images), training=False)
    return images


def _warn_of_pixels(pixels: dict) -> None:
    """Warn once, of the first of several arrays whose pixels are not in [0, 1]."""
    for name, (low, high) in pixels.items():
        if low < 0 or high > 1:
            warn(
                f"{name}: pixels range from {low} to {high}; networks train best on [0, 1]. "
                "normalize scales 0..255 to that range."
            )
            return


def _checked_labels(name: str, labels, n: int, classes: int) -> np.ndarray:
    """Return `labels` as an int32 array of shape (n,) with values below `classes`."""
    if labels is None:
        raise TypeError(f"{name}: expected the labels of the images, an array, got None.")
    labels = np.asarray(labels)
    if labels.ndim != 1:
        advice = ""
        if labels.ndim == 2:
            one_hot = labels.shape[1] > 1
            advice = f" Make it integers: {name}.{'argmax(axis=1)' if one_hot else 'ravel()'}."
        raise ValueError(f"{name}: expected shape ({n},), got {labels.shape}.{advice}")
    if len(labels) != n:
        raise ValueError(f"{name}: expected one label per image, {n}, got {len(labels)}.")
    if labels.dtype.kind not in "iu":
        whole = labels.dtype.kind in "bf" and np.array_equal(labels, np.floor(labels))
        advice = f" They are whole numbers: {name}.astype(int)." if whole else ""
        raise TypeError(f"{name}: expected integer labels, got {labels.dtype}.{advice}")
    low, high = labels.min(), labels.max()
    if low < 0 or high >= classes:
        raise ValueError(
            f"{name}: expected labels from 0 to {classes - 1}, since the model has {classes} "
            f"outputs, got labels from {low} to {high}."
        )
    return labels.astype(np.int32)


ACCEPTED = (
    "Accepted are an array of shape (n, height, width, channels), with its labels, and a "
    "tf.data.Dataset of batches, with None for the labels; tf.data.Dataset.from_generator makes "
    "one of whatever gives batches. For validation set some images aside: tpcnn.split(x, y)."
)


def _kind(thing) -> str:
    """Return in a few words what an argument is."""
    if thing is None or isinstance(thing, str):
        return repr(thing)
    if inspect.isclass(thing):
        return f"the class {thing.__name__}, not yet an object: {thing.__name__}(...)"
    if inspect.isfunction(thing):
        return f"the function {thing.__name__}, not yet called: {thing.__name__}(...)"
    return type(thing).__name__


def _first(images) -> np.ndarray:
    return images[:1].astype(np.float32)


def _image_shape(model, otherwise):
    """Return the shape of the images that a model expects; it may not know it yet."""
    return (getattr(model, "input_shape", None) or (None, *otherwise))[1:]


def _fits(shape, expected) -> bool:
    """Whether images of `shape` can enter a model; None stands for any number, on both sides."""
    return len(shape) == len(expected) and all(
        None in (wanted, got) or wanted == got for wanted, got in zip(expected, shape, strict=True)
    )


def _written(shape) -> str:
    return "(n, " + ", ".join("any" if d is None else str(d) for d in shape) + ")"
