"""Create the ASGI application of a service: routes, middleware, error handlers, and loading models at startup."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp

from service.http.admin import CHANGES, admin_router
from service.http.api_keys import ApiKeyMiddleware
from service.http.cors import CorsMiddleware, PreflightMiddleware
from service.http.error_responses import add_error_handlers
from service.http.health import PROBES, health_router
from service.http.middleware import ContinueMiddleware, MethodMiddleware, RequestMiddleware
from service.http.models import models_router
from service.http.openapi import OpenApiDocument
from service.http.predict import PredictMiddleware
from service.http.shadow_report import shadow_router
from service.membership import OneOfSeveral, SingleProcess
from service.process.liveness import supervise
from service.process.loop_lag import measure_loop_lag
from service.server import VERSION, Service
from service.settings import Settings

_DESCRIPTION = "Predictions from the models in the server's folder. Each model has its own endpoint, listed below."


def create_app(service: Service, processes: OneOfSeveral | None = None) -> ASGIApp:
    """Return the application. It loads the models at startup and closes the service at shutdown.

    Args:
        service: the parts of the server.
        processes: all processes of the server, if there are several.
    """
    all_processes = processes or SingleProcess(service)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:  # noqa: ARG001 -- FastAPI's signature
        work = (
            service.load_and_rescan(predict_app),
            service.release_memory(),
            service.watch_files(),
            service.watch_memory(),
            measure_loop_lag(service.metrics.loop_lag.observe),
        )
        async with supervise(service.liveness, *work, on_error=service.metrics.stray_errors.inc):
            yield
        service.close()

    app: FastAPI = FastAPIOffline(
        redoc_url=None, title="Sevenfold", version=VERSION, description=_DESCRIPTION, lifespan=lifespan
    )
    app.state.service = service
    app.include_router(models_router(service.repository))
    app.include_router(shadow_router(all_processes.read_reports))
    settings = service.settings
    if not settings.admin_port:
        _include_operation(app, service, all_processes)
    add_error_handlers(app)
    app.add_route("/", lambda request: RedirectResponse("/docs"), include_in_schema=False)
    # FastAPI's own route would build the document on the event loop, for each request.
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", "") != app.openapi_url]
    open_paths = None if service.api_keys is None else _open_paths(settings)
    openapi = OpenApiDocument(app, service.repository, open_paths)
    app.add_route(str(app.openapi_url), openapi.respond, include_in_schema=False)
    predict_app = PredictMiddleware(
        app,
        service.repository,
        service.metrics,
        max_body_bytes=service.settings.max_body_bytes,
        limits=service.limits,
        body_budget=service.body_budget,
        shadows=service.shadows,
        send_timeout_s=service.settings.timeout_ms / 1000,
    )
    guarded = RequestMiddleware(_guard(MethodMiddleware(predict_app), service), service.metrics, service.tracer)
    complete = ContinueMiddleware(guarded)
    return CorsMiddleware(complete, settings.cors_origins) if settings.cors_origins else complete


def create_admin_app(service: Service, processes: OneOfSeveral | None = None) -> ASGIApp:
    """Return the application of the admin port: health, metrics, and changing versions.

    It neither starts nor closes the service, and needs no API key: who may reach the port is for the network to decide.
    """
    app = FastAPI(openapi_url=None, title="Sevenfold")
    _include_operation(app, service, processes or SingleProcess(service))
    add_error_handlers(app, hint="this port has only health, metrics and the endpoints of operators.")
    return RequestMiddleware(MethodMiddleware(app), service.metrics)


def _include_operation(app: FastAPI, service: Service, processes: OneOfSeveral | SingleProcess) -> None:
    """Add the endpoints for operators."""
    settings = service.settings
    app.include_router(
        admin_router(service.repository, processes.change_version, enabled=settings.admin, token=settings.admin_token)
    )
    app.include_router(health_router(processes))


def _guard(app: ASGIApp, service: Service) -> ASGIApp:
    """Add what decides who may use the application, if settings ask for it; nothing else costs time."""
    if service.api_keys is not None:
        app = ApiKeyMiddleware(app, service.api_keys, _open_paths(service.settings))
    if service.settings.cors_origins:  # Around the keys, which no preflight has.
        app = PreflightMiddleware(app, service.settings.cors_origins)
    return app


def _open_paths(settings: Settings) -> re.Pattern[str]:
    """Return the paths that need no API key: the redirect, health and metrics, and those of the operators' token."""
    is_admin_here = settings.admin and not settings.admin_port
    return re.compile(rf"/|{PROBES}|{CHANGES}" if is_admin_here else rf"/|{PROBES}")
