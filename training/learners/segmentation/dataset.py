"""Samples for training and validation: images and masks, projected and augmented together."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tasks._images import BORDER, DecodedImage, Frame
from tasks.segmentation import Segmentation, ViewWindows
from training.data.images import ImageSamples
from training.engine.batches import Key
from training.engine.runtime import Batch
from training.learners.segmentation.classes import IGNORED, Classes
from training.learners.segmentation.mask_folder import ImageMaskPair


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
        return self.classes.read_target(self.pairs[index].mask)

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
