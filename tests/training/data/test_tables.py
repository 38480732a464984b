import datetime
import math

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks._tables import MISSING_TEXTS, CategoryColumn, DateColumn, NumberColumn
from training.core.errors import CannotTrain
from training.data.column_types import ColumnKinds
from training.data.delimited import CsvFormat
from training.data.table_files import read_table
from training.data.tables import (
    class_labels,
    infer_columns,
    is_number,
    merge_labels,
    request_values,
    row_hashes,
)


def write_csv(tmp_path, text, name="table.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


def read_labels(path):
    frame = read_table(path).frame
    return is_number(frame, "y", "auto", path) or class_labels(frame, "y")


def infer_kinds(frame, target="y", **kinds):
    columns, left_out, warnings = infer_columns(frame, target, ColumnKinds(**kinds))
    return {column.name: column.kind for column in columns}, left_out, warnings


def test_kinds_are_inferred_from_the_values_and_placeholders_are_missing(tmp_path):
    path = write_csv(tmp_path, "a, b ,c,d,y\n1, red,0.5,007,n\n?, blue,NA,008,n\n3, ,2,009,y\n4, red,1e3,007,y\n")

    frame = read_table(path).frame

    assert frame["a"].to_list() == [1, None, 3, 4]
    assert frame["b"].to_list() == ["red", "blue", None, "red"]
    assert frame["c"].to_list() == [0.5, None, 2.0, 1000.0]
    assert infer_kinds(frame)[0] == {"a": "number", "b": "category", "c": "number", "d": "category"}


def test_the_user_can_override_kinds(tmp_path):
    frame = read_table(write_csv(tmp_path, "store,size,note,y\n1,5,x,n\n2,6,y,y\n2,7,x,y\n")).frame

    columns, left_out, _ = infer_columns(frame, "y", ColumnKinds(categories=("store",), ignored=("note",)))

    assert columns[0] == CategoryColumn("store", ("2", "1"), integer=True, example="2")
    assert columns[1] == NumberColumn("size", 5.0, 7.0, example=6.0)
    assert left_out == ("note",)


def test_parquet_and_csv_give_the_same_columns(tmp_path):
    frame = read_table(write_csv(tmp_path, "a,b,y\n1,red,n\n2.5,blue,y\n,red,y\n")).frame
    frame.write_parquet(tmp_path / "table.parquet")

    assert infer_kinds(read_table(tmp_path / "table.parquet").frame) == infer_kinds(frame)


def test_a_file_without_a_header_gets_the_given_one(tmp_path):
    path = write_csv(tmp_path, "1,red\n2,blue\n")

    assert read_table(path, CsvFormat(header=("a", "b"))).frame.columns == ["a", "b"]
    with pytest.raises(CannotTrain, match="has 2 columns, but --header names 3"):
        read_table(path, CsvFormat(header=("a", "b", "c")))


def test_uninformative_columns_are_left_out_with_a_warning():
    frame = pl.DataFrame(
        {
            "id": [f"k{i}" for i in range(60)],
            "same": ["x"] * 60,
            "how long": [datetime.timedelta(hours=i) for i in range(60)],
            "real": [i / 7 for i in range(60)],
            "y": ["a", "b"] * 30,
        }
    )

    kinds, left_out, warnings = infer_kinds(frame)

    assert kinds == {"real": "number"}
    assert left_out == ("id", "same", "how long")
    assert ["identifier" in warnings[0], "same value" in warnings[1], "not supported" in warnings[2]] == [True] * 3


def test_an_identifier_is_used_if_named():
    frame = pl.DataFrame({"id": list(range(60)), "y": ["a", "b"] * 30})

    assert infer_kinds(frame, numbers=("id",))[0] == {"id": "number"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is empty"),
        ("a,y\n", "has no rows"),
        ("a,b,y\n1,2\n1,2,3,4,5\n", "cannot be read as a table"),
        ("a,z\n1,2\n", "has no column 'y'; its columns are a, z"),
        ("a,y\n1,n\n2,n\n", "has 1 class"),
        ("a,y\n1,n\n2,y\n3,y\n", "Class 'n' of 'y' has one row"),
        ("a,y\n1,chrun\n2,churn\n3,churn\n", r"has one row; .* misspelling of 'churn' \(2\), correct it"),
        ("a,y\n" + "".join(f"{i},name{i // 2}\n" for i in range(300)), "150 classes; at most 100"),
    ],
)
def test_an_invalid_table_is_one_clear_sentence(tmp_path, text, sentence):
    path = write_csv(tmp_path, text)

    with pytest.raises(CannotTrain, match=sentence) as caught:
        read_labels(path)

    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_table_is_named(tmp_path):
    path = tmp_path / "photo.parquet"
    path.write_bytes(b"\x00\x01 no parquet")

    with pytest.raises(CannotTrain, match=r"photo\.parquet cannot be read"):
        read_table(path)


