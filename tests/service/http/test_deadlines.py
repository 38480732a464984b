"""A request gets 504 when its deadline passes, and no work is done for it after that."""

import json
from typing import Any

import pytest

from tests.service.http.conftest import EXPIRES_MS, RUN_S, URL, StartBlocked
from tests.waiting import wait_until

ROW = {"income": 50, "debt": 5, "job": "baker"}


def test_a_request_whose_deadline_passes_in_the_queue_is_not_run(start_blocked: StartBlocked) -> None:
    server = start_blocked()
    first = server.occupy_device()

    expired = server.ask(10.0, **{"x-request-timeout-ms": str(EXPIRES_MS)})
    server.unblock()

    first.result()
    assert (expired.status_code, expired.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert server.ask(20.0).status_code == 200
    assert server.device.batches == [[1.0], [20.0]]
    assert server.pipeline.in_flight == 0


@pytest.mark.parametrize("place", ["body", "query", "header"])
def test_a_deadline_is_kept_wherever_it_is_given(start_blocked: StartBlocked, place: str) -> None:
    server = start_blocked()
    first = server.occupy_device()
    options: dict[str, Any] = {"json": {"rows": [ROW]} | ({"timeout_ms": EXPIRES_MS} if place == "body" else {})}
    options |= {"params": {"timeout_ms": EXPIRES_MS}} if place == "query" else {}
    options |= {"headers": {"x-request-timeout-ms": str(EXPIRES_MS)}} if place == "header" else {}

    expired = server.running.client.post(URL, **options)
    server.unblock()

    first.result()
    assert (expired.status_code, expired.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert server.device.batches == [[1.0]]


@pytest.mark.parametrize("name", ["timeout_ms", r"timeout\u005fms"])
def test_a_deadline_in_the_body_is_kept_if_one_thread_handles_the_whole_request(
    start_blocked: StartBlocked, name: str
) -> None:
    server = start_blocked()
    body = f'{{"rows": [{json.dumps(ROW)}], "{name}": {EXPIRES_MS}}}'

    expired = server.running.client.post(URL, content=body, headers={"content-type": "application/json"})
    server.unblock()

    assert (expired.status_code, expired.json()["error"]["code"]) == (504, "deadline_exceeded")


def test_a_model_can_have_its_own_deadline(start_blocked: StartBlocked) -> None:
    server = start_blocked(deadlines={"credit": float(EXPIRES_MS)})
    first = server.occupy_device()

    expired = server.ask(10.0)
    server.unblock()

    first.result()
    assert (expired.status_code, expired.json()["error"]["code"]) == (504, "deadline_exceeded")


def test_an_expired_request_of_many_samples_runs_no_more_of_them(start_blocked: StartBlocked) -> None:
    server = start_blocked(max_batch=1)
    server.set_measured_latency(RUN_S)  # On a busy machine, twenty runs as measured would be too long to be admitted.
    rows = [{"income": float(i), "debt": 5, "job": "baker"} for i in range(20)]
    headers = {"X-Request-Timeout-Ms": str(EXPIRES_MS)}

    expired = server.running.client.post(URL, json={"rows": rows}, headers=headers)
    server.unblock()
    wait_until(lambda: server.pipeline.admission.abandoned == 0)

    assert expired.status_code == 504
    assert len(server.device.batches) < 20
