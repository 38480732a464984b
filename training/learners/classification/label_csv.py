"""Images with several tags each, listed in a CSV file in the layout of Kaggle's Planet data set."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from tasks.near_names import nearest_name
from training.core.errors import CannotTrain
from training.data.delimited import RECOGNISED, CsvFormat, open_delimited
from training.data.folders import Listing, list_files, list_subfolders
from training.data.hash_split import validation_split
from training.data.images import describe_unread_images, filter_readable, list_images
from training.data.label_names import merge_spellings

TABLE = "labels.csv"
_IMAGE_COLUMN, _TAGS_COLUMN, _SPLIT_COLUMN = "image_name", "tags", "split"
_OTHER_NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        _IMAGE_COLUMN: (
            "image",
            "filename",
            "file_name",
            "file",
            "path",
            "image_path",
            "image_id",
            "image_file",
            "img",
        ),
        _TAGS_COLUMN: ("tag", "label", "labels", "class", "classes", "category", "categories", "attributes"),
    }
)
"""What other programs call the columns."""
_TAG_SEPARATORS: Mapping[str, str] = MappingProxyType({",": "commas", ";": "semicolons", "|": "bars"})
_TRAIN, _VALIDATION = ("train", "training"), ("validation", "valid", "val")

_Row = dict[str, str]
"""The cells of a row, by the name of the column in lower case."""


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
    if not data.is_dir():
        return None
    subfolders = list_subfolders(data)
    folders = [data, *subfolders] if len(subfolders) == 1 else [data]
    files = (file for folder in folders for file in list_files(folder, (".csv",), recursive=False).files)
    return next((file for file in files if file.name.lower() == TABLE), None)


def read_tags(
    table: Path, form: CsvFormat = RECOGNISED, *, unreadable: str, valid_fraction: float, size: int
) -> TagTable:
    """Read a CSV file with the columns image_name and tags, and the images in folders beside it.

    The tags of an image are separated by spaces or, if any cell has one of them, by commas, semicolons or bars.
    Spellings of one tag have one name (`merge_spellings`). An optional third column, split (train or validation),
    selects the validation images. Without it, `valid_fraction` of the images are held out by their perceptual hash:
    copies of an image stay on one side, and rare tags are put on both sides if possible. `warnings` count images and
    rows that are not used as they are.

    Raises CannotTrain if a column or an image is missing, an image is listed twice, there is no tag, or nothing is left
    to train or to validate on.
    """
    warnings: list[str] = []
    rows = _read_rows(table, form, warnings)
    hashes = dict(filter_readable([row.path for row in rows], unreadable=unreadable, size=size, warnings=warnings))
    rows = [row for row in rows if row.path in hashes]
    tag_counts = Counter(tag for row in rows for tag in row.tags)
    if not tag_counts:
        raise CannotTrain(f"No image in {table} has a tag.")
    if untagged := sum(not row.tags for row in rows):
        warnings.append(f"{untagged:,} of {len(rows):,} images have no tag, and are learnt as examples of none.")
    train, validation, split = _split_rows(rows, hashes, tag_counts, valid_fraction)
    if not train or not validation:
        side = "training" if not train else "validation"
        is_by_column = any(row.split for row in rows)
        advice = "" if is_by_column else " At least two images that differ are needed for one of the tags."
        raise CannotTrain(f"The split of {table} leaves no images for {side}.{advice}")
    if not any(image.tags for image in validation):
        raise CannotTrain(f"No validation image in {table} has a tag.")
    labels = tuple(sorted(tag_counts))
    for label in labels:
        for name, images in (("training", train), ("validation", validation)):
            if not any(label in image.tags for image in images):
                warnings.append(f"The label '{label}' has no {name} image.")
    return TagTable(labels, train, validation, split, tuple(warnings))


def _read_rows(table: Path, form: CsvFormat, warnings: list[str]) -> list[TaggedImage]:
    file = open_delimited(table, form)
    warnings += file.notes
    (_, header), *lines = file.rows()
    listing = list_images(table.parent, known=(table.name,))
    rows = list(_parse_rows(table, _name_cells(table, header, lines), listing, warnings))
    if not rows:
        raise CannotTrain(f"{table} has no rows.")
    merged = merge_spellings(Counter(tag for row in rows for tag in row.tags))
    warnings += merged.notes
    rows = [replace(row, tags=frozenset(merged.names[tag] for tag in row.tags)) for row in rows]
    if unlisted := len(listing.files) - len(rows):
        verb = "is" if unlisted == 1 else "are"
        warnings.append(f"{unlisted:,} of {len(listing.files):,} images {verb} not listed in {table.name}: left out.")
    warnings += describe_unread_images(listing)
    return rows


def _name_cells(
    table: Path, header: Sequence[str], lines: Sequence[tuple[int, tuple[str, ...]]]
) -> list[tuple[int, _Row]]:
    """Return the number and the named cells of each line; cells that are not there are empty. Raises CannotTrain."""
    names = _check_columns(table, header)
    for number, cells in lines:
        if len(cells) > len(names):
            raise CannotTrain(
                f"{table}, line {number} has more cells than the first line names columns. Separate the tags of an "
                "image by spaces, or put them in quotation marks."
            )
    return [(number, dict.fromkeys(names, "") | dict(zip(names, cells, strict=False))) for number, cells in lines]


def _parse_rows(
    table: Path, lines: Sequence[tuple[int, _Row]], listing: Listing, warnings: list[str]
) -> Iterator[TaggedImage]:
    files = _index_by_name(listing, table.parent)
    line_of_name: dict[str, int] = {}
    line_of_path: dict[Path, int] = {}
    mark = _tag_separator(table, [row[_TAGS_COLUMN] for _, row in lines], warnings)
    for number, row in lines:
        name = row[_IMAGE_COLUMN].replace("\\", "/").removeprefix("./")
        if name in line_of_name:
            raise CannotTrain(f"{table}, line {number}: {name} is already listed in line {line_of_name[name]}.")
        line_of_name[name] = number
        if name not in files:
            raise CannotTrain(f"{table}, line {number}: {_describe_missing(name, files, table.parent)}")
        path = files[name]
        if path is None:
            raise CannotTrain(f"{table}, line {number}: {name} matches several images; include its folder.")
        if path in line_of_path:
            raise CannotTrain(f"{table}, line {number}: {name} is the same image as in line {line_of_path[path]}.")
        line_of_path[path] = number
        tags = frozenset(filter(None, (tag.strip() for tag in row[_TAGS_COLUMN].split(mark))))
        yield TaggedImage(path, tags, _parse_split(row, table, number))


def _check_columns(table: Path, names: Sequence[str]) -> list[str]:
    """Return the names of the columns in lower case. Raises CannotTrain if one is missing or named twice."""
    lower = [name.lower() for name in names]
    missing = [name for name in (_IMAGE_COLUMN, _TAGS_COLUMN) if name not in lower]
    if missing:
        renamed = [
            f" Rename '{near}' to '{name}'."
            for name in missing
            if (near := next((column for column in names if _is_meant(column, name)), ""))
        ]
        raise CannotTrain(
            f"{table} has no column {' and '.join(missing)}; its columns are {', '.join(names) or 'none'}."
            + "".join(renamed)
        )
    for name in (_IMAGE_COLUMN, _TAGS_COLUMN, _SPLIT_COLUMN):
        if lower.count(name) > 1:
            raise CannotTrain(f"{table} has {lower.count(name)} columns '{name}'; keep one.")
    return lower


def _is_meant(column: str, name: str) -> bool:
    """Whether a column is named as other programs name this one, or nearly."""
    return nearest_name(column.replace(" ", "_"), (name, *_OTHER_NAMES[name])) is not None


def _tag_separator(table: Path, cells: Sequence[str], warnings: list[str]) -> str | None:
    """Return what separates the tags of an image; None: spaces. Raises CannotTrain for several kinds."""
    marks = [mark for mark in _TAG_SEPARATORS if any(mark in cell for cell in cells)]
    if len(marks) > 1:
        raise CannotTrain(
            f"The tags in {table} are separated by {' and by '.join(_TAG_SEPARATORS[mark] for mark in marks)}. Use "
            "one of them, or spaces."
        )
    if not marks:
        return None
    count = sum(marks[0] in cell for cell in cells)
    warnings.append(f"Tags were separated at {_TAG_SEPARATORS[marks[0]]}, not at spaces: {count:,} images have some.")
    return marks[0]


def _index_by_name(listing: Listing, folder: Path) -> dict[str, Path | None]:
    """Index the images by file name, stem and relative path; None for a name that matches several images."""
    index: dict[str, Path | None] = {}
    for path in listing.files:
        for name in {path.name, path.stem, path.relative_to(folder).as_posix()}:
            index[name] = None if name in index else path
    return index


def _describe_missing(name: str, files: Mapping[str, Path | None], folder: Path) -> str:
    """Return why a name of the table matches no image: spelt in another case, or in a format that is not read."""
    if not name:
        return "the image's name is empty."
    other_case = next((known for known in files if known.casefold() == name.casefold()), "")
    if other_case:
        return f"there is no image {name!r} in the folders of {folder}. Did you mean {other_case!r}?"
    unread = [path for path in folder.rglob("*") if name in (path.name, path.stem) and path.is_file()]
    if unread:
        return f"{unread[0].name} is not in a format that is read; convert it to JPEG or PNG."
    return f"there is no image {name!r} in the folders of {folder}."


def _parse_split(row: _Row, table: Path, number: int) -> str:
    split = row.get(_SPLIT_COLUMN, "").lower()
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
