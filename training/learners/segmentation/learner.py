"""How the labeller of pixels is trained: our U-Net over a pretrained body."""

import copy
import re
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
from training.core.results import Evaluation, Trained
from training.engine.inference import iterate_outputs
from training.engine.runtime import Batch, Runtime
from training.evaluation import calibration, classification
from training.learners.segmentation.dataset import IGNORED, Classes, MaskedImages, read_masks
from training.learners.segmentation.evaluate import Evidence, class_mean_iou, confusions, findings, some_pixels
from training.learners.segmentation.network import Segmenter, ServedSegmenter
from training.vision.backbones import load_body
from training.vision.learner import ImageLearner, ImageOptions

_CPU = Runtime(torch.device("cpu"))
_AT_ONCE = 4
_SCENES = 40


@dataclass(frozen=True)
class Options(ImageOptions):
    """What can be chosen for masks."""

    width: int = option(480, "of the network's input, in pixels")
    height: int = option(360, "of the network's input, in pixels")
    fit: str = option("pad", "how a picture is brought to that size", choices=("pad", "squash"))
    crop_width: int = option(320, "of the random part that is seen in training (0: the whole picture)")
    crop_height: int = option(256, "the same")
    fine: bool = option(False, "go up to every pixel (--no-fine: to every second, a third faster; between: linear)")
    labels: tuple[str, ...] = option((), "of the indices in the masks, where there is no codes.txt")
    void: int = option(-1, "index of pixels without a label; -1: the line of codes.txt that says Void, and 255")
    colours: tuple[str, ...] = option((), "of the labels, as rrggbb; none: those of the masks' palette, if it has any")
    dice: float = option(0.5, "weight of the soft Dice loss beside the cross entropy")
    balance: float = option(0.5, "power of the class weights: 0: all alike, 1: as much as the class is rare")
    dropout: float = option(0.1, "share of the channels that are dropped before the last layer")


