"""Figures for classes: accuracy, per class, confusions, over seeds; scikit-learn does the counting."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tasks.manifest import Metric
from training.core.results import Table
from training.evaluation import calibration

Probabilities = NDArray[np.floating]
Targets = NDArray[np.integer]


def class_figures(probabilities: Probabilities, targets: Targets) -> dict[str, float]:
    """Accuracy, macro F1, cross entropy (nats), expected calibration error, and with two classes the ROC AUC."""
    from sklearn.metrics import log_loss, precision_recall_fscore_support, roc_auc_score

    classes = probabilities.shape[1]
    said = probabilities.argmax(axis=1)
    _, _, f1, _ = precision_recall_fscore_support(targets, said, labels=range(classes), zero_division=0)
    exact = probabilities.astype(np.float64)
    exact = exact / exact.sum(axis=1, keepdims=True)
    figures = {"accuracy": float((said == targets).mean()), "macro_f1": float(f1.mean())}
    if classes == 2 and len(set(targets.tolist())) == 2:
        figures["roc_auc"] = float(roc_auc_score(targets, probabilities[:, 1]))
    figures["cross_entropy"] = float(log_loss(targets, exact, labels=range(classes)))
    figures["calibration_error"] = calibration.expected_calibration_error(probabilities, targets)
    return figures


def per_class(probabilities: Probabilities, targets: Targets, labels: Sequence[str]) -> Table:
    """Precision, recall and F1 of each class."""
    from sklearn.metrics import precision_recall_fscore_support

    said = probabilities.argmax(axis=1)
    found = precision_recall_fscore_support(targets, said, labels=range(len(labels)), zero_division=0)
    rows = tuple(
        (name, f"{precision:.3f}", f"{recall:.3f}", f"{f1:.3f}", str(count))
        for name, precision, recall, f1, count in zip(labels, *found, strict=True)
    )
    return Table("Per class", ("class", "precision", "recall", "F1", "n"), rows)


def confusions(probabilities: Probabilities, targets: Targets, labels: Sequence[str]) -> NDArray[np.integer]:
    """Counts, (is, said)."""
    from sklearn.metrics import confusion_matrix

    said = probabilities.argmax(axis=1)
    matrix: NDArray[np.integer] = confusion_matrix(targets, said, labels=range(len(labels)))
    return matrix


def most_confused(matrix: NDArray[np.integer], labels: Sequence[str], count: int = 10) -> Table:
    """The pairs that were mistaken most often."""
    pairs = [
        (int(matrix[i, j]), i, j) for i in range(len(labels)) for j in range(len(labels)) if i != j and matrix[i, j]
    ]
    rows = tuple(
        (labels[i], labels[j], str(n), f"{n / matrix[i].sum():.1%}") for n, i, j in sorted(pairs, reverse=True)[:count]
    )
    return Table("Most confused", ("is", "said", "times", "of its class"), rows)


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation of the figures of several seeds."""
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}"


def classification_metrics(
    probabilities: Probabilities, before: Probabilities, targets: Targets, samples: str
) -> tuple[Metric, ...]:
    """The figures with their protocols; `before` are the probabilities before calibration, `samples` says of what."""
    bins = f"{calibration.BINS} bins of equal width"
    protocols = {
        "accuracy": f"share of {samples} whose likeliest class is the right one",
        "macro_f1": f"mean over the classes of F1, {samples}",
        "roc_auc": f"area under the ROC curve of the second class, {samples}",
        "cross_entropy": f"mean, in nats, {samples}, calibrated on the same",
        "calibration_error": f"expected calibration error, {bins}, {samples}, calibrated on the same",
    }
    found = [Metric(name=k, value=v, protocol=protocols[k]) for k, v in class_figures(probabilities, targets).items()]
    raw = calibration.expected_calibration_error(before, targets)
    protocol = f"expected calibration error before the temperature, {bins}, {samples}"
    return (*found, Metric(name="calibration_error_before", value=raw, protocol=protocol))


def interval(share: float, count: int) -> tuple[float, float]:
    """Between which bounds a share of `count` samples leaves that of all, with 95 % certainty (Wilson 1927)."""
    z = 1.96
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    reach = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return middle - reach, middle + reach


def certainty(share: float, count: int) -> str:
    """How far the accuracy of `count` samples may lie from that of all."""
    low, high = interval(share, count)
    return f"With {count:,} samples, an accuracy of {share:.3f} stands for one between {low:.3f} and {high:.3f} (95 %)."
