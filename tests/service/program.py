"""Start `python -m service`, or another program that serves models, in a process of its own."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]


@contextmanager
def program(models: Path, *flags: str, module: str = "service") -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """Start the program and wait until its models are loaded. Yields the process, its address and its greeting."""
    with started(models, *flags, module=module) as process:
        assert process.stdout is not None
        first_line = process.stdout.readline()
        greeting = re.match(r"Sevenfold serves (\d+) models at (http://[0-9.:]+)", first_line)
        assert greeting, (first_line, process.poll())
        count, address = int(greeting[1]), greeting[2]
        yield process, address, first_line + "".join(process.stdout.readline() for _ in range(1 + 3 * count))


@contextmanager
def started(models: Path, *flags: str, module: str = "service") -> Iterator[subprocess.Popen[str]]:
    """Start the program on a free port, unless the flags name one; it is killed at the end."""
    command = [sys.executable, "-m", module, "--models", str(models), "--port", "0", *flags]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
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
