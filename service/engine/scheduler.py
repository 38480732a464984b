"""The order of work on one device: the waiting job with the earliest target time, of all models, runs next.

Sources (a model's batcher, a queue of single steps) hold the waiting work. The scheduler asks them for their next work
and starts up to `concurrency` jobs at a time. The service has one scheduler per device and one per pool of worker
threads.

It knows nothing about tasks, HTTP or devices. It has no task or thread of its own that could die: it acts when work
arrives, when a job ends, or when a timer fires. Errors that only a bug can cause are reported to `on_fault`.
"""

import asyncio
import math
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Any, Literal, Protocol

FAIRNESS_FACTOR = 2
"""After a source runs a job, its next job is due no earlier than FAIRNESS_FACTOR × that job's duration. Otherwise a
long burst, whose jobs all become overdue, would block every other model until the last one is done."""
Priority = Literal["high", "normal", "low"]
URGENCY: dict[Priority, float] = {"high": 8.0, "normal": 1.0, "low": 1 / 8}
"""The time until a request's target is divided by this. Every request has a target time, so none starves."""


class InsufficientMemory(Exception):
    """The next job does not fit into memory beside the running ones; it will when they have ended."""


class HungRun(RuntimeError):
    """A run did not end within the hang timeout."""


class MissedDeadline(RuntimeError):
    """The work could not have been finished before its deadline, so it was not run."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a request's work should be done, and when it is too late; both in the event loop's time.

    Attributes:
        target: orders the work: the earliest target runs first.
        limit: after this time the answer is of no use, and the work is dropped.
    """

    target: float = 0.0
    limit: float = math.inf


