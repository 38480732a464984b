"""TIFF: the first page, if it is stored in strips of ordinary pixels, compressed by Deflate or LZW or not at all.

A TIFF can hold almost anything. This module copies the few tags that describe the pixels into a new directory, the
only one that the decoder sees, after checking that their strips are as many and as long as the size of the page
requires.
"""

import math
import struct
from collections.abc import Mapping
from typing import NamedTuple

from tasks._image_files.image_file import MAX_PROFILE_BYTES, UPRIGHT, BrokenFile, ImageFile, check_row_bytes, check_size
from tasks.contract import InvalidInput

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _COLOURS = 256, 257, 258, 259, 262
_STRIP_OFFSETS, _SAMPLES, _ROWS_PER_STRIP, _STRIP_BYTES, _PLANES = 273, 277, 278, 279, 284
_FILL_ORDER, _ORIENTATION, _PREDICTOR, _PALETTE, _TILE_WIDTH = 266, 274, 317, 320, 322
_EXTRA_SAMPLES, _SAMPLE_FORMAT, _PROFILE = 338, 339, 34675
_KEPT = (
    *(_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _COLOURS, _STRIP_OFFSETS, _SAMPLES, _ROWS_PER_STRIP, _STRIP_BYTES),
    *(_PREDICTOR, _PALETTE, _EXTRA_SAMPLES),
)
_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 7: 1}
"""Bytes of a value, for types of whole numbers and for undefined data."""
_CODES = {1: "B", 3: "H", 4: "I"}
_UNCOMPRESSED, _LZW, _DEFLATE = 1, 5, (8, 32946)
_ACCEPTED: Mapping[int, tuple[int, ...]] = {
    _COMPRESSION: (_UNCOMPRESSED, _LZW, *_DEFLATE),
    _COLOURS: (0, 1, 2, 3, 5),  # Greyscale in two orders, RGB, palette and CMYK.
    _PLANES: (1,),
    _FILL_ORDER: (1,),
    _SAMPLE_FORMAT: (1,),
    _SAMPLES: (1, 2, 3, 4, 5),
}
_TITLES = {
    _COMPRESSION: "compression",
    _COLOURS: "colours of kind",
    _SAMPLE_FORMAT: "numbers of kind",
    _SAMPLES: "channels:",
}
_VARIANTS = {
    (_COMPRESSION, 2): "compressed for fax",
    (_COMPRESSION, 3): "compressed for fax, group 3",
    (_COMPRESSION, 4): "compressed for fax, group 4",
    (_COMPRESSION, 6): "compressed with JPEG",
    (_COMPRESSION, 7): "compressed with JPEG",
    (_COMPRESSION, 32773): "compressed with PackBits",
    (_COMPRESSION, 34712): "compressed with JPEG 2000",
    (_COMPRESSION, 34925): "compressed with LZMA",
    (_COMPRESSION, 50000): "compressed with Zstandard",
    (_COMPRESSION, 50001): "compressed with WebP",
    (_COLOURS, 4): "a transparency mask",
    (_COLOURS, 6): "YCbCr colours",
    (_COLOURS, 8): "Lab colours",
    (_COLOURS, 32803): "raw data of a camera",
    (_PLANES, 2): "each channel in a plane of its own",
    (_FILL_ORDER, 2): "bits in reverse order",
    (_SAMPLE_FORMAT, 2): "signed numbers",
    (_SAMPLE_FORMAT, 3): "floating-point numbers",
}
"""What the values of tags mean, for messages (TIFF 6.0; the compressions as libtiff registers them)."""
_MAX_VALUES = {_STRIP_OFFSETS: 65_535, _STRIP_BYTES: 65_535, _PALETTE: 3 * 65_536}
_MAX_CHANNELS = 5


class _Entry(NamedTuple):
    """An entry of a directory: where its values begin, and its 12 bytes."""

    kind: int
    values: int
    start: int
    raw: bytes


def read_tiff(content: bytes, max_pixels: int) -> ImageFile:
    """Return the first page. Raises BrokenFile, InvalidInput, struct.error."""
    order = "<" if content.startswith(b"II") else ">"
    version, start = struct.unpack_from(f"{order}HI", content, 2)
    if version != 42:
        raise _refused("BigTIFF")
    entries = _read_directory(content, order, start)
    tags = {tag: _values(content, order, tag, entry) for tag, entry in entries.items() if tag in _NUMBERS}
    width, height = (_single(tags, tag) for tag in (_WIDTH, _HEIGHT))
    check_size(width, height, max_pixels=max_pixels)
    _check_variant(entries, tags)
    _check_strips(tags, width, height, len(content))
    profile = entries.get(_PROFILE)
    return ImageFile(
        "TIFF",
        width,
        height,
        _write_directory(content, order, entries),
        _orientation(tags),
        content[profile.start : profile.start + min(profile.values, MAX_PROFILE_BYTES + 1)] if profile else None,
    )


