"""Random augmentation of images whose targets do not depend on position; made square as the service does."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tasks._images import BORDER, DecodedImage

Pixels = NDArray[np.uint8]
"""(height, width, 3)."""
_MAX_STRETCH = 4 / 3
"""Largest ratio between the aspect ratios of a random crop and its image."""


@dataclass(frozen=True)
class Augmentation:
    """Random cropping, mirroring, rotation and colour changes; randomness comes from torch's generator.

    The crop is made square by the same function as a whole image: squashed, padded or cropped. A network therefore
    sees images in training as it sees them when it is served.

    Attributes:
        min_crop_fraction: smallest fraction of the image's area that a crop covers, in (0, 1].
        flip_probability: probability that the image is mirrored.
        rotation_probability: probability that the image is rotated.
        max_rotation: largest rotation in either direction, in degrees.
        colour_jitter: strength of the changes of brightness, contrast and saturation.
    """

    min_crop_fraction: float = 0.5
    flip_probability: float = 0.5
    rotation_probability: float = 0.5
    max_rotation: float = 10.0
    colour_jitter: float = 0.2

    def apply(self, image: DecodedImage, fit: Callable[[DecodedImage], Pixels]) -> Pixels:
        """Return the augmented pixels; `fit` brings a crop to the network's size."""
        square = Image.fromarray(fit(crop_at_random(image, self.min_crop_fraction)))
        if draw_uniform(0, 1) < self.flip_probability:
            square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if draw_uniform(0, 1) < self.rotation_probability:
            angle = draw_uniform(-self.max_rotation, self.max_rotation)
            square = square.rotate(angle, Image.Resampling.BILINEAR, fillcolor=BORDER)
        return np.asarray(jitter_colours(square, self.colour_jitter))


def draw_uniform(low: float, high: float) -> float:
    """Draw a number between two bounds from torch's generator."""
    return low + (high - low) * float(torch.rand(()))


def crop_at_random(image: DecodedImage, min_fraction: float) -> DecodedImage:
    """Return a crop that covers at least this fraction of the image's area and has about its aspect ratio."""
    area = draw_uniform(min_fraction, 1)
    # Neither side of the crop may exceed the image's, which bounds the stretch by the area.
    max_log_stretch = min(math.log(_MAX_STRETCH), -math.log(area))
    stretch = math.exp(draw_uniform(-max_log_stretch, max_log_stretch))
    width, height = image.image.size
    crop_width = min(width, max(1, round(width * math.sqrt(area * stretch))))
    crop_height = min(height, max(1, round(height * math.sqrt(area / stretch))))
    left = round(draw_uniform(0, width - crop_width))
    top = round(draw_uniform(0, height - crop_height))
    if (crop_width, crop_height) == (width, height):
        return image
    # The decoded image may be smaller than the original, whose size determines how it is made square.
    return replace(
        image,
        image=image.image.crop((left, top, left + crop_width, top + crop_height)),
        width=max(1, round(image.width * crop_width / width)),
        height=max(1, round(image.height * crop_height / height)),
    )


def jitter_colours(image: Image.Image, strength: float) -> Image.Image:
    """Change brightness, contrast and saturation at random, in random order."""
    from torchvision.transforms import v2  # Imported here: it takes seconds, and not every command needs it.

    jittered: Image.Image = v2.ColorJitter(brightness=strength, contrast=strength, saturation=strength)(image)
    return jittered
