"""The parts of a date are what the calendar says they are."""

from datetime import datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks._dates import NUMBERS, PARTS, date_part, parse_dates, read_date
from tasks._tables import CategoryColumn, DateColumn, NumberColumn

FIRST = datetime(2011, 1, 1)
DATES = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1)).map(lambda when: when.replace(microsecond=0))


def parts_of(when: datetime) -> dict[str, float]:
    values, since = parse_dates([when.isoformat()]), parse_dates([FIRST.isoformat()])
    return {name: float(date_part(name, values, since)[0]) for name in PARTS}


@given(DATES)
def test_each_part_is_that_of_the_standard_library(when: datetime) -> None:
    tomorrow = when + timedelta(days=1)

    expected = {
        "year": when.year,
        "quarter": (when.month - 1) // 3 + 1,
        "month": when.month,
        "week": when.isocalendar().week,
        "day": when.day,
        "weekday": when.weekday(),
        "hour": when.hour,
        "hour_of_week": when.weekday() * 24 + when.hour,
        "day_of_year": when.timetuple().tm_yday,
        "elapsed": pytest.approx((when - FIRST) / timedelta(days=1)),
        "is_month_start": when.day == 1,
        "is_month_end": tomorrow.day == 1,
        "is_quarter_start": when.day == 1 and when.month % 3 == 1,
        "is_quarter_end": tomorrow.day == 1 and when.month % 3 == 0,
        "is_year_start": (when.month, when.day) == (1, 1),
        "is_year_end": (when.month, when.day) == (12, 31),
    }
    assert parts_of(when) == expected


@given(DATES, st.booleans())
def test_what_isoformat_writes_is_read(when: datetime, clock: bool) -> None:
    assert read_date(when.isoformat(), clock=clock) == when
    assert read_date(when.isoformat(" ", "minutes"), clock=clock) == when.replace(second=0)
    assert read_date(when.date().isoformat(), clock=False) == datetime.combine(when.date(), datetime.min.time())


def test_no_part_of_a_missing_date_is_known() -> None:
    values, since = parse_dates([None, "2012-01-01"]), parse_dates(["2011-01-01"])

    assert all(np.isnan(date_part(name, values, since)).tolist() == [True, False] for name in PARTS)


def test_every_part_is_a_category_or_a_number() -> None:
    assert set(NUMBERS) < set(PARTS)


def test_a_part_that_training_never_saw_is_unknown_and_the_days_go_on() -> None:
    column = DateColumn(
        "day",
        "2012-01-01",
        "2012-03-31",
        parts=(CategoryColumn("month", ("1", "2", "3"), integer=True), NumberColumn("elapsed", 0.0, 90.0)),
    )

    categories, numbers = column.encode(["2012-03-31", "2012-04-01", None, "2011-12-31"])

    assert categories[:, 0].tolist() == [4, 1, 0, 1]
    assert numbers[:, 0].tolist()[:2] == [90.0, 91.0]
    assert numbers[3, 0] == -1.0
    assert [each.name for each in (*column.categories, *column.numbers)] == ["day.month", "day.elapsed"]


def test_a_day_is_not_after_itself_where_the_hour_is_not_read() -> None:
    column = DateColumn("day", "2012-01-01", "2012-03-31", parts=())

    assert column.notice("2012-03-31T23:59") is None
    assert "after the last" in (column.notice("2012-04-01T00:00") or "")
