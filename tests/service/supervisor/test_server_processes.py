"""`--processes 2`: two real server processes on one port are one server to clients, operators and Prometheus."""

import json
import math
import os
import re
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from http.client import HTTPException, HTTPResponse
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from loadtests.server import free_port
from service.http.api_keys import new_key
from tests.model_folders import publish, with_other_checksum
from tests.service.certificates import Authority
from tests.service.program import program, read_until
from tests.service.test_main import BODY, EXIT_TIMEOUT_S, ROW, children_of, run_to_its_end
from tests.tiny.tabular import CREDIT, credit_graph
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")]
PREDICT = "/v1/models/credit/predict"
TWO = ("--processes", "2", "--device", "cpu")
MANY = 24
"""New connections that are made where both processes are to get one: the chance that they do not is 1 in 8 million."""


def ask(address: str, path: str = PREDICT) -> httpx.Response:
    """Send a prediction request on a connection of its own, which the kernel gives to either process."""
    return httpx.post(f"{address}{path}", json=ROW, timeout=60)


def counts(address: str) -> dict[str, float]:
    """Return the counters and the counts of histograms, by series."""
    families = text_string_to_metric_families(httpx.get(f"{address}/metrics", timeout=60).text)
    return {
        f"{sample.name} {sorted(sample.labels.items())}": sample.value
        for family in families
        if family.type in ("counter", "histogram")
        for sample in family.samples
    }


def value(address: str, name: str, **labels: str) -> float:
    text = httpx.get(f"{address}/metrics", timeout=60).text
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    found = [s.value for s in samples if s.name == name and s.labels == labels]
    assert len(found) <= 1
    return found[0] if found else math.nan


def server_processes(pid: int) -> list[int]:
    """Return the processes that were forked from the supervisor, in contrast to the program that it has started."""
    program = Path(f"/proc/{pid}/cmdline").read_bytes()
    return [child for child in children_of(pid) if Path(f"/proc/{child}/cmdline").read_bytes() == program]


@contextmanager
def connections(address: str, count: int = MANY) -> Iterator[list[socket.socket]]:
    port = int(address.rpartition(":")[2])
    with ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(("127.0.0.1", port), 60)) for _ in range(count)]


def request_bytes(body: bytes = BODY) -> bytes:
    head = (
        f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
    )
    return head.encode() + body


def status_on(connection: socket.socket) -> int | None:
    """Send a request on a connection; return the status of the answer, or None if the connection is lost."""
    try:
        connection.sendall(request_bytes())
        response = HTTPResponse(connection)
        response.begin()
        response.read()
    except (OSError, HTTPException):
        return None
    return response.status


@pytest.fixture(scope="module")
def server(tiny_models: Path) -> Iterator[str]:
    """The address of a server whose processes are not killed."""
    with program(tiny_models, *TWO) as (_, address, _):
        yield address


def test_one_scrape_counts_the_requests_of_both_processes_exactly(server: str) -> None:
    before = counts(server)
    for _ in range(MANY):
        assert ask(server).status_code == 200
    for _ in range(3):
        assert httpx.post(f"{server}{PREDICT}", json={"rows": []}).status_code == 422
    after = counts(server)

    labels = [("model", "credit"), ("status", "200"), ("version", "1")]
    rejected = [("model", "credit"), ("reason", "invalid_request")]
    expected = {
        f"sevenfold_requests_total {labels}": MANY,
        f"sevenfold_rejected_total {rejected}": 3,
        f"sevenfold_request_duration_seconds_count {[('model', 'credit')]}": MANY + 3,
        f"sevenfold_stage_duration_seconds_count {[('model', 'credit'), ('stage', 'infer')]}": MANY,
    }
    assert {series: after[series] - before.get(series, 0) for series in expected} == expected
    assert value(server, "sevenfold_processes") == 2


def test_both_processes_answer_with_request_ids_of_their_own(server: str) -> None:
    ids = [ask(server).headers["x-request-id"] for _ in range(MANY)]

    assert len(set(ids)) == MANY


def test_health_and_load_are_those_of_both_processes(server: str) -> None:
    health = {path: httpx.get(f"{server}/health/{path}").json() for path in ("live", "started", "ready", "load")}

    assert health["live"] == {"live": True, "failures": {}}
    assert health["started"] == {"started": True}
    assert health["ready"] == {"ready": True, "reason": None, "models": {"colours": True, "credit": True}}
    assert health["load"]["requests_limit"] == 2 * 2 * 256  # Processes, models, and the default of --max-queue.


def test_load_counts_requests_in_flight_in_either_process(server: str) -> None:
    with connections(server) as clients:
        for client in clients:
            client.sendall(request_bytes(BODY[:10]))
        wait_until(lambda: value(server, "sevenfold_body_bytes") == 10 * MANY)
        for client in clients:
            client.sendall(BODY[10:])
            assert client.recv(65_536).startswith(b"HTTP/1.1 200")


