"""JPEG: the segments of the first image, up to its end marker.

What follows the end marker is left out: the further images of a multi-picture file (MPO), or the film of a moving
photo. So are comments and application segments, whose profile and orientation are read here.
"""

import itertools
import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from tasks._image_files.exif import read_orientation
from tasks._image_files.image_file import MAX_PROFILE_BYTES, BrokenFile, ImageFile, check_parts, check_size
from tasks.contract import InvalidInput

_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
"""A marker, but not a stuffed zero or a restart marker, which occur within a scan, or a fill byte."""
_STANDALONE = (0x01, 0xD8)
_END_OF_IMAGE, _START_OF_SCAN = 0xD9, 0xDA
_FRAMES = (0xC0, 0xC1, 0xC2)
"""Baseline, extended and progressive, all with Huffman codes."""
_OTHER_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
_NEEDED = (*_FRAMES, 0xC4, 0xDA, 0xDB, 0xDD)
"""Frame headers, Huffman tables, scans, quantisation tables and restart intervals."""
_JFIF, _EXIF, _PROFILE, _ADOBE = (0xE0, b"JFIF\0"), (0xE1, b"Exif\0\0"), (0xE2, b"ICC_PROFILE\0"), (0xEE, b"Adobe")
_MAX_PROFILE_PIECES = 255
_MAX_TABLE_BYTES = 1_000_000
"""Maximum bytes of tables and headers; encoders write less than 5,000."""
_MAX_SCANS = 64
"""Maximum scans of a progressive JPEG; encoders write about ten."""
_MAX_BLOCK_VISITS = 20_000_000
"""Maximum blocks of 8×8 samples that all scans together visit, plus one per byte of the file.

However little data a scan holds, decoding it costs up to 0.03 µs per block. An image of 50 megapixels has 6 million
visits in ten progressive scans, or 11 million without chroma subsampling, and then it has megabytes of data.
"""


class _Segment(NamedTuple):
    """A marker with its data. A scan ends after its entropy-coded data, which `payload` does not include."""

    marker: int
    payload: bytes
    start: int
    end: int

    def is_a(self, identifier: tuple[int, bytes]) -> bool:
        """Whether this is the application segment with this marker and identifier."""
        marker, prefix = identifier
        return self.marker == marker and self.payload.startswith(prefix)


def read_jpeg(content: bytes, max_pixels: int) -> ImageFile:
    """Return the first image. Raises BrokenFile, InvalidInput, IndexError, struct.error."""
    segments = tuple(_segments(content))
    width, height, blocks = _read_frame(segments)
    check_size(width, height, max_pixels=max_pixels)
    _check_scans([segment for segment in segments if segment.marker == _START_OF_SCAN], blocks, len(content))
    kept = [segment for segment in segments if _is_needed(segment)]
    if sum(len(segment.payload) for segment in kept) > _MAX_TABLE_BYTES:
        raise BrokenFile("it has far too many tables")
    view = memoryview(content)  # Slices of bytes would be a second copy of a large file.
    parts = [view[segment.start : segment.end] for segment in kept]
    end = _MARKER.search(content, segments[-1].end)
    exif = next((segment.payload for segment in segments if segment.is_a(_EXIF)), b"")
    return ImageFile(
        "JPEG",
        width,
        height,
        b"".join([b"\xff\xd8", *parts, end[0] if end else b""]),
        read_orientation(exif),
        _join_profile([segment.payload for segment in segments if segment.is_a(_PROFILE)]),
    )


def _segments(content: bytes) -> Iterator[_Segment]:
    """Yield the segments up to the end marker; bytes between two segments are skipped, as decoders do."""
    position = 2
    for count in itertools.count():
        check_parts(count)
        match = _MARKER.search(content, position)
        if not match or content[match.start() + 1] == _END_OF_IMAGE:
            return
        start, marker = match.start(), content[match.start() + 1]
        if marker in _STANDALONE:
            position = start + 2
            continue
        length = int.from_bytes(content[start + 2 : start + 4])
        if length < 2:
            raise BrokenFile("a segment has no length")
        position = start + 2 + length
        payload = content[start + 4 : position]
        if marker == _START_OF_SCAN:
            match = _MARKER.search(content, position)
            position = match.start() if match else len(content)
        yield _Segment(marker, payload, start, position)


def _is_needed(segment: _Segment) -> bool:
    """Whether decoding the pixels needs the segment. JFIF and Adobe segments tell how colours are stored."""
    return segment.marker in _NEEDED or segment.is_a(_JFIF) or segment.is_a(_ADOBE)


def _read_frame(segments: Sequence[_Segment]) -> tuple[int, int, dict[int, int]]:
    """Return width, height, and the number of blocks of each channel. Raises BrokenFile, InvalidInput, struct.error."""
    if any(segment.marker in _OTHER_FRAMES for segment in segments):
        message = "The image is a JPEG in a rare variant: lossless, hierarchical or arithmetic coding. Save it anew."
        raise InvalidInput(message, reason="unreadable")
    frames = [segment.payload for segment in segments if segment.marker in _FRAMES]
    if len(frames) != 1:
        raise BrokenFile(f"it has {len(frames)} frame headers")
    height, width, count = struct.unpack_from(">HHB", frames[0], 1)
    channels = list(struct.iter_unpack("BBx", frames[0][6 : 6 + 3 * count]))
    max_across = max((sampling >> 4 for _, sampling in channels), default=0)
    max_down = max((sampling & 15 for _, sampling in channels), default=0)
    if not (max_across and max_down):
        raise BrokenFile("its channels have no samples")
    blocks = {
        channel: math.ceil(width * (sampling >> 4) / (8 * max_across))
        * math.ceil(height * (sampling & 15) / (8 * max_down))
        for channel, sampling in channels
    }
    return width, height, blocks


def _check_scans(scans: Sequence[_Segment], blocks: Mapping[int, int], size: int) -> None:
    """Raise InvalidInput if decoding the scans of a file of `size` bytes would take too long."""
    visits = sum(blocks.get(channel, 0) for scan in scans for channel in scan.payload[1 : 1 + 2 * scan.payload[0] : 2])
    if len(scans) > _MAX_SCANS or visits > _MAX_BLOCK_VISITS + size:
        message = f"The image is a JPEG of {len(scans):,} scans, which would take too long to decode. Save it anew."
        raise InvalidInput(message, reason="unreadable")


def _join_profile(segments: Sequence[bytes]) -> bytes | None:
    """Return the profile, whose pieces are numbered from 1; None if there is none, or a piece is missing."""
    start = len(_PROFILE[1])
    pieces = {piece[start]: piece[start + 2 :] for piece in segments[:_MAX_PROFILE_PIECES] if len(piece) > start + 2}
    if not pieces or sorted(pieces) != list(range(1, len(pieces) + 1)):
        return None
    return b"".join(pieces[number] for number in sorted(pieces))[: MAX_PROFILE_BYTES + 1]
