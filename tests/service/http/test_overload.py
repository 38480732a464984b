"""Requests beyond a model's limit, or that cannot meet their deadline, are rejected with Retry-After."""

import re
import socket
from typing import Any

import pytest

from tests.service.http.conftest import URL, StartBlocked, request_bytes
from tests.waiting import wait_until


def test_full_queue_rejects_with_retry_after_and_answers_what_it_accepted(start_blocked: StartBlocked) -> None:
    server = start_blocked(max_queue=8)
    first = server.occupy_device()

    accepted = [server.submit(10.0) for _ in range(7)]
    wait_until(lambda: server.pipeline.in_flight == 8)
    rejected = [server.ask(50.0) for _ in range(2)]
    server.unblock()

    first.result()
    assert [answer.status_code for answer in rejected] == [503, 503]
    assert rejected[0].json()["error"]["code"] == "overloaded"
    assert 1 <= int(rejected[0].headers["retry-after"]) <= 60
    assert [response.result().status_code for response in accepted] == [200] * 7
    assert [50.0] not in server.device.batches
    assert server.ask(50.0).status_code == 200


def test_a_request_that_cannot_meet_its_deadline_is_rejected_before_its_body_is_read(
    start_blocked: StartBlocked,
) -> None:
    server = start_blocked(max_batch=1)
    server.set_measured_latency(0.1)
    first = server.occupy_device()
    others = [server.submit(2.0) for _ in range(60)]
    server.wait_for_queue(60)

    head, _, _ = request_bytes(3.0).partition(b"\r\n\r\n")
    with socket.create_connection(("127.0.0.1", server.running.port)) as connection:
        connection.sendall(head + b"\r\nX-Request-Timeout-Ms: 2000\r\nConnection: close\r\n\r\n")
        rejected = connection.makefile("rb").read().decode()
    server.unblock()

    first.result()
    assert rejected.startswith("HTTP/1.1 503 ")
    assert '"code": "overloaded"' in rejected
    needed_ms, left_ms = map(int, re.findall(r"(\d+) ms", rejected))
    assert needed_ms > 2000 >= left_ms > 0
    assert int(re.findall(r"retry-after: (\d+)", rejected)[0]) >= 1
    assert [other.result().status_code for other in others] == [200] * 60
    assert [3.0] not in server.device.batches


@pytest.mark.parametrize("place", ["body", "query", "header"])
def test_a_request_that_cannot_meet_its_deadline_is_rejected_wherever_the_deadline_is_given(
    start_blocked: StartBlocked, place: str
) -> None:
    server = start_blocked(max_batch=1)
    server.set_measured_latency(0.1)
    first = server.occupy_device()
    others = [server.submit(2.0, **{"x-request-priority": "high"}) for _ in range(40)]
    server.wait_for_queue(40)

    row = {"income": 3, "debt": 5, "job": "baker"}
    options: dict[str, Any] = {"json": {"rows": [row]} | ({"timeout_ms": 2_000} if place == "body" else {})}
    options |= {"params": {"timeout_ms": 2_000}} if place == "query" else {}
    options |= {"headers": {"x-request-timeout-ms": "2000"}} if place == "header" else {}
    rejected = server.running.client.post(URL, **options)
    server.unblock()

    first.result()
    assert (rejected.status_code, rejected.json()["error"]["code"]) == (503, "overloaded")
    assert int(rejected.headers["retry-after"]) >= 2
    assert [other.result().status_code for other in others] == [200] * 40
    assert [3.0] not in server.device.batches
