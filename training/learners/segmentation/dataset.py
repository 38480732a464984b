"""Images with one mask each: pairing, validation, and samples whose image and mask are augmented together."""

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tasks._images import BORDER, DecodedImage, Frame
from tasks._masks import Colour
from tasks.segmentation import Segmentation, ViewWindows
from training.core.errors import CannotTrain
from training.data.folders import first_existing
from training.data.hash_split import validation_split
from training.data.images import ImageSamples, decode_file, filter_readable, image_files
from training.engine.batches import Key
from training.engine.runtime import Batch

IGNORED = 255
"""Target value of unlabelled pixels."""
CODES = "codes.txt"
_TRAIN, _VALIDATION = ("train", "training"), ("val", "valid", "validation")
_IMAGES, _MASKS = ("images", "pictures"), ("masks", "labels", "annotations")
_VOID_NAMES = {"void", "unlabelled", "unlabeled", "unlabel", "unknown", "ignore", "ignored"}


@dataclass(frozen=True)
class Classes:
    """The classes of a set of masks.

    Attributes:
        labels: names of the classes, without void.
        index_of_value: for each mask value 0…255, the index of its label, or IGNORED.
        colours: one per label; empty if the masks have no palette.
    """

    labels: tuple[str, ...]
    index_of_value: NDArray[np.uint8]
    colours: tuple[Colour, ...] = ()


@dataclass(frozen=True)
class ImageMaskPair:
    """An image and its mask, their size, a perceptual hash of the image, and the values that occur in the mask."""

    image: Path
    mask: Path
    width: int
    height: int
    perceptual_hash: str
    mask_values: frozenset[int]


@dataclass(frozen=True)
class MaskFolder:
    """The contents of a folder of images and masks and their split; `split` describes the split in words."""

    classes: Classes
    train: tuple[ImageMaskPair, ...]
    validation: tuple[ImageMaskPair, ...]
    split: str
    warnings: tuple[str, ...] = ()


