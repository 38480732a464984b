"""Log lines are written by a thread; a reader that is blocked or gone neither stops the service nor goes unnoticed."""

import json
import logging
import os
import threading
from collections.abc import Iterator

import pytest

from service.process.logging import REQUEST_ID, LogWriter
from service.process.output import descriptor_of, print_text, write_all
from tests.waiting import wait_until


class FakeStream:
    """Something to write to, which may block or fail."""

    def __init__(self) -> None:
        self.data = b""
        self.is_free = threading.Event()
        self.is_free.set()
        self.space: int | None = None
        """Bytes that can still be written; None for no limit."""

    def write(self, data: bytes) -> int:
        self.is_free.wait(60)
        written = data if self.space is None else data[: self.space]
        self.space = None if self.space is None else self.space - len(written)
        self.data += written
        return len(written)

    @property
    def messages(self) -> list[str]:
        return [json.loads(line)["message"] for line in self.data.splitlines()]


@pytest.fixture
def stream() -> Iterator[FakeStream]:
    stream = FakeStream()
    yield stream
    stream.is_free.set()


def log(writer: LogWriter, *messages: str, level: int = logging.INFO) -> None:
    for message in messages:
        writer.handle(logging.LogRecord("test", level, "", 0, message, None, None))


def block(stream: FakeStream, writer: LogWriter) -> None:
    """Block the thread that writes, with the line that it writes."""
    stream.is_free.clear()
    log(writer, "blocked")
    wait_until(writer._lines.empty)


def test_lines_are_written_in_order_with_the_id_of_their_request(stream: FakeStream) -> None:
    writer = LogWriter(stream.write)
    token = REQUEST_ID.set("abc")
    log(writer, "one", "two")
    REQUEST_ID.reset(token)
    log(writer, "three")

    writer.flush()

    lines = [json.loads(line) for line in stream.data.splitlines()]
    assert [(line["message"], line.get("request_id")) for line in lines] == [
        ("one", "abc"),
        ("two", "abc"),
        ("three", None),
    ]


def test_blocked_stream_blocks_nobody_and_what_was_dropped_is_reported_once_it_works(stream: FakeStream) -> None:
    writer = LogWriter(stream.write, max_waiting=3)
    block(stream, writer)
    log(writer, *"abcdefg")
    dropped = writer.dropped
    log(writer, "the end", level=logging.CRITICAL)

    stream.is_free.set()
    writer.flush()
    log(writer, "later")
    writer.flush()

    assert dropped == writer.dropped == 4
    assert [message for message in stream.messages if message != "log lines were dropped"] == [
        "blocked",
        *"abc",
        "the end",
        "later",
    ]
    (report,) = [line for line in map(json.loads, stream.data.splitlines()) if "count" in line]
    assert (report["level"], report["count"]) == ("warning", 4)


def test_failed_write_loses_no_more_than_its_lines_and_leaves_whole_lines(stream: FakeStream) -> None:
    writer = LogWriter(stream.write)
    stream.space = 10
    log(writer, "lost")
    writer.flush()
    stream.space = None
    log(writer, "kept")
    writer.flush()

    partial, *lines = stream.data.splitlines()
    assert len(partial) == 10
    assert [json.loads(line)["message"] for line in lines] == ["kept", "log lines were dropped"]
    assert writer.dropped == 1


def test_flush_of_a_blocked_stream_ends(stream: FakeStream) -> None:
    writer = LogWriter(stream.write)
    block(stream, writer)

    writer.flush()

    assert stream.messages == []


def test_many_threads_may_log_at_a_time(stream: FakeStream) -> None:
    writer = LogWriter(stream.write)
    threads = [threading.Thread(target=log, args=(writer, *map(str, range(200)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    writer.flush()

    assert sorted(stream.messages) == sorted(8 * list(map(str, range(200))))


# Standard streams


def test_writing_to_a_pipe_that_nobody_reads_returns_what_was_written() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", encoding="ascii") as stream:
        print_text(stream, "lost")

        assert write_all(writing, b"lost") == 0


def test_text_is_written_whole_to_a_pipe_that_does_not_block() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    text, read = "é" * 200_000, b""
    with open(writing, "w", encoding="utf-8") as stream, open(reading, "rb") as reader:
        thread = threading.Thread(target=print_text, args=(stream, text))
        thread.start()
        while len(read) < 400_001:
            read += os.read(reader.fileno(), 65536)
        thread.join()

    assert read.decode() == text + "\n"


def test_streams_that_are_closed_have_no_descriptor() -> None:
    with open(os.devnull, "w", encoding="ascii") as stream:
        pass

    assert descriptor_of(stream) is None
    assert descriptor_of(None) is None
    print_text(None, "nothing happens")
