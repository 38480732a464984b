"""Start `python -m service`, or another program that serves models, in a process of its own."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from loadtests.server import read_greeting, start_process

ROOT = Path(__file__).parents[2]


@contextmanager
def program(models: Path, *flags: str, module: str = "service") -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """Start the program and wait until its models are loaded. Yields the process, its address and its greeting."""
    with started(models, *flags, module=module) as process:
        first_line, port = read_greeting(process)
        count = re.match(r"Sevenfold serves (\d+) models? at", first_line)
        assert count
        assert process.stdout is not None
        greeting = first_line + "".join(process.stdout.readline() for _ in range(1 + 3 * int(count[1])))
        yield process, f"http://127.0.0.1:{port}", greeting


@contextmanager
def started(models: Path, *flags: str, module: str = "service") -> Iterator[subprocess.Popen[str]]:
    """Start the program on a free port, unless the flags name one; it is killed at the end."""
    with start_process(models, *flags, module=module, cwd=ROOT, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(stream: IO[str] | None, text: str) -> str:
    """Read lines up to the first one that contains `text`, and return that line."""
    assert stream is not None
    for line in stream:
        if text in line:
            return line
    raise AssertionError(f"The program ended without printing {text!r}.")
