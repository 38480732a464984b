"""What the pipelines of all models share: thread pools, request limits and metrics.

Knows nothing about any single model; `service/server.py` creates it.
"""

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from service.engine.latency import DEFAULT_HOP_S
from service.engine.scheduler import Scheduler
from service.metrics import Metrics
from tasks.contract import Limits


@dataclass(frozen=True)
class WorkerPool:
    """Threads, and the scheduler that orders the work they are given."""

    threads: Executor
    scheduler: Scheduler


@dataclass(frozen=True)
class EngineContext:
    """What the pipelines of all models share.

    Attributes:
        device: runs graphs.
        workers: decode and post-process requests of tasks whose `decodes_files`, in parallel.
        interpreter: does the same for all other tasks, on a single thread: they hold the interpreter's lock, so further
            threads would only wait for each other and delay the event loop.
        limits: sizes that a request may have.
        metrics: counters and histograms of the service.
        hop_s: seconds that it costs to hand work to another thread; cheaper steps run on the event loop.
        on_device_lost: called with the reason when the device has failed for good.
    """

    device: WorkerPool
    workers: WorkerPool
    interpreter: WorkerPool
    limits: Limits
    metrics: Metrics
    hop_s: float = DEFAULT_HOP_S
    on_device_lost: Callable[[str], None] = lambda reason: None
