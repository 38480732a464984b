"""Image files as training samples: listed and decoded once; independent of their targets."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from tasks._images import DecodedImage, decode_image
from tasks.contract import InvalidInput, Limits
from training.core.errors import CannotTrain
from training.engine.batches import Key, SampleSet, derived_seed
from training.engine.runtime import Batch

_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp"}


def image_files(folder: Path) -> list[Path]:
    """Return the files under a folder that have an image's suffix, sorted; hidden files are left out."""
    files = (path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())
    return sorted(path for path in files if not path.name.startswith("."))


def filter_readable(
    files: Sequence[Path], *, unreadable: str, size: int, warnings: list[str]
) -> list[tuple[Path, str]]:
    """Return the files that can be decoded, each with a perceptual hash, which is the same for copies of an image.

    `unreadable` says what to do with the others: `skip` (appends to `warnings`) or `refuse` (raises CannotTrain).
    """
    readable = []
    with ThreadPoolExecutor() as pool:
        results = pool.map(lambda file: _perceptual_hash(file, size), files)
        for file, (perceptual_hash, problem) in tqdm(
            zip(files, results, strict=True), "reading images", len(files), leave=False, disable=None
        ):
            if not problem:
                readable.append((file, perceptual_hash))
            elif unreadable == "refuse":
                raise CannotTrain(f"{file} cannot be read ({problem}) Fix it, or skip it with --unreadable skip.")
            else:
                warnings.append(f"{file} skipped: {problem}")
    return readable


def _perceptual_hash(file: Path, size: int) -> tuple[str, str]:
    """Return the hash, and an empty string or why the file cannot be read."""
    try:
        decoded = decode_file(file, size)
    except (InvalidInput, OSError) as error:
        return "", str(error)
    # One bit per pair of neighbours: is one clearly brighter? Copies in other formats, and most resized ones, agree.
    grey = np.asarray(decoded.image.convert("L").resize((17, 16), Image.Resampling.BOX), np.int16)
    return hashlib.sha256(np.packbits(np.diff(grey, axis=1) > 2).tobytes()).hexdigest(), ""


def decode_file(file: Path, size: int) -> DecodedImage:
    """Decode the image as the service does. Raises InvalidInput, OSError."""
    return decode_image(file.read_bytes(), max_pixels=Limits().pixels, min_side=size)


class ImageSamples(SampleSet):
    """Image files as samples: decoded once, augmented and preprocessed each time; subclasses define the samples.

    Decoded images are kept in memory, up to `cache_bytes`; the others are decoded again each time.
    """

    def __init__(self, paths: Sequence[Path], *, min_side: int, seed: int = 0, cache_bytes: int = 4 << 30) -> None:
        """`min_side` is the size that a decoded image must have at least; a large JPEG may be decoded smaller."""
        self.paths, self.min_side, self.seed = tuple(paths), min_side, seed
        self._cache: list[DecodedImage | None] = [None] * len(paths)
        self._free_bytes = cache_bytes

    def fill_cache(self) -> None:
        """Decode as many images as fit into the cache, before worker processes are forked that share it."""
        with ThreadPoolExecutor() as pool:
            for index, decoded in enumerate(pool.map(lambda path: decode_file(path, self.min_side), self.paths)):
                self._free_bytes -= decoded.image.width * decoded.image.height * 3
                if self._free_bytes < 0:
                    return
                self._cache[index] = decoded

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, index: int) -> DecodedImage:
        """Return the decoded image, not augmented."""
        return self._cache[index] or decode_file(self.paths[index], self.min_side)

    def seed_generator(self, key: Key) -> None:
        """Seed torch's generator for this sample in this epoch, so that any process draws the same augmentation."""
        epoch, index = key
        torch.default_generator.manual_seed(derived_seed(self.seed, epoch, index, 1))

    def sample(self, key: Key) -> Batch:
        """Return one sample: its tensors, without a batch axis."""
        raise NotImplementedError

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """Return the samples stacked, with `index` int64 (n,)."""
        samples = [self.sample(key) for key in keys]
        stacked = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
        return stacked | {"index": torch.tensor([index for _, index in keys])}
