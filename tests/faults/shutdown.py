"""How it ends: told to stop under load, and killed."""

import json
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from loadtests.clients import NO_ANSWER, Call, Reply, open_loop
from tests.faults.report import Row
from tests.faults.scenario import Run, first_of, ms
from tests.faults.server_process import Host, started

_DRAIN_S, _GRACE_S = 1.0, 20.0
_NOTICED_S = 0.5
"""After readiness has fallen: what a load balancer takes to send no more."""
_PER_SECOND = 60
_OF_THE_RUNTIME = ".ses"
"""A file of some bytes that importing onnxruntime writes into the folder for temporary files; there is ever but one."""


def measure_term(run: Run) -> list[Row]:
    """SIGTERM while requests come, among them one that takes longer than the drain."""
    sent = [run.known[name].good(seed) for seed in range(8) for name in ("adult", "clothing")]
    large = run.known["restore"].good(1, size=run.pick(600, 400)).request
    flags = ("--drain-seconds", f"{_DRAIN_S:g}", "--grace-seconds", f"{_GRACE_S:g}")
    with run.some("adult", "clothing", "restore") as models, started(models, *flags) as host:
        before_s = run.pick(2.0, 0.7)
        count = round(_PER_SECOND * (before_s + _NOTICED_S))
        # Each on a connection of its own: one that is kept may be closed by a server that stops, while it is idle.
        calls = [Call(i / _PER_SECOND, _closing(sent[i % len(sent)].request), i) for i in range(count)]
        calls += [Call(before_s + _NOTICED_S, _closing(large), -1)]
        watch = _Stop(host, before_s)
        watch.start()
        replies = open_loop(host.port, calls)
        status = host.process.wait(_DRAIN_S + _GRACE_S + 10)
        watch.join()
        ended_s = time.monotonic() - watch.told
    return [_term_row(run, replies, watch, status, ended_s)]


def _closing(request: bytes) -> bytes:
    return request.replace(b"\r\nHost: x\r\n", b"\r\nHost: x\r\nConnection: close\r\n", 1)


class _Stop(threading.Thread):
    """Sends SIGTERM after a while, and looks when readiness falls and when the door closes."""

    def __init__(self, host: Host, after_s: float) -> None:
        super().__init__()
        self._host, self._after_s = host, after_s
        self.told = self.unready = self.closed = float("nan")

    def run(self) -> None:
        time.sleep(self._after_s)
        self._host.process.send_signal(signal.SIGTERM)
        self.told = time.monotonic()
        while self.closed != self.closed:
            try:
                if self._host.get("/health/ready")[0] == 503 and self.unready != self.unready:
                    self.unready = time.monotonic()
            except OSError:
                self.closed = time.monotonic()
            time.sleep(0.02)


def _term_row(run: Run, replies: Sequence[Reply], watch: _Stop, status: int, ended_s: float) -> Row:
    wrong = [f"{reply.key}: {reply.status}" for reply in replies if reply.status != 200]
    unready_s, closed_s = watch.unready - watch.told, watch.closed - watch.told
    return Row(
        "sigterm",
        f"SIGTERM under load ({_PER_SECOND}/s, and a request that outlives the drain of {_DRAIN_S:g} s)",
        "readiness falls before the door closes; all that is accepted is answered; exit code 0 in the grace period",
        f"not ready after {ms(unready_s)}, closed after {ms(closed_s)}; {len(replies) - len(wrong)} of {len(replies)} "
        f"answered{first_of(wrong)}; exit code {status} after {ms(ended_s)}",
        unready_s < closed_s and not wrong and status == 0 and run.in_time(ended_s, _DRAIN_S + _GRACE_S),
        figures={"unready_s": unready_s, "closed_s": closed_s, "wrong": wrong[:10], "exit": status, "ended_s": ended_s},
    )


def measure_kill(run: Run) -> list[Row]:
    """SIGKILL under load: what is left of it."""
    shared = Path("/dev/shm")  # noqa: S108 -- looked at, not written to.
    with run.some("adult", "clothing") as models, started(models) as host:
        before = set(shared.iterdir()) if shared.is_dir() else set()
        threading.Timer(0.5, host.process.kill).start()
        requests = [run.known[name].good(1).request for name in ("adult", "clothing")]
        children: set[int] = set(_children(host.process.pid))
        replies = open_loop(host.port, [Call(i / 40, requests[i % 2], i) for i in range(40)])
        host.process.wait(10)
        left = {
            "children": [child for child in children if Path(f"/proc/{child}").exists()],
            "shared memory": [path.name for path in set(shared.iterdir()) - before] if shared.is_dir() else [],
            "temporary files": [path.name for path in host.folder.iterdir() if path.name != _OF_THE_RUNTIME],
            "port": [] if _is_free(host) else [host.port],
        }
    found = {what: things for what, things in left.items() if things}
    return [
        Row(
            "sigkill",
            "SIGKILL leaves nothing behind",
            "no child, no shared memory, no temporary file, the port free",
            json.dumps(found) if found else "nothing",
            not found and any(reply.status == NO_ANSWER for reply in replies),
            figures={"left": left},
        )
    ]


def _children(parent: int) -> Iterator[int]:
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            try:
                fields = (path / "stat").read_text("utf-8").rpartition(")")[2].split()
            except OSError:
                continue  # It has ended meanwhile.
            if int(fields[1]) == parent:
                yield int(path.name)


def _is_free(host: Host) -> bool:
    """Whether a new server could listen on the port at once, as it does: with SO_REUSEADDR."""
    try:
        socket.create_server(("127.0.0.1", host.port)).close()
    except OSError:
        return False
    return True