def test_a_killed_process_loses_only_its_own_connections_and_is_replaced(tiny_models: Path) -> None:
    with program(tiny_models, *TWO) as (process, address, _), connections(address) as clients:
        assert [status_on(client) for client in clients] == [200] * MANY
        before = counts(address)
        victim, other = server_processes(process.pid)
        os.kill(victim, signal.SIGKILL)
        answered = [status_on(client) for client in clients]
        meanwhile = [ask(address).status_code for _ in range(MANY)]
        wait_until(lambda: value(address, "sevenfold_processes") == 2)
        line = json.loads(read_until(process.stderr, "another one is started"))
        after = counts(address)

        lost = answered.count(None)
        assert 0 < lost < MANY
        assert answered.count(200) == MANY - lost
        assert meanwhile == [200] * MANY
        assert (line["pid"], line["ended_with"]) == (victim, "signal 9")
        assert {series for series in before if after[series] < before[series]} == set()
        assert value(address, "sevenfold_process_restarts_total") == 1
        assert other in server_processes(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(EXIT_TIMEOUT_S) == 0


def test_after_sigterm_both_processes_answer_what_they_have_accepted(tiny_models: Path) -> None:
    admin = f"http://127.0.0.1:{free_port()}"
    flags = ("--admin-port", admin.rpartition(":")[2])
    with program(tiny_models, *TWO, *flags) as (process, address, _), connections(address) as clients:
        for client in clients:
            client.sendall(request_bytes(BODY[:10]))
        wait_until(lambda: value(admin, "sevenfold_body_bytes") == 10 * MANY)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: httpx.get(f"{admin}/health/ready", timeout=60).status_code == 503)
        live = httpx.get(f"{admin}/health/live", timeout=60)
        for client in clients:
            client.sendall(BODY[10:])
        answers = [client.makefile("rb").read() for client in clients]

        assert live.status_code == 200
        assert [answer[:12] for answer in answers] == [b"HTTP/1.1 200"] * MANY
        assert process.wait(EXIT_TIMEOUT_S) == 0


def test_while_draining_readiness_fails_on_every_connection_and_requests_are_answered(tiny_models: Path) -> None:
    with program(tiny_models, *TWO, "--drain-seconds", "1000") as (process, address, _):
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: httpx.get(f"{address}/health/ready", timeout=60).status_code == 503)
        ready = {httpx.get(f"{address}/health/ready", timeout=60).status_code for _ in range(MANY)}
        answers = {ask(address).status_code for _ in range(MANY)}
        process.send_signal(signal.SIGTERM)

        assert (ready, answers) == ({503}, {200})
        assert process.wait(EXIT_TIMEOUT_S) == 0


def test_processes_end_when_their_supervisor_is_killed(tiny_models: Path) -> None:
    with program(tiny_models, *TWO) as (process, address, _):
        children = children_of(process.pid)
        process.kill()
        process.wait(EXIT_TIMEOUT_S)

        assert len(children) == 3  # Two servers, and what forks the processes that decode for both.
        wait_until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))
        with socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))):
            pass


def test_a_port_in_use_is_one_error_even_if_the_other_server_would_share_it(tiny_models: Path) -> None:
    with program(tiny_models, *TWO) as (_, address, _):
        port = address.rpartition(":")[2]
        ended = run_to_its_end("--models", str(tiny_models), "--port", port, *TWO)

    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: Cannot listen on 127.0.0.1:{port}: Address already in use")
    assert ended.stderr.count("\n") == 1


def test_an_invalid_setting_is_told_once(tiny_models: Path, tmp_path: Path) -> None:
    keys = tmp_path / "missing"
    ended = run_to_its_end("--models", str(tiny_models), "--port", "0", "--api-keys-file", str(keys), *TWO)

    assert ended.returncode == 2
    assert ended.stderr.count("error:") == 1


# What operators change


def versions_that_answer(address: str) -> set[str]:
    return {ask(address).headers["x-model"] for _ in range(MANY)}


def test_a_change_by_an_operator_reaches_both_processes_and_one_that_is_started_later(tmp_path: Path) -> None:
    for version in (1, 2):
        publish(tmp_path, "credit", CREDIT, credit_graph(), version=version)
    with program(tmp_path, *TWO, "--admin") as (process, address, _):
        before = versions_that_answer(address)
        change = httpx.post(f"{address}/v1/models/credit/versions/1/promote", timeout=60)
        after = versions_that_answer(address)
        os.kill(server_processes(process.pid)[0], signal.SIGKILL)
        read_until(process.stderr, "another one is started")
        wait_until(lambda: value(address, "sevenfold_processes") == 2)  # From when both accept connections.
        later = versions_that_answer(address)
        unknown = httpx.post(f"{address}/v1/models/credit/versions/9/promote", timeout=60)

        assert (before, after, later) == ({"credit/2"}, {"credit/1"}, {"credit/1"})
        assert change.json()["default"] == "1"
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")


