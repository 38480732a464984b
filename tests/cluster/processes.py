"""Child processes with a log each, ended by their ids in reverse order, whatever happens."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

_STOP_TIMEOUT_S = 15.0
_POLL_S = 0.1
_T = TypeVar("_T")


class ClusterError(Exception):
    """The control plane does not do what the test needs, for example because one of its programs ended."""


class Processes:
    """The programs that a run has started.

    Each gets a session of its own, so that Ctrl-C in the terminal reaches only the harness, which then stops them in
    the right order: etcd last, or the others would not come to their end.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []

    def __enter__(self) -> "Processes":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._running:
            _, process = self._running.pop()
            stop(process)

    def start(self, name: str, command: Sequence[str | Path]) -> None:
        """Start a program; its output goes into a log file of that name."""
        with (self._logs / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._logs,
                start_new_session=True,
            )
        self._running.append((name, process))

    def ids(self) -> list[int]:
        """Return the process ids of the programs that were started and not stopped."""
        return [process.pid for _, process in self._running]

    def check(self) -> None:
        """Raise ClusterError, with the end of its log, if a program has ended."""
        for name, process in self._running:
            if (status := process.poll()) is not None:
                tail = (self._logs / f"{name}.log").read_text("utf-8", "replace").splitlines()[-5:]
                raise ClusterError(f"{name} ended with status {status}:\n" + "\n".join(tail))


def stop(process: subprocess.Popen[bytes]) -> None:
    """Terminate a process, and kill it if that takes too long."""
    if process.poll() is None:
        os.kill(process.pid, signal.SIGTERM)
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until(read: Callable[[], _T | None], what: str, timeout_s: float) -> _T:
    """Return the first value that is true (not None, not empty). Raises ClusterError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = read()
        if value:
            return value
        if time.monotonic() > deadline:
            raise ClusterError(f"Timed out after {timeout_s:.0f} s: {what}.")
        time.sleep(_POLL_S)
