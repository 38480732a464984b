"""The prediction endpoint.

This is middleware and not a FastAPI path operation, since the types of its request and answer depend on the model in
the path; `service/http/openapi.py` documents them for each model. It runs before FastAPI's router, whose layers take
longer than a small model.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.engine.admission import RequestOptions, parse_options
from service.engine.request import PredictResult, RequestState, Trace
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
from service.http.request_body import BodyBudget, BodyRules, read_predict_request
from service.metrics import Metrics
from service.models.model import Model
from service.models.repository import Repository
from service.models.shadow_traffic import ShadowTraffic
from tasks.contract import Limits, Representation, Task

T = TypeVar("T")
_CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a disconnected client. Nobody receives it; it is for the log and the metrics."""
_MAX_BYTES_PER_VALUE = 32
"""Bytes of a JSON body for each value that it may contain, on average, in models that take only JSON."""
_PIECE_BYTES = 262_144
"""Bodies of responses are sent in pieces of this size."""
_TIMEOUT, _PRIORITY = "x-request-timeout-ms", "x-request-priority"
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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer prediction requests; pass all other requests on."""
        match = _PATH.fullmatch(scope["path"]) if scope["type"] == "http" else None
        if match is None:
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        trace_of(scope).route = _ROUTES[match["version"] is not None]
        try:
            if request.method != "POST":
                raise MethodNotAllowed("Predictions are made with POST.", allow=["POST"])
            response = await self._answer(request, match["name"], match["version"])
        except ServiceError as error:
            if isinstance(error, ModelUnavailable):  # It exists, so that its name may become a label.
                trace_of(scope).model = match["name"]
            response = error_response(error, trace_of(scope))
        with self.body_budget.holding(len(response.body)):
            await send_response(response, scope, send, timeout_s=self.send_timeout_s)
        self.shadows.mirror(trace_of(scope))

    async def _answer(self, request: Request, name: str, version: str | None) -> Response:
        with self.repository.lease(name, version) as model:
            return await self._answer_with(model, request)

    async def _answer_with(self, model: Model, request: Request) -> Response:
        trace = trace_of(request.scope)
        trace.model, trace.version = model.manifest.name, model.manifest.version
        representation = choose_representation(model.task.representations, ", ".join(request.headers.getlist("accept")))
        loop = asyncio.get_running_loop()
        arrived_at = loop.time() - (time.perf_counter() - arrival_of(request.scope).earliest)
        options, state = _options_from_headers(request), RequestState(arrived_at=arrived_at, span=trace.span)
        try:
            async with asyncio.timeout_at(state.arrived_at + model.pipeline.admission.timeout_s(options)) as timeout:
                state.set_time_limit = timeout.reschedule
                result = await self._predict(request, model, representation, trace, options, state)
        except TimeoutError:
            elapsed_ms = (loop.time() - state.arrived_at) * 1000
            raise DeadlineExceeded(f"The request's deadline passed after {elapsed_ms:.0f} ms.") from None
        except (ClientGone, ClientDisconnect):
            self.metrics.cancelled.labels(trace.model, state.stage).inc()
            return Response(status_code=_CLIENT_CLOSED_REQUEST)
        return self._respond(result, representation, trace, varies=len(model.task.representations) > 1)

    async def _predict(
        self,
        request: Request,
        model: Model,
        representation: Representation,
        trace: Trace,
        options: RequestOptions,
        state: RequestState,
    ) -> PredictResult:
        """Read the body, then enter the pipeline: clients that send slowly or nothing do not count as in flight."""
        pipeline, loop = model.pipeline, asyncio.get_running_loop()
        deadline = pipeline.admission.make_deadline(options, state.arrived_at)
        pipeline.check(deadline)
        with self.body_budget.reservation() as reserve:
            state.hold = reserve
            message = await read_predict_request(request, self._body_rules(model.task), reserve=reserve)
            trace.request_bytes = message.size
            message = replace(
                message,
                parse=partial(parse_for, representation, model.task.upload, message.parse),
                render=partial(render, representation, trace.model, trace.version),
                options=options.merge(message.options),
            )
            if message.options != options:
                deadline = pipeline.admission.make_deadline(message.options, state.arrived_at)
                state.set_time_limit(max(deadline.limit, loop.time()))
            message = self.shadows.capture(model, message, trace)
            trace.stages["receive"] = time.perf_counter() - trace.started_at
            prepared = None
            if pipeline.is_quick(message):  # It does not wait, so that there is nothing to cancel.
                outcome = await pipeline.answer_in_turn(message, deadline, state)
                if isinstance(outcome, PredictResult):
                    return outcome
                prepared = outcome
            with pipeline.permit(message, deadline, state):
                prediction = pipeline.predict(message, deadline, state, prepared)
                return await _cancel_on_disconnect(request.receive, prediction)

    def _body_rules(self, task: Task) -> BodyRules:
        max_values, max_bytes = task.max_json_values(self.limits), self.max_body_bytes
        if task.upload is None:  # It is parsed in this process, and the parser holds the interpreter's lock meanwhile.
            max_bytes = min(max_bytes, max_values * _MAX_BYTES_PER_VALUE)
        return BodyRules(task.upload, task.request_type.model_fields, max_values, max_bytes)

    def _respond(
        self, result: PredictResult, representation: Representation, trace: Trace, *, varies: bool
    ) -> Response:
        trace.stages.update(result.stages)
        trace.batch_size, trace.failed_inputs = result.batch_size, result.failed
        trace.response_bytes = len(result.body)
        if result.is_list:
            trace.mirror = None  # Shadow traffic compares single answers.
        response = Response(result.body, media_type=content_type(representation))
        response.headers["x-model"] = f"{trace.model}/{trace.version}"
        if varies:
            response.headers["vary"] = "accept"
        return response


async def send_response(response: Response, scope: Scope, send: Send, *, timeout_s: float) -> None:
    """Send a response; a large body in pieces, each when the client has taken most of those before.

    So the server knows what it still keeps. Raises TimeoutError if the client takes nothing for `timeout_s` seconds;
    the connection is closed then.
    """
    body = response.body
    if len(body) <= _PIECE_BYTES:
        await response(scope, _receive_nothing, send)
        return
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    for start in range(0, len(body), _PIECE_BYTES):
        async with asyncio.timeout(timeout_s):
            piece, is_last = bytes(body[start : start + _PIECE_BYTES]), start + _PIECE_BYTES >= len(body)
            await send({"type": "http.response.body", "body": piece, "more_body": not is_last})


async def _receive_nothing() -> Any:
    raise NotImplementedError("A response with a plain body receives nothing.")


def _options_from_headers(request: Request) -> RequestOptions:
    """Return the request options that the headers set. Raises InvalidHeader."""
    headers = {"timeout_ms": request.headers.get(_TIMEOUT), "priority": request.headers.get(_PRIORITY)}
    try:
        _, options = parse_options(headers)
    except InvalidRequest as error:
        name = _TIMEOUT if error.details[0].where == "timeout_ms" else _PRIORITY
        raise InvalidHeader(f"{name.title()}{error.message.partition(':')[2]}") from None
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
