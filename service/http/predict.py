"""The prediction endpoint.

This is middleware and not a FastAPI path operation, since the types of its request and answer depend on the model in
the path; `service/http/openapi.py` documents them for each model. It runs before FastAPI's router, whose layers take
longer than a small model.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from http import HTTPStatus
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.engine.admission import NO_OPTIONS, RequestOptions, parse_options
from service.engine.pipeline import Pipeline
from service.engine.preparer import Prepared
from service.engine.request import PredictRequest, PredictResult, RequestState
from service.engine.scheduler import Deadline
from service.errors import (
    DeadlineExceeded,
    InvalidHeader,
    InvalidRequest,
    MethodNotAllowed,
    ModelUnavailable,
    ServiceError,
)
from service.http.arrivals import arrival_of
from service.http.error_responses import error_response, trace_of
from service.http.negotiation import choose_representation, content_type, parse_for, render
from service.http.request_body import BodyBudget, BodyRules, choose_format, first_headers, read_body
from service.metrics import Metrics
from service.models.model import Model
from service.models.repository import Repository
from service.models.shadow_traffic import ShadowTraffic
from tasks.contract import Answer, Limits, Representation

T = TypeVar("T")
_CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a disconnected client. Nobody receives it; it is for the log and the metrics."""
_MAX_BYTES_PER_VALUE = 32
"""Bytes of a JSON body for each value that it may contain, on average, in models that take only JSON."""
_PIECE_BYTES = 262_144
"""Bodies of responses are sent in pieces of this size."""
_TIMEOUT, _PRIORITY = b"x-request-timeout-ms", b"x-request-priority"
_PATH = re.compile(r"/v1/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?/predict")
_ROUTES = ("/v1/models/{name}/predict", "/v1/models/{name}/versions/{version}/predict")


class ClientGone(Exception):
    """The client closed the connection before it received an answer."""


