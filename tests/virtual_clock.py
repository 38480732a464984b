"""An event loop with a virtual clock: time jumps to the next timer when nothing is ready, so tests never wait."""

import asyncio
import heapq
from collections import deque
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Deadlock(AssertionError):
    """A coroutine waits although nothing is ready and no timer is set."""


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """Supports timers only: it waits neither for sockets nor for threads."""

    _ready: deque[asyncio.Handle]
    _scheduled: list[Any]
    _timer_cancelled_count: int

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0

    def time(self) -> float:
        """Return the virtual seconds since the loop was created."""
        return self._now

    def _run_once(self) -> None:
        # asyncio offers no hook here; `_ready` and `_scheduled` have been its queue and its heap since Python 3.4.
        while self._scheduled and self._scheduled[0].cancelled():
            heapq.heappop(self._scheduled)._scheduled = False
            self._timer_cancelled_count -= 1
        if not self._ready:
            if not self._scheduled:
                raise Deadlock("Nothing is ready and no timer is set.")
            self._now = max(self._now, self._scheduled[0].when())
        super()._run_once()  # type: ignore[misc]


def run_virtually(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine as `asyncio.run` does, on the virtual clock."""
    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        return runner.run(main)


def now() -> float:
    """Return the time of the running event loop."""
    return asyncio.get_running_loop().time()
