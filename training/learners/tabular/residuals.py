"""Residuals of a regression network: over time, by group, and the worst rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from training.core.results import Table
from training.core.sentences import plain_number
from training.evaluation.subgroups import assign_groups, sort_groups
from training.learners.tabular.regression_metrics import compute_error

FloatArray = NDArray[np.floating]

_MIN_GROUP = 100
_MAX_WEEKS = 15
_MAX_MONTHS = 40
_NOTE = f"* fewer than {_MIN_GROUP} rows: the figures are uncertain."


@dataclass(frozen=True)
class Predictions:
    """Predictions of validation rows, each array (n,), in the target's unit.

    Attributes:
        true: the true values.
        value: the predicted values.
        low: the lower end of the interval.
        high: the upper end of the interval.
        measures_coverage: bool, the rows that did not calibrate the interval. Coverage is measured on them alone.
    """

    true: FloatArray
    value: FloatArray
    low: FloatArray
    high: FloatArray
    measures_coverage: NDArray[np.bool_]

    @property
    def is_covered(self) -> NDArray[np.bool_]:
        """Whether the true value lies in the interval."""
        covered: NDArray[np.bool_] = (self.low <= self.true) & (self.true <= self.high)
        return covered

    def coverage(self, members: NDArray[np.bool_] | None = None) -> float:
        """Return the fraction of rows (of `members`, if given) that lie in their interval; NaN if there are none."""
        rows = self.measures_coverage if members is None else self.measures_coverage & members
        return float(self.is_covered[rows].mean()) if rows.any() else float("nan")


def tabulate_groups(title: str, groups: Sequence[str], predictions: Predictions, metric: str) -> Table:
    """Tabulate the errors by group: count, mean true value, mean error, one metric, and coverage.

    `groups` holds the group of each row.
    """
    rows = []
    group_of_row = np.array(groups)
    for group in sort_groups(set(groups)):
        members = group_of_row == group
        count = int(members.sum())
        true, value = predictions.true[members], predictions.value[members]
        coverage = predictions.coverage(members)
        rows.append(
            (
                group,
                f"{count}{'*' if count < _MIN_GROUP else ''}",
                f"{plain_number(float(true.mean()), 4)}",
                f"{float((value - true).mean()):+.3g}",
                f"{plain_number(compute_error(metric, value, true), 4)}",
                "–" if np.isnan(coverage) else f"{coverage:.2f}",
            )
        )
    header = ("group", "count", "mean", "mean error", metric.upper(), "coverage of the interval")
    return Table(title, header, tuple(rows), _NOTE if any(row[1].endswith("*") for row in rows) else "")


def tabulate_column(column: pl.Series, predictions: Predictions, metric: str) -> Table:
    """As `tabulate_groups`, for the values or ranges of an audit column."""
    return tabulate_groups(f"By {column.name}", assign_groups(column), predictions, metric)


def tabulate_over_time(times: pl.Series, predictions: Predictions, metric: str) -> tuple[Table, ...]:
    """As `tabulate_groups`, by week, month or year (or tenth of a numeric time), and by hour if there are hours."""
    if not times.dtype.is_temporal():
        tenths = (times.rank("dense") - 1) * 10 // times.n_unique() + 1
        groups = [f"tenth {int(tenth):2d}" for tenth in tenths.to_list()]
        return (tabulate_groups(f"Over time, by tenths of {times.name}", groups, predictions, metric),)
    tables = [tabulate_groups(*_periods(times), predictions, metric)]
    if times.dtype == pl.Datetime and times.dt.hour().n_unique() > 1:
        hours = [f"{hour:02d} h" for hour in times.dt.hour().to_list()]
        tables.append(tabulate_groups("By the hour", hours, predictions, metric))
    return tuple(tables)


def _periods(times: pl.Series) -> tuple[str, list[str]]:
    days = times.cast(pl.Date)
    length = (days.max() - days.min()).days if len(days) else 0  # type: ignore[operator,union-attr]
    if length <= 7 * _MAX_WEEKS:
        return "Over time, by weeks", days.dt.truncate("1w").dt.to_string("week of %Y-%m-%d").to_list()
    if length <= 31 * _MAX_MONTHS:
        return "Over time, by months", days.dt.to_string("%Y-%m").to_list()
    return "Over time, by years", days.dt.to_string("%Y").to_list()


def tabulate_worst(names: Sequence[str], predictions: Predictions, errors: FloatArray, count: int = 8) -> Table:
    """Tabulate the rows with the largest of `errors`; `names` says what to call each row."""
    order = np.argsort(-errors, kind="stable")[:count]
    true, value, low, high = predictions.true, predictions.value, predictions.low, predictions.high
    rows = tuple(
        (
            names[i],
            f"{plain_number(true[i], 5)}",
            f"{plain_number(value[i], 5)}",
            f"{plain_number(low[i], 5)} to {plain_number(high[i], 5)}",
        )
        for i in order
    )
    return Table("Worst rows", ("row", "true", "predicted", "interval"), rows)


def describe_worst_group(table: Table) -> str | None:
    """Return a sentence on the large group with the largest error; None if no large group has a smaller one."""
    large = [row for row in table.rows if not row[1].endswith("*")]
    if len({row[4] for row in large}) < 2:
        return None
    group, count, _, bias, error, _ = max(large, key=lambda row: float(row[4]))
    metric = table.header[4]
    return f"{table.title}, the error is largest for {group}: {metric} {error} on {count} rows (mean error {bias})."
