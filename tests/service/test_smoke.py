import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from service.smoke import Server, check, wait_until_ready
from tests.service.conftest import Running, Start
from tests.service.program import ROOT
from tests.tiny.models import every_task, publish_every_task

TIMEOUT_S = 60


def lines_and_failures(server: Server) -> tuple[list[str], list[str]]:
    lines: list[str] = []
    failed = check(server, lines.append)
    return lines, failed


def address_of(running: Running) -> str:
    return f"http://127.0.0.1:{running.port}"


def smoke(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command, environment = [sys.executable, "-m", "service", "smoke", *arguments], os.environ | variables
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


def test_every_task_answers_its_own_example(start: Start, tmp_path: Path):
    publish_every_task(tmp_path)
    running = start(models=tmp_path)

    lines, failed = lines_and_failures(Server(address_of(running)))

    assert failed == []
    assert [line.split()[1].partition("/")[0] for line in lines] == sorted(every_task())
    assert all(line.startswith("ok ") for line in lines)


def test_the_command_succeeds_with_a_line_for_each_model(server: Running):
    ended = smoke("--url", address_of(server))

    assert ended.returncode == 0, ended.stderr
    assert [line.split()[1] for line in ended.stdout.splitlines()[:-1]] == ["colours/1", "credit/1"]
    assert ended.stderr == ""


def test_a_model_that_is_not_served_is_a_failure_with_the_reason(start: Start, tiny_models: Path):
    running = start(models=tiny_models, pin={"colours": 9})

    ended = smoke("--url", address_of(running))

    assert ended.returncode == 1
    assert "smoke: colours/-: not served: " in ended.stderr
    assert "ok   credit/1" in ended.stdout


def test_a_server_without_models_is_a_failure(start: Start, tmp_path: Path):
    running = start(models=tmp_path)

    problem = wait_until_ready(Server(address_of(running)), 0.0)

    assert problem is not None
    assert "The folder of models contains none" in problem


def test_a_server_that_is_not_there_is_waited_for_within_the_limit():
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    problem = wait_until_ready(Server("http://127.0.0.1:1"), 10.0, clock=lambda: now[0], sleep=sleep)

    assert problem == ("The server was not ready within 10 s: no answer from http://127.0.0.1:1: Connection refused.")
    assert now[0] == 10.0


class Canned(ThreadingHTTPServer):
    """Answers each path with a status and a body; keeps the headers of the requests."""

    daemon_threads = True

    def __init__(self, answers: dict[str, tuple[int, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), Canned.Handler)
        self.answers = answers
        self.keys: set[str | None] = set()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.server.keys.add(self.headers.get("Authorization"))
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body = self.server.answers.get(self.path, (404, b"{}"))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 -- http.server's name

        def log_message(self, *_: object) -> None:
            pass


MODELS = {"models": [{"name": "a", "state": "ready", "version": "1", "task": "tabular", "versions": []}]}
LIST = {"/v1/models": (200, json.dumps(MODELS).encode())}
PAGE = {"/v1/models/a": (200, b'{"example": {"rows": []}}')}


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        ({}, "cannot be listed: 404"),
        ({"/v1/models": (200, b"<html>")}, "cannot be listed: 200, which is no answer of this server"),
        ({"/v1/models": (200, b'{"models": []}')}, "The server has no models."),
        ({"/v1/models": (401, b"{}")}, "asks for an API key"),
        (LIST, "a/1: its page: 404"),
        (LIST | PAGE | {"/v1/models/a/predict": (200, b"[]")}, "a/1: 200, which is no answer"),
        (LIST | PAGE | {"/v1/models/a/predict": (200, b'{"model": "b"}')}, "a/1: the answer is one of 'b'"),
        (
            LIST | PAGE | {"/v1/models/a/predict": (503, b'{"error": {"message": "Too many requests."}}')},
            "a/1: 503 Too many requests.",
        ),
    ],
)
def test_what_is_no_prediction_is_a_failure(answers, problem):
    with Canned(answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        _, failed = lines_and_failures(Server(f"http://127.0.0.1:{server.server_port}", key="abc"))
        server.shutdown()
        thread.join()

    (line,) = failed
    assert problem in line
    assert server.keys == {"Bearer abc"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--url"),
        (["--url", "localhost:8000"], "must be http://HOST:PORT"),
        (["--url", "http://127.0.0.1:1", "--api-key-file", "nowhere"], "nowhere cannot be used"),
        (["--url", "https://127.0.0.1:1", "--ca-file", "nowhere"], "nowhere cannot be used"),
    ],
)
def test_wrong_arguments_are_an_error(arguments, message):
    ended = smoke(*arguments)

    assert ended.returncode == 2
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("is_file", [True, False])
def test_a_key_that_no_header_can_contain_is_refused_without_being_printed(tmp_path: Path, is_file: bool):
    (tmp_path / "key").write_text("secret-key\nand a second line\n")
    given = ["--api-key-file", str(tmp_path / "key")] if is_file else []
    environment = {} if is_file else {"SEVENFOLD_API_KEY": "secret key"}

    ended = smoke("--url", "http://127.0.0.1:1", "--wait-seconds", "0", *given, **environment)

    assert ended.returncode == 2
    assert "contains no token" in ended.stderr
    assert "secret" not in ended.stdout + ended.stderr


def test_a_server_whose_health_is_on_another_port_is_waited_for_until_all_models_are_served():
    loading = json.dumps({"models": [MODELS["models"][0] | {"state": "unavailable"}]}).encode()
    with Canned({"/v1/models": (200, loading)}) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = Server(f"http://127.0.0.1:{server.server_port}")
        too_short = wait_until_ready(address, 0.0)
        problem = wait_until_ready(address, 10.0, clock=lambda: 0.0, sleep=lambda _: server.answers.update(LIST))
        server.shutdown()
        thread.join()

    assert too_short == "The server was not ready within 0 s: not served: a."
    assert problem is None
