"""The program: starting, signals, shutdown, fatal failures, and invalid settings."""

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

from loadtests.server import free_port
from service.process.watchdog import EXIT_BROKEN
from tests.model_folders import publish
from tests.service.faulty_server import HANGS, LOSES
from tests.service.program import ROOT, program, read_until, started
from tests.tiny.models import tiny
from tests.tiny.tabular import CREDIT, credit_graph
from tests.waiting import wait_until

ROW = {"rows": [{"income": 50, "debt": 5, "job": "baker"}]}
BODY = json.dumps(ROW).encode()
FAULTY_SERVER = "tests.service.faulty_server"
EXIT_TIMEOUT_S = 60


def ask(address: str, income: float) -> httpx.Response:
    row = {"income": income, "debt": 5, "job": "baker"}
    return httpx.post(f"{address}/v1/models/credit/predict", json={"rows": [row]}, timeout=60)


def status_of(address: str, path: str) -> int:
    return httpx.get(f"{address}{path}", timeout=60).status_code


def wait_for_metric(address: str, line: str) -> None:
    wait_until(lambda: line in httpx.get(f"{address}/metrics", timeout=60).text)


@contextmanager
def partial_request(address: str, metrics_at: str = "") -> Iterator[socket.socket]:
    """A connection whose request the server has accepted, and of whose body it has received the first 10 bytes."""
    port = int(address.rpartition(":")[2])
    head = (
        "POST /v1/models/credit/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(BODY)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head.encode() + BODY[:10])
        wait_for_metric(metrics_at or address, "sevenfold_body_bytes 10.0")
        yield connection


def complete(connection: socket.socket) -> bytes:
    """Send the rest of a partial request and return the response."""
    connection.sendall(BODY[10:])
    return connection.makefile("rb").read()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_printed_example_commands_work(tiny_models: Path) -> None:
    with program(tiny_models) as (_, _, greeting):
        (line,) = re.findall(r"^  (curl .*/credit/predict)$", greeting, re.MULTILINE)
        answer = subprocess.run(line + " --silent", shell=True, capture_output=True, check=True, text=True)

    assert json.loads(answer.stdout)["predictions"][0]["label"] == "yes"


def test_the_first_line_counts_and_a_model_that_is_not_served_is_listed_with_the_reason(tiny_models: Path) -> None:
    with program(tiny_models, "--pin", "colours=9") as (process, _, greeting):
        assert process.stdout is not None
        reason = process.stdout.readline()

    assert greeting.startswith("Sevenfold serves 1 model at")
    assert reason == "  # colours is not served: the setting --pin selects version 9, which is not there.\n"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_printed_command_for_a_text_model_without_an_example_file_works(tmp_path: Path) -> None:
    publish(tmp_path, "films", *tiny("sentiment"))

    with program(tmp_path) as (_, _, greeting):
        (line,) = re.findall(r"^  (curl .*/films/predict)$", greeting, re.MULTILINE)
        answer = subprocess.run(line + " --silent", shell=True, capture_output=True, check=True, text=True)

    assert json.loads(answer.stdout)["label"] == "positive"


def test_accepted_requests_are_answered_after_sigterm_and_the_exit_is_clean(tiny_models: Path) -> None:
    with program(tiny_models) as (process, address, _):
        with partial_request(address) as connection:
            process.send_signal(signal.SIGTERM)
            read_until(process.stderr, "Shutting down")
            response = complete(connection)

        assert response.startswith(b"HTTP/1.1 200")
        assert process.wait(EXIT_TIMEOUT_S) == 0


def test_while_draining_readiness_fails_and_requests_are_still_answered(tiny_models: Path) -> None:
    with program(tiny_models, "--drain-seconds", "1000") as (process, address, _):
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: status_of(address, "/health/ready") == 503)
        ready = httpx.get(f"{address}/health/ready")
        live = httpx.get(f"{address}/health/live")
        answer = httpx.post(f"{address}/v1/models/credit/predict", json=ROW)
        process.send_signal(signal.SIGTERM)

        assert answer.status_code == 200
        assert ready.json()["reason"] == "The server is shutting down."
        assert live.status_code == 200
        assert process.wait(EXIT_TIMEOUT_S) == 0


