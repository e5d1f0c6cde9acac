"""What several test files share."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import tpcnn  # noqa: F401  # isort: skip  # before TensorFlow, since it chooses how that starts
import keras
import pytest
import tensorflow as tf
from contents import pages
from keras.src.trainers.trainer import model_supports_jit

# Recent GPUs would round more than the comparisons with Keras and NumPy allow for.
tf.config.experimental.enable_tensor_float_32_execution(False)

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = pages()


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


def copy_repository(folder: pathlib.Path) -> pathlib.Path:
    """Copy this repository into `folder`, as an archive of it would be; return the copy."""
    products = (".git", ".venv", "_build", "*.egg-info", "__pycache__", ".*_cache")
    return shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*products))


def make(folder: pathlib.Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """Run make in `folder`; return its status and its output.

    Where the folder has no environment of its own, it gets this one, as it is.
    """
    environment_here = folder / ".venv"
    if not environment_here.exists():
        environment_here.symlink_to(sys.prefix)
    as_they_are = [f"--old-file=.venv/.installed-{flavour}" for flavour in ("cpu", "gpu")]
    if not environment_here.is_symlink():
        as_they_are = []
    # Without what the make that runs these tests hands down.
    inherited = {k: v for k, v in os.environ.items() if "MAKE" not in k and k != "MFLAGS"}
    ended = subprocess.run(
        ["make", *as_they_are, *arguments],
        cwd=folder,
        env=inherited | environment,
        timeout=600,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return ended.returncode, ended.stdout


@pytest.fixture(scope="session")
def html() -> pathlib.Path:
    """The folder of the built book."""
    folder = ROOT / "_build" / "html"
    if not (folder / "index.html").exists():
        pytest.fail("there is no built book: run `make book`, or `make test`, which builds it")
    return folder


@pytest.fixture(scope="session")
def executed(html):
    """The executed notebook of each chapter."""
    from execution_cache import cache_folder
    from jupyter_cache import get_cache

    notebooks = {}
    for name in CHAPTERS:
        folder = cache_folder(name)
        records = get_cache(folder).list_cache_records() if folder.exists() else []
        if not records:
            pytest.fail(f"the built book is not that of this code ({name}): run `make book`")
        (record,) = records
        notebooks[name] = get_cache(folder).get_cache_bundle(record.pk).nb
    return notebooks
