"""The learner of the brightness task: a linear network, trained on images with numbers."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from tasks import brightness
from tasks._images import decode_image
from tasks.contract import Arrays, Limits, Task
from tasks.manifest import Metric
from training.core.config import Settings, option
from training.core.errors import CannotTrain
from training.core.results import Evaluation, Trained
from training.core.sources import SourceFetcher
from training.engine.batches import Key, SampleSet
from training.engine.learner import Learner, Stage
from training.engine.optim import ParamGroup
from training.engine.runtime import Batch, Runtime


@dataclass(frozen=True)
class BrightnessOptions:
    """Options of this learner."""

    size: int = option(16, "side of the network's input, in pixels")


class Network(nn.Module):
    """A linear function of the mean colour of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, image: Tensor) -> tuple[Tensor]:
        """Return the brightness (n,) of images (n, size, size, 3)."""
        return (self.linear(image.float().mean(dim=(1, 2)) / 255).squeeze(1),)


class LoadedImages(SampleSet):
    """Images in memory, uint8 (n, size, size, 3), with their numbers."""

    def __init__(self, images: Tensor, targets: Tensor) -> None:
        self.images, self.targets = images, targets

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        index = torch.tensor([index for _, index in keys])
        return {"image": self.images[index], "target": self.targets[index], "index": index}


class BrightnessLearner(Learner):
    """Learns a number for each image; the last quarter of the images is for validation."""

    summary: ClassVar[str] = "a number for an image"
    data_kind: ClassVar[str] = "a folder of images with values.csv (columns image and value)"
    default_settings: ClassVar[Settings] = Settings(epochs=15, batch_size=4, rate=0.3)
    default_options: ClassVar[Any] = BrightnessOptions()
    hub_tag: ClassVar[str] = "image-regression"
    lower_is_better = True

    def __init__(self, data: Path, settings: Settings, options: BrightnessOptions) -> None:
        self.settings, self.task = settings, brightness.Brightness(options.size)
        table = data / "values.csv"
        if not table.is_file():
            raise CannotTrain(f"{table}: there is no such file.")
        with table.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        images = torch.from_numpy(np.concatenate([self._pixels(data / row["image"]) for row in rows]))
        targets = torch.tensor([float(row["value"]) for row in rows])
        count = len(rows) * 3 // 4
        self.samples = LoadedImages(images[:count], targets[:count])
        self.held_out = LoadedImages(images[count:], targets[count:])

    def _pixels(self, path: Path) -> np.ndarray:
        return self.task.preprocess(decode_image(path.read_bytes(), max_pixels=Limits().pixels)).arrays["image"]

    @classmethod
    def from_data(cls, data: Path, settings: Settings, options: Any, fetcher: SourceFetcher) -> "BrightnessLearner":
        """Read the folder. Raises CannotTrain."""
        return cls(data, settings, options)

    def data_summary(self) -> str:
        """Return the numbers of images."""
        return f"{len(self.samples)} images to train on, {len(self.held_out)} to validate."

    def network(self) -> nn.Module:
        """Return a new network."""
        return Network()

    def stages(self) -> tuple[Stage, ...]:
        """Train everything from the start."""
        return (Stage("all", self.settings.epochs, self.settings.rate),)

    def param_groups(self, network: nn.Module, stage: Stage) -> list[ParamGroup]:
        """All parameters, at one rate."""
        return [ParamGroup(tuple(network.parameters()))]

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """Mean squared error."""
        return nn.functional.mse_loss(network(batch["image"])[0], batch["target"])

    def scores(self, network: nn.Module, runtime: Runtime) -> dict[str, float]:
        """Mean absolute error on the validation images."""
        network.eval()
        with torch.no_grad():
            values = network(self.held_out.images.to(runtime.device))[0].cpu()
        return {"mae": float((values - self.held_out.targets).abs().mean())}

    def to_inference_module(self, network: nn.Module) -> nn.Module:
        """Return the network itself: there is nothing to calibrate."""
        return network.eval()

    def evaluate(self, trained: Sequence[Trained], served: nn.Module, exported: nn.Module) -> Evaluation:
        """Report the error of the exported file on the validation images."""
        error = float((exported(self.held_out.images)[0] - self.held_out.targets).abs().mean())
        return Evaluation((Metric(name="mae", value=error, protocol=f"{len(self.held_out)} validation images"),))

    def validation_inputs(self, count: int) -> Arrays:
        """Return validation samples."""
        return {"image": self.held_out.images[:count].numpy()}

    def golden_requests(self, served: nn.Module) -> tuple[Task, list[dict[str, Any]]]:
        """Return the task's own examples."""
        return self.task, self.task.examples()
