"""Runs that are killed, and what is left of them on the disk.

Run as a script, this file trains in a child process for each line that it is sent, so that twenty
runs can be killed for one start of TensorFlow.
"""

import tpcnn  # isort: skip  # before TensorFlow, since it chooses how that starts
import collections
import contextlib
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import with_xla_too
from keras import layers

EPOCHS = 40
KILLS = 20


def arrays():
    rng = np.random.default_rng(0)
    x = rng.random((90, 6, 6, 1), dtype=np.float32)
    y = rng.integers(0, 3, 90)
    return x[:70], y[:70], x[70:], y[70:]


def full():
    """A run with everything whose state must not be lost: see `Checkpoints`."""
    cosine = keras.optimizers.schedules.CosineDecay(0.01, decay_steps=EPOCHS * 5)
    return simple(
        keras.optimizers.Adam(cosine),
        first=(layers.RandomFlip("horizontal"), layers.BatchNormalization()),
    )


def simple(optimizer=None, units=8, first=(), **loss):
    """A run that is quick to start."""
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            *first,
            layers.Flatten(),
            layers.Dense(units, activation="relu"),
            layers.Dropout(0.3),
            layers.Dense(3),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, **loss)
    return tpcnn.Trainer(model, loss, optimizer or keras.optimizers.SGD(0.05, momentum=0.9))


def everything(trainer):
    """Return the state of a run after `fit`, in a form that can be compared."""
    variables = [*trainer.model.variables, *trainer.optimizer.variables]
    return [v.value.numpy().tolist() for v in variables], trainer.history


# Runs that are killed


class Report(keras.callbacks.Callback):
    """Writes a byte at the start of the training and at the end of each epoch."""

    def on_train_begin(self, logs=None):
        os.write(self.pipe, b".")

    def on_epoch_end(self, epoch, logs=None):
        os.write(self.pipe, b".")


def train_in_a_child(job, pipe):
    report = Report()
    report.pipe = pipe
    keras.utils.set_random_seed(0)
    trainer = full()
    if job["limit"]:
        # The system ends the process at this byte of a file, as a kill in the midst of a write.
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["limit"], resource.RLIM_INFINITY))
    trainer.fit(
        *arrays(), EPOCHS, False, batch_size=16, checkpoints=job["folder"], callbacks=[report]
    )
    with open(job["folder"] + ".end", "w") as file:
        json.dump(everything(trainer), file)


def serve():
    """Answer each job, a line of JSON, with the exit status of its child."""
    for line in sys.stdin:
        job = json.loads(line)
        reading, writing = os.pipe()
        # TensorFlow is imported here but has not run yet, and so has no threads to lose.
        child = os.fork()
        if child == 0:
            status = 1
            try:
                train_in_a_child(job, writing)
                status = 0
            finally:
                os._exit(status)
        os.close(writing)
        if job["kill"]:
            reports, delay = job["kill"]
            for _ in range(reports):
                os.read(reading, 1)
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(reading)
        print(os.waitstatus_to_exitcode(status), flush=True)


@pytest.fixture(scope="module")
def run():
    """A function that trains in a process of its own, and returns how that ended."""
    command = [sys.executable, __file__]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}  # the folders that pytest adds
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True, env=env) as server:

        def run(folder, kill=None, limit=None):
            job = {"folder": str(folder), "kill": kill, "limit": limit}
            print(json.dumps(job), file=server.stdin, flush=True)
            return int(server.stdout.readline())

        yield run
        server.stdin.close()


