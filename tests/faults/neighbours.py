"""Other clients, who ask for a row, a photo and the server's liveness at a fixed rate, while something else happens."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from loadtests.clients import LoadProcess, Reply, ScheduledRequest
from tests.faults.report import percentile
from tests.faults.sample_requests import KnownModel, ValidRequest

ROW_INTERVAL_S, PHOTO_INTERVAL_S, PROBE_INTERVAL_S = 0.01, 0.1, 0.1
_ROW, _PHOTO, _PROBE = 0, 1, 2
_PROBE_REQUEST = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"


@dataclass
class NeighbourReplies:
    """What other clients experienced.

    Attributes:
        rows, photos, probes: the seconds that each took.
        failures: a description of each that was not answered with 200.
        late_s: how late the clients themselves were, in seconds each.
    """

    rows: list[float] = field(default_factory=list)
    photos: list[float] = field(default_factory=list)
    probes: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)

    def add(self, replies: Sequence[Reply]) -> "NeighbourReplies":
        """Add replies, and return this."""
        seconds = {_ROW: self.rows, _PHOTO: self.photos, _PROBE: self.probes}
        for reply in replies:
            seconds[reply.key].append(reply.seconds)
            self.late_s.append(reply.late_s)
            if reply.status != 200:
                what = {_ROW: "a row", _PHOTO: "a photo", _PROBE: "liveness"}[reply.key]
                self.failures.append(f"{what}: {reply.status or 'no response'} after {reply.seconds:.1f} s")
        return self

    @property
    def count(self) -> int:
        """How many requests they sent."""
        return len(self.late_s)

    @property
    def row_p99_s(self) -> float:
        """The 99th percentile of the rows."""
        return percentile(self.rows, 0.99)


@dataclass(frozen=True)
class Neighbours:
    """Clients in a process of their own, on connections that are kept."""

    process: LoadProcess
    port: int
    row: ValidRequest
    photo: ValidRequest

    @classmethod
    def of(cls, process: LoadProcess, port: int, known: Mapping[str, KnownModel]) -> "Neighbours":
        """Return the clients of a server."""
        return cls(process, port, known["adult"].valid_request(1), known["clothing"].valid_request(1))

    def start(self, seconds: float) -> Future[list[Reply]]:
        """Let them send for this long; the future has their replies."""
        streams = (
            (_ROW, ROW_INTERVAL_S, self.row.request),
            (_PHOTO, PHOTO_INTERVAL_S, self.photo.request),
            (_PROBE, PROBE_INTERVAL_S, _PROBE_REQUEST),
        )
        scheduled = [
            ScheduledRequest(i * interval_s, request, key)
            for key, interval_s, request in streams
            for i in range(round(seconds / interval_s))
        ]
        return self.process.open_loop(self.port, sorted(scheduled, key=lambda request: request.at_s))
