"""Synthetic images of three dots, which are easy to find."""

import numpy as np
from PIL import Image

NAMES = ("left", "right", "top")
_COLOURS = ((230, 40, 40), (40, 220, 60), (60, 80, 240))


def draw_dots(seed, side=72):
    """A grey image with three dots, and their positions."""
    random = np.random.default_rng(seed)
    centre = random.uniform(0.4, 0.6, 2) * side
    points = centre + np.array([[-14.0, 6.0], [14.0, 6.0], [0.0, -14.0]]) * random.uniform(0.8, 1.1)
    image = np.full((side, side, 3), random.uniform(90, 160)) + random.normal(0, 6, (side, side, 3))
    y, x = np.mgrid[:side, :side] + 0.5
    for point, colour in zip(points, _COLOURS, strict=True):
        image[np.hypot(x - point[0], y - point[1]) < 5] = colour
    return Image.fromarray(image.clip(0, 255).astype(np.uint8)), points
