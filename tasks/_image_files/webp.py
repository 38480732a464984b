"""WebP: the chunks of the image or of the first frame of an animation. Metadata and further frames are left out."""

import struct
from collections.abc import Iterator
from itertools import count

from tasks._image_files.exif import read_orientation
from tasks._image_files.image_file import MAX_PROFILE_BYTES, BrokenFile, ImageFile, check_parts, check_size

_HAS_ALPHA, _IS_ANIMATED = 0x10, 0x02
_MAX_PIXELS = 25_000_000
"""The decoder holds the image four times, in 16 bytes per pixel: 400 MB."""
_IMAGE_CHUNKS = (b"VP8 ", b"VP8L")


def read_webp(content: bytes, max_pixels: int) -> ImageFile:
    """Return the first image. Raises BrokenFile, struct.error, IndexError."""
    chunks: dict[bytes, bytes] = {}
    for kind, data in _chunks(content):
        chunks.setdefault(kind, data)
    orientation = read_orientation(chunks.get(b"EXIF", b""))
    profile = chunks[b"ICCP"][: MAX_PROFILE_BYTES + 1] if b"ICCP" in chunks else None
    width, height, kinds, flags = _describe(chunks)
    advice = " A larger image can be sent as JPEG." if max_pixels > _MAX_PIXELS else ""
    check_size(width, height, max_pixels=min(max_pixels, _MAX_PIXELS), advice=advice)
    kept = {kind: chunks[kind] for kind in kinds if kind in chunks}
    if b"VP8X" in kept:
        kept[b"VP8X"] = bytes([flags]) + kept[b"VP8X"][1:]
    body = b"WEBP" + b"".join(_write_chunk(kind, data) for kind, data in kept.items())
    return ImageFile("WEBP", width, height, _write_chunk(b"RIFF", body), orientation, profile)


def _describe(chunks: dict[bytes, bytes]) -> tuple[int, int, tuple[bytes, ...], int]:
    """Return width, height, the chunks that the first image consists of, and the flags that remain true of them."""
    if b"VP8X" in chunks:
        header = chunks[b"VP8X"]
        width, height = (int.from_bytes(header[start : start + 3], "little") + 1 for start in (4, 7))
        if header[0] & _IS_ANIMATED:
            return width, height, (b"VP8X", b"ANIM", b"ANMF"), header[0] & (_HAS_ALPHA | _IS_ANIMATED)
        return width, height, (b"VP8X", b"ALPH", *_IMAGE_CHUNKS), header[0] & _HAS_ALPHA
    if b"VP8L" in chunks:
        (bits,) = struct.unpack_from("<I", chunks[b"VP8L"], 1)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, (b"VP8L",), 0
    if b"VP8 " in chunks:
        width, height = struct.unpack_from("<HH", chunks[b"VP8 "], 6)
        return width & 0x3FFF, height & 0x3FFF, (b"VP8 ",), 0
    raise BrokenFile("it has no image")


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = len(b"RIFF....WEBP")
    for number in count():
        check_parts(number)
        if position + 8 > len(content):
            return
        kind, length = struct.unpack_from("<4sI", content, position)
        yield kind, content[position + 8 : position + 8 + length]
        position += 8 + length + length % 2


def _write_chunk(kind: bytes, data: bytes) -> bytes:
    return b"".join([kind, struct.pack("<I", len(data)), data, b"\0" * (len(data) % 2)])
