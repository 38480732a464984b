"""Compare the ROC AUC of two predictors on the same samples, with a confidence interval of the difference."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from training.core.results import Comparison

FloatArray = NDArray[np.floating]

_MIN_OF_EACH = 10
"""With fewer samples of either class, or groups, the interval is not stated."""


def compare_roc_auc(
    other: str,
    scores: FloatArray,
    other_scores: FloatArray,
    is_positive: NDArray[np.bool_],
    samples: str,
    *,
    groups: NDArray[np.integer] | None = None,
) -> Comparison:
    """Compare the ROC AUC of the model and of another predictor on the same samples of both classes.

    Args:
        other: the other predictor, as in a sentence.
        scores: the model's scores, (n,).
        other_scores: those of the other predictor, (n,).
        is_positive: bool (n,), with samples of both classes.
        samples: what the samples are (or their groups, if there are any), in the plural.
        groups: numbers of the groups of samples that belong together, (n,).

    The interval is that of DeLong, DeLong and Clarke-Pearson 1988 ("Comparing the areas under two or more correlated
    receiver operating characteristic curves"), with groups that of Obuchowski 1997 ("Nonparametric analysis of
    clustered ROC curve data"). With fewer than ten samples of either class, or groups, it is infinite.
    """
    mine, others = _placements(scores, is_positive), _placements(other_scores, is_positive)
    gains = [placement - other_placement for placement, other_placement in zip(mine, others, strict=True)]
    gain, count = float(gains[0].mean()), len(scores) if groups is None else len(np.unique(groups))
    interval = (-math.inf, math.inf)
    if min(count, *map(len, gains)) >= _MIN_OF_EACH:
        error = math.sqrt(_variance(gains, is_positive, groups))
        interval = (gain - 1.96 * error, gain + 1.96 * error)
    return Comparison(
        other=other,
        metric="roc_auc",
        value=float(mine[0].mean()),
        other_value=float(others[0].mean()),
        lower_is_better=False,
        interval=interval,
        count=count,
        samples=samples,
    )


def _variance(gains: Sequence[FloatArray], is_positive: NDArray[np.bool_], groups: NDArray[np.integer] | None) -> float:
    """Return the variance of the difference of the areas; `gains` are those of the positive and the negative samples.

    The samples of a group, positive and negative ones, add to the difference together.
    """
    if groups is None:
        return sum(float(gain.var(ddof=1)) / len(gain) for gain in gains)
    parts = np.zeros(len(is_positive))
    for members, gain in zip((is_positive, ~is_positive), gains, strict=True):
        parts[members] = (gain - gain.mean()) / len(gain)
    sums = np.bincount(np.unique(groups, return_inverse=True)[1], parts)
    return float((sums**2).sum()) * len(sums) / (len(sums) - 1)


def _placements(scores: FloatArray, is_positive: NDArray[np.bool_]) -> tuple[FloatArray, FloatArray]:
    """Return for each positive sample the fraction of negatives below it, for each negative that of positives above it.

    A tie counts half. The mean of either is the ROC AUC.
    """
    positive, negative = scores[is_positive], scores[~is_positive]
    return _fraction_below(positive, np.sort(negative)), 1 - _fraction_below(negative, np.sort(positive))


def _fraction_below(values: FloatArray, ordered: FloatArray) -> FloatArray:
    places = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
    fractions: FloatArray = places / (2 * len(ordered))
    return fractions
