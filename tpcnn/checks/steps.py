"""The checks of one step: _train_step and _eval_step."""

import re

import keras
import numpy as np
import tensorflow as tf

from tpcnn.checks import session
from tpcnn.checks.mistakes import (
    Mistake,
    Section,
    blank,
    check,
    is_blank,
    raised,
    run,
    summary,
)
from tpcnn.checks.spies import WatchedTrainer, images
from tpcnn.models import CLASSES

BATCH_SIZE = 64
CLOSE = 1e-3  # relative; the graphics processors' rounding is far below what a mistake does


@check
def train_step(trainer_class) -> None:
    """Check `_train_step` of the student's Trainer by what one step does to a tiny network.

    Args:
        trainer_class: the student's class, not an object made from it.

    Raises:
        Mistake: see its message.
    """
    session.passed.pop("train_step", None)
    find_train_step_mistake(trainer_class)
    session.passed["train_step"] = trainer_class
    print("Right: one call of _train_step is one step against the gradient, and it is counted.")


@check
def eval_step(trainer_class) -> None:
    """Check `_eval_step` of the student's Trainer: it must measure and change nothing.

    Args:
        trainer_class: the student's class, not an object made from it.

    Raises:
        Mistake: see its message.
    """
    session.passed.pop("eval_step", None)
    find_eval_step_mistake(trainer_class)
    session.passed["eval_step"] = trainer_class
    print("Right: _eval_step measures on the network as it is, and leaves it so.")


def find_train_step_mistake(trainer_class) -> None:
    """Raise the first mistake of `_train_step`; `fit` needs it to be right, too."""
    for softmax in (True, False):
        _train_one_step(WatchedTrainer(trainer_class, softmax=softmax, batch_norm=True))


def find_eval_step_mistake(trainer_class) -> None:
    """Raise the first mistake of `_eval_step`; `fit` needs it to be right, too."""
    for softmax in (True, False):
        _eval_one_step(WatchedTrainer(trainer_class, softmax=softmax, batch_norm=True, dropout=0.5))


def _train_one_step(watched):
    what = "_train_step"
    x, y = (tf.constant(array) for array in images(BATCH_SIZE))
    y = tf.cast(y, tf.int32)
    weights = watched.model.get_weights()
    right = _pass(watched, weights, x, y)
    before = _trainable(watched)
    watched.notes.clear()

    _, error = run(getattr(watched.trainer, what, None), x, y)
    _find_blank_or_error(watched, what, error, Section.STEP)
    moved = _trainable(watched) - before
    _find_mistake_in_the_move(
        watched,
        moved,
        right,
        lambda **how: _pass(watched, weights, x, y, **how),
        _statistics_differ(watched, weights),
    )
    after = watched.model.get_weights()
    _find_mistake_in_metrics(
        watched,
        what,
        "train",
        right,
        lambda: [
            _pass(watched, weights, x, y, training=False),
            _pass(watched, after, x, y),
            _pass(watched, after, x, y, training=False),
        ],
    )


def _eval_one_step(watched):
    what = "_eval_step"
    x, y = (tf.constant(array) for array in images(BATCH_SIZE))
    y = tf.cast(y, tf.int32)
    weights = watched.model.get_weights()
    right = _pass(watched, weights, x, y, training=False)
    before = _trainable(watched)
    watched.notes.clear()

    _, error = run(getattr(watched.trainer, what, None), x, y)
    _find_blank_or_error(watched, what, error, Section.LOOP)
    if np.any(_trainable(watched) != before):
        raise Mistake(
            "_eval_step changes the weights.",
            "The network learns from the validation images, so they can no longer judge it. Leave "
            "the tape and the optimizer out of _eval_step.",
            Section.LOOP,
        )
    if _statistics_differ(watched, weights) or any(
        batch.training for batch in watched.notes.batches
    ):
        raise Mistake(
            "_eval_step calls the model with training=True.",
            "The batch-norm statistics change with the validation images, and dropout switches "
            "units off while you measure. Call the model with training=False.",
            Section.TWO_MODES,
        )
    loss = float(watched.trainer.val_loss.result())
    if not _near(loss, right["loss"]):
        misread = _pass(watched, weights, x, y, training=False, misread=True)
        if _near(loss, misread["loss"]):
            raise _misread_outputs(watched, what)
    _find_mistake_in_metrics(watched, what, "val", right, list)


