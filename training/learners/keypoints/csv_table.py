"""CSV files of keypoints: their separator, their header and their lines, whatever the columns mean."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from training.core.errors import CannotTrain

_SEPARATORS = ",;\t|"
_SEPARATOR_LINE = re.compile(r"sep=(.)", re.IGNORECASE)
"""The first line with which Excel notes the separator."""
_HEADER_ROWS = ("scorer", "individuals", "bodyparts", "coords")
"""What the rows of DeepLabCut's header start with."""


@dataclass(frozen=True)
class CsvTable:
    """The text of a CSV file.

    Attributes:
        separator: the character between cells.
        header: the names of the columns.
        lines: (number of the line in the file, its cells) of each line below the header that is not empty.
    """

    path: Path
    separator: str
    header: tuple[str, ...]
    lines: tuple[tuple[int, tuple[str, ...]], ...]


def read_csv_table(path: Path) -> CsvTable:
    """Read a CSV file whose cells are separated by commas, semicolons, tabs or bars.

    The header may also be that of DeepLabCut, which has a row for the names of the points and one for x and y.

    Raises CannotTrain if the file cannot be read, has no line below its header, or lines of different lengths.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        separator = _find_separator(text)
        rows = csv.reader(text.splitlines(keepends=True), delimiter=separator)
        lines = [(number, tuple(cell.strip() for cell in row)) for number, row in enumerate(rows, 1)]
    except UnicodeDecodeError:
        raise CannotTrain(f"{path} cannot be read as a CSV file: it is not UTF-8. Save it as UTF-8.") from None
    except (OSError, csv.Error) as error:
        raise CannotTrain(f"{path} cannot be read as a CSV file: {error}.") from None
    lines = [(number, line) for number, line in lines if any(line)]
    if lines and _SEPARATOR_LINE.fullmatch(text.splitlines()[0].strip()):
        del lines[0]
    height = _header_height(lines)
    if len(lines) <= height:
        raise CannotTrain(f"{path} has no rows below its header.")
    width = len(lines[0][1])
    for number, line in lines:
        if len(line) != width:
            raise CannotTrain(f"{path}, row {number} has {len(line)} cells, but the header has {width}.")
    if height > 1:
        header, lines = _join_header_rows(path, [line for _, line in lines[:height]], lines[height:])
    else:
        (_, header), *lines = lines
    return CsvTable(path, separator, header, tuple(lines))


def _find_separator(text: str) -> str:
    """Return the separator that splits the first line into most cells."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    if match := _SEPARATOR_LINE.fullmatch(first.strip()):
        return match[1]
    return max(_SEPARATORS, key=lambda separator: len(next(csv.reader([first], delimiter=separator), [])))


def _header_height(lines: Sequence[tuple[int, tuple[str, ...]]]) -> int:
    height = 0
    while height < len(lines) and lines[height][1][0].lower() in _HEADER_ROWS:
        height += 1
    return max(1, height)


def _join_header_rows(
    path: Path, rows: Sequence[tuple[str, ...]], lines: Sequence[tuple[int, tuple[str, ...]]]
) -> tuple[tuple[str, ...], list[tuple[int, tuple[str, ...]]]]:
    """Return one header for DeepLabCut's rows, such as `nose_x`, and the lines with the image's path in one cell."""
    by_name = {row[0].lower(): row for row in rows}
    if not {"bodyparts", "coords"} <= set(by_name):
        raise CannotTrain(f"{path} has a header of DeepLabCut without the rows 'bodyparts' and 'coords'.")
    start = next((i for i, cell in enumerate(by_name["coords"]) if cell.lower() in ("x", "y")), 1)
    individuals = sorted(set(by_name.get("individuals", ())[start:]) - {"", "single"})
    if len(individuals) > 1:
        raise CannotTrain(
            f"{path} has the points of several animals ({', '.join(individuals[:4])}). A model learns one set of "
            "points per image: crop each animal to an image of its own, with a row of its own."
        )
    parts = zip(by_name["bodyparts"][start:], by_name["coords"][start:], strict=True)
    header = ("image", *(f"{part}_{coordinate}" for part, coordinate in parts))
    # Newer versions write the image's path into three cells: labeled-data, video, file name.
    return header, [(number, ("/".join(filter(None, line[:start])), *line[start:])) for number, line in lines]
