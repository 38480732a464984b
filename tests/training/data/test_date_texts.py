"""Dates as programs and people write them."""

from datetime import datetime

import polars as pl
import pytest

from training.data.date_texts import AmbiguousDates, read_date_texts, read_moment


def read(*texts, dayfirst=None):
    return read_date_texts(pl.Series("when", texts, dtype=pl.String), dayfirst=dayfirst)


@pytest.mark.parametrize(
    "text",
    [
        "2020-12-31",
        "2020/12/31",
        "2020.12.31",
        "20201231",
        "31.12.2020",
        "31/12/2020",
        "12/31/2020",
        "12-31-2020",
        "31.12.20",
        "31 Dec 2020",
        "31-DEC-2020",
        "31-Dec-20",
        "31. December 2020",
        "Dec 31, 2020",
        "December 31st, 2020",
        "Thursday, 31 December 2020",
    ],
)
def test_a_day_is_read_in_every_usual_form(text):
    assert str(read(text).dates[0]) == "2020-12-31"


@pytest.mark.parametrize(
    ("text", "minutes_ahead"),
    [
        ("2020-12-31T17:05:09", 0),
        ("2020-12-31 17:05:09.000000", 0),
        ("2020-12-31 17:05:09,000000000", 0),
        ("2020-12-31T17:05:09Z", 0),
        ("2020-12-31 17:05:09 UTC", 0),
        ("2020-12-31T17:05:09+01:00", 60),
        ("2020-12-31T17:05:09-0730", -450),
        ("2020-12-31 17:05:09+02", 120),
        ("2020-12-31T17:05:09+01:00[Europe/Berlin]", 60),
        ("20201231T170509Z", 0),
        ("20201231170509", 0),
        ("12/31/2020 5:05:09 PM", 0),
        ("31.12.2020, 17:05:09", 0),
        ("31/Dec/2020:17:05:09 -0700", -420),
        ("Thu, 31 Dec 2020 17:05:09 GMT", 0),
        ("Thu Dec 31 17:05:09 2020", 0),
        ("Thu Dec 31 17:05:09 +0000 2020", 0),
        ("Thu Dec 31 2020 17:05:09 GMT+0100 (Central European Standard Time)", 60),
    ],
)
def test_a_time_is_that_of_the_clock_and_its_distance_from_utc_is_known(text, minutes_ahead):
    result = read(text)

    assert result.dates[0] == datetime(2020, 12, 31, 17, 5, 9)
    assert result.offsets[0] == minutes_ahead


def test_noon_and_midnight_of_twelve_hours_are_told_apart():
    assert [moment.hour for moment in read("1/31/2020 12:30 am", "1/31/2020 12:30 PM").dates] == [0, 12]


@pytest.mark.parametrize(("texts", "order"), [(("1/2/2020", "13/2/2020"), "day"), (("1/2/2020", "2/13/2020"), "month")])
def test_a_value_above_twelve_decides_the_order_of_all(texts, order):
    result = read(*texts, dayfirst=order == "month")

    assert result.order == order
    assert result.dates[0].day == (1 if order == "day" else 2)


def test_the_day_comes_first_in_dates_with_points_and_otherwise_where_the_user_says_so():
    assert read("1.2.2020").dates[0].day == 1
    assert read("1/2/2020", dayfirst=True).dates[0].day == 1
    assert read("1/2/2020", dayfirst=False).dates[0].day == 2


@pytest.mark.parametrize("texts", [("1/2/2020", "3/4/2020"), ("1-2-2020",), ("13/1/2020", "1/13/2020")])
def test_dates_that_may_be_read_in_either_order_are_refused(texts):
    with pytest.raises(AmbiguousDates, match=r"--dayfirst or --no-dayfirst|write all of them as 2020-12-31"):
        read(*texts)


def test_a_day_that_does_not_exist_is_no_date():
    assert read("2020-02-30", "2020-02-29", "31.4.2020", "30.4.2020").dates.is_null().to_list() == [True, False] * 2


@pytest.mark.parametrize("text", ["1.2.3", "10:30", "12-A", "192.168.1.1", "May", "2020", "1234-12", "march on"])
def test_other_texts_are_no_dates(text):
    assert read(text, text) is None


def test_one_date_is_read_for_an_option():
    assert str(read_moment(" 1 Sep 2012 ", dayfirst=None).dates[0]) == "2012-09-01"
    assert read_moment("soon", dayfirst=None) is None
