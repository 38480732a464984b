"""What an image file contains, found by walking its structure, before anything is decoded.

The result holds a copy of the file with nothing but the data of its first image. Decoders therefore never see the
parts whose cost grows faster than their size (metadata, further frames), and what decides the cost of decoding (size,
depth, scans, compression) is checked here.
"""

import re
import struct
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType

from tasks._image_files.bmp import read_bmp
from tasks._image_files.gif import read_gif
from tasks._image_files.heif import can_read_heif, read_heif
from tasks._image_files.image_file import BrokenFile, ImageFile
from tasks._image_files.jpeg import read_jpeg
from tasks._image_files.png import read_png
from tasks._image_files.tiff import read_tiff
from tasks._image_files.webp import read_webp
from tasks.contract import InvalidInput

_SIGNATURES: Mapping[str, re.Pattern[bytes]] = MappingProxyType(
    {
        kind: re.compile(pattern, re.DOTALL)
        for kind, pattern in {
            "JPEG": rb"\xff\xd8\xff",
            "PNG": rb"\x89PNG\r\n\x1a\n",
            "WEBP": rb"RIFF....WEBP",
            "BMP": rb"BM.{8}",
            "GIF": rb"GIF8[79]a",
            "TIFF": rb"II[*+]\0|MM\0[*+]",
            "AVIF": rb"....ftypavi[fs]",
            "HEIF": rb"....ftyp(hei[cmsx]|hev[cmsx]|mif1|msf1)",
            "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
            "JPEG 2000": rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  ",
            "Photoshop": rb"8BPS",
            "icon": rb"\0\0[\x01\x02]\0",
            "PDF": rb"%PDF",
            "SVG": rb"\s*<(\?xml|!DOCTYPE svg|svg)",
            "HTML": rb"\s*<(!DOCTYPE html|!doctype html|html)",
            "video": rb"....ftyp|\x1a\x45\xdf\xa3",
            "ZIP": rb"PK\x03\x04",
            "gzip": rb"\x1f\x8b",
        }.items()
    }
)
_SIGNATURE_BYTES = 2_000
_HEIF_HINT = "The operator of the server can enable it by installing the package pillow-heif."
_TITLES = MappingProxyType({"WEBP": "WebP", "HEIF": "HEIC"})
_MEDIA_TYPES: Mapping[str, tuple[str, ...]] = MappingProxyType({"HEIF": ("image/heic", "image/heif")})


@cache
def _readers() -> Mapping[str, Callable[[bytes, int], ImageFile]]:
    readers = {
        "JPEG": read_jpeg,
        "PNG": read_png,
        "WEBP": read_webp,
        "BMP": read_bmp,
        "GIF": read_gif,
        "TIFF": read_tiff,
    }
    return MappingProxyType(readers | {"HEIF": read_heif} if can_read_heif() else readers)


def accepted_formats() -> str:
    """Return the formats that are accepted: `JPEG, PNG, WebP, BMP, GIF or TIFF`, and HEIC if its decoder is there."""
    *names, last = (_title(kind) for kind in _readers())
    return f"{', '.join(names)} or {last}"


def accepted_media_types() -> tuple[str, ...]:
    """Return the media types of the accepted formats."""
    return tuple(name for kind in _readers() for name in _MEDIA_TYPES.get(kind, (f"image/{kind.lower()}",)))


def read_image_file(content: bytes, *, max_pixels: int) -> ImageFile:
    """Return the first image of a file, not decoded.

    Raises InvalidInput if the file is empty, damaged, in no accepted format, or in a variant whose decoding could take
    far longer than its size suggests; and if the image has more than `max_pixels`.
    """
    if not content:
        raise InvalidInput("The image is empty.", reason="empty")
    kind = _kind(content)
    reader = _readers().get(kind)
    if reader is None:
        raise InvalidInput(_refusal(kind), reason="unreadable")
    try:
        return reader(content, max_pixels)
    except (struct.error, IndexError):
        raise InvalidInput(f"The {_title(kind)} file is damaged or incomplete.", reason="unreadable") from None
    except BrokenFile as error:
        raise InvalidInput(f"The {_title(kind)} file is damaged: {error}.", reason="unreadable") from None


def format_of(content: bytes) -> str:
    """Return the format that the first bytes of a file show, such as `JPEG` or `HEIC`; empty if none is known."""
    return _title(_kind(content))


def _kind(content: bytes) -> str:
    return next((kind for kind, pattern in _SIGNATURES.items() if pattern.match(content[:_SIGNATURE_BYTES])), "")


def _title(kind: str) -> str:
    return _TITLES.get(kind, kind)


def _refusal(kind: str) -> str:
    """Return why a file in none of the accepted formats is refused."""
    if not kind:
        return f"This is not an image in {accepted_formats()} format."
    hint = f" {_HEIF_HINT}" if kind == "HEIF" else ""
    return f"The file's format, {_title(kind)}, is not accepted; send the image as {accepted_formats()}.{hint}"
