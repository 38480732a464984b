"""How long the server takes until it is ready, and what it then holds in memory; Linux only.

The real program with the real models. Where other programs share the machine, seconds say little and CPU seconds much:
divided by the cores, they are the least that a start can take.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks.serving import request_to
from service.backends.onnx import OnnxRuntime, available_cores
from tasks.contract import Arrays, Limits
from tasks.goldens import read_goldens
from tasks.manifest import MODEL, read_manifest

_REQUESTS = 7
_COMPARED = ("camvid", "clothing")
_ROUNDS = 15


def measure_startup(models: Path, *, repeats: int) -> dict[str, Any]:
    """The start that took the fewest CPU seconds of several, and what the shared pool of memory costs a run."""
    starts = [_start(models) for _ in range(repeats)]
    best = min(starts, key=lambda start: float(start["cpu_seconds"]))
    price = {name: _price_of_sharing(models / name) for name in _COMPARED if (models / name).is_dir()}
    return {"starts": len(starts), "best": best, "shared_pool_to_own": price}


def _start(models: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "service", "--models", str(models), "--port", "0", "--device", "cpu"]
    with tempfile.TemporaryFile("w+") as log:
        began = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process:
            try:
                printed = process.stdout.readline() if process.stdout else ""
                seconds, cpu = time.perf_counter() - began, _cpu_seconds(process.pid)
                address = re.search(r"http://[0-9.:]+", printed)
                if address is None:
                    raise RuntimeError("The service did not start.")
                with urllib.request.urlopen(f"{address.group()}/health/ready") as ready:  # noqa: S310 -- our own.
                    answer = json.load(ready)
                memory = _memory_mb(process.pid)
                log.seek(0)
                loaded = _loaded(log.read())
                asked = {name: _asked(address.group(), models, name) for name in answer["models"]}
            finally:
                process.terminate()
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "cpu_seconds_a_core": round(cpu / available_cores(), 2),
        "ready": answer["models"],
        **memory,
        "models": {name: loaded.get(name, {}) | asked[name] for name in answer["models"]},
    }


def _cpu_seconds(process: int) -> float:
    """Of all its threads, in user and system mode so far (proc(5): the 14th and 15th field of stat)."""
    fields = Path(f"/proc/{process}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory_mb(process: int) -> dict[str, float]:
    status = Path(f"/proc/{process}/status").read_text("utf-8")
    found = dict(re.findall(r"(VmRSS|VmHWM):\s+(\d+) kB", status))
    return {"resident_mb": int(found["VmRSS"]) * 1024 / 1e6, "peak_mb": int(found["VmHWM"]) * 1024 / 1e6}


def _loaded(log: str) -> dict[str, dict[str, Any]]:
    """What the server's own log says of each model."""
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    return {
        line["model"]: {"seconds": line["seconds"], "batch_limit": line["batch_limit"]}
        for line in lines
        if line.get("message") == "model ready"
    }


def _asked(address: str, models: Path, name: str) -> dict[str, float]:
    """The first request to a model and the median of those after it, in milliseconds."""
    kind, body = request_to(max((models / name).iterdir(), key=lambda path: int(path.name)), name)
    request = urllib.request.Request(f"{address}/v1/models/{name}/predict", body, {"Content-Type": kind})  # noqa: S310
    taken = []
    for _ in range(_REQUESTS):
        began = time.perf_counter()
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            answer.read()
        taken.append((time.perf_counter() - began) * 1000)
    return {"first_ms": round(taken[0], 1), "then_ms": round(statistics.median(taken[1:]), 1)}


def _price_of_sharing(home: Path) -> float:
    """CPU seconds of a run with the pool of all sessions ÷ those of a session with a pool of its own."""
    folder = max(home.iterdir(), key=lambda path: int(path.name))
    task = read_manifest(folder).load_task(folder)
    shared = OnnxRuntime("cpu", threads=1)((folder / MODEL).read_bytes(), task.inputs, task.outputs)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    own = ort.InferenceSession((folder / MODEL).read_bytes(), options, providers=["CPUExecutionProvider"])
    arrays = task.preprocess(task.decode(task.parse(read_goldens(folder)[0].request, Limits()), Limits())).arrays
    ways: dict[str, Callable[[Arrays], Any]] = {"shared": shared.run, "own": lambda given: own.run(None, dict(given))}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(_ROUNDS):
        for name, run in ways.items():
            began = time.process_time()
            run(arrays)
            taken[name].append(time.process_time() - began)
    return round(float(np.median(taken["shared"]) / np.median(taken["own"])), 3)


def startup_table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    best = found["best"]
    lines = [
        "| model | loaded, proved and warmed in, s | batch limit | first request, ms | later requests, ms |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {row.get('seconds', '–')} | {row.get('batch_limit', '–')} | {row['first_ms']} | {row['then_ms']} |"
        for name, row in best["models"].items()
    ]
    cpu = f"{best['cpu_seconds']:.1f} s of CPU, {best['cpu_seconds_a_core']:.1f} s a core"
    memory = f"{best['resident_mb']:.0f} MB resident, {best['peak_mb']:.0f} MB at most"
    lines.append(f"\nReady after {best['seconds']:.1f} s ({cpu}) with {memory}.")
    for name, price in found["shared_pool_to_own"].items():
        lines.append(f"{name}: a run with the shared pool of memory costs {price:.2f} of one with a pool of its own.")
    return "\n".join(lines)
