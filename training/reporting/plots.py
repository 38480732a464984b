"""The figures of a report, as PNG files; drawn without a display and without matplotlib's global state."""

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.core.results import EpochLog
from training.engine.lr_finder import RateSearch

BLUE, ORANGE, GREY = "#2458a6", "#c8641e", "#888888"


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure; sizes in inches. matplotlib takes seconds to import, and not every command draws."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def to_png(figure: "Figure") -> bytes:
    """Render the figure as PNG."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, bbox_inches="tight", facecolor="white")
    return file.getvalue()


def style_axes(axes: "Axes", title: str, x_label: str, y_label: str) -> None:
    """Set title, axis labels and grid."""
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def draw_training_curves(histories: Sequence[Sequence[EpochLog]]) -> bytes:
    """Draw the training loss and the validation score after each epoch; a line per seed."""
    names = list(histories[0][0].scores)
    figure = new_figure(10, 3.6)
    left, right = figure.subplots(1, 2)
    for number, logs in enumerate(histories):
        epochs = [log.epoch for log in logs]
        label = {"label": "training"} if number == 0 else {}
        left.plot(epochs, [log.loss for log in logs], color=BLUE, marker=".", alpha=0.8, **label)
        if "loss" in names:
            label = {"label": "validation"} if number == 0 else {}
            left.plot(epochs, [log.scores["loss"] for log in logs], color=ORANGE, marker=".", alpha=0.8, **label)
        right.plot(epochs, [log.scores[names[0]] for log in logs], color=ORANGE, marker=".", alpha=0.8)
    for axes in (left, right):
        for log, following in zip(histories[0], histories[0][1:], strict=False):
            if log.stage != following.stage:
                axes.axvline(log.epoch + 0.5, color=GREY, linestyle=":", linewidth=1)
        axes.xaxis.get_major_locator().set_params(integer=True)
    style_axes(left, "Loss", "epoch", "loss")
    style_axes(right, f"Validation {names[0].replace('_', ' ')}", "epoch", names[0].replace("_", " "))
    left.legend(frameon=False)
    return to_png(figure)


def draw_confusion_matrix(
    matrix: NDArray[np.integer],
    labels: Sequence[str],
    cell_text: Callable[[int, float], str] = lambda count, fraction: str(count) if count else "",
) -> bytes:
    """Draw a matrix of counts (true, predicted); up to 40 classes are labelled, with a text in each cell.

    `cell_text` gets a cell's count and its fraction of the true class; by default it shows the count.
    """
    count = len(labels)
    side = min(11.0, max(4.0, 1.6 + 0.55 * count))
    figure = new_figure(side, side)
    axes = figure.subplots()
    fractions = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if count <= 40:
        axes.set_xticks(range(count), labels, rotation=60, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(count), labels)
        for i, j in zip(*np.nonzero(matrix), strict=True):
            colour = "white" if fractions[i, j] > 0.5 else "black"
            text = cell_text(int(matrix[i, j]), float(fractions[i, j]))
            axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=9)
    return to_png(figure)


def draw_reliability(bins_by_name: dict[str, list[tuple[float, float, int]]]) -> bytes:
    """Draw a reliability diagram: accuracy over confidence; calibrated probabilities lie on the diagonal."""
    figure = new_figure(5, 4.2)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    for (name, bins), colour in zip(bins_by_name.items(), (GREY, ORANGE, BLUE), strict=False):
        confidence, accuracy, counts = zip(*bins, strict=True)
        sizes = [12 + 120 * n / max(counts) for n in counts]
        axes.plot(confidence, accuracy, color=colour, linewidth=1, label=name)
        axes.scatter(confidence, accuracy, s=sizes, color=colour, alpha=0.6)
    style_axes(axes, "Reliability (area: number of samples)", "confidence", "accuracy")
    axes.legend(frameon=False, loc="upper left")
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    return to_png(figure)


def draw_evidence_maps(items: Sequence[tuple[Image.Image, NDArray[np.floating], str]]) -> bytes:
    """Draw each image beside itself with its evidence map overlaid, with a caption; three per row."""
    rows = (len(items) + 2) // 3
    figure = new_figure(11, 2.5 * rows)
    grid = figure.subplots(rows, 3, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, (image, evidence, caption) in zip(grid.flat, items, strict=False):
        axes.imshow(np.concatenate([np.asarray(image), _overlay(image, evidence)], axis=1))
        axes.set_title(caption, fontsize=9)
    return to_png(figure)


def _overlay(image: Image.Image, evidence: NDArray[np.floating]) -> NDArray[np.uint8]:
    positive = np.maximum(evidence, 0)
    levels = Image.fromarray((positive / max(float(positive.max()), 1e-9) * 255).astype(np.uint8))
    heat = np.asarray(levels.resize(image.size, Image.Resampling.BICUBIC), np.float32)[..., None] / 255
    mixed = np.asarray(image, np.float32) * (1 - 0.6 * heat) + np.array([255.0, 60.0, 0.0]) * 0.6 * heat
    pixels: NDArray[np.uint8] = mixed.clip(0, 255).astype(np.uint8)
    return pixels


def draw_image_grid(images: Sequence[NDArray[np.uint8]]) -> bytes:
    """Draw images, four per row."""
    rows = (len(images) + 3) // 4
    figure = new_figure(12, 2.5 * rows)
    grid = figure.subplots(rows, 4, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, pixels in zip(grid.flat, images, strict=False):
        axes.imshow(pixels)
    return to_png(figure)


def draw_bars(names: Sequence[str], values: Sequence[float], title: str, x_label: str) -> bytes:
    """Draw a horizontal bar for each name."""
    figure = new_figure(7, 1.0 + 0.28 * len(names))
    axes = figure.subplots()
    axes.barh(range(len(names)), values, color=BLUE)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    style_axes(axes, title, x_label, "")
    return to_png(figure)


def draw_rate_search(search: RateSearch) -> bytes:
    """Draw the smoothed loss over the learning rate, with the suggested rate."""
    figure = new_figure(7, 4)
    axes = figure.subplots()
    axes.plot(search.rates, search.losses, color=BLUE)
    axes.axvline(search.suggestion, color=ORANGE, linestyle=":", label=f"suggestion {search.suggestion:.1e}")
    axes.set_xscale("log")
    axes.legend(frameon=False)
    style_axes(axes, "Learning-rate sweep", "learning rate", "smoothed loss")
    return to_png(figure)
