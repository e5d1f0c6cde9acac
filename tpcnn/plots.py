"""Every figure that chapters draw more than once, and the drawing of a network, in one style."""

import io
import sys
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

# Okabe and Ito's colours, which readers with any colour vision can tell apart.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#007A5A", "#C8400A", "#9A9A9A"
WIDTH = 5.6  # inches; on a telephone the letters are still readable
LARGEST_SVG = 1_000_000  # bytes; the figures of the book have at most a third of that


def use_style() -> None:
    """Give every figure that follows the look of the book; in a notebook, as vector graphics."""
    if "IPython" in sys.modules and (shell := sys.modules["IPython"].get_ipython()):
        _show_as_vectors(shell)
    plt.rcParams.update(
        {
            "figure.figsize": (WIDTH, 2.8),
            "figure.facecolor": "white",
            "figure.constrained_layout.use": True,
            "font.size": 10,
            "axes.titlesize": 10,
            "axes.prop_cycle": plt.cycler(color=[BLUE, ORANGE, GREEN, RED]),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": False,
            "image.cmap": "gray_r",
            # "none" keeps the pixels of an image as they are; the browser scales them unblurred.
            "image.interpolation": "none",
            # The same figure gives the same file, build after build.
            "svg.hashsalt": "tpcnn",
        }
    )


def _show_as_vectors(shell) -> None:
    """Show figures as SVG, and those of which that would be large, as of many points, as PNG.

    Where the user has chosen a format for figures, that is left, and where he chooses one later,
    it is taken. Otherwise the inline backend must not have a format of its own, which it would add
    to ours; it may be set up only when the first figure is drawn.
    """
    from matplotlib_inline.config import InlineBackend

    inline = InlineBackend.instance(parent=shell)
    if inline.figure_formats != {"png"}:  # that is its default
        return
    inline.figure_formats = set()

    def formatted(figure):
        chosen = shell.display_formatter.formatters.values()
        if any(Figure in formatter.type_printers for formatter in chosen):
            return None
        return _svg_or_png(figure, inline.print_figure_kwargs)

    shell.display_formatter.mimebundle_formatter.for_type(Figure, formatted)


def _svg_or_png(figure: Figure, options: dict) -> dict | tuple[dict, dict] | None:
    """Return a figure as IPython wants it: data by type, and the size where that is not the data's.

    Args:
        figure: what is drawn; with nothing in it there is nothing to show.
        options: of `Figure.savefig`, as the user has set them for the inline backend.
    """
    from IPython.core.pylabtools import retina_figure

    if not figure.axes and not figure.lines:
        return None
    file = _Limited()
    looks = {"facecolor": figure.get_facecolor(), "edgecolor": figure.get_edgecolor()}
    options = {"bbox_inches": "tight", **options}
    try:
        figure.canvas.print_figure(file, format="svg", dpi=figure.dpi, **looks, **options)
    except _TooLargeError:
        data, size = retina_figure(figure, base64=True, **options)
        return {"image/png": data}, {"image/png": size}
    return {"image/svg+xml": file.getvalue().decode()}


class _TooLargeError(Exception):
    """A figure has so much in it that its SVG would be large."""


class _Limited(io.BytesIO):
    """A file that takes no more than `LARGEST_SVG`: drawing all would take minutes at times."""

    def write(self, data):
        if self.tell() + len(data) > LARGEST_SVG:
            raise _TooLargeError
        return super().write(data)


