"""When a chapter of this book would be executed again; nothing is executed here."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import CHAPTERS, code_cells, copy_repository

LIST = """
import json, sys
from execution_cache import cache_folder
print(json.dumps({name: cache_folder(name).name for name in sys.argv[1:]}))
"""
# The packages of this environment are those of one version of Python.
NEWER_PYTHON = LIST.replace("\nprint", "\nsys.version_info = (3, 99, 0)\nprint")


def naming(module: str) -> set[str]:
    """Return the chapters whose code names a module of tpcnn."""
    return {name for name in CHAPTERS if any(module in code for _, code in code_cells(name))}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = copy_repository(tmp_path_factory.mktemp("book") / "copy")
    (folder / "_build").mkdir()
    (folder / "_build" / "device").write_text("cpu\n")
    return folder


@pytest.fixture
def copy(original, tmp_path):
    """A copy of this book's sources, to change."""
    return shutil.copytree(original, tmp_path / "copy")


def folders(copy, program=LIST):
    return subprocess.run(
        [sys.executable, "-c", program, *CHAPTERS],
        cwd=copy,
        env=os.environ | {"PYTHONPATH": f"{copy}{os.pathsep}{copy / 'book' / '_ext'}"},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def before(original):
    return json.loads(folders(original).stdout)


@pytest.fixture
def executed_again(before, copy):
    """Return a function that says which chapters the state of the copy has executed again."""

    def executed_again(program=LIST):
        ended = folders(copy, program)
        assert ended.returncode == 0, ended.stderr
        return {name for name, folder in json.loads(ended.stdout).items() if folder != before[name]}

    return executed_again


def edit(path, old, new):
    text = path.read_text()
    assert old in text, path
    path.write_text(text.replace(old, new, 1))


def append(path, line):
    path.write_text(f"{path.read_text()}\n{line}\n")


def test_prose_comments_docstrings_layout_and_programs_execute_nothing(copy, executed_again):
    for name in CHAPTERS:
        append(copy / "book" / f"{name}.md", "More prose.")
    for path in (copy / "tpcnn").rglob("*.py"):
        edit(path, '"""', '"""In other words. ')
        append(path, "\n\n# Another comment.")
    edit(copy / "tpcnn" / "data.py", "def normalize(", "def normalize(  # the first step\n    ")
    # The teacher's command, and what makes ready a build.
    (submission,) = (copy / "tpcnn").rglob("submission.py")
    for path in [submission, *(copy / "tpcnn").rglob("__main__.py")]:
        append(path, "CHANGED = True")
    assert executed_again() == set()


def test_a_message_of_the_checks_executes_the_chapters_that_call_them(copy, executed_again):
    edit(copy / "tpcnn" / "checks" / "mistakes.py", "Not right yet", "Not quite right")
    assert executed_again() == naming("checks") >= {"lab"}


def test_a_module_executes_the_chapters_that_import_it(copy, executed_again):
    append(copy / "tpcnn" / "bench.py", "CHANGED = True")
    assert executed_again() == naming("bench") >= {"speed"}


def change_a_module(copy):
    append(copy / "tpcnn" / "checkpoints.py", "CHANGED = True")  # imported by others only


def change_the_data(copy):
    sources = copy / "tpcnn" / "sources.py"
    (checksum, *_) = [word for word in sources.read_text().split('"') if len(word) == 64]
    edit(sources, checksum, checksum[::-1])


def change_the_packages(copy):
    edit(copy / "constraints.txt", "keras==", "keras==1")


def change_the_device(copy):
    edit(copy / "_build" / "device", "cpu", "gpu")


@pytest.mark.parametrize(
    "change",
    [
        change_a_module,
        change_the_data,
        change_the_packages,
        change_the_device,
    ],
)
def test_what_all_chapters_depend_on_executes_all(copy, executed_again, change):
    change(copy)
    assert executed_again() == set(CHAPTERS)


def test_another_version_of_python_executes_all(executed_again):
    assert executed_again(NEWER_PYTHON) == set(CHAPTERS)


def test_code_in_a_script_and_docstrings_that_are_shown_count_too(copy, executed_again):
    def add_cell(name, code):
        append(copy / "book" / f"{name}.md", f"```{{code-cell}} ipython3\n{code}\n```")

    add_cell("cnn", "script = 'from tpcnn import bench'")
    shown = ["help(tpcnn.normalize)", "?tpcnn.normalize", "tpcnn.normalize? ", "%pdoc tpcnn.split"]
    showing = ["data", "dropout", "fashion", "tuning"]
    for name, code in zip(showing, shown, strict=True):
        add_cell(name, code)
    add_cell("convolution", "!python -m tpcnn.checks lab.ipynb")
    assert executed_again() == {"cnn", "convolution", *showing}
    with_cells = json.loads(folders(copy).stdout)
    append(copy / "tpcnn" / "bench.py", "CHANGED = True")
    append(copy / "tpcnn" / "checks" / "teacher" / "table.py", "CHANGED = True")
    edit(copy / "tpcnn" / "data.py", '"""', '"""In other words. ')
    now = json.loads(folders(copy).stdout)
    changed = {name for name in CHAPTERS if now[name] != with_cells[name]}
    assert changed == {"cnn", "convolution", *showing} | naming("bench")


def test_without_a_known_device_the_error_says_what_to_do(copy):
    device = copy / "_build" / "device"
    device.unlink()
    ended = folders(copy)
    assert ended.returncode != 0
    assert f"{device}, which must say cpu or gpu, is missing: run `make book`" in ended.stderr
