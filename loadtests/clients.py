"""Clients that are cheap enough not to be what is measured: raw sockets, prepared requests, one event loop.

An open loop sends at given times, whatever comes back; a closed one sends when the last was answered. A client may
hang up: after so many bytes, after so many seconds, or when the answer begins.
"""

import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, TypeVar, cast

import uvloop

T = TypeVar("T")
NO_ANSWER, LEFT = 0, -1
"""In place of a status: the connection ended without an answer; the client hung up itself."""
_MAX_SECONDS = 60.0
_PRIORITY = -10
_END_OF_HEAD = b"\r\n\r\n"


@dataclass(frozen=True)
class Leaving:
    """How a client goes: it sends so many bytes (None: all), and hangs up so many seconds later.

    With `on_answer` it goes when the first bytes of the answer come, instead.
    """

    sent: int | None = None
    after_s: float = 0.0
    on_answer: bool = False


@dataclass(frozen=True)
class Call:
    """One request.

    Attributes:
        at: when it is sent, seconds from the beginning.
        key: what it is called.
        leaving: how its client goes.
        apart: on a connection of its own: it announces more than it sends, say.
    """

    at: float
    request: bytes
    key: int = 0
    leaving: Leaving | None = None
    apart: bool = False


@dataclass(frozen=True)
class Reply:
    """What came of a call; times by `time.monotonic`, seconds.

    Attributes:
        late_s: how much later than planned it was sent.
        ended: when the answer was there, or when the client hung up.
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
        """From sending to the end of the answer."""
        return self.ended - self.sent

    def header(self, name: str) -> str:
        """A header of the answer; empty where it has none of this name."""
        _, found, rest = self.head.lower().partition(f"\r\n{name.lower()}: ".encode())
        return rest.partition(b"\r\n")[0].decode("latin-1") if found else ""


class Connection(asyncio.Protocol):
    """A connection to the server: one request at a time."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._size = 0
        self._length: int | None = None
        self._head = b""
        self._answer: asyncio.Future[tuple[bytes, bytes]] | None = None
        self.began: asyncio.Future[None] | None = None
        self.is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.is_open = cast(asyncio.Transport, transport), True

    def ask(self, request: bytes) -> asyncio.Future[tuple[bytes, bytes]]:
        """Sends; the answer's head and body, when they are there. ConnectionError where the connection ends first."""
        loop = asyncio.get_running_loop()
        self._answer, self.began = loop.create_future(), loop.create_future()
        self.transport.write(request)
        return self._answer

    def data_received(self, data: bytes) -> None:
        if self.began is not None and not self.began.done():
            self.began.set_result(None)
        self._chunks.append(data)
        self._size += len(data)
        if self._length is None and not self._read_head():
            return
        if self._length is not None and self._size >= self._length:
            body = b"".join(self._chunks)
            self._chunks, self._size, self._length = [], 0, None
            if self._answer is not None and not self._answer.done():
                self._answer.set_result((self._head, body))

    def _read_head(self) -> bool:
        head, found, rest = b"".join(self._chunks).partition(_END_OF_HEAD)
        if not found:
            return False
        length = head.lower().partition(b"content-length:")[2].partition(b"\r")[0]
        self._head, self._chunks, self._size, self._length = head, [rest], len(rest), int(length or 0)
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        for future in (self._answer, self.began):
            if future is not None and not future.done():
                future.set_exception(ConnectionError("The server closed the connection."))
                future.exception()  # Looked at: nobody may wait for it.

    def close(self) -> None:
        """Hangs up."""
        self.is_open = False
        self.transport.abort()


