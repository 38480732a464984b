"""Keypoint tables: CSV files with one row per image and two columns per point, read and checked."""

import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from numpy.typing import NDArray

from training.core.errors import CannotTrain
from training.data.delimited import CsvFormat
from training.data.images import decode_file, filter_readable, image_files
from training.learners.keypoints.columns import PointColumns, TableColumns, find_columns
from training.learners.keypoints.csv_table import CsvTable, read_csv_table

_MISSING = {"", "nan", "na", "none", "null"}
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+")
_FILE_NAME = re.compile(r".+\.(jpe?g|jpe|png|webp|bmp|gif|tiff?|heic)", re.IGNORECASE)
_ROWS_TO_FIND_IMAGES = 50
_VISIBILITIES = {
    **dict.fromkeys(("0", "false", "no", "absent"), 0),
    **dict.fromkeys(("1", "hidden", "occluded"), 1),
    **dict.fromkeys(("2", "true", "yes", "visible"), 2),
}
"""COCO's numbers: 0 = not in the image, 1 = hidden, 2 = visible."""
_MAX_FRACTION = 1.5
"""Coordinates that are all at most this are fractions of the image's size, of which some lie a little outside."""


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
        zero: what points at exactly (0, 0) are if no visibility says so: refuse, missing or point.
        unreadable: what to do with images that cannot be decoded: refuse or skip.
        size: side length of the network's input, in pixels.
        separator, encoding: of the tables; see `CsvFormat`.
    """

    tables: tuple[str, ...] = ()
    image_folders: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    group_column: str = ""
    group_pattern: str = ""
    outside: str = "refuse"
    zero: str = "refuse"
    unreadable: str = "refuse"
    size: int = 128
    separator: str = ""
    encoding: str = ""


@dataclass(frozen=True)
class _Row:
    """A row of a table; `location` names its table and row in error messages.

    Attributes:
        points: (k, 2); NaN for a missing point.
        is_known: (k,), whether a visibility says that the point is in the image.
    """

    location: str
    path: Path
    points: NDArray[np.float64]
    is_known: NDArray[np.bool_]
    group: str = field(default="")


def read_keypoints(data: Path, rules: TableRules) -> KeypointData:
    """Read the images that tables list, with their points. `data` is a CSV file or a folder that contains them.

    A table has a column of file names and two columns for each point, paired by their names, such as `nose_x` and
    `nose_y`, or alternating between x and y if they have no names. An empty cell is a missing point, and so is a point
    whose visibility is 0.

    Raises CannotTrain if there is no table, the columns do not form pairs, an image is listed twice, missing or
    unreadable, a value is not a number, a point lies outside its image, or (0, 0) may mean a point that is absent.
    """
    table_count = max(1, len(rules.tables))
    if rules.image_folders and len(rules.image_folders) != table_count:
        raise CannotTrain(f"--image-folders names {len(rules.image_folders)} folders for {table_count} tables.")
    names: tuple[str, ...] = ()
    rows: list[_Row] = []
    warnings: list[str] = []
    folders: list[Path] = []
    for number, table in enumerate(_find_tables(data, rules.tables)):
        folder = table.parent / rules.image_folders[number] if rules.image_folders else table.parent
        table_names, table_rows = _read_table(table, folder, rules, warnings)
        names = names or table_names
        rows += _reorder_points(table, table_rows, table_names, names)
        folders.append(folder)
    _refuse_duplicates(rows)
    rows = _handle_zeros(rows, names, rules.zero, warnings)
    _refuse_fractions(rows)
    paths = [row.path for row in rows]
    hashes = dict(filter_readable(paths, unreadable=rules.unreadable, size=rules.size, warnings=warnings))
    images = _handle_points_outside([row for row in rows if row.path in hashes], rules, warnings)
    _tell_unlisted(folders, paths, warnings)
    has_groups = bool(rules.group_column or rules.group_pattern)
    if not has_groups:
        images = [AnnotatedImage(image.path, image.points, hashes[image.path]) for image in images]
    _check_usable(names, images, data)
    return KeypointData(names, tuple(images), has_groups, tuple(warnings))


def _find_tables(data: Path, names: Sequence[str]) -> list[Path]:
    if data.is_file():
        return [data]
    if not names:
        files = sorted(path for path in data.rglob("*.csv") if not path.name.startswith("."))
        if len(files) != 1:
            advice = "Name the tables with --tables." if files else _describe_table(data)
            raise CannotTrain(
                f"{data} contains {len(files)} CSV files; exactly one with the points of the images is needed. {advice}"
            )
        return files
    tables = []
    for name in names:
        files = sorted(data.rglob(name))
        if len(files) != 1:
            raise CannotTrain(f"{data} contains {len(files)} files '{name}'; --tables needs exactly one.")
        tables += files
    return tables


def _describe_table(data: Path) -> str:
    """Say what a table must look like, and that files of JSON, as COCO's are, cannot take its place."""
    other = next((path.name for path in sorted(data.rglob("*.json")) if not path.name.startswith(".")), "")
    unread = f"JSON, such as COCO's, is not read ({other}): convert it. " if other else ""
    return (
        f"{unread}Each row of the CSV file names an image and the x and y of its points in pixels, below a line "
        "such as image,nose_x,nose_y."
    )


