"""Plots of segmentation masks for reports, as PNG files."""

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


def colour_mask(mask: Mask, colours: Sequence[Colour]) -> Pixels:
    """Return the mask in its colours, uint8 (height, width, 3); unlabelled pixels are black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(colours)] = colours
    return table[mask]


def overlay_mask(image: Pixels, mask: Mask, colours: Sequence[Colour]) -> Pixels:
    """Blend the image with the coloured mask, half and half."""
    blended = Image.blend(Image.fromarray(image), Image.fromarray(colour_mask(mask, colours)), 0.5)
    return np.asarray(blended)


def draw_mask_comparison(
    entries: Sequence[tuple[Pixels, Mask, Mask, str]], labels: Sequence[str], colours: Sequence[Colour]
) -> bytes:
    """Draw image, true mask, predicted mask and errors (white), one row for each (image, true, predicted, caption)."""
    sheet = new_figure(12, 2.5 * len(entries) + 0.5)
    grid = sheet.subplots(len(entries), 4, squeeze=False)
    for row, (image, true_mask, predicted_mask, caption) in zip(grid, entries, strict=True):
        wrong = ((true_mask != predicted_mask) & (true_mask != IGNORED)).astype(np.uint8) * 255
        titles = (caption, "true (black: no label)", "predicted", "errors")
        true_colours, predicted_colours = colour_mask(true_mask, colours), colour_mask(predicted_mask, colours)
        panels = (image, true_colours, predicted_colours, np.stack([wrong] * 3, axis=-1))
        for axes, title, pixels in zip(row, titles, panels, strict=True):
            axes.imshow(_subsample(pixels))
            axes.set_axis_off()
            axes.set_title(title, fontsize=8, loc="left")
    _draw_legend(sheet, labels, colours)
    return to_png(sheet)


def draw_confusion_percentages(matrix: NDArray[np.integer], labels: Sequence[str]) -> bytes:
    """Draw a confusion matrix in percent of the pixels of each true class."""
    count = len(labels)
    side = min(11.0, max(4.0, 1.6 + 0.5 * count))
    sheet = new_figure(side, side)
    axes = sheet.subplots()
    fractions = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if count <= 40:
        axes.set_xticks(range(count), labels, rotation=60, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(count), labels)
        for i, j in zip(*np.nonzero(fractions >= 0.005), strict=True):
            colour = "white" if fractions[i, j] > 0.5 else "black"
            axes.text(j, i, f"{100 * fractions[i, j]:.0f}", ha="center", va="center", color=colour, fontsize=9)
    return to_png(sheet)


def _draw_legend(sheet: "Sheet", labels: Sequence[str], colours: Sequence[Colour]) -> None:
    from matplotlib.patches import Patch

    patches = [
        Patch(color="#{:02x}{:02x}{:02x}".format(*colour), label=label)
        for label, colour in zip(labels[:40], colours, strict=False)
    ]
    sheet.legend(handles=patches, loc="outside lower center", ncols=min(6, len(patches)), fontsize=8, frameon=False)


def _subsample(pixels: Pixels) -> Pixels:
    """Reduce the image to a width that keeps reports small."""
    step = max(1, pixels.shape[1] // _MAX_WIDTH)
    return pixels[::step, ::step]
