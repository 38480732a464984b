"""The HTTP/1.1 connections of the server: uvicorn's protocol, changed where it fails clients or lets them block others.

- A client that has sent its request and shut its sending side (`nc -N`, some proxies) gets its answer. A client that
  has gone is still noticed. TCP reports both in the same way, so the first bytes of the response are sent at once: a
  host whose client has gone answers them with a reset. Over TLS, asyncio cannot send to a client that has shut its
  sending side: such a client counts as gone.
- A request that offers to upgrade the connection (`Upgrade: h2c` from curl or Java, `Upgrade: websocket`) is answered
  over HTTP/1.1, as RFC 9110, 7.8 allows. The parser takes everything after such a head for another protocol.
- The head of a request and the trailers of a body have size limits, and received bytes are parsed in slices, so that
  neither thousands of headers nor thousands of one-byte chunks keep the event loop from other clients.
- Nothing more is read from a connection while some of what has arrived waits to be parsed.
- Invalid requests get an error in the format of all other errors.

Knows nothing about paths, models or the application.
"""

import asyncio
import socket
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import httptools
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.errors import HeadTimeout, HeadTooLarge, MalformedRequest, MethodNotAllowed, ServiceError
from service.http.arrivals import Arrival, Arrivals, put_arrival
from service.http.error_responses import error_content
from service.process.logging import request_id_from_header

_PREFIX = b"HTTP/1.1 "
"""How every response of this server begins."""
_CONTINUE = _PREFIX + b"100 "
_MAX_HEAD_BYTES = 64 * 1024
"""Limit for the target and all headers of a request, and for bytes between two pieces of a body; h11 has the same."""
_MAX_HEADERS = 200
_SLICE_BYTES = 4096
_MAX_PARSING_S = 0.001
"""How long one connection may parse before others get their turn."""
_FIRST_POLL_S, _MAX_POLL_S = 0.001, 0.25
_UPGRADE_HEADERS = (b"upgrade", b"http2-settings")


def make_config(app: ASGIApp, *, head_timeout_s: float = 30.0, **options: Any) -> uvicorn.Config:
    """Return the configuration of a server for this application. The service has its own logging.

    A client must send the head of its request within `head_timeout_s` seconds of connecting, or of the head's first
    byte on a connection that was kept alive.
    """
    protocol: Any = partial(HttpProtocol, ParsingTurns(), Arrivals(), head_timeout_s)
    return uvicorn.Config(
        app, http=protocol, ws="none", log_config=None, access_log=False, server_header=False, **options
    )


