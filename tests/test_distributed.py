"""DistributedTrainer, with Trainer on one device as the oracle.

Each test trains in processes of its own: devices are split, and workers meet, only as TensorFlow
starts.
"""

import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import tpcnn  # noqa: F401  # isort: skip  # before TensorFlow, since it chooses how that starts
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tpcnn import Trainer
from tpcnn.distributed import DistributedTrainer, launch

N, N_VAL = 100, 35


def arrays():
    rng = np.random.default_rng(0)
    x = rng.random((N + N_VAL, 8, 8, 1), dtype=np.float32)
    y = rng.integers(0, 10, N + N_VAL)
    return x[:N], y[:N], x[N:], y[N:]


def network(seed):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3, use_bias=False, kernel_regularizer="l2"),
            layers.MaxPooling2D(),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )


def make(kind, seed=1, optimizer=None, loss_function=None):
    return kind(
        network(seed),
        loss_function or keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        optimizer or keras.optimizers.SGD(0.05, momentum=0.9),
    )


def difference(one, other):
    """Return the largest difference between the weights, and between the histories, of two runs."""
    weights = zip(one.model.get_weights(), other.model.get_weights(), strict=True)
    assert one.history.keys() == other.history.keys()
    return (
        max(np.abs(a - b).max() for a, b in weights),
        max(np.abs(np.subtract(one.history[k], other.history[k])).max() for k in one.history),
    )


def in_a_process(function, *arguments):
    """Call a function of this file in a process of its own."""
    command = [sys.executable, __file__, function, *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def two_logical_devices():
    (cpu,) = tf.config.list_physical_devices("CPU")
    two = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(cpu, two)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    results = {}
    cases = {
        "a last batch of two": (14, lambda: keras.optimizers.SGD(0.05, momentum=0.9)),
        "a last batch of one image": (33, lambda: keras.optimizers.SGD(0.05, momentum=0.9)),
        # A large epsilon: where a gradient is nearly zero, Adam would make a step of its rounding.
        "Adam": (33, lambda: keras.optimizers.Adam(0.01, epsilon=1e-3)),
        "AdamW": (33, lambda: keras.optimizers.AdamW(0.01, epsilon=1e-3)),
    }
    for case, (batch_size, optimizer) in cases.items():
        one = make(Trainer, optimizer=optimizer())
        one.fit(*arrays(), 2, False, batch_size=batch_size)
        with strategy.scope():
            two = make(DistributedTrainer, optimizer=optimizer())
        two.fit(*arrays(), 2, False, batch_size=batch_size)
        results[case] = difference(one, two)

    batches = tf.data.Dataset.from_tensor_slices(arrays()[:2]).batch(33)
    one, (_, _, *val) = make(Trainer), arrays()
    one.fit(batches, None, *val, 2, False)
    with strategy.scope():
        two = make(DistributedTrainer)
    two.fit(batches, None, *val, 2, False)
    results["a stream"] = difference(one, two)

    # Another network under the same strategy, which diverges.
    with strategy.scope():
        wild = DistributedTrainer(
            keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(10)]),
            one.loss_function,
            keras.optimizers.SGD(1e38),
        )
    before = wild.model.get_weights()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        wild.fit(*arrays(), 3, False, batch_size=14)
    results["diverged"] = str(caught[-1].message), caught[-1].filename
    results["weights are back"] = all(map(np.array_equal, before, wild.model.get_weights()))

    made_outside = network(1)
    mistakes = {
        "model": lambda: DistributedTrainer(made_outside, one.loss_function, "sgd"),
        "LossScale": lambda: make(
            DistributedTrainer,
            optimizer=keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()),
        ),
        "clipnorm": lambda: make(DistributedTrainer, optimizer=keras.optimizers.SGD(clipnorm=1.0)),
        "ignore_class": lambda: make(
            DistributedTrainer,
            loss_function=keras.losses.SparseCategoricalCrossentropy(ignore_class=1),
        ),
        "reduction": lambda: make(
            DistributedTrainer,
            loss_function=keras.losses.SparseCategoricalCrossentropy(reduction="sum"),
        ),
    }
    with strategy.scope():
        for name, mistake in mistakes.items():
            try:
                mistake()
            except ValueError as error:
                results[name] = str(error)
        try:
            make(Trainer)
        except ValueError as error:
            results["Trainer"] = str(error)
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        try:
            make(DistributedTrainer)
        except ValueError as error:
            results["second strategy"] = str(error)
    return results