def _read_table(path: Path, folder: Path, rules: TableRules, warnings: list[str]) -> tuple[tuple[str, ...], list[_Row]]:
    """Return the names of the points and the rows of a table."""
    table = read_csv_table(path, CsvFormat(rules.separator, rules.encoding))
    warnings += table.notes
    if _is_file(folder / table.header[0]) and table.header[0]:
        raise CannotTrain(
            f"{path} has no header: its first row names the image '{table.header[0]}'. Add a row above it with the "
            "names of the columns, such as image,nose_x,nose_y."
        )
    image = _find_image_column(table, folder, warnings)
    columns = find_columns(path, table.header, image=image, group_column=rules.group_column, names=rules.names)
    warnings += columns.sentences
    images = _find_images(table, folder, image, warnings)
    visibility = _read_visibility(table, columns.points, warnings)
    rows = []
    for (number, line), image_path, seen in zip(table.lines, images, visibility, strict=True):
        location = f"{path}, row {number}"
        points = [
            (np.nan, np.nan) if seen[index] == 0 else _parse_point(location, point, line, table.separator)
            for index, point in enumerate(columns.points)
        ]
        group = _parse_group(location, image_path, line, columns.group, rules)
        rows.append(_Row(location, image_path, np.array(points), seen > 0, group))
    _tell_decimal_commas(table, columns, warnings)
    return columns.names, rows


def _find_image_column(table: CsvTable, folder: Path, warnings: list[str]) -> int:
    """Return the column whose cells are files, else the one whose cells look like file names, else the first."""
    lines = [line for _, line in table.lines[:_ROWS_TO_FIND_IMAGES]]
    columns = range(len(table.header))

    def files(column: int) -> int:
        return sum(_resolve_image(folder, line[column]) is not None for line in lines)

    def names(column: int) -> int:
        return sum(_FILE_NAME.fullmatch(line[column]) is not None for line in lines)

    best = max(columns, key=lambda column: (files(column), names(column), -column))
    if best:
        warnings.append(f"{table.path.name}: the images are named in column {best + 1}, '{table.header[best]}'.")
    return best


def _resolve_image(folder: Path, cell: str) -> Path | None:
    """Return the image that a cell names, whose path may be written as on Windows."""
    for path in (folder / cell, folder / cell.replace("\\", "/")):
        if cell and _is_file(path):
            return path
    return None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # A name longer than the file system allows.
        return False


def _find_images(table: CsvTable, folder: Path, column: int, warnings: list[str]) -> list[Path]:
    """Return the image of each row. A path of another machine counts as the file of the same name in the folder."""
    paths, moved = [], 0
    for number, line in table.lines:
        cell = line[column]
        path = _resolve_image(folder, cell)
        if path is None:
            name = PureWindowsPath(cell).name if "\\" in cell else PurePosixPath(cell).name
            path = _resolve_image(folder, name)
            moved += 1
        if path is None:
            raise CannotTrain(
                f"{table.path}, row {number} names the image '{cell}', but there is no file {folder / cell}."
            )
        paths.append(path)
    if moved:
        warnings.append(f"{moved} images were not found under their paths and were taken by their names from {folder}.")
    return paths


