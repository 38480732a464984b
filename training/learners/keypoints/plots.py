"""Plots of keypoints for reports, as PNG files."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.reporting.plots import BLUE, GREY, ORANGE, new_figure, style_axes, to_png

Numbers = NDArray[np.floating]


@dataclass(frozen=True)
class KeypointComparison:
    """An image with its true and predicted points, both (k, 2) in its pixels."""

    image: Image.Image
    true_points: Numbers
    predicted_points: Numbers
    caption: str


def draw_comparisons(comparisons: Sequence[KeypointComparison], columns: int = 4) -> bytes:
    """Draw true points (blue) and predicted points (orange), joined by lines, on images cropped to the points."""
    rows = (len(comparisons) + columns - 1) // columns
    sheet = new_figure(2.9 * columns, 3.1 * rows)
    grid = sheet.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, comparison in zip(grid.flat, comparisons, strict=False):
        image, true_points, predicted_points = comparison.image, comparison.true_points, comparison.predicted_points
        axes.imshow(np.asarray(image), extent=(0, image.width, image.height, 0))
        for true_point, predicted_point in zip(true_points, predicted_points, strict=True):
            (x, y), (predicted_x, predicted_y) = true_point, predicted_point
            axes.plot([x, predicted_x], [y, predicted_y], color="white", linewidth=0.8)
        axes.scatter(true_points[:, 0], true_points[:, 1], s=7, color=BLUE, zorder=3)
        axes.scatter(predicted_points[:, 0], predicted_points[:, 1], s=7, color=ORANGE, zorder=4)
        left, top, right, bottom = _crop_box(comparison)
        axes.set_xlim(left, right)
        axes.set_ylim(bottom, top)
        axes.set_title(comparison.caption, fontsize=9)
    return to_png(sheet)


def _crop_box(comparison: KeypointComparison) -> tuple[float, float, float, float]:
    """Return (left, top, right, bottom) of a box around all points, with a margin, inside the image."""
    known = comparison.true_points[~np.isnan(comparison.true_points).any(axis=1)]
    points = np.concatenate([known, comparison.predicted_points])
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.25 * float((high - low).max()) + 4
    left, top = np.maximum(low - margin, 0)
    right, bottom = np.minimum(high + margin, (comparison.image.width, comparison.image.height))
    return float(left), float(top), float(right), float(bottom)


def draw_augmentations(entries: Sequence[tuple[Image.Image, Numbers]], columns: int = 6) -> bytes:
    """Draw several augmentations of an image with their points."""
    rows = (len(entries) + columns - 1) // columns
    sheet = new_figure(1.9 * columns, 1.9 * rows)
    grid = sheet.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, (image, points) in zip(grid.flat, entries, strict=False):
        axes.imshow(np.asarray(image), extent=(0, image.width, image.height, 0))
        # The two halves of the points have different colours, which shows whether a flip exchanged the points.
        half = (len(points) + 1) // 2
        axes.scatter(points[:half, 0], points[:half, 1], s=3, color=BLUE)
        axes.scatter(points[half:, 0], points[half:, 1], s=3, color=ORANGE)
        axes.set_xlim(0, image.width)
        axes.set_ylim(image.height, 0)
    return to_png(sheet)


def draw_cumulative_error(image_errors: Numbers, point_errors: Numbers) -> bytes:
    """Draw the cumulative distribution of the errors of images and of points."""
    sheet = new_figure(6, 4)
    axes = sheet.subplots()
    for errors, colour, name in ((image_errors, BLUE, "images, mean error"), (point_errors, ORANGE, "points")):
        known = np.sort(errors[~np.isnan(errors)])
        axes.plot(known * 100, np.arange(1, len(known) + 1) / len(known), color=colour, label=name)
    axes.axvline(5, color=GREY, linestyle=":", linewidth=1)
    style_axes(axes, "Cumulative error", "error, % of the normalising distance", "fraction")
    axes.set_xlim(0, 25)
    axes.set_ylim(0, 1.02)
    axes.legend(frameon=False, loc="lower right")
    return to_png(sheet)
