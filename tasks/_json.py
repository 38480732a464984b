"""Parsing of large JSON files without keeping other threads from running.

A parser written in C holds the interpreter's lock until it has read the whole text: 6 ms for the 0.9 MB of a table of
users, in proportion to its size, during which a server answers nobody. Here only pieces are parsed in C, and Python may
switch threads after each.
"""

import json
import re
from typing import Any

from pydantic_core import from_json

_LARGE = 100_000
"""Characters; a text of this size is parsed in less than a millisecond."""
_DEPTH = 2
"""Containers are taken apart down to this depth: a table is an object of columns, or an object of rows."""
_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\n\r]*")
_DELIMITER = re.compile(r"[ \t\n\r]*([,:\]}])[ \t\n\r]*")
_CLOSING = {"[": "]", "{": "}"}


def parse_json(text: str, *, max_at_once: int = _LARGE) -> Any:
    """Return the value of a JSON text; one of more than `max_at_once` characters is parsed in pieces.

    Raises ValueError.
    """
    if len(text) <= max_at_once:
        return from_json(text)
    value, end = _parse_value(text, _skip_space(text, 0), _DEPTH)
    if end != len(text.rstrip(" \t\n\r")):
        raise json.JSONDecodeError("Extra data", text, end)
    return value


def _parse_value(text: str, start: int, depth: int) -> tuple[Any, int]:
    """Return the value at a position, and the position after it."""
    closing = _CLOSING.get(text[start : start + 1])
    if not depth or closing is None:
        return _DECODER.raw_decode(text, start)
    start = _skip_space(text, start + 1)
    members: list[Any] = []
    if text[start : start + 1] == closing:
        return ([] if closing == "]" else {}), start + 1
    while True:
        key = None
        if closing == "}":
            key, start = _parse_key(text, start)
        value, start = _parse_value(text, start, depth - 1)
        members.append(value if closing == "]" else (key, value))
        delimiter, start, end = _read_delimiter(text, start)
        if delimiter == closing:
            return (members if closing == "]" else dict(members)), end
        if delimiter != ",":
            raise json.JSONDecodeError("Expecting ',' delimiter", text, start)


def _parse_key(text: str, start: int) -> tuple[str, int]:
    """Return the key at a position, and the position of its value."""
    key, end = _DECODER.raw_decode(text, start)
    delimiter, after, _ = _read_delimiter(text, end)
    if not isinstance(key, str) or delimiter != ":":
        raise json.JSONDecodeError("Expecting a property name and ':'", text, start)
    return key, after


def _read_delimiter(text: str, start: int) -> tuple[str, int, int]:
    """Return the delimiter at a position, the position of what follows it, and the position right after it."""
    match = _DELIMITER.match(text, start)
    if match is None:
        raise json.JSONDecodeError("Expecting a delimiter", text, start)
    return match[1], match.end(), match.end(1)


def _skip_space(text: str, start: int) -> int:
    match = _SPACE.match(text, start)
    return match.end() if match else start
