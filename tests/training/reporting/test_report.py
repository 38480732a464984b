import pytest

from training.core.results import Table
from training.reporting.report import text_columns


@pytest.mark.parametrize(
    "cell", ["3", "-0.25", "95%", "0.881 to 0.940", "25.50 / 25.00", "0.9 ± 0.1", "12*", "–", "1.2e-05", "1.0 dB", ""]
)
def test_numbers_are_aligned_right(cell):
    assert text_columns(Table("", ("name", "value"), (("a", cell), ("b", "7")))) == [True, False]


def test_a_column_with_any_text_is_aligned_left():
    assert text_columns(Table("", ("name", "value"), (("a", "7"), ("b", "seven")))) == [True, True]


def test_a_table_without_rows_has_a_header():
    assert text_columns(Table("", ("name", "value"), ())) == [True, False]
