"""The way of one request through one model: decode and pre-process, batch and run, post-process.

Knows the task and the queue; knows nothing of HTTP. The steps run in worker threads, unless they are so cheap that
the hop to a thread would cost more: what was measured decides, first at warm-up and then with every request.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pydantic import ValidationError

from service.backends.base import Backend, BackendError
from service.batcher import Batcher, BatchPolicy, BatchReport, Ran
from service.errors import BackendFailed, InvalidAnswer, InvalidRequest, Overloaded, ServiceError, TooLarge, Unreadable
from service.metrics import Metrics
from tasks.contract import Answer, Arrays, InvalidInput, InvalidOutput, Limits, Problem, Request, Samples, Task

_CHEAP_S = 0.0005
"""A step that takes less runs on the event loop: about what two hand-overs between busy threads cost."""
_HAND_OVER_S = 0.0005
"""What a batch costs beside its run: two hand-overs between the event loop and the device's thread."""
_ABOUT = 1.05
_REMEMBERED = 500
"""Requests over which the pace is averaged, roughly: several batches of any size."""
_SMOOTHING = 0.1
_MOST_PROBLEMS = 20
_LONGEST = 200
"""Characters of a client's own words that are sent back to it."""


@dataclass(frozen=True)
class Message:
    """What a client sent, still in bytes: `fields` makes the request's fields of it and may raise ServiceError."""

    kind: str
    size: int
    fields: Callable[[], Mapping[str, Any]]


@dataclass(frozen=True)
class Answered:
    """An answer, and the seconds that each stage took."""

    answer: Answer
    stages: Mapping[str, float]
    batch_size: int


class Cost:
    """What a step costs, as a running mean, for the size of input it has mostly seen."""

    def __init__(self) -> None:
        self.seconds: float | None = None
        self._size = 1.0

    def add(self, seconds: float, size: int) -> None:
        """Takes note of one run of the step."""
        if self.seconds is None:
            self.seconds, self._size = seconds, float(size)
        else:
            self.seconds += _SMOOTHING * (seconds - self.seconds)
            self._size += _SMOOTHING * (size - self._size)

    def is_cheap(self, size: int) -> bool:
        """Whether an input of this size is expected to cost less than a thread hop; never before it was measured."""
        return self.seconds is not None and self.seconds * max(1.0, size / max(self._size, 1.0)) < _CHEAP_S


class Pace:
    """How fast requests have been answered while there were any: what the time until a place is free follows from."""

    def __init__(self) -> None:
        self._under_way = 0
        self._since = 0.0
        self._busy_s = 0.0
        self._ended = 0

    def begin(self, now: float) -> None:
        """A request has been accepted."""
        if self._under_way == 0:
            self._since = now
        self._under_way += 1

    def end(self, now: float) -> None:
        """A request has ended."""
        self._busy_s += now - self._since
        self._since = now
        self._ended += 1
        self._under_way -= 1
        if self._ended > _REMEMBERED:
            self._busy_s, self._ended = self._busy_s / 2, self._ended // 2

    def seconds_for(self, count: int) -> float:
        """Until so many have ended; 0 where none has ended yet."""
        return count * self._busy_s / self._ended if self._ended else 0.0