def worker(folder, victim):
    """Train as one of two workers; the worker `victim` is killed in the third epoch, once."""
    index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    killed = Path(folder, "killed")

    class Kill(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if (index, self.epoch, batch) == (int(victim), 2, 1) and not killed.exists():
                killed.touch()
                os.kill(os.getpid(), signal.SIGKILL)

        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch

    with strategy.scope():
        trainer = make(DistributedTrainer, seed=1 + index)  # the chief's weights and order count
    trainer.fit(*arrays(), 4, batch_size=33, checkpoints=Path(folder, "run"), callbacks=[Kill()])
    result = [weight.tolist() for weight in trainer.model.get_weights()]
    Path(folder, f"worker-{index}.json").write_text(json.dumps([result, trainer.history]))


def two_workers(folder, victim):
    """Return weights and history of each of two workers, and what each printed."""
    printed = launch([__file__, "worker", folder, victim], workers=2, restarts=20, timeout=600)
    results = [json.loads(Path(folder, f"worker-{i}.json").read_text()) for i in range(2)]
    return results, printed


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return two_workers(tmp_path_factory.mktemp("uninterrupted"), victim=-1)


def test_two_devices_train_as_one_and_mistakes_are_named():
    results = in_a_process("two_logical_devices")
    for case in ["a last batch of two", "a last batch of one image", "Adam", "AdamW", "a stream"]:
        weights, history = results[case]
        assert weights < 1e-5, case
        assert history < 1e-5, case
    assert "made outside" in results["model"]
    assert "mixed_bfloat16" in results["LossScale"]
    assert "clipnorm" in results["clipnorm"]
    assert "reduction" in results["reduction"]
    assert "ignore_class" in results["ignore_class"]
    message, where = results["diverged"]
    assert "diverged: after epoch 1" in message and "from before the training" in message
    assert where == __file__ and results["weights are back"]
    assert "Take DistributedTrainer" in results["Trainer"]
    assert "expected the one that this process has used before" in results["second strategy"]


def test_two_processes_train_as_one(uninterrupted):
    results, printed = uninterrupted
    one = make(Trainer)
    one.fit(*arrays(), 4, False, batch_size=33)
    for weights, history in results:
        for ours, theirs in zip(one.model.get_weights(), weights, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
        for name in one.history:
            np.testing.assert_allclose(one.history[name], history[name], atol=1e-5)
    assert [text.count("Epoch 4/4") for text in printed] == [1, 0], "only the chief prints"


def test_a_chief_that_is_killed_and_returns_changes_nothing(uninterrupted, tmp_path):
    """The harder case: the other worker does not notice by itself. scaling.md kills that one."""
    results, _ = two_workers(tmp_path, victim=0)
    assert (tmp_path / "killed").exists()
    assert results == uninterrupted[0]


def test_a_worker_that_fails_is_reported(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("raise SystemExit('no such thing')")
    with pytest.raises(RuntimeError, match="no such thing"):
        launch([script])
    script.write_text(
        "import json, os\nraise SystemExit(json.loads(os.environ['TF_CONFIG'])['task']['index'])"
    )
    with pytest.raises(RuntimeError, match="worker 1 ended with status 1"):
        launch([script], restarts=9)  # not for ever: the other is done
    script.write_text("while True: pass")
    with pytest.raises(TimeoutError, match="not done after 1"):
        launch([script], timeout=1)


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    result = globals()[name](*arguments)
    print(json.dumps(result, default=float))
