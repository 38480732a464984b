"""Folders of synthetic street scenes with their masks."""

from pathlib import Path

import numpy as np
from PIL import Image

CODES = "sky\nroad\nVoid\nhouse\n"
PALETTE = {0: (90, 160, 250), 1: (110, 110, 110), 3: (150, 60, 30)}


def draw_scene(seed, size=(48, 36)):
    """A noisy image of sky, road and a house, and its mask; the two rightmost columns are void."""
    random = np.random.default_rng(seed)
    width, height = size
    mask = np.zeros((height, width), np.uint8)
    horizon, left = int(random.integers(height // 3, height // 2)), int(random.integers(2, width // 2))
    mask[horizon:] = 1
    mask[horizon // 2 : horizon + 2, left : left + width // 3] = 3
    pixels = np.zeros((height, width, 3))
    for label, colour in PALETTE.items():
        pixels[mask == label] = colour
    pixels += random.normal(0, 15, pixels.shape)
    mask[:, -2:] = 2
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), Image.fromarray(mask)


def write_scenes(folder: Path, count=8, images="images", masks="masks", first=0, codes=CODES, size=(48, 36)) -> Path:
    """Write images and masks, by default to `images` and `masks`, with codes.txt."""
    for part in (images, masks):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        image, mask = draw_scene(i, size)
        image.save(folder / images / f"{i:03}.jpg", quality=95)
        mask.save(folder / masks / f"{i:03}.png")
    if codes:
        (folder / "codes.txt").write_text(codes)
    return folder
