"""What a `Trainer` may be given. Each mistake is named: the argument, what was expected, what came,
and what to do."""

import operator
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from tpcnn.batches import Arrays, Stream, any_images
from tpcnn.losses import check_ending, check_outputs
from tpcnn.messages import kind, warn

BATCH_SIZE = 128
# What a model may have written for `keras.Model.fit`, and this loop would not call.
OWN_STEPS = ("train_step", "test_step", "compute_loss")
ACCEPTED = (
    "Accepted are an array of shape (n, height, width, channels), with its labels, and a "
    "tf.data.Dataset of batches, with None for the labels; tf.data.Dataset.from_generator makes "
    "one of whatever gives batches. For validation set some images aside: tpcnn.split(x, y)."
)


def check_network(trainer, loss_function, optimizer):
    """Check the arguments of `Trainer`, and warn where they go together badly.

    Args:
        trainer: the `Trainer`, which has its model already.
        loss_function: as for `Trainer`.
        optimizer: as for `Trainer`.

    Returns:
        The loss and the optimizer, also where they were names.

    Raises:
        TypeError: one of them is not a model, a loss or an optimizer.
        ValueError: they cannot be trained together, or not in this way.
    """
    model = trainer.model
    if not isinstance(model, keras.Model):
        raise TypeError(f"model: expected a keras.Model, got {kind(model)}.")
    for name in OWN_STEPS:
        if getattr(type(model), name) is not getattr(keras.Model, name):
            raise ValueError(
                f"model: expected Keras' own {name}, got one of {type(model).__name__}, which this "
                "loop would not call. Put what it computes into a loss function or a layer, or "
                "train with model.fit."
            )
    _check_inputs(model)
    if (shape := _output_shape(model)) is not None:
        _check_outputs(shape)
    loss_function = _found("loss_function", keras.losses, loss_function)
    optimizer = _found("optimizer", keras.optimizers, optimizer)
    if not hasattr(trainer, "strategy"):
        _refuse_strategy(model)
    _check_optimizer(optimizer, model)
    check_ending(model, loss_function)
    return loss_function, optimizer


def check_data(trainer, x_train, y_train, x_val, y_val, batch_size, shuffle):
    """Check the data for `Trainer.fit`, and that its model can be trained on them.

    Returns:
        Training and validation data, each an `Arrays` or a `Stream`.

    Raises:
        TypeError, ValueError: an argument is not as `Trainer.fit` says.
    """
    model = trainer.model
    if model.optimizer is not trainer.optimizer or model.loss is not trainer.loss_function:
        raise ValueError(
            "model: expected the optimizer and the loss of this Trainer, got others. Another "
            "Trainer or model.compile has taken it over since, or they were set by hand. Make a "
            "new Trainer, with a new optimizer."
        )
    number = positive_integer("batch_size", batch_size)
    if isinstance(x_train, tf.data.Dataset) and number != BATCH_SIZE:
        raise ValueError(
            "batch_size: expected none, since x_train is a dataset, which brings its own batches, "
            f"got {number}. Set it there: dataset.batch({number})."
        )
    data, pixels = [], {}
    for part, images, labels in (("train", x_train, y_train), ("val", x_val, y_val)):
        if isinstance(images, tf.data.Dataset):
            data.append(_checked_dataset(model, part, images, labels))
            continue
        images = _checked_images(model, f"x_{part}", images, pixels)
        classes = _classes(model, f"x_{part}", images)
        ignored = getattr(trainer.loss_function, "ignore_class", None)
        labels = _checked_labels(f"y_{part}", labels, len(images), classes, ignored)
        if part == "train":
            check_outputs(model, trainer.loss_function, images[:2])
        seed = trainer.shuffle_seed if shuffle and part == "train" else None
        data.append(Arrays(images, labels, number, seed))
    _warn_of_pixels(model, pixels)
    _check_optimizer(trainer.optimizer, model)
    return data