def test_a_missing_column_or_one_of_another_kind_is_named(tmp_path):
    frame = read_table(write_csv(tmp_path, "a,y\nsome,n\n2,y\n")).frame

    with pytest.raises(CannotTrain, match="There is no column 'b'"):
        infer_columns(frame, "y", ColumnKinds(ignored=("b",)))
    with pytest.raises(CannotTrain, match="'a' is not numeric: it contains 'some'"):
        infer_columns(frame, "y", ColumnKinds(numbers=("a",)))


def test_labels_are_text_sorted_by_value():
    frame = pl.DataFrame({"x": [1.0] * 6, "n": [10, 9, 10, 9, 2, 2], "t": [True, False] * 3})

    assert class_labels(frame, "n") == ("2", "9", "10")
    assert class_labels(frame, "t") == ("false", "true")


@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True)), min_size=1, max_size=20))
def test_request_values_can_be_written_as_json(values):
    frame = pl.DataFrame({"a": pl.Series(values, dtype=pl.Float64)})

    sent = request_values(frame, (NumberColumn("a", 0.0, 1.0),))["a"]

    assert all(value is None or math.isfinite(value) for value in sent)
    assert [v for v in sent if v is not None] == [v for v in values if v is not None and math.isfinite(v)]


def test_equal_rows_have_equal_hashes_and_others_do_not():
    frame = pl.DataFrame({"a": ["x", "x", None, "xy"], "b": ["yz", "yz", "x", "z"]})

    hashes = row_hashes(frame)

    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (["a", "b"], "auto", False),
        (list(range(20)), "auto", False),
        (list(range(21)), "auto", True),
        ([i / 7 for i in range(21)], "auto", True),
        (list(range(21)), "class", False),
        ([1, 2, 3], "number", True),
    ],
)
def test_a_target_with_many_numbers_is_a_number_unless_specified_otherwise(values, kind, expected):
    assert is_number(pl.DataFrame({"y": values}), "y", kind, "f") is expected


def test_a_number_target_must_be_a_numeric_column():
    with pytest.raises(CannotTrain, match="'y' is not numeric: it contains 'much'"):
        is_number(pl.DataFrame({"y": ["1", "much", "2"]}), "y", "number", "f")
    with pytest.raises(CannotTrain, match="f has no column 'z'; its columns are y"):
        is_number(pl.DataFrame({"y": [1]}), "z", "auto", "f")


DAYS = [datetime.date(2011, 1, 1) + datetime.timedelta(days=i) for i in range(600)]


@pytest.mark.parametrize("time_format", ["%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M:%S"])
def test_dates_are_recognised_and_written_as_clients_write_them(tmp_path, time_format):
    hours = [datetime.datetime(2011, 1, 1) + datetime.timedelta(hours=i) for i in range(500)]
    text = "day,at,y\n" + "".join(f"{at:%Y-%m-%d},{at.strftime(time_format)},{i % 2}\n" for i, at in enumerate(hours))

    frame = read_table(write_csv(tmp_path, text)).frame
    (day, at), _, _ = infer_columns(frame, "y", ColumnKinds())

    assert (day.clock, at.clock) == (False, True)
    assert (day.first, day.last) == ("2011-01-01", "2011-01-21")
    assert (at.first, at.last) == ("2011-01-01T00:00", "2011-01-21T19:00")
    assert request_values(frame, (day, at))["at"][:2] == ["2011-01-01T00:00", "2011-01-01T01:00"]
    assert request_values(frame, (day, at))["day"][24] == "2011-01-02"


def test_seasonal_parts_are_read_if_the_dates_span_a_year():
    frame = pl.DataFrame({"day": DAYS, "y": range(600)})

    (long,), _, _ = infer_columns(frame, "y", ColumnKinds())
    (short,), _, _ = infer_columns(frame.head(200), "y", ColumnKinds())
    (column,), _, _ = infer_columns(frame, "y", ColumnKinds(parts=("year", "is_year_end")))

    assert [part.name for part in long.parts] == [
        *("month", "week", "day", "weekday", "day_of_year", "elapsed", "is_month_start", "is_month_end"),
    ]
    assert [part.name for part in short.parts] == ["day", "weekday", "elapsed", "is_month_start", "is_month_end"]
    assert [(part.name, part.kind) for part in column.parts] == [("year", "category"), ("is_year_end", "number")]
    assert column.parts[0].values == ("2011", "2012")


