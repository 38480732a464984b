"""Folders of good pictures: which are to learn from, which are held out, and which are tests."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tasks._images import DecodedImage
from training.core.errors import CannotTrain
from training.data.images import ImageSamples, filter_readable, image_files
from training.data.splits import validation_split
from training.engine.batches import Key
from training.engine.runtime import Batch
from training.learners.super_resolution.degradation import Crops, Damage, Degraded, clean, degraded, whole_multiple

_BENCHMARKS = (
    # In the pack of the mirror, and in the official archive of BSDS500, whose folder `val` is BSD100.
    (("BSDS200", "T91"), {"BSD100": "BSD100", "Set5": "Set5/image_SRF_2"}),
    (("BSDS500/data/images/train",), {"BSD100": "BSDS500/data/images/val"}),
)
_GOOD_ONE = "_HR"
"""In Set5 as it is passed on, the good one of each pair of files ends so."""


@dataclass(frozen=True)
class SharpFolder:
    """What lies in a folder of good pictures; `split` says in words how it is divided.

    Attributes:
        tests: sets of pictures to judge by, which nothing is chosen on, by their names.
    """

    train: tuple[Path, ...]
    validation: tuple[Path, ...]
    tests: dict[str, tuple[Path, ...]]
    split: str
    notices: tuple[str, ...] = ()


def read_sharp(folder: Path, *, unreadable: str, valid_fraction: float, smallest: int) -> SharpFolder:
    """Reads a folder of pictures, or the data sets that super-resolution is usually compared on.

    Pictures with a side shorter than `smallest` pixels are left out, and of copies all but those of one side of the
    split. Raises CannotTrain: there is no folder, fewer than two pictures, or an unreadable one that is refused.
    """
    if not folder.is_dir():
        raise CannotTrain(f"{folder} is not a folder.")
    files, tests = _found(folder)
    if not files:
        raise CannotTrain(f"No pictures (JPEG, PNG, WebP or BMP) in {folder}.")
    notices: list[str] = []
    likenesses = dict(
        filter_readable(_large(files, smallest, notices), unreadable=unreadable, size=smallest, warnings=notices)
    )
    judged = [file for each in tests.values() for file in each]
    kept_apart = {
        perceptual_hash
        for _, perceptual_hash in filter_readable(judged, unreadable="refuse", size=smallest, warnings=notices)
    }
    own = [file for file, perceptual_hash in likenesses.items() if perceptual_hash not in kept_apart]
    if len(own) < len(likenesses):
        notices.append(f"{len(likenesses) - len(own)} pictures left out: copies of test pictures.")
    out = validation_split([likenesses[file] for file in own], [0] * len(own), valid_fraction)
    train = tuple(file for file, held in zip(own, out, strict=True) if not held)
    validation = tuple(file for file, held in zip(own, out, strict=True) if held)
    if not train or not validation:
        raise CannotTrain(
            f"{folder} has {len(own)} different picture(s) of at least {smallest}×{smallest} pixels; two are needed, "
            "one to learn from and one to validate on, and hundreds to learn well."
        )
    split = f"{valid_fraction:.0%} of the pictures held out for validation by the hash of what they look like"
    return SharpFolder(train, validation, tests, split, tuple(notices))


def _found(folder: Path) -> tuple[list[Path], dict[str, tuple[Path, ...]]]:
    """The pictures to learn from, and the tests, where this is a known collection."""
    for root in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        for parts, tests in _BENCHMARKS:
            if (root / parts[0]).is_dir():
                files = [file for part in parts if (root / part).is_dir() for file in image_files(root / part)]
                return files, {name: _good(root / path) for name, path in tests.items() if (root / path).is_dir()}
    return image_files(folder), {}


def _good(folder: Path) -> tuple[Path, ...]:
    files = image_files(folder)
    pairs = [file for file in files if file.stem.endswith(_GOOD_ONE)]
    return tuple(pairs or files)


def _large(files: Sequence[Path], smallest: int, notices: list[str]) -> list[Path]:
    """Those that are large enough, or cannot be read at all, which is for others to say."""
    large = [file for file in files if _shorter_side(file, smallest) >= smallest]
    if len(large) < len(files):
        left_out = len(files) - len(large)
        notices.append(f"{left_out} of {len(files)} pictures skipped: a side of fewer than {smallest} pixels.")
    return large


def _shorter_side(file: Path, otherwise: int) -> int:
    try:
        with Image.open(file) as image:
            return min(image.size)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return otherwise


class SharpImages(ImageSamples):
    """Good pictures, none with a side longer than `longest` pixels: photos straight from a camera are soft."""

    def __init__(self, paths: Sequence[Path], *, longest: int, seed: int = 0, cache_bytes: int = 4 << 30) -> None:
        super().__init__(paths, enough=longest, seed=seed, cache_bytes=cache_bytes)
        self.longest = longest

    def image(self, index: int) -> DecodedImage:
        """The picture, made smaller where it is too large."""
        found = super().image(index)
        image, longest = found.image, max(found.image.size)
        if longest > self.longest:
            width, height = (max(1, round(side * self.longest / longest)) for side in image.size)
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        return DecodedImage(image, *image.size)


class DamagedCrops(SharpImages):
    """Pairs to train on: `crops` random parts of each picture an epoch, made worse, other ones in each epoch.

    In the first `pixel_epochs` a pair asks for pixels alone, in the others for what they look like too.
    """

    def __init__(
        self, paths: Sequence[Path], crops: Crops, *, a_picture: int, pixel_epochs: int, longest: int, **more: int
    ) -> None:
        super().__init__(paths, longest=longest, **more)
        self.crops, self.a_picture, self.pixel_epochs = crops, a_picture, pixel_epochs

    def __len__(self) -> int:
        return len(self.paths) * self.a_picture

    def sample(self, key: Key) -> Batch:
        """`image` uint8 (size, size, 3), `wanted` uint8 (scale·size, scale·size, 3), and `looks`, a bool."""
        epoch, index = key
        self.seed_generator(key)
        random = np.random.default_rng(int(torch.randint(2**62, (1,))))
        worse, wanted = self.crops.draw(self.image(index % len(self.paths)).image, random)
        return {
            "image": torch.tensor(worse.pixels),
            "wanted": torch.tensor(wanted),
            "looks": torch.tensor(epoch >= self.pixel_epochs),
        }


class DegradedImages(SharpImages):
    """Whole pictures to judge by, each made worse in its own way, which follows from its file's name alone.

    They differ in size: fetch them one at a time.
    """

    def __init__(self, paths: Sequence[Path], scale: int, damage: Damage, *, longest: int, **more: int) -> None:
        super().__init__(paths, longest=longest, **more)
        self.scale, self.damage = scale, damage

    def pair(self, index: int) -> tuple[Degraded, NDArray[np.uint8]]:
        """The picture made worse, and as it is."""
        wanted = whole_multiple(self.image(index).image, self.scale)
        digest = hashlib.sha256(self.paths[index].stem.encode()).digest()
        random = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        return degraded(wanted, self.scale, self.damage, random), np.asarray(wanted)

    def clean_pair(self, index: int) -> tuple[Degraded, NDArray[np.uint8]]:
        """The picture only made smaller, and as it is."""
        wanted = whole_multiple(self.image(index).image, self.scale)
        return clean(wanted, self.scale), np.asarray(wanted)
