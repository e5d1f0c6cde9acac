"""A notebook in an environment with Colab's versions; the workflow colab runs all of them."""

import subprocess

import pytest
from conftest import ROOT


@pytest.mark.book
def test_a_notebook_installs_tpcnn_alone_and_runs_on_colabs_versions(html):
    ended = subprocess.run(
        ["make", "colab", "NOTEBOOKS=data"], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    assert "data: ran in" in ended.stdout
