"""The figures of super-resolution: strips of one picture sent, resized, restored and as it was."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Sheet

_TITLES = ("sent", "bicubic", "restored", "original")
_SIDE = 220
"""Pixels of the larger picture that a strip shows: more would be made smaller, and hide what it is about."""


@dataclass(frozen=True)
class Strip:
    """One picture in four states, each uint8 (height, width, 3), and what to say of it.

    `sent` is the small one; the others have one size. `middle` (x, y) is what to show of them, as a share of the sides.
    """

    sent: NDArray[np.uint8]
    bicubic: NDArray[np.uint8]
    restored: NDArray[np.uint8]
    original: NDArray[np.uint8]
    caption: str
    middle: tuple[float, float] = (0.5, 0.5)

    def parts(self) -> tuple[NDArray[np.uint8], ...]:
        """The same part of each, in the size of the larger ones."""
        height, width = self.original.shape[:2]
        sent = np.asarray(Image.fromarray(self.sent).resize((width, height), Image.Resampling.NEAREST))
        left, top = (
            max(0, min(round(share * length) - _SIDE // 2, length - _SIDE))
            for share, length in zip(self.middle, (width, height), strict=True)
        )
        whole = (sent, self.bicubic, self.restored, self.original)
        return tuple(each[top : top + _SIDE, left : left + _SIDE] for each in whole)


def strips(shown: Sequence[Strip]) -> bytes:
    """A row for each picture."""
    from matplotlib.figure import Figure  # Seconds: not for every command.

    sheet: Sheet = Figure(figsize=(11, 2.9 * len(shown)), layout="constrained")
    grid = sheet.subplots(len(shown), len(_TITLES), squeeze=False)
    for row, strip in zip(grid, shown, strict=True):
        for axes, pixels, title in zip(row, strip.parts(), _TITLES, strict=True):
            axes.imshow(pixels, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_xlabel(title, fontsize=8)
        row[0].set_title(strip.caption, fontsize=9, loc="left")
    file = io.BytesIO()
    sheet.savefig(file, format="png", dpi=110, bbox_inches="tight", facecolor="white")
    return file.getvalue()


def middle_of(covered: NDArray[np.bool_]) -> tuple[float, float]:
    """Where the text is that lies furthest in the upper left, as a share of the sides; else the middle."""
    rows, columns = np.nonzero(covered)
    if not len(rows):
        return 0.5, 0.5
    near = columns[np.abs(rows - rows[0]) < 0.1 * len(covered)]
    return float(np.median(near)) / covered.shape[1], float(rows[0]) / covered.shape[0]
