"""Drawing of keypoints and their links on a picture."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DOUBTFUL, _SURE, _LINK = (240.0, 90.0, 20.0), (60.0, 230.0, 90.0), (255.0, 255.0, 255.0)


Points = NDArray[np.floating]


Links = Sequence[tuple[int, int]]


def _coloured(confidence: Points) -> Points:
    share = np.clip(confidence, 0, 1)[:, np.newaxis]
    return np.array(_DOUBTFUL) * (1 - share) + np.array(_SURE) * share


def with_points(pixels: NDArray[np.uint8], points: Points, links: Links, *, colours: Points) -> NDArray[np.uint8]:
    """The picture (height, width, 3) with a dot at each point (k, 2), in its colour (k, 3), and lines between some.

    Dots and lines have smooth edges, computed from distances: a point that moves by a thousandth of a pixel changes no
    level by more than one, so that overlays in golden answers survive rounding.
    """
    canvas = pixels.astype(np.float32)
    radius = max(canvas.shape[:2]) / 220 + 0.8
    for one, other in links:
        _blend(canvas, points[one], points[other], radius * 0.3, _LINK, 0.7)
    for point, colour in zip(points, colours, strict=True):
        _blend(canvas, point, point, radius, colour, 1.0)
    found: NDArray[np.uint8] = np.rint(canvas).astype(np.uint8)
    return found


def _blend(canvas: NDArray[np.float32], one: Points, other: Points, reach: float, colour: Any, opacity: float) -> None:
    """Colours what lies within `reach` pixels of the line from one point to the other; they may be the same."""
    height, width = canvas.shape[:2]
    left, top = (max(0, math.floor(low - reach - 1)) for low in np.minimum(one, other))
    right, bottom = (math.ceil(high + reach + 1) for high in np.maximum(one, other))
    right, bottom = max(left, min(width, right)), max(top, min(height, bottom))
    x, y = np.arange(left, right) + 0.5 - one[0], (np.arange(top, bottom) + 0.5 - one[1])[:, np.newaxis]
    along = np.asarray(other - one, np.float64)
    share = np.clip((x * along[0] + y * along[1]) / max(float(along @ along), 1e-9), 0, 1)
    distance = np.hypot(x - share * along[0], y - share * along[1])
    cover = (np.clip(reach + 0.5 - distance, 0, 1) * opacity)[..., np.newaxis]
    patch = canvas[top:bottom, left:right]
    patch += (np.asarray(colour, np.float32) - patch) * cover.astype(np.float32)
