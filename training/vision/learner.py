"""Base class of the learners for images: a pretrained body that is frozen at first, and its options."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import nn

from tasks.contract import Arrays
from training.core.config import Settings, option
from training.core.results import Figure
from training.core.sources import SourceFetcher
from training.data.images import ImageSamples
from training.engine.batches import random_indices
from training.engine.learner import Learner, Stage
from training.engine.optim import ParamGroup
from training.reporting import plots
from training.vision.backbones import weights_file


@dataclass(frozen=True)
class ImageOptions:
    """Options of all image tasks."""

    backbone: str = option("mobilenet_v2", "name of a convolutional network in torchvision")
    weights: str = option("imagenet", "weights of the backbone: imagenet, the path of a file, or none")
    frozen_epochs: int = option(2, "additional epochs at the start with the pretrained backbone frozen", at_least=0)
    frozen_rate: float = option(4e-3, "peak learning rate while the backbone is frozen", above=0)
    discriminative: float = option(8.0, "ratio of the learning rates of the last layers and the first", at_least=1)
    augment: bool = option(True, "augment the training images at random")
    valid_fraction: float = option(
        0.2, "fraction held out for validation, if the data has no split of its own", above=0, below=1
    )
    unreadable: str = option(
        "refuse",
        "what to do with images that cannot be decoded, and rows of labels.csv that name none",
        choices=("skip", "refuse"),
    )
    cache_mb: int = option(4096, "memory for decoded images, in MB", at_least=0)


class ImageLearner(Learner):
    """A learner whose network has a `body` (training/vision/backbones.py); the rest of the network is its head.

    Attributes:
        options: the options.
        settings: the training settings.
        weights: the file of the body's pretrained weights; None: random weights.
        held_out: the validation samples.
        body_name: name of the body's submodule in the network.
    """

    options: Any
    samples: ImageSamples
    held_out: ImageSamples
    default_settings: ClassVar[Settings] = Settings()
    default_options: ClassVar[Any] = ImageOptions()
    body_name: ClassVar[str] = "body"

    def __init__(self, data: Path, settings: Settings, options: Any, weights: Path | None) -> None:
        self.options, self.settings, self.weights = options, settings, weights
        self._load_data(data)

    @classmethod
    def from_data(cls, data: Path, settings: Settings, options: Any, fetcher: SourceFetcher) -> "ImageLearner":
        """Read the data. Raises CannotTrain."""
        return cls(data, settings, options, weights_file(options.backbone, options.weights, fetcher))

    def _load_data(self, data: Path) -> None:
        """Read and check the data, and set `task`, `samples` and `held_out`. Raises CannotTrain."""
        raise NotImplementedError

    @property
    def cache_bytes(self) -> int:
        """Bytes for decoded training images; validation images have another quarter of that."""
        return int(self.options.cache_mb) << 20

    def stages(self) -> tuple[Stage, ...]:
        """Head and norms first, then all layers; without pretrained weights, all layers from the start."""
        all_layers = Stage("all", self.settings.epochs, self.settings.rate)
        if not self.weights or not self.options.frozen_epochs:
            return (all_layers,)
        return (Stage("frozen", self.options.frozen_epochs, self.options.frozen_rate, frozen=True), all_layers)

    def param_groups(self, network: nn.Module, stage: Stage) -> list[ParamGroup]:
        """Head, upper half and lower half of the body (`Body.halves`).

        While the body is frozen, its BatchNorm layers are still trained (scale, shift and statistics), which adapts the
        pretrained features to other kinds of images at little cost.
        """
        body: Any = network.get_submodule(self.body_name)
        body_ids = {id(parameter) for parameter in body.parameters()}
        for module in body.modules():
            is_trained = not stage.frozen or isinstance(module, nn.BatchNorm2d)
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad = is_trained
        head = ParamGroup(tuple(parameter for parameter in network.parameters() if id(parameter) not in body_ids))
        if stage.frozen:
            return [head, ParamGroup(tuple(body.parameters()))]
        (lower, upper), ratio = body.halves(), self.options.discriminative
        return [head, ParamGroup(upper, ratio**-0.5), ParamGroup(lower, 1 / ratio)]

    def validation_inputs(self, count: int) -> Arrays:
        """Return up to `count` validation images, evenly spaced over the validation set."""
        indices = np.linspace(0, len(self.held_out) - 1, min(count, len(self.held_out))).round().astype(int)
        return {"image": self.held_out.__getitems__([(0, int(index)) for index in indices])["image"].numpy()}

    def training_inputs(self, count: int) -> Arrays:
        """Return up to `count` training images as the service prepares them: not augmented, and in its size."""
        images = (self.samples.image(index) for index in random_indices(len(self.samples.paths), count))
        return {"image": np.concatenate([self.task.preprocess(image).arrays["image"][:1] for image in images])}

    def _augmentation_figure(self, count: int = 12) -> Figure:
        """One training image, as augmented in `count` epochs."""
        index = len(self.samples) // 2
        images = [self.samples.sample((epoch, index))["image"].numpy() for epoch in range(count)]
        return Figure("One image with different augmentations", plots.draw_image_grid(images))

    def _validation_count(self) -> str:
        """Return the number of validation images in words."""
        count = len(self.held_out.paths)
        return f"{count:,} validation {'image' if count == 1 else 'images'}"

    def _selection_note(self, *chosen: str) -> str:
        """Say what was chosen on the validation images: the best of several epochs, and what `chosen` names."""
        several = sum(stage.epochs for stage in self.stages()) > 1
        what = [*(["the best epoch"] if several else []), *chosen]
        if not what:
            return "Nothing was chosen on the validation images: there was one epoch."
        return f"Chosen on the validation images: {', '.join(what)}. Expect slightly worse results on new images."

    def _backbone_note(self) -> str:
        weights = self.weights.name if self.weights else "random"
        return f"Backbone: torchvision's {self.options.backbone}; initial weights: {weights}."
