"""A large picture as overlapping tiles of one shape, and the picture put together again from what they became.

Knows nothing of what is done to a tile, but that it may make it larger by a whole number.
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
    """How pictures are cut.

    Attributes:
        tile: side length of a tile, in pixels.
        overlap: pixels that two neighbours share, or a few more.
        margin: of a tile's pixels, how many at each side are not used: there a network sees only half of what is
            around. A picture is mirrored at its border, so that its own outermost pixels lie further inside too.
    """

    tile: int
    overlap: int
    margin: int

    def __post_init__(self) -> None:
        """Raises ValueError: the ramps of neighbours would meet."""
        if not (self.tile > 0 and 0 <= 2 * self.margin <= self.overlap <= self.tile // 2):
            raise ValueError(f"Tiles of {self.tile} pixels cannot share {self.overlap} with margins of {self.margin}.")

    @property
    def ramp(self) -> int:
        """Pixels over which one tile goes over into the next."""
        return self.overlap - 2 * self.margin

    def starts(self, length: int) -> tuple[int, ...]:
        """Where the tiles begin along a side of that many pixels; the first at `-margin`, all evenly spread."""
        room = length + 2 * self.margin - self.tile
        if room <= 0:
            return (-self.margin,)
        steps = math.ceil(room / (self.tile - self.overlap))
        return tuple(room * i // steps - self.margin for i in range(steps + 1))

    def count(self, width: int, height: int) -> int:
        """How many tiles a picture becomes."""
        return len(self.starts(width)) * len(self.starts(height))

    def cut(self, pixels: Pixels) -> Pixels:
        """A picture (height, width, channels) as tiles (n, tile, tile, channels), row by row.

        What lies outside the picture is mirrored.
        """
        height, width, channels = pixels.shape
        rows, columns = self.starts(height), self.starts(width)
        tiles = np.empty((len(rows) * len(columns), self.tile, self.tile, channels), np.uint8)
        across, down = [self._places(x, width) for x in columns], [self._places(y, height) for y in rows]
        for tile, (y, x) in zip(tiles, product(down, across), strict=True):
            tile[:] = pixels[y[:, np.newaxis], x]
        return tiles

    def _places(self, start: int, length: int) -> NDArray[np.intp]:
        """The pixels of a side that a tile shows, mirrored at both ends, there and back as often as it takes."""
        places = np.arange(start, start + self.tile) % (2 * length)
        return np.minimum(places, 2 * length - 1 - places)

    def joined(self, tiles: Pixels, width: int, height: int, *, scale: int = 1) -> Pixels:
        """The picture (scale·height, scale·width, channels) from its tiles (n, scale·tile, scale·tile, channels).

        Two neighbours are mixed along a linear ramp in the middle of what they share, in whole numbers: where they
        agree the answer is theirs exactly. Beside the answer, one row of tiles is in memory.
        """
        rows, columns = self.starts(height), self.starts(width)
        answer = np.empty((scale * height, scale * width, tiles.shape[-1]), np.uint8)
        band = np.empty((scale * self.tile, scale * width, tiles.shape[-1]), np.uint8)
        for row, start in enumerate(rows):
            for column, left in enumerate(columns):
                tile = tiles[row * len(columns) + column]
                self._lay(band.swapaxes(0, 1), tile.swapaxes(0, 1), columns[:column], left, scale)
            self._lay(answer, band, rows[:row], start, scale)
        return answer

    def _lay(self, answer: Pixels, piece: Pixels, earlier: Sequence[int], start: int, scale: int) -> None:
        """Lays a piece that begins at `start` over what lies there of the earlier one, along the first axis."""
        begin, end = 0, start + self.tile - self.margin
        if earlier:
            # The middle of what both show; the ramp around it ends at least a margin away from either's edge.
            begin = (earlier[-1] + start + self.tile - self.ramp) // 2
            self._mix(answer, piece, begin, start, scale)
            begin += self.ramp
        end = min(scale * end, len(answer))
        answer[scale * begin : end] = piece[scale * (begin - start) : end - scale * start]

    def _mix(self, answer: Pixels, piece: Pixels, begin: int, start: int, scale: int) -> None:
        length = scale * self.ramp
        old = answer[scale * begin : scale * begin + length].astype(np.uint32)
        new = piece[scale * (begin - start) : scale * (begin - start) + length].astype(np.uint32)
        # The weights of the new piece are odd numbers over 2·length: the middle of each pixel.
        weights = np.arange(1, 2 * length, 2, dtype=np.uint32)[:, np.newaxis, np.newaxis]
        mixed = (old * (2 * length - weights) + new * weights + length) // max(1, 2 * length)
        answer[scale * begin : scale * begin + length] = mixed.astype(np.uint8)
