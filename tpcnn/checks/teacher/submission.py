"""Read one submitted notebook, without running it: what it holds and what it shows.

`python -m tpcnn.checks` runs this file as a program, a process for each notebook, with limits:
what a file does to the process that reads it harms no other. So it imports nothing of tpcnn.
"""

import ast
import collections
import dataclasses
import itertools
import json
import re
import resource
import stat
import sys
import unicodedata
from pathlib import Path

LARGEST = 20 * 10**6  # bytes; a complete notebook with its pictures has about two million
MEMORY, CPU_SECONDS = 2 * 2**30, 30  # for reading one notebook
MOST_REMARKS = 12
FILE_NAME = re.compile(r"TP_CNN_([^\W\d_][\w'-]*?)_([^\W_][\w'-]*)\.ipynb")

# What a complete notebook calls, as often as the lab does, and each time shows the result of.
RESULTS = {
    "checks.name": 1,
    "checks.data": 2,
    "checks.train_step": 1,
    "checks.eval_step": 1,
    "checks.fit": 1,
    "checks.predict": 1,
    "checks.model": 3,
    "checks.accuracy": 3,
    "checks.report": 1,
    "plots.labelled_images": 2,
    "plot_history": 3,
    "plots.predicted_images": 2,
    "plots.class_probabilities": 2,
}
ACCURACY = re.compile(r"test accuracy (\d{1,3}\.\d\d)%, required")
REPORT = "report of the lab"
LAYERS = {
    "BatchNormalization": "batch normalisation",
    "Dropout": "dropout",
    "SpatialDropout2D": "dropout",
}


class Unreadable(Exception):
    """A file is no notebook that could be read; the message says why."""


@dataclasses.dataclass
class Submission:
    """What a submitted notebook holds.

    Attributes:
        name: first and last name, as the notebook's code gives them, or else the file's name.
        cells: code cells that hold code.
        executed: how many of them have been executed.
        in_order: all of them have, from top to bottom.
        errors: code cells that end in an error.
        results: how many of `RESULTS` the notebook shows.
        accuracies: the test accuracy that it shows for each step, in [0, 1].
        bonuses: those that its code has.
        remarks: what a teacher should know, in words.
    """

    name: str = ""
    cells: int = 0
    executed: int = 0
    in_order: bool = False
    errors: int = 0
    results: int = 0
    accuracies: dict[str, float] = dataclasses.field(default_factory=dict)
    bonuses: list[str] = dataclasses.field(default_factory=list)
    remarks: list[str] = dataclasses.field(default_factory=list)


def plain(text: object, longest: int = 80) -> str:
    """Return a text from a stranger on one line, without characters that steer a terminal."""
    printable = (
        " " if char.isspace() else char
        for char in str(text)[: 20 * longest]
        if char.isspace() or unicodedata.category(char)[0] != "C"
    )
    text = " ".join("".join(printable).split())
    return text if len(text) <= longest else text[: longest - 3] + "..."


def read(path: Path) -> Submission:
    """Return what a file holds.

    Raises:
        Unreadable: it is no notebook.
    """
    cells = code_cells(notebook(path))
    submission = Submission(cells=len(cells))
    trees = [tree(cell) for cell in cells]
    calls = [called(tree) for tree in trees]
    check_names(submission, path, trees)
    check_execution(submission, cells)
    check_results(submission, cells, calls)
    check_accuracies(submission, cells, trees)
    if blanks := sum(is_blank(node) for tree in trees for node in ast.walk(tree)):
        submission.remarks.append(f"{blanks} blank{'s' * (blanks > 1)} not filled in")
    layers = {LAYERS[name.split(".")[-1]] for names in calls for name in names if layer(name)}
    mini_batches = any(map(has_mini_batches, trees))
    submission.bonuses = ["mini-batches"] * mini_batches + sorted(layers)
    return submission


