"""The figures of a report on numbers, as PNG files."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.reporting.plots import BLUE, GREY, ORANGE, new_figure, style_axes, to_png

Numbers = NDArray[np.floating]

_MAX_POINTS = 5_000


def against_truth(truth: Numbers, value: Numbers, *, log: bool) -> bytes:
    """What was said over what it was; on the line, both are the same."""
    some = np.linspace(0, len(truth) - 1, min(len(truth), _MAX_POINTS)).astype(int)
    sheet = new_figure(5, 4.6)
    axes = sheet.subplots()
    axes.scatter(truth[some], value[some], s=5, color=BLUE, alpha=0.3, linewidths=0)
    ends = [float(min(truth.min(), value.min())), float(max(truth.max(), value.max()))]
    axes.plot(ends, ends, color=GREY, linestyle=":", linewidth=1)
    if log:
        axes.set_xscale("symlog", linthresh=1)
        axes.set_yscale("symlog", linthresh=1)
    style_axes(axes, "Said, and what it was", "is", "said")
    return to_png(sheet)


def over_time(times: Sequence[Any], truth: Numbers, value: Numbers, low: Numbers, high: Numbers, title: str) -> bytes:
    """What it was and what was said, in the order of time, with the interval."""
    order = np.argsort(np.array(times), kind="stable")
    sheet = new_figure(11, 3.4)
    axes = sheet.subplots()
    across = [times[i] for i in order]
    axes.fill_between(across, low[order], high[order], color=BLUE, alpha=0.15, linewidth=0, label="interval")
    axes.plot(across, truth[order], color=GREY, linewidth=1, label="is")
    axes.plot(across, value[order], color=BLUE, linewidth=1, label="said")
    style_axes(axes, title, "", "")
    axes.legend(frameon=False, loc="upper left", ncols=3)
    return to_png(sheet)


def residuals(times: Sequence[Any], apart: Numbers, title: str) -> bytes:
    """The error of each row over time, as it is learnt, with the mean of each of up to sixty stretches of time."""
    order = np.argsort(np.array(times), kind="stable")
    across = [times[i] for i in order]
    sheet = new_figure(11, 3)
    axes = sheet.subplots()
    axes.axhline(0, color=GREY, linestyle=":", linewidth=1)
    axes.scatter(across, apart[order], s=4, color=BLUE, alpha=0.3, linewidths=0)
    parts = np.array_split(np.arange(len(order)), min(60, len(order)))
    middles = [across[part[len(part) // 2]] for part in parts]
    axes.plot(middles, [apart[order][part].mean() for part in parts], color=ORANGE, linewidth=1.5, label="mean")
    style_axes(axes, title, "", "said − is")
    axes.legend(frameon=False, loc="upper left")
    return to_png(sheet)


def spread(apart: Numbers) -> bytes:
    """How often errors of each size are, as they are learnt."""
    sheet = new_figure(5, 3)
    axes = sheet.subplots()
    edge = float(np.quantile(np.abs(apart), 0.995)) or 1.0
    axes.hist(apart.clip(-edge, edge), bins=60, color=BLUE)
    axes.axvline(0, color=GREY, linestyle=":", linewidth=1)
    style_axes(axes, "Errors", "said − is", "rows")
    return to_png(sheet)


def groups(title: str, names: Sequence[str], biases: Sequence[float]) -> bytes:
    """The mean error of each group."""
    sheet = new_figure(7, 1.0 + 0.28 * len(names))
    axes = sheet.subplots()
    axes.barh(range(len(names)), biases, color=[BLUE if each >= 0 else ORANGE for each in biases])
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    style_axes(axes, title, "mean error (said − is)", "")
    return to_png(sheet)
