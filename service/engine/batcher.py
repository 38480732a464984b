"""Brings samples of many requests together into batches for one model.

A batch grows for as long as the device is busy with others and leaves when its turn has come; with `max_delay_s` it may
also wait for company. Samples of unequal shape never share a batch. If a batch fails, its parts are tried apart, as
jobs of their own, until the culprit is alone. A ticket whose client has gone, or whose time is up, is dropped before
the device sees it. A batch that memory has no room for is not formed.

Knows nothing of tasks and of HTTP; `run` is given, and a `Scheduler` says when.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from service.backends.base import DeviceLost, OutOfMemory
from service.engine.latency import LatencyProfile, Shape, shape_of
from service.engine.queue import DeadlineQueue, QueueEntry, answer
from service.engine.scheduler import Capacity, Deadline, Hung, InsufficientMemory, Job, NextWork, Scheduler, TooLate
from tasks.contract import Arrays

RunBatch = Callable[[Sequence[Arrays]], Awaitable[Arrays]]
"""Runs several stacks of samples as one batch; its outputs have all their samples, in order, first axis first."""


@dataclass(frozen=True)
class BatchPolicy:
    """How batches are made.

    Attributes:
        max_size: the most samples in a batch.
        max_delay_s: how long the oldest sample may wait for others while the device is free.
    """

    max_size: int = 32
    max_delay_s: float = 0.0


@dataclass(frozen=True)
class BatchResult:
    """A request's outputs, and how they came about: when its batches ran, and how large the largest was."""

    outputs: Arrays
    spans: tuple[tuple[float, float], ...]
    batch_size: int

    @property
    def ran_s(self) -> float:
        """The time during which any of its batches ran."""
        total, ended = 0.0, -math.inf
        for start, end in sorted(self.spans):
            total += max(0.0, end - max(start, ended))
            ended = max(ended, end)
        return total


@dataclass(frozen=True)
class BatchReport:
    """A batch that has been run."""

    size: int
    ran_s: float
    error: Exception | None = None


@dataclass
class _Split:
    """A batch that found no room: where all its parts do, its size was the reason, and not one of its samples."""

    size: int
    parts_left: int


@dataclass(eq=False)
class _Retry:
    """Tickets whose batch failed, to be run once more without the others."""

    shape: Shape
    entries: list[QueueEntry]
    exclusive: bool = False
    """Only while nothing else runs, since memory was short."""
    split: _Split | None = None

    @property
    def due(self) -> float:
        return min(entry.deadline.due for entry in self.entries)


@dataclass(eq=False)
class _PendingParts:
    """What of a large request is not queued yet, since no more of it waits than the device is given at a time."""

    due: float
    seconds: float = 0.0