def _read_visibility(table: CsvTable, points: Sequence[PointColumns], warnings: list[str]) -> NDArray[np.int64]:
    """Return the visibility of each point in each row, (rows, points): 0 absent, 1 hidden, 2 visible, -1 unknown."""
    visibility = np.full((len(table.lines), len(points)), -1)
    columns = {index: point for index, point in enumerate(points) if point.visibility is not None}
    if any(_is_fraction(line[point.visibility or 0]) for point in columns.values() for _, line in table.lines):
        names = ", ".join(f"'{table.header[point.visibility or 0]}'" for point in list(columns.values())[:4])
        warnings.append(
            f"{table.path.name}: the columns of visibility ({names}) contain fractions, as confidences are; they were "
            "not read."
        )
        return visibility
    for index, point in columns.items():
        for row, (number, line) in enumerate(table.lines):
            text = line[point.visibility or 0].lower()
            value = _VISIBILITIES.get(text.removesuffix(".0"), -1)
            if value < 0 and text not in _MISSING:
                raise CannotTrain(
                    f"{table.path}, row {number}: the visibility of '{point.name}' is '{text}'. It must be 0 (absent), "
                    "1 (hidden) or 2 (visible), or true or false."
                )
            visibility[row, index] = value
    if columns:
        _tell_visibility(table, points, visibility, warnings)
    return visibility


def _is_fraction(text: str) -> bool:
    try:
        value = float(text)
    except ValueError:
        return False
    return 0 < value < 1


def _tell_visibility(
    table: CsvTable, points: Sequence[PointColumns], visibility: NDArray[np.int64], warnings: list[str]
) -> None:
    absent, hidden, visible = (int((visibility == value).sum()) for value in (0, 1, 2))
    if not visible:  # Without a 2, 1 means visible.
        hidden, visible = 0, hidden
    sentence = (
        f"{table.path.name}: by their visibility, {visible:,} points are visible, {hidden:,} hidden, which were kept, "
        f"and {absent:,} absent (0), which count as missing."
    )
    placed = sum(
        bool({table.lines[row][1][points[index].x], table.lines[row][1][points[index].y]} - {*_MISSING, "0", "0.0"})
        for row, index in np.argwhere(visibility == 0).tolist()
    )
    if placed:
        sentence += f" {placed:,} absent points have coordinates; without the columns of visibility they would be used."
    warnings.append(sentence)


def _parse_point(location: str, point: PointColumns, line: Sequence[str], separator: str) -> tuple[float, float]:
    coordinates = []
    for axis, text in (("x", line[point.x]), ("y", line[point.y])):
        number = text.replace(",", ".") if separator != "," and _DECIMAL_COMMA.fullmatch(text) else text
        try:
            value = np.nan if text.lower() in _MISSING else float(number)
        except ValueError:
            value = np.inf
        if np.isinf(value):
            raise CannotTrain(f"{location}: the {axis} of '{point.name}' is '{text}', which is not a number.")
        coordinates.append(value)
    if np.isnan(coordinates).sum() == 1:
        raise CannotTrain(f"{location}: '{point.name}' has only one coordinate; leave both empty for a missing point.")
    return coordinates[0], coordinates[1]


def _tell_decimal_commas(table: CsvTable, columns: TableColumns, warnings: list[str]) -> None:
    cells = (line[index] for _, line in table.lines for point in columns.points for index in (point.x, point.y))
    if table.separator != "," and any(map(_DECIMAL_COMMA.fullmatch, cells)):
        warnings.append(f"{table.path.name}: commas in numbers were read as decimal points.")


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


def _reorder_points(table: Path, rows: Sequence[_Row], names: tuple[str, ...], order: tuple[str, ...]) -> list[_Row]:
    """Return rows with their points in the order of the first table. Raises CannotTrain if it has other points."""
    if set(names) != set(order):
        different = sorted(set(names) ^ set(order))
        raise CannotTrain(f"{table} has other points than the table before it ('{different[0]}' is only in one).")
    indices = [names.index(name) for name in order]
    return [replace(row, points=row.points[indices], is_known=row.is_known[indices]) for row in rows]


def _refuse_duplicates(rows: Sequence[_Row]) -> None:
    first: dict[Path, str] = {}
    for row in rows:
        if row.path in first:
            raise CannotTrain(
                f"{row.location} lists {row.path.name}, which is already listed in {first[row.path]}. A model learns "
                "one set of points per image: if the image shows several objects, crop each to an image of its own."
            )
        first[row.path] = row.location


def _handle_zeros(rows: Sequence[_Row], names: Sequence[str], zero: str, warnings: list[str]) -> list[_Row]:
    """Refuse, drop or keep points at exactly (0, 0) of which no visibility says that they are in the image."""
    at_zero: list[NDArray[np.bool_]] = [(row.points == 0).all(axis=1) & ~row.is_known for row in rows]
    count = int(np.sum(at_zero))
    if not count:
        return list(rows)
    if zero == "refuse":
        row, points = next((row, points) for row, points in zip(rows, at_zero, strict=True) if points.any())
        raise CannotTrain(
            f"{count:,} points in {sum(map(np.any, at_zero)):,} images lie at exactly (0, 0), first "
            f"'{names[int(points.argmax())]}' in {row.location}. Many programs write points so that are absent: say "
            "whether they are, with --zero missing, or really lie in the corner, with --zero point."
        )
    meaning = "missing (--zero missing)" if zero == "missing" else "points in the corner (--zero point)"
    warnings.append(f"{count:,} points at exactly (0, 0) count as {meaning}.")
    if zero == "point":
        return list(rows)
    return [
        replace(row, points=np.where(points[:, np.newaxis], np.nan, row.points))
        for row, points in zip(rows, at_zero, strict=True)
    ]


