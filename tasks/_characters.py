"""The characters of a text: what looks the same is made the same, and what nobody sees is left out.

Training and service apply `clean_text` to every text before it is tokenized. It takes linear time, and so does the
tokenizer's normalisation (NFKC) of its result.
"""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from itertools import chain
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

MAX_MARKS = 30
"""Maximum number of combining marks on one letter, as in the Stream-Safe Text Format of Unicode (UAX #15, section 13).

Normalising sorts the marks of a letter, which takes quadratic time. No language needs more than a few marks.
"""
EMOJI_RANGES = ((0x2600, 0x27BF), (0x1F000, 0x1FAFF))
_IGNORABLE_RANGES = (
    (0x00AD, 0x00AD),
    (0x034F, 0x034F),
    (0x061C, 0x061C),
    (0x115F, 0x1160),
    (0x17B4, 0x17B5),
    (0x180B, 0x180F),
    (0x200B, 0x200F),
    (0x202A, 0x202E),
    (0x2060, 0x206F),
    (0x3164, 0x3164),
    (0xFE00, 0xFE0F),
    (0xFEFF, 0xFEFF),
    (0xFFA0, 0xFFA0),
    (0xFFF0, 0xFFFB),
    (0x1BCA0, 0x1BCA3),
    (0x1D173, 0x1D17A),
    (0xE0000, 0xE0FFF),
)
"""Characters that are not shown: Unicode's Default_Ignorable_Code_Point, and the marks of interlinear annotations."""
_ACCENT_AS_APOSTROPHE = re.compile("(?<=[^\\W_])[`\u00b4](?=[^\\W_])")
"""Accents between letters, which people type instead of an apostrophe."""


class _Kind(IntEnum):
    """How a character is treated. The first three remain as they are."""

    OTHER = 0
    EMOJI = 1
    NEWLINE = 2
    MARK = 3
    CONTROL = 4
    INVISIBLE = 5
    JOINER = 6
    SELECTOR = 7
    SPACE = 8
    LINE_BREAK = 9
    CARRIAGE_RETURN = 10
    APOSTROPHE = 11
    QUOTE = 12
    HYPHEN = 13


_REPLACEMENTS = MappingProxyType(
    {
        _Kind.SPACE: " ",
        _Kind.LINE_BREAK: "\n",
        _Kind.CARRIAGE_RETURN: "\n",
        _Kind.APOSTROPHE: "'",
        _Kind.QUOTE: '"',
        _Kind.HYPHEN: "-",
    }
)


def _expand(*ranges: tuple[int, int]) -> chain[str]:
    return chain.from_iterable(map(chr, range(first, last + 1)) for first, last in ranges)


_KIND_OF: Mapping[str, _Kind] = MappingProxyType(
    {
        **dict.fromkeys(_expand(*EMOJI_RANGES), _Kind.EMOJI),
        **dict.fromkeys(_expand(*_IGNORABLE_RANGES), _Kind.INVISIBLE),
        # Half-width marks of Japanese: letters to Unicode, but NFKC makes combining marks of them.
        **dict.fromkeys("\uff9e\uff9f", _Kind.MARK),
        # The blank of Braille is shown as a space, and the separators of ASCII count as spaces in Python.
        **dict.fromkeys("\t\x1c\x1d\x1e\x1f\u2800", _Kind.SPACE),
        **dict.fromkeys("\x0b\x0c\x85", _Kind.LINE_BREAK),
        **dict.fromkeys("\u2018\u2019\u201b\u02bc\u2032\uff07", _Kind.APOSTROPHE),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb\uff02", _Kind.QUOTE),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\uff0d", _Kind.HYPHEN),
        "\u200d": _Kind.JOINER,
        "\ufe0f": _Kind.SELECTOR,
        "\r": _Kind.CARRIAGE_RETURN,
        "\n": _Kind.NEWLINE,
        " ": _Kind.OTHER,
    }
)
"""The characters that are not treated by their category."""

_KIND_OF_CATEGORY: Mapping[str, _Kind] = MappingProxyType(
    {
        **dict.fromkeys(("Mn", "Mc", "Me"), _Kind.MARK),
        **dict.fromkeys(("Cc", "Cs"), _Kind.CONTROL),
        **dict.fromkeys(("Zl", "Zp"), _Kind.LINE_BREAK),
        "Zs": _Kind.SPACE,
    }
)


