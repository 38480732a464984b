"""The program as an operator starts and stops it."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import onnxruntime
import pytest

from service.process.watchdog import EXIT_BROKEN
from tests.model_folders import CREDIT, credit_graph, publish
from tests.service.breakable import HANGS, LOSES
from tests.tiny.models import tiny

ROOT = Path(__file__).parents[2]
ROW = {"rows": [{"income": 50, "debt": 5, "job": "baker"}]}
BREAKABLE = "tests.service.breakable"
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 -- looked at, not written to


@contextmanager
def program(models: Path, *flags: str, module: str = "service") -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """The started program, its address, and what it printed when it was ready."""
    command = [sys.executable, "-m", module, "--models", str(models), "--port", "0", *flags]
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


def ask(address: str, income: float) -> httpx.Response:
    row = {"income": income, "debt": 5, "job": "baker"}
    return httpx.post(f"{address}/v1/models/credit/predict", json={"rows": [row]}, timeout=60)


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
        assert ready.json()["reason"] == "The server is shutting down."
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


def test_while_it_drains_clients_are_asked_to_connect_anew(tiny_models: Path) -> None:
    with program(tiny_models, "--drain-seconds", "1.5") as (process, address, _), httpx.Client() as client:
        before = client.get(f"{address}/health/ready")
        process.send_signal(signal.SIGTERM)
        while (after := client.get(f"{address}/health/ready")).status_code == 200:
            pass
        answer = httpx.post(f"{address}/v1/models/credit/predict", json=ROW)

        assert "connection" not in before.headers
        assert after.headers["connection"] == "close"
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        assert process.wait(30) == 0


def test_a_lost_device_is_told_what_is_under_way_is_answered_and_the_program_ends_to_be_started_anew(
    tiny_models: Path,
) -> None:
    body = json.dumps(ROW).encode()
    with program(tiny_models, module=BREAKABLE) as (process, address, _):
        with half_a_request(address, body[:10]) as connection:
            lost = ask(address, LOSES)
            live = httpx.get(f"{address}/health/live")
            connection.sendall(body[10:])
            answer = connection.makefile("rb").read()

        assert (lost.status_code, lost.json()["error"]["code"]) == (503, "device_lost")
        assert live.status_code == 503
        assert "illegal memory access" in live.json()["failures"]["process"]
        assert live.headers["connection"] == "close"
        assert answer.startswith(b"HTTP/1.1 200")
        assert process.wait(30) == EXIT_BROKEN


def test_a_lost_device_ends_the_program_also_where_a_thread_never_returns(tiny_models: Path) -> None:
    flags = ("--batches-at-once", "2", "--hang-seconds", "0")
    with program(tiny_models, *flags, module=BREAKABLE) as (process, address, _), ThreadPoolExecutor(1) as client:
        hung = client.submit(ask, address, HANGS)
        while 'sevenfold_requests_in_flight{model="credit"} 1.0' not in httpx.get(f"{address}/metrics").text:
            pass
        ask(address, LOSES)

        assert hung.result().json()["error"]["code"] == "stopped"
        assert process.wait(30) == EXIT_BROKEN


@pytest.mark.parametrize(
    ("flags", "code"),
    [(("--hang-seconds", "0.5"), "device_hung"), (("--hang-seconds", "0", "--grace-seconds", "1"), "stopped")],
)
def test_a_thread_that_never_returns_keeps_the_program_from_nothing(
    tiny_models: Path, flags: tuple[str, ...], code: str
) -> None:
    with program(tiny_models, *flags, module=BREAKABLE) as (process, address, _), ThreadPoolExecutor(1) as client:
        hung = client.submit(ask, address, HANGS)
        if code == "device_hung":
            while (live := httpx.get(f"{address}/health/live")).status_code == 200:
                pass
            assert list(live.json()["failures"]) == ["fake"]
        else:
            while 'sevenfold_requests_in_flight{model="credit"} 1.0' not in httpx.get(f"{address}/metrics").text:
                pass
        process.send_signal(signal.SIGTERM)

        assert (hung.result().status_code, hung.result().json()["error"]["code"]) == (503, code)
        assert process.wait(30) == 0


def test_a_model_that_never_ends_loading_keeps_the_program_from_nothing(tmp_path: Path) -> None:
    row = {"income": HANGS, "debt": 5, "job": "baker"}
    publish(tmp_path, "credit", CREDIT, credit_graph(), request={"rows": [row]})
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    command = [sys.executable, "-m", BREAKABLE, "--models", str(tmp_path), "--port", str(port)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            while "Application startup complete" not in process.stderr.readline():
                pass
            ready = httpx.get(f"http://127.0.0.1:{port}/health/ready")
            process.send_signal(signal.SIGTERM)

            assert ready.json()["reason"] == "Models are still loading."
            assert process.wait(30) == 0
        finally:
            process.kill()


def test_an_event_loop_that_turns_no_more_is_told_with_all_stacks_and_ends_the_program(tiny_models: Path) -> None:
    with program(tiny_models, "--hang-seconds", "0.5", module=BREAKABLE) as (process, address, _):
        httpx.post(f"{address}/break/loop")
        _, logged = process.communicate(timeout=60)

    (line,) = [line for line in map(json.loads, logged.splitlines()) if "stacks" in line]
    assert process.returncode == EXIT_BROKEN
    assert (line["level"], line["message"]) == ("critical", "the event loop has not turned for 0.5 s")
    (main,) = [stack for name, stack in line["stacks"].items() if name.startswith("MainThread")]
    assert any("__main__.py" in entry for entry in main)


def test_a_program_that_was_stopped_for_a_while_goes_on(tiny_models: Path) -> None:
    with program(tiny_models, "--hang-seconds", "0.5") as (process, address, _):
        process.send_signal(signal.SIGSTOP)
        time.sleep(2)  # What would be a hang of four times the limit.
        process.send_signal(signal.SIGCONT)
        answers = [ask(address, 50.0).status_code for _ in range(20)]
        process.send_signal(signal.SIGTERM)

        assert answers == [200] * 20
        assert process.wait(30) == 0


def children_of(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # It has ended meanwhile.
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc here")
def test_a_kill_in_the_middle_leaves_nothing_behind(
    tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)  # The program has to see to it.
    before = list(SHARED_MEMORY.glob("*"))
    with program(tiny_models) as (process, address, _):
        with half_a_request(address, json.dumps(ROW).encode()[:10]):
            children = children_of(process.pid)
            process.kill()
            assert process.wait(30) == -signal.SIGKILL
        with socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))):
            pass

    assert children == []
    assert list(tmp_path.iterdir()) == []
    assert set(SHARED_MEMORY.glob("*")) <= set(before)


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
        (["--host", "192.0.2.1"], "Cannot listen on 192.0.2.1:8000"),
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
