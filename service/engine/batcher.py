"""Dynamic batching: combines the samples of many requests into batches for one model.

A batch grows while the device is busy and leaves when the scheduler takes it; with `max_delay_s` it also waits for
more samples while the device is free. Samples of different shape never share a batch. If a batch fails, it is bisected
into smaller jobs until the samples that cause the failure are on their own. Entries whose client has disconnected or
whose deadline has passed are dropped before the device sees them. No batch is formed that does not fit into memory.

The batcher knows nothing about tasks or HTTP: it is given a function that runs a batch, and the `Scheduler` decides
when.
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
from service.engine.queue import DeadlineQueue, QueueEntry, fail_entry
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
from tasks.contract import Arrays, count_samples

RunBatch = Callable[[Sequence[Arrays]], Awaitable[Arrays]]
"""Runs several stacks of samples as one batch and returns the outputs of all samples in order, batch axis first."""


@dataclass(frozen=True)
class BatchPolicy:
    """How batches are formed.

    Attributes:
        max_size: samples in a batch.
        max_delay_s: how long the oldest sample may wait for others while the device is free.
    """

    max_size: int = 32
    max_delay_s: float = 0.0


@dataclass(frozen=True)
class BatchResult:
    """The outputs of one request.

    Attributes:
        outputs: of all its samples.
        spans: start and end of each batch that it was part of.
        batch_size: samples in the largest of these batches, those of other requests included.
    """

    outputs: Arrays
    spans: tuple[tuple[float, float], ...]
    batch_size: int

    @property
    def run_s(self) -> float:
        """Seconds during which at least one of its batches ran."""
        total_s, covered_until = 0.0, -math.inf
        for start, end in sorted(self.spans):
            total_s += max(0.0, end - max(start, covered_until))
            covered_until = max(covered_until, end)
        return total_s


@dataclass(frozen=True)
class BatchReport:
    """A batch that has run: its samples, its seconds, and the error if it failed.

    `started_at` is when it started; `spans` are those of its requests that are recorded.
    """

    size: int
    run_s: float
    error: Exception | None = None
    started_at: float = 0.0
    spans: tuple[RequestSpan, ...] = ()


@dataclass
class _SplitBatch:
    """A batch that ran out of memory. If all its parts fit, it was too large; no single sample was the cause."""

    size: int
    parts_left: int


@dataclass(eq=False)
class _Retry:
    """Some entries of a failed batch, which are run again without the others.

    Attributes:
        exclusive: run only while nothing else does, since memory was short.
        split: the batch that they were part of, if it ran out of memory.
    """

    shape: Shape
    entries: list[QueueEntry]
    exclusive: bool = False
    split: _SplitBatch | None = None

    @property
    def target(self) -> float:
        return min(entry.deadline.target for entry in self.entries)


@dataclass(eq=False)
class _PendingParts:
    """The parts of a large request that are not queued yet, and how long they are predicted to take."""

    target: float
    predicted_s: float = 0.0


class Batcher:
    """The batches of one model; a source of the device's scheduler. All methods belong to one event loop.

    Args:
        run: runs a batch on the device.
        policy: size and delay of batches.
        scheduler: of the device.
        latency_profile: measured durations and memory use; updated with every batch.
        on_batch: called with a report of every batch.
        on_dropped: called with the number of samples that were dropped without being run.
        clock: for the times in reports. The event loop's own clock may have a resolution of a millisecond (uvloop's).
    """

    def __init__(
        self,
        run: RunBatch,
        policy: BatchPolicy,
        scheduler: Scheduler,
        *,
        latency_profile: LatencyProfile | None = None,
        on_batch: Callable[[BatchReport], None] = lambda report: None,
        on_dropped: Callable[[int], None] = lambda size: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._run = run
        self.policy = policy
        self._scheduler = scheduler
        self._profile = latency_profile or LatencyProfile()
        self._on_batch = on_batch
        self._on_dropped = on_dropped
        self._clock = clock
        self._waiting: dict[Shape, DeadlineQueue[QueueEntry]] = {}
        self._retries: list[_Retry] = []
        self._pending: list[_PendingParts] = []
        scheduler.attach(self)

    @property
    def depth(self) -> int:
        """Samples that wait for a batch."""
        waiting = sum(queue.size for queue in self._waiting.values())
        return waiting + sum(entry.size for retry in self._retries for entry in retry.entries)

    @property
    def oldest_queued_at(self) -> float:
        """The event loop's time at which the sample that has waited longest was queued; infinity if none waits."""
        waiting = [queue.oldest_queued_at for queue in self._waiting.values()]
        retries = [entry.queued_at for retry in self._retries for entry in retry.entries]
        return min([*waiting, *retries], default=math.inf)

    def max_batch_size(self, shape: Shape) -> int:
        """Return the largest batch of samples of this shape; at least 1."""
        return max(1, self._profile.max_batch_size(shape, self.policy.max_size, self._scheduler.memory_bytes))

    def close(self) -> None:
        """Leave the scheduler; nothing may be waiting."""
        self._scheduler.detach(self)

    async def submit(
        self,
        arrays: Arrays,
        deadline: Deadline | None = None,
        on_start: Callable[[], None] = lambda: None,
        span: RequestSpan | None = None,
    ) -> BatchResult:
        """Run the samples stacked in `arrays`, in batches shared with other requests.

        A request with more samples than a batch holds is split into parts. Only as many parts are queued at a time as
        the device runs concurrently, so later requests wait for those and not for the whole request. Cancelling the
        call drops what has not started.

        Args:
            arrays: the samples, batch axis first.
            deadline: of the request; by default it is due now and never too late.
            on_start: called when samples start to run.
            span: of the request, if it is recorded.

        Raises:
            MissedDeadline: There was no time left to run the samples.
            HungRun: A run did not end.
            Exception: Whatever `run` raised for these samples on their own.
        """
        deadline = deadline or Deadline(target=asyncio.get_running_loop().time())
        shape, size = shape_of(arrays), count_samples(arrays)
        max_size = self.max_batch_size(shape)
        if size > max_size:
            return await self._submit_parts(arrays, max_size, deadline, on_start, span)
        try:
            result: BatchResult = await self._enqueue(shape, arrays, size, deadline, on_start, span)
        except OutOfMemory:
            if size == 1:
                raise
            result = await self._submit_parts(arrays, math.ceil(size / 2), deadline, on_start, span)
            self._profile.record_out_of_memory(shape, size)
        return result

    async def _submit_parts(
        self,
        arrays: Arrays,
        part_size: int,
        deadline: Deadline,
        on_start: Callable[[], None],
        span: RequestSpan | None,
    ) -> BatchResult:
        concurrency = self._scheduler.concurrency
        shape, size = shape_of(arrays), count_samples(arrays)
        parts = [{name: array[i : i + part_size] for name, array in arrays.items()} for i in range(0, size, part_size)]
        pending = _PendingParts(deadline.target)
        self._pending.append(pending)
        started: list[asyncio.Task[BatchResult]] = []
        try:
            for number, part in enumerate(parts):
                if number >= concurrency:
                    await started[number - concurrency]
                pending.predicted_s = self._predict_s(shape, size - (number + 1) * part_size)
                started.append(asyncio.create_task(self.submit(part, deadline, on_start, span)))
                await asyncio.sleep(0)  # Lets the part enter the queue before the next one.
            return merge_results(await asyncio.gather(*started))
        finally:
            self._pending.remove(pending)
            for task in started:
                if not task.cancel() and not task.cancelled():
                    task.exception()  # Marks the exception as retrieved: only the first error is raised.

    def _enqueue(
        self,
        shape: Shape,
        arrays: Arrays,
        size: int,
        deadline: Deadline,
        on_start: Callable[[], None],
        span: RequestSpan | None,
    ) -> asyncio.Future[BatchResult]:
        loop = asyncio.get_running_loop()
        entry = QueueEntry(arrays, size, loop.time(), deadline, loop.create_future(), on_start, span)
        self._waiting.setdefault(shape, DeadlineQueue()).add(entry)
        entry.future.add_done_callback(partial(self._drop_if_waiting, shape, entry))
        self._scheduler.schedule_dispatch()
        return entry.future

    def _drop_if_waiting(self, shape: Shape, entry: QueueEntry, future: asyncio.Future[BatchResult]) -> None:
        """Drop an entry whose future ended while it waited: its client has disconnected."""
        if shape in self._waiting and self._remove(shape, entry):
            self._on_dropped(entry.size)

    def _remove(self, shape: Shape, entry: QueueEntry) -> bool:
        queue = self._waiting[shape]
        was_waiting = queue.discard(entry)
        if not queue:
            del self._waiting[shape]
        return was_waiting

    def next_work(self) -> NextWork | None:
        """Describe the ready batch with the earliest target; if none is ready, the one that will be first."""
        candidates = [NextWork(-math.inf, retry.target) for retry in self._retries]
        candidates += [NextWork(self._ready_at(queue), queue.first.deadline.target) for queue in self._waiting.values()]
        if not candidates:
            return None
        now = asyncio.get_running_loop().time()
        return min(
            candidates,
            key=lambda work: (work.ready_at > now, work.target if work.ready_at <= now else work.ready_at),
        )

    def _ready_at(self, queue: DeadlineQueue[QueueEntry]) -> float:
        if not self.policy.max_delay_s or queue.size >= self.policy.max_size:
            return -math.inf
        return queue.oldest_queued_at + self.policy.max_delay_s

    def take(self, now: float, capacity: Capacity) -> Job | None:
        """Return the next batch as a job; None if nothing is left to run. Raises InsufficientMemory."""
        retry = min(self._retries, key=lambda retry: retry.target, default=None)
        ready = [
            (queue.first.sort_key, shape) for shape, queue in self._waiting.items() if self._ready_at(queue) <= now
        ]
        shape = min(ready)[1] if ready else None
        if retry is not None and (shape is None or retry.target <= self._waiting[shape].first.deadline.target):
            return self._take_retry(retry, now, capacity)
        return None if shape is None else self._take_batch(shape, now, capacity)

    def _take_retry(self, retry: _Retry, now: float, capacity: Capacity) -> Job | None:
        size = sum(entry.size for entry in retry.entries if not entry.future.done())
        fits = not retry.exclusive and self._profile.memory_bytes(retry.shape, size) <= capacity.free_bytes
        if size and not capacity.idle and not fits:
            raise InsufficientMemory
        self._retries.remove(retry)
        return self._make_job(retry.shape, self._drop_obsolete(retry.entries, now), retry)

    def _take_batch(self, shape: Shape, now: float, capacity: Capacity) -> Job | None:
        queue = self._waiting[shape]
        max_size = self._profile.max_batch_size(shape, self.policy.max_size, capacity.free_bytes)
        if max_size < queue.first.size:
            idle_max_size = self._profile.max_batch_size(shape, self.policy.max_size, self._scheduler.memory_bytes)
            if idle_max_size >= queue.first.size and not capacity.idle:
                raise InsufficientMemory
            entry = queue.first
            self._remove(shape, entry)
            fail_entry(entry, OutOfMemory("The samples do not fit into memory, even while nothing else runs."))
            return None
        entries: list[QueueEntry] = []
        size, earliest_limit = 0, math.inf
        while queue and size + queue.first.size <= max_size:
            entry = queue.first
            if self._would_be_late(shape, entry, now):
                queue.discard(entry)
                fail_entry(entry, MissedDeadline("The batch could not have been finished before the deadline."))
                self._on_dropped(entry.size)
                continue
            earliest_limit = min(earliest_limit, entry.deadline.limit)
            if entries and now + self._profile.predict_s(shape, size + entry.size) > earliest_limit:
                break  # A larger batch would make a member miss its deadline.
            queue.discard(entry)
            entries.append(entry)
            size += entry.size
        if not queue:
            del self._waiting[shape]
        return self._make_job(shape, entries)

    def _would_be_late(self, shape: Shape, entry: QueueEntry, now: float) -> bool:
        """Return whether an entry would miss its deadline if it started now.

        While others wait, the recent mean duration decides. The last one is tried unless even half of the shortest run
        would be too long, since the recent measurements may have been exceptions.
        """
        if len(self._waiting[shape]) > 1:
            needed_s = self._profile.predict_s(shape, entry.size)
        else:
            needed_s = self._profile.min_s(shape, entry.size) / 2
        return entry.deadline.limit <= now + needed_s

    def _make_job(self, shape: Shape, entries: list[QueueEntry], retry: _Retry | None = None) -> Job | None:
        if not entries:
            return None
        size = sum(entry.size for entry in entries)
        return Job(
            lambda: self._run_batch(shape, entries, retry),
            self._profile.predict_s(shape, size),
            self._profile.memory_bytes(shape, size),
            exclusive=retry is not None and retry.exclusive,
            abandon=lambda: _fail_all(entries, HungRun("The run did not end within the hang timeout.")),
        )

    def _drop_obsolete(self, entries: list[QueueEntry], now: float = -math.inf) -> list[QueueEntry]:
        """Return the entries that are still worth running: the client waits and the deadline has not passed."""
        for entry in entries:
            if entry.deadline.limit <= now:
                fail_entry(entry, MissedDeadline("The deadline passed before the samples could be retried."))
        waiting = [entry for entry in entries if not entry.future.done()]
        if len(waiting) < len(entries):
            self._on_dropped(sum(entry.size for entry in entries if entry.future.done()))
        return waiting

    async def _run_batch(self, shape: Shape, taken: list[QueueEntry], retry: _Retry | None) -> None:
        entries = self._drop_obsolete(taken)
        if not entries:
            return
        size = sum(entry.size for entry in entries)
        for entry in entries:
            entry.on_start()
        spans = tuple(entry.span for entry in entries if entry.span is not None)
        started_at = self._clock()
        try:
            outputs = await self._run([entry.work for entry in entries])
        except asyncio.CancelledError as error:
            _fail_all(entries, error)
            raise
        except Exception as error:  # Any error of the run belongs to the batch's entries; the batcher goes on.
            self._on_batch(BatchReport(size, self._clock() - started_at, error, started_at, spans))
            self._bisect(shape, entries, error, was_exclusive=retry is not None and retry.exclusive)
            return
        ended_at = self._clock()
        self._profile.record(shape, size, ended_at - started_at)
        self._on_batch(BatchReport(size, ended_at - started_at, None, started_at, spans))
        if retry is not None and retry.split is not None:
            self._record_fitting_part(shape, retry.split)
        start = 0
        for entry in entries:
            rows = {name: array[start : start + entry.size] for name, array in outputs.items()}
            start += entry.size
            if not entry.future.done():
                entry.future.set_result(BatchResult(rows, ((started_at, ended_at),), size))

    def _record_fitting_part(self, shape: Shape, split: _SplitBatch) -> None:
        split.parts_left -= 1
        if not split.parts_left:
            self._profile.record_out_of_memory(shape, split.size)

    def _bisect(self, shape: Shape, entries: list[QueueEntry], error: Exception, *, was_exclusive: bool) -> None:
        """Queue the parts of a failed batch for a retry; an entry that failed on its own receives the error.

        A single sample that ran out of memory is retried once more, while nothing else runs.
        """
        size = sum(entry.size for entry in entries)
        is_memory_short = isinstance(error, OutOfMemory)
        if isinstance(error, DeviceLost):
            _fail_all(entries, error)
        elif len(entries) > 1:
            parts = self._split_entries(shape, entries, size)
            split = _SplitBatch(size, len(parts)) if is_memory_short else None
            for part in parts:
                if waiting := [entry for entry in part if not entry.future.done()]:
                    self._retries.append(_Retry(shape, waiting, split=split))
        elif is_memory_short and size == 1 and not was_exclusive:
            self._retries.append(_Retry(shape, entries, exclusive=True))
        else:
            _fail_all(entries, error)

    def _split_entries(self, shape: Shape, entries: list[QueueEntry], size: int) -> list[list[QueueEntry]]:
        """Return the entries in halves, or one by one if that takes less time than halving down to one culprit."""
        one_by_one_s = sum(self._profile.predict_s(shape, entry.size) for entry in entries)
        halving_s = 0.0
        while size > 1:
            size = math.ceil(size / 2)
            halving_s += 2 * self._profile.predict_s(shape, size)
        middle = len(entries) // 2
        return [[entry] for entry in entries] if one_by_one_s < halving_s else [entries[:middle], entries[middle:]]

    def queued_seconds(self, target: float) -> float:
        """Predict how long the waiting batches with an earlier target take."""
        total_s = sum(
            self._predict_s(shape, queue.estimate_size_before(target)) for shape, queue in self._waiting.items()
        )
        total_s += sum(pending.predicted_s for pending in self._pending if pending.target <= target)
        return total_s + sum(
            self._profile.predict_s(retry.shape, sum(entry.size for entry in retry.entries))
            for retry in self._retries
            if retry.target <= target
        )

    def _predict_s(self, shape: Shape, samples: float) -> float:
        """Predict the seconds for this many samples, in full batches and one for the rest."""
        if samples <= 0:
            return 0.0
        max_size = self.max_batch_size(shape)
        full, rest = divmod(math.ceil(samples), max_size)
        return full * self._profile.predict_s(shape, max_size) + (self._profile.predict_s(shape, rest) if rest else 0.0)

    def reject_all(self, error: Exception) -> None:
        """Fail all waiting entries with this error."""
        queues, self._waiting = list(self._waiting.values()), {}
        retries, self._retries = self._retries, []
        for queue in queues:
            _fail_all(queue.pop_all(), error)
        for retry in retries:
            _fail_all(retry.entries, error)


def merge_results(parts: Sequence[BatchResult]) -> BatchResult:
    """Return the results of a request's parts as one, in order."""
    outputs = {name: np.concatenate([part.outputs[name] for part in parts]) for name in parts[0].outputs}
    spans = tuple(span for part in parts for span in part.spans)
    return BatchResult(outputs, spans, max(part.batch_size for part in parts))


def _fail_all(entries: list[QueueEntry], error: BaseException) -> None:
    for entry in entries:
        fail_entry(entry, error)