class Pipeline:
    """One model, from message to answer."""

    def __init__(
        self,
        task: Task,
        backend: Backend,
        *,
        name: str,
        policy: BatchPolicy,
        limits: Limits,
        max_queue: int,
        workers: Executor,
        device: Executor,
        metrics: Metrics,
    ) -> None:
        self.task = task
        self._backend = backend
        self._limits = limits
        self._max_queue = max_queue
        self._workers = workers
        self._device = device
        self._costs: dict[tuple[Any, ...], Cost] = {}
        # What a picture costs to decode shows in its pixels, not in its bytes: no guess, no risk to the event loop.
        self._may_decode_here = task.upload is None
        self._pace = Pace()
        self._abandoned = 0
        self._batch_size, self._failures = metrics.batch_size.labels(name), metrics.batch_failures.labels(name)
        self._batcher = Batcher(
            self._run_batch,
            policy,
            on_batch=self._on_batch,
            on_dropped=metrics.dropped.labels(name).inc,
        )
        self.in_flight = 0

    @property
    def queue_depth(self) -> int:
        """Samples that wait for the device."""
        return self._batcher.depth

    @property
    def device(self) -> str:
        """Where the graph runs."""
        return self._backend.device

    @property
    def batch_limit(self) -> int:
        """The most samples in a batch: what warm-up found to be of use, and no more than the setting."""
        return self._batcher.policy.max_size

    def _on_batch(self, report: BatchReport) -> None:
        if report.failed:
            self._failures.inc()
        else:
            self._batch_size.observe(report.size)

    @contextmanager
    def permit(self) -> Iterator[None]:
        """A place among the requests under way, taken before anything of a request is read. Raises Overloaded."""
        taken = self.in_flight + self._abandoned
        if taken >= self._max_queue:
            message = f"{taken} requests are under way, as many as are accepted; try again later."
            raise Overloaded(message, retry_after_s=max(1, math.ceil(self._pace.seconds_for(taken))))
        self.in_flight += 1
        self._pace.begin(time.perf_counter())
        try:
            yield
        finally:
            self.in_flight -= 1
            self._pace.end(time.perf_counter())

    async def predict(self, message: Message) -> Answered:
        """Answers one message. Raises ServiceError. Cancelling it gives up what has not begun."""
        began = time.perf_counter()
        request, samples = await self._step(("decode", message.kind), message.size, self._read, message)
        read = time.perf_counter()
        try:
            ran = await self._infer(samples)
        except BackendError as error:
            raise BackendFailed("The model failed on this input.") from error
        key = _postprocess_key(request)
        finished = time.perf_counter()
        answer = await self._step(key, len(samples), self._finish, ran.outputs, samples, request)
        stages = {
            "decode": read - began,
            "queue": max(0.0, finished - read - ran.ran_s),
            "infer": ran.ran_s,
            "postprocess": time.perf_counter() - finished,
        }
        return Answered(answer, stages, ran.batch_size)

    def is_quick(self, message: Message) -> bool:
        """Whether every step is expected to run at once on the event loop: there will be nothing to wait for."""
        decode, infer = self._cost("decode", message.kind), self._cost("infer")
        return self._may_decode_here and decode.is_cheap(message.size) and infer.is_cheap(1)

    async def _infer(self, samples: Samples) -> Ran:
        """Runs the samples: at once where that costs less than to queue, else in a batch."""
        cost, size = self._cost("infer"), len(samples)
        if not cost.is_cheap(size) or size > self._batcher.policy.max_size:
            return await self._batcher.submit(samples.arrays)
        began, failed = time.perf_counter(), True
        try:
            outputs = _timed(cost, size, self._run, [samples.arrays], size)
            failed = False
        finally:
            ran_s = time.perf_counter() - began
            self._on_batch(BatchReport(size, ran_s, failed))
        return Ran(outputs, ran_s, size)

    async def _step(self, key: tuple[Any, ...], size: int, step: Callable[..., Any], *arguments: Any) -> Any:
        """Runs a step where it costs least: here, or in a worker thread."""
        cost = self._cost(*key)
        if cost.is_cheap(size) and (key[0] != "decode" or self._may_decode_here):
            return _timed(cost, size, step, *arguments)
        working = self._workers.submit(_timed, cost, size, step, *arguments)
        try:
            return await asyncio.wrap_future(working)
        except asyncio.CancelledError:
            if not working.cancel() and not working.done():
                self._abandon(working)
            raise

    def _abandon(self, working: Future[Any]) -> None:
        """A thread cannot be stopped: its request keeps its place until it ends, though nobody waits any more."""
        loop = asyncio.get_running_loop()
        self._abandoned += 1

        def ended() -> None:
            self._abandoned -= 1

        def call_back(_: Future[Any]) -> None:
            with suppress(RuntimeError):  # The loop is closed: the server has stopped, and nobody counts any more.
                loop.call_soon_threadsafe(ended)

        working.add_done_callback(call_back)

    def _read(self, message: Message) -> tuple[Request, Samples]:
        try:
            request = self.task.parse(message.fields(), self._limits)
            return request, self.task.preprocess(self.task.decode(request, self._limits))
        except ValidationError as error:
            raise invalid_request(error) from None
        except InvalidInput as error:
            raise invalid_input(error) from None

    def _finish(self, outputs: Arrays, samples: Samples, request: Request) -> Answer:
        try:
            return self.task.postprocess(outputs, samples, request)
        except InvalidOutput as error:
            raise InvalidAnswer(str(error)) from None

    async def _run_batch(self, parts: Sequence[Arrays]) -> Arrays:
        size = sum(len(next(iter(part.values()))) for part in parts)
        loop, cost = asyncio.get_running_loop(), self._cost("infer")
        return await loop.run_in_executor(self._device, _timed, cost, size, self._run, parts, size)

    def _run(self, parts: Sequence[Arrays], size: int) -> Arrays:
        first = parts[0]
        stacked = first if len(parts) == 1 else {name: np.concatenate([part[name] for part in parts]) for name in first}
        outputs = self._backend.run(stacked)
        for name, array in outputs.items():
            if len(array) != size:
                raise BackendError(f"The graph's output {name} has {len(array)} rows for {size} samples.")
        return outputs

    def warm_up(self, bodies: Sequence[Mapping[str, Any]]) -> None:
        """Runs what clients will ask for, so that none of them pays for a first time, and takes what it costs.

        The cost of decoding is learnt from the first requests: it depends on the form they come in.
        """
        for body in bodies:
            # Not by the operator's limits: those are for clients.
            request = self.task.parse(body, Limits())
            samples = self.task.preprocess(self.task.decode(request, Limits()))
            for _ in range(3):
                outputs = _timed(self._cost("infer"), len(samples), self._run, [samples.arrays], len(samples))
                _timed(self._cost(*_postprocess_key(request)), len(samples), self._finish, outputs, samples, request)
        most, arrays = self._batcher.policy.max_size, samples.arrays
        self._batcher.policy = replace(
            self._batcher.policy, max_size=useful_batch(lambda size: self._fastest(arrays, size), most)
        )

    def _fastest(self, arrays: Arrays, size: int) -> float:
        """Seconds for a batch of this size, the better of two runs: what disturbs a run only makes it slower."""
        batch = {name: np.resize(array, (size, *array.shape[1:])) for name, array in arrays.items()}
        return min(_seconds(self._run, [batch], size) for _ in range(2))

    def _cost(self, *key: Any) -> Cost:
        return self._costs.setdefault(key, Cost())


