"""Tabular: a class or a number for each row of a table."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model

from tasks._limits import check_counts
from tasks._tables import CategoryColumn, Column, DateColumn, Table, TableSchema
from tasks.contract import Answer, Arrays, InvalidOutput, Limits, Request, Samples, Task, TensorSpec

_MAX_NOTICES = 20
_MAX_UNKNOWN_FIELDS = 20
"""Unknown fields of a row up to which the error lists each one."""


class Row(BaseModel):
    """A row: the value of every column by name; null for a missing value."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RowPrediction(BaseModel):
    """The most probable class of a row, and the probability of each class."""

    label: str
    probability: float
    probabilities: dict[str, float]


class RowNumber(BaseModel):
    """The predicted number for a row, and its prediction interval."""

    value: float
    low: Annotated[float, Field(description="The lower end of the prediction interval; see `coverage`.")]
    high: Annotated[float, Field(description="The upper end of the prediction interval.")]


Notices = Annotated[
    list[str], Field(description=f"Values that were not seen in training; at most {_MAX_NOTICES} are listed.")
]


class TabularAnswer(Answer):
    """One prediction per row, in the order of the rows."""

    predictions: list[RowPrediction]
    notices: Notices = []


class NumberAnswer(Answer):
    """One number per row, in the order of the rows."""

    predictions: list[RowNumber]
    coverage: Annotated[float, Field(description="How often the true number lies in the prediction interval, 0…1.")]
    notices: Notices = []


@dataclass(frozen=True)
class Tabular(Task):
    """A class or a number for each row of a table.

    Attributes:
        target: the predicted column.
        labels: its classes, in the order of the network's outputs; empty if it is a number.
        columns: the columns that the network reads.
        ignored: columns that are accepted but not read by the network (audit columns, say).
        spread: if the target is a number, its minimum and maximum in training.
        coverage: if the target is a number, how often the prediction interval should contain it, 0…1.
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
            raise ValueError("A tabular model has either labels or the spread of a number.")

    @cached_property
    def schema(self) -> TableSchema:
        """The columns as the graph reads them."""
        return TableSchema(self.columns)

    @cached_property
    def request_type(self) -> type[Request]:
        """A list of rows whose fields are this model's columns."""
        fields: dict[str, Any] = {
            f"column_{i}": (column.value_type, Field(alias=column.name, examples=[column.example]))
            for i, column in enumerate(self.columns)
        }
        for i, name in enumerate(self.ignored):
            note = Field(default=None, alias=name, description="Accepted and not used.")
            fields[f"ignored_{i}"] = (Any, note)
        row: type[Row] = create_model("Row", __base__=Row, **fields)
        counted = BeforeValidator(partial(check_counts, name="row", max_fields=len(fields) + _MAX_UNKNOWN_FIELDS))
        rows = Annotated[list[row], counted, Field(min_length=1)]
        return create_model("TabularRequest", __base__=Request, rows=(rows, ...))

    @property
    def answer_type(self) -> type[Answer]:
        """TabularAnswer for classes, NumberAnswer for numbers."""
        return TabularAnswer if self.labels else NumberAnswer

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Categories as indices, and raw numbers, NaN if missing; the graph standardises and imputes."""
        return (
            TensorSpec("categories", "int64", (len(self.schema.categories),)),
            TensorSpec("numbers", "float32", (len(self.schema.numbers),)),
        )

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Calibrated probabilities; or the number and both ends of its interval, in the unit of the target."""
        if self.labels:
            return (TensorSpec("probabilities", "float32", (len(self.labels),)),)
        return TensorSpec("value", "float32", ()), TensorSpec("interval", "float32", (2,))

    def decode(self, request: Any, limits: Limits) -> Table:
        """Return the rows as a table of columns."""
        return {
            column.name: [getattr(row, f"column_{i}") for row in request.rows] for i, column in enumerate(self.columns)
        }

    def preprocess(self, raw: Table) -> Samples:
        """Encode the rows, one sample each. The context is the list of notices about their values."""
        return Samples(self.schema.encode(raw), list(islice(self._notices(raw), _MAX_NOTICES)))

    def _notices(self, raw: Table) -> Iterator[str]:
        for column in self.columns:
            values = raw[column.name]
            notices = {value: notice for value in set(values) if (notice := column.notice(value))}
            for row, value in enumerate(values if notices else ()):
                if value in notices:
                    yield f"rows.{row}.{column.name}: {notices[value]}."

    def postprocess(self, outputs: Arrays, samples: Samples, request: Any) -> Answer:
        """Return one prediction per row."""
        return self._predict_classes(outputs, samples) if self.labels else self._predict_numbers(outputs, samples)

    def _predict_numbers(self, outputs: Arrays, samples: Samples) -> NumberAnswer:
        numbers = np.concatenate([outputs["value"][:, None], outputs["interval"]], axis=1)
        if not np.isfinite(numbers).all():
            rows = np.flatnonzero(~np.isfinite(numbers).all(axis=1))[:5].tolist()
            raise InvalidOutput(f"The network returned no finite number for rows {rows}.")
        predictions = [
            RowNumber(value=value, low=low, high=high) for value, low, high in _round_significant(numbers).tolist()
        ]
        return NumberAnswer(predictions=predictions, coverage=self.coverage, notices=samples.context)

    def _predict_classes(self, outputs: Arrays, samples: Samples) -> TabularAnswer:
        probabilities = outputs["probabilities"]
        if not np.isfinite(probabilities).all():
            rows = np.flatnonzero(~np.isfinite(probabilities).all(axis=1))[:5].tolist()
            raise InvalidOutput(f"The network returned no finite probabilities for rows {rows}.")
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
        """Return a request with one row: the example values of the columns."""
        return {"rows": [{column.name: _example_value(column) for column in self.columns}]}


def _round_significant(numbers: NDArray[np.floating]) -> NDArray[np.float64]:
    """Round to six significant digits; a float32 holds no more than seven."""
    exact = numbers.astype(np.float64)
    digits = 5 - np.floor(np.log10(np.maximum(np.abs(exact), 1e-30)))
    scale = 10.0 ** np.clip(digits, -30, 30)
    rounded: NDArray[np.float64] = np.where(exact == 0, 0.0, np.round(exact * scale) / scale)
    return rounded


def _example_value(column: Column) -> Any:
    if isinstance(column, DateColumn):
        return column.example or column.last
    if isinstance(column, CategoryColumn):
        value = column.example if column.example is not None else next(iter(column.values), None)
        return int(value) if column.integer and value is not None else value
    return column.example if column.example is not None else (column.low + column.high) / 2


def with_examples(task: Tabular, row: dict[str, Any]) -> Tabular:
    """Return the task with the values of `row` as the examples of its columns."""
    return replace(task, columns=tuple(_with_example(column, row.get(column.name)) for column in task.columns))


def _with_example(column: Column, value: Any) -> Column:
    if value is None:
        return column
    if isinstance(column, CategoryColumn | DateColumn):
        return replace(column, example=str(value))
    return replace(column, example=float(value))
