"""Work that waits for a device or a thread: tickets by when they are due, and a line of single steps.

Knows a scheduler, and nothing of tasks, of HTTP and of devices.
"""

import asyncio
import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Generic, TypeVar

from service.engine.scheduler import Capacity, Deadline, Hung, InsufficientMemory, Job, NextWork, Scheduler, TooLate


@dataclass(eq=False)
class QueueEntry:
    """Work of one request that waits: `size` samples, since when, on what terms, and who waits for it."""

    work: Any
    size: int
    since: float
    deadline: Deadline
    future: asyncio.Future[Any] = field(repr=False)
    on_start: Callable[[], None] = lambda: None
    number: int = 0

    @property
    def order(self) -> tuple[float, int]:
        """What is due first comes first, and of two the one that came first."""
        return self.deadline.due, self.number


T = TypeVar("T", bound=QueueEntry)
_order = attrgetter("order")


class DeadlineQueue(Generic[T]):
    """Tickets by when they are due."""

    def __init__(self) -> None:
        self._entries: list[T] = []
        self._came = 0
        self.size = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def first(self) -> T:
        """The one that is due first."""
        return self._entries[0]

    @property
    def oldest(self) -> float:
        """Since when the one that has waited longest does."""
        return min(entry.since for entry in self._entries)

    def add(self, entry: T) -> None:
        """Puts it in its place."""
        self._came += 1
        entry.number = self._came
        insort(self._entries, entry, key=_order)
        self.size += entry.size

    def discard(self, entry: T) -> bool:
        """Takes it out; whether it was there."""
        at = bisect_left(self._entries, entry.order, key=_order)
        if at == len(self._entries) or self._entries[at] is not entry:
            return False
        del self._entries[at]
        self.size -= entry.size
        return True

    def before(self, due: float) -> float:
        """About how many samples are due by then."""
        if not self._entries:
            return 0.0
        return bisect_right(self._entries, (due, math.inf), key=_order) * self.size / len(self._entries)

    def pop_all(self) -> list[T]:
        """All of them, first things first; none is left."""
        entries, self._entries, self.size = self._entries, [], 0
        return entries


class StepQueue:
    """A source of steps that go one by one, each in a thread of its own kind: decoding, finishing, a whole request."""

    def __init__(self, scheduler: Scheduler, *, on_dropped: Callable[[int], None] = lambda size: None) -> None:
        self._scheduler = scheduler
        self._on_dropped = on_dropped
        self._waiting: DeadlineQueue[QueueEntry] = DeadlineQueue()
        self._seconds = 0.0
        """Of all that wait, by what each was thought to take."""
        scheduler.attach(self)

    def __len__(self) -> int:
        return len(self._waiting)

    async def run(
        self,
        start: Callable[[], Awaitable[Any]],
        deadline: Deadline,
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
        entry = QueueEntry(work, 1, loop.time(), deadline, loop.create_future(), on_start)
        self._waiting.add(entry)
        self._seconds += seconds
        entry.future.add_done_callback(lambda _: self._given_up(entry))
        self._scheduler.plan()
        return await entry.future

    def close(self) -> None:
        """Ends the line; nothing may wait in it."""
        self._scheduler.detach(self)

    def _given_up(self, entry: QueueEntry) -> None:
        if self._waiting.discard(entry):
            self._seconds -= entry.work[1]
            self._on_dropped(1)

    def offer(self) -> NextWork | None:
        """What is due first."""
        return NextWork(-math.inf, self._waiting.first.deadline.due) if self._waiting else None

    def take(self, now: float, room: Capacity) -> Job | None:
        """The first, unless it is too late for it. Raises NoRoom."""
        entry = self._waiting.first
        start, seconds, memory_bytes = entry.work
        if memory_bytes > room.free_bytes and not room.idle:
            raise InsufficientMemory
        self._waiting.discard(entry)
        self._seconds -= seconds
        if entry.deadline.until <= now + (seconds if self._waiting else 0.0):
            answer(entry, TooLate("There was no time left to begin."))
            self._on_dropped(1)
            return None
        return Job(
            lambda: _carry_out(entry, start),
            seconds,
            memory_bytes,
            on_hung=lambda: answer(entry, Hung("It was not done in time.")),
        )

    def seconds_ahead(self, due: float) -> float:
        """What those take that come before."""
        if not self._waiting:
            return 0.0
        return self._seconds * self._waiting.before(due) / len(self._waiting)

    def refuse(self, error: Exception) -> None:
        """Answers all with this error."""
        self._seconds = 0.0
        for entry in self._waiting.pop_all():
            answer(entry, error)


async def _carry_out(entry: QueueEntry, start: Callable[[], Awaitable[Any]]) -> None:
    if entry.future.done():
        return  # Its client went between its turn and now.
    try:
        entry.on_start()
        result = await start()
    except asyncio.CancelledError as error:  # The threads are being stopped.
        answer(entry, error)
        raise
    except Exception as error:  # Whatever it is belongs to who asked for it.
        answer(entry, error)
    else:
        if not entry.future.done():
            entry.future.set_result(result)


def answer(entry: QueueEntry, error: BaseException) -> None:
    """Tells who waits of an error, where anybody still does."""
    if not entry.future.done():
        if isinstance(error, asyncio.CancelledError):
            entry.future.cancel()
        else:
            entry.future.set_exception(error)
