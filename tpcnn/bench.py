"""How fast we are, beside what a reader would otherwise use; run it with `make bench`.

Every comparison is between the same model, data, batch size and arithmetic, in one process, in
turn: first one, then the other, and again. What is compared are the medians, so that a pause of
the machine hits neither side alone. The first call of each, in which TensorFlow traces and
compiles, is kept apart.
"""

import argparse
import functools
import json
import math
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tpcnn import device  # first: it decides how TensorFlow starts

import keras  # isort: skip
import numpy as np
import tensorflow as tf

from tpcnn.data import load_fashion_mnist, load_mnist
from tpcnn.fused_adam import fuse
from tpcnn.lab_sheet import REQUIRED_ACCURACY
from tpcnn.models import (
    BATCH_SIZE,
    CLASSES,
    IMAGE_SHAPE,
    WEIGHT_DECAY,
    build_cnn,
    build_fashion_cnn,
    build_fc,
)
from tpcnn.trainer import Trainer

# Model, batch size of its chapter, what is asked for against the two ways to call model.fit.
MODELS = {
    "fully connected": (build_fc, BATCH_SIZE["fully_connected"], 2.0, 1.2),
    "cnn": (build_cnn, BATCH_SIZE["cnn"], 1.4, 1.1),
}
STEPS_PER_EXECUTION = (8, 32)  # besides 1, the default, and all steps of an epoch
SHARE_OF_PEAK = 0.55
RECIPE = 1.6
PREDICT = 1.3
PREDICT_BATCH = 256
# What both sides of the one-epoch recipe follow (T. Oikarinen, train_mnist_fast, 2021).
RECIPE_BATCH_SIZE, RECIPE_RATE, RECIPE_BETAS = 256, 0.01, (0.7, 0.9)


def interleaved(contenders: dict[str, Callable[[], object]], repetitions: int = 5) -> dict:
    """Time functions in turn, `repetitions` times.

    Args:
        contenders: functions without arguments, by name; each returns when its work is done.
        repetitions: how often each is timed, after a first call that is kept apart.

    Returns:
        For each name a dictionary: ``first``, the seconds of the first call, compilation
        included; ``seconds``, a list of the others; ``median``, their median.
    """
    timings = {name: {"first": seconds(call), "seconds": []} for name, call in contenders.items()}
    for _ in range(repetitions):
        for name, call in contenders.items():
            timings[name]["seconds"].append(seconds(call))
    for timing in timings.values():
        timing["median"] = float(np.median(timing["seconds"]))
    return timings


