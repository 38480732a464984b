"""Logging on standard error, as lines of JSON or as text, with the ids of the request and its trace.

JSON is one line per record. Text is for people at a terminal: a line per record, and exceptions indented below it.
Neither contains control characters of what it quotes, so that clients can neither forge lines nor control a terminal.

Lines are written by a thread of their own: whoever reads standard error may be slow, blocked or gone, and the event
loop must not wait for that. What cannot be kept is dropped and counted.
"""

import asyncio
import fcntl
import logging
import logging.handlers
import os
import queue
import random
import re
import secrets
import select
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

from pydantic_core import to_json

from service.process.output import descriptor_of, is_terminal, write_all

LogFormat = Literal["auto", "json", "text"]
REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the request that is being handled in this context."""

TRACE_ID: ContextVar[str | None] = ContextVar("trace_id", default=None)
"""The id of the trace that the request belongs to, if any."""

_MAX_WAITING_LINES = 10_000
"""Lines that wait to be written: a few MB, or some seconds of requests."""
_MAX_LINES_AT_ONCE = 256
_GATHERING_S = 0.01
"""How long the thread lets lines gather: it needs the interpreter's lock, and would delay a request for each line."""
_FLUSH_TIMEOUT_S = 1.5
"""How long an exit waits for the last lines to be written."""
_DIRECT_TIMEOUT_S = 1.0
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
"""Control characters, line breaks of Unicode, and marks that change the direction of text."""
_UNQUOTED = re.compile(r"[^\s\"=]+")
_COLOURS = {"DEBUG": "2", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}
"""Escape sequences (ECMA-48, SGR) for the names of levels."""
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?P<trace_id>[0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
_random = random.Random(secrets.randbits(128))
"""For the ids of requests, which are unique and no secrets. Asking the system each time costs as much as a row."""
os.register_at_fork(after_in_child=lambda: _random.seed(secrets.randbits(128)))
_VALID_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


def request_id_from_header(header: str | None) -> str:
    """Return the client's request id if it is plain enough not to forge log lines, or else a new one."""
    return header if header and _VALID_REQUEST_ID.fullmatch(header) else f"{_random.getrandbits(64):016x}"


def trace_id_from_header(header: str) -> str | None:
    """Return the trace id of a `traceparent` header; None if it is malformed (W3C Trace Context, 3.2)."""
    match = _TRACEPARENT.fullmatch(header)
    return match["trace_id"] if match and int(match["trace_id"], 16) else None


class JsonFormatter(logging.Formatter):
    """Formats a record as one line: time (UTC), level, logger, message, request_id, and `fields` from its `extra`."""

    def __init__(self) -> None:
        super().__init__()
        self._cached_second, self._cached_text = 0, ""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without a line break."""
        line: dict[str, Any] = {
            "time": f"{self._format_second(int(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (request_id := REQUEST_ID.get()) is not None:
            line["request_id"] = request_id
        if (trace_id := TRACE_ID.get()) is not None:
            line["trace_id"] = trace_id
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        text = to_json(line, fallback=str).decode()
        if text.isascii() and "\x7f" not in text:
            return text
        return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)

    def _format_second(self, second: int) -> str:
        if second != self._cached_second:
            self._cached_second = second
            self._cached_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return self._cached_text


class TextFormatter(logging.Formatter):
    """Formats a record for people: time, level, message, then fields as key=value, and exceptions below.

    Args:
        colours: whether the level is coloured, for a terminal. The time is then the local one, without the date;
            otherwise it is UTC, with the date.
    """

    def __init__(self, *, colours: bool = False, is_terminal: bool = False) -> None:
        super().__init__()
        self._colours, self._is_terminal = colours, is_terminal

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the lines of what belongs below it."""
        fields: dict[str, Any] = dict(getattr(record, "fields", {}))
        below = {key: fields.pop(key) for key, value in list(fields.items()) if isinstance(value, Mapping)}
        if (request_id := REQUEST_ID.get()) is not None:
            fields["request_id"] = request_id
        if (trace_id := TRACE_ID.get()) is not None:
            fields["trace_id"] = trace_id
        words = [self._format_time(record), self._format_level(record.levelname), _escape(record.getMessage())]
        lines = [" ".join([*words, *(f"{key}={_quote(value)}" for key, value in fields.items())])]
        for key, entries in below.items():
            for name, value in entries.items():
                lines += [f"    {_escape(f'{key} {name}')}:", *_indent(value)]
        if record.exc_info:
            lines += _indent(self.formatException(record.exc_info).splitlines())
        return "\n".join(lines)

    def _format_time(self, record: logging.LogRecord) -> str:
        if self._is_terminal:
            return time.strftime("%H:%M:%S", time.localtime(record.created)) + f".{int(record.msecs):03d}"
        return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"

    def _format_level(self, name: str) -> str:
        padded = f"{name:<8}"
        return f"\x1b[{_COLOURS.get(name, '0')}m{padded}\x1b[0m" if self._colours else padded


def _escape(text: str) -> str:
    """Return a text with control characters as backslash sequences, as in Python."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def _quote(value: object) -> str:
    """Return a value of a field; in quotation marks if it would not be recognised as one word."""
    text = value if isinstance(value, str) else to_json(value, fallback=str).decode()
    if isinstance(value, str) and not _UNQUOTED.fullmatch(text):
        text = to_json(text).decode()
    return _escape(text)


def _indent(value: object) -> list[str]:
    """Return lines, or a value, indented below a record."""
    lines = value if isinstance(value, list | tuple) else [value]
    return [f"    {_escape(part)}" for line in lines for part in str(line).splitlines()]


class LogWriter(logging.handlers.QueueHandler):
    """Formats records at once, where the request's id is known, and writes the lines in a thread.

    Attributes:
        dropped: number of lines that were not written, because too many were waiting or writing them failed.
    """

    def __init__(
        self,
        write: Callable[[bytes], int],
        max_waiting: int = _MAX_WAITING_LINES,
        formatter: logging.Formatter | None = None,
    ) -> None:
        """`write` writes bytes and returns how many it has written; fewer than given if it failed.

        `formatter` formats records; JSON by default.
        """
        # Unlike queue.Queue, it may be used by a signal handler that interrupts `put`.
        self._lines: queue.SimpleQueue[bytes | threading.Event] = queue.SimpleQueue()
        super().__init__(self._lines)
        self._write = write
        self._max_waiting = max_waiting
        self._overflowed = self._failed = self._reported = 0
        self._ends_within_line = False
        self._writing = threading.Lock()
        self.setFormatter(formatter or JsonFormatter())
        threading.Thread(target=self._write_lines, name="log", daemon=True).start()

    @property
    def dropped(self) -> int:
        """Number of lines that were not written."""
        return self._overflowed + self._failed

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record, unless too many are waiting. Critical ones are never dropped: they explain an exit."""
        if self._lines.qsize() >= self._max_waiting and record.levelno < logging.CRITICAL:
            self._overflowed += 1
        else:
            super().emit(record)

    def prepare(self, record: logging.LogRecord) -> bytes:
        """Return the line."""
        return self.format(record).encode("utf-8", "backslashreplace") + b"\n"

    def flush(self) -> None:
        """Wait until all lines queued so far are written, at most for some seconds."""
        is_written = threading.Event()
        self._lines.put(is_written)
        is_written.wait(_FLUSH_TIMEOUT_S)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Write the lines queued so far, and no others during the `with` block, so that a text stays in one piece."""
        self.flush()
        with self._writing:
            yield

    def _write_lines(self) -> None:
        while True:
            batch, events = self._take()
            if batch:
                with self._writing:
                    self._write_batch(batch)
            for event in events:
                event.set()

    def _take(self) -> tuple[list[bytes], list[threading.Event]]:
        """Wait for a line, and return the next few, with the events of `flush` that stand among them."""
        items = [self._lines.get()]
        if isinstance(items[0], bytes):
            time.sleep(_GATHERING_S)
        while len(items) < _MAX_LINES_AT_ONCE and not self._lines.empty():
            items.append(self._lines.get_nowait())
        lines = [item for item in items if isinstance(item, bytes)]
        return lines, [item for item in items if isinstance(item, threading.Event)]

    def _write_batch(self, lines: list[bytes]) -> None:
        data = b"\n" * self._ends_within_line + b"".join(lines)
        written = self._write(data)
        if written < len(data):
            self._failed += data[written:].count(b"\n")
            self._ends_within_line = self._ends_within_line if not written else data[written - 1 : written] != b"\n"
            return
        self._ends_within_line = False
        dropped = self.dropped
        if dropped > self._reported and self._write(self._report(dropped - self._reported)):
            self._reported = dropped

    def _report(self, count: int) -> bytes:
        record = logging.LogRecord(__name__, logging.WARNING, "", 0, "log lines were dropped", None, None)
        record.fields = {"count": count}
        return self.prepare(record)


def _is_no_cancellation(record: logging.LogRecord) -> bool:
    """Filter out uvicorn's traceback of requests that it cancels itself; they have a line of their own."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def choose_formatter(log_format: LogFormat, *, is_terminal: bool, environment: Mapping[str, str]) -> logging.Formatter:
    """Return the formatter for a setting; `auto` is text on a terminal, and JSON otherwise.

    Colours are only for terminals, and not if NO_COLOR is set (no-color.org).
    """
    if log_format == "json" or (log_format == "auto" and not is_terminal):
        return JsonFormatter()
    has_colours = is_terminal and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"
    return TextFormatter(colours=has_colours, is_terminal=is_terminal)


@dataclass(frozen=True)
class LogLock:
    """Held while lines are written that other processes must not write into: pipes keep only 4 KiB in one piece.

    Attributes:
        descriptor: of a file that the processes have inherited. What it locks is released when a process ends.
    """

    descriptor: int

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock during the `with` block."""
        fcntl.lockf(self.descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self.descriptor, fcntl.LOCK_UN)


def make_log_lock() -> LogLock:
    """Return a lock for the processes that are forked from this one."""
    if hasattr(os, "memfd_create"):
        return LogLock(os.memfd_create("log-lock"))
    with tempfile.TemporaryFile() as file:
        return LogLock(os.dup(file.fileno()))


class DirectHandler(logging.Handler):
    """Writes records in the thread that logs, for a process that must not have threads and logs little.

    A reader that does not read holds it up for a second per line; the line is lost then.
    """

    def __init__(self, descriptor: int | None, formatter: logging.Formatter) -> None:
        super().__init__()
        self._descriptor = descriptor
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        if self._descriptor is None:
            return
        line = self.format(record).encode("utf-8", "backslashreplace") + b"\n"
        with suppress(OSError, ValueError):
            if select.select([], [self._descriptor], [], _DIRECT_TIMEOUT_S)[1]:
                os.write(self._descriptor, line)


def set_up_direct_logging(level: str, log_format: LogFormat = "json") -> None:
    """Format all log records of this process as `set_up_logging` does, without a thread."""
    formatter = choose_formatter(log_format, is_terminal=is_terminal(sys.stderr), environment=os.environ)
    handler = DirectHandler(descriptor_of(sys.stderr), formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def set_up_logging(level: str, log_format: LogFormat = "json", lock: LogLock | None = None) -> LogWriter:
    """Format all log records of this process; disable uvicorn's access log, since the service has its own.

    They are flushed at exit (`logging.shutdown`). `lock` is held while lines are written, if other processes write
    them to the same place.
    """
    # Skip collecting what the lines do not contain, as the logging documentation recommends.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = ""
    descriptor = descriptor_of(sys.stderr)
    formatter = choose_formatter(log_format, is_terminal=is_terminal(sys.stderr), environment=os.environ)

    def write(data: bytes) -> int:
        if descriptor is None:
            return len(data)
        with nullcontext() if lock is None else lock.held():
            return write_all(descriptor, data)

    writer = LogWriter(write, formatter=formatter)
    logging.basicConfig(level=level.upper(), handlers=[writer], force=True)
    logging.captureWarnings(True)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = name != "uvicorn.access"
    logging.getLogger("uvicorn.error").addFilter(_is_no_cancellation)
    return writer
