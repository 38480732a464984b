"""How the server ends: on SIGTERM under load, and on SIGKILL."""

import json
import math
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from loadtests.clients import NO_RESPONSE, Reply, ScheduledRequest, open_loop
from tests.faults.report import Row, first_of, ms
from tests.faults.scenario import PATIENCE_S, ScenarioContext
from tests.faults.server_process import ServerProcess
from tests.waiting import wait_until

_GRACE_S = 20.0
_NOTICE_S = 0.5
"""How long a load balancer takes to stop sending requests after readiness has failed."""
_PER_SECOND = 60
_MAX_CHILDREN_S = 5.0
_RUNTIME_FILE = ".ses"
"""A small file that importing onnxruntime writes into the folder for temporary files; there is never more than one."""


def measure_sigterm(context: ScenarioContext) -> list[Row]:
    """SIGTERM while requests come, one of which takes longer than the drain."""
    known = context.known
    # In a short run the machine is shared, and the requests may come late.
    drain_s, before_s = context.pick((1.0, 2.0), (2.0, 0.5))
    requests = [
        known[name].valid_request(seed, Connection="close").request
        for seed in range(8)
        for name in ("adult", "clothing")
    ]
    large = known["restore"].valid_request(1, size=context.pick(600, 400), Connection="close").request
    flags = ("--drain-seconds", f"{drain_s:g}", "--grace-seconds", f"{_GRACE_S:g}")
    with context.server("adult", "clothing", "restore", flags=flags) as server:
        count = round(_PER_SECOND * (before_s + _NOTICE_S))
        # No connection is kept: a server that stops may close an idle one just as a request is sent on it.
        scheduled = [ScheduledRequest(i / _PER_SECOND, requests[i % len(requests)], i) for i in range(count)]
        scheduled += [ScheduledRequest(before_s + _NOTICE_S, large, -1)]
        stop = _Stop(server, before_s)
        stop.start()
        replies = open_loop(server.port, scheduled)
        status = server.process.wait(drain_s + _GRACE_S + 10)
        stop.join()
        ended_s = time.monotonic() - stop.signalled
    return [_sigterm_row(context, replies, stop, status, ended_s, drain_s)]


class _Stop(threading.Thread):
    """Sends SIGTERM after a while, and records when readiness fails and when the port is closed."""

    def __init__(self, server: ServerProcess, after_s: float) -> None:
        super().__init__()
        self._server, self._after_s = server, after_s
        self.signalled = self.unready = self.closed = math.nan

    def run(self) -> None:
        time.sleep(self._after_s)
        self._server.process.send_signal(signal.SIGTERM)
        self.signalled = time.monotonic()
        while math.isnan(self.closed):
            try:
                if self._server.get("/health/ready")[0] == 503 and math.isnan(self.unready):
                    self.unready = time.monotonic()
            except OSError:
                self.closed = time.monotonic()
            time.sleep(0.02)


def _sigterm_row(
    context: ScenarioContext, replies: Sequence[Reply], stop: _Stop, status: int, ended_s: float, drain_s: float
) -> Row:
    problems = [f"{reply.key}: {reply.status}" for reply in replies if reply.status != 200]
    unready_s, closed_s = stop.unready - stop.signalled, stop.closed - stop.signalled
    in_time = context.within(ended_s, drain_s + _GRACE_S)
    return Row(
        "sigterm",
        f"Graceful shutdown on SIGTERM under load ({_PER_SECOND}/s, and a request that takes longer than the "
        f"drain of {drain_s:g} s)",
        "readiness fails before the port closes; all accepted requests are answered; exit code 0 in the grace period",
        f"not ready after {ms(unready_s)}, closed after {ms(closed_s)}; {len(replies) - len(problems)} of "
        f"{len(replies)} answered{first_of(problems)}; exit code {status} after {ms(ended_s)}",
        unready_s < closed_s and not problems and status == 0 and in_time,
        figures={
            "unready_s": unready_s,
            "closed_s": closed_s,
            "problems": problems[:10],
            "exit": status,
            "ended_s": ended_s,
        },
    )


def measure_sigkill(context: ScenarioContext) -> list[Row]:
    """SIGKILL under load: what is left behind."""
    shared = Path("/dev/shm")  # noqa: S108 -- looked at, not written to.
    seconds = context.pick(1.0, 0.5)
    with context.server("adult", "clothing") as server:
        before = set(shared.iterdir()) if shared.is_dir() else set()
        threading.Timer(seconds / 2, server.process.kill).start()
        requests = [context.known[name].valid_request(1).request for name in ("adult", "clothing")]
        children = set(_descendants(server.process.pid))
        count = round(40 * seconds)
        replies = open_loop(server.port, [ScheduledRequest(i / 40, requests[i % 2], i) for i in range(count)])
        server.process.wait(PATIENCE_S)
        with suppress(TimeoutError):  # Worker processes end when they notice that the server has gone.
            wait_until(lambda: not any(map(_is_running, children)), timeout_s=_MAX_CHILDREN_S)
        remains = {
            "children": [child for child in children if _is_running(child)],
            "shared memory": [path.name for path in set(shared.iterdir()) - before] if shared.is_dir() else [],
            "temporary files": [p.name for p in server.folder.iterdir() if p.name != _RUNTIME_FILE],
            "port": [] if _is_free(server.port) else [server.port],
        }
    leftovers = {resource: items for resource, items in remains.items() if items}
    return [
        Row(
            "sigkill",
            "SIGKILL leaves nothing behind",
            f"no process after {_MAX_CHILDREN_S:g} s, no shared memory, no temporary file, the port free",
            json.dumps(leftovers) if leftovers else "nothing left",
            not leftovers and any(reply.status == NO_RESPONSE for reply in replies),
            figures={"left": remains},
        )
    ]


def _is_running(process: int) -> bool:
    return Path(f"/proc/{process}").exists()


def _descendants(parent: int) -> Iterator[int]:
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            try:
                fields = (path / "stat").read_text("utf-8").rpartition(")")[2].split()
            except OSError:
                continue  # The process has just ended.
            if int(fields[1]) == parent:
                yield int(path.name)
                yield from _descendants(int(path.name))


def _is_free(port: int) -> bool:
    """Return whether a new server could listen on the port at once, as it does: with SO_REUSEADDR."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True
