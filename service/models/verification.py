"""The proof that a model is what was published: its goldens, each alone and in company, before anybody is served.

Two things are asked of the graph on the device that is to answer: the answers that were published, and that it does
not matter for a sample in which batch it is. Nothing here knows where models lie or how they are served.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from service.backends.base import Backend, OutOfMemory
from service.models.warmup import GoldenRun
from tasks.contract import Arrays, Limits, Samples, Task
from tasks.deviation import BatchDeviation, allowed, batch_deviation
from tasks.goldens import Golden, difference
from tasks.manifest import BrokenModel, Manifest

VERIFICATION_BATCH = 8
"""Samples in the batch that goldens are run in, where that is quick; else as many as the goldens of one shape have."""
_QUICK_S = 0.02


@dataclass(frozen=True)
class Verification:
    """What was seen of a model.

    Attributes:
        proven: each golden, as it was read and computed.
        invariance: for each output, the largest difference between a golden's alone and in a batch, in the unit of
            its meaning: relative, a share, or levels.
    """

    proven: tuple[GoldenRun, ...]
    invariance: BatchDeviation


def verify(manifest: Manifest, task: Task, backend: Backend, goldens: Sequence[Golden]) -> Verification:
    """Asks the goldens, each alone and then in a batch. Raises BrokenModel."""
    requests = [task.parse(golden.request, Limits()) for golden in goldens]
    samples = [task.preprocess(task.decode(request, Limits())) for request in requests]
    alone, seconds = [], []
    for one in samples:
        began = time.perf_counter()
        alone.append(backend.run_exclusive(one.arrays))
        seconds.append((time.perf_counter() - began) / len(one))
    together = _run_together(backend, samples, _copies(samples, seconds))
    for run, outputs in (("alone", alone), ("in a batch", [copies[0] for copies in together])):
        for i, golden in enumerate(goldens):
            answer = task.postprocess(outputs[i], samples[i], requests[i])
            if found := difference(golden.answer, answer.plain(), manifest.golden_tolerance):
                raise BrokenModel(
                    f"The graph does not give the answers it was published with: golden {i} {run}: {found}."
                )
    invariance = batch_deviation(
        task.outputs, ((one, copy) for one, copies in zip(alone, together, strict=True) for copy in copies)
    )
    check_invariance(manifest, task, invariance, backend.device)
    return Verification(tuple(GoldenRun(*one) for one in zip(requests, samples, alone, strict=True)), invariance)


def check_invariance(manifest: Manifest, task: Task, invariance: BatchDeviation, device: str) -> None:
    """Raises BrokenModel where the batch changes an output by more than the card allows."""
    for spec in task.outputs:
        found, most = invariance[spec.name], allowed(spec, manifest.batch_invariance, device)
        if not found <= most:  # Also where it is not a number.
            stated = (manifest.batch_invariance or {}).get(spec.name)
            of_card = "does not say by how much" if stated is None else f"says {stated:.1e}"
            raise BrokenModel(
                f"The batch that a sample is in changes {spec.name} by {found:.1e} on this device; the manifest "
                f"{of_card}, and at most {most:.1e} is accepted."
            )


def _shapes(samples: Sequence[Samples]) -> Mapping[Any, list[int]]:
    """Which of the requests have samples of one shape, and so may share a batch."""
    shapes: dict[Any, list[int]] = {}
    for i, one in enumerate(samples):
        shapes.setdefault(tuple((name, array.shape[1:]) for name, array in one.arrays.items()), []).append(i)
    return shapes


def _copies(samples: Sequence[Samples], seconds: Sequence[float]) -> list[int]:
    """How often each request stands in its batch: as often as makes it large, where its samples are quick."""
    copies = [1] * len(samples)
    for members in _shapes(samples).values():
        size = sum(len(samples[i]) for i in members)
        if max(seconds[i] for i in members) * VERIFICATION_BATCH <= _QUICK_S:
            for i in members:
                copies[i] = max(1, math.ceil(VERIFICATION_BATCH / size))
    return copies


def _run_together(backend: Backend, samples: Sequence[Samples], copies: Sequence[int]) -> list[list[Arrays]]:
    """Each one's outputs, once for each of its copies, from batches of all those that have one shape."""
    outputs: list[list[Arrays]] = [[] for _ in samples]
    for members in _shapes(samples).values():
        listed = [i for i in members for _ in range(copies[i])]
        names = samples[members[0]].arrays
        stacked = {name: np.concatenate([samples[i].arrays[name] for i in listed]) for name in names}
        ran, start = _run_in_room(backend, stacked), 0
        for i in listed:
            end = start + len(samples[i])
            outputs[i].append({name: array[start:end] for name, array in ran.items()})
            start = end
    return outputs


def _run_in_room(backend: Backend, arrays: Arrays) -> Arrays:
    """The outputs of a batch; of its halves, where the device has no room for the whole."""
    size = len(next(iter(arrays.values())))
    try:
        return backend.run(arrays)
    except OutOfMemory:
        if size == 1:
            raise
    middle = size // 2
    halves = [
        _run_in_room(backend, {name: array[part] for name, array in arrays.items()})
        for part in (slice(0, middle), slice(middle, size))
    ]
    return {name: np.concatenate([half[name] for half in halves]) for name in halves[0]}
