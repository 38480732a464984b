"""The servers of the program: uvicorn's, with limits for what happens before the first request of a connection.

Knows nothing about the application.
"""

import asyncio
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from socket import socket
from typing import Any

import uvicorn

_HANDSHAKE_TIMEOUT_S = 10.0
"""How long a client may take for the TLS handshake; it holds a connection meanwhile, and nothing else."""
_TLS_CLOSE_TIMEOUT_S = 2.0
"""How long a connection is kept for the client's farewell (close_notify) after the server's."""


class HttpServer(uvicorn.Server):
    """A server for sockets that are bound already, with TLS if it is given a context."""

    def __init__(
        self,
        config: uvicorn.Config,
        tls: ssl.SSLContext | None = None,
        handshake_timeout_s: float = _HANDSHAKE_TIMEOUT_S,
    ) -> None:
        super().__init__(config)
        self._tls = tls
        self._handshake_timeout_s = handshake_timeout_s

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Start the application, then accept connections."""
        await super().startup([])  # Uvicorn would listen without a limit of our own for handshakes.
        for listener in sockets or []:
            await self.listen(listener)

    async def listen(self, listener: socket) -> None:
        """Accept connections of this socket, too."""
        config, state = self.config, self.lifespan.state

        def create_protocol() -> asyncio.Protocol:
            protocol: Any = config.http_protocol_class
            made: asyncio.Protocol = protocol(config=config, server_state=self.server_state, app_state=state)
            return made

        limits: dict[str, Any] = {
            "ssl": self._tls,
            "ssl_handshake_timeout": self._handshake_timeout_s,
            "ssl_shutdown_timeout": _TLS_CLOSE_TIMEOUT_S,
        }
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            create_protocol, sock=listener, backlog=config.backlog, **(limits if self._tls else {})
        )
        self.servers.append(server)


class SecondServer(HttpServer):
    """A server that runs beside the one that handles signals: it ends when it is told to."""

    def __init__(self, config: uvicorn.Config, listener: socket, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(config, tls)
        self.listener = listener
        self._serving: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Serve in the background, on the event loop that is running."""
        self._serving = asyncio.create_task(self.serve([self.listener]))

    async def end(self) -> None:
        """Close the socket and the connections, and return when that is done."""
        self.should_exit = True
        if self._serving is not None:
            await self._serving

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the other server."""
        yield