def useful_batch(seconds_of: Callable[[int], float], most: int) -> int:
    """The smallest batch size, up to `most`, that runs a sample about as cheaply as any other.

    A larger batch gains nothing and makes its first sample wait for its last: on a GPU the cost of a sample falls far
    with the size, on a CPU it soon rises again, when a batch no longer fits the caches. Sizes are doubled for as long
    as that helps, so that what is slow is not tried at its slowest.
    """
    costs: dict[int, float] = {}
    size = 1
    while size <= most:
        costs[size] = (_HAND_OVER_S + seconds_of(size)) / size
        if len(costs) > 2 and min(list(costs.values())[-2:]) > _ABOUT * min(costs.values()):
            break
        size = size * 2 if size == most else min(size * 2, most)
    return next(size for size, cost in costs.items() if cost <= _ABOUT * min(costs.values()))


def _postprocess_key(request: Request) -> tuple[str, ...]:
    """What the cost of post-processing depends on, beside the number of samples: the request's switches."""
    return ("postprocess", *(name for name, value in request if value is True))


def _seconds(step: Callable[..., Any], *arguments: Any) -> float:
    began = time.perf_counter()
    step(*arguments)
    return time.perf_counter() - began


def _timed(cost: Cost, size: int, step: Callable[..., Any], *arguments: Any) -> Any:
    began = time.perf_counter()
    result = step(*arguments)
    cost.add(time.perf_counter() - began, size)
    return result


def invalid_request(error: ValidationError) -> ServiceError:
    """The client's view of what pydantic found: where, and one of a few reasons."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    problems = tuple(
        Problem(".".join(map(str, item["loc"]))[:_LONGEST], _REASONS.get(item["type"], "wrong_type"), item["msg"])
        for item in found[:_MOST_PROBLEMS]
    )
    first = problems[0]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    message = f"{first.where or 'The body'}: {first.message}{more}."
    if first.reason == "too_many":
        return TooLarge(message, details=problems)
    return InvalidRequest(message, details=problems)


_REASONS = {
    "missing": "missing",
    "extra_forbidden": "unknown_field",
    "finite_number": "not_finite",
    "too_many": "too_many",
    "too_short": "empty",
    "greater_than_equal": "out_of_range",
    "less_than_equal": "out_of_range",
    "value_error": "malformed",
}


def invalid_input(error: InvalidInput) -> ServiceError:
    """The client's view of what the task could not read."""
    kind = {"too_large": TooLarge, "invalid": InvalidRequest}.get(error.reason, Unreadable)
    return kind(str(error), details=error.problems)
