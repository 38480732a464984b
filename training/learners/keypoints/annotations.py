"""Tables of points in pictures: a row for each picture, two columns for each point; read and checked."""

import csv
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.core.errors import CannotTrain
from training.data.images import decode_file, filter_readable

_NAMED = re.compile(r".+[ _.][xyXY]")
_X, _Y = re.compile(r"(.+?)[ _.]?[xX]"), re.compile(r"(.+?)[ _.]?[yY]")
_NO_VALUE = {"", "nan", "na", "none", "null"}


@dataclass(frozen=True)
class Marked:
    """A picture with its points.

    Attributes:
        points: float64 (k, 2), pixels from the upper left corner of the upright picture; NaN where one is missing.
        group: pictures of one group (a person, a film) lie on one side of a split.
    """

    path: Path
    points: NDArray[np.float64]
    group: str


@dataclass(frozen=True)
class PointData:
    """What tables say of pictures. `grouped` says whether the groups were named, or are copies of a picture only."""

    names: tuple[str, ...]
    marked: tuple[Marked, ...]
    grouped: bool
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class TableRules:
    """How tables are read.

    Attributes:
        tables: the CSV files, relative to the folder; none: the only one in it.
        pictures: for each table the folder of its pictures, relative to the table; none: the table's own.
        names: of the points, where the header does not name them.
        group_column: the column that says which pictures belong together.
        group_pattern: a regular expression; what it (or its first group) matches in a file's name does the same.
        outside: what happens to points outside their picture: refuse, clip or drop.
        unreadable: what happens to pictures that cannot be decoded: refuse or skip.
        size: pixels that the network needs of a side.
    """

    tables: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    group_column: str = ""
    group_pattern: str = ""
    outside: str = "refuse"
    unreadable: str = "refuse"
    size: int = 128


@dataclass(frozen=True)
class _Row:
    """A row of a table: where it stands, for messages, and what it says."""

    where: str
    path: Path
    points: NDArray[np.float64]
    group: str = field(default="")


def read_points(data: Path, rules: TableRules) -> PointData:
    """The pictures that tables list, with their points. `data` is a CSV file, or a folder that holds them.

    The first column of a table names the picture's file; the others come in pairs, `nose_x, nose_y, …`, or plainly x
    and y in turn. An empty cell is a missing point.

    Raises CannotTrain: no table, columns that are no pairs, a picture that is named twice, missing or unreadable, a
    value that is no number, a point outside its picture.
    """
    if rules.pictures and len(rules.pictures) != max(1, len(rules.tables)):
        raise CannotTrain(f"--pictures names {len(rules.pictures)} folders for {max(1, len(rules.tables))} tables.")
    names: tuple[str, ...] | None = None
    rows: list[_Row] = []
    for number, table in enumerate(_tables(data, rules.tables)):
        folder = table.parent / rules.pictures[number] if rules.pictures else table.parent
        own, read = _read_table(table, folder, rules)
        if names not in (None, own):
            raise CannotTrain(f"{table} has other points than the table before it.")
        names, rows = own, rows + read
    _refuse_twice(rows)
    notices: list[str] = []
    perceptual_hash = dict(
        filter_readable([row.path for row in rows], unreadable=rules.unreadable, size=rules.size, warnings=notices)
    )
    kept = [row for row in rows if row.path in perceptual_hash]
    marked = _within(kept, rules, notices)
    grouped = bool(rules.group_column or rules.group_pattern)
    if not grouped:
        marked = [Marked(each.path, each.points, perceptual_hash[each.path]) for each in marked]
    _check_enough(names or (), marked, data)
    return PointData(names or (), tuple(marked), grouped, tuple(notices))


def _tables(data: Path, named: Sequence[str]) -> list[Path]:
    if data.is_file():
        return [data]
    if not named:
        found = sorted(path for path in data.rglob("*.csv") if not path.name.startswith("."))
        if len(found) != 1:
            raise CannotTrain(
                f"{data} holds {len(found)} CSV files; it needs one with the points of its pictures"
                + (", or --tables to name those that are meant." if found else ".")
            )
        return found
    tables = []
    for name in named:
        found = sorted(data.rglob(name))
        if len(found) != 1:
            raise CannotTrain(f"{data} holds {len(found)} files '{name}', and --tables needs one.")
        tables += found
    return tables


