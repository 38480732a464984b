"""The columns of a keypoint table: which of them are the x, the y and the visibility of which point.

Columns are paired by their names, in whatever order they stand: `nose_x` and `nose_y`, `x1` and `y1`, `X (nose)` and
`Y (nose)`. Only where the header names nothing do columns alternate between x and y.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tasks.near_names import suggest
from training.core.errors import CannotTrain
from training.core.sentences import list_items

_SEP = r"[ _.:/-]"
_AXIS = r"(?P<axis>x|y|visibility|visible|vis|v)"
_STYLES = (
    re.compile(rf"(?P<name>.+?){_SEP}*[(\[]?\s*{_AXIS}\s*[)\]]?", re.IGNORECASE),  # nose_x, nose (x), p1x
    re.compile(rf"{_AXIS}{_SEP}*[(\[]?\s*(?P<name>.+?)\s*[)\]]?", re.IGNORECASE),  # x_nose, x1, X (nose)
    re.compile(
        rf"(?P<name>.+?){_SEP}{_AXIS}(?:{_SEP}(?P<rest>.+)|(?P<number>\d+))", re.IGNORECASE
    ),  # mark_x_1, left_x1
    re.compile(rf"(?P<name>){_AXIS}", re.IGNORECASE),  # x
)
_CLEARLY_A_COORDINATE = re.compile(
    rf".+{_SEP}[xy]|.+[(\[]\s*[xy]\s*[)\]]|[xy]{_SEP}.+|[xy]\s*[(\[].+|[xy]\d+|\w*\d[xy]|[xy]", re.IGNORECASE
)
_UNNAMED = re.compile(r"|\d+|unnamed: ?\d+", re.IGNORECASE)
_BOX = re.compile(r".*bbox.*|b?box|rect|rectangle|crop|roi|min|max", re.IGNORECASE)
_SIZES = ({"w", "h"}, {"width", "height"})
_MAX_LISTED = 8


@dataclass(frozen=True)
class PointColumns:
    """The columns of a point; `visibility` is None if it has none."""

    name: str
    x: int
    y: int
    visibility: int | None = None


@dataclass(frozen=True)
class TableColumns:
    """What the columns of a table mean.

    Attributes:
        points: the points, in the order of their x.
        group: the column with the group of each image.
        sentences: what was inferred and what was left out, for the user.
    """

    points: tuple[PointColumns, ...]
    group: int | None
    sentences: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the points."""
        return tuple(point.name for point in self.points)


def find_columns(
    table: Path, header: Sequence[str], *, image: int, group_column: str = "", names: Sequence[str] = ()
) -> TableColumns:
    """Return the columns of the points. `image` is the column of the file names; `names` override those in the header.

    Raises CannotTrain if there is no group column of this name, a column has no partner, or nothing is a point.
    """
    group = _find_group(table, header, group_column, image)
    others = [index for index in range(len(header)) if index not in (image, group)]
    points, boxes = _set_boxes_apart(table, header, _pair_by_name(table, header, others))
    sentences: list[str] = []
    if points:
        paired = {index for point in (*points, *boxes) for index in (point.x, point.y)}
        _refuse_unpaired(table, header, [index for index in others if index not in paired])
    else:
        points = _pair_by_position(table, header, [index for index in others if index > image], names)
        sentences.append(f"{table.name}: the header names no points; the columns were read as x, y, x, y, ….")
    points = _rename(table, points, names)
    if any(point.y != point.x + 1 for point in points):
        sentences.append(_describe_pairs(header, points))
    read = {index for point in points for index in (point.x, point.y, point.visibility)}
    if ignored := [index for index in others if index not in read]:
        sentences.append(f"{table.name}: not read, since they are no points: {_join_columns(header, ignored)}.")
    return TableColumns(tuple(points), group, tuple(sentences))


def _rename(table: Path, points: Sequence[PointColumns], names: Sequence[str]) -> list[PointColumns]:
    """Return the points with the given names, if there are any. Raises CannotTrain if the names do not fit."""
    if names and len(names) != len(points):
        raise CannotTrain(f"{table} has {len(points)} points, but --names has {len(names)} names.")
    renamed = [replace(point, name=name) for name, point in zip(names, points, strict=True)] if names else list(points)
    if duplicates := [name for name, count in Counter(point.name for point in renamed).items() if count > 1]:
        raise CannotTrain(f"{table}: two points are named '{duplicates[0]}'.")
    return renamed


def _find_group(table: Path, header: Sequence[str], group_column: str, image: int) -> int | None:
    if not group_column:
        return None
    indices = [index for index, name in enumerate(header) if name == group_column and index != image]
    if not indices:
        raise CannotTrain(
            f"{table} has no column '{group_column}' for --group-column.{suggest(group_column, filter(None, header))}"
        )
    return indices[0]


@dataclass(frozen=True)
class _Role:
    """What a column may be: the axis (x, y or v) of a point, by one of the styles of writing it."""

    style: int
    axis: str
    name: str


def _possible_roles(column: str) -> list[_Role]:
    roles = []
    for style, pattern in enumerate(_STYLES):
        if match := pattern.fullmatch(column):
            parts = match.groupdict()
            name = "_".join(filter(None, (parts["name"], parts.get("rest"), parts.get("number"))))
            roles.append(_Role(style, match["axis"][0].lower(), name))
    return roles


