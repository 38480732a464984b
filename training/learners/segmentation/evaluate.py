"""What is known of a network that labels pixels, from its answers to the validation pictures."""

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
from training.learners.segmentation import plots as segmentation_plots
from training.learners.segmentation.dataset import IGNORED, MaskedImages
from training.learners.segmentation.network import labelled
from training.reporting import plots

Matrix = NDArray[np.integer]
Floats = NDArray[np.floating]
_SHOWN = 8
_PIXELS_OF_A_PICTURE = 1000
"""For temperature and calibration: neighbouring pixels say nearly the same, so more of them would not know more."""


def confusions(said: Tensor, target: Tensor, classes: int) -> Tensor:
    """Counts of pixels, int64 (classes, classes) as (is, said); those without a label are left out."""
    known = target != IGNORED
    places = target[known].long() * classes + said[known].long()
    return torch.bincount(places, minlength=classes * classes).view(classes, classes)


def class_ious(matrix: Matrix) -> Floats:
    """Intersection over union of each class from counts (…, classes, classes); NaN for one that is nowhere."""
    right = np.diagonal(matrix, axis1=-2, axis2=-1).astype(float)
    union = matrix.sum(axis=-1) + matrix.sum(axis=-2) - right
    found: Floats = np.divide(right, union, out=np.full(right.shape, np.nan), where=union > 0)
    return found


def class_mean_iou(matrix: Matrix) -> float:
    """The mean of the classes' IoUs, of those that occur or were said."""
    return float(np.nanmean(class_ious(matrix)))