class ParsingTurns:
    """Lets one connection at a time parse a little of what it has received, in turns, and other work in between."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()

    def take(self, loop: asyncio.AbstractEventLoop, parse: Callable[[], None]) -> None:
        """Call `parse` after those that wait already, in an iteration of the loop for itself."""
        self._waiting.append(parse)
        if len(self._waiting) == 1:
            loop.call_soon(self._run_next, loop)

    def _run_next(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            self._waiting[0]()  # It stays in the queue meanwhile: if it takes another turn, that is a later one.
        finally:
            self._waiting.popleft()
            if self._waiting:
                loop.call_soon(self._run_next, loop)


class HttpProtocol(HttpToolsProtocol):
    """The protocol of one connection."""

    def __init__(
        self, turns: ParsingTurns, arrivals: Arrivals, head_timeout_s: float, *arguments: Any, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self._turns = turns
        self._arrivals = arrivals
        self._head_timeout_s = head_timeout_s
        self._head_timer: asyncio.TimerHandle | None = None
        self.parser = _Parser(self)
        self._unanswered: deque[RequestResponseCycle] = deque()
        """The requests whose heads have been received and whose responses are not complete, oldest first."""
        self._overhead_bytes = 0
        """Bytes since the request began or its last piece of a body arrived: of a head, trailers, a chunk extension."""
        self._refusal: ServiceError | None = None
        """Why no further requests of this connection are read."""
        self._unparsed = b""
        self._has_eof = False
        self._joining: _JoiningTransport | None = None
        """What holds the beginning of a response until the end of a turn."""

    def _flush_response(self) -> None:
        """Write what is held, before anything else happens to the connection."""
        if self._joining is not None:
            self._joining.flush()

    def shutdown(self) -> None:
        """Close the connection when its requests are answered; called when the server ends."""
        self._flush_response()
        super().shutdown()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin with the connection."""
        super().connection_made(transport)
        self.flow = _Flow(transport, lambda: bool(self._unparsed))
        self._expect_head()

    def _expect_head(self) -> None:
        self._head_timer = self._head_timer or self.loop.call_later(self._head_timeout_s, self._on_head_timeout)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _on_head_timeout(self) -> None:
        self._head_timer = None
        if self._unparsed:  # What has arrived waits for others: that is not the client's fault.
            self._expect_head()
        elif not self.transport.is_closing() and self._refusal is None:
            self._refusal = HeadTimeout(f"The request's headers did not arrive within {self._head_timeout_s:g} s.")
            self.send_400_response("")

    # Receiving

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived, or put it behind what waits: for its turn, or for the answers to earlier requests."""
        self._flush_response()
        self._arrival = self._arrivals.on_read(self.loop)
        if self._unparsed or self.pipeline:
            self._unparsed += data
            self.flow.pause_reading()
        else:
            self._parse(data)

    def _parse(self, data: bytes) -> None:
        """Parse slice by slice. The rest waits if this takes long, or if there are requests to answer first."""
        started_at = time.perf_counter()
        for start in range(0, len(data), _SLICE_BYTES):
            if start and (self.pipeline or time.perf_counter() - started_at > _MAX_PARSING_S):
                self._unparsed = data[start:]
                self.flow.pause_reading()
                if not self.pipeline:
                    self._turns.take(self.loop, self._parse_rest)
                return
            self._parse_slice(data[start : start + _SLICE_BYTES])
            if self._refusal is not None or self.transport.is_closing():
                return

    def _parse_slice(self, data: bytes) -> None:
        if self._refusal is not None:
            return
        self._overhead_bytes += len(data)
        super().data_received(data)
        is_too_large = self._overhead_bytes > _MAX_HEAD_BYTES or len(self.headers or ()) > _MAX_HEADERS
        if is_too_large and self._refusal is None:
            self._refusal = _head_too_large()
            self.send_400_response("")

    def _parse_rest(self) -> None:
        if not self._unparsed or self.transport.is_closing():
            return
        data, self._unparsed = self._unparsed, b""
        self.flow.resume_reading()
        self._parse(data)
        if self._has_eof and not self._unparsed and not self._keep_open():
            self.transport.close()

    def on_response_complete(self) -> None:
        """Start the next request of this connection, or parse what waited for the answer."""
        super().on_response_complete()
        self._arrivals.on_response()
        if self._unparsed and not self.pipeline:
            self._turns.take(self.loop, self._parse_rest)

    # Callbacks of the parser

    def on_message_begin(self) -> None:
        """Begin with a request."""
        super().on_message_begin()
        self._overhead_bytes = 0
        self._expect_head()

    def on_headers_complete(self) -> None:
        """Start the request, unless the parser is about to stop for an upgrade: its head is then parsed again."""
        if len(self.headers) > _MAX_HEADERS:
            self._refuse(_head_too_large())
        if self.parser.get_method() == b"CONNECT":
            self._refuse(MethodNotAllowed("CONNECT is not allowed: this server is no proxy.", allow=("GET", "POST")))
        if self.parser.should_upgrade():
            return
        self._stop_head_timer()
        self._request_arrival = Arrival(self._arrival.earliest, self._arrival.read_at)
        put_arrival(self.scope, self._request_arrival)
        super().on_headers_complete()
        if self.scope["method"] != "HEAD":  # Its response is a head alone.
            self._flush_response()  # Of the request before.
            self._joining = _JoiningTransport(self.transport, self.loop)
            self.cycle.transport = self._joining  # type: ignore[assignment]
        while self._unanswered and self._unanswered[0].response_complete:
            self._unanswered.popleft()
        self._unanswered.append(self.cycle)

    def on_body(self, body: bytes) -> None:
        """Add a piece of the body."""
        super().on_body(body)
        self._overhead_bytes = 0

    def on_message_complete(self) -> None:
        """End the body."""
        if not self.parser.should_upgrade():
            super().on_message_complete()
            self._request_arrival.is_complete = True

    def _refuse(self, error: ServiceError) -> None:
        """Stop the parser, which raises HttpParserError: uvicorn then calls `send_400_response`."""
        self._refusal = error
        raise error

    def send_400_response(self, msg: str) -> None:
        """Answer an invalid request and close the connection; requests before it are answered first."""
        self._flush_response()
        error = self._refusal = self._refusal or MalformedRequest("This is not a valid HTTP/1.1 request.")
        if complete := self._complete_requests():
            complete[-1].keep_alive = False
            return
        if self._unanswered and self._unanswered[-1].response_started:
            self.transport.close()
            return
        request_id = request_id_from_header(None)
        content = error_content(error, request_id)
        headers = {
            "x-request-id": request_id,
            "content-type": "application/json",
            "content-length": str(len(content)),
            "connection": "close",
            **error.headers,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.transport.write(STATUS_LINE[error.status] + lines.encode() + b"\r\n" + content)
        self.transport.close()

    # The end of the connection

    def eof_received(self) -> bool:  # type: ignore[override]
        """Return whether the connection stays open, although the client will not send anything more."""
        self._flush_response()
        if self.scheme == "https":  # The event loop would close it in any case, and warn if told otherwise.
            return False
        self._has_eof = True
        return bool(self._unparsed) or self._keep_open()

    def _keep_open(self) -> bool:
        """Keep the connection open for the answers to complete requests; return False if there are none.

        The event loop does not watch the connection any longer, so it is polled for a reset until it closes. The host
        of a client that has gone sends one as soon as it receives data (RFC 9293, 3.5.2).
        """
        complete = self._complete_requests()
        if not complete:
            return False
        complete[-1].keep_alive = False
        if not complete[0].response_started:
            self.transport.write(_PREFIX)
            complete[0].transport = _PrefixedTransport(self.transport)  # type: ignore[assignment]
        self._poll(_FIRST_POLL_S)
        return True

    def _complete_requests(self) -> list[RequestResponseCycle]:
        """Return the complete requests that have no answer yet, now that no more bytes will be parsed.

        An incomplete one is dropped: it is the last one, and has started only if there is no other.
        """
        while self._unanswered and self._unanswered[0].response_complete:
            self._unanswered.popleft()
        if self.pipeline and self._unanswered[-1].more_body:
            self.pipeline.popleft()
            self._unanswered.pop()
        return [cycle for cycle in self._unanswered if not cycle.more_body]

    def _poll(self, interval_s: float) -> None:
        if self.transport.is_closing():
            return
        if self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
        else:
            self.loop.call_later(interval_s, self._poll, min(2 * interval_s, _MAX_POLL_S))

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell all requests of this connection that the client has gone; uvicorn tells only the latest one."""
        for cycle in self._unanswered:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        self._stop_head_timer()
        super().connection_lost(exc)


