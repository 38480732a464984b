"""Conformal calibration of prediction intervals."""

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]


def fit_conformal_scale(value: FloatArray, distances: FloatArray, true: FloatArray, coverage: float) -> float:
    """Return the factor on the interval's distances with which a fraction `coverage` of true values lie inside.

    Split conformal prediction with scores relative to the network's own distances (Romano, Patterson and Candès 2019,
    "Conformalized Quantile Regression"; the scaled kind): the score of a row is how many of its distances the true
    value lies away from the predicted one, and the factor is the ⌈(n + 1)·coverage⌉-th smallest score.

    Args:
        value: predicted values, (n,).
        distances: from each value to the lower and the upper end of its interval, (n, 2).
        true: true values, (n,); all three as the network learns them.
        coverage: 0 to 1.
    """
    distance = np.where(true < value, distances[:, 0], distances[:, 1])
    scores = np.sort(np.abs(true - value) / np.maximum(distance, 1e-12))
    return float(scores[_rank(len(scores), coverage) - 1])


def min_calibration_rows(coverage: float) -> int:
    """Return with how many rows at least an interval can be calibrated to contain this fraction of true values."""
    return int(np.ceil(coverage / (1 - coverage) - 1e-9))


def likely_coverage(count: int, coverage: float) -> tuple[float, float]:
    """Return between which fractions the coverage of new rows lies with a probability of 95 %.

    An interval that was calibrated on `count` rows contains a fraction of new rows that follows a beta distribution
    (Vovk 2012, "Conditional validity of inductive conformal predictors"): with few rows it may be far from `coverage`.
    """
    from scipy import stats

    rank = _rank(count, coverage)
    low, high = stats.beta.ppf([0.025, 0.975], rank, count + 1 - rank)
    return float(low), float(high)


def _rank(count: int, coverage: float) -> int:
    return min(count, int(np.ceil((count + 1) * coverage - 1e-9)))
