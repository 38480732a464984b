"""The parts of a running server: created, joined, started and stopped in one place."""

import asyncio
import gc
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from threading import Lock
from typing import TypeVar

from starlette.types import ASGIApp

from service.backends.base import Backend, OpenBackend
from service.backends.onnx import OnnxRuntime, available_cores
from service.engine.admission import ModelLimits
from service.engine.batcher import BatchPolicy
from service.engine.context import EngineContext, WorkerPool
from service.engine.latency import BUSY_HOP_FACTOR, measure_hop
from service.engine.pipeline import Pipeline
from service.engine.scheduler import Scheduler
from service.http.request_body import BodyBudget
from service.http.warmup import send_warmup_requests
from service.metrics import LiveGauge, Metrics
from service.models.evaluation import PromotionPolicy
from service.models.repository import Repository
from service.models.shadow import Shadows
from service.models.warmup import GoldenRun, warm_up
from service.process.liveness import Liveness
from service.settings import Settings
from tasks.contract import Limits, Task

_LOG = logging.getLogger(__name__)
T = TypeVar("T")
_MAX_BATCH_SIZE = 256
_MAX_PARALLEL_LOADS = 4
_MAX_LOAD_SECONDS = 600.0
_OF_FREE_MEMORY = 0.8
"""What all runs together may take of the memory that is free once the models are loaded."""


