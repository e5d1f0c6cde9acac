"""The sources of the chapters: what each must have, and what must not be typed in it."""

import re
import subprocess
import sys

import pytest
import yaml
from conftest import CHAPTERS, ROOT, code_cells, source
from sphinx.config import Config
from sphinx.directives.code import LiteralIncludeReader

PROSE_PAGES = ["index", *CHAPTERS, "glossary", "reference"]
EXPLAINING = [name for name in CHAPTERS if name not in ("lab", "status")]  # the lab: one exercise

# What was measured comes from glue. These are no measurements of a build: what the lab sheet
# requires, what a text defines or supposes, and what was published.
ALLOWED = {
    # The level of intervals and tests, by convention; what an exercise or an example supposes.
    "accuracy": {"5%", "80%", "95%", "99.75%", "100%", "99%", "99.0%", "99.1%", "0.5%"},
    "cnn": {"99%", "0.95%", "0.8%"},  # a heading, which a cell asserts; what LeNet-5 misread
    "dropout": {"5%"},  # a share that is asked for
    "fully_connected": {"60%", "90%"},  # borders of groups in an exercise
    "index": {"99%"},
    "scaling": {"50%", "80%"},  # efficiencies that the reader asks for
    "tuning": {"5%", "95%"},  # what an exercise asks for; the level of an interval
}
NUMBER = r"\d[\d  ,.]*"
MEASURED = re.compile(
    rf"{NUMBER}\s*(?:%|(?:percent|per cent|percentage points?|points|seconds?|minutes?|hours?|ms|"
    r"GB|MB|kB|parameters|mistakes|images per second|steps per second|times as|times more|"
    r"times larger|times faster|times slower)\b)"
)


def prose(name: str) -> str:
    """Return a page without code, directives' options, formulas and roles."""
    return re.sub(r"(\{[\w:]+\})?`[^`]*`", "…", prose_with_links(name))


def prose_with_links(name: str) -> str:
    """Return a page without code, directives' options and formulas."""
    text = source(name)
    text = re.sub(r"(?s)\A---.*?\n---\n", "", text)
    text = re.sub(r"(?ms)^```\{(code-cell|literalinclude|glossary)\b.*?^```$", "", text)
    if name == "glossary":
        text = source(name)
    text = re.sub(r"(?m)^---\n(?:[\w-]+: .*\n)+---$", "", text)
    return re.sub(r"(?s)\$\$.*?\$\$|\$[^$\n]*\$", "", text)


@pytest.mark.parametrize("name", PROSE_PAGES)
def test_no_measured_number_is_typed(name):
    typed = {match[0].strip() for match in MEASURED.finditer(prose(name))}
    assert typed <= ALLOWED.get(name, set())


def test_a_typed_measurement_would_be_found():
    for sentence in ["It reaches 97.3 % in", "took 12 seconds", "1,234 parameters", "2.5 times as"]:
        assert MEASURED.search(sentence), sentence
    assert not MEASURED.search("batches of 128 images, for 10 epochs")


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_figure_has_a_name_a_caption_and_an_alternative_text(name):
    names = []
    for options, code in code_cells(name):
        draws = re.search(r"plt\.|plots\.|plot_history\(", code)
        figure = (yaml.safe_load(options) or {}).get("mystnb", {}).get("figure")
        if figure is None:
            assert not (draws and code.rstrip().endswith(";")), f"a figure without caption:\n{code}"
            continue
        names.append(figure["name"])
        assert len(figure["caption"]) > 30
        assert len(yaml.safe_load(options)["mystnb"]["image"]["alt"]) > 30
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", EXPLAINING)
def test_a_chapter_asks_a_question_and_closes_with_exercises_that_are_solved(name):
    text = source(name)
    assert re.search(r"(?m)^# .+\n\n\*\*[^*]+\?\*\*", text), "no question at the start"
    assert "\n## Take-aways\n" in text
    exercises = re.findall(r"```\{exercise\}\n---\nlabel: (\S+)\n---\n", text)
    solutions = re.findall(r"```\{solution-start\} (\S+)\n---\nclass: dropdown\n---\n", text)
    assert len(exercises) >= 3
    assert exercises == solutions, "each exercise is followed by its solution"
    assert text.count("```{solution-end}") == len(solutions)
    for solution in re.findall(r"(?s)\{solution-start\}.*?\{solution-end\}", text):
        assert "```{code-cell}" in solution, "a solution without code that is executed"


@pytest.mark.parametrize("name", CHAPTERS)
def test_no_cell_that_a_notebook_shows_needs_a_hidden_one(name):
    """Cells with the tag remove-cell are not in the notebooks that readers run."""
    shown = "\n".join(code for options, code in code_cells(name) if "remove-cell" not in options)
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select=F821", "-"]
    ended = subprocess.run(command, input=shown, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout


def test_the_trainer_chapter_shows_the_trainer_whole():
    """At most 150 lines, in their order and with nothing left out but blank lines."""
    module = ROOT / "tpcnn" / "trainer.py"
    directive = r"(?ms)^```\{literalinclude\} \.\./tpcnn/trainer\.py\n(.*?)^```$"
    shown = []
    for options in re.findall(directive, source("trainer")):
        options = yaml.safe_load(re.sub("(?m)^:", "", options.strip("-\n")))
        options.pop("dedent", None)  # the page moves methods to the left
        text, _ = LiteralIncludeReader(str(module), options, Config()).read()
        shown += text.splitlines()
    lines = module.read_text().splitlines()
    assert [line for line in shown if line.strip()] == [line for line in lines if line.strip()]
    assert len(lines) <= 150


def glossary():
    """Yield each term with the chapters that its entry names, in reading order."""
    entries = re.search(r"(?ms)^```\{glossary\}\n(.*?)^```$", source("glossary"))[1]
    for entry in entries.strip().split("\n\n"):
        term, definition = entry.split("\n", maxsplit=1)
        named = re.findall(r"\{doc\}`(\w+)`", definition)
        yield term, sorted(named, key=CHAPTERS.index)


@pytest.mark.parametrize(("term", "chapters"), glossary())
def test_a_term_is_defined_before_it_is_used_or_comes_with_a_link(term, chapters):
    """Where a chapter first uses a term of a later one, it says where that is explained."""
    word = re.compile(rf"(?i)\b{re.escape(term)}(s|es)?\b")
    links = [f"{{doc}}`{chapter}`" for chapter in chapters]
    for chapter in CHAPTERS[: CHAPTERS.index(chapters[0])]:
        for paragraph in re.split(r"\n\s*\n", prose_with_links(chapter)):
            text = re.sub(r"(\{[\w:]+\})?`[^`]*`", "…", paragraph)
            if word.search(text):
                assert any(link in paragraph for link in links), f"{chapter}: {text.strip()}"
                break


def test_each_term_of_the_glossary_has_its_french_name():
    entries = re.search(r"(?ms)^```\{glossary\}\n(.*?)^```$", source("glossary"))[1]
    for entry in entries.strip().split("\n\n"):
        assert re.search(r"\. French: \*[^*]+\*\.$", entry), entry


def test_the_terms_of_the_glossary_stand_in_the_order_of_the_alphabet():
    terms = [term.lower() for term, _ in glossary()]
    assert terms == sorted(terms)


@pytest.mark.parametrize("name", CHAPTERS)
def test_cells_that_draw_are_folded_and_conclude_nothing(name):
    for options, code in code_cells(name):
        if "figure:" in options and len(code.splitlines()) > 3:
            assert "hide-input" in options, code
        if "hide-input" in options and name != "lab":
            assert "assert" not in code
