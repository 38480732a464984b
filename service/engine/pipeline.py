"""The path of a request through one model.

    permit → decode and pre-process → recheck admission → batch → graph → post-process
             on a worker thread                           on the device   on a worker thread

Two shortcuts avoid hand-overs between threads. A step that costs less than the hop to a thread runs on the event loop;
measurements decide, first at warm-up and then with every request. A request that finds the device idle, or whose model
gains nothing from batches, runs on a single thread from start to end.

The pipeline joins the task, the backend, admission and the batcher. It knows nothing about HTTP, and does not order
requests: whatever waits for a thread or for the device waits in a scheduler, which orders the work of all models.
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
from service.engine.error_mapping import map_input_error, map_run_error, map_validation_error
from service.engine.latency import LatencyProfile, Shape, StepCost, shape_of
from service.engine.queue import StepQueue
from service.engine.request import PredictRequest, PredictResult, PreparedRequest, RequestState, make_result
from service.engine.scheduler import Deadline, HungRun, MissedDeadline
from service.errors import InvalidAnswer
from tasks.contract import Arrays, InvalidInput, InvalidOutput, Request, Run, Samples, Task, count_samples


class Pipeline:
    """One loaded model: turns requests into answers.

    Args:
        task: decodes, pre-processes and post-processes.
        backend: runs the graph.
        context: what all models share.
        name: of the model, in metrics.
        policy: how batches are formed; warm-up may change it.
        limits: on the model's requests.
    """

    def __init__(
        self,
        task: Task,
        backend: Backend,
        context: EngineContext,
        *,
        name: str,
        policy: BatchPolicy,
        limits: ModelLimits | None = None,
    ) -> None:
        self.task = task
        self.backend = backend
        self.latency_profile = LatencyProfile()
        self.has_batch_delay = policy.max_delay_s > 0
        """A configured delay asks for batches: the graph then never runs on the event loop or bypasses the queue."""
        self.records_batch_sizes = True
        """False while warm-up requests run, which metrics do not count."""
        self._context = context
        self._costs: dict[tuple[Any, ...], StepCost] = {}
        # A body that holds a file may be small and still take long to decode (a compressed image), so measurements do
        # not predict the cost of the next one: such tasks never decode on the event loop.
        self._may_decode_inline = task.upload is None
        # These fields have a closed set of values, so that clients cannot create an unlimited number of costs.
        self._switch_fields = [
            field_name
            for field_name, field in task.request_type.model_fields.items()
            if field.annotation is bool or get_origin(field.annotation) is Literal
        ]
        # If the task has a field with the name of an option, the field belongs to the task.
        self._option_fields = tuple(option for option in OPTION_FIELDS if option not in task.request_type.model_fields)
        metrics = context.metrics
        self._dropped = metrics.dropped.labels(name)
        self._batch_size, self._failures = metrics.batch_size.labels(name), metrics.batch_failures.labels(name)
        self._workers = context.workers if task.decodes_files else context.interpreter
        device, workers, on_dropped = context.device.scheduler, self._workers.scheduler, self._dropped.inc
        self._batcher = Batcher(
            self._run_batch_in_thread,
            policy,
            device,
            latency_profile=self.latency_profile,
            on_batch=self._on_batch,
            on_dropped=on_dropped,
        )
        self._one_thread_queue = StepQueue(device, on_dropped=on_dropped)
        self._decode_queue = StepQueue(workers, on_dropped=on_dropped)
        self._postprocess_queue = StepQueue(workers)
        self.admission = Admission(
            limits or ModelLimits(), full_batch_s=self._full_batch_s, predict_wait_s=self._predict_wait_s
        )
        self._decoding = 0
        """Requests that are being decoded, or wait for it."""
        self._postprocess_s = 0.0
        """Recent mean post-processing time; used to predict the work that requests being decoded will still cause."""
        self._typical_shape: Shape = ()

    @property
    def in_flight(self) -> int:
        """Requests accepted and not yet answered."""
        return self.admission.in_flight

    @property
    def queue_depth(self) -> int:
        """Work that waits for the device: samples, and requests that will run on one thread."""
        return self._batcher.depth + len(self._one_thread_queue)

    @property
    def device(self) -> str:
        """Where the graph runs."""
        return self.backend.device

    @property
    def policy(self) -> BatchPolicy:
        """How batches are formed; warm-up may change it."""
        return self._batcher.policy

    @policy.setter
    def policy(self, policy: BatchPolicy) -> None:
        self._batcher.policy = policy

    @property
    def batch_limit(self) -> int:
        """Samples in a batch: the size that warm-up found useful, at most the setting."""
        return self._batcher.policy.max_size

    def set_typical_shape(self, samples: Arrays) -> None:
        """Take the shape of these samples as that of most requests, for predictions before a request is decoded."""
        self._typical_shape = shape_of(samples)

    def close(self) -> None:
        """Leave the schedulers; no request may be in flight."""
        self._batcher.close()
        for step_queue in (self._one_thread_queue, self._decode_queue, self._postprocess_queue):
            step_queue.close()

    # Admission

    def check(self, deadline: Deadline) -> None:
        """Check admission before the body is received, so that a request that would be late is rejected early.

        Raises Overloaded and DeviceHung.
        """
        if self._typical_shape:
            profile = self.latency_profile
            self.admission.check(
                deadline, profile.predict_s(self._typical_shape, 1), profile.min_s(self._typical_shape, 1)
            )

    @contextmanager
    def permit(
        self, predict_request: PredictRequest, deadline: Deadline, state: RequestState | None = None
    ) -> Iterator[None]:
        """Admit a request for the duration of the `with` block, before it is decoded.

        Raises Overloaded and DeviceHung.
        """
        service_s = min_service_s = 0.0
        if self._typical_shape:
            decode_s = self._cost("decode", predict_request.body_format).predict_s(predict_request.size)
            service_s = decode_s + self.latency_profile.predict_s(self._typical_shape, 1)
            min_service_s = self.latency_profile.min_s(self._typical_shape, 1)

        def is_representative() -> bool:
            return state is None or not state.takes_several_rounds

        with self.admission.permit(deadline, service_s, min_service_s, is_representative=is_representative):
            yield

    def _full_batch_s(self) -> float:
        return self.latency_profile.predict_s(self._typical_shape, self.batch_limit) if self._typical_shape else 0.0

    def _predict_wait_s(self, target: float) -> float:
        """Predict the wait of a request: for workers, for the device, and for requests that are still being decoded."""
        device, workers = self._context.device.scheduler, self._workers.scheduler
        undecoded_s = self._decoding * (
            self._full_batch_s() / self.batch_limit / device.concurrency + self._postprocess_s / workers.concurrency
        )
        worker_wait_s = workers.predict_wait_s(target, (self._decode_queue, self._postprocess_queue))
        device_wait_s = device.predict_wait_s(target, (self._batcher, self._one_thread_queue))
        return worker_wait_s + device_wait_s + undecoded_s

    # The path of a request

    async def predict(
        self, predict_request: PredictRequest, deadline: Deadline | None = None, state: RequestState | None = None
    ) -> PredictResult:
        """Answer a request. Cancelling the call drops what has not started. Raises ServiceError."""
        started_at = time.perf_counter()
        state = state or RequestState()
        state.arrived_at = state.arrived_at or asyncio.get_running_loop().time()
        deadline = deadline or self.admission.make_deadline(predict_request.options, state.arrived_at)
        prepared = None
        try:
            run = None if self.runs_inline(predict_request) else self._choose_one_thread_run()
            if run is not None:
                with suppress(OutOfMemory):  # Other runs may hold the memory: go on step by step, and wait for them.
                    outcome = await self._answer_on_one_thread(predict_request, started_at, run, deadline, state)
                    if isinstance(outcome, PredictResult):
                        return outcome
                    prepared = outcome
            prepared = prepared or await self._prepare_step(predict_request, deadline, state)
            return await self._answer_in_steps(predict_request, prepared, started_at, deadline, state)
        except (BackendError, HungRun, MissedDeadline) as error:
            raise map_run_error(error) from error

    def runs_inline(self, predict_request: PredictRequest) -> bool:
        """Return whether every step is expected to run on the event loop, so that the request never waits."""
        if not self._may_decode_inline or self.has_batch_delay:
            return False
        decode_cost = self._cost("decode", predict_request.body_format)
        return decode_cost.is_cheap(predict_request.size) and self.latency_profile.is_cheap(self._context.hop_s)

    def _choose_one_thread_run(self) -> Run | None:
        """Return how the graph runs if the request should use one thread from start to end; None for step by step."""
        if self.in_flight <= 1 and self._context.device.scheduler.is_free and not self.has_batch_delay:
            return self.backend.run_exclusive
        gains_nothing_from_batches = self.batch_limit == 1
        return self.backend.run if gains_nothing_from_batches and self.task.decodes_files else None

    # On one thread

    async def _answer_on_one_thread(
        self,
        predict_request: PredictRequest,
        started_at: float,
        run: Run,
        deadline: Deadline,
        state: RequestState,
    ) -> PredictResult | PreparedRequest:
        """Run a request on one device thread from start to end, if it turns out to be one batch.

        Handing it from thread to thread would cost it time and help no other request. A request that has more samples
        than a batch, or options among its fields, is only prepared: a slot of the device is meant for one batch.
        """
        state.stage = "queue"
        cancelled = threading.Event()
        cost = self._cost("one_thread", predict_request.body_format)
        work = partial(self._run_on_one_thread, predict_request, started_at, run, cancelled, state)
        profile, shape = self.latency_profile, self._typical_shape
        try:
            outcome: PredictResult | PreparedRequest = await self._run_in_thread(
                self._one_thread_queue,
                self._context.device.threads,
                partial(cost.measure, predict_request.size, work),
                deadline,
                cost.predict_s(predict_request.size),
                profile.memory_bytes(shape, self.batch_limit) if shape else 0,
            )
        except BaseException:
            cancelled.set()
            raise
        return outcome

    def _run_on_one_thread(
        self,
        predict_request: PredictRequest,
        started_at: float,
        run: Run,
        cancelled: threading.Event,
        state: RequestState,
    ) -> PredictResult | PreparedRequest:
        queued_s = time.perf_counter() - started_at
        state.stage = "decode"
        decode_cost = self._cost("decode", predict_request.body_format)
        request, samples, options = decode_cost.measure(predict_request.size, self._prepare, predict_request)
        prepared = PreparedRequest(request, samples, options, prepared_at=time.perf_counter(), queued_s=queued_s)
        memory_bytes = self._context.device.scheduler.memory_bytes
        max_size = self.latency_profile.max_batch_size(shape_of(samples.arrays), self.batch_limit, memory_bytes)
        if options or len(samples) > max_size:
            return prepared
        if cancelled.is_set():
            self._dropped.inc(len(samples))
            raise MissedDeadline("The request was cancelled while it was decoded.")
        state.stage = "infer"
        result = self._run_own_batch(samples.arrays, run)
        inferred_at = time.perf_counter()
        state.stage = "finish"
        cost = self.postprocess_cost(request)
        body = cost.measure(samples.work, self._postprocess, result.outputs, samples, request, predict_request.render)
        return make_result(body, result, prepared, started_at=started_at, inferred_at=inferred_at)

    # Step by step

    async def _prepare_step(
        self, predict_request: PredictRequest, deadline: Deadline, state: RequestState
    ) -> PreparedRequest:
        """Decode and pre-process a request where that costs least."""
        state.stage = "decode"
        self._decoding += 1
        try:
            request, samples, options = await self._run_step(
                self._decode_queue,
                deadline,
                self._cost("decode", predict_request.body_format),
                predict_request.size,
                partial(self._prepare, predict_request),
                may_run_inline=self._may_decode_inline,
            )
            return PreparedRequest(request, samples, options, prepared_at=time.perf_counter())
        finally:
            self._decoding -= 1

    async def _answer_in_steps(
        self,
        predict_request: PredictRequest,
        prepared: PreparedRequest,
        started_at: float,
        deadline: Deadline,
        state: RequestState,
    ) -> PredictResult:
        """Run the samples of a prepared request, in batches shared with others, and post-process their outputs."""
        samples, request = prepared.samples, prepared.request
        deadline = self._recheck_admission(predict_request, prepared, deadline, state)
        state.stage = "queue"
        result = await self._infer(samples, deadline, state)
        inferred_at = time.perf_counter()
        state.stage = "finish"
        cost = self.postprocess_cost(request)
        self._postprocess_s += (cost.predict_s(samples.work) - self._postprocess_s) / 10
        body = await self._run_step(
            self._postprocess_queue,
            deadline,
            cost,
            samples.work,
            partial(self._postprocess, result.outputs, samples, request, predict_request.render),
        )
        return make_result(body, result, prepared, started_at=started_at, inferred_at=inferred_at)

    def _recheck_admission(
        self, predict_request: PredictRequest, prepared: PreparedRequest, deadline: Deadline, state: RequestState
    ) -> Deadline:
        """Check admission again, now that all options and the number of samples are known.

        Returns the deadline, which options in the body may have brought forward. Raises Overloaded and DeviceHung.
        """
        shape, size = shape_of(prepared.samples.arrays), len(prepared.samples)
        device, max_size = self._context.device.scheduler, self._batcher.max_batch_size(shape)
        rounds = math.ceil(math.ceil(size / max_size) / device.concurrency)
        state.takes_several_rounds = rounds > 1
        service_s = rounds * self.latency_profile.predict_s(shape, min(size, max_size))
        min_service_s = rounds * self.latency_profile.min_s(shape, min(size, max_size))
        options = predict_request.options.merge(prepared.options)
        if options != predict_request.options:
            requested = self.admission.make_deadline(options, state.arrived_at)
            deadline = Deadline(requested.target, min(requested.limit, deadline.limit))
            state.set_time_limit(deadline.limit)
            wait_s = device.predict_wait_s(deadline.target, (self._batcher,))
            self.admission.check_deadline(deadline, wait_s, service_s, min_service_s)
        elif rounds > 1:  # `permit` assumed a single sample.
            wait_s = device.predict_wait_s(deadline.target, (self._batcher, self._one_thread_queue))
            self.admission.check_deadline(deadline, wait_s, service_s, min_service_s)
        return deadline

    async def _infer(self, samples: Samples, deadline: Deadline, state: RequestState) -> BatchResult:
        """Run the samples: on the event loop if that costs less than the queue, otherwise in a batch."""
        size, shape = len(samples), shape_of(samples.arrays)
        is_cheap = self.latency_profile.is_cheap(self._context.hop_s, shape, size)
        if is_cheap and size <= self.batch_limit and not self.has_batch_delay:
            state.stage = "infer"
            with suppress(OutOfMemory):  # The batcher splits them, or runs them while nothing else runs.
                return self._run_own_batch(samples.arrays, self.backend.run)
        return await self._batcher.submit(samples.arrays, deadline, state.stage_setter("infer"))

    # Where a step runs

    async def _run_step(
        self,
        step_queue: StepQueue,
        deadline: Deadline,
        cost: StepCost,
        size: int,
        step: Callable[[], Any],
        *,
        may_run_inline: bool = True,
    ) -> Any:
        """Run a step where it costs least: on the event loop, or in a worker thread."""
        if may_run_inline and cost.is_cheap(size):
            return cost.measure(size, step)
        work = partial(cost.measure, size, step)
        return await self._run_in_thread(step_queue, self._workers.threads, work, deadline, cost.predict_s(size))

    async def _run_in_thread(
        self,
        step_queue: StepQueue,
        threads: Executor,
        work: Callable[[], Any],
        deadline: Deadline,
        predicted_s: float,
        memory_bytes: int = 0,
    ) -> Any:
        """Run work in a thread when the scheduler starts it. Cancelling the call drops work that has not started.

        A thread cannot be interrupted: if the call is cancelled later, the request counts as in flight until it ends.
        """
        loop = asyncio.get_running_loop()
        started: list[asyncio.Future[Any]] = []

        def start() -> asyncio.Future[Any]:
            started.append(loop.run_in_executor(threads, work))
            return started[0]

        try:
            return await step_queue.run(start, deadline, predicted_s=predicted_s, memory_bytes=memory_bytes)
        finally:
            if started and not started[0].done():
                self.admission.abandoned += 1
                started[0].add_done_callback(self._on_abandoned_done)

    def _on_abandoned_done(self, _: asyncio.Future[Any]) -> None:
        self.admission.abandoned -= 1

    # The work itself

    def _prepare(self, predict_request: PredictRequest) -> tuple[Request, Samples, RequestOptions]:
        """Parse, decode and pre-process a request. Raises ServiceError."""
        limits = self._context.limits
        try:
            fields, options = parse_options(predict_request.parse_fields(), names=self._option_fields)
            request = self.task.parse(fields, limits)
            return request, self.task.preprocess(self.task.decode(request, limits)), options
        except ValidationError as error:
            raise map_validation_error(error) from None
        except InvalidInput as error:
            raise map_input_error(error) from None

    async def _run_batch_in_thread(self, parts: Sequence[Arrays]) -> Arrays:
        size = sum(map(count_samples, parts))
        work = partial(self.run_batch, self.backend.run, parts, size)
        return await asyncio.get_running_loop().run_in_executor(self._context.device.threads, work)

    def _run_own_batch(self, arrays: Arrays, run: Run) -> BatchResult:
        """Run samples in the current thread, as a batch of their own. Raises BackendError."""
        size, shape = count_samples(arrays), shape_of(arrays)
        started_at = time.perf_counter()
        try:
            outputs = self.run_batch(run, [arrays], size)
        except BackendError as error:
            self._on_batch(BatchReport(size, time.perf_counter() - started_at, error))
            raise
        ended_at = time.perf_counter()
        self.latency_profile.record(shape, size, ended_at - started_at)
        self._on_batch(BatchReport(size, ended_at - started_at))
        return BatchResult(outputs, ((started_at, ended_at),), size)

    def run_batch(self, run: Run, parts: Sequence[Arrays], size: int) -> Arrays:
        """Run several stacks of samples, `size` in all, as one batch in the current thread. Raises BackendError."""
        first = parts[0]
        stacked = first if len(parts) == 1 else {name: np.concatenate([part[name] for part in parts]) for name in first}
        try:
            outputs = run(stacked)
        except OutOfMemory:
            self.backend.release()  # Memory that the backend keeps for later runs may be what is missing now.
            raise
        for name, array in outputs.items():
            if len(array) != size:
                raise BackendError(f"The graph returned {len(array)} rows of '{name}' for {size} samples.")
        return outputs

    def _on_batch(self, report: BatchReport) -> None:
        if report.error is not None:
            self._failures.inc()
            if isinstance(report.error, DeviceLost):
                self._context.on_device_lost(str(report.error))
        elif self.records_batch_sizes:
            self._batch_size.observe(report.size)

    def postprocess(self, outputs: Arrays, samples: Samples, request: Request) -> bytes:
        """Return the answer as JSON. Raises InvalidAnswer."""
        return self._postprocess(outputs, samples, request, PredictRequest.render)

    def _postprocess(
        self, outputs: Arrays, samples: Samples, request: Request, render: Callable[[Any], bytes]
    ) -> bytes:
        try:
            return render(self.task.postprocess(outputs, samples, request))
        except InvalidOutput as error:
            raise InvalidAnswer(str(error)) from None

    # Measured costs

    def postprocess_cost(self, request: Request) -> StepCost:
        """Return the cost of post-processing; it is measured for each combination of the request's switches."""
        return self._cost("postprocess", *(getattr(request, name) for name in self._switch_fields))

    def _cost(self, *key: Any) -> StepCost:
        cost = self._costs.get(key)
        if cost is None:
            cost = self._costs[key] = StepCost(self._context.hop_s)
        return cost
