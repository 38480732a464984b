import datetime
import math

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks._tables import CategoryColumn, DateColumn, NumberColumn
from training.core.errors import CannotTrain
from training.data.tables import Kinds, columns_of, is_number, labels_of, plain, read_table, row_groups


def csv(tmp_path, text, name="table.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


def classes_in(path):
    frame = read_table(path)
    return is_number(frame, "y", "auto", path) or labels_of(frame, "y")


def kinds_of(frame, target="y", **kinds):
    columns, left_out, notices = columns_of(frame, target, Kinds(**kinds))
    return {column.name: column.kind for column in columns}, left_out, notices


def test_kinds_follow_from_the_values_and_what_stands_for_no_value_is_missing(tmp_path):
    path = csv(tmp_path, "a, b ,c,d,y\n1, red,0.5,007,n\n?, blue,NA,008,n\n3, ,2,009,y\n4, red,1e3,007,y\n")

    frame = read_table(path)

    assert frame["a"].to_list() == [1, None, 3, 4]
    assert frame["b"].to_list() == ["red", "blue", None, "red"]
    assert frame["c"].to_list() == [0.5, None, 2.0, 1000.0]
    assert kinds_of(frame)[0] == {"a": "number", "b": "category", "c": "number", "d": "category"}


def test_the_user_has_the_last_word_on_kinds(tmp_path):
    frame = read_table(csv(tmp_path, "store,size,note,y\n1,5,x,n\n2,6,y,y\n2,7,x,y\n"))

    columns, left_out, _ = columns_of(frame, "y", Kinds(categories=("store",), ignored=("note",)))

    assert columns[0] == CategoryColumn("store", ("2", "1"), integer=True, example="2")
    assert columns[1] == NumberColumn("size", 5.0, 7.0, example=6.0)
    assert left_out == ("note",)


def test_parquet_and_csv_give_the_same_columns(tmp_path):
    frame = read_table(csv(tmp_path, "a,b,y\n1,red,n\n2.5,blue,y\n,red,y\n"))
    frame.write_parquet(tmp_path / "table.parquet")

    assert kinds_of(read_table(tmp_path / "table.parquet")) == kinds_of(frame)


def test_a_file_without_a_header_is_given_one(tmp_path):
    path = csv(tmp_path, "1,red\n2,blue\n")

    assert read_table(path, header=("a", "b")).columns == ["a", "b"]
    with pytest.raises(CannotTrain, match="has 2 columns, and --header names 3"):
        read_table(path, header=("a", "b", "c"))


def test_columns_that_tell_nothing_are_left_out_and_named():
    frame = pl.DataFrame(
        {
            "id": [f"k{i}" for i in range(60)],
            "same": ["x"] * 60,
            "how long": [datetime.timedelta(hours=i) for i in range(60)],
            "real": [i / 7 for i in range(60)],
            "y": ["a", "b"] * 30,
        }
    )

    kinds, left_out, notices = kinds_of(frame)

    assert kinds == {"real": "number"}
    assert left_out == ("id", "same", "how long")
    assert ["identifier" in notices[0], "same value" in notices[1], "not understood" in notices[2]] == [True] * 3


def test_an_identifier_can_be_used_by_naming_it():
    frame = pl.DataFrame({"id": list(range(60)), "y": ["a", "b"] * 30})

    assert kinds_of(frame, numbers=("id",))[0] == {"id": "number"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is empty"),
        ("a,y\n", "holds no rows"),
        ("a,b,y\n1,2\n1,2,3,4,5\n", "cannot be read as a table"),
        ("a,z\n1,2\n", "has no column 'y'; its columns are a, z"),
        ("a,y\n1,n\n2,n\n", "has 1 class"),
        ("a,y\n1,n\n2,y\n3,y\n", "Class 'n' of 'y' has one row"),
        ("a,y\n" + "".join(f"{i},name{i // 2}\n" for i in range(300)), "150 classes; at most 100"),
    ],
)
def test_a_wrong_table_gets_one_clear_sentence(tmp_path, text, sentence):
    path = csv(tmp_path, text)

    with pytest.raises(CannotTrain, match=sentence) as caught:
        classes_in(path)

    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_table_is_named(tmp_path):
    path = tmp_path / "photo.parquet"
    path.write_bytes(b"\x00\x01 no parquet")

    with pytest.raises(CannotTrain, match=r"photo\.parquet cannot be read"):
        read_table(path)


def test_a_column_that_is_not_there_or_of_another_kind_is_named(tmp_path):
    frame = read_table(csv(tmp_path, "a,y\nsome,n\n2,y\n"))

    with pytest.raises(CannotTrain, match="There is no column 'b'"):
        columns_of(frame, "y", Kinds(ignored=("b",)))
    with pytest.raises(CannotTrain, match="'a' is no column of numbers: it holds 'some'"):
        columns_of(frame, "y", Kinds(numbers=("a",)))


def test_labels_are_text_in_order():
    frame = pl.DataFrame({"x": [1.0] * 6, "n": [10, 9, 10, 9, 2, 2], "t": [True, False] * 3})

    assert labels_of(frame, "n") == ("2", "9", "10")
    assert labels_of(frame, "t") == ("false", "true")


