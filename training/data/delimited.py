"""Reads text files of delimited columns (CSV, TSV): their separator and header. All cells stay text."""

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from tasks._csv import split_lines
from training.core.config import option
from training.core.errors import CannotTrain
from training.core.sentences import count_of, list_items, was
from training.data.text_files import read_text_file

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars", " ": "spaces"}
_RECOGNISED = (";", "\t", "|", ",")
"""In the order of preference if several suit: commas that suit as well are probably decimal commas."""
_SEPARATOR_NAMES = {"comma": ",", "semicolon": ";", "tab": "\t", "\\t": "\t", "pipe": "|", "bar": "|", "space": " "}
_HEAD = 200_000
"""Characters from which the separator is recognised."""
_HEAD_ROWS = 200
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?[;,\t]*(?:\r\n|\r|\n)', re.IGNORECASE)
"""The first line by which Excel tells the separator."""
_EMPTY_LINES = re.compile(r"\A(?:[ \t,;|]*(?:\r\n|\r|\n))+")


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


RECOGNISED = CsvFormat()
"""All is recognised."""


@dataclass(frozen=True)
class CsvOptions:
    """Options of learners that read delimited text files."""

    separator: str = option("", "character between the columns of a CSV file; empty = recognised")
    encoding: str = option("", "encoding of text files, such as cp1252; empty = UTF-8, or UTF-16 where a file shows it")


@dataclass(frozen=True)
class TextTable:
    """A table as it is written.

    Attributes:
        frame: cells as text, or as a typed file says; null where a cell is empty.
        notes: sentences on how the file was read.
        is_typed: whether the file says the types of its columns.
    """

    frame: pl.DataFrame
    notes: tuple[str, ...] = ()
    is_typed: bool = False


@dataclass(frozen=True)
class DelimitedText:
    """The text of a table.

    Attributes:
        text: with the line of the header first.
        separator: the character between cells.
        first_line: the number in the file of the first line of `text`.
        notes: sentences on how the file was read.
    """

    path: Path
    text: str
    separator: str
    first_line: int
    notes: tuple[str, ...]

    def rows(self) -> Iterator[tuple[int, tuple[str, ...]]]:
        """Yield each row with its (last) line's number and stripped cells, also the header; not those without a value.

        Raises CannotTrain if a cell cannot be told from the next.
        """
        reader = csv.reader(split_lines(self.text), delimiter=self.separator)
        try:
            for row in reader:
                cells = tuple(cell.strip() for cell in row)
                if any(cells):
                    yield self.first_line + reader.line_num - 1, cells
        except csv.Error as error:
            line = self.first_line + reader.line_num - 1
            raise CannotTrain(f"{self.path} cannot be read as a table: line {line:,}: {error}.") from None


def open_delimited(path: Path, form: CsvFormat = RECOGNISED) -> DelimitedText:
    """Read a delimited text file (`read_text_file`) and find its separator.

    It is the comma, semicolon, tab or vertical bar that divides the first rows most evenly, unless `form` or Excel's
    first line `sep=;` says which it is. Zero bytes are left out.

    Raises CannotTrain: the file is no text in a known encoding, or is empty.
    """
    file = read_text_file(path, form.encoding)
    notes = file.describe(path)
    text = file.text
    if zeros := text.count("\0"):
        text = text.replace("\0", "")
        notes.append(f"{path.name}: {count_of(zeros, 'zero byte')} {was(zeros)} left out.")
    if "\n" not in text[:_HEAD]:
        text = text.replace("\r", "\n")  # Macintosh line ends.
    given = _parse_separator(form.separator)
    body = text
    if line := _SEPARATOR_LINE.match(body):
        given, body = given or line[1], body[line.end() :]
    body = _EMPTY_LINES.sub("", body)
    if not body.strip():
        raise CannotTrain(f"{path} is empty.")
    separator = given or _find_separator(body, form.header)
    if separator != _usual_separator(path):
        name = _SEPARATORS.get(separator) or f"'{separator}'"
        notes.append(f"The columns of {path.name} are separated by {name}.")
    first_line = len(text[: len(text) - len(body)].splitlines()) + 1
    return DelimitedText(path, body, separator, first_line, tuple(notes))


