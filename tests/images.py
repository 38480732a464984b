"""Images in the formats that clients send."""

import io
from typing import Any

import numpy as np
from PIL import Image


def red_image(width: int = 60, height: int = 40) -> Image.Image:
    """A red image whose left quarter is darker, which shows its orientation."""
    image = Image.new("RGB", (width, height), (230, 20, 10))
    image.paste((90, 10, 5), (0, 0, width // 4, height))
    return image


def encode_image(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def exif_rotated_jpeg(image: Image.Image) -> bytes:
    """A JPEG that is stored rotated by 90° and has an EXIF tag that says so."""
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: rotate by 90° clockwise to display.
    return encode_image(image.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=95)


def sixteen_bit_png(level: int = 40_000, size: tuple[int, int] = (40, 60)) -> bytes:
    """A 16-bit grey PNG."""
    return encode_image(Image.fromarray(np.full(size, level, np.uint16)))
