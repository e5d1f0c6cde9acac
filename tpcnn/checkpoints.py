"""A training run on disk: written after each epoch, checked when read, gone on with when killed."""

import base64
import collections
import contextlib
import copy
import hashlib
import inspect
import io
import json
import marshal
import os
import re
import sys
import types
import warnings
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from tpcnn import inputs

try:
    import fcntl
except ImportError:  # on Windows, where nothing keeps two runs apart
    fcntl = None

FILE = re.compile(r"epoch-\d{6,}\.(ckpt|tmp)")  # what this folder may lose; all else is not ours
MARK = b"tpcnn checkpoint 2 "


class Checkpoints:
    """The folder that holds the state of one call of `Trainer.fit`.

    The state is all that decides how the run goes on: the model's variables (weights, statistics
    of batch normalisation, the state of each layer's random numbers), the optimizer's (its slots,
    step and learning rate), the order of the images, the history, the best weights so far, and
    what the callbacks count and keep. A file replaces the one before it in one step, only when it
    lies whole on the disk, so a kill at any moment leaves the last whole one.

    Of callbacks, those attributes are restored that have changed since their `on_train_begin` and
    are numbers, texts, arrays, functions of Keras or NumPy, or lists and dictionaries of these. Not
    restored are the place in a dataset whose order changes from epoch to epoch, and random numbers
    that a layer of your own draws without a `keras.random.SeedGenerator`.

    It knows `Run` from the inside, so that `Run` need not know of files.

    Args:
        folder: where the files lie; it is made if it is missing. With None nothing is kept.
        run: the `Run`.
    """

    def __init__(self, folder, run):
        self.folder = None if folder is None else Path(folder).expanduser()
        self._run = run
        self._lock = None
        self._last = None  # the newest file that is known to be good

    def lock(self) -> None:
        """Keep other runs out of the folder; the system ends that when the process ends.

        Raises:
            OSError: the folder cannot be written.
            RuntimeError: another run is using it.
        """
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.folder / "lock", "ab")  # noqa: SIM115
        except OSError as error:
            raise OSError(self._unwritable(error)) from error
        try:
            if fcntl:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.unlock()
            raise RuntimeError(
                f"checkpoints: another fit is running on the folder {self.folder}. "
                "Wait for its end, or choose a folder of its own for each run."
            ) from None
        except OSError:
            pass  # a file system without locks, such as a mounted cloud folder

    def unlock(self) -> None:
        """Let other runs use the folder."""
        if self._lock:
            self._lock.close()

    def restore(self) -> int | None:
        """Bring the run to where the folder's newest good file left it.

        Returns:
            The number of epochs that need no more training; None where nothing is kept.

        Raises:
            ValueError: the file belongs to another model, optimizer, dataset or setting.
            OSError: a file cannot be read, or the first one cannot be written.
        """
        if self.folder is None:
            return None
        run = self._run
        # What a callback has set up by now belongs to this process; what it changes from here on
        # is its progress.
        self._set_up = [_kept_of(callback) for callback in run.callbacks]
        self._fingerprint = _fingerprint(run)
        state = self._newest_good()
        if state is None:
            try:
                self._write(0)
            except OSError as error:
                raise OSError(self._unwritable(error)) from error
            return 0
        self._refuse_another(state["fingerprint"])
        if not _is_whole(run.model):
            inputs.warn(
                f"checkpoints: the model ({type(run.model).__name__}) has a class of your own in "
                "it. What that computes cannot be compared with the run in the folder, only the "
                "layers and weights that it holds. If you have changed it, take another folder."
            )
        for variable, value in zip(_variables(run.trainer), state["variables"], strict=True):
            variable.assign(value)
        run.best_val_loss, run.best_weights = state["best"]
        # By kind: one that is added, or left out, takes nothing from the others.
        waiting = list(run.callbacks)
        for kind, kept in state["callbacks"]:
            callback = next((c for c in waiting if type(c).__name__ == kind), None)
            if callback is not None:
                waiting.remove(callback)
                _bring_back(callback, kept)
        run.trainer.history = run.history.history
        # A callback ended that run before its time: it is over, unless more is asked for now.
        over = state["stopped"] and run.n_epochs <= state["epochs"]
        return run.n_epochs if over else state["epoch"]

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
            left = (
                f"will go on from {self._last.name}"
                if self._last.exists()
                else "will start anew, for the older one is gone too"
            )
            inputs.warn(
                f"{self._unwritable(error)} The training goes on without the checkpoint of epoch "
                f"{epoch}; if it is interrupted, it {left}.",
                RuntimeWarning,
            )

    def _write(self, epoch):
        run = self._run
        path = self.folder / f"epoch-{epoch:06d}.ckpt"
        state = {
            "fingerprint": self._fingerprint,
            "epoch": epoch,
            "epochs": run.n_epochs,
            "stopped": run.model.stop_training,
            "history": run.trainer.history,
            "best": (run.best_val_loss, run.best_weights),
            "variables": [v.value.numpy() for v in _variables(run.trainer)],
            "callbacks": [
                (type(callback).__name__, _changes(before, _kept_of(callback)))
                for callback, before in zip(run.callbacks, self._set_up, strict=True)
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
                inputs.warn(f"checkpoints: {path} is damaged ({error}); {instead}.", RuntimeWarning)
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


def _variables(trainer):
    """Return all that changes as a `Trainer` trains."""
    return [*trainer.model.variables, *trainer.optimizer.variables, trainer.shuffle_seed.state]


def write(path: Path, state) -> None:
    """Write `state`, nested containers of numbers, texts and arrays, whole or not at all.

    Raises:
        OSError: it could not be written; what `path` held before is still there.
    """
    arrays = []
    text = json.dumps(_encoded(state, arrays))
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
    # The new name must outlive a crash of the machine too; not every system can promise it.
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
        RuntimeError: another version of this module wrote it.
    """
    with open(path, "rb") as file:
        header, content = file.readline(), file.read()
    if header != _header(content):
        version = re.match(rb"tpcnn checkpoint (\d+) [0-9a-f]{64}$", header)
        if version and not header.startswith(MARK):
            raise RuntimeError(
                f"checkpoints: {path} was written by another version of tpcnn. End that run with "
                "the version that began it, or choose another folder."
            )
        raise ValueError("its checksum does not match")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return _decoded(json.loads(str(arrays["state"])), arrays)


def _header(content):
    return MARK + hashlib.sha256(content).hexdigest().encode() + b"\n"


def _encoded(value, arrays):
    """Return `value` as JSON can hold it, with its arrays moved to the list `arrays`."""
    match value:
        case None | bool() | str():
            return value
        case np.generic() | np.ndarray():
            if value.dtype.kind == "V":  # bfloat16, which NumPy's files do not know
                value = value.astype(np.float32)  # which holds it exactly
            arrays.append(np.asarray(value))
            return {"scalar" if isinstance(value, np.generic) else "array": len(arrays) - 1}
        case int() | float():
            return value
        case list():
            return [_encoded(item, arrays) for item in value]
        case tuple() | set():
            items = [_encoded(item, arrays) for item in value]
            return {"tuple" if isinstance(value, tuple) else "set": items}
        case dict():
            pairs = value.items()
            return {"dict": [[_encoded(k, arrays), _encoded(v, arrays)] for k, v in pairs]}
    return {"function": [value.__module__, value.__name__]}


def _decoded(value, arrays):
    if isinstance(value, list):
        return [_decoded(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    match kind:
        case "array":
            return arrays[f"arr_{content}"]
        case "scalar":
            return arrays[f"arr_{content}"][()]
        case "tuple":
            return tuple(_decoded(content, arrays))
        case "set":
            return set(_decoded(content, arrays))
        case "dict":
            return {_decoded(k, arrays): _decoded(v, arrays) for k, v in content}
    return _function(*content)


# What callbacks keep


def _kept_of(callback) -> dict:
    """Return what a callback holds, such as what EarlyStopping counts, as it is now.

    What is no plain value, or holds such, is left out.
    """
    kept = {}
    for name, value in vars(callback).items():
        with contextlib.suppress(TypeError):
            kept[name] = _plain(value)
    return kept


def _plain(value):
    """Return a copy of `value` that `write` can write.

    Raises:
        TypeError: there is none.
    """
    match value:
        case None | bool() | str() | int() | float() | np.generic():
            return value
        case np.ndarray() if value.dtype.kind in "biufcUV":
            return value.copy()
        case tf.Tensor() | tf.Variable() | keras.Variable():
            return keras.ops.convert_to_numpy(value)
        case tuple():
            return tuple(map(_plain, value))
        case set():
            return set(map(_plain, value))
        case list() | collections.deque():
            return list(map(_plain, value))
        case dict():
            return {_plain(k): _plain(v) for k, v in value.items()}
    # Keras' callbacks compare with a function that they choose after the first epoch.
    if _function(getattr(value, "__module__", None), getattr(value, "__name__", None)) is value:
        return value
    raise TypeError


def _function(module: str | None, name: str | None):
    """Return a function of a module that only computes, None where it is none of these."""
    if (module or "").partition(".")[0] not in ("keras", "math", "numpy", "operator", "_operator"):
        return None
    return getattr(sys.modules.get(module), name or "", None)


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


def _bring_back(callback, kept: dict) -> None:
    """Give a callback what it held; what it has shared with others stays shared."""
    for name, value in kept.items():
        held = vars(callback).get(name)
        if hasattr(held, "assign"):  # a variable
            held.assign(value)
        elif isinstance(held, (dict, set)) and isinstance(value, (dict, set)):
            held.clear()
            held.update(value)
        elif isinstance(held, (list, collections.deque)) and isinstance(value, list):
            held.clear()
            held.extend(value)
        else:
            vars(callback)[name] = value


# What must be the same for a run to go on


def _fingerprint(run):
    """Return a digest of everything that must be the same for a run to go on, by name."""
    trainer, model = run.trainer, run.model
    parts = {
        "model": [
            _description_of_model(model),
            [(list(v.shape), v.dtype) for v in model.variables],
        ],
        "loss function": description(trainer.loss_function),
        "optimizer": [trainer.optimizer_description, len(trainer.optimizer.variables)],
        "training dataset": run.train,
        "validation dataset": run.val,
        "batch_size": getattr(run.train, "batch_size", None),
        "shuffle": getattr(run.train, "shuffle_seed", None) is not None,
    }
    return {name: _digest(part) for name, part in parts.items()}


def _digest(part):
    digest = hashlib.sha256()
    if isinstance(part, inputs.Stream):
        # Its images cannot be looked at without reading them all.
        part = f"{part.dataset.element_spec} {part.dataset.cardinality()}"
    if isinstance(part, inputs.Arrays):
        digest.update((_digest(part.x) + _digest(part.y)).encode())
    elif isinstance(part, np.ndarray):
        digest.update(f"{part.dtype} {part.shape}".encode())
        for start in range(0, len(part), 1024):  # a view that is not contiguous is copied
            digest.update(part[start : start + 1024].tobytes())
    else:
        digest.update(json.dumps(part).encode())
    return digest.hexdigest()


def _is_whole(model: keras.Model) -> bool:
    """Whether Keras can say all that a model is made of."""
    return type(model).__module__.startswith("keras.") and _config(model) is not None


def _description_of_model(model: keras.Model) -> list[str]:
    # Of a model or layer of one's own that does not say, at least the layers inside.
    parts = [model] if _is_whole(model) else [model, *model._flatten_layers(include_self=False)]
    return [description(part) for part in parts]


def description(thing) -> str:
    """Return what a Keras object was made with, the same in each process.

    Names and seeds are left out: Keras counts its layers up within a process, and seeds are part
    of the state.
    """
    own = inspect.isfunction(thing) and not thing.__module__.startswith("keras.")
    config = _code(thing.__code__) if own else _config(thing)
    return json.dumps(
        [type(thing).__name__, _without_names(config, {})], default=lambda v: type(v).__name__
    )


def _config(thing):
    """Return the config that Keras would save, None where a class of one's own does not say."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a lambda, which is not going to be loaded here
        try:
            return keras.saving.serialize_keras_object(thing)
        except (NotImplementedError, OSError, TypeError, ValueError):
            return None


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
    return _code_of_lambda(config) or config


def _code_of_lambda(config):
    """Return what a lambda computes, whose compiled code Keras has put into a config as text.

    That code also names its file, which in a notebook is another one after each restart.
    """
    if not (isinstance(config, str) and config.startswith("4w") and config.endswith("\n")):
        return None
    try:
        return _code(marshal.loads(base64.b64decode(config)))
    except (AttributeError, EOFError, TypeError, ValueError):
        return None  # another text


def _code(code: types.CodeType) -> list:
    """Return what compiled code does, without where it stands."""
    constants = [
        _code(c) if isinstance(c, types.CodeType)
        else sorted(map(repr, c)) if isinstance(c, frozenset)
        else repr(c)
        for c in code.co_consts
    ]  # fmt: skip
    return [code.co_code.hex(), constants, code.co_names, code.co_varnames, code.co_freevars]


def copy_of(trainer, memo):
    """Return a `Trainer` in the same state, which goes its own way: ``copy.deepcopy(trainer)``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the model's own optimizer, which is not used
        model = copy.deepcopy(trainer.model, memo)
    optimizer = keras.optimizers.deserialize(keras.optimizers.serialize(trainer.optimizer))
    twin = memo[id(trainer)] = type(trainer)(model, trainer.loss_function, optimizer)
    if trainer.optimizer.built:
        twin.optimizer.build(model.trainable_variables)
    for variable, value in zip(_variables(twin), _variables(trainer), strict=True):
        variable.assign(value)
    twin.optimizer_description = trainer.optimizer_description
    twin.history = copy.deepcopy(trainer.history, memo)
    return twin
