"""The check of fit: which images pass, in which order, and what the history says of them."""

import inspect
from itertools import chain, groupby

import numpy as np

from tpcnn.checks import session
from tpcnn.checks.mistakes import Mistake, Section, blank, check, is_blank, raised, run
from tpcnn.checks.spies import WatchedTrainer, images
from tpcnn.checks.steps import find_eval_step_mistake, find_train_step_mistake

# Prime numbers: whatever the size of a batch, the last one is smaller.
N_TRAIN, N_VAL = 1103, 211
EPOCHS = 3
KEYS = ("loss", "accuracy", "val_loss", "val_accuracy")
CLOSE = 1e-3  # relative


@check
def fit(trainer_class) -> None:
    """Check `fit` of the student's Trainer on 1103 images, for 3 epochs; find the bonus.

    `fit` calls the two steps, so their mistakes are looked for first. Any batch size is right. The
    whole set as one batch is right as well, without the bonus; so a batch size of more than 1103
    images that cannot be changed by an argument ``batch_size`` earns none.

    Args:
        trainer_class: the student's class, not an object made from it.

    Raises:
        Mistake: see its message.
    """
    session.passed.pop("fit", None)
    session.bonuses["mini-batches"].discard("fit")
    if session.passed.get("train_step") is not trainer_class:
        find_train_step_mistake(trainer_class)
    if session.passed.get("eval_step") is not trainer_class:
        find_eval_step_mistake(trainer_class)

    watched = WatchedTrainer(trainer_class, learning_rate=0.1)
    x, y = images(N_TRAIN)
    x_val, y_val = images(N_VAL, first_id=N_TRAIN)
    labels = np.concatenate([y, y_val]).astype(int)  # before fit can change their order
    method = getattr(watched.trainer, "fit", None)
    if not callable(method):
        raise Mistake(
            "your Trainer has no method fit.",
            "Look for a misspelt name, or a wrong indentation.",
            Section.LOOP,
        )
    takes_size = "batch_size" in inspect.signature(method).parameters
    options = {"batch_size": 64} if takes_size else {}
    _, error = run(method, x, y, x_val, y_val, epochs=EPOCHS, verbose=True, **options)
    if is_blank(error) or (not error and not watched.notes.model_called):
        raise blank("fit", Section.LOOP)
    if error:
        raise raised("fit", error, Section.LOOP)

    batches = [batch for batch in watched.notes.batches if batch.y_true is not None]
    _find_foreign_labels(batches, labels)
    epochs = _epochs(batches)
    if not any(name.startswith("train") for name, _ in watched.notes.metric_calls):
        raise Mistake(
            "fit trains, but not by self._train_step.",
            "The step that you have written is without use, and the metrics count nothing. Call "
            "self._train_step for each batch, and self._eval_step after the last one.",
            Section.LOOP,
        )
    for training, _ in epochs:
        _find_missing_images(training)
    for _, validation in epochs:
        _find_missing_validation_images(validation)
    _find_mistake_in_history(watched.trainer, epochs)
    steps, size = len(epochs[0][0]), max(len(batch.ids) for batch in epochs[0][0])
    if steps > 1:
        _find_empty_batch(trainer_class, size, options)

    session.passed["fit"] = trainer_class
    orders = [np.concatenate([batch.ids for batch in training]) for training, _ in epochs]
    if steps > 1 and np.array_equal(orders[0], orders[1]):
        print(
            f"Right: fit sees each image once per epoch, in {steps} mini-batches.\n"
            "The bonus is for a new order in each epoch; here it is always the same."
        )
    elif steps > 1:
        session.bonuses["mini-batches"].add("fit")
        print(f"Right: fit sees each image once per epoch, in {steps} mini-batches (bonus earned).")
    else:
        print(
            "Right: fit sees each image once per epoch, all of them in one batch.\n"
            "The bonus is for mini-batches: many small steps get further than one large one."
        )


def _find_empty_batch(trainer_class, size, options):
    """Let fit train on two whole batches: a loop that goes one step too far shows only there."""
    watched = WatchedTrainer(trainer_class, learning_rate=0.1)
    x, y = images(2 * size)
    _, error = run(watched.trainer.fit, x, y, x, y, epochs=1, verbose=False, **options)
    if any(len(batch.ids) == 0 for batch in watched.notes.batches):
        raise _empty_batch("where the batch size divides the number of images")
    if error:
        raise raised("fit", error, Section.LOOP)


def _empty_batch(where) -> Mistake:
    return Mistake(
        f"fit makes an empty batch {where}.",
        "The mean over no image is NaN: it spoils the loss, and batch normalisation for good. Let "
        "the loop end where the images do, range(0, len(x_train), batch_size), and each batch "
        "where the next one begins, order[start : start + batch_size].",
        Section.LOOP,
    )


