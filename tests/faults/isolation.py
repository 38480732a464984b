"""Faulty requests do not affect others: ten thousand requests, and the same ones without the faulty ones."""

import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from loadtests.clients import Reply, ScheduledRequest, closed_loop, open_loop
from tests.faults.report import Row, first_of, ms, percentile
from tests.faults.sample_requests import (
    FaultyRequest,
    ValidRequest,
    disconnecting_requests,
    faulty_requests,
    with_expected,
)
from tests.faults.scenario import ScenarioContext, max_batch_seconds
from tests.faults.server_process import ServerProcess
from tests.waiting import wait_until

_WEIGHTS = {
    "adult": 40.0,
    "bikes": 22.0,
    "movielens": 16.0,
    "imdb": 8.0,
    "clothing": 6.0,
    "scenes": 3.0,
    "cards": 2.0,
    "faces": 2.0,
    "camvid": 0.4,
    "restore": 0.4,
}
_FAULTY_FRACTION = 0.1
_PER_SECOND = 200.0
_WARM_UP_CLIENTS = 64
_SETTLED_MB, _MAX_WARM_UPS = 4.0, 4
"""Warm-up ends when a further slice grows memory by less than this, or after this many slices."""
_MAX_GROWTH_MB, _SETTLE_S = 20.0, 10.0
_MAX_EXTRA_DESCRIPTORS = 16
"""Connections that are just being closed."""


@dataclass(frozen=True)
class _Slice:
    """Part of the requests, to be sent at the same times with and without the faulty ones."""

    requests: Sequence[ValidRequest | FaultyRequest]
    times: Sequence[float]

    def schedule(self, *, with_faulty: bool) -> list[ScheduledRequest]:
        return [
            ScheduledRequest(at_s, request.request, key, request.hang_up, own_connection=True)
            if isinstance(request, FaultyRequest)
            else ScheduledRequest(at_s, request.request, key)
            for key, (at_s, request) in enumerate(zip(self.times, self.requests, strict=True))
            if with_faulty or isinstance(request, ValidRequest)
        ]


@dataclass
class _Results:
    """What became of the requests.

    Attributes:
        seconds: of the valid requests, by whether faulty ones were sent and by model.
    """

    valid: int = 0
    faulty: int = 0
    valid_problems: list[str] = field(default_factory=list)
    faulty_problems: list[str] = field(default_factory=list)
    seconds: dict[bool, dict[str, list[float]]] = field(default_factory=lambda: {True: {}, False: {}})
    kinds: set[str] = field(default_factory=set)

    def add(self, part: _Slice, replies: Sequence[Reply], *, with_faulty: bool) -> None:
        for reply in replies:
            request = part.requests[reply.key]
            problem = request.problem(reply)
            if isinstance(request, FaultyRequest):
                self.faulty += 1
                self.kinds.add(request.kind)
                self.faulty_problems += [problem] if problem else []
            else:
                self.valid += with_faulty
                self.seconds[with_faulty].setdefault(request.model.name, []).append(reply.seconds)
                self.valid_problems += [problem] if problem else []


