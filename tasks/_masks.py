"""Masks, one class per pixel, and their representations: palette PNG, run lengths, polygons, overlays.

This module does not depend on networks or on the names of classes.
"""

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tasks._images import encode_image

Mask = NDArray[np.uint8]
Indices = NDArray[np.intp]
Ring = NDArray[np.intp]
Colour = tuple[int, int, int]

_TOP, _RIGHT, _BOTTOM, _LEFT = range(4)
# Clockwise around a pixel: the step along each side, and the step outwards across it, as (row, column).
_ALONG = ((0, 1), (1, 0), (0, -1), (-1, 0))
_ACROSS = ((-1, 0), (0, 1), (1, 0), (0, -1))
# The corner of a pixel where each side starts, as (row, column).
_START_CORNERS = ((0, 0), (0, 1), (1, 1), (1, 0))


@dataclass(frozen=True)
class StretchedMask:
    """A mask of any size, stored as a small mask whose rows and columns are repeated.

    Counting and tracing therefore depend on the network's resolution, not on the size of the image.

    Attributes:
        small: uint8 (h, w), class indices.
        rows: the row of `small` for each row of the mask, (height,), from 0 to h - 1 without gaps.
        columns: the same for columns, (width,).
    """

    small: Mask
    rows: Indices
    columns: Indices

    @property
    def width(self) -> int:
        """Width of the mask, in pixels."""
        return len(self.columns)

    @property
    def height(self) -> int:
        """Height of the mask, in pixels."""
        return len(self.rows)

    def expand(self) -> Mask:
        """Return the mask as an array, uint8 (height, width)."""
        return self.small[:, self.columns][self.rows]

    def resample(self, width: int, height: int) -> Mask:
        """Return the mask at another size, by nearest neighbour."""
        rows = self.rows[((np.arange(height) + 0.5) * self.height / height).astype(np.intp)]
        columns = self.columns[((np.arange(width) + 0.5) * self.width / width).astype(np.intp)]
        return self.small[:, columns][rows]

    def counts(self) -> NDArray[np.intp]:
        """Return how many pixels of the mask each pixel of `small` stands for, (h, w)."""
        return np.outer(np.bincount(self.rows), np.bincount(self.columns))

    def regions(self) -> "list[Region]":
        """Return the regions of all classes, in pixels of the mask."""
        xs = np.append(np.searchsorted(self.columns, np.arange(self.small.shape[1])), self.width)
        ys = np.append(np.searchsorted(self.rows, np.arange(self.small.shape[0])), self.height)
        return [
            Region(region.label, tuple(np.stack([xs[ring[:, 0]], ys[ring[:, 1]]], axis=1) for ring in region.rings))
            for region in trace_regions(self.small)
        ]


def stretch_mask(small: Mask, rows: Indices, columns: Indices) -> StretchedMask:
    """Return the mask whose pixel (row, column) is `small[rows[row], columns[column]]`.

    `rows` and `columns` must not decrease; they may skip rows and columns of `small`.
    """
    kept_rows, rows = np.unique(rows, return_inverse=True)
    kept_columns, columns = np.unique(columns, return_inverse=True)
    return StretchedMask(small[kept_rows][:, kept_columns], rows, columns)


def distinct_colours(count: int) -> tuple[Colour, ...]:
    """Return distinguishable colours: hues a golden angle apart, in two brightnesses."""
    colours = []
    for i in range(count):
        red, green, blue = colorsys.hsv_to_rgb(i * 0.381966 % 1, 0.75, 0.95 if i % 2 == 0 else 0.6)
        colours.append((round(red * 255), round(green * 255), round(blue * 255)))
    return tuple(colours)


def palette_png(mask: Mask, colours: Sequence[Colour]) -> bytes:
    """Encode a mask as a palette PNG: the indices are the classes, and the palette holds their colours.

    With few classes, a pixel takes fewer than 8 bits, which is part of the PNG standard.
    """
    image = Image.fromarray(mask).convert("L")
    image.putpalette([level for colour in colours for level in colour])
    return encode_image(image, "png")


def overlay_jpeg(image: Image.Image, mask: StretchedMask, colours: Sequence[Colour], *, max_side: int) -> bytes:
    """Blend the image half and half with the colours of the classes, with sides of at most `max_side` pixels."""
    ratio = min(1.0, max_side / max(image.size))
    width, height = max(1, round(image.width * ratio)), max(1, round(image.height * ratio))
    small = image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BILINEAR)
    coloured = Image.fromarray(np.array(colours, np.uint8)[mask.resample(width, height)])
    return encode_image(Image.blend(small, coloured, 0.5), "jpeg")


def encode_run_lengths(mask: Mask) -> dict[int, list[int]]:
    """Return COCO's uncompressed run lengths of each class that occurs.

    In column-major order: the number of pixels not of the class, then of the class, then not of the class, and so on.
    """
    flat = mask.ravel(order="F")
    run_starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [len(flat)]])
    classes = flat[run_starts[:-1]]
    run_lengths = {}
    for label in np.unique(classes).tolist():
        runs = np.flatnonzero(classes == label)
        edges = np.stack([run_starts[runs], run_starts[runs + 1]], axis=1).ravel()
        counts = np.diff(edges, prepend=0, append=len(flat)).tolist()
        run_lengths[label] = counts if counts[-1] else counts[:-1]
    return run_lengths


def decode_run_lengths(run_lengths: Mapping[int, Sequence[int]], height: int, width: int) -> Mask:
    """Invert `encode_run_lengths`: uint8 (height, width), 0 for pixels of no class."""
    flat = np.zeros(height * width, np.uint8)
    for label, counts in run_lengths.items():
        values = np.arange(len(counts)) % 2 == 1
        flat[np.repeat(values, counts)[: len(flat)].nonzero()] = label
    return flat.reshape((height, width), order="F")


