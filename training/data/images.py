"""Files of pictures as samples to train on: found, decoded once, changed at random; knows nothing of their targets."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from tasks._images import DecodedImage, decode_image
from tasks.classification import Classification
from tasks.contract import InvalidInput, Limits
from training.core.errors import CannotTrain
from training.engine.batches import Key, SampleSet, derived_seed
from training.engine.runtime import Batch

_ENDINGS = {".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp"}
Augment = Callable[[Image.Image], Image.Image]


def image_files(folder: Path) -> list[Path]:
    """The files under a folder that are pictures by their names, hidden ones aside, sorted."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in _ENDINGS and path.is_file())
    return sorted(path for path in found if not path.name.startswith("."))


def readable(files: Sequence[Path], *, unreadable: str, size: int, notices: list[str]) -> list[tuple[Path, str]]:
    """The files that can be decoded, each with a hash of what it looks like: copies of a picture have the same.

    `unreadable` is what happens to the others: `skip` (said in `notices`) or `refuse`. Raises CannotTrain.
    """
    found = []
    with ThreadPoolExecutor() as pool:
        tried = pool.map(lambda file: _perceptual_hash(file, size), files)
        for file, (perceptual_hash, problem) in tqdm(
            zip(files, tried, strict=True), "reading pictures", len(files), leave=False, disable=None
        ):
            if not problem:
                found.append((file, perceptual_hash))
            elif unreadable == "refuse":
                raise CannotTrain(f"{file} cannot be read ({problem}) Mend it, or train without it: --unreadable skip.")
            else:
                notices.append(f"{file} skipped: {problem}")
    return found


def _perceptual_hash(file: Path, size: int) -> tuple[str, str]:
    """A hash of what the picture looks like, or why it cannot be read."""
    try:
        picture = decoded(file, size)
    except (InvalidInput, OSError) as error:
        return "", str(error)
    # Each bit: is a place clearly brighter than its neighbour? Copies in other formats agree, most scaled ones too.
    grey = np.asarray(picture.image.convert("L").resize((17, 16), Image.Resampling.BOX), np.int16)
    return hashlib.sha256(np.packbits(np.diff(grey, axis=1) > 2).tobytes()).hexdigest(), ""


def decoded(file: Path, size: int) -> DecodedImage:
    """The picture as the service decodes it. Raises InvalidInput, OSError."""
    return decode_image(file.read_bytes(), max_pixels=Limits().pixels, min_side=size)


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


class ImageSamples(SampleSet):
    """Pictures as samples: decoded once, changed and pre-processed each time; what a sample is, a subclass says.

    The decoded pictures are kept in memory up to `cache_bytes`; the others are decoded again each time.
    """

    def __init__(self, paths: Sequence[Path], *, enough: int, seed: int = 0, cache_bytes: int = 4 << 30) -> None:
        self.paths, self.enough, self.seed = tuple(paths), enough, seed
        self._cache: list[DecodedImage | None] = [None] * len(paths)
        self._room = cache_bytes

    def fill(self) -> None:
        """Decodes as many pictures as there is room for, before other processes are made that share them."""
        with ThreadPoolExecutor() as pool:
            for index, picture in enumerate(pool.map(lambda path: decoded(path, self.enough), self.paths)):
                self._room -= picture.image.width * picture.image.height * 3
                if self._room < 0:
                    return
                self._cache[index] = picture

    def __len__(self) -> int:
        return len(self.paths)

    def picture(self, index: int) -> DecodedImage:
        """The decoded picture, as it is."""
        return self._cache[index] or decoded(self.paths[index], self.enough)

    def draw_for(self, key: Key) -> None:
        """From here on torch's generator draws what belongs to this sample in this epoch, whoever prepares it."""
        epoch, index = key
        torch.default_generator.manual_seed(derived_seed(self.seed, epoch, index, 1))

    def sample(self, key: Key) -> Batch:
        """One sample: its tensors without the batch axis."""
        raise NotImplementedError

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """The samples stacked, with `index` int64 (n,)."""
        samples = [self.sample(key) for key in keys]
        stacked = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
        return stacked | {"index": torch.tensor([index for _, index in keys])}


class LabelledImages(ImageSamples):
    """Pictures with a target each: augmented (or not), then `task.preprocess`.

    `targets` has a row for each picture: the index of its class, or a 0 or 1 for each tag.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        targets: Tensor,
        task: Classification,
        *,
        seed: int = 0,
        augment: Augment | None = None,
        size: int = 0,
        cache_bytes: int = 4 << 30,
    ) -> None:
        super().__init__(paths, enough=task.size, seed=seed, cache_bytes=cache_bytes)
        self.targets, self.task, self.augment = targets, task, augment
        self._sized = replace(task, size=size) if size else task

    def sample(self, key: Key) -> Batch:
        """`image` uint8 (size, size, 3) and `target`, a row of the targets."""
        picture = self.picture(key[1])
        if self.augment:
            self.draw_for(key)
            image = self.augment(picture.image)
            picture = DecodedImage(image, *image.size)
        pixels = self._sized.preprocess(picture).arrays["image"][0]
        return {"image": torch.from_numpy(pixels.copy()), "target": self.targets[key[1]]}
