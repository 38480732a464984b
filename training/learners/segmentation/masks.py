"""Mask files: decoded to values or colours, a summary of what each file contains, and how to read them alike.

This module does not depend on the names of classes.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tasks._masks import Colour
from training.core.errors import CannotTrain

MAX_COLOURS = 255
"""Most colours that masks may have; more are a photo, or the noise that JPEG leaves."""
_GREYS = np.repeat(np.arange(256, dtype=np.uint8)[:, np.newaxis], 3, axis=1)
_MAX_CHANNEL_NOISE = 24
"""Difference between the channels of a grey JPEG that its compression may leave."""
_MAX_LISTED = 12


@dataclass(frozen=True)
class DecodedMask:
    """A decoded mask file.

    Attributes:
        pixels: uint8 (height, width), greys or indices of a palette; or uint8 (height, width, 3), colours.
        palette: uint8 (256, 3), the colour of each value.
        has_palette: whether the file has a palette; otherwise `palette` contains the greys.
        is_lossy: whether the file's compression changes values (JPEG, lossy WebP).
        is_reduced: whether 16-bit values were reduced to 8 bits.
    """

    pixels: NDArray[np.uint8]
    palette: NDArray[np.uint8]
    has_palette: bool = False
    is_lossy: bool = False
    is_reduced: bool = False


@dataclass(frozen=True)
class MaskContents:
    """What a mask file contains. A colour is the number 0xrrggbb.

    Attributes:
        values: number of pixels of each value; empty if the mask is in colour.
        colours: number of pixels of each colour; of the most frequent ones if there are more than MAX_COLOURS.
        colour_count: number of different colours.
        palette: the colour of each value that occurs; empty if the file has no palette.
        is_lossy, is_reduced: as in DecodedMask.
    """

    values: Mapping[int, int]
    colours: Mapping[int, int]
    colour_count: int
    palette: Mapping[int, int]
    is_lossy: bool
    is_reduced: bool


def decode_mask(path: Path) -> DecodedMask:
    """Decode a mask file. Raises CannotTrain if it is unreadable, partly transparent, or has large 16-bit values."""
    image, is_lossy = _open_mask(path)
    if image.mode == "P":
        palette = np.zeros((256, 3), np.uint8)
        colours = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
        palette[: len(colours)] = colours
        return DecodedMask(np.asarray(image), palette, has_palette=True)
    if image.mode in ("1", "L"):
        return DecodedMask(np.asarray(image).astype(np.uint8), _GREYS, is_lossy=is_lossy)
    if image.mode.startswith("I"):
        pixels, is_reduced = _reduce_to_8_bits(path, np.asarray(image))
        return DecodedMask(pixels, _GREYS, is_reduced=is_reduced)
    return DecodedMask(_drop_grey_channels(path, image, is_lossy), _GREYS, is_lossy=is_lossy)


def _open_mask(path: Path) -> tuple[Image.Image, bool]:
    """Return the mask, and whether its compression is lossy."""
    try:
        image = Image.open(path)
        image.load()
        # Lossless WebP has a chunk of this name, at the start or after the colour profile.
        is_lossy = image.format in ("JPEG", "MPO") or (image.format == "WEBP" and b"VP8L" not in path.read_bytes())
    except Exception as error:  # Pillow's decoders raise many types of error for broken files.
        raise CannotTrain(f"The mask {path} cannot be read: {error}.") from None
    return image, is_lossy


def _reduce_to_8_bits(path: Path, values: NDArray[np.integer]) -> tuple[NDArray[np.uint8], bool]:
    """Return 16-bit values as 8-bit ones, and whether any of them changed."""
    large = values > 255
    if not large.any():
        return values.astype(np.uint8), False
    if (values[large] == 65535).all():  # White, or unlabelled, in a mask whose other values are small.
        return np.where(large, 255, values).astype(np.uint8), True
    if (values % 257 == 0).all():  # 8-bit values that a program stretched to 16 bits.
        return (values // 257).astype(np.uint8), True
    raise CannotTrain(
        f"{path} has 16-bit values up to {values.max()}, as depths or the numbers of objects have them. A mask must "
        "contain the index of each pixel's label, 0 to 254: save it with 8 bits."
    )


def _drop_grey_channels(path: Path, image: Image.Image, is_lossy: bool) -> NDArray[np.uint8]:
    """Return the pixels of a mask with several channels: (height, width) if all are grey, else (height, width, 3)."""
    pixels = np.asarray(image.convert("RGBA"))
    alpha = pixels[..., 3]
    if alpha.min() != alpha.max():
        raise CannotTrain(
            f"{path} is transparent in places ({percent((alpha < 255).sum(), alpha.size)} of its pixels). A mask must "
            "be opaque: save it as a PNG without transparency whose values are the indices of the labels."
        )
    colours: NDArray[np.uint8] = pixels[..., :3]
    noise = _MAX_CHANNEL_NOISE if is_lossy else 0
    if int((colours.max(axis=2) - colours.min(axis=2)).max()) <= noise:
        greys: NDArray[np.uint8] = np.asarray(image.convert("RGB").convert("L")) if is_lossy else colours[..., 0]
        return greys
    return colours


def summarise_mask(mask: DecodedMask) -> MaskContents:
    """Return what a mask contains."""
    if mask.pixels.ndim == 3:
        values, palette = {}, {}
        keys, counts = np.unique(_pack_colours(mask.pixels), return_counts=True)
        colours = dict(zip(keys.tolist(), counts.tolist(), strict=True))
    else:
        counts = np.bincount(mask.pixels.ravel(), minlength=256)
        values = {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
        colour_of_value = _pack_colours(mask.palette)
        palette = {value: int(colour_of_value[value]) for value in values} if mask.has_palette else {}
        colours = Counter()
        for value, count in values.items():
            colours[int(colour_of_value[value])] += count
    frequent = dict(Counter(colours).most_common(MAX_COLOURS))
    return MaskContents(values, frequent, len(colours), palette, mask.is_lossy, mask.is_reduced)


def _pack_colours(colours: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Return colours (…, 3) as numbers 0xrrggbb."""
    red, green, blue = np.moveaxis(colours.astype(np.uint32), -1, 0)
    packed: NDArray[np.uint32] = red << 16 | green << 8 | blue
    return packed


