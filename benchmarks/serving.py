"""The service over HTTP, against the bare runtime in process and against a plain endpoint, in one run.

The ceiling is what the machine could do if HTTP and batching cost nothing: what a request's decoding and its share of a
batch cost with every core at work, at the best batch size there is.
"""

import base64
import json
import mimetypes
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.load import Load
from service.backends.onnx import OnnxRuntime, available_cores
from tasks.contract import Limits, Task
from tasks.goldens import read_goldens
from tasks.manifest import MODEL, read_manifest

CONNECTIONS = (1, 8, 32)
_BATCHES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Bare:
    """The cost of the parts, in process: seconds a request, the graph's by batch size.

    A batch may have all cores, or there may be one on each; the ceiling takes whichever is best.
    """

    decode_s: float
    alone_s: float
    in_best_batch_s: float
    sharing_cores_s: dict[int, float]
    core_each_s: dict[int, float]
    ceiling_per_second: float


@dataclass(frozen=True)
class Row:
    """One line of the table: requests a second, and their ratios."""

    model: str
    connections: int
    service: Load
    plain: Load
    to_plain: float
    to_ceiling: float


def measure_serving(models: Path, names: tuple[str, ...], *, seconds: float, repeats: int) -> dict[str, Any]:
    """Measures each model at 1, 8 and 32 connections; plain and service take turns, and the median turn counts."""
    rows, bare = [], {}
    for name in names:
        folder = max((models / name).iterdir(), key=lambda path: int(path.name))
        bare[name] = _bare(folder)
        with service_of(models) as service, _plain(folder) as plain:
            url = f"{service}/v1/models/{name}/predict"
            content_type, body = request_to(folder, name)
            for connections in CONNECTIONS:
                turns: dict[str, list[Load]] = {"service": [], "plain": []}
                for _ in range(repeats):
                    turns["plain"].append(_load(f"{plain}/predict", content_type, body, connections, seconds))
                    turns["service"].append(_load(url, content_type, body, connections, seconds))
                rows.append(_row(name, connections, turns, bare[name]))
    return {"bare": {name: asdict(found) for name, found in bare.items()}, "rows": [asdict(row) for row in rows]}


def _row(name: str, connections: int, turns: dict[str, list[Load]], bare: Bare) -> Row:
    service, plain = (_median(turns[which]) for which in ("service", "plain"))
    return Row(
        name,
        connections,
        service,
        plain,
        to_plain=service.per_second / plain.per_second,
        to_ceiling=service.per_second / bare.ceiling_per_second,
    )


def _median(loads: list[Load]) -> Load:
    middle = statistics.median_low([load.per_second for load in loads])
    return next(load for load in loads if load.per_second == middle)


def request_to(folder: Path, name: str) -> tuple[str, bytes]:
    """The body that is sent: an example's file, or what the first golden asks, as a file where it is one."""
    files = sorted(Path("examples").glob(f"{name}-*"))
    if files:
        return mimetypes.guess_type(files[0])[0] or "application/octet-stream", files[0].read_bytes()
    request, upload = read_goldens(folder)[0].request, read_manifest(folder).load_task(folder).upload
    if upload is None:
        return "application/json", json.dumps(request).encode()
    content, kind = request[upload.field], upload.media_types[0]
    return kind, content.encode() if kind.startswith("text/") else base64.b64decode(content)


def _bare(folder: Path) -> Bare:
    """Decoding on one core, the graph alone and in a full batch, in this process."""
    manifest = read_manifest(folder)
    task = manifest.load_task(folder)
    backend = OnnxRuntime(device="cpu")((folder / MODEL).read_bytes(), task.inputs, task.outputs)
    content_type, body = request_to(folder, manifest.name)

    def decode() -> Any:
        return task.preprocess(task.decode(task.parse(_fields(task, content_type, body), Limits()), Limits()))

    samples = decode()
    shared, apart = {}, {}
    for size in _BATCHES:
        batch = {name: np.repeat(array, size, axis=0) for name, array in samples.arrays.items()}
        shared[size] = _time(partial(backend.run_exclusive, batch)) / size
        apart[size] = _time_on_every_core(partial(backend.run, batch)) / size
    best = min(*shared.values(), *apart.values())
    decode_s = _time_on_every_core(decode)
    return Bare(_time(decode), shared[1], best, shared, apart, 1 / (decode_s + best))


def _fields(task: Task, content_type: str, body: bytes) -> Any:
    return json.loads(body) if content_type == "application/json" or task.upload is None else {task.upload.field: body}


def _time(call: Callable[[], Any], *, at_least_s: float = 1.5) -> float:
    """The median of many calls, in seconds."""
    call()
    taken: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() - began < at_least_s or len(taken) < 5:
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def _time_on_every_core(call: Callable[[], Any], *, seconds: float = 1.5) -> float:
    """Seconds a call, where every core makes one after the other: what the machine as a whole needs for each."""
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


def _load(url: str, content_type: str, body: bytes, connections: int, seconds: float) -> Load:
    with tempfile.NamedTemporaryFile() as file:
        file.write(body)
        file.flush()
        command = [
            sys.executable,
            "-m",
            "benchmarks.load",
            url,
            content_type,
            file.name,
            str(connections),
            str(seconds),
        ]
        ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 60)
    load = Load(**json.loads(ended.stdout))
    if load.errors or not load.requests:
        raise RuntimeError(f"{load.errors} errors in {load.requests} requests to {url}: the figures mean nothing.")
    return load


@contextmanager
def service_of(models: Path) -> Iterator[str]:
    """The address of a service of these models, on the CPU, for as long as the context lasts."""
    command = [sys.executable, "-m", "service", "--models", str(models), "--port", "0", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            printed = process.stdout.readline() if process.stdout else ""
            address = re.search(r"http://[0-9.:]+", printed)
            if address is None:
                raise RuntimeError("The service did not start.")
            yield address.group()
        finally:
            process.terminate()


@contextmanager
def _plain(folder: Path) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with subprocess.Popen([sys.executable, "-m", "benchmarks.plain", str(folder), str(port)]) as process:
        try:
            _wait_for(port, process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
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
