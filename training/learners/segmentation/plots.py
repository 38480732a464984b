"""Plots of segmentation masks for reports, as PNG files."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tasks._masks import Colour, Mask
from training.learners.segmentation.classes import IGNORED
from training.reporting.plots import draw_confusion_matrix, new_figure, to_png

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
    """Draw a confusion matrix in percent of the pixels of each true class; cells below 0.5 % stay empty."""
    return draw_confusion_matrix(
        matrix, labels, lambda count, fraction: f"{100 * fraction:.0f}" if fraction >= 0.005 else ""
    )


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