def test_a_time_zone_is_dropped_without_changing_the_local_time(tmp_path):
    at = [datetime.datetime(2020, 1, 1, 8, tzinfo=datetime.timezone(datetime.timedelta(hours=2)))] * 2
    pl.DataFrame({"at": at, "y": [1, 2]}).with_columns(pl.col("at").dt.convert_time_zone("Asia/Tokyo")).write_parquet(
        tmp_path / "t.parquet"
    )

    assert read_table(tmp_path / "t.parquet").frame["at"].to_list() == [datetime.datetime(2020, 1, 1, 15)] * 2


def test_missing_and_unordered_dates_are_read():
    frame = pl.DataFrame({"day": [DAYS[5], None, DAYS[0], DAYS[9]], "y": range(4)})

    (column,), _, _ = infer_columns(frame, "y", ColumnKinds())

    assert isinstance(column, DateColumn)
    assert (column.first, column.last) == ("2011-01-01", "2011-01-10")
    assert request_values(frame, (column,))["day"] == ["2011-01-06", None, "2011-01-01", "2011-01-10"]


def test_a_date_column_without_dates_is_named():
    frame = pl.DataFrame({"day": ["1.2.2011", "2.2.2011"], "y": [1, 2]})

    with pytest.raises(
        CannotTrain, match=r"'day' does not contain dates: it contains '1.2.2011'. Dates are read as 2012"
    ):
        infer_columns(frame, "y", ColumnKinds(dates=("day",)))
    with pytest.raises(CannotTrain, match="--date-parts fortnight: the parts of a date are year, quarter"):
        infer_columns(frame, "y", ColumnKinds(parts=("fortnight",)))


@pytest.mark.parametrize("text", sorted(MISSING_TEXTS | {" ? ", "\t"}))
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_training_reads_the_same_texts_as_missing_as_the_service(text, suffix, tmp_path):
    path = tmp_path / f"table{suffix}"
    frame = pl.DataFrame({"row": ["1", "2"], "number": [text, "1"], "word": [text, "a"]})
    frame.write_csv(path, quote_style="always") if suffix == ".csv" else frame.write_parquet(path)

    row = read_table(path).frame.row(0)

    assert row[1:] == (None, None)
    assert [column.read_text(text) for column in (NumberColumn("n", 0, 1), CategoryColumn("w", ("a",)))] == [None, None]


@pytest.mark.parametrize("dtype", [pl.String, pl.Categorical, pl.Enum([" a ", "b", "?"])])
def test_texts_of_parquet_are_cleaned_like_those_of_csv(tmp_path, dtype):
    words = pl.Series("word", [" a ", "b", "?"], dtype=dtype)
    pl.DataFrame({"word": words, "number": [1, None, 2]}).write_parquet(tmp_path / "table.parquet")

    assert read_table(tmp_path / "table.parquet").frame["word"].to_list() == ["a", "b", None]


def target_frame(**columns):
    return pl.DataFrame({"x": [i % 10 for i in range(60)], "y": ["p", "q", "q"] * 20, **columns})


def test_a_copy_of_the_target_is_left_out_and_one_that_determines_it_is_named():
    frame = target_frame(copy=["P", "Q", "Q"] * 20, code=[1, 0, 0] * 20)

    kinds, left_out, warnings = infer_kinds(frame)

    assert kinds == {"x": "number", "code": "number"}
    assert left_out == ("copy",)
    assert warnings[0].startswith("Column 'copy' is left out: it equals the target 'y' in all 60 rows.")
    assert warnings[1].startswith("Column 'code' determines the target 'y' in all 60 rows")
    assert infer_kinds(frame, categories=("copy",))[0]["copy"] == "category"


def test_a_copy_of_a_numeric_target_is_left_out():
    frame = pl.DataFrame(
        {"x": [i % 7 for i in range(60)], "z": [i / 3 for i in range(60)], "y": [i / 3 for i in range(60)]}
    )

    assert infer_kinds(frame)[1] == ("z",)


def test_in_a_few_rows_a_column_may_equal_the_target_by_chance():
    assert infer_kinds(target_frame(copy=["p", "q", "q"] * 20).head(10))[1:] == ((), [])


