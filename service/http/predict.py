"""The one endpoint that matters: a request to a model, and its answer.

Not a FastAPI path operation, since the types of body and answer depend on the model in the path; `routes/openapi.py`
describes them, model by model. It stands before the router, whose layers would cost more than a small model.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.engine.admission import RequestOptions, parse_options
from service.engine.request import PredictResult, RequestState, Trace
from service.errors import DeadlineExceeded, InvalidHeader, InvalidRequest, MethodNotAllowed, ServiceError
from service.http.middleware import error_response, trace_of
from service.http.negotiation import choose_representation, content_type, rendered, with_representation
from service.http.request_body import BodyBudget, read_message
from service.metrics import Metrics
from service.models.repository import Model, Repository
from service.models.shadow import Shadows
from tasks.contract import Representation

T = TypeVar("T")
_CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a client that has gone; nobody receives it, the log and the metrics have it."""


class ClientGone(Exception):
    """The connection was closed before there was an answer."""


_TIMEOUT, _PRIORITY = "x-request-timeout-ms", "x-request-priority"
_PATH = re.compile(r"/v1/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?/predict")


@dataclass(frozen=True)
class Predictions:
    """Middleware: POST /v1/models/{name}/predict and /v1/models/{name}/versions/{version}/predict."""

    app: ASGIApp
    repository: Repository
    metrics: Metrics
    max_body_bytes: int
    bodies: BodyBudget
    shadows: Shadows

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers what is asked of a model, and passes everything else on."""
        asked = _PATH.fullmatch(scope["path"]) if scope["type"] == "http" else None
        if asked is None:
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            if request.method != "POST":
                raise MethodNotAllowed("A prediction is asked for with POST.")
            response = await self._answer(request, asked["name"], asked["version"])
        except ServiceError as error:
            response = error_response(error, trace_of(scope))
        await response(scope, receive, send)
        self.shadows.follow(trace_of(scope))

    async def _answer(self, request: Request, name: str, version: str | None) -> Response:
        trace = trace_of(request.scope)
        model = self.repository.find(name, version)
        trace.model, trace.version = model.manifest.name, model.manifest.version
        representation = choose_representation(model.task.representations, ", ".join(request.headers.getlist("accept")))
        loop = asyncio.get_running_loop()
        options, state = _options_from_headers(request), RequestState(arrived_at=loop.time())
        try:
            async with asyncio.timeout_at(state.arrived_at + model.pipeline.admission.timeout_s(options)) as limit:
                state.set_time_limit = limit.reschedule
                result = await self._predict(request, model, representation, trace, options, state)
        except TimeoutError:
            raise DeadlineExceeded(
                f"There was no answer within {(loop.time() - state.arrived_at) * 1000:.0f} ms."
            ) from None
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
        """Receives, and only then takes a place: a client that sends slowly, or nothing, keeps nobody out."""
        pipeline, loop = model.pipeline, asyncio.get_running_loop()
        deadline = pipeline.admission.make_deadline(options, state.arrived_at)
        pipeline.check(deadline)
        with self.bodies.share() as take:
            fields = model.task.request_type.model_fields
            upload = model.task.upload
            message = await read_message(request, upload, fields, max_bytes=self.max_body_bytes, take=take)
            message = replace(
                message,
                parse_fields=partial(_fields, representation, message.parse_fields),
                render=partial(rendered, representation, trace.model, trace.version),
                options=options.merge(message.options),
            )
            if message.options != options:
                deadline = pipeline.admission.make_deadline(message.options, state.arrived_at)
                state.set_time_limit(max(deadline.limit, loop.time()))
            message = self.shadows.watch(model, message, trace)
            trace.stages["receive"] = time.perf_counter() - trace.started_at
            if pipeline.runs_inline(message):  # There will be nothing to wait for, nor to give up.
                with pipeline.permit(message, deadline, state):
                    return await pipeline.predict(message, deadline, state)
            with pipeline.permit(message, deadline, state):
                return await _unless_gone(request.receive, pipeline.predict(message, deadline, state))

    def _respond(
        self, result: PredictResult, representation: Representation, trace: Trace, *, varies: bool
    ) -> Response:
        trace.stages.update(result.stages)
        trace.batch_size = result.batch_size
        response = Response(result.body, media_type=content_type(representation))
        response.headers["x-model"] = f"{trace.model}/{trace.version}"
        if varies:
            response.headers["vary"] = "accept"
        return response


def _fields(representation: Representation, fields: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
    return with_representation(representation, fields())


def _options_from_headers(request: Request) -> RequestOptions:
    """What a client asks for in headers and in the address. Raises InvalidHeader and InvalidRequest."""
    headers = {"timeout_ms": request.headers.get(_TIMEOUT), "priority": request.headers.get(_PRIORITY)}
    try:
        _, options = parse_options(headers)
    except InvalidRequest as error:
        name = _TIMEOUT if error.details[0].where == "timeout_ms" else _PRIORITY
        raise InvalidHeader(f"{name.title()}{error.message.partition(':')[2]}") from None
    return options


async def _unless_gone(receive: Callable[[], Awaitable[Any]], work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled as soon as the client hangs up. Raises ClientGone."""
    task = asyncio.current_task()
    watching, hung_up = True, False

    def hang_up(_: asyncio.Future[Any]) -> None:
        nonlocal hung_up
        if watching and task is not None:
            hung_up = True
            task.cancel()

    gone = asyncio.ensure_future(receive())  # The body has been read: the next message is the end of the connection.
    gone.add_done_callback(hang_up)
    try:
        return await work
    except asyncio.CancelledError:
        # Somebody else may have cancelled at the same time (the deadline, the end of the server): theirs comes first.
        if hung_up and task is not None and task.uncancel() == 0:
            raise ClientGone from None
        raise
    finally:
        watching = False
        gone.cancel()
