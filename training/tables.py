"""Tables from CSV and Parquet: what kind each column is, and rows as samples to train on."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from tasks._tables import CategoryColumn, Column, NumberColumn
from training.data import Key, SampleSet
from training.errors import CannotTrain
from training.runtime import Batch

_NO_VALUE = ("", "?", "NA", "N/A", "NaN", "nan", "NULL", "null", "None")
_MOST_CLASSES = 100
_ENOUGH_TO_TELL = 50
"""Rows, below which a column whose values all differ is not taken for an identifier."""


@dataclass(frozen=True)
class Kinds:
    """What the user says of columns, against what would be inferred."""

    categories: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


def read_table(path: Path, *, header: tuple[str, ...] = ()) -> pl.DataFrame:
    """The table in a CSV or Parquet file; text is stripped, and what stands for no value is null.

    `header` names the columns of a CSV file that has no header. Raises CannotTrain.
    """
    try:
        frame = pl.read_parquet(path) if path.suffix in (".parquet", ".pq") else _read_csv(path, header)
    except pl.exceptions.NoDataError:
        raise CannotTrain(f"{path} is empty.") from None
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CannotTrain(f"{path} cannot be read as a table: {reason}") from None
    frame = frame.filter(~pl.all_horizontal(pl.all().is_null())) if frame.width else frame
    if not frame.height:
        raise CannotTrain(f"{path} holds no rows.")
    return frame


def _read_csv(path: Path, header: tuple[str, ...]) -> pl.DataFrame:
    frame = pl.read_csv(path, has_header=not header, infer_schema=False)
    if header:
        if len(header) != frame.width:
            raise CannotTrain(f"{path} has {frame.width} columns, and --header names {len(header)}.")
        frame.columns = list(header)
    frame.columns = [name.strip() for name in frame.columns]
    text = pl.all().str.strip_chars()
    cleaned = frame.select(pl.when(text.is_in(_NO_VALUE)).then(None).otherwise(text).name.keep())
    return cleaned.select(_typed(cleaned[name]) for name in cleaned.columns)


def _typed(column: pl.Series) -> pl.Series:
    """The column as whole numbers or as numbers, where every value is one."""
    if column.null_count() == len(column):
        return column
    for kind in (pl.Int64, pl.Float64):
        cast = column.cast(kind, strict=False)
        # 00123 is a code and no number.
        padded = column.str.contains(r"^[-+]?0[0-9]").any()
        if cast.null_count() == column.null_count() and not padded:
            return cast
    return column


def labels_of(frame: pl.DataFrame, target: str, path: Path) -> tuple[str, ...]:
    """The classes of the target column, sorted. Raises CannotTrain where it is no column of classes."""
    if target not in frame.columns:
        raise CannotTrain(f"{path} has no column '{target}'; its columns are {', '.join(frame.columns)}.")
    column = frame[target].drop_nulls()
    values = column.unique()
    if len(values) < 2:
        raise CannotTrain(f"The target column '{target}' has {len(values)} class; it needs two or more.")
    many = 20 if column.dtype.is_float() else 50
    if column.dtype.is_numeric() and len(values) > many:
        raise CannotTrain(
            f"The target column '{target}' holds {len(values)} different numbers, and predicting a number is not built "
            "yet: make classes of it."
        )
    if len(values) > _MOST_CLASSES:
        raise CannotTrain(
            f"The target column '{target}' has {len(values)} classes; at most {_MOST_CLASSES} are accepted."
        )
    counts = column.value_counts()
    rare = counts.filter(pl.col("count") < 2)[target]
    if len(rare):
        raise CannotTrain(f"Class '{rare[0]}' of '{target}' has one row; each needs two or more.")
    return tuple(values.sort().cast(pl.String).to_list())


def columns_of(frame: pl.DataFrame, target: str, kinds: Kinds) -> tuple[tuple[Column, ...], tuple[str, ...], list[str]]:
    """The columns to learn from, the names of those left out, and sentences on what was found odd.

    Raises CannotTrain where a named column is not there or cannot be of the kind that was asked for.
    """
    for name in (*kinds.categories, *kinds.numbers, *kinds.ignored):
        if name not in frame.columns:
            raise CannotTrain(f"There is no column '{name}'; the columns are {', '.join(frame.columns)}.")
    columns: list[Column] = []
    left_out: list[str] = []
    notices: list[str] = []
    for name in frame.columns:
        if name == target:
            continue
        if name in kinds.ignored:
            left_out.append(name)
            continue
        column = _column(frame[name], kinds, notices)
        if column:
            columns.append(column)
        else:
            left_out.append(name)
    if not columns:
        raise CannotTrain("No column is left to learn from.")
    return tuple(columns), tuple(left_out), notices


def _column(values: pl.Series, kinds: Kinds, notices: list[str]) -> Column | None:
    name = values.name
    if name in kinds.numbers:
        if not values.dtype.is_numeric():
            odd = (
                values.drop_nulls().cast(pl.String).filter(values.drop_nulls().cast(pl.Float64, strict=False).is_null())
            )
            raise CannotTrain(f"Column '{name}' is no column of numbers: it holds '{odd[0]}'.")
        return _numbers(values)
    if name in kinds.categories:
        return _categories(values)
    distinct = values.drop_nulls().n_unique()
    if distinct < 2:
        notices.append(f"Column '{name}' is left out: it has the same value in every row.")
        return None
    if values.dtype.is_temporal() or values.dtype.is_nested():
        notices.append(f"Column '{name}' is left out: values of kind {values.dtype} are not understood.")
        return None
    if distinct == len(values) >= _ENOUGH_TO_TELL and not values.dtype.is_float():
        notices.append(
            f"Column '{name}' is left out: it differs in every row, as an identifier does. To use it, name it in "
            "--numbers or --categories."
        )
        return None
    return _numbers(values) if values.dtype.is_numeric() else _categories(values)


def _numbers(values: pl.Series) -> NumberColumn:
    known = values.cast(pl.Float64).drop_nulls().drop_nans()
    known = known.filter(known.is_finite())
    if not len(known):
        raise CannotTrain(f"Column '{values.name}' holds no number.")
    low, high, middle = known.min(), known.max(), known.median()
    return NumberColumn(values.name, float(low), float(high), example=float(middle))  # type: ignore[arg-type]


def _categories(values: pl.Series) -> CategoryColumn:
    """The categories, the most frequent first."""
    counts = values.drop_nulls().cast(pl.String).value_counts().sort(["count", values.name], descending=[True, False])
    names = tuple(counts[values.name].to_list())
    return CategoryColumn(values.name, names, integer=values.dtype.is_integer(), example=names[0] if names else None)


def plain(frame: pl.DataFrame, columns: Sequence[Column]) -> dict[str, list[object]]:
    """The columns as lists of what a client would send: text, numbers, None."""
    found: dict[str, list[object]] = {}
    for column in columns:
        values = frame[column.name]
        if isinstance(column, NumberColumn):
            numbers = values.cast(pl.Float64)
            values = pl.select(pl.when(numbers.is_finite()).then(numbers)).to_series()
        elif not column.integer:
            values = values.cast(pl.String)
        found[column.name] = values.to_list()
    return found


def row_groups(frame: pl.DataFrame) -> list[str]:
    """A hash of each row's content: equal rows belong on one side of a split."""
    rows = frame.select(pl.concat_str(pl.all().cast(pl.String).fill_null("\0"), separator="\1")).to_series()
    return [hashlib.sha256(row.encode()).hexdigest() for row in rows.to_list()]


class Rows(SampleSet):
    """Encoded rows as samples: `categories` int64 (n, …), `numbers` float32 (n, …), `target` int64 (n,)."""

    def __init__(self, arrays: dict[str, NDArray[np.generic]], targets: NDArray[np.int64]) -> None:
        self.inputs = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        self.targets = torch.from_numpy(targets)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """The batch of these rows."""
        index = torch.tensor([index for _, index in keys])
        batch = {name: tensor[index] for name, tensor in self.inputs.items()}
        return {**batch, "target": self.targets[index], "index": index}
