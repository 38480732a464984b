"""Tables from CSV and Parquet: what kind each column is, and rows as samples to train on."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import time
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from tasks import _dates
from tasks._tables import CategoryColumn, Column, DateColumn, NumberColumn
from training.core.errors import CannotTrain
from training.engine.batches import Key, SampleSet
from training.engine.runtime import Batch

_NO_VALUE = ("", "?", "NA", "N/A", "NaN", "nan", "NULL", "null", "None")
_DATES = ("%Y-%m-%d",)
_TIMES = ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M")
_MAX_CLASSES = 100
_CLASSES_OF_NUMBERS = 20
"""Different numbers in a target, above which it is taken for a number and not for so many classes."""
_YEAR = 365
_SEASONS = ("month", "week", "day_of_year")
_DAILY = ("month", "week", "day", "weekday", "hour", "day_of_year", "elapsed", "is_month_start", "is_month_end")
"""The parts of dates that are read where none are named. Not the year: `elapsed` says it, and goes on past the last."""
_ENOUGH_TO_TELL = 50
"""Rows, below which a column whose values all differ is not taken for an identifier."""


@dataclass(frozen=True)
class Kinds:
    """What the user says of columns, against what would be inferred; and which parts of dates are read, if not all."""

    categories: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    dates: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()


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
    # What the clocks said is what counts: a zone is dropped, and not converted.
    frame = frame.with_columns(
        pl.col(name).dt.replace_time_zone(None).dt.cast_time_unit("us")
        for name, kind in frame.schema.items()
        if kind == pl.Datetime
    )
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
    return _dated(column)


def _dated(column: pl.Series) -> pl.Series:
    """The column as dates, or dates with times, where every value is one in ISO 8601 without a zone."""
    for kind, formats in ((pl.Date, _DATES), (pl.Datetime("us"), _TIMES)):
        for each in formats:
            found = column.str.strptime(kind, each, strict=False)
            if found.null_count() == column.null_count():
                return found
    return column


def is_number(frame: pl.DataFrame, target: str, kind: str, path: Path) -> bool:
    """Whether the target is to be predicted as a number; `kind` is number, class or auto.

    Raises CannotTrain where there is no such column, or it cannot be of that kind.
    """
    if target not in frame.columns:
        raise CannotTrain(f"{path} has no column '{target}'; its columns are {', '.join(frame.columns)}.")
    column = frame[target].drop_nulls()
    if kind == "number" and not column.dtype.is_numeric():
        odd = column.cast(pl.String).to_list()
        raise CannotTrain(f"The target column '{target}' is no column of numbers: it holds '{_first_odd(odd)}'.")
    return (
        kind != "class" and column.dtype.is_numeric() and (kind == "number" or column.n_unique() > _CLASSES_OF_NUMBERS)
    )


def _first_odd(values: Sequence[str]) -> str:
    for value in values:
        try:
            float(value)
        except ValueError:
            return value
    return values[0] if values else ""


def labels_of(frame: pl.DataFrame, target: str) -> tuple[str, ...]:
    """The classes of the target column, sorted. Raises CannotTrain where it is no column of classes."""
    column = frame[target].drop_nulls()
    values = column.unique()
    if len(values) < 2:
        raise CannotTrain(f"The target column '{target}' has {len(values)} class; it needs two or more.")
    if len(values) > _MAX_CLASSES:
        raise CannotTrain(
            f"The target column '{target}' has {len(values)} classes; at most {_MAX_CLASSES} are accepted."
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
    for name in (*kinds.categories, *kinds.numbers, *kinds.ignored, *kinds.dates):
        if name not in frame.columns:
            raise CannotTrain(f"There is no column '{name}'; the columns are {', '.join(frame.columns)}.")
    if unknown := [each for each in kinds.parts if each not in _dates.PARTS]:
        raise CannotTrain(f"--date-parts {unknown[0]}: the parts of a date are {', '.join(_dates.PARTS)}.")
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
        raise CannotTrain(" ".join(["No column is left to learn from.", *notices]))
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
    if name in kinds.dates and not _is_date(values):
        raise CannotTrain(
            f"Column '{name}' is no column of dates: it holds '{values.drop_nulls().cast(pl.String)[0]}'. Dates are "
            "read as 2012-09-01, times as 2012-09-01T08:00, both without a zone."
        )
    distinct = values.drop_nulls().n_unique()
    if distinct < 2:
        notices.append(f"Column '{name}' is left out: it has the same value in every row.")
        return None
    if _is_date(values):
        return _date_column(values, kinds.parts)
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


def _is_date(values: pl.Series) -> bool:
    return values.dtype in (pl.Date, pl.Datetime)


def _date_column(values: pl.Series, wanted: Sequence[str]) -> DateColumn:
    """The column with those parts that differ between rows.

    Where none are named, the parts that tell seasons are read only if there is a year to tell them by: in a shorter
    time each season comes once, and nothing but the trend could be learnt from it.
    """
    known = values.drop_nulls()
    clock = known.dtype == pl.Datetime and bool((known.dt.time() != time(0)).any())
    texts = _texts(known, clock=clock)
    ordered = sorted(set(texts))
    when = _dates.parse_dates(texts)
    since, days = _dates.parse_dates(ordered[:1]), float(_dates.date_part("elapsed", when, when.min()).max())
    short = () if days >= _YEAR else _SEASONS
    parts: list[NumberColumn | CategoryColumn] = []
    for name in wanted or [each for each in _DAILY if each not in short]:
        found = np.unique(_dates.date_part(name, when, since))
        if len(found) > 1 and name in _dates.NUMBERS:
            parts.append(NumberColumn(name, float(found[0]), float(found[-1])))
        elif len(found) > 1:
            parts.append(CategoryColumn(name, tuple(str(int(value)) for value in found), integer=True))
    example = ordered[len(ordered) // 2]
    return DateColumn(values.name, ordered[0], ordered[-1], tuple(parts), clock=clock, example=example)


def as_text(values: pl.Series) -> list[str]:
    """Times, or whatever else says when a row was, as text for people."""
    return _texts(values, clock=values.dtype == pl.Datetime) if _is_date(values) else values.cast(pl.String).to_list()


def _texts(values: pl.Series, *, clock: bool) -> list[str]:
    """Dates as a client writes them."""
    if not clock:
        return values.cast(pl.Date).cast(pl.String).to_list()
    whole = bool((values.drop_nulls().dt.second() == 0).all())
    return values.dt.to_string("%Y-%m-%dT%H:%M" if whole else "%Y-%m-%dT%H:%M:%S").to_list()


def plain(frame: pl.DataFrame, columns: Sequence[Column]) -> dict[str, list[object]]:
    """The columns as lists of what a client would send: text, numbers, dates as text, None."""
    found: dict[str, list[object]] = {}
    for column in columns:
        values = frame[column.name]
        if isinstance(column, NumberColumn):
            numbers = values.cast(pl.Float64)
            values = pl.select(pl.when(numbers.is_finite()).then(numbers)).to_series()
        elif isinstance(column, DateColumn):
            found[column.name] = list(_texts(values, clock=column.clock))
            continue
        elif not column.integer:
            values = values.cast(pl.String)
        found[column.name] = values.to_list()
    return found


def row_groups(frame: pl.DataFrame) -> list[str]:
    """A hash of each row's content: equal rows belong on one side of a split."""
    rows = frame.select(pl.concat_str(pl.all().cast(pl.String).fill_null("\0"), separator="\1")).to_series()
    return [hashlib.sha256(row.encode()).hexdigest() for row in rows.to_list()]


class Rows(SampleSet):
    """Encoded rows as samples: `categories` int64 (n, …), `numbers` float32 (n, …), `target` (n,) int64 or float32."""

    def __init__(self, arrays: dict[str, NDArray[np.generic]], targets: NDArray[np.generic]) -> None:
        self.inputs = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        self.targets = torch.from_numpy(targets)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """The batch of these rows."""
        index = torch.tensor([index for _, index in keys])
        batch = {name: tensor[index] for name, tensor in self.inputs.items()}
        return {**batch, "target": self.targets[index], "index": index}
