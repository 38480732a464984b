"""Where the requests of one model are prepared: in a turn of the event loop, in a thread, or in a worker process.

What a client sends must not block anybody else. A small body whose cost is bounded by its size is prepared in the
interpreter of the server: on the event loop (`service/engine/turns.py`) if that costs less than the hop to a thread,
or else in a thread. Files and larger bodies go to
worker processes. There are two lanes of them: a request that exceeds the small budget of the first lane is prepared
again in the second one, so that expensive files wait for each other and not in front of ordinary ones.
"""

from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

from service.engine.admission import OPTION_FIELDS
from service.engine.context import EngineContext, IsolatedTask
from service.engine.latency import StepCost
from service.engine.preparation import BudgetExceeded, Preparation, PreparationRules, SeveralPreparations, prepare
from service.engine.queue import StepQueue
from service.engine.request import PredictRequest, RequestState
from service.engine.scheduler import Deadline
from tasks.contract import Task

_MAX_SMALL_BYTES = 16_384
"""Larger bodies are prepared in a worker process, and never on the event loop. A text of this size holds the
interpreter's lock for 4 ms."""
_MAX_PREDICTED_S, _MAX_SMALL_PREDICTED_S = 0.3, 0.1
"""Predictions are never longer, for worker processes and for the interpreter. They assume that the cost grows with the
size of the body; but what is too large is refused early, and must not make others seem late. In the first lane nothing
takes much longer than its budget, 0.16 s by default and more for large bodies."""

RunInThread = Callable[[StepQueue, Executor, Callable[[], Any], Deadline, float, int], Awaitable[Any]]
"""Runs work in a thread once the queue's scheduler starts it; the last arguments are the predicted seconds and the
bytes of memory that it may need."""
Prepared = Preparation | SeveralPreparations


@dataclass(frozen=True)
class _Lane:
    """The queue of a model's requests for a group of worker processes, and the threads that wait for them."""

    queue: StepQueue
    threads: Executor


class Preparer:
    """Prepares the requests of one model.

    Args:
        task: decodes and pre-processes.
        isolated: does the same in worker processes; None if the task has no uploads.
        context: what all models share.
        run_in_thread: runs work in a thread.
        cost_of: returns the measured cost of a kind of step.
        on_dropped: called with the number of requests that were dropped without being prepared.
    """

    def __init__(
        self,
        task: Task,
        isolated: IsolatedTask | None,
        context: EngineContext,
        run_in_thread: RunInThread,
        cost_of: Callable[..., StepCost],
        on_dropped: Callable[[int], None],
    ) -> None:
        self._task = task
        self._isolated = isolated
        self._run_in_thread = run_in_thread
        self._find_cost = cost_of
        # If the task has a field with the name of an option, the field belongs to the task.
        option_fields = tuple(option for option in OPTION_FIELDS if option not in task.request_type.model_fields)
        self.rules = PreparationRules(context.limits, option_fields)
        self._memory = context.memory
        self._interpreter_threads = context.interpreter.threads
        self._isolated_scheduler = context.decoders.scheduler
        self.queue = StepQueue(context.interpreter.scheduler, on_dropped=on_dropped)
        """Requests that wait for the interpreter's thread."""
        pools = () if isolated is None else (context.decoders, context.slow_decoders)
        self._lanes = [_Lane(StepQueue(pool.scheduler, on_dropped=on_dropped), pool.threads) for pool in pools]
        self.preparing = 0
        """Requests that are being prepared, or wait for it."""

    def close(self) -> None:
        """Leave the schedulers; no request may be waiting."""
        for queue in (self.queue, *(lane.queue for lane in self._lanes)):
            queue.close()

    def runs_inline(self, request: PredictRequest) -> bool:
        """Return whether a request is prepared on the event loop.

        Measurements do not decide alone: bodies of little content (spaces, say) would make all others seem cheap.
        """
        is_inline = _is_small(request) and not self._is_isolated(request)
        return is_inline and self.cost_of(request).is_cheap(request.size)

    def predict_s(self, request: PredictRequest) -> float:
        """Predict the seconds that preparing a request takes; 0 if unknown."""
        max_s = _MAX_PREDICTED_S if self._is_isolated(request) else _MAX_SMALL_PREDICTED_S
        return min(self.cost_of(request).predict_s(request.size), max_s)

    def predict_wait_s(self, target: float, request: PredictRequest | None = None) -> float:
        """Predict how long a request waits for a worker process; None stands for one whose body is not known yet."""
        is_isolated = self._task.decodes_files if request is None else self._is_isolated(request)
        if not is_isolated:
            return 0.0
        return self._isolated_scheduler.predict_wait_s(target, (self._lanes[0].queue,))

    async def prepare(self, request: PredictRequest, deadline: Deadline, state: RequestState) -> Prepared:
        """Prepare a request, and note in `state` how that went. Cancelling the call drops it if it has not started.

        Raises ServiceError, MissedDeadline and HungRun.
        """
        self.preparing += 1
        try:
            if self._isolated is not None and self._is_isolated(request):
                return await self._prepare_isolated(self._isolated, request, deadline, state)
            step = partial(prepare, self._task, self.rules, request.body, request.parse)
            work = partial(self.cost_of(request).measure, request.size, step)
            lane = _Lane(self.queue, self._interpreter_threads)
            return await self._run(lane, work, deadline, self.predict_s(request), 0, state)
        finally:
            self.preparing -= 1

    async def _prepare_isolated(
        self, isolated: IsolatedTask, request: PredictRequest, deadline: Deadline, state: RequestState
    ) -> Prepared:
        first, second = self._lanes
        step = partial(isolated.prepare, self.rules, request)
        work = partial(self.cost_of(request).measure, request.size, partial(step, 0))
        needs = self._memory.decoding_bytes
        try:
            return await self._run(first, work, deadline, self.predict_s(request), needs(0, request.size), state)
        except BudgetExceeded:
            state.is_unusual = True
        work = partial(step, 1)
        try:
            return await self._run(second, work, deadline, self.predict_s(request), needs(1, request.size), state)
        except BudgetExceeded as error:
            raise error.refusal from None

    async def _run(
        self,
        lane: _Lane,
        work: Callable[[], Any],
        deadline: Deadline,
        predicted_s: float,
        memory_bytes: int,
        state: RequestState,
    ) -> Prepared:
        queued_at = perf_counter()

        def start() -> Prepared:
            state.prepare_wait_s += perf_counter() - queued_at
            prepared: Prepared = work()
            return prepared

        prepared: Prepared = await self._run_in_thread(
            lane.queue, lane.threads, start, deadline, predicted_s, memory_bytes
        )
        state.hold(prepared.held_bytes)
        return prepared

    def _is_isolated(self, request: PredictRequest) -> bool:
        """Return whether a request is prepared in a worker process.

        That costs a small body more than it gains; but a file may be small and still take long to decode.
        """
        if self._isolated is None:
            return False
        return self._task.decodes_files or not _is_small(request)

    def cost_of(self, request: PredictRequest) -> StepCost:
        """Return the measured cost of preparing a request."""
        place = "isolated" if self._is_isolated(request) else "interpreter"
        return self._find_cost("prepare", place, request.body_format, request.is_compressed)


def _is_small(request: PredictRequest) -> bool:
    return request.size <= _MAX_SMALL_BYTES and not request.is_compressed
