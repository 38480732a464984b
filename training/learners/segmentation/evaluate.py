"""Evaluation of a segmentation network on the validation images."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.manifest import Metric
from training.core.results import Evaluation, Figure, Table
from training.engine.runtime import Batch
from training.evaluation import calibration, classification
from training.learners.segmentation.classes import IGNORED
from training.learners.segmentation.dataset import MaskedImages
from training.learners.segmentation.network import decode_logits
from training.learners.segmentation.plots import draw_confusion_percentages, draw_mask_comparison, overlay_mask
from training.reporting import plots

Matrix = NDArray[np.integer]
Floats = NDArray[np.floating]
_MAX_SHOWN = 8
_PIXELS_PER_IMAGE = 1000
"""Pixels per image used for calibration. Neighbouring pixels are nearly identical, so more would add little."""


def confusion_counts(predicted: Tensor, target: Tensor, classes: int) -> Tensor:
    """Count pixels by (true, predicted) class, int64 (classes, classes); unlabelled pixels are left out."""
    known = target != IGNORED
    cells = target[known].long() * classes + predicted[known].long()
    return torch.bincount(cells, minlength=classes * classes).view(classes, classes)


def class_ious(matrix: Matrix) -> Floats:
    """Return the IoU of each class from counts (…, classes, classes); NaN for a class that does not occur."""
    intersection = np.diagonal(matrix, axis1=-2, axis2=-1).astype(float)
    union = matrix.sum(axis=-1) + matrix.sum(axis=-2) - intersection
    ious: Floats = np.divide(intersection, union, out=np.full(intersection.shape, np.nan), where=union > 0)
    return ious


def class_mean_iou(matrix: Matrix) -> float:
    """Return the mean IoU over the classes that occur or are predicted."""
    return float(np.nanmean(class_ious(matrix)))


def sample_pixels(batch: Batch, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Select evenly spaced labelled pixels of a batch; return their logits (n, classes) and targets (n,)."""
    target = batch["target"].flatten()
    known = torch.nonzero(target != IGNORED).squeeze(1)
    count = min(len(known), _PIXELS_PER_IMAGE * len(logits))
    selected = known[torch.linspace(0, max(0, len(known) - 1), count).long()]
    return logits.permute(0, 2, 3, 1).flatten(0, 2)[selected], target[selected].long()


@dataclass
class ValidationResults:
    """Results on the validation images.

    Attributes:
        held_out: the validation images.
        temperature: the temperature that calibrates the logits.
        matrices: counts by (true, predicted) class of each sample, (n, classes, classes).
        logits: uncalibrated logits of some pixels, (m, classes).
        targets: targets of these pixels, (m,).
        worst: (IoU, sample, predicted mask) of the samples with the lowest class-mean IoU, lowest first.
    """

    held_out: MaskedImages
    temperature: float
    matrices: Matrix
    logits: Floats
    targets: Matrix
    worst: list[tuple[float, int, NDArray[np.uint8]]] = field(default_factory=list)

    @classmethod
    def collect(
        cls, outputs: Iterable[tuple[Batch, Tensor]], held_out: MaskedImages, temperature: float
    ) -> "ValidationResults":
        """Collect the results from batches of validation samples with their logits, which are not kept."""
        matrices, pixels, worst = [], [], []
        for batch, logits in outputs:
            predicted = decode_logits(logits / temperature)[0]
            pixels.append(sample_pixels(batch, logits))
            for index, mask, target in zip(batch["index"].tolist(), predicted, batch["target"], strict=True):
                matrices.append(confusion_counts(mask, target, logits.shape[1]).numpy())
                if matrices[-1].any():
                    worst.append((class_mean_iou(matrices[-1]), index, mask.numpy()))
            worst = sorted(worst, key=lambda entry: entry[:2])[:_MAX_SHOWN]
        pixel_logits, targets = (torch.cat(parts).numpy() for parts in zip(*pixels, strict=True))
        return cls(held_out, temperature, np.stack(matrices), pixel_logits, targets, worst)

    @property
    def labels(self) -> tuple[str, ...]:
        """The class labels."""
        return self.held_out.task.labels

    @property
    def matrix(self) -> Matrix:
        """Counts by (true, predicted) class over all validation pixels."""
        matrix: Matrix = self.matrices.sum(axis=0)
        return matrix

    def probabilities(self, temperature: float) -> Floats:
        """Return the probabilities of the selected pixels, (m, classes)."""
        probabilities: Floats = torch.from_numpy(self.logits / temperature).softmax(dim=1).numpy()
        return probabilities


def evaluate_results(
    results: ValidationResults, samples: MaskedImages, train_counts: Matrix, notes: Sequence[str]
) -> Evaluation:
    """Compile metrics, tables, figures and failures.

    Args:
        results: the results on the validation images.
        samples: the training images, to show their augmentation.
        train_counts: pixels of each label in the training images.
        notes: sentences for the report.
    """
    labels, matrix, palette = results.labels, results.matrix, results.held_out.task.palette
    uncalibrated, calibrated = results.probabilities(1.0), results.probabilities(results.temperature)
    bins = {
        "uncalibrated": calibration.reliability_bins(uncalibrated, results.targets),
        "calibrated": calibration.reliability_bins(calibrated, results.targets),
    }
    ious = np.nan_to_num(class_ious(matrix)).tolist()
    return Evaluation(
        metrics=_metrics(results, matrix, uncalibrated, calibrated),
        notes=(*notes, _confidence_note(results)),
        tables=(_per_class_table(matrix, train_counts, labels), classification.most_confused_table(matrix, labels)),
        figures=(
            *_worst_masks(results),
            Figure("IoU per class", plots.draw_bars(labels, ious, "", "IoU")),
            Figure("Confusion matrix", draw_confusion_percentages(matrix, labels), "In percent of each true class."),
            Figure("Reliability", plots.draw_reliability(bins), f"Per pixel; temperature {results.temperature:.3f}."),
            Figure(
                "One image with different augmentations",
                plots.draw_image_grid(_augmentations(samples, palette)),
                "The first training image in eight epochs, with its mask overlaid.",
            ),
        ),
        failures=_failures(matrix, labels),
    )


