"""Error metrics of regression: which ones a target allows, and how they are computed."""

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from training.core.errors import CannotTrain
from training.core.results import Comparison, SampleScores
from training.evaluation.comparison import compare_means

FloatArray = NDArray[np.floating]

DESCRIPTIONS = {
    "rmsle": "root mean squared error of log(1 + value)",
    "rmspe": "root mean squared error as a fraction of the true value",
    "rmse": "root mean squared error, in the target's unit",
    "mae": "mean absolute error, in the target's unit",
    "r2": "fraction of the variance that is explained",
}
ROW_ERRORS = {
    "rmsle": "mean squared error of log(1 + value)",
    "rmspe": "mean squared relative error",
    "rmse": "mean squared error",
    "mae": "mae",
}
"""The names of the means of `row_errors`."""


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
    mean = float(row_errors(metric, predicted, true).mean())
    return mean if metric == "mae" else math.sqrt(mean)


def row_errors(metric: str, predicted: FloatArray, true: FloatArray) -> FloatArray:
    """Compute the error of each row, (n,): absolute for mae, squared for the others, which are roots of its mean."""
    predicted, true = np.asarray(predicted, np.float64), np.asarray(true, np.float64)
    if metric == "mae":
        absolute: FloatArray = np.abs(predicted - true)
        return absolute
    if metric == "rmsle":
        errors = np.log1p(np.maximum(predicted, 0)) - np.log1p(true)
    elif metric == "rmspe":
        errors = (predicted - true) / true
    else:
        errors = predicted - true
    squared: FloatArray = errors**2
    return squared


def best_constant(metric: str, values: FloatArray) -> float:
    """Return the constant prediction with the smallest error for these values."""
    if metric == "mae":
        return float(np.median(values))
    if metric == "rmsle":
        return float(np.expm1(np.log1p(values).mean()))
    if metric == "rmspe":
        return float((1 / values).sum() / (1 / values**2).sum())
    return float(values.mean())


def compare_errors(
    metric: str,
    other: str,
    errors: SampleScores,
    other_errors: FloatArray,
    *,
    is_constant: bool = False,
) -> Comparison:
    """Compare the errors of the rows (see `row_errors`) of the model and of another predictor by the metric.

    The difference of two roots of means is that of the means divided by the sum of the roots; so is its interval, to
    first order (the delta method).
    """
    comparison = compare_means(errors, other, other_errors, is_constant=is_constant)
    if metric == "mae":
        return replace(comparison, metric=metric)
    value, other_value = math.sqrt(comparison.value), math.sqrt(comparison.other_value)
    total = max(value + other_value, 1e-30)
    low, high = comparison.interval
    return replace(
        comparison, metric=metric, value=value, other_value=other_value, interval=(low / total, high / total)
    )


def r2(predicted: FloatArray, true: FloatArray) -> float:
    """Compute R²: 1 minus the squared error over that of predicting the mean."""
    variation = float(((true - true.mean()) ** 2).sum())
    return 1 - float(((predicted - true) ** 2).sum()) / max(variation, 1e-30)
