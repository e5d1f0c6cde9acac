"""The two datasets as arrays: loaded, normalised, with a channel axis, split in three."""

import contextlib
import operator
from dataclasses import dataclass

import numpy as np

from tpcnn import sources

MNIST_CLASSES = tuple("0123456789")
FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Dataset:
    """Images and labels, ready for training.

    Attributes:
        x_train: training images, float32 of shape (50000, 28, 28, 1), pixels in [0, 1].
        y_train: their labels, uint8 of shape (50000,), from 0 to 9.
        x_val: validation images, (10000, 28, 28, 1).
        y_val: their labels, (10000,).
        x_test: test images, (10000, 28, 28, 1).
        y_test: their labels, (10000,).
        class_names: the name of each class, in the order of the labels.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_val: np.ndarray
    y_val: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: tuple[str, ...]


def load_mnist(raw: bool = False) -> Dataset | tuple[Pair, Pair]:
    """Load MNIST, handwritten digits (LeCun et al. 1998).

    Args:
        raw: return the arrays as Keras does, ``(x_train, y_train), (x_test, y_test)``: uint8,
            images of shape (60000, 28, 28) and (10000, 28, 28), pixels from 0 to 255.

    Returns:
        A `Dataset`, or with `raw` the two pairs.

    Raises:
        tpcnn.sources.DownloadError: no source gave the data; the message lists each and what to do.
    """
    return _load("mnist", MNIST_CLASSES, raw)


def load_fashion_mnist(raw: bool = False) -> Dataset | tuple[Pair, Pair]:
    """Load Fashion-MNIST, articles of clothing (Xiao et al. 2017).

    Args:
        raw: return the arrays as Keras does, as in `load_mnist`; the shapes are the same.

    Returns:
        A `Dataset`, or with `raw` the two pairs.

    Raises:
        tpcnn.sources.DownloadError: no source gave the data; the message lists each and what to do.
    """
    return _load("fashion_mnist", FASHION_MNIST_CLASSES, raw)


def _load(name: str, class_names: tuple[str, ...], raw: bool) -> Dataset | tuple[Pair, Pair]:
    arrays = sources.load(name)
    train = arrays["x_train"], arrays["y_train"]
    test = arrays["x_test"], arrays["y_test"]
    if raw:
        return train, test
    (x_train, y_train), (x_val, y_val) = split(add_channel(normalize(train[0])), train[1])
    x_test = add_channel(normalize(test[0]))
    return Dataset(x_train, y_train, x_val, y_val, x_test, test[1], class_names)


def normalize(x: np.ndarray) -> np.ndarray:
    """Scale pixels to [0, 1].

    Args:
        x: pixels from 0 to 255, of any shape and type of numbers.

    Returns:
        float32, of the same shape.

    Raises:
        ValueError: a pixel lies outside 0..255, or the images are scaled already.
    """
    x = np.asarray(x)
    if x.size:
        low, high = x.min(), x.max()
        if not (low >= 0 and high <= 255):
            raise ValueError(
                f"x: expected pixels from 0 to 255, got values from {low} to {high}. "
                "Pass the images as load_mnist(raw=True) returns them."
            )
        if np.issubdtype(x.dtype, np.floating) and 0 < high <= 1:
            raise ValueError(
                f"x: expected pixels from 0 to 255, got {x.dtype} values from {low} to {high}: "
                "they are scaled already. Call normalize once, on the raw images."
            )
    return np.divide(x, np.float32(255), dtype=np.float32)


def add_channel(x: np.ndarray) -> np.ndarray:
    """Add the channel axis, which convolutions need.

    Args:
        x: images, shape (n, height, width).

    Returns:
        A view of `x` of shape (n, height, width, 1).

    Raises:
        ValueError: the images do not have three axes.
    """
    x = np.asarray(x)
    if x.ndim != 3:
        has_it = x.ndim == 4 and x.shape[-1] == 1
        advice = "They have their channel axis already." if has_it else "Pass a stack of images."
        raise ValueError(f"x: expected shape (n, height, width), got {x.shape}. {advice}")
    return x[..., np.newaxis]


def split(x: np.ndarray, y: np.ndarray, n_val: int = 10000) -> tuple[Pair, Pair]:
    """Set the last `n_val` images and their labels aside for validation.

    Args:
        x: images, an array whose first axis counts them.
        y: their labels.
        n_val: how many images to set aside, a count of at least 1; one image at least must stay.

    Returns:
        ``(x_train, y_train), (x_val, y_val)``, views of `x` and `y`.

    Raises:
        TypeError: `n_val` is no count.
        ValueError: `x` and `y` differ in length, or `n_val` leaves no image on one of the sides.
    """
    if len(x) != len(y):
        raise ValueError(
            f"y: expected one label per image, {len(x)}, got {len(y)}. "
            "Split the images together with their own labels."
        )
    n_val = _count(n_val, len(x))
    if not 0 < n_val < len(x):
        raise ValueError(f"n_val: expected 1 to {len(x) - 1} of the {len(x)} images, got {n_val}.")
    return (x[:-n_val], y[:-n_val]), (x[-n_val:], y[-n_val:])


def _count(n_val, n: int) -> int:
    """Return `n_val` as an integer, or say which count of `n` images was meant."""
    is_bool = isinstance(n_val, (bool, np.bool_))
    if not is_bool:
        with contextlib.suppress(TypeError):
            return operator.index(n_val)
    advice = "The default is n_val=10000." if is_bool else ""
    with contextlib.suppress(TypeError, ValueError):  # no number at all
        number = float(n_val)
        if 0 < number < 1:
            advice = f"A share of {number:.4g} would be n_val={max(1, round(number * n))}."
        elif number.is_integer() and not is_bool:
            advice = f"Pass n_val={int(number)}."
    message = f"n_val: expected a count of images, an integer from 1 to {n - 1}, got {n_val!r}."
    raise TypeError(f"{message} {advice}".rstrip())