def _metrics(
    results: ValidationResults, matrix: Matrix, uncalibrated: Floats, calibrated: Floats
) -> tuple[Metric, ...]:
    images = f"{len(results.held_out.pairs)} validation images, void excluded"
    recall = np.diagonal(matrix)[matrix.sum(axis=1) > 0] / matrix.sum(axis=1)[matrix.sum(axis=1) > 0]
    ece = calibration.expected_calibration_error
    pixels = f"{len(results.targets):,} pixels of {images}"
    bins = f"expected calibration error, {calibration.BINS} bins of equal width, {pixels}"
    return (
        Metric(
            name="mean_iou",
            value=class_mean_iou(matrix),
            protocol=f"mean intersection over union of {len(results.labels)} classes, from one confusion matrix over "
            f"all pixels of {images}",
        ),
        Metric(
            name="pixel_accuracy",
            value=float(np.diagonal(matrix).sum() / matrix.sum()),
            protocol=f"fraction of correct pixels in {images}",
        ),
        Metric(
            name="mean_class_accuracy",
            value=float(recall.mean()),
            protocol=f"mean recall of the classes, {images}",
        ),
        Metric(
            name="calibration_error",
            value=ece(calibrated, results.targets),
            protocol=f"{bins}, calibrated on the same",
        ),
        Metric(
            name="calibration_error_before",
            value=ece(uncalibrated, results.targets),
            protocol=f"{bins}, uncalibrated",
        ),
    )


def _confidence_note(results: ValidationResults, draws: int = 1000) -> str:
    """Describe the 95 % bootstrap interval of the class-mean IoU over images."""
    count = len(results.matrices)
    random = np.random.default_rng(0)
    weights = random.multinomial(count, np.full(count, 1 / count), size=draws)
    resampled = np.tensordot(weights, results.matrices, axes=1)
    with np.errstate(invalid="ignore"):
        low, high = np.quantile(np.nanmean(class_ious(resampled), axis=1), (0.025, 0.975))
    return (
        f"The 95 % confidence interval of the class-mean IoU is {low:.3f} to {high:.3f} (bootstrap over images; too "
        "narrow if the images are frames of one video)."
    )


def _per_class_table(matrix: Matrix, train_counts: Matrix, labels: Sequence[str]) -> Table:
    correct, true_counts, predicted_counts = np.diagonal(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    ious = class_ious(matrix)
    rows = tuple(
        (
            name,
            f"{ious[i]:.3f}",
            f"{correct[i] / max(predicted_counts[i], 1):.3f}",
            f"{correct[i] / max(true_counts[i], 1):.3f}",
            f"{train_counts[i] / max(train_counts.sum(), 1):.2%}",
            f"{true_counts[i] / max(true_counts.sum(), 1):.2%}",
        )
        for i, name in enumerate(labels)
    )
    header = ("class", "IoU", "precision", "recall", "of training pixels", "of validation pixels")
    return Table("Per class", header, rows)


def _failures(matrix: Matrix, labels: Sequence[str]) -> tuple[str, ...]:
    """Describe the class with the lowest IoU and the most frequent confusions."""
    true_counts = matrix.sum(axis=1)
    fractions = matrix / np.maximum(true_counts[:, None], 1)
    pairs = [(float(fractions[i, j]), i, j) for i in range(len(labels)) for j in range(len(labels)) if i != j]
    confusions = [
        f"{fraction:.0%} of the pixels of {labels[i]} were predicted as {labels[j]}."
        for fraction, i, j in sorted(pairs, reverse=True)[:5]
        if fraction >= 0.01
    ]
    ious = class_ious(matrix)
    weakest = int(np.nanargmin(ious))
    recall = matrix[weakest, weakest] / max(true_counts[weakest], 1)
    return (
        f"The weakest class is {labels[weakest]}: IoU {ious[weakest]:.2f}, {recall:.0%} of its pixels are found.",
        *confusions,
    )


def _worst_masks(results: ValidationResults) -> tuple[Figure, ...]:
    """Show the images with the lowest class-mean IoU."""
    entries = []
    for iou, index, predicted in results.worst:
        batch = results.held_out.__getitems__([(0, index)])
        name = results.held_out.paths[results.held_out.windows[index][0]].name[:32]
        entries.append((batch["image"][0].numpy(), batch["target"][0].numpy(), predicted, f"{name}: IoU {iou:.2f}"))
    if not entries:
        return ()
    comparison = draw_mask_comparison(entries, results.labels, results.held_out.task.palette)
    return (Figure("Worst masks", comparison, "Sorted by the mean IoU of the classes in the image, lowest first."),)


def _augmentations(samples: MaskedImages, palette: Sequence[tuple[int, int, int]]) -> list[NDArray[np.uint8]]:
    batches = [samples.__getitems__([(epoch, 0)]) for epoch in range(8)]
    return [overlay_mask(batch["image"][0].numpy(), batch["target"][0].numpy(), palette) for batch in batches]
