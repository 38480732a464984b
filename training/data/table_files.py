"""Reads the files of tables, CSV and Parquet, and gives their columns types."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl

from tasks._tables import MISSING_TEXTS
from training.core.errors import CannotTrain
from training.data.column_types import TypeRules, infer_types
from training.data.delimited import RECOGNISED, CsvFormat, TextTable, read_delimited


@dataclass(frozen=True)
class LoadedTable:
    """A table with the types of its columns.

    Attributes:
        frame: numbers, dates without a time zone, and texts; null for a missing value.
        warnings: sentences for the user on how it was read.
        category_notes: by column, that sentence of them which says why it is one of categories.
        missing_texts: by column, texts that stand for a missing value there; see `TypedColumns`.
    """

    frame: pl.DataFrame
    warnings: tuple[str, ...] = ()
    missing_texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    category_notes: Mapping[str, str] = field(default_factory=dict)


_INFERRED = TypeRules()


def read_table(path: Path, form: CsvFormat = RECOGNISED, rules: TypeRules = _INFERRED) -> LoadedTable:
    """Read a CSV or Parquet file, and infer the types of its columns (`infer_types`).

    Texts are stripped, and those that stand for missing values become null. Raises CannotTrain.
    """
    table = read_texts(path, form)
    warnings = [*table.notes, *_drop_notes(table.frame, rules)]
    typed = infer_types(_without_zones(table.frame), rules, from_text=not table.is_typed)
    frame = pl.DataFrame(typed.columns)
    return LoadedTable(frame, (*warnings, *typed.warnings), typed.missing_texts, typed.category_notes)


def read_texts(path: Path, form: CsvFormat = RECOGNISED) -> TextTable:
    """Read a file without inferring types: stripped texts, null where values are missing, and no blank rows.

    Raises CannotTrain.
    """
    table = read_cells(path, form)
    frame = _clean_texts(table.frame)
    frame = frame.filter(~pl.all_horizontal(pl.all().is_null())) if frame.width else frame
    if not frame.height:
        raise CannotTrain(f"{path} has no rows.")
    return replace(table, frame=frame)


def read_cells(path: Path, form: CsvFormat = RECOGNISED) -> TextTable:
    """Read a CSV or Parquet file as it is written. Raises CannotTrain."""
    return TextTable(_read_parquet(path), is_typed=True) if _is_parquet(path) else read_delimited(path, form)


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
    return {
        name: dtype.time_zone
        for name, dtype in frame.schema.items()
        if isinstance(dtype, pl.Datetime) and dtype.time_zone
    }


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
