"""What several test files share."""

import pathlib

import tpcnn  # noqa: F401  # isort: skip  # before TensorFlow, since it chooses how that starts
import pytest
import tensorflow as tf

# Recent GPUs would round more than the comparisons with Keras and NumPy allow for.
tf.config.experimental.enable_tensor_float_32_execution(False)

ROOT = pathlib.Path(__file__).resolve().parents[1]
# The chapters that run code, and how many figures each shows.
FIGURES = {"data": 4, "trainer": 2, "fully_connected": 6, "cnn": 6, "fashion": 6}
CHAPTERS = list(FIGURES)


@pytest.fixture(scope="session")
def html() -> pathlib.Path:
    """The folder of the built book."""
    folder = ROOT / "_build" / "html"
    if not (folder / "index.html").exists():
        pytest.fail("there is no built book: run `make book`, or `make test`, which builds it")
    return folder