class SegmentationLearner(ImageLearner):
    """Learns the label of each pixel from pictures with masks."""

    summary: ClassVar[str] = "which pixels belong to what? a mask for each picture"
    data_kind: ClassVar[str] = (
        "a folder of `images` and `masks` of the same names (PNGs of label indices), with or without codes.txt"
    )
    hub_tag: ClassVar[str] = "image-segmentation"
    default_settings: ClassVar[Settings] = Settings(epochs=20, batch_size=8, rate=2e-3, label_smoothing=0.0)
    default_options: ClassVar[Options] = Options()
    body_name: ClassVar[str] = "unet.body"
    samples: MaskedImages
    held_out: MaskedImages

    def _load_data(self, data: Path) -> None:
        options = self.options
        self.folder = read_masks(
            data,
            labels=options.labels,
            void=options.void,
            unreadable=options.unreadable,
            valid_fraction=options.valid_fraction,
            size=max(options.width, options.height),
        )
        classes = self.folder.classes
        fit = cast(Literal["pad", "squash"], options.fit)
        self.task: Segmentation = Segmentation(
            classes.labels, options.width, options.height, fit, _colours(options.colours, classes)
        )
        crop = (options.crop_width or options.width, options.crop_height or options.height)
        self.samples = MaskedImages(
            self.folder.train,
            classes,
            self.task,
            seed=self.trained_with.seed,
            crop=crop,
            change=options.augment,
            cache_bytes=self.cache_bytes,
        )
        self.held_out = MaskedImages(self.folder.validation, classes, self.task, cache_bytes=self.cache_bytes // 4)
        self.samples.fill_cache()
        self.held_out.fill_cache()
        self.counts = self.samples.pixels_of_each()
        self.weights_of_classes = _weights(self.counts, options.balance)

    def data_summary(self) -> str:
        """Counts, and what was found on reading."""
        folder = self.folder
        counts = f"{len(folder.train):,} pictures with masks to train on, {len(folder.validation):,} to validate"
        return "\n".join([f"{len(folder.classes.labels)} labels, {counts}: {folder.split}.", *folder.notices])

    def network(self) -> nn.Module:
        """The U-Net; channels last, the layout that convolutions run fastest in. Raises CannotTrain."""
        options = self.options
        try:
            network = Segmenter(
                load_body(options.backbone, self.weights),
                len(self.task.labels),
                fine=options.fine,
                dropout=options.dropout,
            )
        except ValueError as error:
            raise CannotTrain(f"--backbone {options.backbone} does not suit a U-Net: {error}") from None
        return network.to(memory_format=torch.channels_last)

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """Cross entropy, rare classes weighing more, and soft Dice; void counts in neither."""
        logits = network(batch["image"])[0]
        target = batch["target"].long()
        known = target != IGNORED
        weights = self.weights_of_classes.to(logits.device)
        # A sum over weights: a batch that is all void is a loss of 0, and not 0/0.
        total = cross_entropy(
            logits,
            target,
            weights,
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=self.trained_with.label_smoothing,
        )
        loss = total / weights[target[known]].sum().clamp(min=1)
        return loss + self.options.dice * _dice(logits, target, known) if self.options.dice else loss

    def scores(self, network: nn.Module, runtime: Runtime) -> dict[str, float]:
        """Class-mean IoU, pixel accuracy and cross entropy over all validation pixels together."""
        classes = len(self.task.labels)
        matrix = torch.zeros(classes, classes, dtype=torch.int64, device=runtime.device)
        loss = torch.zeros(2, dtype=torch.float64, device=runtime.device)
        for batch, (logits,) in iterate_outputs(network, ["image"], self.held_out, runtime, batch_size=_AT_ONCE):
            target = batch["target"].long()
            matrix += confusions(logits.argmax(dim=1), target, classes)
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

    def _answers(self, network: nn.Module) -> Iterator[tuple[Batch, Tensor]]:
        """The validation samples in batches with their logits, exact, on the CPU."""
        for batch, (logits,) in iterate_outputs(network, ["image"], self.held_out, _CPU, batch_size=_AT_ONCE):
            yield batch, logits

    def to_inference_module(self, network: nn.Module) -> nn.Module:
        """Calibrated on validation pixels; the task gets the example whose answer is clearest."""
        whole = copy.deepcopy(network).float().cpu().eval()
        logits, targets = zip(*(some_pixels(batch, found) for batch, found in self._answers(whole)), strict=True)
        temperature = calibration.fit_temperature(torch.cat(logits), torch.cat(targets))
        served = ServedSegmenter(whole, temperature).eval()
        self.task = replace(self.task, scene=self._clearest_scene(served))
        return served

    def _clearest_scene(self, served: ServedSegmenter) -> int:
        """The synthetic scene of whose pixels the most doubtful is least in doubt: rounding will change none of them.

        That is what a golden request must be: its mask is compared on other machines. The weights are tried as they
        are and in the 16 bits that they are stored in.
        """
        stored = copy.deepcopy(served).half().float()
        margins = [min(self._margin(each, scene) for each in (served, stored)) for scene in range(_SCENES)]
        return int(np.argmax(margins))

    def _margin(self, served: ServedSegmenter, scene: int) -> float:
        """How much likelier the first class is than the second, at the scene's most doubtful pixel."""
        picture = decode_image(synthetic_scene(scene), max_pixels=Limits().pixels)
        samples = self.task.preprocess(picture)
        with torch.no_grad():
            logits = served.network(torch.from_numpy(samples.arrays["image"].copy()))[0][0]
        first, second = (logits / served.temperature).softmax(dim=0).topk(2, dim=0).values.numpy()
        rows, columns = (samples.context.source_indices(axis, size) for axis, size in enumerate(logits.shape[1:]))
        return float((first - second)[rows][:, columns].min())

    def evaluate(self, trained: Sequence[Trained], served: nn.Module) -> Evaluation:
        """IoU of each class, calibration, confusions, and the worst masks beside their pictures."""
        segmenter = cast(ServedSegmenter, served)
        evidence = Evidence.gathered(self._answers(segmenter.network), self.held_out, float(segmenter.temperature))
        notes = [
            f"Split: {self.folder.split}. The best epoch was chosen and the temperature ({segmenter.temperature:.3f}) "
            "fitted on the same validation pictures, so expect a little less on new ones.",
            "All figures are of pixels at the network's resolution, pixels without a label (void) left out.",
            self._backbone_note(),
        ]
        if len(trained) > 1:
            found = [each.scores["mean_iou"] for each in trained]
            notes.insert(1, f"Class-mean IoU over {len(trained)} seeds: {classification.mean_and_std(found)}.")
        return findings(evidence, self.samples, self.counts, notes)

    def validation_inputs(self, count: int) -> Arrays:
        """Pictures from all over the validation set; few, since each is as large as fifty of a classifier's."""
        chosen = np.linspace(0, len(self.held_out) - 1, min(count, 12, len(self.held_out))).round().astype(int)
        return {"image": self.held_out.__getitems__([(0, int(index)) for index in chosen])["image"].numpy()}

    def golden_requests(self, served: nn.Module) -> tuple[Task, list[dict[str, Any]]]:
        """The task's own scene: of real pictures some pixel is always in doubt, and a mask must come out the same."""
        return self.task, self.task.examples()


def _colours(given: Sequence[str], classes: Classes) -> tuple[Colour, ...]:
    """The colours that were given, one for each label, or those of the masks. Raises CannotTrain."""
    if not given:
        return classes.colours
    if len(given) != len(classes.labels):
        raise CannotTrain(f"--colours has {len(given)} colours for {len(classes.labels)} labels: give one for each.")
    if not all(re.fullmatch("[0-9a-fA-F]{6}", colour) for colour in given):
        raise CannotTrain("--colours are to be six hexadecimal digits each, such as 804080.")
    return tuple((*bytes.fromhex(colour),) for colour in given)


def _weights(counts: NDArray[np.int64], power: float) -> Tensor:
    """(median frequency / frequency)^power of each class, 0 for one that does not occur; no more than 10."""
    seen = counts > 0
    median = np.median(counts[seen])
    weights = np.where(seen, (median / np.maximum(counts, 1)) ** power, 0.0)
    return torch.tensor(np.minimum(weights, 10.0), dtype=torch.float32)


def _dice(logits: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """One minus the mean soft Dice (Milletari et al. 2016) of the classes in the batch, over its known pixels."""
    probabilities = logits.softmax(dim=1) * known.unsqueeze(1)
    places = (0, 2, 3)
    right = torch.gather(probabilities, 1, target.where(known, 0).unsqueeze(1)) * known.unsqueeze(1)
    classes = logits.shape[1]
    flat = target[known]
    true = torch.bincount(flat, minlength=classes).to(logits.dtype)
    overlap = torch.zeros(classes, device=logits.device, dtype=logits.dtype)
    overlap = overlap.index_add(0, flat, right.squeeze(1)[known])
    dice = 2 * overlap / (probabilities.sum(dim=places) + true).clamp(min=1)
    present = true > 0
    return 1 - dice[present].mean() if present.any() else logits.sum() * 0
