"""What must be the same for a run to go on: the network, its settings and its data, as digests."""

import base64
import functools
import hashlib
import json
import marshal
import types
import warnings

import keras
import numpy as np

from tpcnn.batches import Arrays, Stream

PASSING = ("name", "built", "compiled", "stop_training", "stop_evaluating")  # what changes, too


def fingerprint(run) -> dict[str, str]:
    """Return a digest of each thing that must be the same for a `Run` to go on, by name."""
    trainer, model = run.trainer, run.model
    parts = {
        "model": [describe(model), [(list(v.shape), v.dtype) for v in model.variables]],
        "loss function": describe(trainer.loss_function),
        "optimizer": [trainer.optimizer_description, len(trainer.optimizer.variables)],
        "training dataset": run.train,
        "validation dataset": run.val,
        "batch_size": getattr(run.train, "batch_size", None),
        "shuffle": getattr(run.train, "shuffle_seed", None) is not None,
    }
    return {name: _digest(part) for name, part in parts.items()}


def not_comparable(trainer) -> list[str]:
    """Return which parts of a `Trainer` are of a class that does not say what it is made of."""
    parts = {
        "model": trainer.model,
        "loss function": trainer.loss_function,
        "optimizer": trainer.optimizer,
    }
    return [name for name, part in parts.items() if not _is_whole(part)]


def describe(thing) -> str:
    """Return what a Keras object or a function is made of, the same in each process.

    Names and seeds are left out: Keras counts its layers up within a process, and seeds are part
    of the state.
    """
    try:
        return json.dumps(_described(thing), default=lambda value: type(value).__name__)
    except RecursionError:  # a function that holds itself
        return type(thing).__name__


def _digest(part) -> str:
    digest = hashlib.sha256()
    if isinstance(part, Stream):
        # Its images cannot be looked at without reading them all.
        part = f"{part.dataset.element_spec} {part.dataset.cardinality()}"
    if isinstance(part, Arrays):
        digest.update((_digest(part.x) + _digest(part.y)).encode())
    elif isinstance(part, np.ndarray):
        digest.update(f"{part.dtype} {part.shape}".encode())
        for start in range(0, len(part), 1024):  # a view that is not contiguous is copied
            digest.update(part[start : start + 1024].tobytes())
    else:
        digest.update(json.dumps(part).encode())
    return digest.hexdigest()


def _is_whole(thing) -> bool:
    """Whether all that a thing is made of can be told."""
    if isinstance(thing, (types.FunctionType, types.MethodType, functools.partial)):
        return True
    return type(thing).__module__.startswith("keras.") and _config(thing) is not None


def _is_function(thing) -> bool:
    """Whether a thing is a function of one's own; Keras' functions have a name."""
    own = isinstance(thing, (types.FunctionType, types.MethodType))
    return own and not (getattr(thing, "__module__", None) or "").startswith("keras.")


def _described(thing):
    if isinstance(thing, functools.partial):
        return [_described(thing.func), _described(thing.args), _described(thing.keywords)]
    if isinstance(thing, types.MethodType):
        return [_described(thing.__func__), _described(thing.__self__)]
    if _is_function(thing):
        cells = [cell.cell_contents for cell in thing.__closure__ or ()]
        return [_code(thing.__code__), _described(thing.__defaults__), _described(cells)]
    if isinstance(thing, (list, tuple)):
        return [_described(item) for item in thing]
    if isinstance(thing, dict):
        return {str(name): _described(item) for name, item in thing.items()}
    if thing is None or isinstance(thing, (bool, int, float, str)):
        return thing
    if isinstance(thing, np.ndarray):
        return _digest(thing)
    described = [type(thing).__name__, _without_names(_config(thing), {})]
    if not _is_whole(thing):
        # What else a class of one's own tells: the plain values that it holds, its layers.
        held = vars(thing) if hasattr(thing, "__dict__") else {}
        plain = (bool, int, float, str)
        described.append(
            {k: v for k, v in held.items() if k[0] != "_" and type(v) in plain and k not in PASSING}
        )
        if isinstance(thing, keras.Model):
            described += map(_described, thing._flatten_layers(include_self=False))
    return described


def _config(thing):
    """Return the config that Keras would save, None where a class does not say."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a lambda, which is not going to be loaded here
        try:
            if isinstance(thing, keras.Model):  # without how it was compiled
                return thing.get_config()
            return keras.saving.serialize_keras_object(thing)
        except (AttributeError, NotImplementedError, OSError, TypeError, ValueError):
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
