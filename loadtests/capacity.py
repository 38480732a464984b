"""`python -m loadtests.capacity`: the highest rate of each model that keeps the objective, in an open loop.

It starts a server of its own unless --url names one. Each request states the objective as its deadline, so that a
server which is offered too much refuses what it cannot answer in time.
"""

import argparse
import asyncio
import json
import random
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.machine import describe_machine
from loadtests.capacity_report import draw, table, text_plot, write_document
from loadtests.clients import Address, connect, parse_url, prepare_request, raised_priority
from loadtests.open_loop import LoopLimits, OpenLoop, Trial
from loadtests.search import Capacity, Objective, find_capacity
from loadtests.server import start_server
from loadtests.workload import ModelWorkload, Server, WorkloadError, discover, parse_pairs, with_weights

RESULTS, DOCUMENT, PLOT = (
    Path("loadtests/results/capacity.json"),
    Path("docs/capacity.md"),
    Path("docs/images/capacity.png"),
)
MIXED = "all models, mixed"
_CURVE = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
"""Rates at which the curve is measured after the search, as multiples of the capacity."""
_USUAL_REQUESTS, _MIN_REQUESTS, _PATIENCE_S = 200, 50, 30.0
_SOLO_REQUESTS = 8


@dataclass(frozen=True)
class _Plan:
    seconds: float
    max_seconds: float
    repeats: int
    tolerance: float
    seed: int


def main(arguments: Sequence[str]) -> int:
    """Measure, print and write; return 0, 1 if the client was the limit for a model, or 2 if nothing was measured."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.render:
        return _report(json.loads(options.results.read_text("utf-8")), options)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        objectives = parse_pairs(options.p99_ms, "--p99-ms")
        with _server(options) as url, raised_priority():
            results = uvloop.run(_measure_all(options, url, objectives))
    except (WorkloadError, RuntimeError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return _report(results, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtests.capacity", description=__doc__)
    parser.add_argument("--url", default="", help="base URL of the server; default: start one on this machine")
    parser.add_argument("--api-key", default="", help="sent as Authorization: Bearer")
    parser.add_argument("--insecure", action="store_true", help="do not check the certificate of an https URL")
    parser.add_argument("--models", type=Path, default=Path("models"), help="models of a server that is started")
    parser.add_argument("--only", default="", help="measure these models: clothing,adult; default: all, and the mix")
    parser.add_argument("--weights", default="", help="shares of the mixed traffic: clothing=3,all=1")
    parser.add_argument("--files", type=Path, default=Path("examples"), help="pictures and texts; default: examples")
    parser.add_argument("--p99-ms", default="250", help="objective: 250 (the default), or restore=2000,all=250")
    parser.add_argument("--deadline-ms", type=float, help="deadline in each request; default: the objective; 0: none")
    parser.add_argument("--seconds", type=float, default=6.0, help="length of a trial, at least; default: 6")
    parser.add_argument(
        "--max-seconds", type=float, default=20.0, help="for slow models, until 200 requests; default: 20"
    )
    parser.add_argument("--repeats", type=int, default=3, help="trials at a rate, of which most decide; default: 3")
    parser.add_argument("--tolerance", type=float, default=0.06, help="relative width of the interval; default: 0.06")
    parser.add_argument("--connections", type=int, default=512, help="most connections; default: 512")
    parser.add_argument("--seed", type=int, default=0, help="of the random times; default: 0")
    parser.add_argument("--results", type=Path, default=RESULTS, help=f"JSON file; default: {RESULTS}")
    parser.add_argument("--plot", type=Path, help="PNG or SVG file for the curves (needs matplotlib)")
    parser.add_argument("--write", action="store_true", help=f"write the table into {DOCUMENT} and the plot to {PLOT}")
    parser.add_argument("--render", action="store_true", help="report on the stored results, without measuring")
    return parser


def _report(results: Mapping[str, Any], options: argparse.Namespace) -> int:
    print(table(results))
    if plot := options.plot or (PLOT if options.write else None):
        print(draw(results, plot))
    else:
        print(text_plot(results))
    if options.write:
        write_document(DOCUMENT, results)
    return 1 if any(model["limit"] for model in results["models"]) else 0


@contextmanager
def _server(options: argparse.Namespace) -> Iterator[str]:
    if options.url:
        yield options.url
        return
    # A session of its own, so that the kernel divides the processor between server and client (sched(7), autogroup).
    with start_server(options.models, "--log-level", "warning", start_new_session=True) as (_, port):
        yield f"http://127.0.0.1:{port}"


async def _measure_all(options: argparse.Namespace, url: str, objectives: Mapping[str, float]) -> dict[str, Any]:
    server = Server(url, options.api_key, verify=not options.insecure)
    only = tuple(filter(None, options.only.split(",")))
    workloads = with_weights(discover(server, files=options.files, only=only), options.weights)
    address = parse_url(url, verify=not options.insecure)
    plan = _Plan(options.seconds, options.max_seconds, options.repeats, options.tolerance, options.seed)
    mixed = [(MIXED, workloads)] if len(workloads) > 1 and not only else []
    models: list[dict[str, Any]] = []
    results = {
        "url": "a server on the same machine" if not options.url else "a server elsewhere",
        "seconds": options.seconds,
        "repeats": options.repeats,
        "models": models,
    }
    for name, parts in [*((workload.name, [workload]) for workload in workloads), *mixed]:
        objective = Objective(objectives.get(name, objectives.get("all", 250.0)))
        deadline_ms = objective.p99_ms if options.deadline_ms is None else options.deadline_ms
        requests = _requests(address, parts, deadline_ms, server.headers)
        models.append(await _measure(name, address, requests, objective, plan, options.connections))
        print(table({"models": models[-1:]}, header=len(models) == 1), flush=True)
        # After each model: a run that is interrupted has measured something.
        _write(options.results, results | {"measured": describe_machine() | {"load": _load_average()}})
    return results | {"measured": describe_machine() | {"load": _load_average()}}


def _write(file: Path, results: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


def _load_average() -> float | None:
    """Return how many processes wanted a processor in the last minute, whoever's they are."""
    try:
        return round(float(Path("/proc/loadavg").read_text("ascii").split()[0]), 1)
    except OSError:
        return None


