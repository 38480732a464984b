"""`python -m tests.faults.soak`: mixed traffic for a long time, and what it leaves behind.

Every model is asked in turn, in an open loop. Of the requests, 5 % are faulty and 2 % come from clients that hang up.
Two new versions are published meanwhile, and the server gets SIGTERM while requests still come. Then: every accepted
request was answered, and memory, threads and descriptors of all its processes have not grown. Linux only.

Memory under load follows the number of requests at once, which the machine decides. So the traffic rests now and then,
until the server has given back what it only needed for work: a leak is what grows from rest to rest.
"""

import argparse
import asyncio
import itertools
import json
import math
import random
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import uvloop
from scipy.stats import linregress, t

from benchmarks.machine import describe_machine
from loadtests.clients import HUNG_UP, ClientPool, Reply, ScheduledRequest
from loadtests.document import with_section
from tests.faults.process_tree import tree_handles, tree_usage
from tests.faults.published_versions import answer_of, other_weights, publish, version_of, wrong_answer
from tests.faults.sample_requests import (
    FaultyRequest,
    ValidRequest,
    disconnecting_requests,
    faulty_requests,
    known_models,
    with_expected,
)
from tests.faults.scenario import FIRST_VERSION, PATIENCE_S, ScenarioContext
from tests.faults.server_process import ServerProcess, run_server
from tests.waiting import wait_until

RESULTS, DOCUMENT = Path("loadtests/results/soak.json"), Path("docs/load-testing.md")
BAD_FRACTION, HANG_UP_FRACTION = 0.05, 0.02
SWAPPED = ("adult", "clothing")
"""The models of which a second version is published, in this order."""
MAX_GROWTH_MB = 20.0
MAX_GROWTH_HANDLES, MAX_GROWTH_HANDLES_SHORT = 5.0, 20.0
WARM_UP = 0.2
"""The fraction of the run after which memory must stay as it is."""
MIN_JUDGED_S = 600.0
"""Memory of a shorter run is reported, but not judged: caches and the pool of decoders are still filling."""
MAX_REJECTED = 0.01
RESTS, _SHORT_RESTS = 40, 12
_REST_S, _SHORT_REST_S = 4.0, 2.0
_NOTICE_S = 0.5
"""How long a load balancer takes to stop sending requests after readiness has failed."""
_DRAIN_S, _GRACE_S = 5.0, 30.0
_VARIANTS = 6
"""Different requests for each model."""


@dataclass(frozen=True)
class Sample:
    """What the server uses at one moment; memory in MB, of all its processes together.

    Attributes:
        tree_mb: pages that several processes share count once.
        root_mb: resident memory of the server's own process.
    """

    at_s: float
    tree_mb: float
    root_mb: float
    threads: int
    descriptors: int


@dataclass
class Outcome:
    """What became of the requests.

    Attributes:
        counts: requests by what they were: "valid", "faulty" and "hung up".
        statuses: how often each status was sent.
        rejected: valid requests that were refused with 503, so never accepted.
        problems: replies that were not what they had to be; each is one request that was lost.
        versions: by model whose version changed, the versions in the order in which they answered.
    """

    counts: dict[str, int] = field(default_factory=lambda: {"valid": 0, "faulty": 0, "hung up": 0})
    statuses: dict[int, int] = field(default_factory=dict)
    rejected: int = 0
    problems: list[str] = field(default_factory=list)
    versions: dict[str, list[str]] = field(default_factory=dict)
    late_s: float = 0.0


@dataclass(frozen=True)
class Growth:
    """How a quantity changed after warm-up, by a line fitted to its samples (least squares).

    Attributes:
        per_hour: the slope.
        total: the slope times the time from the end of warm-up to the last sample.
        margin: half the 95 % interval of `total`, by Student's t; samples are taken to be independent.
        first, last: medians of the first and the last quarter of that time.
    """

    per_hour: float
    total: float
    margin: float
    first: float
    last: float


