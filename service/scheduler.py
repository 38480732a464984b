"""What a device does next: of all that waits for it, of all models, what is due first.

Sources (a model's batcher, a line of single steps) hold what waits; a scheduler asks them what they have, and starts as
much as the device is given at a time. One for each device, and one for the threads that decode and finish.

Knows nothing of tasks, of HTTP and of devices. There is no task or thread of its own that could die: everything happens
when work comes, when a job ends, or when a timer fires. What should never happen is told to `on_fault`.
"""

import asyncio
import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from threading import Lock
from typing import Any, Generic, Literal, Protocol, TypeVar

Priority = Literal["high", "normal", "low"]
URGENCY: dict[Priority, float] = {"high": 8.0, "normal": 1.0, "low": 1 / 8}
"""What the time that a request has is divided by: everything is due some day, so nothing waits for ever."""


class NoRoom(Exception):
    """What is due would not fit into memory beside what runs; it will, when that has ended."""


class Hung(RuntimeError):
    """A run has not come back in the time that was thought to be enough for any."""


class TooLate(RuntimeError):
    """The time in which an answer was wanted cannot be kept any more; nothing was run."""


@dataclass(frozen=True, slots=True)
class Terms:
    """When a request's work is due, which orders it, and when it is too late, which ends it: the event loop's time."""

    due: float = 0.0
    until: float = math.inf


@dataclass(frozen=True, slots=True)
class Offer:
    """What a source would have run next: from when on it may be, and when it is due."""

    ready: float
    due: float


@dataclass(frozen=True, slots=True)
class Room:
    """What there is beside the jobs that run: bytes of memory, and whether any job does."""

    free_bytes: float = math.inf
    idle: bool = True


@dataclass(eq=False)
class Job:
    """A run. `run` ends when the device is free again, raises nothing, and is not cancelled."""

    run: Callable[[], Coroutine[Any, Any, None]]
    seconds: float = 0.0
    memory_bytes: int = 0
    on_hung: Callable[[], None] = lambda: None
    ends: float = field(default=0.0, init=False)
    hung: bool = field(default=False, init=False)
    watch: asyncio.TimerHandle | None = field(default=None, init=False)


class Source(Protocol):
    """What has work for a device."""

    def offer(self) -> Offer | None:
        """What it would have run next; None where nothing waits."""
        ...

    def take(self, now: float, room: Room) -> Job | None:
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
        at_once: how many jobs the device is given at a time; 2 hide the hand-over between them, and fill the gaps in
            which one cannot use all of the device.
        hang_s: a job that runs longer is given up, though its place is taken until it ends; 0: never.
    """

    def __init__(
        self,
        at_once: int = 1,
        *,
        hang_s: float = 0.0,
        on_hung: Callable[[int], None] = lambda count: None,
        on_fault: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self.at_once = at_once
        self.hang_s = hang_s
        self.memory_bytes = math.inf
        """What all jobs together may take."""
        self._on_hung = on_hung
        self._on_fault = on_fault
        self._sources: list[Source] = []
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
        return len(self._running) < self.at_once and all(source.offer() is None for source in self._sources)

    def attach(self, source: Source) -> None:
        """From now on asks this source, too."""
        with self._attaching:  # Models are loaded in threads of their own, several at a time.
            self._sources = [*self._sources, source]

    def detach(self, source: Source) -> None:
        """Asks it no more; nothing may wait in it."""
        with self._attaching:
            self._sources = [other for other in self._sources if other is not source]

    def wait_s(self, due: float) -> float:
        """How long work that is due then would wait for its turn, by what is known of what comes before it.

        Infinite where no job comes back.
        """
        if not self._running:
            return 0.0
        hung = self.hung
        if hung >= self.at_once:
            return math.inf
        ahead = sum(source.seconds_ahead(due) for source in self._sources)
        if not ahead and len(self._running) < self.at_once:
            return 0.0
        now = asyncio.get_running_loop().time()
        return (ahead + sum(max(0.0, job.ends - now) for job in self._running)) / (self.at_once - hung)

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
        try:
            while len(self._running) < self.at_once and self._start_next():
                pass
        except Exception as error:  # A fault of this program: whoever watches it has to know.
            self._on_fault(error)

    def _start_next(self) -> bool:
        """Starts what is due first; False where nothing is to be started now."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        offers = [(offer, source) for source in self._sources if (offer := source.offer()) is not None]
        ready = [(offer.due, i) for i, (offer, _) in enumerate(offers) if offer.ready <= now]
        if not ready:
            if offers:
                self._timer = loop.call_at(min(offer.ready for offer, _ in offers), self._pump)
            return False
        try:
            job = offers[min(ready)[1]][1].take(now, self._room())
        except NoRoom:
            return False  # It is the next as soon as it fits, and nobody overtakes it.
        if job is not None:
            self._start(job, now)
        return True

    def _start(self, job: Job, now: float) -> None:
        loop = asyncio.get_running_loop()
        job.ends = now + job.seconds
        if self.hang_s:
            job.watch = loop.call_later(self.hang_s, self._give_up, job)
        task = self._running[job] = loop.create_task(job.run())
        task.add_done_callback(partial(self._ended, job))

    def _room(self) -> Room:
        taken = sum(job.memory_bytes for job in self._running)
        return Room(self.memory_bytes - taken, idle=not self._running)

    def _give_up(self, job: Job) -> None:
        job.hung = True
        self._on_hung(self.hung)
        job.on_hung()
        if self.hung >= self.at_once:
            for source in self._sources:
                source.refuse(Hung("The device does not come back from what it was given."))

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