def test_while_draining_connections_are_closed_after_each_response(tiny_models: Path) -> None:
    with program(tiny_models, "--drain-seconds", "1000") as (process, address, _), httpx.Client() as client:
        before = client.get(f"{address}/health/ready")
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: client.get(f"{address}/health/ready").status_code == 503)
        after = client.get(f"{address}/health/ready")
        answer = httpx.post(f"{address}/v1/models/credit/predict", json=ROW)
        process.send_signal(signal.SIGTERM)

        assert "connection" not in before.headers
        assert after.headers["connection"] == "close"
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        assert process.wait(EXIT_TIMEOUT_S) == 0


def test_the_program_exits_by_itself_after_draining(tiny_models: Path) -> None:
    with program(tiny_models, "--drain-seconds", "0.5") as (process, _, _):
        process.send_signal(signal.SIGTERM)

        assert "draining" in read_until(process.stderr, "draining")
        assert process.wait(EXIT_TIMEOUT_S) == 0


@pytest.mark.parametrize("signals", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGINT)])
def test_a_second_signal_stops_the_program_immediately(tiny_models: Path, signals: tuple[signal.Signals, ...]) -> None:
    with program(tiny_models, "--grace-seconds", "1000") as (process, address, _), partial_request(address):
        process.send_signal(signals[0])
        read_until(process.stderr, "Shutting down")
        process.send_signal(signals[1])

        assert process.wait(EXIT_TIMEOUT_S) == 0


def test_requests_still_in_progress_after_the_grace_period_get_an_error(tiny_models: Path) -> None:
    with program(tiny_models, "--grace-seconds", "1") as (process, address, _):
        with partial_request(address) as connection:
            process.send_signal(signal.SIGTERM)
            response = connection.makefile("rb").read()

        assert response.startswith(b"HTTP/1.1 503")
        assert b'"code": "stopped"' in response
        assert process.wait(EXIT_TIMEOUT_S) == 0


def test_a_lost_device_fails_liveness_and_the_program_exits_after_answering(tiny_models: Path) -> None:
    def first_failure(address: str) -> httpx.Response:
        while (live := httpx.get(f"{address}/health/live", timeout=60)).status_code == 200:
            pass
        return live

    with program(tiny_models, module=FAULTY_SERVER) as (process, address, _), ThreadPoolExecutor(1) as thread:
        with partial_request(address) as connection:
            watching = thread.submit(first_failure, address)
            lost = ask(address, LOSES)
            response = complete(connection)
        live = watching.result()

        assert (lost.status_code, lost.json()["error"]["code"]) == (503, "device_lost")
        assert live.status_code == 503
        assert "illegal memory access" in live.json()["failures"]["process"]
        assert live.headers["connection"] == "close"
        assert response.startswith(b"HTTP/1.1 200")
        assert process.wait(EXIT_TIMEOUT_S) == EXIT_BROKEN


def test_a_lost_device_ends_the_program_even_if_a_thread_hangs(tiny_models: Path) -> None:
    flags = ("--batches-at-once", "2", "--hang-seconds", "0")
    with program(tiny_models, *flags, module=FAULTY_SERVER) as (process, address, _), ThreadPoolExecutor(1) as thread:
        hung = thread.submit(ask, address, HANGS)
        wait_for_metric(address, 'sevenfold_requests_in_flight{model="credit",version="1"} 1.0')
        ask(address, LOSES)

        assert hung.result().json()["error"]["code"] == "stopped"
        assert process.wait(EXIT_TIMEOUT_S) == EXIT_BROKEN


