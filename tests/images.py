"""Pictures in all the forms that clients send."""

import io
from typing import Any

import numpy as np
from PIL import Image


def red(width: int = 60, height: int = 40) -> Image.Image:
    """A red picture whose left quarter is darker, so that its orientation can be told."""
    image = Image.new("RGB", (width, height), (230, 20, 10))
    image.paste((90, 10, 5), (0, 0, width // 4, height))
    return image


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The picture's file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def rotated_by_exif(image: Image.Image) -> bytes:
    """A JPEG that lies on its side and says so."""
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: turn by 90° clockwise to see it upright.
    return encoded(image.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=95)


def sixteen_bit(level: int = 40_000, size: tuple[int, int] = (40, 60)) -> bytes:
    """A 16-bit grey PNG."""
    return encoded(Image.fromarray(np.full(size, level, np.uint16)))
