"""Ratings and items from tables: who liked what and when, numbered for the network, and what is held out.

The split leaves the last out: of each user's liked items the last one is for testing, the one before it for validation,
and all that they did before that for training.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tasks._items import ItemTable, Scale
from training.core.errors import CannotTrain
from training.data.tables import read_table

_MAX_ITEMS = 100_000
_MAX_LEVELS = 20
_MIN_LIKED = 3
"""Of a user who is asked about: one to test, one to validate, one to know something of them."""
_NAMES = {
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
_TABLES = {"ratings": ("ratings", "interactions", "events"), "items": ("items", "movies", "films", "products", "books")}


@dataclass(frozen=True)
class ColumnNames:
    """What the user says the columns are called; empty: guessed from the usual names."""

    user: str = ""
    item: str = ""
    rating: str = ""
    time: str = ""


@dataclass(frozen=True)
class Person:
    """What one user rated, in order.

    Attributes:
        name: the user's id.
        items: int64 (n,), the items' rows in the table.
        levels: int64 (n,), of the ratings; 0 where there are none.
        liked: bool (n,).
    """

    name: str
    items: NDArray[np.int64]
    levels: NDArray[np.int64]
    liked: NDArray[np.bool_]

    @cached_property
    def held_out(self) -> tuple[int, int] | None:
        """The places of the validation item and of the test item; None where too few were liked to hold any out."""
        places = np.flatnonzero(self.liked)
        if len(places) < _MIN_LIKED:
            return None
        return int(places[-2]), int(places[-1])

    @property
    def trained_until(self) -> int:
        """The place before which all is for training."""
        return self.held_out[0] if self.held_out else len(self.items)


@dataclass(frozen=True)
class Ratings:
    """All that was read.

    Attributes:
        table: the items; those that were rated come first.
        known: how many items were rated.
        people: by the order of their ids in the data.
        scale: None where nobody rated.
        ordered: whether the data says when.
        notices: what was found odd on reading, in sentences.
    """

    table: ItemTable
    known: int
    people: tuple[Person, ...]
    scale: Scale | None
    ordered: bool
    notices: tuple[str, ...]

    @cached_property
    def likes(self) -> NDArray[np.int64]:
        """How many people liked each known item in training, (known,)."""
        rows = [person.items[: person.trained_until][person.liked[: person.trained_until]] for person in self.people]
        return np.bincount(np.concatenate(rows), minlength=self.known)


def read_ratings(data: Path, names: ColumnNames, *, liked: float, seed: int) -> Ratings:
    """The ratings in a table, or in a folder that holds them beside a table of the items.

    `liked` is the rating from which on an item counts as liked; 0: all count. Raises CannotTrain.
    """
    path = _table(data, "ratings") if data.is_dir() else data
    if path is None:
        raise CannotTrain(f"{data} holds no table of ratings: name it ratings.csv, or name the file with --data.")
    notices: list[str] = []
    frame, scale = _cleaned(read_table(path), path, names, liked, notices)
    ordered = "time" in frame.columns
    frame = _in_order(frame, path, seed, notices)
    items = _table(data, "items") if data.is_dir() else None
    ids = frame["item"].unique(maintain_order=True).sort().to_list()
    ids = sorted(ids, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))
    if len(ids) > _MAX_ITEMS:
        raise CannotTrain(f"{path} rates {len(ids):,} items; at most {_MAX_ITEMS:,} are accepted.")
    people = _people(frame, ids, scale)
    table = _item_table(items, ids, names, notices)
    found = Ratings(table, len(ids), people, scale, ordered, tuple(notices))
    _check(found, path)
    likes = (*found.likes.tolist(), *(0 for _ in range(len(table) - len(ids))))
    return Ratings(
        ItemTable(table.ids, table.titles, likes, table.details), len(ids), people, scale, ordered, tuple(notices)
    )


def _table(folder: Path, kind: str) -> Path | None:
    for name in _TABLES[kind]:
        for ending in ("csv", "parquet", "pq"):
            if found := sorted(folder.rglob(f"{name}.{ending}")):
                return found[0]
    return None


def column(frame: pl.DataFrame, kind: str, named: str, path: Path) -> str | None:
    """The column of a kind: the one that is named, or the first with a usual name. Raises CannotTrain."""
    if named:
        if named not in frame.columns:
            raise CannotTrain(f"{path} has no column '{named}'; its columns are {', '.join(frame.columns)}.")
        return named
    plain = {_plain(name): name for name in reversed(frame.columns)}
    return next((plain[name] for name in _NAMES[kind] if name in plain), None)


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace(" ", "").replace("-", "")


def _cleaned(
    frame: pl.DataFrame, path: Path, names: ColumnNames, liked: float, notices: list[str]
) -> tuple[pl.DataFrame, Scale | None]:
    """Columns user, item, and rating and time where there are any; and the scale of the ratings."""
    chosen = {kind: column(frame, kind, getattr(names, kind), path) for kind in ("user", "item", "rating", "time")}
    for kind in ("user", "item"):
        if chosen[kind] is None:
            raise CannotTrain(
                f"{path} has no column that looks like the {kind}'s: name it with --{kind}-column; its columns are "
                f"{', '.join(frame.columns)}."
            )
    found = frame.select(pl.col(name).alias(kind) for kind, name in chosen.items() if name)
    found = found.with_columns(pl.col("user", "item").cast(pl.String))
    needed = found.drop_nulls(["user", "item", *(["rating"] if "rating" in found.columns else [])])
    if needed.height < found.height:
        notices.append(f"{found.height - needed.height:,} rows without a user, an item or a rating are left out.")
    if not needed.height:
        raise CannotTrain(f"{path} holds no row with a user and an item.")
    return needed, _scale(needed, path, liked)


def _scale(frame: pl.DataFrame, path: Path, liked: float) -> Scale | None:
    if "rating" not in frame.columns:
        return None
    column = frame["rating"]
    if not column.dtype.is_numeric():
        odd = column.filter(column.cast(pl.Float64, strict=False).is_null())
        raise CannotTrain(f"{path}: a rating is to be a number, and one is '{odd[0]}'.")
    values = column.cast(pl.Float64).unique().sort().to_numpy()
    if not np.isfinite(values).all():
        raise CannotTrain(f"{path}: a rating is to be a number, and one is infinite or none.")
    low, high = float(values[0]), float(values[-1])
    if low == high:
        return None
    step = float(np.diff(values).min())
    levels = min(_MAX_LEVELS, round((high - low) / step) + 1)
    if liked > high:
        raise CannotTrain(f"--liked {liked:g}: the highest rating in {path} is {high:g}.")
    return Scale(low, high, levels, max(liked, low) if liked else low)


def _in_order(frame: pl.DataFrame, path: Path, seed: int, notices: list[str]) -> pl.DataFrame:
    """By user and time; what happened at one time, and all where there is no time, in an order that is none."""
    if "time" in frame.columns:
        frame = frame.with_columns(_times(frame["time"], path))
        if frame["time"].null_count():
            raise CannotTrain(f"{path}: {frame['time'].null_count():,} rows have no time; give it to all, or to none.")
    else:
        frame = frame.with_columns(time=pl.lit(0.0))
    chance = [
        hashlib.blake2b(f"{seed} {user} {item}".encode(), digest_size=8).digest()
        for user, item in zip(frame["user"].to_list(), frame["item"].to_list(), strict=True)
    ]
    ordered = frame.with_columns(chance=pl.Series(chance)).sort("user", "time", "chance", maintain_order=True)
    once = ordered.unique(["user", "item"], keep="last", maintain_order=True)
    if once.height < ordered.height:
        notices.append(f"{ordered.height - once.height:,} ratings are left out: the same user rated the item later.")
    return once


def _times(values: pl.Series, path: Path) -> pl.Series:
    """Times as numbers that grow."""
    if values.dtype.is_numeric():
        return values.cast(pl.Float64)
    if values.dtype == pl.String:
        read = values.str.to_datetime(strict=False, time_unit="us", time_zone="UTC")
        odd = values.filter(read.is_null() & values.is_not_null())
        if len(odd):
            read = values.str.to_date(strict=False).cast(pl.Datetime("us"))
            odd = values.filter(read.is_null() & values.is_not_null())
        if len(odd):
            raise CannotTrain(f"{path}: '{odd[0]}' cannot be read as a time; write 2024-05-31 12:00:00, or seconds.")
        values = read
    if not values.dtype.is_temporal():
        raise CannotTrain(f"{path}: the column of times holds {values.dtype}, which is no time.")
    return values.cast(pl.Datetime("us")).dt.epoch("us").cast(pl.Float64)


def _people(frame: pl.DataFrame, ids: Sequence[str], scale: Scale | None) -> tuple[Person, ...]:
    rows = {name: row for row, name in enumerate(ids)}
    items = np.array([rows[name] for name in frame["item"].to_list()], np.int64)
    levels, liked = np.zeros(len(items), np.int64), np.ones(len(items), np.bool_)
    if scale:
        ratings = frame["rating"].cast(pl.Float64).to_numpy()
        levels = np.array([scale.level(rating) for rating in ratings], np.int64)
        liked = levels >= scale.liked_from
    users = frame["user"].to_numpy()
    starts = np.flatnonzero(np.concatenate([[True], users[1:] != users[:-1]]))
    ends = [*starts[1:].tolist(), len(users)]
    return tuple(
        Person(str(users[start]), items[start:end], levels[start:end], liked[start:end])
        for start, end in zip(starts.tolist(), ends, strict=True)
    )


def _item_table(path: Path | None, ids: Sequence[str], names: ColumnNames, notices: list[str]) -> ItemTable:
    """Rated items first, then those of the items' table that nobody rated."""
    if path is None:
        return ItemTable(tuple(ids), tuple(ids), (0,) * len(ids))
    read = read_items(path, names.item)
    rows, rated = read.rows, set(ids)
    order = [*ids, *(name for name in read.ids if name not in rated)]
    missing = [name for name in ids if name not in rows]
    if missing:
        notices.append(f"{len(missing):,} items have no row in {path.name}; they are called by their ids.")

    def arranged(values: Sequence[str], otherwise: Sequence[str]) -> tuple[str, ...]:
        return tuple(
            values[rows[name]] if name in rows else other for name, other in zip(order, otherwise, strict=True)
        )

    details = {name: arranged(values, [""] * len(order)) for name, values in read.details.items()}
    return ItemTable(tuple(order), arranged(read.titles, order), (0,) * len(order), details)


