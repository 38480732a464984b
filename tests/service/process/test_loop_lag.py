"""The lag of the event loop is the time by which a timer is late."""

import asyncio

from service.process.loop_lag import measure_loop_lag
from tests.virtual_clock import VirtualClockLoop, now, run_virtually


async def measure(seconds: float, *blocks: tuple[float, float]) -> list[float]:
    """Return the lags of some seconds in which the loop is blocked at the given times, for the given seconds."""
    loop, lags = asyncio.get_running_loop(), list[float]()
    assert isinstance(loop, VirtualClockLoop)

    def block(duration_s: float) -> None:
        loop._now += duration_s

    for at, duration_s in blocks:
        loop.call_at(at, block, duration_s)
    task = asyncio.create_task(measure_loop_lag(lags.append, interval_s=0.1, clock=now))
    await asyncio.sleep(seconds)
    task.cancel()
    return [round(lag, 6) for lag in lags]


def test_free_loop_has_no_lag() -> None:
    assert set(run_virtually(measure(1.05))) == {0.0}


def test_blocked_loop_lags_by_what_is_left_of_the_block_when_the_timer_is_due() -> None:
    lags = run_virtually(measure(1.05, (0.25, 0.33)))

    assert sorted(lags)[-1] == 0.28
    assert lags.count(0.0) == len(lags) - 1


def test_block_between_two_timers_is_not_seen() -> None:
    assert set(run_virtually(measure(1.05, (0.21, 0.05)))) == {0.0}
