"""How long the server takes to become ready, and how much memory it then uses; Linux only.

It starts the real program with the real models. On a machine that other programs use too, the seconds say little; the
CPU seconds divided by the number of cores are the least that a start can take.
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

from benchmarks.serving import example_request, newest_version, predict_path
from service.backends.cores import available_cores
from service.backends.onnx import OnnxRuntime
from tasks.contract import Arrays, Limits
from tasks.goldens import read_goldens
from tasks.manifest import MODEL, read_manifest

_REQUESTS = 7
_ARENA_MODELS = ("camvid", "clothing")
"""Models whose runs are measured with the shared memory pool and with one of their own."""
_ROUNDS = 15


def measure_startup(models: Path, *, repeats: int) -> dict[str, Any]:
    """Return the start that took the fewest CPU seconds, and the cost of the shared memory pool per run."""
    starts = [_measure_start(models) for _ in range(repeats)]
    best = min(starts, key=lambda start: float(start["cpu_seconds"]))
    ratios = {name: _shared_pool_ratio(models / name) for name in _ARENA_MODELS if (models / name).is_dir()}
    return {"starts": len(starts), "best": best, "shared_pool_to_own": ratios}


def _measure_start(models: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "service", "--models", str(models), "--port", "0", "--device", "cpu"]
    with tempfile.TemporaryFile("w+") as log:
        began = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process:
            try:
                line = process.stdout.readline() if process.stdout else ""
                seconds, cpu = time.perf_counter() - began, _cpu_seconds(process.pid)
                address = re.search(r"http://[0-9.:]+", line)
                if address is None:
                    raise RuntimeError("The service did not start.")
                with urllib.request.urlopen(f"{address.group()}/health/ready") as response:  # noqa: S310 -- our own.
                    ready = json.load(response)["models"]
                memory = _memory_mb(process.pid)
                log.seek(0)
                loaded = _loaded_models(log.read())
                latencies = {name: _request_latency(address.group(), models, name) for name in ready}
            finally:
                process.terminate()
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "cpu_seconds_a_core": round(cpu / available_cores(), 2),
        "ready": ready,
        **memory,
        "models": {name: loaded.get(name, {}) | latencies[name] for name in ready},
    }


def _cpu_seconds(pid: int) -> float:
    """Return the user and system time of all threads of a process (proc(5): fields 14 and 15 of stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory_mb(pid: int) -> dict[str, float]:
    status = Path(f"/proc/{pid}/status").read_text("utf-8")
    kilobytes = dict(re.findall(r"(VmRSS|VmHWM):\s+(\d+) kB", status))
    return {"resident_mb": int(kilobytes["VmRSS"]) * 1024 / 1e6, "peak_mb": int(kilobytes["VmHWM"]) * 1024 / 1e6}


def _loaded_models(log: str) -> dict[str, dict[str, Any]]:
    """Return load time and batch limit of each model, from the server's log."""
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    return {
        line["model"]: {"seconds": line["seconds"], "batch_limit": line["batch_limit"]}
        for line in lines
        if line.get("message") == "model ready"
    }


def _request_latency(address: str, models: Path, name: str) -> dict[str, float]:
    """Return the time of a model's first request and the median of later ones, in milliseconds."""
    content_type, body = example_request(newest_version(models / name), name)
    headers = {"Content-Type": content_type}
    request = urllib.request.Request(address + predict_path(name), body, headers)  # noqa: S310 -- a server of our own.
    times = []
    for _ in range(_REQUESTS):
        began = time.perf_counter()
        with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
            response.read()
        times.append((time.perf_counter() - began) * 1000)
    return {"first_ms": round(times[0], 1), "then_ms": round(statistics.median(times[1:]), 1)}


def _shared_pool_ratio(model: Path) -> float:
    """Return the CPU time of a run with the memory pool that all sessions share ÷ with a pool of its own."""
    folder = newest_version(model)
    task = read_manifest(folder).load_task(folder)
    shared = OnnxRuntime("cpu", threads=1)((folder / MODEL).read_bytes(), task.inputs, task.outputs)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    own = ort.InferenceSession((folder / MODEL).read_bytes(), options, providers=["CPUExecutionProvider"])
    arrays = task.preprocess(task.decode(task.parse(read_goldens(folder)[0].request, Limits()), Limits())).arrays
    runs: dict[str, Callable[[Arrays], Any]] = {"shared": shared.run, "own": lambda inputs: own.run(None, dict(inputs))}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(_ROUNDS):
        for name, run in runs.items():
            began = time.process_time()
            run(arrays)
            times[name].append(time.process_time() - began)
    return round(float(np.median(times["shared"]) / np.median(times["own"])), 3)


def startup_table(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    best = results["best"]
    lines = [
        "| model | loaded, verified and warmed up in, s | batch limit | first request, ms | later requests, ms |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {row.get('seconds', '–')} | {row.get('batch_limit', '–')} | {row['first_ms']} | {row['then_ms']} |"
        for name, row in best["models"].items()
    ]
    cpu = f"{best['cpu_seconds']:.1f} CPU seconds, {best['cpu_seconds_a_core']:.1f} per core"
    memory = f"{best['resident_mb']:.0f} MB resident, {best['peak_mb']:.0f} MB at peak"
    lines.append(f"\nReady after {best['seconds']:.1f} s ({cpu}) with {memory}.")
    for name, ratio in results["shared_pool_to_own"].items():
        lines.append(f"{name}: a run with the shared memory pool takes {ratio:.2f} × one with a pool of its own.")
    return "\n".join(lines)
