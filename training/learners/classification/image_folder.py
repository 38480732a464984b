"""Image folders with one subfolder per class: reading them and splitting off a validation set."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tasks._image_files.read import accepted_formats
from tasks.near_names import suggest
from training.core.errors import CannotTrain
from training.core.sentences import join_quoted
from training.data.folders import (
    Listing,
    describe_nested,
    enter_wrapper,
    first_existing,
    list_subfolders,
    wrappers,
)
from training.data.hash_split import validation_split
from training.data.images import describe_unread_images, filter_readable, image_endings, list_images
from training.data.label_names import merge_spellings

_TRAIN, _VALIDATION = ("train", "training"), ("validation", "valid", "val")


@dataclass(frozen=True)
class LabelledImage:
    """An image file, the index of its class, and a perceptual hash of its content."""

    path: Path
    label: int
    perceptual_hash: str = ""


@dataclass(frozen=True)
class ImageFolder:
    """The contents of an image folder and their split; `split` describes the split in words."""

    labels: tuple[str, ...]
    train: tuple[LabelledImage, ...]
    validation: tuple[LabelledImage, ...]
    split: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _ClassFolders:
    """The image files of each class, and how many other files of the same folder are left out.

    Attributes:
        root: the folder that holds the classes' folders.
        files: the images of each folder, by its name; every folder has at least one.
        empty: names of folders without an image.
    """

    root: Path
    files: dict[str, tuple[Path, ...]]
    empty: tuple[str, ...]
    left_out: Listing

    def describe(self) -> list[str]:
        """Return sentences about what was not read as it lies there."""
        sentences = describe_unread_images(self.left_out)
        if self.empty:
            what, have = ("folders", "have") if len(self.empty) > 1 else ("folder", "has")
            sentences.append(
                f"The {what} {join_quoted(self.empty)} of {self.root.name} {have} no image that is read, so no class "
                "is named so."
            )
        nested = describe_nested(
            self.root,
            [self.root / name for name in self.files],
            [file for files in self.files.values() for file in files],
        )
        return [*sentences, nested] if nested else sentences


class _Classes(NamedTuple):
    """The names of the classes, and the index of the class of each folder."""

    names: tuple[str, ...]
    of_folder: Mapping[str, int]


def read_folder(folder: Path, *, unreadable: str, valid_fraction: float, size: int) -> ImageFolder:
    """Read a folder of class folders, or of `train` and `validation` (or `valid`, `val`) folders of class folders.

    Without a validation folder, `valid_fraction` of each class is held out, and copies of an image stay on one side of
    the split. A class without a second distinct image is used for training only. Folders whose names differ only in
    case or spaces are one class. Files that are left out are counted by reason in `warnings`. `unreadable` (`skip` or
    `refuse`) says what to do with images that cannot be decoded.

    Raises CannotTrain if there is no folder, no image or only one class, if nothing is left to train or to validate on,
    or for an unreadable image with `refuse`.
    """
    if not folder.is_dir():
        raise CannotTrain(f"{folder} is not a folder.")
    root = _find_root(folder)
    train, validation = first_existing(root, _TRAIN), first_existing(root, _VALIDATION)
    if validation and not train:
        raise CannotTrain(f"{root} has a folder '{validation.name}' but no folder 'train'.")
    folders = _read_classes(train or root)
    held_out_folders = _read_classes(validation) if validation else None
    warnings = [sentence for path in wrappers(folder, root) for sentence in _describe_beside(path)]
    warnings += [*(_describe_other_folders(root, train, validation) if train else []), *folders.describe()]
    classes = _name_classes(folders, held_out_folders, warnings)
    labels = classes.names
    images = _read_images(folders, classes, unreadable, size, warnings)
    if held_out_folders:
        warnings += held_out_folders.describe()
        held_out = _read_images(held_out_folders, classes, unreadable, size, warnings)
        split = f"the folders '{folders.root.name}' and '{held_out_folders.root.name}'"
        data = ImageFolder(labels, images, held_out, split, tuple(warnings))
        return _check_split(_without_copies(data), folders.root.parent)
    hashes, targets = [image.perceptual_hash for image in images], [image.label for image in images]
    is_validation = validation_split(hashes, targets, valid_fraction)
    data = ImageFolder(
        labels,
        tuple(image for image, held in zip(images, is_validation, strict=True) if not held),
        tuple(image for image, held in zip(images, is_validation, strict=True) if held),
        f"{valid_fraction:.0%} of each class, chosen by a perceptual hash of the image, is held out for validation",
        (*warnings, *_describe_contradictions(images, labels)),
    )
    if not data.validation:
        raise CannotTrain(
            f"{root} has {len(images)} images of {len(labels)} classes, but no class has two that differ, one to train "
            "on and one to validate on; tens for each class give good results."
        )
    return _check_split(data, root)


def _find_root(folder: Path) -> Path:
    """Return the folder that holds the split or the classes: in an unpacked archive, its only subfolder."""
    subfolders = list_subfolders(folder)
    if len(subfolders) == 1 and first_existing(subfolders[0], _TRAIN):
        return subfolders[0]
    return enter_wrapper(folder, image_endings())


def _describe_beside(folder: Path) -> list[str]:
    return describe_unread_images(list_images(folder, recursive=False).as_beside())


def _describe_other_folders(root: Path, train: Path, validation: Path | None) -> list[str]:
    """Return sentences about what lies beside the folders of the split."""
    read = [path.name for path in (train, validation) if path]
    others = [path.name for path in list_subfolders(root) if path.name not in read]
    sentences = _describe_beside(root)
    if others:
        what = f"folders {join_quoted(read)} were" if len(read) > 1 else f"folder {join_quoted(read)} was"
        sentences.append(f"Only the {what} read, not {join_quoted(others)}.")
    return sentences


def _read_classes(root: Path) -> _ClassFolders:
    """List the subfolders that contain images. Raises CannotTrain if there are fewer than two."""
    listings = {path.name: list_images(path) for path in list_subfolders(root)}
    left_out = list_images(root, recursive=False).as_beside()
    for listing in listings.values():
        left_out += listing.without_files()
    files = {name: listing.files for name, listing in listings.items() if listing.files}
    classes = _ClassFolders(root, files, tuple(name for name in listings if name not in files), left_out)
    if not files:
        reasons = " ".join(describe_unread_images(left_out))
        raise CannotTrain(
            f"No images ({accepted_formats()}) in subfolders of {root}. Put the images of each class into a folder "
            f"of their own.{' ' + reasons if reasons else ''}"
        )
    if len(files) == 1:
        reasons = " ".join(classes.describe())
        raise CannotTrain(
            f"{root} has images of one class only, '{next(iter(files))}'; at least two are "
            f"needed.{' ' + reasons if reasons else ''}"
        )
    return classes


def _name_classes(folders: _ClassFolders, held_out: _ClassFolders | None, warnings: list[str]) -> _Classes:
    """Name the classes by the folders to train on. Raises CannotTrain if one to validate on is of no class."""
    counts = Counter({name: len(files) for name, files in folders.files.items()})
    if held_out:
        counts.update({name: len(files) for name, files in held_out.files.items()})
    merged = merge_spellings(counts, truth_values=False)
    names = tuple(sorted({merged.names[name] for name in folders.files}))
    if len(names) == 1:
        raise CannotTrain(
            f"{folders.root} has images of one class only, '{names[0]}'; at least two are needed. {merged.notes[0]}"
        )
    if held_out and (others := [name for name in held_out.files if merged.names[name] not in names]):
        raise CannotTrain(
            f"The class '{others[0]}' is in {held_out.root} but not in {folders.root}.{suggest(others[0], names)}"
        )
    warnings += merged.notes
    return _Classes(names, {folder: names.index(name) for folder, name in merged.names.items()})


def _read_images(
    folders: _ClassFolders, classes: _Classes, unreadable: str, size: int, warnings: list[str]
) -> tuple[LabelledImage, ...]:
    """Return every image that can be decoded."""
    label_of = {file: classes.of_folder[name] for name, files in folders.files.items() for file in files}
    decodable = filter_readable(list(label_of), unreadable=unreadable, size=size, warnings=warnings)
    images = tuple(LabelledImage(file, label_of[file], perceptual_hash) for file, perceptual_hash in decodable)
    readable = {image.label for image in images}
    for label in label_of.values():
        if label not in readable:
            raise CannotTrain(f"No image of class '{classes.names[label]}' can be read.")
    return images


def _without_copies(data: ImageFolder) -> ImageFolder:
    """Return data with a split of its own without training images that are copies of validation images."""
    validation_hashes = {image.perceptual_hash for image in data.validation}
    kept = tuple(image for image in data.train if image.perceptual_hash not in validation_hashes)
    warnings = list(data.warnings)
    if len(kept) < len(data.train):
        warnings.append(
            f"{len(data.train) - len(kept)} training images were left out: they are copies of validation images."
        )
    warnings += _describe_contradictions((*data.train, *data.validation), data.labels)
    return ImageFolder(data.labels, kept, data.validation, data.split, tuple(warnings))


def _check_split(data: ImageFolder, root: Path) -> ImageFolder:
    """Return the data with warnings about classes that are not validated.

    Raises CannotTrain if there is nothing to train on for a class.
    """
    trained, validated = (Counter(image.label for image in images) for images in (data.train, data.validation))
    for label, name in enumerate(data.labels):
        if not trained[label]:
            raise CannotTrain(
                f"Nothing is left to train on for the class '{name}' of {root}: {validated[label]} of its images are "
                "for validation, and copies of them are left out. Add other images, or use a smaller --valid-fraction."
            )
    singles: list[str] = []
    copies: list[str] = []
    others: list[str] = []
    for label, name in enumerate(data.labels):
        if validated[label]:
            continue
        hashes = {image.perceptual_hash for image in data.train if image.label == label}
        group = singles if trained[label] == 1 else copies if len(hashes) == 1 else others
        group.append(name)
    outcome = "used for training only, so nothing says how well"
    warnings = [
        *_describe_classes(singles, "has one image", "have one image each", outcome),
        *_describe_classes(copies, "has copies of one image only", "have copies of one image each", outcome),
        *_describe_classes(others, "has no validation image", "have no validation image", outcome),
    ]
    return ImageFolder(data.labels, data.train, data.validation, data.split, (*data.warnings, *warnings))


def _describe_classes(names: Sequence[str], one: str, several: str, outcome: str) -> list[str]:
    if not names:
        return []
    if len(names) == 1:
        return [f"Class {join_quoted(names)} {one}; it is {outcome} it is recognised."]
    return [f"Classes {join_quoted(names)} {several}; they are {outcome} they are recognised."]


def _describe_contradictions(images: Sequence[LabelledImage], labels: Sequence[str]) -> list[str]:
    """Return a sentence that counts images that look the same as one of another class."""
    first: dict[str, dict[int, Path]] = defaultdict(dict)
    for image in images:
        first[image.perceptual_hash].setdefault(image.label, image.path)
    paths = [by_label for by_label in first.values() if len(by_label) > 1]
    if not paths:
        return []
    (left, left_path), (right, right_path), *_ = paths[0].items()
    return [
        f"{len(paths):,} {'images look' if len(paths) > 1 else 'image looks'} the same in more than one class, such as "
        f"{left_path.name} of '{labels[left]}' and {right_path.name} of '{labels[right]}'."
    ]
