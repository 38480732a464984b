"""What all models of a service share."""

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from service.engine.latency import CHEAP_S
from service.engine.scheduler import Scheduler
from service.metrics import Metrics
from tasks.contract import Limits


@dataclass(frozen=True)
class WorkerPool:
    """Threads, and the order in which they are given work."""

    threads: Executor
    scheduler: Scheduler


@dataclass(frozen=True)
class EngineContext:
    """What all models of a service share.

    Attributes:
        device: where graphs run.
        workers: where pictures are decoded and encoded, side by side.
        interpreter: where all other requests are read and answers finished, one after the other: Python does that, one
            thread at a time, and more of them would only wait for each other and keep the event loop waiting.
        limits: of what a request may ask for.
        metrics: where all is counted.
        hop_s: what it costs to have another thread do something; less is done on the event loop.
        on_lost: is told when the device has failed for good.
    """

    device: WorkerPool
    workers: WorkerPool
    interpreter: WorkerPool
    limits: Limits
    metrics: Metrics
    hop_s: float = CHEAP_S
    on_lost: Callable[[str], None] = lambda reason: None
