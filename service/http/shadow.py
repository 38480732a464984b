"""The report of a new version that was, or is, tried in the shadow of the one that is served."""

from datetime import UTC, datetime
from statistics import median
from typing import Annotated, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel, Field

from service.errors import NotFound
from service.models.evaluation import CanaryEvaluation, Times, at_share
from service.models.shadow import Shadows


class Spread(BaseModel):
    """The middle of some times, and what nineteen of twenty do not exceed."""

    median: float
    p95: float


class Latency(BaseModel):
    """Times of the requests that both versions answered, in milliseconds; null before there is one."""

    device: Annotated[Spread | None, Field(description="Of the batch that a request was in.")]
    work: Annotated[Spread | None, Field(description="Of all steps, without waiting: what the rule compares.")]
    total: Annotated[Spread | None, Field(description="With waiting; a mirrored request waits for all others.")]


class ShadowRule(BaseModel):
    """What a version must keep to."""

    requests: int
    agreement: float
    slowdown: float
    errors: float


class WorstAnswer(BaseModel):
    """A request whose two answers agree little; the server's log has its line under this id."""

    request_id: str
    agreement: float


class FailedRequest(BaseModel):
    """A request that the version failed."""

    request_id: str
    reason: str


class ShadowReport(BaseModel):
    """What a version did with the requests that were mirrored to it, and what became of it."""

    model: str
    version: str
    verdict: Literal["running", "promoted", "rolled_back"]
    reason: Annotated[str | None, Field(description="Of the verdict.")]
    began: str
    decided: str | None
    rule: ShadowRule
    requests: Annotated[int, Field(description="Answered or failed by this version; those skipped do not count.")]
    skipped: Annotated[int, Field(description="Not mirrored, since clients needed the device.")]
    errors: int
    failed: Annotated[list[FailedRequest], Field(description="The first few of them.")]
    agreement: Annotated[float | None, Field(description="The mean, 0 to 1.")]
    slowdown: Annotated[
        float | None, Field(description="How many times as long `work` takes, 2 ms added to both: the median.")
    ]
    worst: Annotated[list[WorstAnswer], Field(description="The answers that agree least, the worst first.")]
    served: Annotated[Latency, Field(description="Of the version that is served, asked again beside this one.")]
    shadow: Latency


def shadow_router(shadows: Shadows) -> APIRouter:
    """The endpoint that tells how a version's trial goes, or went."""
    router = APIRouter(prefix="/v1/models", tags=["models"])

    @router.get("/{name}/versions/{version}/shadow", summary="Report of a version tried in the shadow")
    async def report(name: Annotated[str, Path(description="The model's name.")], version: str) -> ShadowReport:
        trial = shadows.trial_of(name, version)
        if trial is None:
            raise NotFound(f"{name[:64]}/{version[:16]} was not tried in the shadow of another version.")
        return _report(name, version, trial)

    return router


def _report(name: str, version: str, trial: CanaryEvaluation) -> ShadowReport:
    decision = trial.decision
    verdict: Literal["promoted", "rolled_back"] = "promoted" if decision and decision.promoted else "rolled_back"
    return ShadowReport(
        model=name,
        version=version,
        verdict=verdict if decision else "running",
        reason=decision.reason if decision else None,
        began=_moment(trial.began),
        decided=None if trial.decided is None else _moment(trial.decided),
        rule=ShadowRule(**vars(trial.rule)),
        requests=trial.requests,
        skipped=trial.skipped,
        errors=trial.failed,
        failed=[FailedRequest(**vars(failed)) for failed in trial.errors],
        agreement=trial.agreement,
        slowdown=trial.slowdown,
        worst=[WorstAnswer(request_id=request_id, agreement=agreement) for request_id, agreement in trial.worst],
        served=_latency(trial.ours),
        shadow=_latency(trial.theirs),
    )


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _latency(times: Times) -> Latency:
    return Latency(device=_spread(times.device_s), work=_spread(times.work_s), total=_spread(times.total_s))


def _spread(seconds: list[float]) -> Spread | None:
    high = at_share(seconds, 0.95)
    return None if high is None else Spread(median=_ms(median(seconds)), p95=_ms(high))


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
