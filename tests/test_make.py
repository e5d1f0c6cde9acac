"""The commands of the Makefile: `make book` on a small copy of this book, and what stops them."""

import os
import shutil
import socket
import subprocess
import sys
import time
import tomllib

import pytest
from conftest import ROOT, copy_repository, make

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
---
mystnb:
  figure:
    name: fig-one
    caption: A caption.
---
import tpcnn
from matplotlib import pyplot as plt

print("sum", 1 + 1)
plt.plot([1, 2]);
```
"""


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    """This book with one short chapter, as an archive: without git, in a folder of any name."""
    folder = copy_repository(tmp_path_factory.mktemp("make") / "un été à lire")
    (folder / "_toc.yml").write_text("format: jb-book\nroot: index\nchapters:\n  - file: one\n")
    (folder / "book" / "index.md").write_text("# Index\n\n```{results-table}\n```\n")
    (folder / "book" / "one.md").write_text(CHAPTER)
    return folder


@pytest.fixture(scope="session")
def built_book(sources):
    """The folder of the small book, built, and what that has printed."""
    folder = shutil.copytree(sources, sources.parent / "un été déjà construit")
    # A repository that happens to be around the folder is not the book's.
    subprocess.run(["git", "init", "--quiet"], cwd=folder.parent, check=True)
    address = "https://github.com/someone/notes.git"
    subprocess.run(["git", "remote", "add", "origin", address], cwd=folder.parent, check=True)
    status, printed = make(folder, "book", GITHUB_REPOSITORY="")
    assert status == 0, printed
    return folder, printed


@pytest.fixture
def copy(sources, tmp_path):
    return shutil.copytree(sources, tmp_path / "copy")


@pytest.fixture
def book(built_book, tmp_path):
    """A copy of the built book, to change."""
    return shutil.copytree(built_book[0], tmp_path / "à changer", symlinks=True)


def build(folder):
    return make(folder, "book", GITHUB_REPOSITORY="someone/book")


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def append(path, line):
    path.write_text(f"{path.read_text()}\n{line}\n")


def program(path, script):
    """Write a program for this test; return its folder, to be looked in before others."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return f"{path.parent}{os.pathsep}{os.environ['PATH']}"


def stops(folder, *arguments, **environment):
    """Run make, which must fail; return what it says, without its own last line."""
    status, printed = make(folder, *arguments, **environment)
    assert status != 0, printed
    return [line for line in printed.splitlines() if not line.startswith("make: ***")]


@pytest.mark.book
def test_a_build_says_where_the_book_is_and_warns_once_of_links_to_nowhere(built_book):
    folder, printed = built_book
    assert "one executed in" in printed
    assert f"{folder}/_build/html/index.html" in printed
    (warning,) = [line for line in printed.splitlines() if "OWNER/REPO" in line]
    assert "git remote add origin" in warning and "_config.yml" in warning


@pytest.mark.book
def test_a_build_executes_what_has_changed_and_drops_what_is_not_used_for_long(book):
    edit(book / "book" / "one.md", "Prose.", "Other prose.")
    edit(book / "book" / "one.md", "A caption.", "Another caption.")
    edit(book / "tpcnn" / "data.py", '"""', '"""In other words. ')
    edit(book / "tpcnn" / "checks" / "mistakes.py", "Not right yet", "Not quite right")
    status, printed = build(book)
    assert (status, "one executed in" in printed) == (0, False), printed
    assert "OWNER/REPO" not in printed
    page = (book / "_build/html/one.html").read_text()
    assert "Other prose." in page and "Another caption." in page and "A caption." not in page

    executed = book / "_build" / "executed"
    (used,) = executed.iterdir()
    months_ago = time.time() - 100 * 24 * 3600
    for name in ("one-0123456789abcdef", "two-0123456789abcdef"):
        shutil.copytree(used, executed / name)
    for folder in (used, executed / "one-0123456789abcdef"):
        os.utime(folder, (months_ago, months_ago))
    status, printed = build(book)  # which reads no page, and yet uses one
    assert (status, "one executed in" in printed) == (0, False), printed
    assert {folder.name for folder in executed.iterdir()} == {used.name, "two-0123456789abcdef"}
    assert used.stat().st_mtime > time.time() - 3600

    append(book / "tpcnn" / "data.py", 'print("now printed")')
    status, printed = build(book)
    assert (status, "one executed in" in printed) == (0, True), printed
    assert "now printed" in (book / "_build/html/one.html").read_text()


@pytest.mark.book
def test_a_broken_reference_and_a_failing_cell_fail_the_build_until_they_are_mended(book):
    chapter = book / "book" / "one.md"
    edit(chapter, "Prose.", "See {doc}`nowhere`.")
    status, printed = build(book)
    assert status != 0
    assert "nowhere" in printed

    edit(chapter, "See {doc}`nowhere`.", "Prose.")
    cell = 'tpcnn.lab_sheet.require_accuracy("cnn", 0.9799)'
    edit(chapter, "1 + 1", cell)
    for _ in range(2):  # also when nothing has changed since
        status, printed = build(book)
        assert status != 0
        assert "cnn: test accuracy 97.99%, required 98%: not met." in printed
        assert "make: the book did not build" in printed

    edit(chapter, cell, "2 + 1")
    status, printed = build(book)
    assert (status, "one executed in" in printed) == (0, True), printed


def test_an_old_make_is_told_which_to_install(copy):
    """As it is called here, since only macOS still has it."""
    (copy / "_build").mkdir()
    (line,) = stops(copy, "clean", "MAKE_VERSION=3.81")
    assert "GNU make 4 is needed" in line and "brew install make" in line
    assert (copy / "_build").exists()


def test_elsewhere_than_on_linux_the_book_is_not_built(copy):
    path = program(copy / "bin" / "uname", "echo Darwin")
    (line,) = stops(copy, "book", PATH=path)
    assert line == "make: the book is built on Linux or in WSL, and this is Darwin."


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a GPU")
def test_a_required_gpu_that_is_missing_stops_at_once(copy):
    (line,) = stops(copy, "book", "VENV=new-venv", TPCNN_REQUIRE_GPU="1")
    assert line.startswith("make: TPCNN_REQUIRE_GPU is set, but nvidia-smi finds")
    assert not (copy / "new-venv").exists()


def test_what_is_missing_is_said_in_one_line(copy):
    assert stops(copy, "book", "VENV=new-venv", "PYTHON=/nonexistent") == [
        "make: Python 3.11 to 3.13 is needed: set PYTHON=/path/to/python3.12 or install it."
    ]
    # A Python in a folder with a space, and without a module.
    python = copy / "my python" / "python"
    program(python, f'case "$*" in *ensurepip*) exit 1;; esac\nexec "{sys.executable}" "$@"')
    (line,) = stops(copy, "book", "VENV=new-venv", f"PYTHON={python}")
    assert f"{python} lacks its venv module" in line
    for target in ("serve", "pdf", "publish", "colab", "linkcheck"):
        assert stops(copy, target) == ["make: there is no book yet: run make book first."]


def test_the_space_on_the_disk_is_counted_with_what_is_installed_already(copy):
    (line,) = stops(copy, "book", "VENV=new-venv", "GIGABYTES=1000000")
    assert line.startswith("make: not enough disk space: new-venv takes 1000000 GB, ")
    # No disk of a known size is at hand. An installation that was interrupted left 1.2 GB.
    disk = "a share on my nas 900000 0 500000 44% /mnt/a 5% share"
    path = program(copy / "bin" / "df", f"echo header; echo {disk}")
    fail = 'case "$*" in *-m*) exit 1;; esac'
    program(copy / "bin" / "python", f'{fail}\nexec "{sys.executable}" "$@"')
    (line,) = stops(copy, "book", "VENV=new-venv", "GIGABYTES=1", PATH=path)
    assert "not enough disk space" in line and line.endswith("0 GB are free.")
    library = copy / "new-venv" / "library"
    with open(library, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 1_200_000_000)
    lines = stops(copy, "book", "VENV=new-venv", "GIGABYTES=1", "PYTHON=bin/python", PATH=path)
    library.unlink()
    assert lines[0].startswith("Installing into new-venv")


@pytest.mark.parametrize(
    ("full", "said"),
    [
        ("temporary files", "the folder for temporary files, {folder}/temporary files, is full"),
        ("new-venv", "the disk is full: new-venv takes"),
    ],
)
def test_a_disk_that_gets_full_is_named(copy, full, said):
    """pip and df speak of a full disk; none is at hand."""
    (copy / "temporary files").mkdir()
    free = f'case "$*" in *"{full}"*) set 0;; *) set 9000000;; esac'
    path = program(copy / "bin" / "df", f"{free}\necho header; echo disk 0 0 $1")
    fail = 'case "$*" in "-m venv"*) echo "[Errno 28] No space left on device"; exit 1;; esac'
    program(copy / "bin" / "python", f'{fail}\nexec "{sys.executable}" "$@"')
    lines = stops(
        copy,
        "book",
        "VENV=new-venv",
        "GIGABYTES=0",
        "PYTHON=bin/python",
        PATH=path,
        TMPDIR=f"{copy}/temporary files",
    )
    assert len(lines) == 2
    assert said.format(folder=copy) in lines[1]


def test_without_a_network_the_installation_stops_with_one_line(copy):
    assert stops(
        copy,
        "book",
        "VENV=new-venv",
        PIP_CONFIG_FILE="/dev/null",
        PIP_NO_INDEX="1",
        PIP_FIND_LINKS="",
    ) == [
        "Installing into new-venv what constraints.txt lists (once; a few minutes)",
        "make: pip could not install the packages; is the network up? See _build/install.log",
    ]


def test_a_clone_that_was_moved_or_whose_python_is_gone_says_what_to_do(copy):
    subprocess.run([sys.executable, "-m", "venv", ".venv"], cwd=copy, check=True)
    for flavour in ("cpu", "gpu"):
        (copy / ".venv" / f".installed-{flavour}").touch()
    said = ["make: .venv was moved, or its Python is gone: rm -rf .venv, then make again."]
    assert make(copy, "sound-environment") == (0, "")
    copied = shutil.copytree(copy, copy.with_name("été"), symlinks=True)
    for target in ("book", "test-fast", "lint"):
        assert stops(copied, target) == said
    moved = copy.rename(copy.with_name("moved"))
    assert stops(moved, "lint") == said
    moved.rename(copy)
    (copy / ".venv" / "bin" / "python").unlink()
    (copy / ".venv" / "bin" / "python").symlink_to("/nonexistent")
    assert stops(copy, "lint") == said


def test_a_folder_with_a_colon_is_refused(copy):
    """In which Python makes no environment."""
    (line,) = stops(copy.rename(copy.with_name("a:b")), "clean")
    assert "this folder has a colon in its name" in line


def test_a_port_in_use_is_named(copy):
    (copy / "_build" / "html" / "notebooks").mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert stops(copy, "serve", f"PORT={port}") == [
            f"make: port {port} is in use or not allowed: choose another, "
            "such as make serve PORT=8123."
        ]
    (line,) = stops(copy, "serve", "PORT=http")
    assert "port http is in use or not allowed" in line


def test_lint_finds_every_kind_of_fault(copy):
    status, printed = make(copy, "lint")
    assert status == 0, printed
    for path, line in [
        ("tests/test_make.py", "import json"),
        ("tests/test_make.py", "a = ( 1)"),
        ("README.md", "etadommocA"[::-1]),
        ("book/glossary.md", "* A list with another mark."),
    ]:
        text = (copy / path).read_text()
        append(copy / path, line)
        assert make(copy, "lint")[0] != 0, line
        (copy / path).write_text(text)


def test_a_later_python_may_install_the_module_for_years():
    """A published notebook installs the commit that built it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "<" not in project["requires-python"]
