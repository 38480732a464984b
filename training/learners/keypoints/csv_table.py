"""CSV files of keypoints: their header and their lines, whatever the columns mean."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from training.core.errors import CannotTrain
from training.data.delimited import RECOGNISED, CsvFormat, open_delimited

_HEADER_ROWS = ("scorer", "individuals", "bodyparts", "coords")
"""What the rows of DeepLabCut's header start with."""


@dataclass(frozen=True)
class CsvTable:
    """The text of a CSV file.

    Attributes:
        separator: the character between cells.
        header: the names of the columns.
        lines: (number of the line in the file, its cells) of each line below the header that is not empty.
        notes: sentences on how the file was read.
    """

    path: Path
    separator: str
    header: tuple[str, ...]
    lines: tuple[tuple[int, tuple[str, ...]], ...]
    notes: tuple[str, ...] = ()


def read_csv_table(path: Path, form: CsvFormat = RECOGNISED) -> CsvTable:
    """Read a CSV file (`open_delimited`).

    The header may also be that of DeepLabCut, which has a row for the names of the points and one for x and y.

    Raises CannotTrain if the file cannot be read, has no line below its header, or lines of different lengths.
    """
    file = open_delimited(path, form)
    lines = list(file.rows())
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
    return CsvTable(path, file.separator, header, tuple(lines), file.notes)


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
