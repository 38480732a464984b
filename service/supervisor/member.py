"""A server process' end of the channel to the supervisor, and through it to the other processes."""

import asyncio
import json
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Any

from service.supervisor.channel import LENGTH, Message, check_length, encode

_LOG = logging.getLogger(__name__)
GATHER_TIMEOUT_S = 3.0
"""How long the answers of the other processes are waited for; the supervisor waits a little less."""
CHANGE_TIMEOUT_S = 900.0

Handler = Callable[[Message], Awaitable[Any]]
"""Answers a query of the supervisor with what can be written as JSON."""


class SupervisorGone(ConnectionError):
    """The supervisor does not answer."""


@dataclass(frozen=True)
class Seat:
    """What a server process is told when it is started.

    Attributes:
        index: the number of the process, from 0; a process that replaces another one has its number.
        processes: how many there are.
        connection: the channel to the supervisor.
        is_replacement: whether the others are serving already, so that it accepts no connection before it can answer.
    """

    index: int
    processes: int
    connection: socket.socket
    is_replacement: bool = False


class Member:
    """One of several server processes. Belongs to one event loop, except for `tell`, which may be used before it runs.

    Args:
        seat: what the supervisor has said.
    """

    def __init__(self, seat: Seat) -> None:
        self.seat = seat
        self.all_loaded = asyncio.Event()
        """Set when every process has loaded its models."""
        self._on_gone: Callable[[], None] = lambda: None
        self._handlers: dict[str, Handler] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._ids = count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._serve_message: Message = {}
        self._may_serve = asyncio.Event()

    def handle(self, what: str, handler: Handler) -> None:
        """Answer queries about `what` with the result of a function. To be called before `start`."""
        self._handlers[what] = handler

    def tell(self, message: Message) -> None:
        """Send a message."""
        if self._writer is None:
            with suppress(OSError):  # The supervisor has ended.
                self.seat.connection.sendall(encode(message))
        elif not self._writer.is_closing():
            self._writer.write(encode(message))

    async def start(self, on_gone: Callable[[], None]) -> None:
        """Read messages from now on, on the event loop that is running.

        `on_gone` is called when the supervisor has ended.
        """
        self._on_gone = on_gone
        reader, self._writer = await asyncio.open_unix_connection(sock=self.seat.connection)
        self._reading = asyncio.create_task(self._read(reader))

    async def wait_until_loaded_elsewhere(self) -> Message:
        """Say that this process has loaded its models, and return what it must know before it serves."""
        self.tell({"kind": "loaded"})
        await self._may_serve.wait()
        return self._serve_message

    async def gather(self, what: str, **fields: Any) -> dict[int, Any]:
        """Ask all processes, this one too; return the answers of those that answer in time, by process.

        Raises SupervisorGone.
        """
        values = await self._ask({"kind": "gather", "query": {"what": what, **fields}}, GATHER_TIMEOUT_S)
        return {int(index): value for index, value in values.items()}

    async def metrics(self) -> list[dict[str, Any]]:
        """Return the merged metrics of all processes, as `merging.merge` does. Raises SupervisorGone."""
        merged: list[dict[str, Any]] = await self._ask({"kind": "metrics"}, GATHER_TIMEOUT_S)
        return merged

    async def change(self, change: Mapping[str, str]) -> str | None:
        """Have a change made in all processes, this one first; return why it was not made, or None if it was.

        Raises SupervisorGone.
        """
        problem: str | None = await self._ask({"kind": "change", "change": dict(change)}, CHANGE_TIMEOUT_S)
        return problem

    async def _ask(self, message: Message, timeout_s: float) -> Any:
        number = next(self._ids)
        waiting = self._waiting[number] = asyncio.get_running_loop().create_future()
        self.tell({**message, "id": number})
        try:
            async with asyncio.timeout(timeout_s):
                return await waiting
        except TimeoutError:
            raise SupervisorGone("The supervisor of the server's processes does not answer.") from None
        finally:
            del self._waiting[number]

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                length = check_length(await reader.readexactly(LENGTH.size))
                self._on_message(json.loads(await reader.readexactly(length)))
        except (OSError, asyncio.IncompleteReadError):
            _LOG.warning("the supervisor of this process has ended")
            self._on_gone()

    def _on_message(self, message: Message) -> None:
        match message["kind"]:
            case "query":
                task = asyncio.create_task(self._answer(message))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case "answer":
                waiting = self._waiting.get(message["id"])
                if waiting is not None and not waiting.done():
                    waiting.set_result(message["value"])
            case "serve":
                self._serve_message = message
                self._may_serve.set()
            case "all_loaded":
                self.all_loaded.set()

    async def _answer(self, message: Message) -> None:
        query = message["query"]
        value = None
        try:
            value = await self._handlers[query["what"]](query)
        except Exception:  # Whatever it is, the supervisor must not wait for it.
            _LOG.exception("a query of the supervisor failed", extra={"fields": {"what": query["what"]}})
        self.tell({"kind": "reply", "id": message["id"], "value": value})
