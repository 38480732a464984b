"""Keypoint tables: CSV files with one row per image and two columns per point."""

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

_COORDINATE_NAME = re.compile(r".+[ _.][xyXY]")
_X_NAME, _Y_NAME = re.compile(r"(.+?)[ _.]?[xX]"), re.compile(r"(.+?)[ _.]?[yY]")
_MISSING = {"", "nan", "na", "none", "null"}


@dataclass(frozen=True)
class AnnotatedImage:
    """An image and its points.

    Attributes:
        points: float64 (k, 2), pixels from the upper left corner of the upright image; NaN for a missing point.
        group: images of one group (a person, a video) stay on one side of a split.
    """

    path: Path
    points: NDArray[np.float64]
    group: str


@dataclass(frozen=True)
class KeypointData:
    """The contents of keypoint tables.

    Attributes:
        names: the names of the points.
        images: the images with their points.
        has_groups: whether groups were given; otherwise the copies of an image form a group.
        warnings: sentences for the user.
    """

    names: tuple[str, ...]
    images: tuple[AnnotatedImage, ...]
    has_groups: bool
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class TableRules:
    """How to read keypoint tables.

    Attributes:
        tables: the CSV files, relative to the data folder; if empty, the only one in it.
        image_folders: the image folder of each table, relative to the table; if empty, the table's own folder.
        names: the names of the points, if the header does not contain them.
        group_column: the column with the group of each image.
        group_pattern: a regular expression whose first group (or whole match) in the file name is the image's group.
        outside: what to do with points outside their image: refuse, clip or drop.
        unreadable: what to do with images that cannot be decoded: refuse or skip.
        size: side length of the network's input, in pixels.
    """

    tables: tuple[str, ...] = ()
    image_folders: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    group_column: str = ""
    group_pattern: str = ""
    outside: str = "refuse"
    unreadable: str = "refuse"
    size: int = 128


@dataclass(frozen=True)
class _Row:
    """A row of a table; `location` names its table and row in error messages."""

    location: str
    path: Path
    points: NDArray[np.float64]
    group: str = field(default="")


def read_keypoints(data: Path, rules: TableRules) -> KeypointData:
    """Read the images that tables list, with their points. `data` is a CSV file or a folder that contains them.

    The first column of a table is the image's file name. The other columns come in pairs, such as `nose_x, nose_y, …`,
    or simply alternate between x and y. An empty cell is a missing point.

    Raises CannotTrain if there is no table, the columns do not form pairs, an image is listed twice, missing or
    unreadable, a value is not a number, or a point lies outside its image.
    """
    table_count = max(1, len(rules.tables))
    if rules.image_folders and len(rules.image_folders) != table_count:
        raise CannotTrain(f"--image-folders names {len(rules.image_folders)} folders for {table_count} tables.")
    names: tuple[str, ...] | None = None
    rows: list[_Row] = []
    for number, table in enumerate(_find_tables(data, rules.tables)):
        folder = table.parent / rules.image_folders[number] if rules.image_folders else table.parent
        table_names, table_rows = _read_table(table, folder, rules)
        if names not in (None, table_names):
            raise CannotTrain(f"{table} has other points than the table before it.")
        names, rows = table_names, rows + table_rows
    _refuse_duplicates(rows)
    warnings: list[str] = []
    paths = [row.path for row in rows]
    hashes = dict(filter_readable(paths, unreadable=rules.unreadable, size=rules.size, warnings=warnings))
    images = _handle_points_outside([row for row in rows if row.path in hashes], rules, warnings)
    has_groups = bool(rules.group_column or rules.group_pattern)
    if not has_groups:
        images = [AnnotatedImage(image.path, image.points, hashes[image.path]) for image in images]
    _check_usable(names or (), images, data)
    return KeypointData(names or (), tuple(images), has_groups, tuple(warnings))


