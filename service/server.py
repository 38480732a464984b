"""Service: creates the parts of the server, connects them, and starts and stops them."""

import asyncio
import gc
import logging
import math
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TypeVar

from starlette.types import ASGIApp

from service.backends.base import Backend, OpenBackend, Runtime
from service.backends.cores import available_cores
from service.backends.cpu_features import has_int8_dot_product
from service.backends.memory import HostMemory, keep_heap_small, return_large_blocks
from service.backends.onnx import OnnxRuntime, onnxruntime_version
from service.backends.runtimes import GRAPH_FILES, make_runtime
from service.decoding.fork_server import ForkServer
from service.decoding.pool import Budget, DecoderPool
from service.engine.admission import ModelLimits
from service.engine.batcher import BatchPolicy
from service.engine.context import EngineContext, WorkerPool
from service.engine.latency import BUSY_HOP_FACTOR, measure_hop
from service.engine.memory_budget import MemoryBudget, MemoryPlan, model_bytes
from service.engine.pipeline import Pipeline
from service.engine.scheduler import Scheduler
from service.http.api_keys import ApiKeys
from service.http.health import Load
from service.http.request_body import BodyBudget
from service.http.tls import ServerCertificate
from service.http.warmup_requests import send_warmup_requests
from service.metrics import LiveGauge, Metrics
from service.models.device_work import DeviceWork, ScheduledWork, Submit, run_directly
from service.models.model import Model
from service.models.precision import PrecisionPolicy
from service.models.promotion import PromotionPolicy
from service.models.repository import Repository
from service.models.shadow_traffic import ShadowTraffic
from service.models.verification import GoldenRun
from service.models.warmup import warm_up
from service.process.liveness import Liveness
from service.process.memory_release import release_memory_when_idle
from service.process.watched_files import Contents, UnusableFile, WatchedFiles
from service.settings import InvalidSetting, Settings
from service.tracing.spans import Tracer
from tasks.contract import Limits, Task
from tasks.manifest import UnreadableModel, graph_and_goldens

_LOG = logging.getLogger(__name__)
T = TypeVar("T")
VERSION = "0.1.0"
"""The version of the program; that of pyproject.toml."""
_INFO_LABELS = ["model", "version", "task", "device", "provider", "variant", "precision", "sha256"]
_MEMORY_TIMEOUT_S = 1.0
"""How long a scrape waits for the memory of the devices."""
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_MAX_BATCH_SIZE = 256
_MAX_PARALLEL_LOADS = 4
_FIRST_BUDGET = 0.08
"""Processor time that a body gets at first, as a fraction of the setting; few ordinary photos need more."""
_BUDGET_PER_BYTE = 0.1e-6
"""What each byte of a body adds to its budget, as a fraction of the setting."""
_MAX_LOAD_SECONDS = 600.0
_WATCH_INTERVAL_S = 1.0
"""How often files of settings are read; a change takes effect when two reads in a row have seen it."""
_LOADING_BYTES, _MIN_REQUEST_BYTES = 40_000_000, 60_000_000
"""What loading a model needs in addition for a moment, and what is left for requests at least."""
_MUCH_MORE = 1.25
"""Memory is divided anew when there is more by this factor."""
_LOADING_FRACTION = 0.25
"""The fraction of the free memory for requests while models are being loaded, which need the rest."""
_FREE_MEMORY_FRACTION = 0.8
"""Default limit for all concurrent runs on a device, as a fraction of the memory that is free after loading."""


