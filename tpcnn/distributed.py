"""DistributedTrainer: the same training on several devices of a machine, or on several machines.

The engine is `tf.distribute`: `tf.distribute.MirroredStrategy` for the GPUs of one machine,
`tf.distribute.MultiWorkerMirroredStrategy` for several machines, one process (a *worker*) on each.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence

import keras
import tensorflow as tf

from tpcnn.checkpoints import Checkpoints
from tpcnn.messages import explain_errors
from tpcnn.trainer import Trainer

# What an optimizer of Keras does to the gradient of each replica by itself, before the sum.
BEFORE_THE_SUM = ("clipnorm", "clipvalue", "global_clipnorm", "gradient_accumulation_steps")


class _SharedCheckpoints(Checkpoints):
    """The folder of a run of several workers: the chief writes, all read."""

    def lock(self):
        if self.folder is None or self._run.trainer.is_chief:
            super().lock()
        else:
            self.folder.mkdir(parents=True, exist_ok=True)

    def restore(self):
        epoch = super().restore()
        if epoch is None:
            return None
        strategy = self._run.trainer.strategy
        found = sorted(set(_of_each_replica(strategy, tf.constant([epoch])).tolist()))
        if len(found) > 1:
            raise RuntimeError(
                f"checkpoints: expected the same state for each worker, got epochs {found}. "
                f"Let {self.folder} be one folder that all workers can read."
            )
        return epoch

    def _write(self, epoch):
        if self._run.trainer.is_chief:
            super()._write(epoch)


class DistributedTrainer(Trainer):
    """Train one model on the replicas of a `tf.distribute` strategy.

    Make a strategy, once in a process, and under it model, optimizer and trainer; the next model
    is made under the same strategy::

        strategy = tf.distribute.MirroredStrategy()
        for build in (build_fc, build_cnn):
            with strategy.scope():
                trainer = DistributedTrainer(build(), loss_function, keras.optimizers.Adam())
            trainer.fit(...)

    With a second strategy TensorFlow would take its sums for those of the first one, and end that
    and all that follows with an error about collective operations.

    `batch_size` is that of all replicas together. `fit` draws the batches that `Trainer` would draw
    from the same seed, and gives each replica a slice of each; the sizes of the slices differ by
    one image at most. Where a batch has fewer images than there are replicas, as the last one may,
    each replica takes all of it, with a weight of one over the number of replicas. The strategy
    adds up the gradients. So the weights are those of `Trainer`, except for:

    - round-off, since the sum is taken in another order, and its growth from step to step, which
      a large learning rate speeds up. Adam makes it large where a gradient is
      zero but for round-off, as for a bias right before batch normalisation.
    - batch normalisation: it is set to ``synchronized=True`` here, so that its mean and variance
      are those of the whole batch. It takes the variance as the mean square minus the squared
      mean, which rounds more.
    - random layers: each replica draws for its slice what `Trainer` would draw for the first
      images of the batch, and all replicas draw the same. Dropout and augmentation are as strong
      as with `Trainer`, but not the same.

    Under `tf.distribute.MultiWorkerMirroredStrategy` each worker calls `fit` with the same
    arguments, and must have all the images; weights and order of the images are those of the first
    worker, the *chief*. Callbacks run on each worker; only the chief prints, and writes
    `checkpoints`, into a folder that all workers can read. When a worker dies, `fit` raises
    `tf.errors.UnavailableError` in the others after about ten seconds. When the chief dies, the
    others may wait for ever; so each looks whether the chief still answers, and if not, ends its
    process with status 1. Start all that ended again: they go on from the last checkpoint.

    Args:
        model: as for `Trainer`.
        loss_function: as for `Trainer`; a mean over the images, not a sum.
        optimizer: as for `Trainer`, without clipping and accumulation of gradients, since Keras
            does both to each slice by itself, and without scaling of the loss (mixed_float16).

    Attributes:
        strategy: the strategy under which the trainer was made.
        is_chief: whether this process prints and writes.

    Raises:
        ValueError: the model or the optimizer was not made under the strategy, or does not suit it;
            or another strategy is in use in this process.
    """

    checkpoints_class = _SharedCheckpoints
    _strategy_of_the_process = None

    def __init__(self, model, loss_function, optimizer):
        self.strategy = tf.distribute.get_strategy()
        super().__init__(model, loss_function, optimizer)
        resolver = self.strategy.cluster_resolver
        cluster = resolver.cluster_spec().as_dict() if resolver else {}
        chief = ("chief" if "chief" in cluster else "worker", 0)
        self._chief_address = cluster[chief[0]][0] if cluster else None
        self.is_chief = not cluster or (resolver.task_type, resolver.task_id) == chief
        self._check()
        if self.strategy.num_replicas_in_sync > 1:
            for layer in model._flatten_layers():  # those of nested models too
                if isinstance(layer, keras.layers.BatchNormalization):
                    layer.synchronized = True

    @explain_errors
    def fit(self, x_train, y_train, x_val, y_val, epochs, verbose=True, **settings):
        """Train the model; arguments, result and errors are those of `Trainer.fit`.

        A `tf.data.Dataset` must give the same batches to each worker.

        Raises:
            tf.errors.UnavailableError: another worker died.
            RuntimeError: the workers found different checkpoints.
        """
        # The images stay in the main memory. Each replica fetches its slice of each batch.
        with self.strategy.scope(), tf.device("CPU:0"), self._watch_of_the_chief():
            history = super().fit(
                x_train, y_train, x_val, y_val, epochs, verbose and self.is_chief, **settings
            )
            if self._chief_address:
                # Nobody leaves before all are done: a worker would take the chief for dead.
                _of_each_replica(self.strategy, tf.constant([0]))
            return history

    @tf.function(reduce_retracing=True)
    def _train_stream(self, x, y, others, over):
        self._step(x, y)  # and no others: TensorFlow cannot add up replicas inside of a condition

    @tf.function(reduce_retracing=True)
    def _train_step(self, x, y):
        self.strategy.run(self._train_slice, args=(x, y))

    @tf.function(reduce_retracing=True)
    def _eval_step(self, x, y):
        self.strategy.run(self._eval_slice, args=(x, y))

    def _train_slice(self, x, y):
        """Take a replica's part in the step on a batch."""
        n = tf.size(y)
        x, y, weights = self._slice(x, y)
        with tf.GradientTape() as tape:
            predictions = self.model(x, training=True)
            loss = self._part_of_loss(y, predictions, weights, n)
        gradients = tape.gradient(loss, self.model.trainable_variables)
        # Keras' optimizer asks the strategy for the sum of all replicas' gradients.
        self.optimizer.apply(gradients, self.model.trainable_variables)
        self._count(self.train_loss, loss, n)
        self.train_accuracy.update_state(y, predictions, sample_weight=weights)

    def _eval_slice(self, x, y):
        n = tf.size(y)
        x, y, weights = self._slice(x, y)
        predictions = self.model(x, training=False)
        self._count(self.val_loss, self._part_of_loss(y, predictions, weights, n), n)
        self.val_accuracy.update_state(y, predictions, sample_weight=weights)

    def _slice(self, x, y):
        """Return this replica's images of a batch, their labels, and the weight of each."""
        replicas = self.strategy.num_replicas_in_sync
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        n = tf.size(y)
        start, end, weight = replica * n // replicas, (replica + 1) * n // replicas, 1.0
        if n < replicas:  # never an empty slice: some kernels cannot differentiate one
            start, end, weight = 0, n, 1 / replicas
        with tf.device("CPU:0"):
            x, y = x[start:end], y[start:end]
        return tf.cast(x, tf.float32), y, tf.fill(tf.shape(y), weight)

    def _part_of_loss(self, y, predictions, weights, n):
        """Return what a slice adds to the loss of a batch of `n` images."""
        # Loss.__call__ would take the mean over the slice.
        each = getattr(self.loss_function, "call", self.loss_function)
        losses = each(tf.cast(y, tf.float32), tf.cast(predictions, tf.float32))
        mean = tf.reduce_sum(weights * tf.cast(losses, tf.float32)) / tf.cast(n, tf.float32)
        replicas = self.strategy.num_replicas_in_sync
        penalties = sum(tf.reduce_sum(tf.cast(p, tf.float32)) for p in self.model.losses)
        return mean + penalties / replicas

    def _count(self, metric, part_of_loss, n):
        # The parts add up to n times the loss of the batch, the weights to n.
        replicas = self.strategy.num_replicas_in_sync
        metric.update_state(part_of_loss * replicas, sample_weight=n / replicas)

    @contextlib.contextmanager
    def _watch_of_the_chief(self):
        """End this process when the chief no longer answers: TensorFlow would wait for ever."""
        if self.is_chief:
            yield
            return
        over = threading.Event()
        threading.Thread(target=_end_without, args=(self._chief_address, over), daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def _check(self):
        scaled = isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)
        if scaled or getattr(self.optimizer, "loss_scale_factor", None):
            raise ValueError(
                "optimizer: expected one that does not scale the loss, got "
                f"{type(self.optimizer).__name__}: each replica would judge by itself whether its "
                "gradients are finite. Use the dtype policy mixed_bfloat16, which needs no scaling."
            )
        if self.strategy.num_replicas_in_sync == 1:
            return
        first = DistributedTrainer._strategy_of_the_process or self.strategy
        if first is not self.strategy:
            raise ValueError(
                "strategy: expected the one that this process has used before, got another "
                f"{type(self.strategy).__name__}. Make one strategy at the start, and every model "
                "under it; for other devices start Python anew."
            )
        made_here = self.strategy.extended.variable_created_in_scope
        for name, variables in [
            ("model", self.model.variables),
            ("optimizer", [self.optimizer.iterations]),
        ]:
            if not all(made_here(variable.value) for variable in variables):
                raise ValueError(
                    f"{name}: expected one made under the strategy, got one made outside. "
                    f"Make the {name} in the block `with strategy.scope():` too."
                )
        for optimizer in getattr(self.optimizer, "optimizers", [self.optimizer]):
            for name in BEFORE_THE_SUM:
                if getattr(optimizer, name, None):
                    raise ValueError(
                        f"optimizer: expected no {name}, got {getattr(optimizer, name)}. Keras "
                        "would apply it to each slice by itself, which is another training."
                    )
        self._check_loss()
        DistributedTrainer._strategy_of_the_process = first

    def _check_loss(self):
        loss = self.loss_function
        if not isinstance(loss, keras.losses.Loss):
            return
        if loss.reduction in ("sum", None, "none"):
            raise ValueError(
                "loss_function: expected a mean over the images, got "
                f"reduction={loss.reduction!r}. Leave `reduction` out."
            )
        own = type(loss).__call__ is not keras.losses.Loss.__call__
        if own or getattr(loss, "ignore_class", None) is not None:
            found = f"the __call__ of {type(loss).__name__}" if own else "an ignore_class"
            raise ValueError(
                f"loss_function: expected a mean over all images of a batch, got {found}, of which "
                "a replica, with its slice, cannot say what part it is. Put what it does into the "
                "method call, which returns a loss for each image."
            )


