"""Shadow traffic: mirror client requests to a new version, compare its answers, and promote it or roll it back.

A fraction of the answered requests is mirrored after the client has its answer: with low priority, one at a time per
version, a limited number in all, and none while the device is busy. Nothing that happens to a mirrored request affects
a client. A mirrored request holds leases on both versions, and is skipped if one of them is retired already.

Answers are compared with those that clients received. Timings are not, because a mirrored request shares its batch with
other (and fewer) requests than the original. Instead, both versions are timed on the mirrored request, in alternating
order.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from weakref import ref

from service.engine.admission import OPTION_FIELDS, RequestOptions
from service.engine.request import Body, Parse, PredictRequest, RequestState, Trace
from service.errors import DeadlineExceeded, DeviceHung, Overloaded, ServiceError
from service.metrics import Metrics
from service.models.model import Model
from service.models.promotion import Comparison, Decision, Failure, PromotionPolicy, ShadowEvaluation, Timing
from service.models.repository import Repository
from tasks.contract import Answer
from tasks.manifest import MODEL

_LOG = logging.getLogger(__name__)
_ALL = "all"
_MAX_IN_FLIGHT = 4
_MAX_BYTES = 32_000_000
"""Total size of the request bodies that are kept to be mirrored."""
_MAX_EVALUATIONS = 20
_WORK_STAGES = ("decode", "infer", "postprocess")
_CAPACITY_ERRORS = (Overloaded, DeadlineExceeded, DeviceHung, TimeoutError)
_STARTED_STAGES = ("infer", "finish")
"""A request in one of these stages got the device: if it does not finish, that is the version's fault."""


@dataclass
class _CapturingRenderer:
    """Renders an answer and keeps it."""

    render: Callable[[Answer], bytes]
    answer: Answer | None = None

    def __call__(self, answer: Answer) -> bytes:
        self.answer = answer
        return self.render(answer)


@dataclass
class _RunningEvaluation:
    """The evaluation of a version in memory. The reference is weak, so that the version can be unloaded."""

    name: str
    version: str
    model: "ref[Model]"
    evaluation: ShadowEvaluation
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(frozen=True)
class _MirroredRequest:
    """A client's request, the version that answered it, the captured answer, and the evaluation it is mirrored for."""

    request: PredictRequest
    served: Model
    captured: _CapturingRenderer
    running: _RunningEvaluation


@dataclass(frozen=True)
class SharedDecision:
    """A decision about a shadow version, for all processes of a server.

    Attributes:
        sha256: of the graph, because a version may be published again under its number.
        process: the process that has made it, and counts it.
    """

    name: str
    version: str
    sha256: str
    promoted: bool
    reason: str
    process: int = 0


