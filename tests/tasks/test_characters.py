"""Cleaning the characters of a text: equal for what looks equal, linear for any text, and traceable to the original."""

import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks._characters import MAX_MARKS, clean_text
from tests.hostile_texts import HOSTILE_TEXTS

ODD = "ab1 \n\t\r😀👍\u200d\ufe0f\u0301\u0316\u200b\xad\u2060\ufeff\u202e\u2019\xb4`\xa0\0\x1b\u2028\ud800\uff9e\u0f73"


@pytest.mark.parametrize(
    "seen",
    [
        "wonder\u200bful",
        "wonder\xadful",
        "wonder\u2060ful",
        "\ufeffwonderful",
        "wonder\u200dful",
        "wonder\u200cful",
        "wonder\ufe0fful",
        "\u202dwonderful\u202c",
        "\u2066wonderful\u2069",
        "wonder\u034fful",
        "wonder\u180eful",
        "wonder\U000e0066ful",
        "wonder\u3164ful",
    ],
)
def test_characters_that_are_not_shown_are_left_out(seen: str) -> None:
    assert clean_text(seen).text == "wonderful"


@pytest.mark.parametrize("space", "\xa0\u2002\u2009\u202f\u205f\u3000\u1680\t\u2800\x1f")
def test_all_spaces_become_ordinary_ones(space: str) -> None:
    assert clean_text(f"good{space}film").text == "good film"


@pytest.mark.parametrize("line_break", ["\r\n", "\r", "\n", "\x0b", "\x0c", "\x85", "\u2028", "\u2029"])
def test_all_line_breaks_become_newlines(line_break: str) -> None:
    assert clean_text(f"good{line_break}film").text == "good\nfilm"


@pytest.mark.parametrize("apostrophe", "\u2019\u2018\u201b\u02bc\uff07\u2032\xb4`")
def test_all_apostrophes_become_that_of_ascii(apostrophe: str) -> None:
    assert clean_text(f"it isn{apostrophe}t").text == "it isn't"


def test_accents_remain_where_they_are_no_apostrophes() -> None:
    assert clean_text("`quoted' and 5\xb4 ").text == "`quoted' and 5\xb4 "


def test_quotation_marks_and_dashes_become_those_of_ascii() -> None:
    assert (
        clean_text("\u201cgood\u201d \u2013 \u201ebad\u201c \u2014 well\u2010known").text
        == '"good" - "bad" - well-known'
    )


@pytest.mark.parametrize("emoji", ["👩\u200d👧", "👩\u200d❤\ufe0f\u200d👩", "❤\ufe0f", "👍🏽"])
def test_joiners_and_selectors_of_emoji_remain(emoji: str) -> None:
    assert clean_text(f"a\u200d {emoji}!").text == f"a {emoji}!"


def test_positions_refer_to_the_original_text() -> None:
    text = "a\u200bb\r\nc\0d\u2019"

    clean = clean_text(text)

    assert (clean.text, clean.controls) == ("ab\ncd'", 1)
    assert clean.positions is not None
    assert [text[position] for position in clean.positions.tolist()] == ["a", "b", "\n", "c", "d", "\u2019"]
    assert clean_text("plain\ntext 😀").positions is None


def test_combining_marks_beyond_the_limit_are_left_out_and_counted() -> None:
    clean = clean_text("a" + "\u0316\u0301" * 1000 + "b\u0301")

    assert (len(clean.text), clean.marks) == (1 + MAX_MARKS + 2, 2000 - MAX_MARKS)
    assert clean.text.endswith("b\u0301")


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from(ODD), max_size=30) | st.text(max_size=50))
def test_cleaning_again_changes_nothing(text: str) -> None:
    clean = clean_text(text)

    assert clean_text(clean.text) == type(clean)(clean.text)
    assert clean.positions is None or (np.diff(clean.positions) > 0).all()
    assert len(clean.text) == (len(text) if clean.positions is None else len(clean.positions))


def test_every_character_that_normalising_sorts_counts_as_a_mark() -> None:
    """NFKC sorts runs of characters whose decomposition begins with a combining mark, in quadratic time."""
    uncounted = [
        hex(code)
        for code in range(0x110000)
        if not 0xD800 <= code < 0xE000
        and unicodedata.combining(unicodedata.normalize("NFKD", chr(code))[0])
        and len(clean_text("a" + chr(code) * 40).text) > 1 + MAX_MARKS
    ]

    assert uncounted == []


@pytest.mark.parametrize("name", HOSTILE_TEXTS)
def test_no_hostile_text_keeps_long_runs_of_marks(name: str) -> None:
    text = clean_text(HOSTILE_TEXTS[name]()).text

    runs, longest = 0, 0
    for character in unicodedata.normalize("NFKD", text):
        runs = runs + 1 if unicodedata.combining(character) else 0
        longest = max(longest, runs)
    assert longest <= 2 * MAX_MARKS
