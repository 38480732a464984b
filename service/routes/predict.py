"""The one endpoint that matters: a request to a model, and its answer.

Not a FastAPI path operation, since the types of body and answer depend on the model in the path; `routes/openapi.py`
describes them, model by model.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from service.errors import DeadlineExceeded, InvalidHeader
from service.metrics import Metrics
from service.pipeline import Answered
from service.repository import Model, Repository
from service.routes.bodies import BodyBudget, read_message
from service.telemetry import Trace, trace_of

T = TypeVar("T")
_CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a client that has gone; nobody receives it, the log and the metrics have it."""


class ClientGone(Exception):
    """The connection was closed before there was an answer."""


@dataclass(frozen=True)
class PredictRoute:
    """POST /v1/models/{name}/predict and /v1/models/{name}/versions/{version}/predict."""

    repository: Repository
    metrics: Metrics
    timeout_s: float
    max_body_bytes: int
    bodies: BodyBudget

    async def __call__(self, request: Request) -> Response:
        """Answers, or raises ServiceError."""
        trace = trace_of(request.scope)
        model = self.repository.find(request.path_params["name"], request.path_params.get("version"))
        trace.model, trace.version = model.manifest.name, model.manifest.version
        timeout_s = _timeout_s(request.headers.get("x-request-timeout-ms"), self.timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                answered = await self._predict(request, model, trace)
        except TimeoutError:
            raise DeadlineExceeded(f"There was no answer within {timeout_s * 1000:g} ms.") from None
        except (ClientGone, ClientDisconnect):
            self.metrics.cancelled.labels(trace.model).inc()
            return Response(status_code=_CLIENT_CLOSED_REQUEST)
        return self._respond(answered, trace)

    async def _predict(self, request: Request, model: Model, trace: Trace) -> Answered:
        """Receives, and only then takes a place: a client that sends slowly, or nothing, keeps nobody out."""
        with self.bodies.share() as take:
            message = await read_message(request, model.task.upload, max_bytes=self.max_body_bytes, take=take)
            trace.stages["receive"] = time.perf_counter() - trace.began
            with model.pipeline.permit():
                if model.pipeline.is_quick(message):  # There will be nothing to wait for, nor to give up.
                    return await model.pipeline.predict(message)
                return await _unless_gone(request.receive, model.pipeline.predict(message))

    def _respond(self, answered: Answered, trace: Trace) -> Response:
        trace.stages.update(answered.stages)
        trace.batch_size = answered.batch_size
        named = answered.answer.model_copy(update={"model": trace.model, "version": trace.version})
        response = Response(named.model_dump_json(exclude_none=True), media_type="application/json")
        response.headers["x-model"] = f"{trace.model}/{trace.version}"
        return response


def _timeout_s(header: str | None, longest_s: float) -> float:
    if header is None:
        return longest_s
    try:
        asked = float(header) / 1000
    except ValueError:
        asked = math.nan
    if not 0 < asked < math.inf:
        raise InvalidHeader(f"X-Request-Timeout-Ms is a positive number of milliseconds, not '{header[:32]}'.")
    return min(asked, longest_s)


async def _unless_gone(receive: Callable[[], Awaitable[Any]], work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled as soon as the client hangs up. Raises ClientGone."""
    working: asyncio.Future[T] = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(receive())  # The body has been read: the next message is the end of the connection.
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone
    finally:
        gone.cancel()
        working.cancel()
