"""A training run on disk: written after each epoch, checked when read, gone on with when killed."""

import contextlib
import copy
import hashlib
import io
import json
import os
import re
import warnings
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

try:
    import fcntl
except ImportError:  # on Windows, where nothing keeps two runs apart
    fcntl = None

FILE = re.compile(r"epoch-\d{6,}\.(ckpt|tmp)")  # what this folder may lose; all else is not ours
MARK = b"tpcnn checkpoint 1 "


class Checkpoints:
    """The folder that holds the state of one run of `Trainer.fit`.

    The state is all that decides how the run goes on: the model's variables (weights, statistics
    of batch normalisation, the state of each layer's random numbers), the optimizer's (its slots,
    step and learning rate), the order of the images, the history, the best weights so far, and
    what the callbacks count and keep. A file replaces the one before it in one step, only when it
    lies whole on the disk, so a kill at any moment leaves the last whole one.

    It knows `Trainer` from the inside, so that `Trainer` need not know of files. Used in a ``with``
    block, which keeps other runs out of the folder; the system ends that when the process ends,
    however it does.

    Args:
        folder: where the files lie; it is made if it is missing. With None nothing is kept.
        run: the `Trainer`.
        callbacks: the callbacks of this call of `fit`.
    """

    def __init__(self, folder, run, callbacks):
        self.folder = None if folder is None else Path(folder)
        self._run = run
        self._callbacks = callbacks
        self._lock = None
        self._last = None  # the newest file that is known to be good

    def __enter__(self):
        if self.folder is None:
            return self
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.folder / "lock", "ab")
        except OSError as error:
            raise OSError(self._unwritable(error)) from error
        try:
            if fcntl:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise RuntimeError(
                f"checkpoints: another fit is running on the folder {self.folder}. "
                "Wait for its end, or choose a folder of its own for each run."
            ) from None
        except OSError:
            pass  # a file system without locks, such as a mounted cloud folder
        return self

    def __exit__(self, *_):
        if self._lock:
            self._lock.close()

    def restore(self, epochs: int, inputs: dict) -> int:
        """Bring the run to where the folder's newest good file left it.

        Args:
            epochs: how many `fit` is asked for.
            inputs: the data and settings that must be the same as before, by name.

        Returns:
            The number of epochs that need no more training.

        Raises:
            ValueError: the file belongs to another model, optimizer, dataset or setting.
            OSError: a file cannot be read, or the first one cannot be written.
        """
        if self.folder is None:
            return 0
        # What a callback has set up by now belongs to this process; what it changes from here on
        # is its progress.
        self._set_up = [_numbers_of(callback) for callback in self._callbacks]
        self._fingerprint = _fingerprint(self._run, inputs)
        self._epochs = epochs
        state = self._newest_good()
        if state is None:
            try:
                self._write(0)
            except OSError as error:
                raise OSError(self._unwritable(error)) from error
            return 0
        self._refuse_another(state["fingerprint"])
        for variable, value in zip(self._variables(), state["variables"], strict=True):
            variable.assign(value)
        self._run.history = state["history"]
        self._run._best = state["best"]
        # By kind: one that is added, or left out, takes nothing from the others.
        waiting = list(self._callbacks)
        for kind, kept in state["callbacks"]:
            callback = next((c for c in waiting if type(c).__name__ == kind), None)
            if callback is not None:
                waiting.remove(callback)
                vars(callback).update(kept)
        # A callback ended that run before its time: it is over, unless more is asked for now.
        over = state["stopped"] and epochs <= state["epochs"]
        return epochs if over else state["epoch"]

    def save(self, epoch: int) -> None:
        """Write the state after `epoch` epochs; warn, and keep the older file, where that fails.

        A full disk late in a long run must not cost the run: it goes on, and may find space for
        the next file.
        """
        if self.folder is None:
            return
        try:
            self._write(epoch)
        except OSError as error:
            warnings.warn(
                f"{self._unwritable(error)} The training goes on without the checkpoint of epoch "
                f"{epoch}; if it is interrupted, it will go on from {self._last.name}.",
                RuntimeWarning,
                stacklevel=3,
            )

    def _variables(self):
        run = self._run
        return [*run.model.variables, *run.optimizer.variables, run._shuffle_seed.state]

    def _write(self, epoch):
        run = self._run
        path = self.folder / f"epoch-{epoch:06d}.ckpt"
        state = {
            "fingerprint": self._fingerprint,
            "epoch": epoch,
            "epochs": self._epochs,
            "stopped": run.model.stop_training,
            "history": run.history,
            "best": run._best,
            "variables": [v.value.numpy() for v in self._variables()],
            "callbacks": [
                (type(callback).__name__, _changes(before, _numbers_of(callback)))
                for callback, before in zip(self._callbacks, self._set_up, strict=True)
            ],
        }
        write(path, state)
        # By what was written, not by number: a damaged file may have a higher one.
        keep = {path, self._last}
        self._last = path
        for old in self._files():
            if old not in keep:
                with contextlib.suppress(OSError):
                    old.unlink()

    def _files(self):
        return [path for path in self.folder.iterdir() if FILE.fullmatch(path.name)]

    def _newest_good(self):
        """Return the newest state that can be read, or None."""
        paths = [path for path in self._files() if path.suffix == ".ckpt"]
        for path in sorted(paths, reverse=True):
            try:
                state = read(path)
            except OSError as error:  # it may be whole, and readable again in a moment
                raise OSError(
                    f"checkpoints: cannot read {path}: {error}. Try again when the folder can be "
                    "read, or choose another one."
                ) from error
            except ValueError as error:
                older = path != min(paths)
                instead = "the one before it is used" if older else "the run starts anew"
                warnings.warn(
                    f"checkpoints: {path} is damaged ({error}); {instead}.",
                    RuntimeWarning,
                    stacklevel=4,
                )
            else:
                self._last = path
                return state
        return None

    def _refuse_another(self, fingerprint):
        names = {**fingerprint, **self._fingerprint}
        other = [n for n in names if fingerprint.get(n) != self._fingerprint.get(n)]
        if other:
            raise ValueError(
                f"checkpoints: the folder {self.folder} holds a run with another "
                f"{', another '.join(other)}. Choose another folder for this run, or delete that "
                "one to start anew."
            )

    def _unwritable(self, error):
        return (
            f"checkpoints: cannot write to the folder {self.folder}: {error}. "
            "Make it writable, make space on its disk, or choose another one."
        )


