"""Compare the ROC AUC of two predictors on the same samples, with a confidence interval of the difference."""

import math

import numpy as np
from numpy.typing import NDArray

from training.core.results import Comparison

FloatArray = NDArray[np.floating]

_MIN_OF_EACH = 10
"""With fewer samples of either class, the interval is not stated."""


def compare_roc_auc(
    other: str, scores: FloatArray, other_scores: FloatArray, is_positive: NDArray[np.bool_], samples: str
) -> Comparison:
    """Compare the ROC AUC of the model and of another predictor, both with a score of each sample, (n,).

    The interval is that of DeLong, DeLong and Clarke-Pearson 1988 ("Comparing the areas under two or more correlated
    receiver operating characteristic curves"). There must be samples of both classes; `samples` says what they are, in
    the plural.
    """
    mine, others = _placements(scores, is_positive), _placements(other_scores, is_positive)
    gains = [placement - other_placement for placement, other_placement in zip(mine, others, strict=True)]
    interval = (-math.inf, math.inf)
    if min(map(len, gains)) >= _MIN_OF_EACH:
        error = math.sqrt(sum(float(gain.var(ddof=1)) / len(gain) for gain in gains))
        gain = float(gains[0].mean())
        interval = (gain - 1.96 * error, gain + 1.96 * error)
    return Comparison(
        other=other,
        metric="roc_auc",
        value=float(mine[0].mean()),
        other_value=float(others[0].mean()),
        lower_is_better=False,
        interval=interval,
        count=len(scores),
        samples=samples,
    )


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
