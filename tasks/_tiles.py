"""Cutting a large image into overlapping tiles of one shape, and blending the processed tiles into one image.

This module does not know how a tile is processed, only that it may be enlarged by an integer factor.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Tiling:
    """How images are cut into tiles.

    Attributes:
        tile: side length of a tile, in pixels.
        overlap: minimum number of pixels that two neighbouring tiles share.
        margin: pixels at each side of a tile that are discarded, because the network sees only part of their
            surroundings. The image is mirrored at its border, so that its own outermost pixels are not discarded.
    """

    tile: int
    overlap: int
    margin: int

    def __post_init__(self) -> None:
        """Raises ValueError if the ramps of neighbouring overlaps would meet."""
        if not (self.tile > 0 and 0 <= 2 * self.margin <= self.overlap <= self.tile // 2):
            raise ValueError(f"Tiles of {self.tile} pixels cannot share {self.overlap} with margins of {self.margin}.")

    @property
    def ramp(self) -> int:
        """Pixels over which one tile blends into the next."""
        return self.overlap - 2 * self.margin

    def starts(self, length: int) -> tuple[int, ...]:
        """Return where tiles start along a side of this length: the first at `-margin`, all evenly spaced."""
        distance = length + 2 * self.margin - self.tile
        if distance <= 0:
            return (-self.margin,)
        steps = math.ceil(distance / (self.tile - self.overlap))
        return tuple(distance * i // steps - self.margin for i in range(steps + 1))

    def count(self, width: int, height: int) -> int:
        """Return the number of tiles of an image."""
        return len(self.starts(width)) * len(self.starts(height))

    def cut(self, pixels: Pixels) -> Pixels:
        """Cut an image (height, width, channels) into tiles (n, tile, tile, channels), row by row.

        Pixels beyond the border are mirrored.
        """
        height, width, channels = pixels.shape
        rows, columns = self.starts(height), self.starts(width)
        tiles = np.empty((len(rows) * len(columns), self.tile, self.tile, channels), np.uint8)
        x_indices = [self._pixel_indices(start, width) for start in columns]
        y_indices = [self._pixel_indices(start, height) for start in rows]
        for tile, (y, x) in zip(tiles, product(y_indices, x_indices), strict=True):
            tile[:] = pixels[y[:, np.newaxis], x]
        return tiles

    def _pixel_indices(self, start: int, length: int) -> NDArray[np.intp]:
        """Return the pixels along a side that a tile shows, mirrored at both ends as often as necessary."""
        indices = np.arange(start, start + self.tile) % (2 * length)
        return np.minimum(indices, 2 * length - 1 - indices)

    def blend(self, tiles: Pixels, width: int, height: int, *, scale: int = 1) -> Pixels:
        """Blend tiles (n, scale·tile, scale·tile, channels) into an image (scale·height, scale·width, channels).

        Neighbouring tiles are mixed along a linear ramp in the middle of their overlap, in integer arithmetic: where
        they agree, the result is exact. Besides the result, only one row of tiles is held in memory.
        """
        rows, columns = self.starts(height), self.starts(width)
        image = np.empty((scale * height, scale * width, tiles.shape[-1]), np.uint8)
        band = np.empty((scale * self.tile, scale * width, tiles.shape[-1]), np.uint8)
        for row, top in enumerate(rows):
            for column, left in enumerate(columns):
                tile = tiles[row * len(columns) + column]
                self._paste(band.swapaxes(0, 1), tile.swapaxes(0, 1), columns[:column], left, scale)
            self._paste(image, band, rows[:row], top, scale)
        return image

    def _paste(self, target: Pixels, piece: Pixels, previous_starts: Sequence[int], start: int, scale: int) -> None:
        """Paste a piece that begins at `start` along the first axis, blending it with the previous piece."""
        begin, end = 0, start + self.tile - self.margin
        if previous_starts:
            # The ramp is centred in the overlap, so it ends at least a margin away from both edges.
            begin = (previous_starts[-1] + start + self.tile - self.ramp) // 2
            self._mix_ramp(target, piece, begin, start, scale)
            begin += self.ramp
        end = min(scale * end, len(target))
        target[scale * begin : end] = piece[scale * (begin - start) : end - scale * start]

    def _mix_ramp(self, target: Pixels, piece: Pixels, begin: int, start: int, scale: int) -> None:
        length = scale * self.ramp
        old = target[scale * begin : scale * begin + length].astype(np.uint32)
        new = piece[scale * (begin - start) : scale * (begin - start) + length].astype(np.uint32)
        # The weights of the new piece are odd numbers over 2·length: the centre of each pixel.
        weights = np.arange(1, 2 * length, 2, dtype=np.uint32)[:, np.newaxis, np.newaxis]
        mixed = (old * (2 * length - weights) + new * weights + length) // max(1, 2 * length)
        target[scale * begin : scale * begin + length] = mixed.astype(np.uint8)