def read_items(path: Path, named: str = "") -> ItemTable:
    """A table of items: id, title, and whatever else it says. Raises CannotTrain."""
    frame = read_table(path)
    key = column(frame, "item", named if named in frame.columns else "", path)
    key = key or ("id" if "id" in frame.columns else None)
    if key is None:
        columns = ", ".join(frame.columns)
        raise CannotTrain(f"{path} has no column that looks like the item's id; its columns are {columns}.")
    frame = frame.filter(pl.col(key).is_not_null()).with_columns(pl.all().cast(pl.String))
    doubled = frame.filter(pl.col(key).is_duplicated())[key]
    if len(doubled):
        raise CannotTrain(f"{path} holds the item '{doubled[0]}' twice.")
    title = column(frame, "title", "", path) or key
    ids = frame[key].to_list()
    details = {
        name: tuple(frame[name].fill_null("").to_list())
        for name in frame.columns
        if name not in (key, title, "available")
    }
    withdrawn: tuple[str, ...] = ()
    if "available" in frame.columns:
        said = frame["available"].str.to_lowercase().to_list()
        odd = [word for word in said if word not in (None, "true", "false", "yes", "no", "1", "0")]
        if odd:
            raise CannotTrain(f"{path}: `available` is to be true or false, and one is '{odd[0]}'.")
        withdrawn = tuple(name for name, word in zip(ids, said, strict=True) if word in ("false", "no", "0"))
    titles = tuple(said or name for said, name in zip(frame[title].to_list(), ids, strict=True))
    return ItemTable(tuple(ids), titles, (0,) * len(ids), details, withdrawn)


def _check(found: Ratings, path: Path) -> None:
    """Raises CannotTrain where there is too little to learn from."""
    if len(found.people) < 2:
        raise CannotTrain(f"{path} holds one user; to learn who likes what, it takes many.")
    if found.known < 2:
        raise CannotTrain(f"{path} holds one item; there is nothing to choose from.")
    if not any(person.held_out for person in found.people):
        raise CannotTrain(
            f"No user of {path} likes {_MIN_LIKED} items or more: one to test on, one to validate on, and one to "
            "know something of them."
        )


def kinds_of(values: Sequence[str]) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    """What the values of a column hold, split at `|`, and each row's share of each: float32 (n, kinds)."""
    parts = [[part.strip() for part in value.split("|") if part.strip()] for value in values]
    names = sorted({part for row in parts for part in row})
    places = {name: i for i, name in enumerate(names)}
    shares = np.zeros((len(values), len(names)), np.float32)
    for row, found in enumerate(parts):
        for part in found:
            shares[row, places[part]] = 1 / len(found)
    return tuple(names), shares
