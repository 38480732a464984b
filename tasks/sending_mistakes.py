"""Common mistakes in sending a text or a file, and what to do instead."""

import re
from collections.abc import Mapping
from types import MappingProxyType

_BINARY: Mapping[bytes, str] = MappingProxyType(
    {
        b"\x1f\x8b": "it is compressed by gzip; unpack it, or send it as the whole body with 'Content-Encoding: gzip'",
        b"PK\x03\x04": "it is a ZIP file, as .xlsx, .docx and .zip are; send the text or the table itself",
        b"\xd0\xcf\x11\xe0": "it is an old Office document, as .xls and .doc are; send the text or the table itself",
        b"%PDF": "it is a PDF; send the text itself",
        b"\x28\xb5\x2f\xfd": "it is compressed by Zstandard; unpack it",
        b"BZh": "it is compressed by bzip2; unpack it",
        b"\xfd7zXZ": "it is compressed by xz; unpack it",
        b"\xff\xfe": "it is UTF-16; save it as UTF-8",
        b"\xfe\xff": "it is UTF-16; save it as UTF-8",
    }
)
_MAX_REFERENCE = 500
_URL = re.compile(r"[a-z][a-z0-9+.-]{1,10}://\S+", re.IGNORECASE | re.ASCII)
_FILE_NAME = re.compile(r"@?([^\r\n\t,;]*[\w)\]]\.[a-z][a-z0-9]{1,4})", re.IGNORECASE)


def explain_binary(content: bytes | bytearray) -> str:
    """Return what bytes are that were sent in place of a text, and what to do; nothing if they are not recognised."""
    return next((hint for signature, hint in _BINARY.items() if content.startswith(signature)), "")


def explain_reference(text: str, field: str) -> str:
    """Return what to do if a text is an address or the name of a file in place of its content; otherwise nothing.

    `field` is the one that takes the content.
    """
    if len(text) > _MAX_REFERENCE:
        return ""
    if _URL.fullmatch(text.strip()):
        return "this is a URL, and URLs are not fetched; send the content of the file"
    if name := _FILE_NAME.fullmatch(text.strip()):
        return f"this is the name of a file and not its content; with curl, write -F '{field}=@{name[1]}'"
    return ""
