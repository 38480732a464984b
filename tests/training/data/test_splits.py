import datetime

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.core.errors import CannotTrain
from training.data.table_split import Splitter


def hours(days=60, start=datetime.datetime(2012, 1, 1)):
    when = [start + datetime.timedelta(hours=i) for i in range(24 * days)]
    return pl.DataFrame({"when": when, "x": range(len(when))})


def split(splitter, frame):
    splitter.check(frame)
    return splitter.split(frame, np.zeros(frame.height, int))


def test_a_column_assigns_rows_to_training_validation_or_neither():
    frame = pl.DataFrame({"part": ["train", "Valid", "test", "0", "1", "validation"], "x": range(6)})

    result = split(Splitter(0.2, column="part"), frame)

    assert result.held_out.tolist() == [False, True, False, False, True, True]
    assert result.used.tolist() == [True, True, False, True, True, True]
    assert result.method == "by the column 'part'"
    assert len(result.calibration) == 3


def test_a_boolean_column_marks_the_validation_rows():
    frame = pl.DataFrame({"is_valid": [True, False, False], "x": range(3)})

    assert split(Splitter(0.2, column="is_valid"), frame).held_out.tolist() == [True, False, False]


def test_the_latest_rows_are_held_out_in_any_order_of_the_table():
    frame = hours().sample(fraction=1.0, shuffle=True, seed=1)

    result = split(Splitter(0.25, time="when"), frame)

    assert result.held_out.sum() == 360
    assert frame.filter(result.held_out)["when"].min() > frame.filter(~result.held_out)["when"].max()


def test_rows_of_the_same_time_stay_together():
    frame = pl.DataFrame({"day": [1, 1, 2, 2, 2, 2, 3, 3, 3, 3]})

    assert split(Splitter(0.1, time="day"), frame).held_out.tolist() == [False] * 6 + [True] * 4


@pytest.mark.parametrize(
    ("kind", "since"),
    [
        (pl.Datetime("us"), "2012-02-20T00:00"),
        (pl.Datetime("us"), "20.02.2012 00:00"),
        (pl.Date, "2012-02-20"),
        (pl.Date, "Feb 20, 2012"),
    ],
)
def test_rows_from_a_given_date_on_are_held_out(kind, since):
    frame = hours().with_columns(pl.col("when").cast(kind))

    result = split(Splitter(0.2, time="when", since=since), frame)

    assert result.held_out.sum() == 24 * 10
    assert "2012-02-20" in result.method


def test_calibration_halves_by_time_are_whole_weeks_or_days():
    frame = hours(100)
    result = split(Splitter(0.2, time="when", since="2012-03-01"), frame)
    validation = frame.filter(result.held_out).with_columns(half=pl.Series(result.calibration))

    by_day = validation.group_by(pl.col("when").dt.date()).agg(pl.col("half").n_unique())
    changes = (validation["half"].cast(int).diff().drop_nulls() != 0).sum()
    assert by_day["half"].to_list() == [1] * by_day.height
    assert changes == 5
    assert result.calibration_rule == "by every other week"
    assert split(Splitter(0.2, time="when"), hours(30)).calibration_rule == "by every other day"


@given(st.lists(st.integers(0, 30), min_size=20, max_size=80), st.floats(0.05, 0.5))
def test_a_numeric_time_column_splits_by_time(times, fraction):
    frame = pl.DataFrame({"week": [-1, *times, 31]})

    result = split(Splitter(fraction, time="week"), frame)

    assert frame.filter(result.held_out)["week"].min() > frame.filter(~result.held_out)["week"].max()
    assert len(result.calibration) == result.held_out.sum() >= fraction * len(times) - 1


def test_a_random_split_keeps_equal_rows_on_one_side_and_in_one_half():
    frame = pl.DataFrame({"x": [i // 2 for i in range(400)]})

    result = split(Splitter(0.3), frame)

    assert (result.held_out[::2] == result.held_out[1::2]).all()
    assert (result.calibration[::2] == result.calibration[1::2]).all()
    assert 0.25 < result.held_out.mean() < 0.35
    assert 0.3 < result.calibration.mean() < 0.7


def test_a_single_validation_day_is_halved_by_every_other_row():
    result = split(Splitter(0.2, time="when", since="2012-02-29"), hours(60))

    assert result.calibration.tolist() == [True, False] * 12
    assert result.calibration_rule == "every other row"


def test_the_inner_holdout_takes_the_latest_training_rows():
    frame = hours()
    inner = Splitter(0.2, time="when", since="2012-02-20").inner_holdout(frame, np.zeros(frame.height, int))
    one_time = Splitter(0.2, time="when").inner_holdout(pl.DataFrame({"when": [1] * 10}), np.zeros(10, int))

    assert frame.filter(inner)["when"].min() > frame.filter(~inner)["when"].max()
    assert inner.sum() == 144
    assert one_time.sum() == 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"column": "gone"}, "--split-column gone: no such column"),
        ({"time": "gone"}, "--split-time gone: no such column"),
        ({"column": "x", "time": "when"}, "choose one"),
        ({"since": "2012-02-01"}, "--split-from needs --split-time"),
        ({"time": "name"}, "not a column of times.*neither a number nor a date"),
        ({"column": "name"}, "contains 'monday'; its values must be train or valid"),
        ({"time": "when", "since": "soon"}, "--split-from soon: the column 'when' needs a date like 2012-09-01"),
        ({"time": "when", "since": "1/2/2012"}, "Write the year first, since day and month may be either way round"),
        ({"time": "x", "since": "soon"}, "needs a number"),
        ({"time": "when", "since": "2030-01-01"}, "leaves no rows for validation"),
        ({"time": "when", "since": "2001-01-01"}, "leaves no rows for training"),
        ({"fraction": 1.5}, "must be between 0 and 1"),
    ],
)
def test_an_invalid_split_is_one_clear_sentence(options, sentence):
    frame = hours(40).with_columns(name=pl.lit("Monday"))

    with pytest.raises(CannotTrain, match=sentence) as caught:
        split(Splitter(**{"fraction": 0.2} | options), frame)

    assert "\n" not in str(caught.value)
