"""Create the ASGI application of a service: routes, middleware, error handlers, and loading models at startup."""

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
from service.http.openapi import build_openapi
from service.http.predict import PredictMiddleware
from service.http.shadow import shadow_router
from service.process.liveness import supervise
from service.server import Service

_DESCRIPTION = "Predictions from the models in the server's folder. Each model has its own endpoint, listed below."


def create_app(service: Service) -> ASGIApp:
    """Return the application. It loads the models at startup and closes the service at shutdown."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:  # noqa: ARG001 -- FastAPI's signature
        work = service.load_and_rescan(predict_app)
        async with supervise(service.liveness, work, service.metrics.stray_errors.inc):
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
    app.openapi = lambda: build_openapi(app, service.repository)  # type: ignore[method-assign]
    predict_app = PredictMiddleware(
        app,
        service.repository,
        service.metrics,
        max_body_bytes=service.settings.max_body_bytes,
        body_budget=service.body_budget,
        shadows=service.shadows,
    )
    return RequestMiddleware(predict_app, service.metrics)


def _add_error_handlers(app: FastAPI) -> None:
    async def on_service_error(request: Request, error: Any) -> Response:
        return error_response(error, trace_of(request.scope))

    async def on_validation_error(request: Request, error: Any) -> Response:
        return error_response(InvalidRequest(str(error.errors()[0]["msg"])), trace_of(request.scope))

    async def on_http_exception(request: Request, error: Any) -> Response:
        response = error_response(_service_error(error, request), trace_of(request.scope))
        response.headers.update(error.headers or {})
        return response

    app.add_exception_handler(ServiceError, on_service_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(RequestValidationError, on_validation_error)


def _service_error(error: HTTPException, request: Request) -> ServiceError:
    if error.status_code == HTTPStatus.NOT_FOUND:
        return NotFound(f"Nothing found at {request.url.path[:200]}; see /docs for the available paths.")
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return MethodNotAllowed(f"{request.method[:16]} is not allowed for {request.url.path[:200]}.")
    if error.status_code < HTTPStatus.INTERNAL_SERVER_ERROR:
        return InvalidRequest(str(error.detail))
    return InternalError(str(error.detail))
