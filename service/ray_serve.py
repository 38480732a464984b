"""The server as an application of Ray Serve: `serve run service.ray_serve:build_app models=models`.

Ray starts the replicas, shares requests out among them, and scales them. Each replica is a whole server: it loads the
models once, has its own batcher (so `@serve.batch` is not used), and rejects what it cannot answer in time. Requests
and responses pass through Ray's proxy: bodies, headers and status codes are those of the server.

Needs the packages of requirements/ray.txt; they are imported when an application is built, and by no other module.
"""

import asyncio
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.app import create_app
from service.http.cors import check_origins
from service.server import VERSION, Service
from service.settings import InvalidSetting, Settings, read_settings
from service.tracing.start import start_tracing

MAX_ONGOING_REQUESTS = 512
"""How many requests Ray gives to one replica at a time. With Ray's own default of 5, the batcher would have hardly any
to group. It should be at least twice the largest batch; beyond its limits, the server rejects with Retry-After."""
_OF_THE_PROXY = ("host", "port", "admin_port", "tls_cert", "tls_key")
_LOAD_S = 900.0
_GIL_SWITCH_INTERVAL_S = 0.0001


class Replica:
    """One server, in a process of Ray's."""

    def __init__(self, arguments: Mapping[str, str]) -> None:
        # As in service/__main__.py: a worker thread that decodes must not keep the event loop waiting.
        sys.setswitchinterval(_GIL_SWITCH_INTERVAL_S)
        self.service = Service(_settings(arguments), tracer=start_tracing(VERSION))

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return the application that answers requests; Ray calls this after the constructor."""
        return _follow_lifespan(create_app(self.service), self.service)

    async def check_health(self) -> None:
        """Raise RuntimeError where liveness fails; Ray then replaces the replica."""
        if self.service.liveness.failures:
            raise RuntimeError("; ".join(f"{part}: {why}" for part, why in self.service.liveness.failures.items()))


def _follow_lifespan(app: ASGIApp, service: Service) -> ASGIApp:
    """Return an application whose startup is complete when its models are loaded: Ray sends requests from then on.

    Its shutdown sends the last spans.
    """

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_later(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                async with asyncio.timeout(_LOAD_S):
                    await service.loaded.wait()
            elif message["type"] == "lifespan.shutdown.complete" and service.tracer is not None:
                await asyncio.to_thread(service.tracer.close)
            await send(message)

        await app(scope, receive, send_later if scope["type"] == "lifespan" else send)

    return run


def build_app(arguments: Mapping[str, str]) -> Any:
    """Return the application for `serve run`, `serve deploy` and RayService.

    Args:
        arguments: settings of the server by their names, as texts: {"models": "/models", "only": "clothing,adult"}.
            Variables SEVENFOLD_… in the environment of the replicas are read as well. `replicas` is how many to start,
            by default 1, where the configuration of the deployment does not say it.

    Raises InvalidSetting.
    """
    from ray import serve

    texts = {name: str(text) for name, text in arguments.items()}
    replicas = texts.pop("replicas", "1")
    if not replicas.isdecimal() or replicas == "0":
        raise InvalidSetting(f"replicas must be a positive integer, not '{replicas}'.")
    _settings(texts)  # A mistake is said here, and not only in the log of a replica.
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name="sevenfold",
        num_replicas=int(replicas),
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        health_check_timeout_s=60,
    )
    return deployment.bind(texts)


def _settings(arguments: Mapping[str, str]) -> Settings:
    for name in arguments:
        if name in _OF_THE_PROXY:
            raise InvalidSetting(f"{name} is no setting of a replica: Ray's proxy listens, see `serve start --help`.")
    settings = read_settings([f"--{name.replace('_', '-')}={text}" for name, text in arguments.items()])
    check_origins(settings.cors_origins)
    # In the environment they may be those of the image; with an admin port, health and metrics would be nowhere.
    return replace(settings, admin_port=0, tls_cert=None, tls_key=None)
