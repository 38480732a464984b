"""Evaluation of a segmentation network on the validation images."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.manifest import Metric
from training.core.results import Comparison, Evaluation, Figure, Table
from training.engine.runtime import Batch
from training.evaluation import calibration, classification
from training.evaluation.calibration import Calibration
from training.evaluation.comparison import compare_statistics
from training.learners.segmentation.classes import IGNORED
from training.learners.segmentation.dataset import MaskedImages
from training.learners.segmentation.plots import draw_confusion_percentages, draw_mask_comparison, overlay_mask
from training.reporting import plots

Matrix = NDArray[np.integer]
Floats = NDArray[np.floating]
_MAX_SHOWN = 8
_PIXELS_PER_IMAGE = 1000
"""Pixels per image used for calibration. Neighbouring pixels are nearly identical, so more would add little."""
_MIN_CALIBRATION_IMAGES = 20
_MIN_CONFUSION = 0.01
_MIN_FOR_INTERVAL = 5
"""With fewer images, resampling them says little about the uncertainty of their mean."""


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
    """Return the mean IoU over the classes that occur or are predicted; 0 if no pixel is known."""
    ious = class_ious(matrix)
    return 0.0 if np.isnan(ious).all() else float(np.nanmean(ious))


def select_pixels(target: Tensor) -> Tensor:
    """Return the positions of up to 1,000 known pixels per image, evenly spaced, in the flattened target (n, h, w)."""
    known = torch.nonzero(target.flatten() != IGNORED).squeeze(1)
    count = min(len(known), _PIXELS_PER_IMAGE * len(target))
    return known[torch.linspace(0, max(0, len(known) - 1), count).long()]


@dataclass(frozen=True)
class CalibrationPixels:
    """Some pixels of the validation images, with what the exported file does not return of them.

    Attributes:
        logits: uncalibrated, float32 (m, classes).
        targets: class indices, int64 (m,).
        images: the image that each is of, (m,).
    """

    logits: Tensor
    targets: Tensor
    images: NDArray[np.intp]

    @classmethod
    def collect(cls, outputs: Iterable[tuple[Batch, Tensor]], held_out: MaskedImages) -> "CalibrationPixels":
        """Collect them from batches of validation samples with their logits (n, classes, h, w)."""
        logits, targets, images = [], [], []
        image_of_sample = np.array([image for image, _ in held_out.windows])
        for batch, batch_logits in outputs:
            positions = select_pixels(batch["target"])
            samples = batch["index"][positions // batch["target"][0].numel()]
            logits.append(batch_logits.permute(0, 2, 3, 1).flatten(0, 2)[positions])
            targets.append(batch["target"].flatten()[positions].long())
            images.append(image_of_sample[samples.numpy()])
        return cls(torch.cat(logits), torch.cat(targets), np.concatenate(images))

    def calibrate(self) -> Calibration:
        """Fit the temperature, unless there are fewer than 20 images.

        Images are counted, not pixels: neighbouring pixels err together. But an image is worth many samples of other
        tasks, since the borders and objects in it are recognised or missed independently of each other. On CamVid's
        validation frames, the logarithm of a temperature has a standard deviation of 0.02 if fitted on 20 frames, and
        of 0.13 if fitted on 200 independent pixels; images that resemble each other less need more.
        """
        count = len(set(self.images.tolist()))
        return calibration.calibrate(
            self.logits, self.targets, "validation images", count=count, minimum=_MIN_CALIBRATION_IMAGES
        )

    def confidence(self) -> Floats:
        """Return the largest probability of each pixel before calibration, (m,)."""
        confidence: Floats = self.logits.softmax(dim=1).amax(dim=1).numpy()
        return confidence

    def cross_fitted_confidence(self) -> Floats:
        """Return the largest probability of each pixel, at the temperature fitted on the other half of the images."""
        logits = calibration.cross_fit(self.logits, self.targets, groups=self.images)
        confidence: Floats = logits.softmax(dim=1).amax(dim=1).numpy()
        return confidence


@dataclass
class ValidationResults:
    """What the exported file returns for the validation images.

    Attributes:
        held_out: the validation images.
        matrices: counts by (true, predicted) class of each image, (n, classes, classes).
        confidence: confidences of the pixels that CalibrationPixels has too, (m,).
        correct: whether their predicted class is the true one, (m,).
        worst: (IoU, sample, predicted mask) of the samples with the lowest class-mean IoU, lowest first.
    """

    held_out: MaskedImages
    matrices: Matrix
    confidence: Floats
    correct: NDArray[np.bool_]
    worst: list[tuple[float, int, NDArray[np.uint8]]] = field(default_factory=list)

    @classmethod
    def collect(
        cls, outputs: Iterable[tuple[Batch, tuple[Tensor, ...]]], held_out: MaskedImages
    ) -> "ValidationResults":
        """Collect the results from batches of validation samples with their masks and confidences × 255."""
        classes = len(held_out.task.labels)
        matrices = np.zeros((len(held_out.pairs), classes, classes), np.int64)
        confidence, correct, worst = [], [], []
        for batch, (masks, levels, *_) in outputs:
            positions = select_pixels(batch["target"])
            confidence.append(levels.flatten()[positions].float() / 255)
            correct.append(masks.flatten()[positions] == batch["target"].flatten()[positions])
            for index, mask, target in zip(batch["index"].tolist(), masks, batch["target"], strict=True):
                matrix = confusion_counts(mask, target, classes).numpy()
                matrices[held_out.windows[index][0]] += matrix
                if matrix.any():
                    worst.append((class_mean_iou(matrix), index, mask.numpy()))
            worst = sorted(worst, key=lambda entry: entry[:2])[:_MAX_SHOWN]
        return cls(held_out, matrices, torch.cat(confidence).numpy(), torch.cat(correct).numpy(), worst)

    @property
    def labels(self) -> tuple[str, ...]:
        """The class labels."""
        return self.held_out.task.labels

    @property
    def matrix(self) -> Matrix:
        """Counts by (true, predicted) class over all validation pixels."""
        matrix: Matrix = self.matrices.sum(axis=0)
        return matrix

    def image_ious(self) -> Floats:
        """Return the class-mean IoU of each image, (n,); NaN for an image without a known pixel."""
        return np.array([class_mean_iou(matrix) if matrix.any() else np.nan for matrix in self.matrices])

    def calibration_error(self, confidence: Floats) -> float:
        """Return the calibration error of confidences (m,) in the predicted classes."""
        return calibration.mean_calibration_gap(calibration.bin_by_confidence(confidence, self.correct))


def evaluate_results(
    results: ValidationResults,
    pixels: CalibrationPixels,
    fitted: Calibration,
    samples: MaskedImages,
    train_counts: Matrix,
    notes: Sequence[str],
) -> Evaluation:
    """Compile metrics, tables, figures, failures and the comparison with a constant.

    Args:
        results: the results on the validation images.
        pixels: the validation pixels that the temperature was fitted on, if it was.
        fitted: the temperature.
        samples: the training images, to show their augmentation.
        train_counts: pixels of each label in the training images.
        notes: sentences for the report.
    """
    labels, matrix, palette = results.labels, results.matrix, results.held_out.task.palette
    return Evaluation(
        metrics=(*_metrics(results, matrix), *_calibration_metrics(results, pixels, fitted)),
        notes=(*notes, _confidence_note(results), *([fitted.caveat] if fitted.reason else [])),
        tables=(_per_class_table(matrix, train_counts, labels), _most_confused_table(matrix, labels)),
        figures=(
            *_worst_masks(results),
            *_iou_figure(matrix, labels),
            Figure("Confusion matrix", draw_confusion_percentages(matrix, labels), "In percent of each true class."),
            _reliability_figure(results, pixels, fitted),
            Figure(
                "One image with different augmentations",
                plots.draw_image_grid(_augmentations(samples, palette)),
                "The first training image in eight epochs, with its mask overlaid.",
            ),
        ),
        failures=describe_failures(matrix, labels),
        caveats=(fitted.caveat,) if fitted.reason else (),
        comparisons=(compare_with_majority(results, train_counts),),
    )


def _metrics(results: ValidationResults, matrix: Matrix) -> tuple[Metric, ...]:
    images = f"{len(results.held_out.pairs):,} validation images, void excluded"
    true_counts, correct = matrix.sum(axis=1), np.diagonal(matrix)
    present = true_counts > 0
    recall = correct[present] / true_counts[present]
    measured = int((~np.isnan(class_ious(matrix))).sum())
    of_all = "" if measured == len(results.labels) else f" of {len(results.labels)}, those that occur"
    return (
        Metric(
            name="mean_iou",
            value=class_mean_iou(matrix),
            protocol=f"mean intersection over union of {measured} classes{of_all}, from one confusion matrix over "
            f"all pixels of {images}",
        ),
        Metric(
            name="pixel_accuracy",
            value=float(correct.sum() / max(1, int(matrix.sum()))),
            protocol=f"fraction of correct pixels in {images}",
        ),
        Metric(
            name="mean_class_accuracy",
            value=float(recall.mean()) if len(recall) else 0.0,
            protocol=f"mean recall of the classes, {images}",
        ),
    )


def _calibration_metrics(
    results: ValidationResults, pixels: CalibrationPixels, fitted: Calibration
) -> tuple[Metric, ...]:
    """Return the calibration errors after and before temperature scaling; the former is cross-fitted."""
    count, images = len(results.correct), len(results.held_out.pairs)
    protocol = (
        f"expected calibration error, {calibration.BINS} bins of equal width, {count:,} pixels of {images:,} "
        "validation images, void excluded"
    )
    if fitted.reason:
        error = results.calibration_error(results.confidence)
        return (Metric(name="calibration_error", value=error, protocol=f"{protocol}, not calibrated"),)
    return (
        Metric(
            name="calibration_error",
            value=results.calibration_error(pixels.cross_fitted_confidence()),
            protocol=f"{protocol}, each half of the images with the temperature fitted on the other",
        ),
        Metric(
            name="calibration_error_before",
            value=results.calibration_error(pixels.confidence()),
            protocol=f"{protocol}, uncalibrated",
        ),
    )


def _reliability_figure(results: ValidationResults, pixels: CalibrationPixels, fitted: Calibration) -> Figure:
    bins = {"not calibrated": calibration.bin_by_confidence(results.confidence, results.correct)}
    if fitted.reason:
        return Figure("Reliability", plots.draw_reliability(bins), f"Per pixel. {fitted.caveat}")
    bins = {
        "uncalibrated": calibration.bin_by_confidence(pixels.confidence(), results.correct),
        "calibrated": bins["not calibrated"],
    }
    return Figure("Reliability", plots.draw_reliability(bins), f"Per pixel; temperature {fitted.temperature:.3f}.")


def compare_with_majority(results: ValidationResults, train_counts: Matrix) -> Comparison:
    """Compare the mean IoU with that of predicting the most frequent training class everywhere."""
    majority = int(train_counts.argmax())
    true_counts = results.matrices.sum(axis=2)
    constant = np.zeros_like(results.matrices)
    constant[:, :, majority] = true_counts
    return compare_statistics(
        "mean_iou",
        f"always predicting '{results.labels[majority]}'",
        (MeanIou.of(results.matrices), MeanIou.of(constant)),
        len(results.matrices),
        samples="validation images",
        is_constant=True,
    )


@dataclass(frozen=True)
class MeanIou:
    """Computes the class-mean IoU of any selection of images.

    Attributes:
        intersections: pixels of each image and class that are predicted correctly, (n, classes).
        unions: pixels of each image that are of the class or predicted as it, (n, classes).
    """

    intersections: Matrix
    unions: Matrix

    @classmethod
    def of(cls, matrices: Matrix) -> "MeanIou":
        """Prepare counts by image and (true, predicted) class, (n, classes, classes)."""
        intersections = np.diagonal(matrices, axis1=1, axis2=2)
        return cls(intersections, matrices.sum(axis=1) + matrices.sum(axis=2) - intersections)

    def __call__(self, images: NDArray[np.intp]) -> float:
        """Return the class-mean IoU of the images with these indices, which may repeat."""
        intersections, unions = self.intersections[images].sum(axis=0), self.unions[images].sum(axis=0)
        return float((intersections[unions > 0] / unions[unions > 0]).mean()) if unions.any() else 0.0


def _confidence_note(results: ValidationResults, draws: int = 1000) -> str:
    """Describe the 95 % bootstrap interval of the class-mean IoU over images."""
    count = len(results.matrices)
    if count < _MIN_FOR_INTERVAL:
        images = "One validation image is" if count == 1 else f"{count} validation images are"
        return f"{images} too few for a confidence interval."
    random, mean_iou = np.random.default_rng(0), MeanIou.of(results.matrices)
    low, high = np.quantile([mean_iou(random.integers(0, count, count)) for _ in range(draws)], (0.025, 0.975))
    return (
        f"The 95 % confidence interval of the class-mean IoU is {low:.3f} to {high:.3f} (bootstrap over images; too "
        "narrow if the images are frames of one video)."
    )


def _per_class_table(matrix: Matrix, train_counts: Matrix, labels: Sequence[str]) -> Table:
    correct, true_counts, predicted_counts = np.diagonal(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    ious = class_ious(matrix)

    def ratio(numerator: int, denominator: int) -> str:
        return f"{numerator / denominator:.3f}" if denominator else "–"

    rows = tuple(
        (
            name,
            "–" if np.isnan(ious[i]) else f"{ious[i]:.3f}",
            ratio(correct[i], predicted_counts[i]),
            ratio(correct[i], true_counts[i]),
            f"{train_counts[i] / max(train_counts.sum(), 1):.2%}",
            f"{true_counts[i] / max(true_counts.sum(), 1):.2%}",
        )
        for i, name in enumerate(labels)
    )
    header = ("class", "IoU", "precision", "recall", "of training pixels", "of validation pixels")
    absent = [f"'{name}'" for name, count in zip(labels, true_counts, strict=True) if not count]
    note = f"In no validation mask: {', '.join(absent)}." if absent else ""
    return Table("Per class", header, rows, note)


def _most_confused_table(matrix: Matrix, labels: Sequence[str]) -> Table:
    table = classification.most_confused_table(matrix, labels)
    return table if table.rows else replace(table, note="No validation pixel was given another class than its own.")


def _iou_figure(matrix: Matrix, labels: Sequence[str]) -> tuple[Figure, ...]:
    """Draw the IoU of the classes that occur or are predicted."""
    ious = class_ious(matrix)
    measured = np.flatnonzero(~np.isnan(ious)).tolist()
    if not measured:
        return ()
    bars = plots.draw_bars([labels[i] for i in measured], ious[measured].tolist(), "", "IoU")
    return (Figure("IoU per class", bars),)


def describe_failures(matrix: Matrix, labels: Sequence[str]) -> tuple[str, ...]:
    """Describe the class with the lowest IoU, classes that are predicted but never true, and frequent confusions.

    Without a mistake there are none. `matrix` holds counts of pixels (true class, predicted class).
    """
    true_counts, correct = matrix.sum(axis=1), np.diagonal(matrix)
    ious = np.where(true_counts > 0, class_ious(matrix), np.nan)
    sentences = []
    if (ious < 1).any():
        weakest = int(np.nanargmin(ious))
        found = _percent(correct[weakest], true_counts[weakest])
        sentences.append(
            f"The weakest class is '{labels[weakest]}': IoU {ious[weakest]:.2f}, {found} of its pixels are found."
        )
    for i in np.flatnonzero((true_counts == 0) & (matrix.sum(axis=0) > 0)).tolist():
        pixels = int(matrix[:, i].sum())
        sentences.append(
            f"'{labels[i]}' is in no validation mask, but {pixels:,} {'pixel was' if pixels == 1 else 'pixels were'} "
            "predicted as it."
        )
    fractions = matrix / np.maximum(true_counts[:, None], 1)
    pairs = [(float(fractions[i, j]), i, j) for i in range(len(labels)) for j in range(len(labels)) if i != j]
    confusions = [
        f"{fraction:.0%} of the pixels of '{labels[i]}' were predicted as '{labels[j]}'."
        for fraction, i, j in sorted(pairs, reverse=True)[:5]
        if fraction >= _MIN_CONFUSION
    ]
    return (*sentences, *confusions)


def _percent(count: int, total: int) -> str:
    """Format a fraction so that all and none are said only where they are meant."""
    if count == total:
        return "all"
    return "none" if not count else f"{min(max(count / total, 0.001), 0.999):.1%}"


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
    return (
        Figure("Masks with the lowest IoU", comparison, "By the mean IoU of the classes in the image, lowest first."),
    )


def _augmentations(samples: MaskedImages, palette: Sequence[tuple[int, int, int]]) -> list[NDArray[np.uint8]]:
    batches = [samples.__getitems__([(epoch, 0)]) for epoch in range(8)]
    return [overlay_mask(batch["image"][0].numpy(), batch["target"][0].numpy(), palette) for batch in batches]
