"""The figures of a report on points, as PNG files."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.reporting.plots import BLUE, GREY, ORANGE, new_figure, style_axes, to_png

Numbers = NDArray[np.floating]


@dataclass(frozen=True)
class Shown:
    """A picture with the points that were marked in it and those that were found, both (k, 2) in its pixels."""

    image: Image.Image
    marked: Numbers
    found: Numbers
    caption: str


def points(shown: Sequence[Shown], columns: int = 4) -> bytes:
    """Pictures around their points: a blue dot where it was marked, an orange one where it was found, joined."""
    rows = (len(shown) + columns - 1) // columns
    sheet = new_figure(2.9 * columns, 3.1 * rows)
    grid = sheet.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, each in zip(grid.flat, shown, strict=False):
        axes.imshow(np.asarray(each.image), extent=(0, each.image.width, each.image.height, 0))
        for one, other in zip(each.marked, each.found, strict=True):
            axes.plot([one[0], other[0]], [one[1], other[1]], color="white", linewidth=0.8)
        axes.scatter(each.marked[:, 0], each.marked[:, 1], s=7, color=BLUE, zorder=3)
        axes.scatter(each.found[:, 0], each.found[:, 1], s=7, color=ORANGE, zorder=4)
        left, top, right, bottom = _around(each)
        axes.set_xlim(left, right)
        axes.set_ylim(bottom, top)
        axes.set_title(each.caption, fontsize=9)
    return to_png(sheet)


def _around(shown: Shown) -> tuple[float, float, float, float]:
    """A box around all points, with room, within the picture."""
    both = np.concatenate([shown.marked[~np.isnan(shown.marked).any(axis=1)], shown.found])
    low, high = both.min(axis=0), both.max(axis=0)
    room = 0.25 * float((high - low).max()) + 4
    left, top = np.maximum(low - room, 0)
    right, bottom = np.minimum(high + room, (shown.image.width, shown.image.height))
    return float(left), float(top), float(right), float(bottom)


def augmented(shown: Sequence[tuple[Image.Image, Numbers]], columns: int = 6) -> bytes:
    """One picture, changed in many ways, with its points."""
    rows = (len(shown) + columns - 1) // columns
    sheet = new_figure(1.9 * columns, 1.9 * rows)
    grid = sheet.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, (image, marked) in zip(grid.flat, shown, strict=False):
        axes.imshow(np.asarray(image), extent=(0, image.width, image.height, 0))
        # The first half and the second half in two colours: a mirrored picture must have exchanged them.
        half = (len(marked) + 1) // 2
        axes.scatter(marked[:half, 0], marked[:half, 1], s=3, color=BLUE)
        axes.scatter(marked[half:, 0], marked[half:, 1], s=3, color=ORANGE)
        axes.set_xlim(0, image.width)
        axes.set_ylim(image.height, 0)
    return to_png(sheet)


def cumulative(by_picture: Numbers, by_point: Numbers) -> bytes:
    """The share of pictures, and of points, whose error is at most so large."""
    sheet = new_figure(6, 4)
    axes = sheet.subplots()
    for values, colour, name in ((by_picture, BLUE, "pictures, mean error"), (by_point, ORANGE, "single points")):
        known = np.sort(values[~np.isnan(values)])
        axes.plot(known * 100, np.arange(1, len(known) + 1) / len(known), color=colour, label=name)
    axes.axvline(5, color=GREY, linestyle=":", linewidth=1)
    style_axes(axes, "Cumulative error", "error, % of the normalising distance", "share")
    axes.set_xlim(0, 25)
    axes.set_ylim(0, 1.02)
    axes.legend(frameon=False, loc="lower right")
    return to_png(sheet)
