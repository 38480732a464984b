"""Measure how late the event loop runs what is due: the delay that every request gets in addition to its own work."""

import asyncio
import time
from collections.abc import Callable

_INTERVAL_S = 0.05


async def measure_loop_lag(
    observe: Callable[[float], object],
    *,
    interval_s: float = _INTERVAL_S,
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Pass the seconds by which the loop is late to `observe`, at each interval, until cancelled.

    Anything that blocks the loop for longer than the interval is seen, and shorter things in proportion.
    """
    while True:
        due_at = clock() + interval_s
        await asyncio.sleep(interval_s)
        observe(max(0.0, clock() - due_at))
