"""Dates as text, and the parts that a network can learn from: the month, the hour, the days gone by.

A date is ISO 8601 without a zone, `2012-09-01` or `2012-09-01T08:00`: what the clocks said where it happened.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Moments = NDArray[np.datetime64]
"""datetime64[s] (n,); NaT where a date is missing."""
Whole = NDArray[np.int64]

_ISO = re.compile(r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?)?", re.ASCII)
_DAY = 86_400


def read_date(text: str, *, clock: bool) -> datetime:
    """The date in `text`; `clock`: with the time of day. Raises ValueError with a sentence that says what is wrong."""
    wanted = "2012-09-01T08:00" if clock else "2012-09-01"
    if not _ISO.fullmatch(text):
        raise ValueError(f"{text[:40]!r} is no date as it is to be written here: {wanted}, without a zone")
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text[:40]!r} is no date: there is no such day or time") from None
    if clock and len(text) == len("2012-09-01"):
        raise ValueError(f"{text!r} has no time of day: write {wanted}")
    return found


def moments(values: Sequence[Any]) -> Moments:
    """The dates of these texts (None: missing), all of which `read_date` can read."""
    return np.array(["NaT" if value is None else value for value in values], "datetime64[s]")


def part(name: str, when: Moments, since: Moments) -> NDArray[np.float64]:
    """The named part of each date, NaN where it is missing; `since` is the moment that `elapsed` counts from."""
    found = _PARTS[name](when, since).astype(np.float64)
    found[np.isnat(when)] = np.nan
    return found


def _year(when: Moments) -> Whole:
    return when.astype("datetime64[Y]").astype(np.int64) + 1970


def _month(when: Moments) -> Whole:
    return when.astype("datetime64[M]").astype(np.int64) % 12 + 1


def _weekday(when: Moments) -> Whole:
    """0: Monday … 6: Sunday. The first of January 1970 was a Thursday."""
    found: Whole = (when.astype("datetime64[D]").astype(np.int64) + 3) % 7
    return found


def _day(when: Moments) -> Whole:
    found: Whole = _days(when, "datetime64[M]") + 1
    return found


def _day_of_year(when: Moments) -> Whole:
    found: Whole = _days(when, "datetime64[Y]") + 1
    return found


def _days(when: Moments, unit: str) -> Whole:
    """Days since the month or the year began."""
    found: Whole = (when.astype("datetime64[D]") - when.astype(unit).astype("datetime64[D]")).astype(np.int64)
    return found


def _week(when: Moments) -> Whole:
    """The week of ISO 8601: that of its Thursday, counted from the first of that day's year."""
    thursday = when.astype("datetime64[D]") + (3 - _weekday(when))
    found: Whole = (_day_of_year(thursday.astype("datetime64[s]")) - 1) // 7 + 1
    return found


def _ends(when: Moments, unit: str) -> Whole:
    """Whether the next day is in another month or year."""
    tomorrow = when.astype("datetime64[D]") + 1
    found: Whole = (tomorrow.astype(unit) != when.astype(unit)).astype(np.int64)
    return found


def _of_quarter(months: Sequence[int]) -> Callable[[Moments], NDArray[np.bool_]]:
    return lambda when: np.isin(_month(when), months)


_PARTS: Mapping[str, Callable[[Moments, Moments], NDArray[Any]]] = MappingProxyType(
    {
        "year": lambda when, _: _year(when),
        "quarter": lambda when, _: (_month(when) - 1) // 3 + 1,
        "month": lambda when, _: _month(when),
        "week": lambda when, _: _week(when),
        "day": lambda when, _: _day(when),
        "weekday": lambda when, _: _weekday(when),
        "hour": lambda when, _: when.astype("datetime64[h]").astype(np.int64) % 24,
        "day_of_year": lambda when, _: _day_of_year(when),
        "hour_of_week": lambda when, _: _weekday(when) * 24 + when.astype("datetime64[h]").astype(np.int64) % 24,
        "elapsed": lambda when, since: (when - since).astype(np.int64) / _DAY,
        "is_month_start": lambda when, _: _day(when) == 1,
        "is_month_end": lambda when, _: _ends(when, "datetime64[M]"),
        "is_quarter_start": lambda when, _: (_day(when) == 1) & _of_quarter((1, 4, 7, 10))(when),
        "is_quarter_end": lambda when, _: _ends(when, "datetime64[M]") & _of_quarter((3, 6, 9, 12))(when),
        "is_year_start": lambda when, _: _day_of_year(when) == 1,
        "is_year_end": lambda when, _: _ends(when, "datetime64[Y]"),
    }
)

PARTS = tuple(_PARTS)
"""The names of all parts. `elapsed` is in days, `weekday` 0 for Monday, `week` that of ISO 8601."""
NUMBERS = ("day_of_year", "elapsed", *(name for name in PARTS if name.startswith("is_")))
"""The parts that are numbers; the others are categories."""
