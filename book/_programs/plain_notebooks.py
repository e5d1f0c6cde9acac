"""Finish the notebooks that sphinx-tojupyter wrote: _build/jupyter to _build/html/notebooks.

Each gets a head that says what it is, how to get a GPU, and that installs tpcnn at the commit that
built the book; links that work outside the book; and folded solutions and sources. The lab becomes
two notebooks: the student's, with blanks, and the solved one, which is nbgrader's source notebook.
"""

import copy
import re
import shutil

import nbformat
from contents import pages
from myst_nb.core.read import myst_nb_reader_plugin
from nbgrader.preprocessors import CheckCellMetadata, ClearSolutions, LockCells
from notebooks import has_notebook
from repository import ROOT, colab_url, git, pages_url, repository

WRITTEN = ROOT / "_build" / "jupyter"
PUBLISHED = ROOT / "_build" / "html" / "notebooks"
LINK = re.compile(r"\]\((\w+)\.ipynb(#[\w-]+)?\)")
EXERCISE = re.compile(r"## (Exercise [\d.]+)\s*")


def head(chapter: str, title: str) -> list[nbformat.NotebookNode]:
    """Return the first cells of a notebook."""
    commit = git("rev-parse", "HEAD")
    source = f"git+https://github.com/{repository()}" + (f"@{commit}" if commit else "")
    text = (
        f"*This notebook is the chapter [{title}]({pages_url()}{chapter}.html) of the book "
        f"[Training image classifiers]({pages_url()}). Run its cells from top to bottom. A CPU "
        "will do; for a GPU, which is faster, choose* Runtime → Change runtime type *first.*"
    )
    code = (
        "# The module of the book, where it is missing. TensorFlow and the rest are here already.\n"
        "import importlib.util\n\n"
        'if importlib.util.find_spec("tpcnn") is None:\n'
        f'    %pip install --quiet "tpcnn @ {source}"'
    )
    return [nbformat.v4.new_markdown_cell(text), nbformat.v4.new_code_cell(code)]


def folded(summary: str, cells: list[nbformat.NotebookNode]) -> nbformat.NotebookNode:
    """Return cells as one Markdown cell that opens on a click; their code is shown, not run."""
    parts = [
        f"```python\n{cell.source}\n```" if cell.cell_type == "code" else cell.source
        for cell in cells
    ]
    body = "\n\n".join(parts)
    return nbformat.v4.new_markdown_cell(
        f"<details>\n<summary>{summary}</summary>\n\n{body}\n\n</details>"
    )


def fold(cells: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Fold each solution, and each source that stands under a line ``Source: ...``."""
    done = []
    while cells:
        cell = cells.pop(0)
        inside = []
        if cell.source.strip() == "## Solution" or cell.source.startswith("## Solution\n"):
            inside = [
                nbformat.v4.new_markdown_cell(cell.source.removeprefix("## Solution").strip())
            ]
            while cells and not EXERCISE.match(cells[0].source):
                inside.append(cells.pop(0))
            done.append(folded("Solution", [cell for cell in inside if cell.source]))
        elif cell.cell_type == "markdown" and cell.source.startswith("Source: "):
            while cells and cells[0].source.startswith("```"):
                inside.append(cells.pop(0))
            done.append(folded(cell.source.strip().replace("`", ""), inside))
        else:
            cell.source = EXERCISE.sub(r"### \1\n\n", cell.source)
            done.append(cell)
    return done


def with_links(text: str, published: list[str]) -> str:
    """Return Markdown whose links to chapters open their notebooks, others the published pages."""

    def address(match):
        name, anchor = match[1], match[2] or ""
        url = colab_url(name) if name in published else f"{pages_url()}{name}.html{anchor}"
        return f"]({url})"

    return LINK.sub(address, text)


def graded(chapter: str, cells: list[nbformat.NotebookNode]) -> None:
    """Give code cells their nbgrader metadata, which sphinx-tojupyter has dropped.

    Raises:
        ValueError: the cells are not those of the chapter's source, one by one.
    """
    sources = [
        cell
        for cell in myst_nb_reader_plugin(ROOT / "book" / f"{chapter}.md").cells
        if cell.cell_type == "code" and "remove-cell" not in cell.metadata.get("tags", [])
    ]
    for cell, source in zip(cells, sources, strict=True):
        if cell.source.strip() != source.source.strip():
            raise ValueError(f"{chapter}: expected the cell\n{source.source}\ngot\n{cell.source}")
        if "nbgrader" in source.metadata:
            cell.metadata["nbgrader"] = source.metadata["nbgrader"]


def without_solutions(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return the student's version of a notebook: blanks for solutions, checks locked."""
    student = copy.deepcopy(notebook)
    steps = [CheckCellMetadata(), ClearSolutions(code_stub={"python": "..."}), LockCells()]
    for step in steps:
        student, _ = step.preprocess(student, {})
    return student


def finish(chapter: str, published: list[str]) -> None:
    notebook = nbformat.read(WRITTEN / f"{chapter}.ipynb", as_version=4)
    title = re.match(r"# (.+)", notebook.cells[0].source)[1]
    cells = [*head(chapter, title), *fold(notebook.cells)]
    for number, cell in enumerate(cells):
        cell.id, cell.metadata = f"{chapter}-{number}".replace("_", "-"), {}
        if cell.cell_type == "markdown":
            cell.source = with_links(cell.source, published)
    if chapter == "lab":
        graded(chapter, [cell for cell in cells[2:] if cell.cell_type == "code"])
    metadata = {
        "accelerator": "GPU",
        "colab": {"gpuType": "T4", "provenance": []},
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    finished = nbformat.v4.new_notebook(cells=cells, metadata=metadata)
    versions = {chapter: finished}
    if chapter == "lab":
        versions = {"lab": without_solutions(finished), "lab_solved": finished}
    for name, notebook in versions.items():
        nbformat.validate(notebook)
        nbformat.write(notebook, PUBLISHED / f"{name}.ipynb")


def main():
    shutil.rmtree(PUBLISHED, ignore_errors=True)
    PUBLISHED.mkdir(parents=True)
    published = [name for name in pages() if has_notebook(name)]
    for chapter in published:
        finish(chapter, published)


if __name__ == "__main__":
    main()
