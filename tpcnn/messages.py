"""How a `Trainer` says what is wrong: TensorFlow's errors in plain words, and warnings."""

import functools
import inspect
import re
import sys
import warnings
from pathlib import Path

import tensorflow as tf

OUT_OF_MEMORY = re.compile(
    r"\bOOM\b|(?i:\bout of memory\b)|OUT_OF_MEMORY|Dst tensor is not initialized"
)
LABEL_OUT_OF_RANGE = re.compile(r"label value of (-?\d+) which is outside .* \[0, (\d+)\)")
# What people take over from keras.Model.fit.
ADVICE = {
    "validation_split": "Split the images first, (x_train, y_train), (x_val, y_val) = "
    "tpcnn.split(x, y), and pass all four.",
    "validation_data": "Pass x_val and y_val behind y_train.",
    "validation_batch_size": "The validation images come in batches of batch_size.",
    "x": "The images are called x_train in fit.",
    "y": "The labels are called y_train in fit; predict takes none.",
    "class_weight": "Weights of classes or images belong in a loss of your own.",
    "sample_weight": "Weights of classes or images belong in a loss of your own.",
    "steps_per_epoch": "Cut a dataset to as many batches: dataset.take(steps).",
    "validation_steps": "Cut a dataset to as many batches: dataset.take(steps).",
    "initial_epoch": "To go on with a run, pass a folder as checkpoints.",
}


def explain_errors(method):
    """Decorate `fit` or `predict`: wrong names and too little memory are said in plain words.

    Raises:
        TypeError: an argument is missing, or there is none of that name.
        ValueError: a dataset holds a label beyond the classes.
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


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn, and point at the line outside this package that called into it."""
    level, frame = 1, sys._getframe()
    while frame.f_back and Path(frame.f_code.co_filename).parent == Path(__file__).parent:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def kind(thing) -> str:
    """Return in a few words what was passed, for an error message."""
    if thing is None or isinstance(thing, (bool, int, str)):
        return repr(thing)
    if inspect.isclass(thing):
        return f"the class {thing.__name__}, not yet an object: {thing.__name__}(...)"
    if inspect.isfunction(thing):
        return f"the function {thing.__name__}, not yet called: {thing.__name__}(...)"
    return type(thing).__name__
