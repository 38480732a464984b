"""What does this row predict?"""

from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, create_model
from pydantic_core import PydanticCustomError

from tasks._tables import CategoryColumn, Column, Columns, Table
from tasks.contract import Answer, Arrays, InvalidOutput, Limits, Request, Samples, Task, TensorSpec

_MOST_NOTICES = 20
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


class TabularAnswer(Answer):
    """One prediction a row, in the order of the rows."""

    predictions: list[RowPrediction]
    notices: Annotated[
        list[str], Field(description=f"Values that training never saw, the first {_MOST_NOTICES} of them.")
    ] = []


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
    """A class for each row of a table.

    Attributes:
        target: the column that is predicted.
        labels: its classes, in the order of the network's outputs.
        columns: the columns that the network reads.
        ignored: columns a row may have that the network does not read (audit columns, say); accepted and unused.
    """

    target: str
    labels: tuple[str, ...]
    columns: tuple[Column, ...]
    ignored: tuple[str, ...] = ()

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
    def answer_type(self) -> type[TabularAnswer]:
        """The same for every model of this task."""
        return TabularAnswer

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Categories as indices, numbers as they are, NaN where missing: the graph standardises and fills in."""
        return (
            TensorSpec("categories", "int64", (len(self.table.categories),)),
            TensorSpec("numbers", "float32", (len(self.table.numbers),)),
        )

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Calibrated probabilities."""
        return (TensorSpec("probabilities", "float32", (len(self.labels),)),)

    def decode(self, request: Any, limits: Limits) -> Table:
        """The rows, by columns."""
        return {
            column.name: [getattr(row, f"column_{i}") for row in request.rows] for i, column in enumerate(self.columns)
        }

    def preprocess(self, raw: Table) -> Samples:
        """One sample a row. The context is the list of what a client should know of its values."""
        return Samples(self.table.encode(raw), list(islice(self._notices(raw), _MOST_NOTICES)))

    def _notices(self, raw: Table) -> Any:
        for column in self.columns:
            for row, value in enumerate(raw[column.name]):
                if notice := column.notice(value):
                    yield f"rows.{row}.{column.name}: {notice}."

    def postprocess(self, outputs: Arrays, samples: Samples, request: Any) -> TabularAnswer:
        """One prediction a row."""
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


def _example_of(column: Column) -> Any:
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
    if isinstance(column, CategoryColumn):
        return replace(column, example=str(value))
    return replace(column, example=float(value))
