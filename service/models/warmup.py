"""Warm-up: measure a model before it serves, to find its batch size and what its runs cost.

Every shape that clients may send is run once, so that no request pays for a first run, and admission starts from
measured costs. The model's queues are empty meanwhile.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from service.backends.base import Backend, OutOfMemory
from service.engine.latency import choose_batch_size, count_elements, measure_fastest, measure_step, shape_of
from service.engine.pipeline import Pipeline
from service.models.device_work import DeviceWork
from service.models.verification import GoldenRun
from tasks.contract import Array, Arrays, Limits, Samples, Task

_MAX_SECONDS = 0.1
"""Batches of the less common shapes that would take longer are not run; their cost is estimated from the others."""
_MAX_MEMORY_FRACTION = 0.5
"""Batches that are predicted to need more of the free memory are not tried: on a CPU the kernel would kill the process
rather than report an error."""


def warm_up(
    pipeline: Pipeline,
    golden_runs: Sequence[GoldenRun],
    *,
    find_batch_size: bool,
    concurrency: int = 1,
    work: DeviceWork | None = None,
) -> None:
    """Run every shape that clients may send, and record what it costs.

    `find_batch_size` lowers the maximum batch size to the smallest that is about as efficient per sample as any other.
    `concurrency` is the number of batches that run at a time under load: they share caches, so they are measured
    together. The cost of decoding is not measured here but on the first requests: it depends on their encoding.
    `work` runs the graph; by default it runs here.
    """
    work = work or DeviceWork()
    first = golden_runs[0].samples.arrays
    pipeline.set_typical_shape(first)
    guard = MemoryGuard(pipeline.backend)
    # Alone, since runs that happen to take turns would need less than runs that really overlap.
    _time_single_run(pipeline, work, first, 1)
    guard.record(count_elements(shape_of(first)))
    with ThreadPoolExecutor(concurrency, thread_name_prefix="warm-up") as threads:
        time_size = partial(_time_concurrent_runs, pipeline, guard, work, threads, concurrency, first)
        max_size = pipeline.batch_limit
        if find_batch_size:
            pipeline.policy = replace(pipeline.policy, max_size=choose_batch_size(time_size, max_size))
        else:
            time_size(max_size)
    pipeline.backend.release()
    _measure_sizes(pipeline, guard, work, first)
    for golden_run in golden_runs:
        for arrays in samples_per_bucket(pipeline.task, golden_run.samples.arrays):
            if not pipeline.latency_profile.has_shape(shape_of(arrays)):
                _measure_sizes(pipeline, guard, work, arrays, only_fast=True)
        cost = pipeline.postprocess_cost(golden_run.request)
        samples = golden_run.samples
        measure_step(cost, samples.work, pipeline.postprocess, golden_run.outputs, samples, golden_run.request)


@dataclass
class MemoryGuard:
    """Predicts from smaller batches whether a batch fits into memory, as `measure_memory` does for clients later.

    Attributes:
        backend: its memory is measured from now on.
    """

    backend: Backend
    _start: int | None = field(init=False)
    _bytes_per_element: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.backend.release()
        self._start = self.backend.memory_in_use()

    def fits(self, elements: int) -> bool:
        """Return whether batches with so many elements of input in all are predicted to fit."""
        in_use, free = self.backend.memory_in_use(), self.backend.memory_free()
        if self._start is None or in_use is None or free is None:
            return True
        reusable = max(0, in_use - self._start)  # The backend keeps what earlier runs have needed.
        return elements * self._bytes_per_element - reusable <= _MAX_MEMORY_FRACTION * free

    def record(self, elements: int) -> None:
        """Measure what batches with so many elements have needed."""
        in_use = self.backend.memory_in_use()
        if self._start is not None and in_use is not None:
            self._bytes_per_element = max(self._bytes_per_element, (in_use - self._start) / elements)


def samples_per_bucket(task: Task, arrays: Arrays) -> Iterator[Arrays]:
    """Yield the first sample, then the same sample padded to each of the task's length buckets."""
    first = {name: array[:1] for name, array in arrays.items()}
    yield first
    for axis, lengths in task.length_buckets.items():
        for length in lengths:
            yield {spec.name: _resize_axis(first[spec.name], spec.shape, axis, length) for spec in task.inputs}


def _resize_axis(array: Array, shape: tuple[int | str, ...], axis: str, length: int) -> Array:
    """Repeat or cut an array along a named axis, if it has that axis; the batch axis comes before `shape`."""
    if axis not in shape:
        return array
    index = 1 + shape.index(axis)
    resized: Array = np.take(array, np.arange(length) % array.shape[index], axis=index)
    return resized


def _repeat_to_size(arrays: Arrays, size: int) -> Arrays:
    """Return a batch of `size` samples."""
    return {name: np.resize(array, (size, *array.shape[1:])) for name, array in arrays.items()}


