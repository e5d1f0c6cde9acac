"""How figures are shown in a notebook: small ones as vectors, large ones as sharp pictures."""

import base64
import struct

import nbformat
import pytest
from nbclient import NotebookClient

from tpcnn import plots

SMALL = "plt.plot([1, 2]);"
LARGE = "plt.scatter(*points, s=2);"  # of 60,000 points: 6 MB as SVG
BEFORE = """
import matplotlib.pyplot as plt
import numpy as np
points = np.random.default_rng(0).normal(size=(2, 60_000))
"""


def shown_by(*cells):
    """Execute cells in a kernel; return what each shows, as a dictionary by its type."""
    notebook = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells)))
    NotebookClient(notebook, kernel_name="python3", timeout=120).execute()
    displays = []
    for cell in notebook.cells:
        outputs = [output for output in cell.outputs if "data" in output]
        displays += [output.data | {"size": output.metadata} for output in outputs]
    for display in displays:
        del display["text/plain"]
    return displays


def is_vector(display):
    svg = display.pop("image/svg+xml")
    return display == {"size": {}} and "<svg" in svg and len(svg) < plots.LARGEST_SVG


def is_sharp_picture(display):
    size = display["size"]["image/png"]
    width, height = struct.unpack(">II", base64.b64decode(display["image/png"])[16:24])
    return (
        set(display) == {"image/png", "size"}
        and len(display["image/png"]) < plots.LARGEST_SVG
        and (width // 2, height // 2) == (size["width"], size["height"])
    )


@pytest.fixture(scope="module")
def displays():
    """What is shown where the inline backend configures itself after `tpcnn`, as it does twice."""
    names = {
        "small": SMALL,
        "large": LARGE,
        "returned": "figure = plt.figure(); figure.gca().plot([1, 2]); plt.close(); figure",
        "empty": "plt.figure();",
        "configured again": f"%matplotlib inline\n{SMALL}",
        "large, configured again": LARGE,
        "styled again": f"tpcnn.plots.use_style()\n{SMALL}",
        "large, styled again": LARGE,
        "chosen": f"%config InlineBackend.figure_formats = ['png']\n{SMALL}",
    }
    shown = shown_by(f"import tpcnn\n{BEFORE}", *names.values())
    return dict(zip(names, shown, strict=True))


@pytest.mark.parametrize("name", ["small", "returned", "configured again", "styled again"])
def test_small_figures_are_vectors(displays, name):
    assert is_vector(displays[name])


@pytest.mark.parametrize("name", ["large", "large, configured again", "large, styled again"])
def test_large_figures_are_sharp_pictures(displays, name):
    assert is_sharp_picture(displays[name])


def test_an_empty_figure_is_not_shown(displays):
    assert displays["empty"] == {"size": {}}


def test_a_format_that_the_user_chooses_is_taken(displays):
    assert set(displays["chosen"]) == {"image/png", "size"}


def test_figures_are_vectors_where_matplotlib_was_configured_before():
    before, small, large = shown_by(f"{BEFORE}{SMALL}", f"import tpcnn\n{SMALL}", LARGE)
    assert set(before) == {"image/png", "size"}
    assert is_vector(small)
    assert is_sharp_picture(large)


def test_a_format_that_the_user_has_chosen_before_is_left():
    chosen = "%config InlineBackend.figure_formats = ['retina']"
    (shown,) = shown_by(f"{chosen}\n{BEFORE}", f"import tpcnn\n{SMALL}")
    assert is_sharp_picture(shown)
