"""Health, metrics and changing versions on a port of their own, until the last request is answered."""

import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from loadtests.server import free_port
from tests.service.program import program, read_until
from tests.service.test_main import EXIT_TIMEOUT_S, ROW, complete, run_to_its_end
from tests.service.test_main import partial_request as partial_request_on

PROMOTE = "/v1/models/credit/versions/1/promote"
PREDICT = "/v1/models/credit/predict"


class Ports(NamedTuple):
    """The addresses of a program, and what it printed when it was ready."""

    main: str
    admin: str
    greeting: str


@pytest.fixture(scope="module")
def ports(tiny_models: Path) -> Iterator[Ports]:
    port = free_port()
    with program(tiny_models, "--admin-port", str(port), "--admin") as (_, address, greeting):
        yield Ports(address, f"http://127.0.0.1:{port}", greeting)


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/metrics"])
def test_health_and_metrics_are_on_the_admin_port_alone(ports: Ports, path: str) -> None:
    assert httpx.get(ports.admin + path).status_code == 200
    assert httpx.get(ports.main + path).status_code == 404


def test_versions_are_changed_on_the_admin_port_alone(ports: Ports) -> None:
    assert httpx.post(ports.admin + PROMOTE).status_code == 200
    assert httpx.post(ports.main + PROMOTE).status_code == 404


def test_predictions_and_pages_are_not_on_the_admin_port(ports: Ports) -> None:
    refused = [httpx.get(ports.admin + path) for path in ("/", "/docs", "/openapi.json", "/v1/models")]
    refused.append(httpx.post(ports.admin + PREDICT, json=ROW))

    assert [response.status_code for response in refused] == [404] * 5
    assert {response.json()["error"]["code"] for response in refused} == {"not_found"}
    assert "this port has only health, metrics" in refused[0].json()["error"]["message"]
    assert httpx.post(ports.main + PREDICT, json=ROW).status_code == 200


def test_requests_of_both_ports_are_in_the_metrics(ports: Ports) -> None:
    httpx.post(ports.main + PREDICT, json=ROW)

    text = httpx.get(ports.admin + "/metrics").text

    assert 'sevenfold_requests_total{model="credit",status="200",version="1"}' in text


def test_the_greeting_names_the_admin_port_and_the_pages_do_not_document_it(ports: Ports) -> None:
    paths = httpx.get(ports.main + "/openapi.json").json()["paths"]

    assert f"health and metrics: {ports.admin})" in ports.greeting.splitlines()[0]
    assert not [path for path in paths if path.startswith(("/health", "/metrics")) or "{action}" in path]


def test_connections_that_are_kept_open_on_the_main_port_do_not_hold_up_probes(ports: Ports) -> None:
    port = int(ports.main.rpartition(":")[2])
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(300)]
    try:
        assert httpx.get(ports.admin + "/health/live", timeout=60).status_code == 200
    finally:
        for connection in idle:
            connection.close()


def test_the_admin_port_reports_the_drain_until_the_last_accepted_request_is_answered(
    tiny_models: Path,
) -> None:
    admin = f"http://127.0.0.1:{free_port()}"
    flags = ("--admin-port", admin.rpartition(":")[2], "--drain-seconds", "0.2")
    with program(tiny_models, *flags) as (process, address, _):
        with partial_request_on(address, metrics_at=admin) as connection:
            process.send_signal(signal.SIGTERM)
            read_until(process.stderr, "Shutting down")  # The main port is closed; the request is not complete.
            ready, metrics = httpx.get(f"{admin}/health/ready"), httpx.get(f"{admin}/metrics")
            with pytest.raises(httpx.ConnectError):
                httpx.get(f"{address}/v1/models")
            response = complete(connection)

        assert (ready.status_code, ready.json()["reason"]) == (503, "The server is shutting down.")
        assert ready.headers["connection"] == "close"
        assert metrics.status_code == 200
        assert response.startswith(b"HTTP/1.1 200")
        assert process.wait(EXIT_TIMEOUT_S) == 0


def test_a_client_of_the_admin_port_does_not_keep_the_program_from_stopping(tiny_models: Path) -> None:
    port = free_port()
    with (
        program(tiny_models, "--admin-port", str(port)) as (process, _, _),
        socket.create_connection(("127.0.0.1", port)) as silent,
        httpx.Client(base_url=f"http://127.0.0.1:{port}") as kept_alive,
    ):
        kept_alive.get("/health/live")
        process.send_signal(signal.SIGTERM)

        assert process.wait(EXIT_TIMEOUT_S) == 0
        assert silent.recv(1) == b""


def test_an_admin_port_in_use_is_an_error_at_startup(tiny_models: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        ended = run_to_its_end("--models", str(tiny_models), "--port", "0", "--admin-port", str(port))

    assert ended.returncode == 2
    assert f"Cannot listen on 127.0.0.1:{port}: Address already in use" in ended.stderr


def test_the_same_port_twice_is_an_error_that_says_how_to_use_one_for_both(tiny_models: Path) -> None:
    port = str(free_port())
    ended = run_to_its_end("--models", str(tiny_models), "--port", port, "--admin-port", port)

    assert ended.returncode == 2
    assert "admin_port must differ from port; 0 = health and metrics are on the same port." in ended.stderr


def test_keys_are_for_the_main_port_and_the_token_of_operators_for_the_admin_port(
    tiny_models: Path, tmp_path: Path
) -> None:
    admin = f"http://127.0.0.1:{free_port()}"
    (tmp_path / "keys").write_text(f"a sha256:{'0' * 64}\n")
    flags = ["--admin", "--admin-token", "operator", "--api-keys-file", str(tmp_path / "keys")]
    with program(tiny_models, "--admin-port", admin.rpartition(":")[2], *flags) as (_, address, _):
        statuses = [
            httpx.get(f"{admin}/metrics").status_code,
            httpx.post(admin + PROMOTE).status_code,
            httpx.post(admin + PROMOTE, headers={"authorization": "Bearer operator"}).status_code,
            httpx.post(address + PROMOTE, headers={"authorization": "Bearer operator"}).status_code,
            httpx.get(f"{address}/v1/models").status_code,
        ]

    assert statuses == [200, 401, 200, 401, 401]
