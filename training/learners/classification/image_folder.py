"""Folders of pictures, one folder a class: what is in them, and how it is split."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from training.core.errors import CannotTrain
from training.data.images import filter_readable, image_files
from training.data.splits import validation_split

_TRAIN, _VALIDATION = ("train", "training"), ("validation", "valid", "val")


@dataclass(frozen=True)
class LabelledImage:
    """A picture's file, its class as an index, and what its content looks like."""

    path: Path
    label: int
    perceptual_hash: str = ""


@dataclass(frozen=True)
class ImageFolder:
    """What lies in a folder of pictures, and how it is split; `split` says how in words."""

    labels: tuple[str, ...]
    train: tuple[LabelledImage, ...]
    validation: tuple[LabelledImage, ...]
    split: str
    notices: tuple[str, ...] = ()


def read_folder(folder: Path, *, unreadable: str, valid_fraction: float, size: int) -> ImageFolder:
    """Reads a folder of classes, or one of `train` and `validation` (or `valid`, `val`) folders of classes.

    Without a validation folder, `valid_fraction` of each class is kept for it, copies of a picture on one side. Files
    that are no picture by their name are not read. `unreadable` is what happens to pictures that cannot be decoded:
    `skip` or `refuse`.

    Raises CannotTrain: there is no folder, no picture, one class, or an unreadable file that is to be refused.
    """
    if not folder.is_dir():
        raise CannotTrain(f"{folder} is not a folder.")
    root = _root(folder)
    train, validation = _part(root, _TRAIN), _part(root, _VALIDATION)
    if validation and not train:
        raise CannotTrain(f"{root} has a folder '{validation.name}' and no folder 'train'.")
    classes = _classes(train or root)
    labels = tuple(path.name for path in classes)
    notices: list[str] = []
    photos = _read(classes, labels, unreadable, size, notices)
    if train and validation:
        known = _classes(validation)
        for path in known:
            if path.name not in labels:
                raise CannotTrain(f"'{path.name}' is a class of {validation} and not of {train}.")
        kept = _read(known, labels, unreadable, size, notices)
        photos = _without_copies(photos, kept, notices)
        return ImageFolder(labels, photos, kept, f"the folders '{train.name}' and '{validation.name}'", tuple(notices))
    held = validation_split(
        [photo.perceptual_hash for photo in photos], [photo.label for photo in photos], valid_fraction
    )
    split = f"{valid_fraction:.0%} of each class held out for validation by the hash of the picture"
    return ImageFolder(
        labels,
        tuple(photo for photo, out in zip(photos, held, strict=True) if not out),
        tuple(photo for photo, out in zip(photos, held, strict=True) if out),
        split,
        tuple(notices),
    )


def _root(folder: Path) -> Path:
    """The folder that holds the split: of an unpacked archive it is the only folder in it."""
    inner = _folders(folder)
    return inner[0] if len(inner) == 1 and _part(inner[0], _TRAIN) else folder


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _part(root: Path, names: Sequence[str]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _classes(root: Path) -> list[Path]:
    """The folders that hold pictures."""
    found = [path for path in _folders(root) if image_files(path)]
    if not found:
        raise CannotTrain(
            f"No pictures (JPEG, PNG, WebP or BMP) in folders of {root}: it needs a folder for each class."
        )
    if len(found) == 1:
        raise CannotTrain(f"{root} has pictures of one class only, '{found[0].name}': it needs two or more.")
    return found


def _read(
    classes: Sequence[Path], labels: Sequence[str], unreadable: str, size: int, notices: list[str]
) -> tuple[LabelledImage, ...]:
    """Every picture that can be decoded."""
    label_of = {file: labels.index(folder.name) for folder in classes for file in image_files(folder)}
    found = filter_readable(list(label_of), unreadable=unreadable, size=size, warnings=notices)
    photos = tuple(LabelledImage(file, label_of[file], perceptual_hash) for file, perceptual_hash in found)
    for label, name in enumerate(labels):
        if not any(photo.label == label for photo in photos) and any(folder.name == name for folder in classes):
            raise CannotTrain(f"No picture of class '{name}' can be read.")
    return photos


def _without_copies(
    photos: tuple[LabelledImage, ...], validation: tuple[LabelledImage, ...], notices: list[str]
) -> tuple[LabelledImage, ...]:
    seen = {photo.perceptual_hash for photo in validation}
    kept = tuple(photo for photo in photos if photo.perceptual_hash not in seen)
    if len(kept) < len(photos):
        notices.append(f"{len(photos) - len(kept)} training pictures left out: copies of validation pictures.")
    return kept