def images(
    x: np.ndarray,
    titles: Sequence[str],
    columns: int = 5,
    colors: Sequence[str] | None = None,
) -> Figure:
    """Draw images in a grid, each under its title.

    Args:
        x: images, shape (n, height, width) or (n, height, width, 1); dark is high.
        titles: n titles.
        columns: images per row.
        colors: n colours, one per title; black by default.

    Returns:
        The figure, as each of these functions does.
    """
    rows = max(1, -(-len(x) // columns))  # none at all: an empty figure
    lines = 1 + max((title.count("\n") for title in titles), default=0)
    height = WIDTH / columns * rows * (1 + 0.16 * lines)
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, height), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    colors = ["black"] * len(x) if colors is None else colors
    for axis, image, title, color in zip(axes.flat, x, titles, colors, strict=False):
        axis.imshow(np.squeeze(image))
        axis.set_title(title, color=color, fontweight="bold" if color == RED else "normal")
    return figure


def labelled_images(
    x: np.ndarray, y: np.ndarray, class_names: Sequence[str], n: int = 25
) -> Figure:
    """Draw the first `n` images in a grid, each under the name of its class.

    Args:
        x: images, shape (images, height, width) or (images, height, width, 1).
        y: their labels, integers of shape (images,).
        class_names: the name of each class, in the order of the labels.
        n: how many images.
    """
    return images(x[:n], [class_names[label] for label in y[:n]])


def predicted_images(
    x: np.ndarray,
    y: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str],
    n: int = 25,
) -> Figure:
    """Draw the first `n` images in a grid, each titled ``predicted | true``.

    A correct prediction is green and ticked, a wrong one red, bold and crossed.

    Args:
        x: images, shape (images, height, width) or (images, height, width, 1).
        y: true labels, integers of shape (images,).
        probabilities: shape (images, classes), as `Trainer.predict` returns them.
        class_names: the name of each class.
        n: how many images.
    """
    predicted = np.argmax(probabilities[:n], axis=1)
    right = predicted == y[:n]
    # A name such as "Ankle boot" beside another is wider than its image: set them in two lines.
    gap = " |\n" if max(map(len, class_names)) > 3 else " | "
    titles = [
        f"{'✓' if ok else '✗'} {class_names[guess]}{gap}{class_names[truth]}"
        for ok, guess, truth in zip(right, predicted, y, strict=False)
    ]
    return images(x[:n], titles, colors=[GREEN if ok else RED for ok in right])


def class_probabilities(
    x: np.ndarray,
    y: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str],
    n: int = 40,
) -> Figure:
    """Draw the first `n` images, each beside a bar for the probability of each class.

    The bar of the predicted class is red, that of the true class blue; where both are the same
    class, it is blue: the prediction is correct. The arguments are those of `predicted_images`.
    """
    n, columns = min(n, len(x)), 4
    rows = -(-n // columns)
    figure, axes = plt.subplots(
        rows,
        2 * columns,
        figsize=(WIDTH, 0.85 * rows),
        squeeze=False,
        width_ratios=[1, 1.25] * columns,
    )
    classes = np.arange(len(class_names))
    for i, (image_axis, bar_axis) in enumerate(axes.reshape(-1, 2)[:n]):
        image_axis.imshow(np.squeeze(x[i]))
        image_axis.axis("off")
        predicted = int(np.argmax(probabilities[i]))
        bars = bar_axis.bar(classes, probabilities[i], color=GREY)
        bars[predicted].set_color(RED)
        bars[y[i]].set_color(BLUE)
        bar_axis.set(ylim=(0, 1.05), yticks=[], xticks=classes)
        bar_axis.tick_params(axis="x", labelsize=5.5, length=0, pad=1)
        ok = predicted == y[i]
        bar_axis.set_title(
            f"{'✓' if ok else '✗'} {np.max(probabilities[i]):.0%}",
            color=GREEN if ok else RED,
            fontsize=8,
            pad=2,
        )
    for axis in axes.reshape(-1)[2 * n :]:
        axis.axis("off")
    return figure


def history(history: Mapping[str, Sequence[float]]) -> Figure:
    """Draw loss and accuracy against the epoch, on the training and on the validation images.

    Args:
        history: ``loss``, ``accuracy``, ``val_loss``, ``val_accuracy``, each with one value per
            epoch, as `Trainer.fit` returns them.
    """
    figure, (loss_axis, accuracy_axis) = plt.subplots(1, 2)
    epochs = np.arange(1, len(history["loss"]) + 1)
    for axis, name, scale in ((loss_axis, "loss", 1), (accuracy_axis, "accuracy", 100)):
        axis.plot(epochs, scale * np.array(history[name]), "o-", ms=3, label="training")
        axis.plot(
            epochs,
            scale * np.array(history[f"val_{name}"]),
            "s--",
            ms=3,
            label="validation",
        )
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(axis="y", color="#E5E5E5")
    loss_axis.set_ylabel("loss (nats)")
    accuracy_axis.set_ylabel("accuracy (%)")
    loss_axis.legend(frameon=False)
    return figure


def confusion_matrix(
    y: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str]
) -> Figure:
    """Draw how many images of each true class were predicted as each class.

    The mistakes set the shades, on a logarithmic scale; the correct ones, on the diagonal, are
    left white, since they would drown the rest.

    Args:
        y: true labels, integers of shape (images,).
        probabilities: shape (images, classes), as `Trainer.predict` returns them.
        class_names: the name of each class.
    """
    n = len(class_names)
    counts = np.zeros((n, n), dtype=int)
    np.add.at(counts, (y, np.argmax(probabilities, axis=1)), 1)
    mistakes = np.where(np.eye(n, dtype=bool), 0, counts)
    figure, axis = plt.subplots(figsize=(WIDTH, 4.6))
    shades = axis.imshow(
        np.where(mistakes > 0, mistakes, np.nan),
        cmap="Oranges",
        norm=LogNorm(1, max(2, mistakes.max())),
        interpolation="nearest",
    )
    dark = mistakes > np.sqrt(max(2, mistakes.max())) * 1.5
    for (row, column), count in np.ndenumerate(counts):
        if count:
            axis.text(
                column,
                row,
                count,
                ha="center",
                va="center",
                fontsize=7.5,
                fontweight="bold" if row == column else "normal",
                color="white" if dark[row, column] else "black",
            )
    rotation = 45 if max(map(len, class_names)) > 3 else 0
    axis.set_xticks(range(n), class_names, rotation=rotation, ha="right" if rotation else "center")
    axis.set_yticks(range(n), class_names)
    axis.set(xlabel="predicted class", ylabel="true class")
    axis.spines[:].set_visible(True)
    bar = figure.colorbar(shades, ax=axis, label="mistakes (images)", shrink=0.8)
    ticks = [n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if n <= max(2, mistakes.max())]
    bar.set_ticks(ticks, labels=[f"{n:,}" for n in ticks])
    bar.ax.minorticks_off()
    return figure


