"""The lab's self-checks: right solutions of many styles pass, each planted mistake is named."""

import inspect
import linecache
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT
from IPython.core.interactiveshell import InteractiveShell
from keras import layers

import tpcnn
from tpcnn import checks
from tpcnn.checks import session
from tpcnn.checks.mistakes import Section
from tpcnn.lab_sheet import REQUIRED_ACCURACY

RIGHT = """
class Trainer:
    def __init__(self, model, loss_function, optimizer):
        self.model, self.loss_function, self.optimizer = model, loss_function, optimizer
        self.train_loss = keras.metrics.Mean()
        self.train_accuracy = keras.metrics.SparseCategoricalAccuracy()
        self.val_loss = keras.metrics.Mean()
        self.val_accuracy = keras.metrics.SparseCategoricalAccuracy()
        self.history = {"loss": [], "accuracy": [], "val_loss": [], "val_accuracy": []}

    def fit(self, x_train, y_train, x_val, y_val, epochs, verbose=True):
        size = 128
        for epoch in range(epochs):
            self.train_loss.reset_state()
            self.train_accuracy.reset_state()
            self.val_loss.reset_state()
            self.val_accuracy.reset_state()
            order = np.random.permutation(len(x_train))
            for start in range(0, len(x_train), size):
                batch = order[start : start + size]
                self._train_step(x_train[batch], y_train[batch])
            for start in range(0, len(x_val), size):
                self._eval_step(x_val[start : start + size], y_val[start : start + size])
            self.history["loss"].append(float(self.train_loss.result()))
            self.history["accuracy"].append(float(self.train_accuracy.result()))
            self.history["val_loss"].append(float(self.val_loss.result()))
            self.history["val_accuracy"].append(float(self.val_accuracy.result()))
            if verbose:
                print(f"Epoch {epoch + 1}/{epochs}")

    def predict(self, x):
        batches = []
        for start in range(0, len(x), 256):
            batches.append(self.model(x[start : start + 256], training=False))
        return tf.concat(batches, axis=0)

    @tf.function
    def _train_step(self, x, y):
        with tf.GradientTape() as tape:
            predictions = self.model(x, training=True)
            loss = self.loss_function(y, predictions)
        gradients = tape.gradient(loss, self.model.trainable_variables)
        self.optimizer.apply(gradients, self.model.trainable_variables)
        self.train_loss.update_state(loss)
        self.train_accuracy.update_state(y, predictions)

    @tf.function
    def _eval_step(self, x, y):
        predictions = self.model(x, training=False)
        loss = self.loss_function(y, predictions)
        self.val_loss.update_state(loss)
        self.val_accuracy.update_state(y, predictions)
"""
TRAINER_CHECKS = ("train_step", "eval_step", "fit", "predict")


@pytest.fixture(autouse=True)
def new_session():
    session.forget()
    yield
    session.forget()


def student(source: str) -> type:
    """Return the class that a notebook cell with this source defines."""
    name = f"<cell {hash(source)}>"
    # As IPython does, so that TensorFlow finds the source.
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    namespace = {"keras": keras, "np": np, "tf": tf, "__name__": "cell"}
    exec(compile(source, name, "exec"), namespace)
    return namespace["Trainer"]


def changed(*replacements: tuple[str, str]) -> type:
    """Return the right Trainer with these changes."""
    source = RIGHT
    for old, new in replacements:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    return student(source)


def first_complaint(trainer_class, checked=TRAINER_CHECKS) -> tuple[str, str] | None:
    """Run the checks in the order of the lab; return which complains first, and its message."""
    for name in checked:
        try:
            getattr(checks, name)(trainer_class)
        except checks.Mistake as mistake:
            return name, str(mistake)
    return None


def changed_methods(trainer_class) -> list[str]:
    """Return the checks whose verdict is not known already from the right solution."""
    right = student(RIGHT)
    same = [
        step
        for step in ("train_step", "eval_step")
        if inspect.getsource(getattr(trainer_class, f"_{step}").python_function)
        == inspect.getsource(getattr(right, f"_{step}").python_function)
    ]
    session.passed.update({step: trainer_class for step in same})
    return [check for check in TRAINER_CHECKS if check not in same]


def assert_complaint(trainer_class, check, message):
    name, said = first_complaint(trainer_class, changed_methods(trainer_class)) or ("no check", "")
    assert (name, bool(re.search(message, said))) == (check, True), f"{name}: {said}"
    wrong, effect, section = said.split("\n")
    assert wrong.startswith("Not right yet: ")
    assert len(effect) > 20
    assert section.startswith("See the chapter *")


# Each: what is replaced by what, in the right solution, and what the message must say.
PREDICT = "            predictions = self.model(x, training=True)\n"
LOSS = "            loss = self.loss_function(y, predictions)\n        gradients"
GRADIENTS = "        gradients = tape.gradient(loss, self.model.trainable_variables)\n"
APPLY = "        self.optimizer.apply(gradients, self.model.trainable_variables)\n"
TRAIN_LOSS = "        self.train_loss.update_state(loss)\n"
TRAIN_ACCURACY = "        self.train_accuracy.update_state(y, predictions)\n"
TAPE = "        with tf.GradientTape() as tape:\n"
STEP_BODY = RIGHT[RIGHT.index(TAPE) : RIGHT.index("    @tf.function\n    def _eval_step")]
OWN_LOSS = "            loss = keras.losses.SparseCategoricalCrossentropy({})(y, predictions)\n"

