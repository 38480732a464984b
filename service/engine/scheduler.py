"""What a device does next: of all that waits for it, of all models, what is due first.

Sources (a model's batcher, a line of single steps) hold what waits; a scheduler asks them what they have, and starts as
much as the device is given at a time. One for each device, and one for the threads that decode and finish.

Knows nothing of tasks, of HTTP and of devices. There is no task or thread of its own that could die: everything happens
when work comes, when a job ends, or when a timer fires. What should never happen is told to `on_fault`.
"""

import asyncio
import math
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Any, Literal, Protocol

FAIRNESS_FACTOR = 2
"""A source that was given a job is not due again before so many times what that takes. Work that is overdue, as all of
a long burst is in the end, would else keep everybody waiting until the last of it is done."""
Priority = Literal["high", "normal", "low"]
URGENCY: dict[Priority, float] = {"high": 8.0, "normal": 1.0, "low": 1 / 8}
"""What the time that a request has is divided by: everything is due some day, so nothing waits for ever."""


class InsufficientMemory(Exception):
    """What is due would not fit into memory beside what runs; it will, when that has ended."""


class Hung(RuntimeError):
    """A run has not come back in the time that was thought to be enough for any."""


class TooLate(RuntimeError):
    """The time in which an answer was wanted cannot be kept any more; nothing was run."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a request's work is due, which orders it, and when it is too late, which ends it: the event loop's time."""

    due: float = 0.0
    until: float = math.inf


@dataclass(frozen=True, slots=True)
class NextWork:
    """What a source would have run next: from when on it may be, and when it is due."""

    ready: float
    due: float


@dataclass(frozen=True, slots=True)
class Capacity:
    """What there is beside the jobs that run: bytes of memory, and whether any job runs that may still come back."""

    free_bytes: float = math.inf
    idle: bool = True


@dataclass(eq=False)
class Job:
    """A run. `run` ends when the device is free again, raises nothing, and is not cancelled."""

    run: Callable[[], Coroutine[Any, Any, None]]
    seconds: float = 0.0
    memory_bytes: int = 0
    exclusive: bool = False
    """Nothing else is begun while it runs."""
    on_hung: Callable[[], None] = lambda: None
    ends: float = field(default=0.0, init=False)
    hung: bool = field(default=False, init=False)
    watch: asyncio.TimerHandle | None = field(default=None, init=False)


class Source(Protocol):
    """What has work for a device."""

    def offer(self) -> NextWork | None:
        """What it would have run next; None where nothing waits."""
        ...

    def take(self, now: float, room: Capacity) -> Job | None:
        """Gives out what it offered; None where that has gone meanwhile. Raises NoRoom."""
        ...

    def seconds_ahead(self, due: float) -> float:
        """What the work that waits and comes before `due` will take, one job after the other."""
        ...

    def refuse(self, error: Exception) -> None:
        """Gives all that waits this answer."""
        ...


