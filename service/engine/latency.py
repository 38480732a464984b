"""Measured durations and memory use, and what follows from them: where a step runs and how large a batch may be.

`StepCost` measures one kind of step (decoding a JSON body, say), `LatencyProfile` the runs of one model's graph by
sample shape and batch size. Both are filled at warm-up and updated by every later run. The functions below measure
thread hops, steps and batch sizes at start.

Knows nothing about queues, requests or backends; it is given seconds and bytes.
"""

import math
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from tasks.contract import Arrays

BUSY_HOP_FACTOR = 8.0
"""Cost of a hop to another thread if all threads are busy, relative to idle threads: 0.5 ms instead of 0.06 ms."""
DEFAULT_HOP_S = 0.0005
"""Assumed cost of a hop to another thread, until it has been measured."""
_CLEARLY_EXPENSIVE_S = 0.005
"""A step that takes longer than this is never cheap, so it is measured only once."""
_BATCH_OVERHEAD_S = 0.0002
"""Cost of a batch besides its run: two hand-overs between the event loop and the device's thread."""
_SIMILAR_FACTOR = 1.1
"""Costs per sample that differ by less than this factor count as equal."""
_SLOW_BATCH_S = 0.05
"""A slower batch is measured only once: noise matters less, and each measurement costs too much."""
_SMOOTHING = 0.1
_OUTLIER_FACTOR = 4.0
"""Outliers are clipped to this multiple of the mean: a run that hung says nothing about other runs."""
_MAX_LOADED_HOPS = 8.0
"""Under load, work on the event loop may take at most this many times the cost of a hop."""
_MAX_SHAPES = 64
_MAX_SIZES = 64
_HOP_SAMPLES = 200
_RUNS_BEFORE_GROWTH = 64
Shape = tuple[tuple[str, str, tuple[int, ...]], ...]
"""The inputs of one sample: name, dtype and shape of each, without the batch axis."""


class StepCost:
    """The measured duration of one kind of step: a running mean, and the mean size of the inputs it was measured on.

    `hop_s` is the cost of handing work to another thread. All methods may be called from any thread.
    """

    def __init__(self, hop_s: float = DEFAULT_HOP_S) -> None:
        self._lock = threading.Lock()
        self._mean_s: float | None = None
        self._mean_size = 1.0
        self._min_s, self._size_of_min = math.inf, 1.0
        self._hop_s = hop_s

    @property
    def mean_s(self) -> float | None:
        """The mean seconds; None if the step has not been measured."""
        return self._mean_s

    def record(self, seconds: float, size: int, *, is_first: bool = False) -> None:
        """Record a run of the step on an input of this size; if `is_first`, the mean starts anew."""
        with self._lock:
            if self._mean_s is None or is_first:
                self._mean_s, self._mean_size = seconds, float(size)
            else:
                seconds = min(seconds, _OUTLIER_FACTOR * self._mean_s)
                self._mean_s += _SMOOTHING * (seconds - self._mean_s)
                self._mean_size += _SMOOTHING * (size - self._mean_size)
            if seconds < self._min_s:
                self._min_s, self._size_of_min = seconds, max(size, 1.0)

    def is_cheap(self, size: int) -> bool:
        """Return whether the step should run on the event loop, for an input of this size; False if never measured.

        The shortest run decides whether it costs less than a hop to a thread. Under load both take longer, the hop even
        more so, so the mean only has to stay below `_MAX_LOADED_HOPS` hops.
        """
        with self._lock:
            if self._mean_s is None:
                return False
            unloaded_s = self._min_s * max(1.0, size / self._size_of_min)
            recent_s = self._mean_s * size / max(self._mean_size, 1.0)
        return unloaded_s < self._hop_s and recent_s < _MAX_LOADED_HOPS * self._hop_s

    def predict_s(self, size: int) -> float:
        """Predict the seconds for an input of this size, in proportion if it is larger than the mean; 0 if unknown."""
        with self._lock:
            return (self._mean_s or 0.0) * max(1.0, size / max(self._mean_size, 1.0))

    def measure(self, size: int, step: Callable[..., Any], *arguments: Any) -> Any:
        """Run the step, record its duration and return its result."""
        started_at = time.perf_counter()
        result = step(*arguments)
        self.record(time.perf_counter() - started_at, size)
        return result


@dataclass
class Point:
    """The measured duration of a batch of one shape and size.

    Attributes:
        mean_s: running mean.
        min_s: shortest run, which approximates the duration with the device otherwise idle.
    """

    mean_s: float
    min_s: float


