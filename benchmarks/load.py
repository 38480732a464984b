"""A closed-loop load generator that is cheap enough not to be what is measured: raw sockets, one prepared request.

Each connection sends its next request when the last was answered. That suits throughput and ratios; latency under a
given load needs an open loop (`loadtests/`, later).
"""

import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Load:
    """What one run of the generator measured; latencies in milliseconds."""

    connections: int
    requests: int
    errors: int
    per_second: float
    p50_ms: float
    p99_ms: float


class _Connection(asyncio.Protocol):
    """Sends the request again and again, and takes the time of each answer."""

    def __init__(self, request: bytes, ends: float, done: asyncio.Future[None]) -> None:
        self._request = request
        self._ends = ends
        self._done = done
        self._buffer = b""
        self._sent = 0.0
        self.seconds: list[float] = []
        self.finished: list[float] = []
        self.errors = 0
        self._ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 -- for the type checker: TCP it is.
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._sent = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r")[0])
        if len(body) < length:
            return
        now = time.perf_counter()
        self.errors += head[9:12] != b"200"
        self.seconds.append(now - self._sent)
        self.finished.append(now)
        self._buffer = b""
        if now < self._ends:
            self._send()
        else:
            self._ended = True
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.errors += not self._ended
        if not self._done.done():
            self._done.set_result(None)


async def generate(url: str, content_type: str, body: bytes, connections: int, seconds: float) -> Load:
    """Loads `url` with POSTs of `body` over so many connections; the first second is not counted."""
    parts = urlsplit(url)
    head = (
        f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    loop = asyncio.get_running_loop()
    counted_from = time.perf_counter() + 1.0
    ends = counted_from + seconds
    done = [loop.create_future() for _ in range(connections)]
    made = []
    for future in done:
        connection = _Connection(head.encode() + body, ends, future)
        await loop.create_connection(lambda c=connection: c, parts.hostname or "", parts.port or 80)  # type: ignore[misc]
        made.append(connection)
    await asyncio.gather(*done)
    times = sorted(s for c in made for s, f in zip(c.seconds, c.finished, strict=True) if counted_from <= f <= ends)
    return Load(
        connections=connections,
        requests=len(times),
        errors=sum(connection.errors for connection in made),
        per_second=len(times) / seconds,
        p50_ms=times[len(times) // 2] * 1000 if times else 0.0,
        p99_ms=times[int(len(times) * 0.99)] * 1000 if times else 0.0,
    )


if __name__ == "__main__":  # In a process of its own: url, content type, file of the body, connections, seconds.
    _, _url, _type, _file, _connections, _seconds = sys.argv
    with open(_file, "rb") as _body:
        print(json.dumps(asdict(asyncio.run(generate(_url, _type, _body.read(), int(_connections), float(_seconds))))))