@pytest.mark.parametrize(
    ("flags", "code"),
    [(("--hang-seconds", "1"), "device_hung"), (("--hang-seconds", "0", "--grace-seconds", "1"), "stopped")],
)
def test_a_hanging_thread_does_not_keep_the_program_from_stopping(
    tiny_models: Path, flags: tuple[str, ...], code: str
) -> None:
    with program(tiny_models, *flags, module=FAULTY_SERVER) as (process, address, _), ThreadPoolExecutor(1) as thread:
        hung = thread.submit(ask, address, HANGS)
        if code == "device_hung":
            wait_until(lambda: status_of(address, "/health/live") == 503)
            live = httpx.get(f"{address}/health/live")
            assert list(live.json()["failures"]) == ["fake"]
        else:
            wait_for_metric(address, 'sevenfold_requests_in_flight{model="credit",version="1"} 1.0')
        process.send_signal(signal.SIGTERM)

        assert (hung.result().status_code, hung.result().json()["error"]["code"]) == (503, code)
        assert process.wait(EXIT_TIMEOUT_S) == 0


def test_a_model_that_hangs_while_loading_does_not_keep_the_program_from_stopping(tmp_path: Path) -> None:
    port = free_port()
    row = {"income": HANGS, "debt": 5, "job": "baker"}
    publish(tmp_path, "credit", CREDIT, credit_graph(), request={"rows": [row]})
    with started(tmp_path, "--port", str(port), module=FAULTY_SERVER) as process:
        read_until(process.stderr, "Application startup complete")
        ready = httpx.get(f"http://127.0.0.1:{port}/health/ready")
        started_up = httpx.get(f"http://127.0.0.1:{port}/health/started")
        process.send_signal(signal.SIGTERM)

        assert (started_up.status_code, started_up.json()) == (503, {"started": False})
        assert ready.json()["reason"] == "Models are still loading."
        assert process.wait(EXIT_TIMEOUT_S) == 0


def test_a_blocked_event_loop_is_logged_with_all_stacks_and_ends_the_program(tiny_models: Path) -> None:
    with program(tiny_models, "--hang-seconds", "1", module=FAULTY_SERVER) as (process, address, _):
        httpx.post(f"{address}/fault/loop")
        _, logged = process.communicate(timeout=EXIT_TIMEOUT_S)

    (line,) = [line for line in map(json.loads, logged.splitlines()) if "stacks" in line]
    assert process.returncode == EXIT_BROKEN
    assert (line["level"], line["message"]) == ("critical", "the event loop has been blocked for 1 s")
    (main,) = [stack for name, stack in line["stacks"].items() if name.startswith("MainThread")]
    assert any("__main__.py" in entry for entry in main)


def test_a_program_that_was_suspended_continues(tiny_models: Path) -> None:
    with program(tiny_models, "--hang-seconds", "1") as (process, address, _):
        process.send_signal(signal.SIGSTOP)
        time.sleep(3)  # That this time does not count is what the test is about: it is three times the limit.
        process.send_signal(signal.SIGCONT)
        answers = [ask(address, 50.0).status_code for _ in range(20)]
        process.send_signal(signal.SIGTERM)

        assert answers == [200] * 20
        assert process.wait(EXIT_TIMEOUT_S) == 0


def children_of(pid: int) -> list[int]:
    children = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # The process has ended in the meantime.
            continue
        if int(fields[1]) == pid:
            children.append(int(stat.parent.name))
    return children


def shared_memory_of(pid: int) -> list[str]:
    """Files in shared memory that a process has mapped; they would outlive it."""
    return re.findall(r"/dev/shm/\S+", Path(f"/proc/{pid}/maps").read_text())  # noqa: S108 -- not written to


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")
def test_a_killed_program_leaves_nothing_behind(
    tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)  # The program must set it itself.
    with program(tiny_models) as (process, address, _):
        with partial_request(address):
            children, shared_memory = children_of(process.pid), shared_memory_of(process.pid)
            process.kill()
            assert process.wait(EXIT_TIMEOUT_S) == -signal.SIGKILL
        with socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))):
            pass

    wait_until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))
    assert shared_memory == []
    assert list(tmp_path.iterdir()) == []


