"""Log lines are JSON for programs and text for people; clients can neither forge lines nor reach a terminal."""

import json
import logging
import sys
from collections.abc import Mapping

import pytest

from service.process.logging import (
    REQUEST_ID,
    TRACE_ID,
    JsonFormatter,
    LogFormat,
    TextFormatter,
    choose_formatter,
    trace_id_from_header,
)

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
HOSTILE = "a\nERROR forged\r\x1b[2J\x9b31m\u202eb\u2028\x00"


def record(message: str, level: int = logging.INFO, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("service.request", level, "", 0, message, None, None)
    made.created, made.msecs = 1_800_000_000.25, 250.0
    made.fields = fields
    return made


def test_text_has_time_level_message_and_fields() -> None:
    line = TextFormatter().format(record("GET /docs", status=200, ms=1.5, note="two words", names=["a", "b"]))

    assert line == '2027-01-15T08:00:00.250Z INFO     GET /docs status=200 ms=1.5 note="two words" names=["a","b"]'


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_lines_have_the_ids_of_request_and_trace(formatter: logging.Formatter) -> None:
    tokens = REQUEST_ID.set("abc"), TRACE_ID.set(TRACE)
    line = formatter.format(record("one"))
    REQUEST_ID.reset(tokens[0])
    TRACE_ID.reset(tokens[1])

    assert "abc" in line
    assert TRACE in line
    assert TRACE not in formatter.format(record("two"))


@pytest.mark.parametrize("formatter", [TextFormatter(), TextFormatter(colours=True), JsonFormatter()])
def test_control_characters_of_clients_are_escaped(formatter: logging.Formatter) -> None:
    line = formatter.format(record(HOSTILE, path=HOSTILE, notes=[HOSTILE]))

    plain = line.replace("\x1b[32m", "").replace("\x1b[0m", "")
    assert plain.isprintable()
    assert "forged" in plain


def test_json_is_unchanged_by_escaping() -> None:
    line = json.loads(JsonFormatter().format(record(HOSTILE, path=HOSTILE)))

    assert (line["message"], line["path"]) == (HOSTILE, HOSTILE)


def test_exceptions_and_stacks_are_indented_below_their_line() -> None:
    try:
        raise ValueError("bad\nINFO     forged")
    except ValueError:
        failed = record("failed", logging.ERROR, stacks={"MainThread": ["one.py:1", "two.py:2"]})
        failed.exc_info = sys.exc_info()

    first, *below = TextFormatter().format(failed).split("\n")

    assert first == "2027-01-15T08:00:00.250Z ERROR    failed"
    assert below[:3] == ["    stacks MainThread:", "    one.py:1", "    two.py:2"]
    assert all(line.startswith("    ") for line in below)
    assert below[-2:] == ["    ValueError: bad", "    INFO     forged"]


@pytest.mark.parametrize(
    ("log_format", "is_terminal", "environment", "expected"),
    [
        ("auto", False, {}, "json"),
        ("auto", True, {}, "coloured"),
        ("auto", True, {"NO_COLOR": "1"}, "text"),
        ("auto", True, {"TERM": "dumb"}, "text"),
        ("json", True, {}, "json"),
        ("text", False, {}, "text"),
        ("text", True, {}, "coloured"),
    ],
)
def test_the_format_follows_setting_terminal_and_environment(
    log_format: LogFormat, is_terminal: bool, environment: Mapping[str, str], expected: str
) -> None:
    formatter = choose_formatter(log_format, is_terminal=is_terminal, environment=environment)
    line = formatter.format(record("one"))

    kind = "json" if line.startswith("{") else "coloured" if "\x1b[" in line else "text"
    assert kind == expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (f"00-{TRACE}-00f067aa0ba902b7-01", TRACE),
        (f"cc-{TRACE}-00f067aa0ba902b7-00", TRACE),
        (f"ff-{TRACE}-00f067aa0ba902b7-01", None),
        (f"00-{TRACE.upper()}-00f067aa0ba902b7-01", None),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", None),
        ("", None),
        (f"00-{TRACE}-00f067aa0ba902b7-01\n", None),
    ],
)
def test_trace_ids_are_read_from_valid_headers(header: str, expected: str | None) -> None:
    assert trace_id_from_header(header) == expected
