"""Rows of a table from CSV with a header line, checked against the columns of a model."""

import csv
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Never

from tasks.contract import InvalidInput, Limits, Problem
from tasks.near_names import suggest
from tasks.sending_mistakes import explain_binary, explain_reference

_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
_SEPARATOR_LINE = re.compile(r'"?sep=([,;\t|])"?[;,\t]{0,1000}(?:\r\n|\r|\n)', re.IGNORECASE)
"""The first line by which Excel tells the separator."""
_MAX_HEADER_LENGTH = 100_000
_MAX_PROBLEMS = 20
_DECIMAL_COMMA = re.compile(r"\s*[+-]?\d{1,50},\d{1,50}\s*", re.ASCII)
_THOUSANDS_POINT = re.compile(r"\s*[+-]?[1-9]\d{0,2}\.\d{3}\s*", re.ASCII)
"""Numbers whose point separates thousands, if the table has decimal commas."""


@dataclass(frozen=True)
class CsvColumns:
    """The columns that a header may name.

    Attributes:
        required: columns that must be there.
        optional: columns that may be there.
        numbers: columns of numbers, in which `12,5` means 12.5 unless commas separate the columns.
        target: the column that the model predicts.
    """

    required: Sequence[str]
    optional: Collection[str]
    numbers: frozenset[str]
    target: str

    @property
    def known(self) -> list[str]:
        """All columns that may be there."""
        return [*self.required, *self.optional]