def notebook(path: Path):
    """Return the notebook in a file, in the format 4 of Jupyter, whichever it has.

    Raises:
        Unreadable: there is none.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise Unreadable(f"cannot be opened ({error.strerror})") from None
    if not stat.S_ISREG(found.st_mode):
        raise Unreadable("is no ordinary file")
    if found.st_size > LARGEST:
        raise Unreadable(f"has {found.st_size:,} bytes, more than {LARGEST:,}: not read")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise Unreadable(f"cannot be opened ({error.strerror})") from None
    except UnicodeDecodeError:
        raise Unreadable("is no notebook: it is not text") from None
    if not text.strip():
        raise Unreadable("is empty")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        cut = text.lstrip().startswith("{") and not text.rstrip().endswith("}")
        reason = "cut off before its end" if cut else "not in the notebook format (JSON)"
        raise Unreadable(f"is no whole notebook: {reason}") from None
    if not isinstance(content, dict) or not isinstance(content.get("nbformat"), int):
        raise Unreadable("is no notebook: it is JSON, but not Jupyter's")
    import nbformat  # here, since it takes a while, and many a file needs it not

    try:
        return nbformat.reads(text, as_version=4)
    except Exception as error:  # of many kinds, for a file that breaks the format
        raise Unreadable(f"breaks the notebook format ({type(error).__name__})") from None


def code_cells(notebook) -> list:
    return [
        cell
        for cell in notebook.cells
        if cell.cell_type == "code" and cell.source.strip() and isinstance(cell.outputs, list)
    ]


def tree(cell) -> ast.AST:
    """Return the code of a cell, parsed; of code that Python cannot parse, nothing."""
    source = re.sub(r"(?m)^(\s*)[%!].*", r"\1pass", cell.source)  # what only IPython understands
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ast.Module([], [])


def called(tree: ast.AST) -> list[str]:
    """Return what a cell calls: the last two names, such as ``checks.fit``."""
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [".".join(ast.unparse(call).split(".")[-2:]) for call in calls if is_name(call)]


def is_name(node: ast.AST) -> bool:
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name)


def layer(name: str) -> bool:
    return name.split(".")[-1] in LAYERS


def is_blank(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and node.value.value is Ellipsis
    )


def has_mini_batches(tree: ast.AST) -> bool:
    """Whether `fit` of a Trainer calls `_train_step` in a loop within a loop.

    Another method that `fit` calls may hold the inner loop.
    """
    for trainer in ast.walk(tree):
        if not (isinstance(trainer, ast.ClassDef) and trainer.name == "Trainer"):
            continue
        for method in trainer.body:
            if isinstance(method, ast.FunctionDef):
                loops = 2 if method.name == "fit" else 1
                if deepest(method, "_train_step") >= loops:
                    return True
    return False


def deepest(node: ast.AST, name: str, loops: int = 0) -> int:
    """Return how many loops stand around the innermost call of a method; -1 if there is none."""
    if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == name:
        return loops
    loops += isinstance(node, (ast.For, ast.While, ast.ListComp, ast.GeneratorExp))
    return max((deepest(child, name, loops) for child in ast.iter_child_nodes(node)), default=-1)


def check_names(submission: Submission, path: Path, trees: list[ast.AST]) -> None:
    names = {}
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                names |= assigned(target, node.value)
    first, last = (names.get(name, "").strip(" .") for name in ("FIRST_NAME", "LAST_NAME"))
    if not (first and last):
        submission.remarks.append("name not filled in")
    file_name = unicodedata.normalize("NFC", path.name)
    match = FILE_NAME.fullmatch(file_name)
    if not match:
        expected = "TP_CNN_firstname_lastname.ipynb"
        submission.remarks.append(f"file name is not {expected}")
    elif first and last and letters("".join(match.groups())) != letters(first + last):
        submission.remarks.append("file name and name in the notebook differ")
    submission.name = plain(f"{first} {last}", 40) or plain(path.name, 40)


def assigned(target: ast.AST, value: ast.AST) -> dict[str, str]:
    """Return the texts that an assignment gives to names."""
    if isinstance(target, ast.Name) and isinstance(value, ast.Constant):
        return {target.id: value.value} if isinstance(value.value, str) else {}
    if isinstance(target, (ast.Tuple, ast.List)) and isinstance(value, (ast.Tuple, ast.List)):
        pairs = zip(target.elts, value.elts, strict=False)
        return {name: text for pair in pairs for name, text in assigned(*pair).items()}
    return {}


def letters(text: str) -> str:
    """Return the letters of a name, without accents and in lower case, to compare it."""
    text = unicodedata.normalize("NFKD", text.casefold())
    return "".join(char for char in text if char.isalnum())


def check_execution(submission: Submission, cells: list) -> None:
    counts = [cell.execution_count for cell in cells]
    numbers = [count for count in counts if isinstance(count, int)]
    submission.executed = len(numbers)
    rising = all(a < b for a, b in itertools.pairwise(numbers))
    submission.in_order = bool(cells) and len(numbers) == len(cells) and rising
    if not cells:
        submission.remarks.append("no code")
    elif not numbers:
        submission.remarks.append("no cell executed")
    elif missing := len(cells) - len(numbers):
        submission.remarks.append(f"{missing} cell{'s' * (missing > 1)} not executed")
    if not rising:
        late = next(b for a, b in itertools.pairwise(numbers) if a >= b)
        submission.remarks.append(f"not executed from top to bottom (see cell [{late}])")
    elif submission.in_order and numbers != list(range(1, len(numbers) + 1)):
        submission.remarks.append("other cells were executed before or between these")
    for cell in cells:
        for output in cell.outputs:
            if output.get("output_type") == "error":
                submission.errors += 1
                what = f"{output.get('ename')}: {output.get('evalue')}"
                submission.remarks.append(f"error in cell [{cell.execution_count}]: {plain(what)}")
                break


def check_results(submission: Submission, cells: list, calls: list[list[str]]) -> None:
    shown = collections.Counter()
    for cell, names in zip(cells, calls, strict=True):
        for name in names:
            wanted = name if name in RESULTS else name.split(".")[-1]
            if wanted in RESULTS and shows(cell, wanted):
                shown[wanted] += 1
    missing = {name: times - shown[name] for name, times in RESULTS.items() if shown[name] < times}
    submission.results = sum(RESULTS.values()) - sum(missing.values())
    if not submission.results:
        submission.remarks.append("no results")
    elif missing:
        listed = [f"{name} ({times})" if times > 1 else name for name, times in missing.items()]
        submission.remarks.append("no result of " + ", ".join(listed))


def shows(cell, name: str) -> bool:
    """Whether a cell shows the result of what it calls: a picture, or the words of the check."""
    if not name.startswith("checks."):
        pictures = (kind for output in cell.outputs for kind in output.get("data", {}))
        return any(kind.startswith("image/") for kind in pictures)
    return (REPORT if name == "checks.report" else "Right:") in printed(cell)


def printed(cell) -> str:
    return "".join(
        output.get("text", "") for output in cell.outputs if output.get("name") == "stdout"
    )


def check_accuracies(submission: Submission, cells: list, trees: list[ast.AST]) -> None:
    """Take accuracies from the cells that measure them: one call of the check, and no more."""
    for cell, tree in zip(cells, trees, strict=True):
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            if not (is_name(call.func) and ast.unparse(call.func) == "checks.accuracy"):
                continue
            step = call.args[0].value if call.args and is_text(call.args[0]) else "unknown"
            alone = len(tree.body) == 1 and getattr(tree.body[0], "value", None) is call
            errors = [output.get("evalue", "") for output in cell.outputs]
            match = ACCURACY.search(printed(cell) + " ".join(errors))
            if not alone:
                submission.remarks.append(f"the check of the accuracy was changed: {plain(step)}")
            elif match:
                submission.accuracies[plain(step)] = float(match[1]) / 100


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    try:
        found = read(Path(sys.argv[1]))
    except Unreadable as error:
        found = Submission(remarks=[str(error)])
    found.remarks = found.remarks[:MOST_REMARKS]
    print(json.dumps(dataclasses.asdict(found)))