@dataclass(frozen=True, slots=True)
class NextWork:
    """What a source would run next: when it may start, and its target time."""

    ready_at: float
    target: float


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the running jobs leave for another one.

    Attributes:
        free_bytes: memory that no running job has reserved.
        idle: whether nothing runs except hung jobs, so that waiting will free no more memory.
    """

    free_bytes: float = math.inf
    idle: bool = True


@dataclass(eq=False)
class Job:
    """A unit of work for the device.

    Attributes:
        run: does the work; it ends when the device is free again, raises nothing, and is not cancelled.
        predicted_s: how long it is expected to take.
        memory_bytes: memory that it reserves.
        exclusive: whether no other job may start while it runs.
        abandon: fails the job's requests; called if the job hangs, or raises after all.
    """

    run: Callable[[], Coroutine[Any, Any, None]]
    predicted_s: float = 0.0
    memory_bytes: int = 0
    exclusive: bool = False
    abandon: Callable[[], None] = lambda: None
    predicted_end: float = field(default=0.0, init=False)
    hung: bool = field(default=False, init=False)
    hang_timer: asyncio.TimerHandle | None = field(default=None, init=False)


class Source(Protocol):
    """Holds work that waits for the device."""

    def next_work(self) -> NextWork | None:
        """Describe the work that would run next; None if nothing waits."""
        ...

    def take(self, now: float, capacity: Capacity) -> Job | None:
        """Return the next job; None if its work has gone in the meantime. Raises InsufficientMemory."""
        ...

    def queued_seconds(self, target: float) -> float:
        """Predict how long the waiting work with an earlier target takes, one job after the other."""
        ...

    def reject_all(self, error: Exception) -> None:
        """Fail all waiting work with this error."""
        ...


class MemoryWaiter(Protocol):
    """Whoever waits for memory that others use."""

    def schedule_dispatch(self) -> None:
        """Look again, soon, whether there is enough."""
        ...


class SharedMemory(Protocol):
    """Memory that several schedulers share; `service/engine/memory_budget.py` describes the methods."""

    @property
    def is_unlimited(self) -> bool: ...  # noqa: D102 -- see the class
    def is_idle_for(self, waiter: MemoryWaiter, /) -> bool: ...  # noqa: D102
    def free_for(self, waiter: MemoryWaiter, /) -> float: ...  # noqa: D102
    def reserve(self, waiter: MemoryWaiter, size: float, /) -> None: ...  # noqa: D102
    def release(self, waiter: MemoryWaiter, size: float, /, *, hung: bool = False) -> None: ...  # noqa: D102
    def give_up(self, size: float, /) -> None: ...  # noqa: D102
    def wait(self, waiter: MemoryWaiter, /) -> None: ...  # noqa: D102
    def stop_waiting(self, waiter: MemoryWaiter, /) -> None: ...  # noqa: D102


class Scheduler:
    """Orders the work on one device. All methods belong to one event loop, except `attach` and `detach`.

    Attributes:
        concurrency: jobs that the device is given at a time. Two hide the hand-over between jobs and use what a single
            job leaves idle.
        hang_timeout_s: a job that runs longer counts as hung and its requests fail, but it occupies its slot until it
            ends; 0 for never.
        memory_bytes: memory that all running jobs together may reserve.
        shared_memory: what they also need a share of; None if no other scheduler uses the same memory.

    `parallelism` is how many of the running jobs progress at the same time while the others wait on the device; 0 for
    all of them.
    """

    def __init__(
        self,
        concurrency: int = 1,
        parallelism: int = 0,
        *,
        hang_timeout_s: float = 0.0,
        shared_memory: SharedMemory | None = None,
        on_hung: Callable[[int], None] = lambda count: None,
        on_fault: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self.concurrency = concurrency
        self.hang_timeout_s = hang_timeout_s
        self.memory_bytes = math.inf
        self.shared_memory = shared_memory
        self._parallelism = parallelism or concurrency
        self._on_hung = on_hung
        self._on_fault = on_fault
        self._sources: list[Source] = []
        self._sources_lock = Lock()  # Models are loaded in several threads at a time.
        self._next_turn: dict[Source, float] = {}
        """The earliest time at which a source's overdue work counts as due, by FAIRNESS_FACTOR."""
        self._running: dict[Job, asyncio.Task[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._dispatch_scheduled = False
        self._waits_for_memory = False

    @property
    def hung_count(self) -> int:
        """Running jobs that have exceeded the hang timeout."""
        return sum(job.hung for job in self._running)

    @property
    def is_hung(self) -> bool:
        """Whether every slot is held by a hung job."""
        return len(self._running) >= self.concurrency and self.hung_count >= self.concurrency

    @property
    def is_free(self) -> bool:
        """Whether a job would start immediately, with no other work waiting."""
        return self._has_free_slot and all(self._ask_next_work(source) is None for source in self._sources)

    @property
    def _has_free_slot(self) -> bool:
        return len(self._running) < self.concurrency and not any(
            job.exclusive and not job.hung for job in self._running
        )

    def attach(self, source: Source) -> None:
        """Add a source. May be called from any thread."""
        with self._sources_lock:
            self._sources = [*self._sources, source]

    def detach(self, source: Source) -> None:
        """Remove a source, in which no work may be waiting. May be called from any thread."""
        with self._sources_lock:
            self._sources = [attached for attached in self._sources if attached is not source]
            self._next_turn.pop(source, None)

    def predict_wait_s(self, target: float, own_sources: Collection[Source] = ()) -> float:
        """Predict the seconds until work with this target time starts; infinite if every slot holds a hung job.

        `own_sources` are the sources that the work could be queued in. Work of other sources can only go first until
        `target` is reached, so no more of it is counted; without `own_sources` all of it is.
        """
        if not self._running and not self._dispatch_scheduled:
            return 0.0
        hung_count = self.hung_count
        if hung_count >= self.concurrency:
            return math.inf
        now = asyncio.get_running_loop().time()
        max_others_s = self._parallelism * max(0.0, target - now) if own_sources else math.inf
        queued_s = sum(
            source.queued_seconds(target) if source in own_sources else min(source.queued_seconds(target), max_others_s)
            for source in self._sources
        )
        if not queued_s and self._has_free_slot:
            return 0.0
        running_s = sum(max(0.0, job.predicted_end - now) for job in self._running)
        return (queued_s + running_s) / min(self._parallelism, self.concurrency - hung_count)

    def schedule_dispatch(self) -> None:
        """Look for work at the end of this turn of the event loop, so that requests of one burst share a batch."""
        if not self._dispatch_scheduled:
            self._dispatch_scheduled = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._dispatch_scheduled = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.hung_count >= self.concurrency:
            self._reject_waiting()
        faulty: set[Source] = set()
        self._waits_for_memory = False
        has_started = False
        while self._has_free_slot and self._start_next(faulty):
            has_started = True
        if self.shared_memory is not None:
            if has_started or not self._waits_for_memory:  # Others must not wait behind work that has gone.
                self.shared_memory.stop_waiting(self)
            if self._waits_for_memory:
                self.shared_memory.wait(self)

    def _reject_waiting(self) -> None:
        for source in self._sources:
            source.reject_all(HungRun("The device is not responding."))

    def _ask_next_work(self, source: Source) -> NextWork | None:
        try:
            return source.next_work()
        except Exception as error:  # A bug in one source is reported and must not stop the others.
            self._on_fault(error)
            return None

    def _start_next(self, faulty: set[Source]) -> bool:
        """Start the most urgent job; False if none can start now. Skips `faulty` sources and adds those that raise."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        healthy = [source for source in self._sources if source not in faulty]
        candidates = [(work, source) for source in healthy if (work := self._ask_next_work(source)) is not None]
        ready = [
            (work.target if work.target > now else max(work.target, self._next_turn.get(source, -math.inf)), i)
            for i, (work, source) in enumerate(candidates)
            if work.ready_at <= now
        ]
        if not ready:
            if candidates:
                self._timer = loop.call_at(min(work.ready_at for work, _ in candidates), self._dispatch)
            return False
        source = candidates[min(ready)[1]][1]
        try:
            job = source.take(now, self._free_capacity())
        except InsufficientMemory:
            self._waits_for_memory = True
            return False  # It remains the next job until it fits: no other job is started before it.
        except Exception as error:
            faulty.add(source)
            self._on_fault(error)
            return True
        if job is not None:
            self._next_turn[source] = now + FAIRNESS_FACTOR * job.predicted_s
            self._start(job, now)
        return True

    def _free_capacity(self) -> Capacity:
        reserved_bytes = sum(job.memory_bytes for job in self._running)
        free_bytes, idle = self.memory_bytes - reserved_bytes, all(job.hung for job in self._running)
        if self.shared_memory is not None:
            free_bytes = min(free_bytes, self.shared_memory.free_for(self))
            idle = idle and (self.shared_memory.is_unlimited or self.shared_memory.is_idle_for(self))
        return Capacity(free_bytes, idle)

    def _start(self, job: Job, now: float) -> None:
        loop = asyncio.get_running_loop()
        job.predicted_end = now + job.predicted_s
        if self.shared_memory is not None:
            self.shared_memory.reserve(self, job.memory_bytes)
        if self.hang_timeout_s:
            job.hang_timer = loop.call_later(self.hang_timeout_s, self._on_hang_timeout, job)
        task = self._running[job] = loop.create_task(job.run())
        task.add_done_callback(partial(self._on_job_end, job))

    def _on_hang_timeout(self, job: Job) -> None:
        job.hung = True
        if self.shared_memory is not None:
            self.shared_memory.give_up(job.memory_bytes)
        self._on_hung(self.hung_count)
        job.abandon()
        self._dispatch()  # Work that waited for this job's memory, or for an exclusive job, no longer waits for it.

    def _on_job_end(self, job: Job, task: asyncio.Task[None]) -> None:
        del self._running[job]
        if self.shared_memory is not None:
            self.shared_memory.release(self, job.memory_bytes, hung=job.hung)
        if job.hang_timer is not None:
            job.hang_timer.cancel()
        if job.hung:
            self._on_hung(self.hung_count)
        if not task.cancelled() and (error := task.exception()) is not None:
            job.abandon()
            self._on_fault(error)
        self._dispatch()
