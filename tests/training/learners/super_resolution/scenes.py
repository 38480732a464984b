"""Synthetic sharp images."""

import numpy as np
from PIL import Image


def draw_scene(width=120, height=90, seed=0):
    """An image of gradients and a few blocks, with both smooth areas and sharp edges."""
    random = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    pixels = np.stack([90 + 100 * x, 60 + 120 * y, 160 - 80 * x * y], axis=-1)
    for _ in range(8):
        left, top = random.integers(0, max(1, width - 20)), random.integers(0, max(1, height - 20))
        pixels[top : top + 15, left : left + 18] = random.integers(0, 256, 3)
    return Image.fromarray(pixels.astype(np.uint8))
