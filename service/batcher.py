"""Brings samples of many requests together into batches for one model.

A batch grows for as long as the device is busy with others and leaves as soon as it is free; with `max_delay_s` it may
also wait for company. Samples of unequal shape never share a batch. If a batch fails, its halves are tried apart until
the culprit is alone. A ticket whose client has gone is dropped before the device sees it.

Knows nothing of tasks, of HTTP and of devices: `run` is given. There is no task or thread of its own that could die;
everything happens when a ticket comes, when a batch ends, or when a timer fires.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from tasks.contract import Arrays

RunBatch = Callable[[Sequence[Arrays]], Awaitable[Arrays]]
"""Runs several stacks of samples as one batch; its outputs have all their samples, in order, first axis first."""

_Shape = tuple[tuple[str, str, tuple[int, ...]], ...]


@dataclass(frozen=True)
class BatchPolicy:
    """How batches are made.

    Attributes:
        max_size: the most samples in a batch.
        max_delay_s: how long the oldest sample may wait for others while the device is free.
        at_once: how many batches the device is given at a time; 2 hide the hand-over between them, and fill the gaps
            in which one batch cannot use all of the device.
    """

    max_size: int = 32
    max_delay_s: float = 0.0
    at_once: int = 1


@dataclass(frozen=True)
class Ran:
    """A ticket's outputs, and how they came about."""

    outputs: Arrays
    ran_s: float
    batch_size: int


@dataclass(frozen=True)
class BatchReport:
    """A batch that has been run."""

    size: int
    ran_s: float
    failed: bool


@dataclass(eq=False)
class _Ticket:
    arrays: Arrays
    size: int
    since: float
    future: asyncio.Future[Ran] = field(repr=False)


@dataclass
class _Queue:
    """The tickets of one shape, oldest first; one that is given up leaves without the others being looked at."""

    tickets: OrderedDict[_Ticket, None] = field(default_factory=OrderedDict)
    size: int = 0

    @property
    def oldest(self) -> _Ticket:
        return next(iter(self.tickets))

    def add(self, ticket: _Ticket) -> None:
        self.tickets[ticket] = None
        self.size += ticket.size

    def remove(self, ticket: _Ticket) -> None:
        del self.tickets[ticket]
        self.size -= ticket.size


