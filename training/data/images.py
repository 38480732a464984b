"""Image files as training samples: listed and decoded once; independent of their targets."""

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from tasks._image_files.heif import can_read_heif
from tasks._image_files.read import format_of
from tasks._images import DecodedImage, decode_image
from tasks.contract import InvalidInput, Limits
from tasks.system_errors import os_error_reason
from training.core.errors import CannotTrain
from training.core.sentences import count_of, was
from training.data.folders import Listing, list_files
from training.engine.batches import Key, SampleSet, derived_seed
from training.engine.runtime import Batch

_FORMATS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif"),
        "PNG": (".png",),
        "WebP": (".webp",),
        "BMP": (".bmp", ".dib"),
        "GIF": (".gif",),
        "TIFF": (".tif", ".tiff"),
    }
)
"""The formats that the service reads too, and the endings of their files."""
_HEIC = (".heic", ".heif", ".hif")
_OTHER_IMAGES = frozenset(
    (
        *(".avif", ".jxl", ".jp2", ".j2k", ".psd", ".svg", ".ico", ".tga", ".ppm", ".pgm", ".pbm", ".pnm", ".exr"),
        *(".hdr", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".raw", ".dcm", ".nii", ".xcf"),
    )
)
_MAX_LISTED = 4


def image_endings(*, heic: bool | None = None) -> frozenset[str]:
    """Return the endings of image files that are read, in lower case; `heic`: whether its decoder is installed."""
    with_heic = can_read_heif() if heic is None else heic
    return frozenset(ending for endings in _FORMATS.values() for ending in endings) | frozenset(_HEIC * with_heic)


def list_images(folder: Path, *, recursive: bool = True, known: Collection[str] = ()) -> Listing:
    """List the image files in a folder, at any depth unless not `recursive`. Raises CannotTrain.

    `known` names other files that are read, and therefore do not count as left out.
    """
    return list_files(folder, image_endings(), recursive=recursive, known=known)


def image_files(folder: Path) -> list[Path]:
    """Return the image files in a folder, at any depth, sorted; `list_images` also counts what is left out."""
    return list(list_images(folder).files)


def describe_unread_images(listing: Listing) -> list[str]:
    """Return sentences about the files that were left out of a folder of images, first those that are images."""
    unread = {ending: count for ending, count in listing.endings().items() if ending in {*_HEIC, *_OTHER_IMAGES}}
    heic = {ending: unread.pop(ending) for ending in _HEIC if ending in unread}
    sentences = []
    if heic:
        cure = f"install the package pillow-heif (the extra 'heif'), or convert {_them(heic)} to JPEG"
        sentences.append(f"{_count_endings(heic)} not read: {cure}.")
    if unread:
        sentences.append(f"{_count_endings(unread)} not read: convert {_them(unread)} to JPEG or PNG.")
    rest = listing.without_endings({*heic, *unread}).describe_left_out()
    return [*sentences, rest] if rest else sentences


def _count_endings(counts: Mapping[str, int]) -> str:
    total = sum(counts.values())
    return f"{count_of(total, 'image')} ending in {' or '.join(sorted(counts))} {was(total)}"


def _them(counts: Mapping[str, int]) -> str:
    return "it" if sum(counts.values()) == 1 else "them"


@dataclass(frozen=True)
class _CheckedImage:
    """What came of decoding an image: a perceptual hash, or why it cannot be read.

    Attributes:
        mismatch: the ending and the format of the content, if they do not belong together.
        notices: what the decoder could not read, such as a colour profile.
    """

    perceptual_hash: str = ""
    problem: str = ""
    mismatch: str = ""
    notices: tuple[str, ...] = ()


def filter_readable(
    files: Sequence[Path], *, unreadable: str, size: int, warnings: list[str]
) -> list[tuple[Path, str]]:
    """Return the files that can be decoded, each with a perceptual hash, which is the same for copies of an image.

    `unreadable` says what to do with the others: `skip` (appends to `warnings`) or `refuse` (raises CannotTrain).
    """
    with ThreadPoolExecutor() as pool:
        results = pool.map(lambda file: _check_image(file, size), files)
        checked = dict(tqdm(zip(files, results, strict=True), "reading images", len(files), leave=False, disable=None))
    broken = {file: image.problem for file, image in checked.items() if image.problem}
    if broken and unreadable == "refuse":
        raise CannotTrain(_describe_broken(broken))
    warnings += _describe_skipped(broken)
    mismatches = Counter(image.mismatch for image in checked.values() if image.mismatch)
    if mismatches:
        listed = ", ".join(f"{count:,} {mismatch}" for mismatch, count in mismatches.most_common(_MAX_LISTED))
        warnings.append(f"Images were read by their content where their ending tells another format: {listed}.")
    notices = Counter(notice for image in checked.values() for notice in image.notices)
    warnings += [f"Of {count:,} of the images: {notice}" for notice, count in notices.most_common(_MAX_LISTED)]
    return [(file, image.perceptual_hash) for file, image in checked.items() if not image.problem]


def _describe_broken(broken: Mapping[Path, str]) -> str:
    file, problem = next(iter(broken.items()))
    if len(broken) == 1:
        return f"{file} cannot be read ({problem}) Fix it, or skip it with --unreadable skip."
    return (
        f"{len(broken):,} images cannot be read, such as {file} ({problem}) Fix them, or skip them with "
        "--unreadable skip."
    )


def _describe_skipped(broken: Mapping[Path, str]) -> list[str]:
    """Return a sentence for each image that was skipped, or one that counts them if they are many."""
    named = [f"{file} skipped: {problem}" for file, problem in broken.items()]
    if len(named) <= _MAX_LISTED:
        return named
    return [f"{len(named):,} images that cannot be read were skipped, such as {next(iter(broken))}."]


def _check_image(file: Path, size: int) -> _CheckedImage:
    try:
        content = file.read_bytes()
        decoded = decode_image(content, max_pixels=Limits().pixels, min_side=size)
    except InvalidInput as error:
        return _CheckedImage(problem=str(error))
    except OSError as error:
        return _CheckedImage(problem=f"{os_error_reason(error)}.")
    # One bit per pair of neighbours: is one clearly brighter? Copies in other formats, and most resized ones, agree.
    grey = np.asarray(decoded.image.convert("L").resize((17, 16), Image.Resampling.BOX), np.int16)
    perceptual_hash = hashlib.sha256(np.packbits(np.diff(grey, axis=1) > 2).tobytes()).hexdigest()
    ending, kind = file.suffix.lower(), format_of(content)
    is_named_so = ending in (_HEIC if kind == "HEIC" else _FORMATS.get(kind, ()))
    mismatch = "" if is_named_so else f"{ending} (as {kind})"
    return _CheckedImage(perceptual_hash, mismatch=mismatch, notices=decoded.notices)


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