@dataclass
class BatchLimit:
    """The largest batch of one shape since one ran out of memory, and how many batches of that size have fitted."""

    size: int
    fitting_runs: int = 0

    def record_fit(self) -> None:
        """Count a batch of the limit's size; after many of them raise the limit, since memory may be free again."""
        self.fitting_runs += 1
        if self.fitting_runs >= _RUNS_BEFORE_GROWTH:
            self.size, self.fitting_runs = self.size + max(1, self.size // 4), 0


class LatencyProfile:
    """Seconds and memory that a run takes, by the shape of a sample and the size of the batch.

    Durations are interpolated linearly between two measured sizes and extrapolated through the origin beyond the
    largest. A shape that was never run is predicted from the one with the nearest number of elements, in proportion.

    All methods may be called from any thread: runs are recorded by the threads of the device, and read by the event
    loop.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._points: dict[Shape, dict[int, Point]] = {}
        self._limits: dict[Shape, BatchLimit] = {}
        self._memory: tuple[float, float] | None = None
        """Bytes that any run needs, and bytes for each element of its input."""

    def record(self, shape: Shape, size: int, seconds: float) -> None:
        """Record a run of a batch of this size."""
        with self._lock:
            self._record_duration(self._sizes_of(shape), size, seconds)
            limit = self._limits.get(shape)
            if limit is not None and size >= limit.size:
                limit.record_fit()

    def _sizes_of(self, shape: Shape) -> dict[int, Point]:
        """Return the measurements of a shape; a new one takes the place of the latest if there are too many."""
        sizes = self._points.get(shape)
        if sizes is None:
            if len(self._points) >= _MAX_SHAPES:
                del self._points[next(reversed(self._points))]  # The first ones come from warm-up and are kept.
            sizes = self._points[shape] = {}
        return sizes

    @staticmethod
    def _record_duration(sizes: dict[int, Point], size: int, seconds: float) -> None:
        point = sizes.get(size)
        if point is not None:
            point.mean_s += _SMOOTHING * (min(seconds, _OUTLIER_FACTOR * point.mean_s) - point.mean_s)
            point.min_s = min(point.min_s, seconds)
        elif len(sizes) < _MAX_SIZES:
            sizes[size] = Point(seconds, seconds)

    def predict_s(self, shape: Shape, size: int) -> float:
        """Predict the seconds that a batch takes; 0 if nothing has been run."""
        return self._interpolate(shape, size, lambda point: point.mean_s)

    def min_s(self, shape: Shape, size: int) -> float:
        """Return the seconds that a batch takes at best, with the device otherwise idle; 0 if nothing has been run."""
        return self._interpolate(shape, size, lambda point: point.min_s)

    def is_cheap(self, hop_s: float, shape: Shape | None = None, size: int = 1) -> bool:
        """Return whether a batch should run on the event loop, as `StepCost.is_cheap` decides it.

        Without a shape: whether any measured batch should.
        """
        with self._lock:
            if shape is None:
                points = [point for sizes in self._points.values() for point in sizes.values()]
                return any(point.min_s < hop_s and point.mean_s < _MAX_LOADED_HOPS * hop_s for point in points)
            is_short = shape in self._points and self.min_s(shape, size) < hop_s
            return is_short and self.predict_s(shape, size) < _MAX_LOADED_HOPS * hop_s

    def has_shape(self, shape: Shape) -> bool:
        """Return whether samples of this shape have been run."""
        with self._lock:
            return shape in self._points

    def _interpolate(self, shape: Shape, size: int, statistic: Callable[[Point], float]) -> float:
        with self._lock:
            if shape in self._points:
                return _interpolate_size(self._points[shape], size, statistic)
            if not self._points:
                return 0.0
            elements = count_elements(shape)
            nearest = min(self._points, key=lambda measured: abs(math.log(elements / count_elements(measured))))
            seconds = _interpolate_size(self._points[nearest], size, statistic)
            return seconds * elements / count_elements(nearest)

    def fit_memory(self, small: tuple[int, int], large: tuple[int, int]) -> None:
        """Fit the memory model to a small and a large run: the number of input elements and the bytes of each."""
        (small_elements, small_bytes), (large_elements, large_bytes) = small, large
        if large_elements > small_elements:
            bytes_per_element = max(0.0, (large_bytes - small_bytes) / (large_elements - small_elements))
        else:
            bytes_per_element = large_bytes / large_elements
        # Read without the lock: a tuple that is replaced as a whole.
        self._memory = (max(0.0, small_bytes - bytes_per_element * small_elements), bytes_per_element)

    def memory_bytes(self, shape: Shape, size: int) -> int:
        """Predict the memory that a batch needs besides the model itself; 0 if memory has not been measured."""
        memory = self._memory
        if memory is None:
            return 0
        fixed_bytes, bytes_per_element = memory
        return round(fixed_bytes + bytes_per_element * count_elements(shape) * size)

    def max_batch_size(self, shape: Shape, max_size: int, free_bytes: float) -> int:
        """Return the largest batch, up to `max_size`, that fits into memory; 0 if none does.

        It fits if it is predicted to need no more than `free_bytes`, and if no such batch has run out of memory.
        """
        with self._lock:
            max_size = min(max_size, self._limits[shape].size) if shape in self._limits else max_size
        memory = self._memory
        if memory is None or self.memory_bytes(shape, max_size) <= free_bytes:
            return max_size
        fixed_bytes, bytes_per_element = memory
        if not bytes_per_element:
            return 0
        return max(
            0, min(max_size, math.floor((free_bytes - fixed_bytes) / (bytes_per_element * count_elements(shape))))
        )

    def record_out_of_memory(self, shape: Shape, size: int) -> None:
        """Record that a batch of this size ran out of memory: limit batches to half of it until many have fitted."""
        half = max(1, size - size // 2)
        with self._lock:
            if shape in self._limits:
                half = min(half, self._limits[shape].size)
            elif len(self._limits) >= _MAX_SHAPES:
                del self._limits[next(iter(self._limits))]
            self._limits[shape] = BatchLimit(half)

    def table(self) -> list[tuple[Shape, int, float, int]]:
        """Return all measurements as rows of shape, size, mean seconds and predicted bytes."""
        with self._lock:
            return [
                (shape, size, point.mean_s, self.memory_bytes(shape, size))
                for shape, sizes in self._points.items()
                for size, point in sorted(sizes.items())
            ]


def _interpolate_size(sizes: Mapping[int, Point], size: int, statistic: Callable[[Point], float]) -> float:
    if size in sizes:
        return statistic(sizes[size])
    below = max((measured for measured in sizes if measured < size), default=None)
    above = min((measured for measured in sizes if measured > size), default=None)
    if below is None:
        return statistic(sizes[above]) if above is not None else 0.0
    if above is None:
        return statistic(sizes[below]) * size / below
    weight = (size - below) / (above - below)
    return (1 - weight) * statistic(sizes[below]) + weight * statistic(sizes[above])


def shape_of(arrays: Arrays) -> Shape:
    """Return the shape of one sample. Only samples of equal shape share a batch."""
    return tuple((name, array.dtype.str, array.shape[1:]) for name, array in sorted(arrays.items()))


def count_elements(shape: Shape) -> int:
    """Return the number of input elements of one sample, at least 1; the cost of a run grows with it."""
    return max(1, sum(math.prod(dimensions) for _, _, dimensions in shape))


def measure_hop(pool: Executor) -> float:
    """Return the median seconds for handing an empty task to an idle thread and learning that it is done."""
    durations = []
    for _ in range(_HOP_SAMPLES):
        started_at = time.perf_counter()
        pool.submit(int).result()
        durations.append(time.perf_counter() - started_at)
    return statistics.median(durations)


def measure_step(cost: StepCost, size: int, step: Callable[..., Any], *arguments: Any) -> Any:
    """Run a step three times (once if it is clearly expensive), record the last run and return its result."""
    for _ in range(3):
        started_at = time.perf_counter()
        result = step(*arguments)
        seconds = time.perf_counter() - started_at
        cost.record(seconds, size, is_first=True)  # Each run is faster than the one before: only the last one counts.
        if seconds > _CLEARLY_EXPENSIVE_S:
            break
    return result


def measure_fastest(run: Callable[[], None]) -> float:
    """Return the seconds of the faster of two calls, since disturbances only slow a call down; a slow one runs once."""
    durations: list[float] = []
    while len(durations) < 2 and sum(durations) < _SLOW_BATCH_S:
        started_at = time.perf_counter()
        run()
        durations.append(time.perf_counter() - started_at)
    return min(durations)


def choose_batch_size(measure_s: Callable[[int], float], max_size: int) -> int:
    """Return the smallest batch size, up to `max_size`, whose cost per sample is within 10 % of the lowest.

    A larger batch gains nothing and makes its first sample wait for its last. On a GPU the cost per sample falls
    steeply with the size; on a CPU it soon rises again, when a batch no longer fits the caches. Sizes are doubled while
    that helps, so that slow models are not measured at their slowest.

    Args:
        measure_s: runs a batch of the given size and returns its seconds.
        max_size: the largest size to try.
    """
    cost_per_sample: dict[int, float] = {}
    size = 1
    while size <= max_size:
        seconds = measure_s(size)
        cost_per_sample[size] = (_BATCH_OVERHEAD_S + seconds) / size
        steps_back = 1 if seconds > _SLOW_BATCH_S else 2
        if (
            len(cost_per_sample) > steps_back
            and cost_per_sample[size] * _SIMILAR_FACTOR > list(cost_per_sample.values())[-1 - steps_back]
        ):
            break  # Four times the size (twice, where a batch is slow) has gained nothing.
        size = size * 2 if size == max_size else min(size * 2, max_size)
    lowest = min(cost_per_sample.values())
    return next(size for size, cost in cost_per_sample.items() if cost <= _SIMILAR_FACTOR * lowest)
