"""Tables: the columns of a row, their valid values, and their encoding as numbers for the graph.

A table is stored by columns: name → list of values, None for a missing value.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, AllowInfNan, Field, Strict, StrictInt, StrictStr
from pydantic_core import PydanticCustomError

from tasks._dates import date_part, parse_dates, read_date

_MAX_VALUE = float(np.finfo(np.float32).max)

_MAX_TIME_DISTANCE = timedelta(days=36_525)
"""How far a date may be outside the range of training: a hundred years. Dates beyond that are treated as
typing errors."""

Table = Mapping[str, Sequence[Any]]

MISSING_TEXTS = frozenset(
    (
        *("", "?", "NA", "N/A", "n/a", "n.a.", "#NA", "#N/A", "#N/A N/A", "<NA>", "NULL", "null", "None"),
        *("NaN", "nan", "-NaN", "-nan", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"),
    )
)
"""Texts that stand for a missing value, in the tables of training and in requests: those of pandas, and `?`.

Columns of numbers and of dates may have further ones, which training found in them (`missing_texts`). In requests, a
text that is one of the categories of its column is that category all the same.
"""
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?", re.ASCII)
_WHOLE_NUMBER = re.compile(r"([+-]?(?:0|[1-9]\d{0,17}))(?:\.0{0,20})?", re.ASCII)
"""Also 12.0, as programs write the whole numbers of a column in which some are missing."""
_MAX_NUMBER_LENGTH = 100
"""Characters of a number that is sent as text."""

MISSING, UNKNOWN, FIRST_KNOWN = 0, 1, 2
"""Category indices: of a missing value, of a value not seen in training, and of the first value seen in training."""


@dataclass(frozen=True)
class NumberColumn:
    """A column of numbers; the graph standardises them and imputes missing ones.

    `low` and `high` are the range of training; a value outside it adds a notice to the answer. `missing_texts` are
    texts that counted as missing in training, beside those of MISSING_TEXTS; they do in requests too.
    """

    name: str
    low: float
    high: float
    example: float | None = None
    missing_texts: tuple[str, ...] = ()
    kind: Literal["number"] = "number"

    @property
    def value_type(self) -> Any:
        """The type of its JSON values: a finite number or null, no string or boolean."""
        number = Annotated[float, Strict(), AllowInfNan(False)]
        return Annotated[number | None, Field(description=f"Seen in training: {self.low:g} to {self.high:g}.")]

    def read_text(self, text: str) -> Any:
        """Return the value that a text stands for: a number, None if it is missing, or the text if it is neither."""
        stripped = text.strip()
        if stripped in MISSING_TEXTS or stripped in self.missing_texts:
            return None
        is_number = len(stripped) <= _MAX_NUMBER_LENGTH and _NUMBER.fullmatch(stripped)
        return float(stripped) if is_number else text

    def to_floats(self, values: Sequence[Any]) -> list[float]:
        """Return values as numbers, NaN for missing ones."""
        return [math.nan if value is None else value for value in values]

    def notice(self, value: Any) -> str | None:
        """Return a notice for the client about this value, or None."""
        if value is None or self.low <= value <= self.high:
            return None
        return f"{value:g} is outside the range seen in training ({self.low:g} to {self.high:g})"


@dataclass(frozen=True)
class CategoryColumn:
    """A column of categories, given as strings, or as integers if `integer` is set (the number of a store)."""

    name: str
    values: tuple[str, ...]
    integer: bool = False
    example: str | None = None
    kind: Literal["category"] = "category"

    @property
    def value_type(self) -> Any:
        """The type of its JSON values: any string (or integer), even if not seen in training, or null."""
        values = ", ".join(self.values[:20]) + (", …" if len(self.values) > 20 else "")
        value_type = StrictInt if self.integer else StrictStr
        return Annotated[value_type | None, Field(description=f"Seen in training: {values}.")]

    def read_text(self, text: str) -> Any:
        """Return the value that a text stands for: a category, or None if it is missing."""
        stripped = text.strip()
        if stripped in MISSING_TEXTS and stripped not in self._index:
            return None
        whole = _WHOLE_NUMBER.fullmatch(stripped) if self.integer else None
        return int(whole[1]) if whole else text

    @cached_property
    def _index(self) -> dict[str, int]:
        return {value: i for i, value in enumerate(self.values, FIRST_KNOWN)}

    def to_indices(self, values: Sequence[Any]) -> list[int]:
        """Return values as MISSING, UNKNOWN or the category's index."""
        index = self._index
        return [
            MISSING if v is None else index[v] if v in index else index.get(str(v).strip(), UNKNOWN) for v in values
        ]

    def notice(self, value: Any) -> str | None:
        """Return a notice for the client about this value, or None."""
        if value is None or str(value).strip() in self._index:
            return None
        return f"{str(value)[:80]!r} was not seen in training and counts as unknown"


