import pytest

from training.core.sentences import count_of, join_quoted, list_quoted, plain_number, was


def test_counts_agree_with_their_nouns_and_verbs():
    assert [f"{count_of(number, 'file')} {was(number)} read" for number in (0, 1, 1000)] == [
        "0 files were read",
        "1 file was read",
        "1,000 files were read",
    ]


def test_long_lists_are_cut_short_and_say_so():
    assert list_quoted("ab", 2) == "'a', 'b'"
    assert list_quoted("abc", 2) == "'a', 'b', …"
    assert [join_quoted("abcd"[:number], 3) for number in range(1, 5)] == [
        "'a'",
        "'a' and 'b'",
        "'a', 'b' and 'c'",
        "'a', 'b', 'c' and 1 more",
    ]


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(1_041_423.7, 6, "1,041,424"), (455_900.0, 4, "455,900"), (0.25, 6, "0.25"), (12345.678, 4, "12,346")],
)
def test_large_numbers_are_written_without_an_exponent(value, digits, text):
    assert plain_number(value, digits) == text
