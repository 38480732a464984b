"""A real server on the loopback interface, in a thread of this process, with tiny models or a fake runtime."""

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from service.app import create_app
from service.backends.base import OpenBackend
from service.backends.memory import HostMemory
from service.http.listening import HttpServer
from service.http.protocol import make_config
from service.server import Service
from service.settings import Settings
from service.tracing.spans import Tracer
from tests.model_folders import publish
from tests.tiny.classification import COLOURS, colours_graph
from tests.tiny.tabular import CREDIT, credit_graph


@dataclass
class Running:
    """A server that has loaded its models."""

    client: httpx.Client
    service: Service
    port: int


Start = Callable[..., Running]


@contextmanager
def running(
    settings: Settings,
    open_backend: OpenBackend | None = None,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
    trust: ssl.SSLContext | None = None,
    tracer: Tracer | None = None,
    host: HostMemory | None = None,
) -> Iterator[Running]:
    """Run a server in a thread, on an event loop of asyncio by default; it is stopped at the end.

    `trust` is what the client trusts, if the settings have a certificate.
    """
    ready, errors, parts = threading.Event(), [], []

    async def main() -> None:
        service = Service(settings, open_backend, tracer, host)
        listener = socket.create_server(("127.0.0.1", 0))
        server = HttpServer(make_config(create_app(service)), service.certificate and service.certificate.context)
        serving = asyncio.create_task(server.serve([listener]))
        await service.loaded.wait()
        while not server.started:
            await asyncio.sleep(0)
        parts.extend([service, server, listener.getsockname()[1]])
        ready.set()
        await serving

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=loop_factory) as runner:
                runner.run(main())
        except BaseException as error:
            errors.append(error)
        finally:
            ready.set()

    (thread := threading.Thread(target=run, name="server")).start()
    assert ready.wait(60)
    if errors:
        raise errors[0]
    service, server, port = parts
    try:
        with make_client(port, trust) as client:
            yield Running(client, service, port)
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def make_client(port: int, trust: ssl.SSLContext | None) -> httpx.Client:
    address = f"http://127.0.0.1:{port}" if trust is None else f"https://localhost:{port}"
    return httpx.Client(base_url=address, timeout=60, verify=trust or True)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    publish(root, "colours", COLOURS, colours_graph())
    publish(root, "credit", CREDIT, credit_graph())
    return root


@pytest.fixture(scope="module")
def server(tiny_models: Path) -> Iterator[Running]:
    """A server with default settings, shared by tests that do not change it."""
    with running(Settings(models=tiny_models, max_body_bytes=2_000_000)) as server:
        yield server


@pytest.fixture
def start(tiny_models: Path) -> Iterator[Start]:
    """Starts servers with a test's own settings; they are stopped at the end."""
    with ExitStack() as stack:

        def start_one(
            open_backend: OpenBackend | None = None,
            loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
            trust: ssl.SSLContext | None = None,
            tracer: Tracer | None = None,
            host: HostMemory | None = None,
            **changes: object,
        ) -> Running:
            changes.setdefault("models", tiny_models)
            settings = Settings(**changes)  # type: ignore[arg-type]
            return stack.enter_context(running(settings, open_backend, loop_factory, trust, tracer, host))

        yield start_one
