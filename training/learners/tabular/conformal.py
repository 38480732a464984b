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
    rank = min(len(scores), int(np.ceil((len(scores) + 1) * coverage)))
    return float(scores[rank - 1])
