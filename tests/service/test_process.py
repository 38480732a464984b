"""The program as an operator starts and stops it."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import onnxruntime
import pytest

from tests.model_folders import publish
from tests.tiny_models import tiny

ROOT = Path(__file__).parents[2]
ROW = {"rows": [{"income": 50, "debt": 5, "job": "baker"}]}


@contextmanager
def program(models: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """The started program, its address, and what it printed when it was ready."""
    command = [sys.executable, "-m", "service", "--models", str(models), "--port", "0", *flags]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            first = process.stdout.readline()
            greeting = re.match(r"Sevenfold serves (\d+) models at (http://[0-9.:]+)", first)
            assert greeting, (first, process.poll())
            count, address = int(greeting[1]), greeting[2]
            printed = first + "".join(process.stdout.readline() for _ in range(1 + 3 * count))
            yield process, address, printed
        finally:
            process.kill()


@contextmanager
def half_a_request(address: str, begun: bytes) -> Iterator[socket.socket]:
    """A connection whose request the server has accepted, and of whose body only the beginning has come."""
    port, size = int(address.rpartition(":")[2]), len(json.dumps(ROW).encode())
    head = (
        "POST /v1/models/credit/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {size}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head.encode() + begun)
        while f"sevenfold_body_bytes {len(begun)}.0" not in httpx.get(f"{address}/metrics").text:
            pass
        yield connection


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_it_prints_lines_to_try_that_work(tiny_models: Path) -> None:
    with program(tiny_models) as (_, _, printed):
        (line,) = re.findall(r"^  (curl .*/credit/predict)$", printed, re.MULTILINE)
        answer = subprocess.run(line + " --silent", shell=True, capture_output=True, check=True, text=True)

    assert json.loads(answer.stdout)["predictions"][0]["label"] == "yes"


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_a_model_of_texts_without_a_file_to_send_is_asked_by_a_line_that_works(tmp_path: Path) -> None:
    publish(tmp_path, "films", *tiny("sentiment"))

    with program(tmp_path) as (_, _, printed):
        (line,) = re.findall(r"^  (curl .*/films/predict)$", printed, re.MULTILINE)
        answer = subprocess.run(line + " --silent", shell=True, capture_output=True, check=True, text=True)

    assert json.loads(answer.stdout)["label"] == "positive"


def test_what_is_accepted_is_answered_after_sigterm_and_the_exit_is_clean(tiny_models: Path) -> None:
    body = json.dumps(ROW).encode()
    with program(tiny_models) as (process, address, _):
        with half_a_request(address, body[:10]) as connection:
            process.send_signal(signal.SIGTERM)
            assert process.stderr is not None
            while "Shutting down" not in process.stderr.readline():
                pass
            connection.sendall(body[10:])
            answer = connection.makefile("rb").read()

        assert answer.startswith(b"HTTP/1.1 200")
        assert process.wait(30) == 0


def test_readiness_falls_before_the_door_closes(tiny_models: Path) -> None:
    with program(tiny_models, "--drain-seconds", "1.5") as (process, address, _):
        process.send_signal(signal.SIGTERM)
        while (ready := httpx.get(f"{address}/health/ready")).status_code == 200:
            pass
        live = httpx.get(f"{address}/health/live")
        answer = httpx.post(f"{address}/v1/models/credit/predict", json=ROW)

        assert answer.status_code == 200
        assert ready.json()["reason"] == "The server is stopping."
        assert live.status_code == 200
        assert process.wait(30) == 0


@pytest.mark.parametrize("signals", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGINT)])
def test_a_second_signal_ends_it_at_once(tiny_models: Path, signals: tuple[signal.Signals, ...]) -> None:
    begun = json.dumps(ROW).encode()[:10]
    with program(tiny_models, "--grace-seconds", "100") as (process, address, _), half_a_request(address, begun):
        process.send_signal(signals[0])
        assert process.stderr is not None
        while "Shutting down" not in process.stderr.readline():
            pass
        process.send_signal(signals[1])

        assert process.wait(30) == 0


def test_at_the_end_of_the_grace_time_what_is_under_way_is_told_so(tiny_models: Path) -> None:
    with program(tiny_models, "--grace-seconds", "1") as (process, address, _):
        with half_a_request(address, json.dumps(ROW).encode()[:10]) as connection:
            process.send_signal(signal.SIGTERM)
            answer = connection.makefile("rb").read()

        assert answer.startswith(b"HTTP/1.1 503")
        assert b'"code": "stopped"' in answer
        assert process.wait(30) == 0


def test_each_request_is_a_line_of_json_with_its_id(tiny_models: Path) -> None:
    with program(tiny_models) as (process, address, _):
        httpx.post(f"{address}/v1/models/credit/predict", json=ROW, headers={"x-request-id": "abc"})
        process.send_signal(signal.SIGTERM)
        _, logged = process.communicate(timeout=30)

    lines = [json.loads(line) for line in logged.splitlines()]
    (line,) = [line for line in lines if line["logger"] == "service.request"]
    assert (line["request_id"], line["status"], line["model"]) == ("abc", 200, "credit")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--models", "nowhere"], "There is no folder of models at nowhere."),
        (["--max-bach", "3"], "Did you mean --max-batch?"),
        (["--host", "192.0.2.1"], "192.0.2.1:8000 cannot be listened on"),
        pytest.param(
            ["--device", "cuda"],
            "CUDA was asked for",
            marks=pytest.mark.skipif(
                "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="CUDA can be had here"
            ),
        ),
    ],
)
def test_what_cannot_be_had_is_an_error_at_start(flags: list[str], message: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "service", *flags], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )

    assert ended.returncode == 2
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
