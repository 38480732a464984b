"""Figures for several labels a picture: thresholds, F scores, per label, against majorities; scikit-learn counts."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tasks.manifest import Metric
from training.core.results import Table
from training.evaluation import calibration

Probabilities = NDArray[np.floating]
Targets = NDArray[np.integer]
_COURSE_THRESHOLD = 0.2


def best_thresholds(probabilities: Probabilities, targets: Targets) -> tuple[float, ...]:
    """For each label the threshold with the highest F1, halfway between two neighbouring probabilities.

    0.5 where there is no positive sample. Of several equally good ones the middle one: it is the farthest from harm.
    """
    return tuple(_best_threshold(probabilities[:, i], targets[:, i]) for i in range(targets.shape[1]))


def _best_threshold(probabilities: Probabilities, targets: Targets) -> float:
    if not targets.any():
        return 0.5
    order = np.argsort(-probabilities, kind="stable")
    ranked = probabilities[order].astype(np.float64)
    found = np.cumsum(targets[order])
    f1 = 2 * found / (np.arange(1, len(ranked) + 1) + targets.sum())
    below = np.append(ranked[1:], 0.0 if ranked[-1] > 0 else -1.0)
    f1[ranked == below] = -1.0  # No threshold lies between two that are equal.
    best = np.flatnonzero(f1 >= f1.max() - 1e-12)
    chosen = best[len(best) // 2]
    return max(0.0, float((ranked[chosen] + below[chosen]) / 2))


def crossed(probabilities: Probabilities, targets: Targets) -> NDArray[np.bool_]:
    """Which labels are given where each half of the samples is judged by thresholds that the other half chose."""
    # At random: neighbours in a table are often parts of one thing, and every second may be of one kind.
    half = np.random.default_rng(0).permutation(len(targets)) % 2 == 0
    given = np.zeros(targets.shape, bool)
    for part in (half, ~half):
        given[part] = probabilities[part] >= best_thresholds(probabilities[~part], targets[~part])
    return given


def f_score(given: NDArray[np.bool_], targets: Targets, *, beta: float = 1.0, average: str = "micro") -> float:
    """F measure of what was given; `average` as scikit-learn's."""
    from sklearn.metrics import fbeta_score

    return float(fbeta_score(targets, given.astype(int), beta=beta, average=average, zero_division=0))


def majority(train: Targets, count: int) -> NDArray[np.bool_]:
    """What always answering each label's majority in training gives."""
    return np.tile(train.mean(axis=0) > 0.5, (count, 1))


def tag_metrics(
    probabilities: Probabilities, before: Probabilities, targets: Targets, thresholds: Sequence[float], samples: str
) -> tuple[Metric, ...]:
    """The figures with their protocols; `before` are the probabilities before calibration, `samples` says of what."""
    from sklearn.metrics import average_precision_score

    given, fair = probabilities >= np.array(thresholds), crossed(probabilities, targets)
    known = targets.any(axis=0)
    precision = average_precision_score(targets[:, known], probabilities[:, known], average="macro")
    own, other = f"{samples}, thresholds chosen on the same", f"{samples}, thresholds chosen on the other half of them"
    bins = f"expected calibration error over all labels, {calibration.BINS} bins of equal width"
    listed = (
        ("micro_f1", f_score(given, targets), f"F1 over all labels together, {own}"),
        ("micro_f1_crossed", f_score(fair, targets), f"the same, {other}"),
        ("macro_f1", f_score(given, targets, average="macro"), f"mean over the labels of F1, {own}"),
        ("f2", f_score(given, targets, beta=2, average="samples"), f"mean over the pictures of F2, {own}"),
        (
            "f2_at_0.2",
            f_score(probabilities >= _COURSE_THRESHOLD, targets, beta=2, average="samples"),
            f"mean over the pictures of F2, {samples}, every threshold 0.2",
        ),
        ("mean_average_precision", float(precision), f"mean over the labels, {samples}"),
        ("calibration_error", _calibration(probabilities, targets), f"{bins}, {samples}, calibrated on the same"),
        ("calibration_error_before", _calibration(before, targets), f"{bins}, {samples}, before the temperature"),
    )
    return tuple(Metric(name=name, value=value, protocol=protocol) for name, value, protocol in listed)


def two_sided(probabilities: Probabilities, targets: Targets) -> tuple[Probabilities, Targets]:
    """Each label of each picture as a sample of two classes, no and yes: what calibration is measured on."""
    flat = probabilities.reshape(-1)
    return np.stack([1 - flat, flat], axis=1), targets.reshape(-1).astype(int)


def _calibration(probabilities: Probabilities, targets: Targets) -> float:
    return calibration.expected_calibration_error(*two_sided(probabilities, targets))


def per_label(
    probabilities: Probabilities, targets: Targets, thresholds: Sequence[float], labels: Sequence[str]
) -> Table:
    """Threshold, precision, recall, F1 and average precision of each label."""
    from sklearn.metrics import average_precision_score, precision_recall_fscore_support

    given = (probabilities >= np.array(thresholds)).astype(int)
    found = precision_recall_fscore_support(targets, given, zero_division=0)
    rows = []
    for i, (name, precision, recall, f1, count) in enumerate(zip(labels, *found, strict=True)):
        area = f"{average_precision_score(targets[:, i], probabilities[:, i]):.3f}" if count else "–"
        figures = (f"{thresholds[i]:.2f}", f"{precision:.3f}", f"{recall:.3f}", f"{f1:.3f}", area, str(count))
        rows.append((name, *figures))
    header = ("label", "threshold", "precision", "recall", "F1", "average precision", "n")
    return Table("Per label", header, tuple(rows))
