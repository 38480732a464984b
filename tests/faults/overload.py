"""Three times as many requests as can be answered: goodput, speed of rejections, and recovery."""

import math
from collections import Counter
from dataclasses import dataclass

from loadtests.clients import (
    NO_RESPONSE,
    Reply,
    ScheduledRequest,
    at_constant_rate,
    closed_loop,
    open_loop,
    send_sequentially,
)
from tests.faults.report import Row, median, ms, percentile
from tests.faults.scenario import ScenarioContext
from tests.faults.server_process import ServerProcess

_DEADLINE_S = 0.5
_MIN_GOODPUT = 0.9
_MAX_REJECTION_S = 0.02
_MAX_LATE_S = 0.05
"""If the client sends later than this, it measures itself."""
_MAX_GROWTH_MB = 150.0
_MAX_RECOVERY_S = 1.0


def measure(context: ScenarioContext) -> list[Row]:
    """Three rows for each of an image model, a text model and a table model.

    A request with a table is so cheap that the two which are rejected for each one answered take much of the
    interpreter's time: there, goodput is reported, not required.
    """
    rows = []
    for name, size, label in (
        ("clothing", 0, "clothing"),
        ("imdb", 300, "imdb, 300 words"),
        ("adult", 100, "adult, 100 rows"),
    ):
        with context.server("adult", "clothing", "imdb") as server:
            rows += _measure_model(context, server, name, size, label)
    return rows


@dataclass(frozen=True)
class _Round:
    """The peak throughput, and the replies to three times as many requests just afterwards."""

    peak: float
    replies: list[Reply]

    @property
    def goodput(self) -> float:
        return sum(map(_is_good, self.replies)) / (self.replies[-1].sent - self.replies[0].sent)

    @property
    def ratio(self) -> float:
        """Goodput ÷ peak; NaN if nothing was answered in time even at the peak."""
        return self.goodput / self.peak if self.peak else math.nan

    @property
    def rejected_p99_s(self) -> float:
        return percentile([reply.seconds for reply in self.replies if reply.status == 503], 0.99)

    @property
    def late_s(self) -> float:
        return percentile([reply.late_s for reply in self.replies], 0.99)


def _run_round(context: ScenarioContext, server: ServerProcess, requests: list[bytes]) -> _Round:
    peak = _goodput(closed_loop(server.port, requests, 16, context.pick(2.5, 0.3)))
    scheduled = at_constant_rate(requests, per_second=3 * max(peak, 1.0), seconds=context.pick(3.0, 0.3))
    return _Round(peak, open_loop(server.port, scheduled))


def _measure_model(context: ScenarioContext, server: ServerProcess, name: str, size: int, label: str) -> list[Row]:
    timeout_ms = f"{_DEADLINE_S * 1000:g}"
    requests = [
        context.known[name].valid_request(seed, size=size, X_Request_Timeout_Ms=timeout_ms).request
        for seed in range(context.pick(32, 10))
    ]
    idle_s = median([reply.seconds for reply in send_sequentially(server.port, requests)][8:])
    closed_loop(server.port, requests, 16, context.pick(1.0, 0.1))
    before = server.resources()["resident_mb"]
    rounds = [_run_round(context, server, requests) for _ in range(context.pick(3, 1))]
    recovery_s = _recovery_seconds(context, server, requests[0], idle_s)
    growth_mb = server.resources()["peak_mb"] - before
    return [
        _goodput_row(label, rounds, is_required=name != "adult"),
        _rejections_row(label, rounds),
        _recovery_row(label, growth_mb, recovery_s),
    ]


def _goodput_row(label: str, rounds: list[_Round], *, is_required: bool) -> Row:
    peak, ratio = median([round_.peak for round_ in rounds]), median([round_.ratio for round_ in rounds])
    statuses = Counter(reply.status for round_ in rounds for reply in round_.replies)
    counts = ", ".join(f"{count:,} × {status or 'no response'}" for status, count in sorted(statuses.items()))
    late_s = median([round_.late_s for round_ in rounds])
    warning = f"; THE CLIENT WAS TOO SLOW (p99 {ms(late_s)} late)" if late_s > _MAX_LATE_S else ""
    return Row(
        "overload",
        f"Goodput at 3 × capacity ({peak:.0f}/s) and a deadline of {ms(_DEADLINE_S)}: {label}",
        f"goodput ≥ {_MIN_GOODPUT} × peak"
        if is_required
        else "reported, not required: rejecting two requests costs a large fraction of answering one here",
        f"{ratio:.2f} × ({counts}){warning}",
        (ratio >= _MIN_GOODPUT or not is_required) and not statuses[NO_RESPONSE],
        timed=True,
        figures={
            "peaks": [round_.peak for round_ in rounds],
            "goodputs": [round_.goodput for round_ in rounds],
            "late_s": late_s,
            "statuses": dict(statuses),
        },
    )


def _rejections_row(label: str, rounds: list[_Round]) -> Row:
    rejected_s = median([round_.rejected_p99_s for round_ in rounds])
    late_s = median([round_.late_s for round_ in rounds])
    return Row(
        "overload",
        f"Requests beyond capacity are rejected at once: {label}",
        f"p99 of rejections < {ms(_MAX_REJECTION_S)}",
        f"{ms(rejected_s)}, of which up to {ms(late_s)} is the client's own delay",
        rejected_s < _MAX_REJECTION_S,
        timed=True,
        figures={"rejected_p99_s": [round_.rejected_p99_s for round_ in rounds]},
    )


def _recovery_row(label: str, growth_mb: float, recovery_s: float) -> Row:
    return Row(
        "overload",
        f"The server recovers from overload: {label}",
        f"memory grows < {_MAX_GROWTH_MB:.0f} MB; latency as before within {_MAX_RECOVERY_S:g} s",
        f"{growth_mb:+.0f} MB at peak; latency as before after {ms(recovery_s)}",
        growth_mb < _MAX_GROWTH_MB and recovery_s <= _MAX_RECOVERY_S,
        timed=True,
        figures={"growth_mb": growth_mb, "recovery_s": recovery_s},
    )


def _is_good(reply: Reply) -> bool:
    return reply.status == 200 and reply.seconds <= _DEADLINE_S


def _goodput(replies: list[Reply]) -> float:
    """Return the requests per second that were answered within their deadline."""
    return sum(map(_is_good, replies)) / (replies[-1].ended - replies[0].sent)


def _recovery_seconds(context: ScenarioContext, server: ServerProcess, request: bytes, idle_s: float) -> float:
    """Return the seconds from the end of the load until requests take ≤ 1.5 × their time on an idle server + 5 ms."""
    probes = open_loop(server.port, [ScheduledRequest(i * 0.1, request) for i in range(context.pick(20, 3))])
    slow = [reply.ended for reply in probes if reply.status != 200 or reply.seconds > 1.5 * idle_s + 0.005]
    return max(slow, default=probes[0].sent) - probes[0].sent