def _time_concurrent_runs(
    pipeline: Pipeline,
    guard: MemoryGuard,
    work: DeviceWork,
    threads: ThreadPoolExecutor,
    count: int,
    arrays: Arrays,
    size: int,
) -> float:
    """Return the seconds for a batch of this size while `count` of them run; infinity if memory is too small.

    Where memory is too small even for `count` batches of one sample, the seconds are those of a single one.
    """
    elements = count * size * count_elements(shape_of(arrays))
    if not guard.fits(elements):
        return math.inf if size > 1 else _time_single_run(pipeline, work, arrays, size)
    batch = _repeat_to_size(arrays, size)

    def run_all() -> None:
        runs = [threads.submit(pipeline.run_batch, pipeline.backend.run, [batch], size) for _ in range(count)]
        for run in runs:
            run.result()

    try:
        seconds = work.run(partial(measure_fastest, run_all), batch)
    except OutOfMemory:
        return _record_out_of_memory(pipeline, arrays, size)
    guard.record(elements)
    pipeline.latency_profile.record(shape_of(arrays), size, seconds)
    return seconds


def _record_out_of_memory(pipeline: Pipeline, arrays: Arrays, size: int) -> float:
    """Lower the batch limit of this shape; return infinity as the duration. Raises OutOfMemory for one sample."""
    if size == 1:
        raise OutOfMemory("The device has too little memory for a single sample.")
    pipeline.latency_profile.record_out_of_memory(shape_of(arrays), size)
    return math.inf


def _measure_sizes(
    pipeline: Pipeline, guard: MemoryGuard, work: DeviceWork, arrays: Arrays, *, only_fast: bool = False
) -> None:
    """Run batches of one sample, of the maximum size, and of sizes in between, each at least once.

    After a batch that does not fit in memory, half of it is run, so that the largest batch that clients can cause has
    been run before.
    """
    shape, size, largest = shape_of(arrays), 1, 0
    while size > largest:
        if size > 1 and not guard.fits(size * count_elements(shape)):
            pipeline.latency_profile.record_out_of_memory(shape, size)
            size = pipeline.latency_profile.max_batch_size(shape, pipeline.batch_limit, math.inf)
            continue
        seconds = _time_single_run(pipeline, work, arrays, size)
        max_size = pipeline.latency_profile.max_batch_size(shape, pipeline.batch_limit, math.inf)
        if seconds == math.inf:
            size = max_size
            continue
        if only_fast and 2 * seconds > _MAX_SECONDS:
            return
        size, largest = min(4 * size, max_size), size


def _time_single_run(pipeline: Pipeline, work: DeviceWork, arrays: Arrays, size: int) -> float:
    """Return the seconds for a batch of this size while nothing else runs; infinity if memory is too small."""
    batch, seconds = _repeat_to_size(arrays, size), 0.0

    def run() -> float:
        started = time.perf_counter()
        pipeline.run_batch(pipeline.backend.run, [batch], size)
        return time.perf_counter() - started

    for _ in range(2):  # The first run may include setting up; fast batches are run a second time.
        try:
            seconds = work.run(run, batch)
        except OutOfMemory:
            return _record_out_of_memory(pipeline, arrays, size)
        pipeline.latency_profile.record(shape_of(arrays), size, seconds)
        if seconds > _MAX_SECONDS / 4:
            break
    return seconds


def measure_memory(pipeline: Pipeline, example: Mapping[str, object], work: DeviceWork | None = None) -> None:
    """Measure the memory of a run of one sample and of the largest batch, while nothing else uses the device."""
    first = {name: array[:1] for name, array in _preprocess(pipeline.task, example).arrays.items()}
    (work or DeviceWork()).run_alone(partial(_fit_memory, pipeline, first))


def _fit_memory(pipeline: Pipeline, first: Arrays) -> None:
    backend, shape = pipeline.backend, shape_of(first)
    guard = MemoryGuard(backend)
    before = backend.memory_in_use()
    if before is None:
        return

    def measure(size: int) -> tuple[int, int]:
        pipeline.run_batch(backend.run, [_repeat_to_size(first, size)], size)
        elements = size * count_elements(shape)
        guard.record(elements)
        return elements, max(0, (backend.memory_in_use() or before) - before)

    def largest_size() -> int:
        return pipeline.latency_profile.max_batch_size(shape, pipeline.batch_limit, math.inf)

    single = measure(1)
    while (size := largest_size()) > 1 and not guard.fits(size * count_elements(shape)):
        # Models that were loaded since have taken the memory in which this batch was run before.
        pipeline.latency_profile.record_out_of_memory(shape, size)
    pipeline.latency_profile.fit_memory(single, measure(size))


def rerun_example(pipeline: Pipeline, example: Mapping[str, object], work: DeviceWork | None = None) -> None:
    """Run an example again, to reserve the memory that loading other models has released since."""
    arrays = _preprocess(pipeline.task, example).arrays
    (work or DeviceWork()).run(partial(pipeline.backend.run_exclusive, arrays), arrays)


def _preprocess(task: Task, fields: Mapping[str, object]) -> Samples:
    return task.preprocess(task.decode(task.parse(fields, Limits()), Limits()))
