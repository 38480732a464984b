"""Image files that cost a decoder far more than their size, or far more memory.

Each is made from the definition of its format. What they aim at, in the decoders: work for each chunk, segment or
marker in an interpreted language; metadata that is copied, decompressed or parsed; pixels that need no bytes.
"""

import base64
import io
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image, features

from tests.faults.hostile.bombs import bomb
from tests.faults.hostile.request import BODY_BYTES, HostileRequest, predict

_MANY_PIXELS = 7_000
"""The side of a square that has 49 million pixels."""


def images() -> Iterator[HostileRequest]:
    """Yield the requests with images."""
    for name, media_type, make, refused in (
        *_jpegs(),
        *_pngs(),
        *_bitmaps(),
        *_webps(),
        *_other_formats(),
        *_within_the_limits(),
    ):
        yield predict(name, "clothing", media_type, make, refused=refused)
    large: dict[str, Callable[[], bytes]] = {
        "to restore: a flat PNG of 49 MP": partial(flat_png, _MANY_PIXELS),
        "to restore: a progressive JPEG of 64 scans": partial(progressive_jpeg, 64, 4_000),
    }
    for name, make in large.items():
        yield predict(name, "restore", "image/png", make)
    for name, encode in (
        ("base64 with a space after every character", _spaced),
        ("base64 in lines of one character", lambda content: b"\\n".join(_characters(content))),
        ("base64 that is wrong only at its end", lambda content: base64.b64encode(content) + b"?"),
        ("base64 of the wrong length", lambda content: base64.b64encode(content) + b"A"),
        ("a data URI with megabytes of parameters", lambda _: b"data:" + b";a=b" * 4_800_000 + b",AAAA"),
    ):
        yield predict(name, "clothing", "application/json", partial(_json_image, encode))


_File = tuple[str, str, Callable[[], bytes], bool]
"""Name, media type, the function that makes the content, and whether it must be refused."""


