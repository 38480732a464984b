"""What steps cost, as it is measured, and what follows from it: where they run, how large a batch is, who waits."""

import math
import statistics
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from tasks.contract import Arrays

BUSY_HOPS = 8.0
"""What a hop to another thread costs where all threads are busy, in hops between idle ones: 0.5 ms for 0.06 ms here."""
CHEAP_S = 0.0005
"""A step that takes less runs on the event loop, until the cost of a hop has been measured."""
_FAR_FROM_CHEAP_S = 0.005
_HAND_OVER_S = 0.0002
"""What a batch costs beside its run: two hand-overs between the event loop and the device's thread."""
_ABOUT = 1.1
_SLOW_S = 0.05
"""A batch that takes longer is measured well enough by one try, and costs too much to be tried in vain."""
_SMOOTHING = 0.1
_MAX_ERROR_FACTOR = 4.0
"""One run counts as no more than so many times the mean: one that hung says nothing of the others."""
_DISTURBED = 8.0
"""What is run on the event loop may take so many hops there beside others' work, and no more."""
_MAX_SHAPES = 64
_MAX_SIZES = 64
_HOPS = 200
_GOOD_RUNS = 64
Shape = tuple[tuple[str, str, tuple[int, ...]], ...]
"""The inputs of one sample: name, dtype and shape of each, without the batch axis."""


class StepCost:
    """What a step costs, as a running mean, for the size of input it has mostly seen.

    `hop_s` is what it costs to have another thread do it.
    """

    def __init__(self, hop_s: float = CHEAP_S) -> None:
        self.seconds: float | None = None
        self._hop_s = hop_s
        self._size = 1.0
        self._least, self._size_of_least = math.inf, 1.0

    def add(self, seconds: float, size: int) -> None:
        """Takes note of one run of the step."""
        if self.seconds is None:
            self.seconds, self._size = seconds, float(size)
        else:
            seconds = min(seconds, _MAX_ERROR_FACTOR * self.seconds)
            self.seconds += _SMOOTHING * (seconds - self.seconds)
            self._size += _SMOOTHING * (size - self._size)
        if seconds < self._least:
            self._least, self._size_of_least = seconds, max(size, 1.0)

    def is_cheap(self, size: int) -> bool:
        """Whether an input of this size costs less than a thread hop, undisturbed; never before it was measured.

        Beside others' work each step takes longer, and a hop still more: to leave the event loop then would cost most.
        """
        if self.seconds is None:
            return False
        undisturbed = self._least * max(1.0, size / self._size_of_least)
        of_late = self.seconds * size / max(self._size, 1.0)
        return undisturbed < self._hop_s and of_late < _DISTURBED * self._hop_s

    def expected(self, size: int) -> float:
        """What it will take for an input of this size, larger ones in proportion; 0 where it was never measured."""
        return (self.seconds or 0.0) * max(1.0, size / max(self._size, 1.0))

    def timed(self, size: int, step: Callable[..., Any], *arguments: Any) -> Any:
        """Runs the step and takes note of what it cost."""
        began = time.perf_counter()
        result = step(*arguments)
        self.add(time.perf_counter() - began, size)
        return result


@dataclass
class Point:
    """What a batch of one size and shape takes.

    Attributes:
        seconds: a running mean.
        least: the shortest run there was; what it would take with the device to itself, about.
    """

    seconds: float
    least: float


