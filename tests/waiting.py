"""Wait until something has happened in another thread or process."""

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], bool], *, timeout_s: float = 60.0, interval_s: float = 0.005) -> float:
    """Poll until the condition holds and return the seconds that this took. Raises TimeoutError."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > timeout_s:
            raise TimeoutError(f"The condition did not hold within {timeout_s:g} s.")
        time.sleep(interval_s)
    return time.monotonic() - start
