"""The figures of recommendations, as PNG files."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from training.core.results import EmbeddingTable
from training.reporting.embedding_plots import draw_embedding_planes
from training.reporting.plots import BLUE, GREY, ORANGE, new_figure, style_axes, to_png

_COLOURS = (BLUE, ORANGE, "#3a8a3a", GREY)


def exposed(shown: Mapping[str, NDArray[np.int64]], likes: NDArray[np.int64]) -> bytes:
    """How often items are shown against how many like them, and the Lorenz curve of what is shown.

    `shown` has a count for each item by the name of a recommender, the first one is the network.
    """
    sheet = new_figure(10.5, 4.2)
    left, right = sheet.subplots(1, 2)
    counts = next(iter(shown.values()))
    there = counts > 0
    random = np.random.default_rng(0)
    spread = random.uniform(-0.3, 0.3, (2, int(there.sum())))
    left.scatter(likes[there] + 1 + spread[0], counts[there] + spread[1], s=8, alpha=0.5, color=BLUE)
    left.set_xscale("log")
    left.set_yscale("log")
    style_axes(left, "Items that are shown", "users who like it in training, and one", "lists of ten it is in")
    for (name, each), colour in zip(shown.items(), _COLOURS, strict=False):
        ordered = np.sort(each)[::-1].cumsum() / max(1, each.sum())
        across = np.arange(1, len(each) + 1) / len(each)
        right.plot(across, ordered, color=colour, label=name.partition(":")[0])
    alike = np.geomspace(1 / len(likes), 1, 50)
    right.plot(alike, alike, color=GREY, linestyle=":", linewidth=1)
    right.set_xscale("log")
    right.legend(fontsize=8, loc="lower right")
    style_axes(right, "Who gets shown", "share of the items, the most shown first", "share of the recommendations")
    return to_png(sheet)


def item_planes(tables: Sequence[EmbeddingTable]) -> bytes:
    """The items in the plane of their first two principal axes."""
    return draw_embedding_planes(tables, columns=1)
