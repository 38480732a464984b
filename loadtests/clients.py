"""Load clients that are cheap enough not to distort what they measure: raw sockets, prepared requests, one event loop.

In an open loop, requests are sent at given times, whether or not earlier ones have been answered. In a closed loop,
each client sends its next request when the last one was answered.
"""

import asyncio
import os
import ssl
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import uvloop

T = TypeVar("T")
Response = tuple[bytes, bytes]
"""Head and body."""

NO_RESPONSE, HUNG_UP = 0, -1
"""In place of a status: the connection ended without a response; the client hung up itself."""
_HOST = "127.0.0.1"
_MAX_SECONDS = 60.0
MAX_IDLE_S = 2.0
"""A connection that was idle for longer is not used again: servers close such ones, perhaps just as a request comes."""
_RECONNECT_S = 0.01
_PRIORITY = -10
_END_OF_HEAD = b"\r\n\r\n"


@dataclass(frozen=True)
class Address:
    """Where a server listens.

    Attributes:
        tls: whether connections are encrypted; `verify` says whether the certificate is checked then.
        base_path: what precedes the path of each request, without a slash at its end.
    """

    host: str
    port: int
    tls: bool = False
    verify: bool = True
    base_path: str = ""

    @property
    def authority(self) -> str:
        """The value of the Host header."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return name if self.port == (443 if self.tls else 80) else f"{name}:{self.port}"

    @property
    def ssl_context(self) -> ssl.SSLContext | None:
        """How to encrypt a connection; None if it is not encrypted."""
        if not self.tls:
            return None
        return ssl.create_default_context() if self.verify else ssl._create_unverified_context()  # noqa: S323


Target = int | Address
"""A server: its port on this machine, or its address."""


def parse_url(url: str, *, verify: bool = True) -> Address:
    """Return the address of a base URL, such as https://example.org/models. Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"'{url}' is no base URL; give one such as http://127.0.0.1:8000.")
    tls = parts.scheme == "https"
    return Address(parts.hostname, parts.port or (443 if tls else 80), tls, verify, parts.path.rstrip("/"))


def prepare_request(path: str, content_type: str, body: bytes, *, host: str = "x", **headers: str) -> bytes:
    """Return the bytes of a POST request; underscores in the names of headers become hyphens."""
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", f"Content-Type: {content_type}", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass(frozen=True)
class HangUp:
    """When a client closes its connection.

    Attributes:
        after_bytes: how much of the request it sends first; None for all of it.
        after_s: how long it then waits.
        on_response: it waits for the first bytes of the response instead.
    """

    after_bytes: int | None = None
    after_s: float = 0.0
    on_response: bool = False


@dataclass(frozen=True)
class ScheduledRequest:
    """A request of an open loop.

    Attributes:
        at_s: when to send it, in seconds from the start.
        key: identifies its reply.
        own_connection: do not reuse a connection; for a request that announces more bytes than it sends, for example.
    """

    at_s: float
    request: bytes
    key: int = 0
    hang_up: HangUp | None = None
    own_connection: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """The response to a request, or why there is none; times are those of `time.monotonic`, in seconds.

    Attributes:
        status: the HTTP status, NO_RESPONSE or HUNG_UP.
        ended: when the response was complete, or when the client hung up.
        late_s: how much later than scheduled the request was sent.
    """

    key: int
    status: int
    sent: float
    ended: float
    late_s: float = 0.0
    head: bytes = b""
    body: bytes = b""

    @property
    def seconds(self) -> float:
        """The time from sending the request to the end of the response."""
        return self.ended - self.sent

    def header(self, name: str) -> str:
        """Return a header of the response, or an empty string."""
        _, separator, rest = self.head.lower().partition(f"\r\n{name.lower()}: ".encode())
        return rest.partition(b"\r\n")[0].decode("latin-1") if separator else ""


