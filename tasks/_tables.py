"""Tables: the columns of a row, what their values may be, and how they become numbers for the graph.

A table is held by columns: name → list of values, None where one is missing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AllowInfNan, Field, Strict, StrictInt, StrictStr

_LARGEST = float(np.finfo(np.float32).max)

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
        return numbers.clip(-_LARGEST, _LARGEST).astype(np.float32)

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


Column = Annotated[NumberColumn | CategoryColumn, Field(discriminator="kind")]


@dataclass(frozen=True)
class Columns:
    """The columns of a table that a network reads, in its order."""

    columns: tuple[Column, ...] = field(default=())

    @cached_property
    def categories(self) -> tuple[CategoryColumn, ...]:
        """Those that are embedded."""
        return tuple(column for column in self.columns if isinstance(column, CategoryColumn))

    @cached_property
    def numbers(self) -> tuple[NumberColumn, ...]:
        """Those that are standardised."""
        return tuple(column for column in self.columns if isinstance(column, NumberColumn))

    def encode(self, table: Table) -> dict[str, NDArray[Any]]:
        """`categories` int64 (n, number of them) and `numbers` float32 (n, number of them)."""
        rows = len(next(iter(table.values())))
        categories = [column.encode(table[column.name]) for column in self.categories]
        numbers = [column.encode(table[column.name]) for column in self.numbers]
        return {
            "categories": np.stack(categories, axis=1) if categories else np.zeros((rows, 0), np.int64),
            "numbers": np.stack(numbers, axis=1) if numbers else np.zeros((rows, 0), np.float32),
        }
