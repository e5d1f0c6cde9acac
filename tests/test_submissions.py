"""The teacher's command, `python -m tpcnn.checks`, on what students hand in."""

import copy
import csv
import json
import os
import subprocess
import sys
import time

import nbformat
import psutil
import pytest
from conftest import ROOT
from myst_nb.core.read import myst_nb_reader_plugin
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tpcnn.checks.teacher.table import main

ACCURACIES = {"fully_connected": "97.31", "cnn": "98.90", "fashion": "91.20"}
DRAWS = ("plots.", "plot_history(")


def result(code: str) -> list:
    """Return what a cell of the lab leaves behind when all is right."""
    if code.startswith("checks.accuracy"):
        step = code.split('"')[1]
        text = f"Right: test accuracy {ACCURACIES[step]}%, required 90%.\n"
        return [new_output("stream", name="stdout", text=text)]
    if code.startswith("checks.report"):
        return [new_output("stream", name="stdout", text="...: report of the lab\n")]
    if code.startswith("checks."):
        return [new_output("stream", name="stdout", text="Right: it is.\n")]
    if code.endswith(";\n### END SOLUTION") or code.endswith(";"):
        return [new_output("display_data", {"image/png": "aGVsbG8="})]
    return []


@pytest.fixture(scope="module")
def handed_in():
    """A notebook with the solutions of the lab, as a student who has done all hands it in."""
    chapter = myst_nb_reader_plugin(ROOT / "book" / "lab.md")
    cells, number = [new_markdown_cell("# The lab")], 0
    for cell in chapter.cells:
        if cell.cell_type == "code" and "remove-cell" not in cell.metadata.get("tags", []):
            number += 1
            cells.append(
                new_code_cell(
                    cell.source, execution_count=number, outputs=result(cell.source.strip())
                )
            )
    return new_notebook(cells=cells)


@pytest.fixture
def good(handed_in):
    return copy.deepcopy(handed_in)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def replace(notebook, old, new):
    """Replace a text in the one cell that has it; return the cell."""
    (cell,) = [cell for cell in notebook.cells if old in cell.source]
    cell.source = cell.source.replace(old, new)
    return cell


@pytest.fixture
def table(tmp_path):
    """Return a function that hands files in and returns the table, by file name."""
    folder = tmp_path / "submissions"
    folder.mkdir()

    def read(files: dict, *options: str) -> dict[str, dict[str, str]]:
        for name, content in files.items():
            if isinstance(content, bytes):
                (folder / name).write_bytes(content)
            else:
                nbformat.write(content, folder / name)
        main([str(folder), "--csv", str(tmp_path / "table.csv"), *options])
        with (tmp_path / "table.csv").open(encoding="utf-8-sig", newline="") as file:
            return {row["file"]: row for row in csv.DictReader(file)}

    return read


GOOD = "TP_CNN_Ada_Lovelace.ipynb"


def test_a_complete_notebook_is_free_of_remarks(table, good, capsys):
    row = table({GOOD: good})[GOOD]
    n = len(code_cells(good))
    assert row == {
        "student": "Ada Lovelace",
        "cells run": f"{n}/{n}",
        "in order": "yes",
        "errors": "0",
        "results": "23/23",
        "fully connected": "97.31%",
        "cnn": "98.90%",
        "fashion": "91.20%",
        "bonuses": "mini-batches, batch normalisation, dropout",
        "run again": "no",
        "file": GOOD,
        "remarks": "none",
    }
    titles, line, _ = capsys.readouterr().out.splitlines()
    assert titles.startswith("student") and line.startswith("Ada Lovelace ")


def late(notebook):
    code_cells(notebook)[5].execution_count = 99


def unexecuted(notebook):
    cell = code_cells(notebook)[-1]
    cell.execution_count, cell.outputs = None, []


def never_executed(notebook):
    for cell in code_cells(notebook):
        cell.execution_count, cell.outputs = None, []


def after_others(notebook):
    for cell in code_cells(notebook):
        cell.execution_count += 7


def errored(notebook):
    cell = code_cells(notebook)[8]
    cell.outputs = [
        new_output("error", ename="ValueError", evalue="shapes\x1b[31m differ", traceback=[])
    ]


def cleared(notebook):
    for cell in code_cells(notebook):
        cell.outputs = []


def nameless(notebook):
    replace(notebook, 'FIRST_NAME = "Ada"\nLAST_NAME = "Lovelace"', "...")


def too_low(notebook):
    for cell in code_cells(notebook):
        for output in cell.outputs:
            if "97.31" in output.get("text", ""):
                cell.outputs = [
                    new_output(
                        "error",
                        ename="Mistake",
                        evalue="Not right yet: test accuracy 94.00%, required 96%.\nLook.",
                        traceback=[],
                    )
                ]


def pasted(notebook):
    """The results as text, the check gone."""
    notebook.cells.append(new_markdown_cell("Right: test accuracy 99.90%, required 98%."))
    cell = replace(notebook, 'checks.accuracy("cnn", cnn_trainer, x_test, y_test)', "1 + 1")
    cell.outputs = []


