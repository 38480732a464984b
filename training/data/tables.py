"""Tables from CSV and Parquet: the kind of each column, and rows as training samples."""

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
from tasks._tables import MISSING_TEXTS, CategoryColumn, Column, DateColumn, NumberColumn
from training.core.errors import CannotTrain
from training.engine.batches import Key, SampleSet
from training.engine.runtime import Batch

_DATE_FORMATS = ("%Y-%m-%d",)
_TIME_FORMATS = ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M")
_MAX_CLASSES = 100
_MAX_NUMERIC_CLASSES = 20
"""A numeric target with more distinct values than this is a number to predict, not a class."""
_YEAR = 365
_SEASONAL_PARTS = ("month", "week", "day_of_year")
_DEFAULT_PARTS = ("month", "week", "day", "weekday", "hour", "day_of_year", "elapsed", "is_month_start", "is_month_end")
"""Parts of dates that are read by default. Not the year: `elapsed` contains it, and extends beyond the last year."""
_MIN_IDENTIFIER_ROWS = 50
"""With fewer rows, a column whose values are all distinct is not assumed to be an identifier."""


@dataclass(frozen=True)
class ColumnKinds:
    """What the user specifies about columns, overriding what is inferred; `parts` are the parts of dates to read."""

    categories: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    dates: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoadedTable:
    """A table with the types of its columns.

    Attributes:
        frame: numbers, dates without a time zone, and texts; null for a missing value.
        warnings: sentences for the user on how it was read.
        missing_texts: by column, texts that stand for a missing value there; see `TypedColumns`.
    """

    frame: pl.DataFrame
    warnings: tuple[str, ...] = ()
    missing_texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def read_table(path: Path, form: CsvFormat = CsvFormat(), rules: TypeRules = TypeRules()) -> LoadedTable:
    """Read a CSV or Parquet file, and infer the types of its columns (`infer_types`).

    Texts are stripped, and those that stand for missing values become null. Raises CannotTrain.
    """
    frame, notes, is_parquet = read_texts(path, form)
    warnings = [*notes, *_drop_notes(frame, rules)]
    typed = infer_types(_without_zones(frame), rules, from_text=not is_parquet)
    frame = pl.DataFrame(typed.columns)
    return LoadedTable(frame, (*warnings, *typed.warnings), typed.missing_texts)


def read_texts(path: Path, form: CsvFormat) -> tuple[pl.DataFrame, tuple[str, ...], bool]:
    """Read a file without inferring types: cleaned texts, or what a Parquet file says.

    Returns the table without blank rows, notes on how it was read, and whether it is Parquet. Raises CannotTrain.
    """
    is_parquet = _is_parquet(path)
    if is_parquet:
        frame, notes = _read_parquet(path), ()
    else:
        read = read_delimited(path, form)
        frame, notes = read.frame, read.notes
    frame = _clean_texts(frame)
    frame = frame.filter(~pl.all_horizontal(pl.all().is_null())) if frame.width else frame
    if not frame.height:
        raise CannotTrain(f"{path} has no rows.")
    return frame, notes, is_parquet


def _is_parquet(path: Path) -> bool:
    if path.suffix.lower() in (".parquet", ".pq"):
        return True
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PAR1"
    except OSError:
        return False


