"""Base class of the image classifiers, with one label per image or several."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from tasks._images import Fit, encode_image
from tasks.classification import Classification
from tasks.contract import Task
from training.core.config import option
from training.core.errors import CannotTrain
from training.core.results import Figure
from training.data.delimited import CsvOptions
from training.engine.inference import collect_outputs
from training.engine.runtime import Batch, Runtime
from training.evaluation.calibration import Calibration
from training.learners.classification.dataset import LabelledImages
from training.learners.classification.network import Classifier, FlipTTA
from training.reporting import plots
from training.vision.augment import Augmentation
from training.vision.backbones import load_body
from training.vision.learner import ImageLearner, ImageOptions

PathsAndTargets = tuple[Sequence[Path], Tensor]
"""Image files, and a tensor with one row of targets per image."""


_CPU = Runtime(torch.device("cpu"))


@dataclass(frozen=True)
class Options(CsvOptions, ImageOptions):
    """Options of the image classifiers."""

    mixup: float = option(0.0, "alpha of mixup (Zhang et al. 2018); 0 = no mixup", at_least=0)
    size: int = option(224, "side length of the network's input, in pixels", at_least=32)
    train_size: int = option(0, "side length in training (smaller is faster); 0 = same as --size", at_least=0)
    fit: str = option("squash", "how an image is made square", choices=("squash", "pad", "crop"))
    min_crop_fraction: float = option(
        0.5, "smallest fraction of the image's area that a random crop covers", above=0, at_most=1
    )
    dropout: float = option(0.2, "fraction of the features dropped in training", at_least=0, below=1)
    tta: bool = option(False, "average over the image and its mirror image, also when served; doubles the cost")


class BaseClassificationLearner(ImageLearner):
    """Trains an image classifier that also returns a class activation map.

    Attributes:
        calibration: set by `to_inference_module`.
    """

    hub_tag: ClassVar[str] = "image-classification"
    default_options: ClassVar[Options] = Options()
    task: Classification
    samples: LabelledImages
    held_out: LabelledImages
    calibration: Calibration

    def _load_samples(self, task: Classification, train: PathsAndTargets, validation: PathsAndTargets) -> None:
        """Set the task and load the training and validation images. Raises CannotTrain."""
        options = self.options
        if not 0 < options.min_crop_fraction <= 1:
            raise CannotTrain(
                f"--min-crop-fraction {options.min_crop_fraction:g}: the fraction must be above 0 and at most 1."
            )
        self.task = task
        size = options.train_size or options.size
        augment = Augmentation(options.min_crop_fraction) if options.augment else None
        self.samples = LabelledImages(
            *train, task, seed=self.settings.seed, augment=augment, size=size, cache_bytes=self.cache_bytes
        )
        self.held_out = LabelledImages(*validation, task, cache_bytes=self.cache_bytes // 4)
        self.samples.fill_cache()
        self.held_out.fill_cache()
        self.targets = self.held_out.targets

    def _new_task(self, labels: tuple[str, ...], thresholds: tuple[float, ...] = ()) -> Classification:
        return Classification(labels, self.options.size, cast(Fit, self.options.fit), thresholds)

    def network(self) -> nn.Module:
        """Return a new classifier, in channels-last memory format (the fastest for convolutions)."""
        options = self.options
        network = Classifier(load_body(options.backbone, self.weights), len(self.task.labels), dropout=options.dropout)
        return network.to(memory_format=torch.channels_last)

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """Return the mean loss of a batch, with mixup if it is enabled."""
        image, target = batch["image"], batch["target"]
        if not self.options.mixup:
            return self._loss_of_logits(network(image)[0], target)
        weight = float(torch.distributions.Beta(self.options.mixup, self.options.mixup).sample())
        partner = torch.randperm(len(target)).to(target.device)
        logits = network(torch.lerp(image[partner].float(), image.float(), weight))[0]
        own_loss, partner_loss = self._loss_of_logits(logits, target), self._loss_of_logits(logits, target[partner])
        return weight * own_loss + (1 - weight) * partner_loss

    def _loss_of_logits(self, logits: Tensor, target: Tensor) -> Tensor:
        raise NotImplementedError

    def _with_tta(self, network: nn.Module) -> nn.Module:
        return FlipTTA(network) if self.options.tta else network

    def _validation_logits(self, network: nn.Module, runtime: Runtime) -> Tensor:
        return collect_outputs(network, ["image"], self.held_out, runtime, batch_size=64)

    def _float32_copy(self, network: nn.Module) -> nn.Module:
        """Return a float32 copy on the CPU, with test-time augmentation if it is enabled."""
        return copy.deepcopy(self._with_tta(network)).float().cpu()

    def _validation_probabilities(self, module: nn.Module) -> NDArray[np.float32]:
        """Return the probabilities (n, classes) that the served or exported module gives the validation images."""
        probabilities: NDArray[np.float32] = self._validation_logits(module, _CPU).numpy()
        return probabilities

    def is_comparable(self, previous: Task) -> bool:
        """Return whether both have the same labels, and fit images into the square in the same way."""
        return (
            super().is_comparable(previous)
            and isinstance(previous, Classification)
            and (previous.labels, previous.fit) == (self.task.labels, self.task.fit)
            and previous.is_multi_label == self.task.is_multi_label
        )

    def _reliability_figure(
        self, uncalibrated: list[tuple[float, float, int]], calibrated: list[tuple[float, float, int]]
    ) -> Figure:
        """Draw the reliability diagram from the bins of the probabilities."""
        if self.calibration.reason:
            bins, note = {"not calibrated": uncalibrated}, self.calibration.caveat
        else:
            bins = {"uncalibrated": uncalibrated, "calibrated": calibrated}
            note = f"Temperature {self.calibration.temperature:.3f}, fitted on the same images."
        return Figure("Reliability", plots.draw_reliability(bins), note)

    def _evidence_figures(
        self, entries: Sequence[tuple[int, int, str]], exported: nn.Module, title: str, note: str
    ) -> tuple[Figure, ...]:
        """Draw validation images beside the activation map of one label each.

        Args:
            entries: (index of the image, index of the label, caption); with none, no figure is drawn.
            exported: runs the exported file.
            title: title of the figure.
            note: note below the figure.
        """
        panels = []
        for index, label, caption in entries:
            batch = self.held_out.__getitems__([(0, index)])
            with torch.no_grad():
                evidence = exported(batch["image"])[1][0, label].numpy()
            name = self.held_out.paths[index].name[:40]
            panels.append((self.held_out.image(index).image, evidence, f"{caption}\n{name}"))
        return (Figure(title, plots.draw_evidence_maps(panels), note),) if panels else ()

    def _temperature_words(self) -> list[str]:
        """Name the temperature among what was chosen on the validation images, if there is one."""
        return [] if self.calibration.reason else [f"the temperature ({self.calibration.temperature:.3f})"]

    def _network_notes(self) -> list[str]:
        tta = ["The graph averages over the image and its mirror image (test-time augmentation)."]
        caveat = self.calibration.caveat
        return [*([caveat] if caveat else []), self._backbone_note(), *(tta if self.options.tta else [])]

    def _downscaled_jpeg(self, index: int) -> bytes:
        """Encode a validation image small enough for the repository: shorter side at most the network's input size."""
        image = self.held_out.image(index).image
        ratio = min(1.0, self.task.size / min(image.size))
        small = image.resize((round(image.width * ratio), round(image.height * ratio)), Image.Resampling.LANCZOS)
        return encode_image(small, "jpeg", quality=85)
