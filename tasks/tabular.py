"""Tabular: a class or a number for each row of a table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain, islice
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, create_model

from tasks._csv import CsvColumns, parse_csv
from tasks._limits import check_counts
from tasks._rows import RowReader
from tasks._tables import CategoryColumn, Column, DateColumn, NumberColumn, Table, TableSchema
from tasks.contract import (
    Answer,
    Arrays,
    InvalidOutput,
    Limits,
    Request,
    Samples,
    Task,
    TensorSpec,
    Upload,
    split_outputs,
)

_MAX_NOTICES = 20
_MAX_UNKNOWN_FIELDS = 20
"""Unknown fields of a row up to which the error lists each one."""


class Row(BaseModel):
    """A row: the value of every column by name; null for a missing value."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TabularRequest(Request):
    """The rows to predict."""

    _notices: tuple[str, ...] = PrivateAttr(())

    def with_notices(self, notices: tuple[str, ...]) -> "TabularRequest":
        """Attach notices on how the rows were read; return the request."""
        self._notices = notices
        return self

    @property
    def notices(self) -> tuple[str, ...]:
        """Notices on how the rows were read."""
        return self._notices

    def __reduce__(self) -> tuple[type["TabularRequest"], tuple[()]]:
        """Pickle the request without its rows, whose type is made for each model and cannot be found by name.

        A request goes from one process to another when its rows have become samples.
        """
        return TabularRequest, ()


