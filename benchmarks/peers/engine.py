"""The graph alone: the throughput that a server could reach if decoding, batching and HTTP cost nothing."""

import time
from pathlib import Path

import numpy as np

from benchmarks.peers.workload import cores, load_workload
from benchmarks.serving import example_request, newest_version

_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_SECONDS = 1.0


def measure_engine(models: Path, name: str, device: str, *, seconds: float = _SECONDS) -> dict[str, float]:
    """Return samples per second of one session at its best batch size, with all cores or the device, and that size.

    Sizes are tried from the smallest on, each for so many seconds, until one is slower than four fifths of the best.
    """
    folder = newest_version(models / name)
    workload = load_workload(folder, cores(), device)
    inputs = workload.stack([workload.decode(example_request(folder, name)[1])])
    best: dict[str, float] = {"per_second": 0.0, "batch": 0}
    for size in _BATCH_SIZES:
        batch = {key: np.repeat(array, size, axis=0) for key, array in inputs.items()}
        workload.run(batch)
        runs, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            workload.run(batch)
            runs += 1
        per_second = runs * size / (time.perf_counter() - began)
        if per_second > best["per_second"]:
            best = {"per_second": round(per_second, 1), "batch": size}
        elif per_second < 0.8 * best["per_second"]:
            break
    return best
