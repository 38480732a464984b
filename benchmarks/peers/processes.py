"""A server with everything that it starts: until it answers, what memory it uses, and its certain end."""

import http.client
import os
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from benchmarks.peers.environments import Unavailable
from tests.faults.process_tree import process_tree, tree_cpu_s, tree_usage

_START_S = 180.0
_STOP_S = 10.0
_KILL_S = 10.0
_REQUEST_S = 30.0
_POLL_S = 0.02
_MARK = "BENCHMARK_SERVER_ID"
_MAX_REASON = 400
"""Characters of a server's log that go into the results."""


@dataclass(frozen=True)
class ServerProcess:
    """A running server.

    Attributes:
        process: the process that was started.
        port: its port on the loopback interface.
        start_s: seconds from its start to its first right answer.
    """

    process: subprocess.Popen[bytes]
    port: int
    start_s: float
    mark: str = field(repr=False)

    @property
    def memory_mb(self) -> float:
        """Memory of all its processes, in MB; a page that several share counts once."""
        return sum(tree_usage(root).tree_mb for root in _roots(self.mark))

    @property
    def cpu_s(self) -> float:
        """Processor time that all its processes have used."""
        return sum(tree_cpu_s(root) for root in _roots(self.mark))


@contextmanager
def run_server(
    command: Sequence[str],
    environment: Mapping[str, str],
    port: int,
    is_ready: Callable[[int], bool],
    *,
    cwd: Path | None = None,
    start_s: float = _START_S,
) -> Iterator[ServerProcess]:
    """Start a server, wait until `is_ready(port)`, and end all its processes afterwards.

    `is_ready` raises OSError as long as there is no answer, and Unavailable if the answer is wrong for good.

    Raises Unavailable if the server ends, or is not ready after `start_s` seconds, with the end of its log.
    """
    mark = uuid.uuid4().hex
    with tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        # Its own folder for temporary files, since what is killed removes none.
        variables = os.environ | dict(environment) | {_MARK: mark, "TMPDIR": scratch}
        began = time.monotonic()
        process = subprocess.Popen(
            command, env=variables, cwd=cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            _wait(process, lambda: is_ready(port), began + start_s, log)
            yield ServerProcess(process, port, time.monotonic() - began, mark)
        finally:
            _end(process, mark)


def _wait(process: subprocess.Popen[bytes], is_ready: Callable[[], bool], until: float, log: IO[bytes]) -> None:
    reason = "It does not answer"
    while time.monotonic() < until:
        if process.poll() is not None:
            raise Unavailable(f"It ended with code {process.returncode}: {_tail(log)}")
        try:
            if is_ready():
                return
        except (OSError, http.client.HTTPException) as error:
            reason = f"It does not answer ({error})"
        time.sleep(_POLL_S)
    raise Unavailable(f"{reason} in time: {_tail(log)}")


def _tail(log: IO[bytes]) -> str:
    log.seek(0)
    return " ".join(log.read().decode("utf-8", "replace").split())[-_MAX_REASON:] or "it printed nothing."


def _end(process: subprocess.Popen[bytes], mark: str) -> None:
    """Ask the server to stop; then kill what is left of its processes, wherever they have moved to."""
    processes = _identified(mark)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)
    until = time.monotonic() + _KILL_S
    while (left := _running(processes | _identified(mark))) and time.monotonic() < until:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.poll()
        time.sleep(_POLL_S)
    process.wait()


def _running(processes: set[tuple[int, str | None]]) -> list[int]:
    """Return the ids that still belong to the same process."""
    return [pid for pid, started in processes if started is not None and _start_time(pid) == started]


def _identified(mark: str) -> set[tuple[int, str | None]]:
    """Return the processes of a server, each with the time of its start."""
    return {(pid, _start_time(pid)) for root in _roots(mark) for pid in process_tree(root)}


def _roots(mark: str) -> list[int]:
    """Return the processes with this mark in their environment whose parent has none.

    There may be several, since a server may leave processes behind whose parent has ended. And a process may overwrite
    its environment with a title, so that only its parent has the mark.
    """
    marked = {int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal() and _has_mark(path, mark)}
    return [pid for pid in marked if (fields := _stat(pid)) and int(fields[1]) not in marked]


def _has_mark(folder: Path, mark: str) -> bool:
    try:
        return f"{_MARK}={mark}".encode() in (folder / "environ").read_bytes()
    except OSError:
        return False


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat after the name: state, parent, and so on; None if it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return None


def _start_time(pid: int) -> str | None:
    fields = _stat(pid)
    return fields[19] if fields and fields[0] != "Z" else None