class Service:
    """The parts of a running service, and the way they are joined.

    `open_backend` is the runtime: by default ONNX Runtime on the device of the settings. Raises BackendError where
    that device is not there, and BrokenModel where there is no folder of models.
    """

    def __init__(self, settings: Settings, open_backend: OpenBackend | None = None) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.draining = False
        self._lock = Lock()
        self.liveness = Liveness()
        self.bodies = BodyBudget(settings.max_bodies_bytes)
        self.loaded = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._workers = self._place("worker", settings.workers or available_cores())
        # Two are given to its one thread: else it would stand still whenever the event loop has to give it the next.
        self._interpreter = self._place("interpreter", 2, threads=1)
        self._devices: dict[str, WorkerPool] = {}
        self._hop_s = BUSY_HOP_FACTOR * measure_hop(self._workers.threads)
        self._loader = self._threads(1, "loader")
        self.repository = Repository(
            settings.models,
            settings.versions,
            open_backend or _onnx_runtime(settings),
            self._make_pipeline,
            concurrency=min(available_cores(), _MAX_PARALLEL_LOADS),
            is_tried=lambda name: self.shadows.share_of(name) > 0,
            on_retired=lambda pipeline: self._on_loop(pipeline.close),
            on_loaded=lambda name, version, seconds: self.metrics.load_seconds.labels(name, version).set(seconds),
        )
        self.shadows = Shadows(
            self.repository,
            self.metrics,
            settings.shadow,
            PromotionPolicy(
                settings.shadow_requests, settings.shadow_agreement, settings.shadow_slowdown, settings.shadow_errors
            ),
            timeout_s=settings.timeout_ms / 1000,
            busy=lambda: any(not place.scheduler.is_free for place in self._devices.values()),
        )
        self.repository.scan()
        self.metrics.watch(self._gauges)

    def _threads(self, count: int, name: str) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(count, thread_name_prefix=name, initializer=self.liveness.thread_started(name))

    def _concurrency(self, device: str) -> int:
        """Batches at a time: on a CPU each has one core, and one more waits for it."""
        return self.settings.batches_at_once or (2 if device == "cuda" else 2 * available_cores())

    def _place(self, name: str, concurrency: int, threads: int = 0) -> WorkerPool:
        scheduler = Scheduler(
            concurrency,
            threads,
            hang_timeout_s=self.settings.hang_seconds,
            on_hung=partial(self._on_hung, name),
            on_fault=partial(self._on_fault, name),
        )
        return WorkerPool(self._threads(threads or concurrency, name), scheduler)

    def _on_hung(self, name: str, count: int) -> None:
        self.metrics.hung.labels(name).set(count)
        if count:
            self.liveness.fail(name, f"{count} runs have not come back within {self.settings.hang_seconds:g} s.")
        else:
            self.liveness.resolve(name)

    def _on_fault(self, name: str, error: BaseException) -> None:
        self.metrics.stray_errors.inc()
        _LOG.error("fault in the scheduler", exc_info=error)
        self.liveness.fail("scheduler", f"The scheduler of '{name}' has a fault: {error!r}.")

    def _make_pipeline(self, name: str, task: Task, backend: Backend, proven: Sequence[GoldenRun]) -> Pipeline:
        settings = self.settings
        device = self._device_of(backend)
        around = EngineContext(
            device,
            self._workers,
            self._interpreter,
            Limits(settings.max_pixels, settings.max_rows, settings.max_answer_pixels, settings.max_characters),
            self.metrics,
            self._hop_s,
            self.liveness.mark_fatal,
        )
        deadline_ms = settings.deadlines.get(name)
        limits = ModelLimits(
            timeout_s=settings.timeout_ms / 1000,
            deadline_s=None if deadline_ms is None else deadline_ms / 1000,
            weight=settings.weights.get(name, 1.0),
            max_in_flight=settings.max_queue,
        )
        policy = BatchPolicy(settings.max_batch or _MAX_BATCH_SIZE, settings.max_delay_ms / 1000)
        pipeline = Pipeline(task, backend, around, name=name, policy=policy, limits=limits)
        # A version that comes while clients are served leaves them the other cores.
        side_by_side = 1 if self.loaded.is_set() else max(1, device.scheduler.concurrency // 2)
        try:
            warm_up(pipeline, proven, find_batch_size=settings.max_batch == 0, side_by_side=side_by_side)
        except BaseException:
            self._on_loop(pipeline.close)
            raise
        return pipeline

    def _on_loop(self, step: Callable[[], None]) -> None:
        """Has it done on the event loop, from whichever thread; not at all where the loop has ended."""
        if self._loop is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(step)

    def _device_of(self, backend: Backend) -> WorkerPool:
        with self._lock:  # Models are loaded side by side.
            if backend.device not in self._devices:
                self._devices[backend.device] = self._place(backend.device, self._concurrency(backend.device))
            return self._devices[backend.device]

    def _gauges(self) -> Iterable[LiveGauge]:
        served = list(self.repository.served())
        depth = [([m.manifest.name], float(m.pipeline.queue_depth)) for m in served]
        in_flight = [([m.manifest.name], float(m.pipeline.in_flight)) for m in served]
        ready = [([e.name, e.version], float(e.model is not None)) for e in self.repository.entries()]
        info = [([m.manifest.name, m.manifest.version, m.manifest.task, m.pipeline.device], 1.0) for m in served]
        yield "sevenfold_body_bytes", "Bytes of all bodies under way.", [], [([], float(self.bodies.taken))]
        yield "sevenfold_queue_depth", "Samples that wait for a batch.", ["model"], depth
        yield "sevenfold_requests_in_flight", "Requests accepted and not yet answered.", ["model"], in_flight
        yield "sevenfold_model_ready", "1 where a version is served.", ["model", "version"], ready
        limit = [([m.manifest.name], float(m.pipeline.batch_limit)) for m in served]
        yield "sevenfold_batch_limit", "The most samples in a batch, as found at warm-up.", ["model"], limit
        yield "sevenfold_model_info", "What is served, and where.", ["model", "version", "task", "device"], info

    async def load(self, predictions: ASGIApp) -> None:
        """Loads the models, away from the event loop, so that health is answered meanwhile; then asks each of them."""
        self._loop = asyncio.get_running_loop()
        await self._loading(self._load)
        await send_warmup_requests(predictions, list(self.repository.served()))
        settle_memory()
        self.repository.loaded = True
        self.loaded.set()

    def _load(self) -> None:
        self.repository.load_all()
        there = {entry.name for entry in self.repository.entries()}
        unknown = {"shadow": self.shadows.unknown()}
        unknown |= {name: sorted(getattr(self.settings, name).keys() - there) for name in ("deadlines", "weights")}
        for setting, names in unknown.items():
            if names:
                _LOG.warning("no such model", extra={"fields": {"setting": setting, "names": ", ".join(names)}})
        self._bound_memory()

    def _bound_memory(self) -> None:
        """Says of each device that is new what its runs may take together: of what is free once models are loaded."""
        for model in self.repository.served():
            scheduler = self._devices[model.pipeline.device].scheduler
            free = model.pipeline.backend.memory_free()
            if math.isinf(scheduler.memory_bytes):
                limit = self.settings.memory_mb * 1e6 or (math.inf if free is None else _OF_FREE_MEMORY * free)
                scheduler.memory_bytes = limit

    async def _loading(self, load: Callable[[], T]) -> T:
        """Loads in a thread of its own; liveness fails where that does not come to an end, as a model may hang."""
        loading = asyncio.get_running_loop().run_in_executor(self._loader, load)
        done, _ = await asyncio.wait([loading], timeout=_MAX_LOAD_SECONDS)
        if not done:
            self.liveness.fail("loader", f"Models are still being loaded after {_MAX_LOAD_SECONDS:g} s: one may hang.")
        result = await loading
        self.liveness.resolve("loader")
        return result

    async def watch(self, predictions: ASGIApp) -> None:
        """Loads the models, and takes up the versions that come later; ends only when it is cancelled."""
        await self.load(predictions)
        while self.settings.rescan_seconds:
            await asyncio.sleep(self.settings.rescan_seconds)
            try:
                if await self._loading(self.repository.rescan):
                    self._bound_memory()
                    settle_memory()
            except Exception:  # Whatever it was (a folder that is away for a moment), it is looked at again.
                _LOG.exception("folder of models could not be read again")

    def close(self) -> None:
        """Ends the threads; what has not begun is given up, and what does not return is not waited for."""
        self.shadows.close()
        self.repository.close()
        for pool in (
            self._loader,
            self._workers.threads,
            self._interpreter.threads,
            *(place.threads for place in self._devices.values()),
        ):
            pool.shutdown(wait=False, cancel_futures=True)


def settle_memory() -> None:
    """Lets the garbage collector forget all there is: models stay, and to look through them took 75 ms each time.

    Everything waits meanwhile, refusals too. What was let go since the last time is collected first.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def _onnx_runtime(settings: Settings) -> OnnxRuntime:
    runtime = OnnxRuntime(settings.device, settings.threads)
    runtime.check()
    return runtime
