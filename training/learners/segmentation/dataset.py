"""Pictures with a mask each as samples to train on: found, paired, checked, and changed together."""

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tasks._images import DecodedImage, Frame
from tasks._masks import Colour
from tasks.segmentation import Segmentation, ViewWindows
from training.core.errors import CannotTrain
from training.data.images import ImageSamples, decode_file, filter_readable, image_files
from training.data.splits import validation_split
from training.engine.batches import Key
from training.engine.runtime import Batch

IGNORED = 255
"""In a target: a pixel of which nobody says what it is."""
_TRAIN, _VALIDATION = ("train", "training"), ("val", "valid", "validation")
_PICTURES, _MASKS = ("images", "pictures"), ("masks", "labels", "annotations")
_VOID_NAMES = {"void", "unlabelled", "unlabeled", "unlabel", "unknown", "ignore", "ignored"}
_BORDER = (124, 116, 104)
CODES = "codes.txt"


@dataclass(frozen=True)
class Classes:
    """The labels, which index in a mask is which, and their colours where the masks have a palette.

    Attributes:
        labels: without void.
        index: for each value 0…255 of a mask the label's index, or IGNORED.
        colours: of the labels; none where the masks are grey.
    """

    labels: tuple[str, ...]
    index: NDArray[np.uint8]
    colours: tuple[Colour, ...] = ()


@dataclass(frozen=True)
class Pair:
    """A picture and its mask; their size, what the picture looks like, and the indices that occur in the mask."""

    picture: Path
    mask: Path
    width: int
    height: int
    perceptual_hash: str
    indices: frozenset[int]


@dataclass(frozen=True)
class MaskFolder:
    """What lies in a folder of pictures and masks, and how it is split; `split` says how in words."""

    classes: Classes
    train: tuple[Pair, ...]
    validation: tuple[Pair, ...]
    split: str
    notices: tuple[str, ...] = ()


def read_masks(
    folder: Path, *, labels: Sequence[str] = (), void: int = -1, unreadable: str, valid_fraction: float, size: int
) -> MaskFolder:
    """Reads `images` and `masks` (with or without `train` and `val` in them), or `train`, `trainannot`, `val`, ….

    A picture and its mask have the same name but for the ending. The labels are the lines of `codes.txt`, else
    `labels`, else the indices themselves. `void` is the index of pixels that nobody labelled; -1: the line of
    `codes.txt` that says so, and 255, but for masks of nothing else than 0 and 255.

    Raises CannotTrain: no such folders, a picture without its mask or the reverse, sizes that differ, a mask in
    colours, an index that is no label.
    """
    if not folder.is_dir():
        raise CannotTrain(f"{folder} is not a folder.")
    root = _root(folder)
    train, validation = _part(root, _TRAIN), _part(root, _VALIDATION)
    notices: list[str] = []
    if not train:
        pictures, masks = _picked(root, _PICTURES), _picked(root, _MASKS)
        if not (pictures and masks):
            raise CannotTrain(
                f"{root} has neither the folders 'images' and 'masks' nor 'train' and 'trainannot': pictures lie in "
                "the first, their masks, of the same names, in the second."
            )
        train = (pictures, masks)
    pairs = _paired(*train, unreadable, size, notices)
    kept = _paired(*validation, unreadable, size, notices) if validation else ()
    classes = _classes(root, labels, void, (*pairs, *kept))
    if kept:
        seen = {pair.perceptual_hash for pair in kept}
        alone = tuple(pair for pair in pairs if pair.perceptual_hash not in seen)
        if len(alone) < len(pairs):
            notices.append(f"{len(pairs) - len(alone)} training pictures left out: copies of validation pictures.")
        return MaskFolder(classes, alone, kept, "the folders of the data, as they are", tuple(notices))
    held = validation_split([pair.perceptual_hash for pair in pairs], [0] * len(pairs), valid_fraction)
    split = f"{valid_fraction:.0%} of the pictures held out for validation by their hash"
    train_part, kept = (tuple(p for p, out in zip(pairs, held, strict=True) if out == side) for side in (False, True))
    if not kept:
        raise CannotTrain(f"{root} has one picture only: there is none left to validate on.")
    return MaskFolder(classes, train_part, kept, split, tuple(notices))


