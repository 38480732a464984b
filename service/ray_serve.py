"""The server as a deployment of Ray Serve: `serve run service.ray_serve:build_app models=/models`.

Ray starts the replicas, balances requests among them and scales them. Each replica is a whole server: it loads the models
once, and has its own batcher and scheduler, so `@serve.batch` is not used. A request comes through Ray's proxy with its
headers and body as they were sent, and the response goes back with its status and headers.

Needs the package `ray[serve]` (requirements/ray.txt), which no other module of the service imports.
"""

from collections.abc import Mapping
from typing import Any

from ray import serve
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from service.app import create_app
from service.server import Service
from service.settings import read_settings

MAX_ONGOING_REQUESTS = 512
"""Requests that Ray gives to one replica at a time, by default. Ray's own default of 5 would leave no requests for the
batcher to group; the server itself rejects what it cannot answer in time, with 503 and Retry-After. It should be at least
twice the largest batch, and at least --max-queue of the busiest model."""
_LOAD_S = 600.0


async def _unused(scope: Scope, receive: Receive, send: Send) -> None:
    await JSONResponse({"error": "not reached"}, 500)(scope, receive, send)


@serve.deployment(max_ongoing_requests=MAX_ONGOING_REQUESTS)
@serve.ingress(Starlette())
class Replica:
    """One server, in a process of Ray."""


def build_app(arguments: Mapping[str, Any]) -> Any:
    """Return the application for `serve run`, `serve deploy`, and RayService."""
    raise NotImplementedError(read_settings, Service, create_app, Response)