def confident_mistakes(
    x: np.ndarray,
    y: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str],
    n: int = 15,
) -> Figure:
    """Draw the misclassified images of which the network was surest, the surest first.

    The arguments are those of `predicted_images`.
    """
    probabilities = np.asarray(probabilities)
    predicted = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != y)
    worst = wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")][:n]
    titles = [
        f"{class_names[predicted[i]]}\n({probabilities[i].max():.1%})\ntruly {class_names[y[i]]}"
        for i in worst
    ]
    return images(x[worst], titles)


def network(model) -> Figure:
    """Draw a network from its layers, from the images at the top to the answer at the bottom.

    A layer that makes weighted sums, or changes the shape of what passes through, has a picture of
    its output: sheets for maps, a strip for a row of numbers (longer for more, though not in
    proportion). Those that work on these numbers follow below it. At the right are the numbers that
    a layer stores, as in ``model.summary()``; the length of a bar is their share of all.

    Args:
        model: a `keras.Model` whose layers follow each other, with a known input shape.

    Raises:
        ValueError: the model has no shapes yet, or its layers branch.
    """
    shape, rows = _layers_in_a_row(model)
    pictured = [hasattr(layer, "kernel") or shape != before for layer, shape, before in rows]
    heights = np.array([0.5, *(0.5 if has_picture else 0.26 for has_picture in pictured)])
    tops = np.concatenate([[0], np.cumsum(heights)])
    width, height = 4.5, tops[-1] + 0.3
    figure = plt.figure(figsize=(width, height), layout="none")
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    axis.axis("off")
    largest = max([shape, *(shape for _, shape, _ in rows)], key=np.prod)
    axis.plot([0.5, 0.5], [0.25, tops[-1] - 0.2], color=GREY, linewidth=1, zorder=0)
    _draw_output(axis, 0.5, 0.25, shape, largest)
    axis.text(1.05, 0.17, "Input", weight="bold", va="center", fontsize=9)
    axis.text(3.35, 0.17, _in_words(shape), va="center", ha="right", fontsize=9)
    axis.text(1.05, 0.36, "one image", va="center", fontsize=8.5, color=_DARK_GREY)
    axis.text(4.45, 0.17, "parameters", va="center", ha="right", fontsize=8.5, color=_DARK_GREY)
    total = max(1, model.count_params())
    for (layer, shape, _), has_picture, top in zip(rows, pictured, tops[1:], strict=False):
        first, second = (top + 0.17, top + 0.36) if has_picture else [top + 0.13] * 2
        name = axis.text(1.05, first, type(layer).__name__, weight="bold", va="center", fontsize=9)
        if has_picture:
            axis.axhline(top, 0.21, 0.99, color="#DDDDDD", linewidth=0.8)
            _draw_output(axis, 0.5, top + 0.25, shape, largest)
            axis.text(3.35, first, _in_words(shape), va="center", ha="right", fontsize=9)
        left = 1.05 if has_picture else name.get_window_extent().x1 / figure.dpi + 0.08
        does = _DOES.get(type(layer).__name__, lambda _: "")(layer)
        axis.text(left, second, does, va="center", fontsize=8.5, color=_DARK_GREY)
        if count := layer.count_params():
            axis.text(4.45, first, f"{count:,}", va="center", ha="right", fontsize=9)
            length = 0.95 * count / total
            bar = plt.Rectangle((4.45 - length, first + 0.09), length, 0.05, color=BLUE)
            axis.add_patch(bar)
    footer = tops[-1] + 0.14
    axis.axhline(tops[-1], 0.21, 0.99, color="#DDDDDD", linewidth=0.8)
    axis.text(1.05, footer, "all layers", va="center", fontsize=8.5, color=_DARK_GREY)
    axis.text(4.45, footer, f"{model.count_params():,}", va="center", ha="right", fontsize=9)
    return figure


