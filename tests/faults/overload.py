"""Three times as many requests as can be answered: how many still are, how soon the rest is refused, and what after."""

from collections import Counter
from dataclasses import dataclass

from loadtests.clients import NO_ANSWER, Call, Reply, closed_loop, one_by_one, open_loop, steady
from tests.faults.report import Row, median, percentile
from tests.faults.scenario import Run, ms
from tests.faults.server_process import Host, started

_DEADLINE_S = 0.5
_MIN_GOODPUT = 0.9
_REFUSED_S = 0.02
_LATE_S = 0.05
"""A generator that sends later than this is itself what is measured."""
_MAX_GROWTH_MB = 150.0
_RECOVERY_S = 1.0


def measure(run: Run) -> list[Row]:
    """Three rows for each of a model of pictures, one of texts and one of tables.

    A table's request is so cheap that the two which are refused for each that is answered take a good part of the
    interpreter's time: how much is then still answered is told, and no figure is demanded of it.
    """
    with run.some("adult", "clothing", "imdb") as models:
        rows = []
        for name, size, what in (("clothing", 0, ""), ("imdb", 300, ", 300 words"), ("adult", 100, ", 100 rows")):
            with started(models) as host:
                rows += _overload(run, host, name, size, what)
        return rows


@dataclass(frozen=True)
class _Turn:
    """The peak, and just after it what comes of three times as many requests."""

    peak: float
    replies: list[Reply]

    @property
    def goodput(self) -> float:
        return sum(map(_is_good, self.replies)) / (self.replies[-1].sent - self.replies[0].sent)

    @property
    def refused_p99_s(self) -> float:
        return percentile([reply.seconds for reply in self.replies if reply.status == 503], 0.99)

    @property
    def late_s(self) -> float:
        return percentile([reply.late_s for reply in self.replies], 0.99)


def _turn(run: Run, host: Host, requests: list[bytes]) -> _Turn:
    peak = _goodput(closed_loop(host.port, requests, 16, run.pick(2.5, 1.0)))
    calls = steady(requests, per_second=3 * peak, seconds=run.pick(3.0, 1.5))
    return _Turn(peak, open_loop(host.port, calls))


def _overload(run: Run, host: Host, name: str, size: int, what: str) -> list[Row]:
    sent = [run.known[name].good(seed, size=size, X_Request_Timeout_Ms=f"{_DEADLINE_S * 1000:g}") for seed in range(32)]
    requests = [one.request for one in sent]
    alone = median([reply.seconds for reply in one_by_one(host.port, requests)][8:])
    closed_loop(host.port, requests, 16, 1.0)
    before = host.status()["resident_mb"]
    turns = [_turn(run, host, requests) for _ in range(run.pick(3, 1))]
    recovered = _recovery(host, requests[0], alone)
    grown = host.status()["peak_mb"] - before
    what = name + what
    return [
        _goodput_row(what, turns, demanded=name != "adult"),
        _refusals_row(what, turns),
        _after_row(what, grown, recovered),
    ]


def _goodput_row(what: str, turns: list[_Turn], *, demanded: bool) -> Row:
    peak, ratio = median([turn.peak for turn in turns]), median([turn.goodput / turn.peak for turn in turns])
    statuses = Counter(reply.status for turn in turns for reply in turn.replies)
    told = ", ".join(f"{count:,} × {status or 'no answer'}" for status, count in sorted(statuses.items()))
    late = median([turn.late_s for turn in turns])
    slow = f"; THE CLIENT WAS TOO SLOW (p99 {ms(late)} late)" if late > _LATE_S else ""
    return Row(
        "overload",
        f"At 3 × capacity ({peak:.0f}/s), deadline {ms(_DEADLINE_S)}, as many are answered in time: {what}",
        f"goodput ≥ {_MIN_GOODPUT} × peak"
        if demanded
        else "told only: two refusals cost a good part of an answer here",
        f"{ratio:.2f} × ({told}){slow}",
        (ratio >= _MIN_GOODPUT or not demanded) and not statuses[NO_ANSWER],
        timed=True,
        figures={
            "peaks": [turn.peak for turn in turns],
            "goodputs": [turn.goodput for turn in turns],
            "late_s": late,
            "statuses": dict(statuses),
        },
    )


def _refusals_row(what: str, turns: list[_Turn]) -> Row:
    refused = median([turn.refused_p99_s for turn in turns])
    return Row(
        "overload",
        f"The rest is refused at once: {what}",
        f"refusals p99 < {ms(_REFUSED_S)}",
        f"{ms(refused)}, of which {ms(median([turn.late_s for turn in turns]))} may be the client's own",
        refused < _REFUSED_S,
        timed=True,
        figures={"refused_p99_s": [turn.refused_p99_s for turn in turns]},
    )


def _after_row(what: str, grown_mb: float, recovered_s: float) -> Row:
    return Row(
        "overload",
        f"Overload leaves nothing behind: {what}",
        f"memory grows < {_MAX_GROWTH_MB:.0f} MB; latency as before within {_RECOVERY_S:g} s",
        f"{grown_mb:+.0f} MB at most; as before after {ms(recovered_s)}",
        grown_mb < _MAX_GROWTH_MB and recovered_s <= _RECOVERY_S,
        timed=True,
        figures={"grown_mb": grown_mb, "recovered_s": recovered_s},
    )


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
