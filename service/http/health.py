"""Endpoints for operators: liveness, readiness, load and metrics."""

from collections.abc import Callable, Mapping
from functools import partial

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


def health_router(
    repository: Repository,
    metrics: Metrics,
    liveness: Liveness,
    draining: Callable[[], bool],
    load: Callable[[], Load],
) -> APIRouter:
    """Return the endpoints. Liveness never depends on models: a restart would not repair a broken model."""
    router = APIRouter(tags=["operation"])
    expositions = {
        media_type: SharedCall(partial(metrics.prepare_exposition, media_type))
        for media_type in (PROMETHEUS_TEXT, OPENMETRICS)
    }

    @router.get("/health/live", summary="Liveness probe", responses={503: {"model": Live}})
    async def live(response: Response) -> Live:
        failures = dict(liveness.failures)
        response.status_code = 503 if failures else 200
        return Live(live=not failures, failures=failures)

    @router.get("/health/started", summary="Startup probe", responses={503: {"model": Started}})
    async def started(response: Response) -> Started:
        # Not readiness: without a model that can be served, a restart would only hide the reason.
        response.status_code = 200 if repository.loaded else 503
        return Started(started=repository.loaded)

    @router.get("/health/ready", summary="Readiness probe", responses={503: {"model": Ready}})
    async def ready(response: Response) -> Ready:
        models: dict[str, bool] = {}
        for entry in repository.entries():
            models[entry.name] = models.get(entry.name, False) or entry.model is not None
        reason = _unready_reason(repository, liveness.failures, draining(), models)
        response.status_code = 503 if reason else 200
        return Ready(ready=reason is None, reason=reason, models=models)

    @router.get("/health/load", summary="Load, for autoscalers")
    async def read_load() -> Load:
        return load()

    @router.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def expose_metrics(request: Request) -> Response:
        media_type = choose_exposition(", ".join(request.headers.getlist("accept")))
        return Response(await expositions[media_type](), headers={"content-type": media_type, "vary": "accept"})

    return router


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
