"""Queues of waiting work: entries ordered by deadline, and a scheduler source for single steps.

`DeadlineQueue` orders entries; the batcher keeps one per sample shape. `StepQueue` is a source for a `Scheduler` whose
entries run one by one, each in a thread: decoding, post-processing, or a whole request.

Knows the scheduler, and nothing about tasks, HTTP or devices.
"""

import asyncio
import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import Any, Generic, TypeVar

from service.engine.scheduler import (
    Capacity,
    Deadline,
    HungRun,
    InsufficientMemory,
    Job,
    MissedDeadline,
    NextWork,
    Scheduler,
)
from service.tracing.spans import RequestSpan


@dataclass(eq=False)
class QueueEntry:
    """Waiting work of one request.

    Attributes:
        work: whatever the owner of the queue needs to run it.
        size: number of samples.
        queued_at: the event loop's time.
        future: receives the result.
        on_start: called when the work starts.
        span: of the request, if it is recorded.
        number: position in the order of arrival, set by the queue.
    """

    work: Any
    size: int
    queued_at: float
    deadline: Deadline
    future: asyncio.Future[Any] = field(repr=False)
    on_start: Callable[[], None] = lambda: None
    span: RequestSpan | None = None
    number: int = 0

    @property
    def sort_key(self) -> tuple[float, int]:
        """Earliest target first; equal targets in order of arrival."""
        return self.deadline.target, self.number


T = TypeVar("T", bound=QueueEntry)
_sort_key = attrgetter("sort_key")


class DeadlineQueue(Generic[T]):
    """Entries ordered by their target time."""

    def __init__(self) -> None:
        self._entries: list[T] = []
        self._added = 0
        self.size = 0
        """Samples of all entries."""

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def first(self) -> T:
        """The entry with the earliest target."""
        return self._entries[0]

    @property
    def oldest_queued_at(self) -> float:
        """When the entry that has waited longest was queued."""
        return min(entry.queued_at for entry in self._entries)

    def add(self, entry: T) -> None:
        """Insert an entry at its place in the order."""
        self._added += 1
        entry.number = self._added
        insort(self._entries, entry, key=_sort_key)
        self.size += entry.size

    def discard(self, entry: T) -> bool:
        """Remove an entry; return whether it was in the queue."""
        index = bisect_left(self._entries, entry.sort_key, key=_sort_key)
        if index == len(self._entries) or self._entries[index] is not entry:
            return False
        del self._entries[index]
        self.size -= entry.size
        return True

    def estimate_size_before(self, target: float) -> float:
        """Estimate the number of samples with a target up to this one: the count of entries × their mean size."""
        if not self._entries:
            return 0.0
        return bisect_right(self._entries, (target, math.inf), key=_sort_key) * self.size / len(self._entries)

    def pop_all(self) -> list[T]:
        """Remove and return all entries, in order."""
        entries, self._entries, self.size = self._entries, [], 0
        return entries


class StepQueue:
    """A scheduler source for steps that run one by one, each in a thread: decoding, post-processing, whole requests."""

    def __init__(self, scheduler: Scheduler, *, on_dropped: Callable[[int], None] = lambda size: None) -> None:
        self._scheduler = scheduler
        self._on_dropped = on_dropped
        self._waiting: DeadlineQueue[QueueEntry] = DeadlineQueue()
        self._waiting_s = 0.0
        """The sum of the predicted durations of all waiting steps."""
        scheduler.attach(self)

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def oldest_queued_at(self) -> float:
        """The event loop's time at which the step that has waited longest was queued; infinity if none waits."""
        return self._waiting.oldest_queued_at if self._waiting else math.inf

    async def run(
        self,
        start: Callable[[], Awaitable[Any]],
        deadline: Deadline,
        *,
        predicted_s: float = 0.0,
        memory_bytes: int = 0,
        on_start: Callable[[], None] = lambda: None,
    ) -> Any:
        """Queue a step and return the result of the awaitable that `start` returns once the step may run.

        Cancelling the call drops a step that has not started. A started step is not interrupted and occupies its slot
        until it ends. Raises what the step raised, MissedDeadline and HungRun.
        """
        loop = asyncio.get_running_loop()
        work = (start, predicted_s, memory_bytes)
        entry = QueueEntry(work, 1, loop.time(), deadline, loop.create_future(), on_start)
        self._waiting.add(entry)
        self._waiting_s += predicted_s
        entry.future.add_done_callback(partial(self._drop_if_waiting, entry))
        self._scheduler.schedule_dispatch()
        try:
            return await entry.future
        finally:
            del entry  # An error's traceback holds this frame, and its future the error: a cycle, with the body.

    def close(self) -> None:
        """Leave the scheduler; no step may be waiting."""
        self._scheduler.detach(self)

    def _drop_if_waiting(self, entry: QueueEntry, _: Any) -> None:
        if self._waiting.discard(entry):
            self._waiting_s -= entry.work[1]
            self._on_dropped(1)

    def next_work(self) -> NextWork | None:
        """Describe the step with the earliest target; None if nothing waits."""
        return NextWork(-math.inf, self._waiting.first.deadline.target) if self._waiting else None

    def take(self, now: float, capacity: Capacity) -> Job | None:
        """Return the first step as a job; None if it would miss its deadline. Raises InsufficientMemory."""
        entry = self._waiting.first
        start, predicted_s, memory_bytes = entry.work
        if memory_bytes > capacity.free_bytes and not capacity.idle:
            raise InsufficientMemory
        self._waiting.discard(entry)
        self._waiting_s -= predicted_s
        if entry.deadline.limit <= now + (predicted_s if self._waiting else 0.0):
            fail_entry(entry, MissedDeadline("The step could not have been finished before its deadline."))
            self._on_dropped(1)
            return None
        return Job(
            lambda: _run_step(entry, start),
            predicted_s,
            memory_bytes,
            abandon=lambda: fail_entry(entry, HungRun("The step did not end within the hang timeout.")),
        )

    def queued_seconds(self, target: float) -> float:
        """Predict how long the steps with an earlier target take: their number × the mean duration."""
        if not self._waiting:
            return 0.0
        return self._waiting_s * self._waiting.estimate_size_before(target) / len(self._waiting)

    def reject_all(self, error: Exception) -> None:
        """Fail all waiting steps with this error."""
        self._waiting_s = 0.0
        for entry in self._waiting.pop_all():
            fail_entry(entry, error)


async def _run_step(entry: QueueEntry, start: Callable[[], Awaitable[Any]]) -> None:
    if entry.future.done():
        return  # The client disconnected after the step was taken from the queue.
    try:
        entry.on_start()
        result = await start()
    except asyncio.CancelledError as error:  # The threads are being stopped.
        fail_entry(entry, error)
        raise
    except Exception as error:  # Any error of the step belongs to its caller.
        fail_entry(entry, error)
    else:
        if not entry.future.done():
            entry.future.set_result(result)
    finally:
        del entry, start  # As in `StepQueue.run`.


def fail_entry(entry: QueueEntry, error: BaseException) -> None:
    """Raise this error in the caller that waits for the entry, if it still waits."""
    if not entry.future.done():
        if isinstance(error, asyncio.CancelledError):
            entry.future.cancel()
        else:
            entry.future.set_exception(error)