def _find_foreign_labels(batches, labels):
    for batch in batches:
        if not len(batch.ids):
            raise _empty_batch("in an epoch")
        wrong = np.mean(labels[batch.ids] != batch.y_true)
        if wrong:
            which = "training" if batch.ids[0] < N_TRAIN else "validation"
            raise Mistake(
                f"fit gives images the labels of others: in a {which} batch, {wrong:.0%} of the "
                "labels do not belong to their images.",
                "If you shuffle the images, shuffle the labels in the same order; if you cut a "
                "batch, cut both at the same place. Otherwise the network learns wrong answers, "
                "and its accuracy stays that of a guess. (Or does fit change the pixels? It must "
                "pass the images on as they are.)",
                Section.SHUFFLE,
            )


def _epochs(batches) -> list[tuple[list, list]]:
    """Return for each epoch its training and its validation batches, if they come in that order."""
    if any(batch.training and np.any(batch.ids >= N_TRAIN) for batch in batches):
        raise Mistake(
            "fit trains on the validation images.",
            "They can no longer judge the network, which may know them by heart. Give them to "
            "_eval_step only.",
            Section.SPLIT,
        )
    phases = [(key, list(group)) for key, group in groupby(batches, lambda b: b.training)]
    kinds = [training for training, _ in phases]
    n_training, n_validation = kinds.count(True), kinds.count(False)
    visits = sum(len(batch.ids) for batch in batches if batch.training)
    if not n_training:
        raise Mistake(
            "fit trains on no image: _train_step is never called.",
            "The weights stay as they are.",
            Section.LOOP,
        )
    if not n_validation:
        raise Mistake(
            "fit has no validation pass: _eval_step is never called.",
            "The curves of the validation are missing, so you cannot see overfitting. After the "
            "last batch of each epoch, give the validation images to _eval_step.",
            Section.LOOP,
        )
    if not kinds[0] and kinds[-1]:
        raise Mistake(
            "fit validates before it trains, in each epoch.",
            "The validation curve then shows the network as it was before the epoch, and the "
            "trained network is never measured. Put the validation behind the batches.",
            Section.LOOP,
        )
    if not kinds[0]:  # one more look before the first epoch harms nothing
        phases = phases[1:]
    if n_training > EPOCHS and visits <= (EPOCHS + 0.5) * N_TRAIN:
        raise Mistake(
            f"fit runs {n_training} validation passes in {EPOCHS} epochs: one in the middle of "
            "an epoch, or after each batch.",
            "That is slow, and what you note is not what the trained network does. Take the "
            "validation out of the loop over the batches.",
            Section.LOOP,
        )
    if n_training == 1 and (EPOCHS - 1) * N_TRAIN <= visits <= EPOCHS * N_TRAIN:
        raise Mistake(
            f"fit validates once after all epochs, instead of after each of the {EPOCHS}.",
            "You cannot see when the validation turns. Put the validation into the loop over the "
            "epochs.",
            Section.LOOP,
        )
    if n_training != EPOCHS:
        raise Mistake(
            f"fit runs {n_training} epoch{'s' if n_training != 1 else ''} where {EPOCHS} are "
            "asked for.",
            "Your results would belong to another length of training than you say. "
            "range(epochs) counts from 0 to epochs - 1, so it gives as many as asked for.",
            Section.LOOP,
        )
    return [(phases[i][1], phases[i + 1][1]) for i in range(0, len(phases), 2)]


def _find_missing_images(batches):
    ids = np.concatenate([batch.ids for batch in batches])
    seen, visits, largest = len(set(ids)), len(ids), max(len(batch.ids) for batch in batches)
    if seen == N_TRAIN == visits:
        return
    if seen <= largest and seen < N_TRAIN:
        raise Mistake(
            f"fit uses only one batch in each epoch, {seen} of {N_TRAIN} images.",
            "All other images are never learned from. Go on until the last image: "
            "`for start in range(0, len(x_train), batch_size)`.",
            Section.LOOP,
        )
    if seen == visits and N_TRAIN - seen < largest:
        raise Mistake(
            f"fit drops the last, smaller batch: {N_TRAIN - seen} of {N_TRAIN} images are left "
            "out.",
            "Images are lost in each epoch. A slice beyond the end of an array is simply "
            "shorter, and the number of steps is rounded up; in tf.data, leave out "
            "drop_remainder.",
            Section.MEANS,
        )
    if seen < N_TRAIN:
        raise Mistake(
            f"fit leaves out {N_TRAIN - seen} of {N_TRAIN} images in an epoch.",
            "An epoch is one pass through all training images. Check where each batch starts and "
            "ends, and that an order is drawn once per epoch, without repetition.",
            Section.LOOP,
        )
    raise Mistake(
        f"fit shows {visits - seen} images more than once in an epoch.",
        "An epoch is one pass through all training images, each once. Check where each batch "
        "starts and ends.",
        Section.LOOP,
    )


