"""Texts that cost far more to normalise, tokenise or read than their length says."""

import json
from collections.abc import Callable, Iterator
from functools import partial

from tests.faults.hostile.request import BODY_BYTES, HostileRequest, predict

_CHARACTERS = 100_000
"""The most that a server accepts by default."""


def texts() -> Iterator[HostileRequest]:
    """Yield the requests with texts."""
    for name, text in {**_UNICODE, **_REPETITIONS}.items():
        yield predict(f"text: {name}", "imdb", "text/plain; charset=utf-8", partial(_encoded, text))
    yield predict("text: 19 MB of letters", "imdb", "text/plain", lambda: b"a" * BODY_BYTES, refused=True)
    yield predict("text: 19 MB of spaces", "imdb", "text/plain", lambda: b" " * BODY_BYTES, refused=True)
    yield predict(
        "text: 19 MB of combining marks",
        "imdb",
        "text/plain",
        lambda: "\u0301".encode() * (BODY_BYTES // 2),
        refused=True,
    )
    yield predict(
        "text: 19 MB of UTF-8 that ends in half a character",
        "imdb",
        "text/plain",
        lambda: b"a" * (BODY_BYTES - 1) + b"\xc3",
        refused=True,
    )
    yield predict(
        "text: lone surrogates in JSON", "imdb", "application/json", lambda: b'{"text": "' + b"\\ud800" * 90_000 + b'"}'
    )
    yield predict("text: the worst that is accepted, with all its words", "imdb", "application/json", _longest)


_MARKS = "\u0316\u0301\u0327\u031b"
"""Combining marks of four classes in an order that normalising has to change."""

_UNICODE: dict[str, Callable[[], str]] = {
    "one letter and 96,000 combining marks to be sorted": lambda: "a" + _MARKS * 24_000,
    "30 combining marks on each letter": lambda: ("a" + "\u0301\u0316" * 15) * 3_200,
    "marks of descending classes": lambda: (
        "a" + "".join(c * 12_000 for c in "\u0345\u035d\u0315\u0301\u0316\u031b\u0327\u0334")
    ),
    "combining marks without a letter": lambda: _MARKS * 24_000,
    "33,000 letters that become 18 each": lambda: "\ufdfa" * 33_000,
    "5,500 letters that become 18 each, the most that fits": lambda: "\ufdfa" * 5_500,
    "Hangul to be composed": lambda: "\u1112\u1161\u11ab" * 33_000,
    "Tibetan vowels to be sorted": lambda: "\u0f40" + "\u0f73\u0f72\u0f71" * 30_000,
    "emoji joined to one": lambda: "\U0001f468\u200d" * 50_000,
    "100,000 emoji": lambda: "\U0001f600" * _CHARACTERS,
    "flags": lambda: "\U0001f1e9\U0001f1ea" * 50_000,
    "variation selectors": lambda: "a" + "\ufe0f" * 99_999,
    "zero-width characters": lambda: "\u200b\u00ad\u2060\ufeff" * 25_000,
    "100,000 NUL characters": lambda: "\0" * 99_999 + "a",
    "control characters between letters": lambda: "a\x01" * 50_000,
    "right-to-left overrides": lambda: "\u202e\u05d0" * 50_000,
    "100,000 different characters": lambda: "".join(chr(0x4E00 + i % 20_000) for i in range(_CHARACTERS)),
    "private characters": lambda: "".join(chr(0xF0000 + i % 60_000) for i in range(_CHARACTERS)),
    "capital letters that become several": lambda: "\u0130\u1e9e" * 50_000,
}
_REPETITIONS: dict[str, Callable[[], str]] = {
    "a word of 100,000 letters": lambda: "".join(chr(97 + i * i * 7919 % 26) for i in range(_CHARACTERS)),
    "one letter 100,000 times": lambda: "a" * _CHARACTERS,
    "line breaks": lambda: "\r\n" * 50_000,
    "HTML line breaks": lambda: "<br>" * 25_000,
    "an HTML line break with 99,000 spaces in it": lambda: "<br" + " " * 99_000,
    "openings of HTML line breaks": lambda: "<br " * 25_000,
    "spaces": lambda: "a" + " " * 99_998 + "b",
    "exclamation and question marks": lambda: "!?" * 50_000,
    "dots": lambda: "." * _CHARACTERS,
    "letters in pairs": lambda: "aabb" * 25_000,
    "letters that repeat three times": lambda: "aaabbb" * 16_600,
    "apostrophes between letters": lambda: "a'" * 50_000,
    "typographic apostrophes": lambda: "a\u2019" * 50_000,
    "letters apart": lambda: "a " * 50_000,
    "digits": lambda: "0123456789" * 10_000,
    "underscores": lambda: "a_" * 50_000,
    "names of special tokens": lambda: "[PAD][BEGIN]" * 8_000,
    "markup": lambda: "</s><|endoftext|>" * 5_800,
}


def _encoded(text: Callable[[], str]) -> bytes:
    return text().encode()


def _longest() -> bytes:
    words = " ".join(f"{chr(97 + i % 26)}{chr(97 + i // 26 % 26)}{chr(97 + i // 676 % 26)}" for i in range(25_000))
    return json.dumps({"text": words[:_CHARACTERS], "words": 50}).encode()