def _read_parquet(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CannotTrain(f"{path} cannot be read as a table: {reason}") from None


def _clean_texts(frame: pl.DataFrame) -> pl.DataFrame:
    """Strip texts, and replace those that stand for missing values by null, as the service does with requests."""
    frame = frame.with_columns(pl.col(pl.Categorical, pl.Enum).cast(pl.String))
    text = pl.col(pl.String).str.strip_chars()
    return frame.with_columns(pl.when(text.is_in(sorted(MISSING_TEXTS))).then(None).otherwise(text).name.keep())


def _zones(frame: pl.DataFrame) -> dict[str, str]:
    return {name: dtype.time_zone for name, dtype in frame.schema.items() if isinstance(dtype, pl.Datetime) and dtype.time_zone}


def _drop_notes(frame: pl.DataFrame, rules: TypeRules) -> list[str]:
    return [
        f"Column '{name}': its time zone ({zone}) is left out: the time on the clock counts."
        for name, zone in _zones(frame).items()
        if not rules.is_quiet(name)
    ]


def _without_zones(frame: pl.DataFrame) -> pl.DataFrame:
    """The local time counts: a time zone is dropped, not converted."""
    return frame.with_columns(
        pl.col(name).dt.replace_time_zone(None).dt.cast_time_unit("us")
        for name, dtype in frame.schema.items()
        if dtype == pl.Datetime
    )


def is_number(frame: pl.DataFrame, target: str, kind: str, path: Path) -> bool:
    """Return whether to predict the target as a number; `kind` is number, class or auto.

    Raises CannotTrain if the column does not exist or cannot be of that kind.
    """
    if target not in frame.columns:
        raise CannotTrain(f"{path} has no column '{target}'; its columns are {', '.join(frame.columns)}.")
    column = frame[target].drop_nulls()
    if kind == "number" and not column.dtype.is_numeric():
        example = _first_non_number(column.cast(pl.String).to_list())
        raise CannotTrain(f"The target column '{target}' is not numeric: it contains '{example}'.")
    return (
        kind != "class" and column.dtype.is_numeric() and (kind == "number" or column.n_unique() > _MAX_NUMERIC_CLASSES)
    )


def _first_non_number(values: Sequence[str]) -> str:
    for value in values:
        try:
            float(value)
        except ValueError:
            return value
    return values[0] if values else ""


def class_labels(frame: pl.DataFrame, target: str) -> tuple[str, ...]:
    """Return the classes of the target column, sorted. Raises CannotTrain if it is not a column of classes."""
    column = frame[target].drop_nulls()
    values = column.unique()
    if len(values) < 2:
        raise CannotTrain(f"The target column '{target}' has {len(values)} class; at least two are needed.")
    if len(values) > _MAX_CLASSES:
        raise CannotTrain(
            f"The target column '{target}' has {len(values)} classes; at most {_MAX_CLASSES} are supported."
        )
    counts = column.value_counts()
    rare = counts.filter(pl.col("count") < 2)[target]
    if len(rare):
        raise CannotTrain(f"Class '{rare[0]}' of '{target}' has one row; each class needs at least two.")
    return tuple(values.sort().cast(pl.String).to_list())


def infer_columns(
    frame: pl.DataFrame, target: str, kinds: ColumnKinds
) -> tuple[tuple[Column, ...], tuple[str, ...], list[str]]:
    """Return the input columns, the names of the columns that are left out, and warnings.

    Raises CannotTrain if a named column does not exist or cannot be of the specified kind.
    """
    for name in (*kinds.categories, *kinds.numbers, *kinds.ignored, *kinds.dates):
        if name not in frame.columns:
            raise CannotTrain(f"There is no column '{name}'; the columns are {', '.join(frame.columns)}.")
    if unknown := [name for name in kinds.parts if name not in _dates.PARTS]:
        raise CannotTrain(f"--date-parts {unknown[0]}: the parts of a date are {', '.join(_dates.PARTS)}.")
    columns: list[Column] = []
    left_out: list[str] = []
    warnings: list[str] = []
    for name in frame.columns:
        if name == target:
            continue
        if name in kinds.ignored:
            left_out.append(name)
            continue
        column = _infer_column(frame[name], kinds, warnings)
        if column:
            columns.append(column)
        else:
            left_out.append(name)
    if not columns:
        raise CannotTrain(" ".join(["No input column is left.", *warnings]))
    return tuple(columns), tuple(left_out), warnings


def _infer_column(values: pl.Series, kinds: ColumnKinds, warnings: list[str]) -> Column | None:
    name = values.name
    if name in kinds.numbers:
        if not values.dtype.is_numeric():
            texts = values.drop_nulls()
            invalid = texts.cast(pl.String).filter(texts.cast(pl.Float64, strict=False).is_null())
            raise CannotTrain(f"Column '{name}' is not numeric: it contains '{invalid[0]}'.")
        return _number_column(values)
    if name in kinds.categories:
        return _category_column(values)
    if name in kinds.dates and not _is_date(values):
        raise CannotTrain(
            f"Column '{name}' does not contain dates: it contains '{values.drop_nulls().cast(pl.String)[0]}'. Dates "
            "are read as 2012-09-01, times as 2012-09-01T08:00, both without a time zone."
        )
    distinct = values.drop_nulls().n_unique()
    if distinct < 2:
        warnings.append(f"Column '{name}' is left out: it has the same value in every row.")
        return None
    if _is_date(values):
        return _date_column(values, kinds.parts)
    if values.dtype.is_temporal() or values.dtype.is_nested():
        warnings.append(f"Column '{name}' is left out: values of type {values.dtype} are not supported.")
        return None
    if distinct == len(values) >= _MIN_IDENTIFIER_ROWS and not values.dtype.is_float():
        warnings.append(
            f"Column '{name}' is left out: its values are all distinct, as in an identifier. To use it, name it in "
            "--numbers or --categories."
        )
        return None
    return _number_column(values) if values.dtype.is_numeric() else _category_column(values)


def _number_column(values: pl.Series) -> NumberColumn:
    known = values.cast(pl.Float64).drop_nulls().drop_nans()
    known = known.filter(known.is_finite())
    if not len(known):
        raise CannotTrain(f"Column '{values.name}' contains no numbers.")
    low, high, median = known.min(), known.max(), known.median()
    return NumberColumn(values.name, float(low), float(high), example=float(median))  # type: ignore[arg-type]


def _category_column(values: pl.Series) -> CategoryColumn:
    """The categories, most frequent first."""
    counts = values.drop_nulls().cast(pl.String).value_counts().sort(["count", values.name], descending=[True, False])
    names = tuple(counts[values.name].to_list())
    return CategoryColumn(values.name, names, integer=values.dtype.is_integer(), example=names[0] if names else None)


def _is_date(values: pl.Series) -> bool:
    return values.dtype in (pl.Date, pl.Datetime)


def _date_column(values: pl.Series, requested: Sequence[str]) -> DateColumn:
    """A column with the parts of its dates that differ between rows.

    Where none are requested, seasonal parts are read only if the dates span a year: in a shorter time each season
    occurs once, so that nothing but the trend could be learnt from it.
    """
    known = values.drop_nulls()
    clock = known.dtype == pl.Datetime and bool((known.dt.time() != time(0)).any())
    texts = _date_texts(known, clock=clock)
    ordered = sorted(set(texts))
    when = _dates.parse_dates(texts)
    since, days = _dates.parse_dates(ordered[:1]), float(_dates.date_part("elapsed", when, when.min()).max())
    excluded = () if days >= _YEAR else _SEASONAL_PARTS
    parts: list[NumberColumn | CategoryColumn] = []
    for name in requested or [name for name in _DEFAULT_PARTS if name not in excluded]:
        distinct = np.unique(_dates.date_part(name, when, since))
        if len(distinct) > 1 and name in _dates.NUMBERS:
            parts.append(NumberColumn(name, float(distinct[0]), float(distinct[-1])))
        elif len(distinct) > 1:
            parts.append(CategoryColumn(name, tuple(str(int(value)) for value in distinct), integer=True))
    example = ordered[len(ordered) // 2]
    return DateColumn(values.name, ordered[0], ordered[-1], tuple(parts), clock=clock, example=example)


def times_as_text(values: pl.Series) -> list[str]:
    """Return times, or other values that order the rows, as text for people."""
    if _is_date(values):
        return _date_texts(values, clock=values.dtype == pl.Datetime)
    return values.cast(pl.String).to_list()


def _date_texts(values: pl.Series, *, clock: bool) -> list[str]:
    """Dates as a client writes them."""
    if not clock:
        return values.cast(pl.Date).cast(pl.String).to_list()
    no_seconds = bool((values.drop_nulls().dt.second() == 0).all())
    return values.dt.to_string("%Y-%m-%dT%H:%M" if no_seconds else "%Y-%m-%dT%H:%M:%S").to_list()


def request_values(frame: pl.DataFrame, columns: Sequence[Column]) -> dict[str, list[object]]:
    """Return the columns as lists of the values a client would send: text, numbers, dates as text, None."""
    lists: dict[str, list[object]] = {}
    for column in columns:
        values = frame[column.name]
        if isinstance(column, NumberColumn):
            numbers = values.cast(pl.Float64)
            values = pl.select(pl.when(numbers.is_finite()).then(numbers)).to_series()
        elif isinstance(column, DateColumn):
            lists[column.name] = list(_date_texts(values, clock=column.clock))
            continue
        elif not column.integer:
            values = values.cast(pl.String)
        lists[column.name] = values.to_list()
    return lists


def row_hashes(frame: pl.DataFrame) -> list[str]:
    """Return a hash of each row's content, since equal rows belong on the same side of a split."""
    rows = frame.select(pl.concat_str(pl.all().cast(pl.String).fill_null("\0"), separator="\1")).to_series()
    return [hashlib.sha256(row.encode()).hexdigest() for row in rows.to_list()]


class RowSamples(SampleSet):
    """Encoded rows as samples: `categories` int64 (n, …), `numbers` float32 (n, …), `target` (n,) int64 or float32."""

    def __init__(self, arrays: dict[str, NDArray[np.generic]], targets: NDArray[np.generic]) -> None:
        self.inputs = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        self.targets = torch.from_numpy(targets)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """Return the batch of these rows."""
        index = torch.tensor([index for _, index in keys])
        batch = {name: tensor[index] for name, tensor in self.inputs.items()}
        return {**batch, "target": self.targets[index], "index": index}
