"""Tables as training data: the target, the kind of each input column, and rows as training samples."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import time
from pathlib import Path
from types import MappingProxyType

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from tasks import _dates
from tasks._tables import CategoryColumn, Column, DateColumn, NumberColumn
from tasks.near_names import suggest
from training.core.errors import CannotTrain
from training.core.sentences import list_items
from training.data.column_types import MAX_NUMERIC_CLASSES, ColumnKinds, is_identifier
from training.data.label_names import merge_spellings, normalise_spelling, suggest_label
from training.data.number_texts import find_style, unit_example, whole_floats_to_integers
from training.engine.batches import Key, SampleSet
from training.engine.runtime import Batch

_MAX_CLASSES = 100
_MAX_SPELLINGS = 10_000
"""With more, the target is no column of classes in any case."""
_YEAR = 365
_SEASONAL_PARTS = ("month", "week", "day_of_year")
_DEFAULT_PARTS = ("month", "week", "day", "weekday", "hour", "day_of_year", "elapsed", "is_month_start", "is_month_end")
"""Parts of dates that are read by default. Not the year: `elapsed` contains it, and extends beyond the last year."""
_MIN_IDENTIFIER_ROWS = 50
"""With fewer rows, a column whose values are all distinct is not taken for an identifier, or a copy of the target."""
_MIN_REPEATS = 5
"""Rows per value from which on it is no coincidence that a column determines the target."""
_MAX_SHOWN = 3


def is_number(frame: pl.DataFrame, target: str, kind: str, path: Path) -> bool:
    """Return whether to predict the target as a number; `kind` is number, class or auto.

    Raises CannotTrain if the column does not exist or cannot be of that kind.
    """
    if target not in frame.columns:
        raise CannotTrain(_describe_missing(frame.columns, target, path))
    column = frame[target].drop_nulls()
    if kind == "number" and not column.dtype.is_numeric():
        example = _first_non_number(column.cast(pl.String).to_list())
        raise CannotTrain(f"The target column '{target}' is not numeric: it contains '{example}'.")
    return (
        kind != "class" and column.dtype.is_numeric() and (kind == "number" or column.n_unique() > MAX_NUMERIC_CLASSES)
    )


def _describe_missing(columns: Sequence[str], target: str, path: Path) -> str:
    message = f"{path} has no column '{target}'; its columns are {', '.join(columns)[:500]}.{suggest(target, columns)}"
    if any(_is_float(name) for name in columns):
        return f"{message} If the first line is a row and no header, name the columns with --header."
    if len(columns) == 1:
        return f"{message} If a character separates several columns, name it with --separator."
    return message


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _first_non_number(values: Sequence[str]) -> str:
    return next((value for value in values if not _is_float(value)), values[0] if values else "")


def merge_labels(frame: pl.DataFrame, target: str) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """Give spellings of one label the same name (`merge_spellings`); return the table, and notes on what was merged."""
    column = frame[target]
    if column.dtype != pl.String:
        return frame, ()
    counts = {str(value): count for value, count in column.drop_nulls().value_counts().iter_rows()}
    if len(counts) > _MAX_SPELLINGS:
        return frame, ()
    merged = merge_spellings(counts)
    return frame.with_columns(pl.col(target).replace(dict(merged.names))), merged.notes


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
        hint = suggest_label(str(rare[0]), {str(value): count for value, count in counts.iter_rows()})
        raise CannotTrain(f"Class '{rare[0]}' of '{target}' has one row; each class needs at least two.{hint}")
    return tuple(values.sort().cast(pl.String).to_list())


def infer_columns(
    frame: pl.DataFrame,
    target: str,
    kinds: ColumnKinds,
    missing_texts: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
    earlier: Sequence[str] = (),
) -> tuple[tuple[Column, ...], tuple[str, ...], list[str]]:
    """Return the input columns, the names of the columns that are left out, and warnings.

    A column that equals the target in every row is left out; one that determines it is read, with a warning.
    `missing_texts` are the texts of each column that count as missing in requests too. `earlier` are warnings from
    reading the table, which may explain why no column is left.

    Raises CannotTrain if a named column does not exist or cannot be of the specified kind, or if a column has the name
    of the target except for case.
    """
    _check_names(frame.columns, target, kinds)
    columns: list[Column] = []
    left_out: list[str] = []
    warnings: list[str] = []
    for name in frame.columns:
        if name == target:
            continue
        column = None if name in kinds.ignored else _infer_column(frame[name], kinds, warnings)
        if column and _is_read(frame, target, name, kinds, warnings):
            columns.append(_with_missing_texts(column, missing_texts.get(name, ())))
        else:
            left_out.append(name)
    if not columns:
        raise CannotTrain(" ".join(["No input column is left.", *earlier, *warnings]))
    return tuple(columns), tuple(left_out), warnings


def _check_names(names: Sequence[str], target: str, kinds: ColumnKinds) -> None:
    for name in (*kinds.categories, *kinds.numbers, *kinds.ignored, *kinds.dates):
        if name not in names:
            raise CannotTrain(f"There is no column '{name}'; the columns are {', '.join(names)}.{suggest(name, names)}")
    if unknown := [name for name in kinds.parts if name not in _dates.PARTS]:
        raise CannotTrain(f"--date-parts {unknown[0]}: the parts of a date are {', '.join(_dates.PARTS)}.")
    named = (*kinds.categories, *kinds.numbers, *kinds.ignored, *kinds.dates)
    for name in names:
        if name not in (target, *named) and name.strip().casefold() == target.strip().casefold():
            raise CannotTrain(
                f"The table has the columns '{target}' and '{name}', and it is not clear whether both are the target. "
                f"Rename or remove one, or leave one out with --ignore {name}."
            )


def _with_missing_texts(column: Column, texts: tuple[str, ...]) -> Column:
    return column if isinstance(column, CategoryColumn) or not texts else replace(column, missing_texts=texts)


def _is_read(frame: pl.DataFrame, target: str, name: str, kinds: ColumnKinds, warnings: list[str]) -> bool:
    """Return whether to read a column that may tell the target; say so if it does."""
    if target not in frame.columns:
        return True
    known = frame.select(pl.col(name).alias("column"), pl.col(target).alias("target")).drop_nulls()
    if known.height < _MIN_IDENTIFIER_ROWS or known["target"].n_unique() < 2:
        return True
    is_named = name in (*kinds.categories, *kinds.numbers, *kinds.dates)
    if _are_equal(known["column"], known["target"]):
        if is_named:
            return True
        warnings.append(
            f"Column '{name}' is left out: it equals the target '{target}' in all {known.height:,} rows. To use it, "
            "name it in --numbers or --categories."
        )
        return False
    if _determines(known) and not is_named:
        warnings.append(
            f"Column '{name}' determines the target '{target}' in all {known.height:,} rows, so the model may learn "
            f"from nothing else. If requests cannot know it, leave it out with --ignore {name}."
        )
    return True


def _are_equal(column: pl.Series, target: pl.Series) -> bool:
    if column.dtype.is_numeric() and target.dtype.is_numeric():
        return bool((column.cast(pl.Float64) == target.cast(pl.Float64)).all())
    if column.dtype.is_nested() or target.dtype.is_nested():
        return False
    return bool((column.cast(pl.String).str.to_lowercase() == target.cast(pl.String).str.to_lowercase()).all())


def _determines(known: pl.DataFrame) -> bool:
    """Whether each value occurs in rows of one target only, and values repeat enough for that to be no coincidence."""
    column, target = known["column"], known["target"]
    if column.dtype.is_nested() or not 2 <= target.n_unique() <= column.n_unique() <= known.height / _MIN_REPEATS:
        return False
    return bool(known.group_by("column").agg(pl.col("target").n_unique())["target"].max() == 1)


def _infer_column(values: pl.Series, kinds: ColumnKinds, warnings: list[str]) -> Column | None:
    name = values.name
    if name in kinds.numbers:
        if not values.dtype.is_numeric():
            texts = values.drop_nulls()
            invalid = texts.cast(pl.String).filter(texts.cast(pl.Float64, strict=False).is_null())
            raise CannotTrain(f"Column '{name}' is not numeric: it contains '{invalid[0]}'.")
        return _number_column(values, warnings)
    if name in kinds.categories:
        return _category_column(values, warnings)
    if name in kinds.dates and not _is_date(values):
        raise CannotTrain(
            f"Column '{name}' does not contain dates: it contains '{values.drop_nulls().cast(pl.String)[0]}'. Dates "
            "are read as 2012-09-01, times as 2012-09-01T08:00, and other usual forms."
        )
    if reason := _reason_to_leave_out(values):
        warnings.append(f"Column '{name}' is left out: {reason}.")
        return None
    if _is_date(values):
        return _date_column(values, kinds.parts)
    if is_identifier(values):
        warnings.append(
            f"Column '{name}' is read as categories: it contains whole numbers above 2^53, which are identifiers and "
            "not amounts. To read it as numbers, which rounds them, name it in --numbers."
        )
        return _category_column(values, warnings)
    return _number_column(values, warnings) if values.dtype.is_numeric() else _category_column(values, warnings)


def _reason_to_leave_out(values: pl.Series) -> str:
    """Return why a column that the user did not name is no input; empty if it is one."""
    known = values.drop_nulls()
    if not len(known):
        return "it is empty"
    distinct = known.n_unique()
    if distinct == 1 and len(known) == len(values):
        return "it has the same value in every row"
    if distinct == 1:
        return f"it has the same value in all {len(known):,} rows that have one"
    if _is_date(values):
        return ""
    if values.dtype.is_temporal() or values.dtype.is_nested() or values.dtype == pl.Binary:
        return f"values of type {values.dtype} are not supported"
    if distinct == len(values) >= _MIN_IDENTIFIER_ROWS and not values.dtype.is_float():
        return f"its values are all distinct, as in an identifier. To use it, {_way_to_use(known)}"
    return ""


def _way_to_use(known: pl.Series) -> str:
    """Say how to have a column read whose values are all distinct; --numbers does so only for numbers."""
    if known.dtype != pl.String or 2 * find_style(known).best >= len(known):
        return "name it in --numbers or --categories"
    unit = unit_example(known)
    return f"name it in --categories, or remove the units ('{unit}')" if unit else "name it in --categories"


def _number_column(values: pl.Series, warnings: list[str]) -> NumberColumn:
    known = values.cast(pl.Float64).drop_nulls().drop_nans()
    if infinite := int(known.is_infinite().sum()):
        counts = "values is infinite and counts" if infinite == 1 else "values are infinite and count"
        warnings.append(f"Column '{values.name}': {infinite:,} of {len(known):,} {counts} as missing.")
    known = known.filter(known.is_finite())
    if not len(known):
        raise CannotTrain(f"Column '{values.name}' contains no numbers.")
    low, high, median = known.min(), known.max(), known.median()
    return NumberColumn(values.name, float(low), float(high), example=float(median))  # type: ignore[arg-type]


def _category_column(values: pl.Series, warnings: list[str]) -> CategoryColumn:
    """The categories, most frequent first."""
    values = whole_floats_to_integers(values)
    name, known = values.name, values.drop_nulls().cast(pl.String)
    counts = known.value_counts().sort(["count", name], descending=[True, False])
    names = tuple(counts[name].to_list())
    if values.dtype == pl.String:
        _note_categories(name, names, len(known), warnings)
    return CategoryColumn(name, names, integer=values.dtype.is_integer(), example=names[0] if names else None)


def _note_categories(name: str, categories: Sequence[str], rows: int, warnings: list[str]) -> None:
    """Say which categories are probably the same, or whether most are too rare to learn anything about."""
    if len(categories) >= _MIN_IDENTIFIER_ROWS and len(categories) > rows / 2:
        warnings.append(
            f"Column '{name}' is read as categories: it has {len(categories):,} distinct texts in {rows:,} rows, such "
            f"as '{categories[0][:40]}'. Texts that are not among them count as unknown."
        )
    first: dict[str, str] = {}
    alike = [(first.setdefault(normalise_spelling(text), text), text) for text in categories]
    if pairs := [f"'{one}' and '{other}'" for one, other in alike if one != other]:
        warnings.append(
            f"Column '{name}' has categories that differ only in case or spaces, and are kept apart: "
            f"{list_items(pairs, _MAX_SHOWN)}."
        )


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
        elif column.integer and values.dtype.is_float():
            lists[column.name] = [_as_whole(value) for value in values.to_list()]
            continue
        elif not column.integer:
            values = values.cast(pl.String)
        lists[column.name] = values.to_list()
    return lists


def _as_whole(value: float | None) -> float | None:
    return None if value is None or np.isnan(value) else int(value) if value.is_integer() else value


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
