"""Folders of images with one mask each: paired by name, checked, and split into training and validation."""

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from training.core.errors import CannotTrain
from training.data.folders import Listing, first_existing
from training.data.hash_split import validation_split
from training.data.images import decode_file, describe_unread_images, filter_readable, image_files, list_images
from training.learners.segmentation.classes import Classes, MaskRules, find_classes
from training.learners.segmentation.masks import MaskContents, decode_mask, summarise_mask

_TRAIN, _VALIDATION = ("train", "training"), ("val", "valid", "validation")
_IMAGES, _MASKS = ("images", "pictures"), ("masks", "labels", "annotations")


@dataclass(frozen=True)
class ImageMaskPair:
    """An image and its mask, their size, a perceptual hash of the image, and what the mask contains."""

    image: Path
    mask: Path
    width: int
    height: int
    perceptual_hash: str
    contents: MaskContents


@dataclass(frozen=True)
class MaskFolder:
    """The contents of a folder of images and masks and their split; `split` describes the split in words."""

    classes: Classes
    train: tuple[ImageMaskPair, ...]
    validation: tuple[ImageMaskPair, ...]
    split: str
    warnings: tuple[str, ...] = ()


def read_mask_folder(
    folder: Path, rules: MaskRules, *, unreadable: str, valid_fraction: float, size: int
) -> MaskFolder:
    """Read a folder with `images` and `masks` (optionally with `train` and `val` in them), or `train`, `trainannot`, ….

    An image and its mask have the same name except for the extension. The labels are the lines of `codes.txt`, else
    those of the rules, else they are named after what the masks contain; see `find_classes`.

    Raises CannotTrain if the folders are missing, an image has no mask or a mask no image, their sizes differ, or what
    the masks contain is no classes.
    """
    if not folder.is_dir():
        raise CannotTrain(f"{folder} is not a folder.")
    root = _find_root(folder)
    train_folders, validation_folders = _split_folders(root, _TRAIN), _split_folders(root, _VALIDATION)
    warnings: list[str] = []
    if not train_folders:
        images, masks = first_existing(root, _IMAGES), first_existing(root, _MASKS)
        if not (images and masks):
            raise CannotTrain(
                f"{root} has neither the folders 'images' and 'masks' nor 'train' and 'trainannot'. Put the images "
                "into the first and their masks, with the same names, into the second."
            )
        train_folders = (images, masks)
    pairs = _read_pairs(*train_folders, unreadable, size, warnings)
    validation = _read_pairs(*validation_folders, unreadable, size, warnings) if validation_folders else ()
    classes = find_classes(root, [(pair.mask, pair.contents) for pair in (*pairs, *validation)], rules, warnings)
    if validation:
        split = "the training and validation folders"
        train = _leave_out_copies(pairs, validation, warnings)
    else:
        split = f"{valid_fraction:.0%} of the images, chosen by a perceptual hash, are held out for validation"
        is_validation = validation_split([pair.perceptual_hash for pair in pairs], [0] * len(pairs), valid_fraction)
        train = tuple(pair for pair, held in zip(pairs, is_validation, strict=True) if not held)
        validation = tuple(pair for pair, held in zip(pairs, is_validation, strict=True) if held)
    if not (train and validation):
        raise CannotTrain(f"{root} has only one image, which leaves none for validation; copies count once.")
    folders = (*train_folders, *(validation_folders or ()))
    warnings += describe_unread_images(sum((list_images(path).without_files() for path in folders), Listing()))
    _tell_unused(root, folders, warnings)
    _tell_absent_labels(classes, train, validation, warnings)
    return MaskFolder(classes, train, validation, split, tuple(warnings))


def _leave_out_copies(
    train: Sequence[ImageMaskPair], validation: Sequence[ImageMaskPair], warnings: list[str]
) -> tuple[ImageMaskPair, ...]:
    """Return the training pairs without copies of validation images."""
    validation_hashes = {pair.perceptual_hash for pair in validation}
    kept = tuple(pair for pair in train if pair.perceptual_hash not in validation_hashes)
    if len(kept) < len(train):
        removed = len(train) - len(kept)
        warnings.append(f"{removed} training images were left out: they are copies of validation images.")
    return kept


def _tell_unused(root: Path, folders: Sequence[Path], warnings: list[str]) -> None:
    """Count the images beside the folders of images and masks, such as those of a test split."""
    unused = [path for path in image_files(root) if not any(path.is_relative_to(folder) for folder in folders)]
    if unused:
        names = ", ".join(sorted({str(path.relative_to(root).parts[0]) for path in unused})[:4])
        read = ", ".join(str(folder.relative_to(root)) for folder in folders)
        warnings.append(f"{len(unused):,} image files in {root} ({names}) were not used; only {read} are read.")


