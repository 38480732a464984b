"""Small texts, rows and ratings that would cost much more than their size if their cost were not bounded.

Each generator makes its text or body when it is called; `size` is the number of characters, or of objects.
"""

import json
import random
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

MARKS = "\u0316\u0301\u0327\u031b"
"""Combining marks in an order that Unicode normalisation has to sort."""


def repeat(pattern: str, *, start: str = "", size: int = 100_000) -> str:
    """A text of `size` characters: `start`, then a pattern again and again."""
    return (start + pattern * (size // len(pattern) + 1))[:size]


def random_word(alphabet: str, *, size: int = 100_000) -> str:
    """One word of random characters."""
    return "".join(random.Random(0).choices(alphabet, k=size))


def all_characters(*, size: int = 100_000) -> str:
    """A text in which no character occurs twice."""
    return "".join(map(chr, (*range(0x20, 0xD800), *range(0x10000, 0x30000))))[:size]


HOSTILE_TEXTS: Mapping[str, Callable[[], str]] = {
    "a letter with 96,000 marks to sort": partial(repeat, MARKS, start="a", size=96_001),
    "half-width marks to sort": partial(repeat, "\uff9e\u0301\u0316", start="a"),
    "Tibetan vowels to sort": partial(repeat, "\u0f73\u0316\u0301", start="a"),
    "many marks on every letter": partial(repeat, "a" + MARKS * 10),
    "ligatures that expand to 18 characters": partial(repeat, "\ufdfa"),
    "capitals that expand to two": partial(repeat, "\u0130"),
    "one letter": partial(repeat, "a"),
    "one word of letters": partial(random_word, "abcdefghijklmnopqrstuvwxyz"),
    "one word of digits": partial(random_word, "0123456789"),
    "punctuation": partial(random_word, "!?.,;:-"),
    "open tags": partial(repeat, "<br"),
    "a tag with a long space": partial(repeat, " ", start="<br"),
    "Windows line breaks": partial(repeat, "\r\n", start="a"),
    "emoji": partial(repeat, "😀👍"),
    "joined emoji": partial(repeat, "👩\u200d❤️\u200d👩\u200d"),
    "joiners": partial(repeat, "\u200d", start="a"),
    "zero-width spaces": partial(repeat, "a\u200b"),
    "apostrophes": partial(repeat, "a\u2019"),
    "an accent on every letter": partial(repeat, "a\u0301"),
    "control characters": partial(repeat, "\0", start="a"),
    "surrogates": partial(repeat, "\ud800", start="a"),
    "all characters": all_characters,
}
"""Texts of at most 100,000 characters, the limit of a request, by name."""


def json_body(fields: Mapping[str, Any]) -> bytes:
    """A JSON body."""
    return json.dumps(fields).encode()


def empty_lists(name: str, *, size: int = 3_200_000) -> bytes:
    """A JSON body in which a list of objects holds empty lists."""
    return b'{"' + name.encode() + b'": [' + b",".join([b"[]"] * size) + b"]}"


def hostile_rows(row: Mapping[str, Any], *, size: int = 1_000) -> dict[str, Any]:
    """Requests for a table, made from a valid row, by name: each holds as many rows as a request may."""
    names = list(row)
    return {
        "rows of wrong types": {"rows": [{name: [] for name in names}] * size},
        "rows without columns": {"rows": [{}] * size},
        "rows of unknown columns": {"rows": [{**row, **{"x" * 200 + str(i): i for i in range(20)}}] * size},
        "rows of large integers": {"rows": [dict.fromkeys(names, 10**300)] * size},
        "rows of long texts": {"rows": [dict.fromkeys(names, "9" * 500)] * size},
        "rows of long words": {"rows": [dict.fromkeys(names, "x" * 500)] * size},
        "rows of unseen values": {"rows": [dict.fromkeys(names, f"value {i}") for i in range(size)]},
        "a text of a megabyte": {"rows": [dict.fromkeys(names, "x" * 1_000_000)]},
        "a number of a megabyte as text": {"rows": [dict.fromkeys(names, "9" * 1_000_000)]},
        "nested rows": {"rows": [_nested(100)] * size},
        "objects instead of values": {"rows": [{name: dict(row) for name in names}] * size},
    }


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def hostile_ratings(item: str, *, size: int = 1_000) -> dict[str, Any]:
    """Requests for recommendations, made from the id of an item, by name."""
    return {
        "ratings of wrong types": {"ratings": [{"item": [], "rating": []}] * size, "exclude": [[]] * size},
        "ratings with unknown fields": {"ratings": [{"item": item, **{f"{i}": 1 for i in range(8)}}] * size},
        "one item again and again": {"ratings": [{"item": item}] * size},
        "unknown items": {"ratings": [{"item": "q" * 190 + str(i)} for i in range(size)]},
        "unknown items to exclude": {"ratings": [], "exclude": ["u" * 190 + str(i) for i in range(size)]},
    }
