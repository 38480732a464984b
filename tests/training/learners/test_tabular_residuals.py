"""Residuals of a regression: predictions tabulated by group and over time, and the worst rows."""

import datetime

import numpy as np
import polars as pl
import pytest

from training.learners.tabular.residuals import (
    Predictions,
    describe_worst_group,
    tabulate_groups,
    tabulate_over_time,
    tabulate_worst,
)


def predictions(count=200):
    random = np.random.default_rng(0)
    true = random.uniform(10, 20, count)
    value = true + random.normal(0, 1, count)
    return Predictions(true, value, value - 1.2816, value + 1.2816, np.arange(count) % 2 == 0)


def test_groups_show_error_and_coverage():
    predicted = predictions()
    groups = ["small"] * 20 + ["large"] * 180

    table = tabulate_groups("By size", groups, predicted, "rmse")

    large, small = table.rows
    assert (small[:2], large[:2]) == (("small", "20*"), ("large", "180"))
    assert float(large[4]) == pytest.approx(np.sqrt(((predicted.value - predicted.true)[20:] ** 2).mean()), rel=1e-3)
    assert 0.7 < float(large[5]) < 0.9
    assert describe_worst_group(table) is None, "there is one large group"


def test_coverage_is_measured_on_rows_that_did_not_calibrate():
    predicted = Predictions(
        np.zeros(4), np.zeros(4), np.array([-1, 1, -1, 1.0]), np.full(4, 2.0), np.array([0, 0, 1, 1]) == 1
    )

    assert predicted.coverage() == 0.5
    assert np.isnan(predicted.coverage(np.array([True, False, False, False])))


@pytest.mark.parametrize(("days", "title"), [(60, "weeks"), (400, "months"), (3000, "years")])
def test_errors_over_time_are_by_weeks_months_or_years(days, title):
    start = datetime.date(2001, 1, 1)
    times = pl.Series("day", [start + datetime.timedelta(days=i * days // 200) for i in range(200)])

    (table,) = tabulate_over_time(times, predictions(), "mae")

    assert table.title == f"Over time, by {title}"
    assert sum(int(row[1].rstrip("*")) for row in table.rows) == 200


def test_errors_over_time_are_by_hours_too_or_by_tenths_of_a_number():
    start = datetime.datetime(2001, 1, 1)
    hours = pl.Series("at", [start + datetime.timedelta(hours=i) for i in range(200)])

    titles = [table.title for table in tabulate_over_time(hours, predictions(), "mae")]
    (tenths,) = tabulate_over_time(pl.Series("week", list(range(200))), predictions(), "mae")

    assert titles == ["Over time, by weeks", "By the hour"]
    assert [row[1] for row in tenths.rows] == ["20*"] * 10


def test_worst_rows_are_sorted_by_error():
    predicted = predictions()
    errors = np.abs(predicted.value - predicted.true)

    table = tabulate_worst([f"row {i}" for i in range(200)], predicted, errors, count=3)

    assert [row[0] for row in table.rows] == [f"row {i}" for i in np.argsort(-errors)[:3]]