_DARK_GREY = "#595959"


def _layers_in_a_row(model) -> tuple[tuple, list[tuple]]:
    """Return the shape of an image, and each layer with the shapes of its output and its input."""
    if not model.built or len(model.inputs) != 1:
        raise ValueError(
            "model: expected one with a known input shape, got one without. "
            "Begin its layers with keras.Input((28, 28, 1)), for example."
        )
    first = shape = tuple(model.inputs[0].shape[1:])
    tensor, rows = model.inputs[0], []
    for layer in model.layers:
        if type(layer).__name__ == "InputLayer":
            continue
        # The layers of a Sequential always follow each other, though other models may share them.
        if type(model).__name__ != "Sequential" and layer.input is not tensor:
            raise ValueError(
                f"model: expected layers that follow each other, but {layer.name!r} does not take "
                "what the layer before it gives. Draw it with keras.utils.plot_model."
            )
        before, shape, tensor = shape, tuple(layer.output.shape[1:]), layer.output
        rows.append((layer, shape, before))
    return first, rows


def _in_words(shape: tuple) -> str:
    return " × ".join(f"{n:,}" if n else "any" for n in shape)  # noqa: RUF001


def _draw_output(axis, x: float, y: float, shape: tuple, largest: tuple) -> None:
    """Draw a shape around (x, y), in inches: sheets for maps, a strip for a row of numbers."""
    style = {"facecolor": "#DCEBF5", "edgecolor": BLUE, "linewidth": 0.8}
    if len(shape) < 3:
        count = int(np.prod([n or 1 for n in shape]))
        width = 0.12 + 0.72 * np.log2(count) / max(1, np.log2(np.prod(largest)))
        axis.add_patch(plt.Rectangle((x - width / 2, y - 0.06), width, 0.12, **style))
        if count <= 16:
            for place in np.linspace(x - width / 2, x + width / 2, count + 1)[1:-1]:
                axis.plot([place] * 2, [y - 0.06, y + 0.06], color=BLUE, linewidth=0.6)
        return
    *_, side, _, maps = (n or 28 for n in shape)
    side = max(0.07, 0.34 * side / max(28, side))
    sheets = 1 + round(np.log2(maps))
    for sheet in range(sheets):
        shift = 0.045 * (sheet - (sheets - 1) / 2)
        corner = x + shift - side / 2, y + shift / 3 - side / 2
        axis.add_patch(plt.Rectangle(corner, side, side, zorder=2 + 0.01 * sheet, **style))


def _dense(layer) -> str:
    activation = layer.activation.__name__
    return "weighted sums of all inputs" + (f", {activation}" if activation != "linear" else "")


# What a layer does, in a few words.
_DOES = {
    "Dense": _dense,
    "Flatten": lambda layer: "all numbers in one row",
    "Conv2D": lambda layer: f"{layer.filters} filters of {_in_words(layer.kernel_size)}",
    "MaxPooling2D": lambda layer: f"the largest of each {_in_words(layer.pool_size)}",
    "AveragePooling2D": lambda layer: f"the mean of each {_in_words(layer.pool_size)}",
    "GlobalAveragePooling2D": lambda layer: "the mean of each map",
    "BatchNormalization": lambda layer: "by the batch",
    "LayerNormalization": lambda layer: "by the image",
    "GroupNormalization": lambda layer: f"in {layer.groups} groups",
    "ReLU": lambda layer: "negative becomes 0",
    "Dropout": lambda layer: f"{layer.rate:.0%} becomes 0, in training",
    "RandomTranslation": lambda layer: "random shift, in training",
    "RandomFlip": lambda layer: "mirrored or not, in training",
}


use_style()