def seconds(call: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def adam_w() -> keras.optimizers.Optimizer:
    """Return the optimizer of the two networks for MNIST, at a constant learning rate."""
    return keras.optimizers.AdamW(0.001, weight_decay=WEIGHT_DECAY["cnn"])


def ours(model: keras.Model, fused: bool = True) -> Trainer:
    """Return a `Trainer` for `model`, which ends in softmax, with the optimizer of `adam_w`.

    Args:
        model: it is compiled here.
        fused: update in one pass, as a `Trainer` does; or with the operations of Keras.
    """
    trainer = Trainer(model, keras.losses.SparseCategoricalCrossentropy(), adam_w())
    if not fused:
        del trainer.optimizer.update_step  # what `tpcnn.fused_adam` has put over that of Keras
    return trainer


def keras_fit(model: keras.Model, data, batch_size: int, steps_per_execution: int = 1):
    """Return a function that trains `model` for an epoch with `keras.Model.fit`, and validates.

    Args:
        model: a model that ends in softmax; it is compiled here.
        data: ``x, y, x_val, y_val``.
        batch_size: images per step.
        steps_per_execution: how many steps Keras takes before it returns to Python.

    Returns:
        The function; it takes no arguments.
    """
    x, y, x_val, y_val = data
    model.compile(
        adam_w(),
        keras.losses.SparseCategoricalCrossentropy(),
        metrics=["accuracy"],
        steps_per_execution=steps_per_execution,
    )
    return lambda: model.fit(x, y, batch_size, epochs=1, verbose=0, validation_data=(x_val, y_val))


def compare_training(
    build, data, batch_size: int, repetitions: int = 5, several: tuple = STEPS_PER_EXECUTION
) -> dict:
    """Time an epoch of `Trainer.fit` and of `keras.Model.fit`, in turn.

    Args:
        build: function that returns a model.
        data: ``x, y, x_val, y_val``; both sides validate after the epoch.
        batch_size: images per step.
        repetitions: timed epochs of each side.
        several: numbers of steps per execution to try, beside the default, 1, and all steps of
            an epoch.

    Returns:
        As `interleaved`, for ``ours``, ``default`` and, for each number of steps per execution
        that was tried, that number as text.
    """
    trainer = ours(build())
    contenders = {
        "ours": lambda: trainer.fit(*data, 1, verbose=False, batch_size=batch_size),
        "default": keras_fit(build(), data, batch_size),
    }
    for steps in (*several, math.ceil(len(data[0]) / batch_size)):
        contenders[str(steps)] = keras_fit(build(), data, batch_size, steps)
    return interleaved(contenders, repetitions)


def compare_predict(build, x, repetitions: int = 5) -> dict:
    """Time `Trainer.predict` and `keras.Model.predict`, in turn.

    Args:
        build: function that returns a model.
        x: images, of the shape the model expects with a leading n.
        repetitions: timed predictions of each side.

    Returns:
        As `interleaved`, for ``ours`` and ``default``.
    """
    model = build()
    trainer = ours(model)
    return interleaved(
        {
            "ours": lambda: np.asarray(trainer.predict(x, PREDICT_BATCH)),
            "default": lambda: model.predict(x, PREDICT_BATCH, verbose=0),
        },
        repetitions,
    )


def matrix_product(size: int = 2048) -> Callable[[], None]:
    """Return a function that multiplies two float32 matrices of `size` rows and columns."""
    a = tf.random.normal((size, size))
    product = tf.function(lambda: tf.reduce_max(a @ a))
    return lambda: float(product())


def array_sum(numbers: int = 2**26) -> Callable[[], float]:
    """Return a function that adds one float32 array of so many numbers to another.

    It reads two arrays and writes one. By default they are larger than most processors' caches.
    """
    total, other = tf.Variable(tf.zeros(numbers)), tf.ones(numbers)
    add = tf.function(lambda: total.assign_add(other)[0])
    return lambda: float(add())


def training_operations(model: keras.Model) -> int:
    """Return the additions and multiplications of a training step, per image.

    Counted are the convolutions and dense layers. Backward, each computes two gradients, one for
    its weights and one for its inputs, and each costs what the forward pass costs. The first of
    them has no use for the second.

    Args:
        model: a built `keras.Sequential`, or a model that lists all its layers as that does.
    """
    forward = [n for layer in model.layers if (n := _operations(layer))]
    return 3 * sum(forward) - forward[0]


def _operations(layer: keras.layers.Layer) -> int:
    if isinstance(layer, keras.layers.Conv2D):
        _, height, width, _ = layer.output.shape
        return 2 * height * width * math.prod(layer.kernel.shape)
    if isinstance(layer, keras.layers.Dense):
        return 2 * math.prod(layer.kernel.shape)
    return 0


def steps_on_device(trainer: Trainer, x, y, batch_size: int) -> Callable[[], None]:
    """Return a function that takes one training step per batch, data on the device already.

    Args:
        trainer: it trains, and its weights change, with each call.
        x: images, float32, of the shape the model expects with a leading n.
        y: integer labels, shape (n,).
        batch_size: images per step; the last one may have fewer.

    Returns:
        The function; it takes no arguments, and returns when the device is done.
    """
    x, y = tf.constant(x), tf.constant(y, tf.int32)
    trainer.optimizer.build(trainer.model.trainable_variables)

    def epoch():
        trainer._train_batches(x, y, tf.range(len(x)), batch_size)
        float(trainer.train_loss.result())  # a GPU may still be at work: wait for the result

    return epoch


def parts_of_a_step(model: keras.Model, x) -> tuple[dict, dict]:
    """Take a training step to pieces that can be timed one by one.

    Args:
        model: a built `keras.Sequential`.
        x: one batch of images.

    Returns:
        Two dictionaries. By layer, and for ``optimizer``, a function that does its work for such a
        step `TIMES` times and returns when the device is done. By layer: its input, its output, and
        whether it is the first that has something to learn, or comes before that.
    """
    calls, arrays, first = {}, {}, True
    inputs = tf.constant(x)
    for layer in model.layers:
        outputs = layer(inputs, training=True)
        gradient = tf.random.normal(outputs.shape)
        calls[layer] = repeated(forth_and_back, layer, inputs, gradient, first)
        arrays[layer] = inputs, outputs, first
        first = first and not layer.weights
        inputs = outputs
    return calls | {"optimizer": update_alone(model, adam_w())}, arrays


def forth_and_back(layer, inputs, gradient, first: bool = False) -> tf.Tensor:
    """Run a layer forward on `inputs`, and backward from the gradient of its output.

    Args:
        layer: a built Keras layer.
        inputs: what goes in.
        gradient: of the shape of the output.
        first: no layer before it learns, so nothing needs the gradient of its inputs.

    Returns:
        The sum of one number of each array that was computed.
    """
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs, training=True)
    wanted = [*layer.trainable_variables, *([] if first else [inputs])]
    arrays = [outputs, *tape.gradient(outputs, wanted, gradient)]
    # One number of each, or TensorFlow would leave out what nobody uses.
    return tf.add_n([tf.reshape(array, [-1])[0] for array in arrays])


