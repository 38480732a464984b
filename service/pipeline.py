"""The way of one request through one model: decode and pre-process, batch and run, post-process.

Knows the task and the queue; knows nothing of HTTP. The steps run in worker threads, unless they are so cheap that
the hop to a thread would cost more: what was measured decides, first at warm-up and then with every request.
"""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Executor, Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_origin

import numpy as np
from pydantic import ValidationError

from service.backends.base import Backend, BackendError
from service.batcher import Batcher, BatchPolicy, BatchReport, Ran, joined
from service.costs import Cost, Pace, fastest, settled, useful_batch
from service.errors import BackendFailed, InvalidAnswer, InvalidRequest, Overloaded, ServiceError, TooLarge, Unreadable
from service.metrics import Metrics
from tasks.contract import Answer, Arrays, InvalidInput, InvalidOutput, Limits, Problem, Request, Run, Samples, Task

_MOST_PROBLEMS = 20
_LONGEST = 200
"""Characters of a client's own words that are sent back to it."""


@dataclass(frozen=True)
class Message:
    """What a client sent, still in bytes: `fields` makes the request's fields of it and may raise ServiceError.

    `render` makes the bytes of the answer that the client wants.
    """

    kind: str
    size: int
    fields: Callable[[], Mapping[str, Any]]
    render: Callable[[Answer], bytes] = lambda answer: answer.model_dump_json(exclude_none=True).encode()


@dataclass(frozen=True)
class Answered:
    """An answer's bytes, and the seconds that each stage took."""

    body: bytes
    stages: Mapping[str, float]
    batch_size: int


@dataclass(frozen=True)
class Proven:
    """A golden request on its way: what was read of it, and what the graph made of that."""

    request: Request
    samples: Samples
    outputs: Arrays


