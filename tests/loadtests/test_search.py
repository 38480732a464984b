"""The search of the capacity, against servers whose capacity is known."""

import itertools
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from loadtests.open_loop import LoopLimits, OpenLoop, Trial
from loadtests.search import Objective, find_capacity
from tests.loadtests.fake_server import FakeServer, virtual_clocks
from tests.virtual_clock import run_virtually

OBJECTIVE = Objective(200.0)


def trial(rate: float, *, answered: float = 1.0, p99_ms: float = 10.0, last_ms: float = 10.0, void: str = "") -> Trial:
    offered = round(rate * 10)
    count = round(answered * offered)
    windows = (10.0, 10.0, last_ms)
    return Trial(rate, 10.0, offered, count, count, {}, 0, 5.0, 8.0, p99_ms, 20.0, windows, 0.0, 0.1, void)


def measure_server(server: FakeServer) -> Callable[[float], Awaitable[Trial]]:
    """Measure a fake server with the open loop."""
    loop, seeds = OpenLoop(server.connect, LoopLimits(), virtual_clocks()), itertools.count()

    async def measure(rate: float) -> Trial:
        return await loop.trial(
            itertools.repeat(b"x"),
            per_second=rate,
            seconds=30.0,
            objective_ms=OBJECTIVE.p99_ms,
            rng=random.Random(next(seeds)),
        )

    return measure


@pytest.mark.parametrize("start", [3.0, 90.0, 700.0])
def test_the_capacity_of_a_server_with_a_known_service_time_is_found(start: float) -> None:
    # Poisson arrivals at a server of 100/s: p99 of M/D/1 reaches 200 ms at about 88 % of that, a little more or less
    # in thirty seconds.
    capacity = run_virtually(find_capacity(measure_server(FakeServer(0.01)), OBJECTIVE, start=start))

    assert 80 <= capacity.per_second <= 97
    assert capacity.upper is not None
    assert capacity.upper / capacity.per_second <= 1.11


def test_the_capacity_of_a_server_that_refuses_in_time_is_where_it_refuses_one_in_a_hundred() -> None:
    capacity = run_virtually(find_capacity(measure_server(FakeServer(0.01, max_wait_s=0.15)), OBJECTIVE, start=10.0))

    assert 80 <= capacity.per_second <= 100


def test_goodput_of_a_server_that_refuses_in_time_stays_at_its_peak() -> None:
    measure = measure_server(FakeServer(0.01, max_wait_s=0.15))

    overloaded = run_virtually(measure(200.0))

    assert overloaded.goodput_per_s >= 0.9 * 100


@pytest.mark.parametrize(
    ("measured", "reason"),
    [
        (trial(10, answered=0.98), "answered 98.0%"),
        (trial(10, p99_ms=201), "p99 201 ms"),
        (trial(10, last_ms=300), "queue grows"),
        (trial(10), ""),
    ],
)
def test_a_trial_holds_if_enough_is_answered_in_time_until_the_end(measured: Trial, reason: str) -> None:
    problem = OBJECTIVE.problem(measured)

    assert (reason in problem) if reason else (problem == "")


@pytest.mark.parametrize(
    ("offered", "answered", "holds"), [(20, 19, True), (20, 18, False), (300, 297, True), (0, 0, False)]
)
def test_one_request_alone_does_not_decide(offered: int, answered: int, holds: bool) -> None:
    measured = replace(trial(10), offered=offered, answered=answered)

    assert (OBJECTIVE.problem(measured) == "") is holds


def search(measure: Callable[[float, int], Trial], **options):
    """Search with a function of the rate and the number of trials at it so far."""
    counts: dict[float, int] = {}

    async def counted(rate: float) -> Trial:
        counts[rate] = counts.get(rate, 0) + 1
        return measure(rate, counts[rate])

    return run_virtually(find_capacity(counted, OBJECTIVE, start=10.0, **options)), counts


def test_the_interval_around_the_capacity_is_as_narrow_as_asked_for() -> None:
    capacity, _ = search(lambda rate, _: trial(rate, answered=1.0 if rate <= 137 else 0.5), tolerance=0.02)

    assert capacity.per_second <= 137 < capacity.upper
    assert capacity.upper / capacity.per_second <= 1.02


def test_one_bad_trial_among_three_does_not_decide() -> None:
    capacity, _ = search(
        lambda rate, n: trial(rate, answered=1.0 if rate <= 137 and not (rate > 85 and n == 1) else 0.5)
    )

    assert capacity.per_second > 125


def test_a_rate_that_held_only_once_is_tried_again_before_it_is_reported() -> None:
    capacity, counts = search(
        lambda rate, n: trial(rate, answered=1.0 if rate <= 37 or (rate == 40 and n == 1) else 0.5)
    )

    assert capacity.per_second <= 37
    assert counts[40] > 1


def test_a_client_that_is_the_limit_ends_the_search_and_is_named() -> None:
    capacity, counts = search(lambda rate, _: trial(rate, void="the client was busy" if rate > 50 else ""))

    assert capacity.per_second == 40
    assert capacity.upper is None
    assert "80/s the client was busy" in capacity.limit
    assert counts[80] == 3


def test_a_void_trial_that_succeeds_when_repeated_is_not_counted() -> None:
    capacity, _ = search(
        lambda rate, n: trial(rate, answered=1.0 if rate <= 137 else 0.5, void="busy" if n == 1 else "")
    )

    assert 125 <= capacity.per_second <= 137
    assert capacity.limit == ""


def test_a_server_that_keeps_the_objective_at_no_rate_has_no_capacity() -> None:
    capacity, counts = search(lambda rate, _: trial(rate, p99_ms=1e6))

    assert capacity.per_second == 0
    assert sum(counts.values()) < 24