@pytest.fixture(scope="module")
def uninterrupted(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert run(folder) == 0
    end = folder.with_suffix(".end").read_text()
    assert len(json.loads(end)[1]["loss"]) == EPOCHS
    return end


def test_a_run_killed_at_random_moments_ends_as_if_never_killed(run, uninterrupted, tmp_path):
    moments = random.Random(0)
    kills = 0
    for number in itertools.count():
        folder = tmp_path / f"run{number}"
        while kills < KILLS:
            # From before the first epoch of a process to after its fifth, and within the next.
            kill = moments.randrange(1, 6), moments.uniform(0, 0.05)
            if run(folder, kill) == 0:
                break
            kills += 1
        assert folder.with_suffix(".end").exists() or run(folder) == 0
        assert folder.with_suffix(".end").read_text() == uninterrupted
        if kills == KILLS:
            break


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_a_kill_within_a_write_loses_nothing(run, uninterrupted, tmp_path, share):
    folder = tmp_path / "run"
    assert run(folder, kill=(4, 0)) == -signal.SIGKILL
    whole = newest(folder)
    before = whole.read_bytes()
    # The state of the next epoch is larger by the history only.
    assert run(folder, limit=int(share * len(before))) == -signal.SIGXFSZ
    assert newest(folder) == whole
    assert whole.read_bytes() == before
    assert run(folder) == 0
    assert folder.with_suffix(".end").read_text() == uninterrupted


def newest(folder):
    return max(folder.glob("epoch-*.ckpt"))


# Runs in this process


def fit(folder, epochs, make=simple, seed=0, data=None, **options):
    keras.utils.set_random_seed(seed)
    trainer = make()
    options = {"batch_size": 16, "checkpoints": folder} | options
    trainer.fit(*(data or arrays()), epochs, False, **options)
    return trainer


@pytest.fixture(scope="module")
def six_epochs():
    return everything(fit(None, 6))


@with_xla_too
def test_a_run_goes_on_to_more_epochs_and_ends_the_same(tmp_path):
    expected = everything(fit(None, 6, full))
    assert everything(fit(tmp_path, 3, full)) != expected
    # Another seed: what the new process draws must not matter.
    assert everything(fit(str(tmp_path), 6, full, seed=1)) == expected


def test_a_finished_run_is_not_trained_again(six_epochs, tmp_path):
    fit(tmp_path, 6)
    epochs = []
    again = fit(
        tmp_path,
        6,
        seed=1,
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_begin=lambda *_: epochs.append(1))],
    )
    assert epochs == []
    assert everything(again) == six_epochs


def test_two_checkpoints_are_kept(tmp_path):
    fit(tmp_path, 5)
    assert sorted(p.name for p in tmp_path.glob("epoch-*")) == [
        "epoch-000004.ckpt",
        "epoch-000005.ckpt",
    ]


def averaging():
    return simple(keras.optimizers.AdamW(0.01, use_ema=True))


def test_weights_that_the_optimizer_averages_are_those_of_one_run(tmp_path):
    expected = everything(fit(None, 4, averaging))
    fit(tmp_path, 2, averaging)
    # Twice: the second one finds a finished run.
    for _ in range(2):
        assert everything(fit(tmp_path, 4, averaging)) == expected


def patient():
    return [
        keras.callbacks.ReduceLROnPlateau("val_loss", factor=0.5, patience=2),
        keras.callbacks.EarlyStopping("val_loss", patience=4, restore_best_weights=True),
    ]


def averages_in_turn():
    # It puts the averaged weights into the model after an epoch, and back before the next.
    return [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)]


def test_weights_that_a_callback_has_swapped_are_those_of_one_run(tmp_path):
    def train(folder, *callbacks):
        callbacks = [*averages_in_turn(), *callbacks]
        return everything(fit(folder, 4, averaging, callbacks=callbacks))

    def stop(epoch, logs):
        if epoch == 2:
            raise KeyboardInterrupt

    expected = train(None)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, keras.callbacks.LambdaCallback(on_epoch_begin=stop))
    assert train(tmp_path) == expected


