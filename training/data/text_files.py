"""Text files in UTF-8, or in UTF-16 where they show it: what Windows calls 'Unicode'."""

import codecs
from dataclasses import dataclass
from pathlib import Path

from tasks.system_errors import os_error_reason
from training.core.errors import CannotTrain

_SAMPLE = 200


class NotText(CannotTrain):
    """A file is in another encoding."""


@dataclass(frozen=True)
class TextFile:
    """The text of a file, and its encoding: `UTF-8` or `UTF-16`."""

    text: str
    encoding: str = "UTF-8"

    def describe(self, path: Path) -> list[str]:
        """Return a sentence about an encoding that is unusual."""
        return [] if self.encoding == "UTF-8" else [f"{path.name} was read as {self.encoding}."]


def read_text_file(path: Path) -> TextFile:
    """Read a file, without its byte order mark. Raises CannotTrain if it cannot be read, NotText if it is not UTF-8."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CannotTrain(f"{path} cannot be read: {os_error_reason(error)}.") from None
    encoding = _wide_encoding(content)
    try:
        if encoding:
            return TextFile(content.decode(encoding).removeprefix("\ufeff"), "UTF-16")
        return TextFile(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        name = "UTF-16, as its beginning tells," if encoding else "UTF-8"
        raise NotText(f"{path} is not {name} (see byte {error.start}). Save it as UTF-8.") from None


def _wide_encoding(content: bytes) -> str:
    """Return the encoding of a text of two bytes per character, by its mark or the zeros between Latin letters."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    sample = content[:_SAMPLE]
    pairs = len(sample) // 2
    for encoding, high, low in (("utf-16-le", sample[1::2], sample[0::2]), ("utf-16-be", sample[0::2], sample[1::2])):
        if pairs > 2 and high.count(0) > 0.8 * pairs and low.count(0) < 0.2 * pairs:
            return encoding
    return ""