def read_delimited(path: Path, form: CsvFormat = RECOGNISED) -> TextTable:
    """Read a delimited text file (`open_delimited`). Names of columns are stripped; columns without one are left out.

    Raises CannotTrain: the file is no text in a known encoding, two columns have the same name, or rows have more cells
    than the header.
    """
    file = open_delimited(path, form)
    notes = list(file.notes)
    return TextTable(_parse(file, form.header, notes), tuple(notes))


def _usual_separator(path: Path) -> str:
    return "\t" if path.name.lower().removesuffix(".gz").endswith((".tsv", ".tab")) else ","


def _parse_separator(given: str) -> str:
    separator = _SEPARATOR_NAMES.get(given.strip().lower(), given)
    if len(separator) > 1 or not separator.isascii() or separator in ('"', "\n", "\r"):
        raise CannotTrain(f"--separator '{given}': it must be one character, or comma, semicolon, tab, pipe or space.")
    return separator


def _widths(text: str, separator: str) -> list[int]:
    """Return the numbers of cells of the first rows that are not blank, up to one that cannot be read."""
    widths: list[int] = []
    try:
        for row in csv.reader(split_lines(text), delimiter=separator):
            widths += [len(row)] if row else []
            if len(widths) == _HEAD_ROWS:
                break
    except csv.Error:
        pass
    return widths


def _find_separator(text: str, header: Sequence[str]) -> str:
    """Return the separator that gives most of the first rows as many cells as the header; with most cells if even."""
    head = text[:_HEAD]
    if len(text) > _HEAD and "\n" in head:
        head = head[: head.rindex("\n") + 1]

    def suitability(separator: str) -> tuple[bool, float, int]:
        widths = _widths(head, separator) or [0]
        width = len(header) if len(header) in widths else widths[0]
        return width > 1, round(widths.count(width) / len(widths), 1), width

    best = max(_RECOGNISED, key=suitability)
    return best if suitability(best)[0] else ","


def _parse(file: DelimitedText, header: tuple[str, ...], notes: list[str]) -> pl.DataFrame:
    path = file.path
    first = next(cells for _, cells in file.rows())
    names = list(header) or list(first)
    if header and first == header:
        raise CannotTrain(f"The first line of {path} has the names of --header already; leave --header out.")
    try:
        frame = pl.read_csv(file.text.encode(), has_header=not header, separator=file.separator, infer_schema=False)
    except pl.exceptions.PolarsError as error:
        raise CannotTrain(f"{path} cannot be read as a table: {_explain(error, file, len(first))}") from None
    if len(names) != frame.width:
        raise CannotTrain(f"{path} has {frame.width} columns, but --header names {len(names)}.")
    _check_names(names, path)
    frame.columns = [name or f"\0{i}" for i, name in enumerate(names)]
    _note_short_rows(frame, file, notes)
    if unnamed := [str(i + 1) for i, name in enumerate(names) if not name]:
        what = "has no name and is left out" if len(unnamed) == 1 else "have no names and are left out"
        notes.append(f"Column{'s' * (len(unnamed) > 1)} {list_items(unnamed)} {what}.")
    return frame.select(name for name in names if name)


def _check_names(names: Sequence[str], path: Path) -> None:
    """Raise CannotTrain if a name is there twice: requests could not tell such columns apart."""
    repeated = [name for name, count in Counter(names).items() if name and count > 1]
    if repeated:
        places = " and ".join(str(i + 1) for i, name in enumerate(names) if name == repeated[0])
        raise CannotTrain(
            f"{path} has several columns '{repeated[0]}' (columns {places}); remove or rename all but one."
        )


def _explain(error: Exception, file: DelimitedText, width: int) -> str:
    try:
        for line, row in file.rows():
            if len(row) > width:
                return (
                    f"line {line:,} has {len(row)} cells, and the first line has {width}. Put texts that contain the "
                    "separator in quotation marks, or name another separator with --separator."
                )
    except CannotTrain:
        pass
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".,")
    return f"{reason}; is a quotation mark not closed?" if '"' in reason else f"{reason}."


def _note_short_rows(frame: pl.DataFrame, file: DelimitedText, notes: list[str]) -> None:
    """Say how many rows have fewer cells than the header; there are some only where the last column has gaps."""
    if frame.width < 2 or not frame.to_series(-1).null_count():
        return
    try:
        short = sum(len(row) < frame.width for _, row in file.rows())
    except CannotTrain:
        return
    if short:
        have = "1 row has" if short == 1 else f"{short:,} rows have"
        notes.append(f"{have} fewer cells than there are columns; the cells at the end count as missing.")
