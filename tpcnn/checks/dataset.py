"""The check of the prepared data."""

import hashlib
import re

import numpy as np

from tpcnn import sources
from tpcnn.checks import session
from tpcnn.checks.mistakes import Mistake, Section, blank, check

NAMES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
# Above this share of images, a finding is a mistake: some images of Fashion-MNIST occur twice.
TOLERATED = 0.01
AT_ONCE = 5000  # images that are compared at a time, which bounds the memory


@check
def data(x_train, y_train, x_val, y_val, x_test, y_test, raw) -> None:
    """Check the three sets of images and labels against the raw ones.

    The validation set must have 10 000 images, or a sixth where there are not 60 000. Which
    images it holds is free: cut off at the end, at the front, or drawn at random.

    Args:
        x_train: training images; right are floats in [0, 1], shape (n, height, width, 1).
        y_train: their labels, integers of shape (n,).
        x_val: validation images.
        y_val: their labels.
        x_test: test images.
        y_test: their labels.
        raw: ``(x, y), (x_test, y_test)`` as ``load_mnist(raw=True)`` returns them.

    Raises:
        Mistake: see its message.
    """
    key = _key_of(raw[1][1])
    dataset = NAMES.get(key, "other images")
    session.passed.pop(dataset, None)
    try:
        sizes = _find_mistake(x_train, y_train, x_val, y_val, x_test, y_test, raw, key)
    except Mistake as mistake:
        if key == "fashion_mnist":  # whose arrays have other names in the lab
            text = re.sub(r"\b([xy]_(train|val|test))\b", r"fashion_\1", str(mistake))
            mistake.args = (text,)
        raise
    session.passed[dataset] = None
    print(
        f"Right: {dataset}, {sizes['train']} training, {sizes['val']} validation and "
        f"{sizes['test']} test images,\npixels in [0, 1], each with its label."
    )
    if np.asarray(x_train).dtype == np.float64:
        print("Note: the images are float64 and take twice the memory of float32.")


def _find_mistake(x_train, y_train, x_val, y_val, x_test, y_test, raw, key) -> dict[str, int]:
    """Raise the first mistake; return the sizes of the three sets."""
    (x_raw, y_raw), (x_raw_test, y_raw_test) = raw
    images = {"x_train": x_train, "x_val": x_val, "x_test": x_test}
    labels = {"y_train": y_train, "y_val": y_val, "y_test": y_test}
    for name, array in (images | labels).items():
        if array is None or array is Ellipsis:
            raise blank(name, Section.LOAD)
    images = {name: np.asarray(x) for name, x in images.items()}
    labels = {name: np.asarray(y) for name, y in labels.items()}

    if key:
        _check_raw(key, {"x_train": x_raw, "y_train": y_raw, "x_test": x_raw_test})
    n_val = 10000 if len(x_raw) == 60000 else len(x_raw) // 6
    sizes = {"train": len(x_raw) - n_val, "val": n_val, "test": len(x_raw_test)}
    _check_shapes(images, x_raw.shape[1:])
    _check_sizes(images, labels, sizes, len(x_raw))
    _check_scale(images, x_raw, x_raw_test)
    _check_contents(images, labels, (x_raw, y_raw), (x_raw_test, y_raw_test))
    return sizes


def _key_of(y_raw_test) -> str | None:
    """Return the key of `sources.CHECKSUMS` whose test labels these are."""
    checksum = _checksum(y_raw_test)
    return next((key for key in NAMES if sources.CHECKSUMS[key]["y_test"] == checksum), None)


def _checksum(array) -> str:
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


def _check_raw(key, arrays):
    for name, array in arrays.items():
        if _checksum(array) != sources.CHECKSUMS[key][name]:
            raise Mistake(
                "the images or labels that were loaded have been changed in place.",
                "Shuffling or dividing in place (np.random.shuffle(x), x //= 255) changes the "
                "loaded array itself, and images can lose their labels. Run the cell that loads "
                "them again, and give each result a name of its own.",
                Section.LOAD,
            )


def _check_shapes(images, size):
    height, width = size
    for name, x in images.items():
        if x.shape[1:] == (height, width, 1):
            continue
        found = f"its shape is {x.shape}, expected (n, {height}, {width}, 1)"
        if x.shape[1:] == (height, width):
            wrong = f"{name} has no channel axis: {found}."
        elif x.shape[1:] == (height, width, 1, 1):
            wrong = f"{name} has the channel axis twice: {found}."
        elif x.shape[1:] == (1, height, width) or (x.ndim == 4 and x.shape[0] == 1):
            wrong = f"{name} has the channel axis in front: {found}."
        else:
            wrong = f"{name} has the wrong shape: {found}."
        raise Mistake(
            wrong,
            "A convolutional layer reads the last axis as channels; with another shape it stops, "
            "or takes rows for channels.",
            Section.CHANNEL,
        )


