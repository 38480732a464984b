"""Create the ASGI application of a service: routes, middleware, error handlers, and loading models at startup."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp

from service.http.admin import admin_router
from service.http.error_responses import add_error_handlers
from service.http.health import health_router
from service.http.middleware import MethodMiddleware, RequestMiddleware
from service.http.models import models_router
from service.http.openapi import OpenApiDocument
from service.http.predict import PredictMiddleware
from service.http.shadow_report import shadow_router
from service.process.liveness import supervise
from service.process.loop_lag import measure_loop_lag
from service.server import Service

_DESCRIPTION = "Predictions from the models in the server's folder. Each model has its own endpoint, listed below."


def create_app(service: Service) -> ASGIApp:
    """Return the application. It loads the models at startup and closes the service at shutdown."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:  # noqa: ARG001 -- FastAPI's signature
        work = (
            service.load_and_rescan(predict_app),
            service.release_memory(),
            measure_loop_lag(service.metrics.loop_lag.observe),
        )
        async with supervise(service.liveness, *work, on_error=service.metrics.stray_errors.inc):
            yield
        service.close()

    app: FastAPI = FastAPIOffline(
        redoc_url=None, title="Sevenfold", version="0.1.0", description=_DESCRIPTION, lifespan=lifespan
    )
    app.state.service = service
    app.include_router(models_router(service.repository))
    app.include_router(shadow_router(service.shadows))
    settings = service.settings
    app.include_router(
        admin_router(service.repository, service.change_models, enabled=settings.admin, token=settings.admin_token)
    )
    app.include_router(health_router(service.repository, service.metrics, service.liveness, lambda: service.draining))
    add_error_handlers(app)
    app.add_route("/", lambda request: RedirectResponse("/docs"), include_in_schema=False)
    # FastAPI's own route would build the document on the event loop, for each request.
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", "") != app.openapi_url]
    app.add_route(str(app.openapi_url), OpenApiDocument(app, service.repository).respond, include_in_schema=False)
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
    return RequestMiddleware(MethodMiddleware(predict_app), service.metrics)