TRAIN_STEP_MISTAKES = {
    "blank": ([(STEP_BODY, "        ...\n")], "_train_step is still blank"),
    "blank, by an error": (
        [(STEP_BODY, "        raise NotImplementedError\n")],
        "_train_step is still blank",
    ),
    "half blank": (
        [(PREDICT, "            predictions = ...\n")],
        "_train_step is still blank|`loss = self.loss_function",
    ),
    "training=True forgotten": ([("x, training=True", "x")], "without training=True"),
    "training=False": ([("training=True", "training=False")], "without training=True"),
    "prediction outside the tape": (
        [(TAPE + PREDICT, PREDICT[4:] + TAPE)],
        "outside the tape",
    ),
    "loss outside the tape": (
        [(LOSS, LOSS[4:])],
        "outside the tape",
    ),
    "gradient not applied": ([(APPLY, "")], "does not apply it"),
    "no gradient": (
        [(TAPE, "        if True:\n"), (GRADIENTS, ""), (APPLY, "")],
        "computes no gradient",
    ),
    "gradient applied twice": ([(APPLY, 2 * APPLY)], "applies the gradient twice"),
    "two steps in one": ([(STEP_BODY, 2 * STEP_BODY)], "applies the gradient twice"),
    "without the optimizer": (
        [
            (
                APPLY,
                "        for v, g in zip(self.model.trainable_variables, gradients):\n"
                "            v.assign_sub(0.5 * g)\n",
            )
        ],
        "without self.optimizer",
    ),
    "uphill": (
        [(LOSS, LOSS.replace("self.loss_function", "-self.loss_function"))],
        "wrong direction",
    ),
    "loss arguments swapped": (
        [(LOSS, LOSS.replace("(y, predictions)", "(predictions, y)"))],
        "swaps the arguments of the loss",
    ),
    "train_loss not updated": ([(TRAIN_LOSS, "")], "does not update train_loss"),
    "train_accuracy not updated": ([(TRAIN_ACCURACY, "")], "does not update train_accuracy"),
    "loss updated before it exists": (
        [(TRAIN_LOSS, ""), (TAPE, TRAIN_LOSS + TAPE)],
        r"(?s)`self.train_loss.update_state\(loss\)`.*used before it is computed",
    ),
    "accuracy updated before, with a prediction of its own": (
        [
            (TRAIN_ACCURACY, ""),
            (TAPE, TRAIN_ACCURACY.replace("predictions", "self.model(x)") + TAPE),
        ],
        "updates train_accuracy with a prediction that is not the step's",
    ),
    "accuracy updated after, with a prediction of its own": (
        [(TRAIN_ACCURACY, TRAIN_ACCURACY.replace("predictions", "self.model(x)"))],
        "updates train_accuracy with a prediction that is not the step's",
    ),
    "accuracy arguments swapped": (
        [(TRAIN_ACCURACY, TRAIN_ACCURACY.replace("y, predictions", "predictions, y"))],
        "swaps the arguments of train_accuracy",
    ),
    "accuracy gets classes": (
        [(TRAIN_ACCURACY, TRAIN_ACCURACY.replace("predictions", "tf.argmax(predictions, 1)"))],
        "train_accuracy the predicted classes",
    ),
    "train_loss gets the arguments of the accuracy": (
        [(TRAIN_LOSS, TRAIN_LOSS.replace("loss)", "y, predictions)"))],
        "train_loss.update_state with the wrong arguments",
    ),
    "train_loss gets labels": (
        [(TRAIN_LOSS, TRAIN_LOSS.replace("(loss)", "(y)"))],
        "updates train_loss with the wrong arguments",
    ),
    "validation's metrics updated": (
        [(TRAIN_LOSS, TRAIN_LOSS.replace("train", "val"))],
        "updates val_loss instead of train_loss",
    ),
    "from_logits=True on softmax": (
        [(LOSS, OWN_LOSS.format("from_logits=True") + "        gradients")],
        "takes probabilities for logits",
    ),
    "softmax of softmax": (
        [(LOSS, LOSS.replace("predictions)", "tf.nn.softmax(predictions))"))],
        "takes probabilities for logits",
    ),
    "from_logits=False on logits": (
        [(LOSS, OWN_LOSS.format("") + "        gradients")],
        "takes logits for probabilities",
    ),
    "NumPy in a graph": (
        [(LOSS, LOSS.replace("self.loss_function(y, predictions)", "np.mean(predictions)"))],
        "(?s)`loss = np.mean.predictions.`.*no values yet",
    ),
    "gradient of nothing": (
        [(GRADIENTS, GRADIENTS.replace("trainable_variables)", "trainable_variables())"))],
        "(?s)TypeError.*not callable",
    ),
    "a name misspelt": (
        [(APPLY, APPLY.replace("(gradients", "(gradient"))],
        "(?s)NameError.*`self.optimizer.apply.gradient, .*misspelt",
    ),
}
EVAL_BODY = RIGHT[RIGHT.index("        predictions = self.model(x, training=False)") :]
VAL_LOSS = "        self.val_loss.update_state(loss)\n"
EVAL_STEP_MISTAKES = {
    "blank": ([(EVAL_BODY, "        pass\n")], "_eval_step is still blank"),
    "weights change": ([(EVAL_BODY, STEP_BODY)], "_eval_step changes the weights"),
    "training=True": (
        [(EVAL_BODY, EVAL_BODY.replace("training=False", "training=True"))],
        "_eval_step calls the model with training=True",
    ),
    "statistics change": (
        [(EVAL_BODY, "        self.model(x, training=True)\n" + EVAL_BODY)],
        "(?s)training=True.*batch-norm statistics change",
    ),
    "train metrics updated": (
        [(EVAL_BODY, EVAL_BODY.replace("self.val_", "self.train_"))],
        "updates train_loss instead of val_loss",
    ),
    "train accuracy updated": (
        [("self.val_accuracy.update_state", "self.train_accuracy.update_state")],
        "updates train_accuracy instead of val_accuracy",
    ),
    "val_accuracy not updated": (
        [("        self.val_accuracy.update_state(y, predictions)\n", "")],
        "does not update val_accuracy",
    ),
    "from_logits=True on softmax": (
        [(EVAL_BODY, EVAL_BODY.replace("predictions)\n", "tf.nn.softmax(predictions))\n", 1))],
        "_eval_step takes probabilities for logits",
    ),
}
RESETS = re.search(r"(            self\.\w+\.reset_state\(\)\n){4}", RIGHT)[0]
TRAIN_LOOP = RIGHT[RIGHT.index("            for start in range(0, len(x_train)") :].split(
    "            for start in range(0, len(x_val)"
)[0]
VAL_LOOP = RIGHT[RIGHT.index("            for start in range(0, len(x_val)") :].split(
    "            self.history"
)[0]
FIT_BODY = RIGHT[RIGHT.index("        size = 128") : RIGHT.index("    def predict")]
HISTORY = re.search(r"(            self\.history.*\n){4}", RIGHT)[0]
CALL = "self._train_step(x_train[batch], y_train[batch])"
KERAS_FIT = """\
        self.model.compile(self.optimizer, self.loss_function, metrics=["accuracy"])
        self.history = self.model.fit(
            x_train, y_train, epochs=epochs, validation_data=(x_val, y_val)
        ).history

"""
FIT_MISTAKES = {
    "blank": ([(FIT_BODY, "        ...\n")], "fit is still blank"),
    "metrics not reset": ([(RESETS, "")], "train_loss is not reset between the epochs"),
    "val_loss not reset": (
        [("            self.val_loss.reset_state()\n", "")],
        "val_loss is not reset between the epochs",
    ),
    "reset before it is read": (
        [(RESETS, ""), (HISTORY, RESETS + HISTORY)],
        "only zeros",
    ),
    "no validation": ([(VAL_LOOP, "")], "no validation pass"),
    "validation before training": (
        [(TRAIN_LOOP + VAL_LOOP, VAL_LOOP + TRAIN_LOOP)],
        "validates before it trains",
    ),
    "validation read before it is made": (
        [(RESETS, ""), (VAL_LOOP + HISTORY, HISTORY + RESETS + VAL_LOOP)],
        "history\\['val_loss'\\] is one epoch late",
    ),
    "validation after each batch": (
        [(VAL_LOOP, re.sub(r"(?m)^", "    ", VAL_LOOP).rstrip(" "))],
        r"validation passes in 3 epochs",
    ),
    "validation on training images": (
        [("x_val[start : start + size], y_val[s", "x_train[start : start + size], y_train[s")],
        "validates on training images",
    ),
    "training on validation images": (
        [("self._eval_step(", "self._train_step(")],
        "trains on the validation images",
    ),
    "only the first batch": (
        [("order[start : start + size]", "order[:size]")],
        "only one batch in each epoch",
    ),
    "only one batch, and out": (
        [(CALL, CALL + "\n                break")],
        "only one batch in each epoch",
    ),
    "last partial batch dropped": (
        [("range(0, len(x_train), size)", "range(0, len(x_train) - size + 1, size)")],
        "drops the last, smaller batch: 79 of 1103",
    ),
    "last partial batch of the validation dropped": (
        [("range(0, len(x_val), size)", "range(0, len(x_val) - size + 1, size)")],
        "sees 128 of 211 images",
    ),
    "an empty batch": (
        [("range(0, len(x_train), size)", "range(0, len(x_train) + 1, size)")],
        "makes an empty batch where the batch size divides",
    ),
    "metrics reset at each batch": (
        [(CALL, "self.train_loss.reset_state(); " + CALL)],
        "history\\['loss'\\] is that of the last batch only",
    ),
    "batches that overlap": (
        [("order[start : start + size]", "order[start : start + size + 1]")],
        "more than once",
    ),
    "shuffled without labels": (
        [("y_train[batch]", "y_train[start : start + size]")],
        "fit gives images the labels of others",
    ),
    "one epoch too few": ([("range(epochs)", "range(1, epochs)")], "runs 2 epochs where 3"),
    "one epoch too many": ([("range(epochs)", "range(epochs + 1)")], "runs 4 epochs where 3"),
    "a single epoch": ([("range(epochs)", "range(1)")], "runs 1 epoch where 3"),
    "history empty": ([(HISTORY, "")], "has 0 values after 3 epochs"),
    "history overwritten": (
        [
            (
                'self.history["loss"].append(float(self.train_loss.result()))',
                'self.history["loss"] = float(self.train_loss.result())',
            )
        ],
        "is one float and no list",
    ),
    "Keras' fit": (
        [(FIT_BODY, KERAS_FIT)],
        "trains, but not by self._train_step",
    ),
    "empty batches": (
        [("order[start : start + size]", "order[start:size]")],
        "makes an empty batch in an epoch",
    ),
    "history in percent": (
        [("float(self.val_accuracy.result())", "100 * float(self.val_accuracy.result())")],
        "percent",
    ),
    "reset_states, as in Keras 2": (
        [("self.val_loss.reset_state()", "self.val_loss.reset_states()")],
        "(?s)`self.val_loss.reset_states.*without the s",
    ),
}
PREDICT_BODY = RIGHT[RIGHT.index("        batches = []") : RIGHT.index("    @tf.function")]
RETURN = "        return tf.concat(batches, axis=0)\n"
PREDICT_MISTAKES = {
    "blank": ([(PREDICT_BODY, "        ...\n\n")], "predict is still blank"),
    "argmax": (
        [
            (
                RETURN,
                RETURN.replace("tf.concat(batches, axis=0)", "tf.argmax(tf.concat(batches, 0), 1)"),
            )
        ],
        "argmax",
    ),
    "no return": ([(RETURN, RETURN.replace("return ", ""))], "returns nothing"),
    "a list of batches": ([(RETURN, "        return batches\n")], "wrong shape: .* list"),
    "first batch only": (
        [(RETURN, "        return batches[0][:200]\n")],
        r"wrong shape: \(200, 10\) for 211 images",
    ),
    "transposed": (
        [(RETURN, "        return tf.transpose(tf.concat(batches, axis=0))\n")],
        r"wrong shape: \(10, 211\)",
    ),
    "wrong order": (
        [(RETURN, RETURN.replace("batches, axis=0)", "batches, axis=0)[::-1]"))],
        "wrong order",
    ),
    "dropout active": (
        [("256], training=False)", "256], training=True)")],
        "(?s)training=True.*dropout is active",
    ),
    "memory": (
        [(PREDICT_BODY, "        return self.model(x, training=False)\n\n")],
        "memory that predict needs grows",
    ),
    "rounded": (
        [(RETURN, RETURN.replace("tf.concat(b", "tf.round(tf.concat(b").replace("0)", "0))"))],
        "whole numbers",
    ),
    "an error": ([("axis=0)", "axes=0)")], r"(?s)`return tf.concat\(batches, axes=0\)`.*arguments"),
}
TRAINER_MISTAKES = [
    pytest.param(check, replacements, message, id=f"{check}: {mistake}")
    for check, mistakes in zip(
        TRAINER_CHECKS,
        (TRAIN_STEP_MISTAKES, EVAL_STEP_MISTAKES, FIT_MISTAKES, PREDICT_MISTAKES),
        strict=True,
    )
    for mistake, (replacements, message) in mistakes.items()
]


