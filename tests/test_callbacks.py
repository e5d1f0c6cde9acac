"""Callbacks in `Trainer.fit`, with `keras.Model.fit` as the oracle."""

import csv
import http.server
import json
import threading

import tpcnn  # noqa: F401  # isort: skip  # before TensorFlow, since it chooses how that starts
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import callbacks, layers

from tpcnn import Trainer

N, N_VAL, BATCH_SIZE, EPOCHS = 100, 45, 16, 6  # neither is a multiple of the batch size


def arrays():
    rng = np.random.default_rng(0)
    x = rng.random((N + N_VAL, 6, 6, 1), dtype=np.float32)
    y = rng.integers(0, 3, N + N_VAL)
    return x[:N], y[:N], x[N:], y[N:]


def network():
    keras.utils.clear_session()  # which counts the names of layers from the beginning
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.Flatten(),
            layers.Dense(8, activation="relu"),
            layers.BatchNormalization(),
            layers.Dense(3, activation="softmax"),
        ]
    )


class Note(callbacks.Callback):
    """Notes every call, with what it is told, and what it finds on the model."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def note(self, hook, number, logs):
        on_model = [type(metric).__name__ for metric in self.model.metrics]
        self.calls.append((hook, number, dict(logs or {}), on_model))


def _noting(hook, with_number):
    if with_number:
        return lambda self, number, logs=None: self.note(hook, number, logs)
    return lambda self, logs=None: self.note(hook, None, logs)


for event in ("train", "test"):
    for when in ("begin", "end"):
        setattr(Note, f"on_{event}_{when}", _noting(f"on_{event}_{when}", False))
        hook = f"on_{event}_batch_{when}"
        setattr(Note, hook, _noting(hook, True))
for when in ("begin", "end"):
    setattr(Note, f"on_epoch_{when}", _noting(f"on_epoch_{when}", True))


class StopInTheMiddle(callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        self.model.stop_training = (self.model.optimizer.iterations.numpy()) == 17


class StopBeforeItBegins(callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.model.stop_training = epoch == 2


class StopEvaluating(callbacks.Callback):
    def on_test_batch_end(self, batch, logs=None):
        self.model.stop_evaluating = batch == 1


class OneCycle(callbacks.Callback):
    """Sets the learning rate for each step, from what Keras says of the run."""

    def on_train_begin(self, logs=None):
        self.step, self.steps = 0, self.params["epochs"] * self.params["steps"]

    def on_train_batch_begin(self, batch, logs=None):
        self.model.optimizer.learning_rate = 0.05 * np.sin(np.pi * self.step / self.steps)
        self.step += 1


class OldNames(callbacks.Callback):
    """The hooks as they were called in older books."""

    def on_batch_end(self, batch, logs=None):
        if logs["loss"] < 1:
            self.model.optimizer.learning_rate = 0.001


class AddsToLogs(callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        logs["gap"] = logs["accuracy"] - logs["val_accuracy"]


class LooksAtTheModel(callbacks.Callback):
    """Reads what the model knows of its own training."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_epoch_end(self, epoch, logs=None):
        results = self.model.get_metrics_result()
        self.seen.append({name: float(value) for name, value in results.items()})
        if epoch:
            self.seen.append(dict(self.model.history.history))

    def on_train_batch_end(self, batch, logs=None):
        results = self.model.get_metrics_result()
        self.seen.append({name: float(value) for name, value in results.items()})


