"""A request that fails on the device does not affect the other requests in its batch."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from tests.model_folders import publish
from tests.service.conftest import Start
from tests.service.http.conftest import FAILS, RETURNS_NAN, URL, StartBlocked
from tests.tiny.tabular import CREDIT, failing_credit_graph


def test_requests_that_break_a_batch_fail_alone(start_blocked: StartBlocked) -> None:
    server = start_blocked()
    first = server.occupy_device()
    incomes = [10.0, 20.0, FAILS, 30.0, RETURNS_NAN, 40.0]

    responses = [server.submit(income) for income in incomes]
    server.wait_for_queue(len(incomes))
    server.unblock()

    answers = [response.result() for response in responses]
    first.result()
    assert sorted(server.device.batches[1]) == sorted(incomes)
    assert [answer.status_code for answer in answers] == [200, 200, 500, 200, 500, 200]
    assert [answers[i].json()["error"]["code"] for i in (2, 4)] == ["backend_failed", "invalid_answer"]
    for income, answer in zip(incomes, answers, strict=True):
        if answer.status_code == 200:
            assert answer.json()["predictions"][0]["probabilities"]["yes"] == income / 100


def test_an_input_that_onnx_runtime_rejects_fails_alone(start: Start, tmp_path: Path) -> None:
    jobless = {"rows": [{"income": 50, "debt": 5, "job": None}]}
    publish(tmp_path, "credit", CREDIT, failing_credit_graph(), request=jobless)
    server = start(models=tmp_path)

    def ask(job: str | None) -> httpx.Response:
        return server.client.post(URL, json={"rows": [{"income": 50, "debt": 5, "job": job}]})

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, [None, "baker"] * 20))

    assert [answer.status_code for answer in answers] == [200, 500] * 20
    assert {answer.json()["error"]["code"] for answer in answers[1::2]} == {"backend_failed"}
    failures = [
        line
        for line in server.client.get("/metrics").text.splitlines()
        if line.startswith("sevenfold_batch_failures_total")
    ]
    assert float(failures[0].split()[-1]) >= 20
