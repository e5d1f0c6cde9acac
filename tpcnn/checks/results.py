"""What the lab sheet asks, what a student has reached so far, and the report to hand in."""

import importlib.metadata
import platform

import keras
import numpy as np
import tensorflow as tf

from tpcnn.checks.mistakes import Mistake, Section, blank, check, raised, run
from tpcnn.device import describe_device

# The least accuracy on the test set, by chapter.
REQUIRED_ACCURACY = {"fully_connected": 0.96, "cnn": 0.98, "fashion": 0.90}

# Softmax of probabilities: at most e to one, and to nine others.
LARGEST_AFTER_TWO_SOFTMAX = np.e / (np.e + 9)

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


def require_accuracy(chapter: str, accuracy: float) -> None:
    """Say that a test accuracy meets the lab sheet's requirement for a chapter.

    Args:
        chapter: a key of `REQUIRED_ACCURACY`.
        accuracy: share of the test images that are classified correctly, in [0, 1].

    Raises:
        AssertionError: the accuracy is below the requirement.
    """
    required = REQUIRED_ACCURACY[chapter]
    comparison = f"{chapter}: test accuracy {accuracy:.2%}, required {required:.0%}"
    if not accuracy >= required:
        raise AssertionError(f"{comparison}: not met.")
    print(f"{comparison}: met.")


TRAINING = {
    "fully_connected": Section.FULLY_CONNECTED_TRAINING,
    "cnn": Section.CNN_TRAINING,
    "fashion": Section.FASHION_TRAINING,
}


@check
def accuracy(step: str, trainer, x_test, y_test) -> None:
    """Measure the accuracy on the test set, compare it with the requirement, note it.

    Args:
        step: a key of `REQUIRED_ACCURACY`.
        trainer: the student's Trainer after training; its `predict` is used.
        x_test: the test images, prepared.
        y_test: their labels, shape (n,).

    Raises:
        Mistake: the accuracy is below the requirement, `predict` does not give probabilities,
            or the trainer has another model than the one that passed the check of this step.
    """
    accuracies.pop(step, None)
    if trainer is Ellipsis:
        raise blank("The trainer", TRAINING[step])
    if trainer is None or isinstance(trainer, dict):
        raise Mistake(
            f"the trainer is {'None' if trainer is None else 'a dict'}.",
            "Either its cell is still blank or has stopped with an error, or it ends in .fit(...), "
            "which returns something else. Make the trainer on one line, `name = Trainer(...)`, "
            "and train it on the next, `name.fit(...)`.",
            TRAINING[step],
        )
    history = getattr(trainer, "history", None)
    if isinstance(history, dict) and history and not any(map(np.size, history.values())):
        raise Mistake(
            "the history of this trainer is empty: its fit has not finished an epoch.",
            "An untrained network guesses. Look at the cell of the training: is its fit called, "
            "and did it end without an error?",
            TRAINING[step],
        )
    checked = passed.get(step)
    if checked is not None and getattr(trainer, "model", checked) is not checked:
        raise Mistake(
            "the trainer holds another network than the one that passed the check of this step.",
            "Its accuracy would say nothing about this one. If you have run the cell of the "
            "network again, make the trainer anew and train it.",
            TRAINING[step],
        )
    probabilities, error = run(trainer.predict, x_test)
    if error:
        raise raised("predict", error, Section.PREDICT)
    probabilities, y_test = np.asarray(probabilities), np.asarray(y_test)
    if probabilities.ndim != 2 or len(probabilities) != len(y_test):
        raise Mistake(
            f"predict returns shape {probabilities.shape} for {len(y_test)} test images; "
            f"expected ({len(y_test)}, 10).",
            "Without one row per image there is no accuracy. Run checks.predict(Trainer) first.",
            Section.PREDICT,
        )
    _find_no_probabilities(probabilities, TRAINING[step])
    reached = float(np.mean(probabilities.argmax(axis=1) == y_test))
    if reached > 0.5 and probabilities.max() < LARGEST_AFTER_TWO_SOFTMAX + 1e-4:
        raise Mistake(
            "predict applies softmax to what are probabilities already: none of them is above "
            f"{LARGEST_AFTER_TWO_SOFTMAX:.0%}.",
            "The class is the same, but you cannot see how sure the network is. Leave softmax out "
            "of predict, or out of the model.",
            Section.SCORES,
        )
    accuracies[step] = reached
    required = REQUIRED_ACCURACY[step]
    if not reached >= required:
        advice = (
            "That is little better than a guess. Did fit get the images of this step? Are the test "
            "images prepared as the training images are? Did the training loss fall?"
            if reached < 0.2
            else "Look at the curves. If the validation accuracy still rises, train longer. If it "
            "stays far below the training accuracy, use dropout or a smaller network. If both "
            "are low, change the learning rate or take a larger network."
        )
        raise Mistake(
            f"test accuracy {reached:.2%}, required {required:.0%}.", advice, TRAINING[step]
        )
    print(f"Right: test accuracy {reached:.2%}, required {required:.0%}.")


def _find_no_probabilities(outputs, section):
    if not np.isfinite(outputs).all():
        raise Mistake(
            "predict returns NaN: the training has diverged.",
            "Make the model and the optimizer anew, with a learning rate ten times smaller, and "
            "train again.",
            section,
        )
    if outputs.min() < -1e-3 or not np.allclose(outputs.sum(axis=1), 1, atol=1e-2):
        raise Mistake(
            "predict returns numbers that are no probabilities: they do not add up to 1.",
            "They look like logits. If your model ends without softmax, apply tf.nn.softmax in "
            "predict.",
            Section.SCORES,
        )


@check
def name(first_name: str, last_name: str) -> None:
    """Note who hands the report in.

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
    """Print the summary to hand in: steps, accuracies, bonuses, versions and device."""
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
