"""The columns of a table of tags: which of them name the images, the tags and the split, under whatever names."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from tasks.near_names import nearest_name
from training.core.errors import CannotTrain
from training.core.sentences import join_quoted, list_quoted

IMAGE_COLUMN, TAGS_COLUMN, SPLIT_COLUMN = "image_name", "tags", "split"
_OTHER_NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        IMAGE_COLUMN: (
            *("image", "images", "image_id", "image_file", "image_path", "image_filename", "img", "img_name"),
            *("img_path", "file", "file_name", "filename", "file_path", "filepath", "path"),
        ),
        TAGS_COLUMN: (
            *("tag", "label", "labels", "class", "classes", "class_name", "category", "categories", "choice"),
            *("choices", "attributes"),
        ),
    }
)
"""What other programs call the columns."""
_TAG_SEPARATORS: Mapping[str, str] = MappingProxyType({",": "commas", ";": "semicolons", "|": "bars"})
_YES, _NO = frozenset(("1", "1.0", "true")), frozenset(("0", "0.0", "false"))
_MINUS = frozenset(("-1", "-1.0"))
_MIN_TAG_COLUMNS = 2
_MAX_SHOWN = 5

Lines = Sequence[tuple[int, Sequence[str]]]
"""The lines of a table, each with its number and as many cells as there are columns."""


@dataclass(frozen=True)
class TagRow:
    """What a line of the table says about an image; `split` is as written, in lower case."""

    line: int
    name: str
    tags: frozenset[str]
    split: str


def read_tag_rows(table: Path, header: Sequence[str], lines: Lines, warnings: list[str]) -> list[TagRow]:
    """Return what each line says: the tags of one column, or the names of the columns in which it has a 1.

    Columns of other usual names are read if one only can be meant. `warnings` say which they are, what separates the
    tags, and which columns are not read. Raises CannotTrain if a column is missing or there are several.
    """
    keys = ["_".join(name.lower().replace("-", " ").split()) for name in header]
    image, tags, split = (_find_column(table, header, keys, name) for name in (IMAGE_COLUMN, TAGS_COLUMN, SPLIT_COLUMN))
    used = {column for column in (image, tags, split) if column is not None}
    lines = _pad(table, lines, len(header))
    if image is not None and tags is not None:
        renamed = [
            header[column] for column, name in ((image, IMAGE_COLUMN), (tags, TAGS_COLUMN)) if keys[column] != name
        ]
        if renamed:
            warnings.append(
                f"The images are named in the column '{header[image]}' of {table.name}, their tags in '{header[tags]}'."
            )
        tags_of_lines = _split_tags(table, [cells[tags] for _, cells in lines], bool(renamed), warnings)
    else:
        answers = _find_answers(
            lines, [column for column in range(len(header)) if header[column] and column not in used]
        )
        if image is None or tags is not None or len(answers) < _MIN_TAG_COLUMNS:
            raise CannotTrain(_describe_missing(table, header, has_image=image is not None, has_tags=tags is not None))
        tags_of_lines = _read_answers(table, header, lines, answers, warnings)
        used |= set(answers)
    if unread := [name for column, name in enumerate(header) if name and column not in used]:
        which = "Column" if len(unread) == 1 else "Columns"
        warnings.append(f"{which} {list_quoted(unread, _MAX_SHOWN)} of {table.name}: not read.")
    splits = ["" if split is None else cells[split].lower() for _, cells in lines]
    return [
        TagRow(line, cells[image], tags, split)
        for (line, cells), tags, split in zip(lines, tags_of_lines, splits, strict=True)
    ]


def _find_column(table: Path, header: Sequence[str], keys: Sequence[str], name: str) -> int | None:
    """Return the column of this name, or else the only one of another usual name; None if there is none."""
    named = [column for column, key in enumerate(keys) if key == name]
    if len(named) > 1:
        raise CannotTrain(f"{table} has {len(named)} columns '{name}'; keep one.")
    if named:
        return named[0]
    others = [column for column, key in enumerate(keys) if key in _OTHER_NAMES.get(name, ())]
    if len(others) > 1:
        raise CannotTrain(
            f"{table} has no column {name}, and several that may be meant: "
            f"{join_quoted([header[column] for column in others])}. Rename one of them to '{name}'."
        )
    return others[0] if others else None


def _describe_missing(table: Path, header: Sequence[str], *, has_image: bool, has_tags: bool) -> str:
    missing = [name for name, is_there in ((IMAGE_COLUMN, has_image), (TAGS_COLUMN, has_tags)) if not is_there]
    hints = [f" Rename '{near}' to '{name}'." for name in missing if (near := _nearest_column(header, name))]
    if not hints and not has_image:
        hints = [f" Rename the one that names the images to '{IMAGE_COLUMN}'."]
    elif not hints:
        hints = [" Tags stand in one column, or have a column each with 1 or 0 in every row."]
    listed = ", ".join(header)[:500] or "none"
    return f"{table} has no column {' and '.join(missing)}; its columns are {listed}.{''.join(hints)}"


def _nearest_column(header: Sequence[str], name: str) -> str:
    known = (name, *_OTHER_NAMES[name])
    return next((column for column in header if nearest_name(column.replace(" ", "_"), known)), "")


def _pad(table: Path, lines: Lines, width: int) -> Lines:
    """Give each line as many cells as there are columns; those that are not there are empty. Raises CannotTrain."""
    for line, cells in lines:
        if len(cells) > width:
            raise CannotTrain(
                f"{table}, line {line} has more cells than the first line names columns. Separate the tags of an "
                "image by spaces, or put them in quotation marks."
            )
    return [(line, [*cells, *[""] * (width - len(cells))]) for line, cells in lines]


def _split_tags(table: Path, cells: Sequence[str], is_renamed: bool, warnings: list[str]) -> list[frozenset[str]]:
    """Return the tags of each cell. Raises CannotTrain if they are separated in several ways."""
    listed = [_parse_list(cell) for cell in cells]
    if count := sum(tags is not None for tags in listed):
        example = next(cell for cell, tags in zip(cells, listed, strict=True) if tags is not None)
        warnings.append(f"Tags were read from lists, as in {example[:80]}: {count:,} images have one.")
    plain = [cell for cell, tags in zip(cells, listed, strict=True) if tags is None]
    mark = _find_separator(table, plain, is_renamed, warnings)
    return [
        frozenset(filter(None, (tag.strip() for tag in (cell.split(mark) if tags is None else tags))))
        for cell, tags in zip(cells, listed, strict=True)
    ]


def _parse_list(cell: str) -> list[str] | None:
    """Return the tags of a list in JSON or Python, or of Label Studio's {"choices": […]}; None if it is none."""
    if cell[:1] not in ("[", "{"):
        return None
    for text in (cell, cell.replace("'", '"')):
        try:
            value = json.loads(text)
        except ValueError:
            continue
        value = value.get("choices") if isinstance(value, dict) else value
        if isinstance(value, list) and all(isinstance(tag, str) for tag in value):
            return value
    return None