def measure(context: ScenarioContext) -> list[Row]:
    """Four rows: the answers of valid requests, the errors of faulty ones, the delay, and leaks of the server."""
    with context.server(flags=("--max-queue", "2000"), faulty=True) as server:
        models, seeds = context.known.values(), range(context.pick(8, 2))
        valid = with_expected(server.port, [model.valid_request(seed) for model in models for seed in seeds])
        faulty = _all_faulty_requests(context, server)
        rng = random.Random(5)
        # Sent with and without the faulty requests, these are twice as many requests, less a twentieth.
        count, slices = context.pick((10_600, 4), (300, 1))
        # Warm-up: as many at once as there will ever be, and each fault once, so that memory reaches the size it keeps.
        closed_loop(server.port, [request.request for request in valid], _WARM_UP_CLIENTS, context.pick(6.0, 0.3))
        _send_slice(server, _Slice(faulty, [i / _PER_SECOND for i in range(len(faulty))]), _Results())
        for _ in range(_MAX_WARM_UPS):
            before = server.resources()
            _send_slice(server, _make_slice(rng, valid, faulty, context.pick(1_000, 60)), _Results())
            if server.resources()["resident_mb"] - before["resident_mb"] < _SETTLED_MB:
                break
        before, results = server.resources(), _Results()
        for _ in range(slices):
            _send_slice(server, _make_slice(rng, valid, faulty, count // slices), results)
        with suppress(TimeoutError):  # An idle server gives memory back; what leaks stays.
            wait_until(
                lambda: server.resources()["resident_mb"] < before["resident_mb"] + _MAX_GROWTH_MB,
                timeout_s=_SETTLE_S,
                interval_s=0.1,
            )
        after = server.resources()
        slowest_s = max(max_batch_seconds(server, name) for name in context.known)
    return [*_answer_rows(results), _delay_row(results, slowest_s), _leak_row(before, after, count)]


def _all_faulty_requests(context: ScenarioContext, server: ServerProcess) -> list[FaultyRequest]:
    """Make faulty requests; in a short run one of each kind."""
    requests = [
        *faulty_requests(context.known),
        *_backend_faults(context, server),
        *disconnecting_requests([context.known[name].valid_request(99) for name in _WEIGHTS]),
    ]
    return list({request.kind: request for request in requests}.values()) if context.short else requests


def _backend_faults(context: ScenarioContext, server: ServerProcess) -> list[FaultyRequest]:
    """Make requests whose samples make the graph fail or return NaN."""
    requests, marks = list[FaultyRequest](), dict[str, tuple[str, int]]()
    for name in ("adult", "imdb", "clothing", "faces"):
        raising, corrupt = (context.known[name].valid_request(seed) for seed in (1_001, 1_002))
        marks |= dict.fromkeys(raising.digests, ("raise", 0))
        requests.append(FaultyRequest("the graph fails", raising.request, 500, "backend_failed"))
        if name != "faces":  # Its answer to NaN is that it sees no keypoint.
            marks |= dict.fromkeys(corrupt.digests, ("corrupt", 0))
            requests.append(FaultyRequest("the graph returns NaN", corrupt.request, 500, "invalid_answer"))
    server.fault(marks=marks)
    return requests


def _make_slice(
    rng: random.Random, valid: Sequence[ValidRequest], faulty: Sequence[FaultyRequest], count: int
) -> _Slice:
    """Draw requests that arrive at random (a Poisson process), a tenth of them faulty ones in turn."""
    weights = [_WEIGHTS[request.model.name] for request in valid]
    requests: list[ValidRequest | FaultyRequest] = list(rng.choices(valid, weights, k=count))
    indices = rng.sample(range(count), round(count * _FAULTY_FRACTION))
    for start in range(0, len(indices), len(faulty)):
        for index, request in zip(indices[start:], rng.sample(faulty, len(faulty)), strict=False):
            requests[index] = request
    now, times = 0.0, []
    for _ in range(count):
        now += rng.expovariate(_PER_SECOND)
        times.append(now)
    return _Slice(requests, times)


def _send_slice(server: ServerProcess, part: _Slice, results: _Results) -> None:
    for with_faulty in (True, False):
        replies = open_loop(server.port, part.schedule(with_faulty=with_faulty))
        results.add(part, replies, with_faulty=with_faulty)
    server.fault(forget=True)


def _answer_rows(results: _Results) -> list[Row]:
    total, kinds = results.valid + results.faulty, sorted(results.kinds)
    valid_problems, faulty_problems = results.valid_problems, results.faulty_problems
    return [
        Row(
            "isolation",
            f"Faulty requests do not affect others: {total:,} requests to {len(_WEIGHTS)} models, "
            f"{results.faulty:,} of them faulty in {len(kinds)} ways",
            "every other request gets the same answer as on an idle server",
            f"{len(valid_problems)} of {results.valid:,} got another answer{first_of(valid_problems)}",
            not valid_problems,
            figures={
                "valid": results.valid,
                "faulty": results.faulty,
                "problems": valid_problems[:20],
                "kinds": kinds,
            },
        ),
        Row(
            "isolation",
            "A faulty request gets the error that describes its fault",
            "the expected status and error code for each kind of fault",
            f"{len(faulty_problems)} of {results.faulty:,} got another error{first_of(faulty_problems)}",
            not faulty_problems,
            figures={"problems": faulty_problems[:20]},
        ),
    ]


def _delay_row(results: _Results, slowest_s: float) -> Row:
    delays = {
        name: percentile(results.seconds[True][name], 0.99) - percentile(without, 0.99)
        for name, without in results.seconds[False].items()
        if name in results.seconds[True]
    }
    worst = max(delays, key=lambda name: delays[name])
    return Row(
        "isolation",
        "Faulty requests do not delay others: increase of the p99 of the other requests",
        f"≤ one batch of the slowest model ({ms(slowest_s)})",
        f"at most {ms(delays[worst])} ({worst})",
        delays[worst] <= slowest_s,
        timed=True,
        figures={"delays_s": delays, "batch_s": slowest_s},
    )


def _leak_row(before: Mapping[str, float], after: Mapping[str, float], count: int) -> Row:
    growth = {name: after[name] - before[name] for name in before}
    total = round(count * (2 - _FAULTY_FRACTION))
    return Row(
        "isolation",
        f"Nothing leaks: {total:,} mixed requests, errors and disconnects, after warm-up",
        f"resident memory grows < {_MAX_GROWTH_MB:.0f} MB after {_SETTLE_S:.0f} s; threads and descriptors do not grow",
        f"{growth['resident_mb']:+.1f} MB of {before['resident_mb']:.0f} MB, {growth['threads']:+.0f} threads, "
        f"{growth['descriptors']:+.0f} descriptors",
        growth["resident_mb"] < _MAX_GROWTH_MB
        and growth["threads"] <= 0
        and growth["descriptors"] <= _MAX_EXTRA_DESCRIPTORS,
        figures={"before": before, "after": after},
    )
