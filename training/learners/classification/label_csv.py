"""Images with several tags each, listed in a CSV file in the layout of Kaggle's Planet data set."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from training.core.errors import CannotTrain
from training.core.sentences import count_of, was
from training.data.delimited import RECOGNISED, CsvFormat, open_delimited
from training.data.folders import Listing, list_files, list_subfolders
from training.data.hash_split import validation_split
from training.data.images import describe_unread_images, filter_readable, list_images
from training.data.label_names import merge_spellings, suggest_label
from training.learners.classification.label_columns import SPLIT_COLUMN, TagRow, read_tag_rows

TABLE = "labels.csv"
_TRAIN, _VALIDATION = ("train", "training"), ("validation", "valid", "val")

_UPLOADED = re.compile(r"(?:^|/)upload/(?:[0-9]+/)?[0-9a-f]{8}-(?P<name>[^/]+)$")
"""How Label Studio names a file that was uploaded: /data/upload/1/0a1b2c3d-IMG_000.jpg."""


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

    Other usual names of the columns are read too, and tags that have a column each (`read_tag_rows`).
    The tags of an image are separated by spaces or, if any cell has one of them, by commas, semicolons or bars.
    Spellings of one tag have one name (`merge_spellings`). An optional third column, split (train or validation),
    selects the validation images. Without it, `valid_fraction` of the images are held out by their perceptual hash:
    copies of an image stay on one side, and rare tags are put on both sides if possible. `warnings` count images and
    rows that are not used as they are. `unreadable` is for images that cannot be decoded, and for rows that name none:
    skip or refuse.

    Raises CannotTrain if a column or an image is missing, an image is listed twice, there is no tag, or nothing is left
    to train or to validate on.
    """
    warnings: list[str] = []
    rows = _read_rows(table, form, unreadable, warnings)
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
                warnings.append(f"The label '{label}' has no {name} image.{suggest_label(label, tag_counts)}")
    return TagTable(labels, train, validation, split, tuple(warnings))


def _read_rows(table: Path, form: CsvFormat, unreadable: str, warnings: list[str]) -> list[TaggedImage]:
    file = open_delimited(table, form)
    warnings += file.notes
    (_, header), *lines = file.rows()
    if not lines:
        raise CannotTrain(f"{table} has no rows.")
    listing = list_images(table.parent, known=(table.name,))
    rows = _find_images(table, read_tag_rows(table, header, lines, warnings), listing, unreadable, warnings)
    merged = merge_spellings(Counter(tag for row in rows for tag in row.tags))
    warnings += merged.notes
    rows = [replace(row, tags=frozenset(merged.names[tag] for tag in row.tags)) for row in rows]
    if unlisted := len(listing.files) - len(rows):
        verb = "is" if unlisted == 1 else "are"
        warnings.append(f"{unlisted:,} of {len(listing.files):,} images {verb} not listed in {table.name}: left out.")
    warnings += describe_unread_images(listing)
    return rows


def _find_images(
    table: Path, rows: Sequence[TagRow], listing: Listing, unreadable: str, warnings: list[str]
) -> list[TaggedImage]:
    """Return the images that the rows name; `unreadable` says what to do with rows that name none."""
    files = _index_by_name(listing, table.parent)
    line_of_name: dict[str, int] = {}
    line_of_path: dict[Path, int] = {}
    images: list[TaggedImage] = []
    missing: list[tuple[int, str]] = []
    uploaded: list[tuple[str, str]] = []
    for row in rows:
        name = _find_name(row.name, files)
        if name != _clean_name(row.name):
            uploaded.append((name, row.name))
        if name in line_of_name:
            raise CannotTrain(f"{table}, line {row.line}: {name} is already listed in line {line_of_name[name]}.")
        if name not in files:
            missing.append((row.line, name))
            continue
        line_of_name[name] = row.line
        path = files[name]
        if path is None:
            raise CannotTrain(f"{table}, line {row.line}: {name} matches several images; include its folder.")
        if path in line_of_path:
            raise CannotTrain(f"{table}, line {row.line}: {name} is the same image as in line {line_of_path[path]}.")
        line_of_path[path] = row.line
        images.append(TaggedImage(path, row.tags, _parse_split(row, table)))
    if missing:
        _handle_missing(table, missing, len(rows), files, unreadable, warnings)
    if uploaded:
        warnings.append(
            f"{count_of(len(uploaded), 'image')} {was(len(uploaded))} found without the folder and the prefix of an "
            f"upload to Label Studio: '{uploaded[0][1]}' is {uploaded[0][0]}."
        )
    return images


