"""Keep executed chapters, and execute each again exactly when something that it runs has changed.

jupyter-cache, in which MyST-NB keeps them, compares the cells of a chapter and nothing else: the
code, and the options too, such as the caption of a figure. So each chapter has a cache of its own
for each state of all that its results depend on: its code, the modules of tpcnn that this reaches,
the packages that constraints.txt locks, the version of Python, and whether TensorFlow trains on a
GPU. Within it, options do not count.
"""

import ast
import functools
import hashlib
import json
import os
import re
import sys
from pathlib import Path

import grimp
import myst_nb.core.execute.cache
from jupyter_cache import get_cache
from jupyter_cache.cache.main import JupyterCacheBase
from myst_nb.core.read import myst_nb_reader_plugin
from sphinx.errors import ExtensionError

ROOT = Path(__file__).resolve().parents[2]
EXECUTED = ROOT / "_build" / "executed"
# `python -m tpcnn` asks TensorFlow, and writes here what it says: "cpu" or "gpu".
DEVICE = ROOT / "_build" / "device"
# A chapter with one of these in its code, or as the tag of a cell, may show comments and docstrings
# of the module. The last lines are IPython's: `tpcnn.split?`, `%pdoc tpcnn.split`.
SHOWS_SOURCE = re.compile(
    r"(?m)\b(?:__doc__|__file__|help|inspect|pydoc|traceback|raises-exception)\b|tpcnn/"
    r"|^\s*\?|\?\s*$"
    r"|^\s*%p(?:doc|source|info|file)"
)
# The only options of a cell that its execution depends on.
TAGS = {"raises-exception", "skip-execution"}


def cache_folder(chapter: str) -> Path | None:
    """Return the folder in which the executed cells of a chapter are kept, if it has any.

    Raises:
        ExtensionError: nothing says whether TensorFlow trains on a CPU or a GPU.
    """
    notebook = myst_nb_reader_plugin(ROOT / "book" / f"{chapter}.md")
    cells = [
        "\n".join([cell.source, *sorted(TAGS.intersection(cell.metadata.get("tags", [])))])
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]
    if not cells:
        return None
    code = "\n".join(cells)
    words = set(re.findall(r"\w+", code))
    read = _text if SHOWS_SOURCE.search(code) else _code
    state = {
        "cells": cells,
        "kernel": notebook.metadata.get("kernelspec"),
        "tpcnn": {module: read(module) for module in sorted(_reached(code, words))},
        "packages": (ROOT / "constraints.txt").read_text(),
        "python": sys.version_info[:2],
        "device": _device(),
    }
    digest = hashlib.sha256(json.dumps(state).encode()).hexdigest()
    return EXECUTED / f"{chapter}-{digest[:16]}"


def _reached(code: str, words: set[str]) -> set[str]:
    """Return the modules of tpcnn that code, with these words, imports, directly or through others.

    A module counts as imported where its name stands, be it in a string: a chapter may write a
    script and run it.
    """
    graph = _import_graph()
    named = {module for module in graph.modules if words.issuperset(module.split("."))}
    run = re.findall(r"-m\s+(tpcnn[\w.]*)", code)  # as a program
    named |= {f"{module}.__main__" for module in run} & graph.modules
    return named.union(*map(graph.find_upstream_modules, named))


@functools.cache
def _import_graph() -> grimp.ImportGraph:
    graph = grimp.build_graph("tpcnn", cache_dir=None)
    for module in graph.modules - {"tpcnn"}:  # whose import runs the package around it
        graph.add_import(importer=module, imported=module.rpartition(".")[0])
    # `import tpcnn` makes the checks available, but only the lab calls them, by their name.
    graph.remove_import(importer="tpcnn", imported="tpcnn.checks")
    return graph


@functools.cache
def _code(module: str) -> str:
    """Return a module without its comments, docstrings and layout."""
    tree = ast.parse(_text(module))
    for node in ast.walk(tree):
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return ast.dump(tree)


def _text(module: str) -> str:
    path = ROOT.joinpath(*module.split("."))
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text("utf-8")


def _device() -> str:
    device = DEVICE.read_text().strip() if DEVICE.exists() else None
    if device not in ("cpu", "gpu"):
        found = "is missing" if device is None else f"says {device!r}"
        raise ExtensionError(
            f"{DEVICE}, which must say cpu or gpu, {found}: run `make book`, which asks TensorFlow "
            "on which of them it trains."
        )
    return device


class CacheByCode(JupyterCacheBase):
    """Finds executed cells by their code, and leaves them the options that they have now."""

    def create_hashed_notebook(self, nb, **options):
        return super().create_hashed_notebook(nb, **options | {"cell_metadata": ()})

    def merge_match_into_notebook(self, nb, **options):
        return super().merge_match_into_notebook(nb, **options | {"cell_meta": ()})


# MyST-NB has no setting for it.
myst_nb.core.execute.cache.get_cache = functools.partial(get_cache, cache_cls=CacheByCode)


def choose_cache(app, docname, source):
    if folder := cache_folder(docname):
        config = app.env.mystnb_config
        app.env.mystnb_config = config.copy(execution_cache_path=str(folder))
        app.env.metadata[docname]["kept_in"] = str(folder)


def chapters_to_execute(app, env, added, changed, removed):
    """Have those read again whose text is the same, while something that they run has changed."""
    read = {name: env.metadata[name].get("kept_in") for name in env.found_docs - added}
    return [name for name, folder in read.items() if folder and folder != str(cache_folder(name))]


def note_use(app, exception):
    """Mark what this build has used, be it unread; `make book` deletes what no build uses."""
    for data in app.env.metadata.values():
        if "kept_in" in data and Path(data["kept_in"]).exists():
            os.utime(data["kept_in"])


def setup(app):
    app.connect("source-read", choose_cache)
    app.connect("env-get-outdated", chapters_to_execute)
    app.connect("build-finished", note_use)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