@dataclass(frozen=True)
class MaskReader:
    """How the masks of a data set are read: each becomes one value per pixel.

    Attributes:
        colours: if given, the value of a pixel is the position of its colour here.
        expands_palette: whether the value is the grey in the palette rather than the index in it.
    """

    colours: tuple[Colour, ...] = ()
    expands_palette: bool = False

    def read(self, path: Path) -> NDArray[np.uint8]:
        """Return the values of a mask, uint8 (height, width). Raises CannotTrain as `decode_mask`."""
        mask = decode_mask(path)
        if not self.colours:
            return mask.palette[:, 0][mask.pixels] if self.expands_palette else mask.pixels
        rgb = mask.pixels if mask.pixels.ndim == 3 else mask.palette[mask.pixels]
        known = _pack_colours(np.array(self.colours, np.uint8))
        order = np.argsort(known)
        values: NDArray[np.uint8] = order.astype(np.uint8)[np.searchsorted(known[order], _pack_colours(rgb))]
        return values

    def count_values(self, contents: MaskContents) -> dict[int, int]:
        """Return the number of pixels of each value that `read` gives."""
        if self.colours:
            position = {pack_colour(colour): value for value, colour in enumerate(self.colours)}
            return {position[colour]: count for colour, count in contents.colours.items()}
        if self.expands_palette:
            return {colour & 255: count for colour, count in contents.colours.items()}
        return dict(contents.values)


def choose_reader(
    root: Path, masks: Sequence[tuple[Path, MaskContents]], colours: Sequence[Colour], warnings: list[str]
) -> MaskReader:
    """Return how to read the masks, of which `colours` are the labels' colours if the masks are in colour.

    Masks are read by colour if they have no single channel of values, or if the same index has different colours in
    their palettes, as where a program made a palette for each file.

    Raises CannotTrain if masks in colour have more than MAX_COLOURS colours, or other ones than `colours`.
    """
    in_colour = [path for path, contents in masks if not contents.values]
    conflict = _find_palette_conflict(masks)
    if not in_colour and not conflict:
        return MaskReader()
    if not in_colour and all(colour % 0x010101 == 0 for _, contents in masks for colour in contents.colours):
        warnings.append(f"{conflict} The masks were therefore read by the greys in their palettes.")
        return MaskReader(expands_palette=True)
    for path, contents in masks:
        if contents.colour_count > MAX_COLOURS:
            raise CannotTrain(
                f"{path} has {contents.colour_count:,} colours, as a photo or JPEG compression has them. Save the "
                "masks as PNG, with the index of each pixel's label as its value."
            )
    totals: Counter[int] = Counter()
    for _, contents in masks:
        totals.update(contents.colours)
    if not colours:
        reason = conflict or f"The masks in {root} are in colour ({in_colour[0].name}, for example)."
        raise CannotTrain(f"{reason} {_ask_for_colours(totals)}")
    _check_colours_known(masks, totals, colours)
    return MaskReader(colours=tuple(colours))


def _find_palette_conflict(masks: Sequence[tuple[Path, MaskContents]]) -> str:
    """Return a sentence about a value with two colours, if there is one."""
    first: dict[int, tuple[int, Path]] = {}
    for path, contents in masks:
        for value, colour in contents.palette.items():
            other, other_path = first.setdefault(value, (colour, path))
            if other != colour:
                return (
                    f"The palettes of the masks differ: the value {value} is the colour {other:06x} in {other_path} "
                    f"but {colour:06x} in {path.name}."
                )
    return ""


def _ask_for_colours(totals: Counter[int]) -> str:
    total, listed = totals.total(), totals.most_common(_MAX_LISTED)
    shares = ", ".join(f"{colour:06x} ({percent(count, total)})" for colour, count in listed)
    others = f" and {len(totals) - len(listed)} others" if len(totals) > len(listed) else ""
    return (
        f"Their colours are {shares}{others}. Say which colour is which label: "
        f"--colours {','.join(f'{colour:06x}' for colour, _ in listed)} --labels A,B,…; a label named void is left out."
    )


def _check_colours_known(
    masks: Sequence[tuple[Path, MaskContents]], totals: Counter[int], colours: Sequence[Colour]
) -> None:
    unknown = {colour: count for colour, count in totals.items() if colour not in set(map(pack_colour, colours))}
    if unknown:
        colour = max(unknown, key=unknown.__getitem__)
        path = next(path for path, contents in masks if colour in contents.colours)
        share = percent(sum(unknown.values()), totals.total())
        raise CannotTrain(
            f"{path} contains the colour {colour:06x}, which --colours lacks; such colours ({len(unknown)} in all) are "
            f"in {share} of the pixels. Add them, with a label named void for what is unlabelled; colours that "
            "soft edges left must be removed from the masks."
        )


def pack_colour(colour: Colour) -> int:
    """Return the number 0xrrggbb."""
    return int.from_bytes(colour)


def percent(count: int, total: int) -> str:
    """Return a share in words, such as "12.3 %"."""
    share = 100 * int(count) / max(1, int(total))
    return "less than 0.1 %" if 0 < share < 0.05 else f"{share:.1f} %"
