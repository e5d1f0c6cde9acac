"""What a callback has counted and kept in a run: found, copied and given back.

These are the attributes that are plain values: numbers, texts, arrays, tensors and variables,
functions that only compute, and Python's own containers of such. Files, generators and other
objects belong to their process.
"""

import collections
import contextlib
import sys
import weakref
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

SEQUENCES = {t.__name__: t for t in (list, tuple, set, frozenset, collections.deque)}
MAPPINGS = {t.__name__: t for t in (dict, collections.Counter, collections.OrderedDict)}
# What the values of a defaultdict may begin as.
FACTORIES = {t.__name__: t for t in (int, float, list, dict, set)}
# Modules whose functions may be named in a file: they only compute.
COMPUTING = ("keras", "math", "numpy", "operator", "_operator")

# Of each callback that has been in a run: its folder, how it began that, and how it left it.
# By its id, since a callback may have no hash.
_earlier = {}


class CallbackState:
    """The state of one callback in one run.

    Args:
        callback: the callback.
        folder: where the run is kept.
    """

    def __init__(self, callback: keras.callbacks.Callback, folder: Path):
        self.callback, self.folder = callback, folder
        self._set_up = None
        self._restored = set()

    def begin(self) -> None:
        """Note what the callback has set up by now; from here on its changes are its progress."""
        now = held_by(self.callback)
        folder, at_first, at_last = _earlier.get(id(self.callback), (None, {}, {}))
        if folder == self.folder:
            # The same object as in a call of fit that was interrupted. What that has left in it
            # goes, but not what on_train_begin or the user has set since.
            for name in at_last.keys() & now.keys():
                if _differ(at_last[name], now[name]):
                    continue
                if name in at_first:
                    self._assign({name: at_first[name]})
                else:
                    delattr(self.callback, name)
            now = held_by(self.callback)
        self._set_up = now

    def end(self) -> None:
        """Note how the callback leaves the run, whether that is over or not."""
        if self._set_up is None:
            return
        key = id(self.callback)
        if key not in _earlier:
            weakref.finalize(self.callback, _earlier.pop, key)
        _earlier[key] = self.folder, self._set_up, held_by(self.callback)

    def changes(self) -> dict:
        """Return what the callback has gathered since, as plain values by name."""
        return {
            name: value
            for name, value in held_by(self.callback).items()
            if name in self._restored
            or name not in self._set_up
            or _differ(self._set_up[name], value)
        }

    def restore(self, kept: dict) -> None:
        """Give the callback what `changes` returned in another process."""
        self._restored = set(kept)
        self._assign(kept)

    def _assign(self, kept: dict) -> None:
        attributes = vars(self.callback)
        for name, value in kept.items():
            attributes[name] = _given_back(attributes.get(name), value)


def _given_back(held, value):
    """Return `value`, which was made plain, as what is held in its place now."""
    if hasattr(held, "assign"):  # a variable
        held.assign(value)
        return held
    if isinstance(held, tf.Tensor):
        return tf.convert_to_tensor(value, held.dtype)
    if type(held) is not type(value):
        return value
    if isinstance(held, dict):
        items = {name: _given_back(held.get(name), item) for name, item in value.items()}
    elif isinstance(held, (list, tuple, collections.deque)):
        old = [*held, *[None] * len(value)]
        items = [_given_back(one, item) for one, item in zip(old, value, strict=False)]
    elif isinstance(held, set):
        items = value
    else:
        return value
    if isinstance(held, tuple):
        return tuple(items)
    held.clear()  # and not replaced: others may hold it too
    (held.update if isinstance(held, (dict, set)) else held.extend)(items)
    return held


def held_by(callback) -> dict:
    """Return copies of the attributes of a callback that are plain values, by name."""
    held = {}
    for name, value in vars(callback).items():
        with contextlib.suppress(TypeError, RecursionError):
            held[name] = plain(value)
    return held


def plain(value):
    """Return a copy of a plain value.

    Raises:
        TypeError: it is none.
    """
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if isinstance(value, (tf.Tensor, tf.Variable, keras.Variable)):
        return plain(_as_numpy(value))
    if (kind is np.ndarray or isinstance(value, np.generic)) and (
        value.dtype.kind in "biufcU" or value.dtype.name == "bfloat16"
    ):
        return value.copy()
    if kind is collections.deque:
        return collections.deque(map(plain, value), value.maxlen)
    if kind in SEQUENCES.values():
        return kind(map(plain, value))
    if kind in MAPPINGS.values():
        return kind({plain(name): plain(item) for name, item in value.items()})
    if kind is collections.defaultdict and value.default_factory in FACTORIES.values():
        items = {plain(name): plain(item) for name, item in value.items()}
        return collections.defaultdict(value.default_factory, items)
    # Keras' callbacks compare with a function that they choose after the first epoch.
    if function(getattr(value, "__module__", None), getattr(value, "__name__", None)) is value:
        return value
    raise TypeError(f"{kind.__name__} is no plain value")


def function(module: str | None, name: str | None):
    """Return a function of a module that only computes, None where it is none of these."""
    if (module or "").partition(".")[0] not in COMPUTING:
        return None
    return getattr(sys.modules.get(module), name or "", None)


def _as_numpy(value):
    try:
        return np.asarray(keras.ops.convert_to_numpy(value))
    except Exception as error:  # such as a tensor of a graph, or of a type that NumPy lacks
        raise TypeError from error


def _differ(one, other) -> bool:
    if type(one) is not type(other):
        return True
    if isinstance(one, dict):
        return one.keys() != other.keys() or any(_differ(one[name], other[name]) for name in one)
    if isinstance(one, (list, tuple, collections.deque)):
        return len(one) != len(other) or any(map(_differ, one, other))
    if isinstance(one, (np.ndarray, np.generic)):
        return one.dtype != other.dtype or not np.array_equal(
            one, other, equal_nan=one.dtype.kind in "fc"
        )
    return one != other and not (one != one and other != other)  # NaN is what it was
