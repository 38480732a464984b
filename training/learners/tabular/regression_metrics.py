"""Error metrics of regression: which ones a target allows, and how they are computed."""

import numpy as np
from numpy.typing import NDArray

from training.core.errors import CannotTrain

FloatArray = NDArray[np.floating]

DESCRIPTIONS = {
    "rmsle": "root mean squared error of log(1 + value)",
    "rmspe": "root mean squared error as a fraction of the true value",
    "rmse": "root mean squared error, in the target's unit",
    "mae": "mean absolute error, in the target's unit",
    "r2": "fraction of the variance that is explained",
}


def select_metrics(values: FloatArray, *, log: bool, preferred: str) -> tuple[str, ...]:
    """Return the names of the metrics that a target with these values allows, the main one first.

    The main metric is `preferred`; with "auto" it is rmsle if the logarithm is learnt, else rmse.

    Raises CannotTrain if the values do not allow the preferred metric.
    """
    allowed = ["rmse", "mae"]
    if (values > 0).all():
        allowed.insert(0, "rmspe")
    if (values >= 0).all():
        allowed.insert(0, "rmsle")
    if preferred not in ("auto", *allowed):
        needed = "above zero" if preferred == "rmspe" else "zero or above"
        raise CannotTrain(f"--metric {preferred} needs a target whose values are all {needed}.")
    main = preferred if preferred != "auto" else "rmsle" if log and "rmsle" in allowed else "rmse"
    return (main, *(name for name in allowed if name != main))


def compute_error(metric: str, predicted: FloatArray, true: FloatArray) -> float:
    """Compute an error metric of predictions (n,) in the target's unit."""
    predicted, true = np.asarray(predicted, np.float64), np.asarray(true, np.float64)
    if metric == "mae":
        return float(np.abs(predicted - true).mean())
    if metric == "rmsle":
        errors = np.log1p(np.maximum(predicted, 0)) - np.log1p(true)
    elif metric == "rmspe":
        errors = (predicted - true) / true
    else:
        errors = predicted - true
    return float(np.sqrt((errors**2).mean()))


def r2(predicted: FloatArray, true: FloatArray) -> float:
    """Compute R²: 1 minus the squared error over that of predicting the mean."""
    variation = float(((true - true.mean()) ** 2).sum())
    return 1 - float(((predicted - true) ** 2).sum()) / max(variation, 1e-30)
