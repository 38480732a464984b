"""Compressed data that decompresses to a thousand times its size, made quickly."""

import zlib


def bomb(megabytes: int, *, byte: bytes = b"\0", gzip: bool = False) -> bytes:
    """Return a zlib or gzip stream of this many megabytes of one byte, without the checksum at its end.

    A block that ends with a full flush refers to nothing before it, so that it can be repeated.
    """
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = compressor.compress(byte * 1_000_000) + compressor.flush(zlib.Z_FULL_FLUSH)
    head = b"\x1f\x8b\x08\0\0\0\0\0\0\xff" if gzip else b"\x78\xda"
    return head + block * megabytes