@dataclass(frozen=True)
class ReadTable:
    """The table of a request, and notices on how it was read."""

    table: Table
    notices: tuple[str, ...]


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
    list[str],
    Field(description=f"How values were read, and which were not seen in training; at most {_MAX_NOTICES} are listed."),
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
        optional: the columns that had missing values in training. If a row omits them, they count as missing; all other
            columns must be sent, since the model did not learn what it means if they are missing. None are optional in
            models that were published without this field.
    """

    target: str
    labels: tuple[str, ...]
    columns: tuple[Column, ...]
    ignored: tuple[str, ...] = ()
    spread: tuple[float, float] | None = None
    coverage: float = 0.8
    optional: tuple[str, ...] = ()

    upload: ClassVar[Upload | None] = Upload("rows", ("text/csv",), several=False, has_signature=True)
    compared_fields: ClassVar[tuple[str, ...]] = ("predictions",)

    def __post_init__(self) -> None:
        if unknown := set(self.optional) - {column.name for column in self.columns}:
            raise ValueError(f"The optional column '{min(unknown)}' is not a column of the model.")
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
            f"column_{i}": (
                column.value_type,
                Field(
                    default=None if column.name in self.optional else ..., alias=column.name, examples=[column.example]
                ),
            )
            for i, column in enumerate(self.columns)
        }
        for i, name in enumerate(self.ignored):
            note = Field(default=None, alias=name, description="Accepted and not used.")
            fields[f"ignored_{i}"] = (Any, note)
        row: type[Row] = create_model("Row", __base__=Row, **fields)
        counted = BeforeValidator(partial(check_counts, name="row", max_fields=len(fields) + _MAX_UNKNOWN_FIELDS))
        # `parse` collects the problems of several rows; see `RowReader.validate`.
        rows = Annotated[list[row], Field(min_length=1, fail_fast=True), counted]
        return create_model("TabularRequest", __base__=TabularRequest, rows=(rows, ...))

    @cached_property
    def _reader(self) -> RowReader:
        return RowReader(self.columns, self.optional, self.target)

    @cached_property
    def _csv_columns(self) -> CsvColumns:
        return CsvColumns(
            required=[column.name for column in self.columns if column.name not in self.optional],
            optional=(*self.optional, *self.ignored),
            numbers=frozenset(column.name for column in self.columns if isinstance(column, NumberColumn)),
            target=self.target,
        )

    def max_json_values(self, limits: Limits) -> int:
        """Count two for each field of a row, since a text may contain a comma, and some for unknown fields."""
        return limits.rows * 2 * (len(self.columns) + len(self.ignored) + _MAX_UNKNOWN_FIELDS)

    def parse(self, body: Any, limits: Limits) -> Request:
        """Validate a body whose rows are a list, or a CSV file. Raises pydantic.ValidationError or InvalidInput."""
        rows = body.get("rows") if isinstance(body, dict) else None
        notices: list[str] = []
        if is_csv := isinstance(rows, bytes | str):
            rows, notices = parse_csv(rows, self._csv_columns, limits, max_values=self.max_json_values(limits))
        if not isinstance(rows, list) or len(rows) > limits.rows:  # The validation says what is wrong.
            return super().parse(body, limits)
        read, read_notices = self._reader.read(rows, from_text=is_csv)
        validate = super().parse
        request: TabularRequest = self._reader.validate(read, lambda part: validate({**body, "rows": part}, limits))
        return request.with_notices((*notices, *read_notices))

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

    @cached_property
    def _attributes(self) -> tuple[tuple[str, str], ...]:
        """The name of each column, and of its field in `Row`."""
        return tuple((column.name, f"column_{i}") for i, column in enumerate(self.columns))

    def decode(self, request: Any, limits: Limits) -> ReadTable:
        """Return the rows as a table of columns."""
        rows = [row.__dict__ for row in request.rows]
        table = {name: [row[attribute] for row in rows] for name, attribute in self._attributes}
        return ReadTable(table, request.notices)

    def preprocess(self, raw: Table | ReadTable) -> Samples:
        """Encode the rows, one sample each. The context is the list of notices about their values."""
        return self.preprocess_many([raw])[0]

    def preprocess_many(self, raws: Sequence[Table | ReadTable]) -> Sequence[Samples]:
        """Encode the rows of all requests at once, as `preprocess` does."""
        read = [raw if isinstance(raw, ReadTable) else ReadTable(raw, ()) for raw in raws]
        tables = [item.table for item in read]
        joined = tables[0] if len(tables) == 1 else {name: _join(tables, name) for name, _ in self._attributes}
        encoded, is_unusual = self.schema.encode_with_range(joined)
        sizes = [len(next(iter(table.values()))) for table in tables]
        return [
            Samples(
                arrays, list(islice(chain(item.notices, self._notices(item.table) if is_unusual else ()), _MAX_NOTICES))
            )
            for arrays, item in zip(split_outputs(encoded, sizes), read, strict=True)
        ]

    def _notices(self, raw: Table) -> Iterator[str]:
        for column in self.columns:
            values = raw[column.name]
            notices = {value: notice for value in set(values) if (notice := column.notice(value))}
            for row, value in enumerate(values if notices else ()):
                if value in notices:
                    yield f"rows.{row}.{column.name}: {notices[value]}."

    def postprocess(self, outputs: Arrays, samples: Samples, request: Any) -> Answer:
        """Return one prediction per row."""
        return self.postprocess_many(outputs, [samples], [request])[0]

    def postprocess_many(
        self,
        outputs: Arrays,
        samples: Sequence[Samples],
        requests: Sequence[Any],
    ) -> Sequence[Answer]:
        """Return one prediction per row, for each request."""
        predictions = self._predict_classes(outputs) if self.labels else self._predict_numbers(outputs)
        answers, start = [], 0
        for item in samples:
            answers.append(self._answer(predictions[start : start + len(item)], item.context))
            start += len(item)
        return answers

    def _answer(self, predictions: list[Any], notices: list[str]) -> Answer:
        # The fields are right by construction: validating them again would take longer than the graph.
        if self.labels:
            return TabularAnswer.model_construct(model="", version="", predictions=predictions, notices=notices)
        return NumberAnswer.model_construct(
            model="", version="", predictions=predictions, coverage=self.coverage, notices=notices
        )

    def _predict_numbers(self, outputs: Arrays) -> list[RowNumber]:
        numbers = np.concatenate([outputs["value"][:, None], outputs["interval"]], axis=1)
        if not np.isfinite(numbers).all():
            rows = np.flatnonzero(~np.isfinite(numbers).all(axis=1))[:5].tolist()
            raise InvalidOutput(f"The network returned no finite number for rows {rows}.")
        return [
            RowNumber.model_construct(value=value, low=low, high=high)
            for value, low, high in _round_significant(numbers).tolist()
        ]

    def _predict_classes(self, outputs: Arrays) -> list[RowPrediction]:
        probabilities = outputs["probabilities"]
        if not np.isfinite(probabilities).all():
            rows = np.flatnonzero(~np.isfinite(probabilities).all(axis=1))[:5].tolist()
            raise InvalidOutput(f"The network returned no finite probabilities for rows {rows}.")
        labels = self.labels
        return [
            RowPrediction.model_construct(
                label=labels[i], probability=values[i], probabilities=dict(zip(labels, values, strict=True))
            )
            for i, values in zip(
                probabilities.argmax(axis=1).tolist(), probabilities.astype(float).round(6).tolist(), strict=True
            )
        ]

    def example(self) -> dict[str, Any]:
        """Return a request with one row: the example values of the columns."""
        return {"rows": [{column.name: _example_value(column) for column in self.columns}]}


def _join(tables: Sequence[Table], name: str) -> list[Any]:
    """Return the values of a column in all tables, in order."""
    return [value for table in tables for value in table[name]]


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
