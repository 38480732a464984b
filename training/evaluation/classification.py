"""Metrics of classifiers: accuracy, per-class metrics, confusions, and variation over seeds; by scikit-learn."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.manifest import Metric
from training.core.results import Table
from training.evaluation import calibration

Probabilities = NDArray[np.floating]
Targets = NDArray[np.integer]


def classification_scores(probabilities: Probabilities, targets: Targets) -> dict[str, float]:
    """Return accuracy, macro F1, cross-entropy (nats), calibration error, and with two classes the ROC AUC."""
    from sklearn.metrics import log_loss, precision_recall_fscore_support, roc_auc_score

    classes = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    _, _, f1, _ = precision_recall_fscore_support(targets, predicted, labels=range(classes), zero_division=0)
    # A class without a sample has no F1; counted as 0, it would lower the mean.
    f1 = f1[np.bincount(targets, minlength=classes) > 0]
    exact = probabilities.astype(np.float64)
    exact = exact / exact.sum(axis=1, keepdims=True)
    scores = {"accuracy": float((predicted == targets).mean()), "macro_f1": float(f1.mean())}
    if classes == 2 and len(set(targets.tolist())) == 2:
        scores["roc_auc"] = float(roc_auc_score(targets, probabilities[:, 1]))
    scores["cross_entropy"] = float(log_loss(targets, exact, labels=range(classes)))
    scores["calibration_error"] = calibration.expected_calibration_error(probabilities, targets)
    return scores


def per_class_table(probabilities: Probabilities, targets: Targets, labels: Sequence[str]) -> Table:
    """Return precision, recall and F1 of each class."""
    from sklearn.metrics import precision_recall_fscore_support

    predicted = probabilities.argmax(axis=1)
    columns = precision_recall_fscore_support(targets, predicted, labels=range(len(labels)), zero_division=0)
    rows = tuple(
        (name, f"{precision:.3f}", f"{recall:.3f}", f"{f1:.3f}", str(count))
        for name, precision, recall, f1, count in zip(labels, *columns, strict=True)
    )
    return Table("Per class", ("class", "precision", "recall", "F1", "n"), rows)


def confusion_matrix(probabilities: Probabilities, targets: Targets, labels: Sequence[str]) -> NDArray[np.integer]:
    """Return counts (true class, predicted class)."""
    from sklearn import metrics

    predicted = probabilities.argmax(axis=1)
    matrix: NDArray[np.integer] = metrics.confusion_matrix(targets, predicted, labels=range(len(labels)))
    return matrix


def most_confused_table(matrix: NDArray[np.integer], labels: Sequence[str], count: int = 10) -> Table:
    """Return the pairs of classes that were confused most often."""
    pairs = [
        (int(matrix[i, j]), i, j) for i in range(len(labels)) for j in range(len(labels)) if i != j and matrix[i, j]
    ]
    rows = tuple(
        (labels[i], labels[j], str(n), f"{n / matrix[i].sum():.1%}") for n, i, j in sorted(pairs, reverse=True)[:count]
    )
    note = "" if rows else "No sample was given another class than its own."
    return Table("Most confused", ("true", "predicted", "count", "fraction of class"), rows, note)


def mean_and_std(values: Sequence[float]) -> str:
    """Format the mean ± standard deviation over seeds."""
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}"


def classification_metrics(
    probabilities: Probabilities,
    uncalibrated: Probabilities,
    targets: Targets,
    samples: str,
    *,
    is_calibrated: bool = True,
    groups: NDArray[np.integer] | None = None,
) -> tuple[Metric, ...]:
    """Return the metrics with their protocols.

    Args:
        probabilities: as they are served, (n, classes).
        uncalibrated: the same at temperature 1, (n, classes).
        targets: class indices, (n,).
        samples: describes the samples, such as "341 validation images".
        is_calibrated: whether the probabilities are calibrated; otherwise both are the same.
        groups: numbers of the groups of samples that belong together, (n,); they are not split into halves.
    """
    bins = f"{calibration.BINS} bins of equal width"
    how = "calibrated on the same samples" if is_calibrated else "not calibrated"
    protocols = {
        "accuracy": f"top-1 accuracy on {samples}",
        "macro_f1": f"unweighted mean of the F1 of each class on {samples}",
        "roc_auc": f"area under the ROC curve of the second class on {samples}",
        "cross_entropy": f"mean in nats on {samples}; {how}",
        "calibration_error": f"expected calibration error, {bins}, on {samples}; not calibrated",
    }
    scores = classification_scores(probabilities, targets)
    if not is_calibrated:
        return tuple(Metric(name=name, value=value, protocol=protocols[name]) for name, value in scores.items())
    del scores["calibration_error"]
    metrics = [Metric(name=name, value=value, protocol=protocols[name]) for name, value in scores.items()]
    return (*metrics, *_calibration_metrics(uncalibrated, targets, samples, groups))


def _calibration_metrics(
    uncalibrated: Probabilities, targets: Targets, samples: str, groups: NDArray[np.integer] | None
) -> tuple[Metric, ...]:
    """Return the calibration errors after and before temperature scaling; the former is cross-fitted."""
    bins = f"{calibration.BINS} bins of equal width, on {samples}"
    crossed = cross_fitted_probabilities(uncalibrated, targets, groups)
    return (
        Metric(
            name="calibration_error",
            value=calibration.expected_calibration_error(crossed, targets),
            protocol=f"expected calibration error, {bins}; each half with the temperature fitted on the other",
        ),
        Metric(
            name="calibration_error_before",
            value=calibration.expected_calibration_error(uncalibrated, targets),
            protocol=f"expected calibration error before temperature scaling, {bins}",
        ),
    )


def cross_fitted_probabilities(
    uncalibrated: Probabilities, targets: Targets, groups: NDArray[np.integer] | None = None
) -> Probabilities:
    """Return probabilities (n, classes), those of each half at the temperature fitted on the other half."""
    logits = torch.from_numpy(at_temperature(uncalibrated, 1.0)).log()
    return calibration.cross_fit(logits, torch.from_numpy(targets).long(), groups=groups).softmax(dim=1).numpy()


def at_temperature(probabilities: Probabilities, temperature: float) -> NDArray[np.float64]:
    """Return the softmax of log(p) / temperature, (n, classes): divides the logits, which are not needed.

    Probabilities that a file returns calibrated at temperature T are those before calibration at temperature 1 / T.
    """
    logits = np.log(np.maximum(probabilities.astype(np.float64), np.finfo(np.float32).tiny)) / temperature
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    scaled: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return scaled


def wilson_interval(fraction: float, count: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a fraction observed in `count` samples (Wilson 1927)."""
    z = 1.96
    centre = (fraction + z * z / (2 * count)) / (1 + z * z / count)
    margin = z / (1 + z * z / count) * math.sqrt(fraction * (1 - fraction) / count + z * z / (4 * count * count))
    # At 0 and 1, rounding errors would put a bound on the wrong side of the fraction.
    return min(max(0.0, centre - margin), fraction), max(min(1.0, centre + margin), fraction)


def accuracy_interval_note(accuracy: float, count: int) -> str:
    """Describe the confidence interval of an accuracy measured on `count` samples."""
    low, high = wilson_interval(accuracy, count)
    samples = "sample" if count == 1 else "samples"
    return (
        f"95 % confidence interval of the accuracy of {accuracy:.3f} on {count:,} {samples}: {low:.3f} to {high:.3f}."
    )
