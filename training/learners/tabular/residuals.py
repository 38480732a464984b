"""How far numbers that were predicted lie from the truth: over time, by group, and at their worst."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from training.core.results import Table
from training.evaluation.subgroups import assign_groups, sort_groups
from training.learners.tabular.target_scale import error

Numbers = NDArray[np.floating]

_FEW = 100
_WEEKS = 15
_MAX_PERIODS = 40
_NOTE = f"Groups of fewer than {_FEW} rows are marked *: their figures are uncertain."
_MEASURES = {"rmsle": "RMSLE", "rmspe": "RMSPE", "rmse": "RMSE", "mae": "MAE"}


@dataclass(frozen=True)
class Predicted:
    """What was said of some rows, all (n,) in the target's own unit.

    Attributes:
        truth: what it was.
        value: what was said.
        low: the lower end of the interval.
        high: its upper end.
        measured: the rows that did not calibrate the interval: how often it holds is told from them alone.
    """

    truth: Numbers
    value: Numbers
    low: Numbers
    high: Numbers
    measured: NDArray[np.bool_]

    def covered(self, where: NDArray[np.bool_] | None = None) -> float:
        """The share of the measuring rows (of those in `where`) that lie in their interval; NaN if there are none."""
        rows = self.measured if where is None else self.measured & where
        inside = (self.low <= self.truth) & (self.truth <= self.high)
        return float(inside[rows].mean()) if rows.any() else float("nan")


def by_group(title: str, names: Sequence[str], said: Predicted, measure: str) -> Table:
    """Errors of the rows of each name: how many, the mean truth, the mean error, one measure, and the coverage."""
    rows = []
    labels = np.array(names)
    for name in sort_groups(set(names)):
        members = labels == name
        count = int(members.sum())
        truth, value = said.truth[members], said.value[members]
        bias = float((value - truth).mean())
        covered = said.covered(members)
        rows.append(
            (
                name,
                f"{count}{'*' if count < _FEW else ''}",
                f"{truth.mean():.4g}",
                f"{bias:+.3g}",
                f"{error(measure, value, truth):.4g}",
                "–" if np.isnan(covered) else f"{covered:.2f}",
            )
        )
    header = ("group", "n", "mean", "mean error", _MEASURES[measure], "in the interval")
    return Table(title, header, tuple(rows), _NOTE)


def by_column(column: pl.Series, said: Predicted, measure: str) -> Table:
    """As `by_group`, for an audit column."""
    return by_group(f"By {column.name}", assign_groups(column), said, measure)


def by_time(times: pl.Series, said: Predicted, measure: str) -> tuple[Table, ...]:
    """As `by_group`, for each week or month (or tenth of the time), and for each hour where the times have hours."""
    if not times.dtype.is_temporal():
        tenths = (times.rank("dense") - 1) * 10 // times.n_unique() + 1
        names = [f"tenth {int(tenth):2d}" for tenth in tenths.to_list()]
        return (by_group(f"Over time, by tenths of {times.name}", names, said, measure),)
    found = [by_group(*_periods(times), said, measure)]
    if times.dtype == pl.Datetime and times.dt.hour().n_unique() > 1:
        hours = [f"{hour:02d} h" for hour in times.dt.hour().to_list()]
        found.append(by_group("By the hour", hours, said, measure))
    return tuple(found)


def _periods(times: pl.Series) -> tuple[str, list[str]]:
    days = times.cast(pl.Date)
    length = (days.max() - days.min()).days if len(days) else 0  # type: ignore[operator,union-attr]
    if length <= 7 * _WEEKS:
        return "Over time, by weeks", days.dt.truncate("1w").dt.to_string("week of %Y-%m-%d").to_list()
    if length <= 31 * _MAX_PERIODS:
        return "Over time, by months", days.dt.to_string("%Y-%m").to_list()
    return "Over time, by years", days.dt.to_string("%Y").to_list()


def worst(rows: Sequence[str], said: Predicted, apart: Numbers, count: int = 8) -> Table:
    """The rows that were missed by most; `apart` is the distance by which they are ranked, `rows` what to call them."""
    order = np.argsort(-apart, kind="stable")[:count]
    shown = tuple(
        (rows[i], f"{said.truth[i]:.5g}", f"{said.value[i]:.5g}", f"{said.low[i]:.5g} to {said.high[i]:.5g}")
        for i in order
    )
    return Table("Worst rows", ("row", "is", "said", "interval"), shown)


def worst_group(table: Table) -> str | None:
    """A sentence on the large group with the largest error; None where there is only one."""
    large = [row for row in table.rows if not row[1].endswith("*")]
    if len(large) < 2:
        return None
    row = max(large, key=lambda each: float(each[4]))
    return (
        f"{table.title}, it errs most for {row[0]}: {table.header[4]} {row[4]} of {row[1]} rows (mean error {row[3]})."
    )
