"""Reads text files: what their encoding is, and what is no text. Tables, lists of labels and texts are read alike."""

import codecs
import gzip
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

from tasks.system_errors import os_error_reason
from training.core.errors import CannotTrain

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_NO_TEXT = {
    b"PK\x03\x04": "a spreadsheet or another ZIP file; export the sheet as 'CSV UTF-8', or unpack it",
    b"\xd0\xcf\x11\xe0": "an old Excel file; export the sheet as 'CSV UTF-8'",
    b"%PDF-": "a PDF",
    b"\x28\xb5\x2f\xfd": "compressed by Zstandard; unpack it",
    b"\xfd7zXZ": "compressed by xz; unpack it",
    **{f"BZh{level}1AY&SY".encode(): "compressed by bzip2; unpack it" for level in range(1, 10)},
}
_GZIP = b"\x1f\x8b"
_SAMPLE = 1000
_BETWEEN_WORDS = re.compile(r"[\s,;|\"]")


class NotText(CannotTrain):
    """A file is in another encoding."""


@dataclass(frozen=True)
class TextFile:
    """The text of a file without its byte order mark, and its encoding in capitals, such as `UTF-8`."""

    text: str
    encoding: str = "UTF-8"

    def describe(self, path: Path) -> list[str]:
        """Return a sentence about an encoding that is unusual."""
        return [] if self.encoding == "UTF-8" else [f"{path.name} was read as {self.encoding}."]


def read_text_file(path: Path, encoding: str = "") -> TextFile:
    """Read a text file, also if it is compressed by gzip.

    A byte order mark tells the encoding, else `encoding` does, Python's name of it. If that is empty: UTF-8, or UTF-16
    if the zeros between Latin letters show it.

    Raises CannotTrain if the file cannot be read or is no text, NotText if it is in another encoding.
    """
    content = _read_bytes(path)
    known = _find_encoding(content, encoding)
    try:
        text, name = content.decode(known), _display(known)
    except UnicodeDecodeError as error:
        raise NotText(_explain_undecodable(content, path, known, error)) from None
    except (LookupError, UnicodeError):
        raise CannotTrain(
            f"--encoding {encoding}: there is no such encoding; usual ones are cp1252 and utf-16."
        ) from None
    return TextFile(text.removeprefix("\ufeff"), name)


def _read_bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        if content.startswith(_GZIP):
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CannotTrain(f"{path} cannot be read: it is a damaged gzip file ({error}).") from None
    except OSError as error:
        raise CannotTrain(f"{path} cannot be read: {os_error_reason(error)}.") from None
    if reason := next((reason for mark, reason in _NO_TEXT.items() if content.startswith(mark)), ""):
        raise CannotTrain(f"{path} is not a text file: it is {reason}.")
    return content


def _find_encoding(content: bytes, given: str) -> str:
    marked = next((name for mark, name in _BYTE_ORDER_MARKS if content.startswith(mark)), "")
    return marked or given or _find_wide_encoding(content) or "utf-8"


def _find_wide_encoding(content: bytes) -> str:
    """Return the encoding of a text of two bytes per character, by the zeros in Latin letters, digits and marks."""
    sample = content[:_SAMPLE]
    pairs = len(sample) // 2
    for encoding, high, low in (("utf-16-le", sample[1::2], sample[0::2]), ("utf-16-be", sample[0::2], sample[1::2])):
        if pairs > 2 and high.count(0) > 0.1 * pairs and low.count(0) <= 0.02 * pairs:
            return encoding
    return ""


def _display(encoding: str) -> str:
    """Return an encoding's usual name, without the order of its bytes."""
    return re.sub("-(LE|BE|SIG)$", "", codecs.lookup(encoding).name.upper())


def _explain_undecodable(content: bytes, path: Path, encoding: str, error: UnicodeDecodeError) -> str:
    line = content.count(b"\n", 0, error.start) + 1
    if (name := _display(encoding)) != "UTF-8":
        return f"{path} is not {name} (byte {error.start:,}); name its encoding with --encoding."
    before = content[max(error.start - 30, 0) : error.start].decode("cp1252", "replace")
    after = content[error.start : error.start + 30].decode("cp1252", "replace")
    word = _BETWEEN_WORDS.split(before)[-1] + _BETWEEN_WORDS.split(after)[0]
    return (
        f"{path} is not UTF-8 (line {line:,}). If the text there should be '{word}', add --encoding cp1252, the "
        "encoding of Windows and Excel in Western Europe; otherwise name the encoding, or save the file as UTF-8."
    )