@dataclass(frozen=True)
class CleanText:
    """A text whose characters were cleaned.

    Attributes:
        text: the clean text.
        positions: the position of each of its characters in the original text, int64; None if nothing was left out.
        controls: how many control characters and surrogates were left out.
        marks: how many combining marks were left out, beyond MAX_MARKS on one letter.
    """

    text: str
    positions: NDArray[np.int64] | None = None
    controls: int = 0
    marks: int = 0


def clean_text(text: str) -> CleanText:
    """Clean the characters of a text.

    - Control characters and surrogates are left out and counted. So are combining marks beyond MAX_MARKS on one letter.
    - Characters that are not shown are left out: zero-width spaces, soft hyphens, marks of direction, byte order marks.
      The joiners and variation selectors within emoji remain.
    - Spaces of every kind become the ordinary one, and line breaks of every kind a newline.
    - Typographic apostrophes, quotation marks and hyphens become those of ASCII.

    Cleaning the result again does not change it.
    """
    kinds = {character: kind for character in set(text) if (kind := _kind_of(character))}
    if max(kinds.values(), default=_Kind.OTHER) <= _Kind.NEWLINE:  # Most texts.
        return CleanText(_ACCENT_AS_APOSTROPHE.sub("'", text))
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    classes = _classify(codes, kinds)
    shown = np.flatnonzero((classes != _Kind.CONTROL) & (classes != _Kind.INVISIBLE))
    shown = shown[_is_in_place(classes[shown])]
    kept = shown[~_is_excess_mark(classes[shown])]
    replacements = _REPLACEMENT_CODES[classes[kept]]
    clean = np.where(replacements, replacements, codes[kept]).astype("<u4").tobytes().decode("utf-32-le")
    return CleanText(
        _ACCENT_AS_APOSTROPHE.sub("'", clean),
        positions=kept if len(kept) < len(codes) else None,
        controls=int(np.count_nonzero(classes == _Kind.CONTROL)),
        marks=len(shown) - len(kept),
    )


def _kind_of(character: str) -> _Kind:
    kind = _KIND_OF.get(character)
    return _KIND_OF_CATEGORY.get(unicodedata.category(character), _Kind.OTHER) if kind is None else kind


_REPLACEMENT_CODES = np.array([ord(_REPLACEMENTS.get(kind, "\0")) for kind in _Kind], np.uint32)
"""For each kind, the code point that replaces its characters; 0 if they remain."""


def _classify(codes: NDArray[np.uint32], kinds: Mapping[str, _Kind]) -> NDArray[np.uint8]:
    """Return the kind of each code point, uint8 (n,), from those of the distinct characters."""
    table = np.zeros(int(codes.max()) + 1, np.uint8)
    for character, kind in kinds.items():
        table[ord(character)] = kind
    classes: NDArray[np.uint8] = table[codes]
    return classes


def _is_in_place(classes: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return which characters to keep for what is next to them.

    A variation selector needs an emoji before it, a joiner needs one on both sides, and the carriage return of a
    Windows line break is dropped.
    """
    before = np.concatenate([[_Kind.OTHER], classes[:-1]])
    after = np.concatenate([classes[1:], [_Kind.OTHER]])
    selectors_in_place = (classes == _Kind.SELECTOR) & (before == _Kind.EMOJI)
    ends_emoji = (classes == _Kind.EMOJI) | selectors_in_place
    joiners_in_place = np.concatenate([[False], ends_emoji[:-1]]) & (after == _Kind.EMOJI)
    is_in_place: NDArray[np.bool_] = (
        np.where(classes == _Kind.SELECTOR, selectors_in_place, True)
        & np.where(classes == _Kind.JOINER, joiners_in_place, True)
        & ~((classes == _Kind.CARRIAGE_RETURN) & (after == _Kind.NEWLINE))
    )
    return is_in_place


def _is_excess_mark(classes: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return which characters are combining marks beyond the first MAX_MARKS in a row."""
    places = np.arange(len(classes))
    is_mark = classes == _Kind.MARK
    last_other = np.maximum.accumulate(np.where(is_mark, -1, places))
    is_excess: NDArray[np.bool_] = is_mark & (places - last_other > MAX_MARKS)
    return is_excess
