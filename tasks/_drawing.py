"""Drawing of keypoints and their links on an image."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DOUBTFUL, _SURE, _LINK = (240.0, 90.0, 20.0), (60.0, 230.0, 90.0), (255.0, 255.0, 255.0)

Points = NDArray[np.floating]
Links = Sequence[tuple[int, int]]


def confidence_colours(confidence: Points) -> Points:
    """Return a colour for each confidence: from orange at 0 to green at 1."""
    fraction = np.clip(confidence, 0, 1)[:, np.newaxis]
    return np.array(_DOUBTFUL) * (1 - fraction) + np.array(_SURE) * fraction


def draw_points(pixels: NDArray[np.uint8], points: Points, links: Links, *, colours: Points) -> NDArray[np.uint8]:
    """Draw a dot at each point (k, 2) in its colour (k, 3), and a line for each link, on an image (height, width, 3).

    Edges are antialiased by distance, so that moving a point by a thousandth of a pixel changes no level by more than
    one. Overlays in golden answers therefore survive rounding.
    """
    canvas = pixels.astype(np.float32)
    radius = max(canvas.shape[:2]) / 220 + 0.8
    for start, end in links:
        _draw_line(canvas, points[start], points[end], radius * 0.3, _LINK, 0.7)
    for point, colour in zip(points, colours, strict=True):
        _draw_line(canvas, point, point, radius, colour, 1.0)
    drawn: NDArray[np.uint8] = np.rint(canvas).astype(np.uint8)
    return drawn


def _draw_line(
    canvas: NDArray[np.float32], start: Points, end: Points, radius: float, colour: Any, opacity: float
) -> None:
    """Colour the pixels within `radius` of the line from start to end, which may be the same point."""
    height, width = canvas.shape[:2]
    left, top = (max(0, math.floor(low - radius - 1)) for low in np.minimum(start, end))
    right, bottom = (math.ceil(high + radius + 1) for high in np.maximum(start, end))
    right, bottom = max(left, min(width, right)), max(top, min(height, bottom))
    x, y = np.arange(left, right) + 0.5 - start[0], (np.arange(top, bottom) + 0.5 - start[1])[:, np.newaxis]
    along = np.asarray(end - start, np.float64)
    position = np.clip((x * along[0] + y * along[1]) / max(float(along @ along), 1e-9), 0, 1)
    distance = np.hypot(x - position * along[0], y - position * along[1])
    cover = (np.clip(radius + 0.5 - distance, 0, 1) * opacity)[..., np.newaxis]
    patch = canvas[top:bottom, left:right]
    patch += (np.asarray(colour, np.float32) - patch) * cover.astype(np.float32)
