"""Report on the shadow evaluation of a new version: mirrored requests, compared with the served version."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from statistics import median
from typing import Annotated, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel, Field

from service.errors import NotFound
from service.models.promotion import ShadowEvaluation, TimingSeries, percentile
from service.models.shadow_traffic import ShadowTraffic


class Percentiles(BaseModel):
    """Median and 95th percentile."""

    median: float
    p95: float


class Latency(BaseModel):
    """Latency of the requests that both versions answered, in milliseconds; null if there are none yet."""

    device: Annotated[Percentiles | None, Field(description="Run time of the batch that the request was in.")]
    work: Annotated[
        Percentiles | None, Field(description="All steps without queueing; compared by the promotion policy.")
    ]
    total: Annotated[Percentiles | None, Field(description="Including queueing; mirrored requests have low priority.")]


class ShadowRule(BaseModel):
    """The criteria for promotion."""

    requests: int
    agreement: float
    slowdown: float
    errors: float


class WorstAnswer(BaseModel):
    """A request whose answers have low agreement; its line in the server's log has the same id."""

    request_id: str
    agreement: float


class FailedRequest(BaseModel):
    """A request that the new version failed."""

    request_id: str
    reason: str


class ShadowReport(BaseModel):
    """The new version's results on mirrored requests, and the decision."""

    model: str
    version: str
    verdict: Annotated[
        Literal["running", "promoted", "rolled_back", "stopped"],
        Field(description="stopped: an operator, or the removal of a version, ended the evaluation."),
    ]
    reason: Annotated[str | None, Field(description="Reason for the verdict.")]
    began: str
    decided: str | None
    rule: ShadowRule
    requests: Annotated[int, Field(description="Requests answered or failed by the new version, without skipped ones.")]
    skipped: Annotated[int, Field(description="Requests not mirrored because the device was busy.")]
    errors: int
    failed: Annotated[list[FailedRequest], Field(description="The first few failures.")]
    agreement: Annotated[float | None, Field(description="Mean agreement of the answers, 0 to 1.")]
    slowdown: Annotated[
        float | None,
        Field(description="Median ratio of `work`, new to served version, with 2 ms added to both."),
    ]
    worst: Annotated[list[WorstAnswer], Field(description="The requests with the lowest agreement, lowest first.")]
    served: Annotated[
        Latency, Field(description="The served version, which gets each mirrored request again for this comparison.")
    ]
    shadow: Annotated[Latency, Field(description="The new version.")]


ReadReports = Callable[[str, str], Awaitable[Sequence[ShadowReport]]]
"""Returns the reports on a version, given by name and number: one of each process that has evaluated it."""


def shadow_router(read_reports: ReadReports) -> APIRouter:
    """Return the endpoint. Of several processes, the report of the one that has decided, or is nearest to, is shown."""
    router = APIRouter(prefix="/v1/models", tags=["models"])

    @router.get("/{name}/versions/{version}/shadow", summary="Report on a version's shadow evaluation")
    async def report(name: Annotated[str, Path(description="The model's name.")], version: str) -> ShadowReport:
        reports = await read_reports(name, version)
        if not reports:
            raise NotFound(f"{name[:64]}/{version[:16]} has not been evaluated as a shadow version.")
        return max(reports, key=lambda report: (report.verdict != "running", report.requests))

    return router


def read_report(shadows: ShadowTraffic, name: str, version: str) -> ShadowReport | None:
    """Return the report of this process on a version; None if it has not evaluated it."""
    evaluation = shadows.evaluation_of(name, version)
    return None if evaluation is None else _report(name, version, evaluation)


def _report(name: str, version: str, evaluation: ShadowEvaluation) -> ShadowReport:
    decision = evaluation.decision
    return ShadowReport(
        model=name,
        version=version,
        verdict="running" if decision is None else _VERDICTS[decision.promoted],
        reason=decision.reason if decision else None,
        began=_timestamp(evaluation.started_at),
        decided=None if evaluation.decided_at is None else _timestamp(evaluation.decided_at),
        rule=ShadowRule(
            requests=evaluation.policy.requests,
            agreement=evaluation.policy.min_agreement,
            slowdown=evaluation.policy.max_slowdown,
            errors=evaluation.policy.max_failures,
        ),
        requests=evaluation.requests,
        skipped=evaluation.skipped,
        errors=evaluation.failed,
        failed=[FailedRequest(**vars(failed)) for failed in evaluation.first_failures],
        agreement=evaluation.agreement,
        slowdown=evaluation.slowdown,
        worst=[WorstAnswer(request_id=request_id, agreement=agreement) for request_id, agreement in evaluation.worst],
        served=_latency(evaluation.served),
        shadow=_latency(evaluation.shadow),
    )


_VERDICTS: Mapping[bool | None, Literal["promoted", "rolled_back", "stopped"]] = {
    True: "promoted",
    False: "rolled_back",
    None: "stopped",
}


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _latency(times: TimingSeries) -> Latency:
    return Latency(
        device=_percentiles(times.device_s), work=_percentiles(times.work_s), total=_percentiles(times.total_s)
    )


def _percentiles(seconds: list[float]) -> Percentiles | None:
    p95 = percentile(seconds, 0.95)
    return None if p95 is None else Percentiles(median=_ms(median(seconds)), p95=_ms(p95))


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
