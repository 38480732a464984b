"""Real pipelines on the virtual clock: their threads do all work at once, and say so when a device would be done.

The graphs are real, too, but for the time they take, which is said, and for the samples that there is room for.
"""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from service.backends.base import OutOfMemory
from service.engine.batcher import BatchPolicy
from service.engine.context import EngineContext, WorkerPool
from service.engine.latency import shape_of
from service.engine.pipeline import Pipeline
from service.engine.request import PredictRequest, PredictResult, RequestState
from service.engine.scheduler import Deadline, Scheduler
from service.metrics import Metrics
from tasks.contract import Arrays, Limits, Samples, Task
from tests.model_folders import runner


@dataclass(frozen=True)
class BatchResult:
    """A run of a graph."""

    name: str
    size: int
    began: float
    ended: float


class VirtualThreads(Executor):
    """As many as are asked for: each is done after the seconds that were spent in it."""

    def __init__(self) -> None:
        self._spent = 0.0

    def submit(self, step: Callable[..., Any], /, *arguments: Any, **named: Any) -> "Future[Any]":
        self._spent = 0.0
        future: Future[Any] = Future()
        try:
            finish = partial(future.set_result, step(*arguments, **named))
        except Exception as error:
            finish = partial(future.set_exception, error)
        asyncio.get_running_loop().call_later(self._spent, finish)
        return future

    def spend(self, seconds: float) -> tuple[float, float]:
        """From when to when the thread is busy with this."""
        began = asyncio.get_running_loop().time() + self._spent
        self._spent += seconds
        return began, began + seconds


@dataclass
class VirtualDevice:
    """What pipelines share, and all that was run on it."""

    concurrency: int = 1
    hang_s: float = 0.0
    hop_s: float = 0.0
    """Of no time: nothing is cheap enough for the event loop."""
    runs: list[BatchResult] = field(default_factory=list)
    hung: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.threads = VirtualThreads()
        self.scheduler = Scheduler(self.concurrency, hang_s=self.hang_s, on_hung=self.hung.append)
        self.around = EngineContext(
            WorkerPool(self.threads, self.scheduler),
            WorkerPool(VirtualThreads(), Scheduler(4)),
            WorkerPool(VirtualThreads(), Scheduler(1)),
            Limits(),
            Metrics(),
            self.hop_s,
        )

    def most_at_once(self, name: str) -> int:
        """The most samples of a model that were run at the same time."""
        mine = [run for run in self.runs if run.name == name]
        return max(sum(other.size for other in mine if other.began <= run.began < other.ended) for run in mine)


@dataclass(eq=False)
class VirtualBackend:
    """A graph whose every sample takes as long, and that finds room for so many of them."""

    on: VirtualDevice
    name: str
    graph: bytes
    each_s: float
    fits: float = float("inf")
    device: str = "fake"

    def __post_init__(self) -> None:
        self._run = runner(self.graph)

    def run(self, arrays: Arrays) -> Arrays:
        size = len(next(iter(arrays.values())))
        self.on.runs.append(BatchResult(self.name, size, *self.on.threads.spend(self.each_s * size)))
        if size > self.fits:
            raise OutOfMemory("There is no room.")
        return self._run(arrays)

    run_exclusive = run

    def release(self) -> None:
        """It keeps nothing."""

    def memory_in_use(self) -> int | None:
        """It does not know."""
        return None

    memory_free = memory_in_use


class VirtualModel:
    """A pipeline that knows from warm-up what a sample takes."""

    def __init__(
        self, on: VirtualDevice, name: str, task: Task, graph: bytes, *, each_s: float = 0.1, most: int = 1
    ) -> None:
        self.backend = VirtualBackend(on, name, graph, each_s)
        self.pipeline = Pipeline(task, self.backend, on.around, name=name, policy=BatchPolicy(most))
        arrays = self.samples(task.example()).arrays
        one = {key: array[:1] for key, array in arrays.items()}
        self.shape = shape_of(one)
        self.pipeline.set_typical_shape(one)
        for size in range(1, most + 1):
            self.pipeline.curve.add(self.shape, size, each_s * size)

    def samples(self, fields: Mapping[str, Any]) -> Samples:
        """What the task makes of a request."""
        task = self.pipeline.task
        return task.preprocess(task.decode(task.parse(fields, Limits()), Limits()))

    async def ask(
        self, fields: Mapping[str, Any], kind: str = "json", *, within_s: float | None = None
    ) -> PredictResult:
        """One request, as the server asks it."""
        now = asyncio.get_running_loop().time()
        message = PredictRequest(kind, 1, lambda: fields)
        deadline = self.pipeline.admission.deadline(message.options, now)
        if within_s is not None:
            deadline = Deadline(min(deadline.due, now + within_s), now + within_s)
        with self.pipeline.permit(message, deadline):
            return await self.pipeline.predict(message, deadline, RequestState(came=now))
