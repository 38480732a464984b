"""The orientation of an image, from its EXIF data.

Only the first directory is read, and of it only one tag. Libraries read all tags into memory, and since tags may share
their data, a megabyte of EXIF data can take gigabytes.
"""

import struct

from tasks._image_files.image_file import UPRIGHT

_ORIENTATION = 0x0112
_SHORT = 3
_ORIENTATIONS = range(1, 9)
_PREFIX = b"Exif\0\0"


def read_orientation(exif: bytes) -> int:
    """Return the orientation, 1…8; UPRIGHT if the data has none or is damaged.

    `exif` is a TIFF structure, with or without the prefix that it has in a JPEG.
    """
    data = memoryview(exif.removeprefix(_PREFIX))
    order = {b"II": "<", b"MM": ">"}.get(bytes(data[:2]))
    if order is None or len(data) < 8:
        return UPRIGHT
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    if start + 2 > len(data):
        return UPRIGHT
    (count,) = struct.unpack_from(f"{order}H", data, start)
    table = data[start + 2 : start + 2 + 12 * count]
    for tag, kind, number, value in struct.iter_unpack(f"{order}HHIH2x", table[: len(table) // 12 * 12]):
        if (tag, kind, number) == (_ORIENTATION, _SHORT, 1):
            return value if value in _ORIENTATIONS else UPRIGHT
    return UPRIGHT
