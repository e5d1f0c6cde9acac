"""What several test files share."""

import pathlib

import tpcnn  # noqa: F401  # isort: skip  # before TensorFlow, since it chooses how that starts
import pytest
import tensorflow as tf

# Recent GPUs would round more than the comparisons with Keras and NumPy allow for.
tf.config.experimental.enable_tensor_float_32_execution(False)

ROOT = pathlib.Path(__file__).resolve().parents[1]
CHAPTERS = ["data", "trainer", "fully_connected", "cnn", "fashion"]


@pytest.fixture(scope="session")
def html() -> pathlib.Path:
    """The folder of the built book."""
    folder = ROOT / "_build" / "html"
    if not (folder / "index.html").exists():
        pytest.fail("there is no built book: run `make book`, or `make test`, which builds it")
    return folder
