"""When a request arrived, as far as an event loop can know.

A busy event loop reads from all sockets that have data, then runs the tasks of all these requests, and only then reads
again. Under overload such a turn takes hundreds of milliseconds, and most of what a request waits for lies before its
task begins: in the socket, and in the loop's queue of tasks. Deadlines that began with the task would not see it, and
the server would answer every request too late instead of refusing some in time.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.types import Scope

_KEY = "sevenfold.arrival"
_MAX_POLL_S = 0.0005
"""A loop that reads so soon after its last response has not waited for data: the data has waited for the loop."""


@dataclass(slots=True)
class Arrival:
    """When a request arrived, by `time.perf_counter`.

    Attributes:
        earliest: no later than its head reached this host: when the loop read before, if it has been busy since.
        read_at: when its head was read.
        is_complete: whether its body has arrived, too, so that receiving it does not wait.
    """

    earliest: float
    read_at: float
    is_complete: bool = False


class Arrivals:
    """Tells when the data that is being read arrived; shared by all connections of an event loop."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._is_reading = False
        self._read_at = self._earliest = self._responded_at = float("-inf")

    def on_read(self, loop: asyncio.AbstractEventLoop) -> Arrival:
        """Return when data arrived that a connection has just read."""
        now = self._clock()
        if not self._is_reading:  # The first of all connections that are read in this turn.
            self._is_reading = True
            loop.call_soon(self._end_reading)
            self._earliest = self._read_at if now - self._responded_at < _MAX_POLL_S else now
            self._read_at = now
        return Arrival(self._earliest, now)

    def _end_reading(self) -> None:
        self._is_reading = False

    def on_response(self) -> None:
        """Note that the loop has just been busy with a response."""
        self._responded_at = self._clock()


def put_arrival(scope: Any, arrival: Arrival) -> None:
    """Add the arrival of a request to its scope."""
    scope[_KEY] = arrival


def arrival_of(scope: Scope) -> Arrival:
    """Return the arrival of a request, or the present if its scope comes from another server."""
    arrival: Arrival | None = scope.get(_KEY)
    if arrival is None:
        now = time.perf_counter()
        return Arrival(now, now)
    return arrival
