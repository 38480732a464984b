"""What the service records of a request and of a batch, and the interface of what turns it into spans.

A span is an interval with a name, attributes and a parent. The engine and the HTTP layer know only this interface;
`opentelemetry.py` implements it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol


class RequestSpan(Protocol):
    """A request that is being answered."""

    @property
    def trace_id(self) -> str:
        """The id of its trace: 32 hexadecimal digits."""
        ...

    @property
    def traceresponse(self) -> str:
        """The value of the response header that tells the client which span answered it."""
        ...

    @property
    def is_recorded(self) -> bool:
        """Whether the sampler has chosen it; otherwise, it only has ids."""
        ...


@dataclass(frozen=True)
class RequestOutcome:
    """How a request ended.

    Attributes:
        route: the path with its parameters as names; empty if no endpoint matched.
        stages: seconds that each stage took, in order.
        started_at, ended_at: by `time.perf_counter`.
        code: the error code; empty if there was none.
        error: the exception behind the error code, if any.
    """

    method: str
    path: str
    route: str
    scheme: str
    status: int
    request_id: str
    model: str
    version: str
    stages: Mapping[str, float]
    batch_size: int
    started_at: float
    ended_at: float
    code: str = ""
    failed_inputs: int = 0
    error: BaseException | None = None


@dataclass(frozen=True)
class BatchOutcome:
    """A batch that has run, with the spans of those of its requests that are recorded.

    `started_at` and `ended_at` are by `time.perf_counter`.
    """

    model: str
    version: str
    device: str
    size: int
    started_at: float
    ended_at: float
    requests: tuple[RequestSpan, ...]
    error: Exception | None = None


class Tracer(Protocol):
    """Records spans. No method waits for anything, except for `close`."""

    def start_request(self, headers: Iterable[tuple[bytes, bytes]], method: str) -> RequestSpan:
        """Start the span of a request, in the trace that its `traceparent` header names, or else in a new one."""
        ...

    def end_request(self, span: RequestSpan, outcome: RequestOutcome) -> None:
        """Record a request that is recorded, and its stages."""
        ...

    def record_batch(self, batch: BatchOutcome) -> None:
        """Record a batch. May be called in any thread."""
        ...

    def close(self) -> None:
        """Send what has been recorded, for a second or two at most."""
        ...
