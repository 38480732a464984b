"""What the pipelines of all models share: thread pools, request limits and metrics.

Knows nothing about any single model; `service/server.py` creates it.
"""

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Protocol

from service.engine.latency import DEFAULT_HOP_S
from service.engine.memory_budget import MemoryBudget
from service.engine.preparation import Preparation, PreparationRules, SeveralPreparations
from service.engine.request import PredictRequest
from service.engine.scheduler import Scheduler
from service.metrics import Metrics
from service.tracing.spans import BatchOutcome
from tasks.contract import Answer, Arrays, Limits, Request, Samples, Task


@dataclass(frozen=True)
class WorkerPool:
    """Threads, and the scheduler that orders the work they are given."""

    threads: Executor
    scheduler: Scheduler


class IsolatedTask(Protocol):
    """A task whose steps run outside the interpreter of the server. Each call blocks its thread until it is done."""

    def prepare(
        self, rules: PreparationRules, request: PredictRequest, attempt: int
    ) -> Preparation | SeveralPreparations:
        """Prepare a request with the budget of this attempt: 0, or 1. Raises ServiceError and BudgetExceeded."""
        ...

    def postprocess(
        self, outputs: Arrays, samples: Samples, request: Request, render: Callable[[Answer], bytes]
    ) -> bytes:
        """Return the body of the answer. Raises ServiceError."""
        ...


@dataclass(frozen=True)
class EngineContext:
    """What the pipelines of all models share.

    Attributes:
        device: runs graphs.
        isolate: returns a task whose steps run outside the interpreter of the server.
        decoders: prepare uploads with it: files, and bodies that are not small.
        slow_decoders: prepare those again that exceeded their budget in `decoders`, with a larger one. Whatever waits
            here keeps no ordinary file waiting.
        workers: post-process requests of tasks with `decodes_files`, in parallel.
        interpreter: prepares and post-processes all other requests, on a single thread: they hold the interpreter's
            lock, so further threads would only wait for each other and delay the event loop.
        limits: sizes that a request may have.
        metrics: counters and histograms of the service.
        hop_s: seconds that it costs to hand work to another thread; cheaper steps run on the event loop.
        on_device_lost: called with the reason when the device has failed for good.
        on_traced_batch: called, in any thread, with a batch of which at least one request is recorded.
        memory: the account of the memory that decoders, runs on the CPU and encoders share.
    """

    device: WorkerPool
    isolate: Callable[[Task], IsolatedTask]
    decoders: WorkerPool
    slow_decoders: WorkerPool
    workers: WorkerPool
    interpreter: WorkerPool
    limits: Limits
    metrics: Metrics
    hop_s: float = DEFAULT_HOP_S
    on_device_lost: Callable[[str], None] = lambda reason: None
    on_traced_batch: Callable[[BatchOutcome], None] = lambda batch: None
    memory: MemoryBudget = field(default_factory=MemoryBudget)