def test_what_a_callback_sets_up_belongs_to_its_process(tmp_path):
    class Clock(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.start, self.epochs = next(times), []

        def on_epoch_end(self, epoch, logs=None):
            self.epochs.append(epoch)

    times, first, second = iter([10, 20]), Clock(), Clock()
    fit(tmp_path, 2, callbacks=[first])
    fit(tmp_path, 4, callbacks=[keras.callbacks.TerminateOnNaN(), second])
    assert (first.start, second.start) == (10, 20)
    assert second.epochs == [0, 1, 2, 3]


def test_files_that_are_not_ours_are_left_alone(tmp_path):
    best = keras.callbacks.ModelCheckpoint(tmp_path / "epoch-{epoch:02d}.keras")
    fit(tmp_path, 4, callbacks=[best])
    assert sorted(path.name for path in tmp_path.glob("*.keras")) == [
        f"epoch-0{n}.keras" for n in range(1, 5)
    ]


class Kill(keras.callbacks.Callback):
    """Ends the process, as far as that can be had within one, when an epoch begins."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.number:
            raise KeyboardInterrupt


class Ledger(keras.callbacks.Callback):
    """Keeps accounts in every kind of container, some of them made as late as in an epoch."""

    __hash__ = None  # as that of a dataclass

    def on_train_begin(self, logs=None):
        self.last = collections.deque(maxlen=2)
        self.seen = collections.Counter()
        self.by_number = {}
        self.best, self.pair, self.better, self.text = None, (), None, ""
        self.total = tf.Variable(0.0)
        self.averages = [tf.Variable(weight) for weight in self.model.get_weights()]
        self.lowest = tf.constant(np.inf)
        self.by_sign = collections.defaultdict(list)
        self.shapes = set()

    def on_epoch_end(self, epoch, logs=None):
        if self.better is None:
            self.better, self.sign = np.less, -1
        self.sign *= -1
        loss = logs["val_loss"]
        self.last.append(loss)
        self.seen[loss < 1.1] += 1
        self.by_number[epoch] = np.float32(loss)
        self.best = np.array(loss) if self.best is None else np.minimum(self.best, loss)
        self.pair = (epoch, [loss])
        self.text += f"{epoch} "
        self.total.assign_add(loss)
        for average, weight in zip(self.averages, self.model.get_weights(), strict=True):
            average.assign(0.9 * average + 0.1 * weight)
        self.lowest = tf.minimum(self.lowest, loss)
        self.by_sign[self.sign].append(loss)
        self.shapes.add((epoch, 1))
        # What goes wrong with the accounts shows in the training.
        assert self.better(1, 2) and self.last.maxlen == 2 and self.seen["never"] == 0
        self.model.optimizer.learning_rate = 0.05 / (1 + self.seen.total() + self.sign)

    def accounts(self):
        accounts = {name: value for name, value in vars(self).items() if name != "_model"}
        numbers = [self.total, self.lowest, *self.averages]
        del accounts["total"], accounts["lowest"], accounts["averages"]
        return accounts | {"numbers": [np.asarray(number).tolist() for number in numbers]}


COUNTING = {
    "EarlyStopping": lambda: keras.callbacks.EarlyStopping("val_loss", 0.02, patience=3),
    "EarlyStopping, accuracy": lambda: keras.callbacks.EarlyStopping(
        "accuracy", 0.01, patience=2, restore_best_weights=True
    ),
    "ReduceLROnPlateau": lambda: keras.callbacks.ReduceLROnPlateau(factor=0.1, patience=1),
    "both": lambda: patient(),
    "accounts of one's own": Ledger,
}


@pytest.mark.parametrize("name", COUNTING)
def test_what_callbacks_count_goes_on_wherever_a_run_was_killed(tmp_path, name):
    def train(folder, *others):
        counting = COUNTING[name]()
        counting = counting if isinstance(counting, list) else [counting]
        ended = fit(folder, 12, callbacks=[*counting, *others])
        accounts = [c.accounts() for c in counting if isinstance(c, Ledger)]
        return everything(ended), accounts

    expected = train(None)
    epochs = len(expected[0][1]["loss"])
    assert ("Early" not in name and name != "both") or epochs < 12  # or it would show nothing
    for number in range(1, epochs):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, Kill(number))
    for _ in range(2):  # the second one finds a run that is over
        assert train(tmp_path) == expected


class Counter(keras.callbacks.Callback):
    """Counts from its making on, as `ModelCheckpoint` keeps its best result from there on."""

    def __init__(self):
        super().__init__()
        self.epochs = self.batches = 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epochs += 1

    def on_train_batch_end(self, batch, logs=None):
        self.batches += 1
        self.seen = getattr(self, "seen", 0) + 1  # made within an epoch
        if (self.epochs, self.batches) == self.kill:
            raise KeyboardInterrupt


@pytest.mark.parametrize("kill", [(1, 2), (3, 13)])
def test_a_cell_that_is_run_again_goes_on_with_the_same_callback(tmp_path, kill):
    """It still holds what it has counted in the epoch that was interrupted."""
    counter = Counter()
    counter.kill = kill
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, 5, callbacks=[counter])
    counter.kill = None
    fit(tmp_path, 4, callbacks=[counter])
    assert (counter.epochs, counter.batches, counter.seen) == (4, 20, 20)
    another = Counter()
    another.kill = None
    fit(tmp_path, 5, callbacks=[another])
    assert (another.epochs, another.batches, another.seen) == (5, 25, 25)


class Odd(keras.callbacks.Callback):
    """Keeps what no file can hold, and adds it to the results."""

    def on_epoch_end(self, epoch, logs=None):
        self.worst = tf.constant(f"{epoch}.png")
        self.itself = [self]
        self.place = Place(epoch, 0)
        logs["rate"] = self.model.optimizer.learning_rate
        logs["who"] = object()
        self.model.history.history["best"] = epoch


Place = collections.namedtuple("Place", "epoch batch")


def test_what_cannot_be_written_costs_nothing_else(six_epochs, tmp_path):
    fit(tmp_path, 3, callbacks=[Odd()])
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        ended = fit(tmp_path, 6, seed=1, callbacks=[Odd()])
    variables, history = everything(ended)
    assert variables == six_epochs[0]
    assert {name: history[name] for name in six_epochs[1]} == six_epochs[1]


def test_more_epochs_can_be_asked_for_after_an_early_end(tmp_path):
    def train(folder, epochs):
        return fit(folder, epochs, callbacks=patient())

    expected = everything(train(None, 60))
    reached = len(expected[1]["loss"])
    assert 5 < reached < 60  # it ended early, or the test would show nothing
    for epochs in (1, 3, reached - 1, 60, 60):
        ended = train(tmp_path, epochs)
    assert everything(ended) == expected


def test_a_weight_that_is_a_single_number_is_kept(tmp_path):
    """As `Normalization(axis=None)` has them."""

    def make():
        normalization = layers.Normalization(axis=None)
        normalization.adapt(arrays()[0])
        return simple(first=[normalization])

    expected = everything(fit(None, 4, make))
    fit(tmp_path, 2, make)
    assert everything(fit(tmp_path, 4, make, seed=1)) == expected


LAMBDAS = {
    "layer": "simple(first=[layers.Lambda(lambda x: {} * x)])",
    "activation": "simple(first=[layers.Dense(2, activation=lambda x: x * {})])",
    "loss": "tpcnn.Trainer(simple().model, lambda y, p: {} * sparse(y, p), 'sgd')",
    "schedule": "simple(keras.optimizers.SGD(lambda: 0.1 * {}))",
}


@pytest.mark.parametrize("kind", LAMBDAS)
def test_a_lambda_is_the_same_after_a_restart_of_the_kernel(tmp_path, kind):
    """A notebook compiles each cell under the name of a temporary file, another one each time."""

    def make_in(cell, factor):
        cell = tmp_path / cell
        cell.write_text("\n" * len(cell.name) + "made = " + LAMBDAS[kind].format(factor))
        names = globals() | {"sparse": keras.losses.sparse_categorical_crossentropy}
        exec(compile(cell.read_text(), cell, "exec"), names)
        return names["made"]

    folder = tmp_path / "run"
    fit(folder, 1, lambda: make_in("ipykernel_1.py", 0.5))
    fit(folder, 2, lambda: make_in("ipykernel_23.py", 0.5))
    with pytest.raises(ValueError, match="holds a run with another"):
        fit(folder, 3, lambda: make_in("ipykernel_23.py", 0.6))


class Secretive(keras.Model):
    """Does not say what it is made of."""

    def __init__(self, rate):
        super().__init__()
        self.flatten, self.dropout, self.dense = layers.Flatten(), layers.Dropout(rate), None
        self.dense = layers.Dense(3)

    def call(self, x, training=False):
        return self.dense(self.dropout(self.flatten(x), training=training))

    def get_config(self):
        raise NotImplementedError  # as many models of readers do, which must be kept all the same


def test_a_model_that_cannot_be_compared_is_said_to_be_so(tmp_path):
    def make(rate):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        return lambda: tpcnn.Trainer(Secretive(rate), loss, keras.optimizers.SGD(0.05))

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fit(tmp_path, 1, make(0.2))
    with pytest.warns(UserWarning, match="checkpoints: the model cannot be wholly compared"):
        fit(tmp_path, 2, make(0.2))
    with pytest.raises(ValueError, match="another model"):  # its layers say so, though it does not
        fit(tmp_path, 3, make(0.3))


def focal(gamma):
    def loss(y, predictions):
        return gamma * keras.losses.sparse_categorical_crossentropy(y, predictions, True)

    return loss


class OwnSchedule(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return 0.01


# Settings that Keras does not write down, and another value of each.
UNSAID = {
    "loss function": lambda value: tpcnn.Trainer(simple().model, focal(value), "sgd"),
    "optimizer": lambda value: simple(keras.optimizers.SGD(OwnSchedule(), momentum=value)),
}


@pytest.mark.filterwarnings("ignore:checkpoints. the optimizer cannot be wholly compared")
@pytest.mark.parametrize("part", UNSAID)
def test_what_keras_does_not_write_down_is_compared_too(tmp_path, part):
    fit(tmp_path, 1, lambda: UNSAID[part](0.5))
    fit(tmp_path, 2, lambda: UNSAID[part](0.5))
    with pytest.raises(ValueError, match=f"holds a run with another {part}"):
        fit(tmp_path, 3, lambda: UNSAID[part](0.9))


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        (5, "expected the path of a folder, got 5"),
        ("", "expected the path of a folder, got ''"),
        ("s3://bucket/run", "expected a folder of this machine"),
        ("~nobody-of-this-name/run", "expected the path of a folder, got '~nobody"),
        (__file__, "expected a folder, got the file"),
    ],
)
def test_what_is_no_folder_is_named(folder, message):
    with pytest.raises((TypeError, ValueError), match=f"checkpoints: {message}"):
        fit(folder, 1)


def test_a_folder_stays_where_it_is_when_the_program_goes_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # and back to where the other tests expect to be
    elsewhere = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: os.chdir("/"))
    fit("run", 2, callbacks=[elsewhere])
    assert newest(tmp_path / "run").name == "epoch-000002.ckpt"


def test_settings_may_be_of_numpys_types(tmp_path):
    fit(tmp_path, np.int64(1), shuffle=np.bool_(True), batch_size=np.int32(16))
    fit(tmp_path, 2, shuffle=True, batch_size=16)


def test_a_tilde_in_the_folder_stands_for_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # as a user has it, and not that of the user here
    fit("~/runs/first", 1)
    assert newest(tmp_path / "runs" / "first").name == "epoch-000001.ckpt"


def test_where_the_folder_is_deleted_no_word_is_said_of_going_on_from_it(tmp_path):
    def delete(epoch, logs):
        if epoch == 2:
            shutil.rmtree(tmp_path / "run")

    deleting = keras.callbacks.LambdaCallback(on_epoch_end=delete)
    with pytest.warns(RuntimeWarning, match="cannot write to the folder") as caught:
        fit(tmp_path / "run", 3, callbacks=[deleting])
    assert "if it is interrupted, it will start anew" in str(caught[0].message)


@pytest.mark.parametrize(
    "damage, share", [("flip", 0), ("flip", 0.01), ("flip", 0.7), ("cut", 0), ("cut", 0.7)]
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(six_epochs, tmp_path, damage, share):
    fit(tmp_path, 3)
    path = newest(tmp_path)
    content = bytearray(path.read_bytes())
    place = int(share * len(content))
    if damage == "flip":
        content[place] ^= 1 << 3
    else:
        del content[place:]
    path.write_bytes(content)
    with pytest.warns(RuntimeWarning, match="epoch-000003.ckpt is damaged.*one before it is used"):
        ended = fit(tmp_path, 6, seed=1)
    assert everything(ended) == six_epochs


def test_where_all_are_damaged_the_run_starts_anew(six_epochs, tmp_path):
    fit(tmp_path, 4)
    for path in tmp_path.glob("epoch-*"):
        path.write_bytes(b"")
    with pytest.warns(RuntimeWarning, match="damaged.*starts anew"):
        fit(tmp_path, 2)
    # The damaged ones have higher numbers, and must not get in the way.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert everything(fit(tmp_path, 6, seed=1)) == six_epochs


def other_data(i):
    data = list(arrays())
    data[i] = data[i][::-1].copy()
    return tuple(data)


OTHERS = {
    "another model": {"make": lambda: simple(units=9)},
    "another loss function": {"make": lambda: simple(ignore_class=2)},
    "another optimizer": {"make": lambda: simple(keras.optimizers.SGD(0.01, momentum=0.9))},
    "another training dataset": {"data": other_data(0)},
    "another training dataset ": {"data": other_data(1)},
    "another validation dataset": {"data": other_data(2)},
    "another batch_size": {"batch_size": 32},
    "another shuffle": {"shuffle": False},
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_checkpoint_of_another_run_is_refused(one_epoch, other):
    before = {path: path.read_bytes() for path in one_epoch.iterdir()}
    with pytest.raises(ValueError, match=rf"holds a run with {other.strip()}\. Choose another"):
        fit(one_epoch, 3, **OTHERS[other])
    assert {path: path.read_bytes() for path in one_epoch.iterdir()} == before


@pytest.fixture(scope="module")
def one_epoch(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one_epoch")
    fit(folder, 1)
    return folder


def test_an_unwritable_folder_ends_the_run_before_it_starts(tmp_path):
    (tmp_path / "file").touch()
    trainer = simple()
    before = trainer.model.get_weights()
    with pytest.raises(OSError, match=r"checkpoints: cannot write to the folder .*file.*Make it"):
        fit(tmp_path / "file" / "folder", 1, lambda: trainer)
    for first, second in zip(before, trainer.model.get_weights(), strict=True):
        np.testing.assert_array_equal(first, second)


class FullDisk(keras.callbacks.Callback):
    """No file may grow beyond a few bytes, from the end of one epoch to the end of another."""

    def __init__(self, first, last):
        super().__init__()
        self.first, self.last = first, last

    def on_epoch_end(self, epoch, logs=None):
        full = self.first <= epoch + 1 <= self.last
        limit = 1000 if full else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


def test_a_full_disk_costs_neither_the_run_nor_the_older_checkpoint(six_epochs, tmp_path):
    with pytest.warns(RuntimeWarning, match="cannot write to the folder.*make space") as caught:
        fit(tmp_path, 4, callbacks=[FullDisk(3, 3)])
    assert "epoch 3; if it is interrupted, it will go on from epoch-000002" in str(
        caught[0].message
    )
    assert newest(tmp_path).name == "epoch-000004.ckpt"
    try:
        with pytest.warns(RuntimeWarning, match="without the checkpoint of epoch 6"):
            ended = fit(tmp_path, 6, callbacks=[FullDisk(5, 6)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    assert everything(ended) == six_epochs
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "epoch-000002.ckpt",
        "epoch-000004.ckpt",
        "lock",
    ]
    assert everything(fit(tmp_path, 6, seed=1)) == six_epochs


def test_two_fits_at_once_do_not_disturb_each_other(six_epochs, tmp_path):
    keras.utils.set_random_seed(0)
    trainers = []
    for _ in range(2):
        keras.utils.set_random_seed(0)
        trainers.append(simple())
    threads = [
        threading.Thread(
            target=lambda trainer=trainer, folder=tmp_path / str(i): trainer.fit(
                *arrays(), 6, False, batch_size=16, checkpoints=folder
            )
        )
        for i, trainer in enumerate(trainers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [everything(trainer) for trainer in trainers] == [six_epochs] * 2


def test_two_fits_at_once_in_one_folder_are_refused(six_epochs, tmp_path):
    class Second(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            with pytest.raises(RuntimeError, match="another fit is running on the folder"):
                simple().fit(*arrays(), 6, False, batch_size=16, checkpoints=tmp_path)

    assert everything(fit(tmp_path, 6, callbacks=[Second()])) == six_epochs
    fit(tmp_path, 6)  # free again


def test_an_error_in_an_epoch_leaves_the_folder_free(six_epochs, tmp_path):
    def fail(epoch, logs):
        if epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, 6, callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=fail)])
    assert everything(fit(tmp_path, 6, seed=1)) == six_epochs


def stream(n=70, size=(6, 6, 1)):
    x, y, *_ = arrays()
    data = tf.data.Dataset.from_tensor_slices((np.resize(x, (n, *size)), y[:n]))
    return data.batch(16)


def test_a_run_on_a_stream_goes_on_too(tmp_path):
    def train(folder, epochs):
        data = (stream(), None, stream(), None)
        return fit(folder, epochs, data=data, batch_size=128)

    expected = everything(train(None, 4))
    train(tmp_path, 2)
    assert everything(train(tmp_path, 4)) == expected
    with pytest.raises(ValueError, match="another training dataset"):
        fit(tmp_path, 4, data=(stream(40), None, stream(), None), batch_size=128)


def test_keras_own_checkpoint_callbacks_work(six_epochs, tmp_path):
    begun = []

    def train(epochs, *callbacks):
        note = keras.callbacks.LambdaCallback(on_epoch_begin=lambda n, logs: begun.append(n))
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup", delete_checkpoint=False)
        best = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
        return fit(None, epochs, callbacks=[backup, best, note], shuffle=False)

    train(3)
    ended = train(5)
    assert begun == [0, 1, 2, 3, 4]
    saved = keras.models.load_model(tmp_path / "5.keras")
    for first, second in zip(saved.get_weights(), ended.model.get_weights(), strict=True):
        np.testing.assert_array_equal(first, second)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        serve()
