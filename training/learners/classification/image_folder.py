"""Image folders with one subfolder per class: reading them and splitting off a validation set."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from training.core.errors import CannotTrain
from training.data.folders import first_existing, list_subfolders
from training.data.hash_split import validation_split
from training.data.images import filter_readable, image_files

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


def read_folder(folder: Path, *, unreadable: str, valid_fraction: float, size: int) -> ImageFolder:
    """Read a folder of class folders, or of `train` and `validation` (or `valid`, `val`) folders of class folders.

    Without a validation folder, `valid_fraction` of each class is held out, and copies of an image stay on one side of
    the split. Files without an image extension are ignored. `unreadable` (`skip` or `refuse`) says what to do with
    images that cannot be decoded.

    Raises CannotTrain if there is no folder, no image or only one class, or for an unreadable image with `refuse`.
    """
    if not folder.is_dir():
        raise CannotTrain(f"{folder} is not a folder.")
    root = _find_root(folder)
    train, validation = first_existing(root, _TRAIN), first_existing(root, _VALIDATION)
    if validation and not train:
        raise CannotTrain(f"{root} has a folder '{validation.name}' but no folder 'train'.")
    class_folders = _class_folders(train or root)
    labels = tuple(path.name for path in class_folders)
    warnings: list[str] = []
    images = _read_images(class_folders, labels, unreadable, size, warnings)
    if train and validation:
        validation_folders = _class_folders(validation)
        for path in validation_folders:
            if path.name not in labels:
                raise CannotTrain(f"The class '{path.name}' is in {validation} but not in {train}.")
        held_out = _read_images(validation_folders, labels, unreadable, size, warnings)
        images = _without_copies(images, held_out, warnings)
        split = f"the folders '{train.name}' and '{validation.name}'"
        return ImageFolder(labels, images, held_out, split, tuple(warnings))
    hashes, targets = [image.perceptual_hash for image in images], [image.label for image in images]
    is_validation = validation_split(hashes, targets, valid_fraction)
    return ImageFolder(
        labels,
        tuple(image for image, held in zip(images, is_validation, strict=True) if not held),
        tuple(image for image, held in zip(images, is_validation, strict=True) if held),
        f"{valid_fraction:.0%} of each class, chosen by a perceptual hash of the image, is held out for validation",
        tuple(warnings),
    )


def _find_root(folder: Path) -> Path:
    """Return the folder that holds the split: in an unpacked archive, its only subfolder."""
    subfolders = list_subfolders(folder)
    return subfolders[0] if len(subfolders) == 1 and first_existing(subfolders[0], _TRAIN) else folder


def _class_folders(root: Path) -> list[Path]:
    """Return the subfolders that contain images. Raises CannotTrain if there are fewer than two."""
    folders = [path for path in list_subfolders(root) if image_files(path)]
    if not folders:
        raise CannotTrain(
            f"No images (JPEG, PNG, WebP or BMP) in subfolders of {root}. Put the images of each class into a folder "
            "of their own."
        )
    if len(folders) == 1:
        raise CannotTrain(f"{root} has images of one class only, '{folders[0].name}'; at least two are needed.")
    return folders


def _read_images(
    folders: Sequence[Path], labels: Sequence[str], unreadable: str, size: int, warnings: list[str]
) -> tuple[LabelledImage, ...]:
    """Return every image that can be decoded."""
    label_of = {file: labels.index(folder.name) for folder in folders for file in image_files(folder)}
    decodable = filter_readable(list(label_of), unreadable=unreadable, size=size, warnings=warnings)
    images = tuple(LabelledImage(file, label_of[file], perceptual_hash) for file, perceptual_hash in decodable)
    for label, name in enumerate(labels):
        if not any(image.label == label for image in images) and any(folder.name == name for folder in folders):
            raise CannotTrain(f"No image of class '{name}' can be read.")
    return images


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
