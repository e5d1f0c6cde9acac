"""`make book` on a small copy of this book: what it re-executes, and when it fails."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

pytestmark = pytest.mark.book
CHAPTER = """---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---

# One

Prose.

```{code-cell} ipython3
import tpcnn

print("sum", 1 + 1, "required", tpcnn.checks.REQUIRED_ACCURACY["cnn"])
```
"""


@pytest.fixture
def book(tmp_path):
    """A copy of this book with one short chapter; it shares the installed packages."""
    tracked = subprocess.check_output(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        text=True,
    )
    for name in tracked.splitlines():
        if (ROOT / name).exists():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tmp_path / name)
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: index\nchapters:\n  - file: one\n")
    (tmp_path / "book" / "index.md").write_text("# Index\n\n```{results-table}\n```\n")
    (tmp_path / "book" / "one.md").write_text(CHAPTER)
    return tmp_path


def make(folder, *arguments, **environment):
    """Run make and return its exit status and what it printed."""
    ended = subprocess.run(
        ["make", *arguments],
        cwd=folder,
        # Without what the make that runs these tests hands down.
        env={k: v for k, v in os.environ.items() if "MAKE" not in k and k != "MFLAGS"}
        | environment,
        timeout=600,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return ended.returncode, ended.stdout


def build(folder):
    # -o: the packages are those of this environment, as they are.
    markers = [f"{sys.prefix}/.installed-{flavour}" for flavour in ("cpu", "gpu")]
    return make(folder, "book", f"VENV={sys.prefix}", "-o", markers[0], "-o", markers[1])


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_chapter_is_executed_anew_exactly_when_its_code_changes(book):
    chapter = book / "book" / "one.md"
    status, printed = build(book)
    assert status == 0, printed
    assert "one executed in" in printed
    assert f"{book}/_build/html/index.html" in printed

    edit(chapter, "Prose.", "Other prose.")
    status, printed = build(book)
    assert (status, "one executed in" in printed) == (0, False), printed
    assert "Other prose." in (book / "_build/html/one.html").read_text()

    edit(chapter, "1 + 1", "1 + 2")
    assert "one executed in" in build(book)[1]

    edit(book / "tpcnn" / "checks" / "results.py", '"cnn": 0.98', '"cnn": 0.97')
    assert "one executed in" in build(book)[1]
    assert "required 0.97" in (book / "_build/html/one.html").read_text()

    edit(book / "constraints.txt", "tqdm==", "# another pin\ntqdm==")
    assert "one executed in" in build(book)[1]


def test_a_failing_cell_fails_the_build_until_it_is_mended(book):
    chapter = book / "book" / "one.md"
    edit(chapter, "1 + 1", "1 / 0")
    for _ in range(2):  # also when nothing has changed since
        status, printed = build(book)
        assert status != 0
        assert "ZeroDivisionError" in (book / "_build/build.log").read_text()
        assert "make: the book did not build" in printed
    edit(chapter, "1 / 0", "1 + 1")
    assert build(book)[0] == 0


def test_a_result_below_its_requirement_fails_the_build(book):
    edit(
        book / "book" / "one.md",
        "1 + 1,",
        'tpcnn.checks.require_accuracy("cnn", 0.9799),',
    )
    status, printed = build(book)
    assert status != 0
    assert "cnn: test accuracy 97.99%, required 98%: not met." in printed


def test_a_broken_reference_fails_the_build(book):
    edit(book / "book" / "one.md", "Prose.", "See {doc}`nowhere`.")
    status, printed = build(book)
    assert status != 0
    assert "nowhere" in printed


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a GPU")
def test_a_required_gpu_that_is_missing_stops_at_once(book):
    status, printed = make(book, "book", "VENV=new-venv", TPCNN_REQUIRE_GPU="1")
    assert status != 0
    assert printed.splitlines()[0].startswith(
        "make: TPCNN_REQUIRE_GPU is set, but nvidia-smi finds"
    )
    assert not (book / "new-venv").exists()


def failing_python(folder, condition):
    """Write a Python that fails where `condition`, a shell pattern, matches its arguments."""
    path = folder / "python"
    path.write_text(
        f'#!/bin/sh\ncase "$*" in {condition}) exit 1;; esac\nexec {sys.executable} "$@"\n'
    )
    path.chmod(0o755)
    return f"PYTHON={path}"


def test_what_is_missing_is_said_in_one_line(book):
    def last_lines(*arguments, **environment):
        status, printed = make(book, "book", "VENV=new-venv", *arguments, **environment)
        assert status != 0
        return [line for line in printed.splitlines() if not line.startswith("make: ***")]

    assert last_lines("PYTHON=/nonexistent") == [
        "make: Python 3.11 to 3.13 is needed: set PYTHON=/path/to/python3.12 or install it."
    ]
    lines = last_lines(failing_python(book, "*ensurepip*"))
    assert len(lines) == 1 and "lacks its venv module" in lines[0]
    lines = last_lines("GIGABYTES=1000000")
    assert len(lines) == 1 and "not enough disk space" in lines[0]


def test_without_a_network_the_installation_stops_with_one_line(book):
    nowhere = "http://127.0.0.1:9/"
    status, printed = make(
        book,
        "book",
        "VENV=new-venv",
        PIP_CONFIG_FILE="/dev/null",
        PIP_INDEX_URL=nowhere,
        PIP_FIND_LINKS="",
        PIP_NO_CACHE_DIR="1",
    )
    assert status != 0
    assert [line for line in printed.splitlines() if not line.startswith("make: ***")] == [
        "Installing into new-venv what constraints.txt lists (once; a few minutes)",
        "make: pip could not install the packages; is the network up? See _build/install.log",
    ]
