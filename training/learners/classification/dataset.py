"""Labelled images as training samples."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tasks._images import DecodedImage
from tasks.classification import Classification
from training.data.images import ImageSamples
from training.engine.batches import Key
from training.engine.runtime import Batch
from training.vision.augment import Augmentation, Pixels


class LabelledImages(ImageSamples):
    """Images with a target each: optionally augmented, then preprocessed by `task.preprocess`.

    `targets` has a row per image: the index of its class, or a 0 or 1 for each tag. `size` is the side length of the
    samples in pixels; 0: the task's.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        targets: Tensor,
        task: Classification,
        *,
        seed: int = 0,
        augment: Augmentation | None = None,
        size: int = 0,
        cache_bytes: int = 4 << 30,
    ) -> None:
        super().__init__(paths, min_side=max(task.size, size), seed=seed, cache_bytes=cache_bytes)
        self.targets, self.task, self.augment = targets, task, augment
        self._resized_task = replace(task, size=size) if size else task

    def sample(self, key: Key) -> Batch:
        """Return `image` uint8 (size, size, 3) and `target`, a row of the targets."""
        image = self.image(key[1])
        if self.augment:
            self.seed_generator(key)
            pixels = self.augment.apply(image, self._fit)
        else:
            pixels = self._fit(image)
        return {"image": torch.from_numpy(pixels.copy()), "target": self.targets[key[1]]}

    def _fit(self, image: DecodedImage) -> Pixels:
        pixels: Pixels = self._resized_task.preprocess(image).arrays["image"][0]
        return pixels
