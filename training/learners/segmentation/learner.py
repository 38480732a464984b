"""Semantic segmentation: a U-Net over a pretrained backbone."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tasks._examples import synthetic_scene
from tasks._images import decode_image
from tasks._masks import Colour
from tasks.contract import Arrays, Limits, Task
from tasks.segmentation import Segmentation
from training.core.config import Settings, option
from training.core.errors import CannotTrain
from training.core.results import Evaluation, SampleScores, Trained
from training.engine.inference import iterate_outputs
from training.engine.runtime import Batch, Runtime
from training.evaluation import classification
from training.evaluation.calibration import Calibration
from training.learners.segmentation.classes import IGNORED, Classes, MaskRules, parse_colours
from training.learners.segmentation.dataset import MaskedImages
from training.learners.segmentation.evaluate import (
    CalibrationPixels,
    ValidationResults,
    class_mean_iou,
    confusion_counts,
    evaluate_results,
)
from training.learners.segmentation.mask_folder import read_mask_folder
from training.learners.segmentation.network import Segmenter, ServedSegmenter
from training.vision.backbones import load_body
from training.vision.learner import ImageLearner, ImageOptions

_CPU = Runtime(torch.device("cpu"))
_BATCH_SIZE = 4
"""Validation samples per batch."""
_EXAMPLE_SCENES = 40
"""Synthetic scenes among which the clearest becomes the task's example."""


@dataclass(frozen=True)
class Options(ImageOptions):
    """Options of the segmentation learner."""

    width: int = option(480, "width of the network's input, in pixels", at_least=32)
    height: int = option(360, "height of the network's input, in pixels", at_least=32)
    fit: str = option("pad", "how an image is resized to the input size", choices=("pad", "squash"))
    crop_width: int = option(320, "width of the random crop in training; 0 = whole image", at_least=0)
    crop_height: int = option(256, "height of the random crop in training; 0 = whole image", at_least=0)
    full_resolution: bool = option(
        False, "predict labels at full resolution; otherwise at half, interpolated to full, which is a third faster"
    )
    labels: tuple[str, ...] = option((), "names of the mask values 0, 1, 2, …, if there is no codes.txt")
    values: tuple[str, ...] = option(
        (), "mask value of each label, if not 0, 1, 2, …; of two, such as 0,255, values in between count as the nearer"
    )
    void: int = option(
        -1, "mask value of unlabelled pixels; -1 = the line of codes.txt that says Void, and 255", at_least=-1
    )
    colours: tuple[str, ...] = option(
        (), "colours of the labels, as rrggbb; masks in colour are read by them; default: the masks' palette, if any"
    )
    dice_weight: float = option(0.5, "weight of the soft Dice loss; the cross entropy has weight 1", at_least=0)
    class_weight_power: float = option(
        0.5, "exponent of the inverse-frequency class weights; 0 = equal weights", at_least=0
    )
    dropout: float = option(0.1, "fraction of the channels dropped before the last layer", at_least=0, below=1)