class Batcher:
    """The queue of one model. All methods belong to one event loop."""

    def __init__(
        self,
        run: RunBatch,
        policy: BatchPolicy,
        *,
        on_batch: Callable[[BatchReport], None] = lambda report: None,
        on_dropped: Callable[[int], None] = lambda size: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._run = run
        self.policy = policy
        self._on_batch = on_batch
        self._on_dropped = on_dropped
        self._clock = clock  # Of what is reported: a loop's own may tick in whole milliseconds (uvloop's does).
        self._waiting: dict[_Shape, _Queue] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._occupied = 0
        self._timer: asyncio.TimerHandle | None = None
        self._pump_planned = False

    @property
    def depth(self) -> int:
        """Samples that wait for a batch."""
        return sum(queue.size for queue in self._waiting.values())

    @property
    def is_free(self) -> bool:
        """Whether a sample that came now would run at once, and alone."""
        return not self._waiting and len(self._running) + self._occupied < self.policy.at_once

    @contextmanager
    def occupied(self) -> Iterator[None]:
        """Counts as a batch that runs, for one that is run without the queue."""
        self._occupied += 1
        try:
            yield
        finally:
            self._occupied -= 1
            self._plan_pump()

    async def submit(self, arrays: Arrays) -> Ran:
        """Runs the samples stacked in `arrays`, in company where there is any.

        More samples than a batch holds become several tickets, of which no more wait than the device is given at a
        time: who comes later waits for those and not for all. Cancelling the call gives up what has not begun.
        Raises whatever `run` raised for these samples alone.
        """
        total = len(next(iter(arrays.values())))
        step = self.policy.max_size
        if total <= step:
            return await self._enqueue(arrays, total)
        parts = [{name: array[i : i + step] for name, array in arrays.items()} for i in range(0, total, step)]
        futures: list[asyncio.Future[Ran]] = []
        try:
            for number, part in enumerate(parts):
                if number >= self.policy.at_once:
                    await futures[number - self.policy.at_once]
                futures.append(self._enqueue(part, len(next(iter(part.values())))))
            return joined(await asyncio.gather(*futures))
        finally:
            for future in futures:
                if not future.cancel() and not future.cancelled():
                    future.exception()  # Looked at: the first one's is raised, and none is reported as forgotten.

    def _enqueue(self, arrays: Arrays, size: int) -> asyncio.Future[Ran]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Ran] = loop.create_future()
        shape = tuple((name, array.dtype.str, array.shape[1:]) for name, array in sorted(arrays.items()))
        ticket = _Ticket(arrays, size, loop.time(), future)
        self._waiting.setdefault(shape, _Queue()).add(ticket)
        future.add_done_callback(partial(self._given_up, shape, ticket))
        self._plan_pump()
        return future

    def _given_up(self, shape: _Shape, ticket: _Ticket, future: asyncio.Future[Ran]) -> None:
        """Forgets a ticket that ended while it waited: its client has gone."""
        queue = self._waiting.get(shape)
        if queue is not None and ticket in queue.tickets:
            self._remove(shape, queue, ticket)
            self._on_dropped(ticket.size)

    def _remove(self, shape: _Shape, queue: _Queue, ticket: _Ticket) -> None:
        queue.remove(ticket)
        if not queue.tickets:
            del self._waiting[shape]

    def _plan_pump(self) -> None:
        """Pumps once all that is ready in this turn of the loop has been queued, so that a burst shares a batch."""
        if not self._pump_planned:
            self._pump_planned = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_planned = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while len(self._running) + self._occupied < self.policy.at_once and (tickets := self._next_batch()):
            task = asyncio.get_running_loop().create_task(self._run_batch(tickets))
            self._running.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._pump()

    def _next_batch(self) -> list[_Ticket]:
        """The tickets of the shape whose oldest has waited longest, if it is due; else none, and a timer is set."""
        if not self._waiting:
            return []
        shape, queue = min(self._waiting.items(), key=lambda item: item[1].oldest.since)
        loop, due = asyncio.get_running_loop(), queue.oldest.since + self.policy.max_delay_s
        if due > loop.time():
            full = [shape for shape, queue in self._waiting.items() if queue.size >= self.policy.max_size]
            if not full:
                self._timer = loop.call_at(due, self._pump)
                return []
            shape = full[0]
        return self._take(shape)

    def _take(self, shape: _Shape) -> list[_Ticket]:
        queue, tickets, size = self._waiting[shape], list[_Ticket](), 0
        while queue.tickets and size + queue.oldest.size <= self.policy.max_size:
            tickets.append(queue.oldest)
            size += queue.oldest.size
            self._remove(shape, queue, queue.oldest)
        return tickets

    def _still_wanted(self, tickets: list[_Ticket]) -> list[_Ticket]:
        """Those whose client still waits: one may have gone since the batch was made, or while it was tried apart."""
        wanted = [ticket for ticket in tickets if not ticket.future.done()]
        if len(wanted) < len(tickets):
            self._on_dropped(sum(ticket.size for ticket in tickets if ticket.future.done()))
        return wanted

    async def _run_batch(self, taken: list[_Ticket]) -> None:
        tickets = self._still_wanted(taken)
        if not tickets:
            return
        size = sum(ticket.size for ticket in tickets)
        began = self._clock()
        try:
            outputs = await self._run([ticket.arrays for ticket in tickets])
        except asyncio.CancelledError:
            _refuse(tickets, asyncio.CancelledError())
            raise
        except Exception as error:  # Whatever the device raises belongs to the tickets, and the queue goes on.
            self._on_batch(BatchReport(size, self._clock() - began, failed=True))
            await self._try_apart(tickets, error)
            return
        ran_s = self._clock() - began
        self._on_batch(BatchReport(size, ran_s, failed=False))
        start = 0
        for ticket in tickets:
            part = {name: array[start : start + ticket.size] for name, array in outputs.items()}
            start += ticket.size
            if not ticket.future.done():
                ticket.future.set_result(Ran(part, ran_s, size))

    async def _try_apart(self, tickets: list[_Ticket], error: Exception) -> None:
        """Runs the halves of a batch that failed; a ticket that fails alone gets the error."""
        if len(tickets) == 1:
            _refuse(tickets, error)
            return
        middle = len(tickets) // 2
        for half in (tickets[:middle], tickets[middle:]):
            await self._run_batch(half)


def _refuse(tickets: list[_Ticket], error: BaseException) -> None:
    for ticket in tickets:
        if ticket.future.done():
            continue
        if isinstance(error, asyncio.CancelledError):
            ticket.future.cancel()
        else:
            ticket.future.set_exception(error)


def joined(parts: Sequence[Ran]) -> Ran:
    """The parts of one request as one; its times are those of the part that took longest."""
    outputs = {name: np.concatenate([part.outputs[name] for part in parts]) for name in parts[0].outputs}
    return Ran(
        outputs,
        ran_s=max(part.ran_s for part in parts),
        batch_size=max(part.batch_size for part in parts),
    )
