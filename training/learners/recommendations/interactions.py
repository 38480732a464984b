"""Reads tables of ratings and items: numbers the items, orders the ratings of each user, and splits them.

Leave-one-out split: the last liked item of each user is for testing, the one before it for validation, and everything
before that for training.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tasks._items import ItemTable, Scale
from training.core.errors import CannotTrain
from training.data.column_names import find_column
from training.data.column_types import TypeRules, infer_types
from training.data.date_texts import AmbiguousDates, DateTexts, read_date_texts
from training.data.delimited import RECOGNISED, CsvFormat
from training.data.number_texts import MAX_EXACT, whole_floats_to_integers
from training.data.table_files import read_texts

_MAX_ITEMS = 100_000
_MAX_LEVELS = 20
_MINUTE_US = 60_000_000
_MIN_LIKED = 3
"""Liked items of a user with held-out ones: one to test, one to validate, and one for the history."""
_COLUMN_NAMES = {
    "user": ("user", "userid", "customer", "customerid", "member", "memberid", "visitor", "visitorid", "uid"),
    "item": (
        "item",
        "itemid",
        "movie",
        "movieid",
        "product",
        "productid",
        "article",
        "articleid",
        "film",
        "book",
        "iid",
    ),
    "rating": ("rating", "stars", "score", "rate"),
    "time": ("timestamp", "time", "datetime", "date", "ratedat", "createdat"),
    "title": ("title", "name", "itemname", "productname", "movietitle"),
}
_TABLE_NAMES = {
    "ratings": ("ratings", "interactions", "events"),
    "items": ("items", "movies", "films", "products", "books"),
}


@dataclass(frozen=True)
class ColumnNames:
    """Column names given by the user; an empty one is guessed from common names."""

    user: str = ""
    item: str = ""
    rating: str = ""
    time: str = ""


@dataclass(frozen=True)
class TableFormat:
    """How the tables are written; what is empty or None is recognised.

    Attributes:
        csv: separator and encoding of CSV files.
        decimal: the decimal sign of ratings.
        dayfirst: whether the day comes first in times that leave it open.
    """

    csv: CsvFormat = field(default_factory=CsvFormat)
    decimal: str = ""
    dayfirst: bool | None = None


_RECOGNISED = TableFormat()


@dataclass(frozen=True)
class User:
    """The ratings of one user, in order.

    Attributes:
        name: the user's id.
        items: int64 (n,), rows of the item table.
        levels: int64 (n,), the levels of the ratings; 0 if the data has none.
        liked: bool (n,).
    """

    name: str
    items: NDArray[np.int64]
    levels: NDArray[np.int64]
    liked: NDArray[np.bool_]

    @cached_property
    def held_out(self) -> tuple[int, int] | None:
        """The places of the validation item and the test item; None if the user likes too few items."""
        places = np.flatnonzero(self.liked)
        if len(places) < _MIN_LIKED:
            return None
        return int(places[-2]), int(places[-1])

    @property
    def train_end(self) -> int:
        """The place at which the training items end."""
        return self.held_out[0] if self.held_out else len(self.items)


@dataclass(frozen=True)
class Ratings:
    """Ratings of items by users.

    Attributes:
        table: the items; those that were rated come first.
        known: how many items were rated.
        users: in the order of their ids.
        scale: the rating scale; None if there are no ratings, or only one value.
        ordered: whether the data has times.
        warnings: sentences for the user about the data.
    """

    table: ItemTable
    known: int
    users: tuple[User, ...]
    scale: Scale | None
    ordered: bool
    warnings: tuple[str, ...]

    @cached_property
    def likes(self) -> NDArray[np.int64]:
        """How many users like each rated item in training, (known,)."""
        rows = [user.items[: user.train_end][user.liked[: user.train_end]] for user in self.users]
        return np.bincount(np.concatenate(rows), minlength=self.known)


def read_ratings(
    data: Path, names: ColumnNames, form: TableFormat = _RECOGNISED, *, liked: float, seed: int
) -> Ratings:
    """Read a table of ratings, or a folder that holds one and possibly a table of items.

    Args:
        data: the table or the folder.
        names: of the columns.
        form: how the tables are written.
        liked: the lowest rating of a liked item; 0: all rated items are liked.
        seed: decides the order of ratings that have the same time or none.

    Raises CannotTrain.
    """
    path = _find_table(data, "ratings") if data.is_dir() else data
    if path is None:
        raise CannotTrain(
            f"{data} does not contain a table of ratings; name it ratings.csv, or specify the file with --data."
        )
    table = read_texts(path, form.csv)
    warnings: list[str] = list(table.notes)
    frame = _read_types(_select_columns(table.frame, path, names), path, form, warnings)
    frame = _drop_incomplete(frame, path, warnings)
    scale = _rating_scale(frame, path, liked)
    ordered = "time" in frame.columns
    frame = _sort_by_user_and_time(frame, path, seed, warnings)
    ids = frame["item"].unique(maintain_order=True).sort().to_list()
    ids = sorted(ids, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))
    if len(ids) > _MAX_ITEMS:
        raise CannotTrain(f"{path} has ratings of {len(ids):,} items; at most {_MAX_ITEMS:,} are accepted.")
    users = _group_by_user(frame, ids, scale)
    items = _make_item_table(_find_table(data, "items") if data.is_dir() else None, ids, names, form, warnings)
    ratings = Ratings(items, len(ids), users, scale, ordered, tuple(warnings))
    _check(ratings, path)
    likes = (*ratings.likes.tolist(), *(0 for _ in range(len(items) - len(ids))))
    return replace(ratings, table=ItemTable(items.ids, items.titles, likes, items.details))


def _find_table(folder: Path, kind: str) -> Path | None:
    for name in _TABLE_NAMES[kind]:
        for suffix in ("csv", "parquet", "pq"):
            if paths := sorted(folder.rglob(f"{name}.{suffix}")):
                return paths[0]
    return None


def _select_columns(frame: pl.DataFrame, path: Path, names: ColumnNames) -> pl.DataFrame:
    """Return the columns user, item and, if present, rating and time. Raises CannotTrain."""
    columns = {
        kind: find_column(frame.columns, getattr(names, kind), _COLUMN_NAMES[kind], path)
        for kind in ("user", "item", "rating", "time")
    }
    for kind in ("user", "item"):
        if columns[kind] is None:
            raise CannotTrain(
                f"{path} has no column with a usual name for the {kind}; specify it with --{kind}-column. Its "
                f"columns are {', '.join(frame.columns)}."
            )
    return frame.select(pl.col(name).alias(kind) for kind, name in columns.items() if name)


def _read_types(frame: pl.DataFrame, path: Path, form: TableFormat, warnings: list[str]) -> pl.DataFrame:
    """Return ids as text, ratings as numbers and times as float64. Raises CannotTrain."""
    frame = frame.with_columns(read_ids(frame[kind], path) for kind in ("user", "item"))
    if "rating" in frame.columns:
        typed = infer_types(frame.select("rating"), TypeRules(decimal=form.decimal), from_text=True)
        warnings += typed.warnings
        frame = frame.with_columns(typed.columns)
    if "time" in frame.columns:
        frame = frame.with_columns(_times_as_numbers(frame["time"], path, form.dayfirst, warnings))
    return frame


def read_ids(values: pl.Series, path: Path) -> pl.Series:
    """Return ids as they are written: text of any length. Whole numbers that were written as floats (12.0) lose that.

    Raises CannotTrain if a program rounded them.
    """
    what = f"{path}: the ids in column '{values.name}'"
    if values.dtype == pl.String:
        known = values.drop_nulls()
        rounded = known.filter(known.str.contains(r"^[0-9][.,][0-9]+E\+[0-9]+$"))
        if len(rounded):
            raise CannotTrain(f"{what} were rounded by a spreadsheet ('{rounded[0]}'); export them as text.")
        are_floats = known.str.contains(r"^[0-9]+\.0+$").any() and known.str.contains(r"^[0-9]+(\.0+)?$").all()
        return values.str.replace(r"\.0+$", "") if are_floats else values
    if values.dtype.is_float() and (values.abs() > MAX_EXACT).any():
        raise CannotTrain(f"{what} are stored as floating-point numbers, which rounds them; store them as text.")
    return whole_floats_to_integers(values).cast(pl.String)


def _drop_incomplete(frame: pl.DataFrame, path: Path, warnings: list[str]) -> pl.DataFrame:
    """Drop rows without a user, an item or a rating. Raises CannotTrain if none is left."""
    complete = frame.drop_nulls(["user", "item", *(["rating"] if "rating" in frame.columns else [])])
    if complete.height < frame.height:
        warnings.append(f"{frame.height - complete.height:,} rows without a user, an item or a rating were left out.")
    if not complete.height:
        raise CannotTrain(f"{path} contains no row with a user and an item.")
    return complete


def _rating_scale(frame: pl.DataFrame, path: Path, liked: float) -> Scale | None:
    if "rating" not in frame.columns:
        return None
    column = frame["rating"]
    if not column.dtype.is_numeric():
        invalid = column.filter(column.cast(pl.Float64, strict=False).is_null())
        raise CannotTrain(f"{path}: ratings must be numbers, but one is '{invalid[0]}'.")
    values = column.cast(pl.Float64).unique().sort().to_numpy()
    if not np.isfinite(values).all():
        raise CannotTrain(f"{path}: ratings must be numbers, but one is infinite or NaN.")
    low, high = float(values[0]), float(values[-1])
    if low == high:
        return None
    step = float(np.diff(values).min())
    levels = min(_MAX_LEVELS, round((high - low) / step) + 1)
    if liked > high:
        raise CannotTrain(f"--liked {liked:g}: the highest rating in {path} is {high:g}.")
    return Scale(low, high, levels, max(liked, low) if liked else low)


def _sort_by_user_and_time(frame: pl.DataFrame, path: Path, seed: int, warnings: list[str]) -> pl.DataFrame:
    """Sort the rows by user and time, those without a time or with the same time by a hash, without repeated items."""
    if "time" in frame.columns:
        if frame["time"].null_count():
            raise CannotTrain(f"{path}: {frame['time'].null_count():,} rows have no time; all or none must have one.")
    else:
        frame = frame.with_columns(time=pl.lit(0.0))
    hashes = [
        hashlib.blake2b(f"{seed} {user} {item}".encode(), digest_size=8).digest()
        for user, item in zip(frame["user"].to_list(), frame["item"].to_list(), strict=True)
    ]
    ordered = frame.with_columns(hash=pl.Series(hashes)).sort("user", "time", "hash", maintain_order=True)
    latest = ordered.unique(["user", "item"], keep="last", maintain_order=True)
    if latest.height < ordered.height:
        warnings.append(
            f"{ordered.height - latest.height:,} ratings were left out: the same user rated the item later."
        )
    return latest


def _times_as_numbers(values: pl.Series, path: Path, dayfirst: bool | None, warnings: list[str]) -> pl.Series:
    """Return times as float64: numbers as they are, dates in microseconds since 1970. Raises CannotTrain."""
    if values.dtype == pl.String:
        numbers = values.cast(pl.Float64, strict=False)
        if numbers.null_count() == values.null_count():
            return numbers
        read = _read_dates(values, path, dayfirst)
        if read.order or read.zones:
            warnings.append(_describe_times(read))
        return read.dates.cast(pl.Datetime("us")).dt.epoch("us").cast(pl.Float64) - read.offsets * _MINUTE_US
    if values.dtype.is_numeric():
        return values.cast(pl.Float64)
    if not values.dtype.is_temporal():
        raise CannotTrain(f"{path}: the column of times has the type {values.dtype}, which is not a time.")
    return values.cast(pl.Datetime("us")).dt.epoch("us").cast(pl.Float64)


def _read_dates(values: pl.Series, path: Path, dayfirst: bool | None) -> DateTexts:
    try:
        read = read_date_texts(values, dayfirst=dayfirst)
    except AmbiguousDates as error:
        raise CannotTrain(f"{path}: the column of times {error}.") from None
    invalid = values.filter(values.is_not_null() & (read.dates.is_null() if read else True))
    if read is None or len(invalid):
        known = len(values) - values.null_count()
        raise CannotTrain(
            f"{path}: '{invalid[0]}' cannot be read as a time, as {len(invalid):,} of {known:,} cannot; write "
            "2024-05-31 12:00:00, or seconds."
        )
    return read


def _describe_times(read: DateTexts) -> str:
    text, moment = read.example
    order = f" with the {read.order} first" if read.order else ""
    zones = f" Time zones ({', '.join(read.zones[:3])}) are taken into account." if read.zones else ""
    return f"Times are read{order}: '{text}' is {moment}.{zones}"


def _group_by_user(frame: pl.DataFrame, ids: Sequence[str], scale: Scale | None) -> tuple[User, ...]:
    rows = {name: row for row, name in enumerate(ids)}
    items = np.array([rows[name] for name in frame["item"].to_list()], np.int64)
    levels, liked = np.zeros(len(items), np.int64), np.ones(len(items), np.bool_)
    if scale:
        ratings = frame["rating"].cast(pl.Float64).to_numpy()
        levels = np.array([scale.level(rating) for rating in ratings], np.int64)
        liked = levels >= scale.liked_from
    names = frame["user"].to_numpy()
    starts = np.flatnonzero(np.concatenate([[True], names[1:] != names[:-1]])).tolist()
    ends = [*starts[1:], len(names)]
    return tuple(
        User(str(names[start]), items[start:end], levels[start:end], liked[start:end])
        for start, end in zip(starts, ends, strict=True)
    )


def _make_item_table(
    path: Path | None, ids: Sequence[str], names: ColumnNames, form: TableFormat, warnings: list[str]
) -> ItemTable:
    """Return the rated items, followed by items of the table that no user rated."""
    if path is None:
        return ItemTable(tuple(ids), tuple(ids), (0,) * len(ids))
    table = read_items(path, names.item, form.csv, warnings)
    rows, rated = table.rows, set(ids)
    order = [*ids, *(name for name in table.ids if name not in rated)]
    missing = [name for name in ids if name not in rows]
    if missing:
        warnings.append(f"{len(missing):,} items have no row in {path.name}; their ids serve as titles.")

    def reorder(values: Sequence[str], defaults: Sequence[str]) -> tuple[str, ...]:
        return tuple(
            values[rows[name]] if name in rows else default for name, default in zip(order, defaults, strict=True)
        )

    details = {name: reorder(values, [""] * len(order)) for name, values in table.details.items()}
    return ItemTable(tuple(order), reorder(table.titles, order), (0,) * len(order), details)


def read_items(
    path: Path, item_column: str = "", form: CsvFormat = RECOGNISED, notes: list[str] | None = None
) -> ItemTable:
    """Read a table of items with an id, a title and any further columns. Raises CannotTrain.

    Sentences on how the file was read are appended to `notes`.
    """
    read = read_texts(path, form)
    frame = read.frame
    if notes is not None:
        notes += read.notes
    given = item_column if item_column in frame.columns else ""
    id_column = find_column(frame.columns, given, _COLUMN_NAMES["item"], path)
    id_column = id_column or ("id" if "id" in frame.columns else None)
    if id_column is None:
        columns = ", ".join(frame.columns)
        raise CannotTrain(f"{path} has no column with a usual name for the item's id; its columns are {columns}.")
    frame = frame.with_columns(read_ids(frame[id_column], path)).filter(pl.col(id_column).is_not_null())
    frame = frame.with_columns(pl.all().cast(pl.String))
    repeated = frame.filter(pl.col(id_column).is_duplicated())[id_column]
    if len(repeated):
        raise CannotTrain(f"{path} contains the item '{repeated[0]}' twice.")
    title_column = find_column(frame.columns, "", _COLUMN_NAMES["title"], path) or id_column
    ids = frame[id_column].to_list()
    titles = tuple(title or name for title, name in zip(frame[title_column].to_list(), ids, strict=True))
    details = {
        name: tuple(frame[name].fill_null("").to_list())
        for name in frame.columns
        if name not in (id_column, title_column, "available")
    }
    return ItemTable(tuple(ids), titles, (0,) * len(ids), details, _withdrawn_items(frame, ids, path))


def _withdrawn_items(frame: pl.DataFrame, ids: Sequence[str], path: Path) -> tuple[str, ...]:
    """Return the ids of items that the column `available`, if there is one, says are withdrawn."""
    if "available" not in frame.columns:
        return ()
    values = frame["available"].str.to_lowercase().to_list()
    invalid = [value for value in values if value not in (None, "true", "false", "yes", "no", "1", "0")]
    if invalid:
        raise CannotTrain(f"{path}: `available` must be true or false, but one is '{invalid[0]}'.")
    return tuple(name for name, value in zip(ids, values, strict=True) if value in ("false", "no", "0"))


def _check(ratings: Ratings, path: Path) -> None:
    """Raise CannotTrain if there is too little to learn from."""
    if len(ratings.users) < 2:
        raise CannotTrain(f"{path} contains only one user; training needs many.")
    if ratings.known < 2:
        raise CannotTrain(f"{path} contains only one item; training needs many.")
    if not any(user.held_out for user in ratings.users):
        raise CannotTrain(
            f"No user of {path} likes {_MIN_LIKED} items or more: one to test, one to validate, and one for the "
            "history."
        )


def encode_features(values: Sequence[str]) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    """Encode values that are lists separated by `|` (genres).

    Returns the distinct elements, and each row's fraction of each of them, (n, elements): its sum is 1, or 0 if the
    value is empty.
    """
    parts = [[part.strip() for part in value.split("|") if part.strip()] for value in values]
    names = sorted({part for row in parts for part in row})
    columns = {name: i for i, name in enumerate(names)}
    fractions = np.zeros((len(values), len(names)), np.float32)
    for row, elements in enumerate(parts):
        for element in elements:
            fractions[row, columns[element]] = 1 / len(elements)
    return tuple(names), fractions
