"""Load from wrk, pinned to one core: requests per second, percentiles and errors of one request over and over."""

import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.payloads import Payload

_SCRIPT = Path(__file__).parent / "request.lua"
_ANSWER_S = 30
"""After so many seconds without an answer, wrk counts a request as broken."""
_SPARE_S = 60.0
"""How much longer than it should run wrk may take before it is killed."""


class NoWrk(RuntimeError):
    """wrk or taskset is not installed, or wrk failed; the message says what to do."""


@dataclass(frozen=True)
class Load:
    """The result of one run.

    Attributes:
        requests: answers of any status.
        seconds: how long it took.
        p50_ms: the median latency.
        p99_ms: the latency that 99 % of the requests do not exceed.
        errors: answers with a status of 400 or above, broken connections, and requests without an answer.
    """

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    errors: int

    @property
    def per_second(self) -> float:
        """Good answers per second."""
        return max(0, self.requests - self.errors) / self.seconds


def require_wrk() -> None:
    """Raise NoWrk unless what drives the load is installed."""
    for program, package in (("wrk", "wrk"), ("taskset", "util-linux")):
        if shutil.which(program) is None:
            raise NoWrk(f"{program} is not installed. On Debian or Ubuntu: sudo apt-get install {package}")


def wrk_version() -> str:
    """Return the first line that wrk prints about itself."""
    ended = subprocess.run([shutil.which("wrk") or "wrk", "--version"], capture_output=True, text=True, check=False)
    return ended.stdout.partition("Copyright")[0].strip()


def client_core() -> int:
    """Return the core to which wrk is pinned: the last that this process may use."""
    return max(os.sched_getaffinity(0))


def run_wrk(port: int, path: str, payload: Payload, *, connections: int, seconds: float) -> Load:
    """Send the request on so many connections for at least a second. Raises NoWrk if wrk fails."""
    with tempfile.NamedTemporaryFile() as body:
        body.write(payload.body)
        body.flush()
        command = ["taskset", "--cpu-list", str(client_core()), "wrk", "--threads", "1"]
        command += ["--connections", str(connections), "--duration", f"{max(1, round(seconds))}s"]
        command += ["--timeout", f"{_ANSWER_S}s", "--script", str(_SCRIPT)]
        for name, value in payload.headers.items():
            command += ["--header", f"{name}: {value}"]
        command += [f"http://127.0.0.1:{port}{path}", "--", body.name]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + _SPARE_S)
        except subprocess.TimeoutExpired:
            raise NoWrk(f"wrk did not end {_SPARE_S:g} s after its time.") from None
    if ended.returncode:
        raise NoWrk(f"wrk ended with code {ended.returncode}: {(ended.stderr or ended.stdout).strip()[-300:]}")
    return parse_load(ended.stdout)


def parse_load(output: str) -> Load:
    """Return what the script's line in wrk's output says. Raises NoWrk without such a line."""
    line = next((line for line in reversed(output.splitlines()) if line.startswith("{")), None)
    if line is None:
        raise NoWrk(f"wrk printed no result: {output.strip()[-300:]}")
    result = json.loads(line)
    errors = result["refused"] + result["broken"]
    return Load(result["requests"], result["seconds"], result["p50_ms"], result["p99_ms"], errors)
