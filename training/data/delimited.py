"""Reads text files of delimited columns (CSV, TSV): their encoding, separator and header. All cells stay text."""

import codecs
import csv
import gzip
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from training.core.errors import CannotTrain

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars", " ": "spaces"}
_RECOGNISED = (";", "\t", "|", ",")
"""In the order of preference if several suit: commas that suit as well are probably decimal commas."""
_SEPARATOR_NAMES = {"comma": ",", "semicolon": ";", "tab": "\t", "\\t": "\t", "pipe": "|", "bar": "|", "space": " "}
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_NO_TEXT = {
    b"PK\x03\x04": "it is a spreadsheet or another ZIP file; export the sheet as 'CSV UTF-8', or unpack it",
    b"\xd0\xcf\x11\xe0": "it is an old Excel file; export the sheet as 'CSV UTF-8'",
    b"%PDF": "it is a PDF",
    b"\x28\xb5\x2f\xfd": "it is compressed by Zstandard; unpack it",
    b"BZh": "it is compressed by bzip2; unpack it",
    b"\xfd7zXZ": "it is compressed by xz; unpack it",
}
_GZIP = b"\x1f\x8b"
_HEAD = 200_000
"""Characters from which the separator is recognised."""
_HEAD_ROWS = 200
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?[;,\t]*(?:\r\n|\r|\n)', re.IGNORECASE)
"""The first line by which Excel tells the separator."""


@dataclass(frozen=True)
class CsvFormat:
    """How a text file is to be read; what is empty is recognised.

    Attributes:
        separator: one character between columns, or its name: comma, semicolon, tab, pipe, space.
        encoding: Python's name of the encoding, such as cp1252. If empty: UTF-8, or UTF-16 or UTF-32 with its mark.
        header: names of the columns, for a file without a header.
    """

    separator: str = ""
    encoding: str = ""
    header: tuple[str, ...] = ()


@dataclass(frozen=True)
class TextTable:
    """Cells as text, or as a typed file says, null where a cell is empty; and sentences on how the file was read."""

    frame: pl.DataFrame
    notes: tuple[str, ...]


def read_delimited(path: Path, form: CsvFormat) -> TextTable:
    """Read a delimited text file, also if it is compressed by gzip.

    The separator is the comma, semicolon, tab or vertical bar that divides the first rows most evenly, unless `form` or
    Excel's first line `sep=;` says which it is. Names of columns are stripped.

    Raises CannotTrain: the file is no text in a known encoding, two columns have the same name, or rows have more cells
    than the header.
    """
    notes: list[str] = []
    text = _decode(_read_bytes(path), path, form.encoding, notes)
    if "\n" not in text[:_HEAD]:
        text = text.replace("\r", "\n")  # Macintosh line ends.
    given = _parse_separator(form.separator)
    if line := _SEPARATOR_LINE.match(text):
        given, text = given or line[1], text[line.end() :]
    text = text.lstrip("\r\n")
    if not text.strip():
        raise CannotTrain(f"{path} is empty.")
    separator = given or _find_separator(text, form.header)
    if separator != ",":
        name = _SEPARATORS.get(separator)
        notes.append(
            f"The columns are separated by {name}." if name else f"The columns are separated by '{separator}'."
        )
    frame = _parse(text, separator, path, form.header, notes)
    return TextTable(frame, tuple(notes))


def _read_bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content.startswith(_GZIP) else content
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CannotTrain(f"{path} cannot be read as a table: {reason}.") from None


def _decode(content: bytes, path: Path, encoding: str, notes: list[str]) -> str:
    if reason := next((reason for mark, reason in _NO_TEXT.items() if content.startswith(mark)), ""):
        raise CannotTrain(f"{path} cannot be read as a table: {reason}.")
    known = encoding or _find_encoding(content)
    try:
        text = content.decode(known)
    except LookupError:
        raise CannotTrain(
            f"--encoding {encoding}: there is no such encoding; usual ones are cp1252 and utf-16."
        ) from None
    except UnicodeDecodeError as error:
        raise CannotTrain(_explain_undecodable(content, path, known, error)) from None
    if "\0" in text:
        raise CannotTrain(f"{path} cannot be read as a table: it contains zero bytes, which no text does.")
    if not known.startswith("utf-8"):
        notes.append(f"The file is read as {known.upper()}.")
    return text.removeprefix("\ufeff")


def _find_encoding(content: bytes) -> str:
    marked = next((name for mark, name in _BYTE_ORDER_MARKS if content.startswith(mark)), "")
    if marked:
        return marked
    head = content[:1000]
    # The Latin letters of UTF-16 have a zero byte each.
    for name, zeros in (("utf-16-le", head[1::2]), ("utf-16-be", head[0::2])):
        if len(zeros) > 1 and zeros.count(0) > len(zeros) / 2:
            return name
    return "utf-8"