class Clients:
    """A pool of connections to one port; at most `most` are open at a time, others wait for one."""

    def __init__(self, port: int, *, most: int = 800) -> None:
        self._port = port
        self._free: list[Connection] = []
        self._places = asyncio.Semaphore(most)

    async def _connection(self, *, new: bool) -> Connection:
        while self._free and not new:
            if (connection := self._free.pop()).is_open:
                return connection
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(Connection, "127.0.0.1", self._port))[1]

    async def ask(self, call: Call, *, planned: float | None = None) -> Reply:
        """Makes one call."""
        async with self._places:
            sent = time.monotonic()
            late_s = 0.0 if planned is None else sent - planned
            try:
                if call.leaving is not None:
                    status = await self._leave(call.request, call.leaving)
                    return Reply(call.key, status, sent, time.monotonic(), late_s)
                connection = await self._connection(new=call.apart)
                head, body = await asyncio.wait_for(connection.ask(call.request), _MAX_SECONDS)
            except (OSError, TimeoutError):
                return Reply(call.key, NO_ANSWER, sent, time.monotonic(), late_s)
            ended = time.monotonic()
            if call.apart or not connection.is_open or b"connection: close" in head.lower():
                connection.close()
            else:
                self._free.append(connection)
            return Reply(call.key, int(head[9:12]), sent, ended, late_s, head, body)

    async def _leave(self, request: bytes, leaving: Leaving) -> int:
        """On a connection of its own, which ends with it: LEFT, or the status of an answer that came before."""
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, "127.0.0.1", self._port)
        answer = connection.ask(request[: leaving.sent])
        try:
            if leaving.on_answer and connection.began is not None:
                await asyncio.wait_for(connection.began, _MAX_SECONDS)
            else:
                await asyncio.sleep(leaving.after_s)
            return LEFT if leaving.on_answer or not answer.done() else int(answer.result()[0][9:12])
        finally:
            connection.close()

    async def open_loop(self, calls: Iterable[Call]) -> list[Reply]:
        """Makes each call at its time, in the order they are given, whatever comes back."""
        asked: list[asyncio.Task[Reply]] = []
        began = time.monotonic()
        for call in calls:
            if (wait := began + call.at - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            asked.append(asyncio.create_task(self.ask(call, planned=began + call.at)))
        return list(await asyncio.gather(*asked))

    async def closed_loop(self, requests: Sequence[bytes], *, concurrency: int, seconds: float) -> list[Reply]:
        """So many clients at once, each of which asks the next of the requests, round and round, until time is up."""
        ends, replies, count = time.monotonic() + seconds, list[Reply](), 0

        async def one() -> None:
            nonlocal count
            while time.monotonic() < ends:
                key = count % len(requests)
                count += 1
                replies.append(await self.ask(Call(0.0, requests[key], key)))

        await asyncio.gather(*(one() for _ in range(concurrency)))
        return replies

    def close(self) -> None:
        """Hangs up on all that are kept."""
        for connection in self._free:
            connection.close()


def with_clients(port: int, use: Callable[[Clients], Coroutine[Any, Any, T]], *, most: int = 800) -> T:
    """What `use` makes of clients of this port, on an event loop of their own."""

    async def main() -> T:
        clients = Clients(port, most=most)
        try:
            return await use(clients)
        finally:
            clients.close()

    with _before_others():
        return uvloop.run(main())


@contextmanager
def _before_others() -> Iterator[None]:
    """This thread comes first, where that is permitted: what is measured is the server, and not who waits for it."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, _PRIORITY)
    except PermissionError:
        yield
        return
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, 0)


def open_loop(port: int, calls: Sequence[Call]) -> list[Reply]:
    """Makes the calls at their times, from this process."""
    return with_clients(port, lambda clients: clients.open_loop(calls))


def closed_loop(port: int, requests: Sequence[bytes], concurrency: int, seconds: float) -> list[Reply]:
    """So many clients for so long, from this process; the bodies of the answers are left out."""
    replies = with_clients(
        port, lambda clients: clients.closed_loop(requests, concurrency=concurrency, seconds=seconds)
    )
    return [Reply(r.key, r.status, r.sent, r.ended, r.late_s, r.head) for r in replies]


def one_by_one(port: int, requests: Sequence[bytes]) -> list[Reply]:
    """Each request alone, after the answer to the one before it."""

    async def ask(clients: Clients) -> list[Reply]:
        return [await clients.ask(Call(0.0, request, key)) for key, request in enumerate(requests)]

    return with_clients(port, ask)


class Apart:
    """A process of its own, for a load whose client would be in the way of another that is measured."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        self._pool.submit(time.sleep, 0.0).result()

    def __enter__(self) -> "Apart":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def closed_loop(
        self, port: int, requests: Sequence[bytes], concurrency: int, seconds: float
    ) -> Future[list[Reply]]:
        """Begins the load; its replies when it has ended."""
        return self._pool.submit(closed_loop, port, requests, concurrency, seconds)


def steady(requests: Sequence[bytes], *, per_second: float, seconds: float) -> list[Call]:
    """The requests in turn, at even distances."""
    return [
        Call(i / per_second, requests[i % len(requests)], i % len(requests)) for i in range(round(per_second * seconds))
    ]
