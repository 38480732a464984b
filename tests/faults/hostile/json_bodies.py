"""JSON, and tables in other forms, that cost far more to parse or to check than their size, or cost far more memory."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from tests.faults.hostile.request import BODY_BYTES, HostileRequest, predict
from tests.faults.sample_requests import KnownModel

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


def _repeat(element: bytes, *, before: bytes = b'{"rows": [', after: bytes = b"]}", size: int = BODY_BYTES) -> bytes:
    """Return a list of as many of these elements as the size allows."""
    return before + b",".join([element] * (size // (len(element) + 1))) + after


_SYNTAX: dict[str, Callable[[], bytes]] = {
    "6 million empty rows": partial(_repeat, b"[]"),
    "6 million empty objects": partial(_repeat, b"{}"),
    "10 million numbers": partial(_repeat, b"1"),
    "6 million empty texts": partial(_repeat, b'""'),
    "4 million nulls": partial(_repeat, b"null"),
    "a list of 10 million numbers": partial(_repeat, b"1", before=b"[", after=b"]"),
    "19 million opening brackets": lambda: b"[" * BODY_BYTES,
    "19 million opening braces": lambda: b"{" * BODY_BYTES,
    "4 million objects within each other": lambda: b'{"a":' * (BODY_BYTES // 5),
    "lists 190 deep, again and again": lambda: _repeat(b"[" * 190 + b"]" * 190),
    "an integer of 19 million digits": lambda: b'{"rows": ' + b"9" * BODY_BYTES + b"}",
    "5,000 integers of 4,000 digits": lambda: _repeat(b"9" * 4_000),
    "a fraction of 19 million digits": lambda: b'{"rows": 0.' + b"3" * BODY_BYTES + b"}",
    "an exponent of 19 million digits": lambda: b'{"rows": 1e' + b"9" * BODY_BYTES + b"}",
    "a text of 19 MB": lambda: b'{"rows": "' + b"a" * BODY_BYTES + b'"}',
    "3 million escapes": lambda: b'{"rows": "' + b"\\u0041" * (BODY_BYTES // 6) + b'"}',
    "a text without an end": lambda: b'{"rows": "' + b"\\\\" * (BODY_BYTES // 2),
    "19 MB of spaces": lambda: b" " * BODY_BYTES + b"{}",
    "19 MB of commas": lambda: b'{"rows": [' + b"," * BODY_BYTES,
    "19 MB of NUL": lambda: bytes(BODY_BYTES),
    "UTF-16": lambda: '{"rows": []}'.encode("utf-16") + bytes(BODY_BYTES),
    "the same key two million times": lambda: _repeat(b'"rows":0', before=b"{", after=b"}"),
    "800,000 different keys": lambda: b"{" + b",".join(b'"%x":0' % i for i in range(800_000)) + b"}",
    "a key of 19 MB": lambda: b'{"' + b"k" * BODY_BYTES + b'": 0}',
    "a number within 150 brackets, then 19 MB of spaces": lambda: (
        b'{"rows": ' + b"[" * 150 + b"1" + b"]" * 150 + b"}" + b" " * BODY_BYTES
    ),
    "names that JSON has not": partial(_repeat, b"NaN"),
}
_FIELDS: dict[str, Callable[[], bytes]] = {
    "1,000 request options": lambda: json.dumps({f"option {i}": 1 for i in range(1_000)} | {"rows": []}).encode(),
    "a time limit of 300 digits": lambda: json.dumps({"timeout_ms": 10**300, "rows": []}).encode(),
    "a priority of 19 MB": lambda: b'{"priority": "' + b"h" * BODY_BYTES + b'", "rows": []}',
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
        "a category of 19 MB": lambda: _rows(row | {categories[0]: "x" * BODY_BYTES}),
        "a row with a field of 19 MB of lists": lambda: (
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
    yield predict(
        "table: a date of 19 MB", model.name, _JSON, partial(_rows, row | {column: "2012-" * (BODY_BYTES // 5)})
    )


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
        "a user of 19 MB": lambda: {"user": "u" * BODY_BYTES},
        "similar to 19 MB": lambda: {"similar_to": "u" * BODY_BYTES},
        "1,000 unknown fields": lambda: {"ratings": [], **{f"x{i}": 0 for i in range(1_000)}},
    }
    for name, make in bodies.items():
        yield predict(f"ratings: {name}", model.name, _JSON, partial(_encoded, make))


def _encoded(make: Callable[[], Any]) -> bytes:
    return json.dumps(make()).encode()


def _csv(model: KnownModel) -> Iterator[HostileRequest]:
    row = model.goldens[0].request["rows"][0]
    numbers = {c["name"] for c in model.manifest.parameters["columns"] if c["kind"] == "number"}
    head = ",".join(row).encode() + b"\n"
    refused: dict[str, Callable[[], bytes]] = {
        "19 MB of commas": lambda: b"," * BODY_BYTES,
        "19 MB of line breaks": lambda: head + b"\n" * BODY_BYTES,
        "rows without end": lambda: head + b"1,\n" * (BODY_BYTES // 3),
        "a quote that is never closed": lambda: head + b'"' + b"a" * BODY_BYTES,
        "19 MB of quotes": lambda: head + b'"' * BODY_BYTES,
        "19 MB of NUL": lambda: head + bytes(BODY_BYTES),
        "a million columns": lambda: b",".join(b"c%d" % i for i in range(1_000_000)) + b"\n",
        "a header of 100 kB of near names": lambda: b",".join(b"educatiom-nun%d" % i for i in range(5_500)) + b"\n",
        "separators in turn": lambda: head + b",;\t|" * (BODY_BYTES // 4),
    }
    accepted: dict[str, Callable[[], bytes]] = {
        "1,000 rows": lambda: head + _cells(row, lambda name: str(row[name]).encode()),
        "1,000 rows of categories of 3 kB": lambda: (
            head + _cells(row, lambda name: str(row[name]).encode() if name in numbers else b"x" * 3_000)
        ),
        "1,000 rows of decimal commas": lambda: (
            head.replace(b",", b";") + _cells(row, lambda name: b"1,5" if name in numbers else b" ", separator=b";")
        ),
        "1,000 rows, 19 MB of spaces in their cells": lambda: head + _cells(row, lambda name: b" " * 1_700),
        "a row, then 19 MB of line breaks": lambda: (
            head + _cells(row, lambda name: str(row[name]).encode(), rows=1) + b"\n" * (BODY_BYTES - 1_000)
        ),
    }
    for name, make in refused.items():
        yield predict(f"CSV: {name}", model.name, "text/csv", make, refused=True)
    for name, make in accepted.items():
        yield predict(f"CSV: {name}", model.name, "text/csv", make)


def _cells(names: Iterable[str], make: Callable[[str], bytes], *, separator: bytes = b",", rows: int = 1_000) -> bytes:
    """Return equal rows of CSV."""
    return (separator.join(map(make, names)) + b"\n") * rows
