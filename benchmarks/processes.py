"""One server process against several, in one run: throughput, latency and memory, under the same load by wrk.

wrk is pinned to one core where there are several, so that it takes the same from each server.
"""

import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.serving import example_request, newest_version, predict_path
from loadtests.server import start_server

CONNECTIONS = (1, 8, 32, 128)
MODELS = ("adult", "clothing")
_SETTLE_S = 5.0
"""After which a server has given back what the load has left in memory."""
_SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "{content_type}"
local file = io.open("{body}", "rb")
wrk.body = file:read("*a")
file:close()
done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '{{"requests": %d, "seconds": %f, "errors": %d, "p50_ms": %f, "p99_ms": %f}}',
    summary.requests, summary.duration / 1e6,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
"""


@dataclass(frozen=True)
class Load:
    """What one load of one server measured."""

    per_second: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    """Processor time of the server for each request, which other programs of the machine hardly change."""


@dataclass(frozen=True)
class Row:
    """A row of the table: medians of the rounds, of one process and of several."""

    model: str
    connections: int
    one: Load
    several: Load
    ratio: float
    smallest: float
    largest: float


def measure_processes(
    models: Path, *, processes: int, seconds: float, repeats: int, names: tuple[str, ...] = MODELS
) -> dict[str, Any]:
    """Measure each model at several numbers of connections; both servers take turns, and the median counts.

    Raises RuntimeError if wrk is not installed, or a request fails.
    """
    if shutil.which("wrk") is None:
        raise RuntimeError("wrk is not installed (Debian: apt-get install wrk).")
    rows, memory = [], {}
    flags = ("--only", ",".join(names))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = {
            count: stack.enter_context(
                start_server(models, *flags, "--processes", str(count), stderr=subprocess.DEVNULL)
            )
            for count in (1, processes)
        }
        memory["idle"] = {count: _pss_bytes(process.pid) for count, (process, _) in servers.items()}
        for name in names:
            content_type, body = example_request(newest_version(models / name), name)
            script = _write_script(folder, name, content_type, body)
            for connections in CONNECTIONS:
                turns: dict[int, list[Load]] = {count: [] for count in servers}
                for _ in range(repeats):
                    for count, (process, port) in servers.items():
                        url = f"http://127.0.0.1:{port}{predict_path(name)}"
                        turns[count].append(_run_wrk(script, url, connections, seconds, process.pid))
                rows.append(_row(name, connections, turns[1], turns[processes]))
        time.sleep(_SETTLE_S)
        memory["after"] = {count: _pss_bytes(process.pid) for count, (process, _) in servers.items()}
    return {"processes": processes, "memory_bytes": memory, "rows": [asdict(row) for row in rows]}


def processes_table(results: dict[str, Any]) -> str:
    """Return the table of the results."""
    count, memory = results["processes"], results["memory_bytes"]
    lines = [
        "Each: requests per second, 99th percentile, processor time of the server per request.\n",
        f"| model | connections | 1 process | {count} processes | ratio (smallest–largest) |",
        "|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        ratio = f"{row['ratio']:.2f} ({row['smallest']:.2f}–{row['largest']:.2f})"
        cells = [row["model"], row["connections"], _describe(row["one"]), _describe(row["several"]), ratio]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    for when, sizes in memory.items():
        texts = [f"{number} process(es) {size / 1e6:.0f} MB" for number, size in sizes.items()]
        lines.append(f"\nProportional set size, {when}: {', '.join(texts)}")
    return "\n".join(lines)


def _describe(load: dict[str, float]) -> str:
    return f"{load['per_second']:,.0f}, {load['p99_ms']:.1f} ms, {load['cpu_ms']:.2f} ms"


def _row(name: str, connections: int, one: list[Load], several: list[Load]) -> Row:
    ratios = [b.per_second / a.per_second for a, b in zip(one, several, strict=True)]
    return Row(name, connections, _median(one), _median(several), statistics.median(ratios), min(ratios), max(ratios))


def _median(loads: list[Load]) -> Load:
    return Load(
        *(
            statistics.median(getattr(load, name) for load in loads)
            for name in ("per_second", "p50_ms", "p99_ms", "cpu_ms")
        )
    )


def _write_script(folder: Path, name: str, content_type: str, body: bytes) -> Path:
    (folder / f"{name}.body").write_bytes(body)
    script = folder / f"{name}.lua"
    script.write_text(_SCRIPT.format(content_type=content_type, body=folder / f"{name}.body"))
    return script


def _run_wrk(script: Path, url: str, connections: int, seconds: float, pid: int) -> Load:
    cores = sorted(os.sched_getaffinity(0))
    pinned = ["taskset", "-c", str(cores[-1])] if len(cores) > 1 and shutil.which("taskset") else []
    command = [
        *pinned,
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{max(1, round(seconds))}s",
        "--timeout",
        "30s",
        "-s",
        str(script),
    ]
    cpu_before_s = _cpu_seconds(pid)
    output = subprocess.run([*command, url], check=True, capture_output=True, text=True).stdout
    cpu_s = _cpu_seconds(pid) - cpu_before_s
    result = json.loads(output[output.rindex("{") :])
    if result["errors"] or not result["requests"]:
        raise RuntimeError(f"{result['errors']} of {result['requests']} requests failed.")
    cpu_ms = 1000 * cpu_s / result["requests"]
    return Load(result["requests"] / result["seconds"], result["p50_ms"], result["p99_ms"], cpu_ms)


def _cpu_seconds(pid: int) -> float:
    """Return the processor time of a process and all that it has started (proc(5): utime and stime of stat)."""
    fields = [Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split() for each in _process_tree(pid)]
    return sum(int(each[11]) + int(each[12]) for each in fields) / os.sysconf("SC_CLK_TCK")


def _pss_bytes(pid: int) -> int:
    """Return the memory of a process and all that it has started; pages that they share count once."""
    return sum(_own_pss_bytes(each) for each in _process_tree(pid))


def _own_pss_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def _process_tree(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from _process_tree(int(child))
