"""What Keras and TensorFlow must be set to, and why they see no GPU."""

import json
import os
import subprocess
import sys

import pytest
import tensorflow as tf
from conftest import ROOT

import tpcnn
from tpcnn import device


def run(*arguments, folder=ROOT, **environment):
    """Run Python with this module; return its status, what it printed, and its errors."""
    ended = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
    )
    return ended.returncode, ended.stdout, ended.stderr


@pytest.fixture
def keras_home(tmp_path):
    """Return a function that writes keras.json, and returns its folder for KERAS_HOME."""

    def write(**settings):
        (tmp_path / "keras.json").write_text(json.dumps(settings))
        return str(tmp_path)

    return write


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_another_backend_is_said_at_the_import(backend):
    status, _, errors = run("-c", "import tpcnn", KERAS_BACKEND=backend)
    assert status == 1
    assert errors.splitlines()[-1] == (
        "ImportError: tpcnn needs Keras with the backend 'tensorflow', but Keras is set to "
        f"'{backend}': set the environment variable KERAS_BACKEND to tensorflow, or remove it, "
        "start Python again (in a notebook, restart the kernel) and import tpcnn before keras."
    )


def test_keras_with_another_backend_that_was_imported_before_is_said(keras_home):
    # Where JAX is missing, that import fails, and what it has chosen stays chosen.
    script = "try:\n  import keras\nexcept ImportError:\n  pass\nimport tpcnn"
    home = keras_home(backend="jax")
    status, _, errors = run("-c", script, KERAS_HOME=home, KERAS_BACKEND="")
    assert status == 1
    assert "ImportError: tpcnn needs Keras" in errors.splitlines()[-1]
    assert "jax" in errors.splitlines()[-1]
    assert errors.splitlines()[-1].endswith("restart the kernel) and import tpcnn before keras.")


def test_keras_json_may_name_another_backend(keras_home):
    script = "import tpcnn, keras; print(keras.backend.backend(), tpcnn.build_fc().count_params())"
    home = keras_home(backend="jax")
    status, printed, errors = run("-c", script, KERAS_HOME=home, KERAS_BACKEND="")
    assert status == 0, errors
    assert printed.startswith("tensorflow ")


def test_channels_first_is_said_at_the_import(keras_home):
    home = keras_home(image_data_format="channels_first")
    status, _, errors = run("-c", "import tpcnn", KERAS_HOME=home)
    assert status == 1
    assert errors.splitlines()[-1] == (
        "ImportError: tpcnn needs Keras with the image_data_format 'channels_last', since its "
        "images have the shape (n, height, width, 1), but Keras is set to 'channels_first': "
        f"change that in {home}/keras.json, or call "
        "keras.config.set_image_data_format('channels_last') before you import tpcnn."
    )


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """A program that lists a GPU, as where there is one that TensorFlow does not see."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: Tesla T4 (UUID: GPU-1234)'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def no_gpu():
    if device.gpu_names():
        pytest.skip("TensorFlow sees a GPU here")


def why_not():
    with pytest.raises(RuntimeError, match="A GPU is required, but TensorFlow finds none") as told:
        tpcnn.require_gpu()
    return str(told.value)


def test_no_gpu_at_all_is_said(no_gpu, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "check that `nvidia-smi` lists the GPU and install TensorFlow with CUDA" in why_not()


def test_a_gpu_whose_libraries_are_missing_is_said_in_the_words_of_the_log(no_gpu, nvidia_smi):
    said = why_not()
    assert "nvidia-smi lists a GPU, but TensorFlow cannot use it. Its log says:\n" in said
    assert "libcuda.so" in said
    assert "Check that the NVIDIA driver is recent, and install TensorFlow with CUDA" in said


@pytest.mark.parametrize("visible", ["", "-1", "1", "GPU-99"])
def test_a_hidden_gpu_is_said(no_gpu, nvidia_smi, monkeypatch, visible):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert f"nvidia-smi lists a GPU, but CUDA_VISIBLE_DEVICES={visible!r} hides it" in why_not()


def test_a_tensorflow_without_cuda_is_said(no_gpu, nvidia_smi, monkeypatch):
    # No such TensorFlow is installed beside this one.
    monkeypatch.setattr(tf.test, "is_built_with_cuda", lambda: False)
    assert "but this TensorFlow is built without CUDA: uninstall it and install" in why_not()


def test_native_windows_is_said(no_gpu, nvidia_smi, monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")  # which this is not
    assert "TensorFlow uses none on native Windows: run this in WSL 2, or in Colab" in why_not()


def test_the_kind_of_device_is_written_for_the_build(nvidia_smi, tmp_path):
    def make_ready(*arguments, **environment):
        return run(
            *("-m", "tpcnn", *arguments),
            folder=tmp_path,
            CUDA_VISIBLE_DEVICES="",  # on a machine with a GPU, too, it is a CPU
            **environment,
        )

    status, _, errors = make_ready(TPCNN_REQUIRE_GPU="1")
    assert status == 1
    assert errors.splitlines()[-1].startswith("Error: A GPU is required, but TensorFlow finds none")
    assert "CUDA_VISIBLE_DEVICES='' hides it" in errors

    status, printed, errors = make_ready("--has-gpu", TPCNN_REQUIRE_GPU="0")
    assert status == 0, errors
    assert "Warning: nvidia-smi lists a GPU, but CUDA_VISIBLE_DEVICES='' hides it" in errors
    assert printed.startswith("Building on CPU: ")
    assert (tmp_path / "_build" / "device").read_text() == "cpu"
    assert [path.name for path in (tmp_path / "_build").iterdir()] == ["device"]

    status, _, errors = make_ready()
    assert status == 0
    assert "Warning" not in errors