def test_each_request_is_logged_as_a_line_of_json_with_its_id(tiny_models: Path) -> None:
    with program(tiny_models) as (process, address, _):
        httpx.post(f"{address}/v1/models/credit/predict", json=ROW, headers={"x-request-id": "abc"})
        process.send_signal(signal.SIGTERM)
        _, logged = process.communicate(timeout=EXIT_TIMEOUT_S)

    lines = [json.loads(line) for line in logged.splitlines()]
    (line,) = [line for line in lines if line["logger"] == "service.request"]
    assert (line["request_id"], line["status"], line["model"]) == ("abc", 200, "credit")


def test_a_kubernetes_service_of_the_same_name_is_named_in_a_warning_with_its_cure(
    tiny_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEVENFOLD_PORT", "tcp://10.0.0.7:8000")
    monkeypatch.setenv("SEVENFOLD_SERVICE_HOST", "10.0.0.7")

    with program(tiny_models) as (process, _, _):
        line = json.loads(read_until(process.stderr, "enableServiceLinks"))

    assert line["level"] == "warning"
    assert sorted(line["variables"]) == ["SEVENFOLD_PORT", "SEVENFOLD_SERVICE_HOST"]


# Standard streams that are closed, or that nobody reads


def is_live(address: str) -> bool:
    try:
        return status_of(address, "/health/ready") == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("redirection", ["<&- >&- 2>&-", ">/dev/full 2>/dev/full", "> >(exec true) 2> >(exec true)"])
def test_the_program_serves_although_its_output_is_closed_full_or_not_read(tiny_models: Path, redirection: str) -> None:
    port = free_port()
    command = f"exec {sys.executable} -m service --models {tiny_models} --port {port} {redirection}"
    process = subprocess.Popen(["bash", "-c", command], cwd=ROOT)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: is_live(address))
        answers = [ask(address, 50.0).status_code for _ in range(20)]
        process.send_signal(signal.SIGTERM)

        assert answers == [200] * 20
        assert process.wait(EXIT_TIMEOUT_S) == 0
    finally:
        process.kill()


def test_a_log_that_nobody_reads_neither_blocks_requests_nor_the_exit(tiny_models: Path) -> None:
    with program(tiny_models, "--max-rows", "10") as (process, address, _), httpx.Client() as client:
        long_path = f"{address}/" + 180 * "x"
        statuses = {client.get(long_path, headers={"x-request-id": 120 * "y"}).status_code for _ in range(400)}
        process.send_signal(signal.SIGTERM)

        assert statuses == {404}
        assert process.wait(EXIT_TIMEOUT_S) == 0  # The pipe holds 64 kB; the lines are twice as many.


@pytest.mark.parametrize(("flags", "status"), [(["--help"], 0), (["--no-such-flag"], 2)])
def test_text_that_nobody_reads_does_not_change_the_exit_status(flags: list[str], status: int) -> None:
    command = f"{sys.executable} -m service {' '.join(flags)} >/dev/full 2>/dev/full"

    assert subprocess.run(command, cwd=ROOT, shell=True, check=False, timeout=EXIT_TIMEOUT_S).returncode == status


def run_to_its_end(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=EXIT_TIMEOUT_S, check=False)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--models", "nowhere"], "The folder of models does not exist: nowhere."),
        (["--models", "README.md"], "The folder of models is not a folder: README.md."),
        (["--max-bach", "3"], "Did you mean --max-batch?"),
        (["--host", "192.0.2.1"], "Cannot listen on 192.0.2.1:0"),
        pytest.param(
            ["--device", "cuda"],
            "CUDA was requested",
            marks=pytest.mark.skipif(
                "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="CUDA is available"
            ),
        ),
    ],
)
def test_unusable_settings_are_an_error_at_startup(flags: list[str], message: str) -> None:
    ended = run_to_its_end("--port", "0", *flags)

    assert ended.returncode == 2
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_port_in_use_is_an_error_at_startup() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        ended = run_to_its_end("--port", str(port))

    assert ended.returncode == 2
    assert f"Cannot listen on 127.0.0.1:{port}: Address already in use" in ended.stderr
