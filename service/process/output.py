"""Writing to standard output and standard error, which may be closed, full, or read by nobody.

Text is written to the file descriptor and not to Python's buffered streams: a thread that is blocked while it writes to
one of those would keep the interpreter from exiting, and what is left in a buffer would fail at exit.
"""

import os
import select
from contextlib import suppress
from typing import TextIO

_STANDARD_DESCRIPTORS = (0, 1, 2)


def open_standard_descriptors() -> None:
    """Open the null device in place of standard descriptors that are closed (`python -m service >&-`).

    Otherwise the next socket or model file would get their number, and libraries that print would write into it.
    """
    for descriptor in _STANDARD_DESCRIPTORS:
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # Gets the lowest free number, which is this one.


def descriptor_of(stream: TextIO | None) -> int | None:
    """Return the file descriptor of a standard stream; None if it has none, or was closed when Python started."""
    with suppress(AttributeError, OSError, ValueError):  # None; replaced by an object in memory; closed.
        return stream.fileno()  # type: ignore[union-attr]
    return None


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether a standard stream is a terminal."""
    descriptor = descriptor_of(stream)
    return descriptor is not None and os.isatty(descriptor)


def write_all(descriptor: int, data: bytes) -> int:
    """Write bytes, waiting as long as nobody reads them; return how many were written before an error, if any."""
    written = 0
    while written < len(data):
        try:
            written += os.write(descriptor, data[written:])
        except BlockingIOError:  # Another process has made the shared terminal or pipe non-blocking.
            select.select([], [descriptor], [])
        except OSError:  # The reader has gone, or the disk is full.
            break
    return written


def print_text(stream: TextIO | None, text: str) -> None:
    """Print a line, or nothing if the stream cannot be written to."""
    if stream is not None and (descriptor := descriptor_of(stream)) is not None:
        write_all(descriptor, f"{text}\n".encode(stream.encoding or "utf-8", "replace"))
