"""How fast a variant of a graph is beside the graph in 32 bits: whole runs, in turn, on this machine."""

import platform
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime

from tasks.contract import Arrays, count_samples
from tasks.manifest import Latency

BATCHES = (1, 8)
BUDGET_S = 4.0
"""How long the runs of one batch size take together."""
_QUANTILE = 0.1
_MIN_ROUNDS, _MAX_ROUNDS = 5, 300
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def compare_latency(
    fp32: Path, variant: Path, samples: Arrays, batches: Sequence[int] = BATCHES, budget_s: float = BUDGET_S
) -> list[Latency]:
    """Return the times of both graphs for each batch size, on the CPU and, if there is one, on the GPU.

    The graphs run in turn, and each goes first in every other round, so that what else the machine does slows both;
    since that only ever adds to a time, the first decile of the runs is reported. On a CPU, a run has one thread, as
    the batches of a server have. All runs of a batch size take `budget_s` seconds or so.
    """
    measured = []
    for device in _devices(fp32):
        sessions = [_session(path, device) for path in (fp32, variant)]
        for batch in batches:
            inputs = _repeat(samples, batch)
            seconds = _time_in_turn(sessions, inputs, budget_s)
            fp32_ms, variant_ms = (float(np.quantile(values, _QUANTILE)) * 1000 for values in seconds)
            measured.append(
                Latency(
                    device=device,
                    processor=_processor() + ", 1 thread" if device == "cpu" else _gpu(),
                    batch=batch,
                    milliseconds=variant_ms,
                    fp32_milliseconds=fp32_ms,
                )
            )
    return measured


def _devices(graph: Path) -> list[Literal["cpu", "cuda"]]:
    if _PROVIDERS["cuda"] not in onnxruntime.get_available_providers():
        return ["cpu"]
    is_used = _session(graph, "cuda").get_providers()[0] == _PROVIDERS["cuda"]
    return ["cpu", "cuda"] if is_used else ["cpu"]


def _session(graph: Path, device: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.enable_mem_pattern = False  # As in the service.
    providers = list(dict.fromkeys((_PROVIDERS[device], _PROVIDERS["cpu"])))
    return onnxruntime.InferenceSession(graph, options, providers=providers)


def _repeat(samples: Arrays, batch: int) -> dict[str, Any]:
    """Return a batch of this size; the samples are repeated if there are fewer."""
    rows = np.arange(batch) % count_samples(samples)
    return {name: array[rows] for name, array in samples.items()}


def _time_in_turn(
    sessions: Sequence[onnxruntime.InferenceSession], inputs: dict[str, Any], budget_s: float
) -> list[list[float]]:
    """Return the seconds of each run of each session."""
    for session in sessions:
        session.run(None, inputs)
    seconds: list[list[float]] = [[] for _ in sessions]
    end = time.perf_counter() + budget_s
    for number in range(_MAX_ROUNDS):
        if number >= _MIN_ROUNDS and time.perf_counter() > end:
            break
        order = range(len(sessions)) if number % 2 else reversed(range(len(sessions)))
        for i in order:
            started = time.perf_counter()
            sessions[i].run(None, inputs)
            seconds[i].append(time.perf_counter() - started)
    return seconds


def _processor() -> str:
    """Return the name of the CPU, and whether it has VNNI, which multiplies 8-bit integers."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    vnni = " with VNNI" if re.search(r"\b(avx512_vnni|avx_vnni)\b", text) else ""
    return (name[1].strip() if name else platform.machine()) + vnni


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "GPU"
