"""What several test files share."""

import pathlib
import re

import tpcnn  # noqa: F401  # isort: skip  # before TensorFlow, since it chooses how that starts
import keras
import pytest
import tensorflow as tf
from keras.src.trainers.trainer import model_supports_jit

# Recent GPUs would round more than the comparisons with Keras and NumPy allow for.
tf.config.experimental.enable_tensor_float_32_execution(False)

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = re.findall(r"(?:root|file): (\w+)", (ROOT / "_toc.yml").read_text())


def source(name: str) -> str:
    """Return the source of a page."""
    return (ROOT / "book" / f"{name}.md").read_text()


def code_cells(name: str) -> list[tuple[str, str]]:
    """Return the options of each code cell of a page, as YAML, and its code."""
    return cells_in(source(name))


def cells_in(text: str) -> list[tuple[str, str]]:
    cells = re.findall(r"(?ms)^```\{code-cell\} ipython3\n(.*?)^```$", text)
    pattern = re.compile(r"(?s)(?:---\n(.*?)---\n)?(.*)")
    return [
        (options or "", code) for options, code in (pattern.fullmatch(c).groups() for c in cells)
    ]


# The chapters that run code, and how many figures each shows.
CHAPTERS = [name for name in PAGES if "```{code-cell}" in source(name)]
FIGURES = {name: len(re.findall(r"(?m)^  figure:$", source(name))) for name in CHAPTERS}


@pytest.fixture(params=["", "XLA"])
def xla(request, monkeypatch):
    """Run a test twice, the second time with the steps compiled as Keras has them on a GPU."""
    if request.param:
        # In place of a GPU, without which Keras would not choose XLA.
        monkeypatch.setattr(keras.Model, "_resolve_auto_jit_compile", model_supports_jit)
    return bool(request.param)


with_xla_too = pytest.mark.usefixtures("xla")


@pytest.fixture(scope="session")
def html() -> pathlib.Path:
    """The folder of the built book."""
    folder = ROOT / "_build" / "html"
    if not (folder / "index.html").exists():
        pytest.fail("there is no built book: run `make book`, or `make test`, which builds it")
    return folder


@pytest.fixture(scope="session")
def executed(html):
    """The executed notebook of each chapter, from the cache for the code as it is."""
    from execution_cache import environment_key
    from jupyter_cache import get_cache

    cache = get_cache(html.parent / "executed" / environment_key())
    records = sorted(cache.list_cache_records(), key=lambda record: record.created)
    newest_of = {pathlib.Path(record.uri).stem: record.pk for record in records}
    return {name: cache.get_cache_bundle(pk).nb for name, pk in newest_of.items()}