def read_mask_folder(
    folder: Path, *, labels: Sequence[str] = (), void: int = -1, unreadable: str, valid_fraction: float, size: int
) -> MaskFolder:
    """Read a folder with `images` and `masks` (optionally with `train` and `val` in them), or `train`, `trainannot`, ….

    An image and its mask have the same name except for the extension. The labels are the lines of `codes.txt`, else
    `labels`, else the mask values themselves. `void` is the mask value of unlabelled pixels. By default (-1) it is the
    value that `codes.txt` names void, and 255; masks that contain only 0 and 255 have no void.

    Raises CannotTrain if the folders are missing, an image has no mask or a mask no image, their sizes differ, a mask
    is in colour, or a mask value has no label.
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
    classes = _find_classes(root, labels, void, (*pairs, *validation))
    if validation:
        validation_hashes = {pair.perceptual_hash for pair in validation}
        train = tuple(pair for pair in pairs if pair.perceptual_hash not in validation_hashes)
        if len(train) < len(pairs):
            removed = len(pairs) - len(train)
            warnings.append(f"{removed} training images were left out: they are copies of validation images.")
        return MaskFolder(classes, train, validation, "the training and validation folders", tuple(warnings))
    is_validation = validation_split([pair.perceptual_hash for pair in pairs], [0] * len(pairs), valid_fraction)
    split = f"{valid_fraction:.0%} of the images, chosen by a perceptual hash, are held out for validation"
    train = tuple(pair for pair, held in zip(pairs, is_validation, strict=True) if not held)
    validation = tuple(pair for pair, held in zip(pairs, is_validation, strict=True) if held)
    if not validation:
        raise CannotTrain(f"{root} has only one image, which leaves none for validation.")
    return MaskFolder(classes, train, validation, split, tuple(warnings))


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
    image_of_name = {path.relative_to(images).with_suffix("").as_posix(): path for path in image_files(images)}
    mask_of_name = _strip_common_suffix(
        {path.relative_to(masks).with_suffix("").as_posix(): path for path in image_files(masks)}, image_of_name
    )
    for files, counterparts, problem in (
        (image_of_name, mask_of_name, f"has no mask of the same name in {masks}"),
        (mask_of_name, image_of_name, f"has no image of the same name in {images}"),
    ):
        missing = sorted(set(files) - set(counterparts))
        if missing:
            others = f" (and {len(missing) - 1} others)" if len(missing) > 1 else ""
            raise CannotTrain(f"{files[missing[0]]} {problem}{others}.")
    if not image_of_name:
        raise CannotTrain(f"There are no images (JPEG, PNG, WebP or BMP) in {images}.")
    decodable = filter_readable(list(image_of_name.values()), unreadable=unreadable, size=size, warnings=warnings)
    mask_of_image = {path: mask_of_name[name] for name, path in image_of_name.items()}
    with ThreadPoolExecutor() as pool:
        return tuple(pool.map(lambda entry: _check_pair(entry[0], mask_of_image[entry[0]], entry[1], size), decodable))


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
    image, mask = decode_file(path, size), read_mask(mask_path)
    height, width = mask.shape
    if (image.width, image.height) != (width, height):
        raise CannotTrain(
            f"{path} has {image.width}×{image.height} pixels but its mask {mask_path} has {width}×{height}. A mask "
            "must have the size of its image."
        )
    values = frozenset(np.flatnonzero(np.bincount(mask.ravel())).tolist())
    return ImageMaskPair(path, mask_path, width, height, perceptual_hash, values)


def read_mask(path: Path) -> NDArray[np.uint8]:
    """Return the values of a mask, uint8 (height, width). Raises CannotTrain if it is unreadable or in colour."""
    with _open_mask(path) as image:
        if image.mode not in ("L", "P", "1"):
            raise CannotTrain(
                f"{path} has the mode {image.mode}. A mask must be a PNG with one 8-bit channel (greyscale or with a "
                "palette) whose values are the indices of the labels."
            )
        return np.asarray(image).astype(np.uint8)


def _open_mask(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
    except Exception as error:  # Pillow's decoders raise many types of error for broken files.
        raise CannotTrain(f"The mask {path} cannot be read: {error}.") from None
    return image


def _find_classes(root: Path, given: Sequence[str], void: int, pairs: Sequence[ImageMaskPair]) -> Classes:
    """Return the classes, checked against the values that occur in the masks."""
    example = {value: pair.mask for pair in reversed(pairs) for value in pair.mask_values}
    if void < 0 and set(example) == {0, 255} and not (root / CODES).is_file() and len(given) in (0, 2):
        return _binary_classes(tuple(given) or ("background", "foreground"))
    names = _name_values(root, given, sorted(set(example) - {void, 255}))
    void_values = {255} | ({void} if void >= 0 else {i for i, name in enumerate(names) if name.lower() in _VOID_NAMES})
    for value in sorted(example):
        if value >= len(names) and value not in void_values:
            raise CannotTrain(
                f"{example[value]} contains the value {value}, but there are only {len(names)} labels, 0 to "
                f"{len(names) - 1} ({', '.join(names[:4])}, …). If {value} means unlabelled, use --void {value}."
            )
    kept = [value for value in range(len(names)) if value not in void_values]
    if len(set(kept) & set(example)) < 2:
        listed = ", ".join(map(str, sorted(void_values)))
        raise CannotTrain(
            f"The masks in {root} contain fewer than two classes besides void ({listed}). Mask values must be the "
            "indices 0, 1, 2, … of the labels; --void sets the value of unlabelled pixels."
        )
    index_of_value = np.full(256, IGNORED, np.uint8)
    index_of_value[kept] = range(len(kept))
    return Classes(tuple(names[value] for value in kept), index_of_value, _palette_colours(pairs[0].mask, kept))


def _binary_classes(names: tuple[str, ...]) -> Classes:
    """Return the two classes of black-and-white masks, where 255 is the second label and not void."""
    index_of_value = np.full(256, IGNORED, np.uint8)
    index_of_value[[0, 255]] = 0, 1
    return Classes(names, index_of_value, ())


def _name_values(root: Path, given: Sequence[str], values: Sequence[int]) -> list[str]:
    """Return a name for each mask value, including void."""
    codes = root / CODES
    if codes.is_file():
        names = _read_codes(codes)
    elif given:
        names = list(given)
    else:
        names = [f"class {value}" for value in range(max(values, default=0) + 1)]
    if len(names) > 255:
        raise CannotTrain(f"{root} has {len(names)} labels; an 8-bit mask can hold at most 255 labels besides void.")
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise CannotTrain(f"The label '{duplicates[0]}' occurs twice in {codes if codes.is_file() else root}.")
    return names


def _read_codes(codes: Path) -> list[str]:
    try:
        return [line.strip() for line in codes.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise CannotTrain(f"{codes} is not UTF-8. Save it as UTF-8.") from None


def _palette_colours(mask: Path, values: Sequence[int]) -> tuple[Colour, ...]:
    """Return the palette colours of the values; empty if the mask has no palette or the colours are not distinct."""
    with _open_mask(mask) as image:
        palette = image.getpalette("RGB") if image.mode == "P" else None
    colours = [(*palette[3 * i : 3 * i + 3],) for i in values if 3 * i + 3 <= len(palette)] if palette else []
    return tuple(colours) if len(set(colours)) == len(values) else ()  # type: ignore[arg-type]


class MaskedImages(ImageSamples):
    """Images with masks as samples.

    For validation a sample is what the service would pass to the network; a very long image gives several samples, one
    for each of its windows. For training, with `crop` (width, height), a sample is a random crop; with `augment` it is
    also scaled, flipped and colour-jittered.

    Attributes:
        windows: (index of the image, index of the window) of each sample.
    """

    def __init__(
        self,
        pairs: Sequence[ImageMaskPair],
        classes: Classes,
        task: Segmentation,
        *,
        seed: int = 0,
        crop: tuple[int, int] | None = None,
        augment: bool = True,
        cache_bytes: int = 4 << 30,
    ) -> None:
        image_bytes = cache_bytes - sum(pair.width * pair.height for pair in pairs)
        super().__init__(
            [pair.image for pair in pairs],
            min_side=max(task.width, task.height),
            seed=seed,
            cache_bytes=image_bytes,
        )
        self.pairs, self.classes, self.task, self.crop, self.augment = tuple(pairs), classes, task, crop, augment
        self._masks = [self._read_target(index) if image_bytes > 0 else None for index in range(len(pairs))]
        self._crop_task = replace(task, width=crop[0], height=crop[1]) if crop else task
        self.windows = [
            (index, window)
            for index, pair in enumerate(pairs)
            for window in range(1 if crop else len(task.windows(pair.width, pair.height)[1]))
        ]

    def __len__(self) -> int:
        return len(self.windows)

    def _read_target(self, index: int) -> NDArray[np.uint8]:
        target: NDArray[np.uint8] = self.classes.index_of_value[read_mask(self.pairs[index].mask)]
        return target

    def mask(self, index: int) -> NDArray[np.uint8]:
        """Return the full target of an image, uint8 (height, width): indices of labels, or IGNORED."""
        cached = self._masks[index]
        return self._read_target(index) if cached is None else cached

    def count_pixels_per_label(self) -> NDArray[np.int64]:
        """Return the number of pixels of each label over all images."""
        counts = [np.bincount(self.mask(index).ravel(), minlength=256) for index in range(len(self.pairs))]
        total: NDArray[np.int64] = np.sum(counts, axis=0)[: len(self.classes.labels)]
        return total

    def sample(self, key: Key) -> Batch:
        """Return `image` uint8 (height, width, 3) and `target` uint8 (height, width)."""
        index, window = self.windows[key[1]]
        image, mask = self.image(index), self.mask(index)
        if self.crop:
            self.seed_generator(key)
            image, target = self._random_crop(image, mask, self.crop)
            pixels = self._crop_task.preprocess(image).arrays["image"][0]
        else:
            samples = self.task.preprocess(image)
            views: ViewWindows = samples.context
            pixels = samples.arrays["image"][window]
            target = project_mask(mask, views.frames[window], self.task.width, self.task.height)
        return {"image": torch.from_numpy(pixels.copy()), "target": torch.from_numpy(target)}

    def _served_scales(self, width: int, height: int) -> tuple[float, float]:
        """Return the horizontal and vertical scale at which the network sees an image of this size."""
        left, top, right, bottom = self.task.windows(width, height)[1][0]
        width, height = right - left, bottom - top
        scale_x, scale_y = self.task.width / width, self.task.height / height
        if self.task.fit == "squash":
            return scale_x, scale_y
        scale = min(scale_x, scale_y)
        # The service scales to whole pixels.
        return max(1, round(width * scale)) / width, max(1, round(height * scale)) / height

    def _random_crop(
        self, image: DecodedImage, mask: NDArray[np.uint8], crop: tuple[int, int]
    ) -> tuple[DecodedImage, NDArray[np.uint8]]:
        """Return a random crop of the image, fitted as when served, and its mask.

        Beyond the image it is a border labelled void.
        """
        scale_draw, x_draw, y_draw, flip_draw = torch.rand(4).tolist()
        zoom = 0.75 * 2**scale_draw if self.augment else 1.0
        scale_x, scale_y = (zoom * scale for scale in self._served_scales(image.width, image.height))
        left = _draw_offset(image.width * scale_x, self.task.width * zoom, crop[0], x_draw)
        top = _draw_offset(image.height * scale_y, self.task.height * zoom, crop[1], y_draw)
        frame = Frame(image.width, image.height, scale_x, scale_y, left, top)
        target = project_mask(mask, frame, *crop)
        pixels = _project_image(image, frame, *crop)
        if self.augment:
            pixels = _jitter_colours(pixels)
            if flip_draw < 0.5:
                pixels, target = pixels.transpose(Image.Transpose.FLIP_LEFT_RIGHT), target[:, ::-1].copy()
        return DecodedImage(pixels, *crop), target


def _draw_offset(image: float, fitted: float, crop: int, draw: float) -> float:
    """Return where an image begins in its crop, along one axis; all lengths in pixels of the crop.

    Args:
        image: length of the image.
        fitted: length of the network's input, at the scale of the image; longer than a padded image.
        crop: length of the crop.
        draw: random number in 0…1.
    """
    if image >= crop:
        return (crop - image) * draw
    # A padded image is centred on whole pixels; where the crop is larger than that, the image may be anywhere.
    centred = (crop - image) // 2
    return min(max(centred + (draw - 0.5) * abs(crop - fitted), 0.0), crop - image)


def project_mask(mask: NDArray[np.uint8], frame: Frame, width: int, height: int) -> NDArray[np.uint8]:
    """Resample a mask to the network's input through the frame (nearest pixel); IGNORED outside the image."""
    columns = np.floor((np.arange(width) + 0.5 - frame.offset_x) / frame.scale_x).astype(np.intp)
    rows = np.floor((np.arange(height) + 0.5 - frame.offset_y) / frame.scale_y).astype(np.intp)
    target: NDArray[np.uint8] = mask[:, np.clip(columns, 0, mask.shape[1] - 1)][np.clip(rows, 0, mask.shape[0] - 1)]
    target[(rows < 0) | (rows >= mask.shape[0])] = IGNORED
    target[:, (columns < 0) | (columns >= mask.shape[1])] = IGNORED
    return target


def _project_image(image: DecodedImage, frame: Frame, width: int, height: int) -> Image.Image:
    """Resample an image to this size through the frame, with a border outside the image."""
    corners = np.array([[0.0, 0.0], [image.width, image.height]])
    (left, top), (right, bottom) = np.clip(np.rint(frame.to_network(corners)), 0, (width, height)).astype(int).tolist()
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    source = frame.to_image(np.array([[left, top], [right, bottom]], float))
    ratio = np.array(image.image.size) / (image.width, image.height)
    (x0, y0), (x1, y1) = np.clip(source * ratio, 0, image.image.size).tolist()
    visible = image.image.resize(
        (right - left, bottom - top), Image.Resampling.BILINEAR, box=(x0, y0, x1, y1), reducing_gap=3.0
    )
    canvas = Image.new("RGB", (width, height), BORDER)
    canvas.paste(visible, (left, top))
    return canvas


def _jitter_colours(image: Image.Image) -> Image.Image:
    from torchvision.transforms import v2  # Imported here because it takes seconds.

    jittered: Image.Image = v2.ColorJitter(brightness=0.25, contrast=0.25, saturation=0.25)(image)
    return jittered
