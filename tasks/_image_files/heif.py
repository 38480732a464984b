"""HEIC, the format of many phones. It needs the optional package pillow-heif.

The decoder (libheif) bounds itself: its security limits cover the number of tiles, the memory, and images that are
larger than their header says. Rotation is part of the format and applied when decoding.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from PIL import Image

from tasks._image_files.image_file import BrokenFile, ImageFile, check_size


def can_read_heif() -> bool:
    """Whether pillow-heif is installed."""
    return find_spec("pillow_heif") is not None


def read_heif(content: bytes, max_pixels: int) -> ImageFile:
    """Return the primary image; nothing is decoded yet. Raises BrokenFile."""
    image = _open(content)
    width, height = image.size
    check_size(width, height, max_pixels=max_pixels)
    profile = image.info.get("icc_profile")
    return ImageFile("HEIF", width, height, content, profile=profile or None)


def decode_heif(content: bytes) -> Image.Image:
    """Return the pixels of the primary image, with 8 bits per channel. Raises an exception of libheif."""
    image: Image.Image = _open(content).to_pillow()
    return image


def _open(content: bytes) -> Any:
    try:
        return import_module("pillow_heif").open_heif(content, convert_hdr_to_8bit=True)
    except Exception as error:  # Hostile bytes can make a decoder raise anything; the cause makes no difference.
        raise BrokenFile(str(error).rstrip(".")) from None