class Scheduler:
    """The order of work on one device. All methods belong to one event loop.

    Attributes:
        concurrency: how many jobs the device is given at a time; 2 hide the hand-over between them and fill gaps in
            which one cannot use all of the device.
        parallelism: how many of them get on at the same time; the others only wait there; 0: all.
        hang_s: a job that runs longer is given up, though its place is taken until it ends; 0: never.
    """

    def __init__(
        self,
        concurrency: int = 1,
        parallelism: int = 0,
        *,
        hang_s: float = 0.0,
        on_hung: Callable[[int], None] = lambda count: None,
        on_fault: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self.concurrency = concurrency
        self._abreast = parallelism or concurrency
        self.hang_s = hang_s
        self.memory_bytes = math.inf
        """What all jobs together may take."""
        self._on_hung = on_hung
        self._on_fault = on_fault
        self._sources: list[Source] = []
        self._due_again: dict[Source, float] = {}
        self._attaching = Lock()
        self._running: dict[Job, asyncio.Task[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._planned = False

    @property
    def hung(self) -> int:
        """Jobs that have not come back in time."""
        return sum(job.hung for job in self._running)

    @property
    def is_free(self) -> bool:
        """Whether a job that came now would begin at once, with nothing waiting beside it."""
        return self._has_place and all(self._offer_of(source) is None for source in self._sources)

    @property
    def _has_place(self) -> bool:
        return len(self._running) < self.concurrency and not any(
            job.exclusive and not job.hung for job in self._running
        )

    def attach(self, source: Source) -> None:
        """From now on asks this source, too."""
        with self._attaching:  # Models are loaded in threads of their own, several at a time.
            self._sources = [*self._sources, source]

    def detach(self, source: Source) -> None:
        """Asks it no more; nothing may wait in it."""
        with self._attaching:
            self._sources = [other for other in self._sources if other is not source]
            self._due_again.pop(source, None)

    def wait_s(self, due: float, own: Collection[Source] = ()) -> float:
        """How long work that is due then would wait for its turn, by what is known of what comes before it.

        `own` are the sources it may be in: until it is due, others than those may go before it, and no longer. Infinite
        where no job comes back.
        """
        if not self._running and not self._planned:
            return 0.0
        hung = self.hung
        if hung >= self.concurrency:
            return math.inf
        now = asyncio.get_running_loop().time()
        longest = self._abreast * max(0.0, due - now) if own else math.inf
        ahead = sum(
            source.seconds_ahead(due) if source in own else min(source.seconds_ahead(due), longest)
            for source in self._sources
        )
        if not ahead and self._has_place:
            return 0.0
        return (ahead + sum(max(0.0, job.ends - now) for job in self._running)) / min(
            self._abreast, self.concurrency - hung
        )

    def plan(self) -> None:
        """Looks for work once all that is ready in this turn of the loop has come, so that a burst shares a batch."""
        if not self._planned:
            self._planned = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._planned = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.hung >= self.concurrency:
            self._refuse_all()
        broken: set[Source] = set()
        while self._has_place and self._start_next(broken):
            pass

    def _refuse_all(self) -> None:
        for source in self._sources:
            source.refuse(Hung("The device does not come back from what it was given."))

    def _offer_of(self, source: Source) -> NextWork | None:
        try:
            return source.offer()
        except Exception as error:  # A fault of this program: whoever watches it has to know, and others go on.
            self._on_fault(error)
            return None

    def _start_next(self, broken: set[Source]) -> bool:
        """Starts what is due first; False where nothing is to be started now. Asks none of the broken sources."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        asked = [source for source in self._sources if source not in broken]
        offers = [(offer, source) for source in asked if (offer := self._offer_of(source)) is not None]
        ready = [
            (offer.due if offer.due > now else max(offer.due, self._due_again.get(source, -math.inf)), i)
            for i, (offer, source) in enumerate(offers)
            if offer.ready <= now
        ]
        if not ready:
            if offers:
                self._timer = loop.call_at(min(offer.ready for offer, _ in offers), self._pump)
            return False
        source = offers[min(ready)[1]][1]
        try:
            job = source.take(now, self._room())
        except InsufficientMemory:
            return False  # It is the next as soon as it fits, and nobody overtakes it.
        except Exception as error:
            broken.add(source)
            self._on_fault(error)
            return True
        if job is not None:
            self._due_again[source] = now + FAIRNESS_FACTOR * job.seconds
            self._start(job, now)
        return True

    def _start(self, job: Job, now: float) -> None:
        loop = asyncio.get_running_loop()
        job.ends = now + job.seconds
        if self.hang_s:
            job.watch = loop.call_later(self.hang_s, self._give_up, job)
        task = self._running[job] = loop.create_task(job.run())
        task.add_done_callback(partial(self._ended, job))

    def _room(self) -> Capacity:
        taken = sum(job.memory_bytes for job in self._running)
        return Capacity(self.memory_bytes - taken, idle=all(job.hung for job in self._running))

    def _give_up(self, job: Job) -> None:
        job.hung = True
        self._on_hung(self.hung)
        job.on_hung()
        self._pump()  # Nobody waits for it any more, also where others do not fit beside it.

    def _ended(self, job: Job, task: asyncio.Task[None]) -> None:
        del self._running[job]
        if job.watch is not None:
            job.watch.cancel()
        if job.hung:
            self._on_hung(self.hung)
        if not task.cancelled() and (error := task.exception()) is not None:
            job.on_hung()
            self._on_fault(error)
        self._pump()