def test_a_version_that_cannot_be_loaded_leaves_both_processes_as_they_were(tmp_path: Path) -> None:
    for version in (1, 2):
        publish(tmp_path, "credit", CREDIT, credit_graph(), version=version)
    with program(tmp_path, *TWO, "--admin", "--rescan-seconds", "0") as (_, address, _):
        (tmp_path / "credit/1/model.onnx").write_bytes(b"broken")
        refused = httpx.post(f"{address}/v1/models/credit/versions/1/promote", timeout=60)

        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "model_rejected")
        assert versions_that_answer(address) == {"credit/2"}


def test_the_decision_about_a_shadow_version_is_that_of_both_processes(tmp_path: Path) -> None:
    publish(tmp_path, "credit", CREDIT, credit_graph())
    flags = ("--shadow", "all=1", "--shadow-requests", "5", "--shadow-slowdown", "1000", "--rescan-seconds", "0.2")
    with program(tmp_path, *TWO, *flags) as (_, address, _):
        publish(tmp_path, "credit", replace(CREDIT), with_other_checksum(credit_graph()), version=2)
        report = f"{address}/v1/models/credit/versions/2/shadow"

        def is_decided() -> bool:
            ask(address)
            return httpx.get(report, timeout=60).json().get("verdict") == "promoted"

        wait_until(is_decided)

        assert versions_that_answer(address) == {"credit/2"}
        assert {httpx.get(report, timeout=60).json()["verdict"] for _ in range(MANY)} == {"promoted"}
        labels = {"model": "credit", "version": "2", "decision": "promoted"}
        assert value(address, "sevenfold_shadow_decisions_total", **labels) == 1


def test_a_replacement_does_not_serve_what_was_rolled_back_before_it_was_there(tmp_path: Path) -> None:
    publish(tmp_path, "credit", CREDIT, credit_graph())
    flags = ("--shadow", "all=1", "--shadow-requests", "5", "--shadow-slowdown", "0.01", "--rescan-seconds", "0.2")
    with program(tmp_path, *TWO, *flags) as (process, address, _):
        graph = credit_graph()
        for version in (2, 3):
            graph = with_other_checksum(graph)
            publish(tmp_path, "credit", CREDIT, graph, version=version)

            def is_rolled_back(report: str = f"{address}/v1/models/credit/versions/{version}/shadow") -> bool:
                ask(address)
                return httpx.get(report, timeout=60).json().get("verdict") == "rolled_back"

            wait_until(is_rolled_back, timeout_s=60)
        before = versions_that_answer(address)
        os.kill(server_processes(process.pid)[0], signal.SIGKILL)
        read_until(process.stderr, "another one is started")
        wait_until(lambda: value(address, "sevenfold_processes") == 2)

        assert before == versions_that_answer(address) == {"credit/1"}


def test_a_version_that_is_published_is_served_by_both_processes(tmp_path: Path) -> None:
    publish(tmp_path, "credit", CREDIT, credit_graph())
    with program(tmp_path, *TWO, "--rescan-seconds", "0.2") as (_, address, _):
        publish(tmp_path, "credit", CREDIT, credit_graph(), version=2)
        wait_until(lambda: value(address, "sevenfold_model_ready", model="credit", version="2") == 1)

        assert versions_that_answer(address) == {"credit/2"}


def test_keys_and_certificates_are_replaced_in_both_processes(tiny_models: Path, tmp_path: Path) -> None:
    authority, keys = Authority(tmp_path), tmp_path / "keys"
    authority.issue()
    (old, old_line), (new, new_line) = new_key("old"), new_key("new")
    keys.write_text(old_line)
    flags = ["--tls-cert", authority.cert, "--tls-key", authority.key, "--api-keys-file", keys]
    with program(tiny_models, *TWO, *map(str, flags)) as (_, address, _):
        url, trust = f"{address.replace('http:', 'https:')}{PREDICT}", authority.trust()

        def status(key: str) -> int:
            headers = {"authorization": f"Bearer {key}"}
            return httpx.post(url, json=ROW, headers=headers, verify=trust, timeout=60).status_code

        before = {status(old) for _ in range(MANY)}
        keys.write_text(new_line)
        wait_until(lambda: all(status(new) == 200 for _ in range(MANY)))
        after = {status(old) for _ in range(MANY)}

    assert (before, after) == ({200}, {401})


def test_lines_of_the_log_are_whole_even_if_they_are_longer_than_what_a_pipe_keeps_together(
    tiny_models: Path,
) -> None:
    with program(tiny_models, *TWO) as (process, address, _):
        with ThreadPoolExecutor(8) as threads:
            path = f"/v1/models/{'x' * 3_000}/predict"
            list(threads.map(lambda _: [ask(address, path) for _ in range(40)], range(8)))
        process.send_signal(signal.SIGTERM)
        _, logged = process.communicate(timeout=EXIT_TIMEOUT_S)

    lines = [json.loads(line) for line in logged.splitlines()]
    assert sum(line["logger"] == "service.request" for line in lines) == 320


def test_the_greeting_is_printed_once(tiny_models: Path) -> None:
    with program(tiny_models, *TWO) as (process, _, greeting):
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=EXIT_TIMEOUT_S)

    assert re.match(r"Sevenfold serves 2 models at", greeting)
    assert "Sevenfold serves" not in rest