@pytest.mark.parametrize("check, replacements, message", TRAINER_MISTAKES)
def test_a_mistake_in_the_trainer_is_named_by_its_check(check, replacements, message):
    assert_complaint(changed(*replacements), check, message)


# Right solutions in other styles. Each replaces methods of the right one above.
FRENCH_WITH_TF_DATA = """
class Trainer(Trainer):
    def fit(self, x_train, y_train, x_val, y_val, epochs, verbose=True):
        donnees = tf.data.Dataset.from_tensor_slices((x_train, y_train))
        lots = donnees.shuffle(2000).batch(50).prefetch(tf.data.AUTOTUNE)
        lots_val = tf.data.Dataset.from_tensor_slices((x_val, y_val)).batch(200)
        for epoque in range(1, epochs + 1):
            for images, etiquettes in lots:
                self._train_step(images, etiquettes)
            for images, etiquettes in lots_val:
                self._eval_step(images, etiquettes)
            mesures = {
                "val_accuracy": self.val_accuracy,
                "val_loss": self.val_loss,
                "accuracy": self.train_accuracy,
                "loss": self.train_loss,
            }
            for nom, mesure in mesures.items():
                self.history[nom].append(mesure.result().numpy())
                mesure.reset_state()

    def predict(self, x):
        lots = tf.data.Dataset.from_tensor_slices(x).batch(100)
        return np.concatenate([self.model(lot, training=False).numpy() for lot in lots])

    @tf.function
    def _train_step(self, x, y):
        with tf.GradientTape() as ruban:
            sorties = self.model(x, training=True)
            perte = self.loss_function(y_true=y, y_pred=sorties)
            self.train_accuracy(y, sorties)
        poids = self.model.trainable_weights
        self.train_loss(perte)
        self.optimizer.apply_gradients(zip(ruban.gradient(perte, poids), poids))
"""
ONE_BATCH_WITHOUT_GRAPHS = """
class Trainer(Trainer):
    def fit(self, x_train, y_train, x_val, y_val, epochs, verbose=True):
        self.history = {name: [] for name in ("loss", "accuracy", "val_loss", "val_accuracy")}
        for _ in range(epochs):
            for metric in self._metrics():
                metric.reset_state()
            self._train_step(x_train, y_train)
            self._eval_step(x_val, y_val)
            for name, metric in zip(self.history, self._metrics()):
                self.history[name].append(metric.result())
        return self.history

    def _metrics(self):
        return [self.train_loss, self.train_accuracy, self.val_loss, self.val_accuracy]

    def predict(self, x):
        return self.model.predict(x, verbose=0)

    def _train_step(self, x, y):
        with tf.GradientTape() as tape:
            output = self.model(x, training=True)
            loss = tf.reduce_mean(self.loss_function(y, output))
        self.train_accuracy.update_state(y, output)
        self.train_loss.update_state(loss, sample_weight=len(x))
        variables = self.model.trainable_variables
        self.optimizer.apply(tape.gradient(loss, variables), variables)

    def _eval_step(self, x, y):
        output = self.model(x)
        self.val_accuracy.update_state(y, output)
        self.val_loss.update_state(self.loss_function(y, output))
"""
EPOCH_IN_A_GRAPH = """
class Trainer(Trainer):
    def fit(self, x_train, y_train, x_val, y_val, epochs, verbose=True, batch_size=32):
        x_train, y_train = tf.constant(x_train), tf.constant(y_train)
        x_val, y_val = tf.constant(x_val), tf.constant(y_val)
        for epoch in range(epochs):
            for metric in (self.train_loss, self.train_accuracy, self.val_loss, self.val_accuracy):
                metric.reset_state()
            order = tf.random.shuffle(tf.range(len(x_train)))
            self._epoch(tf.gather(x_train, order), tf.gather(y_train, order), batch_size, True)
            self._epoch(x_val, y_val, batch_size, False)
            self._remember("", self.train_loss, self.train_accuracy)
            self._remember("val_", self.val_loss, self.val_accuracy)

    def _remember(self, prefix, loss, accuracy):
        self.history[prefix + "loss"] += [float(loss.result())]
        self.history[prefix + "accuracy"] += [float(accuracy.result())]

    @tf.function
    def _epoch(self, x, y, size, training):
        for start in tf.range(0, len(x), size):
            if training:
                self._train_step(x[start : start + size], y[start : start + size])
            else:
                self._eval_step(x[start : start + size], y[start : start + size])
"""
SHUFFLED_IN_PLACE_LOGITS = """
class Trainer(Trainer):
    def fit(self, x_train, y_train, x_val, y_val, epochs, verbose=True):
        self._eval_step(x_val[:100], y_val[:100])  # how good is a guess?
        n_batches = int(np.ceil(len(x_train) / 200))
        for epoch in range(epochs):
            state = np.random.get_state()
            np.random.shuffle(x_train)
            np.random.set_state(state)
            np.random.shuffle(y_train)
            for images, labels in zip(
                np.array_split(x_train, n_batches), np.array_split(y_train, n_batches)
            ):
                self._train_step(images, labels)
            self.history["loss"].append(float(self.train_loss.result()))
            self.history["accuracy"].append(float(self.train_accuracy.result()))
            self.train_loss.reset_state()
            self.train_accuracy.reset_state()
            self.val_loss.reset_state()
            self.val_accuracy.reset_state()
            self._eval_step(x_val, y_val)
            self.history["val_loss"].append(float(self.val_loss.result()))
            self.history["val_accuracy"].append(float(self.val_accuracy.result()))

    def predict(self, x):
        batches = np.array_split(np.asarray(x), -(-len(x) // 500))
        return tf.nn.softmax(np.vstack([self.model(batch, training=False) for batch in batches]))
"""
STYLES = {
    "slices": "",
    "tf.data, other names, metrics in another order": FRENCH_WITH_TF_DATA,
    "one batch, no tf.function, Keras' predict": ONE_BATCH_WITHOUT_GRAPHS,
    "an epoch in one graph": EPOCH_IN_A_GRAPH,
    "shuffled in place, predict for logits": SHUFFLED_IN_PLACE_LOGITS,
}


