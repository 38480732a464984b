"""What the pipelines of all models share: thread pools, request limits and metrics.

Knows nothing about any single model; `service/server.py` creates it.
"""

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from service.engine.latency import DEFAULT_HOP_S
from service.engine.preparation import Preparation, PreparationRules, SeveralPreparations
from service.engine.request import PredictRequest
from service.engine.scheduler import Scheduler
from service.metrics import Metrics
from tasks.contract import Limits, Task


@dataclass(frozen=True)
class WorkerPool:
    """Threads, and the scheduler that orders the work they are given."""

    threads: Executor
    scheduler: Scheduler


Prepare = Callable[[PreparationRules, PredictRequest], Preparation | SeveralPreparations]
"""Prepares requests of one task. Blocks its thread until the result is there; raises ServiceError, BudgetExceeded."""


@dataclass(frozen=True)
class Decoders:
    """Prepares requests outside the interpreter of the server.

    Attributes:
        pool: its threads wait for the results, and its scheduler orders the requests.
        register: returns the function that prepares requests of a task; may block for a moment.
    """

    pool: WorkerPool
    register: Callable[[Task], Prepare]


@dataclass(frozen=True)
class EngineContext:
    """What the pipelines of all models share.

    Attributes:
        device: runs graphs.
        decoders: prepares uploads: files, and bodies that are not small.
        slow_decoders: prepares those again that exceeded their budget in `decoders`, with a larger one. Whatever waits
            here keeps no ordinary file waiting.
        workers: post-process requests of tasks with `decodes_files`, in parallel.
        interpreter: prepares and post-processes all other requests, on a single thread: they hold the interpreter's
            lock, so further threads would only wait for each other and delay the event loop.
        limits: sizes that a request may have.
        metrics: counters and histograms of the service.
        hop_s: seconds that it costs to hand work to another thread; cheaper steps run on the event loop.
        on_device_lost: called with the reason when the device has failed for good.
    """

    device: WorkerPool
    decoders: Decoders
    slow_decoders: Decoders
    workers: WorkerPool
    interpreter: WorkerPool
    limits: Limits
    metrics: Metrics
    hop_s: float = DEFAULT_HOP_S
    on_device_lost: Callable[[str], None] = lambda reason: None
