"""Shadow traffic: a new version is asked what clients ask, answers nobody, and is promoted or rolled back by rule.

A share of the requests that were answered is mirrored once the client has its answer: with low priority, one at a time
for each version, few in all, and not at all while the device is busy. Nothing of it reaches a client, whatever becomes
of it.

The answers of a new version are compared with those that clients got. What they take is not: a mirrored request has
less company and other neighbours. Both versions are asked again for that, one after the other, in turn as the first.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from weakref import ref

from service.engine.admission import OPTION_FIELDS, RequestOptions
from service.engine.request import PredictRequest, RequestState, Trace
from service.errors import DeadlineExceeded, DeviceHung, Overloaded, ServiceError
from service.metrics import Metrics
from service.models.evaluation import CanaryEvaluation, Compared, Decision, Failed, PromotionPolicy, Timing
from service.models.repository import Model, Repository
from tasks.contract import Answer

_LOG = logging.getLogger(__name__)
_ALL = "all"
_MAX_IN_FLIGHT = 4
_MAX_BYTES = 32_000_000
"""Of the bodies that are kept to be asked again, all together."""
_MAX_REPORTS = 20
_STEPS = ("decode", "infer", "postprocess")
_STARVED = (Overloaded, DeadlineExceeded, DeviceHung, TimeoutError)
_BEGUN = ("infer", "finish")
"""Where a request is that has come to its turn: what does not end there is the version's fault."""


@dataclass
class _Kept:
    """Makes an answer's bytes, and keeps the answer."""

    render: Callable[[Answer], bytes]
    answer: Answer | None = None

    def __call__(self, answer: Answer) -> bytes:
        self.answer = answer
        return self.render(answer)


@dataclass(frozen=True)
class _Mirrored:
    """A request that is to be asked again: what, who answered it and how, and whose trial it is."""

    message: PredictRequest
    served: Model
    given: _Kept
    running: "_Running"