@pytest.mark.parametrize("style", [*STYLES, "the book's own"])
def test_a_right_trainer_passes_in_any_style(style, capsys):
    trainer_class = student(RIGHT + STYLES[style]) if style in STYLES else tpcnn.Trainer
    assert first_complaint(trainer_class) is None
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("Right: ")]) == 4
    assert ("mini-batches (bonus earned)" in "".join(lines)) == ("one batch" not in style)


def test_the_bonus_is_for_a_new_order_in_each_epoch(capsys):
    checks.fit(changed(("np.random.permutation(len(x_train))", "np.arange(len(x_train))")))
    assert "always the same" in capsys.readouterr().out
    assert not session.bonuses["mini-batches"]


# Networks.
CONVOLUTION = (lambda: layers.Conv2D(4, 3, activation="relu"), layers.Flatten)


def sequential(*hidden, classes=10, activation="softmax"):
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            *(hidden or [make() for make in CONVOLUTION]),
            layers.Dense(classes, activation=activation),
        ]
    )


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden, self.scores = layers.Conv2D(4, 3), layers.Dense(10)

    def call(self, x):
        return self.scores(tf.reshape(tf.nn.gelu(self.hidden(x)), [-1, 26 * 26 * 4]))


def functional():
    inputs = keras.Input((28, 28, 1))
    maps = layers.Conv2D(4, 3, use_bias=False)(inputs)
    maps = layers.ReLU()(layers.BatchNormalization()(maps))
    return keras.Model(inputs, layers.Dense(10, "softmax")(layers.Flatten()(maps)))


CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy
RIGHT_MODELS = {
    "sequential": (sequential, CROSS_ENTROPY()),
    "tanh": (
        lambda: sequential(layers.Conv2D(4, 3, activation="tanh"), layers.Flatten()),
        keras.losses.sparse_categorical_crossentropy,
    ),
    "softmax layer": (
        lambda: keras.Sequential([sequential(activation=None), layers.Softmax()]),
        CROSS_ENTROPY(),
    ),
    "logits": (lambda: sequential(activation=None), CROSS_ENTROPY(from_logits=True)),
    "subclassed, logits": (Subclassed, CROSS_ENTROPY(from_logits=True)),
    "functional": (functional, CROSS_ENTROPY()),
    "summed loss": (sequential, CROSS_ENTROPY(reduction="sum")),
    "the book's": (tpcnn.build_cnn, CROSS_ENTROPY()),
}


@pytest.mark.parametrize("case", RIGHT_MODELS)
def test_a_right_model_passes_in_any_style(case, capsys):
    build, loss = RIGHT_MODELS[case]
    for step in REQUIRED_ACCURACY:
        checks.model(build(), loss, step=step)
    assert capsys.readouterr().out.count("Right: ") == 3


def test_bonuses_of_a_model_are_noted_for_the_convolutional_ones_only(capsys):
    network = sequential(
        layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU(), layers.Flatten()
    )
    checks.model(network, CROSS_ENTROPY(), step="fully_connected")
    checks.model(network, CROSS_ENTROPY(), step="cnn")
    no_dropout = sequential(*[make() for make in CONVOLUTION], layers.Dropout(0.0))
    checks.model(no_dropout, CROSS_ENTROPY(), step="fashion")
    checks.report()
    printed = capsys.readouterr().out
    assert re.search(r"(?m)^bonus: batch normalisation +earned: cnn$", printed)
    assert re.search(r"(?m)^bonus: dropout +not earned$", printed)