@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True)), min_size=1, max_size=20))
def test_numbers_become_what_json_can_hold(values):
    frame = pl.DataFrame({"a": pl.Series(values, dtype=pl.Float64)})

    found = plain(frame, (NumberColumn("a", 0.0, 1.0),))["a"]

    assert all(value is None or math.isfinite(value) for value in found)
    assert [v for v in found if v is not None] == [v for v in values if v is not None and math.isfinite(v)]


def test_equal_rows_share_a_group_and_others_do_not():
    frame = pl.DataFrame({"a": ["x", "x", None, "xy"], "b": ["yz", "yz", "x", "z"]})

    groups = row_groups(frame)

    assert groups[0] == groups[1]
    assert len(set(groups)) == 3


@pytest.mark.parametrize(
    ("values", "kind", "number"),
    [
        (["a", "b"], "auto", False),
        (list(range(20)), "auto", False),
        (list(range(21)), "auto", True),
        ([i / 7 for i in range(21)], "auto", True),
        (list(range(21)), "class", False),
        ([1, 2, 3], "number", True),
    ],
)
def test_a_target_of_many_numbers_is_a_number_unless_it_is_said_otherwise(values, kind, number):
    assert is_number(pl.DataFrame({"y": values}), "y", kind, "f") is number


def test_a_number_is_asked_of_numbers_only():
    with pytest.raises(CannotTrain, match="'y' is no column of numbers: it holds 'much'"):
        is_number(pl.DataFrame({"y": ["1", "much", "2"]}), "y", "number", "f")
    with pytest.raises(CannotTrain, match="f has no column 'z'; its columns are y"):
        is_number(pl.DataFrame({"y": [1]}), "z", "auto", "f")


DAYS = [datetime.date(2011, 1, 1) + datetime.timedelta(days=i) for i in range(600)]


@pytest.mark.parametrize("form", ["%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M:%S"])
def test_dates_are_found_out_and_written_as_clients_write_them(tmp_path, form):
    hours = [datetime.datetime(2011, 1, 1) + datetime.timedelta(hours=i) for i in range(500)]
    text = "day,at,y\n" + "".join(f"{at:%Y-%m-%d},{at.strftime(form)},{i % 2}\n" for i, at in enumerate(hours))

    frame = read_table(csv(tmp_path, text))
    (day, at), _, _ = columns_of(frame, "y", Kinds())

    assert (day.clock, at.clock) == (False, True)
    assert (day.first, day.last) == ("2011-01-01", "2011-01-21")
    assert (at.first, at.last) == ("2011-01-01T00:00", "2011-01-21T19:00")
    assert plain(frame, (day, at))["at"][:2] == ["2011-01-01T00:00", "2011-01-01T01:00"]
    assert plain(frame, (day, at))["day"][24] == "2011-01-02"


def test_parts_that_tell_seasons_are_read_where_there_is_a_year_of_them():
    frame = pl.DataFrame({"day": DAYS, "y": range(600)})

    (long,), _, _ = columns_of(frame, "y", Kinds())
    (short,), _, _ = columns_of(frame.head(200), "y", Kinds())
    (chosen,), _, _ = columns_of(frame, "y", Kinds(parts=("year", "is_year_end")))

    assert [part.name for part in long.parts] == [
        *("month", "week", "day", "weekday", "day_of_year", "elapsed", "is_month_start", "is_month_end"),
    ]
    assert [part.name for part in short.parts] == ["day", "weekday", "elapsed", "is_month_start", "is_month_end"]
    assert [(part.name, part.kind) for part in chosen.parts] == [("year", "category"), ("is_year_end", "number")]
    assert chosen.parts[0].values == ("2011", "2012")


def test_a_time_zone_is_dropped_and_the_clock_stays_as_it_is(tmp_path):
    at = [datetime.datetime(2020, 1, 1, 8, tzinfo=datetime.timezone(datetime.timedelta(hours=2)))] * 2
    pl.DataFrame({"at": at, "y": [1, 2]}).with_columns(pl.col("at").dt.convert_time_zone("Asia/Tokyo")).write_parquet(
        tmp_path / "t.parquet"
    )

    assert read_table(tmp_path / "t.parquet")["at"].to_list() == [datetime.datetime(2020, 1, 1, 15)] * 2


def test_missing_dates_and_dates_out_of_order_are_read():
    frame = pl.DataFrame({"day": [DAYS[5], None, DAYS[0], DAYS[9]], "y": range(4)})

    (column,), _, _ = columns_of(frame, "y", Kinds())

    assert isinstance(column, DateColumn)
    assert (column.first, column.last) == ("2011-01-01", "2011-01-10")
    assert plain(frame, (column,))["day"] == ["2011-01-06", None, "2011-01-01", "2011-01-10"]


def test_what_is_said_to_be_dates_and_is_not_is_named():
    frame = pl.DataFrame({"day": ["1.2.2011", "2.2.2011"], "y": [1, 2]})

    with pytest.raises(CannotTrain, match=r"'day' is no column of dates: it holds '1.2.2011'. Dates are read as 2012"):
        columns_of(frame, "y", Kinds(dates=("day",)))
    with pytest.raises(CannotTrain, match="--date-parts fortnight: the parts of a date are year, quarter"):
        columns_of(frame, "y", Kinds(parts=("fortnight",)))
