"""The check of the accuracy: measured on the test set, and compared with what is asked for."""

import numpy as np

from tpcnn.checks import session
from tpcnn.checks.mistakes import Mistake, Section, blank, check, raised, run
from tpcnn.checks.networks import LARGEST_AFTER_TWO_SOFTMAX
from tpcnn.lab_sheet import REQUIRED_ACCURACY
from tpcnn.models import CLASSES

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
        x_test: the test images, prepared: float32 of shape (n, 28, 28, 1), in [0, 1].
        y_test: their labels, integers of shape (n,).

    Raises:
        Mistake: the accuracy is below the requirement, `predict` does not give probabilities,
            or the trainer has another model than the one that passed the check of this step.
    """
    session.accuracies.pop(step, None)
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
    checked = session.passed.get(step)
    if checked is not None and getattr(trainer, "model", checked) is not checked:
        raise Mistake(
            "the trainer holds another network than the one that passed the check of this step.",
            "Its accuracy would say nothing about this one. If you have run the cell of the "
            "network again, make the trainer anew and train it.",
            TRAINING[step],
        )
    probabilities, error = run(trainer.predict, x_test)
    if error:
        raise raised("predict", error, Section.USE)
    probabilities, y_test = np.asarray(probabilities), np.asarray(y_test)
    if probabilities.ndim != 2 or len(probabilities) != len(y_test):
        raise Mistake(
            f"predict returns shape {probabilities.shape} for {len(y_test)} test images; "
            f"expected ({len(y_test)}, {CLASSES}).",
            "Without one row per image there is no accuracy. Run checks.predict(Trainer) first.",
            Section.USE,
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
    session.accuracies[step] = reached
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
