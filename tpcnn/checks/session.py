"""What a student has reached in this session, and the report to hand in."""

import importlib.metadata
import platform

import keras
import numpy as np
import tensorflow as tf

from tpcnn.checks.mistakes import Section, blank, check
from tpcnn.device import describe_device
from tpcnn.lab_sheet import REQUIRED_ACCURACY

# Every step of the lab, in its order, as the report calls it.
STEPS = {
    "MNIST": "data: MNIST",
    "train_step": "_train_step",
    "eval_step": "_eval_step",
    "fit": "fit",
    "predict": "predict",
    "fully_connected": "model: fully connected",
    "cnn": "model: CNN",
    "Fashion-MNIST": "data: Fashion-MNIST",
    "fashion": "model: CNN for Fashion-MNIST",
}
BONUSES = ("mini-batches", "batch normalisation", "dropout")

# What this session has reached. In memory only: the report belongs to the run that it ends.
student: list[str] = []
passed: dict[str, object] = {}  # each step, and the class of Trainer or the model that passed
accuracies: dict[str, float] = {}
bonuses: dict[str, set[str]] = {bonus: set() for bonus in BONUSES}  # and the steps they are for


def forget() -> None:
    """Forget everything, as if the session had just begun."""
    for collection in (student, passed, accuracies, *bonuses.values()):
        collection.clear()


@check
def name(first_name: str, last_name: str) -> None:
    """Note who hands the report in.

    Args:
        first_name: as the student writes it.
        last_name: likewise.

    Raises:
        Mistake: a name is missing.
    """
    student.clear()
    for which, value in (("first name", first_name), ("last name", last_name)):
        if not isinstance(value, str) or not value.strip(" ."):
            raise blank(f"Your {which}", Section.NAME)
    student.extend([first_name.strip(), last_name.strip()])
    print("Right:", *student)


def report() -> None:
    """Print the summary to hand in: steps, accuracies, bonuses, versions and device.

    It reports what the other checks have noted in this session, and checks nothing itself.
    """
    print("Training image classifiers: report of the lab")
    print(f"{'name':32}{' '.join(student) or 'not given'}")
    print()
    for step, title in STEPS.items():
        print(f"{title:32}{'passed' if step in passed else 'NOT PASSED'}")
    print()
    for step, required in REQUIRED_ACCURACY.items():
        reached = accuracies.get(step)
        verdict = (
            "NOT MEASURED"
            if reached is None
            else f"{reached:.2%}, {'met' if reached >= required else 'NOT MET'}"
        )
        print(f"{f'test accuracy: {step}':32}{verdict} (required {required:.0%})")
    print()
    for bonus, steps in bonuses.items():
        earned = "earned: " + ", ".join(step for step in STEPS if step in steps)
        print(f"{f'bonus: {bonus}':32}{earned if steps else 'not earned'}")
    print()
    for library, version in versions().items():
        print(f"{library:32}{version}")
    print(f"{'device':32}{describe_device()}")


def versions() -> dict[str, str]:
    """Return the version of Python and of each library that a result depends on."""
    try:
        tpcnn = importlib.metadata.version("tpcnn")
    except importlib.metadata.PackageNotFoundError:
        tpcnn = "not installed"
    return {
        "Python": platform.python_version(),
        "TensorFlow": tf.__version__,
        "Keras": keras.__version__,
        "NumPy": np.__version__,
        "tpcnn": tpcnn,
    }
