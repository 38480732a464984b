"""The lag of the server's event loop, from its histogram."""

import math
import re
from collections.abc import Mapping

from tests.faults.server_process import ServerProcess

_BUCKET = re.compile(r'^sevenfold_event_loop_lag_seconds_bucket\{(?:[^}]*,)?le="([^"]+)"[^}]*\} (\S+)$', re.MULTILINE)


def loop_lag_counts(server: ServerProcess) -> Mapping[float, float]:
    """Return the cumulative counts by upper bound in seconds; empty if the server has no such metric."""
    return {float(bound): float(count) for bound, count in _BUCKET.findall(server.get("/metrics")[1])}


def p99_of(before: Mapping[float, float], after: Mapping[float, float]) -> float | None:
    """Return the bound below which 99 % of the lags between two readings lie; None if none were measured."""
    counts = {bound: after[bound] - before.get(bound, 0.0) for bound in sorted(after)}
    total = counts.get(math.inf, 0.0)
    return next((bound for bound, count in counts.items() if count >= 0.99 * total), None) if total else None
