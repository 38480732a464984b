"""Parse dates, and split them into parts that a network can learn from: month, hour, days elapsed.

A date is ISO 8601 without a time zone, `2012-09-01` or `2012-09-01T08:00`: local time.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Dates = NDArray[np.datetime64]
"""datetime64[s] (n,); NaT for a missing date."""
Integers = NDArray[np.int64]

_ISO = re.compile(r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?)?", re.ASCII)
_DAY_S = 86_400


def read_date(text: str, *, clock: bool) -> datetime:
    """Parse a date; `clock` requires a time of day. Raises ValueError with a message for the client."""
    example = "2012-09-01T08:00" if clock else "2012-09-01"
    if not _ISO.fullmatch(text):
        raise ValueError(f"{text[:40]!r} is not a date in the expected format: {example}, without a time zone")
    try:
        date = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text[:40]!r} is not a date: there is no such day or time") from None
    if clock and len(text) == len("2012-09-01"):
        raise ValueError(f"{text!r} has no time of day: write {example}")
    return date


def parse_dates(texts: Sequence[Any]) -> Dates:
    """Convert texts that `read_date` accepts (None for a missing date) to an array."""
    return np.array(["NaT" if text is None else text for text in texts], "datetime64[s]")


def date_part(name: str, dates: Dates, since: Dates) -> NDArray[np.float64]:
    """Return the named part of each date, NaN if the date is missing; `elapsed` counts from `since`."""
    values = _PARTS[name](dates, since).astype(np.float64)
    values[np.isnat(dates)] = np.nan
    return values


def _year(dates: Dates) -> Integers:
    return dates.astype("datetime64[Y]").astype(np.int64) + 1970


def _month(dates: Dates) -> Integers:
    return dates.astype("datetime64[M]").astype(np.int64) % 12 + 1


def _weekday(dates: Dates) -> Integers:
    """0: Monday … 6: Sunday. The first of January 1970 was a Thursday."""
    weekday: Integers = (dates.astype("datetime64[D]").astype(np.int64) + 3) % 7
    return weekday


def _day(dates: Dates) -> Integers:
    day: Integers = _days_since_start(dates, "datetime64[M]") + 1
    return day


def _day_of_year(dates: Dates) -> Integers:
    day: Integers = _days_since_start(dates, "datetime64[Y]") + 1
    return day


def _days_since_start(dates: Dates, unit: str) -> Integers:
    """Days since the start of the month or year."""
    days: Integers = (dates.astype("datetime64[D]") - dates.astype(unit).astype("datetime64[D]")).astype(np.int64)
    return days


def _week(dates: Dates) -> Integers:
    """The ISO 8601 week: the week of the year of the same week's Thursday."""
    thursday = dates.astype("datetime64[D]") + (3 - _weekday(dates))
    week: Integers = (_day_of_year(thursday.astype("datetime64[s]")) - 1) // 7 + 1
    return week


def _is_last_day(dates: Dates, unit: str) -> Integers:
    """Whether the next day is in another month or year."""
    tomorrow = dates.astype("datetime64[D]") + 1
    is_last: Integers = (tomorrow.astype(unit) != dates.astype(unit)).astype(np.int64)
    return is_last


def _is_in_months(dates: Dates, months: Sequence[int]) -> NDArray[np.bool_]:
    return np.isin(_month(dates), months)


_PARTS: Mapping[str, Callable[[Dates, Dates], NDArray[Any]]] = MappingProxyType(
    {
        "year": lambda dates, _: _year(dates),
        "quarter": lambda dates, _: (_month(dates) - 1) // 3 + 1,
        "month": lambda dates, _: _month(dates),
        "week": lambda dates, _: _week(dates),
        "day": lambda dates, _: _day(dates),
        "weekday": lambda dates, _: _weekday(dates),
        "hour": lambda dates, _: dates.astype("datetime64[h]").astype(np.int64) % 24,
        "day_of_year": lambda dates, _: _day_of_year(dates),
        "hour_of_week": lambda dates, _: _weekday(dates) * 24 + dates.astype("datetime64[h]").astype(np.int64) % 24,
        "elapsed": lambda dates, since: (dates - since).astype(np.int64) / _DAY_S,
        "is_month_start": lambda dates, _: _day(dates) == 1,
        "is_month_end": lambda dates, _: _is_last_day(dates, "datetime64[M]"),
        "is_quarter_start": lambda dates, _: (_day(dates) == 1) & _is_in_months(dates, (1, 4, 7, 10)),
        "is_quarter_end": lambda dates, _: _is_last_day(dates, "datetime64[M]") & _is_in_months(dates, (3, 6, 9, 12)),
        "is_year_start": lambda dates, _: _day_of_year(dates) == 1,
        "is_year_end": lambda dates, _: _is_last_day(dates, "datetime64[Y]"),
    }
)

PARTS = tuple(_PARTS)
"""The names of all parts. `elapsed` is in days, `weekday` is 0 for Monday, and `week` is the ISO 8601 week."""
NUMBERS = ("day_of_year", "elapsed", *(name for name in PARTS if name.startswith("is_")))
"""The parts that are numbers; the others are categories."""
