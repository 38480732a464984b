"""Three times as many requests as can be answered: how many still are, how soon the rest is refused, and what after."""

from benchmarks.faults.clients import Call, Reply, closed_loop, one_by_one, open_loop, steady
from benchmarks.faults.host import Host, started
from benchmarks.faults.report import Row, median, percentile
from benchmarks.faults.scenario import Run, ms

_DEADLINE_S = 0.5
_LEAST = 0.9
_REFUSED_S = 0.02
_LATE_S = 0.05
"""A generator that sends later than this is itself what is measured."""
_MOST_GROWTH_MB = 150.0
_RECOVERY_S = 1.0


def measure(run: Run) -> list[Row]:
    """Two rows for each of a model of pictures and one of tables."""
    with run.some("adult", "clothing") as models:
        rows = []
        for name, size in (("clothing", 0), ("adult", 200)):
            with started(models) as host:
                rows += _overload(run, host, name, size)
        return rows


def _overload(run: Run, host: Host, name: str, size: int) -> list[Row]:
    sent = [run.known[name].good(seed, size=size, X_Request_Timeout_Ms=f"{_DEADLINE_S * 1000:g}") for seed in range(32)]
    requests, seconds = [one.request for one in sent], run.pick(5.0, 1.5)
    alone = median([reply.seconds for reply in one_by_one(host.port, requests)][8:])
    closed_loop(host.port, requests, 16, 1.0)
    peak = _goodput(closed_loop(host.port, requests, 16, run.pick(4.0, 1.0)))
    before = host.status()["resident_mb"]
    replies = open_loop(host.port, steady(requests, per_second=3 * peak, seconds=seconds))
    grown = host.status()["peak_mb"] - before
    recovered = _recovery(host, requests[0], alone)
    goodput = sum(_is_good(reply) for reply in replies) / (replies[-1].sent - replies[0].sent)
    refused = [reply.seconds for reply in replies if reply.status == 503]
    late = percentile([reply.late_s for reply in replies], 0.99)
    statuses = {
        status: sum(reply.status == status for reply in replies) for status in sorted({r.status for r in replies})
    }
    figures = {"peak": peak, "goodput": goodput, "late_s": late, "alone_s": alone, "statuses": statuses}
    what = f"{name}{f', {size} rows' if size else ''}"
    slow = f"; THE CLIENT WAS TOO SLOW (p99 {ms(late)} late)" if late > _LATE_S else ""
    told = ", ".join(f"{count:,} × {status}" for status, count in statuses.items())
    refused_p99 = percentile(refused, 0.99)
    return [
        Row(
            "overload",
            f"At 3 × capacity ({peak:.0f}/s), deadline {ms(_DEADLINE_S)}, as many are answered in time: {what}",
            f"goodput ≥ {_LEAST} × peak",
            f"{goodput / peak:.2f} × ({goodput:.0f}/s; {told}){slow}",
            goodput >= _LEAST * peak,
            timed=True,
            figures=figures,
        ),
        Row(
            "overload",
            f"The rest is refused at once: {what}",
            f"refusals p99 < {ms(_REFUSED_S)}",
            f"{ms(refused_p99)} over {len(refused):,}" if refused else "none was refused",
            bool(refused) and refused_p99 < _REFUSED_S,
            timed=True,
            figures={"refused_p99_s": refused_p99, "refused_p50_s": median(refused)},
        ),
        Row(
            "overload",
            f"Overload leaves nothing behind: {what}",
            f"memory grows < {_MOST_GROWTH_MB:.0f} MB; latency as before within {_RECOVERY_S:g} s",
            f"{grown:+.0f} MB at most; as before after {ms(recovered)}",
            grown < _MOST_GROWTH_MB and recovered <= _RECOVERY_S,
            timed=True,
            figures={"grown_mb": grown, "recovered_s": recovered},
        ),
    ]


def _is_good(reply: Reply) -> bool:
    return reply.status == 200 and reply.seconds <= _DEADLINE_S


def _goodput(replies: list[Reply]) -> float:
    """Requests a second that were answered within their deadline."""
    return sum(map(_is_good, replies)) / (replies[-1].ended - replies[0].sent)


def _recovery(host: Host, request: bytes, alone: float) -> float:
    """Seconds from the end of the load until requests take at most half as long again as before it (and 5 ms)."""
    probes = open_loop(host.port, [Call(i * 0.1, request) for i in range(20)])
    slow = [reply.ended for reply in probes if reply.status != 200 or reply.seconds > 1.5 * alone + 0.005]
    return max(slow, default=probes[0].sent) - probes[0].sent