class Connection(asyncio.Protocol):
    """A connection to the server, for one request at a time."""

    def __init__(self) -> None:
        self.is_open = False
        self._chunks: list[bytes] = []
        self._size = 0
        self._length: int | None = None
        self._is_chunked = False
        self._head = b""
        self._on_response: Callable[[Response | None], None] | None = None
        self._on_first_bytes: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport, self.is_open = cast(asyncio.Transport, transport), True

    def send(
        self,
        request: bytes,
        on_response: Callable[[Response | None], None],
        on_first_bytes: Callable[[], None] | None = None,
    ) -> None:
        """Send a request; `on_response` gets the response, or None if the connection ends before it is complete."""
        self._on_response, self._on_first_bytes = on_response, on_first_bytes
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Collect the response."""
        if self._on_first_bytes is not None:
            on_first_bytes, self._on_first_bytes = self._on_first_bytes, None
            on_first_bytes()
        self._chunks.append(data)
        self._size += len(data)
        if self._length is None and not self._read_head():
            return
        if self._length is not None and (self._is_whole() if self._is_chunked else self._size >= self._length):
            body = b"".join(self._chunks)
            self._chunks, self._size, self._length = [], 0, None
            self._respond((self._head, body))

    def _read_head(self) -> bool:
        head, separator, rest = b"".join(self._chunks).partition(_END_OF_HEAD)
        if not separator:
            return False
        length = head.lower().partition(b"content-length:")[2].partition(b"\r")[0]
        self._head, self._chunks, self._size, self._length = head, [rest], len(rest), int(length or 0)
        self._is_chunked = not length and b"transfer-encoding: chunked" in head.lower()
        return True

    def _is_whole(self) -> bool:
        """Return whether a chunked body is complete. Proxies send these; the body is not unpacked."""
        body, position = b"".join(self._chunks), 0
        while (end := body.find(b"\r\n", position)) >= 0:
            size = int(body[position:end].partition(b";")[0], 16)
            if size == 0:
                return body.endswith(b"\r\n\r\n")
            position = end + 2 + size + 2
        return False

    def _respond(self, response: Response | None) -> None:
        if self._on_response is not None:
            on_response, self._on_response = self._on_response, None
            on_response(response)

    def connection_lost(self, error: Exception | None) -> None:
        """Tell the sender that there will be no response."""
        self.is_open = False
        self._respond(None)

    def close(self) -> None:
        """Close the connection at once; a sender that still waits is told that there is no response."""
        self.is_open = False
        self._transport.abort()
        self._respond(None)


async def connect(target: Target) -> Connection:
    """Open a connection. Raises OSError."""
    address = Address(_HOST, target) if isinstance(target, int) else target
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(Connection, address.host, address.port, ssl=address.ssl_context)
    return connection


def _is_reusable(connection: Connection, head: bytes) -> bool:
    return connection.is_open and b"connection: close" not in head.lower()


class ClientPool:
    """Connections to one server; requests beyond `max_connections` wait for a free one."""

    def __init__(self, target: Target, *, max_connections: int = 800) -> None:
        self._target = target
        self._free: list[tuple[Connection, float]] = []
        self._slots = asyncio.Semaphore(max_connections)

    async def _connection(self, *, new: bool) -> Connection:
        while self._free and not new:
            connection, since = self._free.pop()
            if connection.is_open and time.monotonic() - since <= MAX_IDLE_S:
                return connection
            connection.close()
        return await connect(self._target)

    async def send(self, scheduled: ScheduledRequest, *, scheduled_at: float | None = None) -> Reply:
        """Send a request and wait for the response, for at most 60 s. Cancelling this closes the connection."""
        async with self._slots:
            sent = time.monotonic()
            late_s = 0.0 if scheduled_at is None else sent - scheduled_at
            if scheduled.hang_up is not None:
                status, head, body = await self._hang_up(scheduled.request, scheduled.hang_up), b"", b""
            else:
                status, head, body = await self._send(scheduled.request, new=scheduled.own_connection)
            return Reply(scheduled.key, status, sent, time.monotonic(), late_s, head, body)

    async def _send(self, request: bytes, *, new: bool) -> tuple[int, bytes, bytes]:
        try:
            connection = await self._connection(new=new)
        except OSError:
            return NO_RESPONSE, b"", b""
        received: asyncio.Future[Response | None] = asyncio.get_running_loop().create_future()
        is_complete = False
        try:
            connection.send(request, lambda response: _set_result(received, response))
            response = await asyncio.wait_for(received, _MAX_SECONDS)
            is_complete = response is not None and not new and _is_reusable(connection, response[0])
        except TimeoutError:
            response = None
        finally:
            if is_complete:
                self._free.append((connection, time.monotonic()))
            else:
                connection.close()
        return (NO_RESPONSE, b"", b"") if response is None else (_status(response[0]), *response)

    async def _hang_up(self, request: bytes, hang_up: HangUp) -> int:
        """Send on a new connection and close it; the status is HUNG_UP, or that of a response that came before."""
        loop = asyncio.get_running_loop()
        try:
            connection = await connect(self._target)
        except OSError:
            return NO_RESPONSE
        received: asyncio.Future[Response | None] = loop.create_future()
        first_bytes: asyncio.Future[None] = loop.create_future()

        def on_response(response: Response | None) -> None:
            _set_result(received, response)
            _set_result(first_bytes, None)

        try:
            connection.send(request[: hang_up.after_bytes], on_response, lambda: _set_result(first_bytes, None))
            if hang_up.on_response:
                await asyncio.wait_for(first_bytes, _MAX_SECONDS)
            else:
                await asyncio.sleep(hang_up.after_s)
            if not received.done():
                return HUNG_UP
            if (response := received.result()) is None:
                return NO_RESPONSE
            return HUNG_UP if hang_up.on_response else _status(response[0])
        except TimeoutError:
            return NO_RESPONSE
        finally:
            connection.close()

    async def open_loop(self, requests: Iterable[ScheduledRequest]) -> list[Reply]:
        """Send each request at its time, in the given order, whether or not earlier ones have been answered."""
        tasks: list[asyncio.Task[Reply]] = []
        started_at = time.monotonic()
        for scheduled in requests:
            if (wait_s := started_at + scheduled.at_s - time.monotonic()) > 0:
                await asyncio.sleep(wait_s)
            tasks.append(asyncio.create_task(self.send(scheduled, scheduled_at=started_at + scheduled.at_s)))
        return list(await asyncio.gather(*tasks))

    def close(self) -> None:
        """Close the idle connections."""
        for connection, _ in self._free:
            connection.close()
        self._free.clear()


def _set_result(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _status(head: bytes) -> int:
    return int(head[9:12])


class _ClosedLoop:
    """Clients that send the given requests in turn until time is up.

    It works by callbacks: a task a request would cost as much as a fast model's answer.
    """

    def __init__(self, target: Target, requests: Sequence[bytes], seconds: float) -> None:
        self.replies: list[Reply] = []
        self._target = target
        self._requests = requests
        self._count = 0
        self._ends = time.monotonic() + seconds

    async def run_client(self) -> None:
        """Send requests on one connection, and on a new one whenever it ends."""
        while (left_s := self._ends - time.monotonic()) > 0:
            try:
                connection = await connect(self._target)
            except OSError:
                now = time.monotonic()
                self.replies.append(Reply(0, NO_RESPONSE, now, now))
                await asyncio.sleep(_RECONNECT_S)
                continue
            ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._send_next(connection, ended)
            try:
                await asyncio.wait_for(ended, left_s + _MAX_SECONDS)
            except TimeoutError:
                pass  # Closing the connection records the request as one without a response.
            finally:
                connection.close()

    def _send_next(self, connection: Connection, ended: asyncio.Future[None]) -> None:
        key = self._count % len(self._requests)
        self._count += 1
        sent = time.monotonic()

        def on_response(response: Response | None) -> None:
            now = time.monotonic()
            head = b"" if response is None else response[0]
            self.replies.append(Reply(key, _status(head) if head else NO_RESPONSE, sent, now, head=head))
            if now < self._ends and head and _is_reusable(connection, head):
                self._send_next(connection, ended)
            else:
                _set_result(ended, None)

        connection.send(self._requests[key], on_response)


def run_clients(
    target: Target, use: Callable[[ClientPool], Coroutine[Any, Any, T]], *, max_connections: int = 800
) -> T:
    """Run `use` with clients of this server, on an event loop of its own, and return its result."""

    async def main() -> T:
        clients = ClientPool(target, max_connections=max_connections)
        try:
            return await use(clients)
        finally:
            clients.close()

    with raised_priority():
        return uvloop.run(main())


@contextmanager
def raised_priority() -> Iterator[None]:
    """Raise this thread's priority where permitted, so that the server is measured and not a client that waits."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, _PRIORITY)
    except PermissionError:
        yield
        return
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, 0)


