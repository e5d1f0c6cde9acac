"""Run notebooks from top to bottom, each by itself: python run_notebooks.py NOTEBOOK...

The install cell of each is really run, with this folder's repository in place of the one on
GitHub, and must add tpcnn and nothing else to the environment. A notebook that needs a package that
Colab lacks installs it in a cell of its own, which may add that too; what is there stays as it is.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.parse
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
ON_GITHUB = r"git\+https://github\.com/[\w.-]+/[\w.-]+"


def pip(*arguments: str) -> str:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def installed() -> set[tuple[str, str]]:
    return {(p["name"], p["version"]) for p in json.loads(pip("list", "--format", "json"))}


for path in map(Path, sys.argv[1:]):
    notebook, start = nbformat.read(path, as_version=4), time.perf_counter()
    pip("uninstall", "--yes", "tpcnn")
    before = installed()
    install = next(cell for cell in notebook.cells if "%pip install" in cell.source)
    # pip wants a host in the address.
    here = f"git+file://localhost{urllib.parse.quote(str(ROOT))}"
    install.source, found = re.subn(ON_GITHUB, here, install.source)
    assert found == 1, f"{path}: the install cell names no repository on GitHub"
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=None, resources={"metadata": {"path": folder}}).execute()
    after = installed()
    added, changed = (
        {name for name, _ in packages} for packages in (after - before, before - after)
    )
    assert not changed, f"{path}: changed {changed}"
    installs = any('"pip", "install"' in cell.source for cell in notebook.cells)
    assert added == {"tpcnn"} or (installs and "tpcnn" in added), f"{path}: added {added}"
    print(f"{path.stem}: ran in {time.perf_counter() - start:.0f} s", flush=True)
