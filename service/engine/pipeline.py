"""The way of one request through one model: decode and pre-process, batch and run, post-process.

Knows the task and the queue; knows nothing of HTTP. The steps run in worker threads, unless they are so cheap that
the hop to a thread would cost more: what was measured decides, first at warm-up and then with every request. Whatever
waits, for a thread or for the device, is taken in the order in which it is due, over all models.
"""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Literal, get_origin

import numpy as np
from pydantic import ValidationError

from service.backends.base import Backend, BackendError, DeviceLost, OutOfMemory
from service.engine.admission import OPTION_FIELDS, Admission, ModelLimits, RequestOptions, parse_options
from service.engine.batcher import Batcher, BatchPolicy, BatchReport, BatchResult
from service.engine.context import EngineContext
from service.engine.error_mapping import failure, invalid_input, invalid_request
from service.engine.latency import LatencyProfile, Shape, StepCost, shape_of
from service.engine.queue import StepQueue
from service.engine.request import PredictRequest, PredictResult, PreparedRequest, RequestState, predict_result
from service.engine.scheduler import Deadline, Hung, TooLate
from service.errors import InvalidAnswer
from tasks.contract import Arrays, InvalidInput, InvalidOutput, Request, Run, Samples, Task


class Pipeline:
    """One model, from message to answer."""

    def __init__(
        self,
        task: Task,
        backend: Backend,
        around: EngineContext,
        *,
        name: str,
        policy: BatchPolicy,
        limits: ModelLimits | None = None,
    ) -> None:
        self.task = task
        self.backend = backend
        self.curve = LatencyProfile()
        self._context = around
        self._costs: dict[tuple[Any, ...], StepCost] = {}
        # What a picture costs to decode shows in its pixels, not in its bytes: no guess, no risk to the event loop.
        self._may_decode_here = task.upload is None
        # Of a closed set of values each: a client cannot make up new ones.
        self._switches = [
            name
            for name, field in task.request_type.model_fields.items()
            if field.annotation is bool or get_origin(field.annotation) is Literal
        ]
        # A field of this name that a task has itself is the task's.
        self._option_names = tuple(name for name in OPTION_FIELDS if name not in task.request_type.model_fields)
        # Whoever sets a delay wants batches: then no request goes past the queue.
        self.has_batch_delay = policy.max_delay_s > 0
        metrics = around.metrics
        self._dropped = metrics.dropped.labels(name)
        self._batch_size, self._failures = metrics.batch_size.labels(name), metrics.batch_failures.labels(name)
        scheduler, dropped = around.device.scheduler, self._dropped.inc
        self._batcher = Batcher(
            self._run_batch, policy, scheduler, curve=self.curve, on_batch=self._on_batch, on_dropped=dropped
        )
        self._alone = StepQueue(scheduler, on_dropped=dropped)
        of_pictures = task.upload is not None and task.upload.media_types[0].startswith("image/")
        self._workers = around.workers if of_pictures else around.interpreter
        self._decoding = StepQueue(self._workers.scheduler, on_dropped=dropped)
        self._finishing = StepQueue(self._workers.scheduler)
        self.admission = Admission(limits or ModelLimits(), full_batch_s=self._full_batch_s, wait_s=self._wait_s)
        self._reading = 0
        self._finishing_s = (
            0.0  # Of late, where a worker did it: whoever is read before others is finished before them.
        )
        self.counts = True  # Whether batches are; those of a rehearsal are not.
        self._typical_shape: Shape = ()

    @property
    def in_flight(self) -> int:
        """Requests accepted and not yet answered."""
        return self.admission.in_flight

    @property
    def queue_depth(self) -> int:
        """Samples, or requests that go alone, that wait for the device."""
        return self._batcher.depth + len(self._alone)

    @property
    def device(self) -> str:
        """Where the graph runs."""
        return self.backend.device

    @property
    def policy(self) -> BatchPolicy:
        """How batches are made; warm-up may change it."""
        return self._batcher.policy

    @policy.setter
    def policy(self, policy: BatchPolicy) -> None:
        self._batcher.policy = policy

    @property
    def batch_limit(self) -> int:
        """The most samples in a batch: what warm-up found to be of use, and no more than the setting."""
        return self._batcher.policy.max_size

    def set_typical_shape(self, samples: Arrays) -> None:
        """Says what most requests look like."""
        self._typical_shape = shape_of(samples)

    def close(self) -> None:
        """Leaves the schedulers; to be called when no request is under way any more."""
        self._batcher.close()
        for line in (self._alone, self._decoding, self._finishing):
            line.close()

    def _on_batch(self, report: BatchReport) -> None:
        if report.error is not None:
            self._failures.inc()
            if isinstance(report.error, DeviceLost):
                self._context.on_lost(str(report.error))
        elif self.counts:
            self._batch_size.observe(report.size)

    def _full_batch_s(self) -> float:
        return self.curve.seconds(self._typical_shape, self.batch_limit) if self._typical_shape else 0.0

    def _wait_s(self, due: float) -> float:
        """How long a request that is due then would wait: for a worker, for the device, for those still being read."""
        device, workers = self._context.device.scheduler, self._workers.scheduler
        coming = self._reading * (
            self._full_batch_s() / self.batch_limit / device.concurrency + self._finishing_s / workers.concurrency
        )
        of_workers = workers.wait_s(due, own=(self._decoding, self._finishing))
        return of_workers + device.wait_s(due, own=(self._batcher, self._alone)) + coming

    def check(self, deadline: Deadline) -> None:
        """Refuses a request of which nothing but its head has come, where it would be refused later, too.

        Raises Overloaded, DeviceHung.
        """
        if self._typical_shape:
            self.admission.check(
                deadline, self.curve.seconds(self._typical_shape, 1), self.curve.least(self._typical_shape, 1)
            )

    @contextmanager
    def permit(self, message: PredictRequest, deadline: Deadline, state: RequestState | None = None) -> Iterator[None]:
        """A place among the requests under way, taken before a request is decoded. Raises Overloaded, DeviceHung."""
        own = least = 0.0
        if self._typical_shape:
            own = self._cost("decode", message.kind).expected(message.size) + self.curve.seconds(self._typical_shape, 1)
            least = self.curve.least(self._typical_shape, 1)
        with self.admission.permit(deadline, own, least, is_representative=lambda: not (state and state.is_large)):
            yield

    async def predict(
        self, message: PredictRequest, deadline: Deadline | None = None, state: RequestState | None = None
    ) -> PredictResult:
        """Answers one message. Raises ServiceError. Cancelling it gives up what has not begun."""
        began = time.perf_counter()
        state = state or RequestState()
        state.came = state.came or asyncio.get_running_loop().time()
        deadline = deadline or self.admission.deadline(message.options, state.came)
        try:
            run = None if self.runs_inline(message) else self._graph_run()
            read = None
            if run is not None:
                try:
                    done = await self._on_one_thread(message, began, run, deadline, state)
                except OutOfMemory:
                    pass  # Others may have had what it needs: step by step it has its turn when they have ended.
                else:
                    if isinstance(done, PredictResult):
                        return done
                    read = done
            read = read or await self._read_aside(message, deadline, state)
            return await self._from_samples(message, read, began, deadline, state)
        except (BackendError, Hung, TooLate) as error:
            raise failure(error) from error

    def _graph_run(self) -> Run | None:
        """How a request runs that one thread takes all the way; None where it had better go step by step."""
        if self.in_flight <= 1 and self._context.device.scheduler.is_free and not self.has_batch_delay:
            return self.backend.run_exclusive
        reads_aside = self._workers is self._context.workers
        return self.backend.run if self.batch_limit == 1 and reads_aside else None

    async def _read_aside(self, message: PredictRequest, deadline: Deadline, state: RequestState) -> PreparedRequest:
        """The request and its samples, read where that costs least."""
        state.stage = "decode"
        self._reading += 1
        try:
            read = partial(self._step, self._decoding, deadline, ("decode", message.kind), message.size)
            request, samples, options = await read(self._read, message)
            return PreparedRequest(request, samples, options, ended=time.perf_counter())
        finally:
            self._reading -= 1

    async def _from_samples(
        self, message: PredictRequest, read: PreparedRequest, began: float, deadline: Deadline, state: RequestState
    ) -> PredictResult:
        """The graph in company, and then what makes an answer of its outputs."""
        samples, request = read.samples, read.request
        deadline = self._recheck_admission(message, read, deadline, state)
        state.stage = "queue"
        ran = await self._infer(samples, deadline, state)
        finished = time.perf_counter()
        state.stage = "finish"
        key = self._postprocess_key(request)
        self._finishing_s += (self._cost(*key).expected(samples.work) - self._finishing_s) / 10
        finish = partial(self._step, self._finishing, deadline, key, samples.work)
        body = await finish(self._finish, ran.outputs, samples, request, message.render)
        return predict_result(body, ran, began, read.ended, finished, waited_s=read.waited_s)

    def _recheck_admission(
        self, message: PredictRequest, read: PreparedRequest, deadline: Deadline, state: RequestState
    ) -> Deadline:
        """The terms, now that all options and the number of samples are known. Raises Overloaded."""
        shape, size = shape_of(read.samples.arrays), len(read.samples)
        limit, device = self._batcher.limit(shape), self._context.device.scheduler
        rounds = math.ceil(math.ceil(size / limit) / device.concurrency)
        state.is_large = rounds > 1
        own, least = (rounds * of(shape, min(size, limit)) for of in (self.curve.seconds, self.curve.least))
        options = message.options.joined(read.options)
        if options != message.options:
            asked = self.admission.deadline(options, state.came)
            deadline = Deadline(asked.due, min(asked.until, deadline.until))
            state.limit_to(deadline.until)
            self.admission.check_time(deadline, device.wait_s(deadline.due, own=(self._batcher,)), own, least)
        elif rounds > 1:  # It was let in as one sample.
            wait = device.wait_s(deadline.due, own=(self._batcher, self._alone))
            self.admission.check_time(deadline, wait, own, least)
        return deadline

    async def _on_one_thread(
        self, message: PredictRequest, began: float, run: Run, deadline: Deadline, state: RequestState
    ) -> PredictResult | PreparedRequest:
        """One thread takes the request all the way: for one that is alone, and where batches gain nothing.

        Handing it from thread to thread would cost it time, and win nobody else any. If it turns out to be more than
        one batch, or to have options that were not known, it is only read: a device's place is had for one batch.
        """
        state.stage = "queue"
        given_up = threading.Event()
        cost = self._cost("all the way", message.kind)
        work = partial(self._run_on_one_thread, message, began, run, given_up, state)
        needs = self.curve.memory_bytes(self._typical_shape, self.batch_limit) if self._typical_shape else 0
        try:
            done: PredictResult | PreparedRequest = await self._in_thread(
                self._alone,
                self._context.device.threads,
                partial(cost.timed, message.size, work),
                deadline,
                cost.expected(message.size),
                needs,
            )
        except BaseException:
            given_up.set()
            raise
        return done

    def _run_on_one_thread(
        self, message: PredictRequest, began: float, run: Run, given_up: threading.Event, state: RequestState
    ) -> PredictResult | PreparedRequest:
        started = time.perf_counter()
        state.stage = "decode"
        request, samples, options = self._cost("decode", message.kind).timed(message.size, self._read, message)
        read = PreparedRequest(request, samples, options, ended=time.perf_counter(), waited_s=started - began)
        shape = shape_of(samples.arrays)
        scheduler = self._context.device.scheduler
        if options or len(samples) > self.curve.limit(shape, self.batch_limit, scheduler.memory_bytes):
            return read
        if given_up.is_set():
            self._dropped.inc(len(samples))
            raise TooLate("Nobody waits for it any more.")
        state.stage = "infer"
        ran = self._run_here(samples.arrays, run)
        finished = time.perf_counter()
        state.stage = "finish"
        cost = self._cost(*self._postprocess_key(request))
        body = cost.timed(samples.work, self._finish, ran.outputs, samples, request, message.render)
        return predict_result(body, ran, began, read.ended, finished, waited_s=read.waited_s)

    def runs_inline(self, message: PredictRequest) -> bool:
        """Whether every step is expected to run at once on the event loop: there will be nothing to wait for."""
        may = self._may_decode_here and not self.has_batch_delay
        quick = may and self._cost("decode", message.kind).is_cheap(message.size)
        return quick and self.curve.is_cheap(self._context.hop_s)

    async def _infer(self, samples: Samples, deadline: Deadline, state: RequestState) -> BatchResult:
        """Runs the samples: at once where that costs less than to queue, else in a batch."""
        size, shape = len(samples), shape_of(samples.arrays)
        cheap = self.curve.is_cheap(self._context.hop_s, shape, size)
        if cheap and size <= self.batch_limit and not self.has_batch_delay:
            state.stage = "infer"
            with suppress(OutOfMemory):  # Then it is split, or has its turn when nothing else runs.
                return self._run_here(samples.arrays, self.backend.run)
        return await self._batcher.submit(samples.arrays, deadline, state.at("infer"))

    def _run_here(self, arrays: Arrays, run: Run) -> BatchResult:
        """Runs samples in this thread, as a batch of their own."""
        size, shape = len(next(iter(arrays.values()))), shape_of(arrays)
        began = time.perf_counter()
        try:
            outputs = self.run(run, [arrays], size)
        except BackendError as error:
            self._on_batch(BatchReport(size, time.perf_counter() - began, error))
            raise
        ended = time.perf_counter()
        self.curve.add(shape, size, ended - began)
        self._on_batch(BatchReport(size, ended - began))
        return BatchResult(outputs, ((began, ended),), size)

    async def _step(
        self,
        line: StepQueue,
        deadline: Deadline,
        key: tuple[Any, ...],
        size: int,
        step: Callable[..., Any],
        *arguments: Any,
    ) -> Any:
        """Runs a step where it costs least: here, or in a worker thread."""
        cost = self._cost(*key)
        if cost.is_cheap(size) and (key[0] != "decode" or self._may_decode_here):
            return cost.timed(size, step, *arguments)
        work = partial(cost.timed, size, step, *arguments)
        return await self._in_thread(line, self._workers.threads, work, deadline, cost.expected(size))

    async def _in_thread(
        self,
        line: StepQueue,
        threads: Executor,
        work: Callable[[], Any],
        deadline: Deadline,
        seconds: float,
        memory: int = 0,
    ) -> Any:
        """Does some work in a thread, when it is its turn. Cancelling takes it back, if it has not begun.

        A thread cannot be stopped: then its request keeps its place until it ends, though nobody waits any more.
        """
        loop = asyncio.get_running_loop()
        working: list[asyncio.Future[Any]] = []

        def start() -> asyncio.Future[Any]:
            working.append(loop.run_in_executor(threads, work))
            return working[0]

        try:
            return await line.run(start, deadline, seconds=seconds, memory_bytes=memory)
        finally:
            if working and not working[0].done():
                self.admission.abandoned += 1
                working[0].add_done_callback(self._ended_for_nobody)

    def _ended_for_nobody(self, _: asyncio.Future[Any]) -> None:
        self.admission.abandoned -= 1

    def _read(self, message: PredictRequest) -> tuple[Request, Samples, RequestOptions]:
        try:
            fields, options = parse_options(message.fields(), names=self._option_names)
            request = self.task.parse(fields, self._context.limits)
            return request, self.task.preprocess(self.task.decode(request, self._context.limits)), options
        except ValidationError as error:
            raise invalid_request(error) from None
        except InvalidInput as error:
            raise invalid_input(error) from None

    def _finish(self, outputs: Arrays, samples: Samples, request: Request, render: Callable[[Any], bytes]) -> bytes:
        try:
            return render(self.task.postprocess(outputs, samples, request))
        except InvalidOutput as error:
            raise InvalidAnswer(str(error)) from None

    def _postprocess_key(self, request: Request) -> tuple[Any, ...]:
        """What the cost of post-processing depends on, beside what there is to go over: the request's switches."""
        return ("postprocess", *(getattr(request, name) for name in self._switches))

    async def _run_batch(self, parts: Sequence[Arrays]) -> Arrays:
        size = sum(len(next(iter(part.values()))) for part in parts)
        work = partial(self.run, self.backend.run, parts, size)
        return await asyncio.get_running_loop().run_in_executor(self._context.device.threads, work)

    def run(self, run: Run, parts: Sequence[Arrays], size: int) -> Arrays:
        """Runs stacks of samples as one batch. Raises BackendError."""
        first = parts[0]
        stacked = first if len(parts) == 1 else {name: np.concatenate([part[name] for part in parts]) for name in first}
        try:
            outputs = run(stacked)
        except OutOfMemory:
            self.backend.release()  # What is kept for later may be what is missing now.
            raise
        for name, array in outputs.items():
            if len(array) != size:
                raise BackendError(f"The graph's output {name} has {len(array)} rows for {size} samples.")
        return outputs

    def cost_of_finishing(self, request: Request) -> StepCost:
        """What post-processing answers to requests like this one takes."""
        return self._cost(*self._postprocess_key(request))

    def finish(self, outputs: Arrays, samples: Samples, request: Request) -> bytes:
        """The answer as JSON. Raises InvalidAnswer."""
        return self._finish(outputs, samples, request, PredictRequest.render)

    def _cost(self, *key: Any) -> StepCost:
        cost = self._costs.get(key)
        if cost is None:
            cost = self._costs[key] = StepCost(self._context.hop_s)
        return cost
