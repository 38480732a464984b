"""Give memory back to the system when the process has become idle after large requests.

Allocators keep what has been freed, for the next request of that size: after fifty large images the process would stay
at more than twice its size. Knows nothing about devices and allocators; it is given functions.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable

_TICK_S = 0.25
_IDLE_TICKS = 4
"""Idle at this many ticks in a row counts as idle. Small requests between the ticks do not matter."""
_MIN_GROWTH = 1.05
"""Memory is released only if it has grown by this factor since the last time, so that an idle process does nothing."""


async def release_memory_when_idle(
    *,
    is_idle: Callable[[], bool],
    resident_bytes: Callable[[], int | None],
    release: Callable[[], Awaitable[object]],
    on_released: Callable[[int, int], object] = lambda before, after: None,
) -> None:
    """Call `release` each time the process has been idle for a second and has grown since this call, until cancelled.

    Args:
        is_idle: whether nothing is being computed now.
        resident_bytes: the memory of the process; None if unknown: then nothing is released.
        release: gives memory back. May take some 0.1 s.
        on_released: called with the bytes before and after.
    """
    # What large requests take that come at once must not count as what the process needs.
    smallest, idle_ticks = resident_bytes() or math.inf, 0
    while True:
        await asyncio.sleep(_TICK_S)
        idle_ticks = idle_ticks + 1 if is_idle() else 0
        if idle_ticks < _IDLE_TICKS:
            continue
        before = resident_bytes()
        smallest = min(smallest, math.inf if before is None else before)
        if before is not None and before > _MIN_GROWTH * smallest:
            await release()
            after = resident_bytes() or before
            smallest, idle_ticks = after, 0
            on_released(before, after)
