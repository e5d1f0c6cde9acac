"""A training run on disk: written after each epoch, checked when read, gone on with when killed."""

import collections
import contextlib
import copy
import hashlib
import io
import json
import os
import re
import warnings
import weakref
from pathlib import Path

import keras
import numpy as np

from tpcnn import fingerprints
from tpcnn.callback_state import FACTORIES, MAPPINGS, SEQUENCES, CallbackState, function, plain
from tpcnn.messages import kind, warn

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

    Of a callback, those attributes are restored that have changed since its `on_train_begin` and
    are plain values (`tpcnn.callback_state`). Not restored are other objects that a callback holds,
    such as a generator of random numbers; the place in a dataset whose order changes from epoch to
    epoch; variables that Keras does not know as the model's or the optimizer's; and random numbers
    that a layer of your own draws without a `keras.random.SeedGenerator`.

    The learning rate goes on as it was. A run that a callback has ended is over, and one that has
    as many epochs as are asked for: nothing is trained. Ask for more epochs, and it goes on.

    It knows `Run` from the inside, so that `Run` need not know of files.

    Args:
        folder: where the files lie; it is made if it is missing. With None nothing is kept.
        run: the `Run`.

    Raises:
        TypeError, ValueError: `folder` is not the path of a folder.
    """

    def __init__(self, folder, run):
        self.folder = None if folder is None else _folder(folder)
        # Weak, since the `Run` holds this: both hold the images, which are let go when it ends.
        self._run = weakref.proxy(run)
        self._lock = None
        self._last = None  # the newest file that is known to be good
        self._states = []

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
        for callback in self._states:
            callback.end()
        if self._lock:
            self._lock.close()

    def restore(self) -> int | None:
        """Bring the run to where the folder's newest good file left it.

        Returns:
            The number of epochs that need no more training; None where nothing is kept.

        Raises:
            ValueError: the file belongs to another model, optimizer, dataset or setting.
            OSError: a file cannot be read, or the first one cannot be written.
            RuntimeError: another version of this module wrote the file.
        """
        if self.folder is None:
            return None
        run = self._run
        others = [c for c in run.callbacks if c is not run.history]
        self._states = [CallbackState(callback, self.folder) for callback in others]
        for callback in self._states:
            callback.begin()
        self._fingerprint = fingerprints.fingerprint(run)
        state = self._newest_good()
        if state is None:
            try:
                self._write(0)
            except OSError as error:
                raise OSError(self._unwritable(error)) from error
            return 0
        self._refuse_another(state["fingerprint"])
        if unknown := fingerprints.not_comparable(run.trainer):
            warn(
                f"checkpoints: the {', the '.join(unknown)} cannot be wholly compared with the run "
                "in the folder, since a class of your own does not say what it is made of "
                "(get_config). If you have changed it, take another folder."
            )
        for variable, value in zip(_variables(run.trainer), state["variables"], strict=True):
            variable.assign(value)
        run.best_epoch, run.best_val_loss, run.best_weights = state["best"]
        run.history.history.clear()
        run.history.history.update(state["history"])
        run.history.epoch = list(range(state["epoch"]))
        # By kind: one that is added, or left out, takes nothing from the others.
        waiting = list(self._states)
        for name, kept in state["callbacks"]:
            known = next((s for s in waiting if type(s.callback).__name__ == name), None)
            if known is not None:
                waiting.remove(known)
                known.restore(kept)
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
            warn(
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
            "stopped": epoch > 0 and run.model.stop_training,
            "history": _plain_items(run.history.history),
            "best": (run.best_epoch, run.best_val_loss, run.best_weights),
            "variables": [v.value.numpy() for v in _variables(run.trainer)],
            "callbacks": [(type(s.callback).__name__, s.changes()) for s in self._states],
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
        for path in sorted(paths, key=_epoch_of, reverse=True):
            try:
                state = read(path)
            except OSError as error:  # it may be whole, and readable again in a moment
                raise OSError(
                    f"checkpoints: cannot read {path}: {error}. Try again when the folder can be "
                    "read, or choose another one."
                ) from error
            except ValueError as error:
                older = path != min(paths, key=_epoch_of)
                instead = "the one before it is used" if older else "the run starts anew"
                warn(f"checkpoints: {path} is damaged ({error}); {instead}.", RuntimeWarning)
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


def _folder(folder) -> Path:
    """Return the path of a folder, whole, so that it stays the same where the program goes on."""
    if not isinstance(folder, (str, os.PathLike)) or not str(folder).strip():
        raise TypeError(f"checkpoints: expected the path of a folder, got {kind(folder)}.")
    if "://" in str(folder):
        raise ValueError(
            f"checkpoints: expected a folder of this machine, got {folder}. Mount it as one, or "
            "copy the folder there when the training is done."
        )
    try:
        path = Path(folder).expanduser().absolute()
        is_file = path.is_file()
    except (RuntimeError, ValueError) as error:  # no such user's home; a null byte
        raise ValueError(
            f"checkpoints: expected the path of a folder, got {folder!r} ({error})."
        ) from None
    if is_file:
        raise ValueError(f"checkpoints: expected a folder, got the file {path}. Name another one.")
    return path


def _plain_items(history: dict) -> dict:
    """Return what of a history can be written; a callback may have added anything."""
    items = {}
    for name, values in history.items():
        with contextlib.suppress(TypeError, RecursionError):
            items[name] = plain(values)
    return items


def _epoch_of(path: Path) -> int:
    return int(path.stem.removeprefix("epoch-"))


def _variables(trainer):
    """Return all that changes as a `Trainer` trains."""
    return [*trainer.model.variables, *trainer.optimizer.variables, trainer.shuffle_seed.state]


def write(path: Path, state) -> None:
    """Write a state into a file, whole or not at all.

    Args:
        path: the file; one of the same name that ends in ``.tmp`` is written on the way.
        state: numbers, texts and arrays, in nested dicts, lists, tuples and sets.

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

    Args:
        path: the file.

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
    """Return a plain value as JSON can hold it, with its arrays moved to the list `arrays`."""
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if isinstance(value, (np.ndarray, np.generic)):
        if value.dtype.name == "bfloat16":  # which NumPy's files do not know
            value = value.astype(np.float32)  # which holds it exactly
        arrays.append(np.asarray(value))
        return {"scalar" if isinstance(value, np.generic) else "array": len(arrays) - 1}
    if isinstance(value, dict):
        pairs = [[_encoded(k, arrays), _encoded(v, arrays)] for k, v in value.items()]
        if kind is collections.defaultdict:
            return {"defaultdict": [value.default_factory.__name__, pairs]}
        return {kind.__name__: pairs}
    if kind.__name__ in SEQUENCES:
        items = [_encoded(item, arrays) for item in value]
        if kind is collections.deque:
            return {"deque": [items, value.maxlen]}
        return items if kind is list else {kind.__name__: items}
    return {"function": [value.__module__, value.__name__]}


def _decoded(value, arrays):
    if isinstance(value, list):
        return [_decoded(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "array":
        return arrays[f"arr_{content}"]
    if kind == "scalar":
        return arrays[f"arr_{content}"][()]
    if kind == "defaultdict":
        factory, pairs = content
        return collections.defaultdict(FACTORIES[factory], _decoded({"dict": pairs}, arrays))
    if kind in MAPPINGS:
        return MAPPINGS[kind]({_decoded(k, arrays): _decoded(v, arrays) for k, v in content})
    if kind == "deque":
        return collections.deque(_decoded(content[0], arrays), content[1])
    if kind in SEQUENCES:
        return SEQUENCES[kind](_decoded(content, arrays))
    return function(*content)


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