def some_pixels(batch: Batch, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Evenly spread pixels of a batch that have a label: logits (n, classes) and targets (n,)."""
    target = batch["target"].flatten()
    known = torch.nonzero(target != IGNORED).squeeze(1)
    wanted = min(len(known), _PIXELS_OF_A_PICTURE * len(logits))
    chosen = known[torch.linspace(0, max(0, len(known) - 1), wanted).long()]
    return logits.permute(0, 2, 3, 1).flatten(0, 2)[chosen], target[chosen].long()


@dataclass
class Evidence:
    """What the validation pictures showed.

    Attributes:
        held_out: the pictures.
        temperature: with which the logits are calibrated.
        matrices: counts (is, said) for each sample, (n, classes, classes).
        logits: of some pixels, (m, classes), before calibration.
        targets: of these pixels, (m,).
        worst: (IoU, sample, what was said) of the samples with the lowest class-mean IoU, the worst first.
    """

    held_out: MaskedImages
    temperature: float
    matrices: Matrix
    logits: Floats
    targets: Matrix
    worst: list[tuple[float, int, NDArray[np.uint8]]] = field(default_factory=list)

    @classmethod
    def gathered(
        cls, answers: Iterable[tuple[Batch, Tensor]], held_out: MaskedImages, temperature: float
    ) -> "Evidence":
        """From each batch of the validation samples with its logits; only what is said here is kept of them."""
        matrices, pixels, worst = [], [], []
        for batch, logits in answers:
            said = labelled(logits / temperature)[0]
            pixels.append(some_pixels(batch, logits))
            for index, one, target in zip(batch["index"].tolist(), said, batch["target"], strict=True):
                matrices.append(confusions(one, target, logits.shape[1]).numpy())
                if matrices[-1].any():
                    worst.append((class_mean_iou(matrices[-1]), index, one.numpy()))
            worst = sorted(worst, key=lambda each: each[:2])[:_SHOWN]
        kept, targets = (torch.cat(parts).numpy() for parts in zip(*pixels, strict=True))
        return cls(held_out, temperature, np.stack(matrices), kept, targets, worst)

    @property
    def labels(self) -> tuple[str, ...]:
        """Of the classes."""
        return self.held_out.task.labels

    @property
    def matrix(self) -> Matrix:
        """Counts (is, said) over all validation pixels."""
        found: Matrix = self.matrices.sum(axis=0)
        return found

    def probabilities(self, temperature: float) -> Floats:
        """Of the kept pixels, (m, classes)."""
        found: Floats = torch.from_numpy(self.logits / temperature).softmax(dim=1).numpy()
        return found


def findings(evidence: Evidence, samples: MaskedImages, counts: Matrix, notes: Sequence[str]) -> Evaluation:
    """Figures, tables and failures; `counts` are the labels' pixels in the training pictures."""
    labels, matrix, palette = evidence.labels, evidence.matrix, evidence.held_out.task.palette
    before, after = evidence.probabilities(1.0), evidence.probabilities(evidence.temperature)
    bins = {
        "as trained": calibration.reliability_bins(before, evidence.targets),
        "calibrated": calibration.reliability_bins(after, evidence.targets),
    }
    confused = classification.most_confused_table(matrix, labels)
    return Evaluation(
        metrics=_metrics(evidence, matrix, before, after),
        notes=(*notes, _certainty(evidence)),
        tables=(_per_class(matrix, counts, labels), confused),
        figures=(
            *_worst(evidence),
            Figure("IoU of each class", plots.draw_bars(labels, np.nan_to_num(class_ious(matrix)).tolist(), "", "IoU")),
            Figure("Confusion matrix", segmentation_plots.shares(matrix, labels), "In hundredths of each class."),
            Figure("Reliability", plots.draw_reliability(bins), f"Of pixels; temperature {evidence.temperature:.3f}."),
            Figure(
                "One picture as training sees it",
                plots.draw_image_grid(_variations(samples, palette)),
                "The first training picture in eight epochs, its labels laid over it.",
            ),
        ),
        failures=_failures(matrix, labels),
    )


def _metrics(evidence: Evidence, matrix: Matrix, before: Floats, after: Floats) -> tuple[Metric, ...]:
    pictures = f"{len(evidence.held_out.pairs)} validation pictures, void left out"
    recall = np.diagonal(matrix)[matrix.sum(axis=1) > 0] / matrix.sum(axis=1)[matrix.sum(axis=1) > 0]
    some = f"{len(evidence.targets):,} pixels of {pictures}"
    ece = calibration.expected_calibration_error
    bins = f"expected calibration error, {calibration.BINS} bins of equal width, {some}"
    return (
        Metric(
            name="mean_iou",
            value=class_mean_iou(matrix),
            protocol=f"mean over {len(evidence.labels)} classes of intersection over union, from one confusion matrix "
            f"over all pixels of {pictures}",
        ),
        Metric(
            name="pixel_accuracy",
            value=float(np.diagonal(matrix).sum() / matrix.sum()),
            protocol=f"share of all pixels of {pictures}, whose label is right",
        ),
        Metric(
            name="mean_class_accuracy",
            value=float(recall.mean()),
            protocol=f"mean over the classes of the share of its pixels that are found, {pictures}",
        ),
        Metric(
            name="calibration_error",
            value=ece(after, evidence.targets),
            protocol=f"{bins}, calibrated on the same",
        ),
        Metric(
            name="calibration_error_before", value=ece(before, evidence.targets), protocol=f"{bins}, before calibration"
        ),
    )


def _certainty(evidence: Evidence, draws: int = 1000) -> str:
    """The 95 % interval of the class-mean IoU, from pictures drawn anew (bootstrap)."""
    count = len(evidence.matrices)
    random = np.random.default_rng(0)
    weights = random.multinomial(count, np.full(count, 1 / count), size=draws)
    drawn = np.tensordot(weights, evidence.matrices, axes=1)
    with np.errstate(invalid="ignore"):
        low, high = np.quantile(np.nanmean(class_ious(drawn), axis=1), (0.025, 0.975))
    return (
        f"With other pictures of the same kind the class-mean IoU would lie between {low:.3f} and {high:.3f} (95 %, "
        "bootstrap over pictures; less sure than that where pictures are frames of one film)."
    )


def _per_class(matrix: Matrix, counts: Matrix, labels: Sequence[str]) -> Table:
    right, is_, said = np.diagonal(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    ious = class_ious(matrix)
    rows = tuple(
        (
            name,
            f"{ious[i]:.3f}",
            f"{right[i] / max(said[i], 1):.3f}",
            f"{right[i] / max(is_[i], 1):.3f}",
            f"{counts[i] / max(counts.sum(), 1):.2%}",
            f"{is_[i] / max(is_.sum(), 1):.2%}",
        )
        for i, name in enumerate(labels)
    )
    header = ("class", "IoU", "precision", "recall", "of the training pixels", "of the validation pixels")
    return Table("Per class", header, rows)


def _failures(matrix: Matrix, labels: Sequence[str]) -> tuple[str, ...]:
    is_ = matrix.sum(axis=1)
    parts = matrix / np.maximum(is_[:, None], 1)
    pairs = [(float(parts[i, j]), i, j) for i in range(len(labels)) for j in range(len(labels)) if i != j]
    said = [
        f"{share:.0%} of the pixels of {labels[i]} were called {labels[j]}."
        for share, i, j in sorted(pairs, reverse=True)[:5]
        if share >= 0.01
    ]
    ious = class_ious(matrix)
    weakest = int(np.nanargmin(ious))
    found = matrix[weakest, weakest] / max(is_[weakest], 1)
    weak = f"Its weakest class is {labels[weakest]}: IoU {ious[weakest]:.2f}, {found:.0%} of its pixels are found."
    return (weak, *said)


def _worst(evidence: Evidence) -> tuple[Figure, ...]:
    """The pictures with the lowest class-mean IoU."""
    shown = []
    for iou, index, said in evidence.worst:
        batch = evidence.held_out.__getitems__([(0, index)])
        name = evidence.held_out.paths[evidence.held_out.places[index][0]].name[:32]
        shown.append((batch["image"][0].numpy(), batch["target"][0].numpy(), said, f"{name}: IoU {iou:.2f}"))
    if not shown:
        return ()
    strips = segmentation_plots.strips(shown, evidence.labels, evidence.held_out.task.palette)
    return (Figure("Worst masks", strips, "The lowest mean IoU over the classes in the picture first."),)


def _variations(samples: MaskedImages, palette: Sequence[tuple[int, int, int]]) -> list[NDArray[np.uint8]]:
    batches = [samples.__getitems__([(epoch, 0)]) for epoch in range(8)]
    return [
        segmentation_plots.overlaid(batch["image"][0].numpy(), batch["target"][0].numpy(), palette) for batch in batches
    ]