def _explain_undecodable(content: bytes, path: Path, encoding: str, error: UnicodeDecodeError) -> str:
    line = content.count(b"\n", 0, error.start) + 1
    if encoding != "utf-8":
        return f"{path} is not {encoding.upper()} (byte {error.start:,}); name its encoding with --encoding."
    words = content[max(error.start - 30, 0) : error.start + 30].decode("cp1252", "replace")
    word = (
        re.split(r"[\s,;|\"]", words[: min(error.start, 30)])[-1]
        + re.split(r"[\s,;|\"]", words[min(error.start, 30) :])[0]
    )
    return (
        f"{path} is not UTF-8 (line {line:,}). If the text there should be '{word}', add --encoding cp1252, the "
        "encoding of Excel in Western Europe; otherwise name the encoding, or save the file as 'CSV UTF-8'."
    )


def _parse_separator(given: str) -> str:
    separator = _SEPARATOR_NAMES.get(given.strip().lower(), given)
    if len(separator) > 1 or not separator.isascii() or separator in ('"', "\n", "\r"):
        raise CannotTrain(f"--separator '{given}': it must be one character, or comma, semicolon, tab, pipe or space.")
    return separator


def _rows(text: str, separator: str) -> Iterator[list[str]]:
    """Yield the rows that are not blank."""
    lines = (match[0] for match in re.finditer(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+", text))
    return (row for row in csv.reader(lines, delimiter=separator) if row)


def _find_separator(text: str, header: Sequence[str]) -> str:
    """Return the separator that gives most of the first rows as many cells as the header; with most cells if even."""
    head = text[:_HEAD]
    if len(text) > _HEAD and "\n" in head:
        head = head[: head.rindex("\n") + 1]

    def suitability(separator: str) -> tuple[bool, float, int]:
        try:
            widths = [len(row) for row, _ in zip(_rows(head, separator), range(_HEAD_ROWS), strict=False)]
        except csv.Error:
            return False, 0.0, 0
        width = len(header) if len(header) in widths else widths[0]
        return width > 1, round(widths.count(width) / len(widths), 1), width

    best = max(_RECOGNISED, key=suitability)
    return best if suitability(best)[0] else ","


def _parse(text: str, separator: str, path: Path, header: tuple[str, ...], notes: list[str]) -> pl.DataFrame:
    first = [name.strip() for name in next(_rows(text, separator))]
    names = list(header) or first
    if header and tuple(first) == header:
        raise CannotTrain(f"The first line of {path} has the names of --header already; leave --header out.")
    try:
        frame = pl.read_csv(text.encode(), has_header=not header, separator=separator, infer_schema=False)
    except pl.exceptions.PolarsError as error:
        raise CannotTrain(f"{path} cannot be read as a table: {_explain(error, text, separator, len(first))}") from None
    if len(names) != frame.width:
        raise CannotTrain(f"{path} has {frame.width} columns, but --header names {len(names)}.")
    _check_names(names, path)
    frame.columns = [name or f"\0{i}" for i, name in enumerate(names)]
    _note_short_rows(frame, text, separator, notes)
    if unnamed := [i + 1 for i, name in enumerate(names) if not name]:
        shown = ", ".join(map(str, unnamed[:5])) + (", …" if len(unnamed) > 5 else "")
        what = "has no name and is left out" if len(unnamed) == 1 else "have no names and are left out"
        notes.append(f"Column{'s' * (len(unnamed) > 1)} {shown} {what}.")
    return frame.select(name for name in names if name)


def _check_names(names: Sequence[str], path: Path) -> None:
    """Raise CannotTrain if a name is there twice: requests could not tell such columns apart."""
    repeated = [name for name, count in Counter(names).items() if name and count > 1]
    if repeated:
        places = " and ".join(str(i + 1) for i, name in enumerate(names) if name == repeated[0])
        raise CannotTrain(
            f"{path} has several columns '{repeated[0]}' (columns {places}); remove or rename all but one."
        )


def _explain(error: Exception, text: str, separator: str, width: int) -> str:
    reader = csv.reader(text.splitlines(keepends=True), delimiter=separator)
    try:
        for row in reader:
            if len(row) > width:
                return (
                    f"line {reader.line_num:,} has {len(row)} cells, and the first line has {width}. Put texts that "
                    "contain the separator in quotation marks, or name another separator with --separator."
                )
    except csv.Error as problem:
        return f"line {reader.line_num:,}: {problem}."
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return reason.rstrip(".,") + "; is a quotation mark not closed?" if '"' in reason else reason


def _note_short_rows(frame: pl.DataFrame, text: str, separator: str, notes: list[str]) -> None:
    """Say how many rows have fewer cells than the header; there are some only where the last column has gaps."""
    if frame.width < 2 or not frame.to_series(-1).null_count():
        return
    try:
        short = sum(len(row) < frame.width for row in _rows(text, separator))
    except csv.Error:
        return
    if short:
        have = "1 row has" if short == 1 else f"{short:,} rows have"
        notes.append(f"{have} fewer cells than there are columns; the cells at the end count as missing.")
