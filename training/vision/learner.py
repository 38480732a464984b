"""What all learners of pictures share: a pretrained body that is frozen first, and options for it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from training.core.config import Settings, option
from training.core.results import Figure
from training.core.sources import SourceFetcher
from training.data.images import ImageSamples
from training.engine.learner import Learner, Stage
from training.engine.optim import ParamGroup
from training.reporting import plots
from training.vision.backbones import weights_file


@dataclass(frozen=True)
class ImageOptions:
    """What can be chosen for pictures, whatever is learnt of them."""

    backbone: str = option("mobilenet_v2", "any convolutional network of torchvision, by its name")
    weights: str = option("imagenet", "of the backbone: imagenet, the path of a file, or none")
    frozen_epochs: int = option(2, "epochs before the others, in which a pretrained body stays frozen")
    frozen_rate: float = option(4e-3, "peak learning rate while the body is frozen")
    discriminative: float = option(8.0, "how many times slower the first layers learn than the last")
    augment: bool = option(True, "change the pictures at random, each time they are seen")
    valid_fraction: float = option(0.2, "share held out for validation where the data does not say which")
    unreadable: str = option("refuse", "pictures that cannot be decoded", choices=("skip", "refuse"))
    cache_mb: int = option(4096, "memory for decoded pictures, in MB")


class ImageLearner(Learner):
    """A learner whose network has a `body` (training/vision/backbones.py); all else of it is its head.

    Attributes:
        chosen: the options.
        trained_with: the settings.
        weights: the file of the body's pretrained weights; None: it begins at random.
        held_out: the validation samples.
        body_name: where the body is in the network.
    """

    chosen: Any
    samples: ImageSamples
    held_out: ImageSamples
    default_settings: ClassVar[Settings] = Settings()
    default_options: ClassVar[Any] = ImageOptions()
    body_name: ClassVar[str] = "body"

    def __init__(self, data: Path, settings: Settings, options: Any, weights: Path | None) -> None:
        self.chosen, self.trained_with, self.weights = options, settings, weights
        self._load_data(data)

    @classmethod
    def from_data(cls, data: Path, settings: Settings, options: Any, fetcher: SourceFetcher) -> "ImageLearner":
        """Reads the data. Raises CannotTrain."""
        return cls(data, settings, options, weights_file(options.backbone, options.weights, fetcher))

    def _load_data(self, data: Path) -> None:
        """Reads and checks the data: sets `task`, `samples` and `held_out`. Raises CannotTrain."""
        raise NotImplementedError

    @property
    def cache_bytes(self) -> int:
        """Bytes for the decoded training pictures; the validation pictures have a quarter of that beside."""
        return int(self.chosen.cache_mb) << 20

    def stages(self) -> tuple[Stage, ...]:
        """Head and norms first, then everything; without pretrained weights there is nothing to keep frozen."""
        whole = Stage("whole", self.trained_with.epochs, self.trained_with.rate)
        if not self.weights or not self.chosen.frozen_epochs:
            return (whole,)
        return (Stage("frozen", self.chosen.frozen_epochs, self.chosen.frozen_rate, frozen=True), whole)

    def param_groups(self, network: nn.Module, stage: Stage) -> list[ParamGroup]:
        """Head, upper and lower half of the body.

        While the body is frozen its BatchNorm layers go on learning, scale, shift and statistics: they fit the
        pretrained features to pictures of another kind at little cost.
        """
        body: Any = network.get_submodule(self.body_name)
        of_the_body = {id(parameter) for parameter in body.parameters()}
        for part in body.modules():
            learns = not stage.frozen or isinstance(part, nn.BatchNorm2d)
            for parameter in part.parameters(recurse=False):
                parameter.requires_grad = learns
        head = ParamGroup(tuple(parameter for parameter in network.parameters() if id(parameter) not in of_the_body))
        if stage.frozen:
            return [head, ParamGroup(tuple(body.parameters()))]
        blocks, slower = body.blocks, self.chosen.discriminative
        half = len(blocks) // 2
        return [
            head,
            ParamGroup(tuple(blocks[half:].parameters()), slower**-0.5),
            ParamGroup(tuple(blocks[:half].parameters()), 1 / slower),
        ]

    def _augmentation_figure(self, count: int = 12) -> Figure:
        """One training picture as it is seen in so many epochs."""
        index = len(self.samples) // 2
        seen = [self.samples.sample((epoch, index))["image"].numpy() for epoch in range(count)]
        return Figure("One picture, as it is seen in training", plots.draw_image_grid(seen))

    def _backbone_note(self) -> str:
        weights = self.weights.name if self.weights else "none, from scratch"
        return f"Body: torchvision's {self.chosen.backbone}; weights it began with: {weights}."
