"""GIF: the first frame. Comments, application data and further frames are left out."""

import struct
from collections.abc import Iterator
from itertools import count

from tasks._image_files.image_file import BrokenFile, ImageFile, check_parts, check_size

_EXTENSION, _FRAME = 0x21, 0x2C
_GRAPHIC_CONTROL = 0xF9
_HAS_PALETTE = 0x80
_MAX_BLOCKS = 100_000
"""Maximum blocks up to the end of the first frame. A frame of 20 MB has 80,000, of at most 255 bytes."""


def read_gif(content: bytes, max_pixels: int) -> ImageFile:
    """Return the first frame. Raises BrokenFile, struct.error, IndexError."""
    width, height, flags = struct.unpack_from("<HHB", content, 6)
    position = header_end = 13 + _palette_bytes(flags)
    control, blocks = b"", count()
    while True:
        if content[position] == _FRAME:
            break
        if content[position] != _EXTENSION:
            raise BrokenFile("it has no image")
        end = _skip_blocks(content, position + 2, blocks)
        if content[position + 1] == _GRAPHIC_CONTROL:
            control = content[position:end]
        position = end
    left, top, frame_width, frame_height, flags = struct.unpack_from("<HHHHB", content, position + 1)
    # A frame that exceeds the screen enlarges it, as in Pillow.
    width, height = max(width, left + frame_width), max(height, top + frame_height)
    check_size(width, height, max_pixels=max_pixels)
    end = _skip_blocks(content, position + 10 + _palette_bytes(flags) + 1, blocks)
    frame = b"".join([content[:header_end], control, content[position:end], b";"])
    return ImageFile("GIF", width, height, frame)


def _palette_bytes(flags: int) -> int:
    return 3 * 2 ** ((flags & 7) + 1) if flags & _HAS_PALETTE else 0


def _skip_blocks(content: bytes, position: int, blocks: Iterator[int]) -> int:
    """Return where a row of blocks ends; the file may end before it. `blocks` counts those of the whole file."""
    while position < len(content) and content[position]:
        check_parts(next(blocks), _MAX_BLOCKS)
        position += content[position] + 1
    check_parts(next(blocks), _MAX_BLOCKS)
    return position + 1