_NUMBERS = {*_KEPT, _PLANES, _FILL_ORDER, _SAMPLE_FORMAT, _ORIENTATION}


def _refused(variant: str) -> InvalidInput:
    message = f"The image is a TIFF of a variant that is not accepted ({variant}); save it as PNG or JPEG."
    return InvalidInput(message, reason="unreadable")


def _read_directory(content: bytes, order: str, start: int) -> dict[int, _Entry]:
    (count,) = struct.unpack_from(f"{order}H", content, start)
    table = content[start + 2 : start + 2 + 12 * count]
    entries: dict[int, _Entry] = {}
    for i, (tag, kind, number, offset) in enumerate(struct.iter_unpack(f"{order}HHII", table)):
        if tag in entries or kind not in _BYTES:
            continue
        is_inline = number * _BYTES[kind] <= 4
        position = start + 2 + 12 * i + 8 if is_inline else offset
        entries[tag] = _Entry(kind, number, position, table[12 * i : 12 * i + 12])
    return entries


def _values(content: bytes, order: str, tag: int, entry: _Entry) -> tuple[int, ...]:
    if entry.kind not in _CODES or not 0 < entry.values <= _MAX_VALUES.get(tag, _MAX_CHANNELS):
        raise BrokenFile(f"tag {tag} is invalid")
    return struct.unpack_from(f"{order}{entry.values}{_CODES[entry.kind]}", content, entry.start)


def _single(tags: Mapping[int, tuple[int, ...]], tag: int, default: int = 0) -> int:
    return tags.get(tag, (default,))[0]


def _orientation(tags: Mapping[int, tuple[int, ...]]) -> int:
    orientation = _single(tags, _ORIENTATION, UPRIGHT)
    return orientation if 1 <= orientation <= 8 else UPRIGHT


def _check_variant(entries: Mapping[int, _Entry], tags: Mapping[int, tuple[int, ...]]) -> None:
    if _TILE_WIDTH in entries:
        raise _refused("tiles")
    for tag, accepted in _ACCEPTED.items():
        if not set(tags.get(tag, accepted[:1])) <= set(accepted):
            raise _refused(_describe_variant(tag, next(value for value in tags[tag] if value not in accepted)))
    if set(tags.get(_BITS, (1,))) - {1, 2, 4, 8, 16}:
        raise _refused(f"{tags[_BITS][0]} bits")


def _describe_variant(tag: int, value: int) -> str:
    return _VARIANTS.get((tag, value)) or f"{_TITLES.get(tag, f'tag {tag}')} {value}"


def _check_strips(tags: Mapping[int, tuple[int, ...]], width: int, height: int, file_bytes: int) -> None:
    """Raise InvalidInput or BrokenFile if the strips are too large, or other than the size of the page requires."""
    bits = _single(tags, _SAMPLES, 1) * _single(tags, _BITS, 1)
    row_bytes = check_row_bytes("TIFF", width, height, bits, file_bytes=file_bytes)
    strips = math.ceil(height / max(1, min(_single(tags, _ROWS_PER_STRIP, height), height)))
    if not len(tags.get(_STRIP_OFFSETS, ())) == len(tags.get(_STRIP_BYTES, ())) == strips:
        raise BrokenFile("it has another number of strips than its size requires")
    compression = _single(tags, _COMPRESSION, _UNCOMPRESSED)
    is_short = compression == _UNCOMPRESSED and row_bytes > file_bytes
    if sum(tags[_STRIP_BYTES]) > file_bytes or is_short:
        raise BrokenFile("most of its data is missing")


def _write_directory(content: bytes, order: str, entries: Mapping[int, _Entry]) -> bytes:
    """Return the file with a directory of the kept entries at its end, and its header pointing to that."""
    padding = b"\0" * (len(content) % 2)
    kept = [entries[tag].raw for tag in sorted(_KEPT) if tag in entries]
    return b"".join(
        [
            content[:4],
            struct.pack(f"{order}I", len(content) + len(padding)),
            content[8:],
            padding,
            struct.pack(f"{order}H", len(kept)),
            *kept,
            bytes(4),
        ]
    )
