"""Compare a model with another predictor on the same samples, with a confidence interval of the difference."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from training.core.results import Comparison, SampleScores, Table
from training.core.sentences import signed

_DRAWS = 1000
_MIN_SAMPLES = 10
"""With fewer samples (or groups), no interval is stated: that they differ in the same way may well be chance."""


def compare_means(
    model: SampleScores, other: str, values: NDArray[np.floating], *, is_constant: bool = False
) -> Comparison:
    """Compare the means of the scores of two predictors on the same samples.

    Args:
        model: the model's scores.
        other: the other predictor, as in a sentence.
        values: its scores, (n,).
        is_constant: whether it gives every request the same answer.

    The interval is that of the mean of the paired differences, by Student's t distribution. With groups, the standard
    error is cluster-robust (Liang and Zeger 1986). With fewer than ten samples or groups, the interval is infinite.
    Samples where either score is NaN are left out.
    """
    known = np.isfinite(model.values) & np.isfinite(values)
    mine, others = model.values[known].astype(np.float64), values[known].astype(np.float64)
    groups = None if model.groups is None else model.groups[known]
    gains = others - mine if model.lower_is_better else mine - others
    interval, count = _mean_interval(gains, groups)
    return Comparison(
        other=other,
        metric=model.metric,
        value=float(mine.mean()) if len(mine) else math.nan,
        other_value=float(others.mean()) if len(others) else math.nan,
        lower_is_better=model.lower_is_better,
        interval=interval,
        count=count,
        samples=model.samples,
        is_constant=is_constant,
    )


def _mean_interval(gains: NDArray[np.float64], groups: NDArray[np.integer] | None) -> tuple[tuple[float, float], int]:
    """Return the 95 % interval of the mean, and the number of groups."""
    from scipy import stats

    index = np.arange(len(gains)) if groups is None else np.unique(groups, return_inverse=True)[1]
    count = int(index.max()) + 1 if len(index) else 0
    if count < _MIN_SAMPLES:
        return (-math.inf, math.inf), count
    residuals = np.bincount(index, gains - gains.mean())
    error = math.sqrt(count / (count - 1) * float((residuals**2).sum())) / len(gains)
    margin = float(stats.t.ppf(0.975, count - 1)) * error
    return (float(gains.mean()) - margin, float(gains.mean()) + margin), count


def compare_statistics(
    metric: str,
    other: str,
    statistics: tuple[Callable[[NDArray[np.intp]], float], Callable[[NDArray[np.intp]], float]],
    count: int,
    *,
    samples: str,
    lower_is_better: bool = False,
    is_constant: bool = False,
) -> Comparison:
    """Compare a statistic that is no mean over samples (ROC AUC, mean IoU) of two predictors.

    Args:
        metric: name of the statistic.
        other: the other predictor, as in a sentence.
        statistics: the model's and the other's statistic of the samples with these indices, which may repeat.
        count: number of samples.
        samples: what they are, in the plural.
        lower_is_better: whether the statistic is an error.
        is_constant: whether the other predictor gives every request the same answer.

    The interval is a percentile bootstrap over samples (Efron 1979) with 1,000 draws; draws in which a statistic is
    NaN are left out.
    """
    every = np.arange(count)
    value, other_value = (statistic(every) for statistic in statistics)
    random = np.random.default_rng(0)
    interval = (-math.inf, math.inf)
    if count >= _MIN_SAMPLES:
        draws = (random.integers(0, count, count) for _ in range(_DRAWS))
        gains = np.array([statistics[0](draw) - statistics[1](draw) for draw in draws])
        gains = gains[np.isfinite(gains)] * (-1 if lower_is_better else 1)
        if len(gains) >= _DRAWS // 2:
            low, high = np.quantile(gains, [0.025, 0.975])
            interval = (float(low), float(high))
    return Comparison(other, metric, value, other_value, lower_is_better, interval, count, samples, is_constant)


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """Return a row for each comparison."""
    header = ("compared with", "metric", "model", "other", "gain", "95 % interval", "n", "the model is")
    rows = [
        (
            comparison.other,
            comparison.metric,
            f"{comparison.value:.4f}",
            f"{comparison.other_value:.4f}",
            signed(comparison.gain),
            _format_interval(comparison.interval),
            f"{comparison.count:,}",
            comparison.verdict,
        )
        for comparison in comparisons
    ]
    note = "The gain is positive where the model is better. Its interval is that of the difference on the same samples."
    return Table("Compared with others", header, tuple(rows), note)


def _format_interval(interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{signed(low)} to {signed(high)}" if math.isfinite(low + high) else "unknown: too few samples"
