"""Folders of sharp images: their split, training crops, and whole images for evaluation."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tasks._image_files.read import accepted_formats, read_image_file
from tasks._images import DecodedImage
from tasks.contract import InvalidInput, Limits
from training.core.errors import CannotTrain
from training.data.folders import Listing, first_existing, list_subfolders
from training.data.hash_split import validation_split
from training.data.images import ImageSamples, describe_unread_images, filter_readable, list_images
from training.engine.batches import Key
from training.engine.runtime import Batch
from training.learners.super_resolution.degradation import (
    CropSampler,
    DegradationParams,
    DegradedImage,
    crop_to_multiple,
    degrade,
    downscale,
)

TRAIN, TEST = "train", "test"
"""In a folder that has both: the images to train and validate on, and a folder of each test set."""


@dataclass(frozen=True)
class SharpFolder:
    """The contents of a folder of sharp images and their split; `split` describes the split in words.

    Attributes:
        tests: test sets by name; nothing is chosen on them.
    """

    train: tuple[Path, ...]
    validation: tuple[Path, ...]
    tests: dict[str, tuple[Path, ...]]
    split: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _SharpFiles:
    """The images to train and validate on, and those of each test set.

    Attributes:
        left_out: how many other files are left out.
        unread: names of folders from which nothing is read.
    """

    images: tuple[Path, ...]
    tests: dict[str, tuple[Path, ...]]
    left_out: Listing
    unread: tuple[str, ...] = ()


def read_sharp_folder(folder: Path, *, unreadable: str, valid_fraction: float, min_side: int) -> SharpFolder:
    """Read a folder of images; if it has folders `train` and `test`, each folder in `test` is a test set.

    Images directly in `test` are a test set of that name. Images with a side shorter than `min_side` pixels are left
    out, as are copies of test images. Copies of an image stay on one side of the split. Files that are left out are
    counted by reason in `warnings`.

    Raises CannotTrain if there is no folder, there are fewer than two images, or for an unreadable image with `refuse`.
    """
    if not folder.is_dir():
        raise CannotTrain(f"{folder} is not a folder.")
    files = _find_images(folder)
    warnings = describe_unread_images(files.left_out)
    if not files.images:
        reasons = "".join(f" {sentence}" for sentence in warnings)
        raise CannotTrain(f"No images ({accepted_formats()}) in {folder}.{reasons}")
    if files.unread:
        warnings.append(f"Nothing was read from the folders {', '.join(files.unread)}.")
    large = _filter_large(files.images, min_side, warnings)
    hashes = dict(filter_readable(large, unreadable=unreadable, size=min_side, warnings=warnings))
    test_files = [file for test_set in files.tests.values() for file in test_set]
    readable_tests = filter_readable(test_files, unreadable="refuse", size=min_side, warnings=warnings)
    test_hashes = {perceptual_hash for _, perceptual_hash in readable_tests}
    usable = [file for file, perceptual_hash in hashes.items() if perceptual_hash not in test_hashes]
    if len(usable) < len(hashes):
        warnings.append(f"{len(hashes) - len(usable)} images left out: they are copies of test images.")
    is_validation = validation_split([hashes[file] for file in usable], [0] * len(usable), valid_fraction)
    train = tuple(file for file, held in zip(usable, is_validation, strict=True) if not held)
    validation = tuple(file for file, held in zip(usable, is_validation, strict=True) if held)
    if not train or not validation:
        reasons = "".join(f" {sentence}" for sentence in warnings)
        distinct = len({hashes[file] for file in usable})
        raise CannotTrain(
            f"{folder} has {distinct} distinct image(s) of at least {min_side}×{min_side} "
            "pixels. At least two are needed, one to train on and one to validate on; hundreds give good "
            f"results.{reasons}"
        )
    split = f"{valid_fraction:.0%} of the images, chosen by a perceptual hash, are held out for validation"
    return SharpFolder(train, validation, files.tests, split, tuple(warnings))


def _find_images(folder: Path) -> _SharpFiles:
    """List the images to train and validate on, and those of each test set."""
    train, test = first_existing(folder, (TRAIN,)), first_existing(folder, (TEST,))
    if not (train and test):
        listing = list_images(folder)
        return _SharpFiles(listing.files, {}, listing.without_files())
    beside = list_images(folder, recursive=False).as_beside()
    images = list_images(train)
    tests = {path.name: list_images(path) for path in list_subfolders(test)}
    directly = list_images(test, recursive=False)
    if directly.files:
        tests[test.name] = directly
    left_out = images.without_files() + beside
    for listing in (*tests.values(), *([] if directly.files else [directly])):
        left_out += listing.without_files()
    empty = [f"{test.name}/{name}" for name, listing in tests.items() if not listing.files]
    others = [path.name for path in list_subfolders(folder) if path not in (train, test)]
    nonempty = {name: listing.files for name, listing in tests.items() if listing.files}
    return _SharpFiles(images.files, nonempty, left_out, (*others, *empty))


def _filter_large(files: Sequence[Path], min_side: int, warnings: list[str]) -> list[Path]:
    """Return the images that are large enough; unreadable files are kept, for `filter_readable` to report."""
    large = [file for file in files if _shorter_side(file, min_side) >= min_side]
    if len(large) < len(files):
        skipped = len(files) - len(large)
        warnings.append(f"{skipped} of {len(files)} images skipped: they have a side of fewer than {min_side} pixels.")
    return large


def _shorter_side(file: Path, default: int) -> int:
    try:
        image = read_image_file(file.read_bytes(), max_pixels=Limits().pixels)
    except (InvalidInput, OSError):
        return default
    return min(image.width, image.height)


class SharpImages(ImageSamples):
    """Sharp images, downscaled so that no side exceeds `max_side` pixels: photos straight from a camera are soft."""

    def __init__(self, paths: Sequence[Path], *, max_side: int, seed: int = 0, cache_bytes: int = 4 << 30) -> None:
        super().__init__(paths, min_side=max_side, seed=seed, cache_bytes=cache_bytes)
        self.max_side = max_side

    def image(self, index: int) -> DecodedImage:
        """Return the image, downscaled if it is too large."""
        decoded = super().image(index)
        image, longer_side = decoded.image, max(decoded.image.size)
        if longer_side > self.max_side:
            width, height = (max(1, round(side * self.max_side / longer_side)) for side in image.size)
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        return DecodedImage(image, *image.size)


class TrainingCrops(SharpImages):
    """Training pairs: random crops of each image with their degraded versions, different in each epoch.

    In the first `pixel_epochs` epochs, samples ask for the pixel loss only; afterwards for the perceptual loss as well.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        sampler: CropSampler,
        *,
        crops_per_image: int,
        pixel_epochs: int,
        max_side: int,
        seed: int = 0,
        cache_bytes: int = 4 << 30,
    ) -> None:
        super().__init__(paths, max_side=max_side, seed=seed, cache_bytes=cache_bytes)
        self.sampler, self.crops_per_image, self.pixel_epochs = sampler, crops_per_image, pixel_epochs

    def __len__(self) -> int:
        return len(self.paths) * self.crops_per_image

    def sample(self, key: Key) -> Batch:
        """Return `image` uint8 (size, size, 3), `target` uint8 (scale·size, scale·size, 3) and `perceptual`, bool."""
        epoch, index = key
        self.seed_generator(key)
        random = np.random.default_rng(int(torch.randint(2**62, (1,))))
        degraded, original = self.sampler.draw(self.image(index % len(self.paths)).image, random)
        return {
            "image": torch.tensor(degraded.pixels),
            "target": torch.tensor(original),
            "perceptual": torch.tensor(epoch >= self.pixel_epochs),
        }


class EvaluationImages(SharpImages):
    """Whole images for evaluation, each degraded in a way that depends only on its file name.

    The images differ in size, so they cannot be batched.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        scale: int,
        params: DegradationParams,
        *,
        max_side: int,
        cache_bytes: int = 4 << 30,
    ) -> None:
        super().__init__(paths, max_side=max_side, cache_bytes=cache_bytes)
        self.scale, self.params = scale, params

    def degraded_pair(self, index: int) -> tuple[DegradedImage, NDArray[np.uint8]]:
        """Return the degraded image and the original."""
        original = crop_to_multiple(self.image(index).image, self.scale)
        digest = hashlib.sha256(self.paths[index].stem.encode()).digest()
        random = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        return degrade(original, self.scale, self.params, random), np.asarray(original)

    def clean_pair(self, index: int) -> tuple[DegradedImage, NDArray[np.uint8]]:
        """Return the image downscaled without other degradation, and the original."""
        original = crop_to_multiple(self.image(index).image, self.scale)
        return downscale(original, self.scale), np.asarray(original)