@dataclass(frozen=True)
class Pool:
    """Prepared requests, and how often each is drawn in relation to the others."""

    requests: Sequence[bytes]
    weights: Sequence[float]

    def draw(self, rng: random.Random) -> Iterator[bytes]:
        """Yield requests at random, without end."""
        while True:
            yield from rng.choices(self.requests, self.weights, k=256)


def _requests(
    address: Address, workloads: Sequence[ModelWorkload], deadline_ms: float, headers: Mapping[str, str]
) -> Pool:
    further = dict(headers) | ({"X-Request-Timeout-Ms": f"{deadline_ms:g}"} if deadline_ms else {})
    requests, weights = [], []
    for workload in workloads:
        for body in workload.bodies:
            path = address.base_path + workload.path
            requests.append(prepare_request(path, body.content_type, body.content, host=address.authority, **further))
            weights.append(workload.weight / len(workload.bodies))
    return Pool(requests, weights)


async def _measure(
    name: str, address: Address, pool: Pool, objective: Objective, plan: _Plan, connections: int
) -> dict[str, Any]:
    """Search the capacity of one kind of traffic, then measure the curve around it."""
    loop = OpenLoop(lambda: connect(address), LoopLimits(connections, timeout_s=max(10.0, objective.p99_ms / 100)))
    numbers = iter(range(10_000))

    async def measure(rate: float) -> Trial:
        rng = random.Random(f"{plan.seed} {name} {next(numbers)}")
        seconds = max(plan.seconds, min(plan.max_seconds, _USUAL_REQUESTS / rate), _MIN_REQUESTS / rate)
        return await loop.trial(
            pool.draw(rng), per_second=rate, seconds=seconds, objective_ms=objective.p99_ms, rng=rng
        )

    try:
        start = 0.5 / await _solo_seconds(address, pool)
        capacity = await find_capacity(measure, objective, start=start, tolerance=plan.tolerance, repeats=plan.repeats)
        curve = [await measure(factor * capacity.per_second) for factor in _CURVE if capacity.per_second > 0]
    finally:
        loop.close()
    return _summary(name, objective, capacity, curve)


async def _solo_seconds(address: Address, pool: Pool) -> float:
    """Return the median time of a request that is alone. Raises RuntimeError if one gets no answer."""
    seconds, rng = [], random.Random(0)
    for request, _ in zip(pool.draw(rng), range(_SOLO_REQUESTS), strict=False):
        started_at = time.monotonic()
        channel = await connect(address)
        answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        channel.send(request, answered.set_result)
        async with asyncio.timeout(_PATIENCE_S):
            await answered
        channel.close()
        seconds.append(time.monotonic() - started_at)
    return sorted(seconds)[_SOLO_REQUESTS // 2]


def _summary(name: str, objective: Objective, capacity: Capacity, curve: Sequence[Trial]) -> dict[str, Any]:
    held = [trial for trial in capacity.trials if not trial.void and not objective.problem(trial)]
    best = max(held, key=lambda trial: trial.offered_per_s, default=None)
    usable = [trial for trial in [*capacity.trials, *curve] if not trial.void]
    peak = max((trial.goodput_per_s for trial in usable), default=0.0)
    overloaded = curve[-1] if curve and not curve[-1].void else None
    return {
        "name": name,
        "objective_ms": objective.p99_ms,
        "per_second": round(capacity.per_second, 2),
        "upper": None if capacity.upper is None else round(capacity.upper, 2),
        "trials": len(capacity.trials),
        "void_trials": sum(bool(trial.void) for trial in capacity.trials),
        "p50_ms": best and round(best.p50_ms, 2),
        "p99_ms": best and round(best.p99_ms, 2),
        "peak_goodput": round(peak, 2),
        "goodput_at_twice": overloaded and round(overloaded.goodput_per_s, 2),
        "limit": capacity.limit,
        "curve": [_point(trial) for trial in sorted(usable, key=lambda trial: trial.offered_per_s)],
    }


def _point(trial: Trial) -> dict[str, Any]:
    point = {key: round(value, 3) if isinstance(value, float) else value for key, value in asdict(trial).items()}
    point["failures"] = {str(status): count for status, count in trial.failures.items()}
    return point | {"goodput_per_s": round(trial.goodput_per_s, 2)}


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
