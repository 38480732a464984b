"""What steps cost, as it is measured, and what follows from it: where they run, how large a batch is, who waits."""

import time
from collections.abc import Callable
from typing import Any

_CHEAP_S = 0.0005
"""A step that takes less runs on the event loop: about what two hand-overs between busy threads cost."""
_FAR_FROM_CHEAP_S = 0.005
_HAND_OVER_S = 0.0002
"""What a batch costs beside its run: two hand-overs between the event loop and the device's thread."""
_ABOUT = 1.1
_SLOW_S = 0.05
"""A batch that takes longer is measured well enough by one try, and costs too much to be tried in vain."""
_SMOOTHING = 0.1
_REMEMBERED = 500
"""Requests over which the pace is averaged, roughly: several batches of any size."""


class Cost:
    """What a step costs, as a running mean, for the size of input it has mostly seen."""

    def __init__(self) -> None:
        self.seconds: float | None = None
        self._size = 1.0

    def add(self, seconds: float, size: int) -> None:
        """Takes note of one run of the step."""
        if self.seconds is None:
            self.seconds, self._size = seconds, float(size)
        else:
            self.seconds += _SMOOTHING * (seconds - self.seconds)
            self._size += _SMOOTHING * (size - self._size)

    def is_cheap(self, size: int) -> bool:
        """Whether an input of this size is expected to cost less than a thread hop; never before it was measured."""
        return self.seconds is not None and self.seconds * max(1.0, size / max(self._size, 1.0)) < _CHEAP_S

    def timed(self, size: int, step: Callable[..., Any], *arguments: Any) -> Any:
        """Runs the step and takes note of what it cost."""
        began = time.perf_counter()
        result = step(*arguments)
        self.add(time.perf_counter() - began, size)
        return result


class Pace:
    """How fast requests have been answered while there were any: what the time until a place is free follows from."""

    def __init__(self) -> None:
        self._under_way = 0
        self._since = 0.0
        self._busy_s = 0.0
        self._ended = 0

    def begin(self, now: float) -> None:
        """A request has been accepted."""
        if self._under_way == 0:
            self._since = now
        self._under_way += 1

    def end(self, now: float) -> None:
        """A request has ended."""
        self._busy_s += now - self._since
        self._since = now
        self._ended += 1
        self._under_way -= 1
        if self._ended > _REMEMBERED:
            self._busy_s, self._ended = self._busy_s / 2, self._ended // 2

    def seconds_for(self, count: int) -> float:
        """Until so many have ended; 0 where none has ended yet."""
        return count * self._busy_s / self._ended if self._ended else 0.0


def settled(cost: Cost, size: int, step: Callable[..., Any], *arguments: Any) -> Any:
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
