"""A server on the virtual clock: one worker with a known service time, behind a queue. It never waits for real."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from loadtests.clients import Response
from loadtests.open_loop import Clocks
from tests.virtual_clock import now

OK = (b"HTTP/1.1 200 OK\r\ncontent-length: 0", b"")
OVERLOADED = (b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0", b"")


@dataclass
class FakeServer:
    """Answers one request after the other.

    Attributes:
        service_s: how long each takes; its capacity is the inverse.
        stalls: (from, for) in seconds: a request that would begin then begins afterwards.
        max_wait_s: a request that would wait for longer is refused at once, as admission control does.
    """

    service_s: float
    stalls: tuple[tuple[float, float], ...] = ()
    max_wait_s: float = float("inf")
    received: int = 0
    _free_at: float = field(default=0.0)

    def answer(self, on_response: Callable[[Response | None], None]) -> asyncio.TimerHandle:
        """Schedule the response."""
        self.received += 1
        begins = max(now(), self._free_at)
        for at_s, for_s in self.stalls:
            if at_s <= begins < at_s + for_s:
                begins = at_s + for_s
        loop = asyncio.get_running_loop()
        if begins - now() > self.max_wait_s:
            return loop.call_later(0.0, on_response, OVERLOADED)
        self._free_at = begins + self.service_s
        return loop.call_at(self._free_at, on_response, OK)

    async def connect(self) -> "FakeChannel":
        """Open a connection."""
        return FakeChannel(self)


class FakeChannel:
    """A connection to the fake server."""

    def __init__(self, server: FakeServer) -> None:
        self.is_open = True
        self._server = server
        self._on_response: Callable[[Response | None], None] | None = None

    def send(self, request: bytes, on_response: Callable[[Response | None], None]) -> None:
        self._on_response = on_response
        self._server.answer(self._respond)

    def _respond(self, response: Response | None) -> None:
        on_response, self._on_response = self._on_response, None
        if on_response is not None:
            on_response(response)

    def close(self) -> None:
        self.is_open = False
        self._respond(None)


def virtual_clocks(cpu_per_s: float = 0.1) -> Clocks:
    """Return clocks for the virtual loop, of a client that uses this fraction of a core."""
    return Clocks(now, lambda: cpu_per_s * now())
