"""What does this row predict?"""

from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, create_model
from pydantic_core import PydanticCustomError

from tasks._tables import CategoryColumn, Column, Columns, DateColumn, Table
from tasks.contract import Answer, Arrays, InvalidOutput, Limits, Request, Samples, Task, TensorSpec

_MAX_NOTICES = 20
_SPARE_FIELDS = 20
"""Unknown fields of a row that are still named one by one in the error."""


class Row(BaseModel):
    """A row: every column by its name; null for a value that is missing."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RowPrediction(BaseModel):
    """The likeliest class of a row, and the probability of each."""

    label: str
    probability: float
    probabilities: dict[str, float]


class RowNumber(BaseModel):
    """The number that a row leads to, and the interval that it lies in more often than not."""

    value: float
    low: Annotated[float, Field(description="The interval's lower end; `coverage` says how often it holds.")]
    high: Annotated[float, Field(description="The interval's upper end.")]


Notices = Annotated[list[str], Field(description=f"Values that training never saw, the first {_MAX_NOTICES} of them.")]


class TabularAnswer(Answer):
    """One prediction a row, in the order of the rows."""

    predictions: list[RowPrediction]
    notices: Notices = []


class NumberAnswer(Answer):
    """One number a row, in the order of the rows."""

    predictions: list[RowNumber]
    coverage: Annotated[float, Field(description="How much of the time the number lies in its interval.")]
    notices: Notices = []


def _refuse_too_many(most_fields: int, rows: Any, info: ValidationInfo) -> Any:
    """Counts rows, and the fields of each, before anything looks at every one of them."""
    limits = info.context if isinstance(info.context, Limits) else Limits()
    if isinstance(rows, list) and len(rows) > limits.rows:
        message = "{count} rows were sent; at most {limit} are accepted in one request"
        raise PydanticCustomError("too_many", message, {"count": len(rows), "limit": limits.rows})
    for i, row in enumerate(rows if isinstance(rows, list) else ()):
        if isinstance(row, dict) and len(row) > most_fields:
            message = "row {row} has {count} fields; the model's table has at most {limit}"
            raise PydanticCustomError("too_many", message, {"row": i, "count": len(row), "limit": most_fields})
    return rows


@dataclass(frozen=True)
class Tabular(Task):
    """A class, or a number, for each row of a table.

    Attributes:
        target: the column that is predicted.
        labels: its classes, in the order of the network's outputs; none where it is a number.
        columns: the columns that the network reads.
        ignored: columns a row may have that the network does not read (audit columns, say); accepted and unused.
        spread: of a number: the least and the largest that training saw.
        coverage: of a number: how much of the time its interval is to hold.
    """

    target: str
    labels: tuple[str, ...]
    columns: tuple[Column, ...]
    ignored: tuple[str, ...] = ()
    spread: tuple[float, float] | None = None
    coverage: float = 0.8

    compared_fields: ClassVar[tuple[str, ...]] = ("predictions",)

    def __post_init__(self) -> None:
        if bool(self.labels) == (self.spread is not None):
            raise ValueError("A model of rows has either labels or the spread of a number.")

    @cached_property
    def table(self) -> Columns:
        """The columns, sorted by what the graph does with them."""
        return Columns(self.columns)

    @cached_property
    def request_type(self) -> type[Request]:
        """Rows whose fields are this model's columns."""
        fields: dict[str, Any] = {
            f"column_{i}": (column.value_type, Field(alias=column.name, examples=[column.example]))
            for i, column in enumerate(self.columns)
        }
        for i, name in enumerate(self.ignored):
            note = Field(default=None, alias=name, description="Accepted and not used.")
            fields[f"ignored_{i}"] = (Any, note)
        row: type[Row] = create_model("Row", __base__=Row, **fields)
        refuse_too_many = partial(_refuse_too_many, len(fields) + _SPARE_FIELDS)
        rows = Annotated[list[row], BeforeValidator(refuse_too_many), Field(min_length=1)]
        return create_model("TabularRequest", __base__=Request, rows=(rows, ...))

    @property
    def answer_type(self) -> type[Answer]:
        """One for classes, one for numbers."""
        return TabularAnswer if self.labels else NumberAnswer

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Categories as indices, numbers as they are, NaN where missing: the graph standardises and fills in."""
        return (
            TensorSpec("categories", "int64", (len(self.table.categories),)),
            TensorSpec("numbers", "float32", (len(self.table.numbers),)),
        )

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Calibrated probabilities; or the number and both ends of its interval, in the target's own unit."""
        if self.labels:
            return (TensorSpec("probabilities", "float32", (len(self.labels),)),)
        return TensorSpec("value", "float32", ()), TensorSpec("interval", "float32", (2,))

    def decode(self, request: Any, limits: Limits) -> Table:
        """The rows, by columns."""
        return {
            column.name: [getattr(row, f"column_{i}") for row in request.rows] for i, column in enumerate(self.columns)
        }

    def preprocess(self, raw: Table) -> Samples:
        """One sample a row. The context is the list of what a client should know of its values."""
        return Samples(self.table.encode(raw), list(islice(self._notices(raw), _MAX_NOTICES)))

    def _notices(self, raw: Table) -> Any:
        for column in self.columns:
            values = raw[column.name]
            found = {value: notice for value in set(values) if (notice := column.notice(value))}
            for row, value in enumerate(values if found else ()):
                if value in found:
                    yield f"rows.{row}.{column.name}: {found[value]}."

    def postprocess(self, outputs: Arrays, samples: Samples, request: Any) -> Answer:
        """One prediction a row."""
        return self._classes(outputs, samples) if self.labels else self._values(outputs, samples)

    def _values(self, outputs: Arrays, samples: Samples) -> NumberAnswer:
        numbers = np.concatenate([outputs["value"][:, None], outputs["interval"]], axis=1)
        if not np.isfinite(numbers).all():
            rows = np.flatnonzero(~np.isfinite(numbers).all(axis=1))[:5].tolist()
            raise InvalidOutput(f"The network gave no finite number for rows {rows}.")
        predictions = [
            RowNumber(value=value, low=low, high=high) for value, low, high in _significant(numbers).tolist()
        ]
        return NumberAnswer(predictions=predictions, coverage=self.coverage, notices=samples.context)

    def _classes(self, outputs: Arrays, samples: Samples) -> TabularAnswer:
        probabilities = outputs["probabilities"]
        if not np.isfinite(probabilities).all():
            rows = np.flatnonzero(~np.isfinite(probabilities).all(axis=1))[:5].tolist()
            raise InvalidOutput(f"The network gave no finite probabilities for rows {rows}.")
        best = probabilities.argmax(axis=1).tolist()
        predictions = [
            RowPrediction(
                label=self.labels[i],
                probability=values[i],
                probabilities=dict(zip(self.labels, values, strict=True)),
            )
            for i, values in zip(best, probabilities.astype(float).round(6).tolist(), strict=True)
        ]
        return TabularAnswer(predictions=predictions, notices=samples.context)

    def example(self) -> dict[str, Any]:
        """The row whose values the columns name as their examples."""
        return {"rows": [{column.name: _example_of(column) for column in self.columns}]}


def _significant(numbers: NDArray[np.floating]) -> NDArray[np.float64]:
    """The numbers to six significant digits: a float32 holds no more than seven."""
    exact = numbers.astype(np.float64)
    digits = 5 - np.floor(np.log10(np.maximum(np.abs(exact), 1e-30)))
    scale = 10.0 ** np.clip(digits, -30, 30)
    found: NDArray[np.float64] = np.where(exact == 0, 0.0, np.round(exact * scale) / scale)
    return found


def _example_of(column: Column) -> Any:
    if isinstance(column, DateColumn):
        return column.example or column.last
    if isinstance(column, CategoryColumn):
        value = column.example if column.example is not None else next(iter(column.values), None)
        return int(value) if column.integer and value is not None else value
    return column.example if column.example is not None else (column.low + column.high) / 2


def with_examples(task: Tabular, row: dict[str, Any]) -> Tabular:
    """The task with the values of `row` as its columns' examples."""
    return replace(task, columns=tuple(_with_example(column, row.get(column.name)) for column in task.columns))


def _with_example(column: Column, value: Any) -> Column:
    if value is None:
        return column
    if isinstance(column, CategoryColumn | DateColumn):
        return replace(column, example=str(value))
    return replace(column, example=float(value))
