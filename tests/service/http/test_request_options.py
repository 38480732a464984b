"""The request options `timeout_ms` and `priority`, in headers, the query string, the form and the body."""

from concurrent.futures import Future

import httpx
import pytest
from PIL import Image

from tests.images import encode_image
from tests.service.conftest import Running
from tests.service.http.conftest import URL, StartBlocked

ROW = {"income": 50, "debt": 5, "job": "baker"}


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        ({"x-request-timeout-ms": "soon"}, "X-Request-Timeout-Ms"),
        ({"x-request-timeout-ms": "-1"}, "X-Request-Timeout-Ms"),
        ({"x-request-timeout-ms": "inf"}, "X-Request-Timeout-Ms"),
        ({"x-request-priority": "urgent"}, "X-Request-Priority"),
    ],
)
def test_an_invalid_header_is_named(server: Running, headers: dict[str, str], name: str) -> None:
    answer = server.client.post(URL, json={"rows": [ROW]}, headers=headers)

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_header")
    assert answer.json()["error"]["message"].startswith(f"{name} must be ")


@pytest.mark.parametrize(
    ("option", "value"),
    [("timeout_ms", 0), ("timeout_ms", True), ("timeout_ms", "soon"), ("timeout_ms", [1]), ("priority", "urgent")],
)
def test_an_invalid_option_in_the_body_is_named(server: Running, option: str, value: object) -> None:
    answer = server.client.post(URL, json={"rows": [ROW], option: value})

    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_request")
    assert answer.json()["error"]["details"][0]["where"] == option


def test_options_are_accepted_in_body_query_and_form(server: Running) -> None:
    options = {"timeout_ms": "20000", "priority": "high"}
    image = encode_image(Image.new("RGB", (20, 20), "red"))

    answers = [
        server.client.post(URL, json={"rows": [ROW], "timeout_ms": 20_000, "priority": "low"}),
        server.client.post(URL, params=options, json={"rows": [ROW]}),
        server.client.post(
            "/v1/models/colours/predict", params=options, content=image, headers={"content-type": "image/png"}
        ),
        server.client.post("/v1/models/colours/predict", data=options, files={"image": image}),
    ]

    assert [answer.status_code for answer in answers] == [200] * 4


def test_requests_run_in_order_of_priority(start_blocked: StartBlocked) -> None:
    server = start_blocked(max_batch=1, deadlines={"credit": 20_000.0})
    first = server.occupy_device()
    responses: list[Future[httpx.Response]] = []
    for income, priority in ((10.0, "low"), (20.0, "normal"), (30.0, "high"), (40.0, "normal"), (50.0, "high")):
        responses.append(server.submit(income, **{"x-request-priority": priority}))
        server.wait_for_queue(len(responses))
    server.unblock()

    first.result()
    assert [response.result().status_code for response in responses] == [200] * 5
    assert [income for (income,) in server.device.batches[1:]] == [30.0, 50.0, 20.0, 40.0, 10.0]