def _find_tables(data: Path, names: Sequence[str]) -> list[Path]:
    if data.is_file():
        return [data]
    if not names:
        files = sorted(path for path in data.rglob("*.csv") if not path.name.startswith("."))
        if len(files) != 1:
            raise CannotTrain(
                f"{data} contains {len(files)} CSV files; exactly one with the points of the images is needed"
                + (". Name the tables with --tables." if files else ".")
            )
        return files
    tables = []
    for name in names:
        files = sorted(data.rglob(name))
        if len(files) != 1:
            raise CannotTrain(f"{data} contains {len(files)} files '{name}'; --tables needs exactly one.")
        tables += files
    return tables


def _read_table(table: Path, folder: Path, rules: TableRules) -> tuple[tuple[str, ...], list[_Row]]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            lines = [line for line in csv.reader(file) if any(cell.strip() for cell in line)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CannotTrain(f"{table} cannot be read as a CSV file: {error}.") from None
    if len(lines) < 2:
        raise CannotTrain(f"{table} has no rows below its header.")
    header = [cell.strip() for cell in lines[0]]
    names, columns, group_column = _parse_header(table, header, rules)
    rows = []
    for number, line in enumerate(lines[1:], 2):
        location = f"{table}, row {number}"
        if len(line) != len(header):
            raise CannotTrain(f"{location} has {len(line)} cells, but the header has {len(header)}.")
        path = folder / line[0].strip()
        if not line[0].strip() or not _is_file(path):
            raise CannotTrain(f"{location} names the image '{line[0]}', but there is no file {path}.")
        points = np.array(
            [_parse_point(location, name, line[x], line[y]) for name, (x, y) in zip(names, columns, strict=True)]
        )
        rows.append(_Row(location, path, points, _parse_group(location, path, line, group_column, rules)))
    return names, rows


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # A name longer than the file system allows.
        return False


def _parse_header(
    table: Path, header: Sequence[str], rules: TableRules
) -> tuple[tuple[str, ...], list[tuple[int, int]], int | None]:
    """Return the names of the points, the columns of their x and y, and the column of the group."""
    group_column = None
    if rules.group_column:
        if rules.group_column not in header[1:]:
            raise CannotTrain(f"{table} has no column '{rules.group_column}' for --group-column.")
        group_column = header.index(rules.group_column, 1)
    columns = [index for index in range(1, len(header)) if index != group_column]
    if not columns or len(columns) % 2:
        raise CannotTrain(
            f"{table} has {len(columns)} columns of coordinates. After the image's name there must be two columns per "
            "point, x and y."
        )
    if duplicates := [name for name, count in Counter(header[1:]).items() if count > 1]:
        raise CannotTrain(f"{table} has two columns named '{duplicates[0]}'.")
    pairs = [(columns[i], columns[i + 1]) for i in range(0, len(columns), 2)]
    pair_names = [_name_pair(header[x], header[y]) for x, y in pairs]
    if all(pair_names):
        names = rules.names or tuple(name for name in pair_names if name)
        return _check_names(table, names, len(pairs)), pairs, group_column
    is_named = any(pair_names) or any(_COORDINATE_NAME.fullmatch(header[index]) for index in columns)
    if is_named and not rules.names:
        x, y = pairs[pair_names.index(None)]
        raise CannotTrain(
            f"{table}: the columns '{header[x]}' and '{header[y]}' are not a pair such as nose_x and nose_y."
        )
    names = rules.names or tuple(f"point_{i + 1}" for i in range(len(pairs)))
    return _check_names(table, names, len(pairs)), pairs, group_column


def _name_pair(x_column: str, y_column: str) -> str | None:
    """Return the name of the point with these columns; None if they do not form a pair."""
    x_match, y_match = _X_NAME.fullmatch(x_column), _Y_NAME.fullmatch(y_column)
    return x_match[1] if x_match and y_match and x_match[1] == y_match[1] else None


def _check_names(table: Path, names: tuple[str, ...], count: int) -> tuple[str, ...]:
    if len(names) != count:
        raise CannotTrain(f"{table} has {count} points, but --names has {len(names)} names.")
    if duplicates := [name for name, occurrences in Counter(names).items() if occurrences > 1]:
        raise CannotTrain(f"Two points are named '{duplicates[0]}'.")
    return names


def _parse_point(location: str, name: str, x: str, y: str) -> tuple[float, float]:
    coordinates = []
    for axis, cell in (("x", x), ("y", y)):
        text = cell.strip()
        try:
            value = np.nan if text.lower() in _MISSING else float(text)
        except ValueError:
            value = np.inf
        if np.isinf(value):
            raise CannotTrain(f"{location}: the {axis} of '{name}' is '{text}', which is not a number.")
        coordinates.append(value)
    if np.isnan(coordinates).sum() == 1:
        raise CannotTrain(f"{location}: '{name}' has only one coordinate; leave both empty for a missing point.")
    return coordinates[0], coordinates[1]


def _parse_group(location: str, path: Path, line: Sequence[str], column: int | None, rules: TableRules) -> str:
    if column is not None:
        return line[column].strip()
    if not rules.group_pattern:
        return ""
    try:
        match = re.search(rules.group_pattern, path.name)
    except re.error as error:
        raise CannotTrain(f"--group-pattern is not a valid regular expression: {error}.") from None
    if not match:
        raise CannotTrain(f"{location}: --group-pattern does not match '{path.name}'.")
    return match[1] if match.re.groups else match[0]


def _refuse_duplicates(rows: Sequence[_Row]) -> None:
    first: dict[Path, str] = {}
    for row in rows:
        if row.path in first:
            raise CannotTrain(f"{row.location} lists {row.path.name}, which is already listed in {first[row.path]}.")
        first[row.path] = row.location


def _handle_points_outside(rows: Sequence[_Row], rules: TableRules, warnings: list[str]) -> list[AnnotatedImage]:
    """Refuse, clip or drop points outside their image, then leave out images without any point."""

    def image_size(row: _Row) -> tuple[int, int]:
        image = decode_file(row.path, rules.size)
        return image.width, image.height

    images, changed = [], 0
    with ThreadPoolExecutor() as pool:
        for row, (width, height) in zip(rows, pool.map(image_size, rows), strict=True):
            points = row.points
            outside: NDArray[np.bool_] = np.any((points < 0) | (points > (width, height)), axis=1)
            if outside.any():
                if rules.outside == "refuse":
                    x, y = points[outside][0]
                    raise CannotTrain(
                        f"{row.location}: the point ({x:g}, {y:g}) lies outside its image of {width}×{height} pixels. "
                        "Correct it, or use --outside clip or --outside drop."
                    )
                clipped = points.clip(0, (width, height))
                points = clipped if rules.outside == "clip" else np.where(outside[:, np.newaxis], np.nan, points)
                changed += int(outside.sum())
            images.append(AnnotatedImage(row.path, points, row.group))
    if changed:
        action = "clipped to the edge of" if rules.outside == "clip" else "dropped, since they lie outside"
        warnings.append(f"{changed} points {action} their images.")
    annotated = [image for image in images if not np.isnan(image.points).all()]
    if len(annotated) < len(images):
        warnings.append(f"{len(images) - len(annotated)} images left out: they have no points.")
    return annotated


def _check_usable(names: Sequence[str], images: Sequence[AnnotatedImage], data: Path) -> None:
    if len({image.group for image in images}) < 2:
        raise CannotTrain(f"{data} has images of only one group, which leaves none for validation.")
    missing: NDArray[np.bool_] = np.all(np.isnan(np.stack([image.points for image in images])).any(axis=2), axis=0)
    for name, is_missing in zip(names, missing, strict=True):
        if is_missing:
            raise CannotTrain(f"The point '{name}' is missing in every image.")
