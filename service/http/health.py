"""Endpoints for operators: liveness, readiness, load and metrics."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Protocol

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from service.http.background import SharedCall
from service.metrics import OPENMETRICS, PROMETHEUS_TEXT, Metrics, choose_exposition
from service.models.repository import Repository
from service.process.liveness import Liveness

PROBES = "/health/[a-z]+|/metrics"
"""The paths of these endpoints, as a regular expression."""
_MAX_REASONS = 3
"""Number of models for which readiness states why they are not served."""


class Live(BaseModel):
    """Whether the process works, or what has failed and why; if it does not, it should be restarted."""

    live: bool
    failures: dict[str, str] = {}


class Started(BaseModel):
    """Whether the models in the folder at startup have been loaded, or have failed to."""

    started: bool


class Ready(BaseModel):
    """Whether requests should be sent here, and which models are being served."""

    ready: bool
    reason: str | None = None
    models: dict[str, bool]


class Load(BaseModel):
    """How busy this server is, over all models; an autoscaler can read it without Prometheus."""

    queue_depth: int
    """Samples waiting for a batch."""
    oldest_age_seconds: float
    """How long the oldest of them has waited."""
    requests_in_flight: int
    """Requests accepted and not yet answered."""
    requests_limit: int
    """Requests that may be in flight; further ones are rejected."""


class ProcessHealth(BaseModel):
    """How a process of the server is, as it says itself."""

    failures: dict[str, str]
    """What fails, and why; empty if the process works."""
    loaded: bool
    """Whether its models have been loaded, or have failed to."""
    reason: str | None
    """Why it is not ready; None if it is."""
    models: dict[str, bool]
    """For each model, whether it is served."""
    load: Load
    accepts: bool = True
    """Whether clients can connect to it: a process that replaces another one loads its models first."""


class Processes(Protocol):
    """The processes of the server: this one, or several."""

    async def read_health(self) -> Mapping[int, ProcessHealth]:
        """Return how each process is, by its number; this one if the others cannot be asked."""
        ...

    async def expose_metrics(self, media_type: str) -> bytes:
        """Return the metrics of all processes in a format."""
        ...


class OnlyProcess:
    """A server of one process."""

    def __init__(self, read: Callable[[], ProcessHealth], metrics: Metrics) -> None:
        """`read` returns how the process is."""
        self._read = read
        self._expositions = {
            media_type: SharedCall(partial(metrics.prepare_exposition, media_type))
            for media_type in (PROMETHEUS_TEXT, OPENMETRICS)
        }

    async def read_health(self) -> Mapping[int, ProcessHealth]:
        """Return how this process is."""
        return {0: self._read()}

    async def expose_metrics(self, media_type: str) -> bytes:
        """Return the metrics of this process."""
        return await self._expositions[media_type]()


def health_router(processes: Processes) -> APIRouter:
    """Return the endpoints. Liveness never depends on models: a restart would not repair a broken model."""
    router = APIRouter(tags=["operation"])

    @router.get("/health/live", summary="Liveness probe", responses={503: {"model": Live}})
    async def live(response: Response) -> Live:
        result = merge_liveness(await processes.read_health())
        response.status_code = 200 if result.live else 503
        return result

    @router.get("/health/started", summary="Startup probe", responses={503: {"model": Started}})
    async def started(response: Response) -> Started:
        # Not readiness: without a model that can be served, a restart would only hide the reason.
        result = merge_started(await processes.read_health())
        response.status_code = 200 if result.started else 503
        return result

    @router.get("/health/ready", summary="Readiness probe", responses={503: {"model": Ready}})
    async def ready(response: Response) -> Ready:
        result = merge_readiness(await processes.read_health())
        response.status_code = 200 if result.ready else 503
        return result

    @router.get("/health/load", summary="Load, for autoscalers")
    async def read_load() -> Load:
        return merge_load(await processes.read_health())

    @router.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def expose_metrics(request: Request) -> Response:
        media_type = choose_exposition(", ".join(request.headers.getlist("accept")))
        exposition = await processes.expose_metrics(media_type)
        return Response(exposition, headers={"content-type": media_type, "vary": "accept"})

    return router


def read_process_health(
    repository: Repository, liveness: Liveness, load: Load, *, draining: bool, accepts: bool = True
) -> ProcessHealth:
    """Return how this process is."""
    models: dict[str, bool] = {}
    for entry in repository.entries():
        models[entry.name] = models.get(entry.name, False) or entry.model is not None
    failures = dict(liveness.failures)
    return ProcessHealth(
        failures=failures,
        loaded=repository.loaded,
        reason=_unready_reason(repository, failures, draining, models),
        models=models,
        load=load,
        accepts=accepts,
    )


def merge_liveness(healths: Mapping[int, ProcessHealth]) -> Live:
    """Return whether any process works: one that fails is replaced, and the others need not be restarted for it."""
    works = any(not health.failures for health in healths.values())
    failures = {
        f"process {index}: {part}" if len(healths) > 1 else part: reason
        for index, health in healths.items()
        for part, reason in health.failures.items()
    }
    return Live(live=works, failures=failures)


def merge_started(healths: Mapping[int, ProcessHealth]) -> Started:
    """Return whether all processes have loaded their models, apart from those that replace others."""
    return Started(started=all(health.loaded for health in _accepting(healths)))


def merge_readiness(healths: Mapping[int, ProcessHealth]) -> Ready:
    """Return whether all processes that clients can connect to are ready, and which models all of them serve."""
    accepting = list(_accepting(healths))
    names = {name: None for health in accepting for name in health.models}
    reason = next((health.reason for health in accepting if health.reason is not None), None)
    return Ready(
        ready=bool(accepting) and reason is None,
        reason=reason if accepting else "No process of the server accepts requests.",
        models={name: all(health.models.get(name, False) for health in accepting) for name in names},
    )


def merge_load(healths: Mapping[int, ProcessHealth]) -> Load:
    """Return the load of all processes together."""
    loads = [health.load for health in healths.values()]
    return Load(
        queue_depth=sum(load.queue_depth for load in loads),
        oldest_age_seconds=max((load.oldest_age_seconds for load in loads), default=0.0),
        requests_in_flight=sum(load.requests_in_flight for load in loads),
        requests_limit=sum(load.requests_limit for load in loads),
    )


def _accepting(healths: Mapping[int, ProcessHealth]) -> Iterator[ProcessHealth]:
    return (health for health in healths.values() if health.accepts)


def _unready_reason(
    repository: Repository, failures: Mapping[str, str], draining: bool, models: dict[str, bool]
) -> str | None:
    if failures:
        return " ".join(f"{part}: {reason}" for part, reason in failures.items())
    if draining:
        return "The server is shutting down."
    if not repository.loaded:
        return "Models are still loading."
    if any(models.values()):
        return None
    if not models:
        return (
            f"The folder of models contains none: {repository.root}. Publish a model there, or mount the volume; it is "
            "looked at again and again."
        )
    reasons = list(repository.unavailable_models().values())[:_MAX_REASONS]
    return " ".join(["No model is being served.", *reasons])
