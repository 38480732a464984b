"""Metrics for several labels per image: thresholds, F scores, a table per label, and a majority baseline."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

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
    # The halves are random because neighbouring rows are often related, such as tiles of one image.
    half = np.random.default_rng(0).permutation(len(targets)) % 2 == 0
    predictions = np.zeros(targets.shape, bool)
    for part in (half, ~half):
        predictions[part] = probabilities[part] >= best_thresholds(probabilities[~part], targets[~part])
    return predictions


def f_score(predictions: Predictions, targets: Targets, *, beta: float = 1.0, average: str = "micro") -> float:
    """Return the F score of the predictions; `average` as in scikit-learn."""
    from sklearn.metrics import fbeta_score

    return float(fbeta_score(targets, predictions.astype(int), beta=beta, average=average, zero_division=0))


def majority_predictions(train: Targets, count: int) -> Predictions:
    """Return `count` rows that predict exactly the labels which more than half of the training images have."""
    return np.tile(train.mean(axis=0) > 0.5, (count, 1))


def multilabel_metrics(
    probabilities: Probabilities,
    uncalibrated: Probabilities,
    targets: Targets,
    thresholds: Sequence[float],
    samples: str,
) -> tuple[Metric, ...]:
    """Return the metrics with their protocols; `samples` names the samples in the protocols."""
    from sklearn.metrics import average_precision_score

    predictions = probabilities >= np.array(thresholds)
    cross_fitted = cross_fitted_predictions(probabilities, targets)
    known = targets.any(axis=0)
    precision = average_precision_score(targets[:, known], probabilities[:, known], average="macro")
    same, other = f"{samples}, thresholds tuned on the same images", f"{samples}, thresholds tuned on the other half"
    bins = f"expected calibration error over all labels, {calibration.BINS} bins of equal width"
    rows = (
        ("micro_f1", f_score(predictions, targets), f"F1 pooled over all labels, {same}"),
        ("micro_f1_crossed", f_score(cross_fitted, targets), f"F1 pooled over all labels, {other}"),
        ("macro_f1", f_score(predictions, targets, average="macro"), f"mean F1 over the labels, {same}"),
        ("f2", f_score(predictions, targets, beta=2, average="samples"), f"mean F2 over the images, {same}"),
        (
            "f2_at_0.2",
            f_score(probabilities >= _FIXED_THRESHOLD, targets, beta=2, average="samples"),
            f"mean F2 over the images, {samples}, all thresholds 0.2",
        ),
        ("mean_average_precision", float(precision), f"mean over the labels, {samples}"),
        ("calibration_error", _calibration_error(probabilities, targets), f"{bins}, {samples}, calibrated on the same"),
        ("calibration_error_before", _calibration_error(uncalibrated, targets), f"{bins}, {samples}, uncalibrated"),
    )
    return tuple(Metric(name=name, value=value, protocol=protocol) for name, value, protocol in rows)


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
    scores = precision_recall_fscore_support(targets, predictions, zero_division=0)
    rows = []
    for i, (name, precision, recall, f1, count) in enumerate(zip(labels, *scores, strict=True)):
        area = f"{average_precision_score(targets[:, i], probabilities[:, i]):.3f}" if count else "–"
        values = (f"{thresholds[i]:.2f}", f"{precision:.3f}", f"{recall:.3f}", f"{f1:.3f}", area, str(count))
        rows.append((name, *values))
    header = ("label", "threshold", "precision", "recall", "F1", "average precision", "n")
    return Table("Per label", header, tuple(rows))
