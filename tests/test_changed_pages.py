"""What the weekly rebuild calls a changed page."""

import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.fixture
def compare(tmp_path):
    def compare(before: dict[str, str], after: dict[str, str]):
        for folder, pages in [("old", before), ("new", after)]:
            (tmp_path / folder).mkdir()
            for name, text in pages.items():
                page = f"<html><nav>menu</nav><article><p>{text}</p></article></html>"
                (tmp_path / folder / f"{name}.html").write_text(page)
        command = [sys.executable, ROOT / "book" / "_programs" / "changed_pages.py", "old", "new"]
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert ended.stderr == ""
        return ended.returncode, ended.stdout

    return compare


def test_numbers_may_move_and_the_status_page_too(compare):
    before = {"cnn": "99.57 % in 159 s", "status": "built by hand"}
    after = {"cnn": "99.61 % in 1,204.5 s", "status": "built in CI"}
    assert compare(before, after) == (0, "No page changed.\n")


@pytest.mark.parametrize(
    "after",
    [{"cnn": "It is wrong.", "data": "x"}, {"data": "x"}, {"cnn": "It is right."}],
    ids=["a sentence", "a page fewer", "another page fewer"],
)
def test_a_changed_sentence_or_a_missing_page_is_shown(compare, after):
    status, printed = compare({"cnn": "It is right.", "data": "x"}, after)
    assert status == 1
    missing = {"cnn", "data"} - after.keys() or {"cnn"}
    assert f"--- {missing.pop()}.html" in printed