class Evaluates(callbacks.Callback):
    """Looks at other images after each epoch, and so resets the model's own metrics."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_epoch_end(self, epoch, logs=None):
        x, y, *_ = arrays()
        self.seen.append(self.model.evaluate(x[:20], y[:20], verbose=0))
        self.seen.append(self.model.predict(x[:3], verbose=0).tolist())


class Freeze(callbacks.Callback):
    """Puts the weights of the second epoch back at the end."""

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 1:
            self.kept = self.model.get_weights()

    def on_train_end(self, logs=None):
        self.model.set_weights(self.kept)


# Each makes its callbacks, given a folder that they may write into.
CALLBACKS = {
    "BackupAndRestore": lambda folder: [
        callbacks.BackupAndRestore(folder / "backup", delete_checkpoint=False)
    ],
    "BackupAndRestore by batch": lambda folder: [
        callbacks.BackupAndRestore(folder / "backup", save_freq=5, delete_checkpoint=False)
    ],
    "CSVLogger": lambda folder: [callbacks.CSVLogger(folder / "log.csv")],
    "CallbackList": lambda folder: callbacks.CallbackList(
        [callbacks.CSVLogger(folder / "log.csv")]
    ),
    "EarlyStopping": lambda folder: [
        callbacks.EarlyStopping("val_accuracy", patience=1, restore_best_weights=True)
    ],
    "EarlyStopping, loss": lambda folder: [callbacks.EarlyStopping("loss", min_delta=0.2)],
    "EarlyStopping, accuracy": lambda folder: [callbacks.EarlyStopping("accuracy", min_delta=0.1)],
    "History": lambda folder: [callbacks.History()],
    "LambdaCallback": lambda folder: [
        callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: (folder / f"{epoch}.json").write_text(json.dumps(logs))
        )
    ],
    "LearningRateScheduler": lambda folder: [
        callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    ],
    "ModelCheckpoint": lambda folder: [
        callbacks.ModelCheckpoint(
            folder / "{epoch}-{val_accuracy:.3f}.keras", "val_accuracy", save_best_only=True
        )
    ],
    "ModelCheckpoint, accuracy": lambda folder: [
        callbacks.ModelCheckpoint(
            folder / "{epoch}.weights.h5", "accuracy", save_weights_only=True, save_best_only=True
        )
    ],
    "ModelCheckpoint by batch": lambda folder: [
        callbacks.ModelCheckpoint(folder / "{epoch}-{batch}-{loss:.2f}.keras", save_freq=9)
    ],
    "ProgbarLogger": lambda folder: [callbacks.ProgbarLogger()],
    "ReduceLROnPlateau": lambda folder: [
        callbacks.ReduceLROnPlateau("val_accuracy", factor=0.5, patience=0, cooldown=1)
    ],
    "ReduceLROnPlateau, default": lambda folder: [
        callbacks.ReduceLROnPlateau(factor=0.5, patience=0, min_delta=0.05)
    ],
    "SwapEMAWeights": lambda folder: [callbacks.SwapEMAWeights()],
    "SwapEMAWeights on epoch": lambda folder: [
        callbacks.SwapEMAWeights(swap_on_epoch=True),
        callbacks.ModelCheckpoint(folder / "{epoch}.weights.h5", save_weights_only=True),
    ],
    "TensorBoard": lambda folder: [callbacks.TensorBoard(folder / "logs")],
    "TensorBoard by batch": lambda folder: [
        callbacks.TensorBoard(folder / "logs", histogram_freq=1, update_freq=4, write_graph=False)
    ],
    "TerminateOnNaN": lambda folder: [callbacks.TerminateOnNaN()],
    "stop in the middle of an epoch": lambda folder: [StopInTheMiddle()],
    "stop before an epoch begins": lambda folder: [StopBeforeItBegins()],
    "stop evaluating": lambda folder: [StopEvaluating()],
    "one cycle": lambda folder: [OneCycle()],
    "hooks of older books": lambda folder: [OldNames()],
    "adds to the logs": lambda folder: [AddsToLogs(), callbacks.CSVLogger(folder / "log.csv")],
    "looks at the model": lambda folder: [LooksAtTheModel()],
    "evaluates": lambda folder: [Evaluates()],
    "puts weights back": lambda folder: [Freeze()],
    "a single one, not in a list": lambda folder: callbacks.EarlyStopping("val_accuracy"),
    "several": lambda folder: [
        callbacks.ReduceLROnPlateau("val_loss", factor=0.5, patience=0),
        callbacks.EarlyStopping("val_loss", patience=2, restore_best_weights=True),
        callbacks.CSVLogger(folder / "log.csv"),
    ],
}
# What stands for no work of its own, and what needs a package or a host; see below.
ELSEWHERE = {"Callback", "OrbaxCheckpoint", "RemoteMonitor"}


def test_each_of_keras_callbacks_is_in_the_table():
    public = {name for name in dir(callbacks) if name[0].isupper()}
    assert public - ELSEWHERE <= CALLBACKS.keys()


def optimizer(name):
    return keras.optimizers.SGD(0.05, momentum=0.9, use_ema="EMA" in name)


def train_both_ways(name, folder):
    """Return, for Keras and for Trainer: the model, its callbacks, the history, the notes."""
    x, y, x_val, y_val = arrays()
    results = []
    for way in ("keras", "ours"):
        (folder / way).mkdir()
        used, note, model = CALLBACKS[name](folder / way), Note(), network()
        if isinstance(used, callbacks.CallbackList):
            used.callbacks.append(note)
            if way == "keras":  # which would take it as it is, without a model and a History
                used = used.callbacks
        else:
            used = [used, note] if isinstance(used, callbacks.Callback) else [*used, note]
        if way == "keras":
            loss, metrics = "sparse_categorical_crossentropy", ["accuracy"]
            # Nothing is recorded: so few steps take less time than a recording of them.
            model.compile(optimizer(name), loss, metrics=metrics, run_eagerly=True)
            history = model.fit(
                x, y, BATCH_SIZE, EPOCHS, 0, used, shuffle=False, validation_data=(x_val, y_val)
            ).history
        else:
            trainer = Trainer(model, "sparse_categorical_crossentropy", optimizer(name))
            history = trainer.fit(
                x, y, x_val, y_val, EPOCHS, 0,
                batch_size=BATCH_SIZE, shuffle=False, callbacks=used,
            )  # fmt: skip
        results.append((model, used, history, note))
    return results


def test_a_monitor_on_another_machine_is_told_the_same():
    told = []

    class Listener(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    x, y, *_ = arrays()
    with http.server.HTTPServer(("127.0.0.1", 0), Listener) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{server.server_port}"
        monitor = callbacks.RemoteMonitor(root, send_as_json=True)
        history = Trainer(network(), "sparse_categorical_crossentropy", "sgd").fit(
            x, y, x, y, 2, False, callbacks=[monitor]
        )
        server.shutdown()
    assert [epoch.pop("epoch") for epoch in told] == [0, 1]
    assert told == [{name: values[i] for name, values in history.items()} for i in range(2)]


@pytest.mark.parametrize("name", CALLBACKS)
def test_a_callback_works_as_in_keras(name, tmp_path, capsys):
    (theirs, their_used, expected, their_note), (ours, our_used, history, our_note) = (
        train_both_ways(name, tmp_path)
    )
    assert_same(history, expected)
    assert_same(ours.get_weights(), theirs.get_weights())
    assert_same(ours.optimizer.learning_rate.numpy(), theirs.optimizer.learning_rate.numpy())
    assert_same(our_note.calls, their_note.calls)
    assert_same(contents(tmp_path / "ours"), contents(tmp_path / "keras"))
    assert_same(ours.history.history, theirs.history.history)
    assert_same(ours.history.epoch, theirs.history.epoch)
    if isinstance(our_used, list):
        for one, other in zip(our_used, their_used, strict=True):
            assert_same(one.params, other.params)
            assert_same(getattr(one, "seen", None), getattr(other, "seen", None))


def assert_same(ours, theirs):
    """Numbers may differ by float32 round-off, and nothing else."""
    assert type(ours) is type(theirs), (ours, theirs)
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key in theirs:
            assert_same(ours[key], theirs[key])
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs), (ours, theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    elif isinstance(theirs, (float, np.ndarray, np.generic)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    else:
        assert ours == theirs


def contents(folder):
    """Return what the files in a folder hold, in a form that can be compared."""
    found, model = {}, network()
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".keras":
            found[name] = keras.models.load_model(path).get_weights()
        elif path.name.endswith(".weights.h5"):
            model.load_weights(path)
            found[name] = model.get_weights()
        elif path.suffix == ".csv":
            with open(path) as file:
                found[name] = [
                    {key: float(value) for key, value in row.items()}
                    for row in csv.DictReader(file)
                ]
        elif path.suffix == ".json":
            found[name] = json.loads(path.read_text())
        elif "tfevents" in path.name:
            found[str(path.parent.relative_to(folder))] = summaries(path)
    return found


def summaries(path):
    """Return the numbers that TensorBoard shows: step, tag and value, without times."""
    found = []
    for event in tf.compat.v1.train.summary_iterator(str(path)):
        if event.graph_def:
            found.append((event.step, "graph", None))
        for value in event.summary.value:
            tensor = tf.make_ndarray(value.tensor)
            if "steps_per_second" not in value.tag:
                found.append((event.step, value.tag, tensor if tensor.dtype.kind == "f" else None))
    return found
