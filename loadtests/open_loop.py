"""An open loop: requests are sent at random times, whether or not earlier ones have been answered.

Users do not wait for each other, so a server that stalls finds their requests waiting when it goes on. A closed loop
stops sending meanwhile, and so omits the slow requests that matter ("coordinated omission"). Here latency counts from
the time at which a request should have been sent. The loop knows channels, a clock and nothing else, so that tests run
it on a virtual clock.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from hdrh.histogram import HdrHistogram

from loadtests.clients import MAX_IDLE_S, NO_RESPONSE, Response

WINDOWS = 3
"""Parts of a trial: latency that is higher in the last one shows that a queue still grows."""
_MAX_US = 120_000_000
_DIGITS = 3
_MAX_CLIENT_CPU = 0.8
_MAX_LATENESS = 0.2
"""Of the objective: sent later than that, a request measures the client."""


class Channel(Protocol):
    """A connection for one request at a time; `loadtests.clients.Connection` is one."""

    is_open: bool

    def send(self, request: bytes, on_response: Callable[[Response | None], None]) -> None:
        """Send; `on_response` gets head and body, or None if the connection ends before."""

    def close(self) -> None:
        """Close; a sender that still waits is told that there is no response."""


Connector = Callable[[], Awaitable[Channel]]


@dataclass(frozen=True)
class LoopLimits:
    """What the client spends at most.

    Attributes:
        connections: a request that finds all of them in use is dropped, which counts as not answered.
        timeout_s: a request without an answer is given up then.
    """

    connections: int = 512
    timeout_s: float = 15.0


@dataclass(frozen=True)
class Clocks:
    """Where time comes from: seconds, and the processor time of this process."""

    seconds: Callable[[], float] = time.monotonic
    cpu_seconds: Callable[[], float] = time.process_time


@dataclass(frozen=True)
class Trial:
    """What was measured at one rate. Latency is in milliseconds, from the intended time of sending.

    Attributes:
        offered_per_s: the requests that were due, a second.
        offered: how many there were, not counting the warm-up.
        answered: how many of them were answered with 200.
        within: how many of these within the objective.
        failures: how often each other status came; 0 stands for no response.
        dropped: how many found every connection in use.
        p99_by_window: for each part of the trial.
        late_p99_ms: how much later than intended requests were sent.
        client_cpu: the fraction of a core that the client used.
        void: why the figures are those of the client and not of the server; empty if they are not.
    """

    offered_per_s: float
    seconds: float
    offered: int
    answered: int
    within: int
    failures: dict[int, int]
    dropped: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    p99_by_window: tuple[float, ...]
    late_p99_ms: float
    client_cpu: float
    void: str = ""

    @property
    def answered_ratio(self) -> float:
        """The fraction of the offered requests that was answered."""
        return self.answered / self.offered if self.offered else 0.0

    @property
    def goodput_per_s(self) -> float:
        """Answers within the objective, a second."""
        return self.within / self.seconds


def poisson_arrivals(per_second: float, seconds: float, rng: random.Random) -> Iterator[float]:
    """Yield the times of a Poisson process: independent users, of whom each asks rarely."""
    at_s = rng.expovariate(per_second)
    while at_s < seconds:
        yield at_s
        at_s += rng.expovariate(per_second)


def _histogram() -> Any:
    return HdrHistogram(1, _MAX_US, _DIGITS)


@dataclass
class _Counts:
    offered: int = 0
    answered: int = 0
    within: int = 0
    dropped: int = 0
    failures: dict[int, int] = field(default_factory=dict)
    latency: list[Any] = field(default_factory=lambda: [_histogram() for _ in range(WINDOWS)])
    late: Any = field(default_factory=_histogram)


class OpenLoop:
    """Sends requests on at most `limits.connections` connections, which it keeps from trial to trial."""

    def __init__(self, connect: Connector, limits: LoopLimits | None = None, clocks: Clocks | None = None) -> None:
        self._connect, self._limits, self._clocks = connect, limits or LoopLimits(), clocks or Clocks()
        self._free: list[tuple[Channel, float]] = []
        self._opened = 0
        self._waiting = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()

    async def trial(
        self,
        requests: Iterable[bytes],
        *,
        per_second: float,
        seconds: float,
        objective_ms: float,
        rng: random.Random,
        warm_up_s: float = 1.0,
    ) -> Trial:
        """Offer requests at this rate for this long, after a warm-up that is not counted; wait for all answers."""
        counts, source = _Counts(), iter(requests)
        cpu, started_at = self._clocks.cpu_seconds(), self._clocks.seconds()
        for at_s in poisson_arrivals(per_second, warm_up_s + seconds, rng):
            # With nothing to wait for it still yields, so that answers are read by a client that is late.
            await asyncio.sleep(max(0.0, started_at + at_s - self._clocks.seconds()))
            window = int((at_s - warm_up_s) / seconds * WINDOWS) if at_s >= warm_up_s else None
            self._issue(next(source), started_at + at_s, window, counts, objective_ms)
        await asyncio.sleep(max(0.0, started_at + warm_up_s + seconds - self._clocks.seconds()))
        took_s = self._clocks.seconds() - started_at
        cpu_used = self._clocks.cpu_seconds() - cpu
        await self._until_idle()
        return _trial(counts, seconds, objective_ms, cpu_used / took_s)

    def _issue(self, request: bytes, due: float, window: int | None, counts: _Counts, objective_ms: float) -> None:
        """Send on a free connection or a new one; drop the request if there are too many."""
        if window is not None:
            counts.offered += 1
            counts.late.record_value(_microseconds(self._clocks.seconds() - due))

        def on_answer(status: int) -> None:
            if window is None:
                return
            seconds = self._clocks.seconds() - due
            if status == 200:
                counts.answered += 1
                counts.within += seconds * 1000 <= objective_ms
                counts.latency[window].record_value(_microseconds(seconds))
            else:
                counts.failures[status] = counts.failures.get(status, 0) + 1

        while self._free:
            channel, since = self._free.pop()
            if channel.is_open and self._clocks.seconds() - since <= MAX_IDLE_S:
                self._send(channel, request, on_answer)
                return
            channel.close()
            self._opened -= 1
        if self._opened >= self._limits.connections:
            counts.dropped += window is not None
            return
        self._opened += 1
        self._waiting += 1
        task = asyncio.get_running_loop().create_task(self._connect_and_send(request, on_answer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect_and_send(self, request: bytes, on_answer: Callable[[int], None]) -> None:
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                channel = await self._connect()
        except (OSError, TimeoutError):
            self._opened -= 1
            on_answer(NO_RESPONSE)
        else:
            self._send(channel, request, on_answer)
        finally:
            self._done()

    def _send(self, channel: Channel, request: bytes, on_answer: Callable[[int], None]) -> None:
        timer = asyncio.get_running_loop().call_later(self._limits.timeout_s, channel.close)
        self._waiting += 1

        def on_response(response: Response | None) -> None:
            timer.cancel()
            if response is None:
                self._opened -= 1
                on_answer(NO_RESPONSE)
            else:
                on_answer(int(response[0][9:12]))
                if b"connection: close" in response[0].lower():
                    self._opened -= 1
                    channel.close()
                else:
                    self._free.append((channel, self._clocks.seconds()))
            self._done()

        channel.send(request, on_response)

    def _done(self) -> None:
        self._waiting -= 1
        if self._waiting == 0:
            self._idle.set()

    async def _until_idle(self) -> None:
        """Wait for the requests under way; each has a timeout."""
        while self._waiting:
            self._idle.clear()
            await self._idle.wait()

    def close(self) -> None:
        """Close the idle connections."""
        for channel, _ in self._free:
            channel.close()
        self._opened -= len(self._free)
        self._free.clear()


def _microseconds(seconds: float) -> int:
    return min(_MAX_US, max(1, round(seconds * 1e6)))


def _trial(counts: _Counts, seconds: float, objective_ms: float, client_cpu: float) -> Trial:
    total = _histogram()
    for part in counts.latency:
        total.add(part)

    def ms(histogram: Any, percentile: float) -> float:
        return float(histogram.get_value_at_percentile(percentile)) / 1000 if histogram.total_count else 0.0

    late_ms = ms(counts.late, 99)
    return Trial(
        counts.offered / seconds,
        seconds,
        counts.offered,
        counts.answered,
        counts.within,
        counts.failures,
        counts.dropped,
        ms(total, 50),
        ms(total, 90),
        ms(total, 99),
        ms(total, 100),
        tuple(ms(part, 99) for part in counts.latency),
        late_ms,
        client_cpu,
        _client_problem(late_ms, client_cpu, objective_ms),
    )


def _client_problem(late_ms: float, client_cpu: float, objective_ms: float) -> str:
    if client_cpu > _MAX_CLIENT_CPU:
        return f"the client used {client_cpu:.0%} of a core, more than {_MAX_CLIENT_CPU:.0%}"
    if late_ms > _MAX_LATENESS * objective_ms:
        return f"the client sent 1 % of the requests more than {late_ms:.0f} ms late"
    return ""