WRONG_MODELS = {
    "blank": (lambda: ..., CROSS_ENTROPY(), "model is still blank"),
    "no loss": (sequential, ..., "loss function is still blank"),
    "the name of a loss": (sequential, "sparse_categorical_crossentropy", "name of a loss"),
    "the class of a loss": (sequential, CROSS_ENTROPY, "(?s)its class.*with the parentheses"),
    "no convolution": (
        lambda: sequential(layers.Flatten(), layers.Dense(16, activation="relu")),
        CROSS_ENTROPY(),
        "no convolutional layer",
    ),
    "no hidden layer": (
        lambda: sequential(layers.Flatten()),
        CROSS_ENTROPY(),
        "no hidden layer",
    ),
    "no non-linearity": (
        lambda: sequential(layers.Flatten(), layers.Dense(16), layers.Dense(16)),
        CROSS_ENTROPY(),
        "no non-linearity",
    ),
    "no non-linearity, convolutions, logits": (
        lambda: sequential(
            layers.Conv2D(4, 3), layers.BatchNormalization(), layers.Flatten(), activation=None
        ),
        CROSS_ENTROPY(from_logits=True),
        "no non-linearity",
    ),
    "nine classes": (
        lambda: sequential(classes=9),
        CROSS_ENTROPY(),
        "wrong number of classes: 9 outputs, expected 10",
    ),
    "one class": (lambda: sequential(classes=1), CROSS_ENTROPY(), "wrong number of classes: 1"),
    "Flatten forgotten": (
        lambda: sequential(layers.Dense(16, activation="relu")),
        CROSS_ENTROPY(),
        r"(?s)returns shape \(64, 28, 28, 10\).*Flatten",
    ),
    "softmax twice": (
        lambda: keras.Sequential([sequential(), layers.Softmax()]),
        CROSS_ENTROPY(),
        "applies softmax twice",
    ),
    "softmax, from_logits=True": (
        sequential,
        CROSS_ENTROPY(from_logits=True),
        r"does not fit the output: the model ends in softmax.*expects logits",
    ),
    "logits, from_logits=False": (
        lambda: sequential(activation=None),
        CROSS_ENTROPY(),
        r"does not fit the output: the model ends without softmax.*expects probabilities",
    ),
    "one-hot loss": (sequential, keras.losses.CategoricalCrossentropy(), "fit the labels"),
    "squared error": (sequential, keras.losses.MeanSquaredError(), "does not fit"),
    "another input": (
        lambda: keras.Sequential([keras.Input((784,)), layers.Dense(10, activation="softmax")]),
        CROSS_ENTROPY(),
        r"(?s)given images of shape \(64, 28, 28, 1\),.* stops",
    ),
}


@pytest.mark.parametrize("case", WRONG_MODELS)
def test_a_mistake_in_a_model_is_named(case):
    build, loss, message = WRONG_MODELS[case]
    with pytest.raises(checks.Mistake, match=message):
        checks.model(build(), loss, step="cnn")


# Data: 600 raw images stand for the 60 000; a sixth of them is for validation.
@pytest.fixture(scope="module")
def raw():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (720, 28, 28), dtype=np.uint8)
    x[::3] = np.minimum(x[::3], 254)  # not every image has full ink
    y = rng.integers(0, 10, 720).astype(np.uint8)
    return (x[:600], y[:600]), (x[600:], y[600:])


def prepared(raw) -> dict:
    (x, y), (x_test, y_test) = raw
    (x_train, y_train), (x_val, y_val) = tpcnn.split(tpcnn.add_channel(x / 255), y, n_val=100)
    x_test = tpcnn.add_channel(tpcnn.normalize(x_test))
    return {
        "x_train": x_train.astype("float32"),
        "y_train": y_train,
        "x_val": x_val,
        "y_val": y_val,
        "x_test": x_test,
        "y_test": y_test,
    }


def every_image(change):
    """Return a change that is made to all three sets of images."""
    return lambda d, raw: {key: change(d[key]) for key in ("x_train", "x_val", "x_test")}


def per_image(x):
    return x / x.max(axis=(1, 2, 3), keepdims=True)


