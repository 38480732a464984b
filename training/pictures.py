"""Folders of pictures, one folder a class, as samples to train on."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from tasks._images import Picture, decode_picture
from tasks.classification import Classification
from tasks.contract import InvalidInput, Limits
from training.data import Key, SampleSet, derived_seed, held_out
from training.errors import CannotTrain
from training.runtime import Batch

_ENDINGS = {".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp"}
_TRAIN, _VALIDATION = ("train", "training"), ("validation", "valid", "val")
Augment = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class Photo:
    """A picture's file, its class as an index, and what its content looks like."""

    path: Path
    label: int
    likeness: str = ""


@dataclass(frozen=True)
class PhotoFolder:
    """What lies in a folder of pictures, and how it is split; `split` says how in words."""

    labels: tuple[str, ...]
    train: tuple[Photo, ...]
    validation: tuple[Photo, ...]
    split: str
    notices: tuple[str, ...] = ()


def read_folder(folder: Path, *, unreadable: str, valid_share: float, size: int) -> PhotoFolder:
    """Reads a folder of classes, or one of `train` and `validation` (or `valid`, `val`) folders of classes.

    Without a validation folder, `valid_share` of each class is kept for it, copies of a picture on one side. Files
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
        return PhotoFolder(labels, photos, kept, f"the folders '{train.name}' and '{validation.name}'", tuple(notices))
    held = held_out([photo.likeness for photo in photos], [photo.label for photo in photos], valid_share)
    split = f"{valid_share:.0%} of each class held out for validation by the hash of the picture"
    return PhotoFolder(
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


def _files(folder: Path) -> list[Path]:
    found = (path for path in folder.rglob("*") if path.suffix.lower() in _ENDINGS and path.is_file())
    return sorted(path for path in found if not path.name.startswith("."))


def _classes(root: Path) -> list[Path]:
    """The folders that hold pictures."""
    found = [path for path in _folders(root) if _files(path)]
    if not found:
        raise CannotTrain(
            f"No pictures (JPEG, PNG, WebP or BMP) in folders of {root}: it needs a folder for each class."
        )
    if len(found) == 1:
        raise CannotTrain(f"{root} has pictures of one class only, '{found[0].name}': it needs two or more.")
    return found


def _read(
    classes: Sequence[Path], labels: Sequence[str], unreadable: str, size: int, notices: list[str]
) -> tuple[Photo, ...]:
    """Every picture that can be decoded."""
    listed = [(file, labels.index(folder.name)) for folder in classes for file in _files(folder)]
    photos: list[Photo] = []
    with ThreadPoolExecutor() as pool:
        tried = pool.map(lambda item: _likeness(item[0], size), listed)
        for (file, label), (likeness, problem) in tqdm(
            zip(listed, tried, strict=True), "reading pictures", len(listed), leave=False, disable=None
        ):
            if not problem:
                photos.append(Photo(file, label, likeness))
            elif unreadable == "refuse":
                raise CannotTrain(f"{file} cannot be read ({problem}) Mend it, or train without it: --unreadable skip.")
            else:
                notices.append(f"{file} skipped: {problem}")
    for label, name in enumerate(labels):
        if not any(photo.label == label for photo in photos) and any(folder.name == name for folder in classes):
            raise CannotTrain(f"No picture of class '{name}' can be read.")
    return tuple(photos)


def _likeness(file: Path, size: int) -> tuple[str, str]:
    """A hash of what the picture looks like, or why it cannot be read."""
    try:
        picture = decoded(file, size)
    except (InvalidInput, OSError) as error:
        return "", str(error)
    # Each bit: is a place clearly brighter than its neighbour? Copies in other formats agree, most scaled ones too.
    grey = np.asarray(picture.image.convert("L").resize((17, 16), Image.Resampling.BOX), np.int16)
    return hashlib.sha256(np.packbits(np.diff(grey, axis=1) > 2).tobytes()).hexdigest(), ""


def _without_copies(photos: tuple[Photo, ...], validation: tuple[Photo, ...], notices: list[str]) -> tuple[Photo, ...]:
    seen = {photo.likeness for photo in validation}
    kept = tuple(photo for photo in photos if photo.likeness not in seen)
    if len(kept) < len(photos):
        notices.append(f"{len(photos) - len(kept)} training pictures left out: copies of validation pictures.")
    return kept


def decoded(file: Path, size: int) -> Picture:
    """The picture as the service decodes it. Raises InvalidInput, OSError."""
    return decode_picture(file.read_bytes(), max_pixels=Limits().pixels, enough=size)


def augmentation(size: int, smallest_crop: float) -> Augment:
    """A random part of the picture, mirrored or not, a little turned, lighter or darker: PIL to PIL, size × size."""
    from torchvision.transforms import v2  # Seconds: not for every command.

    chain = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(smallest_crop, 1.0), ratio=(0.6, 1.3)),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.RandomRotation(10, v2.InterpolationMode.BILINEAR, fill=[124, 116, 104])], p=0.5),
            v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
        ]
    )

    def augment(image: Image.Image) -> Image.Image:
        changed: Image.Image = chain(image)
        return changed

    return augment


class Photos(SampleSet):
    """Pictures as samples: decoded once, augmented each time (or not), then `task.preprocess`.

    The decoded pictures are kept in memory up to `cache_bytes`; the others are decoded again each time.
    """

    def __init__(
        self,
        photos: Sequence[Photo],
        task: Classification,
        *,
        seed: int = 0,
        augment: Augment | None = None,
        size: int = 0,
        cache_bytes: int = 4 << 30,
    ) -> None:
        self.photos, self.task, self.seed, self.augment = tuple(photos), task, seed, augment
        self._sized = replace(task, size=size) if size else task
        self._cache: list[Picture | None] = [None] * len(photos)
        self._room = cache_bytes

    def fill(self) -> None:
        """Decodes as many pictures as there is room for, before other processes are made that share them."""
        with ThreadPoolExecutor() as pool:
            for index, picture in enumerate(pool.map(lambda photo: decoded(photo.path, self.task.size), self.photos)):
                self._room -= picture.image.width * picture.image.height * 3
                if self._room < 0:
                    return
                self._cache[index] = picture

    def __len__(self) -> int:
        return len(self.photos)

    def picture(self, index: int) -> Picture:
        """The decoded picture, as it is."""
        return self._cache[index] or decoded(self.photos[index].path, self.task.size)

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """`image` uint8 (n, size, size, 3), `target` and `index` int64 (n,)."""
        images = np.concatenate([self._pixels(key) for key in keys])
        indices = [index for _, index in keys]
        targets = [self.photos[index].label for index in indices]
        return {"image": torch.from_numpy(images), "target": torch.tensor(targets), "index": torch.tensor(indices)}

    def _pixels(self, key: Key) -> np.ndarray:
        epoch, index = key
        picture = self.picture(index)
        if self.augment:
            torch.default_generator.manual_seed(derived_seed(self.seed, epoch, index, 1))
            image = self.augment(picture.image)
            picture = Picture(image, *image.size)
        pixels: np.ndarray = self._sized.preprocess(picture).arrays["image"]
        return pixels