def printed(notebook):
    """The check replaced by a cell that prints what it would say."""
    replace(
        notebook,
        'checks.accuracy("cnn", cnn_trainer, x_test, y_test)',
        'print("Right: test accuracy 99.90%, required 98%.")\n'
        'checks.accuracy("cnn", cnn_trainer, x_test, y_test) if 0 else None',
    )


@pytest.mark.parametrize(
    ("spoil", "columns", "remark"),
    [
        (late, {"in order": "NO"}, "not executed from top to bottom"),
        (unexecuted, {"in order": "NO", "results": "22/23"}, "1 cell not executed"),
        (never_executed, {"in order": "NO", "results": "0/23"}, "no cell executed"),
        (after_others, {"in order": "yes"}, "other cells were executed before or between these"),
        (errored, {"errors": "1"}, "ValueError: shapes[31m differ"),
        (cleared, {"results": "0/23", "cnn": "MISSING"}, "no results"),
        (nameless, {"student": GOOD}, "name not filled in; 1 blank not filled in"),
        (too_low, {"fully connected": "94.00% UNDER 96%", "errors": "1"}, "Mistake: Not right"),
        (pasted, {"cnn": "MISSING"}, "no result of checks.accuracy"),
        (printed, {"cnn": "MISSING"}, "the check of the accuracy was changed: cnn"),
    ],
)
def test_what_is_wrong_with_a_notebook_is_said(table, good, spoil, columns, remark):
    spoil(good)
    row = table({GOOD: good})[GOOD]
    assert columns.items() <= row.items()
    assert remark in row["remarks"]


def test_bonuses_are_found_in_the_code_not_in_comments(table, good):
    replace(good, "class Trainer", "class Trainer").source = "\n".join(
        [
            "class Trainer:",
            "    def fit(self, x_train, y_train, x_val, y_val, epochs, verbose=True):",
            "        for epoch in range(epochs):",
            "            self._train_step(x_train, y_train)",
        ]
    )
    for cell in code_cells(good):
        cell.source = cell.source.replace("layers.Batch", "# layers.Batch")
    assert table({GOOD: good})[GOOD]["bonuses"] == "dropout"


@pytest.mark.parametrize(
    ("name", "remark"),
    [
        ("TP_CNN_Ada_Lovelace (1).ipynb", "file name is not"),
        ("lab.ipynb", "file name is not"),
        ("TP_CNN_Grace_Hopper.ipynb", "file name and name in the notebook differ"),
        ("TP_CNN_ada_lovelace.ipynb", "none"),
    ],
)
def test_the_file_name_is_checked(table, good, name, remark):
    assert table({name: good})[name]["remarks"].startswith(remark)


def test_a_name_with_accents_and_two_parts(table, good):
    replace(good, '"Ada"', '"Zoé"')
    replace(good, '"Lovelace"', '"de la Tour-Dupré"')
    name = "TP_CNN_zoe_de_la_Tour-Dupre.ipynb"
    row = table({name: good})[name]
    assert (row["student"], row["remarks"]) == ("Zoé de la Tour-Dupré", "none")


