"""The server under load, in a process of its own."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_STOP_S = 40.0


@contextmanager
def start_server(
    models: Path, *flags: str, module: str = "service", **options: Any
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start `python -m service` on a free port, on the CPU; yield its process and port once its models are ready.

    `options` go to `subprocess.Popen`. The server is stopped when the context ends. Raises RuntimeError if it does not
    start.
    """
    command = [sys.executable, "-m", module, "--models", str(models), "--port", "0", "--device", "cpu", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            address = re.search(r"http://127\.0\.0\.1:(\d+)", line)
            if address is None:
                raise RuntimeError("The server did not start.")
            yield process, int(address[1])
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