def parse_csv(
    content: bytes | str, columns: CsvColumns, limits: Limits, *, max_values: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the rows of a CSV file as texts by column, in order, and notices on how they were read.

    Raises InvalidInput.

    The file is UTF-8, with or without a byte order mark. Its first line names the columns, in any order, separated by
    commas, semicolons, tabs or vertical bars; Excel's line `sep=;` may precede it. Blank lines are skipped. At most
    `max_values` separators, and as many lines, are accepted.
    """
    text = _decode(content) if isinstance(content, bytes) else content.removeprefix("\ufeff")
    if text[:100].lstrip().startswith(("{", "[")):
        _reject("The rows are not CSV; send JSON with the header 'Content-Type: application/json'.")
    if mistake := explain_reference(text, "rows"):
        _reject(f"There is no table in 'rows': {mistake}.")
    if line := _SEPARATOR_LINE.match(text):
        text = text[line.end() :]
    first_line = text[:_MAX_HEADER_LENGTH].lstrip("\r\n").partition("\n")[0].rstrip("\r")
    separator = _find_separator(first_line, columns)
    if text.count(separator) > max_values:
        _reject(f"The table has more than {max_values:,} cells; send fewer rows per request.", reason="too_large")
    if max(text.count("\n"), text.count("\r")) > max_values:
        _reject(f"The table has more than {max_values:,} lines; remove blank ones, or send fewer.", reason="too_large")
    reader = csv.reader(split_lines(text), delimiter=separator, strict=True)
    try:
        names = [name.strip() for name in next((row for row in reader if row), [])]
        _check_lines(text, names, columns)
        _check_header(names, columns, separator)
        rows = list(_read_rows(reader, names, limits))
    except csv.Error as error:
        _reject(f"Line {reader.line_num} of the table is not valid CSV: {error}.")
    if not rows:
        _reject("The table has no rows: only its first line, which names the columns.", reason="empty")
    return rows, [] if separator == "," else _read_decimal_commas(rows, columns.numbers)


def _decode(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        mistake = explain_binary(content) or f"see byte {error.start}; save it as 'CSV UTF-8'"
        _reject(f"The table is not UTF-8: {mistake}.")


def split_lines(text: str) -> Iterator[str]:
    """Yield the lines with their ends. Unlike `splitlines`, it ends them only where CSV does."""
    return (match[0] for match in re.finditer(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+", text))


def _find_separator(header: str, columns: CsvColumns) -> str:
    """Return the separator that splits the header into most names of columns, or that occurs most."""
    known = set(columns.known)

    def suitability(separator: str) -> tuple[int, int]:
        names = {name.strip().strip('"') for name in header.split(separator)}
        return len(names & known), header.count(separator)

    return max(_SEPARATORS, key=suitability)


def _check_lines(text: str, names: Sequence[str], columns: CsvColumns) -> None:
    """Raise InvalidInput if all lines of a table were joined to one: then names of columns have values attached."""
    is_one_line = not re.search(r"[\r\n]", text.strip("\r\n"))
    if is_one_line and len(names) > len(columns.required) and set(names) - set(columns.known):
        _reject(
            f"The table has a single line, of {len(names):,} cells. If curl sent it with -d or --data, which removes "
            "line breaks, use --data-binary; the first line names the columns, and each further line is a row."
        )


def _check_header(names: Sequence[str], columns: CsvColumns, separator: str) -> None:
    """Raise InvalidInput that names the columns that are unknown, missing or there twice."""
    if not names:
        _reject("The table is empty; its first line must name the columns.", reason="empty")
    problems = [
        Problem(name[:80], "unknown_field", _describe_unknown(name, i, columns))
        for i, name in enumerate(names[: len(columns.known) + _MAX_PROBLEMS])
        if name not in columns.known
    ]
    if len(problems) == len(names):
        expected = ", ".join(columns.known)[:500]
        message = (
            f"The first line of the table, separated at each {_SEPARATORS[separator]}, names none of the model's "
            f"columns; they are {expected}."
        )
        raise InvalidInput(message, problems=tuple(problems[:_MAX_PROBLEMS]))
    problems += [
        Problem(name[:80], "malformed", f"The column '{name}' is there twice; remove one.")
        for name in columns.known
        if names.count(name) > 1
    ]
    problems += [
        Problem(name[:80], "missing", f"The column '{name}' is missing; add it, with blank cells if it is not known.")
        for name in columns.required
        if name not in names
    ]
    if problems:
        message = " ".join(problem.message for problem in problems[:3])
        raise InvalidInput(message, problems=tuple(problems[:_MAX_PROBLEMS]))


def _describe_unknown(name: str, index: int, columns: CsvColumns) -> str:
    if name == columns.target:
        return f"The column '{name}' is what the model predicts; remove it."
    if not name:
        return f"Column {index + 1} of the table has no name; name it, or remove it."
    return f"There is no column '{name[:80]}'.{suggest(name, columns.known)}"


def _read_rows(reader: Any, names: Sequence[str], limits: Limits) -> Iterator[dict[str, Any]]:
    for i, cells in enumerate(filter(None, reader)):
        if i >= limits.rows:
            _reject(f"The table has more than {limits.rows:,} rows; send them in several requests.", reason="too_large")
        if len(cells) != len(names):
            _reject(
                f"Line {reader.line_num} of the table has {len(cells)} cells and the first line names {len(names)} "
                "columns; texts that contain the separator must be in quotation marks."
            )
        yield dict(zip(names, cells, strict=True))


def _read_decimal_commas(rows: Sequence[dict[str, Any]], numbers: frozenset[str]) -> list[str]:
    """Write a point for the decimal comma in columns of numbers; return a notice if there are any.

    Raises InvalidInput if there are, and a number such as 1.234 has a point, which may separate thousands.
    """
    examples, grouped = [], []
    for row in rows:
        for name in numbers & row.keys():
            text = row[name]
            if _DECIMAL_COMMA.fullmatch(text):
                row[name] = text.replace(",", ".")
                examples.append(text.strip())
            elif _THOUSANDS_POINT.fullmatch(text):
                grouped.append(text.strip())
    if not examples:
        return []
    if grouped:
        whole, fraction = grouped[0].replace(".", ""), grouped[0].replace(".", ",")
        _reject(
            f"The point in '{grouped[0]}' may separate thousands or be a decimal sign, since '{examples[0]}' has a "
            f"decimal comma; write {whole} or {fraction}."
        )
    return [f"Commas in numbers were read as decimal commas: '{examples[0]}' as {examples[0].replace(',', '.')}."]


def _reject(message: str, *, reason: Any = "invalid") -> Never:
    raise InvalidInput(message, reason=reason)
