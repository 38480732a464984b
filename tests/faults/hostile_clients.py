"""Hostile requests, alone and sixteen at once, while other clients ask for rows, photos and liveness."""

import asyncio
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import uvloop

from loadtests.clients import ClientPool, LoadProcess, Reply, ScheduledRequest
from tests.faults.hostile.corpus import KINDS, representatives
from tests.faults.hostile.request import HostileRequest
from tests.faults.loop_lag import loop_lag_counts, p99_of
from tests.faults.neighbours import NeighbourReplies, Neighbours
from tests.faults.process_tree import tree_cpu_s
from tests.faults.report import Row, first_of, median, ms
from tests.faults.scenario import ScenarioContext, wait_until_idle
from tests.faults.server_process import ServerProcess

_AT_ONCE = 16
_CONCURRENCIES = (1, _AT_ONCE)
_WAVE_INTERVAL_S = 0.5
_WINDOW_S = 1.0
"""As long as others send 100 rows, the fewest of which the 99th percentile is not the slowest."""
_MAX_ROW_S = 0.05
_MAX_LAG_S = 0.005
_RETRIES = 2
"""How often an attack is measured again in which rows took too long: the median counts, as others use the machine."""
MODELS = ("adult", "bikes", "clothing", "imdb", "movielens", "restore")


@dataclass(frozen=True)
class Attack:
    """One hostile request, sent in waves of `at_once`, and what became of it and of the others.

    Attributes:
        problems: replies that a hostile request must not get.
        statuses: how often each status was sent.
        cpu_s: processor time of all processes of the server for each of the requests.
        slowest_s: the longest time until one of them was answered.
        lag_s: the 99th percentile of the lag of the event loop; None if the server does not measure it.
    """

    request: HostileRequest
    at_once: int
    neighbours: NeighbourReplies
    problems: Sequence[str]
    statuses: dict[int, int]
    cpu_s: float
    slowest_s: float
    row_p99_s: float
    lag_s: float | None = None

    @property
    def label(self) -> str:
        return f"{self.request.name}, {'alone' if self.at_once == 1 else f'{self.at_once} at once'}"

    def figures(self) -> dict[str, Any]:
        """Return the numbers for the file of results."""
        neighbours = self.neighbours
        return {
            "attack": self.label,
            "statuses": self.statuses,
            "cpu_s": round(self.cpu_s, 3),
            "slowest_s": round(self.slowest_s, 3),
            "row_p99_s": round(self.row_p99_s, 4),
            "row_slowest_s": round(max(neighbours.rows), 4),
            "photo_slowest_s": round(max(neighbours.photos), 4),
            "liveness_slowest_s": round(max(neighbours.probes), 4),
            "neighbours_failed": len(neighbours.failures),
            "lag_p99_s": self.lag_s,
            "problems": list(self.problems[:3]),
        }


@dataclass
class _Measured:
    """The attacks of one kind.

    Attributes:
        control: other clients while nobody attacks.
        deaths: the attacks during which the server ended or stopped answering.
    """

    attacks: list[Attack] = field(default_factory=list)
    control: NeighbourReplies = field(default_factory=NeighbourReplies)
    deaths: list[str] = field(default_factory=list)


class ServerEnded(Exception):
    """The server ended, or answers nobody any more."""


def measure(kind: str, context: ScenarioContext) -> list[Row]:
    """Hostile requests that represent a kind, or all of it (--whole-corpus), alone and sixteen at once."""
    corpus = list(KINDS[kind](context.known))
    requests = corpus if context.whole_corpus else representatives(kind, context.known)
    remaining = [(request, at_once) for request in requests for at_once in _CONCURRENCIES]
    if context.short:
        remaining = [(requests[0], 2)]
    remaining.reverse()
    measured = _Measured()
    with LoadProcess() as process:
        while remaining:
            with context.server(*MODELS) as server:
                _measure_until_it_ends(context, server, process, remaining, measured)
    return [_replies_row(kind, len(corpus), measured), _neighbours_row(kind, measured), *_time_rows(kind, measured)]


def _measure_until_it_ends(
    context: ScenarioContext,
    server: ServerProcess,
    process: LoadProcess,
    remaining: list[tuple[HostileRequest, int]],
    measured: _Measured,
) -> None:
    """Measure attack after attack, until none remains or the server has not survived one."""
    neighbours = Neighbours.of(process, server.port, context.known)
    window_s = context.pick(_WINDOW_S, 0.5)
    neighbours.start(window_s).result()
    before_s, started_at = tree_cpu_s(server.process.pid), time.monotonic()
    measured.control.add(neighbours.start(context.pick(2.0, 0.5)).result())
    idle_cpu = (tree_cpu_s(server.process.pid) - before_s) / (time.monotonic() - started_at)
    while remaining:
        request, at_once = remaining.pop()
        attack = partial(_attack, server, neighbours, request, at_once, window_s, idle_cpu)
        try:
            measured.attacks.append(_repeated(attack, retries=context.pick(_RETRIES, 0)))
        except ServerEnded as error:
            measured.deaths.append(f"{request.name} × {at_once}: {error}")
            print(f"  THE SERVER ENDED: {measured.deaths[-1]}", file=sys.stderr, flush=True)
            return
        if not context.short:
            print(f"  {measured.attacks[-1].figures()}", file=sys.stderr, flush=True)


def _repeated(attack: "partial[Attack]", *, retries: int) -> Attack:
    """Attack once, and again if the rows took too long; the median of the percentiles counts."""
    attacks = [attack()]
    while attacks[-1].row_p99_s > _MAX_ROW_S and len(attacks) <= retries:
        attacks.append(attack())
    worst = max(attacks, key=lambda one: (len(one.problems) + len(one.neighbours.failures), one.cpu_s))
    return replace(worst, row_p99_s=median([one.row_p99_s for one in attacks]))


