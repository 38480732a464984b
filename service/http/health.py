"""Endpoints for operators: liveness, readiness and metrics."""

from collections.abc import Callable, Mapping

from fastapi import APIRouter, Response
from pydantic import BaseModel

from service.http.background import SharedCall
from service.metrics import Metrics
from service.models.repository import Repository
from service.process.liveness import Liveness

_MAX_REASONS = 3
"""Number of models for which readiness states why they are not served."""


class Live(BaseModel):
    """Whether the process works, or what has failed and why; if it does not, it should be restarted."""

    live: bool
    failures: dict[str, str] = {}


class Ready(BaseModel):
    """Whether requests should be sent here, and which models are being served."""

    ready: bool
    reason: str | None = None
    models: dict[str, bool]


def health_router(
    repository: Repository, metrics: Metrics, liveness: Liveness, draining: Callable[[], bool]
) -> APIRouter:
    """Return the endpoints. Liveness never depends on models: a restart would not repair a broken model."""
    router = APIRouter(tags=["operation"])
    exposition = SharedCall(metrics.prepare_exposition)

    @router.get("/health/live", summary="Liveness probe", responses={503: {"model": Live}})
    async def live(response: Response) -> Live:
        failures = dict(liveness.failures)
        response.status_code = 503 if failures else 200
        return Live(live=not failures, failures=failures)

    @router.get("/health/ready", summary="Readiness probe", responses={503: {"model": Ready}})
    async def ready(response: Response) -> Ready:
        models: dict[str, bool] = {}
        for entry in repository.entries():
            models[entry.name] = models.get(entry.name, False) or entry.model is not None
        reason = _unready_reason(repository, liveness.failures, draining(), models)
        response.status_code = 503 if reason else 200
        return Ready(ready=reason is None, reason=reason, models=models)

    @router.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def expose_metrics() -> Response:
        return Response(await exposition(), media_type="text/plain; version=0.0.4")

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
