"""Masks: one class for each pixel, and the forms in which they travel: palette PNG, run lengths, polygons, overlays.

Knows nothing of networks; what a class is called, and where a mask comes from, others know.
"""

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tasks._images import encoded

Mask = NDArray[np.uint8]
Indices = NDArray[np.intp]
Ring = NDArray[np.intp]
Colour = tuple[int, int, int]

_TOP, _RIGHT, _BOTTOM, _LEFT = range(4)
# Clockwise round a pixel: the step along each of its sides, and the step out across it, as (row, column).
_ALONG = ((0, 1), (1, 0), (0, -1), (-1, 0))
_ACROSS = ((-1, 0), (0, 1), (1, 0), (0, -1))
# The corner of a pixel at which each side begins, as (row, column).
_BEGINS = ((0, 0), (0, 1), (1, 1), (1, 0))


@dataclass(frozen=True)
class StretchedMask:
    """A mask of any size, kept as a small one of which each row and column is repeated.

    So what is counted or traced costs as much as the network's resolution, whatever size the picture has.

    Attributes:
        small: uint8 (h, w), classes by their index.
        rows: which row of `small` each row of the mask is, (height,), from 0 to h - 1 without a gap.
        columns: the same for columns, (width,).
    """

    small: Mask
    rows: Indices
    columns: Indices

    @property
    def width(self) -> int:
        """Of the mask, in pixels."""
        return len(self.columns)

    @property
    def height(self) -> int:
        """Of the mask, in pixels."""
        return len(self.rows)

    def whole(self) -> Mask:
        """The mask, uint8 (height, width)."""
        return self.small[:, self.columns][self.rows]

    def resampled(self, width: int, height: int) -> Mask:
        """The mask in another size, by the nearest pixel."""
        rows = self.rows[((np.arange(height) + 0.5) * self.height / height).astype(np.intp)]
        columns = self.columns[((np.arange(width) + 0.5) * self.width / width).astype(np.intp)]
        return self.small[:, columns][rows]

    def counts(self) -> NDArray[np.intp]:
        """How many pixels of the mask each pixel of `small` stands for, (h, w)."""
        return np.outer(np.bincount(self.rows), np.bincount(self.columns))

    def regions(self) -> "list[Region]":
        """The regions of all classes, in the mask's own pixels."""
        xs = np.append(np.searchsorted(self.columns, np.arange(self.small.shape[1])), self.width)
        ys = np.append(np.searchsorted(self.rows, np.arange(self.small.shape[0])), self.height)
        return [
            Region(region.label, tuple(np.stack([xs[ring[:, 0]], ys[ring[:, 1]]], axis=1) for ring in region.rings))
            for region in regions(self.small)
        ]


def stretched(network: Mask, rows: Indices, columns: Indices) -> StretchedMask:
    """The mask whose pixel (row, column) is `network[rows[row], columns[column]]`; both rise, with gaps or without."""
    kept_rows, rows = np.unique(rows, return_inverse=True)
    kept_columns, columns = np.unique(columns, return_inverse=True)
    return StretchedMask(network[kept_rows][:, kept_columns], rows, columns)


def distinct_colours(count: int) -> tuple[Colour, ...]:
    """Colours that are told apart: hues a golden angle apart, in two brightnesses."""
    found = []
    for i in range(count):
        red, green, blue = colorsys.hsv_to_rgb(i * 0.381966 % 1, 0.75, 0.95 if i % 2 == 0 else 0.6)
        found.append((round(red * 255), round(green * 255), round(blue * 255)))
    return tuple(found)


def palette_png(mask: Mask, colours: Sequence[Colour]) -> bytes:
    """A palette PNG: the indices are the classes, and the palette shows each in its colour.

    Few classes take fewer than 8 bits a pixel; every reader of PNG knows that.
    """
    image = Image.fromarray(mask).convert("L")
    image.putpalette([level for colour in colours for level in colour])
    return encoded(image, "png")


def overlay_jpeg(image: Image.Image, mask: StretchedMask, colours: Sequence[Colour], *, longest: int) -> bytes:
    """The picture with each class in its colour laid over it by half, its longest side no more than `longest`."""
    ratio = min(1.0, longest / max(image.size))
    width, height = max(1, round(image.width * ratio)), max(1, round(image.height * ratio))
    small = image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BILINEAR)
    painted = Image.fromarray(np.array(colours, np.uint8)[mask.resampled(width, height)])
    return encoded(Image.blend(small, painted, 0.5), "jpeg")


def run_lengths(mask: Mask) -> dict[int, list[int]]:
    """COCO's uncompressed run lengths of each class that occurs.

    Column after column: how many pixels are not of the class, how many are, how many are not, and so on.
    """
    flat = mask.ravel(order="F")
    begins = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [len(flat)]])
    classes = flat[begins[:-1]]
    found = {}
    for label in np.unique(classes).tolist():
        mine = np.flatnonzero(classes == label)
        edges = np.stack([begins[mine], begins[mine + 1]], axis=1).ravel()
        counts = np.diff(edges, prepend=0, append=len(flat)).tolist()
        found[label] = counts if counts[-1] else counts[:-1]
    return found


def from_run_lengths(runs: Mapping[int, Sequence[int]], height: int, width: int) -> Mask:
    """The mask that `run_lengths` described, uint8 (height, width); 0 where no class is named."""
    flat = np.zeros(height * width, np.uint8)
    for label, counts in runs.items():
        values = np.arange(len(counts)) % 2 == 1
        flat[np.repeat(values, counts)[: len(flat)].nonzero()] = label
    return flat.reshape((height, width), order="F")


