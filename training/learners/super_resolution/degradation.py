"""Good pictures made worse on purpose: smaller, with text drawn over them, through JPEG; in that order.

Everything follows from the generator that is passed. Knows nothing of networks.
"""

import io
import string
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_LETTERS = string.ascii_letters + string.digits + string.digits + " .-:/%"
_PIXELS_A_TEXT = 8_000
"""Of the smaller picture: there is one text, and perhaps one more for each so many pixels."""
_MIN_TEXT_SIZE, _MAX_TEXT_SIZE = 8, 28
_MAX_TEXT_LENGTH = 12
_BLOCK = 8
"""Pixels of a side of a JPEG's blocks."""
_RESAMPLING = (Image.Resampling.BOX, Image.Resampling.BICUBIC, Image.Resampling.BILINEAR)


@dataclass(frozen=True)
class Damage:
    """How pictures are made worse.

    Attributes:
        lowest, highest: quality of the JPEG, each as likely as another.
        text: share of the pictures that text is drawn over.
        clean: share of the pictures that are only made smaller, by bicubic resizing.
    """

    lowest: int = 10
    highest: int = 70
    text: float = 1.0
    clean: float = 0.0


@dataclass(frozen=True)
class Degraded:
    """A picture that was made worse.

    Attributes:
        pixels: uint8 (height, width, 3).
        covered: bool (height, width), where text lies over it.
        quality: of the JPEG it went through; None: through none.
    """

    pixels: NDArray[np.uint8]
    covered: NDArray[np.bool_]
    quality: int | None

    def part(self, left: int, top: int, width: int, height: int) -> "Degraded":
        """A part of it, in its pixels."""
        rows, columns = slice(top, top + height), slice(left, left + width)
        return Degraded(self.pixels[rows, columns], self.covered[rows, columns], self.quality)


def degraded(sharp: Image.Image, scale: int, damage: Damage, random: np.random.Generator) -> Degraded:
    """A picture, RGB with sides that are multiples of `scale`, made smaller by it and worse."""
    size = sharp.width // scale, sharp.height // scale
    if random.random() < damage.clean:
        return clean(sharp, scale)
    small = sharp.resize(size, _RESAMPLING[int(random.integers(len(_RESAMPLING)))])
    written, covered = small, np.zeros((size[1], size[0]), np.bool_)
    if random.random() < damage.text:
        written, covered = _with_text(small, random)
    quality = int(random.integers(damage.lowest, damage.highest + 1))
    return Degraded(np.asarray(_through_jpeg(written, quality)), covered, quality)


def clean(sharp: Image.Image, scale: int) -> Degraded:
    """A picture that is only made smaller, by bicubic resizing."""
    small = np.asarray(sharp.resize((sharp.width // scale, sharp.height // scale), Image.Resampling.BICUBIC))
    return Degraded(small, np.zeros(small.shape[:2], np.bool_), None)


def _through_jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def _with_text(image: Image.Image, random: np.random.Generator) -> tuple[Image.Image, NDArray[np.bool_]]:
    """The picture with one text or several, and where they are."""
    written = image.copy()
    covered = np.zeros((image.height, image.width), np.bool_)
    for _ in range(1 + int(random.integers(1 + image.width * image.height // _PIXELS_A_TEXT))):
        mask = _text_mask(image.size, random)
        written.paste(_colour(random), mask=mask)
        covered |= np.asarray(mask) > 0
    return written, covered


def _text_mask(size: tuple[int, int], random: np.random.Generator) -> Image.Image:
    """A text whose middle lies somewhere in the picture: grey, 255 where it covers the picture wholly."""
    letters = random.choice(list(_LETTERS), int(random.integers(1, _MAX_TEXT_LENGTH + 1)))
    middle = float(random.uniform(0, size[0])), float(random.uniform(0, size[1]))
    mask = Image.new("L", size)
    font = _font(int(random.integers(_MIN_TEXT_SIZE, _MAX_TEXT_SIZE + 1)))
    ImageDraw.Draw(mask).text(middle, "".join(letters), 255, font, anchor="mm")
    return mask


def _colour(random: np.random.Generator) -> tuple[int, ...]:
    """White more often than black, and either as often as any colour."""
    choice = random.random()
    if choice < 0.5:
        return (255, 255, 255) if choice < 0.35 else (0, 0, 0)
    return tuple(random.integers(0, 256, 3).tolist())


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


@dataclass(frozen=True)
class Crops:
    """Pairs to train on: a random part of a picture, and the same part made worse.

    Attributes:
        size: side length of the smaller part, in pixels.
        scale: how many times as large the good one is.
        damage: what is done to it.
    """

    size: int
    scale: int
    damage: Damage

    def draw(self, picture: Image.Image, random: np.random.Generator) -> tuple[Degraded, NDArray[np.uint8]]:
        """A pair. The part is turned and mirrored at random; a picture smaller than it is continued by its mirror.

        It is cut out of a somewhat larger part that went through JPEG, so that the blocks begin anywhere.
        """
        room = (self.size + _BLOCK) * self.scale
        wide = _turned(_cut(picture, room, random), random)
        whole = degraded(Image.fromarray(wide), self.scale, self.damage, random)
        left, top = (int(start) for start in random.integers(0, _BLOCK + 1, 2))
        rows, columns = (slice(self.scale * start, self.scale * (start + self.size)) for start in (top, left))
        return whole.part(left, top, self.size, self.size), wide[rows, columns]


def _cut(picture: Image.Image, side: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """A random square of the picture."""
    left, top = (int(random.integers(0, max(0, length - side) + 1)) for length in picture.size)
    right, bottom = min(picture.width, left + side), min(picture.height, top + side)
    pixels = np.asarray(picture.crop((left, top, right, bottom)))
    missing = [(0, side - length) for length in pixels.shape[:2]]
    return np.pad(pixels, [*missing, (0, 0)], mode="symmetric")


def _turned(pixels: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    turned = np.rot90(pixels, int(random.integers(4)))
    return np.ascontiguousarray(turned[:, ::-1] if random.random() < 0.5 else turned)


def whole_multiple(image: Image.Image, scale: int) -> Image.Image:
    """The picture without the last rows and columns that are no multiple of `scale`."""
    width, height = image.width // scale * scale, image.height // scale * scale
    return image if (width, height) == image.size else image.crop((0, 0, width, height))
