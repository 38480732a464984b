"""Pictures with points as samples: turned, shifted, scaled, mirrored and hidden together with their points."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor

from tasks._images import DecodedImage
from tasks.keypoints import Keypoints
from training.data.images import ImageSamples
from training.engine.batches import Key
from training.engine.runtime import Batch

Points = NDArray[np.float64]
_BORDER = (124, 116, 104)  # The mean colour of ImageNet, as around padded pictures.


@dataclass(frozen=True)
class Turning:
    """How pictures are changed, each time they are seen.

    Attributes:
        degrees: the largest rotation either way.
        smallest, largest: bounds of the scale, 1 being the picture as it fits the square.
        shift: the largest shift along each axis, as a share of the square's side.
        light: how much brightness, contrast and colour change.
        hidden: how often a block of the picture is hidden.
        twins: the index of each point's mirror twin; empty: pictures are not mirrored.
    """

    degrees: float = 25.0
    smallest: float = 0.75
    largest: float = 1.6
    shift: float = 0.15
    light: float = 0.3
    hidden: float = 0.4
    twins: tuple[int, ...] = ()


def turned(image: Image.Image, points: Points, size: int, how: Turning) -> tuple[Image.Image, Points]:
    """The picture, changed at random and size × size, and its points (k, 2) there; drawn from torch's generator.

    The picture is turned and scaled around the middle of its points, which stay inside the square as far as they fit;
    a point that falls outside becomes NaN.
    """
    image, points = _reduced(image, points, size)
    matrix, offset = _drawn_geometry(image.size, points, size, how)
    moved = points @ matrix.T + offset
    changed = _transformed(image, matrix, offset, size)
    if how.twins and _chance(0.5):
        changed = changed.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        moved = (np.array([size, 0.0]) + moved * (-1.0, 1.0))[list(how.twins)]
    changed = _hidden(_lit(changed, how.light), how.hidden)
    outside = ((moved < 0) | (moved > size)).any(axis=1, keepdims=True)
    return changed, np.where(outside, np.nan, moved)


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def _chance(share: float) -> bool:
    return float(torch.rand(())) < share


def _reduced(image: Image.Image, points: Points, size: int) -> tuple[Image.Image, Points]:
    """A picture less than twice as large as the square, so that scaling it down leaves no jagged edges."""
    factor = max(image.size) // size
    return (image.reduce(factor), points / factor) if factor > 1 else (image, points)


def _drawn_geometry(
    sides: tuple[int, int], points: Points, size: int, how: Turning
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A random matrix (2, 2) and offset (2,): a point p of the picture is at matrix · p + offset in the square."""
    angle = np.radians(_uniform(-how.degrees, how.degrees))
    fitting = size / max(sides)
    scale = fitting * float(np.exp(_uniform(np.log(how.smallest), np.log(how.largest))))
    matrix = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    known = points[~np.isnan(points).any(axis=1)]
    middle = (known.min(axis=0) + known.max(axis=0)) / 2 if len(known) else np.array(sides) / 2
    usual = fitting * (middle - np.array(sides) / 2) + size / 2
    place = usual + [size * _uniform(-how.shift, how.shift) for _ in range(2)]
    if len(known):
        reach = (known - middle) @ matrix.T
        low, high = 0.03 * size - reach.min(axis=0), 0.97 * size - reach.max(axis=0)
        place = np.where(low < high, place.clip(np.minimum(low, high), np.maximum(low, high)), (low + high) / 2)
    return matrix, place - matrix @ middle


def _transformed(
    image: Image.Image, matrix: NDArray[np.float64], offset: NDArray[np.float64], size: int
) -> Image.Image:
    back = np.linalg.inv(matrix)
    origin = -back @ offset
    numbers = (back[0, 0], back[0, 1], origin[0], back[1, 0], back[1, 1], origin[1])
    return image.transform((size, size), Image.Transform.AFFINE, numbers, Image.Resampling.BILINEAR, fillcolor=_BORDER)


def _lit(image: Image.Image, light: float) -> Image.Image:
    """Brighter or darker, flatter or harder, more or less colourful, now and then grey or out of focus."""
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = change(image).enhance(_uniform(1 - light, 1 + light))
    if _chance(0.1 if light else 0):
        image = image.convert("L").convert("RGB")
    if _chance(0.15 if light else 0):
        image = image.filter(ImageFilter.GaussianBlur(_uniform(0.3, 1.2)))
    return image


def _hidden(image: Image.Image, share: float) -> Image.Image:
    """With a block of one colour somewhere, a tenth to a third of the picture's side long, as often as `share` says."""
    if not _chance(share):
        return image
    width, height = (int(image.width * _uniform(0.1, 0.33)) for _ in range(2))
    left, top = int(_uniform(0, image.width - width)), int(_uniform(0, image.height - height))
    colour = tuple(int(_uniform(0, 255)) for _ in range(3))
    image = image.copy()
    image.paste(colour, (left, top, left + width, top + height))
    return image


class KeypointImages(ImageSamples):
    """Pictures with points: changed (or not), then `task.preprocess`; the points follow through the Frame."""

    def __init__(
        self,
        paths: Sequence[Path],
        points: Sequence[Points],
        task: Keypoints,
        *,
        seed: int = 0,
        turning: Turning | None = None,
        cache_bytes: int = 4 << 30,
    ) -> None:
        super().__init__(paths, enough=task.size, seed=seed, cache_bytes=cache_bytes)
        self.points, self.task, self.turning = tuple(points), task, turning

    def sample(self, key: Key) -> Batch:
        """`image` uint8 (size, size, 3) and `target` float32 (k, 2) in pixels of the square, NaN where missing."""
        picture, points = self.image(key[1]), self.points[key[1]]
        if self.turning:
            self.seed_generator(key)
            # A large JPEG is decoded smaller than the picture that the points are those of.
            drawn = points * (picture.image.width / picture.width, picture.image.height / picture.height)
            image, points = turned(picture.image, drawn, self.task.size, self.turning)
            picture = DecodedImage(image, *image.size)
        made = self.task.preprocess(picture)
        frame, _ = made.context
        pixels = np.ascontiguousarray(made.arrays["image"][0])
        return {"image": torch.from_numpy(pixels), "target": _tensor(frame.to_network(points))}


def _tensor(points: NDArray[np.floating]) -> Tensor:
    return torch.from_numpy(points.astype(np.float32))
