"""The figures of a report on masks, as PNG files."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tasks._masks import Colour, Mask
from training.learners.segmentation.dataset import IGNORED
from training.reporting.plots import new_figure, to_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Sheet

_MAX_WIDTH = 320
Pixels = NDArray[np.uint8]


def painted(mask: Mask, colours: Sequence[Colour]) -> Pixels:
    """The mask in its colours, uint8 (height, width, 3); what has no label is black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(colours)] = colours
    return table[mask]


def overlaid(picture: Pixels, mask: Mask, colours: Sequence[Colour]) -> Pixels:
    """The picture with the mask's colours laid over it by half."""
    blended = Image.blend(Image.fromarray(picture), Image.fromarray(painted(mask, colours)), 0.5)
    return np.asarray(blended)


def strips(shown: Sequence[tuple[Pixels, Mask, Mask, str]], labels: Sequence[str], colours: Sequence[Colour]) -> bytes:
    """A row for each picture, what it is, and what was said of it: those three, and where the two differ, in white."""
    sheet = new_figure(12, 2.5 * len(shown) + 0.5)
    grid = sheet.subplots(len(shown), 4, squeeze=False)
    for row, (picture, target, said, caption) in zip(grid, shown, strict=True):
        wrong = ((target != said) & (target != IGNORED)).astype(np.uint8) * 255
        titles = (caption, "what it is (black: no label)", "what was said", "where that is wrong")
        pixels = (picture, painted(target, colours), painted(said, colours), np.stack([wrong] * 3, axis=-1))
        for axes, title, part in zip(row, titles, pixels, strict=True):
            axes.imshow(_small(part))
            axes.set_axis_off()
            axes.set_title(title, fontsize=8, loc="left")
    _legend(sheet, labels, colours)
    return to_png(sheet)


def shares(matrix: NDArray[np.integer], labels: Sequence[str]) -> bytes:
    """A confusion matrix in hundredths of each class: what its pixels were called."""
    count = len(labels)
    side = min(11.0, max(4.0, 1.6 + 0.5 * count))
    sheet = new_figure(side, side)
    axes = sheet.subplots()
    parts = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(parts, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("said")
    axes.set_ylabel("is")
    if count <= 40:
        axes.set_xticks(range(count), labels, rotation=60, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(count), labels)
        for i, j in zip(*np.nonzero(parts >= 0.005), strict=True):
            colour = "white" if parts[i, j] > 0.5 else "black"
            axes.text(j, i, f"{100 * parts[i, j]:.0f}", ha="center", va="center", color=colour, fontsize=9)
    return to_png(sheet)


def _legend(sheet: "Sheet", labels: Sequence[str], colours: Sequence[Colour]) -> None:
    from matplotlib.patches import Patch

    patches = [
        Patch(color="#{:02x}{:02x}{:02x}".format(*colour), label=label)
        for label, colour in zip(labels[:40], colours, strict=False)
    ]
    sheet.legend(handles=patches, loc="outside lower center", ncols=min(6, len(patches)), fontsize=8, frameon=False)


def _small(pixels: Pixels) -> Pixels:
    """Small enough for a page that holds many."""
    step = max(1, pixels.shape[1] // _MAX_WIDTH)
    return pixels[::step, ::step]
