"""Pictures with several tags each, from a table beside them in the layout of Kaggle's Planet set."""

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from training.core.errors import CannotTrain
from training.data.images import filter_readable, image_files
from training.data.splits import validation_split

TABLE = "labels.csv"
_PICTURE, _TAGS, _SPLIT = "image_name", "tags", "split"
_TRAIN, _VALIDATION = ("train", "training"), ("validation", "valid", "val")


@dataclass(frozen=True)
class Tagged:
    """A picture's file, its tags, and which part it is for: `train`, `validation` or empty where nothing says so."""

    path: Path
    tags: frozenset[str]
    part: str = ""


@dataclass(frozen=True)
class TagTable:
    """What a table of tags names, and how it is split; `split` says how in words."""

    labels: tuple[str, ...]
    train: tuple[Tagged, ...]
    validation: tuple[Tagged, ...]
    split: str
    notices: tuple[str, ...] = ()

    def targets(self, pictures: Sequence[Tagged]) -> Tensor:
        """1 for each tag a picture has, else 0: float32 (n, labels)."""
        rows = [[float(label in picture.tags) for label in self.labels] for picture in pictures]
        return torch.tensor(rows).reshape(len(pictures), len(self.labels))


def table_file(data: Path) -> Path | None:
    """The table of tags at or in `data`, or in the only folder of it; None where there is none."""
    if data.is_file():
        return data if data.suffix.lower() == ".csv" else None
    inner = [path for path in data.iterdir() if path.is_dir() and not path.name.startswith(".")]
    places = [data, *inner[:1]] if len(inner) == 1 else [data]
    return next((place / TABLE for place in places if (place / TABLE).is_file()), None)


def read_tags(table: Path, *, unreadable: str, valid_fraction: float, size: int) -> TagTable:
    """Reads a table with the columns image_name and tags (space separated), and the pictures in folders beside it.

    A third column, split (train or validation), says which pictures validate; else `valid_fraction` of them do, by the
    hash of what they look like: copies of a picture on one side, and the rarer tags on both as far as that can be.

    Raises CannotTrain: a column or a picture is missing, a picture is named twice, or there is no tag.
    """
    rows = _rows(table)
    notices: list[str] = []
    found = dict(filter_readable([row.path for row in rows], unreadable=unreadable, size=size, warnings=notices))
    rows = [row for row in rows if row.path in found]
    counts = Counter(tag for row in rows for tag in row.tags)
    if not counts:
        raise CannotTrain(f"{table} gives no picture a tag.")
    train, validation, split = _split(rows, found, counts, valid_fraction)
    if not train or not validation:
        raise CannotTrain(f"{table} leaves no pictures to {'train on' if not train else 'validate with'}.")
    if not any(picture.tags for picture in validation):
        raise CannotTrain(f"No picture of {table} that is to validate has a tag.")
    labels = tuple(sorted(counts))
    for label in labels:
        for part, pictures in (("train on", train), ("validate with", validation)):
            if not any(label in picture.tags for picture in pictures):
                notices.append(f"'{label}' has no picture to {part}.")
    return TagTable(labels, train, validation, split, tuple(notices))


def _rows(table: Path) -> list[Tagged]:
    files = _by_name(table.parent)
    rows: list[Tagged] = []
    seen: dict[str, int] = {}
    paths: dict[Path, int] = {}
    try:
        text = table.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise CannotTrain(f"{table} is not UTF-8: save it anew as UTF-8.") from None
    try:
        reader = csv.DictReader(text.splitlines())
        missing = {_PICTURE, _TAGS} - set(reader.fieldnames or ())
        if missing:
            columns = ", ".join(reader.fieldnames or ()) or "none"
            raise CannotTrain(f"{table} has no column {' and '.join(sorted(missing))}; its columns are {columns}.")
        for number, row in enumerate(reader, 2):
            name = row[_PICTURE] or ""
            if name in seen:
                raise CannotTrain(f"{table}, line {number}: {name} was named before, in line {seen[name]}.")
            seen[name] = number
            if name not in files:
                raise CannotTrain(f"{table}, line {number}: there is no picture {name!r} in folders of {table.parent}.")
            path = files[name]
            if path is None:
                raise CannotTrain(
                    f"{table}, line {number}: {name} may be any of several pictures: name its folder too."
                )
            if path in paths:
                raise CannotTrain(f"{table}, line {number}: {name} is the picture of line {paths[path]} once more.")
            paths[path] = number
            rows.append(Tagged(path, frozenset((row[_TAGS] or "").split()), _part(row, table, number)))
    except csv.Error as error:
        raise CannotTrain(f"{table} is no table of comma-separated values: {error}.") from None
    if not rows:
        raise CannotTrain(f"{table} has no rows.")
    return rows


def _by_name(folder: Path) -> dict[str, Path | None]:
    """Pictures by file name, and by what stands before its ending; None where a name fits several."""
    found: dict[str, Path | None] = {}
    for path in image_files(folder):
        for name in {path.name, path.stem, path.relative_to(folder).as_posix()}:
            found[name] = None if name in found else path
    return found


def _part(row: dict[str, str], table: Path, number: int) -> str:
    part = (row.get(_SPLIT) or "").strip().lower()
    if part and part not in (*_TRAIN, *_VALIDATION):
        raise CannotTrain(f"{table}, line {number}: the split is 'train' or 'validation', not '{part[:40]}'.")
    return "validation" if part in _VALIDATION else "train" if part else ""


def _split(
    rows: Sequence[Tagged], perceptual_hash: dict[Path, str], counts: Counter[str], valid_fraction: float
) -> tuple[tuple[Tagged, ...], tuple[Tagged, ...], str]:
    parts = {row.part for row in rows}
    if parts - {""}:
        if "" in parts:
            raise CannotTrain(f"The column {_SPLIT} is empty for some pictures and not for others.")
        # Taken at its word, copies or not: of plain tiles many look alike and are none.
        train = tuple(row for row in rows if row.part == "train")
        return train, tuple(row for row in rows if row.part != "train"), f"the column '{_SPLIT}' of the table"
    # A picture stands for its rarest tag, so that rare tags are on both sides.
    order = {tag: i for i, (tag, _) in enumerate(sorted(counts.items(), key=lambda item: (item[1], item[0])))}
    rarest = [min((order[tag] for tag in row.tags), default=len(order)) for row in rows]
    held = validation_split([perceptual_hash[row.path] for row in rows], rarest, valid_fraction)
    split = f"{valid_fraction:.0%} of the pictures held out for validation by the hash of what they look like"
    train = tuple(row for row, out in zip(rows, held, strict=True) if not out)
    return train, tuple(row for row, out in zip(rows, held, strict=True) if out), split