@dataclass(eq=False)
class Ticket:
    """Work of one request that waits: `size` samples, since when, on what terms, and who waits for it."""

    work: Any
    size: int
    since: float
    terms: Terms
    future: asyncio.Future[Any] = field(repr=False)
    on_start: Callable[[], None] = lambda: None
    number: int = 0

    @property
    def order(self) -> tuple[float, int]:
        """What is due first comes first, and of two the one that came first."""
        return self.terms.due, self.number


T = TypeVar("T", bound=Ticket)
_order = attrgetter("order")


class DueQueue(Generic[T]):
    """Tickets by when they are due."""

    def __init__(self) -> None:
        self._tickets: list[T] = []
        self._came = 0
        self.size = 0

    def __len__(self) -> int:
        return len(self._tickets)

    @property
    def first(self) -> T:
        """The one that is due first."""
        return self._tickets[0]

    @property
    def oldest(self) -> float:
        """Since when the one that has waited longest does."""
        return min(ticket.since for ticket in self._tickets)

    def add(self, ticket: T) -> None:
        """Puts it in its place."""
        self._came += 1
        ticket.number = self._came
        insort(self._tickets, ticket, key=_order)
        self.size += ticket.size

    def discard(self, ticket: T) -> bool:
        """Takes it out; whether it was there."""
        at = bisect_left(self._tickets, ticket.order, key=_order)
        if at == len(self._tickets) or self._tickets[at] is not ticket:
            return False
        del self._tickets[at]
        self.size -= ticket.size
        return True

    def before(self, due: float) -> float:
        """About how many samples are due by then."""
        if not self._tickets:
            return 0.0
        return bisect_right(self._tickets, (due, math.inf), key=_order) * self.size / len(self._tickets)

    def pop_all(self) -> list[T]:
        """All of them, first things first; none is left."""
        tickets, self._tickets, self.size = self._tickets, [], 0
        return tickets


class Line:
    """A source of steps that go one by one, each in a thread of its own kind: decoding, finishing, a whole request."""

    def __init__(self, scheduler: Scheduler, *, on_dropped: Callable[[int], None] = lambda size: None) -> None:
        self._scheduler = scheduler
        self._on_dropped = on_dropped
        self._waiting: DueQueue[Ticket] = DueQueue()
        self._seconds = 0.0
        """Of all that wait, by what each was thought to take."""
        scheduler.attach(self)

    def __len__(self) -> int:
        return len(self._waiting)

    async def run(
        self,
        start: Callable[[], Awaitable[Any]],
        terms: Terms,
        *,
        seconds: float = 0.0,
        memory_bytes: int = 0,
        on_start: Callable[[], None] = lambda: None,
    ) -> Any:
        """The result of what `start` starts, which it does when it is its turn.

        Cancelling the call gives up what has not begun, and leaves alone what has: its place is taken until it ends.
        Raises what `start` raised, TooLate and Hung.
        """
        loop = asyncio.get_running_loop()
        work = (start, seconds, memory_bytes)
        ticket = Ticket(work, 1, loop.time(), terms, loop.create_future(), on_start)
        self._waiting.add(ticket)
        self._seconds += seconds
        ticket.future.add_done_callback(lambda _: self._given_up(ticket))
        self._scheduler.plan()
        return await ticket.future

    def close(self) -> None:
        """Ends the line; nothing may wait in it."""
        self._scheduler.detach(self)

    def _given_up(self, ticket: Ticket) -> None:
        if self._waiting.discard(ticket):
            self._seconds -= ticket.work[1]
            self._on_dropped(1)

    def offer(self) -> Offer | None:
        """What is due first."""
        return Offer(-math.inf, self._waiting.first.terms.due) if self._waiting else None

    def take(self, now: float, room: Room) -> Job | None:
        """The first, unless it is too late for it. Raises NoRoom."""
        ticket = self._waiting.first
        start, seconds, memory_bytes = ticket.work
        if memory_bytes > room.free_bytes and not room.idle:
            raise NoRoom
        self._waiting.discard(ticket)
        self._seconds -= seconds
        if ticket.terms.until <= now + (seconds if self._waiting else 0.0):
            answer(ticket, TooLate("There was no time left to begin."))
            self._on_dropped(1)
            return None
        return Job(
            lambda: _carry_out(ticket, start),
            seconds,
            memory_bytes,
            on_hung=lambda: answer(ticket, Hung("It was not done in time.")),
        )

    def seconds_ahead(self, due: float) -> float:
        """What those take that come before."""
        if not self._waiting:
            return 0.0
        return self._seconds * self._waiting.before(due) / len(self._waiting)

    def refuse(self, error: Exception) -> None:
        """Answers all with this error."""
        self._seconds = 0.0
        for ticket in self._waiting.pop_all():
            answer(ticket, error)


async def _carry_out(ticket: Ticket, start: Callable[[], Awaitable[Any]]) -> None:
    try:
        ticket.on_start()
        result = await start()
    except asyncio.CancelledError as error:  # The threads are being stopped.
        answer(ticket, error)
        raise
    except Exception as error:  # Whatever it is belongs to who asked for it.
        answer(ticket, error)
    else:
        if not ticket.future.done():
            ticket.future.set_result(result)


def answer(ticket: Ticket, error: BaseException) -> None:
    """Tells who waits of an error, where anybody still does."""
    if not ticket.future.done():
        if isinstance(error, asyncio.CancelledError):
            ticket.future.cancel()
        else:
            ticket.future.set_exception(error)
