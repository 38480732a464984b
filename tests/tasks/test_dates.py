"""Parsing of dates, and the parts of a date."""

from datetime import datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks._dates import NUMBERS, PARTS, date_part, parse_dates, read_date
from tasks._tables import CategoryColumn, DateColumn, NumberColumn

FIRST = datetime(2011, 1, 1)
DATES = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1)).map(lambda date: date.replace(microsecond=0))


def parts_of(date: datetime) -> dict[str, float]:
    dates, since = parse_dates([date.isoformat()]), parse_dates([FIRST.isoformat()])
    return {name: float(date_part(name, dates, since)[0]) for name in PARTS}


@given(DATES)
def test_date_parts_equal_those_of_the_standard_library(date: datetime) -> None:
    tomorrow = date + timedelta(days=1)

    expected = {
        "year": date.year,
        "quarter": (date.month - 1) // 3 + 1,
        "month": date.month,
        "week": date.isocalendar().week,
        "day": date.day,
        "weekday": date.weekday(),
        "hour": date.hour,
        "hour_of_week": date.weekday() * 24 + date.hour,
        "day_of_year": date.timetuple().tm_yday,
        "elapsed": pytest.approx((date - FIRST) / timedelta(days=1)),
        "is_month_start": date.day == 1,
        "is_month_end": tomorrow.day == 1,
        "is_quarter_start": date.day == 1 and date.month % 3 == 1,
        "is_quarter_end": tomorrow.day == 1 and date.month % 3 == 0,
        "is_year_start": (date.month, date.day) == (1, 1),
        "is_year_end": (date.month, date.day) == (12, 31),
    }
    assert parts_of(date) == expected


@given(DATES, st.booleans())
def test_read_date_accepts_what_isoformat_writes(date: datetime, clock: bool) -> None:
    assert read_date(date.isoformat(), clock=clock) == date
    assert read_date(date.isoformat(" ", "minutes"), clock=clock) == date.replace(second=0)
    assert read_date(date.date().isoformat(), clock=False) == datetime.combine(date.date(), datetime.min.time())


def test_every_part_of_a_missing_date_is_nan() -> None:
    dates, since = parse_dates([None, "2012-01-01"]), parse_dates(["2011-01-01"])

    assert all(np.isnan(date_part(name, dates, since)).tolist() == [True, False] for name in PARTS)


def test_every_part_is_a_category_or_a_number() -> None:
    assert set(NUMBERS) < set(PARTS)


def test_unseen_part_is_encoded_as_unknown_and_elapsed_continues() -> None:
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
    assert [part.name for part in (*column.categories, *column.numbers)] == ["day.month", "day.elapsed"]


def test_last_day_has_no_notice_at_any_hour_without_a_clock() -> None:
    column = DateColumn("day", "2012-01-01", "2012-03-31", parts=())

    assert column.notice("2012-03-31T23:59") is None
    assert "after the last" in (column.notice("2012-04-01T00:00") or "")