def _read_table(table: Path, folder: Path, rules: TableRules) -> tuple[tuple[str, ...], list[_Row]]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            lines = [line for line in csv.reader(file) if any(cell.strip() for cell in line)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CannotTrain(f"{table} cannot be read as a table: {error}.") from None
    if len(lines) < 2:
        raise CannotTrain(f"{table} holds no rows below its header.")
    header = [cell.strip() for cell in lines[0]]
    names, places, group = _columns(table, header, rules)
    rows = []
    for number, line in enumerate(lines[1:], 2):
        where = f"{table}, row {number}"
        if len(line) != len(header):
            raise CannotTrain(f"{where} has {len(line)} cells, and the header {len(header)}.")
        path = folder / line[0].strip()
        if not line[0].strip() or not _is_file(path):
            raise CannotTrain(f"{where} names the picture '{line[0]}', and {path} is no file.")
        points = np.array([_point(where, name, line[x], line[y]) for name, (x, y) in zip(names, places, strict=True)])
        rows.append(_Row(where, path, points, _group(where, path, line, group, rules)))
    return names, rows


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # A name that is longer than any file's.
        return False


def _columns(
    table: Path, header: Sequence[str], rules: TableRules
) -> tuple[tuple[str, ...], list[tuple[int, int]], int | None]:
    """The points' names, the columns of their x and y, and the column of the group."""
    group = None
    if rules.group_column:
        if rules.group_column not in header[1:]:
            raise CannotTrain(f"{table} has no column '{rules.group_column}' for --group-column.")
        group = header.index(rules.group_column, 1)
    columns = [index for index in range(1, len(header)) if index != group]
    if not columns or len(columns) % 2:
        raise CannotTrain(
            f"{table} has {len(columns)} columns of coordinates; it needs two for each point, x and y, after the "
            "picture's name."
        )
    if twice := [name for name, count in Counter(header[1:]).items() if count > 1]:
        raise CannotTrain(f"{table} has two columns named '{twice[0]}'.")
    places = [(columns[i], columns[i + 1]) for i in range(0, len(columns), 2)]
    found = [_pair_name(header[x], header[y]) for x, y in places]
    if all(found):
        names = tuple(name for name in found if name)
        return _unique(table, rules.names or names, len(places)), places, group
    named = any(found) or any(_NAMED.fullmatch(header[index]) for index in columns)
    if named and not rules.names:
        x, y = places[found.index(None)]
        raise CannotTrain(
            f"{table}: the columns '{header[x]}' and '{header[y]}' are no pair, such as nose_x and nose_y."
        )
    return (
        _unique(table, rules.names or tuple(f"point_{i + 1}" for i in range(len(places))), len(places)),
        places,
        group,
    )


def _pair_name(x: str, y: str) -> str | None:
    one, other = _X.fullmatch(x), _Y.fullmatch(y)
    return one[1] if one and other and one[1] == other[1] else None


def _unique(table: Path, names: tuple[str, ...], count: int) -> tuple[str, ...]:
    if len(names) != count:
        raise CannotTrain(f"{table} has {count} points, and --names names {len(names)}.")
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise CannotTrain(f"Two points are named '{twice[0]}'.")
    return names


def _point(where: str, name: str, x: str, y: str) -> tuple[float, float]:
    found = []
    for axis, cell in (("x", x), ("y", y)):
        text = cell.strip()
        try:
            value = np.nan if text.lower() in _NO_VALUE else float(text)
        except ValueError:
            value = np.inf
        if np.isinf(value):
            raise CannotTrain(f"{where}: the {axis} of '{name}' is '{text}', which is no number.")
        found.append(value)
    if np.isnan(found).sum() == 1:
        raise CannotTrain(f"{where}: '{name}' has one coordinate of two; a missing point has neither.")
    return found[0], found[1]


def _group(where: str, path: Path, line: Sequence[str], column: int | None, rules: TableRules) -> str:
    if column is not None:
        return line[column].strip()
    if not rules.group_pattern:
        return ""
    try:
        match = re.search(rules.group_pattern, path.name)
    except re.error as error:
        raise CannotTrain(f"--group-pattern is no regular expression: {error}.") from None
    if not match:
        raise CannotTrain(f"{where}: --group-pattern finds nothing in '{path.name}'.")
    return match[1] if match.re.groups else match[0]


def _refuse_twice(rows: Sequence[_Row]) -> None:
    first: dict[Path, str] = {}
    for row in rows:
        if row.path in first:
            raise CannotTrain(f"{row.where} names {row.path.name} once more: it stands in {first[row.path]} already.")
        first[row.path] = row.where


def _within(rows: Sequence[_Row], rules: TableRules, notices: list[str]) -> list[Marked]:
    """The rows with what lies outside their pictures refused, clipped to the edge or dropped."""

    def size(row: _Row) -> tuple[int, int]:
        picture = decode_file(row.path, rules.size)
        return picture.width, picture.height

    found, moved = [], 0
    with ThreadPoolExecutor() as pool:
        for row, (width, height) in zip(rows, pool.map(size, rows), strict=True):
            points = row.points
            outside: NDArray[np.bool_] = np.any((points < 0) | (points > (width, height)), axis=1)
            if outside.any():
                if rules.outside == "refuse":
                    x, y = points[outside][0]
                    raise CannotTrain(
                        f"{row.where}: a point at ({x:g}, {y:g}) lies outside its picture of {width}×{height} pixels; "
                        "mend it, or train with --outside clip or --outside drop."
                    )
                clipped = points.clip(0, (width, height))
                points = clipped if rules.outside == "clip" else np.where(outside[:, np.newaxis], np.nan, points)
                moved += int(outside.sum())
            found.append(Marked(row.path, points, row.group))
    if moved:
        done = "moved to the edge of" if rules.outside == "clip" else "left out, being outside"
        notices.append(f"{moved} points {done} their pictures.")
    bare = [each for each in found if np.isnan(each.points).all()]
    if bare:
        notices.append(f"{len(bare)} pictures left out: none of their points is known.")
    return [each for each in found if not np.isnan(each.points).all()]


def _check_enough(names: Sequence[str], marked: Sequence[Marked], data: Path) -> None:
    if len({each.group for each in marked}) < 2:
        raise CannotTrain(f"{data} has pictures of one group only, or no two that differ: some must be held out.")
    missing: NDArray[np.bool_] = np.all(np.isnan(np.stack([each.points for each in marked])).any(axis=2), axis=0)
    for name, absent in zip(names, missing, strict=True):
        if absent:
            raise CannotTrain(f"The point '{name}' is missing in every picture.")
