"""The figures of a report, as PNG files; drawn without a screen and without matplotlib's global state."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.core.results import EpochLog
from training.engine.lr_finder import RateSearch

BLUE, ORANGE, GREY = "#2458a6", "#c8641e", "#888888"


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Sheet


def new_figure(width: float, height: float) -> "Sheet":
    """An empty figure, in inches. matplotlib takes seconds to load, and not every command draws."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def to_png(sheet: "Sheet") -> bytes:
    """Render the figure as PNG."""
    file = io.BytesIO()
    sheet.savefig(file, format="png", dpi=110, bbox_inches="tight", facecolor="white")
    return file.getvalue()


def style_axes(axes: "Axes", title: str, across: str, up: str) -> None:
    """Set title, axis labels and grid."""
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def draw_training_curves(histories: Sequence[Sequence[EpochLog]]) -> bytes:
    """The loss in training and the score on validation data after each epoch; a line for each seed."""
    names = list(histories[0][0].scores)
    sheet = new_figure(10, 3.6)
    left, right = sheet.subplots(1, 2)
    for number, rows in enumerate(histories):
        epochs = [row.epoch for row in rows]
        label = {"label": "training"} if number == 0 else {}
        left.plot(epochs, [row.loss for row in rows], color=BLUE, marker=".", alpha=0.8, **label)
        if "loss" in names:
            label = {"label": "validation"} if number == 0 else {}
            left.plot(epochs, [row.scores["loss"] for row in rows], color=ORANGE, marker=".", alpha=0.8, **label)
        right.plot(epochs, [row.scores[names[0]] for row in rows], color=ORANGE, marker=".", alpha=0.8)
    for axes in (left, right):
        for row, following in zip(histories[0], histories[0][1:], strict=False):
            if row.stage != following.stage:
                axes.axvline(row.epoch + 0.5, color=GREY, linestyle=":", linewidth=1)
        axes.xaxis.get_major_locator().set_params(integer=True)
    style_axes(left, "Loss", "epoch", "loss")
    style_axes(right, f"Validation {names[0].replace('_', ' ')}", "epoch", names[0].replace("_", " "))
    left.legend(frameon=False)
    return to_png(sheet)


def draw_confusion_matrix(matrix: NDArray[np.integer], labels: Sequence[str]) -> bytes:
    """Counts of what was said for what it is; up to 40 classes get their names and counts."""
    count = len(labels)
    side = min(11.0, max(4.0, 1.6 + 0.55 * count))
    sheet = new_figure(side, side)
    axes = sheet.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("said")
    axes.set_ylabel("is")
    if count <= 40:
        axes.set_xticks(range(count), labels, rotation=60, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(count), labels)
        for i, j in zip(*np.nonzero(matrix), strict=True):
            colour = "white" if shares[i, j] > 0.5 else "black"
            axes.text(j, i, str(matrix[i, j]), ha="center", va="center", color=colour, fontsize=9)
    return to_png(sheet)


def draw_reliability(curves_by_name: dict[str, list[tuple[float, float, int]]]) -> bytes:
    """How often answers of each confidence are right; on the diagonal, probabilities are frequencies."""
    sheet = new_figure(5, 4.2)
    axes = sheet.subplots()
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    for (name, bins), colour in zip(curves_by_name.items(), (GREY, ORANGE, BLUE), strict=False):
        confidence, accuracy, counts = zip(*bins, strict=True)
        sizes = [12 + 120 * n / max(counts) for n in counts]
        axes.plot(confidence, accuracy, color=colour, linewidth=1, label=name)
        axes.scatter(confidence, accuracy, s=sizes, color=colour, alpha=0.6)
    style_axes(axes, "Reliability (area: number of samples)", "confidence", "share that is right")
    axes.legend(frameon=False, loc="upper left")
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    return to_png(sheet)


def draw_evidence_maps(shown: Sequence[tuple[Image.Image, NDArray[np.floating], str]]) -> bytes:
    """Pictures beside themselves with an evidence map laid over, each with a caption; three in a row."""
    rows = (len(shown) + 2) // 3
    sheet = new_figure(11, 2.5 * rows)
    grid = sheet.subplots(rows, 3, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, (image, evidence, caption) in zip(grid.flat, shown, strict=False):
        axes.imshow(np.concatenate([np.asarray(image), _overlaid(image, evidence)], axis=1))
        axes.set_title(caption, fontsize=9)
    return to_png(sheet)


def _overlaid(image: Image.Image, evidence: NDArray[np.floating]) -> NDArray[np.uint8]:
    positive = np.maximum(evidence, 0)
    levels = Image.fromarray((positive / max(float(positive.max()), 1e-9) * 255).astype(np.uint8))
    heat = np.asarray(levels.resize(image.size, Image.Resampling.BICUBIC), np.float32)[..., None] / 255
    mixed = np.asarray(image, np.float32) * (1 - 0.6 * heat) + np.array([255.0, 60.0, 0.0]) * 0.6 * heat
    found: NDArray[np.uint8] = mixed.clip(0, 255).astype(np.uint8)
    return found


def draw_image_grid(shown: Sequence[NDArray[np.uint8]]) -> bytes:
    """Pictures in rows of four."""
    rows = (len(shown) + 3) // 4
    sheet = new_figure(12, 2.5 * rows)
    grid = sheet.subplots(rows, 4, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, pixels in zip(grid.flat, shown, strict=False):
        axes.imshow(pixels)
    return to_png(sheet)


def draw_bars(names: Sequence[str], values: Sequence[float], title: str, across: str) -> bytes:
    """A horizontal bar for each name."""
    sheet = new_figure(7, 1.0 + 0.28 * len(names))
    axes = sheet.subplots()
    axes.barh(range(len(names)), values, color=BLUE)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    style_axes(axes, title, across, "")
    return to_png(sheet)


def draw_rate_search(search: RateSearch) -> bytes:
    """The smoothed loss over the learning rate, with the suggestion."""
    sheet = new_figure(7, 4)
    axes = sheet.subplots()
    axes.plot(search.rates, search.losses, color=BLUE)
    axes.axvline(search.suggestion, color=ORANGE, linestyle=":", label=f"suggestion {search.suggestion:.1e}")
    axes.set_xscale("log")
    axes.legend(frameon=False)
    style_axes(axes, "Learning-rate sweep", "learning rate", "smoothed loss")
    return to_png(sheet)
