"""The service over HTTP, compared with a plain endpoint and with the bare runtime in process, in one run.

The ceiling is the throughput of the machine if HTTP and batching cost nothing: decoding and the graph at its best batch
size, with every core at work.
"""

import base64
import json
import mimetypes
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.load import LoadResult, measure_load
from loadtests.clients import LoadProcess, prepare_request
from loadtests.server import free_port, start_server
from service.backends.cores import available_cores
from service.backends.onnx import OnnxRuntime
from tasks.contract import Limits, Task
from tasks.goldens import read_goldens
from tasks.manifest import MODEL, read_manifest

CONNECTIONS = (1, 8, 32)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class BareCosts:
    """In-process costs in seconds per request; those of the graph by batch size.

    A batch may use all cores, or each core may run a batch of its own; the ceiling takes whichever is faster.
    """

    decode_s: float
    alone_s: float
    in_best_batch_s: float
    sharing_cores_s: dict[int, float]
    core_each_s: dict[int, float]
    ceiling_per_second: float


@dataclass(frozen=True)
class Row:
    """A row of the table: requests per second of both endpoints, and the ratios."""

    model: str
    connections: int
    service: LoadResult
    plain: LoadResult
    to_plain: float
    to_ceiling: float


def measure_serving(models: Path, names: tuple[str, ...], *, seconds: float, repeats: int) -> dict[str, Any]:
    """Measure each model at 1, 8 and 32 connections; plain endpoint and service take turns, and the median counts."""
    rows, bare = [], {}
    with LoadProcess() as process:
        for name in names:
            folder = newest_version(models / name)
            bare[name] = _bare_costs(folder)
            with start_service(models) as service, start_plain(folder) as (_, plain):
                content_type, body = example_request(folder, name)
                to_service = prepare_request(predict_path(name), content_type, body)
                to_plain = prepare_request("/predict", content_type, body)
                for connections in CONNECTIONS:
                    measure = partial(measure_load, process, connections=connections, seconds=seconds)
                    turns = [(measure(plain, to_plain), measure(service, to_service)) for _ in range(repeats)]
                    rows.append(_row(name, turns, bare[name]))
    return {"bare": {name: asdict(costs) for name, costs in bare.items()}, "rows": [asdict(row) for row in rows]}


def _row(name: str, turns: list[tuple[LoadResult, LoadResult]], bare: BareCosts) -> Row:
    plain, service = (_median(list(loads)) for loads in zip(*turns, strict=True))
    return Row(
        name,
        service.connections,
        service,
        plain,
        to_plain=service.per_second / plain.per_second,
        to_ceiling=service.per_second / bare.ceiling_per_second,
    )


def _median(loads: list[LoadResult]) -> LoadResult:
    median = statistics.median_low([load.per_second for load in loads])
    return next(load for load in loads if load.per_second == median)


def newest_version(model: Path) -> Path:
    """Return the folder of the newest version of a model."""
    return max(model.iterdir(), key=lambda path: int(path.name))


def predict_path(name: str) -> str:
    """Return the URL path of a model's predictions."""
    return f"/v1/models/{name}/predict"


def example_request(folder: Path, name: str) -> tuple[str, bytes]:
    """Return a content type and a body: the model's example file, or else its first golden request."""
    files = sorted(Path("examples").glob(f"{name}-*"))
    if files:
        return mimetypes.guess_type(files[0])[0] or "application/octet-stream", files[0].read_bytes()
    request, upload = read_goldens(folder)[0].request, read_manifest(folder).load_task(folder).upload
    if upload is None or not isinstance(request[upload.field], str):
        return "application/json", json.dumps(request).encode()
    content, media_type = request[upload.field], upload.media_types[0]
    return media_type, content.encode() if media_type.startswith("text/") else base64.b64decode(content)


def _bare_costs(folder: Path) -> BareCosts:
    manifest = read_manifest(folder)
    task = manifest.load_task(folder)
    backend = OnnxRuntime(device="cpu")((folder / MODEL).read_bytes(), task.inputs, task.outputs)
    content_type, body = example_request(folder, manifest.name)

    def decode() -> Any:
        return task.preprocess(task.decode(task.parse(_fields(task, content_type, body), Limits()), Limits()))

    samples = decode()
    sharing_cores, core_each = {}, {}
    for size in _BATCH_SIZES:
        batch = {name: np.repeat(array, size, axis=0) for name, array in samples.arrays.items()}
        sharing_cores[size] = _time(partial(backend.run_exclusive, batch)) / size
        core_each[size] = _time_on_every_core(partial(backend.run, batch)) / size
    best = min(*sharing_cores.values(), *core_each.values())
    decode_s = _time_on_every_core(decode)
    return BareCosts(_time(decode), sharing_cores[1], best, sharing_cores, core_each, 1 / (decode_s + best))


def _fields(task: Task, content_type: str, body: bytes) -> Any:
    return json.loads(body) if content_type == "application/json" or task.upload is None else {task.upload.field: body}


def _time(call: Callable[[], Any], *, min_seconds: float = 1.5) -> float:
    """Return the median time of many calls, in seconds."""
    call()
    times: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() - began < min_seconds or len(times) < 5:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _time_on_every_core(call: Callable[[], Any], *, seconds: float = 1.5) -> float:
    """Return the seconds per call of the whole machine, with each core making one call after the other."""
    ends = time.perf_counter() + seconds

    def repeat(_: int) -> int:
        count = 0
        while time.perf_counter() < ends:
            call()
            count += 1
        return count

    began = time.perf_counter()
    with ThreadPoolExecutor(available_cores()) as pool:
        calls = sum(pool.map(repeat, range(available_cores())))
    return (time.perf_counter() - began) / calls


@contextmanager
def start_service(models: Path, checkout: Path | None = None) -> Iterator[int]:
    """Start the service, of this checkout or of another one; yield its port."""
    with start_server(models.resolve(), stderr=subprocess.DEVNULL, cwd=checkout) as (_, port):
        yield port


@contextmanager
def start_plain(folder: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Start the plain endpoint; yield its process and port."""
    port = free_port()
    with subprocess.Popen([sys.executable, "-m", "benchmarks.plain", str(folder), str(port), *flags]) as process:
        try:
            _wait_until_open(port, process)
            yield process, port
        finally:
            process.terminate()


def _wait_until_open(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if process.poll() is not None:
                break
            time.sleep(0.1)
        else:
            return
    raise RuntimeError("The plain endpoint did not start.")


def serving_table(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = [
        "| model | connections | service, 1/s | plain, 1/s | service ÷ plain | service ÷ ceiling | p50, ms | p99, ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['model']} | {row['connections']} | {row['service']['per_second']:.0f} | "
        f"{row['plain']['per_second']:.0f} | {row['to_plain']:.2f} | {row['to_ceiling']:.2f} | "
        f"{row['service']['p50_ms']:.1f} | {row['service']['p99_ms']:.1f} |"
        for row in results["rows"]
    ]
    for name, bare in results["bare"].items():
        lines.append(
            f"\n{name}, in process: decode {bare['decode_s'] * 1e3:.2f} ms, graph alone {bare['alone_s'] * 1e3:.2f} "
            f"ms, in the best batch {bare['in_best_batch_s'] * 1e3:.3f} ms each; ceiling "
            f"{bare['ceiling_per_second']:.0f} 1/s."
        )
    return "\n".join(lines)