@dataclass
class Limit:
    """The most samples in a batch since one failed for want of memory, and how many such batches have fitted since."""

    size: int
    good: int = 0

    def fitted(self) -> None:
        """A batch as large as the limit was run: after many it may be larger, what was short may be there again."""
        self.good += 1
        if self.good >= _GOOD_RUNS:
            self.size, self.good = self.size + max(1, self.size // 4), 0


class LatencyProfile:
    """What a run takes by the shape of a sample and the size of the batch: seconds, and bytes of memory.

    Filled at warm-up and kept current by what is run later. Between two sizes it is a straight line, beyond the largest
    it goes on through the origin; a shape that was never run is judged by its elements from the one that is nearest.
    """

    def __init__(self) -> None:
        self._points: dict[Shape, dict[int, Point]] = {}
        self._limits: dict[Shape, Limit] = {}
        self._memory: tuple[float, float] | None = None
        """Bytes of any run, and for each element of its input."""

    def add(self, shape: Shape, size: int, seconds: float) -> None:
        """Takes note of a run."""
        sizes = self._points.get(shape)
        if sizes is None:
            if len(self._points) >= _MAX_SHAPES:
                del self._points[next(reversed(self._points))]  # The first ones are those of warm-up.
            sizes = self._points[shape] = {}
        point = sizes.get(size)
        if point is None:
            if len(sizes) < _MAX_SIZES:
                sizes[size] = Point(seconds, seconds)
        else:
            point.seconds += _SMOOTHING * (min(seconds, _MAX_ERROR_FACTOR * point.seconds) - point.seconds)
            point.least = min(point.least, seconds)
        limit = self._limits.get(shape)
        if limit is not None and size >= limit.size:
            limit.fitted()

    def seconds(self, shape: Shape, size: int) -> float:
        """What a batch is expected to take; 0 where nothing was ever run."""
        return self._at(shape, size, lambda point: point.seconds)

    def least(self, shape: Shape, size: int) -> float:
        """What it takes where nothing else is to be done."""
        return self._at(shape, size, lambda point: point.least)

    def is_cheap(self, hop_s: float, shape: Shape | None = None, size: int = 1) -> bool:
        """Whether a batch costs less than a hop to a thread, undisturbed; without a shape, whether any does."""
        if shape is None:
            points = [point for sizes in list(self._points.values()) for point in list(sizes.values())]
            return any(point.least < hop_s and point.seconds < _DISTURBED * hop_s for point in points)
        known = shape in self._points and self.least(shape, size) < hop_s
        return known and self.seconds(shape, size) < _DISTURBED * hop_s

    def knows(self, shape: Shape) -> bool:
        """Whether samples of this shape have been run."""
        return shape in self._points

    def _at(self, shape: Shape, size: int, of: Callable[[Point], float]) -> float:
        sizes = self._points.get(shape)
        if sizes is None:
            if not self._points:
                return 0.0
            wanted = elements_of(shape)
            nearest = min(list(self._points), key=lambda other: abs(math.log(wanted / elements_of(other))))
            return self._at(nearest, size, of) * wanted / elements_of(nearest)
        if size in sizes:
            return of(sizes[size])
        known = list(sizes)  # Another thread may add one meanwhile.
        below = max((other for other in known if other < size), default=None)
        above = min((other for other in known if other > size), default=None)
        if below is None:
            return of(sizes[above]) if above is not None else 0.0
        if above is None:
            return of(sizes[below]) * size / below
        share = (size - below) / (above - below)
        return (1 - share) * of(sizes[below]) + share * of(sizes[above])

    def took(self, small: tuple[int, int], large: tuple[int, int]) -> None:
        """Learns what memory a run needs from two: the elements of the input of each, and the bytes it took."""
        (few, bytes_few), (many, bytes_many) = small, large
        each = max(0.0, (bytes_many - bytes_few) / (many - few)) if many > few else bytes_many / many
        self._memory = (max(0.0, bytes_few - each * few), each)

    def memory_bytes(self, shape: Shape, size: int) -> int:
        """What a batch is expected to need beside the model itself; 0 where that was never measured."""
        if self._memory is None:
            return 0
        fixed, each = self._memory
        return round(fixed + each * elements_of(shape) * size)

    def limit(self, shape: Shape, most: int, free_bytes: float) -> int:
        """The largest batch, up to `most`, that fits into so many bytes and has not failed for want of memory; or 0."""
        most = min(most, self._limits[shape].size) if shape in self._limits else most
        if self._memory is None or self.memory_bytes(shape, most) <= free_bytes:
            return most
        fixed, each = self._memory
        return max(0, min(most, math.floor((free_bytes - fixed) / (each * elements_of(shape))))) if each else 0

    def no_room(self, shape: Shape, size: int) -> None:
        """A batch of this size failed for want of memory: none is larger than its half until many such have fitted."""
        half = max(1, size - size // 2)
        if shape in self._limits:
            half = min(half, self._limits[shape].size)
        elif len(self._limits) >= _MAX_SHAPES:
            del self._limits[next(iter(self._limits))]
        self._limits[shape] = Limit(half)

    def table(self) -> list[tuple[Shape, int, float, int]]:
        """All that is known: shape, size, seconds, bytes."""
        return [
            (shape, size, point.seconds, self.memory_bytes(shape, size))
            for shape, sizes in list(self._points.items())
            for size, point in sorted(sizes.items())
        ]


def shape_of(arrays: Arrays) -> Shape:
    """The shape of one sample: what may share a batch."""
    return tuple((name, array.dtype.str, array.shape[1:]) for name, array in sorted(arrays.items()))


def elements_of(shape: Shape) -> int:
    """What the cost of a run grows with, beside the samples: how large each is."""
    return max(1, sum(math.prod(dimensions) for _, _, dimensions in shape))


def measured_hop(pool: Executor) -> float:
    """Seconds that it costs to have another thread do something, and to hear that it is done."""
    tries = []
    for _ in range(_HOPS):
        began = time.perf_counter()
        pool.submit(int).result()
        tries.append(time.perf_counter() - began)
    return statistics.median(tries)


def settled(cost: StepCost, size: int, step: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a step until it is known whether it is cheap: three times, or once where it certainly is not."""
    for _ in range(3):
        cost.seconds = None  # Each time is better than the one before: the last counts.
        result = cost.timed(size, step, *arguments)
        if (cost.seconds or 0.0) > _FAR_FROM_CHEAP_S:
            break
    return result


def fastest(run: Callable[[], None]) -> float:
    """Seconds that `run` takes, the better of two tries: what disturbs one only makes it slower."""
    tries: list[float] = []
    while len(tries) < 2 and sum(tries) < _SLOW_S:
        began = time.perf_counter()
        run()
        tries.append(time.perf_counter() - began)
    return min(tries)


def useful_batch(seconds_of: Callable[[int], float], most: int) -> int:
    """The smallest batch size, up to `most`, that runs a sample about as cheaply as any other.

    `seconds_of` runs a batch of the size it is given. A larger batch gains nothing and makes its first sample wait for
    its last: on a GPU the cost of a sample falls far with the size, on a CPU it soon rises again, when a batch no
    longer fits the caches. Sizes are doubled for as long as that helps, so that what is slow is not tried at its
    slowest.
    """
    costs: dict[int, float] = {}
    size = 1
    while size <= most:
        seconds = seconds_of(size)
        costs[size] = (_HAND_OVER_S + seconds) / size
        before = 1 if seconds > _SLOW_S else 2
        if len(costs) > before and costs[size] * _ABOUT > list(costs.values())[-1 - before]:
            break  # Four times the size has gained nothing to speak of; twice will do where a batch is slow.
        size = size * 2 if size == most else min(size * 2, most)
    return next(size for size, cost in costs.items() if cost <= _ABOUT * min(costs.values()))
