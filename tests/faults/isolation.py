"""Whether anybody notices that others are poisonous: ten thousand requests, and the same without the poison."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loadtests.clients import Call, Reply, closed_loop, open_loop
from tests.faults.report import Row, percentile
from tests.faults.sample_requests import Poison, Sent, asked_alone, leavers, poisons
from tests.faults.scenario import Run, batch_seconds, first_of, ms
from tests.faults.server_process import Host, started

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
_SHARE = 0.1
_PER_SECOND = 200.0
_WARM_AT_ONCE = 64
_SETTLED_MB, _MAX_WARM_UPS = 4.0, 4
"""Warm-up ends when another slice of it grows by less, at the latest after so many."""
_MAX_GROWTH_MB = 20.0
_SPARE = 16
"""Descriptors: those of connections that end, and threads of a pool that had not been needed, just now."""


@dataclass(frozen=True)
class _Slice:
    """Part of the requests, with the poison and without, at the same times."""

    sent: Sequence[Sent | Poison]
    times: Sequence[float]

    def calls(self, *, poison: bool) -> list[Call]:
        return [
            Call(at, one.request, key, one.leaving, apart=True)
            if isinstance(one, Poison)
            else Call(at, one.request, key)
            for key, (at, one) in enumerate(zip(self.times, self.sent, strict=True))
            if poison or isinstance(one, Sent)
        ]


@dataclass
class _Found:
    """What came of the requests."""

    good: int
    poisonous: int
    wrong: list[str]
    seconds: dict[bool, dict[str, list[float]]]
    kinds: set[str]

    def add(self, part: _Slice, replies: Sequence[Reply], *, poison: bool) -> None:
        for reply in replies:
            one = part.sent[reply.key]
            if (problem := one.wrong(reply)) is not None:
                self.wrong.append(problem)
            if isinstance(one, Poison):
                self.poisonous += 1
                self.kinds.add(one.kind)
                continue
            self.good += poison
            self.seconds[poison].setdefault(one.model.name, []).append(reply.seconds)


def measure(run: Run) -> list[Row]:
    """Four rows: the neighbours' answers, what the poisonous got, the neighbours' wait, and what the server holds."""
    flags = ("--max-queue", "2000")
    with started(run.models, *flags, faulty=True) as host:
        good = asked_alone(host.port, [model.good(seed) for model in run.known.values() for seed in range(8)])
        bad = [*poisons(run.known), *_faults(run, host), *leavers([run.known[name].good(99) for name in _WEIGHTS])]
        chance = random.Random(5)
        # With the poison and without, these are twice as many requests, less a twentieth.
        count, slices = run.pick((10_600, 4), (600, 2))
        # Warm-up: as many at once as will ever be, so that the pools of memory have the size they will keep.
        closed_loop(host.port, [one.request for one in good], _WARM_AT_ONCE, run.pick(6.0, 2.0))
        for _ in range(_MAX_WARM_UPS):
            before = host.status()
            _turn(host, _slice(chance, good, bad, run.pick(1_000, 200)), _nothing_yet())
            if host.status()["resident_mb"] - before["resident_mb"] < _SETTLED_MB:
                break
        before, found = host.status(), _nothing_yet()
        for _ in range(slices):
            _turn(host, _slice(chance, good, bad, count // slices), found)
        after = host.status()
        slowest_s = max(batch_seconds(host, name) for name in run.known)
    return [*_answers(found), _wait(found, slowest_s), _kept(before, after, count)]


def _nothing_yet() -> _Found:
    return _Found(0, 0, [], {True: {}, False: {}}, set())


def _turn(host: Host, part: _Slice, found: _Found) -> None:
    for poison in (True, False):
        found.add(part, open_loop(host.port, part.calls(poison=poison)), poison=poison)
    host.fault(forget=True)


def _slice(chance: random.Random, good: Sequence[Sent], bad: Sequence[Poison], count: int) -> _Slice:
    """Requests at random, arriving at random (a Poisson process), every tenth of them poisonous."""
    weights = [_WEIGHTS[one.model.name] for one in good]
    sent: list[Sent | Poison] = list(chance.choices(good, weights, k=count))
    for place in chance.sample(range(count), round(count * _SHARE)):
        sent[place] = chance.choice(bad)
    now, times = 0.0, []
    for _ in range(count):
        now += chance.expovariate(_PER_SECOND)
        times.append(now)
    return _Slice(sent, times)


def _faults(run: Run, host: Host) -> list[Poison]:
    """Samples that make the graph fail, and samples for which it answers NaN."""
    found, marks = list[Poison](), dict[str, tuple[str, int]]()
    for name in ("adult", "imdb", "clothing", "faces"):
        raising, corrupt = (run.known[name].good(seed) for seed in (1_001, 1_002))
        marks |= dict.fromkeys(raising.digests, ("raise", 0))
        found.append(Poison("the graph fails", raising.request, 500, "backend_failed"))
        if name != "faces":  # Of which the answer is that it sees no point.
            marks |= dict.fromkeys(corrupt.digests, ("corrupt", 0))
            found.append(Poison("the graph says NaN", corrupt.request, 500, "invalid_answer"))
    host.fault(marks=marks)
    return found


def _answers(found: _Found) -> list[Row]:
    kinds = found.kinds
    bad_good = [problem for problem in found.wrong if problem.partition(":")[0] not in kinds]
    bad_poison = [problem for problem in found.wrong if problem.partition(":")[0] in kinds]
    total = found.good + found.poisonous
    return [
        Row(
            "isolation",
            f"Poisonous requests harm no neighbour: {total:,} requests over {len(_WEIGHTS)} models, "
            f"{found.poisonous:,} of them poisonous in {len(kinds)} ways",
            "every other one gets the answer it gets alone",
            f"{len(bad_good)} of {found.good:,} did not{first_of(bad_good)}",
            not bad_good,
            figures={"good": found.good, "poisonous": found.poisonous, "wrong": bad_good[:20], "kinds": sorted(kinds)},
        ),
        Row(
            "isolation",
            "A poisonous request is told what is wrong with it",
            "each the status and code of its kind",
            f"{len(bad_poison)} of {found.poisonous:,} were not{first_of(bad_poison)}",
            not bad_poison,
            figures={"wrong": bad_poison[:20]},
        ),
    ]


def _wait(found: _Found, slowest_s: float) -> Row:
    extra = {
        name: percentile(found.seconds[True][name], 0.99) - percentile(alone, 0.99)
        for name, alone in found.seconds[False].items()
        if name in found.seconds[True]
    }
    worst = max(extra, key=lambda name: extra[name])
    return Row(
        "isolation",
        "Nobody waits for poisonous neighbours: p99 with them less p99 of the same requests without",
        f"≤ one batch of the slowest model ({ms(slowest_s)})",
        f"at most {ms(extra[worst])} ({worst})",
        extra[worst] <= slowest_s,
        timed=True,
        figures={"extra_s": extra, "batch_s": slowest_s},
    )


def _kept(before: Mapping[str, float], after: Mapping[str, float], count: int) -> Row:
    grown = {name: after[name] - before[name] for name in before}
    total = round(count * (2 - _SHARE))
    return Row(
        "isolation",
        f"Nothing is kept: {total:,} mixed requests, errors and clients that go among them, after warm-up",
        f"resident memory grows < {_MAX_GROWTH_MB:.0f} MB; threads and descriptors do not",
        f"{grown['resident_mb']:+.1f} MB of {before['resident_mb']:.0f}, {grown['threads']:+.0f} threads, "
        f"{grown['descriptors']:+.0f} descriptors",
        grown["resident_mb"] < _MAX_GROWTH_MB and grown["threads"] <= 0 and grown["descriptors"] <= _SPARE,
        figures={"before": before, "after": after},
    )