def _pass(watched, weights, x, y, training=True, misread=False) -> dict:
    """Compute one pass the right way, or in a wrong way that is wanted; the model stays as it is.

    Args:
        weights: of the model in this pass.
        misread: take probabilities for logits, or logits for probabilities.

    Returns:
        The gradient in one row, the loss and the accuracy.
    """
    own_weights = watched.model.get_weights()
    watched.model.set_weights(weights)
    with tf.GradientTape() as tape:
        predictions = watched.model(x, training=training)
        from_logits = watched.softmax if misread else not watched.softmax
        losses = keras.losses.sparse_categorical_crossentropy(y, predictions, from_logits)
        loss = tf.reduce_mean(losses)
    gradients = tape.gradient(loss, watched.model.trainable_variables)
    watched.model.set_weights(own_weights)
    return {
        "gradient": np.concatenate([g.numpy().ravel() for g in gradients]),
        "loss": float(loss),
        "accuracy": float(np.mean(predictions.numpy().argmax(axis=1) == y.numpy())),
    }


def _trainable(watched) -> np.ndarray:
    return np.concatenate([v.numpy().ravel() for v in watched.model.trainable_variables])


def _statistics_differ(watched, weights) -> bool:
    statistics = [
        (old, new)
        for old, new, variable in zip(
            weights, watched.model.get_weights(), watched.model.weights, strict=True
        )
        if "moving" in variable.path
    ]
    return any(not np.array_equal(old, new) for old, new in statistics)


def _find_blank_or_error(watched, what, error, section):
    """Raise what can be said before looking at any number."""
    notes = watched.notes
    if not callable(getattr(watched.trainer, what, None)):
        raise Mistake(
            f"your Trainer has no method {what}(x, y).",
            "fit calls it for each batch. Look for a misspelt name, or a wrong indentation.",
            section,
        )
    if is_blank(error) or (error is None and not notes.model_called):
        raise blank(what, section)
    if watched.loss.swapped():
        raise Mistake(
            f"{what} swaps the arguments of the loss function.",
            "It takes the true labels first, then the predictions: "
            "self.loss_function(y, predictions). The other way round it measures nonsense, or "
            "stops.",
            Section.LOSS,
        )
    prefix = "train" if what == "_train_step" else "val"
    _find_wrong_metric_arguments(notes, what, prefix)
    no_gradient = notes.loss_shapes and not notes.gradient_taken
    if error and no_gradient and re.search("No gradients|None", summary(error)):
        raise _outside_the_tape()
    if error:
        raise raised(what, error, section)


def _outside_the_tape() -> Mistake:
    return Mistake(
        "_train_step computes the prediction or the loss outside the tape.",
        "The tape notes only what happens inside its `with` block. It has no way back from the "
        "loss to the weights, so there is no gradient and nothing is learned. Indent both lines.",
        Section.GRADIENT,
    )


def _find_wrong_metric_arguments(notes, what, prefix):
    for name, shapes in notes.metric_calls:
        ranks = [len(shape) for shape in shapes]
        if name.endswith("accuracy") and ranks[:1] == [2] and ranks[1:2] == [1]:
            raise Mistake(
                f"{what} swaps the arguments of {name}.update_state.",
                "It takes the true labels first, then the predictions. The accuracy that you "
                "follow is wrong otherwise, while the network learns as it should.",
                Section.LOOP,
            )
        if name.endswith("accuracy") and ranks == [1, 1]:
            raise Mistake(
                f"{what} gives {name} the predicted classes.",
                f"It wants the predictions of all classes, shape (n, {CLASSES}), and finds the "
                "largest itself: leave argmax out.",
                Section.LOOP,
            )
        if name.endswith("loss") and (ranks[:1] == [2] or (len(ranks) > 1 and 2 in ranks)):
            raise Mistake(
                f"{what} calls {name}.update_state with the wrong arguments.",
                "It is a mean: give it the loss of the batch, nothing else. The curve of the loss "
                "shows something else otherwise.",
                Section.LOOP,
            )


