"""For whoever keeps the service running: is it alive, is it ready, and what does it measure."""

from collections.abc import Callable, Mapping

from fastapi import APIRouter, Response
from pydantic import BaseModel

from service.metrics import Metrics
from service.models.repository import Repository
from service.process.liveness import Liveness


class Live(BaseModel):
    """The process runs, its event loop turns, and nothing fails that only a new start would mend.

    Attributes:
        failures: what fails, and why.
    """

    live: bool
    failures: dict[str, str] = {}


class Ready(BaseModel):
    """Whether requests should be sent here, and which models answer them."""

    ready: bool
    reason: str | None = None
    models: dict[str, bool]


def health_router(
    repository: Repository, metrics: Metrics, liveness: Liveness, draining: Callable[[], bool]
) -> APIRouter:
    """The endpoints of operation. Liveness never depends on models: a restart would not mend those."""
    router = APIRouter(tags=["operation"])

    @router.get("/health/live", summary="Is the process alive?", responses={503: {"model": Live}})
    async def live(response: Response) -> Live:
        failures = dict(liveness.failures)
        response.status_code = 503 if failures else 200
        return Live(live=not failures, failures=failures)

    @router.get("/health/ready", summary="Should requests be sent here?", responses={503: {"model": Ready}})
    async def ready(response: Response) -> Ready:
        models: dict[str, bool] = {}
        for entry in repository.entries():
            models[entry.name] = models.get(entry.name, False) or entry.model is not None
        reason = _reason(repository, liveness.failures, draining(), models)
        response.status_code = 503 if reason else 200
        return Ready(ready=reason is None, reason=reason, models=models)

    @router.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def exposition() -> Response:
        return Response(metrics.exposition(), media_type="text/plain; version=0.0.4")

    return router


def _reason(repository: Repository, failures: Mapping[str, str], draining: bool, models: dict[str, bool]) -> str | None:
    if failures:
        return " ".join(f"{what}: {reason}" for what, reason in failures.items())
    if draining:
        return "The server is stopping."
    if not repository.loaded:
        return "The models are being loaded."
    return None if any(models.values()) else "No model is served."
