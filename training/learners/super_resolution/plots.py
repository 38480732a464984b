"""Comparison plots for super-resolution reports: input, bicubic, restored and original image side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.reporting.plots import new_figure, to_png

_TITLES = ("input", "bicubic", "restored", "original")
_CROP_SIDE = 220
"""Side length of the crop that is shown, in pixels of the original. More would be scaled down and hide the detail."""


@dataclass(frozen=True)
class RestorationComparison:
    """One image in four versions, each uint8 (height, width, 3), and a caption.

    `degraded` is small; the others have the same size. The crop that is shown is centred on `centre` (x, y), given as
    fractions of the sides.
    """

    degraded: NDArray[np.uint8]
    bicubic: NDArray[np.uint8]
    restored: NDArray[np.uint8]
    original: NDArray[np.uint8]
    caption: str
    centre: tuple[float, float] = (0.5, 0.5)

    def crops(self) -> tuple[NDArray[np.uint8], ...]:
        """Return the same crop of each version, at the size of the original."""
        height, width = self.original.shape[:2]
        enlarged = np.asarray(Image.fromarray(self.degraded).resize((width, height), Image.Resampling.NEAREST))
        left, top = (
            max(0, min(round(fraction * length) - _CROP_SIDE // 2, length - _CROP_SIDE))
            for fraction, length in zip(self.centre, (width, height), strict=True)
        )
        versions = (enlarged, self.bicubic, self.restored, self.original)
        return tuple(pixels[top : top + _CROP_SIDE, left : left + _CROP_SIDE] for pixels in versions)


def draw_comparisons(comparisons: Sequence[RestorationComparison]) -> bytes:
    """Draw one row of four versions per image, as a PNG file."""
    sheet = new_figure(11, 2.9 * len(comparisons))
    grid = sheet.subplots(len(comparisons), len(_TITLES), squeeze=False)
    for row, comparison in zip(grid, comparisons, strict=True):
        for axes, pixels, title in zip(row, comparison.crops(), _TITLES, strict=True):
            axes.imshow(pixels, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_xlabel(title, fontsize=8)
        row[0].set_title(comparison.caption, fontsize=9, loc="left")
    return to_png(sheet)


def find_text_centre(text_mask: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the position of the topmost text as fractions of the sides; the image's centre without text."""
    rows, columns = np.nonzero(text_mask)
    if not len(rows):
        return 0.5, 0.5
    nearby = columns[np.abs(rows - rows[0]) < 0.1 * len(text_mask)]
    return float(np.median(nearby)) / text_mask.shape[1], float(rows[0]) / text_mask.shape[0]