def _check_sizes(images, labels, sizes, n_raw):
    for part, n in sizes.items():
        x, y = images[f"x_{part}"], labels[f"y_{part}"]
        if part == "train" and len(x) == n_raw:
            raise Mistake(
                f"x_train still holds all {n_raw} images, so the validation set overlaps with it.",
                f"The network would learn from the images on which you judge it. Keep {n} for "
                "training.",
                Section.SPLIT,
            )
        if len(x) != n:
            raise Mistake(
                f"x_{part} has {len(x)} images, expected {n}: the sizes are {sizes['train']} for "
                f"training, {sizes['val']} for validation, {sizes['test']} for the test.",
                "With other sizes your accuracies cannot be compared with the required ones.",
                Section.SPLIT,
            )
    for part, n in sizes.items():
        y = labels[f"y_{part}"]
        if y.ndim == 2 and y.shape[1] > 1:
            raise Mistake(
                f"y_{part} has the shape {y.shape}; expected one integer per image, ({n},).",
                "The loss and the accuracy of the lab are of the sparse kind: they take the "
                "number of the class. One-hot labels become numbers with argmax(axis=1).",
                Section.LOSS,
            )
        if y.shape == (n, 1):
            raise Mistake(
                f"y_{part} has the shape {y.shape}, expected ({n},).",
                "Only images get a channel axis. With a second axis, labels and predictions no "
                "longer match. Leave the labels as they are.",
                Section.CHANNEL,
            )
        if y.shape != (n,):
            raise Mistake(
                f"y_{part} has the shape {y.shape}, but x_{part} has {n} images: the labels are "
                "not split as the images are.",
                "Each image needs its own label. Cut images and labels at the same place.",
                Section.SPLIT,
            )


def _check_scale(images, x_raw, x_raw_test):
    greys = np.any((x_raw[:1000] > 0) & (x_raw[:1000] < 255))
    faults = {name: _fault_of_scale(x, greys) for name, x in images.items()}
    right = [name for name, fault in faults.items() if fault is None]
    for name, fault in faults.items():
        if fault is None:
            continue
        wrong, effect = fault
        if right:
            wrong += f", while {' and '.join(right)} {'are' if len(right) > 1 else 'is'} right"
            effect = (
                "The network learns on one range of pixels and is measured on another, which it "
                "has never seen: its accuracy there means nothing. " + effect
            )
        raise Mistake(f"{name} {wrong}.", effect, Section.NORMALISE)


def _fault_of_scale(x, greys) -> tuple[str, str] | None:
    """Return what is wrong with the range of the pixels, and its effect."""
    low, high = float(x.min()), float(x.max())
    if not np.isfinite([low, high]).all():
        return "holds NaN or infinite pixels", "Every loss becomes NaN. Look for a division by 0."
    if greys and high == 1 and _only_zeros_and_ones(x):
        return (
            "holds only zeros and ones: an integer division (`//`), or a conversion to integers",
            "All greys are lost: only full ink is left. Divide with `/`, and keep floats.",
        )
    if low >= 0 and 1.5 < high <= 255:
        return (
            f"is not scaled: its pixels go up to {high:g}, expected 1",
            "The sums in the network start out 255 times too large, and so do the steps: training "
            "is unstable or stands still. Divide by 255.",
        )
    if low >= 0 and high <= 1.5 / 255:
        return (
            f"is scaled twice: its pixels go up to {high:.2g}, expected 1",
            "All images look black to the network: it learns very slowly. Divide by 255 once; "
            "mind cells that you run a second time.",
        )
    if low < 0 or high > 1 or high < 0.5:
        return (
            f"has pixels from {low:.3g} to {high:.3g}, expected 0 to 1",
            "The lab asks for pixels from 0 to 1: divide by 255, nothing else.",
        )
    return None


def _only_zeros_and_ones(x) -> bool:
    return all(
        np.isin(x[start : start + AT_ONCE], (0, 1)).all() for start in range(0, len(x), AT_ONCE)
    )


