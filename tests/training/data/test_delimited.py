"""Text files of other programs are read as they are meant, or refused with what to do."""

import gzip

import pytest

from training.core.errors import CannotTrain
from training.data.delimited import CsvFormat, read_delimited

ROWS = [("1.5", "red, blue", "p"), ("2.5", "green", "q")]
COMMAS = 'a,b,y\n1.5,"red, blue",p\n2.5,green,q\n'


def read(tmp_path, content, form=CsvFormat()):  # noqa: B008
    path = tmp_path / "table.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_delimited(path, form)


@pytest.mark.parametrize(
    ("content", "notes"),
    [
        (COMMAS, ()),
        (COMMAS.replace("\n", "\r\n"), ()),
        (COMMAS.replace("\n", "\r"), ()),
        ("\n" + COMMAS.replace(",", ", ", 1), ()),
        (b"\xef\xbb\xbf" + COMMAS.encode(), ()),
        (gzip.compress(COMMAS.encode(), mtime=0), ()),
        ("a;b;y\n1.5;red, blue;p\n2.5;green;q\n", ("The columns of table.csv are separated by semicolons.",)),
        ("a\tb\ty\n1.5\tred, blue\tp\n2.5\tgreen\tq\n", ("The columns of table.csv are separated by tabs.",)),
        ("a|b|y\n1.5|red, blue|p\n2.5|green|q\n", ("The columns of table.csv are separated by vertical bars.",)),
        (
            "sep=;\r\na;b;y\r\n1.5;red, blue;p\r\n2.5;green;q\r\n",
            ("The columns of table.csv are separated by semicolons.",),
        ),
        (COMMAS.encode("utf-16"), ("table.csv was read as UTF-16.",)),
        (COMMAS.encode("utf-16-le"), ("table.csv was read as UTF-16.",)),
        (COMMAS.encode().replace(b"green", b"gre\0en"), ("table.csv: 1 zero byte was left out.",)),
        (";;\n" + COMMAS.replace(",", ";", 0), ()),
    ],
    ids=[
        *("commas", "Windows line ends", "Mac line ends", "blank first line", "byte-order mark", "gzip", "semicolons"),
        *("tabs", "bars", "sep=", "UTF-16", "UTF-16-LE", "zero byte", "line of empty cells"),
    ],
)
def test_the_dialects_of_common_programs_are_read_alike(tmp_path, content, notes):
    table = read(tmp_path, content)

    assert table.frame.columns == ["a", "b", "y"]
    assert table.frame.rows() == ROWS
    assert table.notes == notes


def test_the_separator_divides_the_rows_evenly_and_not_only_the_header(tmp_path):
    table = read(tmp_path, "price, net;count;y\n12,5;3;p\n13;4;q\n")

    assert table.frame.columns == ["price, net", "count", "y"]


def test_semicolons_separate_decimal_commas_in_a_file_without_a_header(tmp_path):
    table = read(tmp_path, "1,5;2,5;p\n3,5;4,5;q\n", CsvFormat(header=("a", "b", "y")))

    assert table.frame.row(0) == ("1,5", "2,5", "p")


@pytest.mark.parametrize("separator", [" ", "space"])
def test_another_separator_can_be_named(tmp_path, separator):
    table = read(tmp_path, "a y\n1 p\n2 q\n", CsvFormat(separator))

    assert table.frame.rows() == [("1", "p"), ("2", "q")]
    assert table.notes == ("The columns of table.csv are separated by spaces.",)


def test_the_encoding_can_be_named(tmp_path):
    table = read(tmp_path, "town,y\nKöln,p\n".encode("cp1252"), CsvFormat(encoding="cp1252"))

    assert table.frame["town"].to_list() == ["Köln"]
    assert table.notes == ("table.csv was read as CP1252.",)


def test_columns_without_a_name_are_left_out_with_a_sentence(tmp_path):
    table = read(tmp_path, ",b,y,,\n0,x,p,,\n1,z,q,,\n")

    assert table.frame.columns == ["b", "y"]
    assert table.notes == ("Columns 1, 4, 5 have no names and are left out.",)


def test_rows_with_fewer_cells_than_columns_are_counted(tmp_path):
    table = read(tmp_path, "a,b,y\n1,2,\n1,2\n1\n1,2,p\n")

    assert table.notes == ("2 rows have fewer cells than there are columns; the cells at the end count as missing.",)


@pytest.mark.parametrize(
    ("content", "form", "message"),
    [
        ("a,y,b,y\n1,p,2,p\n", CsvFormat(), r"several columns 'y' \(columns 2 and 4\); remove or rename all but one"),
        ("a, y,y \n1,p,p\n", CsvFormat(), r"several columns 'y' \(columns 2 and 3\)"),
        ("a,b\n1,2\n1,2,3\n", CsvFormat(), "line 3 has 3 cells, and the first line has 2. Put texts that contain"),
        ("a,b\n1,2\n", CsvFormat(header=("a", "b")), "has the names of --header already"),
        ("a,b\n1,2\n", CsvFormat(header=("a", "b", "c")), "has 2 columns, but --header names 3"),
        ("a,b\n1,2\n", CsvFormat(header=("a", "a")), "several columns 'a'"),
        ("a::b\n1::2\n", CsvFormat("::"), "--separator '::': it must be one character"),
        ("a,b\n1,2\n", CsvFormat(encoding="klingon"), "--encoding klingon: there is no such encoding"),
        (
            "town,y\nBonn,p\nKöln,q\n".encode("cp1252"),
            CsvFormat(),
            r"not UTF-8 \(line 3\).*'Köln', add --encoding cp1252",
        ),
        ("town,y\nKöln,p\n".encode("cp1252"), CsvFormat(encoding="ascii"), "is not ASCII"),
        (b"PK\x03\x04...", CsvFormat(), "a spreadsheet or another ZIP file; export the sheet as 'CSV UTF-8'"),
        (b"\x1f\x8b\x08\x00damaged", CsvFormat(), "is a damaged gzip file"),
        ("sep=,\n\na,b\n1,2\n1,2,3\n", CsvFormat(), "line 5 has 3 cells"),
        ("\n\n", CsvFormat(), "is empty"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_in_one_sentence(tmp_path, content, form, message):
    with pytest.raises(CannotTrain, match=message) as caught:
        read(tmp_path, content, form)

    assert "\n" not in str(caught.value)
