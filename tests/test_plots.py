"""How figures are shown in a notebook, as vectors or sharp pictures; the drawing of a network."""

import base64
import itertools
import re
import struct

import tpcnn  # isort: skip  # before TensorFlow, since it chooses how that starts
import keras
import nbformat
import pytest
from keras import layers
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


class Adjustable(layers.Dropout):
    """A layer of the reader's own, as in the chapter on dropout."""

    compute_output_shape = layers.Layer.compute_output_shape


def with_a_layer_of_its_own():
    stack = [keras.Input((28, 28, 1)), layers.Flatten(), layers.Dense(9), Adjustable(0.2)]
    return keras.Sequential([*stack, layers.Dense(10)])


def functional():
    images = keras.Input((20, 12, 3))
    maps = layers.AveragePooling2D(2)(layers.Conv2D(5, 3, strides=2)(images))
    normalised = layers.GroupNormalization(5)(layers.LayerNormalization()(maps))
    pooled = layers.GlobalAveragePooling2D()(normalised)
    return keras.Model(images, layers.Dense(4)(layers.Activation("tanh")(pooled)))


NETWORKS = [
    tpcnn.build_fc,
    tpcnn.build_cnn,
    tpcnn.build_fashion_cnn,
    lambda: keras.Sequential([keras.Input((7,)), layers.Dense(12000), layers.Dense(1)]),
    lambda: keras.Sequential([keras.Input((28, 28, 1)), *tpcnn.build_fc().layers[1:]]),
    functional,
    with_a_layer_of_its_own,
]


def texts_of(figure):
    return [text for axis in figure.axes for text in axis.texts]


@pytest.mark.parametrize("build", NETWORKS)
def test_the_drawing_of_a_network_has_what_its_summary_has(build, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")  # or the summary would be cut to the terminal's width
    model = build()
    summary = []
    model.summary(print_fn=lambda text, **_: summary.append(text), line_length=120)
    in_summary = re.findall(r"\((\w+)\)\s+│ \(None, ([\d, ]+?),?\) +│ +([\d,]+)", "".join(summary))
    in_summary = [layer for layer in in_summary if layer[0] != "InputLayer"]
    assert len(in_summary) == len(model.layers) - isinstance(model.layers[0], layers.InputLayer)

    words = [text.get_text() for text in texts_of(plots.network(model))]
    shape = words[1]
    for name, numbers, parameters in in_summary:
        words = words[words.index(name) + 1 :]
        row = list(itertools.takewhile(lambda word: not hasattr(layers, word), words))
        new_shape = " \N{MULTIPLICATION SIGN} ".join(f"{int(n):,}" for n in numbers.split(","))
        assert new_shape in row or new_shape == shape, "a shape is shown where it changes"
        assert parameters == "0" or parameters in row
        shape = new_shape
    assert words[-1] == f"{model.count_params():,}"


@pytest.mark.parametrize("build", NETWORKS)
def test_no_words_in_the_drawing_of_a_network_overlap_or_leave_it(build):
    figure = plots.network(build())
    boxes = [text.get_window_extent() for text in texts_of(figure) if text.get_text()]
    for box in boxes:
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)


def test_a_network_that_cannot_be_drawn_is_named_with_the_reason():
    with pytest.raises(ValueError, match=r"^model: .*keras.Input"):
        plots.network(keras.Sequential([layers.Dense(3)]))
    start = keras.Input((4,))
    inner = layers.Dense(4, name="inner")(start)
    with pytest.raises(ValueError, match=r"^model: .*'sum'.*plot_model"):
        plots.network(keras.Model(start, layers.Add(name="sum")([start, inner])))
