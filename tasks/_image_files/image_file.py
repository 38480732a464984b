"""The first image of a file, not decoded; and the limits that all formats share."""

import math
from dataclasses import dataclass

from tasks.contract import InvalidInput

MAX_PARTS = 20_000
"""Maximum segments or chunks of a file; walking one costs about 1 µs. A PNG of 20 MB usually has 2,500 of 8 kB each."""
MAX_PROFILE_BYTES = 4_000_000
"""Maximum size of a colour profile; large ones, of printing presses, have 3 MB."""
_MAX_SIDE = 65_535
"""Maximum side in pixels, as in JPEG headers. A strip of millions costs far more than a square of equal area."""
_MAX_ROW_BYTES = 100_000_000
"""Maximum bytes of an image whose pixels are compressed without loss, plus five per byte of the file.

That is 25 megapixels in RGBA, or 50 megapixels in RGB in a file of 10 MB. Decoding costs up to 0.8 s per 100 MB,
however small the file is.
"""
UPRIGHT = 1
"""The EXIF orientation of an image that is stored as it is displayed."""


@dataclass(frozen=True)
class ImageFile:
    """The first image of a file.

    Attributes:
        kind: the format, as Pillow names it.
        width: width of the stored image, in pixels, before the orientation is applied.
        height: height of the stored image, in pixels.
        content: a file that holds this image and nothing else: no metadata, no further images.
        orientation: how to display the image: 1…8, as in EXIF.
        profile: the embedded ICC profile, at most one byte longer than MAX_PROFILE_BYTES; None if there is none.
    """

    kind: str
    width: int
    height: int
    content: bytes
    orientation: int = UPRIGHT
    profile: bytes | None = None


class BrokenFile(ValueError):
    """The structure of the file is damaged. The message continues `The PNG file is damaged:`."""


def check_parts(count: int, limit: int = MAX_PARTS) -> None:
    """Raise InvalidInput if a file consists of more parts than any encoder writes."""
    if count > limit:
        message = f"The image file has more than {limit:,} parts, which would take too long to read. Save it anew."
        raise InvalidInput(message, reason="unreadable")


def check_size(width: int, height: int, *, max_pixels: int, advice: str = "") -> None:
    """Raise BrokenFile for an image without pixels, InvalidInput for one with more than `max_pixels` or a long side."""
    if width <= 0 or height <= 0:
        raise BrokenFile("it has no pixels")
    if width * height > max_pixels:
        message = f"The image has {width}×{height} pixels; at most {max_pixels:,} are accepted.{advice}"
        raise InvalidInput(message, reason="too_large")
    if max(width, height) > _MAX_SIDE:
        message = f"The image is {width}×{height}; no side may have more than {_MAX_SIDE:,} pixels."
        raise InvalidInput(message, reason="too_large")


def check_row_bytes(kind: str, width: int, height: int, bits: int, *, file_bytes: int) -> int:
    """Return the size in bytes of the rows of an image of `bits` per pixel. Raises InvalidInput if it is too large."""
    row_bytes = height * math.ceil(width * bits / 8)
    limit = _MAX_ROW_BYTES + 5 * file_bytes
    if row_bytes > limit:
        message = (
            f"The {kind} image has {width}×{height} pixels of {bits} bits, {row_bytes / 1e6:,.0f} MB; at most "
            f"{limit / 1e6:,.0f} MB are accepted of a {kind} file of this size. Send a JPEG, or a smaller image."
        )
        raise InvalidInput(message, reason="too_large")
    return row_bytes
