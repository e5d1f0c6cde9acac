"""The bench: what it counts, what it times, and what gpu-check makes of it."""

import json
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT
from results import expected

import tpcnn
from tpcnn import bench


def small_model():
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(2, 3),
            layers.Flatten(),
            layers.Dense(5, "softmax"),
        ]
    )


def data(n):
    rng = np.random.default_rng(0)
    return rng.random((n, 8, 8, 1), np.float32), rng.integers(5, size=n)


def test_operations_are_counted_as_by_hand():
    convolution = 2 * (6 * 6) * (3 * 3 * 1 * 2)
    dense = 2 * (6 * 6 * 2) * 5
    assert bench.training_operations(small_model()) == 2 * convolution + 3 * dense


def test_contenders_take_turns_after_a_first_call():
    calls = []
    timings = bench.interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b"] * 4
    assert len(timings["a"]["seconds"]) == 3
    assert timings["a"]["median"] == sorted(timings["a"]["seconds"])[1]


def test_both_sides_of_a_comparison_are_timed():
    x, y = data(40)
    timings = bench.compare_training(small_model, (x, y, x, y), 16, repetitions=1, several=(2,))
    assert list(timings) == ["ours", "default", "2", "3"]
    assert all(timing["median"] > 0 for timing in timings.values())
    predicting = bench.compare_predict(small_model, x, repetitions=1)
    assert list(predicting) == ["ours", "default"]


def test_the_time_of_a_step_is_split_by_kind_of_layer():
    x, y = data(32)
    call = bench.steps_on_device(bench.ours(small_model()), x, y, 16)
    call()
    times = bench.time_by_kind(call)
    for kind in ("convolution", "dense", "optimizer"):
        assert times[kind] > 0, kind
    assert times["augmentation"] == times["batch norm"] == times["activation"] == 0


def test_the_parts_of_a_step_are_its_layers_and_the_optimizer():
    model, (x, _) = small_model(), data(16)
    before = model.get_weights()
    calls, arrays = bench.parts_of_a_step(model, x)
    assert list(calls) == [*model.layers, "optimizer"]
    firsts = [first for _, _, first in arrays.values()]
    assert firsts == [True, False, False]
    (_, convolved, _), (_, flat, _), (dense_in, _, _) = arrays.values()
    assert convolved.shape == (16, 6, 6, 2) and flat is dense_in
    for layer in model.layers:
        calls[layer]()
    for one, other in zip(before, model.get_weights(), strict=True):
        assert np.array_equal(one, other)
    calls["optimizer"]()
    assert not np.array_equal(before[0], model.get_weights()[0])


@pytest.mark.parametrize("first", [True, False])
def test_a_layer_alone_does_all_of_its_work(first):
    """A number of each array is in the sum, so TensorFlow cannot leave an array out."""
    layer = keras.layers.Dense(3)
    inputs = tf.ones((4, 2))
    gradient = tf.ones_like(layer(inputs))
    kernel, bias = (np.array(weights) for weights in layer.get_weights())
    expected = (kernel.sum(axis=0) + bias)[0] + 4.0 + 4.0  # a number of y, dw and db
    if not first:
        expected += kernel[0].sum()  # of dx
    touched = bench.forth_and_back(layer, inputs, gradient, first)
    assert np.isclose(float(touched), expected, atol=1e-5)


def test_work_is_repeated_on_the_device():
    count = tf.Variable(0.0)
    assert bench.repeated(lambda step: count.assign_add(step), 2.0)() == sum([2, 4, 6, 8, 10])
    assert float(count) == 2 * bench.TIMES


def test_an_array_is_added_to_another():
    add = bench.array_sum(8)
    assert [add(), add()] == [1, 2]


def test_ours_updates_in_one_pass_unless_told_otherwise():
    fused, separate = (bench.ours(small_model(), fused) for fused in (True, False))
    assert "update_step" in vars(fused.optimizer)
    assert "update_step" not in vars(separate.optimizer)


def test_the_recipe_starts_anew_each_time():
    mnist = tpcnn.load_mnist()
    x, y = mnist.x_train[:2000], mnist.y_train[:2000]
    run = bench.our_recipe(x[:256], y[:256], x, y)
    keras.utils.set_random_seed(0)
    first = run()
    # One step, so the order of the images is without effect; other weights would answer otherwise.
    keras.utils.set_random_seed(0)
    assert run() == first
    keras.utils.set_random_seed(1)
    assert run() != first


def gpu_check(folder, device, accuracy, gpu):
    measured = {"device": device, "images_per_second": 1e5, "required_accuracy": 0.9}
    results = {
        name: figures | measured | {"seconds": 2 * figures["epochs"]}
        for name, figures in expected().items()
    }
    results["cnn"]["test_accuracy"] = accuracy
    rows = [{"what": "cnn, training", "ratio": 1.5}]
    report = {"device": device, "gpu": gpu, "rows": rows, "seconds_to_required": {"cnn": 3.0}}
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "bench.json").write_text(json.dumps(report))
    command = [sys.executable, ROOT / "book" / "_programs" / "gpu_check.py", folder]
    ended = subprocess.run(command, capture_output=True, text=True)
    return ended.returncode, ended.stdout, ended.stderr


def test_gpu_check_prints_a_table_where_a_gpu_did_it(tmp_path):
    status, printed, _ = gpu_check(tmp_path, "GPU: X", 0.9961, gpu=True)
    assert status == 0
    assert "| cnn | GPU: X | 2.00 | 3.0 | 1.50 |" in printed


@pytest.mark.parametrize(
    ("device", "accuracy", "gpu", "said"),
    [
        ("CPU: 2 cores", 0.9961, True, "was trained on CPU: 2 cores"),
        ("GPU: X", 0.95, True, "cnn: test_accuracy is 0.9500"),
        ("GPU: X", 0.9961, False, "the bench ran on"),
    ],
)
def test_gpu_check_fails_in_one_line(tmp_path, device, accuracy, gpu, said):
    status, _, complained = gpu_check(tmp_path, device, accuracy, gpu)
    assert status != 0
    assert said in complained and complained.count("\n") == 1


# With a GPU the command would build the whole book, and that is what it is for.
@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a GPU")
def test_gpu_check_without_a_gpu_stops_at_once():
    ended = subprocess.run(["make", "gpu-check"], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode != 0
    assert ended.stderr.splitlines()[0].startswith("make: gpu-check needs a GPU")
    assert not tpcnn.device.gpu_names()