def update_alone(model: keras.Model, optimizer, fused: bool = True) -> Callable[[], float]:
    """Return a function that updates all weights of a model `TIMES` times, with any gradients."""
    optimizer.build(model.trainable_variables)
    if fused:
        fuse(optimizer)
    gradients = [tf.random.normal(weights.shape) for weights in model.trainable_variables]

    def update():
        optimizer.apply(gradients, model.trainable_variables)
        return tf.reshape(model.trainable_variables[0], [-1])[0]

    return repeated(update)


TIMES = 5


def repeated(work: Callable[..., tf.Tensor], *arguments) -> Callable[[], float]:
    """Return a function that does some work `TIMES` times, without Python in between.

    Args:
        work: returns a number; TensorFlow records it.
        arguments: for `work`.

    Returns:
        The function; it takes no arguments, and returns when the device is done.
    """

    @tf.function
    def all_of_it():
        total = tf.constant(0.0)
        for _ in tf.range(TIMES):
            total += work(*arguments)
        return total

    return lambda: float(all_of_it())


def share_of_peak(build, x, y, batch_size: int, repetitions: int = 5, size: int = 2048) -> dict:
    """Compare a training step with a large matrix product, operation for operation.

    Args:
        build: function that returns a model; see `training_operations`.
        x: images, as for `steps_on_device`.
        y: integer labels, shape (n,).
        batch_size: images per step.
        repetitions: how often each of the two is timed.
        size: rows and columns of the two float32 matrices.

    Returns:
        The timings of `interleaved`, with ``share``: operations per second of the step divided
        by those of the product.
    """
    model = build()
    contenders = {
        "step": steps_on_device(ours(model), x, y, batch_size),
        "product": matrix_product(size),
    }
    timings = interleaved(contenders, repetitions)
    speed = training_operations(model) * len(x) / timings["step"]["median"]
    timings["share"] = speed / (2 * size**3 / timings["product"]["median"])
    return timings


# What a part of an operation's name says about the layer it belongs to.
KINDS = {
    "random_": "augmentation",
    "conv2d": "convolution",
    "max_pooling": "pooling",
    "batch_normalization": "batch norm",
    "re_lu": "activation",
    "dropout": "dropout",
    "dense": "dense",
    "adam": "optimizer",
}