def _clean_name(written: str) -> str:
    return written.replace("\\", "/").removeprefix("./")


def _find_name(written: str, files: Collection[str]) -> str:
    """Return the name of an image as the table means it: without what Label Studio adds, if only so it is known."""
    name = _clean_name(written)
    uploaded = None if name in files else _UPLOADED.search(name)
    if not uploaded:
        return name
    original = (name.rpartition("/")[2], uploaded["name"])
    return next((candidate for candidate in original if candidate in files), name)


def _handle_missing(
    table: Path,
    missing: Sequence[tuple[int, str]],
    rows: int,
    files: Mapping[str, Path | None],
    unreadable: str,
    warnings: list[str],
) -> None:
    """Count the rows that name no image. Raises CannotTrain unless they are to be skipped and others are left."""
    line, name = missing[0]
    reason = f"line {line}: {_describe_missing(name, files, table.parent)}"
    names = "names" if len(missing) == 1 else "name"
    counted = f"{len(missing):,} of {count_of(rows, 'row')} {names} no image that is read"
    if len(missing) == rows:
        raise CannotTrain(f"{table}, {reason} None of its {count_of(rows, 'row')} names an image that is read.")
    if unreadable == "refuse":
        raise CannotTrain(f"{table}, {reason} {counted}; leave {_them(missing)} out with --unreadable skip.")
    warnings.append(f"{counted}: left out, such as {reason}")


def _them(items: Sequence[object]) -> str:
    return "it" if len(items) == 1 else "them"


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


def _parse_split(row: TagRow, table: Path) -> str:
    split = row.split
    if split and split not in (*_TRAIN, *_VALIDATION):
        raise CannotTrain(f"{table}, line {row.line}: the split must be 'train' or 'validation', not '{split[:40]}'.")
    return "validation" if split in _VALIDATION else "train" if split else ""


def _split_rows(
    rows: Sequence[TaggedImage], hashes: dict[Path, str], tag_counts: Counter[str], valid_fraction: float
) -> tuple[tuple[TaggedImage, ...], tuple[TaggedImage, ...], str]:
    """Return the training rows, the validation rows, and a description of the split."""
    splits = {row.split for row in rows}
    if splits - {""}:
        if "" in splits:
            raise CannotTrain(f"The column '{SPLIT_COLUMN}' is empty for some images but not for others.")
        # Copies are not removed here: many uniform tiles look alike without being copies.
        train = tuple(row for row in rows if row.split == "train")
        validation = tuple(row for row in rows if row.split != "train")
        return train, validation, f"the column '{SPLIT_COLUMN}' of the table"
    # Stratify by each image's rarest tag, so that rare tags are on both sides.
    rank = {tag: i for i, (tag, _) in enumerate(sorted(tag_counts.items(), key=lambda item: (item[1], item[0])))}
    rarest = [min((rank[tag] for tag in row.tags), default=len(rank)) for row in rows]
    is_validation = validation_split([hashes[row.path] for row in rows], rarest, valid_fraction)
    train = tuple(row for row, held in zip(rows, is_validation, strict=True) if not held)
    validation = tuple(row for row, held in zip(rows, is_validation, strict=True) if held)
    split = f"{valid_fraction:.0%} of the images, chosen by a perceptual hash, are held out for validation"
    return train, validation, split