@dataclass(frozen=True)
class Region:
    """Pixels of one class that hang together by their sides.

    Attributes:
        label: the class.
        rings: corners of pixels as (x, y), (n, 2) each: the outline, clockwise, then the holes, counter-clockwise.
    """

    label: int
    rings: tuple[Ring, ...]

    @property
    def area(self) -> int:
        """In pixels, without the holes."""
        return sum(area(ring) for ring in self.rings)


def regions(mask: Mask) -> list[Region]:
    """The regions of all classes, traced along the edges of their pixels: filled in again, they are the mask.

    A ring is closed, its last corner joins its first; no three corners in a row lie on one line.
    """
    edges = _Edges(mask)
    ring_of, rings = edges.followed()
    corners = [edges.corners(ring) for ring in rings]
    outer = [area(ring) > 0 for ring in corners]
    parts: dict[int, list[Ring]] = {number: [corners[number]] for number in range(len(rings)) if outer[number]}
    # A hole lies right of the pixels left of it; the edge where their row begins is on the outline of the same region,
    # or on another hole of it, further left.
    around = {number: number for number in parts}
    holes = [(*edges.left_of(ring), number) for number, ring in enumerate(rings) if not outer[number]]
    for _, beginning, number in sorted(holes):
        around[number] = around[int(ring_of[beginning])]
        parts[around[number]].append(corners[number])
    labels = {number: int(mask.flat[edges.pixel[rings[number][0]]]) for number in parts}
    return [Region(labels[number], tuple(found)) for number, found in parts.items()]


def area(ring: Ring) -> int:
    """The pixels inside a ring (the shoelace formula); negative where it runs counter-clockwise, as a hole does."""
    x, y = ring.T
    return int(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) // 2


class _Edges:
    """The sides of pixels at which the class changes, each with the one that follows it round its region."""

    def __init__(self, mask: Mask) -> None:
        self.height, self.width = mask.shape
        # A frame of what is no class, so that every pixel has neighbours.
        self.framed = np.full((self.height + 2, self.width + 2), -1, np.int16)
        self.framed[1:-1, 1:-1] = mask
        is_edge = np.stack([self._neighbours(step) != mask for step in _ACROSS]).reshape(4, -1)
        self.side, self.pixel = np.nonzero(is_edge)
        self.number = np.full(is_edge.shape, -1, np.intp)
        self.number[self.side, self.pixel] = np.arange(len(self.side))
        self.mask = mask

    def _neighbours(self, step: tuple[int, int]) -> NDArray[np.int16]:
        """The pixel that lies a step away from each."""
        down, right = step
        return self.framed[1 + down : 1 + down + self.height, 1 + right : 1 + right + self.width]

    def _next(self) -> Indices:
        """The edge that follows each: clockwise round its own pixel, straight on, or round the pixel ahead.

        Where two regions of a class touch in a corner only, they stay two.
        """
        follows = np.empty(len(self.side), np.intp)
        for side in range(4):
            (mine,) = np.nonzero(self.side == side)
            pixel, (along, across) = self.pixel[mine], (_ALONG[side], _ACROSS[side])
            beyond = (along[0] + across[0], along[1] + across[1])
            ahead = (self._neighbours(along) == self.mask).flat[pixel]
            turns_left = ahead & (self._neighbours(beyond) == self.mask).flat[pixel]
            onward = pixel + along[0] * self.width + along[1]
            outward = pixel + beyond[0] * self.width + beyond[1]
            sides = np.select([turns_left, ahead], [(side - 1) % 4, side], (side + 1) % 4)
            follows[mine] = self.number[sides, np.select([turns_left, ahead], [outward, onward], pixel)]
        return follows

    def followed(self) -> tuple[Indices, list[list[int]]]:
        """Which ring each edge is on, and the edges of each ring in order."""
        follows = self._next().tolist()
        ring_of = [-1] * len(follows)
        rings: list[list[int]] = []
        for first in range(len(follows)):
            if ring_of[first] >= 0:
                continue
            ring, edge = [], first
            while ring_of[edge] < 0:
                ring_of[edge] = len(rings)
                ring.append(edge)
                edge = follows[edge]
            rings.append(ring)
        return np.array(ring_of, np.intp), rings

    def corners(self, ring: Sequence[int]) -> Ring:
        """Where the ring turns, (n, 2) as (x, y)."""
        edges = np.asarray(ring)
        sides = self.side[edges]
        edges = edges[sides != np.roll(sides, 1)]
        row, column = np.divmod(self.pixel[edges], self.width)
        down, right = np.array(_BEGINS)[self.side[edges]].T
        return np.stack([column + right, row + down], axis=1)

    def left_of(self, ring: Sequence[int]) -> tuple[int, int]:
        """How far left a hole begins, and the edge where the run of pixels left of it begins."""
        edges = np.asarray(ring)
        right_sides = edges[self.side[edges] == _RIGHT]
        nearest = right_sides[np.argmin(self.pixel[right_sides] % self.width)]
        row, column = divmod(int(self.pixel[nearest]), self.width)
        others = np.flatnonzero(self.mask[row, :column] != self.mask[row, column])
        begins = int(others[-1]) + 1 if len(others) else 0
        return column, int(self.number[_LEFT, row * self.width + begins])