def time_by_kind(call: Callable[[], object]) -> dict[str, float]:
    """Return the seconds that TensorFlow's operations take during a call, by kind of layer.

    The seconds of all threads are added up; an operation that waits for others counts as well.

    Args:
        call: it has been called before, so that nothing is left to compile.

    Returns:
        Seconds for each value of `KINDS`, and for ``other``: loss and metrics.
    """
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            call()
        trace = xplane_pb2.XSpace()
        trace.ParseFromString(next(Path(folder).glob("**/*.xplane.pb")).read_bytes())

    total = dict.fromkeys([*KINDS.values(), "other"], 0.0)
    on_gpu = [plane for plane in trace.planes if plane.name.startswith("/device:GPU")]
    for plane in on_gpu or trace.planes:
        for line in plane.lines:
            for name, duration in _own_time(plane, line):
                # An operation of a graph is named by its path, "epoch/layer/operation:Type".
                if "/" in name and ":" in name:
                    found = (kind for part, kind in KINDS.items() if part in name)
                    total[next(found, "other")] += duration
    return total


def _own_time(plane, line):
    """Yield the name and the seconds of each event, less those of the events inside it."""
    open_events, own = [], []
    for event in sorted(line.events, key=lambda event: (event.offset_ps, -event.duration_ps)):
        while open_events and event.offset_ps >= open_events[-1][0]:
            open_events.pop()
        if open_events:
            own[open_events[-1][1]][1] -= event.duration_ps / 1e12
        open_events.append((event.offset_ps + event.duration_ps, len(own)))
        own.append([plane.event_metadata[event.metadata_id].name, event.duration_ps / 1e12])
    return own


def recipe_network() -> keras.Model:
    """Return the network of the one-epoch recipe (T. Oikarinen, train_mnist_fast, 2021).

    Two convolutions with pooling and a dense layer, without batch normalisation.
    """
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input(IMAGE_SHAPE),
            layers.Conv2D(24, 5),
            layers.MaxPooling2D(),
            layers.ReLU(),
            layers.Conv2D(32, 3),
            layers.MaxPooling2D(),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(256, "relu"),
            layers.Dense(CLASSES, "softmax"),
        ]
    )


def one_cycle(
    steps: int, highest: float = RECIPE_RATE
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Return the recipe's learning rate: a rise for 0.3 of the steps, then a fall to almost 0."""
    rise = int(0.3 * steps)
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=highest / 25,
        warmup_target=highest,
        warmup_steps=rise,
        decay_steps=steps - rise,
    )


def our_recipe(x, y, x_test, y_test) -> Callable[[], float]:
    """Return a function that trains anew by the recipe and returns the test accuracy."""
    steps = math.ceil(len(x) / RECIPE_BATCH_SIZE)
    optimizer = keras.optimizers.Adam(one_cycle(steps), *RECIPE_BETAS)
    loss_function = keras.losses.SparseCategoricalCrossentropy()
    trainer = Trainer(recipe_network(), loss_function, optimizer)

    def run() -> float:
        trainer.model.set_weights(recipe_network().get_weights())
        for variable in optimizer.variables:
            if variable is not optimizer.learning_rate:
                variable.assign(tf.zeros_like(variable))
        history = trainer.fit(x, y, x_test, y_test, 1, verbose=False, batch_size=RECIPE_BATCH_SIZE)
        return history["val_accuracy"][-1]

    return run


