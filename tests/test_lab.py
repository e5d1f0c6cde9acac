"""The lab: the student's notebook and the solved one."""

import ast
import html as html_module
import os
import re
import subprocess
import sys

import nbformat
import pytest
from conftest import code_cells
from nbclient import NotebookClient

from tpcnn.checks.teacher.submission import RESULTS, read
from tpcnn.lab_sheet import REQUIRED_ACCURACY

SHOWN = [code for options, code in code_cells("lab") if "remove-cell" not in options]
SOLUTION = re.compile(r"(?ms)^( *)### BEGIN SOLUTION\n(.*?)^ *### END SOLUTION$")


def code(notebook):
    """Return the code cells of a notebook, without the one that installs tpcnn."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"][1:]


@pytest.fixture(scope="module")
def student(html):
    return nbformat.read(html / "notebooks" / "lab.ipynb", as_version=4)


@pytest.fixture(scope="module")
def solved(html):
    return nbformat.read(html / "notebooks" / "lab_solved.ipynb", as_version=4)


@pytest.mark.book
def test_the_students_notebook_has_blanks_where_the_solutions_were(student):
    blanked = [SOLUTION.sub(r"\1...", cell).strip() for cell in SHOWN]
    assert [cell.source.strip() for cell in code(student)] == blanked
    assert sum(map(len, map(SOLUTION.findall, SHOWN))) >= 20


@pytest.mark.book
def test_the_students_notebook_holds_no_line_of_a_solution(student):
    text = nbformat.writes(student)
    assert "SOLUTION" not in text
    given = {line.strip() for cell in SHOWN for line in SOLUTION.sub("", cell).splitlines()}
    secret = {
        line.strip()
        for cell in SHOWN
        for _, lines in SOLUTION.findall(cell)
        for line in lines.splitlines()
        if len(line.strip()) > 12
    } - given
    assert len(secret) > 60
    found = {line.strip() for cell in student.cells for line in cell.source.splitlines()}
    assert not secret & found
    assert not any(cell.get("outputs") for cell in student.cells)


@pytest.mark.book
def test_the_solved_notebook_is_the_source(solved):
    assert [cell.source.strip() for cell in code(solved)] == [cell.strip() for cell in SHOWN]


def test_the_marks_are_twenty_and_each_is_given_by_one_check():
    points = {}
    for options, cell in code_cells("lab"):
        if match := re.search(r"points: (\d+)", options):
            assert re.fullmatch(r"checks\.\w+\([^#]*\)", cell.strip()), cell
            points[cell] = int(match[1])
    assert sum(points.values()) == 20


def test_the_lab_uses_nothing_of_the_module_but_checks_plots_and_the_data():
    tree = ast.parse("\n".join(SHOWN))
    imported = {
        name.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("tpcnn")
        for name in node.names
    }
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "tpcnn"
    }
    assert imported == {"checks", "plots"}
    assert used == {"load_mnist", "load_fashion_mnist"}
    assert "reset_states(" not in "\n".join(SHOWN), "gone from Keras 3"


def test_the_teachers_command_expects_what_the_lab_calls():
    nodes = ast.walk(ast.parse("\n".join(SHOWN)))
    calls = [ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)]
    for name, times in RESULTS.items():
        assert sum(call.endswith(name) for call in calls) == times, name


@pytest.mark.book
def test_the_solution_ran_whole_when_the_book_was_built(executed, tmp_path):
    """As a submission, the executed notebook is without fault."""
    notebook = executed["lab"]
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for number, cell in enumerate(cells, start=1):
        cell.execution_count = number  # which the cache does not keep
    path = tmp_path / "TP_CNN_Ada_Lovelace.ipynb"
    nbformat.write(notebook, path)
    submission = read(path)
    assert submission.remarks == []
    assert submission.name == "Ada Lovelace"
    assert submission.results == sum(RESULTS.values())
    assert submission.bonuses == ["mini-batches", "batch normalisation", "dropout"]
    assert submission.accuracies.keys() == REQUIRED_ACCURACY.keys()
    for step, accuracy in submission.accuracies.items():
        assert accuracy >= REQUIRED_ACCURACY[step]
    (report,) = [cell for cell in notebook.cells if cell.source == "checks.report()"]
    printed = report.outputs[0].text
    assert "NOT" not in printed and "not earned" not in printed


@pytest.mark.book
def test_the_page_folds_every_solution_and_leads_to_both_notebooks(html):
    page = (html / "lab.html").read_text()
    cells = re.findall(r'(?s)<div class="(cell[^"]*)">(.*?)(?=<div class="cell |</section>)', page)
    solutions = [kind for kind, text in cells if "BEGIN SOLUTION" in text]
    assert len(solutions) == sum("BEGIN SOLUTION" in cell for cell in SHOWN)
    assert all("tag_hide-input" in kind for kind in solutions)
    for name in ("lab", "lab_solved"):
        assert f'href="notebooks/{name}.ipynb"' in page
        assert f"/blob/gh-pages/notebooks/{name}.ipynb" in html_module.unescape(page)


@pytest.mark.book
def test_nbgrader_takes_the_solved_notebook_as_its_source(html, tmp_path, solved):
    """With its default settings, and so with its own stubs."""
    (tmp_path / "source" / "lab").mkdir(parents=True)
    nbformat.write(solved, tmp_path / "source" / "lab" / "lab.ipynb")
    command = [sys.executable, "-m", "nbgrader", "generate_assignment", "lab"]
    # nbgrader calls alembic by its name.
    path = f"{sys.prefix}/bin{os.pathsep}{os.environ['PATH']}"
    ended = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    released = nbformat.read(tmp_path / "release" / "lab" / "lab.ipynb", as_version=4)
    for cell in code(released):
        ast.parse(cell.source)
    assert "SOLUTION" not in nbformat.writes(released)


@pytest.mark.book
def test_a_check_under_an_untouched_blank_says_so(student, tmp_path):
    NotebookClient(
        student, timeout=300, allow_errors=True, resources={"metadata": {"path": tmp_path}}
    ).execute()
    for cell in code(student):
        if cell.source.startswith("checks.") and "report" not in cell.source:
            (error,) = cell.outputs
            assert error.ename == "Mistake", cell.source
            assert "is still blank" in error.evalue, (cell.source, error.evalue)
            assert "Traceback" not in "".join(error.traceback)
        elif cell.outputs:
            assert all(output.output_type != "error" for output in cell.outputs), cell.source
