import datetime

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.core.errors import CannotTrain
from training.data.table_split import Splitter

NO_STRATA = np.zeros(0, int)


def hours(days=60, start=datetime.datetime(2012, 1, 1)):
    when = [start + datetime.timedelta(hours=i) for i in range(24 * days)]
    return pl.DataFrame({"when": when, "x": range(len(when))})


def split(splitter, frame):
    splitter.check(frame)
    return splitter.split(frame, np.zeros(frame.height, int))


def test_a_column_says_what_trains_what_validates_and_what_is_kept_aside():
    frame = pl.DataFrame({"part": ["train", "Valid", "test", "0", "1", "validation"], "x": range(6)})

    found = split(Splitter(0.2, column="part"), frame)

    assert found.held.tolist() == [False, True, False, False, True, True]
    assert found.used.tolist() == [True, True, False, True, True, True]
    assert found.words == "as the column 'part' says"
    assert len(found.calibrates) == 3


def test_booleans_say_whether_a_row_validates():
    frame = pl.DataFrame({"is_valid": [True, False, False], "x": range(3)})

    assert split(Splitter(0.2, column="is_valid"), frame).held.tolist() == [True, False, False]


def test_the_latest_rows_are_held_out_wherever_they_stand_in_the_table():
    frame = hours().sample(fraction=1.0, shuffle=True, seed=1)

    found = split(Splitter(0.25, time="when"), frame)

    assert found.held.sum() == 360
    assert frame.filter(found.held)["when"].min() > frame.filter(~found.held)["when"].max()


def test_rows_of_the_same_moment_stay_together():
    frame = pl.DataFrame({"day": [1, 1, 2, 2, 2, 2, 3, 3, 3, 3]})

    assert split(Splitter(0.1, time="day"), frame).held.tolist() == [False] * 6 + [True] * 4


@pytest.mark.parametrize(("kind", "since"), [(pl.Datetime("us"), "2012-02-20T00:00"), (pl.Date, "2012-02-20")])
def test_a_date_says_from_when_on_rows_are_held_out(kind, since):
    frame = hours().with_columns(pl.col("when").cast(kind))

    found = split(Splitter(0.2, time="when", since=since), frame)

    assert found.held.sum() == 24 * 10
    assert "2012-02-20" in found.words


def test_halves_by_time_are_whole_weeks_or_days_and_never_single_hours():
    frame = hours(100)
    found = split(Splitter(0.2, time="when", since="2012-03-01"), frame)
    kept = frame.filter(found.held).with_columns(half=pl.Series(found.calibrates))

    by_day = kept.group_by(pl.col("when").dt.date()).agg(pl.col("half").n_unique())
    changes = (kept["half"].cast(int).diff().drop_nulls() != 0).sum()
    assert by_day["half"].to_list() == [1] * by_day.height
    assert changes == 5
    assert found.halves == "by every other week"
    assert split(Splitter(0.2, time="when"), hours(30)).halves == "by every other day"


@given(st.lists(st.integers(0, 30), min_size=20, max_size=80), st.floats(0.05, 0.5))
def test_numbers_that_count_the_time_split_it_too(times, share):
    frame = pl.DataFrame({"week": [-1, *times, 31]})

    found = split(Splitter(share, time="week"), frame)

    assert frame.filter(found.held)["week"].min() > frame.filter(~found.held)["week"].max()
    assert len(found.calibrates) == found.held.sum() >= share * len(times) - 1


def test_at_random_equal_rows_stay_on_one_side_and_in_one_half():
    frame = pl.DataFrame({"x": [i // 2 for i in range(400)]})

    found = split(Splitter(0.3), frame)

    assert (found.held[::2] == found.held[1::2]).all()
    assert (found.calibrates[::2] == found.calibrates[1::2]).all()
    assert 0.25 < found.held.mean() < 0.35
    assert 0.3 < found.calibrates.mean() < 0.7


def test_where_all_that_validates_is_one_day_every_other_row_calibrates():
    found = split(Splitter(0.2, time="when", since="2012-02-29"), hours(60))

    assert found.calibrates.tolist() == [True, False] * 12
    assert found.halves == "every other row"


def test_training_rows_are_split_once_more_in_the_same_way():
    frame = hours()
    inner = Splitter(0.2, time="when", since="2012-02-20").within(frame, np.zeros(frame.height, int))
    few = Splitter(0.2, time="when").within(pl.DataFrame({"when": [1] * 10}), np.zeros(10, int))

    assert frame.filter(inner)["when"].min() > frame.filter(~inner)["when"].max()
    assert inner.sum() == 144
    assert few.sum() == 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"column": "gone"}, "--split-column gone: there is no such column"),
        ({"time": "gone"}, "--split-time gone: there is no such column"),
        ({"column": "x", "time": "when"}, "choose one"),
        ({"since": "2012-02-01"}, "--split-from needs --split-time"),
        ({"time": "name"}, "holds no times.*neither a number nor a date"),
        ({"column": "name"}, "holds 'monday'; it is to say train or valid"),
        ({"time": "when", "since": "soon"}, "--split-from soon: the column 'when' needs a date like 2012-09-01"),
        ({"time": "x", "since": "soon"}, "needs a number"),
        ({"time": "when", "since": "2030-01-01"}, "leaves no rows to validate"),
        ({"time": "when", "since": "2001-01-01"}, "leaves no rows to train"),
        ({"share": 1.5}, "a share lies between 0 and 1"),
    ],
)
def test_a_wrong_split_gets_one_clear_sentence(options, sentence):
    frame = hours(40).with_columns(name=pl.lit("Monday"))

    with pytest.raises(CannotTrain, match=sentence) as caught:
        split(Splitter(**{"share": 0.2} | options), frame)

    assert "\n" not in str(caught.value)
