"""Real pipelines on the virtual clock.

Tasks and graphs are real. Threads do their work immediately and report it done after the virtual seconds spent in it;
the backend decides how long a graph takes.
"""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from service.backends.fake import FakeBackend, Fault
from service.engine.batcher import BatchPolicy
from service.engine.context import EngineContext, WorkerPool
from service.engine.latency import shape_of
from service.engine.pipeline import Pipeline
from service.engine.postprocessing import postprocess
from service.engine.preparation import Preparation, PreparationRules, SeveralPreparations, prepare
from service.engine.request import PredictRequest, PredictResult, RequestState
from service.engine.scheduler import Deadline, Scheduler
from service.metrics import Metrics
from tasks.contract import Answer, Arrays, Limits, Request, Run, Samples, Task, count_samples
from tests.model_folders import runner
from tests.virtual_clock import now


@dataclass(frozen=True)
class GraphRun:
    """A run of a model's graph."""

    model: str
    size: int
    started_at: float
    ended_at: float


class VirtualThreads(Executor):
    """An unlimited number of threads: work is done after the virtual seconds that were spent in it."""

    def __init__(self) -> None:
        self.submitted = 0
        self._spent_s = 0.0

    def submit(self, step: Callable[..., Any], /, *arguments: Any, **keywords: Any) -> "Future[Any]":
        self.submitted += 1
        self._spent_s = 0.0
        future: Future[Any] = Future()
        try:
            finish = partial(future.set_result, step(*arguments, **keywords))
        except Exception as error:
            finish = partial(future.set_exception, error)
        asyncio.get_running_loop().call_later(self._spent_s, finish)
        return future

    def spend(self, seconds: float) -> tuple[float, float]:
        """Keep the current thread busy for this long; return from when to when."""
        started_at = now() + self._spent_s
        self._spent_s += seconds
        return started_at, started_at + seconds


@dataclass(frozen=True)
class TaskInThread:
    """Runs the steps of a task in the threads that would wait for worker processes."""

    task: Task
    answers: list[bytes] = field(default_factory=list)
    """The answers that were made."""

    def prepare(
        self, rules: PreparationRules, request: PredictRequest, attempt: int
    ) -> Preparation | SeveralPreparations:
        return prepare(self.task, rules, request.body, request.parse)

    def postprocess(
        self, outputs: Arrays, samples: Samples, request: Request, render: Callable[[Answer], bytes]
    ) -> bytes:
        self.answers.append(postprocess(self.task, outputs, samples, request, render))
        return self.answers[-1]


@dataclass
class VirtualDevice:
    """The device and the context that pipelines share; records all runs."""

    concurrency: int = 1
    hang_timeout_s: float = 0.0
    hop_s: float = 0.0
    """At 0, no step is cheap enough for the event loop."""
    runs: list[GraphRun] = field(default_factory=list)
    hung_counts: list[int] = field(default_factory=list)
    isolated_answers: list[bytes] = field(default_factory=list)
    """Answers that the real server makes in worker processes."""

    def __post_init__(self) -> None:
        self.threads = VirtualThreads()
        self.decoders, self.slow_decoders = VirtualThreads(), VirtualThreads()
        self.workers, self.interpreter = VirtualThreads(), VirtualThreads()
        self.scheduler = Scheduler(
            self.concurrency, hang_timeout_s=self.hang_timeout_s, on_hung=self.hung_counts.append
        )
        self.context = EngineContext(
            WorkerPool(self.threads, self.scheduler),
            lambda task: TaskInThread(task, self.isolated_answers),
            WorkerPool(self.decoders, Scheduler(4)),
            WorkerPool(self.slow_decoders, Scheduler(2)),
            WorkerPool(self.workers, Scheduler(4)),
            WorkerPool(self.interpreter, Scheduler(1)),
            Limits(),
            Metrics(),
            self.hop_s,
        )

    def max_concurrent_samples(self, model: str) -> int:
        """Return the largest number of samples of one model that ran at the same time."""
        runs = [run for run in self.runs if run.model == model]
        return max(
            sum(other.size for other in runs if other.started_at <= run.started_at < other.ended_at) for run in runs
        )


def takes_virtual_time(device: VirtualDevice, model: str, per_sample_s: float) -> Fault:
    """Give runs a fixed virtual duration per sample, and record them."""

    def fault(arrays: Arrays, run: Run) -> Arrays:
        size = count_samples(arrays)
        device.runs.append(GraphRun(model, size, *device.threads.spend(per_sample_s * size)))
        return run(arrays)

    return fault


class VirtualModel:
    """A pipeline that has been warmed up: its latency profile knows what samples cost."""

    def __init__(
        self,
        device: VirtualDevice,
        name: str,
        task: Task,
        graph: bytes,
        *,
        per_sample_s: float = 0.1,
        max_size: int = 1,
    ) -> None:
        self.backend = FakeBackend(runner(graph), faults=[takes_virtual_time(device, name, per_sample_s)])
        self.pipeline = Pipeline(task, self.backend, device.context, name=name, policy=BatchPolicy(max_size))
        arrays = self.samples(task.example()).arrays
        one_sample = {input_name: array[:1] for input_name, array in arrays.items()}
        self.pipeline.set_typical_shape(one_sample)
        for size in range(1, max_size + 1):
            self.pipeline.latency_profile.record(shape_of(one_sample), size, per_sample_s * size)

    def samples(self, fields: Mapping[str, Any]) -> Samples:
        """Return the samples that the task makes of a request."""
        task = self.pipeline.task
        return task.preprocess(task.decode(task.parse(fields, Limits()), Limits()))

    async def predict(
        self, fields: Mapping[str, Any], body_format: str = "json", *, timeout_s: float | None = None
    ) -> PredictResult:
        """Send one request the way the server does."""
        arrived_at = now()
        predict_request = PredictRequest(body_format, b"-", lambda body: fields)
        deadline = self.pipeline.admission.make_deadline(predict_request.options, arrived_at)
        if timeout_s is not None:
            deadline = Deadline(min(deadline.target, arrived_at + timeout_s), arrived_at + timeout_s)
        with self.pipeline.permit(predict_request, deadline):
            return await self.pipeline.predict(predict_request, deadline, RequestState(arrived_at=arrived_at))