def open_loop(target: Target, requests: Sequence[ScheduledRequest]) -> list[Reply]:
    """Send each request at its time, from this process."""
    return run_clients(target, lambda clients: clients.open_loop(requests))


def closed_loop(target: Target, requests: Sequence[bytes], concurrency: int, seconds: float) -> list[Reply]:
    """Let `concurrency` clients send the requests in turn, from this process; the replies have no bodies."""

    async def run() -> list[Reply]:
        loop = _ClosedLoop(target, requests, seconds)
        await asyncio.gather(*(loop.run_client() for _ in range(concurrency)))
        return loop.replies

    with raised_priority():
        return uvloop.run(run())


def send_sequentially(target: Target, requests: Sequence[bytes]) -> list[Reply]:
    """Send each request when the one before it has been answered."""

    async def send_all(clients: ClientPool) -> list[Reply]:
        return [await clients.send(ScheduledRequest(0.0, request, key)) for key, request in enumerate(requests)]

    return run_clients(target, send_all)


class LoadProcess:
    """A process that generates load, so that its clients do not disturb those of this process."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        self._pool.submit(time.sleep, 0.0).result()

    def __enter__(self) -> "LoadProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def closed_loop(
        self, target: Target, requests: Sequence[bytes], concurrency: int, seconds: float
    ) -> Future[list[Reply]]:
        """Start a closed loop; the future has its replies."""
        return self._pool.submit(closed_loop, target, requests, concurrency, seconds)

    def open_loop(self, target: Target, requests: Sequence[ScheduledRequest]) -> Future[list[Reply]]:
        """Start an open loop; the future has its replies."""
        return self._pool.submit(open_loop, target, requests)


def at_constant_rate(requests: Sequence[bytes], *, per_second: float, seconds: float) -> list[ScheduledRequest]:
    """Schedule the requests in turn, at equal intervals."""
    return [
        ScheduledRequest(i / per_second, requests[i % len(requests)], i % len(requests))
        for i in range(round(per_second * seconds))
    ]
