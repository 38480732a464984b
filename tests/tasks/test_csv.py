"""CSV rows: any common dialect is read as the same rows as JSON, and what cannot be read is named by line or column."""

import gzip
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks._csv import CsvColumns, parse_csv
from tasks.contract import InvalidInput, Limits
from tasks.near_names import suggest

COLUMNS = CsvColumns(("age", "job"), ("city", "hours-per-week"), frozenset(("age",)), "income")
ROWS = [{"age": "39", "job": "baker"}, {"age": "12.5", "job": "a, b"}]


def rows_of(content: bytes | str, *, limit: int = 1000, max_values: int = 10_000) -> list[dict[str, Any]]:
    return parse_csv(content, COLUMNS, Limits(rows=limit), max_values=max_values)[0]


@pytest.mark.parametrize(
    "content",
    [
        b'age,job\n39,baker\n12.5,"a, b"\n',
        b'\xef\xbb\xbfage,job\r\n39,baker\r\n12.5,"a, b"',
        b"age;job\n39;baker\n12,5;a, b\n",
        b"age\tjob\r39\tbaker\r12.5\ta, b\r",
        b'\n"age", job\n\n39,baker\n\n12.5,"a, b"\n\n',
        b"age|job\n39|baker\n12.5|a, b\n",
        b"sep=;\r\nage;job\r\n39;baker\r\n12,5;a, b\r\n",
    ],
    ids=[
        "commas",
        "byte order mark",
        "semicolons",
        "tabs and carriage returns",
        "blank lines",
        "vertical bars",
        "the line of Excel",
    ],
)
def test_common_dialects_are_read_alike(content: bytes) -> None:
    assert rows_of(content) == ROWS
    assert rows_of(content.decode()) == ROWS


def test_columns_may_come_in_any_order_and_include_optional_ones() -> None:
    assert rows_of(b"city,job,age\nBonn,baker,39") == [{"city": "Bonn", "job": "baker", "age": "39"}]


def test_cells_in_quotation_marks_may_contain_anything() -> None:
    assert rows_of('age,job\n39,"a ""b""\r\nc;\u2028d"\n') == [{"age": "39", "job": 'a "b"\r\nc;\u2028d'}]


def test_decimal_commas_are_read_with_a_notice_unless_commas_separate_the_columns() -> None:
    rows, notices = parse_csv(b"age;job\n12,5;1,5\n", COLUMNS, Limits(), max_values=100)

    assert rows == [{"age": "12.5", "job": "1,5"}]
    assert notices == ["Commas in numbers were read as decimal commas: '12,5' as 12.5."]
    assert rows_of(b'age,job\n"12,5",x\n') == [{"age": "12,5", "job": "x"}]


def test_point_between_thousands_is_never_read_as_a_decimal_point_beside_decimal_commas() -> None:
    with pytest.raises(InvalidInput, match=r"The point in '1\.243' .* '12,5' has a decimal comma; write 1243 or 1,243"):
        rows_of(b"age;job\n12,5;x\n1.243;x\n")

    assert rows_of(b"age;job\n1.243;x\n") == [{"age": "1.243", "job": "x"}]
    assert rows_of(b"age;job\n12,5;1.243\n") == [{"age": "12.5", "job": "1.243"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "The table is empty; its first line must name the columns."),
        (b"\n\n", "The table is empty; its first line must name the columns."),
        (b"age,job\n", "The table has no rows: only its first line, which names the columns."),
        (b"39,baker\n", "names none of the model's columns; they are age, job, city, hours-per-week."),
        (b' {"rows": []}', "send JSON with the header 'Content-Type: application/json'"),
        (b"age,jobb\n", "There is no column 'jobb'. Did you mean 'job'? The column 'job' is missing; add it"),
        (b"age,job,xyz\n1,2,3", "There is no column 'xyz'."),
        (b"age,job,age\n1,2,3", "The column 'age' is there twice; remove one."),
        (b"age,job,income\n1,2,3", "The column 'income' is what the model predicts; remove it."),
        (b",age,job\n0,1,2", "Column 1 of the table has no name; name it, or remove it."),
        (b"age\n1", "The column 'job' is missing; add it, with blank cells if it is not known."),
        (b"age,job\n1,2\n1,a, b\n", "Line 3 of the table has 3 cells and the first line names 2 columns"),
        (b'age,job\n1,"a\nb"\n1\n', "Line 4 of the table has 1 cells"),
        (b'age,job\n1,"a', "Line 2 of the table is not valid CSV"),
        (b'age,job\n1,"a"b\n', "Line 2 of the table is not valid CSV"),
        ("age,job\n1,caf\xe9".encode("latin-1"), "The table is not UTF-8: see byte 13; save it as 'CSV UTF-8'."),
        ("age,job\n1,2".encode("utf-16"), "The table is not UTF-8: it is UTF-16; save it as UTF-8."),
        (gzip.compress(b"age,job\n1,2", mtime=0), "compressed by gzip; unpack it, or send it as the whole body with"),
        (b"PK\x03\x04\xff", "it is a ZIP file, as .xlsx"),
        (b"age,job39,baker", "The table has a single line, of 3 cells. If curl sent it with -d or --data"),
        ("people.csv", "this is the name of a file and not its content; with curl, write -F 'rows=@people.csv'"),
        ("https://example.org/people.csv", "URLs are not fetched"),
        (b"age,job\n1,2\n" + b"x" * 200_000 + b",1", "Line 3 of the table is not valid CSV: field larger"),
    ],
)
def test_table_that_cannot_be_read_is_rejected_with_a_reason(content: bytes, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        rows_of(content)

    assert message in str(caught.value)
    assert len(str(caught.value)) < 700


def test_rows_cells_and_lines_are_limited() -> None:
    assert len(rows_of(b"age,job\n" + b"1,2\n" * 10, limit=10)) == 10
    for content, message in (
        (b"age,job\n" + b"1,2\n" * 11, "more than 10 rows"),
        (b"age,job\n" + b"," * 10_001, "more than 10,000 cells"),
        (b"age,job," + b"x," * 20_000, "more than 10,000 cells"),
        (b"age,job\n1,2\n" + b"\n" * 10_000, "more than 10,000 lines"),
        (b"age,job\r1,2\r" + b"\r" * 10_000, "more than 10,000 lines"),
    ):
        with pytest.raises(InvalidInput, match=message) as caught:
            rows_of(content, limit=10)

        assert caught.value.reason == "too_large"


def test_no_more_problems_than_a_client_can_read_are_listed() -> None:
    header = ",".join(["age", *(f"x{i}" for i in range(5_000))]).encode()

    with pytest.raises(InvalidInput) as caught:
        rows_of(header + b"\n1")

    assert len(caught.value.problems) == 20


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_any_file_is_read_or_rejected(content: bytes | str) -> None:
    prefix = b"age,job\n" if isinstance(content, bytes) else "age,job\n"
    for candidate in (content, prefix + content):  # type: ignore[operator]
        try:
            rows = rows_of(candidate)
        except InvalidInput:
            rows = []

        assert all({"age", "job"} <= row.keys() for row in rows)


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("jobs", " Did you mean 'job'?"),
        ("hours_per_week", " Did you mean 'hours-per-week'?"),
        ("AGE", " Did you mean 'age'?"),
    ]
    + [(name, "") for name in ("", "x", "salary", "a" * 100_000)],
)
def test_only_near_names_are_suggested(name: str, suggestion: str) -> None:
    assert suggest(name, COLUMNS.known) == suggestion