def _attack(
    server: ServerProcess,
    neighbours: Neighbours,
    request: HostileRequest,
    at_once: int,
    window_s: float,
    idle_cpu: float,
) -> Attack:
    """Send waves of a request for as long as the neighbours send theirs. Raises ServerEnded."""
    content, cpu_s, lag = request.make(), tree_cpu_s(server.process.pid), loop_lag_counts(server)
    sent = neighbours.start(window_s)
    scheduled = ScheduledRequest(0.0, content, hang_up=request.hang_up, own_connection=True)
    replies = uvloop.run(_send_waves(server.port, scheduled, at_once, window_s))
    answers = NeighbourReplies().add(sent.result())
    try:
        wait_until_idle(server)
        lag_s = p99_of(lag, loop_lag_counts(server))
    except (OSError, TimeoutError) as error:
        if server.process.poll() is None:
            server.process.kill()
        raise ServerEnded(f"{type(error).__name__}: {error}"[:120]) from error
    used_s = tree_cpu_s(server.process.pid) - cpu_s - idle_cpu * window_s
    problems = [problem for reply in replies if (problem := _problem(request, reply, at_once))]
    statuses: dict[int, int] = {}
    for reply in replies:
        statuses[reply.status] = statuses.get(reply.status, 0) + 1
    slowest_s = max(reply.seconds for reply in replies)
    cost_s = max(0.0, used_s) / len(replies)
    return Attack(request, at_once, answers, problems, statuses, cost_s, slowest_s, answers.row_p99_s, lag_s)


async def _send_waves(port: int, request: ScheduledRequest, at_once: int, seconds: float) -> list[Reply]:
    """Send a wave, and the next one when all of it has been answered, but not more often than every half second."""
    clients, replies = ClientPool(port), list[Reply]()
    ends = time.monotonic() + seconds
    while not replies or time.monotonic() < ends:
        next_at = time.monotonic() + _WAVE_INTERVAL_S
        replies += await asyncio.gather(*(clients.send(request) for _ in range(at_once)))
        await asyncio.sleep(max(0.0, min(next_at, ends) - time.monotonic()))
    return replies


def _problem(request: HostileRequest, reply: Reply, at_once: int) -> str | None:
    """Return why a reply is not right. Alone, a request has no others to wait for: it must not be late or refused."""
    problem = request.problem(reply)
    if problem is None and at_once == 1 and reply.status >= 500:
        return f"{request.name}: {reply.status} although it was alone"
    return problem


def _replies_row(kind: str, corpus_size: int, measured: _Measured) -> Row:
    attacks = measured.attacks
    problems = [*measured.deaths, *(problem for attack in attacks for problem in attack.problems)]
    failing = {attack.request.name for attack in attacks if attack.problems}
    return Row(
        f"hostile_{kind}",
        f"Hostile {kind}, {len({attack.request.name for attack in attacks})} of {corpus_size}, "
        f"alone and {_AT_ONCE} at once, are refused or answered",
        "4xx with a sentence, or an answer; 503 and 504 only if others are being answered",
        f"{len(failing)} got something else, {len(measured.deaths)} ended the server{first_of(problems)}",
        not problems,
        figures={"problems": problems, "attacks": [attack.figures() for attack in attacks]},
    )


def _neighbours_row(kind: str, measured: _Measured) -> Row:
    count = sum(attack.neighbours.count for attack in measured.attacks)
    failures = [f"{attack.label}: {text}" for attack in measured.attacks for text in attack.neighbours.failures]
    answered = all(attack.neighbours.rows for attack in measured.attacks)
    return Row(
        f"hostile_{kind}",
        f"Hostile {kind}: rows, photos and probes of others are answered meanwhile",
        "every one with 200",
        f"{len(failures)} of {count:,} failed{first_of(failures)}",
        answered and not failures and not measured.deaths,
        figures={"failures": failures[:50]},
    )


def _time_rows(kind: str, measured: _Measured) -> Iterator[Row]:
    attacks = measured.attacks
    if not attacks:
        return
    worst = max(attacks, key=lambda attack: attack.row_p99_s)
    slowest_row_s, slowest_photo_s = (
        max(max(seconds) for seconds in of_each)
        for of_each in ([a.neighbours.rows for a in attacks], [a.neighbours.photos for a in attacks])
    )
    slow = [attack.label for attack in attacks if attack.row_p99_s > _MAX_ROW_S]
    yield Row(
        f"hostile_{kind}",
        f"Hostile {kind} do not delay others: p99 of a row, asked for every 10 ms, for each attack",
        f"≤ {ms(_MAX_ROW_S)}",
        f"{len(slow)} of {len(attacks)} above; worst {ms(worst.row_p99_s)} ({worst.label}); "
        f"without attack {ms(measured.control.row_p99_s)}; "
        f"slowest row {ms(slowest_row_s)}, photo {ms(slowest_photo_s)}",
        not slow,
        timed=True,
        figures={"slow": slow},
    )
    costliest = max(attacks, key=lambda attack: attack.cpu_s)
    lags = [attack.lag_s for attack in attacks if attack.lag_s is not None]
    yield Row(
        f"hostile_{kind}",
        f"Hostile {kind}: processor time of one request, and lag of the event loop",
        f"reported; p99 of the lag ≤ {ms(_MAX_LAG_S)}",
        f"at most {costliest.cpu_s:.2f} s ({costliest.label}); "
        f"p99 of the lag {ms(max(lags)) if lags else 'not measured'}",
        all(lag <= _MAX_LAG_S for lag in lags),
        timed=True,
        figures={"lag_p99_s": max(lags, default=None)},
    )
