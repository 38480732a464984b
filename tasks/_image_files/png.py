"""PNG: the header, the palette, the transparency and the data of the first image.

All other chunks are left out, those of an animation too; the profile and the orientation are read here.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from itertools import count, dropwhile, takewhile
from typing import NamedTuple

from tasks._image_files.exif import read_orientation
from tasks._image_files.image_file import (
    MAX_PROFILE_BYTES,
    BrokenFile,
    ImageFile,
    check_parts,
    check_row_bytes,
    check_size,
)

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Channels of each colour type."""
_MAX_DEFLATE_RATIO = 1032
"""No data is compressed more by the deflate format."""


class _Chunk(NamedTuple):
    kind: bytes
    start: int
    length: int
    """Length of the data, which begins 8 bytes after the start of the chunk."""


def read_png(content: bytes, max_pixels: int) -> ImageFile:
    """Return the image; of an animation, the image that programs without animations show.

    Raises BrokenFile, InvalidInput, struct.error.
    """
    chunks = tuple(_chunks(content))
    if not chunks or chunks[0].kind != b"IHDR" or chunks[0].length != 13:
        raise BrokenFile("its header is missing")
    header = struct.unpack_from(">IIBBBBB", content, chunks[0].start + 8)
    width, height, depth, colour_type = header[:4]
    check_size(width, height, max_pixels=max_pixels)
    data = _image_data(content, chunks)
    bits = depth * _CHANNELS.get(colour_type, 1)
    if check_row_bytes("PNG", width, height, bits, file_bytes=len(content)) > _MAX_DEFLATE_RATIO * len(data):
        raise BrokenFile("most of its data is missing")
    before_data = takewhile(lambda chunk: chunk.kind != b"IDAT", chunks)
    kept = [_copy(content, chunk) for chunk in before_data if chunk.kind in (b"IHDR", b"PLTE", b"tRNS")]
    exif, profile = (_find(content, chunks, kind) for kind in (b"eXIf", b"iCCP"))
    return ImageFile(
        "PNG",
        width,
        height,
        b"".join([_SIGNATURE, *kept, write_chunk(b"IDAT", data), write_chunk(b"IEND", b"")]),
        read_orientation(exif),
        _inflate_profile(profile) if profile else None,
    )


def write_chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk with its length and checksum."""
    return b"".join([struct.pack(">I", len(data)), kind, data, struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))])


def _chunks(content: bytes) -> Iterator[_Chunk]:
    position = len(_SIGNATURE)
    for number in count():
        check_parts(number)
        if position + 8 > len(content):
            return
        length, kind = struct.unpack_from(">I4s", content, position)
        if kind == b"IEND":
            return
        yield _Chunk(kind, position, length)
        position += length + 12


def _copy(content: bytes, chunk: _Chunk) -> bytes:
    return content[chunk.start : chunk.start + chunk.length + 12]


def _find(content: bytes, chunks: Sequence[_Chunk], kind: bytes) -> bytes:
    """Return the data of the first chunk of this kind; empty if there is none."""
    chunk = next((chunk for chunk in chunks if chunk.kind == kind), None)
    return content[chunk.start + 8 : chunk.start + 8 + chunk.length] if chunk else b""


def _image_data(content: bytes, chunks: Sequence[_Chunk]) -> bytes:
    """Return the data of the first row of IDAT chunks. Others after a gap belong to no image."""
    data = takewhile(lambda c: c.kind == b"IDAT", dropwhile(lambda c: c.kind != b"IDAT", chunks))
    return b"".join(content[chunk.start + 8 : chunk.start + 8 + chunk.length] for chunk in data)


def _inflate_profile(chunk: bytes) -> bytes | None:
    """Return the profile of an iCCP chunk: its name, a zero, the compression method and the compressed profile."""
    _, _, rest = chunk.partition(b"\0")
    try:
        return zlib.decompressobj().decompress(rest[1:], MAX_PROFILE_BYTES + 1)
    except zlib.error:
        return None