class SegmentationLearner(ImageLearner):
    """Trains a semantic segmentation network from images with masks.

    Attributes:
        calibration, pixels: the temperature, and what it was fitted on; set by `to_inference_module`.
    """

    summary: ClassVar[str] = "classify each pixel of an image; trained on one mask per image"
    data_kind: ClassVar[str] = (
        "a folder with `images` and `masks` of the same names (PNGs of label indices, or black and white), and "
        "optionally codes.txt"
    )
    hub_tag: ClassVar[str] = "image-segmentation"
    default_settings: ClassVar[Settings] = Settings(epochs=20, batch_size=8, rate=2e-3, label_smoothing=0.0)
    default_options: ClassVar[Options] = Options()
    body_name: ClassVar[str] = "unet.body"
    samples: MaskedImages
    held_out: MaskedImages
    calibration: Calibration
    pixels: CalibrationPixels

    def _load_data(self, data: Path) -> None:
        options = self.options
        self.folder = read_mask_folder(
            data,
            MaskRules(options.labels, options.values, options.void, options.colours),
            unreadable=options.unreadable,
            valid_fraction=options.valid_fraction,
            size=max(options.width, options.height),
        )
        classes = self.folder.classes
        fit = cast(Literal["pad", "squash"], options.fit)
        colours = _label_colours(options.colours, classes)
        self.task: Segmentation = Segmentation(classes.labels, options.width, options.height, fit, colours)
        crop = (options.crop_width or options.width, options.crop_height or options.height)
        self.samples = MaskedImages(
            self.folder.train,
            classes,
            self.task,
            seed=self.settings.seed,
            crop=crop,
            augment=options.augment,
            cache_bytes=self.cache_bytes,
        )
        self.held_out = MaskedImages(self.folder.validation, classes, self.task, cache_bytes=self.cache_bytes // 4)
        self.samples.fill_cache()
        self.held_out.fill_cache()
        self.train_counts = self.samples.count_pixels_per_label()
        self.class_weights = _class_weights(self.train_counts, options.class_weight_power)
        if not self.held_out.count_pixels_per_label().any():
            raise CannotTrain(
                f"All pixels of the {len(self.held_out.pairs):,} validation masks are unlabelled (void), so nothing "
                "can be measured. Validate on other images, or check --void and codes.txt."
            )

    def data_summary(self) -> str:
        """Return the counts, the split, and any warnings."""
        folder = self.folder
        counts = f"{len(folder.train):,} pictures to train on, {len(folder.validation):,} to validate"
        return "\n".join([f"{len(folder.classes.labels)} labels, {counts}: {folder.split}.", *folder.warnings])

    def network(self) -> nn.Module:
        """Return a new U-Net, in channels-last memory format (the fastest for convolutions). Raises CannotTrain."""
        options = self.options
        try:
            network = Segmenter(
                load_body(options.backbone, self.weights),
                len(self.task.labels),
                full_resolution=options.full_resolution,
                dropout=options.dropout,
            )
        except ValueError as error:
            raise CannotTrain(f"--backbone {options.backbone} cannot be used in a U-Net: {error}") from None
        return network.to(memory_format=torch.channels_last)

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """Return class-weighted cross entropy plus soft Dice; void pixels count in neither."""
        logits = network(batch["image"])[0]
        target = batch["target"].long()
        known = target != IGNORED
        weights = self.class_weights.to(logits.device)
        # Sum and divide rather than take the mean: a batch that is all void then has loss 0 instead of NaN.
        total = cross_entropy(
            logits,
            target,
            weights,
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=self.settings.label_smoothing,
        )
        loss = total / weights[target[known]].sum().clamp(min=1)
        dice_weight = self.options.dice_weight
        return loss + dice_weight * soft_dice_loss(logits, target, known) if dice_weight else loss

    def scores(self, network: nn.Module, runtime: Runtime) -> dict[str, float]:
        """Return class-mean IoU, pixel accuracy and cross entropy over all validation pixels."""
        classes = len(self.task.labels)
        matrix = torch.zeros(classes, classes, dtype=torch.int64, device=runtime.device)
        loss = torch.zeros(2, dtype=torch.float64, device=runtime.device)
        for batch, (logits,) in iterate_outputs(network, ["image"], self.held_out, runtime, batch_size=_BATCH_SIZE):
            target = batch["target"].long()
            matrix += confusion_counts(logits.argmax(dim=1), target, classes)
            loss[0] += cross_entropy(logits, target, ignore_index=IGNORED, reduction="sum")
            loss[1] += (target != IGNORED).sum()
        runtime.all_reduce_sum(matrix)
        runtime.all_reduce_sum(loss)
        accuracy = matrix.diagonal().sum() / matrix.sum().clamp(min=1)
        return {
            "mean_iou": class_mean_iou(matrix.cpu().numpy()),
            "accuracy": float(accuracy),
            "loss": float(loss[0] / loss[1].clamp(min=1)),
        }

    def _validation_logits(self, network: nn.Module) -> Iterator[tuple[Batch, Tensor]]:
        """Yield the validation batches with their float32 logits, computed on the CPU."""
        for batch, (logits,) in iterate_outputs(network, ["image"], self.held_out, _CPU, batch_size=_BATCH_SIZE):
            yield batch, logits

    def to_inference_module(self, network: nn.Module) -> nn.Module:
        """Return the module to export, calibrated on validation pixels if the images are enough.

        Also sets the task's example scene.
        """
        float32 = copy.deepcopy(network).float().cpu().eval()
        self.pixels = CalibrationPixels.collect(self._validation_logits(float32), self.held_out)
        self.calibration = self.pixels.calibrate()
        served = ServedSegmenter(float32, self.calibration.temperature).eval()
        self.task = replace(self.task, scene=self._clearest_scene(served))
        return served

    def _clearest_scene(self, served: ServedSegmenter) -> int:
        """Return the synthetic scene whose most uncertain pixel has the largest margin.

        The golden requests show this scene, and its mask must come out the same on other machines. Each scene is tried
        with the weights as they are and rounded to the 16 bits they are stored in.
        """
        rounded = copy.deepcopy(served).half().float()
        margins = [
            min(self._min_margin(module, scene) for module in (served, rounded)) for scene in range(_EXAMPLE_SCENES)
        ]
        return int(np.argmax(margins))

    def _min_margin(self, served: ServedSegmenter, scene: int) -> float:
        """Return the margin between the two most likely classes at the scene's most uncertain pixel."""
        image = decode_image(synthetic_scene(scene), max_pixels=Limits().pixels)
        samples = self.task.preprocess(image)
        with torch.no_grad():
            logits = served.network(torch.from_numpy(samples.arrays["image"].copy()))[0][0]
        first, second = (logits / served.temperature).softmax(dim=0).topk(2, dim=0).values.numpy()
        rows, columns = (samples.context.source_indices(axis, size) for axis, size in enumerate(logits.shape[1:]))
        return float((first - second)[rows][:, columns].min())

    def evaluate(self, trained: Sequence[Trained], served: nn.Module, exported: nn.Module) -> Evaluation:
        """Report the IoU of each class, calibration, confusions, and the worst masks beside their images."""
        temperature = [] if self.calibration.reason else [f"the temperature ({self.calibration.temperature:.3f})"]
        notes = [
            f"Split: {self.folder.split}. {self._selection_note(*temperature)}",
            "All metrics are computed over pixels at the network's resolution, without unlabelled (void) pixels.",
            self._backbone_note(),
        ]
        if len(trained) > 1:
            scores = [run.scores["mean_iou"] for run in trained]
            notes.insert(1, f"Class-mean IoU over {len(trained)} seeds: {classification.mean_and_std(scores)}.")
        results = self._validation_results(exported)
        return evaluate_results(results, self.pixels, self.calibration, self.samples, self.train_counts, notes)

    def _validation_results(self, exported: nn.Module) -> ValidationResults:
        outputs = iterate_outputs(exported, ["image"], self.held_out, _CPU, batch_size=_BATCH_SIZE)
        return ValidationResults.collect(outputs, self.held_out)

    def sample_scores(self, exported: nn.Module) -> SampleScores:
        """Return the class-mean IoU of each validation image; NaN for those without a known pixel."""
        return SampleScores("image_mean_iou", self._validation_results(exported).image_ious(), "validation images")

    def is_comparable(self, previous: Task) -> bool:
        """Return whether both have the same labels, and fit images to the input size in the same way."""
        return (
            super().is_comparable(previous)
            and isinstance(previous, Segmentation)
            and (previous.labels, previous.fit) == (self.task.labels, self.task.fit)
        )

    def validation_inputs(self, count: int) -> Arrays:
        """Return at most 12 validation images, since each is as large as fifty of a classifier's."""
        return super().validation_inputs(min(count, 12))

    def training_inputs(self, count: int) -> Arrays:
        """Return at most 64 training images."""
        return super().training_inputs(min(count, 64))

    def golden_requests(self, served: nn.Module) -> tuple[Task, list[dict[str, Any]]]:
        """Return the task's synthetic scene: every photo has uncertain pixels, and masks must be reproducible."""
        return self.task, self.task.examples()


def _label_colours(colours: Sequence[str], classes: Classes) -> tuple[Colour, ...]:
    """Return the given colours, one per label, or those of the masks. Raises CannotTrain."""
    if not colours or classes.reader.colours:
        return classes.colours
    if len(colours) != len(classes.labels):
        raise CannotTrain(f"--colours has {len(colours)} colours for {len(classes.labels)} labels; give one per label.")
    return parse_colours(colours)


def _class_weights(counts: NDArray[np.int64], power: float) -> Tensor:
    """Return (median frequency / frequency)^power for each class, at most 10; 0 for a class that does not occur."""
    present = counts > 0
    median = np.median(counts[present])
    weights = np.where(present, (median / np.maximum(counts, 1)) ** power, 0.0)
    return torch.tensor(np.minimum(weights, 10.0), dtype=torch.float32)


def soft_dice_loss(logits: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Return 1 - mean soft Dice (Milletari et al. 2016) of the classes in the batch, over its known pixels.

    Args:
        logits: (n, classes, height, width).
        target: class indices (n, height, width), int64.
        known: bool (n, height, width), False for void pixels.
    """
    probabilities = logits.softmax(dim=1) * known.unsqueeze(1)
    true_probability = torch.gather(probabilities, 1, target.where(known, 0).unsqueeze(1)) * known.unsqueeze(1)
    classes = logits.shape[1]
    known_target = target[known]
    true_counts = torch.bincount(known_target, minlength=classes).to(logits.dtype)
    overlap = torch.zeros(classes, device=logits.device, dtype=logits.dtype)
    overlap = overlap.index_add(0, known_target, true_probability.squeeze(1)[known])
    dice = 2 * overlap / (probabilities.sum(dim=(0, 2, 3)) + true_counts).clamp(min=1)
    present = true_counts > 0
    return 1 - dice[present].mean() if present.any() else logits.sum() * 0