def torch_recipe(x, y, x_test, y_test) -> Callable[[], float]:
    """Return a function that does the same with PyTorch, on the same number of threads."""
    import torch
    from torch import nn

    where = "cuda" if device.gpu_names() else "cpu"
    torch.set_num_threads(tf.config.threading.get_intra_op_parallelism_threads() or os.cpu_count())

    def images(array):
        return torch.tensor(array).permute(0, 3, 1, 2).contiguous().to(where)

    def labels(array):
        return torch.tensor(array, dtype=torch.int64).to(where)

    x, x_test, y, y_test = images(x), images(x_test), labels(y), labels(y_test)

    def run() -> float:
        pool, relu = nn.MaxPool2d(2), nn.ReLU()
        first, second = nn.Conv2d(1, 24, 5), nn.Conv2d(24, 32, 3)
        dense = nn.Linear(800, 256), relu, nn.Linear(256, 10)
        model = nn.Sequential(first, pool, relu, second, pool, relu, nn.Flatten(), *dense)
        model.to(where)
        optimizer = torch.optim.Adam(model.parameters(), betas=RECIPE_BETAS)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            RECIPE_RATE,
            total_steps=math.ceil(len(x) / RECIPE_BATCH_SIZE),
            cycle_momentum=False,
        )
        order = torch.randperm(len(x), device=where)
        for batch in order.split(RECIPE_BATCH_SIZE):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            hits = [
                (model(images).argmax(1) == truth).sum()
                for images, truth in zip(
                    x_test.split(PREDICT_BATCH), y_test.split(PREDICT_BATCH), strict=True
                )
            ]
        return float(sum(hits)) / len(x_test)

    return run


def compare_recipe(repetitions: int = 5) -> dict | None:
    """Time the recipe and its PyTorch original, in turn, on the whole of MNIST.

    Returns:
        As `interleaved`, for ``ours`` and ``torch``, each with the ``accuracies`` it reached on
        the test images; None where PyTorch is not installed.
    """
    try:
        import torch  # noqa: F401
    except ImportError:
        return None
    mnist = load_mnist()
    x = np.concatenate([mnist.x_train, mnist.x_val])
    y = np.concatenate([mnist.y_train, mnist.y_val])
    data = x, y, mnist.x_test, mnist.y_test
    accuracies = {"ours": [], "torch": []}
    runs = {"ours": our_recipe(*data), "torch": torch_recipe(*data)}
    timings = interleaved(
        {name: lambda name=name: accuracies[name].append(runs[name]()) for name in runs},
        repetitions,
    )
    for name, timing in timings.items():
        timing["accuracies"] = accuracies[name]
    return timings


def seconds_to_required() -> dict[str, float | None]:
    """Train each network of the lab sheet until it has the required accuracy on validation.

    Returns:
        For each chapter of `REQUIRED_ACCURACY` the seconds it took, compilation included, or None
        where ten epochs were not enough.
    """
    networks = {
        "fully_connected": (build_fc, load_mnist),
        "cnn": (build_cnn, load_mnist),
        "fashion": (build_fashion_cnn, load_fashion_mnist),
    }
    took = {}
    for chapter, (build, load) in networks.items():
        required, data, trainer = REQUIRED_ACCURACY[chapter], load(), ours(build())
        stop = _StopAt(required)
        fit = functools.partial(
            trainer.fit,
            *(data.x_train, data.y_train, data.x_val, data.y_val, 10),
            verbose=False,
            batch_size=BATCH_SIZE[chapter],
            callbacks=[stop],
        )
        elapsed = seconds(fit)
        took[chapter] = elapsed if trainer.history["val_accuracy"][-1] >= required else None
    return took


class _StopAt(keras.callbacks.Callback):
    def __init__(self, accuracy: float):
        super().__init__()
        self.accuracy = accuracy

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = logs["val_accuracy"] >= self.accuracy