class Batcher:
    """The queue of one model, and a source of a device's scheduler. All methods belong to one event loop."""

    def __init__(
        self,
        run: RunBatch,
        policy: BatchPolicy,
        scheduler: Scheduler,
        *,
        curve: LatencyProfile | None = None,
        on_batch: Callable[[BatchReport], None] = lambda report: None,
        on_dropped: Callable[[int], None] = lambda size: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._run = run
        self.policy = policy
        self._scheduler = scheduler
        self._curve = curve or LatencyProfile()
        self._on_batch = on_batch
        self._on_dropped = on_dropped
        self._clock = clock  # Of what is reported: a loop's own may tick in whole milliseconds (uvloop's does).
        self._waiting: dict[Shape, DeadlineQueue[QueueEntry]] = {}
        self._retries: list[_Retry] = []
        self._to_come: list[_PendingParts] = []
        scheduler.attach(self)

    @property
    def depth(self) -> int:
        """Samples that wait for a batch."""
        waiting = sum(queue.size for queue in self._waiting.values())
        return waiting + sum(entry.size for retry in self._retries for entry in retry.entries)

    def close(self) -> None:
        """Leaves the scheduler; nothing may wait any more."""
        self._scheduler.detach(self)

    def limit(self, shape: Shape) -> int:
        """The most samples of this shape in a batch; at least 1."""
        return max(1, self._curve.limit(shape, self.policy.max_size, self._scheduler.memory_bytes))

    async def submit(
        self, arrays: Arrays, deadline: Deadline | None = None, on_start: Callable[[], None] = lambda: None
    ) -> BatchResult:
        """Runs the samples stacked in `arrays`, in company where there is any; `on_start` is told when they begin.

        More samples than a batch holds become several tickets, of which no more wait than the device is given at a
        time: who comes later waits for those and not for all. Cancelling the call gives up what has not begun.
        Raises whatever `run` raised for these samples alone; TooLate and Hung.
        """
        deadline = deadline or Deadline(due=asyncio.get_running_loop().time())
        shape, total = shape_of(arrays), _size(arrays)
        step = self.limit(shape)
        if total > step:
            return await self._in_parts(arrays, step, deadline, on_start)
        try:
            ran: BatchResult = await self._enqueue(shape, arrays, total, deadline, on_start)
        except OutOfMemory:
            if total == 1:
                raise
            ran = await self._in_parts(arrays, math.ceil(total / 2), deadline, on_start)
            self._curve.no_room(shape, total)
        return ran

    async def _in_parts(
        self, arrays: Arrays, step: int, deadline: Deadline, on_start: Callable[[], None]
    ) -> BatchResult:
        concurrency = self._scheduler.concurrency
        shape, to_come = shape_of(arrays), _PendingParts(deadline.due)
        self._to_come.append(to_come)
        parts = [{name: array[i : i + step] for name, array in arrays.items()} for i in range(0, _size(arrays), step)]
        begun: list[asyncio.Task[BatchResult]] = []
        try:
            for number, part in enumerate(parts):
                if number >= concurrency:
                    await begun[number - concurrency]
                to_come.seconds = self._seconds_of(shape, _size(arrays) - (number + 1) * step)
                begun.append(asyncio.create_task(self.submit(part, deadline, on_start)))
                await asyncio.sleep(0)  # It has its place in the queue before the next one.
            return joined(await asyncio.gather(*begun))
        finally:
            self._to_come.remove(to_come)
            for task in begun:
                if not task.cancel() and not task.cancelled():
                    task.exception()  # Looked at: the first one's is raised, and none is reported as forgotten.

    def _enqueue(
        self, shape: Shape, arrays: Arrays, size: int, deadline: Deadline, on_start: Callable[[], None]
    ) -> asyncio.Future[BatchResult]:
        loop = asyncio.get_running_loop()
        entry = QueueEntry(arrays, size, loop.time(), deadline, loop.create_future(), on_start)
        self._waiting.setdefault(shape, DeadlineQueue()).add(entry)
        entry.future.add_done_callback(partial(self._given_up, shape, entry))
        self._scheduler.plan()
        return entry.future

    def _given_up(self, shape: Shape, entry: QueueEntry, future: asyncio.Future[BatchResult]) -> None:
        """Forgets a ticket that ended while it waited: its client has gone."""
        if shape in self._waiting and self._remove(shape, entry):
            self._on_dropped(entry.size)

    def _remove(self, shape: Shape, entry: QueueEntry) -> bool:
        queue = self._waiting[shape]
        was_there = queue.discard(entry)
        if not queue:
            del self._waiting[shape]
        return was_there

    def offer(self) -> NextWork | None:
        """The ready shape that is due first; where none is ready, the one that will be next."""
        offers = [NextWork(-math.inf, retry.due) for retry in self._retries]
        offers += [NextWork(self._ready(queue), queue.first.deadline.due) for queue in self._waiting.values()]
        if not offers:
            return None
        now = asyncio.get_running_loop().time()
        return min(offers, key=lambda offer: (offer.ready > now, offer.due if offer.ready <= now else offer.ready))

    def _ready(self, queue: DeadlineQueue[QueueEntry]) -> float:
        if not self.policy.max_delay_s or queue.size >= self.policy.max_size:
            return -math.inf
        return queue.oldest + self.policy.max_delay_s

    def take(self, now: float, room: Capacity) -> Job | None:
        """The next batch. Raises NoRoom."""
        retry = min(self._retries, key=lambda retry: retry.due, default=None)
        ready = [(queue.first.order, shape) for shape, queue in self._waiting.items() if self._ready(queue) <= now]
        shape = min(ready)[1] if ready else None
        if retry is not None and (shape is None or retry.due <= self._waiting[shape].first.deadline.due):
            return self._take_retry(retry, now, room)
        return None if shape is None else self._take_fresh(shape, now, room)

    def _take_retry(self, retry: _Retry, now: float, room: Capacity) -> Job | None:
        size = sum(entry.size for entry in retry.entries if not entry.future.done())
        fits = not retry.exclusive and self._curve.memory_bytes(retry.shape, size) <= room.free_bytes
        if size and not room.idle and not fits:
            raise InsufficientMemory
        self._retries.remove(retry)
        return self._job(retry.shape, self._still_wanted(retry.entries, now), retry)

    def _take_fresh(self, shape: Shape, now: float, room: Capacity) -> Job | None:
        queue = self._waiting[shape]
        most = self._curve.limit(shape, self.policy.max_size, room.free_bytes)
        if most < queue.first.size:
            most_alone = self._curve.limit(shape, self.policy.max_size, self._scheduler.memory_bytes)
            if most_alone >= queue.first.size and not room.idle:
                raise InsufficientMemory
            entry = queue.first
            self._remove(shape, entry)
            answer(entry, OutOfMemory("There is no room for it, also while nothing else runs."))
            return None
        entries: list[QueueEntry] = []
        size, until = 0, math.inf
        while queue and size + queue.first.size <= most:
            entry = queue.first
            if self._too_late(shape, entry, now):
                queue.discard(entry)
                answer(entry, TooLate("There was not enough time left to begin."))
                self._on_dropped(entry.size)
                continue
            until = min(until, entry.deadline.until)
            if entries and now + self._curve.seconds(shape, size + entry.size) > until:
                break  # A larger batch would keep a member from its deadline.
            queue.discard(entry)
            entries.append(entry)
            size += entry.size
        if not queue:
            del self._waiting[shape]
        return self._job(shape, entries)

    def _too_late(self, shape: Shape, entry: QueueEntry, now: float) -> bool:
        """Whether its time will be up before it is done.

        With others waiting, what a run takes of late decides; for the last one half of the shortest run there ever was,
        since what was measured late may have been an exception.
        """
        others = len(self._waiting[shape]) > 1
        needs = self._curve.seconds if others else lambda shape, size: self._curve.least(shape, size) / 2
        return entry.deadline.until <= now + needs(shape, entry.size)

    def _job(self, shape: Shape, entries: list[QueueEntry], retry: _Retry | None = None) -> Job | None:
        if not entries:
            return None
        size = sum(entry.size for entry in entries)
        return Job(
            lambda: self._run_batch(shape, entries, retry),
            self._curve.seconds(shape, size),
            self._curve.memory_bytes(shape, size),
            exclusive=retry is not None and retry.exclusive,
            on_hung=lambda: _refuse(entries, Hung("The run did not come back in time.")),
        )

    def _still_wanted(self, entries: list[QueueEntry], now: float = -math.inf) -> list[QueueEntry]:
        """Those whose client still waits: one may have gone since the batch was made, or while it was tried apart."""
        for entry in entries:
            if entry.deadline.until <= now:
                answer(entry, TooLate("There was no time left to try it once more."))
        wanted = [entry for entry in entries if not entry.future.done()]
        if len(wanted) < len(entries):
            self._on_dropped(sum(entry.size for entry in entries if entry.future.done()))
        return wanted

    async def _run_batch(self, shape: Shape, taken: list[QueueEntry], retry: _Retry | None) -> None:
        entries = self._still_wanted(taken)
        if not entries:
            return
        size = sum(entry.size for entry in entries)
        for entry in entries:
            entry.on_start()
        began = self._clock()
        try:
            outputs = await self._run([entry.work for entry in entries])
        except asyncio.CancelledError as error:
            _refuse(entries, error)
            raise
        except Exception as error:  # Whatever the device raises belongs to the tickets, and the queue goes on.
            self._on_batch(BatchReport(size, self._clock() - began, error))
            self._bisect(shape, entries, error, was_alone=retry is not None and retry.exclusive)
            return
        ended = self._clock()
        self._curve.add(shape, size, ended - began)
        self._on_batch(BatchReport(size, ended - began))
        if retry is not None and retry.split is not None:
            self._fits(shape, retry.split)
        start = 0
        for entry in entries:
            part = {name: array[start : start + entry.size] for name, array in outputs.items()}
            start += entry.size
            if not entry.future.done():
                entry.future.set_result(BatchResult(part, ((began, ended),), size))

    def _fits(self, shape: Shape, split: _Split) -> None:
        split.parts_left -= 1
        if not split.parts_left:
            self._curve.no_room(shape, split.size)

    def _bisect(self, shape: Shape, entries: list[QueueEntry], error: Exception, *, was_alone: bool) -> None:
        """Queues the parts of a batch that failed; a ticket that fails alone gets the error."""
        size = sum(entry.size for entry in entries)
        short = isinstance(error, OutOfMemory)
        if isinstance(error, DeviceLost):
            _refuse(entries, error)
        elif len(entries) > 1:
            parts = self._parts_of(shape, entries, size)
            split = _Split(size, len(parts)) if short else None
            for part in parts:
                if wanted := [entry for entry in part if not entry.future.done()]:
                    self._retries.append(_Retry(shape, wanted, split=split))
        elif short and size == 1 and not was_alone:
            self._retries.append(_Retry(shape, entries, exclusive=True))
        else:
            _refuse(entries, error)

    def _parts_of(self, shape: Shape, entries: list[QueueEntry], size: int) -> list[list[QueueEntry]]:
        """Halves; or tickets one by one, where that takes less than to halve until one culprit is alone."""
        one_by_one = sum(self._curve.seconds(shape, entry.size) for entry in entries)
        halving = 0.0
        while size > 1:
            size = math.ceil(size / 2)
            halving += 2 * self._curve.seconds(shape, size)
        middle = len(entries) // 2
        return [[entry] for entry in entries] if one_by_one < halving else [entries[:middle], entries[middle:]]

    def seconds_ahead(self, due: float) -> float:
        """What the batches take that are due before."""
        total = sum(self._seconds_of(shape, queue.before(due)) for shape, queue in self._waiting.items())
        total += sum(each.seconds for each in self._to_come if each.due <= due)
        return total + sum(
            self._curve.seconds(retry.shape, sum(entry.size for entry in retry.entries))
            for retry in self._retries
            if retry.due <= due
        )

    def _seconds_of(self, shape: Shape, samples: float) -> float:
        if samples <= 0:
            return 0.0
        limit = self.limit(shape)
        full, rest = divmod(math.ceil(samples), limit)
        return full * self._curve.seconds(shape, limit) + (self._curve.seconds(shape, rest) if rest else 0.0)

    def refuse(self, error: Exception) -> None:
        """Gives all that waits this answer."""
        queues, self._waiting = list(self._waiting.values()), {}
        retries, self._retries = self._retries, []
        for queue in queues:
            _refuse(queue.pop_all(), error)
        for retry in retries:
            _refuse(retry.entries, error)


def _size(arrays: Arrays) -> int:
    return len(next(iter(arrays.values())))


def _refuse(entries: list[QueueEntry], error: BaseException) -> None:
    for entry in entries:
        answer(entry, error)


def joined(parts: Sequence[BatchResult]) -> BatchResult:
    """The parts of one request as one."""
    outputs = {name: np.concatenate([part.outputs[name] for part in parts]) for name in parts[0].outputs}
    spans = tuple(span for part in parts for span in part.spans)
    return BatchResult(outputs, spans, max(part.batch_size for part in parts))
