"""The path of a request through one model.

    permit → prepare → recheck admission → batch → graph → post-process
             in a worker process, or a thread   on the device   on a worker thread

What a client sends can block nobody else: files and large bodies are parsed, decoded and pre-processed in worker
processes, which are killed if they exceed their budget of processor time. Small bodies, whose cost is bounded by their
size, are prepared in a thread.

Two shortcuts avoid hand-overs between threads. Steps that cost less than the hop to a thread run on the event loop, for
all requests of a turn together (`service/engine/turns.py`); measurements decide, first at warm-up and then with every
request. A request that finds the device idle, or whose model gains nothing from batches, runs its graph and its
post-processing on a single thread.

The pipeline joins the task, the backend, admission and the batcher. It knows nothing about HTTP, and does not order
requests: whatever waits for a thread or for the device waits in a scheduler, which orders the work of all models.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any, Literal, get_origin

import numpy as np
from pydantic_core import to_json

from service.backends.base import Backend, BackendError, DeviceLost, OutOfMemory
from service.engine.admission import Admission, ModelLimits
from service.engine.batcher import Batcher, BatchPolicy, BatchReport, BatchResult
from service.engine.context import EngineContext
from service.engine.error_mapping import map_run_error
from service.engine.latency import LatencyProfile, Shape, StepCost, shape_of
from service.engine.postprocessing import postprocess
from service.engine.preparation import Preparation, SeveralPreparations
from service.engine.preparer import Prepared, Preparer
from service.engine.queue import StepQueue
from service.engine.request import PredictRequest, PredictResult, RequestState, make_result
from service.engine.scheduler import Deadline, HungRun, MissedDeadline
from service.engine.turns import Turns, TurnSteps
from service.errors import ServiceError
from service.tracing.spans import BatchOutcome, RequestSpan
from tasks.contract import Arrays, Request, Run, Samples, Task, count_samples

_LOG = logging.getLogger(__name__)
_LONG_POSTPROCESSING_S = 0.02
"""Answers that take longer are made in a worker process."""


@dataclass(frozen=True)
class _Times:
    """When the pipeline received a request, when it was prepared (by `time.perf_counter`), and its wait before that."""

    started_at: float
    prepared_at: float
    prepare_wait_s: float


class Pipeline:
    """One loaded model: turns requests into answers.

    Args:
        task: decodes, pre-processes and post-processes.
        backend: runs the graph.
        context: what all models share.
        name, version: of the model, in metrics.
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
        version: str = "",
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
        # These fields have a closed set of values, so that clients cannot create an unlimited number of costs.
        self._switch_fields = [
            field_name
            for field_name, field in task.request_type.model_fields.items()
            if field.annotation is bool or get_origin(field.annotation) is Literal
        ]
        self._labels = (name, version)
        metrics, labels = context.metrics, self._labels
        self._dropped = metrics.dropped.labels(*labels)
        self._batch_size = metrics.batch_size.labels(*labels)
        self._padding = metrics.batch_padding.labels(*labels)
        self._failures = metrics.batch_failures.labels(*labels)
        self._padded_input = _padded_input(task)
        self._workers = context.workers if task.decodes_files else context.interpreter
        device, on_dropped = context.device.scheduler, self._dropped.inc
        self._batcher = Batcher(
            self._run_batch_in_thread,
            policy,
            device,
            latency_profile=self.latency_profile,
            on_batch=self._on_batch,
            on_dropped=on_dropped,
        )
        self._one_thread_queue = StepQueue(device, on_dropped=on_dropped)
        self._isolated = None if task.upload is None else context.isolate(task)
        self._preparer = Preparer(task, self._isolated, context, self._run_in_thread, self._cost, on_dropped)
        steps = TurnSteps(
            task,
            self._preparer.rules,
            self.latency_profile,
            context.hop_s,
            batch_limit=lambda: 0 if self.has_batch_delay else self.batch_limit,
            run=self._run_in_turn,
            prepare_cost=self.preparation_cost,
            postprocess_cost=self.postprocess_cost,
            on_dropped=on_dropped,
        )
        self._turns = Turns(steps)
        self._postprocess_queue = StepQueue(self._workers.scheduler)
        self._isolated_postprocess_queue = StepQueue(context.workers.scheduler)
        """Answers that are made in worker processes. Their threads only wait, so they need not be the interpreter's."""
        shares_workers = self._workers is context.interpreter
        self._worker_queues = (self._postprocess_queue, *((self._preparer.queue,) if shares_workers else ()))
        self.admission = Admission(
            limits or ModelLimits(), full_batch_s=self._full_batch_s, predict_wait_s=self._predict_wait_s
        )
        self._postprocess_s = 0.0
        """Recent mean post-processing time; used to predict the work that requests being decoded will still cause."""
        self._typical_shape: Shape = ()

    @property
    def in_flight(self) -> int:
        """Requests accepted and not yet answered."""
        return self.admission.in_flight + self.admission.quick

    @property
    def queue_depth(self) -> int:
        """Work that waits for the device: samples, and requests that will run on one thread."""
        return self._batcher.depth + len(self._one_thread_queue)

    @property
    def oldest_queued_at(self) -> float:
        """The event loop's time at which the work that has waited longest was queued; infinity if none waits."""
        return min(self._batcher.oldest_queued_at, self._one_thread_queue.oldest_queued_at)

    @property
    def max_in_flight(self) -> int:
        """Requests that may be accepted and not yet answered."""
        return self.admission.limits.max_in_flight

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
        self._preparer.close()
        self._one_thread_queue.close()
        self._postprocess_queue.close()
        self._isolated_postprocess_queue.close()

    # Admission

    def check(self, deadline: Deadline) -> None:
        """Check admission before the body is received, so that a request that would be late is rejected early.

        Raises Overloaded and DeviceHung.
        """
        if self._typical_shape:
            profile = self.latency_profile
            self.admission.check(
                deadline,
                profile.predict_s(self._typical_shape, 1),
                profile.min_s(self._typical_shape, 1),
                prepare_wait_s=self._preparer.predict_wait_s(deadline.target),
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
            prepare_s = self._preparer.predict_s(predict_request)
            service_s = prepare_s + self.latency_profile.predict_s(self._typical_shape, 1)
            min_service_s = self.latency_profile.min_s(self._typical_shape, 1)

        def is_representative() -> bool:
            return state is None or not state.is_unusual

        wait_s = self._preparer.predict_wait_s(deadline.target, predict_request)
        with self.admission.permit(
            deadline, service_s, min_service_s, prepare_wait_s=wait_s, is_representative=is_representative
        ):
            yield

    def _full_batch_s(self) -> float:
        return self.latency_profile.predict_s(self._typical_shape, self.batch_limit) if self._typical_shape else 0.0

    def _predict_wait_s(self, target: float) -> float:
        """Predict the wait of a request: for the device, post-processing, and requests that are being prepared."""
        device, workers = self._context.device.scheduler, self._workers.scheduler
        unprepared_s = self._preparer.preparing * (
            self._full_batch_s() / self.batch_limit / device.concurrency + self._postprocess_s / workers.concurrency
        )
        device_wait_s = device.predict_wait_s(target, (self._batcher, self._one_thread_queue))
        return device_wait_s + workers.predict_wait_s(target, self._worker_queues) + unprepared_s

    # The path of a request

    def is_quick(self, predict_request: PredictRequest) -> bool:
        """Return whether every step is expected to run on the event loop, as `answer_in_turn` does it."""
        is_cheap = self._preparer.runs_inline(predict_request) and self.latency_profile.is_cheap(self._context.hop_s)
        return is_cheap and not self.has_batch_delay and not self._context.device.scheduler.is_hung

    async def answer_in_turn(
        self, predict_request: PredictRequest, deadline: Deadline, state: RequestState
    ) -> PredictResult | Prepared:
        """Answer a quick request in this turn of the event loop, with all others that have arrived.

        If that is not possible after all, return the samples, with which `predict` goes on. Raises ServiceError.
        """
        admission = self.admission
        admission.check_quick(deadline, self._turns.wait_s)
        admission.quick += 1
        try:
            return await self._turns.submit(predict_request, deadline.limit, state)
        finally:
            admission.quick -= 1

    async def predict(
        self,
        predict_request: PredictRequest,
        deadline: Deadline | None = None,
        state: RequestState | None = None,
        prepared: Prepared | None = None,
    ) -> PredictResult:
        """Answer a request. Cancelling the call drops what has not started. Raises ServiceError.

        `prepared` is what `answer_in_turn` has returned.
        """
        started_at = time.perf_counter()
        state = state or RequestState()
        state.arrived_at = state.arrived_at or asyncio.get_running_loop().time()
        deadline = deadline or self.admission.make_deadline(predict_request.options, state.arrived_at)
        if prepared is None:
            outcome = await self._prepare(predict_request, deadline, state)
            if isinstance(outcome, PredictResult):
                return outcome
            prepared = outcome
        options = predict_request.options.merge(prepared.options)
        if options != predict_request.options:
            requested = self.admission.make_deadline(options, state.arrived_at)
            deadline = Deadline(requested.target, min(requested.limit, deadline.limit))
            state.set_time_limit(deadline.limit)
        times = _Times(started_at, time.perf_counter(), state.prepare_wait_s)
        if isinstance(prepared, SeveralPreparations):
            return await self._answer_several(predict_request, prepared, times, deadline, state)
        return await self._answer(predict_request, prepared, times, deadline, state)

    async def _prepare(
        self, predict_request: PredictRequest, deadline: Deadline, state: RequestState
    ) -> PredictResult | Prepared:
        """Return the samples of a request; or its answer, if that costs no more."""
        state.stage = "decode"
        try:
            if self._preparer.runs_inline(predict_request):
                return await self._turns.submit(predict_request, deadline.limit, state)
            return await self._preparer.prepare(predict_request, deadline, state)
        except (HungRun, MissedDeadline) as error:
            raise map_run_error(error) from error

    async def _answer_several(
        self,
        predict_request: PredictRequest,
        several: SeveralPreparations,
        times: "_Times",
        deadline: Deadline,
        state: RequestState,
    ) -> PredictResult:
        """Answer each input of a request; the body lists the answers or errors in the order of the inputs."""
        state.is_unusual = True
        with self.admission.count_more(len(several.items) - 1):
            outcomes = await asyncio.gather(
                *(self._answer_item(predict_request, item, times, deadline, state) for item in several.items)
            )
        results = [outcome for outcome in outcomes if isinstance(outcome, PredictResult)]
        bodies = [
            outcome.body if isinstance(outcome, PredictResult) else to_json({"error": outcome.as_fields()})
            for outcome in outcomes
        ]
        stages = (
            {stage: max(result.stages[stage] for result in results) for stage in results[0].stages} if results else {}
        )
        batch_size = max((result.batch_size for result in results), default=0)
        failed = tuple(outcome.code for outcome in outcomes if isinstance(outcome, ServiceError))
        return PredictResult(b'{"answers":[' + b",".join(bodies) + b"]}", stages, batch_size, failed, is_list=True)

    async def _answer_item(
        self,
        predict_request: PredictRequest,
        item: Preparation | ServiceError,
        times: "_Times",
        deadline: Deadline,
        state: RequestState,
    ) -> PredictResult | ServiceError:
        if isinstance(item, ServiceError):
            return item
        try:
            return await self._answer(predict_request, item, times, deadline, state)
        except ServiceError as error:
            if error.status == HTTPStatus.INTERNAL_SERVER_ERROR:  # The response's status will not tell.
                _LOG.error("%s", error.message, exc_info=error.__cause__)
            return error

    async def _answer(
        self,
        predict_request: PredictRequest,
        prepared: Preparation,
        times: "_Times",
        deadline: Deadline,
        state: RequestState,
    ) -> PredictResult:
        """Run the samples of one input and post-process their outputs. Raises ServiceError."""
        self._recheck_admission(predict_request, prepared, deadline, state)
        state.stage = "queue"
        try:
            is_long = self._isolates_postprocessing(predict_request, prepared)
            run = self._choose_one_thread_run(prepared.samples, is_long_postprocessing=is_long)
            if run is not None:
                with suppress(OutOfMemory):  # Other runs may hold the memory: go on in batches, and wait for them.
                    return await self._answer_on_one_thread(predict_request, prepared, times, run, deadline, state)
            return await self._answer_in_batches(predict_request, prepared, times, deadline, state)
        except (BackendError, HungRun, MissedDeadline) as error:
            raise map_run_error(error) from error

    # On one thread

    def _choose_one_thread_run(self, samples: Samples, *, is_long_postprocessing: bool) -> Run | None:
        """Return how the graph runs if it should share a thread with post-processing; None for batches.

        It does if the device is idle, or if the model gains nothing from batches: handing the outputs to another thread
        would cost the request time and help no other one. The samples must fit into one batch.
        """
        size, shape = len(samples), shape_of(samples.arrays)
        if self.has_batch_delay or is_long_postprocessing:
            return None
        memory_bytes = self._context.device.scheduler.memory_bytes
        if size > self.latency_profile.max_batch_size(shape, self.batch_limit, memory_bytes):
            return None
        if self.in_flight <= 1 and self._context.device.scheduler.is_free:
            return self.backend.run_exclusive
        gains_nothing_from_batches = self.batch_limit == 1
        return self.backend.run if gains_nothing_from_batches and self.task.decodes_files else None

    async def _answer_on_one_thread(
        self,
        predict_request: PredictRequest,
        prepared: Preparation,
        times: "_Times",
        run: Run,
        deadline: Deadline,
        state: RequestState,
    ) -> PredictResult:
        """Run the samples as a batch of their own and post-process the outputs, on one thread of the device."""
        size, shape = len(prepared.samples), shape_of(prepared.samples.arrays)
        cost = self.postprocess_cost(prepared.request)
        result: PredictResult = await self._run_in_thread(
            self._one_thread_queue,
            self._context.device.threads,
            partial(self._run_on_one_thread, predict_request, prepared, times, run, state),
            deadline,
            self.latency_profile.predict_s(shape, size) + cost.predict_s(prepared.samples.work),
            self.latency_profile.memory_bytes(shape, size),
        )
        return result

    def _run_on_one_thread(
        self, predict_request: PredictRequest, prepared: Preparation, times: "_Times", run: Run, state: RequestState
    ) -> PredictResult:
        samples, request = prepared.samples, prepared.request
        state.stage = "infer"
        result = self._run_own_batch(samples.arrays, run, state)
        inferred_at = time.perf_counter()
        state.stage = "finish"
        cost = self.postprocess_cost(request)
        arguments = (self.task, result.outputs, samples, request, predict_request.render)
        body = cost.measure(samples.work, postprocess, *arguments)
        return make_result(body, result, inferred_at=inferred_at, **vars(times))

    # In batches

    async def _answer_in_batches(
        self,
        predict_request: PredictRequest,
        prepared: Preparation,
        times: "_Times",
        deadline: Deadline,
        state: RequestState,
    ) -> PredictResult:
        """Run the samples in batches shared with other requests, and post-process their outputs."""
        samples, request = prepared.samples, prepared.request
        result = await self._batcher.submit(samples.arrays, deadline, state.stage_setter("infer"), state.span)
        inferred_at = time.perf_counter()
        state.stage = "finish"
        arguments = (result.outputs, samples, request, predict_request.render)
        is_isolated = self._isolates_postprocessing(predict_request, prepared)
        cost = self.postprocess_cost(request, is_isolated=is_isolated)
        self._postprocess_s += (cost.predict_s(samples.work) - self._postprocess_s) / 10
        memory_bytes = 0
        if self._isolated is not None and is_isolated:
            queue, threads = self._isolated_postprocess_queue, self._context.workers.threads
            output_bytes = sum(array.nbytes for array in result.outputs.values())
            memory_bytes = self._context.memory.encoding_bytes(output_bytes, samples.work)
            step = partial(self._isolated.postprocess, *arguments)
        else:
            queue, threads = self._postprocess_queue, self._workers.threads
            step = partial(postprocess, self.task, *arguments)
        if cost.is_cheap(samples.work) and not is_isolated:
            body = cost.measure(samples.work, step)
        else:
            work, predicted_s = partial(cost.measure, samples.work, step), cost.predict_s(samples.work)
            body = await self._run_in_thread(queue, threads, work, deadline, predicted_s, memory_bytes)
        return make_result(body, result, inferred_at=inferred_at, **vars(times))

    def _isolates_postprocessing(self, predict_request: PredictRequest, prepared: Preparation) -> bool:
        """Return whether the answer is made in a worker process: it would hold the interpreter's lock for long."""
        if self._isolated is None or predict_request.keeps_answer:
            return False
        cost, work = self.postprocess_cost(prepared.request), prepared.samples.work
        # The predicted mean is that of large answers, where those are frequent; a small one costs less.
        return cost.predict_s(work) > _LONG_POSTPROCESSING_S and not cost.is_cheap(work)

    def _recheck_admission(
        self, predict_request: PredictRequest, prepared: Preparation, deadline: Deadline, state: RequestState
    ) -> None:
        """Check admission again, now that all options and the number of samples are known.

        Raises Overloaded and DeviceHung.
        """
        shape, size = shape_of(prepared.samples.arrays), len(prepared.samples)
        device, max_size = self._context.device.scheduler, self._batcher.max_batch_size(shape)
        rounds = math.ceil(math.ceil(size / max_size) / device.concurrency)
        state.is_unusual = state.is_unusual or rounds > 1
        # `permit` assumed a single sample, and the options that were known then.
        if rounds > 1 or predict_request.options.merge(prepared.options) != predict_request.options:
            wait_s = device.predict_wait_s(deadline.target, (self._batcher, self._one_thread_queue))
            service_s = rounds * self.latency_profile.predict_s(shape, min(size, max_size))
            min_service_s = rounds * self.latency_profile.min_s(shape, min(size, max_size))
            self.admission.check_deadline(deadline, wait_s, service_s, min_service_s)

    # Work in threads

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
            started.clear()  # An error's traceback holds this frame: with the future that holds the error, a cycle.

    def _on_abandoned_done(self, _: asyncio.Future[Any]) -> None:
        self.admission.abandoned -= 1

    # The work itself

    async def _run_batch_in_thread(self, parts: Sequence[Arrays]) -> Arrays:
        size = sum(map(count_samples, parts))
        work = partial(self._run_counted_batch, self.backend.run, parts, size)
        return await asyncio.get_running_loop().run_in_executor(self._context.device.threads, work)

    def _run_own_batch(self, arrays: Arrays, run: Run, state: RequestState) -> BatchResult:
        """Run samples in the current thread, as a batch of their own. Raises BackendError."""
        spans = () if state.span is None else (state.span,)
        return self._run_here([arrays], count_samples(arrays), run, spans)

    def _run_in_turn(self, parts: Sequence[Arrays], size: int, spans: Sequence[RequestSpan]) -> BatchResult:
        return self._run_here(parts, size, self.backend.run, spans)

    def _run_here(self, parts: Sequence[Arrays], size: int, run: Run, spans: Sequence[RequestSpan]) -> BatchResult:
        shape = shape_of(parts[0])
        started_at = time.perf_counter()
        try:
            outputs = self._run_counted_batch(run, parts, size)
        except BackendError as error:
            self._on_batch(BatchReport(size, time.perf_counter() - started_at, error, started_at, tuple(spans)))
            raise
        ended_at = time.perf_counter()
        self.latency_profile.record(shape, size, ended_at - started_at)
        self._on_batch(BatchReport(size, ended_at - started_at, None, started_at, tuple(spans)))
        return BatchResult(outputs, ((started_at, ended_at),), size)

    def _run_counted_batch(self, run: Run, parts: Sequence[Arrays], size: int) -> Arrays:
        outputs = self.run_batch(run, parts, size)
        if self.records_batch_sizes:
            self._padding.observe(_padding_ratio(parts, self._padded_input) if self._padded_input else 0.0)
        return outputs

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
        if report.spans:
            ended_at = report.started_at + report.run_s
            outcome = BatchOutcome(
                *self._labels, self.device, report.size, report.started_at, ended_at, report.spans, report.error
            )
            self._context.on_traced_batch(outcome)

    def postprocess(self, outputs: Arrays, samples: Samples, request: Request) -> bytes:
        """Return the answer as JSON. Raises InvalidAnswer."""
        return postprocess(self.task, outputs, samples, request, PredictRequest.render)

    # Measured costs

    def preparation_cost(self, request: PredictRequest) -> StepCost:
        """Return the cost of preparing requests like this one."""
        return self._preparer.cost_of(request)

    def postprocess_cost(self, request: Request, *, is_isolated: bool = False) -> StepCost:
        """Return the cost of post-processing, here or in a worker process, for the switches of the request."""
        place = "isolated" if is_isolated else "interpreter"
        return self._cost("postprocess", place, *(getattr(request, name) for name in self._switch_fields))

    def _cost(self, *key: Any) -> StepCost:
        cost = self._costs.get(key)
        if cost is None:
            cost = self._costs[key] = StepCost(self._context.hop_s)
        return cost


def _padded_input(task: Task) -> str | None:
    """Return the input of variable length whose zeros are padding, as the tasks with `length_buckets` pad it."""
    axes = task.length_buckets.keys()
    return next((spec.name for spec in task.inputs if axes & {a for a in spec.shape if isinstance(a, str)}), None)


def _padding_ratio(parts: Sequence[Arrays], name: str) -> float:
    """Return the share of zeros in an input of a batch."""
    elements = sum(part[name].size for part in parts)
    return 1.0 - sum(int(np.count_nonzero(part[name])) for part in parts) / elements if elements else 0.0