@dataclass(frozen=True)
class PredictMiddleware:
    """Handles POST /v1/models/{name}/predict and /v1/models/{name}/versions/{version}/predict."""

    app: ASGIApp
    repository: Repository
    metrics: Metrics
    max_body_bytes: int
    limits: Limits
    body_budget: BodyBudget
    shadows: ShadowTraffic
    send_timeout_s: float = 30.0
    _endpoints: "WeakKeyDictionary[Pipeline, _Endpoint]" = field(default_factory=WeakKeyDictionary, init=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer prediction requests; pass all other requests on."""
        match = _PATH.fullmatch(scope["path"]) if scope["type"] == "http" else None
        if match is None:
            await self.app(scope, receive, send)
            return
        trace = trace_of(scope)
        name, version = match.groups()
        trace.route = _ROUTES[version is not None]
        try:
            if scope["method"] != "POST":
                raise MethodNotAllowed("Predictions are made with POST.", allow=["POST"])
            model = self.repository.acquire(name, version)
            try:
                reply = await _Prediction(self, model, scope, receive).reply()
            finally:
                model.leases.release()
        except ServiceError as error:
            if isinstance(error, ModelUnavailable):  # It exists, so that its name may become a label.
                trace.model = name
            reply = Reply.of(error_response(error, trace))
        size = len(reply.body)
        self.body_budget.used_bytes += size  # It exists already, so that it is counted and not refused.
        try:
            await send_reply(reply, send, timeout_s=self.send_timeout_s)
        finally:
            self.body_budget.used_bytes -= size
        self.shadows.mirror(trace)

    def endpoint_of(self, model: Model) -> "_Endpoint":
        """Return what the requests of a version have in common; it is prepared at the first of them."""
        endpoint = self._endpoints.get(model.pipeline)
        if endpoint is None:
            endpoint = self._endpoints[model.pipeline] = self._make_endpoint(model)
        return endpoint

    def _make_endpoint(self, model: Model) -> "_Endpoint":
        task, max_bytes = model.task, self.max_body_bytes
        max_values = task.max_json_values(self.limits)
        if task.upload is None:  # It is parsed in this process, and the parser holds the interpreter's lock meanwhile.
            max_bytes = min(max_bytes, max_values * _MAX_BYTES_PER_VALUE)
        rules = BodyRules(task.upload, task.request_type.model_fields, max_values, max_bytes)
        return _Endpoint(model.manifest.name, model.manifest.version, rules, task.representations)


@dataclass(frozen=True, slots=True)
class Reply:
    """A response whose body is complete."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes

    @classmethod
    def of(cls, response: Response) -> "Reply":
        """Return Starlette's response as a reply."""
        return cls(response.status_code, response.raw_headers, bytes(response.body))


@dataclass(frozen=True)
class _Endpoint:
    """What the requests of one version have in common."""

    name: str
    version: str
    rules: BodyRules
    representations: Sequence[Representation]

    @cached_property
    def renderers(self) -> Mapping[str, Callable[[Answer], bytes]]:
        """What renders an answer, by the media type of the representation."""
        return {
            representation.media_type: partial(render, representation, self.name, self.version)
            for representation in self.representations
        }

    @cached_property
    def headers(self) -> Mapping[str, Sequence[tuple[bytes, bytes]]]:
        """The headers of an answer besides its length, by the media type of the representation."""
        varies = [(b"vary", b"accept")] if len(self.representations) > 1 else []
        model = (b"x-model", f"{self.name}/{self.version}".encode())
        return {
            representation.media_type: [*_type_headers(representation), model, *varies]
            for representation in self.representations
        }


def _type_headers(representation: Representation) -> list[tuple[bytes, bytes]]:
    response = Response(media_type=content_type(representation))
    return [(name, value) for name, value in response.raw_headers if name == b"content-type"]


@dataclass(frozen=True, slots=True)
class _Received:
    """A request whose body has arrived, and its deadline."""

    message: PredictRequest
    deadline: Deadline


class _Prediction:
    """A request on its way to the reply: receive, and answer in this turn of the event loop or later."""

    __slots__ = ("_app", "_headers", "_model", "_options", "_receive", "_representation", "_scope", "_state", "_trace")

    def __init__(self, app: PredictMiddleware, model: Model, scope: Scope, receive: Receive) -> None:
        """Read the request's head. Raises ServiceError."""
        self._app, self._model, self._scope, self._receive = app, model, scope, receive
        self._trace = trace = trace_of(scope)
        trace.model, trace.version = model.manifest.name, model.manifest.version
        self._headers = first_headers(scope)
        self._representation = choose_representation(model.task.representations, _accept(scope, self._headers))
        self._options = _options_from_headers(self._headers)

    async def reply(self) -> Reply:
        """Return the reply. Raises ServiceError."""
        arrival, loop, app = arrival_of(self._scope), asyncio.get_running_loop(), self._app
        arrived_at = loop.time() - (time.perf_counter() - arrival.earliest)
        self._state = state = RequestState(arrived_at=arrived_at, span=self._trace.span)
        admission = self._model.pipeline.admission
        try:
            with app.body_budget.reservation() as state.hold:
                if arrival.is_complete:
                    outcome = await self._begin(arrived_at)  # It does not wait, so that it needs no timer.
                else:
                    async with asyncio.timeout_at(arrived_at + admission.timeout_s(self._options)):
                        self._model.pipeline.check(admission.make_deadline(self._options, arrived_at))
                        outcome = await self._begin(arrived_at)
                if not isinstance(outcome, PredictResult):
                    outcome = await self._go_on(*outcome)
        except TimeoutError:
            elapsed_ms = (loop.time() - arrived_at) * 1000
            raise DeadlineExceeded(f"The request's deadline passed after {elapsed_ms:.0f} ms.") from None
        except (ClientGone, ClientDisconnect):
            app.metrics.cancelled.labels(self._trace.model, state.stage).inc()
            return Reply(_CLIENT_CLOSED_REQUEST, [], b"")
        return self._make_reply(outcome)

    async def _begin(self, arrived_at: float) -> PredictResult | tuple[_Received, Prepared | None]:
        """Receive the body, before which a request does not count as in flight, and answer it if that is quick."""
        app, model, trace = self._app, self._model, self._trace
        endpoint, representation = app.endpoint_of(model), self._representation
        body_format = choose_format(self._headers, self._scope["query_string"], endpoint.rules)
        body = await read_body(self._receive, self._headers, endpoint.rules.max_bytes, self._state.hold)
        trace.request_bytes = len(body)
        parse = body_format.parse
        if representation.fields or representation.file:
            parse = partial(parse_for, representation, model.task.upload, parse)
        message = PredictRequest(
            body_format.name,
            body,
            parse,
            body_format.is_compressed,
            endpoint.renderers[representation.media_type],
            options=self._options.merge(body_format.options) if body_format.options else self._options,
        )
        deadline = model.pipeline.admission.make_deadline(message.options, arrived_at)
        message = app.shadows.capture(model, message, trace)
        trace.stages["receive"] = time.perf_counter() - trace.started_at
        prepared = None
        if model.pipeline.is_quick(message):
            outcome = await model.pipeline.answer_in_turn(message, deadline, self._state)
            if isinstance(outcome, PredictResult):
                return outcome
            prepared = outcome
        return _Received(message, deadline), prepared

    async def _go_on(self, received: _Received, prepared: Prepared | None) -> PredictResult:
        """Answer a request that waits for threads or the device, unless its deadline or its client ends it."""
        pipeline, state = self._model.pipeline, self._state
        message, deadline = received.message, received.deadline
        async with asyncio.timeout_at(deadline.limit) as timeout:
            state.set_time_limit = timeout.reschedule
            with pipeline.permit(message, deadline, state):
                return await _cancel_on_disconnect(self._receive, pipeline.predict(message, deadline, state, prepared))

    def _make_reply(self, result: PredictResult) -> Reply:
        trace, body = self._trace, result.body
        trace.stages.update(result.stages)
        trace.batch_size, trace.failed_inputs = result.batch_size, result.failed
        trace.response_bytes = len(body)
        if result.is_list:
            trace.mirror = None  # Shadow traffic compares single answers.
        headers = self._app.endpoint_of(self._model).headers[self._representation.media_type]
        return Reply(HTTPStatus.OK, [(b"content-length", b"%d" % len(body)), *headers], body)


async def send_reply(reply: Reply, send: Send, *, timeout_s: float) -> None:
    """Send a response; a large body in pieces, each when the client has taken most of those before.

    So the server knows what it still keeps. Raises TimeoutError if the client takes nothing for `timeout_s` seconds;
    the connection is closed then.
    """
    body = reply.body
    await send({"type": "http.response.start", "status": reply.status, "headers": reply.headers})
    if len(body) <= _PIECE_BYTES:
        await send({"type": "http.response.body", "body": body})
        return
    for start in range(0, len(body), _PIECE_BYTES):
        async with asyncio.timeout(timeout_s):
            piece, is_last = body[start : start + _PIECE_BYTES], start + _PIECE_BYTES >= len(body)
            await send({"type": "http.response.body", "body": piece, "more_body": not is_last})


def _accept(scope: Scope, headers: Mapping[bytes, bytes]) -> str:
    """Return the header `Accept`; several lines count as one list (RFC 9110, 5.3)."""
    if len(headers) == len(scope["headers"]):  # No name has several lines.
        return headers.get(b"accept", b"").decode("latin-1")
    return b", ".join(value for name, value in scope["headers"] if name == b"accept").decode("latin-1")


def _options_from_headers(headers: Mapping[bytes, bytes]) -> RequestOptions:
    """Return the request options that the headers set. Raises InvalidHeader."""
    timeout, priority = headers.get(_TIMEOUT), headers.get(_PRIORITY)
    if timeout is None and priority is None:
        return NO_OPTIONS
    values = {"timeout_ms": timeout, "priority": priority}
    try:
        _, options = parse_options(
            {name: None if value is None else value.decode("latin-1") for name, value in values.items()}
        )
    except InvalidRequest as error:
        name = "X-Request-Timeout-Ms" if error.details[0].where == "timeout_ms" else "X-Request-Priority"
        raise InvalidHeader(f"{name}{error.message.partition(':')[2]}") from None
    return options


async def _cancel_on_disconnect(receive: Callable[[], Awaitable[Any]], work: Awaitable[T]) -> T:
    """Return the result of `work`, or cancel it as soon as the client disconnects. Raises ClientGone."""
    task = asyncio.current_task()
    is_watching, has_disconnected = True, False

    def on_disconnect(_: asyncio.Future[Any]) -> None:
        nonlocal has_disconnected
        if is_watching and task is not None:
            has_disconnected = True
            task.cancel()

    disconnect = asyncio.ensure_future(receive())  # The body has been read, so the next message is the disconnect.
    disconnect.add_done_callback(on_disconnect)
    try:
        return await work
    except asyncio.CancelledError:
        # The deadline or the shutdown may have cancelled the task at the same time; those take precedence.
        if has_disconnected and task is not None and task.uncancel() == 0:
            raise ClientGone from None
        raise
    finally:
        is_watching = False
        disconnect.cancel()
