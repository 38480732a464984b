"""Image folders with one subfolder per class: reading them and splitting off a validation set."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks._image_files.read import accepted_formats
from tasks.near_names import suggest
from training.core.errors import CannotTrain
from training.data.folders import (
    Listing,
    describe_equal_names,
    describe_nested,
    enter_wrapper,
    first_existing,
    list_subfolders,
    wrappers,
)
from training.data.hash_split import validation_split
from training.data.images import describe_unread_images, filter_readable, image_endings, list_images

_TRAIN, _VALIDATION = ("train", "training"), ("validation", "valid", "val")
_MAX_NAMED = 5


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
        files: the images of each class, by its name; every class has at least one.
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
            what = "folders" if len(self.empty) > 1 else "folder"
            sentences.append(
                f"The {what} {_quote(self.empty)} of {self.root.name} {'have' if len(self.empty) > 1 else 'has'} no "
                "image that is read, so no class is named so."
            )
        nested = describe_nested(
            self.root,
            [self.root / name for name in self.files],
            [file for files in self.files.values() for file in files],
        )
        return [*sentences, nested] if nested else sentences


def read_folder(folder: Path, *, unreadable: str, valid_fraction: float, size: int) -> ImageFolder:
    """Read a folder of class folders, or of `train` and `validation` (or `valid`, `val`) folders of class folders.

    Without a validation folder, `valid_fraction` of each class is held out, and copies of an image stay on one side of
    the split. A class without a second distinct image is used for training only. Files that are left out are counted by
    reason in `warnings`. `unreadable` (`skip` or `refuse`) says what to do with images that cannot be decoded.

    Raises CannotTrain if there is no folder, no image or only one class, if nothing is left to train or to validate on,
    or for an unreadable image with `refuse`.
    """
    if not folder.is_dir():
        raise CannotTrain(f"{folder} is not a folder.")
    root = _find_root(folder)
    train, validation = first_existing(root, _TRAIN), first_existing(root, _VALIDATION)
    if validation and not train:
        raise CannotTrain(f"{root} has a folder '{validation.name}' but no folder 'train'.")
    classes = _read_classes(train or root)
    labels = tuple(classes.files)
    warnings = [sentence for path in wrappers(folder, root) for sentence in _describe_beside(path)]
    warnings += [*(_describe_other_folders(root, train, validation) if train else []), *classes.describe()]
    warnings += describe_equal_names(labels, "classes")
    images = _read_images(classes, labels, unreadable, size, warnings)
    if train and validation:
        return _read_given_split(images, labels, (train, validation), unreadable, size, warnings)
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
        what = f"folders {_quote(read)} were" if len(read) > 1 else f"folder {_quote(read)} was"
        sentences.append(f"Only the {what} read, not {_quote(others)}.")
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


def _read_images(
    classes: _ClassFolders, labels: Sequence[str], unreadable: str, size: int, warnings: list[str]
) -> tuple[LabelledImage, ...]:
    """Return every image that can be decoded."""
    label_of = {file: labels.index(name) for name, files in classes.files.items() for file in files}
    decodable = filter_readable(list(label_of), unreadable=unreadable, size=size, warnings=warnings)
    images = tuple(LabelledImage(file, label_of[file], perceptual_hash) for file, perceptual_hash in decodable)
    readable = {image.label for image in images}
    for name in classes.files:
        if labels.index(name) not in readable:
            raise CannotTrain(f"No image of class '{name}' can be read.")
    return images


def _read_given_split(
    images: tuple[LabelledImage, ...],
    labels: tuple[str, ...],
    folders: tuple[Path, Path],
    unreadable: str,
    size: int,
    warnings: list[str],
) -> ImageFolder:
    """Read the validation folder and complete the data, without training images that are copies of validation images.

    `folders` are those of the training and the validation images.
    """
    train, validation = folders
    classes = _read_classes(validation)
    for name in classes.files:
        if name not in labels:
            raise CannotTrain(f"The class '{name}' is in {validation} but not in {train}.{suggest(name, labels)}")
    warnings += classes.describe()
    held_out = _read_images(classes, labels, unreadable, size, warnings)
    contradictions = _describe_contradictions((*images, *held_out), labels)
    kept = _without_copies(images, held_out, warnings)
    split = f"the folders '{train.name}' and '{validation.name}'"
    return _check_split(ImageFolder(labels, kept, held_out, split, (*warnings, *contradictions)), train.parent)


def _without_copies(
    train: tuple[LabelledImage, ...], validation: tuple[LabelledImage, ...], warnings: list[str]
) -> tuple[LabelledImage, ...]:
    validation_hashes = {image.perceptual_hash for image in validation}
    kept = tuple(image for image in train if image.perceptual_hash not in validation_hashes)
    if len(kept) < len(train):
        warnings.append(
            f"{len(train) - len(kept)} training images were left out: they are copies of validation images."
        )
    return kept


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
        return [f"Class {_quote(names)} {one}; it is {outcome} it is recognised."]
    return [f"Classes {_quote(names)} {several}; they are {outcome} they are recognised."]


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


def _quote(names: Sequence[str]) -> str:
    quoted = [f"'{name}'" for name in names[:_MAX_NAMED]]
    if len(names) > _MAX_NAMED:
        return f"{', '.join(quoted)} and {len(names) - _MAX_NAMED:,} more"
    return " and ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)