def write(path: Path, state) -> None:
    """Write `state`, nested dicts and lists of numbers, text and arrays, whole or not at all.

    Raises:
        OSError: it could not be written; what `path` held before is still there.
    """
    arrays = []
    text = json.dumps(_without_arrays(state, arrays))
    content = io.BytesIO()
    np.savez(content, *arrays, state=np.array(text))
    content = content.getbuffer()
    temporary = path.with_suffix(".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(_header(content))
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    # The new name must outlive a crash of the machine too; not every file system can promise it.
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read(path: Path):
    """Return the state that `write` wrote.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not as it was written.
    """
    with open(path, "rb") as file:
        header, content = file.readline(), file.read()
    if header != _header(content):
        raise ValueError("its checksum does not match")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return _with_arrays(json.loads(str(arrays["state"])), arrays)


def description(thing) -> str:
    """Return what a Keras object was made with, the same in each process.

    Names and seeds are left out: Keras counts its layers up within a process, and seeds are part
    of the state.
    """
    try:
        config = keras.saving.serialize_keras_object(thing)
    except (NotImplementedError, TypeError, ValueError):
        config = None  # a class of one's own that does not say
    return json.dumps(
        [type(thing).__name__, _without_names(config, {})], default=lambda v: type(v).__name__
    )


def _header(content):
    return MARK + hashlib.sha256(content).hexdigest().encode() + b"\n"


def _without_arrays(value, arrays):
    """Return `value` as JSON can hold it, with its arrays moved to the list `arrays`."""
    if isinstance(value, dict):
        return {name: _without_arrays(item, arrays) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_arrays(item, arrays) for item in value]
    if isinstance(value, np.ndarray):
        if value.dtype.kind == "V":  # bfloat16, which NumPy's files do not know
            value = value.astype(np.float32)  # which holds it exactly
        arrays.append(value)
        return {"array": len(arrays) - 1}
    return value.item() if isinstance(value, np.generic) else value


def _with_arrays(value, arrays):
    if isinstance(value, dict):
        if value.keys() == {"array"}:
            return arrays[f"arr_{value['array']}"]
        return {name: _with_arrays(item, arrays) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_arrays(item, arrays) for item in value]
    return value


def _numbers_of(callback):
    """Return the numbers and arrays that a callback holds, such as those that EarlyStopping counts.

    As they are now: lists are copied.
    """
    return {
        name: copy.deepcopy(value) for name, value in vars(callback).items() if _is_numbers(value)
    }


def _is_numbers(value):
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_numbers(item) for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(_is_numbers(item) for item in value)
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biufc"
    return isinstance(value, (bool, int, float, np.number))


def _changes(before, now):
    """Return what in `now` is not as it was `before`."""
    return {
        name: value
        for name, value in now.items()
        if name not in before or _differ(before[name], value)
    }


def _differ(a, b):
    if type(a) is not type(b):
        return True
    if isinstance(a, dict):
        return a.keys() != b.keys() or any(_differ(a[name], b[name]) for name in a)
    if isinstance(a, (list, tuple)):
        return len(a) != len(b) or any(map(_differ, a, b))
    return not np.array_equal(a, b)


def _fingerprint(run, inputs):
    """Return a digest of everything that must be the same for a run to go on, by name."""
    variables = [(list(v.shape), v.dtype) for v in run.model.variables]
    parts = {
        "model": [description(run.model), variables],
        "loss function": description(run.loss_function),
        "optimizer": [run._optimizer_description, len(run.optimizer.variables)],
        **inputs,
    }
    return {name: _digest(part) for name, part in parts.items()}


def _digest(part):
    digest = hashlib.sha256()
    if isinstance(part, tf.data.Dataset):
        # Its images cannot be looked at without reading them all.
        part = f"{part.element_spec} {part.cardinality()}"
    if isinstance(part, np.ndarray):
        digest.update(f"{part.dtype} {part.shape}".encode())
        for start in range(0, len(part), 1024):  # a view that is not contiguous is copied
            digest.update(part[start : start + 1024].tobytes())
    elif isinstance(part, tuple):
        digest.update("".join(_digest(item) for item in part).encode())
    else:
        digest.update(json.dumps(part).encode())
    return digest.hexdigest()


def _without_names(config, names):
    """Return a Keras config with each layer's name replaced by its place in the order."""
    if isinstance(config, dict):
        return {
            key: names.setdefault(value, len(names))
            # The only entry of a dtype policy is its name, which means something.
            if key == "name" and len(config) > 1
            else _without_names(value, names)
            for key, value in config.items()
            if key not in ("seed", "module", "registered_name", "build_config", "compile_config")
        }
    if isinstance(config, (list, tuple)):
        # Where a layer takes its input from: name, call, output.
        if len(config) == 3 and [type(item) for item in config] == [str, int, int]:
            return [names.setdefault(config[0], len(names)), *config[1:]]
        return [_without_names(item, names) for item in config]
    return config