def _find_missing_validation_images(batches):
    ids = np.concatenate([batch.ids for batch in batches])
    if np.any(ids < N_TRAIN):
        raise Mistake(
            "fit validates on training images.",
            "The network may know them by heart, so overfitting stays hidden. Give x_val and "
            "y_val to _eval_step.",
            Section.SPLIT,
        )
    if len(set(ids)) != N_VAL or len(ids) != N_VAL:
        raise Mistake(
            f"the validation pass of fit sees {len(set(ids))} of {N_VAL} images, {len(ids)} in "
            "all.",
            "The validation accuracy is that of a part of the images, or counts some twice. Show "
            "each of them once, the last batch included.",
            Section.LOOP,
        )


def _find_mistake_in_history(trainer, epochs):
    history = getattr(trainer, "history", None)
    for key in KEYS:
        values = history.get(key) if isinstance(history, dict) else None
        if values is not None and not hasattr(values, "__len__"):
            raise Mistake(
                f"history[{key!r}] is one {type(values).__name__} and no list.",
                "Each epoch overwrites the one before it. Append to the list that __init__ makes: "
                f"self.history[{key!r}].append(...).",
                Section.LOOP,
            )
        if values is None or len(values) != EPOCHS:
            n = 0 if values is None else len(values)
            raise Mistake(
                f"history[{key!r}] has {n} value{'s' if n != 1 else ''} after {EPOCHS} epochs.",
                "The curves are drawn from self.history: append one number per epoch to each of "
                "its four lists.",
                Section.LOOP,
            )
        noted = np.array([float(value) for value in values])
        kind = key.removeprefix("val_")
        passes = [epoch[key.startswith("val_")] for epoch in epochs]
        truths = [_truths(batches, kind) for batches in passes]
        if all(map(_among, noted, truths)):
            continue
        raise _history_mistake(key, noted, passes, kind, truths)


def _truths(batches, kind) -> tuple[float, float]:
    """Return the mean over the images, and the mean over the means of the batches."""
    values = [batch.losses if kind == "loss" else batch.hits for batch in batches]
    return float(np.mean(np.concatenate(values))), float(np.mean([np.mean(v) for v in values]))


def _among(value, truths) -> bool:
    return any(np.isclose(value, truth, rtol=CLOSE, atol=1e-6) for truth in truths)


def _history_mistake(key, noted, passes, kind, truths) -> Mistake:
    prefix = "val" if key.startswith("val_") else "train"
    metric = f"{prefix}_{kind}"
    if not noted.any():
        return Mistake(
            f"history[{key!r}] holds only zeros.",
            f"{metric} is reset before its result is read. Read it first, or reset at the start "
            "of the epoch.",
            Section.LOOP,
        )
    so_far = [list(chain(*passes[: epoch + 1])) for epoch in range(EPOCHS)]
    if all(_among(v, _truths(batches, kind)) for v, batches in zip(noted, so_far, strict=True)):
        return Mistake(
            f"{metric} is not reset between the epochs: history[{key!r}] is the mean over all "
            "epochs so far.",
            "The curve lags behind and hides what the network does now. Call reset_state() on "
            "each metric at the start of each epoch.",
            Section.LOOP,
        )
    last = [_truths(batches[-1:], kind) for batches in passes]
    if all(map(_among, noted, last)):
        return Mistake(
            f"history[{key!r}] is that of the last batch only: {metric} is reset at each batch.",
            "The curve jumps with the luck of one batch. Reset once, at the start of the epoch, "
            "outside the loop over the batches.",
            Section.LOOP,
        )
    if all(_among(100 * truth[0], (v,)) for v, truth in zip(noted, truths, strict=True)):
        return Mistake(
            f"history[{key!r}] is in percent.",
            "plot_history expects shares from 0 to 1 and multiplies them by 100 itself.",
            Section.LOOP,
        )
    if all(map(_among, noted[1:], truths[:-1])):
        return Mistake(
            f"history[{key!r}] is one epoch late: {metric} is read before the pass that it "
            "measures.",
            "The curve is shifted against the others. Read the metrics at the end of the epoch, "
            "after training and validation.",
            Section.LOOP,
        )
    said = ", ".join(f"{value:.4g}" for value in noted)
    true = ", ".join(f"{truth[0]:.4g}" for truth in truths)
    return Mistake(
        f"history[{key!r}] says {said}; the epochs had {true}.",
        f"The curve shows something else. Append float(self.{metric}.result()) at the end of "
        "each epoch, and reset each metric at its start.",
        Section.LOOP,
    )