class _Flow(FlowControl):
    """Reads no more while `is_held()`: each call of `receive` and each answer would else add to what waits."""

    def __init__(self, transport: asyncio.Transport, is_held: Callable[[], bool]) -> None:
        super().__init__(transport)
        self._is_held = is_held

    def resume_reading(self) -> None:
        """Resume reading, unless it is held."""
        if not self._is_held():
            super().resume_reading()


class _Parser(httptools.HttpRequestParser):
    """Parses requests that offer to upgrade the connection like those that do not."""

    def __init__(self, protocol: HttpProtocol) -> None:
        super().__init__(protocol)
        self._protocol = protocol
        # As in uvicorn: what follows a request with `Connection: close` is no reason to refuse that request.
        self.set_dangerous_leniencies(lenient_data_after_close=True)

    def feed_data(self, data: Any) -> None:
        """Parse data. Raises HttpParserError."""
        parser: httptools.HttpRequestParser = self
        while True:
            try:
                return httptools.HttpRequestParser.feed_data(parser, data)
            except httptools.HttpParserUpgrade as upgrade:  # It has parsed the head, and no byte of the body.
                (head_size,) = upgrade.args
                data = self._head_without_upgrade(parser) + data[head_size:]
                parser = self._protocol.parser = _Parser(self._protocol)

    def _head_without_upgrade(self, parser: httptools.HttpRequestParser) -> bytes:
        protocol = self._protocol
        lines = [b"%s %s HTTP/%s" % (parser.get_method(), protocol.url, parser.get_http_version().encode())]
        for name, value in protocol.headers:
            if name == b"connection":
                tokens = [token.strip() for token in value.split(b",")]
                value = b", ".join(token for token in tokens if token.lower() not in _UPGRADE_HEADERS)
            if name not in _UPGRADE_HEADERS:
                lines.append(name + b": " + value)
        return b"\r\n".join([*lines, b"", b""])


class _JoiningTransport:
    """A transport that sends the head of a response and the first piece of its body together, at the end of the turn.

    uvicorn writes them one after the other, and each write is a call of the operating system. By the end of the turn,
    the request has been counted and logged as well.
    """

    __slots__ = ("_held", "_loop", "_transport", "_writes")

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._held = b""
        self._writes = 0

    def write(self, data: bytes) -> None:
        """Write data. Pieces after the first are not held, so that the transport says when there is too much."""
        if data.startswith(_CONTINUE):
            self._transport.write(data)
            return
        self._writes += 1
        if self._writes == 1:
            self._held = data
            self._loop.call_soon(self.flush)
        elif self._writes == 2 and self._held:
            self._held += data
        else:
            self.flush()
            self._transport.write(data)

    def close(self) -> None:
        """Close the connection once everything is written."""
        self.flush()
        self._transport.close()

    def flush(self) -> None:
        """Write what is held."""
        if self._held:
            held, self._held = self._held, b""
            self._transport.write(held)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _PrefixedTransport:
    """A transport over which the first bytes of the response have been sent."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._is_first_write = True

    def write(self, data: bytes) -> None:
        """Write data, without the bytes that have been sent."""
        self._transport.write(data.removeprefix(_PREFIX) if self._is_first_write else data)
        self._is_first_write = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def _head_too_large() -> HeadTooLarge:
    return HeadTooLarge(
        f"The request's target and headers exceed the limit of {_MAX_HEAD_BYTES:,} bytes or {_MAX_HEADERS} headers."
    )
