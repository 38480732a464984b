"""What of the Ray deployment can be tested without Ray; `python -m benchmarks.ray` runs it for real."""

import asyncio
from pathlib import Path

import httpx
import pytest

from service.ray_serve import Replica, build_app
from service.settings import InvalidSetting
from tests.service.collector import collecting
from tests.service.test_main import ROW


async def ask_a_replica(
    models: Path, method: str = "POST", path: str = "/v1/models/credit/predict"
) -> tuple[bool, httpx.Response]:
    """Start a replica as Ray does; return whether its models were loaded when it was ready, and a response."""
    replica = Replica({"models": str(models), "device": "cpu"})
    app = replica.__serve_build_asgi_app__()
    messages: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    sent: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    lifespan = asyncio.create_task(app({"type": "lifespan"}, messages.get, sent.put))
    await messages.put({"type": "lifespan.startup"})
    assert (await sent.get())["type"] == "lifespan.startup.complete"
    was_loaded = replica.service.loaded.is_set()
    await replica.check_health()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://replica") as client:
        response = await client.request(method, path, json=ROW, headers={"x-request-id": "abc"})
    await messages.put({"type": "lifespan.shutdown"})
    await lifespan
    return was_loaded, response


def test_a_replica_is_ready_when_its_models_are_loaded_and_answers_as_the_server_does(tiny_models: Path):
    was_loaded, response = asyncio.run(ask_a_replica(tiny_models))

    assert was_loaded
    assert response.status_code == 200
    assert response.headers["x-request-id"] == "abc"
    assert response.headers["x-model"] == "credit/1"


def test_a_replica_whose_liveness_fails_is_unhealthy(tiny_models: Path):
    async def check() -> None:
        replica = Replica({"models": str(tiny_models), "device": "cpu"})
        replica.service.liveness.fail("cpu", "a run has not finished.")
        try:
            await replica.check_health()
        finally:
            replica.service.close()

    with pytest.raises(RuntimeError, match="cpu: a run has not finished"):
        asyncio.run(check())


def test_what_the_environment_says_of_listening_has_no_effect_on_a_replica(
    tiny_models: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, value in {"ADMIN_PORT": "8082", "TLS_CERT": "cert.pem", "TLS_KEY": "key.pem"}.items():
        monkeypatch.setenv(f"SEVENFOLD_{name}", value)

    _, response = asyncio.run(ask_a_replica(tiny_models, "GET", "/health/ready"))

    assert response.status_code == 200


def test_a_replica_sends_the_spans_of_its_requests_before_it_ends(tiny_models: Path, monkeypatch: pytest.MonkeyPatch):
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        _, response = asyncio.run(ask_a_replica(tiny_models))
        spans = collector.spans()

    assert "traceresponse" in response.headers
    assert "POST /v1/models/{name}/predict" in spans


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"port": "9000"}, "Ray's proxy listens"),
        ({"modles": "x"}, "Did you mean --models"),
        ({"workers": "many"}, "integer"),
        ({"replicas": "0"}, "replicas must be"),
    ],
)
def test_wrong_arguments_are_an_error(arguments, message):
    pytest.importorskip("ray", reason="Ray is not installed; it has an environment of its own: requirements/ray.txt")

    with pytest.raises(InvalidSetting, match=message):
        build_app(arguments)
