"""The open loop on a virtual clock: what it sends and when, and what it makes of the answers."""

import asyncio
import itertools
import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.open_loop import LoopLimits, OpenLoop, Trial, poisson_arrivals
from tests.loadtests.fake_server import FakeServer, virtual_clocks
from tests.virtual_clock import now, run_virtually

REQUESTS = (b"x",)


async def run_trial(server: FakeServer, per_second: float, **options) -> Trial:
    limits = options.pop("limits", LoopLimits())
    clocks = options.pop("clocks", virtual_clocks())
    loop = OpenLoop(server.connect, limits, clocks)
    settings = {"seconds": 20.0, "objective_ms": 200.0, "rng": random.Random(0)} | options
    return await loop.trial(itertools.cycle(REQUESTS), per_second=per_second, **settings)


async def closed_loop_latencies(server: FakeServer, seconds: float) -> list[float]:
    """One client that sends its next request when the last one was answered, thirty milliseconds later."""
    latencies, channel = [], await server.connect()
    while now() < seconds:
        sent = now()
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        channel.send(b"x", lambda _, answered=answered: answered.set_result(None))
        await answered
        latencies.append(now() - sent)
        await asyncio.sleep(0.03)
    return sorted(latencies)


def test_a_server_below_its_capacity_answers_everything_in_its_service_time() -> None:
    trial = run_virtually(run_trial(FakeServer(0.001), 50))

    assert trial.answered == trial.within == trial.offered
    assert trial.failures == {}
    assert trial.p50_ms == pytest.approx(1.0, rel=0.01)
    assert trial.void == ""


def test_a_stall_of_a_second_shows_in_the_open_loop_and_not_in_the_closed_one() -> None:
    stalls = ((5.0, 1.0),)

    trial = run_virtually(run_trial(FakeServer(0.001, stalls), 30, warm_up_s=0.0))
    closed = run_virtually(closed_loop_latencies(FakeServer(0.001, stalls), 20.0))

    assert closed[int(0.99 * len(closed))] < 0.002
    assert trial.p99_ms > 800
    assert 900 < trial.max_ms <= 1010


def test_latency_counts_from_the_intended_time_though_the_client_is_late() -> None:
    class Late(FakeServer):
        """Connecting takes half a second, as to a server whose backlog is full."""

        async def connect(self):
            await asyncio.sleep(0.5)
            return await super().connect()

    trial = run_virtually(run_trial(Late(0.001), 1, warm_up_s=0.0))

    assert trial.max_ms >= 500


def test_requests_beyond_the_connections_are_dropped_and_count_as_offered() -> None:
    trial = run_virtually(run_trial(FakeServer(1.0), 50, limits=LoopLimits(connections=4, timeout_s=100)))

    assert trial.dropped > 0
    assert trial.offered == trial.answered + trial.dropped
    assert trial.answered_ratio < 0.1


def test_a_request_without_an_answer_is_given_up_after_the_timeout() -> None:
    trial = run_virtually(run_trial(FakeServer(1000.0), 5, limits=LoopLimits(timeout_s=2.0)))

    assert trial.failures == {0: trial.offered}
    assert trial.answered == 0


def test_refusals_are_failures_and_not_answers() -> None:
    trial = run_virtually(run_trial(FakeServer(0.01, max_wait_s=0.1), 200))

    assert trial.failures[503] > 0.4 * trial.offered
    assert trial.goodput_per_s == pytest.approx(100, rel=0.03)
    assert trial.p99_ms <= 120


def test_a_client_that_has_no_processor_left_voids_the_trial() -> None:
    trial = run_virtually(run_trial(FakeServer(0.001), 50, clocks=virtual_clocks(cpu_per_s=0.95)))

    assert "used 95% of a core" in trial.void


def test_a_client_that_sends_late_voids_the_trial() -> None:
    class StarvedClock:
        """Every reading comes 100 ms after the one before, as in a process that is not scheduled."""

        def __init__(self) -> None:
            self.readings = 0

        def __call__(self) -> float:
            self.readings += 1
            return now() + 0.1 * self.readings

    clocks = virtual_clocks()
    starved = type(clocks)(StarvedClock(), clocks.cpu_seconds)

    trial = run_virtually(run_trial(FakeServer(0.001), 50, clocks=starved))

    assert "late" in trial.void


def test_a_trial_in_which_no_request_came_says_so_and_blames_nobody() -> None:
    trial = run_virtually(run_trial(FakeServer(0.001), 1e-6))

    assert (trial.offered, trial.answered_ratio, trial.void) == (0, 0.0, "")
    assert trial.client_cpu == pytest.approx(0.1)


def test_a_growing_queue_shows_in_the_last_window() -> None:
    trial = run_virtually(run_trial(FakeServer(0.01), 110))

    first, _, last = trial.p99_by_window
    assert last > 1.5 * first


def test_a_server_that_closes_its_connections_is_connected_to_again() -> None:
    class Closing(FakeServer):
        opened = 0

        async def connect(self):
            self.opened += 1
            channel = await super().connect()
            respond = channel._respond
            channel._respond = lambda response: respond(response and (response[0] + b"\r\nConnection: close", b""))
            return channel

    server = Closing(0.001)

    trial = run_virtually(run_trial(server, 20, warm_up_s=0.0))

    assert trial.answered == trial.offered == server.opened


@given(st.integers(0, 2**32), st.floats(1.0, 500.0))
def test_arrivals_are_in_order_within_the_time_and_repeat_with_their_seed(seed: int, rate: float) -> None:
    def times() -> Iterator[float]:
        return poisson_arrivals(rate, 2.0, random.Random(seed))

    arrivals = list(times())

    assert arrivals == sorted(arrivals) == list(times())
    assert all(0 < at_s < 2.0 for at_s in arrivals)


def test_arrivals_come_at_their_rate_with_the_spread_of_independent_users() -> None:
    arrivals = list(poisson_arrivals(100.0, 100.0, random.Random(1)))
    gaps = [later - earlier for earlier, later in itertools.pairwise(arrivals)]
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)

    assert len(arrivals) == pytest.approx(10_000, rel=0.04)
    assert variance == pytest.approx(mean**2, rel=0.1)