class ShadowTraffic:
    """Mirrors requests and acts on the results. All methods must be called in one event loop.

    Args:
        fractions: the fraction of its traffic that is mirrored, per model; `all` stands for models not named.
        timeout_s: time limit of a mirrored request.
        is_busy: whether requests are waiting for the device; nothing is mirrored then.
        draw: returns random numbers from 0 to 1.
    """

    def __init__(
        self,
        repository: Repository,
        metrics: Metrics,
        fractions: Mapping[str, float],
        policy: PromotionPolicy,
        *,
        timeout_s: float = 30.0,
        is_busy: Callable[[], bool] = lambda: False,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._repository = repository
        self._metrics = metrics
        self._fractions = fractions
        self._policy = policy
        self._timeout_s = timeout_s
        self._is_busy = is_busy
        self._draw = draw
        self._evaluations: dict[tuple[str, str], _RunningEvaluation] = {}
        self._in_flight: dict[asyncio.Task[None], int] = {}
        """The bytes of each mirrored request's body."""
        self._comparison_thread = ThreadPoolExecutor(1, thread_name_prefix="shadow")
        self.announce: Callable[[SharedDecision], None] | None = None
        """Passes a decision on to all processes of this server, which call `follow`; None if there is only this one."""

    def fraction_for(self, name: str) -> float:
        """Return the fraction of a model's traffic that is mirrored to its new versions, 0 to 1."""
        return self._fractions.get(name, self._fractions.get(_ALL, 0.0))

    def unknown_models(self) -> list[str]:
        """Return the names in `fractions` that are not models in the repository."""
        return sorted(self._fractions.keys() - {entry.name for entry in self._repository.entries()} - {_ALL})

    def evaluation_of(self, name: str, version: str) -> ShadowEvaluation | None:
        """Return a version's evaluation, running or decided; None if there was none or many have started since."""
        for shadow in self._repository.shadow_models():
            if (shadow.manifest.name, shadow.manifest.version) == (name, version):
                return self._get_or_start(shadow).evaluation
        running = self._evaluations.get((name, version))
        if running is not None:
            running.evaluation.stop("It is not a shadow version any more: it was promoted, unloaded or removed.")
        return running.evaluation if running else None

    def capture(self, model: Model, request: PredictRequest, trace: Trace) -> PredictRequest:
        """Decide whether to mirror a request; if so, return it with a renderer that captures the answer."""
        shadow = self._repository.shadow_of(model) if self._fractions else None
        if shadow is None or self._draw() >= self.fraction_for(model.manifest.name):
            return request
        captured = _CapturingRenderer(request.render)
        trace.mirror = _MirroredRequest(request, model, captured, self._get_or_start(shadow))
        return replace(request, render=captured, keeps_answer=True)

    def mirror(self, trace: Trace) -> None:
        """Mirror a captured request in the background, or skip it if there is no capacity.

        To be called when the client has its answer.
        """
        mirrored, trace.mirror = trace.mirror, None
        if not isinstance(mirrored, _MirroredRequest) or trace.status != 200 or mirrored.captured.answer is None:
            return
        size = mirrored.request.size
        fits = len(self._in_flight) < _MAX_IN_FLIGHT and sum(self._in_flight.values()) + size <= _MAX_BYTES
        if not fits or self._is_busy():
            self._skip(mirrored.running)
            return
        task = asyncio.get_running_loop().create_task(self._evaluate(mirrored, trace.request_id))
        self._in_flight[task] = size
        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        del self._in_flight[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.error("mirrored request failed", exc_info=error)

    def _get_or_start(self, shadow: Model) -> _RunningEvaluation:
        """Return the evaluation of this very model; a version that was loaded again starts a new one."""
        key = (shadow.manifest.name, shadow.manifest.version)
        running = self._evaluations.get(key)
        if running is None or running.model() is not shadow:
            self._evaluations.pop(key, None)
            running = self._evaluations[key] = _RunningEvaluation(*key, ref(shadow), ShadowEvaluation(self._policy))
            while len(self._evaluations) > _MAX_EVALUATIONS:
                del self._evaluations[next(iter(self._evaluations))]
        return running

    def _skip(self, running: _RunningEvaluation) -> None:
        running.evaluation.skip()
        self._metrics.shadow_requests.labels(running.name, running.version, "skipped").inc()

    async def _evaluate(self, mirrored: _MirroredRequest, request_id: str) -> None:
        running = mirrored.running
        async with running.lock:
            shadow = running.model()
            if shadow is None or running.evaluation.decision is not None:
                return
            result = await self._compare_with_leases(shadow, mirrored, request_id)
            if result is None:
                self._skip(running)
                return
            self._record_metrics(running, result)
            if decision := running.evaluation.add(result):
                if self.announce is None:
                    self._apply(decision, running, shadow)
                else:
                    self.announce(_to_share(decision, shadow))

    async def _compare_with_leases(
        self, shadow: Model, mirrored: _MirroredRequest, request_id: str
    ) -> Comparison | Failure | None:
        """Compare the two versions; return None if one of them is retired, or got no time on the device."""
        with ExitStack() as leases:
            for model in (shadow, mirrored.served):
                if not model.leases.try_acquire():
                    return None
                leases.enter_context(model.leases)
            return await self._compare(shadow, mirrored, request_id)

    async def _compare(self, shadow: Model, mirrored: _MirroredRequest, request_id: str) -> Comparison | Failure | None:
        """Send the request to both versions; return None if one of them got no time on the device."""
        captured, state = _CapturingRenderer(mirrored.request.render), RequestState()
        served_first = mirrored.running.evaluation.requests % 2 == 0
        served_timing = await self._time_served(mirrored) if served_first else None
        try:
            shadow_timing = await self._predict(shadow, mirrored.request, captured, state)
            agreement = await asyncio.get_running_loop().run_in_executor(
                self._comparison_thread, mirrored.served.task.agreement, mirrored.captured.answer, captured.answer
            )
        except (ServiceError, TimeoutError) as error:
            if state.stage not in _STARTED_STAGES and isinstance(error, _CAPACITY_ERRORS):
                return None
            reason = f"{error.code}: {error}" if isinstance(error, ServiceError) else "The request timed out."
            return Failure(request_id, reason)
        except Exception as error:
            _LOG.exception("shadow version failed", extra={"fields": _log_fields(mirrored.running)})
            return Failure(request_id, f"{type(error).__name__}: {error}")
        if not served_first:
            served_timing = await self._time_served(mirrored)
        if served_timing is None:
            return None
        return Comparison(request_id, served_timing, shadow_timing, agreement, served_first)

    async def _time_served(self, mirrored: _MirroredRequest) -> Timing | None:
        """Time the served version under the same conditions; return None if it could not answer."""
        renderer = _CapturingRenderer(mirrored.request.render)
        try:
            return await self._predict(mirrored.served, mirrored.request, renderer, RequestState())
        except (ServiceError, TimeoutError):
            return None

    async def _predict(
        self, model: Model, request: PredictRequest, renderer: _CapturingRenderer, state: RequestState
    ) -> Timing:
        """Send a request with low priority, whatever the client asked for, and without taking a client's permit."""
        options = RequestOptions(self._timeout_s, "low")
        option_fields = [name for name in OPTION_FIELDS if name not in model.task.request_type.model_fields]
        parse = partial(_parse_without, option_fields, request.parse)
        request = replace(request, render=renderer, keeps_answer=True, options=options, parse=parse)
        deadline = model.pipeline.admission.make_deadline(options, asyncio.get_running_loop().time())
        async with asyncio.timeout(self._timeout_s):
            result = await model.pipeline.predict(request, deadline, state)
        work_s = sum(result.stages.get(stage, 0.0) for stage in _WORK_STAGES)
        return Timing(result.stages.get("infer", 0.0), work_s, sum(result.stages.values()))

    def _record_metrics(self, running: _RunningEvaluation, result: Comparison | Failure) -> None:
        labels, metrics = (running.name, running.version), self._metrics
        if isinstance(result, Failure):
            metrics.shadow_requests.labels(*labels, "failed").inc()
            return
        metrics.shadow_requests.labels(*labels, "compared").inc()
        metrics.shadow_agreement.labels(*labels).observe(result.agreement)
        metrics.shadow_seconds.labels(*labels, "served").observe(result.served.work_s)
        metrics.shadow_seconds.labels(*labels, "shadow").observe(result.shadow.work_s)

    def follow(self, shared: SharedDecision, *, counts: bool) -> None:
        """Act on a decision of this or another process, if the version is still a shadow here.

        `counts` is whether the decision is counted and logged here.
        """
        for shadow in list(self._repository.shadow_models()):
            manifest = shadow.manifest
            key = (manifest.name, manifest.version, manifest.files[MODEL].sha256)
            if key == (shared.name, shared.version, shared.sha256):
                running, decision = self._get_or_start(shadow), Decision(shared.promoted, shared.reason)
                running.evaluation.accept(decision)
                self._apply(decision, running, shadow, counts=counts)

    def _apply(self, decision: Decision, running: _RunningEvaluation, shadow: Model, *, counts: bool = True) -> None:
        if decision.promoted:
            self._repository.promote(shadow)
        else:
            self._repository.roll_back(shadow, rolled_back(decision.reason))
        if not counts:
            return
        verdict = "promoted" if decision.promoted else "rolled_back"
        self._metrics.shadow_decisions.labels(running.name, running.version, verdict).inc()
        fields = _log_fields(running) | {"decision": verdict, "reason": decision.reason}
        _LOG.info("shadow version decided", extra={"fields": fields})

    def close(self) -> None:
        """Cancel all mirrored requests."""
        for task in list(self._in_flight):
            task.cancel()
        self._comparison_thread.shutdown(wait=False, cancel_futures=True)


def rolled_back(reason: str) -> str:
    """Return the explanation for a version that failed its evaluation."""
    return f"It was rolled back. {reason}"


def _to_share(decision: Decision, shadow: Model) -> SharedDecision:
    manifest = shadow.manifest
    sha256 = manifest.files[MODEL].sha256
    return SharedDecision(manifest.name, manifest.version, sha256, bool(decision.promoted), decision.reason)


def _log_fields(running: _RunningEvaluation) -> dict[str, Any]:
    return {"model": running.name, "version": running.version}


def _parse_without(names: list[str], parse: Parse, body: Body) -> Mapping[str, Any]:
    return {name: value for name, value in parse(body).items() if name not in names}
