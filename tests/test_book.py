"""The built book: its results, and what must not be in its chapters."""

import hashlib
import html as html_module
import re
import subprocess
from datetime import UTC, datetime

import keras
import pytest
from conftest import CHAPTERS, FIGURES, ROOT, source
from results import built, complaints, expected

import tpcnn

pytestmark = pytest.mark.book


@pytest.fixture
def results(html):
    return built(html.parent)


def test_the_results_are_as_required_and_expected(results):
    assert complaints(results) == []


def test_a_drop_in_accuracy_and_a_missing_result_are_named(results):
    usual = expected()["cnn"]
    results["cnn"]["test_accuracy"] = 0.97
    results["surprise"] = results.pop("fashion")
    assert complaints(results) == [
        "fashion: no results in the built book",
        "cnn: test_accuracy is 0.9700, required 0.9800",
        "cnn: test_accuracy is 0.9700, "
        f"expected {usual['test_accuracy']:.4f} ± {usual['tolerance']}",
        "surprise: has a result, but tests/expected_results.toml expects none",
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


def test_the_ablation_is_that_of_the_build(html, executed):
    """What the page says of an ingredient is what its table has, and the table what was trained."""
    outputs = [output for cell in executed["fully_connected"].cells for output in cell.outputs]
    printed = [output.get("text", "") for output in outputs]
    (table,) = [text for text in printed if "added to plain" in text]
    number = r"[+-]\d+\.\d\d ± \d+\.\d\d"
    rows = re.findall(rf"(?m)^(\w[\w ]+?) +({number}) +({number}) +\d+\.\ds$", table)
    assert len(rows) == 6
    page = html_text((html / "fully_connected.html").read_text())
    (reading,) = re.findall(r"How to read it\. A mark whose bar .+", page)
    quoted = re.findall(number, reading.replace("−", "-"))  # noqa: RUF001
    assert len(quoted) >= 3
    assert set(quoted) <= set(re.findall(number, table))


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
