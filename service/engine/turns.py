"""Small requests that are cheap to prepare, in turns of the event loop.

All that arrive in one turn are prepared together. If the graph and the answer are cheap as well, the graph runs once
for all of them, on the event loop: handing a request to a thread would cost more than answering it. Otherwise each goes
on with its samples, on the way that `service/engine/pipeline.py` describes.

A turn ends after some milliseconds, so that other clients and models get theirs.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from service.backends.base import BackendError, DeviceLost, OutOfMemory
from service.engine.batcher import BatchResult
from service.engine.error_mapping import map_run_error
from service.engine.latency import LatencyProfile, Shape, StepCost, shape_of
from service.engine.postprocessing import postprocess_many
from service.engine.preparation import Preparation, PreparationRules, SeveralPreparations, prepare_many
from service.engine.request import PredictRequest, PredictResult, RequestState, make_result
from service.engine.scheduler import MissedDeadline
from service.tracing.spans import RequestSpan
from tasks.contract import Arrays, Request, Samples, Task

_MAX_TURN_S = 0.005
_MAX_RUN_S = 0.002
"""Larger batches are divided, and a single request that takes longer does not run on the event loop."""
_OUTLIER_FACTOR = 4.0
"""Slower turns are clipped to this multiple of the mean."""
_MAX_TOGETHER = 64
"""Requests that are prepared together: with more, the first ones would wait longer than they gain."""

Outcome = PredictResult | Preparation | SeveralPreparations


@dataclass(eq=False, slots=True)
class _Entry:
    """A request of this turn."""

    request: PredictRequest
    limit: float
    state: RequestState
    future: "asyncio.Future[Outcome]"
    queued_at: float
    started_at: float = 0.0
    prepared_at: float = 0.0

    def fail(self, error: Exception) -> None:
        """Raise an error in the caller, if it still waits."""
        if not self.future.done():
            self.future.set_exception(error)

    def finish(self, outcome: Outcome) -> None:
        """Return the outcome to the caller, if it still waits."""
        if not self.future.done():
            self.future.set_result(outcome)


@dataclass(frozen=True)
class TurnSteps:
    """What a model's requests need in a turn.

    Attributes:
        task: prepares and post-processes.
        rules: of the preparation.
        profile: measured durations of the graph.
        hop_s: what handing work to a thread costs; a run that costs less is cheap.
        batch_limit: returns how many samples a batch may have.
        run: runs samples as one batch in this thread, for these spans. Raises BackendError.
        prepare_cost: returns the measured cost of preparing a request.
        postprocess_cost: returns the measured cost of an answer.
        on_dropped: called with the number of requests that were dropped without being prepared.
    """

    task: Task
    rules: PreparationRules
    profile: LatencyProfile
    hop_s: float
    batch_limit: Callable[[], int]
    run: Callable[[Sequence[Arrays], int, Sequence[RequestSpan]], BatchResult]
    prepare_cost: Callable[[PredictRequest], StepCost]
    postprocess_cost: Callable[[Request], StepCost]
    on_dropped: Callable[[int], None]


class Turns:
    """The small requests of one model. All methods belong to one event loop."""

    def __init__(self, steps: TurnSteps, clock: Callable[[], float] = time.perf_counter) -> None:
        self._steps = steps
        self._clock = clock
        self._waiting: deque[_Entry] = deque()
        self._request_s = 0.0
        """Recent mean seconds for each request of a turn."""

    @property
    def wait_s(self) -> float:
        """Predict how long a request that comes now waits for those before it."""
        return len(self._waiting) * self._request_s

    async def submit(self, request: PredictRequest, limit: float, state: RequestState) -> Outcome:
        """Answer a request at the end of this turn, or return what it was prepared to if its graph is not cheap.

        `limit` is the event loop's time after which the answer is of no use. Cancelling the call drops the request if
        its turn has not come. Raises ServiceError.
        """
        loop = asyncio.get_running_loop()
        entry = _Entry(request, limit, state, loop.create_future(), self._clock())
        if not self._waiting:
            loop.call_soon(self._take_turn, loop)
        self._waiting.append(entry)
        return await entry.future

    def _take_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        began, count = self._clock(), 0
        while self._waiting and self._clock() - began < _MAX_TURN_S:
            together = self._next_entries(loop.time())
            count += len(together)
            try:
                self._answer(together)
            except Exception as error:  # A bug: it must not leave requests without an answer.
                for entry in together:
                    entry.fail(error)
        if count:
            mean_s = (self._clock() - began) / count
            # A turn in which the process was stopped says nothing about others.
            mean_s = min(mean_s, _OUTLIER_FACTOR * self._request_s) if self._request_s else mean_s
            self._request_s += (mean_s - self._request_s) / (10 if self._request_s else 1)
        if self._waiting:
            loop.call_soon(self._take_turn, loop)

    def _next_entries(self, now: float) -> list[_Entry]:
        """Take the next requests that are still wanted."""
        entries: list[_Entry] = []
        while self._waiting and len(entries) < _MAX_TOGETHER:
            entry = self._waiting.popleft()
            if entry.future.done():  # The client has gone.
                self._steps.on_dropped(1)
            elif entry.limit <= now:
                entry.fail(map_run_error(MissedDeadline("The request could not be prepared before its deadline.")))
                self._steps.on_dropped(1)
            else:
                entries.append(entry)
        return entries

    def _answer(self, entries: list[_Entry]) -> None:
        ready: dict[Shape, list[tuple[_Entry, Preparation]]] = {}
        for entry, prepared in self._prepare(entries):
            if isinstance(prepared, SeveralPreparations) or prepared.options:
                entry.finish(prepared)  # Its inputs, or its deadline, are for others to handle.
            else:
                ready.setdefault(shape_of(prepared.samples.arrays), []).append((entry, prepared))
        for shape, pairs in ready.items():
            self._run_in_batches(shape, pairs)

    def _prepare(self, entries: Sequence[_Entry]) -> list[tuple[_Entry, Preparation | SeveralPreparations]]:
        if not entries:
            return []
        steps, started_at = self._steps, self._clock()
        for entry in entries:
            entry.state.stage = "decode"
        outcomes = prepare_many(
            steps.task, steps.rules, [(entry.request.body, entry.request.parse) for entry in entries]
        )
        prepared_at = self._clock()
        each_s = (prepared_at - started_at) / len(entries)
        prepared = []
        for entry, outcome in zip(entries, outcomes, strict=True):
            entry.started_at, entry.prepared_at = started_at, prepared_at
            entry.state.prepare_wait_s = started_at - entry.queued_at
            steps.prepare_cost(entry.request).record(each_s, entry.request.size)
            if isinstance(outcome, Exception):
                entry.fail(outcome)
            else:
                prepared.append((entry, outcome))
        return prepared

    def _run_in_batches(self, shape: Shape, pairs: list[tuple[_Entry, Preparation]]) -> None:
        start = 0
        while start < len(pairs):
            count = self._count_for_batch(shape, pairs[start:])
            if not count:
                break
            self._run_batch(pairs[start : start + count])
            start += count
        for entry, prepared in pairs[start:]:
            entry.finish(prepared)

    def _count_for_batch(self, shape: Shape, pairs: Sequence[tuple[_Entry, Preparation]]) -> int:
        """Return how many of the requests share the next batch; 0 if even the first is too expensive to run here."""
        steps, limit = self._steps, self._steps.batch_limit()
        sizes: list[int] = []
        total = 0
        for _, prepared in pairs:
            work = prepared.samples.work
            size = len(prepared.samples)
            if total + size > limit or not steps.postprocess_cost(prepared.request).is_cheap(work):
                break
            sizes.append(size)
            total += size
        if not sizes or not self._is_cheap(shape, total):
            return 0
        while sizes and steps.profile.predict_s(shape, sum(sizes)) > _MAX_RUN_S:
            del sizes[len(sizes) // 2 :]
        return len(sizes)

    def _is_cheap(self, shape: Shape, samples: int) -> bool:
        """Return whether a sample costs less than a hop, alone or in a batch of this size.

        Under load, single samples are so rare that what was measured of them may be long out of date.
        """
        profile, hop_s = self._steps.profile, self._steps.hop_s
        return profile.predict_s(shape, samples) < samples * hop_s or profile.is_cheap(hop_s, shape)

    def _run_batch(self, pairs: Sequence[tuple[_Entry, Preparation]]) -> None:
        steps = self._steps
        samples = [prepared.samples for _, prepared in pairs]
        for entry, _ in pairs:
            entry.state.stage = "infer"
        spans = [entry.state.span for entry, _ in pairs if entry.state.span is not None]
        try:
            result = steps.run([item.arrays for item in samples], sum(map(len, samples)), spans)
        except BackendError as error:
            is_their_fault = len(pairs) == 1 and not isinstance(error, OutOfMemory)
            for entry, prepared in pairs:  # The batcher finds who causes it, or runs them when there is more memory.
                if is_their_fault or isinstance(error, DeviceLost):
                    entry.fail(map_run_error(error))
                else:
                    entry.finish(prepared)
            return
        self._finish(pairs, samples, result)

    def _finish(
        self, pairs: Sequence[tuple[_Entry, Preparation]], samples: Sequence[Samples], result: BatchResult
    ) -> None:
        steps, inferred_at = self._steps, self._clock()
        for entry, _ in pairs:
            entry.state.stage = "finish"
        requests = [prepared.request for _, prepared in pairs]
        renders = [entry.request.render for entry, _ in pairs]
        bodies = postprocess_many(steps.task, result.outputs, samples, requests, renders)
        each_s = (self._clock() - inferred_at) / len(pairs)
        for (entry, prepared), body in zip(pairs, bodies, strict=True):
            steps.postprocess_cost(prepared.request).record(each_s, prepared.samples.work)
            if isinstance(body, Exception):
                entry.fail(body)
            else:
                entry.finish(
                    make_result(
                        body,
                        result,
                        started_at=entry.queued_at,
                        prepared_at=entry.prepared_at,
                        prepare_wait_s=entry.started_at - entry.queued_at,
                        inferred_at=inferred_at,
                    )
                )
