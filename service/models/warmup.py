"""What a model learns of itself before it serves: how large its batches are worth being, what they take and need.

Every shape that clients may send is run, so that none of them pays for a first time, and what was measured is where
admission starts from. Knows pipelines and their costs; the queues stand still meanwhile.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from service.backends.base import OutOfMemory
from service.engine.latency import choose_batch_size, count_elements, measure_fastest, measure_step, shape_of
from service.engine.pipeline import Pipeline
from tasks.contract import Array, Arrays, Limits, Request, Samples, Task

_MAX_SECONDS = 0.1
"""A batch of another shape than most that takes longer is not tried at load: its cost is foreseen from the others."""


@dataclass(frozen=True)
class GoldenRun:
    """A golden request on its way: what was read of it, and what the graph made of that."""

    request: Request
    samples: Samples
    outputs: Arrays


def warm_up(pipeline: Pipeline, proven: Sequence[GoldenRun], *, find_batch_size: bool, side_by_side: int = 1) -> None:
    """Runs what clients will ask for, and takes what it costs.

    `side_by_side` is how many batches run at once under load: they share caches, so they are measured like that. The
    cost of decoding is learnt from the first requests: it depends on the form they come in.
    """
    first = proven[0].samples.arrays
    pipeline.set_typical_shape(first)
    with ThreadPoolExecutor(side_by_side, thread_name_prefix="warm-up") as threads:
        tried = partial(_seconds_of, pipeline, threads, side_by_side, first)
        most = pipeline.batch_limit
        if find_batch_size:
            pipeline.policy = replace(pipeline.policy, max_size=choose_batch_size(tried, most))
        else:
            tried(most)
    pipeline.backend.release()
    _try_sizes(pipeline, first)
    for one in proven:
        for arrays in buckets(pipeline.task, one.samples.arrays):
            if not pipeline.latency_profile.has_shape(shape_of(arrays)):
                _try_sizes(pipeline, arrays, only_quick=True)
        cost = pipeline.postprocess_cost(one.request)
        measure_step(cost, one.samples.work, pipeline.postprocess, one.outputs, one.samples, one.request)


def buckets(task: Task, arrays: Arrays) -> Iterator[Arrays]:
    """One sample of each shape that the task makes, from one that it has made: as long as the task's buckets are."""
    one = {name: array[:1] for name, array in arrays.items()}
    yield one
    for axis, lengths in task.length_buckets.items():
        for length in lengths:
            yield {spec.name: _stretched(one[spec.name], spec.shape, axis, length) for spec in task.inputs}


def _stretched(array: Array, shape: tuple[int | str, ...], axis: str, length: int) -> Array:
    if axis not in shape:
        return array
    at = 1 + shape.index(axis)
    stretched: Array = np.take(array, np.arange(length) % array.shape[at], axis=at)
    return stretched


def _repeated(arrays: Arrays, size: int) -> Arrays:
    return {name: np.resize(array, (size, *array.shape[1:])) for name, array in arrays.items()}


def _seconds_of(pipeline: Pipeline, threads: ThreadPoolExecutor, count: int, arrays: Arrays, size: int) -> float:
    """Seconds for a batch of this size, with as many at once as will run under load."""
    batch = _repeated(arrays, size)

    def together() -> None:
        runs = [threads.submit(pipeline.run_batch, pipeline.backend.run, [batch], size) for _ in range(count)]
        for run in runs:
            run.result()

    try:
        seconds = measure_fastest(together)
    except OutOfMemory:
        return _without_room(pipeline, arrays, size)
    pipeline.latency_profile.record(shape_of(arrays), size, seconds)
    return seconds


def _without_room(pipeline: Pipeline, arrays: Arrays, size: int) -> float:
    """Takes note that there is no room for such a batch: it would take for ever. Raises OutOfMemory for one sample."""
    if size == 1:
        raise OutOfMemory("The device has no room for a single sample.")
    pipeline.latency_profile.record_out_of_memory(shape_of(arrays), size)
    return math.inf


def _try_sizes(pipeline: Pipeline, arrays: Arrays, *, only_quick: bool = False) -> None:
    """Runs batches of one sample and of as many as there may be, and of sizes between; each at least once.

    Where there is no room for one, its half is tried: the largest that clients may get has been run before.
    """
    shape, size, largest = shape_of(arrays), 1, 0
    while size > largest:
        taken = _tried(pipeline, arrays, size)
        most = pipeline.latency_profile.max_batch_size(shape, pipeline.batch_limit, math.inf)
        if taken == math.inf:
            size = most
            continue
        if only_quick and 2 * taken > _MAX_SECONDS:
            return
        size, largest = min(4 * size, most), size


def _tried(pipeline: Pipeline, arrays: Arrays, size: int) -> float:
    """Seconds for a batch of this size by itself; infinite where there is no room for it."""
    batch, taken = _repeated(arrays, size), 0.0
    for _ in range(2):  # The second time counts as well: the first may have had something to set up.
        began = time.perf_counter()
        try:
            pipeline.run_batch(pipeline.backend.run, [batch], size)
        except OutOfMemory:
            return _without_room(pipeline, arrays, size)
        taken = time.perf_counter() - began
        pipeline.latency_profile.record(shape_of(arrays), size, taken)
        if taken > _MAX_SECONDS / 4:
            break
    return taken


def measure_memory(pipeline: Pipeline, example: Mapping[str, object]) -> None:
    """Learns what runs need: of one sample, and of as many as fit. To be called while nothing else runs."""
    task, backend = pipeline.task, pipeline.backend
    arrays = task.preprocess(task.decode(task.parse(example, Limits()), Limits())).arrays
    one = {name: array[:1] for name, array in arrays.items()}
    shape = shape_of(one)
    backend.release()
    before = backend.memory_in_use()
    if before is None:
        return
    taken = []
    for size in (1, pipeline.latency_profile.max_batch_size(shape, pipeline.batch_limit, math.inf)):
        pipeline.run_batch(backend.run, [_repeated(one, size)], size)
        taken.append((size * count_elements(shape), max(0, (backend.memory_in_use() or before) - before)))
    pipeline.latency_profile.fit_memory(*taken)


def refresh(pipeline: Pipeline, example: Mapping[str, object]) -> None:
    """Runs a golden request once more: others that were loaded since have given back memory that it had."""
    task = pipeline.task
    pipeline.backend.run_exclusive(task.preprocess(task.decode(task.parse(example, Limits()), Limits())).arrays)
