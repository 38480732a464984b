"""Verification: before a model is served, its golden requests are replayed, each alone and in a batch.

Two things are checked on the device that will serve the model: the graph reproduces the published answers, and batching
changes the outputs of a sample by no more than the manifest allows.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from service.backends.base import Backend, OutOfMemory
from service.models.device_work import DeviceWork
from tasks.contract import Arrays, Limits, Request, Run, Samples, Task, count_samples
from tasks.deviation import BatchDeviation, batch_deviation, max_deviation
from tasks.goldens import Golden, first_difference
from tasks.manifest import BrokenModel, Manifest

VERIFICATION_BATCH = 8
"""Minimum number of samples in the batch goldens are run in, if that is fast; otherwise each golden is in it once."""
_MAX_FAST_BATCH_S = 0.02


@dataclass(frozen=True)
class GoldenRun:
    """A golden request, its samples, and the graph's outputs for them."""

    request: Request
    samples: Samples
    outputs: Arrays


@dataclass(frozen=True)
class Verification:
    """The result of a verification that succeeded.

    Attributes:
        golden_runs: each golden, run alone.
        deviation: for each output, the largest difference between a golden run alone and in a batch, in the unit of
            the output's kind: relative, a fraction, or levels.
    """

    golden_runs: tuple[GoldenRun, ...]
    deviation: BatchDeviation


def verify(
    manifest: Manifest, task: Task, backend: Backend, goldens: Sequence[Golden], work: DeviceWork | None = None
) -> Verification:
    """Replay the goldens, each alone and then in a batch. Raises BrokenModel if an answer differs.

    `work` runs the graph; by default it runs in this thread.
    """
    work = work or DeviceWork()
    requests = [task.parse(golden.request, Limits()) for golden in goldens]
    samples = [task.preprocess(task.decode(request, Limits())) for request in requests]
    alone, seconds = [], []
    for request_samples in samples:
        outputs, run_s = work.run(
            partial(_time_run, backend.run_exclusive, request_samples.arrays), request_samples.arrays
        )
        alone.append(outputs)
        seconds.append(run_s / len(request_samples))
    batched = _run_batched(backend, work, samples, _copies_per_request(samples, seconds))
    for mode, runs in (("alone", alone), ("in a batch", [copies[0] for copies in batched])):
        for i, golden in enumerate(goldens):
            answer = task.postprocess(runs[i], samples[i], requests[i])
            if mismatch := first_difference(golden.answer, answer.plain(), manifest.golden_tolerance):
                raise BrokenModel(f"The model does not reproduce its published answers: golden {i} {mode}: {mismatch}.")
    pairs = ((outputs, copy) for outputs, copies in zip(alone, batched, strict=True) for copy in copies)
    deviation = batch_deviation(task.outputs, pairs)
    check_batch_deviation(manifest, task, deviation, backend.device)
    return Verification(tuple(map(GoldenRun, requests, samples, alone)), deviation)


def _time_run(run: Run, arrays: Arrays) -> tuple[Arrays, float]:
    """Return the outputs and the seconds that the run took, without waiting for the device."""
    started = time.perf_counter()
    outputs = run(arrays)
    return outputs, time.perf_counter() - started


def check_batch_deviation(manifest: Manifest, task: Task, deviation: BatchDeviation, device: str) -> None:
    """Raise BrokenModel if the batch changes an output by more than the manifest allows."""
    for spec in task.outputs:
        measured, limit = deviation[spec.name], max_deviation(spec, manifest.batch_invariance, device)
        if not measured <= limit:  # True for NaN as well.
            published = (manifest.batch_invariance or {}).get(spec.name)
            stated = "states no value" if published is None else f"states {published:.1e}"
            raise BrokenModel(
                f"Batching changes output {spec.name} by {measured:.1e} on this device; the manifest {stated}, and at "
                f"most {limit:.1e} is accepted."
            )


def _group_by_shape(samples: Sequence[Samples]) -> Mapping[Any, list[int]]:
    """Return the indices of the requests whose samples have the same shape and can share a batch."""
    groups: dict[Any, list[int]] = {}
    for i, request_samples in enumerate(samples):
        shape = tuple((name, array.shape[1:]) for name, array in request_samples.arrays.items())
        groups.setdefault(shape, []).append(i)
    return groups


def _copies_per_request(samples: Sequence[Samples], seconds: Sequence[float]) -> list[int]:
    """Return how often each request is repeated in its batch, to fill `VERIFICATION_BATCH` if its samples are fast.

    `seconds` is what one sample of each request took.
    """
    copies = [1] * len(samples)
    for members in _group_by_shape(samples).values():
        size = sum(len(samples[i]) for i in members)
        if max(seconds[i] for i in members) * VERIFICATION_BATCH <= _MAX_FAST_BATCH_S:
            for i in members:
                copies[i] = max(1, math.ceil(VERIFICATION_BATCH / size))
    return copies


def _run_batched(
    backend: Backend, work: DeviceWork, samples: Sequence[Samples], copies: Sequence[int]
) -> list[list[Arrays]]:
    """Run all requests of one shape in one batch; return the outputs of each request, once for each of its copies."""
    outputs: list[list[Arrays]] = [[] for _ in samples]
    for members in _group_by_shape(samples).values():
        order = [i for i in members for _ in range(copies[i])]
        names = samples[members[0]].arrays
        batch = {name: np.concatenate([samples[i].arrays[name] for i in order]) for name in names}
        batch_outputs, start = _run_or_bisect(backend, work, batch), 0
        for i in order:
            end = start + len(samples[i])
            outputs[i].append({name: array[start:end] for name, array in batch_outputs.items()})
            start = end
    return outputs


def _run_or_bisect(backend: Backend, work: DeviceWork, arrays: Arrays) -> Arrays:
    """Run a batch, or its halves if the device has too little memory for all of it."""
    size = count_samples(arrays)
    try:
        return work.run(partial(backend.run, arrays), arrays)
    except OutOfMemory:
        if size == 1:
            raise
    middle = size // 2
    halves = [
        _run_or_bisect(backend, work, {name: array[part] for name, array in arrays.items()})
        for part in (slice(0, middle), slice(middle, size))
    ]
    return {name: np.concatenate([half[name] for half in halves]) for name in halves[0]}
