"""Until when, and how urgently: what a client says of its request in headers, in the address, and in the body."""

import json
from concurrent.futures import Future
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.images import encoded
from tests.service.conftest import Running, Start
from tests.service.http.test_isolation_and_overload import URL, Held, held, hold_the_device

ROW = {"income": 50, "debt": 5, "job": "baker"}


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        ({"x-request-timeout-ms": "soon"}, "X-Request-Timeout-Ms"),
        ({"x-request-timeout-ms": "-1"}, "X-Request-Timeout-Ms"),
        ({"x-request-timeout-ms": "inf"}, "X-Request-Timeout-Ms"),
        ({"x-request-priority": "urgent"}, "X-Request-Priority"),
    ],
)
def test_a_header_that_cannot_be_read_is_named(server: Running, headers: dict[str, str], named: str) -> None:
    answer = server.client.post(URL, json={"rows": [ROW]}, headers=headers)

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_header")
    assert answer.json()["error"]["message"].startswith(f"{named} must be ")


@pytest.mark.parametrize(
    ("option", "value"),
    [("timeout_ms", 0), ("timeout_ms", True), ("timeout_ms", "soon"), ("timeout_ms", [1]), ("priority", "urgent")],
)
def test_a_field_that_cannot_be_read_is_named(server: Running, option: str, value: object) -> None:
    answer = server.client.post(URL, json={"rows": [ROW], option: value})

    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_request")
    assert answer.json()["error"]["details"][0]["where"] == option


def test_options_are_read_from_body_address_and_form(server: Running) -> None:
    options = {"timeout_ms": "20000", "priority": "high"}
    picture = encoded(Image.new("RGB", (20, 20), "red"))

    answers = [
        server.client.post(URL, json={"rows": [ROW], "timeout_ms": 20_000, "priority": "low"}),
        server.client.post(URL, params=options, json={"rows": [ROW]}),
        server.client.post(
            "/v1/models/colours/predict", params=options, content=picture, headers={"content-type": "image/png"}
        ),
        server.client.post("/v1/models/colours/predict", data=options, files={"image": picture}),
    ]

    assert [answer.status_code for answer in answers] == [200] * 4


@pytest.mark.parametrize("where", ["body", "address", "header"])
def test_a_deadline_is_kept_wherever_it_stands(start: Start, tmp_path: object, where: str) -> None:
    server = held(start, tmp_path)
    first = hold_the_device(server)
    body = {"rows": [ROW]} | ({"timeout_ms": 50} if where == "body" else {})
    options = {"params": {"timeout_ms": 50}} if where == "address" else {}
    options |= {"headers": {"x-request-timeout-ms": "50"}} if where == "header" else {}

    late = server.running.client.post(URL, json=body, **options)  # type: ignore[arg-type]
    server.device.open.set()

    first.join()
    assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert server.device.seen == [[1.0]]


@pytest.mark.parametrize("name", ["timeout_ms", r"timeout\u005fms"])
def test_a_deadline_in_the_body_is_kept_also_where_one_thread_takes_the_request_all_the_way(
    start: Start, tmp_path: object, name: str
) -> None:
    server = held(start, tmp_path)
    body = f'{{"rows": [{json.dumps(ROW)}], "{name}": 300}}'

    late = server.running.client.post(URL, content=body, headers={"content-type": "application/json"})
    server.device.open.set()

    assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")


def test_urgent_requests_come_first_and_those_of_low_priority_last(start: Start, tmp_path: object) -> None:
    server = held(start, tmp_path, max_batch=1, deadlines={"credit": 20_000.0})
    first = hold_the_device(server)
    answers: list[Future[httpx.Response]] = []
    for income, priority in ((10.0, "low"), (20.0, "normal"), (30.0, "high"), (40.0, "normal"), (50.0, "high")):
        answers.append(server.pool.submit(server.ask, income, **{"x-request-priority": priority}))
        waits_for(server, len(answers))
    server.device.open.set()

    first.join()
    assert [answer.result().status_code for answer in answers] == [200] * 5
    assert [income for (income,) in server.device.seen[1:]] == [30.0, 50.0, 20.0, 40.0, 10.0]


def waits_for(server: Held, count: int) -> None:
    server.wait_until(lambda: server.pipeline.queue_depth == count)


def test_what_cannot_be_answered_in_time_is_refused_before_its_body_is_read(start: Start, tmp_path: object) -> None:
    server = held(start, tmp_path, max_batch=1)
    server.device.open.set()
    for _ in range(20):  # It learns what a run takes: two milliseconds.
        server.ask(1.0)
    server.device.open.clear()
    server.device.seen.clear()
    first = hold_the_device(server)
    others = [server.pool.submit(server.ask, 2.0) for _ in range(60)]
    waits_for(server, 60)

    refused = server.ask(3.0, **{"x-request-timeout-ms": "100"})
    server.device.open.set()

    first.join()
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (503, "overloaded")
    assert "only 100 ms remain" in error["message"] or "only 99 ms remain" in error["message"]
    assert int(refused.headers["retry-after"]) >= 1
    assert [other.result().status_code for other in others] == [200] * 60
    assert [3.0] not in server.device.seen


@pytest.mark.parametrize("where", ["body", "address", "header"])
def test_what_cannot_be_answered_in_time_is_refused_at_once_wherever_its_deadline_stands(
    start: Start, tmp_path: object, where: str
) -> None:
    server = held(start, tmp_path, max_batch=1)
    profile = server.pipeline.latency_profile
    for shape, size, _, _ in profile.table() * 100:  # It learns what a run takes: a tenth of a second.
        profile.record(shape, size, 0.1)
    first = hold_the_device(server)
    others = [server.pool.submit(server.ask, 2.0, **{"x-request-priority": "high"}) for _ in range(40)]
    waits_for(server, 40)

    options: dict[str, Any] = {"json": {"rows": [ROW | {"income": 3}]}}
    options["json"] |= {"timeout_ms": 2_000} if where == "body" else {}
    options |= {"params": {"timeout_ms": 2_000}} if where == "address" else {}
    options |= {"headers": {"x-request-timeout-ms": "2000"}} if where == "header" else {}
    refused = server.running.client.post(URL, **options)
    server.device.open.set()

    first.join()
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
    assert int(refused.headers["retry-after"]) >= 2
    assert [other.result().status_code for other in others] == [200] * 40
    assert [3.0] not in server.device.seen


def test_a_model_has_a_deadline_of_its_own(start: Start, tmp_path: object) -> None:
    server = held(start, tmp_path, deadlines={"credit": 60.0})
    first = hold_the_device(server)

    late = server.ask(10.0)
    server.device.open.set()

    first.join()
    assert late.status_code == 504
    assert json.loads(late.content)["error"]["code"] == "deadline_exceeded"
