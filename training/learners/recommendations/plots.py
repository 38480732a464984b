"""Plots of a report on recommendations, as PNG files."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from training.reporting.plots import BLUE, GREY, ORANGE, new_figure, style_axes, to_png

_COLOURS = (BLUE, ORANGE, "#3a8a3a", GREY)


def draw_exposure(exposures: Mapping[str, NDArray[np.int64]], likes: NDArray[np.int64]) -> bytes:
    """Draw how often items are shown over how many users like them, and the Lorenz curves of exposure.

    `exposures` counts how often each item is shown, by the name of a recommender; the first one is the network.
    """
    figure = new_figure(10.5, 4.2)
    left, right = figure.subplots(1, 2)
    counts = next(iter(exposures.values()))
    is_shown = counts > 0
    random = np.random.default_rng(0)
    jitter = random.uniform(-0.3, 0.3, (2, int(is_shown.sum())))
    left.scatter(likes[is_shown] + 1 + jitter[0], counts[is_shown] + jitter[1], s=8, alpha=0.5, color=BLUE)
    left.set_xscale("log")
    left.set_yscale("log")
    style_axes(left, "Recommended items", "users who like it in training, plus one", "lists of ten that contain it")
    for (name, counts), colour in zip(exposures.items(), _COLOURS, strict=False):
        cumulative = np.sort(counts)[::-1].cumsum() / max(1, counts.sum())
        x = np.arange(1, len(counts) + 1) / len(counts)
        right.plot(x, cumulative, color=colour, label=name.partition(":")[0])
    uniform = np.geomspace(1 / len(likes), 1, 50)
    right.plot(uniform, uniform, color=GREY, linestyle=":", linewidth=1)
    right.set_xscale("log")
    right.legend(fontsize=8, loc="lower right")
    style_axes(right, "Exposure", "fraction of the items, most shown first", "fraction of the recommendations")
    return to_png(figure)