def _check_contents(images, labels, raw, raw_test):
    (x_raw, y_raw), (x_raw_test, y_raw_test) = raw, raw_test
    train_index = {image: i for i, image in enumerate(_fingerprints(x_raw))}
    test_index = {image: i for i, image in enumerate(_fingerprints(x_raw_test))}
    prints = {name: _fingerprints(_as_raw(x)) for name, x in images.items()}

    def share(name, known):
        return np.mean([image in known for image in prints[name]])

    for name, home in (("x_train", train_index), ("x_val", train_index), ("x_test", test_index)):
        unknown = [i for i, image in enumerate(prints[name]) if image not in home]
        other = test_index if home is train_index else train_index
        if share(name, other) > TOLERATED:
            _raise_wrong_home(name, share(name, other))
        if unknown:
            _raise_changed(name, images[name], unknown, x_raw, x_raw_test)

    overlap = share("x_val", set(prints["x_train"]))
    if overlap > TOLERATED:
        raise Mistake(
            f"the validation set overlaps with the training set: {overlap:.0%} of x_val is in "
            "x_train as well.",
            "The network learns these images by heart, and its validation accuracy looks better "
            "than it is.",
            Section.SPLIT,
        )
    for part, index, y_home in (
        ("train", train_index, y_raw),
        ("val", train_index, y_raw),
        ("test", test_index, y_raw_test),
    ):
        expected = y_home[[index[image] for image in prints[f"x_{part}"]]]
        strangers = np.mean(labels[f"y_{part}"] != expected)
        if strangers > TOLERATED:
            raise Mistake(
                f"the labels in y_{part} do not belong to the images in x_{part}: {strangers:.0%} "
                "differ from what the images show.",
                "The network would learn wrong answers. Cut, and shuffle, images and labels in "
                "the same way.",
                Section.SPLIT,
            )


def _raise_wrong_home(name, share):
    if name == "x_val":
        raise Mistake(
            f"the validation set is taken from the test set ({share:.0%} of it).",
            "You would choose what happens to fit the test images, and the test accuracy would no "
            "longer be an honest forecast. Cut the validation set off the training images.",
            Section.SPLIT,
        )
    where = "training" if name == "x_test" else "test"
    raise Mistake(
        f"{share:.0%} of {name} are {where} images.",
        "A network must not be tested on images that it has learned from.",
        Section.SPLIT,
    )


def _raise_changed(name, x, unknown, x_raw, x_raw_test):
    """Say why images of `name` are not among the raw ones once they are multiplied by 255."""
    x = x[unknown[:200], ..., 0].astype(np.float64)
    peaks = x_raw_test if name == "x_test" else x_raw
    peaks = peaks.reshape(len(peaks), -1).max(axis=1)
    known = set(_fingerprints(x_raw_test if name == "x_test" else x_raw))
    # Divided by its own largest pixel, an image becomes a raw one again by that factor only.
    factors = [peak for peak in np.unique(peaks) if 0 < peak < 255]
    per_image = np.all(np.isclose(x.max(axis=(1, 2)), 1)) and any(
        image in known
        for factor in factors
        for image in _fingerprints(np.rint(x * factor).astype(np.uint8))
    )
    if per_image:
        raise Mistake(
            f"{name} is scaled per image: each image is divided by its own largest pixel "
            f"({len(unknown)} images differ from raw / 255).",
            "Pale images become as dark as the others: how much ink there is, is lost, and it is "
            "something that the network could learn from. Divide all images by 255.",
            Section.NORMALISE,
        )
    if all(image in known for image in _fingerprints(np.rint(x * 256).astype(np.uint8))):
        raise Mistake(
            f"{name} is divided by 256 instead of 255.",
            "Full ink is then not quite 1. The largest value of a pixel is 255, since counting "
            "begins at 0: divide by 255.",
            Section.NORMALISE,
        )
    raise Mistake(
        f"{len(unknown)} images of {name} are not among the raw images divided by 255.",
        "Either the pixels are changed by more than the scaling, or rows and columns are mixed up "
        "by a reshape, or they are those of the other dataset. Look at a few of them: "
        "plots.labelled_images(images, labels, class_names).",
        Section.NORMALISE,
    )


def _as_raw(x):
    """Return scaled images (n, height, width, 1) as bytes (n, height, width)."""
    parts = [
        np.rint(x[start : start + AT_ONCE, ..., 0] * np.float32(255)).astype(np.uint8)
        for start in range(0, len(x), AT_ONCE)
    ]
    return np.concatenate(parts)


def _fingerprints(x) -> list[int]:
    return [hash(image.tobytes()) for image in np.ascontiguousarray(x)]