def _find_mistake_in_the_move(watched, moved, right, other_pass, statistics_moved):
    """Compare how far the weights went with how far one right step would have gone."""
    notes = watched.notes
    rate = float(watched.optimizer.learning_rate.numpy())
    steps = int(watched.optimizer.iterations.numpy())

    def step(one_pass):
        return -rate * one_pass["gradient"]

    right = step(right)
    if not np.any(moved):
        wrong = (
            "_train_step computes the gradient and does not apply it"
            if notes.gradient_taken
            else "_train_step takes no step: it computes no gradient"
        )
        raise Mistake(
            f"{wrong}. The weights are the same as before.",
            "The network never changes, and its accuracy stays that of a guess. Give gradients "
            "and weights to self.optimizer.",
            Section.STEP,
        )
    if _same(moved, right):
        if not steps:
            raise Mistake(
                "_train_step changes the weights by itself, without self.optimizer.",
                "Whatever optimizer you choose, such as Adam, would have no effect.",
                Section.STEP,
            )
        return
    if steps > 1 or _same(moved, 2 * right):
        raise Mistake(
            "_train_step applies the gradient twice.",
            "Each step goes twice as far as the learning rate says: training becomes unstable.",
            Section.STEP,
        )
    if not statistics_moved or _same(moved, step(other_pass(training=False))):
        raise Mistake(
            "_train_step calls the model without training=True.",
            "Dropout and batch normalisation then behave as in prediction: dropout does nothing, "
            "and the running averages of batch normalisation never move.",
            Section.TWO_MODES,
        )
    if _same(moved, step(other_pass(misread=True))):
        raise _misread_outputs(watched, "_train_step")
    if not notes.loss_shapes:
        raise Mistake(
            "_train_step does not use self.loss_function.",
            "Your Trainer would ignore the loss that it is given.",
            Section.LOSS,
        )
    factor = float(moved @ right / (right @ right))
    if _same(moved, factor * right):
        wrong = (
            "in the wrong direction: uphill"
            if factor < 0
            else f"the right way, but {factor:.3g} times as far as it should"
        )
        raise Mistake(
            f"_train_step moves the weights {wrong}.",
            "The learning rate no longer says how far a step goes. Take the gradient of the mean "
            "loss of the batch, and let the optimizer do the step.",
            Section.STEP,
        )
    raise Mistake(
        "_train_step moves the weights, but not against the gradient of the loss.",
        "Take the gradient of self.loss_function(y, predictions) with respect to "
        "self.model.trainable_variables, and give both to the optimizer in the same order.",
        Section.STEP,
    )


def _misread_outputs(watched, what) -> Mistake:
    if watched.softmax:
        return Mistake(
            f"{what} takes probabilities for logits: softmax is applied twice, by the model and "
            "then again (from_logits=True, or tf.nn.softmax).",
            "Softmax twice flattens the probabilities: the gradient is small and training slow. "
            "Use self.loss_function(y, predictions) as it is.",
            Section.SCORES,
        )
    return Mistake(
        f"{what} takes logits for probabilities (from_logits=False).",
        "Logits are any numbers; their logarithm is meaningless, and the loss becomes NaN or "
        "stands still. Use self.loss_function(y, predictions) as it is: it knows from_logits.",
        Section.SCORES,
    )


def _find_mistake_in_metrics(watched, what, prefix, right, stray_passes):
    other_prefix = "val" if prefix == "train" else "train"
    updated = {name for name, _ in watched.notes.metric_calls}
    for kind in ("loss", "accuracy"):
        name, other = f"{prefix}_{kind}", f"{other_prefix}_{kind}"
        if other in updated:
            raise Mistake(
                f"{what} updates {other}"
                + (f" instead of {name}." if name not in updated else "."),
                "Training and validation are mixed up in the curves: you cannot see overfitting "
                "any more.",
                Section.LOOP,
            )
        if name not in updated:
            raise Mistake(
                f"{what} does not update {name}.",
                f"At the end of an epoch there is nothing to report: {name} stays 0.",
                Section.LOOP,
            )
        value = float(getattr(watched.trainer, name).result())
        if _near(value, right[kind]):
            continue
        if any(_near(value, stray[kind]) for stray in stray_passes()):
            raise Mistake(
                f"{what} updates {name} with a prediction that is not the step's: one made "
                "before or after it, or without training=True.",
                "The curve shows another network than the one that takes the step, and each image "
                "is computed twice. Update with the loss and the predictions of the tape.",
                Section.LOOP,
            )
        raise Mistake(
            f"{what} updates {name} with the wrong arguments: it says {value:.4g} where the "
            f"{kind} of the batch is {right[kind]:.4g}.",
            f"The curve of the {kind} shows something else. {prefix}_loss gets the loss, "
            f"{prefix}_accuracy gets the labels and the predictions.",
            Section.LOOP,
        )


def _near(a, b) -> bool:
    return bool(np.isclose(a, b, rtol=CLOSE, atol=1e-6))


def _same(a, b) -> bool:
    """Whether two changes of all weights are equal, up to rounding."""
    return bool(np.linalg.norm(a - b) <= 0.01 * np.linalg.norm(b))
