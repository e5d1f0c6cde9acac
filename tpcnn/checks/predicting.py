"""The check of predict."""

import numpy as np
import tensorflow as tf

from tpcnn.checks import session
from tpcnn.checks.mistakes import Mistake, Section, blank, check, is_blank, raised, run
from tpcnn.checks.spies import WatchedTrainer, images
from tpcnn.models import CLASSES

FEW = 211
# Prime, so that the last batch is smaller than the others; more than any sensible batch.
MANY = 5003


@check
def predict(trainer_class) -> None:
    """Check `predict` of the student's Trainer on 211, then on 5003 images.

    That the 5003 images must not pass through the model all at once is how it judges the memory.

    Args:
        trainer_class: the student's class, not an object made from it.

    Raises:
        Mistake: see its message.
    """
    session.passed.pop("predict", None)
    watched = WatchedTrainer(trainer_class, batch_norm=True, dropout=0.5)
    if not callable(getattr(watched.trainer, "predict", None)):
        raise Mistake(
            "your Trainer has no method predict(x).",
            "Look for a misspelt name, or a wrong indentation.",
            Section.USE,
        )
    weights = watched.model.get_weights()
    x, _ = images(FEW)
    right = watched.model(x, training=False).numpy()
    answer = _answer(watched, x)
    if watched.notes.batches and any(batch.training for batch in watched.notes.batches):
        raise Mistake(
            "predict calls the model with training=True, so dropout is active.",
            "The answers change from call to call and are worse than need be, and batch "
            "normalisation takes the images that it is asked about for its statistics. Call the "
            "model with training=False.",
            Section.TWO_MODES,
        )
    _find_wrong_shape(answer, FEW)
    adds_softmax = _find_wrong_values(answer, right)
    if any(map(np.any, (old != new for old, new in _pairs(weights, watched.model)))):
        raise Mistake(
            "predict changes the model.",
            "Who only asks for predictions must get the same ones each time.",
            Section.USE,
        )

    x, _ = images(MANY)
    answer = _answer(watched, x)
    _find_wrong_shape(answer, MANY)
    if max(len(batch.ids) for batch in watched.notes.batches) == MANY:
        raise Mistake(
            f"the memory that predict needs grows with the number of images: all {MANY} passed "
            "through the model at once.",
            "Each layer keeps its numbers for all images at the same time: with a large network "
            "and the whole test set, the memory of a GPU runs out. Go through the images batch by "
            "batch and join the answers with tf.concat.",
            Section.USE,
        )
    right = np.concatenate(
        [watched.model(part, training=False).numpy() for part in np.array_split(x, 10)]
    )
    _find_wrong_values(answer, right)
    session.passed["predict"] = trainer_class
    print("Right: predict gives one row of probabilities per image, in order, batch by batch.")
    if adds_softmax:
        print("Note: it applies softmax itself, so let your models end without one (logits).")


def _answer(watched, x):
    watched.notes.clear()
    answer, error = run(watched.trainer.predict, x)
    if not error and answer is None and watched.notes.model_called:
        raise Mistake(
            "predict computes and returns nothing (None): its `return` is missing.",
            "Whoever calls it gets no probabilities. End it with return ...",
            Section.USE,
        )
    if is_blank(error) or (not error and answer is None):
        raise blank("predict", Section.USE)
    if answer is Ellipsis:
        raise blank("predict", Section.USE)
    if error:
        raise raised("predict", error, Section.USE)
    if isinstance(answer, list) and {np.ndim(part) for part in answer} == {2}:
        raise Mistake(
            "predict has the wrong shape: it returns a list of batches.",
            f"Whoever calls it expects one array, shape (n, {CLASSES}): join the batches with "
            "tf.concat.",
            Section.USE,
        )
    return np.asarray(answer)


def _pairs(weights, model):
    return zip(weights, model.get_weights(), strict=True)


def _find_wrong_shape(answer, n):
    if answer.shape == (n, CLASSES):
        return
    if answer.shape in ((n,), (n, 1)):
        raise Mistake(
            f"predict returns the predicted classes (argmax), shape {answer.shape}, and not "
            "probabilities.",
            "You could no longer see how sure the network is. Return all ten probabilities; "
            "whoever needs the class takes np.argmax(..., axis=1).",
            Section.USE,
        )
    if answer.ndim == 2 and answer.shape[1] == CLASSES and len(answer) < n:
        effect = "Images are without an answer: go on to the last batch, which may be smaller."
    else:
        effect = "Whoever calls predict expects one row per image and one column per class."
    raise Mistake(
        f"predict has the wrong shape: {answer.shape} for {n} images, expected ({n}, {CLASSES}).",
        effect,
        Section.USE,
    )


def _find_wrong_values(answer, right) -> bool:
    """Raise if the values are wrong; otherwise return whether softmax was applied to them."""
    if np.allclose(answer, right, atol=1e-4):
        return False
    # Right for models that end in logits, which is another style.
    if np.allclose(answer, tf.nn.softmax(right), atol=1e-4):
        return True

    if np.allclose(np.sort(answer, axis=0), np.sort(right, axis=0), atol=1e-4):
        raise Mistake(
            "predict returns the answers in the wrong order.",
            "They no longer belong to the images: the accuracy looks like that of a guess. Leave "
            "out any shuffling, and join the batches in the order in which you cut them.",
            Section.USE,
        )
    if np.array_equal(answer, answer.astype(int)):
        raise Mistake(
            "predict returns whole numbers and not probabilities.",
            "You could no longer see how sure the network is. Return what softmax gives.",
            Section.USE,
        )
    raise Mistake(
        "predict returns other numbers than the probabilities that the model gives.",
        "Return the outputs of self.model(x, training=False) as they are.",
        Section.USE,
    )
