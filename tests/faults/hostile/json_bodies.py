"""JSON, and tables in other forms, that cost far more to parse or to check than their size, or cost far more memory."""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from tests.faults.hostile.request import HostileRequest, predict
from tests.faults.sample_requests import KnownModel

_BODY = 9_500_000
_JSON = "application/json"


def json_bodies(known: Mapping[str, KnownModel]) -> Iterator[HostileRequest]:
    """Yield the requests with JSON or CSV."""
    for name, make in _SYNTAX.items():
        yield predict(f"JSON: {name}", "adult", _JSON, make, refused=True)
    for name, make in _FIELDS.items():
        yield predict(f"JSON: {name}", "adult", _JSON, make)
    yield from _tables(known["adult"])
    yield from _dates(known["bikes"])
    yield from _ratings(known["movielens"])
    yield from _csv(known["adult"])


def _repeat(element: bytes, *, before: bytes = b'{"rows": [', after: bytes = b"]}", size: int = _BODY) -> bytes:
    """Return a list of as many of these elements as the size allows."""
    return before + b",".join([element] * (size // (len(element) + 1))) + after


_SYNTAX: dict[str, Callable[[], bytes]] = {
    "3 million empty rows": partial(_repeat, b"[]"),
    "3 million empty objects": partial(_repeat, b"{}"),
    "5 million numbers": partial(_repeat, b"1"),
    "3 million empty texts": partial(_repeat, b'""'),
    "2 million nulls": partial(_repeat, b"null"),
    "a list of 5 million numbers": partial(_repeat, b"1", before=b"[", after=b"]"),
    "9 million opening brackets": lambda: b"[" * _BODY,
    "9 million opening braces": lambda: b"{" * _BODY,
    "2 million objects within each other": lambda: b'{"a":' * (_BODY // 5),
    "lists 190 deep, again and again": lambda: _repeat(b"[" * 190 + b"]" * 190),
    "an integer of 9 million digits": lambda: b'{"rows": ' + b"9" * _BODY + b"}",
    "2,000 integers of 4,000 digits": lambda: _repeat(b"9" * 4_000),
    "a fraction of 9 million digits": lambda: b'{"rows": 0.' + b"3" * _BODY + b"}",
    "an exponent of 9 million digits": lambda: b'{"rows": 1e' + b"9" * _BODY + b"}",
    "a text of 9 MB": lambda: b'{"rows": "' + b"a" * _BODY + b'"}',
    "1.5 million escapes": lambda: b'{"rows": "' + b"\\u0041" * (_BODY // 6) + b'"}',
    "a text without an end": lambda: b'{"rows": "' + b"\\\\" * (_BODY // 2),
    "9 MB of spaces": lambda: b" " * _BODY + b"{}",
    "9 MB of commas": lambda: b'{"rows": [' + b"," * _BODY,
    "9 MB of NUL": lambda: bytes(_BODY),
    "UTF-16": lambda: '{"rows": []}'.encode("utf-16") + bytes(_BODY),
    "the same key a million times": lambda: _repeat(b'"rows":0', before=b"{", after=b"}"),
    "800,000 different keys": lambda: b"{" + b",".join(b'"%x":0' % i for i in range(800_000)) + b"}",
    "a key of 9 MB": lambda: b'{"' + b"k" * _BODY + b'": 0}',
    "a number within 150 brackets, then 9 MB of spaces": lambda: (
        b'{"rows": ' + b"[" * 150 + b"1" + b"]" * 150 + b"}" + b" " * _BODY
    ),
    "names that JSON has not": partial(_repeat, b"NaN"),
}
_FIELDS: dict[str, Callable[[], bytes]] = {
    "1,000 request options": lambda: json.dumps({f"option {i}": 1 for i in range(1_000)} | {"rows": []}).encode(),
    "a time limit of 300 digits": lambda: json.dumps({"timeout_ms": 10**300, "rows": []}).encode(),
    "a priority of 9 MB": lambda: b'{"priority": "' + b"h" * _BODY + b'", "rows": []}',
}


def _rows(*rows: Mapping[str, Any]) -> bytes:
    return json.dumps({"rows": rows}).encode()


def _tables(model: KnownModel) -> Iterator[HostileRequest]:
    row = model.goldens[0].request["rows"][0]
    numbers = [c["name"] for c in model.manifest.parameters["columns"] if c["kind"] == "number"]
    categories = [c["name"] for c in model.manifest.parameters["columns"] if c["kind"] == "category"]
    bodies: dict[str, Callable[[], bytes]] = {
        "1,000 rows, all right": lambda: _rows(*[row] * 1_000),
        "1,000 rows, each value wrong": lambda: _rows(*[{name: [1] for name in row}] * 1_000),
        "1,000 rows, each with 20 unknown fields": lambda: _rows(*[row | {f"x{i}": 1 for i in range(20)}] * 1_000),
        "1,000 rows without columns": lambda: _rows(*[{}] * 1_000),
        "1,000 rows, each with a number of 4,000 digits": lambda: _rows(
            *[row | dict.fromkeys(numbers, 10**4_000)] * 300
        ),
        "1,000 rows, each with numbers as text of 1,000 digits": lambda: _rows(
            *[row | dict.fromkeys(numbers, "9" * 1_000)] * 1_000
        ),
        "1,000 rows of numbers as text that are none": lambda: _rows(
            *[row | dict.fromkeys(numbers, "1_" * 500)] * 1_000
        ),
        "1,000 rows of long categories": lambda: _rows(
            *[row | dict.fromkeys(categories, "x" * 1_000) for _ in range(1_000)]
        ),
        "1,000 rows of different categories": lambda: _rows(
            *[row | dict.fromkeys(categories, f"x{i}") for i in range(1_000)]
        ),
        "1,000 rows of categories that are spaces": lambda: _rows(
            *[row | dict.fromkeys(categories, " " * 1_000) for _ in range(1_000)]
        ),
        "a category of 9 MB": lambda: _rows(row | {categories[0]: "x" * _BODY}),
        "a row with a field of 9 MB of lists": lambda: (
            b'{"rows": [' + _repeat(b"[]", before=b'{"x": [', after=b"]}") + b"]}"
        ),
        "a row with 500,000 fields": lambda: _rows({f"x{i}": 1 for i in range(500_000)}),
        "a number of 300 digits": lambda: _rows(*[row | dict.fromkeys(numbers, 1e300)] * 1_000),
        "1,001 rows": lambda: _rows(*[row] * 1_001),
        "near names of columns": lambda: _rows({f"{name}{'x' * 50}{i}": 1 for name in row for i in range(2)}),
    }
    for name, make in bodies.items():
        yield predict(f"table: {name}", model.name, _JSON, make)


def _dates(model: KnownModel) -> Iterator[HostileRequest]:
    row = model.goldens[0].request["rows"][0]
    column = next(c["name"] for c in model.manifest.parameters["columns"] if c["kind"] == "date")
    for name, text in {
        "digits": "2" * 1_000,
        "spaces": " " * 1_000,
        "a date and spaces": "2012-09-01" + " " * 1_000,
    }.items():
        make = partial(_rows, *[row | {column: text}] * 1_000)
        yield predict(f"table: 1,000 dates of {name}", model.name, _JSON, make)
    yield predict("table: a date of 9 MB", model.name, _JSON, partial(_rows, row | {column: "2012-" * (_BODY // 5)}))


def _ratings(model: KnownModel) -> Iterator[HostileRequest]:
    items: list[str] = json.loads((model.folder / "items.json").read_text("utf-8"))["ids"]
    bodies: dict[str, Callable[[], Any]] = {
        "1,000 unknown items": lambda: {"ratings": [{"item": f"unknown {i}", "rating": 4.0} for i in range(1_000)]},
        "as many as the largest user has": lambda: {
            "ratings": [{"item": item, "rating": 4.0} for item in items[:1_000]],
            "k": 100,
        },
        "one item a thousand times": lambda: {"ratings": [{"item": items[0], "rating": 4.0}] * 1_000},
        "ratings that are out of range": lambda: {
            "ratings": [{"item": item, "rating": 1e300} for item in items[:1_000]]
        },
        "1,000 wrong types": lambda: {"ratings": [{"item": [], "rating": {}}] * 1_000},
        "everything is excluded": lambda: {"ratings": [], "exclude": items[:1_000], "k": 100},
        "a million exclusions": lambda: {"ratings": [], "exclude": ["x"] * 1_000_000},
        "a million ratings": lambda: {"ratings": [1] * 1_000_000},
        "ids of 9 kB": lambda: {"ratings": [{"item": "9" * 9_000}] * 1_000},
        "ids that are numbers of 4,000 digits": lambda: {"ratings": [{"item": 10**4_000}] * 1_000},
        "a user of 9 MB": lambda: {"user": "u" * _BODY},
        "similar to 9 MB": lambda: {"similar_to": "u" * _BODY},
        "1,000 unknown fields": lambda: {"ratings": [], **{f"x{i}": 0 for i in range(1_000)}},
    }
    for name, make in bodies.items():
        yield predict(f"ratings: {name}", model.name, _JSON, partial(_encoded, make))


def _encoded(make: Callable[[], Any]) -> bytes:
    return json.dumps(make()).encode()


def _csv(model: KnownModel) -> Iterator[HostileRequest]:
    row = model.goldens[0].request["rows"][0]
    head = ",".join(row).encode() + b"\n"
    bodies: dict[str, Callable[[], bytes]] = {
        "9 MB of commas": lambda: b"," * _BODY,
        "9 MB of line breaks": lambda: head + b"\n" * _BODY,
        "rows without end": lambda: head + b"1,\n" * (_BODY // 3),
        "a quote that is never closed": lambda: head + b'"' + b"a" * _BODY,
        "9 MB of quotes": lambda: head + b'"' * _BODY,
        "9 MB of NUL": lambda: head + bytes(_BODY),
        "a million columns": lambda: b",".join(b"c%d" % i for i in range(1_000_000)) + b"\n",
        "separators in turn": lambda: head + b",;\t|" * (_BODY // 4),
    }
    for name, make in bodies.items():
        yield predict(f"CSV: {name}", model.name, "text/csv", make, refused=True)
