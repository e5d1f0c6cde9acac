"""What several test files share."""

import pathlib

import pytest

import tpcnn  # first: it decides how TensorFlow starts  # noqa: F401

ROOT = pathlib.Path(__file__).resolve().parents[1]
CHAPTERS = ["data", "trainer", "fully_connected", "cnn", "fashion"]


@pytest.fixture(scope="session")
def html() -> pathlib.Path:
    """The folder of the built book."""
    folder = ROOT / "_build" / "html"
    if not (folder / "index.html").exists():
        pytest.fail("there is no built book: run `make book`, or `make test`, which builds it")
    return folder