class Service:
    """The parts of a running server.

    Args:
        settings: the settings.
        open_backend: the runtime; by default the one of the settings, on their device.
        tracer: records requests and batches; by default nothing does.
        host: the memory of the machine.
        processes: how many processes the server has, each with a service of its own.
        fork_server: starts the processes that decode; by default one of its own.

    Raises BackendError if that device is unavailable, BrokenModel if the model folder does not exist, and
    InvalidSetting if a file of the settings cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        open_backend: OpenBackend | None = None,
        tracer: Tracer | None = None,
        host: HostMemory | None = None,
        processes: int = 1,
        fork_server: ForkServer | None = None,
    ) -> None:
        self.settings = settings
        self._processes = processes
        self.tracer = tracer
        self.metrics = Metrics(settings.objective_ms / 1000)
        self.draining = False
        self.liveness = Liveness()
        self._watched: list[WatchedFiles] = []
        self.api_keys = self._load_api_keys(settings)
        self.certificate = self._load_certificate(settings)
        self.body_budget = BodyBudget(settings.max_bodies_bytes)
        self._host = host or HostMemory()
        self.limits = Limits(
            settings.max_pixels,
            settings.max_rows,
            settings.max_answer_pixels,
            settings.max_characters,
            settings.max_inputs,
        )
        self.loaded = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._memory_reading: Future[dict[str, tuple[int | None, int | None]]] | None = None
        self._fork_server = fork_server or ForkServer()
        processes, slow, workers = settings.worker_counts(available_cores())
        self.memory = MemoryBudget(decoders=processes, on_shortage=self._release_for_others)
        self._decoder_pool = self._make_decoder_pool(processes + slow + workers, processes)
        self._plan_memory()
        is_small = self.memory.plan.is_small
        return_large_blocks()
        if is_small:
            keep_heap_small()
        self._plan_memory(fraction=_LOADING_FRACTION)
        self._add_threads(processes, slow, workers)
        self.repository = self._make_repository(open_backend or _checked_runtime(settings), is_small=is_small)
        self.shadows = self._make_shadows()
        self.repository.scan()
        self._add_gauges()

    def _add_threads(self, processes: int, slow: int, workers: int) -> None:
        # Files that take long to decode are stopped by their budget; the device does not hang because of them.
        self._decoders = self._worker_pool("decoder", processes, hang_timeout_s=0.0)
        self._slow_decoders = self._worker_pool("slow-decoder", slow, hang_timeout_s=0.0)
        self._workers = self._worker_pool("worker", workers, hang_timeout_s=0.0)
        # Its one thread is given two jobs at a time; otherwise it would be idle until the event loop hands it the next.
        self._interpreter = self._worker_pool("interpreter", 2, threads=1)
        self._device_pools: dict[str, WorkerPool] = {}
        self._device_pools_lock = Lock()
        self._scheduled_work: dict[str, ScheduledWork] = {}
        self._hop_s = BUSY_HOP_FACTOR * measure_hop(self._workers.threads)
        self._loader = self._thread_pool("loader", 1)
        self._files = self._thread_pool("files", 1)
        self._memory_reader = self._thread_pool("device-memory", 1)

    def _make_decoder_pool(self, processes: int, quick: int) -> DecoderPool:
        budgets = tuple(
            Budget(fraction * self.settings.decode_seconds, fraction * self.settings.decode_seconds * _BUDGET_PER_BYTE)
            for fraction in (_FIRST_BUDGET, 1.0)
        )
        return DecoderPool(
            self._fork_server,
            processes,
            quick,
            budgets,
            on_killed=lambda reason: self.metrics.decoders_killed.labels(reason).inc(),
            memory=self.memory,
        )

    def _make_repository(self, open_backend: OpenBackend, *, is_small: bool) -> Repository:
        return Repository(
            self.settings.models,
            self.settings.versions,
            open_backend,
            self._make_pipeline,
            # What a model needs while it is verified and measured is a multiple of what it needs later.
            concurrency=1 if is_small else min(max(1, available_cores() // self._processes), _MAX_PARALLEL_LOADS),
            pins={name: str(version) for name, version in self.settings.pin.items()},
            only=frozenset(self.settings.only),
            submit_to=self._submit_to,
            needs_evaluation=lambda name: self.shadows.fraction_for(name) > 0,
            precision=_precision_policy(self.settings, open_backend),
            check_memory=self._check_memory,
            on_retired=self._on_retired,
            on_removed=self._on_removed,
            on_loaded=self._on_loaded,
            on_failed=lambda name, _: self.metrics.load_failures.labels(name).inc(),
            graph_file=GRAPH_FILES[self.settings.backend],
        )

    def _make_shadows(self) -> ShadowTraffic:
        settings = self.settings
        return ShadowTraffic(
            self.repository,
            self.metrics,
            settings.shadow,
            PromotionPolicy(
                settings.shadow_requests, settings.shadow_agreement, settings.shadow_slowdown, settings.shadow_errors
            ),
            timeout_s=settings.timeout_ms / 1000,
            is_busy=lambda: any(not pool.scheduler.is_free for pool in self._device_pools.values()),
        )

    def _add_gauges(self) -> None:
        self.metrics.watch(self._live_gauges)
        self.metrics.watch(self._device_gauges)
        self.metrics.watch_in_thread(self._device_memory_gauges)
        self.metrics.build_info.labels(VERSION, platform.python_version(), onnxruntime_version()).set(1)

    def _load_api_keys(self, settings: Settings) -> ApiKeys | None:
        if settings.api_keys_file is None:
            return None
        keys = ApiKeys(settings.api_keys_file)
        self._watch("api_keys", [settings.api_keys_file], keys.use)
        return keys

    def _load_certificate(self, settings: Settings) -> ServerCertificate | None:
        if settings.tls_cert is None or settings.tls_key is None:  # `Settings` allows no half.
            return None
        certificate = ServerCertificate(settings.tls_cert, settings.tls_key)
        self._watch("tls", [settings.tls_cert, settings.tls_key], certificate.use)
        return certificate

    def _watch(self, label: str, paths: Sequence[Path], use: Callable[[Contents], None]) -> None:
        """Use the contents of files, now and whenever they change. Raises InvalidSetting."""
        files = WatchedFiles(label, paths, use, self.metrics.reload_failures.labels(label).inc)
        try:
            files.load()
        except UnusableFile as error:
            raise InvalidSetting(str(error)) from None
        self._watched.append(files)

    def check_files(self) -> None:
        """Look for changes of the files that settings name."""
        for files in self._watched:
            files.check()

    async def watch_files(self) -> None:
        """Look for changes of the files that settings name, at intervals until cancelled; return if there are none.

        They are read in a thread of their own, since a folder of the network may not respond.
        """
        while self._watched:
            await asyncio.sleep(_WATCH_INTERVAL_S)
            await asyncio.get_running_loop().run_in_executor(self._files, self.check_files)

    def _thread_pool(self, name: str, threads: int) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(threads, thread_name_prefix=name, initializer=self.liveness.thread_initializer(name))

    def _worker_pool(
        self,
        name: str,
        concurrency: int,
        threads: int = 0,
        hang_timeout_s: float | None = None,
        *,
        uses_host_memory: bool = True,
    ) -> WorkerPool:
        scheduler = Scheduler(
            concurrency,
            threads,
            shared_memory=self.memory if uses_host_memory else None,
            hang_timeout_s=self.settings.hang_seconds if hang_timeout_s is None else hang_timeout_s,
            on_hung=partial(self._on_hung, name),
            on_fault=partial(self._on_fault, name),
        )
        return WorkerPool(self._thread_pool(name, threads or concurrency), scheduler)

    def _device_pool(self, device: str) -> WorkerPool:
        with self._device_pools_lock:  # Models are loaded in parallel.
            if device not in self._device_pools:
                # On a CPU, each core runs one batch while another one waits for it.
                default = 2 if device == "cuda" else 2 * available_cores()
                concurrency = self.settings.batches_at_once or default
                self._device_pools[device] = self._worker_pool(device, concurrency, uses_host_memory=device == "cpu")
                if device == "cpu":
                    self.memory.keeper = self._device_pools[device].scheduler
            return self._device_pools[device]

    def _on_hung(self, pool: str, count: int) -> None:
        self.metrics.hung.labels(pool).set(count)
        if count:
            self.liveness.fail(pool, f"{count} run(s) not finished within {self.settings.hang_seconds:g} s.")
        else:
            self.liveness.resolve(pool)

    def _on_fault(self, pool: str, error: BaseException) -> None:
        self.metrics.stray_errors.inc()
        _LOG.error("internal error in the scheduler", exc_info=error)
        self.liveness.fail("scheduler", f"Internal error in the scheduler of '{pool}': {error!r}.")

    def _submit_to(self, device: str) -> Submit:
        """Return how the loader runs work on a device: directly at start, through its scheduler afterwards."""
        if self._loop is None or not self.loaded.is_set():
            return run_directly
        if device not in self._scheduled_work:
            self._scheduled_work[device] = ScheduledWork(self._device_pool(device), self._loop)
        return self._scheduled_work[device]

    def _check_memory(self, graph_bytes: int) -> None:
        """Raise UnreadableModel if a model does not fit into the container: loading it would end the process.

        It is tried again at every rescan.
        """
        limit, free = self._host.limit(), self._host.free()
        needed = model_bytes(graph_bytes) + _LOADING_BYTES
        if limit is not None and free is not None and needed + _MIN_REQUEST_BYTES > free:
            raise UnreadableModel(
                f"It needs about {needed // 1_000_000:,} MB to load, which the container's limit of "
                f"{limit // 1_000_000:,} MB does not leave for it beside what requests need. Raise the "
                "memory limit, or serve fewer models with --only."
            )

    def _warn_about_memory(self) -> None:
        """Log before loading if the models probably do not fit."""
        limit, free = self._host.limit(), self._host.free()
        sizes = [self.repository.graph_bytes(entry) for entry in self.repository.newest_entries()]
        needed = sum(map(model_bytes, sizes)) + (_LOADING_BYTES + _MIN_REQUEST_BYTES if sizes else 0)
        if limit is not None and free is not None and needed > free:
            fields = {"needed_mb": needed // 1_000_000, "free_mb": free // 1_000_000, "limit_mb": limit // 1_000_000}
            _LOG.warning(
                "the models need more memory than the container's limit leaves; those that do not fit are not served",
                extra={"fields": fields},
            )

    def _on_retired(self, pipeline: Pipeline) -> None:
        """Close a pipeline that no request uses, and free what it held."""

        def close() -> None:
            pipeline.close()
            with suppress(RuntimeError):  # The loader has been stopped.
                self._loader.submit(gc.collect)

        self._call_on_loop(close)

    def _on_loaded(self, name: str, version: str, seconds: float) -> None:
        self.metrics.add_version(name, version)
        self.metrics.load_seconds.labels(name, version).set(seconds)

    def _on_removed(self, name: str, version: str) -> None:
        """Remove the series of a version that is gone, so that their number does not grow with every publication."""
        self.metrics.remove_version(name, version)

    def _make_pipeline(
        self,
        name: str,
        version: str,
        task: Task,
        backend: Backend,
        golden_runs: Sequence[GoldenRun],
        work: DeviceWork,
    ) -> Pipeline:
        settings = self.settings
        device_pool = self._device_pool(backend.device)
        context = EngineContext(
            device_pool,
            self._decoder_pool.register,
            self._decoders,
            self._slow_decoders,
            self._workers,
            self._interpreter,
            self.limits,
            self.metrics,
            self._hop_s,
            self.liveness.mark_fatal,
            (lambda batch: None) if self.tracer is None else self.tracer.record_batch,
            memory=self.memory,
        )
        deadline_ms = settings.deadlines.get(name)
        limits = ModelLimits(
            timeout_s=settings.timeout_ms / 1000,
            deadline_s=None if deadline_ms is None else deadline_ms / 1000,
            weight=settings.weights.get(name, 1.0),
            max_in_flight=settings.max_queue,
        )
        policy = BatchPolicy(settings.max_batch or _MAX_BATCH_SIZE, settings.max_delay_ms / 1000)
        pipeline = Pipeline(task, backend, context, name=name, version=version, policy=policy, limits=limits)
        # Once clients are being served, a new version warms up on one core and leaves them the others.
        side_by_side = 1 if self.loaded.is_set() else max(1, device_pool.scheduler.concurrency // 2)
        try:
            find_batch_size = settings.max_batch == 0
            warm_up(pipeline, golden_runs, find_batch_size=find_batch_size, concurrency=side_by_side, work=work)
        except BaseException:
            self._call_on_loop(pipeline.close)
            raise
        return pipeline

    def _call_on_loop(self, callback: Callable[[], None]) -> None:
        """Call it on the event loop, from any thread; do nothing if the loop is closed or has not started."""
        if self._loop is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(callback)

    def _live_gauges(self) -> Iterable[LiveGauge]:
        served = list(self.repository.served_models())
        versions = [[m.manifest.name, m.manifest.version] for m in served]
        depth = [(labels, float(m.pipeline.queue_depth)) for labels, m in zip(versions, served, strict=True)]
        in_flight = [(labels, float(m.pipeline.in_flight)) for labels, m in zip(versions, served, strict=True)]
        ready = [([e.name, e.version], float(e.model is not None)) for e in self.repository.entries()]
        limit = [(labels, float(m.pipeline.batch_limit)) for labels, m in zip(versions, served, strict=True)]
        limits = [(labels, float(m.pipeline.max_in_flight)) for labels, m in zip(versions, served, strict=True)]
        now = asyncio.get_running_loop().time()
        ages = [(labels, _age(m.pipeline, now)) for labels, m in zip(versions, served, strict=True)]
        body_bytes: list[tuple[list[str], float]] = [([], float(self.body_budget.used_bytes))]
        by_version = ["model", "version"]
        kept = "What requests keep in memory: bodies, decoded inputs, answers not yet sent."
        yield "sevenfold_body_bytes", kept, [], body_bytes
        yield "sevenfold_queue_depth", "Samples waiting for a batch.", by_version, depth
        yield "sevenfold_queue_oldest_age_seconds", "Age of the sample that has waited longest.", by_version, ages
        yield "sevenfold_requests_limit", "Maximum concurrent requests; further ones are rejected.", by_version, limits
        yield "sevenfold_requests_in_flight", "Requests accepted and not yet answered.", by_version, in_flight
        yield "sevenfold_model_ready", "1 if the version is being served, else 0.", by_version, ready
        yield "sevenfold_batch_limit", "Maximum batch size, as found by warm-up.", by_version, limit
        yield (
            "sevenfold_model_info",
            "Served versions and what computes them.",
            _INFO_LABELS,
            [_model_info(m, self.repository.graph_file) for m in served],
        )
        yield from self._access_gauges()

    def _access_gauges(self) -> Iterable[LiveGauge]:
        if self.api_keys is not None:
            yield "sevenfold_api_keys", "API keys that are valid.", [], [([], float(len(self.api_keys)))]
        if self.certificate is not None:
            name, text = (
                "sevenfold_tls_certificate_expiry_timestamp_seconds",
                "When the certificate expires (Unix time).",
            )
            yield name, text, [], [([], self.certificate.expires_at)]

    def _device_gauges(self) -> Iterable[LiveGauge]:
        used = sorted({model.pipeline.device for model in self.repository.served_models()})
        yield (
            "sevenfold_device_info",
            "1 for each device that models run on, with the one that the settings request.",
            ["requested", "used"],
            [([self.settings.device, device], 1.0) for device in used],
        )

    def _device_memory_gauges(self) -> Iterable[LiveGauge]:
        """Read the memory of each device in a thread of its own, since a call to a device that hangs may not return.

        The gauges are then without series, so that the other metrics are still exposed.
        """
        backends = {model.pipeline.device: model.pipeline.backend for model in self.repository.served_models()}
        in_use: list[tuple[list[str], float]] = []
        total: list[tuple[list[str], float]] = []
        if self._memory_reading is None or self._memory_reading.done():
            with suppress(RuntimeError):  # The threads have been stopped.
                self._memory_reading = self._memory_reader.submit(_read_memory, backends)
        if self._memory_reading is not None:
            with suppress(TimeoutError, CancelledError):
                for device, (used_bytes, total_bytes) in self._memory_reading.result(_MEMORY_TIMEOUT_S).items():
                    in_use += [] if used_bytes is None else [([device], float(used_bytes))]
                    total += [] if total_bytes is None else [([device], float(total_bytes))]
        help_text = "Memory in use: by this process on a CPU, by all processes on a GPU."
        yield "sevenfold_device_memory_used_bytes", help_text, ["device"], in_use
        yield (
            "sevenfold_device_memory_total_bytes",
            "Memory of the device, or the container's limit.",
            ["device"],
            total,
        )

    def load(self) -> Load:
        """Return how much work waits and is in flight, of all models. To be called on the event loop."""
        pipelines = [model.pipeline for model in self.repository.served_models()]
        now = asyncio.get_running_loop().time()
        return Load(
            queue_depth=sum(pipeline.queue_depth for pipeline in pipelines),
            oldest_age_seconds=max((_age(pipeline, now) for pipeline in pipelines), default=0.0),
            requests_in_flight=sum(pipeline.in_flight for pipeline in pipelines),
            requests_limit=sum(pipeline.max_in_flight for pipeline in pipelines),
        )

    async def load_and_rescan(self, predict_app: ASGIApp) -> None:
        """Load the models, then look for new versions at intervals until cancelled.

        Args:
            predict_app: gets a warm-up request for each model before the models count as loaded.
        """
        self._loop = asyncio.get_running_loop()
        freeze_objects()
        await self._run_in_loader(self._load)
        await send_warmup_requests(predict_app, list(self.repository.served_models()))
        self.repository.loaded = True
        self.loaded.set()
        while self.settings.rescan_seconds:
            await asyncio.sleep(self.settings.rescan_seconds)
            try:
                await self.change_models(self.repository.rescan)
            except Exception:  # Whatever the error, the next rescan tries again.
                _LOG.exception("rescanning the model folder failed")

    def replan_memory(self) -> None:
        """Divide the memory anew, which versions that were loaded or retired have changed, while nothing is in use."""
        if self.memory.plan.is_tight and not self.memory.reserved:
            self._plan_memory()

    async def watch_memory(self) -> None:
        """Let requests use more memory when much more has become free, at intervals until cancelled.

        At start, other programs of the machine may have had it, and requests that are refused change nothing.
        """
        while True:
            await asyncio.sleep(_WATCH_INTERVAL_S)
            if self.loaded.is_set() and self.memory.plan.is_tight and not self.memory.reserved:
                plan = self._make_memory_plan()
                if plan.work > _MUCH_MORE * self.memory.plan.work:
                    self._use_memory_plan(plan)
                    for pool in self._device_pools.values():
                        if pool.scheduler.shared_memory is not None:
                            pool.scheduler.memory_bytes = math.inf
                    self._limit_device_memory()

    async def change_models(self, change: Callable[[], T]) -> T:
        """Run a function that loads or unloads versions in the loader thread, after those that were passed before.

        It is run to its end even if the caller is cancelled.
        """

        def change_and_limit() -> T:
            served = list(self.repository.served_models())
            result = change()
            if served != list(self.repository.served_models()):
                self._set_memory_limits()
            return result

        return await asyncio.shield(self._run_in_loader(change_and_limit))

    async def release_memory(self) -> None:
        """Give memory back to the system whenever no request is in flight, until cancelled."""

        def is_idle() -> bool:
            served = self.repository.served_models()
            return not any(model.pipeline.in_flight for model in served)

        await self.loaded.wait()
        await release_memory_when_idle(
            is_idle=is_idle,
            resident_bytes=HostMemory().in_use,
            # In the thread that loads versions, since it would falsify the memory that these are measured to need.
            release=lambda: asyncio.get_running_loop().run_in_executor(self._loader, self._release_when_idle),
            on_released=lambda before, after: _LOG.debug(
                "released memory", extra={"fields": {"before_mb": round(before / 1e6), "after_mb": round(after / 1e6)}}
            ),
        )

    def _release_when_idle(self) -> None:
        self._release_backends()
        self._call_on_loop(self.replan_memory)

    def _release_for_others(self) -> None:
        """Give back what earlier runs have left in memory, because decoders or encoders wait for it."""

        async def release() -> None:
            try:
                # Not in the loader, which may be busy for seconds.
                await asyncio.get_running_loop().run_in_executor(self._workers.threads, self._release_backends)
            finally:
                self.memory.on_released()

        self._releasing = asyncio.get_running_loop().create_task(release())  # The loop keeps only weak references.

    def _release_backends(self) -> None:
        backends = {model.pipeline.device: model.pipeline.backend for model in self.repository.served_models()}
        for backend in backends.values():
            backend.release()

    def _load(self) -> None:
        self._warn_about_memory()
        self.repository.load_all()
        self._report_no_models()
        known = {entry.name for entry in self.repository.entries()}
        unknown = {
            "shadow": self.shadows.unknown_models(),
            "deadlines": sorted(self.settings.deadlines.keys() - known),
            "weights": sorted(self.settings.weights.keys() - known),
            "pin": sorted(self.settings.pin.keys() - known),
            "only": sorted(set(self.settings.only) - known),
        }
        self._warn_about_admin()
        self._warn_about_pins()
        for setting, names in unknown.items():
            if names:
                fields = {"setting": setting, "names": ", ".join(names)}
                _LOG.warning("a setting names unknown models", extra={"fields": fields})
        self._set_memory_limits()

    def _report_no_models(self) -> None:
        """Log why the server does not become ready, if there is nothing that it could serve."""
        if not any(True for _ in self.repository.entries()):
            fields = {"folder": str(self.settings.models), "rescan_seconds": self.settings.rescan_seconds}
            _LOG.error("no models: not ready until one is published in the folder", extra={"fields": fields})

    def _warn_about_admin(self) -> None:
        settings = self.settings
        if settings.admin and not settings.admin_token and settings.host not in _LOOPBACK:
            _LOG.warning("every client can change what is served: set SEVENFOLD_ADMIN_TOKEN, or leave out --admin")
        if settings.admin_token and not settings.admin:
            _LOG.warning("the admin token has no effect without --admin, which lets operators change versions")

    def _warn_about_pins(self) -> None:
        """Log the models that are not served because the version that a setting selects is not there."""
        versions: dict[str, list[str]] = {}
        for entry in self.repository.entries():
            versions.setdefault(entry.name, []).append(entry.version)
        for name, pinned in self.settings.pin.items():
            if name in versions and str(pinned) not in versions[name]:
                fields = {"setting": "pin", "model": name, "version": str(pinned), "available": versions[name]}
                _LOG.warning("a pinned version is not there, so the model is not served", extra={"fields": fields})

    def _plan_memory(self, *, fraction: float = 1.0) -> None:
        """Divide this fraction of the free memory among requests."""
        self._use_memory_plan(self._make_memory_plan(fraction))

    def _make_memory_plan(self, fraction: float = 1.0) -> MemoryPlan:
        free_bytes = self._host.free()
        return MemoryPlan.of(
            None if free_bytes is None else fraction * free_bytes,
            processes=self._decoder_pool.size,
            started=self._decoder_pool.running,
        )

    def _use_memory_plan(self, plan: MemoryPlan) -> None:
        self.memory.plan = plan
        self.body_budget.max_bytes = round(min(self.settings.max_bodies_bytes, plan.held))

    def _set_memory_limits(self) -> None:
        """Limit the memory of requests, and of all concurrent runs on each new device, by what is free now."""
        self._plan_memory()
        self._limit_device_memory()

    def _limit_device_memory(self) -> None:
        for model in self.repository.served_models():
            scheduler = self._device_pools[model.pipeline.device].scheduler
            free_bytes = model.pipeline.backend.memory_free()
            if math.isinf(scheduler.memory_bytes):
                default = math.inf if free_bytes is None else _FREE_MEMORY_FRACTION * free_bytes / self._processes
                scheduler.memory_bytes = self.settings.memory_mb * 1e6 or default
                if scheduler.shared_memory is not None:
                    scheduler.memory_bytes = min(scheduler.memory_bytes, self.memory.plan.work)

    async def _run_in_loader(self, load: Callable[[], T]) -> T:
        """Run it in the loader thread, so that health checks are answered; liveness fails if it takes too long."""
        loading = asyncio.get_running_loop().run_in_executor(self._loader, load)
        done, _ = await asyncio.wait([loading], timeout=_MAX_LOAD_SECONDS)
        if not done:
            self.liveness.fail("loader", f"Models are still loading after {_MAX_LOAD_SECONDS:g} s; one may hang.")
        result = await loading
        self.liveness.resolve("loader")
        return result

    def close(self) -> None:
        """Stop the threads: cancel work that has not begun, and do not wait for work that is running."""
        self.shadows.close()
        self.repository.close()
        self._decoder_pool.close()
        self._fork_server.close()
        for threads in (
            self._loader,
            self._files,
            self._memory_reader,
            self._decoders.threads,
            self._slow_decoders.threads,
            self._workers.threads,
            self._interpreter.threads,
            *(pool.threads for pool in self._device_pools.values()),
        ):
            threads.shutdown(wait=False, cancel_futures=True)


def freeze_objects() -> None:
    """Exclude all current objects from garbage collection, after collecting the garbage among them.

    To be called once, before models are loaded: most objects are those of the imported modules, which stay, and
    traversing them would take 30 ms in each full collection, during which no request is handled. What a version needs
    is 1,000 objects or so, which are collected when it is retired.
    """
    gc.collect()
    gc.freeze()


def _age(pipeline: Pipeline, now: float) -> float:
    """Return the seconds that the oldest work of a model has waited for the device; 0 if none waits."""
    return max(0.0, now - pipeline.oldest_queued_at)


def _model_info(model: Model, graph_file: str) -> tuple[list[str], float]:
    manifest, backend = model.manifest, model.pipeline.backend
    values = [manifest.name, manifest.version, manifest.task, model.pipeline.device]
    graph = graph_file if model.variant is None else graph_and_goldens(model.variant)[0]
    return [*values, backend.provider, model.precision, backend.precision, manifest.files[graph].sha256], 1.0


def _read_memory(backends: Mapping[str, Backend]) -> dict[str, tuple[int | None, int | None]]:
    """Return the bytes in use and in all, by device."""
    return {device: (backend.memory_in_use(), backend.memory_total()) for device, backend in backends.items()}


def _precision_policy(settings: Settings, open_backend: OpenBackend) -> PrecisionPolicy:
    if settings.backend != "onnxruntime":  # Variants are ONNX files.
        return PrecisionPolicy("fp32")
    is_cuda = isinstance(open_backend, OnnxRuntime) and open_backend.expected_device() == "cuda"
    return PrecisionPolicy(
        settings.precision,
        settings.max_precision_loss,
        "cuda" if is_cuda else "cpu",
        has_int8_dot_product(),
    )


def _checked_runtime(settings: Settings) -> Runtime:
    runtime = make_runtime(settings.backend, settings.device, settings.threads)
    runtime.check()
    return runtime
