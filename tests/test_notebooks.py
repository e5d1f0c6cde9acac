"""The notebooks for Colab, and the buttons that lead to them."""

import os
import re
import subprocess
import sys

import nbformat
import pytest
from conftest import FIGURES, PAGES, ROOT, cells_in, source
from nbclient import NotebookClient
from notebooks import has_notebook
from repository import colab_url, pages_url, repository

pytestmark = pytest.mark.book
PUBLISHED = [name for name in PAGES if has_notebook(name)]
COLAB = re.compile(r"https://colab\.research\.google\.com/github/[^/]+/[^/]+/blob/gh-pages/(.+)")


@pytest.fixture(params=PUBLISHED)
def chapter(request):
    return request.param


@pytest.fixture
def notebook(html, chapter):
    return nbformat.read(html / "notebooks" / f"{chapter}.ipynb", as_version=4)


def markdown(notebook) -> str:
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def without_code(text: str) -> str:
    return re.sub(r"(?ms)^```.*?^```$|`[^`\n]*`", "", text)


def test_a_notebook_is_valid_asks_for_a_gpu_and_says_what_it_is(notebook, chapter):
    nbformat.validate(notebook)
    assert notebook.metadata.accelerator == "GPU"
    assert notebook.metadata.kernelspec.name == "python3"
    first, install, title = notebook.cells[:3]
    assert f"{pages_url()}{chapter}.html" in first.source
    assert "Change runtime type" in first.source
    assert "%pip install" in install.source and 'find_spec("tpcnn") is None' in install.source
    name = re.search("(?m)^# (.+)", source(chapter))[1]
    assert title.source.startswith(f"# {name}\n")


def leftovers(text: str) -> list[str]:
    """Return what only MyST understands: roles, directives, labels and options."""
    patterns = [
        r"\{[\w:-]+\}`[^`]*`",
        r"(?m)^(?::{3,}|`{3,}) *\{.*",
        r"(?m)^\([\w-]+\)=$",
        r"(?m)^:[\w-]+: .*",
    ]
    return [found for pattern in patterns for found in re.findall(pattern, text)]


def test_markdown_is_plain(notebook):
    assert leftovers(markdown(notebook)) == []
    assert "![" not in without_code(markdown(notebook)), "an image that Colab would have to find"


@pytest.mark.parametrize(
    "planted",
    [
        "see {doc}`cnn`",
        "{glue:text}`x:.1f` %",
        ":::{note}",
        "```{figure} a.png",
        "(here)=",
        ":label: x",
    ],
)
def test_a_leftover_would_be_found(planted):
    assert leftovers(f"Some text.\n\n{planted}\n\nMore `code` and $x$.") != []


def test_nothing_of_a_chapter_is_lost(notebook, chapter):
    text = markdown(notebook)
    exercises = source(chapter).count("```{exercise}")
    assert len(re.findall(r"(?m)^### Exercise \d+\.\d+$", text)) == exercises
    assert text.count("<summary>Solution</summary>") == exercises
    assert text.count("<details>") == text.count("</details>")
    # Figures in solutions come with the folded code; the others are captioned.
    assert len(re.findall(r"\*\*Fig\. \d+\.\d+\*\*", text)) == FIGURES[chapter]
    code = [cell.source.strip() for cell in notebook.cells if cell.cell_type == "code"][1:]
    text = re.sub(r"(?s)\{solution-start\}.*?\{solution-end\}", "", source(chapter))
    shown = [code for options, code in cells_in(text) if "remove-cell" not in options]
    if chapter != "lab":  # whose blanks test_lab.py looks at
        assert code == [cell.strip() for cell in shown]


def test_links_lead_to_what_the_build_made(html, notebook):
    text = without_code(markdown(notebook))
    for address in re.findall(r"\]\((.*?)\)", text):
        if match := COLAB.fullmatch(address):
            assert (html / match[1]).exists(), address
        elif address.startswith(pages_url()):
            path, _, anchor = address.removeprefix(pages_url()).partition("#")
            page = (html / (path or "index.html")).read_text()
            assert not anchor or f'id="{anchor}"' in page, address
        else:
            assert address.startswith("https://"), address


def test_the_buttons_of_a_page_lead_to_its_notebook_and_source(html, notebook, chapter):
    page = (html / f"{chapter}.html").read_text()
    assert f'href="{colab_url(chapter)}"' in page
    assert COLAB.fullmatch(colab_url(chapter))[1] == f"notebooks/{chapter}.ipynb"
    assert f'href="notebooks/{chapter}.ipynb"' in page
    github = rf'href="https://github\.com/{repository()}'
    assert re.search(rf"{github}/edit/main/book/{chapter}\.md\"", page)
    assert (ROOT / "book" / f"{chapter}.md").exists()
    assert re.search(rf"{github}/issues/new\?", page)
    assert re.search(rf'{github}"', page)


def test_a_fork_points_to_itself(tmp_path):
    command = "import repository as r; print(r.repository(), r.pages_url(), r.colab_url('cnn'))"
    printed = subprocess.run(
        [sys.executable, "-c", command],
        env=os.environ | {"GITHUB_REPOSITORY": "Someone/fork", "PYTHONPATH": "book/_ext"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed.split() == [
        "Someone/fork",
        "https://someone.github.io/fork/",
        "https://colab.research.google.com/github/Someone/fork/blob/gh-pages/notebooks/cnn.ipynb",
    ]


@pytest.mark.parametrize("chapter", ["data"], indirect=True)
def test_a_notebook_runs_by_itself(notebook, tmp_path):
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    images = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/svg+xml" in output.get("data", {})
    ]
    assert len(images) >= 4
