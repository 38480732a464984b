"""The server in a process of its own, and free ports for it."""

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

_STOP_S = 40.0


def free_ports(count: int) -> list[int]:
    """Return free ports of the loopback interface, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(each.getsockname()[1]) for each in sockets]


def free_port() -> int:
    """Return a free port of the loopback interface."""
    return free_ports(1)[0]


@contextmanager
def start_process(
    models: Path, *flags: str, module: str = "service", **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """Start `python -m service`, or another module that takes its flags, on a free port; stop it at the end.

    `options` go to `subprocess.Popen`.
    """
    command = [sys.executable, "-m", module, "--models", str(models), "--port", "0", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options) as process:
        try:
            yield process
        finally:
            _stop(process)


def read_greeting(process: subprocess.Popen[str]) -> tuple[str, int]:
    """Wait until the models of a server are loaded; return the first line that it prints, and its port.

    Raises RuntimeError if it does not start.
    """
    line = process.stdout.readline() if process.stdout else ""
    address = re.search(r"https?://127\.0\.0\.1:(\d+)", line)
    if address is None:
        raise RuntimeError("The server did not start.")
    return line, int(address[1])


@contextmanager
def start_server(
    models: Path, *flags: str, module: str = "service", **options: Any
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start a server as `start_process` does, on the CPU; yield its process and port once its models are loaded.

    Raises RuntimeError if it does not start.
    """
    with start_process(models, "--device", "cpu", *flags, module=module, **options) as process:
        _, port = read_greeting(process)
        yield process, port


def _stop(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
