"""The rows of a request, read as training reads a table: numbers as text, texts for missing values, omitted columns."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from tasks._tables import CategoryColumn, Column
from tasks.near_names import suggest

_MAX_PROBLEMS = 20
"""Problems of a request that are listed, about; the rows after them are not validated."""
_DECIMAL_COMMA = re.compile(r"[+-]?\d{1,20},\d{1,20}", re.ASCII)
_POINTS_AND_COMMA = re.compile(r"[+-]?[1-9]\d{0,2}(\.\d{3}){1,10}(,\d{1,20})?", re.ASCII)
"""Numbers whose points separate thousands. One with a single point and no comma is read with a decimal point."""
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3}){1,10}(\.\d{1,20})?", re.ASCII)
"""Numbers whose commas may separate thousands. A single one may be a decimal comma as well."""


@dataclass
class _Note:
    """A notice about a value, and in how many rows it applies."""

    message: str
    rows: int = 0

    @property
    def text(self) -> str:
        more = self.rows - 1
        return f"{self.message}, and likewise in {more:,} more row{'s' * (more > 1)}." if more else f"{self.message}."


@dataclass
class _Notes:
    """Notices about the values of a request: the first of each kind and column, with a count."""

    notes: dict[tuple[str, str], _Note] = field(default_factory=dict)

    def add(self, kind: str, column: str, message: str) -> None:
        self.notes.setdefault((kind, column), _Note(message)).rows += 1

    def notices(self) -> tuple[str, ...]:
        return tuple(note.text for note in self.notes.values())


@dataclass(frozen=True)
class RowReader:
    """Reads the values of rows before they are validated. What it cannot read is left for the validation to reject.

    Attributes:
        columns: the columns of the table.
        optional: names of columns that count as missing if a row omits them.
        target: the column that the model predicts.
    """

    columns: tuple[Column, ...]
    optional: tuple[str, ...] = ()
    target: str = ""

    @cached_property
    def _by_name(self) -> dict[str, Column]:
        return {column.name: column for column in self.columns}

    @cached_property
    def _whole_numbers(self) -> set[str]:
        return {column.name for column in self.columns if isinstance(column, CategoryColumn) and column.integer}

    @cached_property
    def _known_texts(self) -> dict[str, frozenset[str]]:
        """The texts of each column that are read as they are: its categories, written as in training."""
        return {
            column.name: frozenset(value for value in column.values if column.read_text(value) is value)
            if isinstance(column, CategoryColumn)
            else frozenset()
            for column in self.columns
        }

    def read(self, rows: Sequence[Any], *, from_text: bool) -> tuple[list[Any], tuple[str, ...]]:
        """Return the rows with values of the types of their columns, and notices on how they were read.

        `from_text` is True for a file of texts (CSV), in which numbers and blanks as text are no news.
        """
        notes = _Notes()
        read = [self._read_row(i, row, notes, from_text=from_text) for i, row in enumerate(rows)]
        return read, notes.notices()

    def _read_row(self, index: int, row: Any, notes: _Notes, *, from_text: bool) -> Any:
        if not isinstance(row, dict):
            return row
        values = row.copy()
        for name, value in row.items():
            if type(value) is str:
                column = self._by_name.get(name)
                if column is None or value in self._known_texts[name]:
                    continue
                values[name] = column.read_text(value)
                if not from_text and values[name] is not value:
                    _note_text(notes, f"rows.{index}.{name}", name, value, values[name])
            elif type(value) is float and name in self._whole_numbers and value.is_integer():
                values[name] = int(value)
        for name in self.optional:
            if name not in row:
                values[name] = None
                notes.add("omitted", name, f"rows.{index}.{name}: the column was not sent and counts as missing")
        return values

    def validate(self, rows: Sequence[Any], validate: Callable[[Sequence[Any]], Any]) -> Any:
        """Return what `validate` makes of the rows. Raises ValidationError with the problems of the first bad rows.

        `validate` stops at the first invalid row. Listing the problems of all rows could take longer than the rest of
        the request.
        """
        try:
            return validate(rows)
        except ValidationError as error:
            details = self._collect(rows, validate, error)
            raise ValidationError.from_exception_data(error.title, details) from None

    def _collect(
        self, rows: Sequence[Any], validate: Callable[[Sequence[Any]], Any], first: ValidationError
    ) -> list[InitErrorDetails]:
        errors = first.errors(include_url=False)
        details = [self._describe(error, 0) for error in errors]
        start = 0
        while (index := _invalid_row(errors)) is not None and len(details) < _MAX_PROBLEMS:
            start += index + 1
            if start >= len(rows):
                break
            try:
                validate(rows[start:])
            except ValidationError as error:
                errors = error.errors(include_url=False)
                details += [self._describe(item, start) for item in errors if item["loc"][0] == "rows"]
            else:
                break
        return details

    def _describe(self, error: Mapping[str, Any], start: int) -> InitErrorDetails:
        """Return pydantic's error with the row's place in the request, and a message for people."""
        location = error["loc"]
        if len(location) > 1 and location[0] == "rows":
            location = ("rows", location[1] + start, *location[2:])
        context = {"message": self._message(error)}
        return InitErrorDetails(
            type=PydanticCustomError(error["type"], "{message}", context), loc=location, input=error["input"]
        )

    def _message(self, error: Mapping[str, Any]) -> str:
        kind, value, location = error["type"], error["input"], error["loc"]
        if kind == "missing" and len(location) > 2:
            return "the column is missing; send null if its value is not known"
        if kind == "extra_forbidden" and len(location) > 2:
            if location[2] == self.target:
                return "the column is what the model predicts; remove it"
            return "there is no such column." + suggest(str(location[2]), self._by_name)
        if kind == "too_short" and len(location) == 1:
            return "there are no rows; send at least one"
        if kind == "float_type" and isinstance(value, str):
            shown = value.strip()[:40]
            return f"{shown!r} is not a number{_suggest_number(shown)}"
        if kind == "int_type" and isinstance(value, str):
            return f"{value.strip()[:40]!r} is not a whole number"
        is_number = kind == "string_type" and type(value) in (int, float) and len(location) > 2
        if is_number and isinstance(self._by_name.get(str(location[2])), CategoryColumn):
            return f"{value} is a number, and the column contains texts; write it in quotation marks, as in training"
        message: str = error["msg"]
        return message


def _suggest_number(text: str) -> str:
    """Return how to write a number with commas, in each sense that it may have."""
    readings = []
    if _THOUSANDS.fullmatch(text):
        readings.append(text.replace(",", ""))
    if _DECIMAL_COMMA.fullmatch(text):
        readings.append(text.replace(",", "."))
    if _POINTS_AND_COMMA.fullmatch(text):
        readings.append(text.replace(".", "").replace(",", "."))
    return f"; write {' or '.join(readings)}" if readings else ""


def _invalid_row(errors: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the index of the row that the errors are about, if they are about one."""
    return next((error["loc"][1] for error in errors if error["loc"][0] == "rows" and len(error["loc"]) > 1), None)


def _note_text(notes: _Notes, where: str, name: str, text: str, value: Any) -> None:
    shown = f"'{text.strip()[:40]}'" if text.strip() else "a blank text"
    if value is None:
        notes.add("missing", name, f"{where}: {shown} counts as missing")
    elif not isinstance(value, str):
        notes.add("number", name, f"{where}: the text {shown} was read as the number {value:g}")