@dataclass(frozen=True)
class Region:
    """A connected region: pixels of one class, connected by their sides.

    Attributes:
        label: the class.
        rings: corners of pixels as (x, y), (n, 2) each: the outline, clockwise, then the holes, counter-clockwise.
    """

    label: int
    rings: tuple[Ring, ...]

    @property
    def area(self) -> int:
        """Area in pixels, without the holes."""
        return sum(ring_area(ring) for ring in self.rings)


def trace_regions(mask: Mask) -> list[Region]:
    """Trace the regions of all classes along the edges of their pixels; filling the regions restores the mask.

    Rings are closed: the last corner connects to the first. No three consecutive corners are collinear.
    """
    edges = _Edges(mask)
    ring_of_edge, rings = edges.trace_rings()
    corners = [edges.corners(ring) for ring in rings]
    is_outline = [ring_area(ring) > 0 for ring in corners]
    rings_of_region: dict[int, list[Ring]] = {i: [corners[i]] for i in range(len(rings)) if is_outline[i]}
    # Follow the pixels to the left of a hole to the start of their run. The edge there belongs to the outline of the
    # same region, or to another hole of it further left, which is why holes are handled from left to right.
    outline_of = {i: i for i in rings_of_region}
    holes = [(*edges.left_neighbour(ring), i) for i, ring in enumerate(rings) if not is_outline[i]]
    for _, neighbour, i in sorted(holes):
        outline_of[i] = outline_of[int(ring_of_edge[neighbour])]
        rings_of_region[outline_of[i]].append(corners[i])
    labels = {i: int(mask.flat[edges.pixel[rings[i][0]]]) for i in rings_of_region}
    return [Region(labels[i], tuple(region_rings)) for i, region_rings in rings_of_region.items()]


def ring_area(ring: Ring) -> int:
    """Return the area of a ring in pixels (shoelace formula), negative if counter-clockwise, as holes are."""
    x, y = ring.T
    return int(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) // 2


class _Edges:
    """The sides of pixels where the class changes, each linked to the next one around its region."""

    def __init__(self, mask: Mask) -> None:
        self.height, self.width = mask.shape
        # A border of -1, which is no class, gives every pixel four neighbours.
        self.bordered = np.full((self.height + 2, self.width + 2), -1, np.int16)
        self.bordered[1:-1, 1:-1] = mask
        is_edge = np.stack([self._neighbours(step) != mask for step in _ACROSS]).reshape(4, -1)
        self.side, self.pixel = np.nonzero(is_edge)
        self.number = np.full(is_edge.shape, -1, np.intp)
        self.number[self.side, self.pixel] = np.arange(len(self.side))
        self.mask = mask

    def _neighbours(self, step: tuple[int, int]) -> NDArray[np.int16]:
        """Return, for each pixel, the pixel one step away."""
        down, right = step
        return self.bordered[1 + down : 1 + down + self.height, 1 + right : 1 + right + self.width]

    def _next_edges(self) -> Indices:
        """Return the successor of each edge: clockwise around its pixel, straight on, or around the pixel ahead.

        Two regions of a class that touch only in a corner stay separate.
        """
        successors = np.empty(len(self.side), np.intp)
        for side in range(4):
            (edges,) = np.nonzero(self.side == side)
            pixel, (along, across) = self.pixel[edges], (_ALONG[side], _ACROSS[side])
            diagonal = (along[0] + across[0], along[1] + across[1])
            continues = (self._neighbours(along) == self.mask).flat[pixel]
            turns_left = continues & (self._neighbours(diagonal) == self.mask).flat[pixel]
            pixel_ahead = pixel + along[0] * self.width + along[1]
            pixel_diagonal = pixel + diagonal[0] * self.width + diagonal[1]
            sides = np.select([turns_left, continues], [(side - 1) % 4, side], (side + 1) % 4)
            pixels = np.select([turns_left, continues], [pixel_diagonal, pixel_ahead], pixel)
            successors[edges] = self.number[sides, pixels]
        return successors

    def trace_rings(self) -> tuple[Indices, list[list[int]]]:
        """Return the ring of each edge, and the edges of each ring in order."""
        successors = self._next_edges().tolist()
        ring_of_edge = [-1] * len(successors)
        rings: list[list[int]] = []
        for first in range(len(successors)):
            if ring_of_edge[first] >= 0:
                continue
            ring, edge = [], first
            while ring_of_edge[edge] < 0:
                ring_of_edge[edge] = len(rings)
                ring.append(edge)
                edge = successors[edge]
            rings.append(ring)
        return np.array(ring_of_edge, np.intp), rings

    def corners(self, ring: Sequence[int]) -> Ring:
        """Return the corners where the ring turns, (n, 2) as (x, y)."""
        edges = np.asarray(ring)
        sides = self.side[edges]
        edges = edges[sides != np.roll(sides, 1)]
        row, column = np.divmod(self.pixel[edges], self.width)
        down, right = np.array(_START_CORNERS)[self.side[edges]].T
        return np.stack([column + right, row + down], axis=1)

    def left_neighbour(self, ring: Sequence[int]) -> tuple[int, int]:
        """Return the column to the left of a hole, and the edge where the run of pixels that ends there starts."""
        edges = np.asarray(ring)
        right_sides = edges[self.side[edges] == _RIGHT]
        leftmost = right_sides[np.argmin(self.pixel[right_sides] % self.width)]
        row, column = divmod(int(self.pixel[leftmost]), self.width)
        others = np.flatnonzero(self.mask[row, :column] != self.mask[row, column])
        run_start = int(others[-1]) + 1 if len(others) else 0
        return column, int(self.number[_LEFT, row * self.width + run_start])
