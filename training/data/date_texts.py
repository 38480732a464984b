"""Reads dates from text in their usual forms, and says in which order day and month were read."""

from dataclasses import dataclass
from functools import reduce

import polars as pl

from training.core.errors import CannotTrain

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_FULL_NAMES = (
    *("jan(?:uary)?", "feb(?:ruary)?", "mar(?:ch)?", "apr(?:il)?", "may", "june?", "july?", "aug(?:ust)?"),
    *("sept?(?:ember)?", "oct(?:ober)?", "nov(?:ember)?", "dec(?:ember)?"),
)
_NAME = rf"(?P<name>{'|'.join(_FULL_NAMES)})\.?"
_DAY = r"(?P<day>[0-9]{1,2})(?:st|nd|rd|th)?\.?"
_CLOCK = r"(?P<hour>[0-9]{1,2}):(?P<minute>[0-9]{2})(?::(?P<second>[0-9]{2})(?:[.,](?P<fraction>[0-9]{1,9}))?)?"
_ZONE = r"(?P<zone>Z|(?:UTC|GMT)?[-+][0-9]{2}(?::?[0-9]{2})?|[A-Z]{2,5})(?: ?\([^)]*\)|\[[\w/+-]+\])?"
_TIME = rf"(?:[T ,:]+{_CLOCK} ?(?P<half>[AP]\.?M\.?)?(?: ?{_ZONE})?)?"
_WEEKDAY = r"(?:(?:mon|tue|wed|thu|fri|sat|sun)[a-z]{0,6}\.?,? +)?"
_FORMS = (
    rf"(?P<year>[0-9]{{4}})[-/.](?P<month>[0-9]{{1,2}})[-/.](?P<day>[0-9]{{1,2}}){_TIME}",
    rf"{_WEEKDAY}(?P<first>[0-9]{{1,2}})[-/.](?P<other>[0-9]{{1,2}})[-/.](?P<year>[0-9]{{4}}){_TIME}",
    rf"{_WEEKDAY}(?P<first>[0-9]{{1,2}})[/.](?P<other>[0-9]{{1,2}})[/.](?P<year>[0-9]{{2}}){_TIME}",
    rf"{_WEEKDAY}{_DAY}[-/. ]{{1,2}}{_NAME},?[-/. ](?P<year>[0-9]{{4}}|[0-9]{{2}}){_TIME}",
    rf"{_WEEKDAY}{_NAME}[- ]+{_DAY},?[- ]+(?P<year>[0-9]{{4}}){_TIME}",
    rf"{_WEEKDAY}{_NAME} +{_DAY} +{_CLOCK} (?:{_ZONE} )?(?P<year>[0-9]{{4}})",
    r"(?P<year>19[0-9]{2}|20[0-9]{2})-(?P<month>[0-9]{2})",
    r"(?P<year>19[0-9]{2}|20[0-9]{2})(?P<month>[0-9]{2})(?P<day>[0-9]{2})"
    rf"(?:T?(?P<hour>[0-9]{{2}})(?P<minute>[0-9]{{2}})(?P<second>[0-9]{{2}})?(?:{_ZONE})?)?",
)
_PARTS = ("year", "month", "day", "first", "other", "name", "hour", "minute", "second", "fraction", "half", "zone")
_PLAIN = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?)?$"
"""The forms that requests may use too; see `tasks._dates`."""
_FIRST_LATE_YEAR = 69
"""Years of two digits: 69 is 1969, and 68 is 2068, as in POSIX."""
_MAX_CONTRARY = 0.1
_SAMPLE = 200


@dataclass(frozen=True)
class DateTexts:
    """Dates that were read from texts.

    Attributes:
        dates: Date, or Datetime in microseconds if a text has a time of day, as on the clock at the place; null where a
            text is no date.
        offsets: minutes by which the clock is ahead of UTC; 0 if the text has no offset.
        order: "day" or "month": which of the two came first; empty if no text left that open.
        zones: the time zones as they were written.
        is_plain: whether all are written as requests write them.
        example: a text, one that shows the order if there is one, and the date that it is read as.
    """

    dates: pl.Series
    offsets: pl.Series
    order: str
    zones: tuple[str, ...]
    is_plain: bool
    example: tuple[str, str]


class AmbiguousDates(CannotTrain):
    """Day and month cannot be told apart in a column of dates; the user must say which comes first."""