def test_a_column_with_the_name_of_the_target_in_another_case_is_refused_unless_it_is_ignored():
    frame = target_frame(Y=list(range(60)))

    with pytest.raises(CannotTrain, match=r"has the columns 'y' and 'Y'.*--ignore Y"):
        infer_columns(frame, "y", ColumnKinds())

    assert infer_kinds(frame, ignored=("Y",))[1] == ("Y",)


def test_whole_numbers_that_floats_cannot_hold_are_categories():
    ids = [10**18 + i % 10 for i in range(60)]
    frame = target_frame(account=ids)

    columns, _, warnings = infer_columns(frame, "y", ColumnKinds())

    assert columns[1].values[0] == str(ids[0])
    assert "whole numbers above 2^53" in warnings[0]
    assert request_values(frame, columns)["account"] == ids
    assert infer_kinds(frame, numbers=("account",))[0]["account"] == "number"


def test_integers_with_gaps_that_were_stored_as_floats_are_integer_categories():
    frame = pl.DataFrame({"store": [1.0, 2.0, None, 2.0], "y": ["p", "q"] * 2})

    columns, _, _ = infer_columns(frame, "y", ColumnKinds(categories=("store",)))

    assert columns == (CategoryColumn("store", ("2", "1"), integer=True, example="2"),)
    assert request_values(frame, columns)["store"] == [1, 2, None, 2]
    assert request_values(frame.with_columns(store=pl.Series([1.5, 2, 1, 1])), columns)["store"][0] == 1.5


def test_categories_that_differ_in_case_or_are_nearly_all_distinct_are_named():
    frame = target_frame(flag=["True", "true", "no"] * 20, comment=[f"text {i % 55}" for i in range(60)])

    warnings = infer_kinds(frame, ignored=("x",))[2]

    assert any("differ only in case or spaces, and are kept apart: 'True' and 'true'" in text for text in warnings)
    assert any("'comment' is read as categories: it has 55 distinct texts in 60 rows" in text for text in warnings)


def test_columns_without_values_and_with_infinite_ones_are_named():
    frame = target_frame(
        none=pl.Series([None] * 60, dtype=pl.String), some=["x", None] * 30, big=[math.inf, *range(59)]
    )

    warnings = infer_kinds(frame)[2]

    assert warnings == [
        "Column 'none' is left out: it is empty.",
        "Column 'some' is left out: it has the same value in all 30 rows that have one.",
        "Column 'big': 1 of 60 values is infinite and counts as missing.",
    ]


def test_spellings_of_a_class_are_merged_before_classes_are_counted():
    frame, notes = merge_labels(pl.DataFrame({"y": ["True", "True", "TRUE", "false", "no"]}), "y")

    assert frame["y"].to_list() == ["True", "True", "True", "false", "false"]
    assert "all spellings of true and false" in notes[0]
    assert merge_labels(pl.DataFrame({"y": [1, 2]}), "y")[1] == ()


def test_texts_that_counted_as_missing_in_training_do_so_in_requests(tmp_path):
    days = [f"2020-01-{1 + i % 28:02}" for i in range(58)]
    rows = zip([*range(58), "-", "-"], [*days, "never", "never"], ["p", "q"] * 30, strict=True)
    table = read_table(write_csv(tmp_path, "b,day,y\n" + "".join(f"{b},{day},{y}\n" for b, day, y in rows)))

    (number, date), _, _ = infer_columns(table.frame, "y", ColumnKinds(), table.missing_texts)

    assert (number.missing_texts, date.missing_texts) == (("-",), ("never",))
    assert [number.read_text(" - "), date.read_text("never"), number.read_text("7")] == [None, None, 7.0]
    assert number.read_text("never") == "never"


def test_the_reason_why_no_column_is_left_includes_how_they_were_read(tmp_path):
    table = read_table(write_csv(tmp_path, "b,y\n" + "".join(f"{i} kg,{'pq'[i % 2]}\n" for i in range(60))))

    with pytest.raises(
        CannotTrain, match=r"No input column is left\. Column 'b' is read as categories, since its values"
    ):
        infer_columns(table.frame, "y", ColumnKinds(), table.missing_texts, table.warnings)


@pytest.mark.parametrize(
    ("columns", "hint"),
    [
        (["5.1", "setosa"], "name the columns with --header"),
        (["x y"], "--separator"),
        (["target"], "Did you mean 'target'"),
    ],
)
def test_a_target_that_is_not_there_gets_a_hint(columns, hint):
    with pytest.raises(CannotTrain, match=hint):
        is_number(pl.DataFrame({name: [1] for name in columns}), "targets", "auto", "f")