def rows(images: int, repetitions: int) -> list[dict]:
    """Run every comparison and return one row of the table for each."""
    mnist = load_mnist()
    n_val = images // 5
    data = mnist.x_train[:images], mnist.y_train[:images], mnist.x_val[:n_val], mnist.y_val[:n_val]
    table = []

    def add(what, against, reached, at_least, **more):
        row = {"what": what, "against": against, "ratio": reached, "at_least": at_least} | more
        table.append(row)
        print(as_line(row), flush=True)

    for name, (build, batch_size, at_least, at_least_of_best) in MODELS.items():
        timings = compare_training(build, data, batch_size, repetitions)
        mine = timings.pop("ours")
        best = min(timings, key=lambda steps: timings[steps]["median"])
        for steps, wanted in (("default", at_least), (best, at_least_of_best)):
            add(
                f"{name}, training",
                f"model.fit, steps_per_execution: {steps}",
                timings[steps]["median"] / mine["median"],
                wanted,
                images_per_second=images / mine["median"],
                first=[mine["first"], timings[steps]["first"]],
                seconds=[mine["seconds"], timings[steps]["seconds"]],
            )
    recipe = compare_recipe(repetitions)
    if recipe is None:
        print("| one-epoch recipe | PyTorch is not installed (extra bench) | | | | |")
    else:
        add(
            "one-epoch recipe",
            "PyTorch",
            recipe["torch"]["median"] / recipe["ours"]["median"],
            RECIPE,
            images_per_second=(len(mnist.x_train) + len(mnist.x_val)) / recipe["ours"]["median"],
            first=[recipe["ours"]["first"], recipe["torch"]["first"]],
            seconds=[recipe["ours"]["seconds"], recipe["torch"]["seconds"]],
            accuracies=[recipe["ours"]["accuracies"], recipe["torch"]["accuracies"]],
        )
    shares = share_of_peak(build_cnn, data[0], data[1], BATCH_SIZE["cnn"], repetitions)
    add(
        "cnn, training step",
        "matrix product (share of its speed)",
        shares["share"],
        SHARE_OF_PEAK,
        images_per_second=images / shares["step"]["median"],
        first=[shares["step"]["first"], shares["product"]["first"]],
        seconds=[shares["step"]["seconds"], shares["product"]["seconds"]],
    )
    for name, (build, *_) in MODELS.items():
        timings = compare_predict(build, mnist.x_test, repetitions)
        add(
            f"{name}, predict",
            "model.predict",
            timings["default"]["median"] / timings["ours"]["median"],
            PREDICT,
            images_per_second=len(mnist.x_test) / timings["ours"]["median"],
            first=[timings["ours"]["first"], timings["default"]["first"]],
            seconds=[timings["ours"]["seconds"], timings["default"]["seconds"]],
        )
    return table


HEADER = """\
| what | against | ratio | at least | images/s | first call: ours, theirs (s) |
| --- | --- | --- | --- | --- | --- |"""


def as_line(row: dict) -> str:
    """Return a row as a line of a Markdown table."""
    mine, theirs = row["first"]
    return (
        f"| {row['what']} | {row['against']} | {row['ratio']:.2f} | {row['at_least']} "
        f"| {row['images_per_second']:,.0f} | {mine:.1f}, {theirs:.1f} |"
    )


def main() -> None:
    """Write the table and all timings to a folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "--images", type=int, default=10000, choices=range(1, 50001), metavar="N",
        help="of an epoch, at most 50000 (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument(
        "--to-accuracy", action="store_true", help="time the way to the required accuracies, too"
    )
    parser.add_argument("--folder", type=Path, default=Path("_build"))
    options = parser.parse_args()
    print(
        f"On {device.describe_device()}, medians of {options.repetitions} repetitions\n\n{HEADER}"
    )
    table = rows(options.images, options.repetitions)
    options.folder.mkdir(parents=True, exist_ok=True)
    lines = [HEADER, *map(as_line, table), ""]
    (options.folder / "bench.md").write_text("\n".join(lines))
    report = {"device": device.describe_device(), "gpu": bool(device.gpu_names()), "rows": table}
    if options.to_accuracy:
        report["seconds_to_required"] = seconds_to_required()
        for chapter, took in report["seconds_to_required"].items():
            print(f"{chapter}: {took:.1f} s" if took else f"{chapter}: not reached")
    (options.folder / "bench.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