def _refuse_fractions(rows: Sequence[_Row]) -> None:
    """Refuse coordinates that are fractions of the image's size rather than pixels."""
    points = np.concatenate([row.points for row in rows])
    known = points[~np.isnan(points)]
    if len(known) and known.min() >= 0 and known.max() <= _MAX_FRACTION and (known % 1 != 0).any():
        raise CannotTrain(
            f"All coordinates lie between {known.min():g} and {known.max():g}, as fractions of the image's size do. "
            "They must be pixels: multiply x by the image's width and y by its height."
        )


def _handle_points_outside(rows: Sequence[_Row], rules: TableRules, warnings: list[str]) -> list[AnnotatedImage]:
    """Refuse, clip or drop points outside their image, then leave out images without any point."""

    def image_size(row: _Row) -> tuple[int, int]:
        image = decode_file(row.path, rules.size)
        return image.width, image.height

    with ThreadPoolExecutor() as pool:
        sizes = list(pool.map(image_size, rows))
    outside: list[NDArray[np.bool_]] = [
        np.any((row.points < 0) | (row.points > size), axis=1) for row, size in zip(rows, sizes, strict=True)
    ]
    count = int(sum(points.sum() for points in outside))
    sentinels = _describe_sentinels([row.points[points] for row, points in zip(rows, outside, strict=True)])
    if count and rules.outside == "refuse":
        index = next(index for index, points in enumerate(outside) if points.any())
        (x, y), (width, height) = rows[index].points[outside[index]][0], sizes[index]
        others = f" {count:,} points lie outside in all." if count > 1 else ""
        raise CannotTrain(
            f"{rows[index].location}: the point ({x:g}, {y:g}) lies outside its image of {width}×{height} pixels."
            f"{others}{sentinels} Correct it, or use --outside clip or --outside drop."
        )
    if count:
        action = "clipped to the edge of" if rules.outside == "clip" else "dropped, since they lie outside"
        warnings.append(f"{count:,} points {action} their images.{sentinels}")
    images = []
    for row, size, is_outside in zip(rows, sizes, outside, strict=True):
        moved = row.points.clip(0, size) if rules.outside == "clip" else np.full_like(row.points, np.nan)
        images.append(AnnotatedImage(row.path, np.where(is_outside[:, np.newaxis], moved, row.points), row.group))
    annotated = [image for image in images if not np.isnan(image.points).all()]
    if len(annotated) < len(images):
        warnings.append(f"{len(images) - len(annotated)} images left out: they have no points.")
    return annotated


def _describe_sentinels(outside: Sequence[NDArray[np.float64]]) -> str:
    """Return a sentence about the place outside where several points lie, such as (-1, -1); empty if there is none."""
    places = Counter((float(x), float(y)) for points in outside for x, y in points)
    (x, y), count = places.most_common(1)[0] if places else ((0.0, 0.0), 0)
    if count < 2 or x != y:
        return ""
    return f" Of them, {count:,} lie at ({x:g}, {y:g}), as programs write points that are absent."


def _tell_unlisted(folders: Sequence[Path], listed: Sequence[Path], warnings: list[str]) -> None:
    """Count the images beside the listed ones that no table lists."""
    images = {path.resolve() for folder in folders for path in image_files(folder)}
    unlisted = images - {path.resolve() for path in listed}
    if unlisted:
        warnings.append(f"{len(unlisted):,} images ({min(unlisted).name}, …) are in no table and were not used.")


def _check_usable(names: Sequence[str], images: Sequence[AnnotatedImage], data: Path) -> None:
    if len({image.group for image in images}) < 2:
        raise CannotTrain(f"{data} has images of only one group, which leaves none for validation.")
    missing: NDArray[np.bool_] = np.all(np.isnan(np.stack([image.points for image in images])).any(axis=2), axis=0)
    for name, is_missing in zip(names, missing, strict=True):
        if is_missing:
            raise CannotTrain(f"The point '{name}' is missing in every image.")
