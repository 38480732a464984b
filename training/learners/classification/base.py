"""What the learners of labels of pictures share, be it one label a picture or several."""

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
from tasks.contract import Arrays
from training.core.config import option
from training.core.results import Figure
from training.data.images import LabelledImages, augmentation
from training.engine.inference import collect_outputs
from training.engine.runtime import Batch, Runtime
from training.learners.classification.network import Classifier, FlipTTA
from training.reporting import plots
from training.vision.backbones import load_body
from training.vision.learner import ImageLearner, ImageOptions

Listed = tuple[Sequence[Path], Tensor]
"""Pictures with a row of targets each."""


@dataclass(frozen=True)
class Options(ImageOptions):
    """What can be chosen for labels of pictures."""

    mixup: float = option(0.0, "alpha of mixup (Zhang et al. 2018); 0: none")
    size: int = option(224, "side length of the network's input, in pixels")
    train_size: int = option(0, "the same while training (smaller is faster; 0: as --size)")
    fit: str = option("squash", "how a picture becomes a square", choices=("squash", "pad", "crop"))
    smallest_crop: float = option(0.5, "the least share of the picture that a random crop shows")
    dropout: float = option(0.2, "share of the features that are dropped in training")
    tta: bool = option(False, "average over the picture and its mirror image, also in service: twice the cost")


class ClassesLearner(ImageLearner):
    """Learns labels of pictures, with a map of where each was seen."""

    hub_tag: ClassVar[str] = "image-classification"
    default_options: ClassVar[Options] = Options()
    task: Classification
    samples: LabelledImages
    held_out: LabelledImages

    def _prepare(self, task: Classification, train: Listed, kept: Listed) -> None:
        """Sets the task and the samples: paths and targets to train on, and to validate with."""
        options = self.options
        self.task = task
        size = options.train_size or options.size
        augment = augmentation(size, options.smallest_crop) if options.augment else None
        self.samples = LabelledImages(
            *train, task, seed=self.trained_with.seed, augment=augment, size=size, cache_bytes=self.cache_bytes
        )
        self.held_out = LabelledImages(*kept, task, cache_bytes=self.cache_bytes // 4)
        self.samples.fill_cache()
        self.held_out.fill_cache()
        self.targets = self.held_out.targets

    def _new_task(self, labels: tuple[str, ...], thresholds: tuple[float, ...] = ()) -> Classification:
        return Classification(labels, self.options.size, cast(Fit, self.options.fit), thresholds)

    def network(self) -> nn.Module:
        """The classifier; channels last, the layout that convolutions run fastest in."""
        options = self.options
        network = Classifier(load_body(options.backbone, self.weights), len(self.task.labels), dropout=options.dropout)
        return network.to(memory_format=torch.channels_last)

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """The loss of the logits, of mixed pictures where mixup is on."""
        image, target = batch["image"], batch["target"]
        if not self.options.mixup:
            return self._loss(network(image)[0], target)
        share = float(torch.distributions.Beta(self.options.mixup, self.options.mixup).sample())
        other = torch.randperm(len(target)).to(target.device)
        logits = network(torch.lerp(image[other].float(), image.float(), share))[0]
        return share * self._loss(logits, target) + (1 - share) * self._loss(logits, target[other])

    def _loss(self, logits: Tensor, target: Tensor) -> Tensor:
        raise NotImplementedError

    def _whole(self, network: nn.Module) -> nn.Module:
        return FlipTTA(network) if self.options.tta else network

    def _logits(self, network: nn.Module, runtime: Runtime) -> Tensor:
        """Of the validation pictures."""
        return collect_outputs(network, ["image"], self.held_out, runtime, batch_size=64)

    def _on_cpu(self, network: nn.Module) -> nn.Module:
        """A copy of the whole network in float32."""
        return copy.deepcopy(self._whole(network)).float().cpu()

    def _probabilities(self, served: nn.Module) -> NDArray[np.float32]:
        array: NDArray[np.float32] = self._logits(served, Runtime(torch.device("cpu"))).numpy()
        return array

    def _shown(
        self, chosen: Sequence[tuple[int, int, str]], served: nn.Module, title: str, note: str
    ) -> tuple[Figure, ...]:
        """A figure of validation pictures, each with what speaks for a label, from (index, label, caption)."""
        shown = []
        for index, label, caption in chosen:
            batch = self.held_out.__getitems__([(0, index)])
            with torch.no_grad():
                evidence = served(batch["image"])[1][0, label].numpy()
            name = self.held_out.paths[index].name[:40]
            shown.append((self.held_out.image(index).image, evidence, f"{caption}\n{name}"))
        return (Figure(title, plots.draw_evidence_maps(shown), note),) if shown else ()

    def _notes_on_the_network(self) -> list[str]:
        mirrored = ["The graph averages over the picture and its mirror image (test-time augmentation)."]
        return [self._backbone_note(), *(mirrored if self.options.tta else [])]

    def validation_inputs(self, count: int) -> Arrays:
        """Pictures from all over the validation set."""
        chosen = np.linspace(0, len(self.held_out) - 1, min(count, len(self.held_out))).round().astype(int)
        return {"image": self.held_out.__getitems__([(0, int(index)) for index in chosen])["image"].numpy()}

    def _small_jpeg(self, index: int) -> bytes:
        """A validation picture, small enough for a repository: its shorter side no longer than the network sees."""
        image = self.held_out.image(index).image
        ratio = min(1.0, self.task.size / min(image.size))
        small = image.resize((round(image.width * ratio), round(image.height * ratio)), Image.Resampling.LANCZOS)
        return encode_image(small, "jpeg", quality=85)