class Pipeline:
    """One model, from message to answer."""

    def __init__(
        self,
        task: Task,
        backend: Backend,
        *,
        name: str,
        policy: BatchPolicy,
        find_batch_size: bool,
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
        # Of a closed set of values each: a client cannot make up new ones.
        self._switches = [
            name
            for name, field in task.request_type.model_fields.items()
            if field.annotation is bool or get_origin(field.annotation) is Literal
        ]
        # Whoever sets a delay wants batches: then no request goes past the queue.
        self._waits_for_company = policy.max_delay_s > 0
        self._find_batch_size = find_batch_size
        self._pace = Pace()
        self._abandoned = 0
        self._dropped = metrics.dropped.labels(name)
        self._batch_size, self._failures = metrics.batch_size.labels(name), metrics.batch_failures.labels(name)
        self._batcher = Batcher(
            self._run_batch,
            policy,
            on_batch=self._on_batch,
            on_dropped=self._dropped.inc,
        )
        self.in_flight = 0

    @property
    def queue_depth(self) -> int:
        """Samples, or requests that go alone, that wait for the device."""
        alone = max(0, self.in_flight - self._batcher.policy.at_once) if self.batch_limit == 1 else 0
        return self._batcher.depth + alone

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
        """A place among the requests under way, taken before a request is decoded. Raises Overloaded."""
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
        if self.is_quick(message):
            return await self._by_steps(message, began)
        if self.in_flight == 1 and self._batcher.is_free and not self._waits_for_company:
            with self._batcher.occupied():
                return await self._in_one_go(message, began, self._backend.run_alone)
        if self.batch_limit == 1:
            return await self._in_one_go(message, began, self._backend.run)
        return await self._by_steps(message, began)

    async def _by_steps(self, message: Message, began: float) -> Answered:
        """Each step where it costs least, and the graph in company."""
        request, samples = await self._step(("decode", message.kind), message.size, self._read, message)
        read = time.perf_counter()
        ran = await self._infer(samples)
        finished = time.perf_counter()
        body = await self._step(
            self._postprocess_key(request), samples.work, self._finish, ran.outputs, samples, request, message.render
        )
        return _answered(body, ran, began, read, finished)

    async def _in_one_go(self, message: Message, began: float, run: Run) -> Answered:
        """One thread takes the request all the way: for one that is alone, and where batches gain nothing.

        Handing it from thread to thread would cost it time, and win nobody else any.
        """
        given_up = threading.Event()
        try:
            work = partial(self._all_the_way, message, began, run, given_up)
            answered: Answered = await self._in_thread(self._device, work, before_run=True)
        except asyncio.CancelledError:
            given_up.set()
            raise
        return answered

    def _all_the_way(self, message: Message, began: float, run: Run, given_up: threading.Event) -> Answered:
        started = time.perf_counter()
        request, samples = self._cost("decode", message.kind).timed(message.size, self._read, message)
        read = time.perf_counter()
        ran = self._in_turn(samples, run, given_up)
        finished = time.perf_counter()
        cost = self._cost(*self._postprocess_key(request))
        body = cost.timed(samples.work, self._finish, ran.outputs, samples, request, message.render)
        return _answered(body, ran, began, read, finished, waited_s=started - began)

    def _in_turn(self, samples: Samples, run: Run, given_up: threading.Event) -> Ran:
        """Runs a request's samples batch after batch, for as long as somebody waits for them."""
        step, parts = self.batch_limit, []
        for i in range(0, len(samples), step):
            if given_up.is_set():
                self._dropped.inc(len(samples) - i)
                raise CancelledError
            parts.append(self._run_here({name: array[i : i + step] for name, array in samples.arrays.items()}, run))
        return replace(joined(parts), ran_s=sum(part.ran_s for part in parts))

    def is_quick(self, message: Message) -> bool:
        """Whether every step is expected to run at once on the event loop: there will be nothing to wait for."""
        decode, infer = self._cost("decode", message.kind), self._cost("infer")
        may = self._may_decode_here and not self._waits_for_company
        return may and decode.is_cheap(message.size) and infer.is_cheap(1)

    async def _infer(self, samples: Samples) -> Ran:
        """Runs the samples: at once where that costs less than to queue, else in a batch."""
        cheap = self._cost("infer").is_cheap(_elements(samples.arrays))
        if cheap and len(samples) <= self.batch_limit and not self._waits_for_company:
            return self._run_here(samples.arrays, self._backend.run)
        try:
            return await self._batcher.submit(samples.arrays)
        except BackendError as error:
            raise BackendFailed("The model failed on this input.") from error

    def _run_here(self, arrays: Arrays, run: Run) -> Ran:
        """Runs samples in this thread, as a batch of their own."""
        size = len(next(iter(arrays.values())))
        began, failed = time.perf_counter(), True
        try:
            outputs = self._cost("infer").timed(_elements(arrays), self._run, run, [arrays], size)
            failed = False
        except BackendError as error:
            raise BackendFailed("The model failed on this input.") from error
        finally:
            ran_s = time.perf_counter() - began
            self._on_batch(BatchReport(size, ran_s, failed))
        return Ran(outputs, ran_s, size)

    async def _step(self, key: tuple[Any, ...], size: int, step: Callable[..., Any], *arguments: Any) -> Any:
        """Runs a step where it costs least: here, or in a worker thread."""
        cost = self._cost(*key)
        if cost.is_cheap(size) and (key[0] != "decode" or self._may_decode_here):
            return cost.timed(size, step, *arguments)
        work = partial(cost.timed, size, step, *arguments)
        return await self._in_thread(self._workers, work, before_run=key[0] == "decode")

    async def _in_thread(self, pool: Executor, work: Callable[[], Any], *, before_run: bool) -> Any:
        """Does some work in a thread. Cancelling takes it back, if it has not begun.

        `before_run` says whether samples that are taken back were given up before the device saw them.
        """
        working = pool.submit(work)
        try:
            return await asyncio.wrap_future(working)
        except asyncio.CancelledError:
            if working.cancelled() or working.cancel():
                self._dropped.inc(before_run)
            elif not working.done():
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

    def _finish(self, outputs: Arrays, samples: Samples, request: Request, render: Callable[[Answer], bytes]) -> bytes:
        try:
            return render(self.task.postprocess(outputs, samples, request))
        except InvalidOutput as error:
            raise InvalidAnswer(str(error)) from None

    def _postprocess_key(self, request: Request) -> tuple[Any, ...]:
        """What the cost of post-processing depends on, beside what there is to go over: the request's switches."""
        return ("postprocess", *(getattr(request, name) for name in self._switches))

    async def _run_batch(self, parts: Sequence[Arrays]) -> Arrays:
        size = sum(len(next(iter(part.values()))) for part in parts)
        work = partial(self._cost("infer").timed, sum(map(_elements, parts)), self._run, self._backend.run, parts, size)
        return await asyncio.get_running_loop().run_in_executor(self._device, work)

    def _run(self, run: Run, parts: Sequence[Arrays], size: int) -> Arrays:
        first = parts[0]
        stacked = first if len(parts) == 1 else {name: np.concatenate([part[name] for part in parts]) for name in first}
        outputs = run(stacked)
        for name, array in outputs.items():
            if len(array) != size:
                raise BackendError(f"The graph's output {name} has {len(array)} rows for {size} samples.")
        return outputs

    def warm_up(self, proven: Sequence[Proven]) -> None:
        """Runs what clients will ask for, so that none of them pays for a first time, and takes what it costs.

        The cost of decoding is learnt from the first requests: it depends on the form they come in.
        """
        tried = partial(self._seconds_of, proven[0].samples.arrays)
        most = self.batch_limit
        if self._find_batch_size:
            self._batcher.policy = replace(self._batcher.policy, max_size=useful_batch(tried, most))
        else:
            tried(most)
        self._backend.release()
        seen = set[Any]()
        for one in proven:
            arrays, size = one.samples.arrays, len(one.samples)
            if (shapes := tuple((name, array.shape) for name, array in arrays.items())) not in seen:
                seen.add(shapes)
                settled(self._cost("infer"), _elements(arrays), self._run, self._backend.run, [arrays], size)
            cost = self._cost(*self._postprocess_key(one.request))
            settled(cost, one.samples.work, self._finish, one.outputs, one.samples, one.request, Message.render)

    def refresh(self, body: Mapping[str, Any]) -> None:
        """Runs a golden request once more: others that were loaded since have given back memory that it had."""
        request = self.task.parse(body, Limits())
        self._backend.run_alone(self.task.preprocess(self.task.decode(request, Limits())).arrays)

    def _seconds_of(self, arrays: Arrays, size: int) -> float:
        """Seconds for a batch of this size, with as many at once as will run under load: they share caches."""
        batch = {name: np.resize(array, (size, *array.shape[1:])) for name, array in arrays.items()}

        def side_by_side() -> None:
            count = max(1, self._batcher.policy.at_once // 2)
            runs = [self._device.submit(self._run, self._backend.run, [batch], size) for _ in range(count)]
            for run in runs:
                run.result()

        return fastest(side_by_side)

    def _cost(self, *key: Any) -> Cost:
        return self._costs.setdefault(key, Cost())


def _elements(arrays: Arrays) -> int:
    """What the cost of a run grows with: samples, and how long they are."""
    return sum(array.size for array in arrays.values())


def _answered(body: bytes, ran: Ran, began: float, read: float, finished: float, *, waited_s: float = 0.0) -> Answered:
    """The answer with the seconds of each stage; what is none of the others is waiting."""
    stages = {
        "decode": read - began - waited_s,
        "queue": waited_s + max(0.0, finished - read - ran.ran_s),
        "infer": ran.ran_s,
        "postprocess": time.perf_counter() - finished,
    }
    return Answered(body, stages, ran.batch_size)


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
    "string_too_short": "empty",
    "too_long": "too_long",
    "string_too_long": "too_long",
    "greater_than_equal": "out_of_range",
    "less_than_equal": "out_of_range",
    "greater_than": "out_of_range",
    "less_than": "out_of_range",
    "value_error": "malformed",
}


def invalid_input(error: InvalidInput) -> ServiceError:
    """The client's view of what the task could not read."""
    kind = {"too_large": TooLarge, "invalid": InvalidRequest}.get(error.reason, Unreadable)
    return kind(str(error), details=error.problems)
