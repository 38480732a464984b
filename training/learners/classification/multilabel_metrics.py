"""Metrics for several labels per image: thresholds, F scores, a table per label, and a constant baseline."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import binary_cross_entropy_with_logits

from tasks.manifest import Metric
from training.core.results import Table
from training.evaluation import calibration

Probabilities = NDArray[np.floating]
Targets = NDArray[np.integer]
Predictions = NDArray[np.bool_]
_FIXED_THRESHOLD = 0.2


def best_thresholds(probabilities: Probabilities, targets: Targets) -> tuple[float, ...]:
    """Return the threshold with the highest F1 for each label, halfway between two neighbouring probabilities.

    If several are equally good, the middle one is chosen, which is the most robust. A label without positive samples
    gets 0.5.
    """
    return tuple(_best_threshold(probabilities[:, i], targets[:, i]) for i in range(targets.shape[1]))


def _best_threshold(probabilities: Probabilities, targets: Targets) -> float:
    if not targets.any():
        return 0.5
    order = np.argsort(-probabilities, kind="stable")
    ranked = probabilities[order].astype(np.float64)
    true_positives = np.cumsum(targets[order])
    f1 = 2 * true_positives / (np.arange(1, len(ranked) + 1) + targets.sum())
    next_lower = np.append(ranked[1:], 0.0 if ranked[-1] > 0 else -1.0)
    f1[ranked == next_lower] = -1.0  # No threshold separates equal probabilities.
    best = np.flatnonzero(f1 >= f1.max() - 1e-12)
    middle = best[len(best) // 2]
    return max(0.0, float((ranked[middle] + next_lower[middle]) / 2))


def cross_fitted_predictions(probabilities: Probabilities, targets: Targets) -> Predictions:
    """Return predictions (n, labels) with thresholds tuned on one half of the samples and applied to the other."""
    half = calibration.split_halves(len(targets))
    predictions = np.zeros(targets.shape, bool)
    for part in (half, ~half):
        predictions[part] = probabilities[part] >= best_thresholds(probabilities[~part], targets[~part])
    return predictions


def f_score(predictions: Predictions, targets: Targets, *, beta: float = 1.0, average: str = "micro") -> float:
    """Return the F score of the predictions; `average` as in scikit-learn."""
    from sklearn.metrics import fbeta_score

    return float(fbeta_score(targets, predictions.astype(int), beta=beta, average=average, zero_division=0))


def image_f1(predictions: Predictions, targets: Targets) -> NDArray[np.float64]:
    """Return the F1 of each image, (n,); 1 where an image has no label and none is predicted."""
    overlap = (predictions & targets.astype(bool)).sum(axis=1)
    total = predictions.sum(axis=1) + targets.sum(axis=1)
    f1: NDArray[np.float64] = np.divide(2 * overlap, total, out=np.ones(len(total)), where=total > 0)
    return f1


def micro_f1(predictions: Predictions, targets: Targets) -> Callable[[NDArray[np.intp]], float]:
    """Return the function that computes the F1, pooled over all labels, of the images with the given indices."""
    overlap = (predictions & targets.astype(bool)).sum(axis=1)
    total = predictions.sum(axis=1) + targets.sum(axis=1)

    def of_images(indices: NDArray[np.intp]) -> float:
        return float(2 * overlap[indices].sum() / max(1, int(total[indices].sum())))

    return of_images


def best_constant(train: Targets) -> tuple[int, ...]:
    """Return the labels (indices) that have the highest micro F1 on the training images if always predicted.

    They are the most frequent ones: exchanging one of them for a rarer one lowers the F1.
    """
    counts = train.sum(axis=0)
    order = np.argsort(-counts, kind="stable")
    sizes = np.arange(1, len(order) + 1)
    f1 = 2 * np.cumsum(counts[order]) / np.maximum(sizes * len(train) + counts.sum(), 1)
    return tuple(sorted(order[: int(f1.argmax()) + 1].tolist()))


def sigmoid_at_temperature(probabilities: Probabilities, temperature: float) -> NDArray[np.float64]:
    """Return the sigmoid of logit(p) / temperature: divides the logits, which are not needed."""
    scaled: NDArray[np.float64] = (_logits(probabilities) / temperature).sigmoid().numpy()
    return scaled


def _logits(probabilities: Probabilities) -> torch.Tensor:
    return torch.from_numpy(probabilities.astype(np.float64)).logit(eps=1e-7)


def multilabel_metrics(
    probabilities: Probabilities,
    uncalibrated: Probabilities,
    targets: Targets,
    thresholds: Sequence[float],
    samples: str,
    *,
    is_calibrated: bool = True,
) -> tuple[Metric, ...]:
    """Return the metrics with their protocols; those that the samples are too few for are left out.

    Args:
        probabilities: as they are served, (n, labels).
        uncalibrated: the same at temperature 1, (n, labels).
        targets: 0 or 1, (n, labels).
        thresholds: the smallest probability at which each label is predicted.
        samples: describes the samples, such as "606 validation images".
        is_calibrated: whether the probabilities are calibrated; otherwise both are the same.
    """
    predictions = probabilities >= np.array(thresholds)
    same, other = f"{samples}, thresholds tuned on the same images", f"{samples}, thresholds tuned on the other half"
    rows = [("micro_f1", f_score(predictions, targets), f"F1 pooled over all labels, {same}")]
    if len(targets) > 1:
        crossed = f_score(cross_fitted_predictions(probabilities, targets), targets)
        rows.append(("micro_f1_crossed", crossed, f"F1 pooled over all labels, {other}"))
    rows += [
        ("macro_f1", f_score(predictions, targets, average="macro"), f"mean F1 over the labels, {same}"),
        ("f2", f_score(predictions, targets, beta=2, average="samples"), f"mean F2 over the images, {same}"),
        (
            "f2_at_0.2",
            f_score(probabilities >= _FIXED_THRESHOLD, targets, beta=2, average="samples"),
            f"mean F2 over the images, {samples}, all thresholds 0.2",
        ),
    ]
    known = int(targets.any(axis=0).sum())
    if known:
        every = known == targets.shape[1]
        over = "the labels" if every else f"the {known} of {targets.shape[1]} labels that occur"
        rows.append(("mean_average_precision", mean_precision(probabilities, targets), f"mean over {over}, {samples}"))
    rows += _calibration_rows(probabilities, uncalibrated, targets, samples, is_calibrated=is_calibrated)
    return tuple(Metric(name=name, value=value, protocol=protocol) for name, value, protocol in rows)


def mean_precision(scores: Probabilities, targets: Targets) -> float:
    """Return the mean over the labels that occur of their average precision; 0 if none occurs."""
    from sklearn.metrics import average_precision_score

    known = targets.any(axis=0)
    if not known.any():
        return 0.0
    return float(average_precision_score(targets[:, known], scores[:, known], average="macro"))


def _calibration_rows(
    probabilities: Probabilities, uncalibrated: Probabilities, targets: Targets, samples: str, *, is_calibrated: bool
) -> list[tuple[str, float, str]]:
    """Return the calibration errors as (name, value, protocol)."""
    bins = f"expected calibration error over all labels, {calibration.BINS} bins of equal width, {samples}"
    if not is_calibrated:
        return [("calibration_error", _calibration_error(probabilities, targets), f"{bins}, not calibrated")]
    crossed = calibration.cross_fit(
        _logits(uncalibrated), torch.from_numpy(targets).double(), loss=binary_cross_entropy_with_logits
    )
    how = "each half with the temperature fitted on the other"
    return [
        ("calibration_error", _calibration_error(crossed.sigmoid().numpy(), targets), f"{bins}, {how}"),
        ("calibration_error_before", _calibration_error(uncalibrated, targets), f"{bins}, uncalibrated"),
    ]


def as_binary_samples(probabilities: Probabilities, targets: Targets) -> tuple[Probabilities, Targets]:
    """Turn each label of each image into one sample with the classes no and yes, to measure calibration on."""
    flat = probabilities.reshape(-1)
    return np.stack([1 - flat, flat], axis=1), targets.reshape(-1).astype(int)


def _calibration_error(probabilities: Probabilities, targets: Targets) -> float:
    return calibration.expected_calibration_error(*as_binary_samples(probabilities, targets))


def per_label_table(
    probabilities: Probabilities, targets: Targets, thresholds: Sequence[float], labels: Sequence[str]
) -> Table:
    """Return threshold, precision, recall, F1 and average precision of each label."""
    from sklearn.metrics import average_precision_score, precision_recall_fscore_support

    predictions = (probabilities >= np.array(thresholds)).astype(int)
    scores = precision_recall_fscore_support(targets, predictions, average=None, zero_division=np.nan)
    rows = []
    for i, (name, precision, recall, f1, count) in enumerate(zip(labels, *scores, strict=True)):
        area = average_precision_score(targets[:, i], probabilities[:, i]) if count else np.nan
        values = (_format(value) for value in (precision, recall, f1 if count else np.nan, area))
        rows.append((name, f"{thresholds[i]:.2f}", *values, str(count)))
    header = ("label", "threshold", "precision", "recall", "F1", "average precision", "n")
    absent = "–: the label is predicted for no image, or no image has it." if any("–" in row for row in rows) else ""
    return Table("Per label", header, tuple(rows), absent)


def _format(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3f}"
