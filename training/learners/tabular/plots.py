"""Plots of a regression report, as PNG files."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.reporting.plots import BLUE, GREY, ORANGE, new_figure, style_axes, to_png

FloatArray = NDArray[np.floating]

_MAX_POINTS = 5_000


def draw_predicted_and_true(true: FloatArray, predicted: FloatArray, *, log: bool) -> bytes:
    """Draw predicted over true values, with the diagonal on which both are equal."""
    shown = np.linspace(0, len(true) - 1, min(len(true), _MAX_POINTS)).astype(int)
    figure = new_figure(5, 4.6)
    axes = figure.subplots()
    axes.scatter(true[shown], predicted[shown], s=5, color=BLUE, alpha=0.3, linewidths=0)
    ends = [float(min(true.min(), predicted.min())), float(max(true.max(), predicted.max()))]
    axes.plot(ends, ends, color=GREY, linestyle=":", linewidth=1)
    if log:
        axes.set_xscale("symlog", linthresh=1)
        axes.set_yscale("symlog", linthresh=1)
    style_axes(axes, "Predicted and true values", "true", "predicted")
    return to_png(figure)


def draw_predictions_over_time(
    times: Sequence[Any], true: FloatArray, predicted: FloatArray, low: FloatArray, high: FloatArray, title: str
) -> bytes:
    """Draw true and predicted values over time, with the interval."""
    order = np.argsort(np.array(times), kind="stable")
    figure = new_figure(11, 3.4)
    axes = figure.subplots()
    x = [times[i] for i in order]
    axes.fill_between(x, low[order], high[order], color=BLUE, alpha=0.15, linewidth=0, label="interval")
    axes.plot(x, true[order], color=GREY, linewidth=1, label="true")
    axes.plot(x, predicted[order], color=BLUE, linewidth=1, label="predicted")
    style_axes(axes, title, "", "")
    axes.legend(frameon=False, loc="upper left", ncols=3)
    return to_png(figure)


def draw_residuals_over_time(times: Sequence[Any], residuals: FloatArray, title: str) -> bytes:
    """Draw the residual of each row over time, with the means of up to sixty consecutive blocks of rows."""
    order = np.argsort(np.array(times), kind="stable")
    x = [times[i] for i in order]
    figure = new_figure(11, 3)
    axes = figure.subplots()
    axes.axhline(0, color=GREY, linestyle=":", linewidth=1)
    axes.scatter(x, residuals[order], s=4, color=BLUE, alpha=0.3, linewidths=0)
    blocks = np.array_split(np.arange(len(order)), min(60, len(order)))
    middles = [x[block[len(block) // 2]] for block in blocks]
    axes.plot(middles, [residuals[order][block].mean() for block in blocks], color=ORANGE, linewidth=1.5, label="mean")
    style_axes(axes, title, "", "predicted − true")
    axes.legend(frameon=False, loc="upper left")
    return to_png(figure)


def draw_residual_histogram(residuals: FloatArray) -> bytes:
    """Draw how often residuals of each size occur."""
    figure = new_figure(5, 3)
    axes = figure.subplots()
    edge = float(np.quantile(np.abs(residuals), 0.995)) or 1.0
    axes.hist(residuals.clip(-edge, edge), bins=60, color=BLUE)
    axes.axvline(0, color=GREY, linestyle=":", linewidth=1)
    style_axes(axes, "Errors", "predicted − true", "rows")
    return to_png(figure)


def draw_group_errors(title: str, groups: Sequence[str], mean_errors: Sequence[float]) -> bytes:
    """Draw the mean error of each group."""
    figure = new_figure(7, 1.0 + 0.28 * len(groups))
    axes = figure.subplots()
    axes.barh(range(len(groups)), mean_errors, color=[BLUE if error >= 0 else ORANGE for error in mean_errors])
    axes.set_yticks(range(len(groups)), groups)
    axes.invert_yaxis()
    style_axes(axes, title, "mean error (predicted − true)", "")
    return to_png(figure)