def _find_separator(table: Path, cells: Sequence[str], is_renamed: bool, warnings: list[str]) -> str | None:
    """Return what separates the tags of an image; None: spaces. Raises CannotTrain for several kinds."""
    marks = [mark for mark in _TAG_SEPARATORS if any(mark in cell for cell in cells)]
    if len(marks) > 1:
        raise CannotTrain(
            f"The tags in {table} are separated by {' and by '.join(_TAG_SEPARATORS[mark] for mark in marks)}. Use "
            "one of them, or spaces."
        )
    if marks:
        count = sum(marks[0] in cell for cell in cells)
        warnings.append(
            f"Tags were separated at {_TAG_SEPARATORS[marks[0]]}, not at spaces: {count:,} images have some."
        )
        return marks[0]
    spaced = [cell for cell in cells if len(cell.split()) > 1]
    if spaced and is_renamed:
        warnings.append(
            f"Tags were separated at spaces: '{spaced[0][:80]}' is {len(spaced[0].split())} tags. If it is one, write "
            "it with underscores."
        )
    return None


def _find_answers(lines: Lines, columns: Sequence[int]) -> list[int]:
    """Return the columns that say of each image whether it has a tag: with 1 and 0, 1 and -1, or true and false."""
    values = {column: {cells[column].lower() for _, cells in lines} for column in columns}
    is_signed = any(each & _MINUS for each in values.values())
    allowed = _YES | (_MINUS if is_signed else _NO)
    return [column for column, each in values.items() if each and each <= allowed]


def _read_answers(
    table: Path, header: Sequence[str], lines: Lines, columns: Sequence[int], warnings: list[str]
) -> list[frozenset[str]]:
    names = [header[column] for column in columns]
    warnings.append(
        f"{len(names):,} columns of {table.name} are tags ({list_quoted(names, _MAX_SHOWN)}): an image has those in "
        "whose columns it has a 1."
    )
    return [frozenset(header[column] for column in columns if cells[column].lower() in _YES) for _, cells in lines]
