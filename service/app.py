"""The application: the one place that knows every part and joins them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp

from service.errors import InternalError, InvalidRequest, MethodNotAllowed, NotFound, ServiceError
from service.http.health import health_router
from service.http.middleware import RequestMiddleware, error_response, trace_of
from service.http.models import models_router
from service.http.openapi import describe_interface
from service.http.predict import Predictions
from service.http.shadow import shadow_router
from service.process.liveness import watch_over
from service.server import Service

_DESCRIPTION = "Answers predictions of the models in its folder. Each model has an endpoint of its own, below."


def create_app(service: Service) -> ASGIApp:
    """The HTTP application of a service. It loads the models when it starts and ends its threads when it stops."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:  # noqa: ARG001 -- FastAPI's signature
        async with watch_over(service.liveness, service.watch(predictions), service.metrics.stray_errors.inc):
            yield
        service.close()

    app: FastAPI = FastAPIOffline(
        redoc_url=None, title="Sevenfold", version="0.1.0", description=_DESCRIPTION, lifespan=lifespan
    )
    app.state.service = service
    app.include_router(models_router(service.repository))
    app.include_router(shadow_router(service.shadows))
    app.include_router(health_router(service.repository, service.metrics, service.liveness, lambda: service.draining))
    _add_error_handlers(app)
    app.add_route("/", lambda request: RedirectResponse("/docs"), include_in_schema=False)
    app.openapi = lambda: describe_interface(app, service.repository)  # type: ignore[method-assign]
    predictions = Predictions(
        app,
        service.repository,
        service.metrics,
        max_body_bytes=service.settings.max_body_bytes,
        bodies=service.bodies,
        shadows=service.shadows,
    )
    return RequestMiddleware(predictions, service.metrics)


def _add_error_handlers(app: FastAPI) -> None:
    async def on_service_error(request: Request, error: Any) -> Response:
        return error_response(error, trace_of(request.scope))

    async def on_validation_error(request: Request, error: Any) -> Response:
        return error_response(InvalidRequest(str(error.errors()[0]["msg"])), trace_of(request.scope))

    async def on_http_error(request: Request, error: Any) -> Response:
        response = error_response(_of_http(error, request), trace_of(request.scope))
        response.headers.update(error.headers or {})
        return response

    app.add_exception_handler(ServiceError, on_service_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_validation_error)


def _of_http(error: HTTPException, request: Request) -> ServiceError:
    if error.status_code == HTTPStatus.NOT_FOUND:
        return NotFound(f"There is nothing at {request.url.path[:200]}; /docs lists what there is.")
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return MethodNotAllowed(f"{request.method[:16]} is not what {request.url.path[:200]} answers to.")
    if error.status_code < HTTPStatus.INTERNAL_SERVER_ERROR:
        return InvalidRequest(str(error.detail))
    return InternalError(str(error.detail))