# Each: what changes in the prepared data, and what the message must say.
DATA_MISTAKES = {
    "blank": (lambda d, raw: {"x_val": ...}, "x_val is still blank"),
    "not scaled": (every_image(lambda x: 255 * x), "x_train is not scaled"),
    "scaled twice": (every_image(lambda x: x / 255), "x_train is scaled twice"),
    "train scaled, test not": (
        lambda d, raw: {"x_test": raw[1][0][..., None]},
        "x_test is not scaled.*while x_train and x_val are right",
    ),
    "test scaled twice": (lambda d, raw: {"x_test": d["x_test"] / 255}, "x_test is scaled twice"),
    "integer division": (
        every_image(lambda x: np.rint(255 * x).astype(np.uint8) // 255),
        "x_train holds only zeros and ones: an integer division",
    ),
    "scaled, then integers": (
        every_image(lambda x: x.astype(np.uint8)),
        "only zeros and ones.*integers",
    ),
    "per image": (every_image(per_image), "x_train is scaled per image"),
    "per image, test only": (
        lambda d, raw: {"x_test": per_image(d["x_test"])},
        "x_test is scaled per image",
    ),
    "standardised": (every_image(lambda x: (x - 0.5) / 0.3), "pixels from -1.67 to 1.67"),
    "no channel axis": (every_image(lambda x: x[..., 0]), "x_train has no channel axis"),
    "no channel axis in the test": (
        lambda d, raw: {"x_test": d["x_test"][..., 0]},
        "x_test has no channel axis",
    ),
    "channel axis in front": (
        every_image(lambda x: x[..., 0][:, None]),
        "x_train has the channel axis in front",
    ),
    "axis in front of all": (
        every_image(lambda x: x[..., 0][None]),
        "x_train has the channel axis in front",
    ),
    "channel axis twice": (
        every_image(lambda x: x[..., None]),
        "x_train has the channel axis twice",
    ),
    "flattened": (
        every_image(lambda x: x.reshape(-1, 784)),
        r"x_train has the wrong shape: its shape is \(500, 784\)",
    ),
    "training set not cut": (
        lambda d, raw: {
            "x_train": np.concatenate([d["x_train"], d["x_val"]]),
            "y_train": raw[0][1],
        },
        "x_train still holds all 600 images, so the validation set overlaps",
    ),
    "validation overlaps": (
        lambda d, raw: {"x_val": d["x_train"][-100:], "y_val": d["y_train"][-100:]},
        "validation set overlaps with the training set: 100%",
    ),
    "validation overlaps in part": (
        lambda d, raw: {
            "x_train": np.concatenate([d["x_train"][10:], d["x_val"][:10]]),
            "y_train": np.concatenate([d["y_train"][10:], d["y_val"][:10]]),
        },
        "validation set overlaps with the training set: 10%",
    ),
    "validation from the test set": (
        lambda d, raw: {"x_val": d["x_test"][:100], "y_val": d["y_test"][:100]},
        "validation set is taken from the test set",
    ),
    "test from the training set": (
        lambda d, raw: {"x_test": d["x_train"][:120], "y_test": d["y_train"][:120]},
        "100% of x_test are training images",
    ),
    "wrong sizes": (
        lambda d, raw: {
            "x_train": d["x_train"][:300],
            "y_train": d["y_train"][:300],
            "x_val": d["x_train"][300:],
            "y_val": d["y_train"][300:],
        },
        "x_train has 300 images, expected 500",
    ),
    "labels not split": (
        lambda d, raw: {"y_train": raw[0][1]},
        r"y_train has the shape \(600,\), but x_train has 500 images: the labels are not split",
    ),
    "labels split elsewhere": (
        lambda d, raw: {"y_train": raw[0][1][100:], "y_val": raw[0][1][:100]},
        "labels in y_train do not belong to the images",
    ),
    "labels with a channel axis": (
        lambda d, raw: {"y_val": d["y_val"][:, None]},
        r"(?s)y_val has the shape \(100, 1\).*Only images get a channel axis",
    ),
    "divided by 256": (every_image(lambda x: x * 255 / 256), "x_train is divided by 256"),
    "one-hot": (
        lambda d, raw: {"y_train": np.eye(10)[d["y_train"]]},
        r"y_train has the shape \(500, 10\); expected one integer",
    ),
    "mixed up by a reshape": (
        every_image(lambda x: x.transpose(0, 2, 1, 3)),
        "(?s)not among the raw images.*rows and columns",
    ),
}


@pytest.mark.parametrize("case", DATA_MISTAKES)
def test_a_mistake_in_the_data_is_named(raw, case):
    right = prepared(raw)
    change, message = DATA_MISTAKES[case]
    with pytest.raises(checks.Mistake, match=message):
        checks.data(**right | change(right, raw), raw=raw)


@pytest.mark.parametrize("split", ["at the end", "in front", "at random"])
def test_right_data_pass(raw, split, capsys):
    arrays = prepared(raw)
    if split != "at the end":
        rng = np.random.default_rng(1)
        order = rng.permutation(600) if split == "at random" else np.roll(np.arange(600), -100)
        x, y = tpcnn.add_channel(raw[0][0].astype("float16") / 255), raw[0][1].astype(int)
        x, y = x[order], tf.constant(y[order])
        arrays |= {"x_train": x[:500], "x_val": x[500:], "y_train": y[:500], "y_val": y[500:]}
    checks.data(**arrays, raw=raw)
    assert "500 training, 100 validation and 120 test images" in capsys.readouterr().out


# The rest of the lab.
class Answers:
    """Stands for a trained Trainer that is right on a share of the images."""

    def __init__(self, y, share):
        self.answers = np.where(np.arange(len(y)) < share * len(y), y, (y + 1) % 10)

    def predict(self, x):
        return tf.one_hot(self.answers, 10)


def test_an_accuracy_is_compared_with_what_the_step_requires(capsys):
    x, y = np.zeros((1000, 28, 28, 1)), np.arange(1000) % 10
    for step, required in REQUIRED_ACCURACY.items():
        with pytest.raises(checks.Mistake, match=rf"accuracy {required - 0.01:.2%}, required"):
            checks.accuracy(step, Answers(y, required - 0.01), x, y)
        checks.accuracy(step, Answers(y, required), x, y)
    assert capsys.readouterr().out.count("Right: ") == 3
    with pytest.raises(checks.Mistake, match=r"(?s)10\.00%.*a guess"):
        checks.accuracy("cnn", Answers(y, 0.1), x, y)
    with pytest.raises(checks.Mistake, match=r"shape \(1000, 10\) for 999 test images"):
        checks.accuracy("cnn", Answers(y, 1), x, y[1:])
    untrained = Answers(y, 0.1)
    untrained.history = {"loss": [], "val_loss": []}
    with pytest.raises(checks.Mistake, match="fit has not finished an epoch"):
        checks.accuracy("cnn", untrained, x, y)
    with pytest.raises(checks.Mistake, match=r"(?s)trainer is a dict.*ends in .fit"):
        checks.accuracy("cnn", {"loss": [1.0]}, x, y)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: p * 20 - 3, "no probabilities.*add up"),
        (tf.nn.softmax, "applies softmax to what are probabilities already"),
        (lambda p: p * np.nan, "NaN"),
    ],
)
def test_an_accuracy_needs_probabilities(spoil, message):
    y = np.arange(1000) % 10
    trainer = Answers(y, 0.99)
    predict = trainer.predict
    trainer.predict = lambda x: spoil(predict(x))
    with pytest.raises(checks.Mistake, match=message):
        checks.accuracy("cnn", trainer, np.zeros((1000, 28, 28, 1)), y)


def test_an_accuracy_is_that_of_the_network_that_was_checked():
    y, network = np.arange(1000) % 10, sequential()
    checks.model(network, CROSS_ENTROPY(), step="cnn")
    trainer = Answers(y, 0.99)
    trainer.model = network
    checks.accuracy("cnn", trainer, np.zeros((1000, 28, 28, 1)), y)
    trainer.model = sequential()
    with pytest.raises(checks.Mistake, match="another network than the one that passed"):
        checks.accuracy("cnn", trainer, np.zeros((1000, 28, 28, 1)), y)


