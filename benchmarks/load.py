"""Closed-loop load from a process of its own: throughput and latency of one request, over several connections."""

from dataclasses import dataclass

from loadtests.clients import LoadProcess

_WARM_UP_S = 1.0


@dataclass(frozen=True)
class LoadResult:
    """Throughput and latency of one load."""

    connections: int
    requests: int
    errors: int
    per_second: float
    p50_ms: float
    p99_ms: float


def measure_load(process: LoadProcess, port: int, request: bytes, *, connections: int, seconds: float) -> LoadResult:
    """Send `request` over and over on each connection; the first second is not counted.

    Raises RuntimeError if a request fails: the figures would mean nothing.
    """
    replies = process.closed_loop(port, [request], connections, _WARM_UP_S + seconds).result()
    errors = sum(reply.status != 200 for reply in replies)
    counted_from = min(reply.sent for reply in replies) + _WARM_UP_S
    latencies = sorted(reply.seconds for reply in replies if counted_from <= reply.ended <= counted_from + seconds)
    if errors or not latencies:
        raise RuntimeError(f"{errors} of {len(replies)} requests failed.")
    return LoadResult(
        connections,
        len(latencies),
        errors,
        per_second=len(latencies) / seconds,
        p50_ms=latencies[len(latencies) // 2] * 1000,
        p99_ms=latencies[int(len(latencies) * 0.99)] * 1000,
    )
