"""Images with several tags each, listed in a CSV file in the layout of Kaggle's Planet data set."""

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from training.core.errors import CannotTrain
from training.data.folders import list_subfolders
from training.data.hash_split import validation_split
from training.data.images import filter_readable, image_files

TABLE = "labels.csv"
_IMAGE_COLUMN, _TAGS_COLUMN, _SPLIT_COLUMN = "image_name", "tags", "split"
_TRAIN, _VALIDATION = ("train", "training"), ("validation", "valid", "val")


@dataclass(frozen=True)
class TaggedImage:
    """An image file and its tags; `split` is `train`, `validation`, or empty if the table does not say."""

    path: Path
    tags: frozenset[str]
    split: str = ""


@dataclass(frozen=True)
class TagTable:
    """The images of a table of tags and their split; `split` describes the split in words."""

    labels: tuple[str, ...]
    train: tuple[TaggedImage, ...]
    validation: tuple[TaggedImage, ...]
    split: str
    warnings: tuple[str, ...] = ()

    def targets(self, images: Sequence[TaggedImage]) -> Tensor:
        """Return multi-hot targets, float32 (n, labels)."""
        rows = [[float(label in image.tags) for label in self.labels] for image in images]
        return torch.tensor(rows).reshape(len(images), len(self.labels))


def find_table(data: Path) -> Path | None:
    """Return the table of tags at `data`, in it, or in its only subfolder; None if there is none."""
    if data.is_file():
        return data if data.suffix.lower() == ".csv" else None
    subfolders = list_subfolders(data)
    folders = [data, *subfolders] if len(subfolders) == 1 else [data]
    return next((folder / TABLE for folder in folders if (folder / TABLE).is_file()), None)


def read_tags(table: Path, *, unreadable: str, valid_fraction: float, size: int) -> TagTable:
    """Read a CSV file with the columns image_name and tags (space separated), and the images in folders beside it.

    An optional third column, split (train or validation), selects the validation images. Without it, `valid_fraction`
    of the images are held out by their perceptual hash: copies of an image stay on one side, and rare tags are put on
    both sides if possible.

    Raises CannotTrain if a column or an image is missing, an image is listed twice, or there is no tag.
    """
    rows = _read_rows(table)
    warnings: list[str] = []
    hashes = dict(filter_readable([row.path for row in rows], unreadable=unreadable, size=size, warnings=warnings))
    rows = [row for row in rows if row.path in hashes]
    tag_counts = Counter(tag for row in rows for tag in row.tags)
    if not tag_counts:
        raise CannotTrain(f"No image in {table} has a tag.")
    train, validation, split = _split_rows(rows, hashes, tag_counts, valid_fraction)
    if not train or not validation:
        raise CannotTrain(f"The split of {table} leaves no images for {'training' if not train else 'validation'}.")
    if not any(image.tags for image in validation):
        raise CannotTrain(f"No validation image in {table} has a tag.")
    labels = tuple(sorted(tag_counts))
    for label in labels:
        for name, images in (("training", train), ("validation", validation)):
            if not any(label in image.tags for image in images):
                warnings.append(f"The label '{label}' has no {name} image.")
    return TagTable(labels, train, validation, split, tuple(warnings))


def _read_rows(table: Path) -> list[TaggedImage]:
    try:
        text = table.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise CannotTrain(f"{table} is not UTF-8. Save it as UTF-8.") from None
    try:
        rows = list(_parse_rows(table, csv.DictReader(text.splitlines())))
    except csv.Error as error:
        raise CannotTrain(f"{table} is not a valid CSV file: {error}.") from None
    if not rows:
        raise CannotTrain(f"{table} has no rows.")
    return rows


def _parse_rows(table: Path, reader: "csv.DictReader[str]") -> Iterator[TaggedImage]:
    files = _index_by_name(table.parent)
    line_of_name: dict[str, int] = {}
    line_of_path: dict[Path, int] = {}
    missing = {_IMAGE_COLUMN, _TAGS_COLUMN} - set(reader.fieldnames or ())
    if missing:
        columns = ", ".join(reader.fieldnames or ()) or "none"
        raise CannotTrain(f"{table} has no column {' and '.join(sorted(missing))}; its columns are {columns}.")
    for number, row in enumerate(reader, 2):
        name = row[_IMAGE_COLUMN] or ""
        if name in line_of_name:
            raise CannotTrain(f"{table}, line {number}: {name} is already listed in line {line_of_name[name]}.")
        line_of_name[name] = number
        if name not in files:
            raise CannotTrain(f"{table}, line {number}: there is no image {name!r} in the folders of {table.parent}.")
        path = files[name]
        if path is None:
            raise CannotTrain(f"{table}, line {number}: {name} matches several images; include its folder.")
        if path in line_of_path:
            raise CannotTrain(f"{table}, line {number}: {name} is the same image as in line {line_of_path[path]}.")
        line_of_path[path] = number
        yield TaggedImage(path, frozenset((row[_TAGS_COLUMN] or "").split()), _parse_split(row, table, number))


def _index_by_name(folder: Path) -> dict[str, Path | None]:
    """Index the images by file name, stem and relative path; None for a name that matches several images."""
    index: dict[str, Path | None] = {}
    for path in image_files(folder):
        for name in {path.name, path.stem, path.relative_to(folder).as_posix()}:
            index[name] = None if name in index else path
    return index


def _parse_split(row: dict[str, str], table: Path, number: int) -> str:
    split = (row.get(_SPLIT_COLUMN) or "").strip().lower()
    if split and split not in (*_TRAIN, *_VALIDATION):
        raise CannotTrain(f"{table}, line {number}: the split must be 'train' or 'validation', not '{split[:40]}'.")
    return "validation" if split in _VALIDATION else "train" if split else ""


def _split_rows(
    rows: Sequence[TaggedImage], hashes: dict[Path, str], tag_counts: Counter[str], valid_fraction: float
) -> tuple[tuple[TaggedImage, ...], tuple[TaggedImage, ...], str]:
    """Return the training rows, the validation rows, and a description of the split."""
    splits = {row.split for row in rows}
    if splits - {""}:
        if "" in splits:
            raise CannotTrain(f"The column '{_SPLIT_COLUMN}' is empty for some images but not for others.")
        # Copies are not removed here: many uniform tiles look alike without being copies.
        train = tuple(row for row in rows if row.split == "train")
        validation = tuple(row for row in rows if row.split != "train")
        return train, validation, f"the column '{_SPLIT_COLUMN}' of the table"
    # Stratify by each image's rarest tag, so that rare tags are on both sides.
    rank = {tag: i for i, (tag, _) in enumerate(sorted(tag_counts.items(), key=lambda item: (item[1], item[0])))}
    rarest = [min((rank[tag] for tag in row.tags), default=len(rank)) for row in rows]
    is_validation = validation_split([hashes[row.path] for row in rows], rarest, valid_fraction)
    train = tuple(row for row, held in zip(rows, is_validation, strict=True) if not held)
    validation = tuple(row for row, held in zip(rows, is_validation, strict=True) if held)
    split = f"{valid_fraction:.0%} of the images, chosen by a perceptual hash, are held out for validation"
    return train, validation, split
