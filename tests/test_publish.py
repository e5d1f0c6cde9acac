"""`make publish` and `make changed`, with a repository of this machine in place of GitHub's."""

import subprocess

import pytest
from conftest import ROOT, make


def run(folder, *command):
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return ended.returncode, ended.stdout + ended.stderr


@pytest.fixture
def checkout(tmp_path):
    """Return a function that checks out as GitHub's action does: one commit of one branch."""

    def git(folder, *arguments):
        who = ("-c", "user.name=A", "-c", "user.email=a@example.org")
        status, printed = run(folder, "git", *who, *arguments)
        assert status == 0, printed

    source, origin = tmp_path / "source", tmp_path / "origin.git"
    source.mkdir()
    git(source, "init", "--quiet", "--initial-branch", "main")
    for name in ("Makefile", "book/_programs/changed_pages.py"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text((ROOT / name).read_text())
    git(source, "add", ".")
    git(source, "commit", "--quiet", "--message", "all")
    git(tmp_path, "clone", "--quiet", "--bare", source, origin)

    def checkout(name, sentence):
        folder = tmp_path / name
        git(tmp_path, "clone", "--quiet", "--depth", "1", origin.as_uri(), folder)
        git(folder, "config", "user.name", "A")
        git(folder, "config", "user.email", "a@example.org")
        (folder / "_build" / "html" / "notebooks").mkdir(parents=True)
        page = folder / "_build" / "html" / "cnn.html"
        page.write_text(f"<article>{sentence}</article>")
        return folder

    return checkout


@pytest.mark.parametrize("target", ["publish", "changed"])
def test_the_repository_around_an_unpacked_archive_is_left_alone(checkout, target):
    around = checkout("around", "another site")
    folder = around / "book of ours"
    (folder / "_build" / "html" / "notebooks").mkdir(parents=True)
    (folder / "Makefile").write_text((ROOT / "Makefile").read_text())
    status, printed = make(folder, target)
    assert status != 0 and "make: this needs git, and a clone of the book" in printed


def test_pages_are_published_again_and_again(checkout):
    for number in range(3):
        folder = checkout(f"checkout{number}", f"build {number}")
        status, printed = make(folder, "publish")
        assert status == 0, printed
    run(folder, "git", "fetch", "--quiet", "origin", "gh-pages")
    assert "build 2" in run(folder, "git", "show", "FETCH_HEAD:cnn.html")[1]
    assert ".nojekyll" in run(folder, "git", "ls-tree", "--name-only", "FETCH_HEAD")[1]


def test_changed_pages_are_those_that_differ_from_the_published_ones(checkout):
    assert make(checkout("first", "It is right."), "changed") == (0, "Nothing is published yet.\n")
    assert make(checkout("second", "It is right."), "publish")[0] == 0
    assert make(checkout("third", "It is right."), "changed") == (0, "No page changed.\n")
    status, printed = make(checkout("fourth", "It is wrong."), "changed")
    assert status != 0
    assert "+It is wrong." in printed
