"""Images with keypoints as samples, and augmentations that move the points with the image."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor

from tasks._images import BORDER, DecodedImage
from tasks.keypoints import Keypoints
from training.data.images import ImageSamples
from training.engine.batches import Key
from training.engine.runtime import Batch

Points = NDArray[np.float64]


@dataclass(frozen=True)
class AugmentParams:
    """Parameters of the random augmentation.

    Attributes:
        max_rotation: largest rotation in either direction, in degrees.
        min_scale, max_scale: bounds of the scale, relative to the image fitted to the square.
        max_shift: largest shift along each axis, as a fraction of the square's side.
        colour_jitter: strength of the changes of brightness, contrast and saturation.
        erase_probability: probability that a block of the image is erased.
        flip_indices: for each point, the index of its counterpart in the mirror image; empty = no flips.
    """

    max_rotation: float = 25.0
    min_scale: float = 0.75
    max_scale: float = 1.6
    max_shift: float = 0.15
    colour_jitter: float = 0.3
    erase_probability: float = 0.4
    flip_indices: tuple[int, ...] = ()


def augment_image(image: Image.Image, points: Points, size: int, params: AugmentParams) -> tuple[Image.Image, Points]:
    """Return the augmented image, size × size, and its points (k, 2); randomness comes from torch's generator.

    The image is rotated and scaled about the centre of its points, which are kept inside the square if they fit. A
    point outside the square becomes NaN.
    """
    matrix, offset = _draw_affine(image.size, points, size, params)
    moved = points @ matrix.T + offset
    augmented = _apply_affine(image, matrix, offset, size)
    if params.flip_indices and _draw_bool(0.5):
        augmented = augmented.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        moved = (np.array([size, 0.0]) + moved * (-1.0, 1.0))[list(params.flip_indices)]
    augmented = _erase_block(_jitter_colours(augmented, params.colour_jitter), params.erase_probability)
    outside = ((moved < 0) | (moved > size)).any(axis=1, keepdims=True)
    return augmented, np.where(outside, np.nan, moved)


def _draw_uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def _draw_bool(probability: float) -> bool:
    return float(torch.rand(())) < probability


def _draw_affine(
    image_size: tuple[int, int], points: Points, size: int, params: AugmentParams
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Draw a matrix (2, 2) and an offset (2,) that map a point p of the image to matrix · p + offset in the square."""
    angle = np.radians(_draw_uniform(-params.max_rotation, params.max_rotation))
    # The service scales an image to whole pixels, and puts it at a whole pixel.
    fitted_size = np.maximum(1, np.rint(np.array(image_size) * size / max(image_size)))
    fit_scale = fitted_size / image_size
    scale = float(np.exp(_draw_uniform(np.log(params.min_scale), np.log(params.max_scale))))
    matrix = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * fit_scale
    known = points[~np.isnan(points).any(axis=1)]
    centre = (known.min(axis=0) + known.max(axis=0)) / 2 if len(known) else np.array(image_size) / 2
    fitted_centre = centre * fit_scale + (size - fitted_size) // 2
    target = fitted_centre + [size * _draw_uniform(-params.max_shift, params.max_shift) for _ in range(2)]
    if len(known):
        extent = (known - centre) @ matrix.T
        low, high = 0.03 * size - extent.min(axis=0), 0.97 * size - extent.max(axis=0)
        target = np.where(low < high, target.clip(np.minimum(low, high), np.maximum(low, high)), (low + high) / 2)
    return matrix, target - matrix @ centre


def _apply_affine(
    image: Image.Image, matrix: NDArray[np.float64], offset: NDArray[np.float64], size: int
) -> Image.Image:
    """Return the square of this size in which a point p of the image is at matrix · p + offset.

    An affine transform reads only the pixels next to each point, so that it would alias where it shrinks the image, and
    blur it if its interpolation were linear. The image is therefore first resized as the service does, and what remains
    is to rotate and shift it.
    """
    scale = np.linalg.norm(matrix, axis=0)
    shrinks = bool((scale < 1).all())
    if shrinks:
        width, height = np.maximum(1, np.rint(image.size * scale)).astype(int).tolist()
        matrix = matrix * (image.width / width, image.height / height)
        image = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=3.0)
    inverse = np.linalg.inv(matrix)
    origin = -inverse @ offset
    data = (inverse[0, 0], inverse[0, 1], origin[0], inverse[1, 0], inverse[1, 1], origin[1])
    resampling = Image.Resampling.BICUBIC if shrinks else Image.Resampling.BILINEAR
    return image.transform((size, size), Image.Transform.AFFINE, data, resampling, fillcolor=BORDER)


def _jitter_colours(image: Image.Image, strength: float) -> Image.Image:
    """Change brightness, contrast and saturation; sometimes convert to greyscale or blur."""
    for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhancer(image).enhance(_draw_uniform(1 - strength, 1 + strength))
    if _draw_bool(0.1 if strength else 0):
        image = image.convert("L").convert("RGB")
    if _draw_bool(0.15 if strength else 0):
        image = image.filter(ImageFilter.GaussianBlur(_draw_uniform(0.3, 1.2)))
    return image


def _erase_block(image: Image.Image, probability: float) -> Image.Image:
    """With the given probability, erase a block with sides of a tenth to a third of the image's."""
    if not _draw_bool(probability):
        return image
    width, height = (int(image.width * _draw_uniform(0.1, 0.33)) for _ in range(2))
    left, top = int(_draw_uniform(0, image.width - width)), int(_draw_uniform(0, image.height - height))
    colour = tuple(int(_draw_uniform(0, 255)) for _ in range(3))
    image = image.copy()
    image.paste(colour, (left, top, left + width, top + height))
    return image


class KeypointImages(ImageSamples):
    """Images with points as samples: augmented or not, then `task.preprocess`; the points follow its frame."""

    def __init__(
        self,
        paths: Sequence[Path],
        points: Sequence[Points],
        task: Keypoints,
        *,
        seed: int = 0,
        augment: AugmentParams | None = None,
        cache_bytes: int = 4 << 30,
    ) -> None:
        super().__init__(paths, min_side=task.size, seed=seed, cache_bytes=cache_bytes)
        self.points, self.task, self.augment = tuple(points), task, augment

    def sample(self, key: Key) -> Batch:
        """Return `image` uint8 (size, size, 3) and `target` float32 (k, 2) in its pixels, NaN for missing points."""
        image, points = self.image(key[1]), self.points[key[1]]
        if self.augment:
            self.seed_generator(key)
            # The points are in pixels of the original, but a large JPEG is decoded at a reduced size.
            decoded_points = points * (image.image.width / image.width, image.image.height / image.height)
            augmented, points = augment_image(image.image, decoded_points, self.task.size, self.augment)
            image = DecodedImage(augmented, *augmented.size)
        samples = self.task.preprocess(image)
        frame, _ = samples.context
        pixels = np.ascontiguousarray(samples.arrays["image"][0])
        return {"image": torch.from_numpy(pixels), "target": _to_tensor(frame.to_network(points))}


def _to_tensor(points: NDArray[np.floating]) -> Tensor:
    return torch.from_numpy(points.astype(np.float32))
