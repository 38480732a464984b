"""Middleware for every request: request id, trace, log line, metrics, error responses, closing connections."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.engine.request import Trace
from service.errors import InternalError, Stopped
from service.http.arrivals import arrival_of
from service.http.error_responses import error_response, trace_of
from service.http.request_body import first_headers
from service.metrics import NO_MODEL, Metrics
from service.process.logging import REQUEST_ID, TRACE_ID, request_id_from_header, trace_id_from_header
from service.tracing.spans import RequestOutcome, Tracer

_LOG = logging.getLogger("service.request")
_PROBE_PATHS = ("/health/", "/metrics")
"""Paths that are polled every few seconds; their requests are logged at INFO only if they fail."""

_MAX_LOGGED_PATH = 200


class RequestMiddleware:
    """The outermost layer: sets the ids of request and trace, logs, counts and catches unexpected errors."""

    def __init__(self, app: ASGIApp, metrics: Metrics, tracer: Tracer | None = None) -> None:
        self._app = app
        self._metrics = metrics
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle the request, then log and count how it ended."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trace, trace_id = self._begin(scope)
        token, trace_token = REQUEST_ID.set(trace.request_id), TRACE_ID.set(trace_id)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._add_headers(message, trace)
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception as unexpected:  # The last resort: they become a 500 in the common error format.
            _LOG.exception("unexpected error")
            if trace.status:
                raise
            error = InternalError("Internal error. The server's log has the details under this request_id.")
            response = error_response(error, trace)
            trace.error = unexpected if trace.span is not None else None
            await response(scope, receive, send_with_headers)
        except asyncio.CancelledError:
            # Only uvicorn cancels whole requests: those that have not ended within the grace period.
            if not trace.status:
                stopped = Stopped("The server shut down before the answer was ready. Retry.", retry_after_s=1)
                await error_response(stopped, trace)(scope, receive, send_with_headers)
            raise
        finally:
            self._record(scope, trace)
            REQUEST_ID.reset(token)
            TRACE_ID.reset(trace_token)

    def _begin(self, scope: Scope) -> tuple[Trace, str | None]:
        """Return the trace of a request, which its scope gets, and the id of the trace that spans several services."""
        headers = first_headers(scope)
        id_header, traceparent = headers.get(b"x-request-id"), headers.get(b"traceparent")
        request_id = request_id_from_header(None if id_header is None else id_header.decode("latin-1"))
        trace = scope["sevenfold.trace"] = Trace(request_id, arrival_of(scope).read_at)
        trace_id = None if traceparent is None else trace_id_from_header(traceparent.decode("latin-1"))
        if self._tracer is not None and not scope["path"].startswith(_PROBE_PATHS):
            trace_id = self._start_span(self._tracer, scope, trace)
        return trace, trace_id

    @staticmethod
    def _start_span(tracer: Tracer, scope: Scope, trace: Trace) -> str:
        """Start the span of a request, and return the id of its trace."""
        span = tracer.start_request(scope["headers"], scope["method"])
        trace.span = span if span.is_recorded else None
        trace.traceresponse = span.traceresponse
        return span.trace_id

    @staticmethod
    def _add_headers(message: Message, trace: Trace) -> None:
        trace.status = message["status"]
        headers = message["headers"] = [*message["headers"], (b"x-request-id", trace.request_id.encode("latin-1"))]
        if trace.traceresponse:
            headers.append((b"traceresponse", trace.traceresponse.encode()))
        if trace.stages:
            headers.append((b"server-timing", _server_timing(trace.stages, trace).encode()))

    def _record(self, scope: Scope, trace: Trace) -> None:
        ended_at = time.perf_counter()
        seconds, status = ended_at - trace.started_at, trace.status
        if self._tracer is not None and trace.span is not None:
            self._tracer.end_request(trace.span, _outcome_of(scope, trace, ended_at))
            trace.error = None  # Its traceback refers to this request: a cycle, which would keep both alive.
        self._count(trace, seconds)
        level = logging.ERROR if status >= 500 and trace.code == "internal_error" else logging.INFO
        if scope["path"].startswith(_PROBE_PATHS) and status < 400:
            level = logging.DEBUG
        if _LOG.isEnabledFor(level):
            fields = {"fields": _log_fields(trace, seconds)}
            _LOG.log(level, "%s %s", scope["method"], scope["path"][:_MAX_LOGGED_PATH], extra=fields)

    def _count(self, trace: Trace, seconds: float) -> None:
        metrics, status = self._metrics, trace.status
        metrics.request_counter(trace.model, trace.version, status).inc()
        if trace.code and status != HTTPStatus.INTERNAL_SERVER_ERROR:
            metrics.rejected.labels(trace.model, trace.code).inc()
        for code in trace.failed_inputs:
            metrics.rejected.labels(trace.model, code).inc()
        if trace.model != NO_MODEL:
            exemplar = None if trace.span is None else {"trace_id": trace.span.trace_id}
            metrics.duration.labels(trace.model).observe(seconds, exemplar)
            if trace.request_bytes >= 0:
                metrics.request_bytes.labels(trace.model).observe(trace.request_bytes)
            if trace.response_bytes >= 0:
                metrics.response_bytes.labels(trace.model).observe(trace.response_bytes)
        if trace.batch_size:
            for stage, stage_s in trace.stages.items():
                metrics.stage.labels(trace.model, stage).observe(stage_s)


@dataclass(frozen=True)
class MethodMiddleware:
    """Supports HEAD wherever GET is supported, and OPTIONS for every path (RFC 9110, 9.3.2 and 9.3.7)."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle HEAD as GET, and answer OPTIONS with the methods that a path allows."""
        method = scope.get("method")
        if method == "HEAD":  # A copy, since uvicorn sends no body if the original says HEAD.
            await self.app({**scope, "method": "GET"}, receive, send)
        elif method == "OPTIONS":
            await self._answer_options(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _answer_options(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send what the application answers; no path handles OPTIONS, so that is 405 and `Allow`, or 404."""
        is_refused = False

        async def send_allowed(message: Message) -> None:
            nonlocal is_refused
            if message["type"] == "http.response.start" and message["status"] == HTTPStatus.METHOD_NOT_ALLOWED:
                is_refused = True
                trace_of(scope).code = ""
                headers = [(name, value) for name, value in message["headers"] if name == b"allow"]
                message = {**message, "status": HTTPStatus.NO_CONTENT, "headers": headers}
            elif is_refused:
                message = {**message, "body": b""}
            await send(message)

        await self.app(scope, receive, send_allowed)


@dataclass(frozen=True)
class ContinueMiddleware:
    """Closes connections whose client waits for permission to send its body (`Expect: 100-continue`) and gets none.

    It will not send the body then, so that what it sends next could be taken for the body (RFC 9110, 10.1.1).
    """

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle the request; receiving its body gives permission, by a response 100 before the other one."""
        is_waiting = scope["type"] == "http" and b"expect" in first_headers(scope)
        if not is_waiting:
            await self.app(scope, receive, send)
            return

        async def receive_with_permission() -> Message:
            nonlocal is_waiting
            is_waiting = False
            return await receive()

        async def send_and_close(message: Message) -> None:
            if message["type"] == "http.response.start" and is_waiting:
                MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        await self.app(scope, receive_with_permission, send_and_close)


@dataclass(frozen=True)
class CloseConnectionMiddleware:
    """Closes connections after their response while `is_closing()`, so that clients reconnect to another server."""

    app: ASGIApp
    is_closing: Callable[[], bool]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle the request, with `Connection: close` in the response if the server is about to exit."""

        async def send_and_close(message: Message) -> None:
            if message["type"] == "http.response.start" and self.is_closing():
                MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        await self.app(scope, receive, send_and_close)


def _outcome_of(scope: Scope, trace: Trace, ended_at: float) -> RequestOutcome:
    return RequestOutcome(
        method=scope["method"],
        path=scope["path"],
        route=trace.route or getattr(scope.get("route"), "path", ""),
        scheme=scope["scheme"],
        status=trace.status,
        request_id=trace.request_id,
        model=trace.model,
        version=trace.version,
        stages=trace.stages,
        batch_size=trace.batch_size,
        started_at=trace.started_at,
        ended_at=ended_at,
        code=trace.code,
        failed_inputs=len(trace.failed_inputs),
        error=trace.error,
    )


def _server_timing(stages: Mapping[str, float], trace: Trace) -> str:
    entries = [f"{stage};dur={stage_s * 1000:.2f}, " for stage, stage_s in stages.items()]
    total = f"total;dur={(time.perf_counter() - trace.started_at) * 1000:.2f}"
    batch = f', batch;desc="{trace.batch_size}"' if trace.batch_size else ""
    return "".join(entries) + total + batch


def _log_fields(trace: Trace, seconds: float) -> dict[str, Any]:
    fields: dict[str, Any] = {"status": trace.status, "ms": round(seconds * 1000, 2)}
    if trace.model != NO_MODEL:
        fields |= {"model": trace.model, "version": trace.version}
    if trace.key:
        fields["key"] = trace.key
    if trace.code:
        fields["code"] = trace.code
    if trace.failed_inputs:
        fields["failed_inputs"] = len(trace.failed_inputs)
    if trace.batch_size:
        fields["batch"] = trace.batch_size
    return fields