def read_date_texts(texts: pl.Series, *, dayfirst: bool | None) -> DateTexts | None:
    """Read a column of stripped texts as dates; None if fewer than half of them are dates.

    The values decide whether the day or the month comes first: one of them is above 12. If no value decides, `dayfirst`
    does; if it is None, the day comes first in dates with points (31.12.2020), as everywhere where these are used, and
    all others are ambiguous. Two digits of a year count from 1969 to 2068.

    Raises AmbiguousDates, also if some values say that the day comes first, and as many that the month does.
    """
    known = texts.drop_nulls()
    sample = known.gather_every(max(1, len(known) // _SAMPLE))
    if not len(known) or 2 * _is_date_text(sample).sum() < len(sample):
        return None
    parts = _extract(texts)
    order = _find_order(parts, texts, dayfirst)
    moments = _build(parts, order)
    if 2 * (len(moments) - moments.null_count()) < len(known):
        return None
    has_clock = parts["hour"].is_not_null().any()
    dates = moments if has_clock else moments.cast(pl.Date)
    read = texts.filter(dates.is_not_null())
    zones = parts.filter(dates.is_not_null())["zone"].drop_nulls().unique().sort().to_list()
    example = _example(texts, dates, parts)
    is_plain = bool(read.str.contains(_PLAIN).all())
    return DateTexts(dates.alias(texts.name), _offsets(parts["zone"]), order, tuple(zones), is_plain, example)


def read_moment(text: str, *, dayfirst: bool | None) -> DateTexts | None:
    """Read one date, that of an option; None if it is not one. Raises AmbiguousDates."""
    return read_date_texts(pl.Series("date", [text.strip()]), dayfirst=dayfirst)


def _is_date_text(texts: pl.Series) -> pl.Series:
    return texts.str.contains("(?i)^(?:" + "|".join(_unnamed(form) for form in _FORMS) + ")$")


def _unnamed(form: str) -> str:
    """Make groups anonymous: names must not repeat in the alternatives of one pattern."""
    return reduce(lambda pattern, part: pattern.replace(f"(?P<{part}>", "(?:"), _PARTS, form)


def _extract(texts: pl.Series) -> pl.DataFrame:
    """Return the parts of each text by the first form that it has, as text; null for parts that it does not have."""
    found: list[pl.DataFrame] = []
    for form in _FORMS:
        groups = texts.str.extract_groups(f"(?i)^{form}$").struct.unnest()
        found.append(
            groups.with_columns(pl.lit(None, pl.String).alias(part) for part in _PARTS if part not in groups.columns)
        )
    is_form = [groups["year"].is_not_null() for groups in found]
    columns = []
    for part in _PARTS:
        column = pl.lit(None, pl.String)
        for matches, groups in zip(reversed(is_form), reversed(found), strict=True):
            column = pl.when(matches).then(groups[part]).otherwise(column)
        columns.append(column.alias(part))
    return texts.to_frame("text").select(columns)


def _find_order(parts: pl.DataFrame, texts: pl.Series, dayfirst: bool | None) -> str:
    is_open = parts["first"].is_not_null()
    first, second = (parts[name].cast(pl.Int64) for name in ("first", "other"))
    days = int(((first > 12) & (second <= 12)).sum())
    months = int(((second > 12) & (first <= 12)).sum())
    if not is_open.any():
        return ""
    if days and months:
        if min(days, months) > _MAX_CONTRARY * (days + months):
            one, other = (texts.filter(above > 12)[0] for above in (first, second))
            raise AmbiguousDates(
                f"contains dates with the day first ('{one}') and with the month first ('{other}'); write all of them "
                "as 2020-12-31"
            )
        return "day" if days > months else "month"
    if days or months:
        return "day" if days else "month"
    if dayfirst is not None:
        return "day" if dayfirst else "month"
    written = texts.filter(is_open)
    if written.str.contains(r"^\D*[0-9]+\.[0-9]+\.").all():
        return "day"
    raise AmbiguousDates(
        f"contains dates like '{written[0]}', and no value shows whether the day or the month comes first; add "
        "--dayfirst or --no-dayfirst"
    )


def _build(parts: pl.DataFrame, order: str) -> pl.Series:
    """Return Datetime in microseconds, null where there is no such day or time."""
    day, month = ("first", "other") if order == "day" else ("other", "first")
    year = pl.col("year").cast(pl.Int64)
    is_short = pl.col("year").str.len_chars() == 2
    century = pl.when(~is_short).then(0).when(year >= _FIRST_LATE_YEAR).then(1900).otherwise(2000)
    name = pl.col("name").str.to_lowercase().str.slice(0, 3).replace_strict(_MONTHS, range(1, 13), default=None)
    hour = pl.col("hour").cast(pl.Int64)
    half = pl.col("half").str.to_lowercase().str.slice(0, 1)
    hour = (
        pl.when((half == "p") & (hour < 12)).then(hour + 12).when((half == "a") & (hour == 12)).then(0).otherwise(hour)
    )
    numbers = parts.select(
        (year + century).alias("year"),
        pl.coalesce(pl.col("month").cast(pl.Int64), name, pl.col(month).cast(pl.Int64)).alias("month"),
        # The first of the month, where only a month is given.
        pl.coalesce(
            pl.col("day").cast(pl.Int64), pl.col(day).cast(pl.Int64), pl.when(pl.col("year").is_not_null()).then(1)
        ).alias("day"),
        hour.fill_null(0).alias("hour"),
        pl.col("minute").fill_null("0"),
        pl.col("second").fill_null("0"),
        pl.col("fraction").fill_null("0").str.slice(0, 6).str.pad_end(6, "0"),
    )
    padded = [pl.col(name).cast(pl.String).str.zfill(4 if name == "year" else 2) for name in numbers.columns]
    text = pl.format("{}-{}-{} {}:{}:{}.{}", *padded)
    return numbers.select(text.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", strict=False, time_unit="us")).to_series()


def _offsets(zones: pl.Series) -> pl.Series:
    """Return the offsets from UTC in minutes; 0 for names of time zones."""
    groups = zones.str.extract_groups(r"([-+])([0-9]{2}):?([0-9]{2})?$").struct.unnest()
    sign, hours, minutes = (groups[name] for name in groups.columns)
    total = hours.cast(pl.Int64) * 60 + minutes.fill_null("0").cast(pl.Int64)
    return pl.select(pl.when(sign == "-").then(-total).otherwise(total).fill_null(0)).to_series()


def _example(texts: pl.Series, dates: pl.Series, parts: pl.DataFrame) -> tuple[str, str]:
    is_read = dates.is_not_null()
    is_telling = is_read & ((parts["first"].cast(pl.Int64) > 12) | (parts["other"].cast(pl.Int64) > 12)).fill_null(
        False
    )
    (index,) = (is_telling if is_telling.any() else is_read).arg_true()[:1].to_list()
    value = dates[index]
    return texts[index], f"{value:%Y-%m-%dT%H:%M}" if dates.dtype == pl.Datetime else f"{value:%Y-%m-%d}"