def image_batches(trainer, x, batch_size) -> Iterator[tf.Tensor]:
    """Check the arguments of `Trainer.predict`; return the images in batches, float32.

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
    _warn_of_pixels(trainer.model, pixels)
    trainer._predict_step.get_concrete_function(any_images(images))
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


def check_callbacks(callbacks) -> list[keras.callbacks.Callback]:
    """Return callbacks one by one; Keras takes one, several in a list, or a `CallbackList`.

    Raises:
        TypeError: one of them is no callback.
    """
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks = callbacks.callbacks
    flat = [] if callbacks is None else keras.tree.flatten(callbacks)
    for callback in flat:
        if not isinstance(callback, keras.callbacks.Callback):
            raise TypeError(
                f"callbacks: expected a list of Keras callbacks, got {kind(callback)} in it. Of a "
                "function make one: keras.callbacks.LambdaCallback(on_epoch_end=...)."
            )
    return flat


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


# The network


def _found(name: str, module, what):
    """Return what Keras makes of `what`, which may be the name of it."""
    reason = None
    if not isinstance(what, keras.metrics.Metric):  # which Keras takes for a loss
        try:
            if (found := module.get(what)) is not None:
                return found
        except (TypeError, ValueError) as error:
            reason = error
    raise TypeError(
        f"{name}: expected one from {module.__name__}, got {kind(what)}. "
        "The order is Trainer(model, loss_function, optimizer)."
    ) from reason


def _check_inputs(model) -> None:
    shape = getattr(model, "input_shape", None)  # it may not know before it is called
    if isinstance(shape, (dict, list)):
        raise ValueError(_one_only("input", len(shape)))


def _check_outputs(shape) -> None:
    if isinstance(shape, (dict, list)):
        raise ValueError(_one_only("output", len(shape)))
    if len(shape) != 2:
        raise ValueError(
            f"model: expected scores of shape (n, classes), got {_written(shape[1:])}. Put a "
            "Flatten or GlobalAveragePooling2D layer before the last Dense layer."
        )
    if shape[1] == 1:
        raise ValueError(
            "model: expected one output per class, got a single one. For two classes end it in "
            "Dense(2, activation='softmax'), and take keras.losses.SparseCategoricalCrossentropy."
        )


def _one_only(what: str, number: int) -> str:
    return (
        f"model: expected one {what}, got {number}. A Trainer has images and labels, and nothing "
        f"else; make a keras.Model with a single {what}, which is a tensor."
    )


def _output_shape(model):
    try:
        return model.output_shape
    except (AttributeError, ValueError):  # it does not know before it is called
        return None


def _classes(model, name: str, images) -> int:
    """Return how many outputs a model has, if need be by calling it on an image."""
    shape = _output_shape(model)
    # The number of outputs may depend on the size of the images.
    if shape is None or not model.built or shape[1:] == (None,):
        first = tf.cast(images[:1], tf.float32)
        try:
            outputs = model(first, training=False)
        except Exception as error:
            # Behind Keras' own line, which only says where it was called.
            lines = [line.strip() for line in str(error).splitlines()]
            told = [line for line in lines if line and "encountered when calling" not in line]
            reason = told[0] if told else type(error).__name__
            raise ValueError(
                f"{name}: expected images that the model can take, got {_written(first.shape[1:])} "
                f"({reason}). Prepare the images as for its first layer."
            ) from error
        shape = outputs.shape if tf.is_tensor(outputs) else list(outputs)
    _check_outputs(shape)
    return shape[1]


def _refuse_strategy(model) -> None:
    strategy = tf.distribute.get_strategy() if tf.distribute.has_strategy() else None
    if strategy is None and not any(
        isinstance(variable.value, tf.distribute.DistributedValues) for variable in model.variables
    ):
        return
    raise ValueError(
        "Trainer: expected to be made outside of a strategy's scope, with its model, got "
        f"{type(strategy).__name__ if strategy else 'a model of a strategy'}. Take "
        "DistributedTrainer from tpcnn.distributed, which trains on all of its devices."
    )


def _check_optimizer(optimizer, model) -> None:
    """Check that an optimizer has trained nothing but the weights that are trainable now."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # in one that scales the loss
    theirs = {id(variable) for variable in getattr(optimizer, "_trainable_variables", [])}
    ours = {id(variable) for variable in model.trainable_variables}
    if not theirs or theirs == ours:
        return
    if theirs & ours or not ours:
        raise ValueError(
            f"model: expected the {len(theirs)} trainable weights that its optimizer knows, got "
            f"{len(ours)} or others. Make a new Trainer, with a new optimizer, after you have "
            "frozen or thawed layers."
        )
    raise ValueError(
        f"optimizer: expected a new one, got an optimizer ({type(optimizer).__name__}) that has "
        "trained another model, whose averages it remembers. Make one for each model."
    )


# Images and labels


def _checked_images(model, name: str, images, pixels: dict) -> np.ndarray:
    """Return `images` as an array of the shape that the model expects, uncopied if it is one.

    Their lowest and highest pixel go into `pixels`, under `name`.
    """
    images = _as_array(name, images, "images")
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
            f"{name}: expected finite pixels, got some that are NaN, infinite, or too large for "
            "float32. "
            "Look for a division by zero in the preparation of the images."
        )
    pixels[name] = low, high
    if not model.built:
        _classes(model, name, images)
    return images


