"""The built book: its results, and what must not be in its chapters."""

import hashlib
import html as html_module
import json
import re
import subprocess
import tomllib
from datetime import UTC, datetime

import keras
import pytest
from conftest import CHAPTERS, FIGURES, ROOT, source

import tpcnn
from tpcnn.checks import REQUIRED_ACCURACY

pytestmark = pytest.mark.book
EXPECTED = tomllib.loads((ROOT / "tests" / "expected_results.toml").read_text())


def disagreements(results: dict, expected: dict) -> list[str]:
    """Return a line for each figure that differs: chapter, figure, both values."""
    lines = []
    for chapter, figures in expected.items():
        built = results.get(chapter)
        if built is None:
            lines.append(f"{chapter}: no results in the built book")
            continue
        accuracy, required = built["test_accuracy"], REQUIRED_ACCURACY[chapter]
        if not accuracy >= required:
            lines.append(f"{chapter}: test_accuracy is {accuracy:.4f}, required {required:.4f}")
        if not abs(accuracy - figures["test_accuracy"]) <= figures["tolerance"]:
            lines.append(
                f"{chapter}: test_accuracy is {accuracy:.4f}, "
                f"expected {figures['test_accuracy']:.4f} ± {figures['tolerance']}"
            )
        for figure in ("parameters", "epochs"):
            if built[figure] != figures[figure]:
                lines.append(f"{chapter}: {figure} is {built[figure]}, expected {figures[figure]}")
        for figure in ("seconds", "images_per_second", "device"):
            if not built[figure]:
                lines.append(f"{chapter}: {figure} is {built[figure]!r}, expected to be measured")
    return lines


@pytest.fixture
def results(html):
    return json.loads((html.parent / "results.json").read_text())


def test_the_results_are_as_required_and_expected(results):
    lines = disagreements(results, EXPECTED)
    assert not lines, "\n".join(lines)


def test_every_chapter_with_a_result_is_expected_to_have_one(results):
    assert results.keys() == EXPECTED.keys()


def test_a_drop_in_accuracy_is_named(results):
    before = disagreements(results, EXPECTED)
    results["cnn"]["test_accuracy"] = 0.97
    planted = [line for line in disagreements(results, EXPECTED) if line not in before]
    expected, tolerance = EXPECTED["cnn"]["test_accuracy"], EXPECTED["cnn"]["tolerance"]
    assert planted == [
        "cnn: test_accuracy is 0.9700, required 0.9800",
        f"cnn: test_accuracy is 0.9700, expected {expected:.4f} ± {tolerance}",
    ]


def test_the_index_shows_every_result(html, results):
    page = (html / "index.html").read_text()
    table = page[page.index("<table") : page.index("</table>")]
    cells = [re.sub("<[^>]+>", "", cell).strip() for cell in re.findall("(?s)<td>.*?</td>", table)]
    rows = [cells[start : start + 8] for start in range(0, len(cells), 8)]
    assert [row[1:] for row in rows] == [
        [
            f"{figures['test_accuracy']:.2%}",
            f"{figures['required_accuracy']:.0%}",
            f"{figures['parameters']:,}",
            str(figures["epochs"]),
            f"{figures['seconds']:.0f}",
            f"{figures['images_per_second']:,.0f}",
            figures["device"],
        ]
        for figures in results.values()
    ]


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_has_its_outputs_and_wrote_nothing_to_stderr(executed, chapter):
    outputs = [output for cell in executed[chapter].cells for output in cell.get("outputs", [])]
    assert len(outputs) >= FIGURES[chapter]
    for output in outputs:
        assert output.output_type != "error", output
        assert output.get("name") != "stderr", output.get("text")


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_no_debris_in_a_page(html, chapter):
    page = (html / f"{chapter}.html").read_text()
    for debris in (
        "absl::InitializeLog",
        "INFO:tensorflow:",
        "WARNING:tensorflow:",
        "Warning:",
        "it/s]",
        "B/s]",
        "\r",
        "np.float64(",
    ):
        assert debris not in page


def test_the_status_page_says_what_the_build_was_made_of(html):
    page = html_text((html / "status.html").read_text())
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    assert commit.strip() in page or "no git repository" in page
    assert datetime.now(UTC).strftime("%Y-") in page
    assert tpcnn.describe_device() in page
    assert f"keras {keras.__version__}" in page
    x, _ = tpcnn.load_mnist(raw=True)[0]
    assert hashlib.sha256(x.tobytes()).hexdigest() in page
    table = page[page.index("Execution time (s)") :]
    titles = [re.search("(?m)^# (.+)", source(name))[1] for name in CHAPTERS]
    for title in titles:
        assert re.search(rf"{re.escape(title)}\s+\d+\s", table), f"no execution time of {title}"


def html_text(page: str) -> str:
    """Return what a reader sees of a page."""
    return html_module.unescape(re.sub("<[^>]+>", "", page))
