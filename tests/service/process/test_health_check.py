import socket
import subprocess
import sys
import threading

import pytest

from service.process.health_check import check, health_address
from tests.service.conftest import Running
from tests.service.program import ROOT


@pytest.mark.parametrize(
    ("environment", "address"),
    [
        ({}, "http://127.0.0.1:8000/health/live"),
        ({"SEVENFOLD_PORT": "8080"}, "http://127.0.0.1:8080/health/live"),
        ({"SEVENFOLD_PORT": "8080", "SEVENFOLD_ADMIN_PORT": "8082"}, "http://127.0.0.1:8082/health/live"),
        ({"SEVENFOLD_PORT": "8080", "SEVENFOLD_ADMIN_PORT": "0"}, "http://127.0.0.1:8080/health/live"),
        ({"SEVENFOLD_HOST": "::", "SEVENFOLD_PORT": "8080"}, "http://[::1]:8080/health/live"),
        ({"SEVENFOLD_ADMIN_PORT": "tcp://10.0.0.1:8082"}, "http://127.0.0.1:8000/health/live"),
        ({"SEVENFOLD_PORT": "tcp://10.0.0.1:80"}, "http://127.0.0.1:8000/health/live"),
        ({"SEVENFOLD_PORT": "8443", "SEVENFOLD_TLS_CERT": "/tls/tls.crt"}, "https://127.0.0.1:8443/health/live"),
        ({"SEVENFOLD_ADMIN_PORT": "8082", "SEVENFOLD_TLS_CERT": "/tls/tls.crt"}, "https://127.0.0.1:8082/health/live"),
    ],
)
def test_health_is_asked_for_where_the_environment_puts_it(environment, address):
    assert health_address(environment) == address


def test_a_live_server_has_no_problem(server: Running):
    assert check(f"http://127.0.0.1:{server.port}/health/live") is None


def test_what_is_wrong_is_said(server: Running):
    assert "404" in str(check(f"http://127.0.0.1:{server.port}/health/nothing"))
    assert "Connection refused" in str(check("http://127.0.0.1:1/health/live"))


def test_a_program_that_does_not_speak_http_is_no_live_server():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"SSH-2.0\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        problem = check(f"http://127.0.0.1:{listener.getsockname()[1]}/health/live")
        thread.join()

    assert "SSH-2.0" in str(problem)


def test_the_command_fails_where_no_server_listens():
    environment = {"SEVENFOLD_PORT": "1", "PATH": ""}
    command = [sys.executable, "-m", "service.process.health_check"]

    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60)

    assert ended.returncode == 1
    assert "http://127.0.0.1:1/health/live" in ended.stderr


def test_the_check_loads_nothing_of_the_server():
    program = "import sys, service.process.health_check; print(*sys.modules)"

    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)

    assert {"numpy", "fastapi", "uvicorn", "pydantic"} & set(ended.stdout.split()) == set()