def _tell_absent_labels(
    classes: Classes, train: Sequence[ImageMaskPair], validation: Sequence[ImageMaskPair], warnings: list[str]
) -> None:
    """Name the labels that no training mask or no validation mask contains."""
    in_train = classes.count_pixels(pair.contents for pair in train) > 0
    in_validation = classes.count_pixels(pair.contents for pair in validation) > 0
    for side, absent, consequence in (
        ("training", ~in_train, "cannot be learnt"),
        ("validation", in_train & ~in_validation, "are not measured"),
    ):
        names = [f"'{name}'" for name, is_absent in zip(classes.labels, absent, strict=True) if is_absent]
        if names:
            warnings.append(f"These labels {consequence}, since no {side} mask contains them: {', '.join(names)}.")


def _find_root(folder: Path) -> Path:
    """Return the folder that holds the images; in an unpacked archive it may be one or two levels down."""
    candidates = [folder, *sorted(path for path in folder.glob("*/") if path.is_dir()), *sorted(folder.glob("*/*/"))]
    for path in candidates:
        if _split_folders(path, _TRAIN) or (first_existing(path, _IMAGES) and first_existing(path, _MASKS)):
            return path
    return folder


def _split_folders(root: Path, names: Sequence[str]) -> tuple[Path, Path] | None:
    """Return the image and mask folders of one side of the split, in any of the supported layouts."""
    images, masks = first_existing(root, _IMAGES), first_existing(root, _MASKS)
    for name in names:
        for folders in (
            (root / name, root / f"{name}annot"),
            (images / name, masks / name) if images and masks else None,
            *((root / name / image_name, root / name / mask_name) for image_name in _IMAGES for mask_name in _MASKS),
        ):
            if folders and folders[0].is_dir() and folders[1].is_dir():
                return folders
    return None


def _read_pairs(
    images: Path, masks: Path, unreadable: str, size: int, warnings: list[str]
) -> tuple[ImageMaskPair, ...]:
    """Return every image that can be decoded, with its mask."""
    image_of_name = _files_by_name(images)
    mask_of_name = _strip_common_suffix(_files_by_name(masks), image_of_name)
    for files, counterparts, problem in (
        (image_of_name, mask_of_name, f"has no mask of the same name in {masks}"),
        (mask_of_name, image_of_name, f"has no image of the same name in {images}"),
    ):
        missing = sorted(set(files) - set(counterparts))
        if missing:
            others = f" (and {len(missing) - 1} others)" if len(missing) > 1 else ""
            raise CannotTrain(f"{files[missing[0]]} {problem}{others}.")
    if not image_of_name:
        raise CannotTrain(f"There are no images that can be read in {images}.")
    decodable = filter_readable(list(image_of_name.values()), unreadable=unreadable, size=size, warnings=warnings)
    mask_of_image = {path: mask_of_name[name] for name, path in image_of_name.items()}
    with ThreadPoolExecutor() as pool:
        return tuple(pool.map(lambda entry: _check_pair(entry[0], mask_of_image[entry[0]], entry[1], size), decodable))


def _files_by_name(folder: Path) -> dict[str, Path]:
    """Return the images in a folder by their path in it, without extension. Raises CannotTrain if two have the same."""
    files: dict[str, Path] = {}
    for path in image_files(folder):
        other = files.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
        if other != path:
            raise CannotTrain(
                f"{other} and {path.name} have the same name except for the extension, so it is unclear which of them "
                "belongs to the other folder's file of this name. Remove or rename one."
            )
    return files


def _strip_common_suffix(masks: dict[str, Path], image_names: Collection[str]) -> dict[str, Path]:
    """Strip a suffix that all mask names add to their images' names, such as `_P` in the fast.ai course's CamVid."""
    if not masks or set(masks) & set(image_names):
        return masks
    first = min(masks)
    stems = [first[:length] for length in range(len(first) - 1, 0, -1) if first[:length] in image_names]
    suffix = first[len(stems[0]) :] if stems else ""
    if not suffix or not all(name.endswith(suffix) for name in masks):
        return masks
    return {name.removesuffix(suffix): path for name, path in masks.items()}


def _check_pair(path: Path, mask_path: Path, perceptual_hash: str, size: int) -> ImageMaskPair:
    image, mask = decode_file(path, size), decode_mask(mask_path)
    height, width = mask.pixels.shape[:2]
    if (image.width, image.height) != (width, height):
        raise CannotTrain(
            f"{path} has {image.width}×{image.height} pixels but its mask {mask_path} has {width}×{height}. A mask "
            "must have the size of its image."
        )
    return ImageMaskPair(path, mask_path, width, height, perceptual_hash, summarise_mask(mask))