def test_a_report_needs_a_name():
    for names in (("", "Lovelace"), ("Ada", "..."), (..., "Lovelace"), (None, None)):
        with pytest.raises(checks.Mistake, match=r"Your (first|last) name is still blank"):
            checks.name(*names)


def reported(capsys) -> dict[str, str]:
    capsys.readouterr()
    checks.report()
    lines = capsys.readouterr().out.splitlines()
    return dict(re.split(r" {2,}", line, maxsplit=1) for line in lines if "  " in line)


def test_the_report_says_what_is_reached_and_what_is_not(capsys):
    report = reported(capsys)
    assert report["name"] == "not given"
    assert report["_train_step"] == "NOT PASSED"
    assert report["test accuracy: cnn"] == "NOT MEASURED (required 98%)"
    assert report["bonus: mini-batches"] == "not earned"

    y = np.arange(1000) % 10
    checks.name("Ada", "Lovelace")
    checks.train_step(tpcnn.Trainer)
    checks.fit(tpcnn.Trainer)
    checks.accuracy("cnn", Answers(y, 0.985), y, y)
    with pytest.raises(checks.Mistake):
        checks.accuracy("fashion", Answers(y, 0.85), y, y)
    report = reported(capsys)
    assert report["name"] == "Ada Lovelace"
    assert (report["_train_step"], report["fit"]) == ("passed", "passed")
    assert report["_eval_step"] == "NOT PASSED"
    assert report["test accuracy: cnn"] == "98.50%, met (required 98%)"
    assert report["test accuracy: fashion"] == "85.00%, NOT MET (required 90%)"
    assert report["bonus: mini-batches"] == "earned: fit"
    assert report["TensorFlow"] == tf.__version__
    assert report["NumPy"] == np.__version__
    assert report["device"] == tpcnn.describe_device()

    with pytest.raises(checks.Mistake):  # a step that no longer passes is no longer reported so
        checks.train_step(changed((APPLY, "")))
    assert reported(capsys)["_train_step"] == "NOT PASSED"


def test_the_report_names_each_dataset_that_passed(capsys):
    for load, name in ((tpcnn.load_mnist, "MNIST"), (tpcnn.load_fashion_mnist, "Fashion-MNIST")):
        data = load()
        arrays = (data.x_train, data.y_train, data.x_val, data.y_val, data.x_test, data.y_test)
        assert reported(capsys)[f"data: {name}"] == "NOT PASSED"
        checks.data(*arrays, raw=load(raw=True))
        assert reported(capsys)[f"data: {name}"] == "passed"


def test_loaded_images_that_were_changed_in_place_are_found():
    data, raw = tpcnn.load_mnist(), tpcnn.load_mnist(raw=True)
    arrays = (data.x_train, data.y_train, data.x_val, data.y_val, data.x_test, data.y_test)
    np.random.default_rng(0).shuffle(raw[0][0])  # and not the labels
    with pytest.raises(checks.Mistake, match="changed in place"):
        checks.data(*arrays, raw=raw)


def test_a_message_names_the_arrays_of_the_lab():
    data, raw = tpcnn.load_fashion_mnist(), tpcnn.load_fashion_mnist(raw=True)
    arrays = (data.x_train, data.y_train, None, data.y_val, data.x_test, data.y_test)
    with pytest.raises(checks.Mistake, match="fashion_x_val is still blank"):
        checks.data(*arrays, raw=raw)


def test_a_notebook_shows_the_message_and_no_stack_trace(capsys):
    shell = InteractiveShell()
    shell.run_cell("import keras, numpy as np, tensorflow as tf\nfrom tpcnn import checks")
    wrong = RIGHT.replace("training=False)\n        loss", "training=Fals)\n        loss")
    assert shell.run_cell(wrong).success
    capsys.readouterr()
    result = shell.run_cell("checks.eval_step(Trainer)")
    printed = capsys.readouterr().out
    assert isinstance(result.error_in_exec, checks.Mistake)
    assert "Not right yet: _eval_step stops with NameError" in printed
    assert "`predictions = self.model(x, training=Fals)`" in printed
    assert "Traceback" not in printed
    assert len(printed.strip().splitlines()) == 3


@pytest.mark.parametrize(
    "call",
    [
        lambda: checks.train_step(...),
        lambda: checks.fit(None),
        lambda: checks.predict(tpcnn.build_fc()),
        lambda: checks.train_step(int),
        lambda: checks.fit(changed(("epochs, verbose=True", "n_epochs"))),
        lambda: checks.fit(changed(("    def fit(", "    def train("))),
        lambda: checks.predict(changed((RETURN, "        return 'seven'\n"))),
        lambda: checks.train_step(changed(("self.train_loss = keras.metrics.Mean()", "pass"))),
        lambda: checks.fit(changed(('{"loss": [], ', '{"loss": 0, '))),
        lambda: checks.model("a text", CROSS_ENTROPY(), step="cnn"),
        lambda: checks.accuracy("cnn", None, np.zeros(3), np.zeros(3)),
        lambda: checks.data(*[np.zeros(3)] * 6, raw=((np.zeros(3), np.zeros(3)),) * 2),
        lambda: checks.data(*[7] * 6, raw=7),
    ],
)
def test_nothing_a_student_passes_ends_in_another_error(call):
    with pytest.raises(checks.Mistake, match=r"(?s)Not right yet: .*\nSee the chapter"):
        call()


def test_every_section_that_a_message_names_is_in_the_book():
    headings = set()
    for path in (ROOT / "book").glob("*.md"):
        prose = re.sub(r"(?ms)^```.*?^```$", "", path.read_text())
        title, *others = re.findall(r"(?m)^#+ (.+)$", prose) or [None]
        headings |= {(title, heading) for heading in others}
    assert len(headings) > 50
    for section in Section:
        assert section.value in headings
