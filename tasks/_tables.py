"""Tables: the columns of a row, what their values may be, and how they become numbers for the graph.

A table is held by columns: name → list of values, None where one is missing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, AllowInfNan, Field, Strict, StrictInt, StrictStr
from pydantic_core import PydanticCustomError

from tasks._dates import moments, part, read_date

_MAX_VALUE = float(np.finfo(np.float32).max)

_MAX_TIME_DISTANCE = timedelta(days=36_525)
"""How far before or after what training saw a date may lie: a hundred years; beyond, it is a slip of the pen."""

Table = Mapping[str, Sequence[Any]]

MISSING, UNKNOWN, FIRST_KNOWN = 0, 1, 2
"""The indices of a category: of no value, of a value not seen in training, and of the first one seen."""


@dataclass(frozen=True)
class NumberColumn:
    """A column of numbers; the graph standardises them and fills in the missing ones.

    `low` and `high` are the bounds of what training saw: an answer to a value beyond them says so.
    """

    name: str
    low: float
    high: float
    example: float | None = None
    kind: Literal["number"] = "number"

    @property
    def value_type(self) -> Any:
        """What JSON may hold: a finite number or null; no text, no true or false."""
        number = Annotated[float, Strict(), AllowInfNan(False)]
        return Annotated[number | None, Field(description=f"Seen in training: {self.low:g} to {self.high:g}.")]

    def encode(self, values: Sequence[Any]) -> NDArray[np.float32]:
        """float32 (n,), NaN where a value is missing."""
        numbers = np.array([math.nan if value is None else value for value in values], np.float64)
        return numbers.clip(-_MAX_VALUE, _MAX_VALUE).astype(np.float32)

    def notice(self, value: Any) -> str | None:
        """What a client should know of how this value was read; None for most."""
        if value is None or self.low <= value <= self.high:
            return None
        return f"{value:g} is outside what training saw ({self.low:g} to {self.high:g})"


@dataclass(frozen=True)
class CategoryColumn:
    """A column of categories, by name, or by whole number where `integer` (a store's number, say)."""

    name: str
    values: tuple[str, ...]
    integer: bool = False
    example: str | None = None
    kind: Literal["category"] = "category"

    @property
    def value_type(self) -> Any:
        """What JSON may hold: any text (any whole number), also one not seen in training, or null."""
        shown = ", ".join(self.values[:20]) + (", …" if len(self.values) > 20 else "")
        value = StrictInt if self.integer else StrictStr
        return Annotated[value | None, Field(description=f"Seen in training: {shown}.")]

    @cached_property
    def _index(self) -> dict[str, int]:
        return {value: i for i, value in enumerate(self.values, FIRST_KNOWN)}

    def encode(self, values: Sequence[Any]) -> NDArray[np.int64]:
        """int64 (n,): MISSING, UNKNOWN or the category's index."""
        index = self._index
        return np.array([MISSING if v is None else index.get(str(v).strip(), UNKNOWN) for v in values], np.int64)

    def notice(self, value: Any) -> str | None:
        """What a client should know of how this value was read; None for most."""
        if value is None or str(value).strip() in self._index:
            return None
        return f"{str(value)[:80]!r} was not seen in training and counts as unknown"


Part = Annotated[NumberColumn | CategoryColumn, Field(discriminator="kind")]


@dataclass(frozen=True)
class DateColumn:
    """A column of dates, with or without the time of day, of which the network reads some parts.

    `first` and `last` are the earliest and the latest that training saw: an answer to a date before or after says so.
    Each of `parts` is a column named as in `tasks._dates.PARTS`; a category has the values that training saw.
    """

    name: str
    first: str
    last: str
    parts: tuple[Part, ...]
    clock: bool = False
    example: str | None = None
    kind: Literal["date"] = "date"

    @property
    def value_type(self) -> Any:
        """What JSON may hold: a date as text or null."""
        date = Annotated[StrictStr, AfterValidator(self._checked)]
        kind = "Date and time, 2012-09-01T08:00" if self.clock else "Date, 2012-09-01"
        note = f"{kind}, without a zone. Seen in training: {self.first} to {self.last}."
        return Annotated[date | None, Field(description=note)]

    def _checked(self, text: str) -> str:
        try:
            found = read_date(text.strip(), clock=self.clock)
        except ValueError as error:
            raise PydanticCustomError("value_error", "{what}", {"what": str(error)}) from None
        first, last = (read_date(bound, clock=False) for bound in (self.first, self.last))
        if max(first - found, found - last) > _MAX_TIME_DISTANCE:
            told = {"date": text.strip(), "first": self.first, "last": self.last}
            message = "{date} is over a hundred years away from what training saw ({first} to {last})"
            raise PydanticCustomError("less_than_equal", message, told)
        return text.strip()

    @cached_property
    def categories(self) -> tuple[CategoryColumn, ...]:
        """The parts that are embedded, under names of their own."""
        return tuple(self._named(each) for each in self.parts if isinstance(each, CategoryColumn))

    @cached_property
    def numbers(self) -> tuple[NumberColumn, ...]:
        """The parts that are standardised, under names of their own."""
        return tuple(self._named(each) for each in self.parts if isinstance(each, NumberColumn))

    def _named(self, each: Any) -> Any:
        return replace(each, name=f"{self.name}.{each.name}")

    def encode(self, values: Sequence[Any]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """int64 (n, embedded parts) and float32 (n, the other parts)."""
        when, since = moments(values), moments([self.first])
        found = [(each, part(each.name, when, since)) for each in self.parts]
        categories = [_indices(each, numbers) for each, numbers in found if isinstance(each, CategoryColumn)]
        numbers = [numbers for each, numbers in found if isinstance(each, NumberColumn)]
        return (
            np.stack(categories, axis=1) if categories else np.zeros((len(values), 0), np.int64),
            np.stack(numbers, axis=1).astype(np.float32) if numbers else np.zeros((len(values), 0), np.float32),
        )

    def notice(self, value: Any) -> str | None:
        """What a client should know of how this value was read; None for most."""
        if value is None:
            return None
        found = read_date(value, clock=False)
        if found < read_date(self.first, clock=False):
            return f"{value} is before the first date that training saw ({self.first})"
        # A day is not after itself, whatever the hour: without a clock, the time of day is not read.
        if (found if self.clock else _midnight(found)) > read_date(self.last, clock=False):
            return f"{value} is after the last date that training saw ({self.last})"
        return None


def _midnight(when: datetime) -> datetime:
    return when.replace(hour=0, minute=0, second=0, microsecond=0)


def _indices(column: CategoryColumn, numbers: NDArray[np.float64]) -> NDArray[np.int64]:
    """As `CategoryColumn.encode`, for whole numbers in an array, each different one looked up once."""
    distinct, places = np.unique(numbers, return_inverse=True)
    values = [None if math.isnan(value) else int(value) for value in distinct.tolist()]
    return column.encode(values)[places]


Column = Annotated[NumberColumn | CategoryColumn | DateColumn, Field(discriminator="kind")]


@dataclass(frozen=True)
class Columns:
    """The columns of a table that a network reads, in its order."""

    columns: tuple[Column, ...] = field(default=())

    @cached_property
    def categories(self) -> tuple[CategoryColumn, ...]:
        """Those that are embedded, the parts of dates among them, in the order of the graph's input."""
        return tuple(each for column in self.columns for each in _categories(column))

    @cached_property
    def numbers(self) -> tuple[NumberColumn, ...]:
        """Those that are standardised, the parts of dates among them, in the order of the graph's input."""
        return tuple(each for column in self.columns for each in _numbers(column))

    def encode(self, table: Table) -> dict[str, NDArray[Any]]:
        """`categories` int64 (n, number of them) and `numbers` float32 (n, number of them)."""
        rows = len(next(iter(table.values())))
        categories: list[NDArray[np.int64]] = [np.zeros((rows, 0), np.int64)]
        numbers: list[NDArray[np.float32]] = [np.zeros((rows, 0), np.float32)]
        for column in self.columns:
            values = table[column.name]
            if isinstance(column, CategoryColumn):
                categories.append(column.encode(values)[:, None])
            elif isinstance(column, NumberColumn):
                numbers.append(column.encode(values)[:, None])
            else:
                embedded, others = column.encode(values)
                categories.append(embedded)
                numbers.append(others)
        return {"categories": np.concatenate(categories, axis=1), "numbers": np.concatenate(numbers, axis=1)}


def _categories(column: NumberColumn | CategoryColumn | DateColumn) -> tuple[CategoryColumn, ...]:
    if isinstance(column, DateColumn):
        return column.categories
    return (column,) if isinstance(column, CategoryColumn) else ()


def _numbers(column: NumberColumn | CategoryColumn | DateColumn) -> tuple[NumberColumn, ...]:
    if isinstance(column, DateColumn):
        return column.numbers
    return (column,) if isinstance(column, NumberColumn) else ()