@dataclass
class _Running:
    """The trial of a version that is in memory. It does not keep the version there."""

    name: str
    version: str
    model: "ref[Model]"
    trial: CanaryEvaluation
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class Shadows:
    """Which requests are mirrored, to whom, and what follows. All methods belong to one event loop.

    `shares` says for each model how much of its traffic a new version is asked; `all` stands for those not named.
    `busy` says whether the device has anything to do; `chance` draws numbers from 0 to 1.
    """

    def __init__(
        self,
        repository: Repository,
        metrics: Metrics,
        shares: Mapping[str, float],
        rule: PromotionPolicy,
        *,
        timeout_s: float = 30.0,
        busy: Callable[[], bool] = lambda: False,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._repository = repository
        self._metrics = metrics
        self._shares = shares
        self._rule = rule
        self._timeout_s = timeout_s
        self._busy = busy
        self._chance = chance
        self._trials: dict[tuple[str, str], _Running] = {}
        self._under_way: dict[asyncio.Task[None], int] = {}
        """With the bytes of each one's body."""
        self._comparing = ThreadPoolExecutor(1, thread_name_prefix="shadow")

    def share_of(self, name: str) -> float:
        """How much of a model's traffic its new versions are asked, 0…1."""
        return self._shares.get(name, self._shares.get(_ALL, 0.0))

    def unknown(self) -> list[str]:
        """Names that have a share and are no model's."""
        return sorted(self._shares.keys() - {entry.name for entry in self._repository.entries()} - {_ALL})

    def trial_of(self, name: str, version: str) -> CanaryEvaluation | None:
        """The trial of a version, also one that is decided; None where there was none, or so many since."""
        for shadow in self._repository.shadows():
            if (shadow.manifest.name, shadow.manifest.version) == (name, version):
                return self._running(shadow).trial
        running = self._trials.get((name, version))
        return running.trial if running else None

    def watch(self, model: Model, message: PredictRequest, trace: Trace) -> PredictRequest:
        """The message to answer, whose answer is kept where the request is to be mirrored."""
        shadow = self._repository.shadow_of(model) if self._shares else None
        if shadow is None or self._chance() >= self.share_of(model.manifest.name):
            return message
        kept = _Kept(message.render)
        trace.mirror = _Mirrored(message, model, kept, self._running(shadow))
        return replace(message, render=kept)

    def follow(self, trace: Trace) -> None:
        """Asks the version in the shadow, now that the client has its answer; or not, where there is no room for it."""
        mirrored, trace.mirror = trace.mirror, None
        if not isinstance(mirrored, _Mirrored) or trace.status != 200 or mirrored.given.answer is None:
            return
        size = mirrored.message.size
        room = len(self._under_way) < _MAX_IN_FLIGHT and sum(self._under_way.values()) + size <= _MAX_BYTES
        if not room or self._busy():
            self._skip(mirrored.running)
            return
        task = asyncio.get_running_loop().create_task(self._ask(mirrored, trace.request_id))
        self._under_way[task] = size
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._under_way[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.error("a mirrored request broke off", exc_info=error)

    def _running(self, shadow: Model) -> _Running:
        """The trial of this very model; a version whose files have changed is tried anew."""
        key = (shadow.manifest.name, shadow.manifest.version)
        running = self._trials.get(key)
        if running is None or running.model() is not shadow:
            self._trials.pop(key, None)
            running = self._trials[key] = _Running(*key, ref(shadow), CanaryEvaluation(self._rule))
            while len(self._trials) > _MAX_REPORTS:
                del self._trials[next(iter(self._trials))]
        return running

    def _skip(self, running: _Running) -> None:
        running.trial.skip()
        self._metrics.shadow_requests.labels(running.name, running.version, "skipped").inc()

    async def _ask(self, mirrored: _Mirrored, request_id: str) -> None:
        running = mirrored.running
        async with running.turn:
            shadow = running.model()
            if shadow is None or running.trial.decision is not None:
                return
            seen = await self._seen(shadow, mirrored, request_id)
            if seen is None:
                self._skip(running)
                return
            self._count(running, seen)
            if decision := running.trial.add(seen):
                self._carry_out(running, shadow, decision)

    async def _seen(self, shadow: Model, mirrored: _Mirrored, request_id: str) -> Compared | Failed | None:
        """What the version makes of the request; None where it, or the one that is served, had no turn."""
        theirs, state = _Kept(mirrored.message.render), RequestState()
        served_first = mirrored.running.trial.requests % 2 == 0
        ours = await self._again(mirrored) if served_first else None
        try:
            timing = await self._timed(shadow, mirrored.message, theirs, state)
            agreement = await asyncio.get_running_loop().run_in_executor(
                self._comparing, mirrored.served.task.agreement, mirrored.given.answer, theirs.answer
            )
        except (ServiceError, TimeoutError) as error:
            if state.stage not in _BEGUN and isinstance(error, _STARVED):
                return None
            said = f"{error.code}: {error}" if isinstance(error, ServiceError) else "It gave no answer in time."
            return Failed(request_id, said)
        except Exception as error:
            _LOG.exception("a version in the shadow failed", extra={"fields": _fields_of(mirrored.running)})
            return Failed(request_id, f"{type(error).__name__}: {error}")
        if not served_first:
            ours = await self._again(mirrored)
        return None if ours is None else Compared(request_id, ours, timing, agreement, served_first)

    async def _again(self, mirrored: _Mirrored) -> Timing | None:
        """What the request takes the version that is served, under the same conditions; None where it had no turn."""
        try:
            return await self._timed(mirrored.served, mirrored.message, _Kept(mirrored.message.render), RequestState())
        except (ServiceError, TimeoutError):
            return None

    async def _timed(self, model: Model, message: PredictRequest, render: _Kept, state: RequestState) -> Timing:
        """Asks with low priority, whatever the client's was, and without taking a client's place."""
        options = RequestOptions(self._timeout_s, "low")
        names = [name for name in OPTION_FIELDS if name not in model.task.request_type.model_fields]
        fields = partial(_without, names, message.parse_fields)
        message = replace(message, render=render, options=options, parse_fields=fields)
        deadline = model.pipeline.admission.make_deadline(options, asyncio.get_running_loop().time())
        async with asyncio.timeout(self._timeout_s):
            result = await model.pipeline.predict(message, deadline, state)
        work_s = sum(result.stages.get(step, 0.0) for step in _STEPS)
        return Timing(result.stages.get("infer", 0.0), work_s, sum(result.stages.values()))

    def _count(self, running: _Running, seen: Compared | Failed) -> None:
        labels, metrics = (running.name, running.version), self._metrics
        if isinstance(seen, Failed):
            metrics.shadow_requests.labels(*labels, "failed").inc()
            return
        metrics.shadow_requests.labels(*labels, "compared").inc()
        metrics.shadow_agreement.labels(*labels).observe(seen.agreement)
        metrics.shadow_seconds.labels(*labels, "served").observe(seen.ours.work_s)
        metrics.shadow_seconds.labels(*labels, "shadow").observe(seen.theirs.work_s)

    def _carry_out(self, running: _Running, shadow: Model, decision: Decision) -> None:
        if decision.promoted:
            self._repository.promote(shadow)
        else:
            self._repository.roll_back(shadow, f"It was tried and rolled back: {decision.reason}")
        word = "promoted" if decision.promoted else "rolled_back"
        self._metrics.shadow_decisions.labels(running.name, running.version, word).inc()
        fields = _fields_of(running) | {"decision": word, "reason": decision.reason}
        _LOG.info("version in the shadow decided", extra={"fields": fields})

    def close(self) -> None:
        """Gives up what is under way."""
        for task in list(self._under_way):
            task.cancel()
        self._comparing.shutdown(wait=False, cancel_futures=True)


def _fields_of(running: _Running) -> dict[str, Any]:
    return {"model": running.name, "version": running.version}


def _without(names: list[str], fields: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
    return {name: value for name, value in fields().items() if name not in names}
