"""BMP: the header, which says how the pixels are stored. Only uncompressed pixels are accepted."""

import struct

from tasks._image_files.image_file import BrokenFile, ImageFile, check_size
from tasks.contract import InvalidInput

_OS2_HEADER_BYTES = 12
_HEADER_BYTES = (40, 52, 56, 64, 108, 124)
_UNCOMPRESSED = (0, 3)
"""Plain pixels, and pixels whose channels are given by bit fields."""


def read_bmp(content: bytes, max_pixels: int) -> ImageFile:
    """Return the image. Raises BrokenFile, InvalidInput, struct.error."""
    offset, header_bytes = struct.unpack_from("<II", content, 10)
    compression = 0
    if header_bytes == _OS2_HEADER_BYTES:
        width, height, _, bits = struct.unpack_from("<HHHH", content, 18)
    elif header_bytes in _HEADER_BYTES:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", content, 18)
    else:
        raise BrokenFile("its header has an unknown length")
    if compression not in _UNCOMPRESSED:
        # Run lengths are decoded by a loop in Python, and three bytes of them can stand for 255 pixels or a whole row.
        message = "The image is a BMP with compressed pixels, which is not accepted; save it as PNG, or uncompressed."
        raise InvalidInput(message, reason="unreadable")
    height = abs(height)
    check_size(width, height, max_pixels=max_pixels)
    if height * ((width * bits + 31) // 32 * 4) > len(content) - min(offset, len(content)):
        raise BrokenFile("most of its data is missing")
    return ImageFile("BMP", width, height, content)
