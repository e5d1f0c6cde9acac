"""The table of what students have handed in: `python -m tpcnn.checks`."""

import argparse
import csv
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tpcnn.checks.teacher import submission
from tpcnn.checks.teacher.rerun import rerun
from tpcnn.checks.teacher.submission import RESULTS, Submission, plain
from tpcnn.lab_sheet import REQUIRED_ACCURACY

READING_SECONDS = 60
COLUMNS = {
    "name": "student",
    "cells": "cells run",
    "in_order": "in order",
    "errors": "errors",
    "results": "results",
    **{step: step.replace("_", " ") for step in REQUIRED_ACCURACY},
    "bonuses": "bonuses",
    "rerun": "run again",
    "file": "file",
    "remarks": "remarks",
}


def main(arguments: list[str] | None = None) -> None:
    """Read the files that the command line names, print the table and write it as CSV."""
    parser = argparse.ArgumentParser(
        prog="python -m tpcnn.checks",
        description="Read submitted notebooks of the lab; print a table, a line a student, and "
        "write it as CSV. Nothing in them is executed, unless you ask for it with --run.",
    )
    parser.add_argument("files", nargs="+", type=Path, help="notebooks, or folders with them")
    parser.add_argument(
        "--csv",
        type=Path,
        default=Path("submissions.csv"),
        metavar="FILE",
        help="where the table goes as CSV (default: %(default)s)",
    )
    parser.add_argument(
        "--run",
        action="store_true",
        help="also execute each notebook, one after the other, and take the results from that. "
        "This is no protection against malice: see README.md",
    )
    parser.add_argument(
        "--timeout",
        type=positive,
        default=1800,
        metavar="SECONDS",
        help="how long a notebook may run (default: %(default)s)",
    )
    parser.add_argument(
        "--memory",
        type=positive,
        default=8,
        metavar="GB",
        help="how much main memory it may use (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    require("nbformat", *(["nbclient", "ipykernel", "psutil"] if options.run else []))
    if not options.csv.parent.is_dir():
        parser.error(f"--csv: there is no folder {options.csv.parent}")

    rows, paths = [], found(options.files, but=options.csv)
    if not paths:
        sys.exit("Error: no files found there")
    for number, path in enumerate(paths, start=1):
        if sys.stderr.isatty():
            print(f"{number}/{len(paths)} {plain(path.name)}", file=sys.stderr)
        rows.append(row(path, options))
        write_csv(options.csv, rows)  # after each: with --run, hours may pass
    print_table(rows)
    print(f"The table is in {options.csv} too.")


def positive(text: str) -> float:
    number = float(text)
    if not number > 0:
        raise ValueError
    return number


def require(*packages: str) -> None:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        sys.exit(f"Error: this needs {', '.join(missing)}: pip install {' '.join(missing)}")


def found(paths: list[Path], but: Path) -> list[Path]:
    """Return the files, and what is in the folders, but one, and without what is hidden."""
    files = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        for folder, folders, names in os.walk(path):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            files += [Path(folder, name) for name in sorted(names) if not name.startswith(".")]
    return [path for path in files if path.resolve() != but.resolve()]


def row(path: Path, options: argparse.Namespace) -> dict[str, str]:
    """Return the line of the table for a file."""
    handed_in = read(path)
    accuracies, how_it_ran = handed_in.accuracies, "no"
    if options.run and handed_in.cells:
        # What a notebook leaves behind may be locked against us; then it stays.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            executed = Submission()
            try:
                copy, how_it_ran = rerun(path, Path(folder), options.timeout, options.memory)
                executed = read(copy) if copy.exists() else executed
            except OSError as error:  # such as a full disk, which must not cost the other rows
                how_it_ran = f"not run: {error.strerror}"
        whole = how_it_ran.startswith("ran")
        accuracies = executed.accuracies if whole else accuracies
        handed_in.remarks += [
            f"run again: {remark}" for remark in executed.remarks if remark.startswith("error in")
        ]
        for step, accuracy in handed_in.accuracies.items():
            if accuracy >= REQUIRED_ACCURACY.get(step, 2) > accuracies.get(step, 0):
                handed_in.remarks.append(
                    f"run again: {step} does not reach what was handed in ({accuracy:.2%})"
                )
        if not whole:
            handed_in.remarks.append("run again: accuracies as handed in, not measured")
    return {
        "name": handed_in.name or plain(path.name, 40),
        "cells": f"{handed_in.executed}/{handed_in.cells}",
        "in_order": "yes" if handed_in.in_order else "NO",
        "errors": str(handed_in.errors),
        "results": f"{handed_in.results}/{sum(RESULTS.values())}",
        **{step: verdict(step, accuracies.get(step)) for step in REQUIRED_ACCURACY},
        "bonuses": ", ".join(handed_in.bonuses) or "none",
        "rerun": how_it_ran,
        "file": plain(path.name),
        "remarks": "; ".join(handed_in.remarks) or "none",
    }


def verdict(step: str, accuracy: float | None) -> str:
    if accuracy is None:
        return "MISSING"
    required = REQUIRED_ACCURACY[step]
    return f"{accuracy:.2%}" + ("" if accuracy >= required else f" UNDER {required:.0%}")


def read(path: Path) -> Submission:
    """Read a file in a process of its own, which it may wreck."""
    try:
        ended = subprocess.run(
            # -P: or the modules beside it would stand in for those of Python.
            [sys.executable, "-P", submission.__file__, path],
            capture_output=True,
            timeout=READING_SECONDS,
        )
        return Submission(**json.loads(ended.stdout))
    except subprocess.TimeoutExpired:
        reason = f"took more than {READING_SECONDS} s"
    except (ValueError, OSError):
        reason = "took more time or memory than a notebook needs, or breaks the notebook format"
    return Submission(remarks=[f"could not be read: {reason}"])


def write_csv(path: Path, rows: list[dict[str, str]]) -> None:
    """Write the table, all at once or not at all."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        whole = Path(folder, path.name)
        with whole.open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS.values())
            writer.writerows([harmless(row[column]) for column in COLUMNS] for row in rows)
        os.replace(whole, path)


def harmless(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def print_table(rows: list[dict[str, str]]) -> None:
    lines = [list(COLUMNS.values()), *([row[column] for column in COLUMNS] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (text.ljust(width) for text, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())