@tf.function
def _gather(strategy, value):
    def gather():
        # A tensor of this replica's device: the strategy looks where it lies.
        return tf.distribute.get_replica_context().all_gather(tf.identity(value), axis=0)

    return strategy.run(gather)


def _of_each_replica(strategy, value):
    return strategy.experimental_local_results(_gather(strategy, value))[0].numpy()


def launch(
    script: Sequence[str], workers: int = 2, restarts: int = 0, timeout: float = 300
) -> list[str]:
    """Run a Python script in several processes of this machine, as workers of one training.

    Each finds its place in the environment variable ``TF_CONFIG``, where
    `tf.distribute.MultiWorkerMirroredStrategy` looks for it. They talk to each other by TCP on
    127.0.0.1.

    Args:
        script: file name of the script, then its arguments.
        workers: how many processes.
        restarts: how often, in total, a process that failed is started again.
        timeout: seconds after which all are killed.

    Returns:
        What each worker printed, its restarts included.

    Raises:
        RuntimeError: a worker failed, and no restart was left, or the others were done.
        TimeoutError: the time is over.
    """
    cluster = {"worker": [f"127.0.0.1:{port}" for port in _free_ports(workers)]}
    deadline = time.monotonic() + timeout
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(workers)]
        processes = {}
        stack.callback(lambda: [(p.kill(), p.wait()) for p in processes.values()])

        def start(worker):
            config = {"cluster": cluster, "task": {"type": "worker", "index": worker}}
            processes[worker] = subprocess.Popen(
                [sys.executable, *map(str, script)],
                # They find the modules that this process finds.
                env=os.environ
                | {"TF_CONFIG": json.dumps(config), "PYTHONPATH": os.pathsep.join(sys.path)},
                stdout=logs[worker],
                stderr=subprocess.STDOUT,
            )

        for worker in range(workers):
            start(worker)
        while any(process.poll() != 0 for process in processes.values()):
            for worker, process in processes.items():
                if not process.poll():
                    continue
                alone = any(other.poll() == 0 for other in processes.values())
                if alone or not restarts:
                    others = ""
                    if alone:
                        others = " when others were done, so it would wait for them for ever"
                    raise RuntimeError(
                        f"launch: worker {worker} ended with status {process.returncode}{others}. "
                        f"It printed:\n{_text(logs[worker])[-4000:]}"
                    )
                restarts -= 1
                start(worker)
            if time.monotonic() > deadline:
                raise TimeoutError(f"launch: the workers were not done after {timeout} s.")
            time.sleep(0.1)
        return [_text(log) for log in logs]


def _text(log):
    log.seek(0)
    return log.read().decode(errors="replace")


def _free_ports(n):
    # All at once, so that they differ. Another program could take one before TensorFlow does.
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _end_without(address, over, every=2, misses=3):
    """End this process when nothing answers at an address any more, unless the event is set."""
    host, port = address.rsplit(":", 1)
    missed = 0
    while missed < misses:
        if over.wait(every):
            return
        try:
            socket.create_connection((host, int(port)), timeout=every).close()
            missed = 0
        except OSError:
            missed += 1
    print(f"The first worker, at {address}, no longer answers.", file=sys.stderr, flush=True)
    os._exit(1)  # an exception would not reach a thread that waits in TensorFlow