def growth(points: Sequence[tuple[float, float]]) -> Growth:
    """Fit a line to points of (seconds, value). Raises ValueError if there are fewer than eight."""
    if len(points) < 8:
        raise ValueError(f"{len(points)} samples after warm-up are too few to see a trend; let it run for longer.")
    line = linregress(*zip(*points, strict=True))
    quarter = len(points) // 4
    first, last = (sorted(y for _, y in part)[quarter // 2] for part in (points[:quarter], points[-quarter:]))
    seconds = points[-1][0] - points[0][0]
    # Of values that are all the same, the standard error is not a number.
    error = 0.0 if math.isnan(line.stderr) else line.stderr
    margin = float(t.ppf(0.975, len(points) - 2)) * error * seconds
    return Growth(*(round(float(value), 3) for value in (line.slope * 3600, line.slope * seconds, margin, first, last)))


class _Traffic:
    """Draws requests: valid ones to each model in turn, with faulty and hanging ones among them."""

    def __init__(self, valid: Sequence[ValidRequest], faulty: Sequence[FaultyRequest], seed: int) -> None:
        self._rng = random.Random(seed)
        self.all_valid = valid
        self._valid = itertools.cycle(valid)
        self._faulty, self._hanging = itertools.cycle(faulty), itertools.cycle(disconnecting_requests(valid))

    def draw(self) -> tuple[str, ValidRequest | FaultyRequest]:
        number = self._rng.random()
        if number < BAD_FRACTION:
            return "faulty", next(self._faulty)
        if number < BAD_FRACTION + HANG_UP_FRACTION:
            return "hung up", next(self._hanging)
        return "valid", next(self._valid)


class _Judge:
    """Compares replies with what they have to be, and counts."""

    def __init__(self, answers: Mapping[bytes, Mapping[str, Mapping[str, object]]]) -> None:
        self.outcome = Outcome()
        self._answers = answers

    def add(self, kind: str, request: ValidRequest | FaultyRequest, reply: Reply) -> None:
        outcome = self.outcome
        outcome.counts[kind] += 1
        outcome.statuses[reply.status] = outcome.statuses.get(reply.status, 0) + 1
        outcome.late_s = max(outcome.late_s, reply.late_s)
        if kind == "valid" and reply.status == 503:
            outcome.rejected += 1
        elif problem := self._problem(request, reply):
            outcome.problems.append(f"{problem} (sent {reply.late_s:.2f} s late, ended after {reply.seconds:.2f} s)")

    def _problem(self, request: ValidRequest | FaultyRequest, reply: Reply) -> str | None:
        if isinstance(request, FaultyRequest):
            with suppress(ValueError):
                return request.problem(reply)
            return f"{request.kind}: {reply.status} without a JSON body"
        if (answers := self._answers.get(request.request)) is None:
            return request.problem(reply)
        if reply.status == 200:
            order = self.outcome.versions.setdefault(request.model.name, [])
            if version_of(reply) not in order:
                order.append(version_of(reply))
        return wrong_answer(reply, answers, request.model.manifest.golden_tolerance)


@dataclass(frozen=True)
class Plan:
    """How long, how fast, and how often to look at the server."""

    seconds: float
    per_second: float
    sample_s: float
    seed: int = 0


def soak(context: ScenarioContext, plan: Plan) -> dict[str, Any]:
    """Run the traffic; return the figures, in which "problems" is empty if everything held."""
    known = context.known
    valid = [known[name].valid_request(seed) for seed in range(_VARIANTS) for name in known]
    graphs = {name: {FIRST_VERSION: known[name].graph, "2": other_weights(known[name].graph)} for name in SWAPPED}
    answers = {
        request.request: {
            version: answer_of(request.model, graph, dict(request.fields))
            for version, graph in graphs[request.model.name].items()
        }
        for request in valid
        if request.model.name in SWAPPED
    }
    flags = ("--rescan-seconds", "1", "--drain-seconds", f"{_DRAIN_S:g}", "--grace-seconds", f"{_GRACE_S:g}")
    with context.copies(*known) as models, run_server(models, *flags) as server:
        valid = with_expected(server.port, valid)
        traffic = _Traffic(valid, list(faulty_requests(known)), plan.seed)
        run = _Run(server, plan, traffic, _Judge(answers), _publications(context, models, graphs, server, plan.seconds))
        uvloop.run(run.run())
        status = _exit_status(server)
    return _figures(plan, run, status)


def _publications(
    context: ScenarioContext,
    models: Path,
    graphs: Mapping[str, Mapping[str, bytes]],
    server: ServerProcess,
    seconds: float,
) -> list[tuple[float, Callable[[], None]]]:
    """Return when to publish which version: after a third and after two thirds of the run."""

    def publish_second(name: str) -> None:
        publish(models, context.known[name], "2", graphs[name]["2"])
        wait_until(lambda: server.get(f"/v1/models/{name}")[1].get("version") == "2", timeout_s=PATIENCE_S)

    def publication(name: str) -> Callable[[], None]:
        return lambda: publish_second(name)

    return [(seconds * (i + 1) / 3, publication(name)) for i, name in enumerate(SWAPPED)]


class _Run:
    """A run: sends the requests until half a second after SIGTERM, publishes, rests, and takes samples meanwhile.

    Attributes:
        under_load, at_rest: the samples that were taken while requests came, and at the end of each rest.
    """

    def __init__(
        self,
        server: ServerProcess,
        plan: Plan,
        traffic: _Traffic,
        judge: _Judge,
        publications: Sequence[tuple[float, Callable[[], None]]],
    ) -> None:
        self.judge = judge
        self.under_load: list[Sample] = []
        self.at_rest: list[Sample] = []
        self._server, self._plan, self._traffic = server, plan, traffic
        self._pending: set[asyncio.Task[None]] = set()
        self._publishing: list[asyncio.Task[None]] = []
        # What happens besides the requests, and when, in seconds of traffic: rests do not count.
        steps: list[tuple[float, Callable[[], Awaitable[None]]]] = [
            (at_s, self._publication(publish_it)) for at_s, publish_it in publications
        ]
        rests = RESTS if plan.seconds >= MIN_JUDGED_S else _SHORT_RESTS
        steps += [(plan.seconds * (i + 0.5) / rests, self._rest) for i in range(rests)]
        steps.append((plan.seconds, self._terminate))
        self._steps = sorted(steps, key=lambda step: step[0])

    async def run(self) -> None:
        """Run to the last answer."""
        self._clients, self._started_at = ClientPool(self._server.port), time.monotonic()
        self._rested_s = 0.0
        watching = asyncio.create_task(self._watch())
        try:
            # All at once, so that the server starts every process that it may have before memory is compared.
            now = time.monotonic()
            await asyncio.gather(*(self._send("valid", request, now) for request in self._traffic.all_valid))
            self._started_at = time.monotonic()
            for at_s in _arrivals(self._plan):
                while self._steps and self._steps[0][0] <= at_s:
                    await self._steps.pop(0)[1]()
                due = self._started_at + self._rested_s + at_s
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                task = asyncio.create_task(self._send(*self._traffic.draw(), due))
                self._pending.add(task)
                task.add_done_callback(self._pending.discard)
            await asyncio.gather(*self._pending)
        finally:
            watching.cancel()
            self._clients.close()

    async def _send(self, kind: str, request: ValidRequest | FaultyRequest, due: float) -> None:
        hang_up = request.hang_up if isinstance(request, FaultyRequest) else None
        # A faulty head may announce more than it sends, after which its connection is of no use to others.
        scheduled = ScheduledRequest(0.0, request.request, 0, hang_up, own_connection=kind != "valid")
        self.judge.add(kind, request, await self._clients.send(scheduled, scheduled_at=due))

    def _publication(self, publish_it: Callable[[], None]) -> Callable[[], Awaitable[None]]:
        async def start() -> None:
            self._publishing.append(asyncio.create_task(asyncio.to_thread(publish_it)))

        return start

    async def _rest(self) -> None:
        """Send nothing until all is answered and memory has been given back; then take a sample."""
        began = time.monotonic()
        await asyncio.gather(*self._pending)
        self._clients.close()
        await asyncio.sleep(_REST_S if self._plan.seconds >= MIN_JUDGED_S else _SHORT_REST_S)
        self.at_rest.append(await self._sample())
        self._rested_s += time.monotonic() - began

    async def _terminate(self) -> None:
        began = time.monotonic()
        await asyncio.gather(*self._publishing)
        self._rested_s += time.monotonic() - began
        self._server.process.send_signal(signal.SIGTERM)

    async def _watch(self) -> None:
        while True:
            self.under_load.append(await self._sample())
            await asyncio.sleep(self._plan.sample_s)

    async def _sample(self) -> Sample:
        return await asyncio.to_thread(take_sample, self._server.process.pid, time.monotonic() - self._started_at)


def _arrivals(plan: Plan) -> Iterator[float]:
    """Yield Poisson arrivals until half a second after the end of the run, when SIGTERM is sent."""
    rng, at_s = random.Random(plan.seed + 1), 0.0
    after_end = 0
    while at_s <= plan.seconds + _NOTICE_S or after_end < 2:
        after_end += at_s > plan.seconds
        yield at_s
        at_s += rng.expovariate(plan.per_second)


def take_sample(pid: int, at_s: float) -> Sample:
    """Return what a process and its descendants use now."""
    usage, (threads, descriptors) = tree_usage(pid), tree_handles(pid)
    return Sample(at_s, round(usage.tree_mb, 2), round(usage.root_mb, 2), threads, descriptors)


def _exit_status(server: ServerProcess) -> int | None:
    """Wait for the end that SIGTERM asked for; None if it does not come."""
    try:
        return server.process.wait(_DRAIN_S + _GRACE_S + 10)
    except subprocess.TimeoutExpired:
        return None


_QUANTITIES = {
    "tree_mb": "memory of all processes, MB",
    "root_mb": "resident memory of the server, MB",
    "threads": "threads",
    "descriptors": "descriptors",
}


def _figures(plan: Plan, run: _Run, status: int | None) -> dict[str, Any]:
    outcome = run.judge.outcome
    at_rest, under_load = (_growths(_after_warm_up(samples)) for samples in (run.at_rest, run.under_load))
    return {
        "plan": asdict(plan),
        "requests": outcome.counts,
        "statuses": {str(key): count for key, count in sorted(outcome.statuses.items())},
        "rejected": outcome.rejected,
        "lost": len(outcome.problems),
        "hung_up_before_answer": outcome.statuses.get(HUNG_UP, 0),
        "sent_late_s": round(outcome.late_s, 3),
        "versions": outcome.versions,
        "exit_status": status,
        "growth_at_rest": {name: asdict(one) for name, one in at_rest.items()},
        "growth_under_load": {name: asdict(one) for name, one in under_load.items()},
        "at_rest": [asdict(sample) for sample in run.at_rest],
        "under_load": [asdict(sample) for sample in _thinned(run.under_load, 60)],
        "problems": [
            *outcome.problems[:20],
            *_trend_problems(at_rest, short=plan.seconds < MIN_JUDGED_S),
            *_end_problems(outcome, status),
        ],
    }


def _after_warm_up(samples: Sequence[Sample]) -> Sequence[Sample]:
    return [sample for sample in samples if sample.at_s >= WARM_UP * samples[-1].at_s]


def _growths(samples: Sequence[Sample]) -> dict[str, Growth]:
    return {name: growth([(sample.at_s, getattr(sample, name)) for sample in samples]) for name in _QUANTITIES}


def _trend_problems(grown: Mapping[str, Growth], *, short: bool) -> Iterator[str]:
    limits = dict.fromkeys(("threads", "descriptors"), MAX_GROWTH_HANDLES_SHORT if short else MAX_GROWTH_HANDLES)
    for name, limit in (limits if short else limits | {"tree_mb": MAX_GROWTH_MB}).items():
        # A line through noise has a slope, too: what counts is that it is surely above the limit.
        if grown[name].total - grown[name].margin > limit:
            yield f"{name} grew by {_interval(grown[name])} at rest after warm-up, surely more than {limit:g}."


def _cell(grown: Growth) -> str:
    return f"{grown.total:+.1f} ({_interval(grown)})"


def _interval(grown: Growth) -> str:
    return f"{grown.total - grown.margin:+.1f} to {grown.total + grown.margin:+.1f}"


def _end_problems(outcome: Outcome, status: int | None) -> Iterator[str]:
    if status != 0:
        yield f"The server ended with status {status} after SIGTERM, not 0."
    if outcome.rejected > MAX_REJECTED * outcome.counts["valid"]:
        yield f"{outcome.rejected} requests were rejected: the rate is too high for this machine."
    for name in SWAPPED:
        if outcome.versions.get(name) != [FIRST_VERSION, "2"]:
            yield f"{name} was answered by versions {outcome.versions.get(name)}, not by 1 and then 2."


def _thinned(samples: Sequence[Sample], count: int) -> Sequence[Sample]:
    return samples[:: max(1, len(samples) // count)]


def main(arguments: Sequence[str]) -> int:
    """Run, print and write the figures; return 0 if everything held."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1200.0, help="default: 1200, twenty minutes")
    parser.add_argument("--rate", type=float, default=10.0, help="requests a second; default: 10")
    parser.add_argument("--sample-seconds", type=float, default=0.0, help="interval of samples; default: a 240th")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--results", type=Path, default=RESULTS, help=f"JSON file; default: {RESULTS}")
    parser.add_argument("--write", action="store_true", help=f"write the figures into {DOCUMENT}")
    parser.add_argument("--render", action="store_true", help="report on the stored results, without measuring")
    options = parser.parse_args(arguments)
    if options.render:
        return _report(json.loads(options.results.read_text("utf-8")), write=options.write)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    plan = Plan(options.seconds, options.rate, options.sample_seconds or options.seconds / 240, options.seed)
    figures = {"measured": describe_machine()} | soak(
        ScenarioContext(options.models, known_models(options.models)), plan
    )
    options.results.parent.mkdir(parents=True, exist_ok=True)
    options.results.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    return _report(figures, write=options.write)


def _report(figures: Mapping[str, Any], *, write: bool) -> int:
    print(summary(figures))
    if write:
        DOCUMENT.write_text(with_section(DOCUMENT.read_text("utf-8"), "soak", section(figures)), "utf-8")
    return 1 if figures["problems"] else 0


def section(figures: Mapping[str, Any]) -> str:
    """Return the generated part of the document."""
    machine, plan, counts = figures["measured"], figures["plan"], figures["requests"]
    lines = [
        f"Measured on {machine['when'][:10]} at commit `{machine['commit']}` on {machine['cores']} cores of "
        f"{machine['processor']}: {sum(counts.values()):,} requests in {plan['seconds'] / 60:.0f} minutes "
        f"({counts['valid']:,} valid, {counts['faulty']:,} faulty, {counts['hung up']:,} whose clients hung up), "
        f"{figures['lost']} lost, {figures['rejected']} rejected with 503; versions "
        + "; ".join(f"{name} {' → '.join(order)}" for name, order in figures["versions"].items())
        + f"; exit status {figures['exit_status']} after SIGTERM.",
        "",
        "| after warm-up | at rest, first | last | growth (95 % interval) | under load, first | last | growth |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, title in _QUANTITIES.items():
        cells = [
            text
            for one in (figures["growth_at_rest"][name], figures["growth_under_load"][name])
            for text in (f"{one['first']:.0f}", f"{one['last']:.0f}", _cell(Growth(**one)))
        ]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def summary(figures: Mapping[str, Any]) -> str:
    """Return the figures as a few lines of text."""
    counts = figures["requests"]
    lines = [
        f"{sum(counts.values()):,} requests in {figures['plan']['seconds']:g} s: {counts['valid']:,} valid, "
        f"{counts['faulty']:,} faulty, {counts['hung up']:,} whose clients hung up.",
        f"Lost: {figures['lost']}. Rejected with 503: {figures['rejected']}. Exit status {figures['exit_status']}.",
    ]
    for state in ("at_rest", "under_load"):
        for name in _QUANTITIES:
            one = figures[f"growth_{state}"][name]
            lines.append(
                f"{name} {state.replace('_', ' ')}: {one['first']:g} → {one['last']:g}, {one['total']:+.1f} by "
                f"regression (95 % interval {_interval(Growth(**one))}; {one['per_hour']:+.1f} an hour)."
            )
    return "\n".join([*lines, *(f"PROBLEM: {problem}" for problem in figures["problems"])])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