Part = Annotated[NumberColumn | CategoryColumn, Field(discriminator="kind")]


@dataclass(frozen=True)
class DateColumn:
    """A column of dates, with the time of day if `clock` is set, of which the network reads some parts.

    `first` and `last` are the range of training; a date outside it adds a notice to the answer.
    Each of `parts` is a column named as in `tasks._dates.PARTS`; categories have the values seen in training.
    `missing_texts` are texts that counted as missing in training, beside those of MISSING_TEXTS; they do in requests
    too.
    """

    name: str
    first: str
    last: str
    parts: tuple[Part, ...]
    clock: bool = False
    example: str | None = None
    missing_texts: tuple[str, ...] = ()
    kind: Literal["date"] = "date"

    @property
    def value_type(self) -> Any:
        """The type of its JSON values: a date as a string, or null."""
        date = Annotated[StrictStr, AfterValidator(self._validate)]
        kind = "Date and time, 2012-09-01T08:00" if self.clock else "Date, 2012-09-01"
        note = f"{kind}, without a time zone. Seen in training: {self.first} to {self.last}."
        return Annotated[date | None, Field(description=note)]

    def _validate(self, text: str) -> str:
        try:
            date = read_date(text.strip(), clock=self.clock)
        except ValueError as error:
            raise PydanticCustomError("value_error", "{what}", {"what": str(error)}) from None
        first, last = (read_date(bound, clock=False) for bound in (self.first, self.last))
        if max(first - date, date - last) > _MAX_TIME_DISTANCE:
            values = {"date": text.strip(), "first": self.first, "last": self.last}
            message = "{date} is over a hundred years away from the dates seen in training ({first} to {last})"
            raise PydanticCustomError("less_than_equal", message, values)
        return text.strip()

    def read_text(self, text: str) -> Any:
        """Return the value that a text stands for: a date as text, or None if it is missing."""
        stripped = text.strip()
        return None if stripped in MISSING_TEXTS or stripped in self.missing_texts else text

    @cached_property
    def categories(self) -> tuple[CategoryColumn, ...]:
        """The parts that are embedded, with the column's name prefixed."""
        return tuple(self._prefixed(part) for part in self.parts if isinstance(part, CategoryColumn))

    @cached_property
    def numbers(self) -> tuple[NumberColumn, ...]:
        """The parts that are standardised, with the column's name prefixed."""
        return tuple(self._prefixed(part) for part in self.parts if isinstance(part, NumberColumn))

    def _prefixed(self, part: Any) -> Any:
        return replace(part, name=f"{self.name}.{part.name}")

    def encode(self, values: Sequence[Any]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Encode dates as int64 (n, embedded parts) and float32 (n, other parts)."""
        dates, since = parse_dates(values), parse_dates([self.first])
        parts = [(part, date_part(part.name, dates, since)) for part in self.parts]
        categories = [_encode_integers(part, column) for part, column in parts if isinstance(part, CategoryColumn)]
        numbers = [column for part, column in parts if isinstance(part, NumberColumn)]
        return (
            np.stack(categories, axis=1) if categories else np.zeros((len(values), 0), np.int64),
            np.stack(numbers, axis=1).astype(np.float32) if numbers else np.zeros((len(values), 0), np.float32),
        )

    def notice(self, value: Any) -> str | None:
        """Return a notice for the client about this value, or None."""
        if value is None:
            return None
        date = read_date(value, clock=False)
        if date < read_date(self.first, clock=False):
            return f"{value} is before the first date that training saw ({self.first})"
        # Without a clock the time of day is ignored, so that no hour of the last day is after it.
        if (date if self.clock else _midnight(date)) > read_date(self.last, clock=False):
            return f"{value} is after the last date that training saw ({self.last})"
        return None


def _midnight(date: datetime) -> datetime:
    return date.replace(hour=0, minute=0, second=0, microsecond=0)


def _encode_integers(column: CategoryColumn, numbers: NDArray[np.float64]) -> NDArray[np.int64]:
    """Do the same as `CategoryColumn.to_indices` for an array of integers, looking up each distinct one once."""
    distinct, inverse = np.unique(numbers, return_inverse=True)
    values = [None if math.isnan(value) else int(value) for value in distinct.tolist()]
    return np.array(column.to_indices(values), np.int64)[inverse]


Column = Annotated[NumberColumn | CategoryColumn | DateColumn, Field(discriminator="kind")]


@dataclass(frozen=True)
class TableSchema:
    """The columns of a table that a network reads, in order."""

    columns: tuple[Column, ...] = field(default=())

    @cached_property
    def categories(self) -> tuple[CategoryColumn, ...]:
        """The embedded columns, including parts of dates, in the order of the graph's input."""
        return tuple(category for column in self.columns for category in _categories(column))

    @cached_property
    def numbers(self) -> tuple[NumberColumn, ...]:
        """The standardised columns, including parts of dates, in the order of the graph's input."""
        return tuple(number for column in self.columns for number in _numbers(column))

    def encode(self, table: Table) -> dict[str, NDArray[Any]]:
        """Encode a table as `categories`, int64 (n, categories), and `numbers`, float32 (n, numbers)."""
        return self.encode_with_range(table)[0]

    def encode_with_range(self, table: Table) -> tuple[dict[str, NDArray[Any]], bool]:
        """Encode a table as `encode` does; also return whether any of its values may need a notice.

        It is False only if no category is unknown, all numbers are in the range of training, and there are no dates.
        """
        rows = len(next(iter(table.values())))
        # One array is made of all columns: making one of each would take several times as long as filling it.
        categories: list[Sequence[int] | NDArray[np.int64]] = []
        numbers: list[Sequence[float] | NDArray[np.float32]] = []
        for column in self.columns:
            values = table[column.name]
            if isinstance(column, CategoryColumn):
                categories.append(column.to_indices(values))
            elif isinstance(column, NumberColumn):
                numbers.append(column.to_floats(values))
            else:
                category_parts, number_parts = column.encode(values)
                categories += list(category_parts.T)
                numbers += list(number_parts.T)
        indices = np.array(categories, np.int64).reshape(len(categories), rows)
        floats = np.array(numbers, np.float64).reshape(len(numbers), rows)
        lows, highs = self._bounds
        is_unusual = self._has_dates or bool((indices == UNKNOWN).any())
        is_unusual = is_unusual or bool(((floats < lows) | (floats > highs)).any())
        encoded: dict[str, NDArray[Any]] = {
            "categories": np.ascontiguousarray(indices.T),
            "numbers": np.ascontiguousarray(np.clip(floats, -_MAX_VALUE, _MAX_VALUE).T, np.float32),
        }
        return encoded, is_unusual

    @cached_property
    def _has_dates(self) -> bool:
        return any(isinstance(column, DateColumn) for column in self.columns)

    @cached_property
    def _bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The lowest and the highest number of training, (numbers, 1) each."""
        bounds = np.array([[column.low, column.high] for column in self.numbers], np.float64).reshape(-1, 2)
        return bounds[:, :1], bounds[:, 1:]


def _categories(column: NumberColumn | CategoryColumn | DateColumn) -> tuple[CategoryColumn, ...]:
    if isinstance(column, DateColumn):
        return column.categories
    return (column,) if isinstance(column, CategoryColumn) else ()


def _numbers(column: NumberColumn | CategoryColumn | DateColumn) -> tuple[NumberColumn, ...]:
    if isinstance(column, DateColumn):
        return column.numbers
    return (column,) if isinstance(column, NumberColumn) else ()