def _pair_by_name(table: Path, header: Sequence[str], columns: Sequence[int]) -> list[PointColumns]:
    """Return the points that have both an x and a y, in the order of their x."""
    axes: dict[tuple[int, str], dict[str, list[int]]] = {}
    names: dict[tuple[int, str], str] = {}
    visibility: dict[str, int] = {}
    for index in columns:
        for role in _possible_roles(header[index]):
            key = role.style, role.name.casefold()
            if role.axis == "v":
                visibility.setdefault(role.name.casefold(), index)
            else:
                axes.setdefault(key, {}).setdefault(role.axis, []).append(index)
                names.setdefault(key, role.name)
    points: list[PointColumns] = []
    used: set[int] = set()
    for key in sorted(axes, key=lambda key: key[0]):
        found = axes[key]
        if len(found) < 2 or used & {*found["x"], *found["y"]}:
            continue
        if twice := next((indices for indices in found.values() if len(indices) > 1), None):
            _refuse_twice(table, header, twice, names[key])
        used |= {found["x"][0], found["y"][0]}
        points.append(PointColumns(_display(names[key]), found["x"][0], found["y"][0], visibility.get(key[1])))
    return sorted(points, key=lambda point: point.x)


def _refuse_twice(table: Path, header: Sequence[str], columns: Sequence[int], name: str) -> None:
    first, second = (header[index] for index in columns[:2])
    if first == second:
        raise CannotTrain(f"{table} has two columns named '{first}'.")
    raise CannotTrain(f"{table}: two points are named '{name}' ('{first}' and '{second}').")


def _display(name: str) -> str:
    """Return the name of a point whose columns have this name."""
    if not name:
        return "point"
    return f"point_{name}" if name.isdigit() else name


def _set_boxes_apart(
    table: Path, header: Sequence[str], points: Sequence[PointColumns]
) -> tuple[list[PointColumns], list[PointColumns]]:
    """Return the points, and the corners of boxes around objects. Raises CannotTrain if there are only boxes."""
    has_size = any(size <= {name.lower() for name in header} for size in _SIZES)
    boxes = [
        point
        for point in points
        if _BOX.fullmatch(point.name) or (point.name == "point" and has_size and len(points) > 1)
    ]
    if boxes and len(boxes) == len(points):
        columns = [index for point in boxes for index in (point.x, point.y)]
        raise CannotTrain(
            f"{table} has only the coordinates of boxes ({_join_columns(header, columns)}), and no points. If they are "
            "points, rename the columns, such as corner_x and corner_y."
        )
    return [point for point in points if point not in boxes], boxes


def _refuse_unpaired(table: Path, header: Sequence[str], columns: Sequence[int]) -> None:
    """Raise CannotTrain if a column is clearly a coordinate, but its partner is missing."""
    for index in columns:
        roles = [role for role in _possible_roles(header[index]) if role.axis != "v"]
        if not roles or not _CLEARLY_A_COORDINATE.fullmatch(header[index]) or _BOX.fullmatch(roles[0].name):
            continue
        partner = {"x": "y", "y": "x"}[roles[0].axis]
        candidates = [header[other] for other in columns if other != index]
        raise CannotTrain(
            f"{table}: the column '{header[index]}' has no partner with the {partner} of the same point. Points are "
            f"paired by name, such as nose_x and nose_y.{suggest(_swap_axis(header[index], roles[0]), candidates)}"
        )


def _swap_axis(column: str, role: _Role) -> str:
    """Return the name that the partner of a column should have."""
    match = _STYLES[role.style].fullmatch(column)
    if match is None:
        return column
    swapped = {"x": "y", "y": "x", "X": "Y", "Y": "X"}[match["axis"]]
    return column[: match.start("axis")] + swapped + column[match.end("axis") :]


def _pair_by_position(
    table: Path, header: Sequence[str], columns: Sequence[int], names: Sequence[str]
) -> list[PointColumns]:
    """Return points whose columns alternate between x and y. Raises CannotTrain if the columns have other names."""
    if not names and not all(_UNNAMED.fullmatch(header[index]) for index in columns):
        _refuse_unpaired(table, header, columns)
        raise CannotTrain(
            f"{table} has no columns with the x and y of points, such as nose_x and nose_y; its columns are "
            f"{_join_columns(header, columns)}. Rename them, or give --names if they alternate between x and y."
        )
    if not columns or len(columns) % 2:
        raise CannotTrain(
            f"{table} has {len(columns)} columns of coordinates. After the image's name there must be two columns per "
            "point, x and y."
        )
    pairs = zip(columns[::2], columns[1::2], strict=True)
    return [PointColumns(f"point_{number}", x, y) for number, (x, y) in enumerate(pairs, 1)]


def _describe_pairs(header: Sequence[str], points: Sequence[PointColumns]) -> str:
    pairs = [f"{point.name} = ({header[point.x]}, {header[point.y]})" for point in points]
    return f"Columns were paired by their names, not by their order: {list_items(pairs, _MAX_LISTED)}."


def _join_columns(header: Sequence[str], columns: Iterable[int]) -> str:
    texts = [f"'{header[index]}'" if header[index] else f"column {index + 1} without a name" for index in columns]
    others = f" and {len(texts) - _MAX_LISTED} others" if len(texts) > _MAX_LISTED else ""
    return ", ".join(texts[:_MAX_LISTED]) + others
