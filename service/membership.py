"""Connects the service of one process with the other server processes: health, metrics, and what is served."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from service.errors import ModelRejected, ServiceError
from service.http.admin import Action, apply_change
from service.http.background import SharedTask
from service.http.health import Load, OnlyProcess, ProcessHealth, read_process_health
from service.http.shadow_report import ShadowReport, read_report
from service.metrics import OPENMETRICS, PROMETHEUS_TEXT, generator_for
from service.models.model import Entry
from service.models.shadow_traffic import SharedDecision, rolled_back
from service.server import Service
from service.supervisor.channel import Message
from service.supervisor.member import Member, Seat, SupervisorGone
from service.supervisor.merging import MergedMetrics, to_json

_LOG = logging.getLogger(__name__)


def health_of(service: Service, *, accepts: bool = True) -> ProcessHealth:
    """Return how the process of a service is. To be called on its event loop."""
    return read_process_health(
        service.repository, service.liveness, service.load(), draining=service.draining, accepts=accepts
    )


class SingleProcess(OnlyProcess):
    """A server of one process."""

    def __init__(self, service: Service) -> None:
        super().__init__(partial(health_of, service), service.metrics)
        self._service = service

    async def change_version(self, action: Action, name: str, version: str) -> Entry:
        """Load, unload or promote a version."""
        repository = self._service.repository
        return await self._service.change_models(lambda: apply_change(repository, action, name, version))

    async def read_reports(self, name: str, version: str) -> Sequence[ShadowReport]:
        """Return the report on a shadow version, if there is one."""
        report = read_report(self._service.shadows, name, version)
        return [] if report is None else [report]


class OneOfSeveral:
    """A server process that speaks for all of them: what clients ask it is answered by all, and done in all.

    If the supervisor does not answer, health is that of this process alone.
    """

    def __init__(self, service: Service, seat: Seat) -> None:
        self._service = service
        self._member = member = Member(seat)
        self._alone = SingleProcess(service)
        self._changing = asyncio.Lock()
        self._refusal: Exception | None = None
        """Why this process has refused the last change."""
        self.accepts = not seat.is_replacement
        """Whether clients can connect to this process."""
        self._expositions = {
            media_type: SharedTask(partial(self._gather_exposition, media_type))
            for media_type in (PROMETHEUS_TEXT, OPENMETRICS)
        }
        service.shadows.announce = self._announce
        handlers = {
            "health": self._answer_health,
            "tick": self._answer_tick,
            "choices": self._answer_choices,
            "change": self._answer_change,
            "restore": self._answer_restore,
            "decide": self._answer_decide,
            "shadow": self._answer_shadow,
        }
        for what, handler in handlers.items():
            member.handle(what, handler)
        member.tell({"kind": "created"})

    async def start(self, on_gone: Callable[[], None]) -> None:
        """Answer the supervisor from now on. `on_gone` is called if it has ended: nobody else stops this process."""
        await self._member.start(on_gone)

    # What clients ask this process

    async def read_health(self) -> Mapping[int, ProcessHealth]:
        """Return how each process is; this one if the supervisor does not answer."""
        seat = self._member.seat
        try:
            answers = await self._member.gather("health")
        except SupervisorGone:
            return {seat.index: health_of(self._service, accepts=self.accepts)}
        healths = {index: ProcessHealth(**answer) for index, answer in answers.items() if answer is not None}
        if not self._member.all_loaded.is_set():
            healths |= {index: _not_started() for index in range(seat.processes) if index not in healths}
        return healths

    async def expose_metrics(self, media_type: str) -> bytes:
        """Return the metrics of all processes in a format."""
        return await self._expositions[media_type]()

    async def change_version(self, action: Action, name: str, version: str) -> Entry:
        """Load, unload or promote a version in all processes, or in none.

        Raises what the change raises in this process, and ModelRejected if another process cannot make it.
        """
        self._refusal = None
        try:
            problem = await self._member.change({"action": action, "name": name, "version": version})
        except SupervisorGone as error:
            raise ModelRejected(f"{error} What is served may differ between the processes.") from None
        if problem is not None:
            refusal, self._refusal = self._refusal, None
            raise refusal if refusal is not None and str(refusal) == problem else ModelRejected(problem)
        return next(entry for entry in self._service.repository.versions_of(name) if entry.version == version)

    async def read_reports(self, name: str, version: str) -> Sequence[ShadowReport]:
        """Return the reports of all processes on a shadow version."""
        try:
            answers = await self._member.gather("shadow", name=name, version=version)
        except SupervisorGone:
            return await self._alone.read_reports(name, version)
        return [ShadowReport(**answer) for answer in answers.values() if answer is not None]

    async def start_serving(self) -> None:
        """Wait until the models are loaded, and do what the others were told while this process was not there."""
        await self._service.loaded.wait()
        message = await self._member.wait_until_loaded_elsewhere()
        async with self._changing:
            try:
                await self._restore(message["choices"])
            except Exception:  # Better than not to serve at all.
                _LOG.exception("what operators have chosen could not be restored in a new process")
        for fields in message["decisions"]:
            await self._follow(SharedDecision(**fields))

    async def _follow(self, decision: SharedDecision) -> None:
        """Act on a decision that was made before this process was there.

        What was rolled back is perhaps no shadow here: this process began with the newest version but one.
        """
        self._service.shadows.follow(decision, counts=False)
        if decision.promoted:
            return
        reject = partial(
            self._service.repository.reject,
            decision.name,
            decision.version,
            decision.sha256,
            rolled_back(decision.reason),
        )
        try:
            await self._service.change_models(reject)
        except Exception:  # As above.
            _LOG.exception("a version that was rolled back could not be left out in a new process")

    def say_that_it_serves(self) -> None:
        """Tell the supervisor that clients can connect."""
        self.accepts = True
        self._member.tell({"kind": "serving"})

    async def is_first_to_greet(self) -> bool:
        """Wait until all processes serve; return whether this one tells so."""
        await self._member.all_loaded.wait()
        return self._member.seat.index == 0 and not self._member.seat.is_replacement

    async def say_last_counts(self) -> None:
        """Tell the supervisor what has been counted, since this process will not be asked any more."""
        metrics = await asyncio.to_thread(self._service.metrics.prepare_families())
        self._member.tell({"kind": "final", "metrics": to_json(metrics)})

    async def _gather_exposition(self, media_type: str) -> bytes:
        merged = MergedMetrics(await self._member.metrics())
        return await asyncio.to_thread(generator_for(media_type), merged)

    # What the supervisor asks this process

    async def _answer_health(self, query: Message) -> Any:
        return health_of(self._service, accepts=self.accepts).model_dump()

    async def _answer_tick(self, query: Message) -> Any:
        prepare = self._service.metrics.prepare_families()
        metrics = await asyncio.to_thread(lambda: to_json(prepare()))
        failures = dict(self._service.liveness.failures)
        return {"metrics": metrics, "failures": failures, "choices": await self._answer_choices(query)}

    async def _answer_choices(self, query: Message) -> Any:
        return self._service.repository.choices() if self.accepts else None

    async def _answer_change(self, query: Message) -> Any:
        repository = self._service.repository
        async with self._changing:
            before = repository.choices()
            try:
                change = partial(apply_change, repository, query["action"], query["name"], query["version"])
                await self._service.change_models(change)
            except ServiceError as error:
                self._refusal = error
                # What was half done, as a version that could not be loaded, is as before.
                await self._restore(before)
                return {"problem": str(error), "choices": before, "before": before}
            return {"problem": None, "choices": repository.choices(), "before": before}

    async def _answer_restore(self, query: Message) -> Any:
        async with self._changing:
            await self._restore(query["choices"])

    async def _restore(self, choices: Mapping[str, Mapping[str, str]]) -> None:
        await self._service.change_models(lambda: self._service.repository.restore_choices(choices))

    async def _answer_decide(self, query: Message) -> Any:
        decision = SharedDecision(**{key: value for key, value in query.items() if key != "what"})
        self._service.shadows.follow(decision, counts=decision.process == self._member.seat.index)

    async def _answer_shadow(self, query: Message) -> Any:
        report = read_report(self._service.shadows, query["name"], query["version"])
        return None if report is None else report.model_dump()

    def _announce(self, decision: SharedDecision) -> None:
        fields = asdict(decision) | {"process": self._member.seat.index}
        self._member.tell({"kind": "decision", "decision": fields})


def _not_started() -> ProcessHealth:
    load = Load(queue_depth=0, oldest_age_seconds=0.0, requests_in_flight=0, requests_limit=0)
    return ProcessHealth(failures={}, loaded=False, reason="Models are still loading.", models={}, load=load)