def _root(folder: Path) -> Path:
    """The folder that holds the pictures: of an unpacked archive it may be a folder or two further in."""
    candidates = [folder, *sorted(path for path in folder.glob("*/") if path.is_dir()), *sorted(folder.glob("*/*/"))]
    for path in candidates:
        if _part(path, _TRAIN) or (_picked(path, _PICTURES) and _picked(path, _MASKS)):
            return path
    return folder


def _picked(root: Path, names: Sequence[str]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _part(root: Path, names: Sequence[str]) -> tuple[Path, Path] | None:
    """The folders of pictures and masks of a part of the split, in any of the layouts."""
    pictures, masks = _picked(root, _PICTURES), _picked(root, _MASKS)
    for name in names:
        for places in (
            (root / name, root / f"{name}annot"),
            (pictures / name, masks / name) if pictures and masks else None,
            *((root / name / p, root / name / m) for p in _PICTURES for m in _MASKS),
        ):
            if places and places[0].is_dir() and places[1].is_dir():
                return places
    return None


def _paired(pictures: Path, masks: Path, unreadable: str, size: int, notices: list[str]) -> tuple[Pair, ...]:
    """Every picture that can be decoded, with its mask."""
    by_name = {path.relative_to(pictures).with_suffix("").as_posix(): path for path in image_files(pictures)}
    masks_by_name = _without_ending(
        {path.relative_to(masks).with_suffix("").as_posix(): path for path in image_files(masks)}, by_name
    )
    for names, others, sentence in (
        (by_name, masks_by_name, f"has no mask of the same name in {masks}"),
        (masks_by_name, by_name, f"has no picture of the same name in {pictures}"),
    ):
        missing = sorted(set(names) - set(others))
        if missing:
            more = f", nor have {len(missing) - 1} others" if len(missing) > 1 else ""
            raise CannotTrain(f"{names[missing[0]]} {sentence}{more}.")
    if not by_name:
        raise CannotTrain(f"There are no pictures (JPEG, PNG, WebP or BMP) in {pictures}.")
    found = filter_readable(list(by_name.values()), unreadable=unreadable, size=size, warnings=notices)
    mask_of = {path: masks_by_name[name] for name, path in by_name.items()}
    with ThreadPoolExecutor() as pool:
        return tuple(pool.map(lambda each: _checked(each[0], mask_of[each[0]], each[1], size), found))


def _without_ending(masks: dict[str, Path], pictures: Collection[str]) -> dict[str, Path]:
    """The masks by their pictures' names, where each mask's has the same ending more (`_P` in the course's CamVid)."""
    if not masks or set(masks) & set(pictures):
        return masks
    first = min(masks)
    beginnings = [first[:length] for length in range(len(first) - 1, 0, -1) if first[:length] in pictures]
    ending = first[len(beginnings[0]) :] if beginnings else ""
    if not ending or not all(name.endswith(ending) for name in masks):
        return masks
    return {name.removesuffix(ending): path for name, path in masks.items()}


def _checked(path: Path, mask: Path, perceptual_hash: str, size: int) -> Pair:
    picture, indices = decode_file(path, size), read_mask(mask)
    height, width = indices.shape
    if (picture.width, picture.height) != (width, height):
        raise CannotTrain(
            f"{path} has {picture.width}×{picture.height} pixels and its mask {mask} {width}×{height}: "
            "a mask has a pixel for each of its picture's."
        )
    return Pair(
        path, mask, width, height, perceptual_hash, frozenset(np.flatnonzero(np.bincount(indices.ravel())).tolist())
    )


def read_mask(path: Path) -> NDArray[np.uint8]:
    """A mask's indices, uint8 (height, width). Raises CannotTrain: unreadable, or in colours."""
    with _opened(path) as image:
        if image.mode not in ("L", "P", "1"):
            raise CannotTrain(
                f"{path} is a picture of mode {image.mode}: a mask is a PNG of one channel of 8 bits (grey or with a "
                "palette) whose values are the indices of the labels."
            )
        return np.asarray(image).astype(np.uint8)


def _opened(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
    except Exception as error:  # A decoder may raise anything at a broken file.
        raise CannotTrain(f"The mask {path} cannot be read: {error}.") from None
    return image


def _classes(root: Path, given: Sequence[str], void: int, pairs: Sequence[Pair]) -> Classes:
    """The labels and what each index means, checked against the indices that occur."""
    example = {value: pair.mask for pair in reversed(pairs) for value in pair.indices}
    if void < 0 and set(example) == {0, 255} and not (root / CODES).is_file() and len(given) in (0, 2):
        return _black_and_white(tuple(given) or ("background", "foreground"))
    names = _names(root, given, sorted(set(example) - {void, 255}))
    named = {i for i, name in enumerate(names) if name.lower() in _VOID_NAMES}
    voids = {255} | ({void} if void >= 0 else named)
    for value in sorted(example):
        if value >= len(names) and value not in voids:
            raise CannotTrain(
                f"{example[value]} has pixels of the index {value}, and there are {len(names)} labels, 0 to "
                f"{len(names) - 1} ({', '.join(names[:4])}, …). If {value} means 'unlabelled', say --void {value}."
            )
    kept = [value for value in range(len(names)) if value not in voids]
    if len(set(kept) & set(example)) < 2:
        none = ", ".join(map(str, sorted(voids)))
        raise CannotTrain(
            f"The masks in {root} know fewer than two classes beside void ({none}): their pixels are to be the indices "
            "0, 1, 2, … of the labels (--void says which index is none)."
        )
    index = np.full(256, IGNORED, np.uint8)
    index[kept] = range(len(kept))
    return Classes(tuple(names[value] for value in kept), index, _palette(pairs[0].mask, kept))


def _black_and_white(names: tuple[str, ...]) -> Classes:
    """Masks of 0 and 255 and nothing else: drawn in black and white, 255 is the second label and not void."""
    index = np.full(256, IGNORED, np.uint8)
    index[[0, 255]] = 0, 1
    return Classes(names, index, ())


def _names(root: Path, given: Sequence[str], indices: Sequence[int]) -> list[str]:
    """A name for each index, void among them."""
    codes = root / CODES
    if codes.is_file():
        names = _lines(codes)
    elif given:
        names = list(given)
    else:
        names = [f"class {value}" for value in range(max(indices, default=0) + 1)]
    if len(names) > 255:
        raise CannotTrain(
            f"{root} has {len(names)} labels: a mask of 8 bits holds at most 255, and one value for none."
        )
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise CannotTrain(f"'{doubled[0]}' stands twice among the labels of {codes if codes.is_file() else root}.")
    return names


def _lines(codes: Path) -> list[str]:
    try:
        return [line.strip() for line in codes.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise CannotTrain(f"{codes} is not UTF-8: save it anew as UTF-8.") from None


def _palette(mask: Path, kept: Sequence[int]) -> tuple[Colour, ...]:
    """The labels' colours in a palette mask; none where it has no palette, or one with the same colour twice."""
    with _opened(mask) as image:
        levels = image.getpalette("RGB") if image.mode == "P" else None
    colours = [(*levels[3 * i : 3 * i + 3],) for i in kept if 3 * i + 3 <= len(levels)] if levels else []
    return tuple(colours) if len(set(colours)) == len(kept) else ()  # type: ignore[arg-type]


class MaskedImages(ImageSamples):
    """Pictures with their masks; each sample is what the network sees of one.

    To validate, the whole of it as the service sees it (a very long picture is several samples, its windows); to
    train, with `crop` (width, height), a random part, larger or smaller, mirrored or not, lighter or darker.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        classes: Classes,
        task: Segmentation,
        *,
        seed: int = 0,
        crop: tuple[int, int] | None = None,
        change: bool = True,
        cache_bytes: int = 4 << 30,
    ) -> None:
        room = cache_bytes - sum(pair.width * pair.height for pair in pairs)
        super().__init__([p.picture for p in pairs], enough=max(task.width, task.height), seed=seed, cache_bytes=room)
        self.pairs, self.classes, self.task, self.crop, self.change = tuple(pairs), classes, task, crop, change
        self._masks = [self._target(index) if room > 0 else None for index in range(len(pairs))]
        self._cropped = replace(task, width=crop[0], height=crop[1]) if crop else task
        self.places = [
            (index, window)
            for index, pair in enumerate(pairs)
            for window in range(1 if crop else len(task.windows(pair.width, pair.height)[1]))
        ]

    def __len__(self) -> int:
        return len(self.places)

    def _target(self, index: int) -> NDArray[np.uint8]:
        found: NDArray[np.uint8] = self.classes.index[read_mask(self.pairs[index].mask)]
        return found

    def mask(self, index: int) -> NDArray[np.uint8]:
        """The whole target of a picture, uint8 (height, width): indices of labels, or IGNORED."""
        kept = self._masks[index]
        return self._target(index) if kept is None else kept

    def pixels_of_each(self) -> NDArray[np.int64]:
        """How many pixels each label has in all pictures."""
        counts = [np.bincount(self.mask(index).ravel(), minlength=256) for index in range(len(self.pairs))]
        found: NDArray[np.int64] = np.sum(counts, axis=0)[: len(self.classes.labels)]
        return found

    def sample(self, key: Key) -> Batch:
        """`image` uint8 (height, width, 3) and `target` uint8 (height, width)."""
        index, window = self.places[key[1]]
        picture, mask = self.image(index), self.mask(index)
        if self.crop:
            self.seed_generator(key)
            picture, target = self._part(picture, mask, self.crop)
            pixels = self._cropped.preprocess(picture).arrays["image"][0]
        else:
            samples = self.task.preprocess(picture)
            seen: ViewWindows = samples.context
            pixels = samples.arrays["image"][window]
            target = view_windows_of(mask, seen.frames[window], self.task.width, self.task.height)
        return {"image": torch.from_numpy(pixels.copy()), "target": torch.from_numpy(target)}

    def _part(
        self, picture: DecodedImage, mask: NDArray[np.uint8], crop: tuple[int, int]
    ) -> tuple[DecodedImage, NDArray[np.uint8]]:
        """A random part of the picture and of its mask; where the picture ends, a border that is void."""
        left, top, right, bottom = self.task.windows(picture.width, picture.height)[1][0]
        width, height = right - left, bottom - top
        factor, across, down, mirrored = torch.rand(4).tolist()
        scale = min(self.task.width / width, self.task.height / height)
        scale *= 0.75 * 2**factor if self.change else 1.0
        # The part's place in the picture, in its pixels; the picture may be smaller than the part.
        size = (crop[0] / scale, crop[1] / scale)
        left = (picture.width - size[0]) * across
        top = (picture.height - size[1]) * down
        frame = Frame(picture.width, picture.height, scale, scale, -left * scale, -top * scale)
        target = view_windows_of(mask, frame, *crop)
        image = _pixels_of(picture, frame, *crop)
        if self.change:
            image = _lighter_or_darker(image)
            if mirrored < 0.5:
                image, target = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), target[:, ::-1].copy()
        return DecodedImage(image, *crop), target


def view_windows_of(mask: NDArray[np.uint8], frame: Frame, width: int, height: int) -> NDArray[np.uint8]:
    """A picture's mask as the network sees it through the frame, by the nearest pixel; IGNORED beside the picture."""
    columns = np.floor((np.arange(width) + 0.5 - frame.offset_x) / frame.scale_x).astype(np.intp)
    rows = np.floor((np.arange(height) + 0.5 - frame.offset_y) / frame.scale_y).astype(np.intp)
    found: NDArray[np.uint8] = mask[:, np.clip(columns, 0, mask.shape[1] - 1)][np.clip(rows, 0, mask.shape[0] - 1)]
    found[(rows < 0) | (rows >= mask.shape[0])] = IGNORED
    found[:, (columns < 0) | (columns >= mask.shape[1])] = IGNORED
    return found


def _pixels_of(picture: DecodedImage, frame: Frame, width: int, height: int) -> Image.Image:
    """The picture as it lies in a tensor of this size through the frame, with a border where it ends."""
    corners = np.array([[0.0, 0.0], [picture.width, picture.height]])
    (left, top), (right, bottom) = np.clip(np.rint(frame.to_network(corners)), 0, (width, height)).astype(int).tolist()
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    wanted = frame.to_image(np.array([[left, top], [right, bottom]], float))
    ratio = np.array(picture.image.size) / (picture.width, picture.height)
    (x0, y0), (x1, y1) = np.clip(wanted * ratio, 0, picture.image.size).tolist()
    part = picture.image.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=(x0, y0, x1, y1))
    image = Image.new("RGB", (width, height), _BORDER)
    image.paste(part, (left, top))
    return image


def _lighter_or_darker(image: Image.Image) -> Image.Image:
    from torchvision.transforms import v2  # Seconds: not for every command.

    changed: Image.Image = v2.ColorJitter(brightness=0.25, contrast=0.25, saturation=0.25)(image)
    return changed
