"""Synthetic degradation of sharp images: downscaling, then text drawn over them, then JPEG compression.

All randomness comes from the generator that is passed in.
"""

import io
import string
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_CHARACTERS = string.ascii_letters + string.digits + string.digits + " .-:/%"
_PIXELS_PER_TEXT = 8_000
"""Pixels of the downscaled image per additional text; there is always at least one."""
_MIN_TEXT_SIZE, _MAX_TEXT_SIZE = 8, 28
_MAX_TEXT_LENGTH = 12
_JPEG_BLOCK = 8
"""Side length of a JPEG block, in pixels."""
_RESAMPLING = (Image.Resampling.BOX, Image.Resampling.BICUBIC, Image.Resampling.BILINEAR)


@dataclass(frozen=True)
class DegradationParams:
    """Parameters of the degradation.

    Attributes:
        min_quality, max_quality: bounds of the JPEG quality, which is uniform between them.
        text_fraction: fraction of the degraded images that text is drawn over.
        clean_fraction: fraction of the images that are only downscaled, by bicubic resizing.
    """

    min_quality: int = 10
    max_quality: int = 70
    text_fraction: float = 1.0
    clean_fraction: float = 0.0


@dataclass(frozen=True)
class DegradedImage:
    """A degraded image.

    Attributes:
        pixels: uint8 (height, width, 3).
        text_mask: bool (height, width), True where text covers the image.
        quality: the JPEG quality; None without JPEG compression.
    """

    pixels: NDArray[np.uint8]
    text_mask: NDArray[np.bool_]
    quality: int | None

    def crop(self, left: int, top: int, width: int, height: int) -> "DegradedImage":
        """Return a crop, in pixels of the degraded image."""
        rows, columns = slice(top, top + height), slice(left, left + width)
        return DegradedImage(self.pixels[rows, columns], self.text_mask[rows, columns], self.quality)


def degrade(sharp: Image.Image, scale: int, params: DegradationParams, random: np.random.Generator) -> DegradedImage:
    """Downscale and degrade an RGB image whose sides are multiples of `scale`."""
    size = sharp.width // scale, sharp.height // scale
    if random.random() < params.clean_fraction:
        return downscale(sharp, scale)
    small = sharp.resize(size, _RESAMPLING[int(random.integers(len(_RESAMPLING)))])
    with_text, text_mask = small, np.zeros((size[1], size[0]), np.bool_)
    if random.random() < params.text_fraction:
        with_text, text_mask = _draw_texts(small, random)
    quality = int(random.integers(params.min_quality, params.max_quality + 1))
    return DegradedImage(np.asarray(_compress_jpeg(with_text, quality)), text_mask, quality)


def downscale(sharp: Image.Image, scale: int) -> DegradedImage:
    """Only downscale an image, by bicubic resizing."""
    small = np.asarray(sharp.resize((sharp.width // scale, sharp.height // scale), Image.Resampling.BICUBIC))
    return DegradedImage(small, np.zeros(small.shape[:2], np.bool_), None)


def _compress_jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def _draw_texts(image: Image.Image, random: np.random.Generator) -> tuple[Image.Image, NDArray[np.bool_]]:
    """Return the image with one or more texts drawn over it, and the mask of the texts."""
    with_text = image.copy()
    text_mask = np.zeros((image.height, image.width), np.bool_)
    for _ in range(1 + int(random.integers(1 + image.width * image.height // _PIXELS_PER_TEXT))):
        mask = _draw_text_mask(image.size, random)
        with_text.paste(_draw_colour(random), mask=mask)
        text_mask |= np.asarray(mask) > 0
    return with_text, text_mask


def _draw_text_mask(size: tuple[int, int], random: np.random.Generator) -> Image.Image:
    """Return a greyscale mask of a text centred on a random position; 255 is opaque."""
    characters = random.choice(list(_CHARACTERS), int(random.integers(1, _MAX_TEXT_LENGTH + 1)))
    centre = float(random.uniform(0, size[0])), float(random.uniform(0, size[1]))
    mask = Image.new("L", size)
    font = _load_font(int(random.integers(_MIN_TEXT_SIZE, _MAX_TEXT_SIZE + 1)))
    ImageDraw.Draw(mask).text(centre, "".join(characters), 255, font, anchor="mm")
    return mask


def _draw_colour(random: np.random.Generator) -> tuple[int, ...]:
    """Return white (35 %), black (15 %) or a uniformly random colour (50 %)."""
    value = random.random()
    if value < 0.5:
        return (255, 255, 255) if value < 0.35 else (0, 0, 0)
    return tuple(random.integers(0, 256, 3).tolist())


@lru_cache(maxsize=64)
def _load_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


@dataclass(frozen=True)
class CropSampler:
    """Draws training pairs: a random crop of an image and its degraded version.

    Attributes:
        size: side length of the degraded crop, in pixels.
        scale: size of the sharp crop relative to the degraded one.
        params: parameters of the degradation.
    """

    size: int
    scale: int
    params: DegradationParams

    def draw(self, image: Image.Image, random: np.random.Generator) -> tuple[DegradedImage, NDArray[np.uint8]]:
        """Draw the degraded crop and the sharp one, rotated and flipped at random; small images are mirror-padded.

        The pair is cut from a slightly larger crop after JPEG compression, so that the blocks have a random offset.
        """
        padded_side = (self.size + _JPEG_BLOCK) * self.scale
        sharp = _rotate_and_flip(_crop_square(image, padded_side, random), random)
        degraded = degrade(Image.fromarray(sharp), self.scale, self.params, random)
        left, top = (int(start) for start in random.integers(0, _JPEG_BLOCK + 1, 2))
        rows, columns = (slice(self.scale * start, self.scale * (start + self.size)) for start in (top, left))
        return degraded.crop(left, top, self.size, self.size), sharp[rows, columns]


def _crop_square(image: Image.Image, side: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """Return a random square of the image, mirror-padded if the image is smaller."""
    left, top = (int(random.integers(0, max(0, length - side) + 1)) for length in image.size)
    right, bottom = min(image.width, left + side), min(image.height, top + side)
    pixels = np.asarray(image.crop((left, top, right, bottom)))
    padding = [(0, side - length) for length in pixels.shape[:2]]
    return np.pad(pixels, [*padding, (0, 0)], mode="symmetric")


def _rotate_and_flip(pixels: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    rotated = np.rot90(pixels, int(random.integers(4)))
    return np.ascontiguousarray(rotated[:, ::-1] if random.random() < 0.5 else rotated)


def crop_to_multiple(image: Image.Image, scale: int) -> Image.Image:
    """Cut off the last rows and columns so that both sides are multiples of `scale`."""
    width, height = image.width // scale * scale, image.height // scale * scale
    return image if (width, height) == image.size else image.crop((0, 0, width, height))