def _jpegs() -> Iterator[_File]:
    kind = "image/jpeg"
    yield "JPEG of 1,000 scans that calls itself MPO", kind, partial(progressive_jpeg, 1_000, 5_000, multi=True), False
    yield "progressive JPEG of 1,000 scans", kind, partial(progressive_jpeg, 1_000, 5_000), True
    yield "progressive JPEG of 64 scans, 25 MP", kind, partial(progressive_jpeg, 64, 5_000), False
    yield "progressive JPEG of 64 scans in three components", kind, partial(progressive_jpeg, 64, 4_000, 3), False
    yield "JPEG of 19 MB of fill bytes", kind, lambda: b"\xff\xd8" + b"\xff" * BODY_BYTES, False
    yield (
        "JPEG of 19 MB of junk between its segments",
        kind,
        lambda: b"\xff\xd8\xff\xfe\0\2" + b"\0" * BODY_BYTES,
        False,
    )
    comment = partial(_segment, 0xFE, b"")
    yield "JPEG of 5 million empty comments", kind, lambda: b"\xff\xd8" + comment() * (BODY_BYTES // 4), False
    exif = partial(_segment, 0xE1, b"Exif\0\0a")
    yield (
        "JPEG whose EXIF comes in 1.7 million segments",
        kind,
        lambda: b"\xff\xd8" + exif() * (BODY_BYTES // 11),
        False,
    )
    icc = partial(_segment, 0xE2, b"ICC_PROFILE\0\1\1")
    yield "JPEG of a million colour profiles", kind, lambda: b"\xff\xd8" + icc() * (BODY_BYTES // 18), False
    photoshop = partial(_segment, 0xED, b"Photoshop 3.0\0" + b"8BIM\0\0\0\0\0\0\0\0" * 5_450)
    yield "JPEG of 1.6 million Photoshop blocks", kind, lambda: b"\xff\xd8" + photoshop() * 290, False
    frame = partial(_segment, 0xC0, struct.pack(">BHHB", 8, 64, 64, 1) + b"\1\x11\0" * 21_840)
    yield "JPEG of 290 frames of 21,000 components", kind, lambda: b"\xff\xd8" + frame() * 290, False
    tables = partial(_segment, 0xDB, (b"\0" + b"\1" * 64) * 1_008)
    yield "JPEG of 290,000 quantisation tables", kind, lambda: b"\xff\xd8" + tables() * 290, False
    yield (
        "JPEG with 5,000 EXIF entries that share 60 kB",
        kind,
        lambda: _with_exif(_overlapping_ifd(4_500, 60_000)),
        False,
    )
    yield "JPEG with an EXIF directory that contains itself", kind, lambda: _with_exif(_recursive_ifd()), False
    yield "JPEG of 25 MP, truncated", kind, lambda: encoded("JPEG", 5_000, quality=30)[:-200], False
    yield "CMYK JPEG of 49 MP", kind, partial(encoded, "JPEG", _MANY_PIXELS, mode="CMYK", quality=20), False
    yield "JPEG of 65,500 × 750", kind, partial(encoded, "JPEG", 65_500, 750, quality=20), False
    yield "JPEG that says it has 65,535 × 65,535 pixels", kind, partial(progressive_jpeg, 1, 65_535), True


def _pngs() -> Iterator[_File]:
    kind = "image/png"
    yield "PNG of 600,000 text chunks", kind, partial(chunked_png, b"teXt", b"a\0b", 600_000), False
    yield "PNG of 700,000 empty data chunks", kind, partial(chunked_png, b"IDAT", b"", 700_000), False
    yield (
        "PNG of 700,000 private chunks after its pixels",
        kind,
        partial(chunked_png, b"prVt", b"", 700_000, after=True),
        False,
    )
    megabyte = zlib.compress(bytes(1_000_000), 9)
    yield (
        "PNG of 8,000 colour profiles of 1 MB each",
        kind,
        partial(chunked_png, b"iCCP", b"a\0\0" + megabyte, 8_000),
        False,
    )
    yield (
        "PNG of 8,000 compressed texts of 1 MB each",
        kind,
        partial(chunked_png, b"zTXt", b"a\0\0" + megabyte, 8_000),
        False,
    )
    international = b"a\0\1\0\0\0" + megabyte
    yield (
        "PNG of 8,000 international texts of 1 MB each",
        kind,
        partial(chunked_png, b"iTXt", international, 8_000),
        False,
    )
    yield "PNG with 9 MB of EXIF", kind, lambda: chunked_png(b"eXIf", _overlapping_ifd(60_000, 8_000_000), 1), False
    yield "PNG of 300,000 animation frames", kind, partial(_animated_png, 200_000), False
    yield "PNG that announces two thousand million frames", kind, partial(_animated_png, 1, announced=2**31), False
    yield "flat PNG of 49 MP", kind, partial(flat_png, _MANY_PIXELS), False
    yield "interlaced PNG of 49 MP", kind, partial(flat_png, _MANY_PIXELS, interlaced=True), False
    yield "16-bit PNG of 49 MP", kind, partial(flat_png, _MANY_PIXELS, bits=16), False
    yield "16-bit PNG with alpha, 49 MP", kind, partial(flat_png, _MANY_PIXELS, bits=16, colour=6), False
    yield "1-bit PNG of 49 MP", kind, partial(flat_png, _MANY_PIXELS, bits=1), False
    yield "PNG of 1 × 60,000 pixels", kind, partial(flat_png, 1, 60_000), False
    yield "PNG of 60,000 × 60,000 pixels", kind, lambda: _announced_png(60_000, 60_000), True
    yield "PNG of 24 MP whose pixels are missing", kind, lambda: _announced_png(4_900, 4_900), True
    yield "PNG whose pixels decompress to 9 GB", kind, _endless_png, False


def _bitmaps() -> Iterator[_File]:
    kind = "image/bmp"
    lines = b"\1\1\0\0"
    yield "BMP in run lengths, 25 MP in 3 kB", kind, partial(run_length_bmp, 50_000, 500, lines * 500), True
    yield "BMP in run lengths, 24 MP of short lines", kind, partial(run_length_bmp, 4_900, 4_900, lines * 4_900), True
    jump = b"\0\2\xff\xff"
    yield "BMP in run lengths, of jumps", kind, partial(run_length_bmp, 4_900, 4_900, jump * 100), True
    yield (
        "BMP in run lengths, of runs of nothing",
        kind,
        partial(run_length_bmp, 4_900, 4_900, b"\0\3" * 4_000_000),
        True,
    )
    pairs = b"\xff\1" * 20
    nibbles = partial(run_length_bmp, 4_900, 4_900, (pairs + b"\0\0") * 4_900, bits=4)
    yield "BMP in run lengths of four bits", kind, nibbles, True
    yield (
        "BMP with a palette of 65,536 colours",
        kind,
        partial(run_length_bmp, 8, 8, bytes(300_000), colours=65_536, compression=0),
        False,
    )
    yield (
        "BMP that says it has 4 thousand million lines",
        kind,
        partial(run_length_bmp, 8, -(2**31), bytes(100), compression=0),
        True,
    )


def _webps() -> Iterator[_File]:
    kind = "image/webp"
    yield "flat WebP of 49 MP", kind, partial(encoded, "WEBP", _MANY_PIXELS, lossless=True, method=0), False
    yield "animated WebP of 2,000 frames of 16 MP", kind, partial(_animated_webp, 2_000, 4_000), False
    yield "WebP of 1,000,000 unknown chunks", kind, partial(_chunked_webp, 1_000_000), False
    yield (
        "WebP that says it has 16,384 × 16,384 pixels",
        kind,
        lambda: _webp(b"VP8X" + struct.pack("<II", 10, 0) + b"\xff\x3f\0\xff\x3f\0"),
        True,
    )
    yield "WebP with 9 MB of EXIF", kind, _webp_with_exif, False


def _other_formats() -> Iterator[_File]:
    """Formats that a server refuses unless it can bound them."""
    yield "flat GIF of 49 MP", "image/gif", partial(encoded, "GIF", _MANY_PIXELS, mode="P"), False
    yield "GIF with a comment of 19 MB", "image/gif", _commented_gif, False
    yield "GIF of 400,000 empty frames", "image/gif", _gif_of_frames, False
    yield "flat TIFF of 49 MP", "image/tiff", partial(encoded, "TIFF", _MANY_PIXELS, compression="tiff_deflate"), False
    yield "TIFF with a tile for every pixel", "image/tiff", _tiff_of_tiles, False
    yield "TIFF of 60,000 entries that share 8 MB", "image/tiff", lambda: _overlapping_ifd(60_000, 8_000_000), False
    yield "TIFF whose pages form a circle", "image/tiff", _recursive_ifd, False
    if features.check("avif"):
        yield "flat AVIF of 49 MP", "image/avif", partial(encoded, "AVIF", _MANY_PIXELS, speed=10), False
    yield "PDF of 19 MB", "application/pdf", lambda: b"%PDF-1.4\n" + b"1 0 obj\n" * (BODY_BYTES // 8), True
    yield "SVG with a thousand million laughs", "image/svg+xml", _laughing_svg, True
    yield "EPS with a program in it", "image/jpeg", lambda: b"%!PS-Adobe-3.0 EPSF\n{0 pop} loop\n" * 1_000, True
    yield "ZIP file of zeros", "image/png", lambda: b"PK\3\4" + zlib.compress(bytes(10**8)), True
    yield "19 MB of zeros", "image/png", lambda: bytes(BODY_BYTES), True


def _within_the_limits() -> Iterator[_File]:
    """The costliest files that a server accepts, by the limits in `tasks/_image_files/`."""
    jpeg, png = "image/jpeg", "image/png"
    yield "JPEG of 26 scans of 49 MP", jpeg, partial(progressive_jpeg, 26, _MANY_PIXELS), False
    yield "JPEG of 64 scans of 16 MP and 19 MB of comments", jpeg, _commented_jpeg, False
    cmyk = partial(encoded, "JPEG", _MANY_PIXELS, mode="CMYK", quality=20, progressive=True)
    yield "progressive CMYK JPEG of 49 MP", jpeg, cmyk, False
    padded = partial(flat_png, 5_600, bits=16, colour=2, padding=BODY_BYTES - 1_000_000)
    yield "16-bit PNG of 31 MP whose rows have 190 MB, in a file of 19 MB", png, padded, False
    paeth = partial(flat_png, 4_900, colour=6, row_filter=4)
    yield "PNG with alpha, 24 MP, each row predicted from the one before", png, paeth, False
    yield "the same, interlaced", png, partial(paeth, interlaced=True), False
    yield "PNG of 19,000 empty data chunks", png, partial(chunked_png, b"IDAT", b"", 19_000), False
    yield "noisy lossless WebP of 25 MP", "image/webp", partial(_noise, "WEBP", 5_000, lossless=True, method=0), False
    yield "noisy GIF of 49 MP", "image/gif", partial(_noise, "GIF", _MANY_PIXELS), False
    lzw = partial(_noise, "TIFF", _MANY_PIXELS, compression="tiff_lzw")
    yield "noisy TIFF of 49 MP, compressed by LZW", "image/tiff", lzw, False
    yield "TIFF of 60,000 strips that are all the same", "image/tiff", _tiff_of_strips, False


def _segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2) + content


def progressive_jpeg(scans: int, side: int, components: int = 1, *, multi: bool = False) -> bytes:
    """Return a square JPEG whose scans refine nothing: ten bytes each, a pass over all its pixels each.

    With `multi` it has the directory of a multi-picture file (CIPA DC-007) with two pictures.
    """
    directory = _segment(0xE2, b"MPF\0" + _multi_picture_directory()) if multi else b""
    frame = struct.pack(">BHHB", 8, side, side, components) + b"".join(
        bytes((i + 1, 0x11, 0)) for i in range(components)
    )
    no_codes = bytes((1, *[0] * 15, 0))
    codes = _segment(0xC4, b"\0" + no_codes) + _segment(0xC4, b"\x10" + no_codes)
    each = bytes((components,)) + b"".join(bytes((i + 1, 0)) for i in range(components))
    scan = _segment(0xDA, each + bytes((0, 0, 0)))
    head = directory + _segment(0xDB, b"\0" + b"\1" * 64) + _segment(0xC2, frame) + codes
    return b"\xff\xd8" + head + scan * scans + b"\xff\xd9"


def _commented_jpeg() -> bytes:
    comments = _segment(0xFE, bytes(65_000)) * ((BODY_BYTES - 100_000) // 65_004)
    return b"\xff\xd8" + comments + progressive_jpeg(64, 4_000)[2:]


def _multi_picture_directory() -> bytes:
    entries = ((0xB000, 7, 4, b"0100"), (0xB001, 4, 1, struct.pack("<I", 2)), (0xB002, 7, 32, struct.pack("<I", 50)))
    fields = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    pictures = struct.pack("<IIIHH", 0x030000, 0, 0, 0, 0) * 2
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + fields + bytes(4) + pictures


def _with_exif(exif: bytes) -> bytes:
    return b"\xff\xd8" + _segment(0xE1, b"Exif\0\0" + exif[:65_500]) + encoded("JPEG", 64)[2:]


def _overlapping_ifd(entries: int, size: int) -> bytes:
    """Return a TIFF whose entries all have the same `size` bytes as their value: copied, they are enormous."""
    directory = b"".join(struct.pack("<HHII", tag, 7, size, 8) for tag in range(entries))
    content = b"II*\0" + struct.pack("<IH", 8, entries) + directory + bytes(4)
    return content + bytes(max(0, size + 8 - len(content)))


def _recursive_ifd() -> bytes:
    """Return a TIFF whose EXIF, GPS and next directories are the first one."""
    tags = (0x0112, 0x8769, 0x8825, 0xA005)
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, 6 if tag == tags[0] else 8) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + directory + struct.pack("<I", 8)


def encoded(format: str, width: int, height: int | None = None, *, mode: str = "RGB", **options: Any) -> bytes:
    """Return a file of one colour."""
    file = io.BytesIO()
    Image.new(mode, (width, height or width)).save(file, format, **options)
    return file.getvalue()


def _noise(format: str, side: int, **options: Any) -> bytes:
    """Return a square file whose grey pixels are 0 or 1 at random: no two parts of it are alike."""
    pixels = np.random.default_rng(0).integers(0, 2, (side, side), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(width: int, height: int, *chunks: bytes, bits: int = 8, colour: int = 0, interlaced: bool = False) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + b"".join(chunks) + _chunk(b"IEND", b"")


def chunked_png(kind: bytes, content: bytes, count: int, *, after: bool = False) -> bytes:
    """Return a small PNG with this chunk again and again, before or after its pixels."""
    pixels, chunks = _chunk(b"IDAT", zlib.compress(bytes(65 * 64))), _chunk(kind, content) * count
    return _png(64, 64, *((pixels, chunks) if after else (chunks, pixels)))


def flat_png(
    width: int,
    height: int | None = None,
    *,
    bits: int = 8,
    colour: int = 0,
    interlaced: bool = False,
    row_filter: int = 0,
    padding: int = 0,
) -> bytes:
    """Return a PNG of zeros, square unless a height is given.

    `colour` is the type of colours, `row_filter` that of filtering (sections 11.2.2 and 9.2 of the specification), and
    `padding` the size of a private chunk.
    """
    height = height or width
    samples = {0: 1, 2: 3, 6: 4}[colour]
    compressor, line = zlib.compressobj(1), bytes((row_filter,)) + bytes(-(-width * samples * bits // 8))
    # Interlaced (Adam7), an image has about twice as many lines, each shorter, and so a few bytes more.
    parts = [compressor.compress(line) for _ in range(height + (height // 64 + 8 if interlaced else 0))]
    chunks = [_chunk(b"IDAT", b"".join([*parts, compressor.flush()]))]
    if padding:
        chunks.append(_chunk(b"prVt", bytes(padding)))
    return _png(width, height, *chunks, bits=bits, colour=colour, interlaced=interlaced)


def _announced_png(width: int, height: int) -> bytes:
    return _png(width, height, _chunk(b"IDAT", zlib.compress(bytes(1_000))))


def _endless_png() -> bytes:
    """Return a small PNG whose compressed pixels go on for a thousand times the size of the file."""
    return _png(64, 64, _chunk(b"IDAT", bomb(9_000)))


def _animated_png(frames: int, *, announced: int | None = None) -> bytes:
    def control(number: int) -> bytes:
        return _chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, 64, 64, 0, 0, 1, 10, 2, 1))

    pixels = zlib.compress(bytes(65 * 64))
    head = _chunk(b"acTL", struct.pack(">II", announced or frames, 0)) + control(0) + _chunk(b"IDAT", pixels)
    rest = (control(2 * i + 1) + _chunk(b"fdAT", struct.pack(">I", 2 * i + 2)) for i in range(min(frames, 170_000)))
    return _png(64, 64, head, *(rest if frames > 1 else ()))


def run_length_bmp(
    width: int, height: int, runs: bytes, *, bits: int = 8, colours: int = 0, compression: int | None = None
) -> bytes:
    """Return a BMP whose pixels are `runs`, by default compressed by run lengths."""
    compression = {8: 1, 4: 2}[bits] if compression is None else compression
    palette = bytes(4 * (colours or 2**bits))
    header = struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(runs), 2835, 2835, colours or 2**bits, 0
    )
    offset = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", offset + len(runs), 0, 0, offset) + header + palette + runs + b"\0\1"


def _webp(chunks: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks


def _webp_chunk(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def _extended_webp(flags: int, side: int, chunks: bytes) -> bytes:
    size = struct.pack("<I", side - 1)[:3]
    return _webp(_webp_chunk(b"VP8X", bytes((flags, 0, 0, 0)) + size + size) + chunks)


def _animated_webp(frames: int, side: int) -> bytes:
    still = encoded("WEBP", 16, lossless=True)[12:]
    one = struct.pack("<I", 15)[:3]
    frame = _webp_chunk(b"ANMF", bytes(6) + one + one + b"\x0a\0\0\0" + still)
    return _extended_webp(0x02, side, _webp_chunk(b"ANIM", bytes(6)) + frame * frames)


def _chunked_webp(count: int) -> bytes:
    return _extended_webp(0, 16, encoded("WEBP", 16, lossless=True)[12:] + _webp_chunk(b"junk", b"") * count)


def _webp_with_exif() -> bytes:
    exif = _webp_chunk(b"EXIF", _overlapping_ifd(60_000, 8_000_000))
    return _extended_webp(0x08, 16, encoded("WEBP", 16, lossless=True)[12:] + exif)


_GIF_HEAD = b"GIF89a" + struct.pack("<HHBBB", 64, 64, 0x80, 0, 0) + bytes(6)


def _commented_gif() -> bytes:
    return _GIF_HEAD + b"!\xfe" + (b"\xff" + b"a" * 255) * (BODY_BYTES // 256) + b"\0" + _gif_frame() + b";"


def _gif_of_frames() -> bytes:
    return _GIF_HEAD + _gif_frame() * 400_000 + b";"


def _gif_frame() -> bytes:
    return b"," + struct.pack("<HHHHB", 0, 0, 64, 64, 0) + b"\2\2\x44\1\0"


def _tiff_of_tiles() -> bytes:
    """Return a TIFF of 4,900 × 4,900 pixels, one in each tile, none of which exist."""
    values = {
        256: 4_900,
        257: 4_900,
        258: 8,
        259: 1,
        262: 1,
        273: 8,
        277: 1,
        278: 1,
        279: 1,
        322: 1,
        323: 1,
        324: 8,
        325: 1,
    }
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items())
    return b"II*\0" + struct.pack("<IH", 8, len(values)) + directory + bytes(4)


def _tiff_of_strips(rows: int = 60_000, width: int = 800) -> bytes:
    """Return a TIFF with a strip for each row, which are all the same bytes, compressed by Deflate."""
    strip = zlib.compress(bytes(width))
    offsets_at = 8 + len(strip)
    counts_at = offsets_at + 4 * rows
    values = {
        256: (1, width),
        257: (1, rows),
        258: (1, 8),
        259: (1, 8),
        262: (1, 1),
        273: (rows, offsets_at),
        277: (1, 1),
        278: (1, 1),
        279: (rows, counts_at),
    }
    directory = b"".join(struct.pack("<HHII", tag, 4, count, value) for tag, (count, value) in values.items())
    lists = struct.pack("<I", 8) * rows + struct.pack("<I", len(strip)) * rows
    padding = bytes(len(strip) * rows)  # The strips together may not be longer than the file.
    start = counts_at + 4 * rows + len(padding)
    head = b"II*\0" + struct.pack("<I", start) + strip
    return head + lists + padding + struct.pack("<H", len(values)) + directory + bytes(4)


def _laughing_svg() -> bytes:
    names = [f"l{i}" for i in range(10)]
    entities = "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in pairwise(names))
    return f'<!DOCTYPE svg [<!ENTITY l0 "ha">{entities}]><svg xmlns="http://www.w3.org/2000/svg">&l9;</svg>'.encode()


def _characters(content: bytes) -> list[bytes]:
    encoded = base64.b64encode(content)
    return [encoded[i : i + 1] for i in range(len(encoded))]


def _spaced(content: bytes) -> bytes:
    return b" ".join(_characters(content))


def _json_image(encode: Callable[[bytes], bytes]) -> bytes:
    return b'{"image": "' + encode(flat_png(64) + bytes(4_800_000)) + b'"}'