def test_no_file_stops_the_others(table, good, tmp_path):
    """Truncated, foreign, huge and hostile files: a line each, in the table and in the CSV."""
    whole = nbformat.writes(good).encode()
    folder = tmp_path / "submissions"
    os.mkfifo(folder / "pipe.ipynb")
    (folder / "link.ipynb").symlink_to("/nonexistent")
    with (folder / "huge.ipynb").open("wb") as file:
        file.truncate(10**9)
    strange = {
        "empty.ipynb": (b"", "is empty"),
        "truncated.ipynb": (whole[: len(whole) // 2], "cut off before its end"),
        "report.pdf": (b"%PDF-1.7 \xff\xfe", "it is not text"),
        "notes.txt": (b"All went well.", "not in the notebook format"),
        "data.json": (b'{"a": [1, 2]}', "it is JSON, but not Jupyter's"),
        "cells.ipynb": (b'{"nbformat": 4, "nbformat_minor": 5, "cells": 7}', "breaks the notebook"),
        "deep.ipynb": (b"[" * 10**6, "not in the notebook format"),
        "deep_code.ipynb": (of_code("-" * 10**5 + "1"), "name not filled in"),
        "foreign.ipynb": (
            b'{"nbformat": 4, "x": [' + b"[]," * 10**6 + b"1]}",
            "breaks the notebook",
        ),
    }
    rows = table({name: content for name, (content, _) in strange.items()} | {GOOD: good})
    assert rows[GOOD]["remarks"] == "none"
    for name, (_, remark) in strange.items():
        assert remark in rows[name]["remarks"], name
    assert "is no ordinary file" in rows["pipe.ipynb"]["remarks"]
    assert "cannot be opened" in rows["link.ipynb"]["remarks"]
    assert "more than 20,000,000: not read" in rows["huge.ipynb"]["remarks"]
    assert len(rows) == len(strange) + 4


def of_code(*sources):
    cells = [
        new_code_cell(source, execution_count=number) for number, source in enumerate(sources, 1)
    ]
    return nbformat.writes(new_notebook(cells=cells)).encode()


def test_names_can_steer_neither_a_terminal_nor_a_spreadsheet(table, good, capsys):
    replace(good, '"Ada"', "\"=HYPERLINK('x')\\x1b[2J\\u202e\"")
    name = "+1\x1b]0;title\x07.ipynb"
    (row,) = table({name: good}).values()
    assert row["student"].startswith("'=HYPERLINK") and row["file"].startswith("'+1")
    assert not set("\x1b\x07\u202e") & set(capsys.readouterr().out + "".join(row.values()))


def test_without_run_nothing_is_executed(table, tmp_path):
    touch = f"open({str(tmp_path / 'touched')!r}, 'w')"
    table({"a.ipynb": of_code(touch, f"!touch {tmp_path}/touched")})
    assert not (tmp_path / "touched").exists()


def test_run_measures_anew_each_in_its_own_folder(table, tmp_path, monkeypatch):
    """What a notebook claims does not count; what it leaves behind, the next one does not see."""
    monkeypatch.setenv("SECRET_TOKEN", "s3cret")
    source = [
        "class checks:\n    def accuracy(step, *_):\n"
        "        print('Right: test accuracy 97.00%, required 98%.')",
        'checks.accuracy("cnn")',
        "import os; open('left', 'x'); print(dict(os.environ).get('SECRET_TOKEN'))",
        "assert 'SECRET_TOKEN' not in os.environ",
    ]
    claims = nbformat.reads(of_code(*source), as_version=4)
    claims.cells[1].outputs = [
        new_output("stream", name="stdout", text="Right: test accuracy 99.00%, required 98%.")
    ]
    after = source[0].replace("97", "93"), 'checks.accuracy("fashion")'
    broken = of_code("print(1)", "1 / 0", *after)
    rows = table({"a.ipynb": claims, "b.ipynb": claims, "c.ipynb": broken}, "--run")
    for name in ("a.ipynb", "b.ipynb"):
        assert rows[name]["cnn"] == "97.00% UNDER 98%"
        assert rows[name]["run again"].startswith("ran in ")
        assert "run again: cnn does not reach what was handed in" in rows[name]["remarks"]
    assert rows["c.ipynb"]["run again"].startswith("ran, with errors, in ")
    assert "run again: error in cell [2]: ZeroDivisionError" in rows["c.ipynb"]["remarks"]
    assert rows["c.ipynb"]["fashion"] == "93.00%", "what comes after an error counts too"


@pytest.mark.parametrize(
    ("code", "options", "ended"),
    [
        ("import time; time.sleep(999)", ["--timeout", "20"], "stopped: took more than 20 s"),
        (
            "import time\nx = b'1' * 14 * 10**8\ntime.sleep(99)",
            ["--memory", "1"],
            "stopped: used more than 1 GB of memory",
        ),
        ("import os; os._exit(3)", [], "stopped: its kernel died"),
    ],
)
def test_run_has_limits_and_leaves_no_process(table, code, options, ended):
    mark = f"mark{time.time_ns()}"
    sleeper = f"import subprocess; subprocess.Popen(['sleep', '999'], env={{'MARK': {mark!r}}})"
    rows = table({"a.ipynb": of_code(sleeper, code)}, "--run", *options)
    assert rows["a.ipynb"]["run again"].startswith(ended)
    if options:  # what a kernel that ended by itself leaves behind may live on
        assert not [p for p in psutil.process_iter() if mark in str(environment(p))]


def environment(process):
    try:
        return process.environ()
    except psutil.Error:
        return {}


def test_it_runs_as_a_command_and_says_what_is_wrong_with_it(tmp_path, good):
    nbformat.write(good, tmp_path / GOOD)

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "tpcnn.checks", *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )

    ended = run(GOOD, "missing.ipynb")
    assert ended.returncode == 0, ended.stderr
    assert "cannot be opened (No such file or directory)" in ended.stdout
    assert (tmp_path / "submissions.csv").exists()
    ended = run(GOOD, "--csv", "nowhere/table.csv")
    assert ended.returncode == 2
    assert "there is no folder nowhere" in ended.stderr


def test_the_module_of_the_chapters_loads_nothing_of_it():
    """Colab imports `tpcnn` for each chapter; the command is for teachers."""
    code = "import sys, tpcnn; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).split()
    assert "tpcnn.checks.steps" in loaded
    assert not [name for name in loaded if name.startswith("tpcnn.checks.teacher")]


def test_an_old_notebook_is_read_too(table, good):
    n = len(code_cells(good))
    old = json.dumps(nbformat.convert(good, 3)).encode()
    assert table({GOOD: old})[GOOD]["cells run"] == f"{n}/{n}"