def _as_array(name: str, values, what: str) -> np.ndarray:
    if not (hasattr(values, "__array__") or isinstance(values, (list, tuple))):
        advice = ACCEPTED if what == "images" else "Pass integers, shape (n,), one for each image."
        raise TypeError(f"{name}: expected an array of {what}, got {kind(values)}. {advice}")
    try:
        return np.asarray(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected {what} of one shape, got others ({error}).") from None


def _warn_of_pixels(model, pixels: dict) -> None:
    """Warn once, of the first of several arrays whose pixels were not scaled."""
    scaling = (keras.layers.Rescaling, keras.layers.Normalization)
    if any(isinstance(layer, scaling) for layer in model._flatten_layers()):  # nested ones too
        return
    for name, (low, high) in pixels.items():
        if low < -10 or high > 10:  # those of images with mean 0 and deviation 1 are not
            warn(
                f"{name}: pixels range from {low} to {high}; networks train best on [0, 1]. "
                "normalize scales 0..255 to that range."
            )
            return


def _checked_labels(name: str, labels, n: int, classes: int, ignored) -> np.ndarray:
    """Return `labels` as an int32 array of shape (n,) with values below `classes`."""
    labels = _as_array(name, labels, "labels")
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
        if labels.dtype.kind in "OSU":
            advice = " Number the classes: np.unique(labels, return_inverse=True)[1]."
        raise TypeError(f"{name}: expected integer labels, got {labels.dtype}.{advice}")
    counted = labels if ignored is None else labels[labels != ignored]
    low, high = (counted.min(), counted.max()) if counted.size else (0, 0)
    if low < 0 or high >= classes:
        raise ValueError(
            f"{name}: expected labels from 0 to {classes - 1}, since the model has {classes} "
            f"outputs, got labels from {low} to {high}."
        )
    return labels.astype(np.int32)


def _checked_dataset(model, part: str, dataset, labels) -> Stream:
    name = f"x_{part}"
    if labels is not None:
        raise ValueError(
            f"y_{part}: expected None, since {name} is a dataset, which brings its labels along, "
            f"got {kind(labels)}."
        )
    images, labels = _specs(name, dataset.element_spec)
    expected = _image_shape(model, images.shape[1:])
    if not _fits(images.shape[1:], expected):
        if _fits(images.shape, expected):
            advice = "Put single images together: dataset.batch(128)."
        elif (*images.shape[1:], 1) == tuple(expected):
            advice = "Add the channel axis: dataset.map(lambda x, y: (x[..., None], y))."
        else:
            advice = "Prepare the images as for the model's first layer, with dataset.map."
        raise ValueError(
            f"{name}: expected a dataset with images of shape {_written(expected)}, got "
            f"{images.shape}. {advice}"
        )
    if not (images.dtype.is_floating or images.dtype.is_integer or images.dtype.is_bool):
        raise TypeError(f"{name}: expected images of numbers, got {images.dtype.name}.")
    if len(labels.shape) > 1:
        to_integers = "y[:, 0]" if labels.shape[1:] == [1] else "tf.argmax(y, axis=1)"
        raise ValueError(
            f"{name}: expected labels of shape (n,), got {_written(labels.shape[1:])}. Make them "
            f"integers: dataset.map(lambda x, y: (x, {to_integers}))."
        )
    if not labels.dtype.is_integer:
        advice = "Make them integers: dataset.map(lambda x, y: (x, tf.cast(y, tf.int32)))."
        if labels.dtype == tf.string:
            advice = "Number the classes, as keras.layers.StringLookup does."
        raise TypeError(f"{name}: expected integer labels, got {labels.dtype.name}. {advice}")
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError(f"{name}: the dataset never ends. Say how many batches: dataset.take.")
    for x, _ in dataset.take(0 if model.built and _output_shape(model) else 1):
        _classes(model, name, x)
    return Stream(dataset)


def _specs(name: str, spec) -> tuple[tf.TensorSpec, tf.TensorSpec]:
    """Return what a dataset says of its images and its labels."""
    if not isinstance(spec, tuple) or len(spec) != 2:
        if isinstance(spec, dict):
            advice = "dataset.map(lambda d: (d['image'], d['label'])), with the names that it has."
        elif isinstance(spec, tuple) and len(spec) == 3:
            advice = "dataset.map(lambda x, y, weights: (x, y)). A Trainer knows no weights."
        else:
            advice = "tf.data.Dataset.zip((images, labels))."
        raise ValueError(f"{name}: expected a dataset of (images, labels), got {spec}. {advice}")
    for item in spec:
        if not isinstance(item, tf.TensorSpec) or item.shape.rank is None:
            raise ValueError(
                f"{name}: expected a dataset of (images, labels) of known shapes, got {spec}. Say "
                "them: dataset.map(lambda x, y: (tf.ensure_shape(x, [None, 28, 28, 1]), "
                "tf.ensure_shape(y, [None])))."
            )
    images, labels = spec
    if labels.shape.rank == 0:
        raise ValueError(
            f"{name}: expected a dataset of batches of (images, labels), got single ones, {spec}. "
            "Put them together: dataset.batch(128)."
        )
    if images.shape.rank < labels.shape.rank:
        raise ValueError(
            f"{name}: expected a dataset of (images, labels), got shapes {images.shape} and "
            f"{labels.shape}. Change their order: dataset.map(lambda y, x: (x, y))."
        )
    return images, labels


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
