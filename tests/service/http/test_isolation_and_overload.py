"""Your answer does not depend on your neighbours, and what is accepted is answered: through real sockets."""

import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx
import numpy as np

from service.backends.base import BackendError
from tasks.contract import Arrays, TensorSpec
from tests.service.conftest import Running, Start

URL = "/v1/models/credit/predict"
POISON, NOT_A_NUMBER = 66.0, 77.0


@dataclass
class Device:
    """Answers with the income; may be held; fails on poison, and gives NaN where it is told to."""

    open: threading.Event = field(default_factory=threading.Event)
    seen: list[list[float]] = field(default_factory=list)
    device: str = "fake"

    def run(self, arrays: Arrays) -> Arrays:
        time.sleep(0.002)  # What it costs: too much to be run on the event loop.
        incomes = arrays.get("numbers", np.zeros((len(next(iter(arrays.values()))), 2)))[:, 0]
        self.seen.append(incomes.tolist())
        assert self.open.wait(30)
        if POISON in incomes:
            raise BackendError("poison")
        yes = np.where(incomes == NOT_A_NUMBER, np.nan, incomes / 100).astype(np.float32)
        return {"probabilities": np.stack([1 - yes, yes], axis=1)}

    run_exclusive = run

    def release(self) -> None:
        """It keeps nothing."""

    def memory_in_use(self) -> None:
        """It does not know."""

    memory_free = memory_in_use


@dataclass
class Held:
    """A server whose device is held until it is let go."""

    running: Running
    device: Device
    pool: ThreadPoolExecutor

    def ask(self, income: float, **headers: str) -> httpx.Response:
        row = {"income": income, "debt": 5, "job": "baker"}
        return self.running.client.post(URL, json={"rows": [row]}, headers=headers)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        for _ in range(2_000):
            if condition():
                return
            time.sleep(0.005)
        raise AssertionError("It never came to that.")

    @property
    def pipeline(self):
        return self.running.service.repository.find("credit").pipeline


def held(start: Start, tmp_path, **settings: object) -> Held:
    """Loads under an open device, then holds it."""
    from tests.model_folders import CREDIT, credit_graph, publish

    device = Device()
    device.open.set()

    def open_backend(graph: bytes, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Device:
        return device

    folder = publish(tmp_path, "credit", CREDIT, credit_graph())
    golden = json.loads((folder / "goldens.json").read_text())
    for each in golden:
        each["answer"] = {
            "predictions": [{"label": "no", "probability": 0.5, "probabilities": {"no": 0.5, "yes": 0.5}}],
            "notices": [],
        }
    (folder / "goldens.json").write_text(json.dumps(golden))
    from tests.service.models.test_repository import republish

    republish(folder)
    running = start(open_backend, models=tmp_path, batches_at_once=1, **settings)
    assert [m["state"] for m in running.client.get("/v1/models").json()["models"]] == ["ready"]
    device.open.clear()
    device.seen.clear()
    return Held(running, device, ThreadPoolExecutor(64))


def hold_the_device(server: Held) -> "threading.Thread":
    """Occupies the device with one request, so that what comes next waits."""
    first = threading.Thread(target=server.ask, args=(1.0,))
    first.start()
    server.wait_until(lambda: server.device.seen == [[1.0]])
    return first


def test_a_poisonous_request_fails_alone(start: Start, tmp_path) -> None:
    server = held(start, tmp_path)
    first = hold_the_device(server)
    incomes = [10.0, 20.0, POISON, 30.0, NOT_A_NUMBER, 40.0]

    answers = [server.pool.submit(server.ask, income) for income in incomes]
    server.wait_until(lambda: server.pipeline.queue_depth == len(incomes))
    server.device.open.set()

    got = [answer.result() for answer in answers]
    first.join()
    assert sorted(server.device.seen[1]) == sorted(incomes)
    assert [answer.status_code for answer in got] == [200, 200, 500, 200, 500, 200]
    assert [got[i].json()["error"]["code"] for i in (2, 4)] == ["backend_failed", "invalid_answer"]
    for income, answer in zip(incomes, got, strict=True):
        if answer.status_code == 200:
            assert answer.json()["predictions"][0]["probabilities"]["yes"] == income / 100


def test_overload_is_refused_at_once_with_an_honest_time_and_costs_the_accepted_nothing(start: Start, tmp_path) -> None:
    server = held(start, tmp_path, max_queue=8)
    first = hold_the_device(server)

    accepted = [server.pool.submit(server.ask, 10.0) for _ in range(7)]
    server.wait_until(lambda: server.pipeline.in_flight == 8)
    refused = [server.ask(50.0) for _ in range(2)]
    server.device.open.set()

    first.join()
    assert [answer.status_code for answer in refused] == [503, 503]
    assert refused[0].json()["error"]["code"] == "overloaded"
    assert 1 <= int(refused[0].headers["retry-after"]) <= 60
    assert [answer.result().status_code for answer in accepted] == [200] * 7
    assert [50.0] not in server.device.seen
    assert server.ask(50.0).status_code == 200


def test_a_deadline_is_kept_and_what_is_too_late_is_not_computed(start: Start, tmp_path) -> None:
    server = held(start, tmp_path)
    first = hold_the_device(server)

    late = server.ask(10.0, **{"x-request-timeout-ms": "50"})
    server.device.open.set()

    first.join()
    assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert server.ask(20.0).status_code == 200
    assert server.device.seen == [[1.0], [20.0]]
    assert server.pipeline.in_flight == 0


def request_bytes(income: float) -> bytes:
    body = json.dumps({"rows": [{"income": income, "debt": 5, "job": "baker"}]}).encode()
    head = f"POST {URL} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def test_a_client_that_hangs_up_is_not_computed_and_its_place_is_free_again(start: Start, tmp_path) -> None:
    server = held(start, tmp_path)
    first = hold_the_device(server)

    sockets = [socket.create_connection(("127.0.0.1", server.running.port)) for _ in range(5)]
    for connection in sockets:
        connection.sendall(request_bytes(10.0))
    server.wait_until(lambda: server.pipeline.queue_depth == 5)
    for connection in sockets:
        connection.close()
    server.wait_until(lambda: server.pipeline.in_flight == 1)
    server.device.open.set()

    first.join()
    assert server.ask(20.0).status_code == 200
    assert server.device.seen == [[1.0], [20.0]]
    metrics = server.running.client.get("/metrics").text
    assert 'sevenfold_cancelled_total{model="credit",stage="queue"} 5.0' in metrics
    assert 'sevenfold_dropped_samples_total{model="credit"} 5.0' in metrics


def test_who_announces_much_and_sends_nothing_keeps_nobody_out(start: Start, tmp_path) -> None:
    server = held(start, tmp_path, max_queue=2)
    server.device.open.set()
    sockets = [socket.create_connection(("127.0.0.1", server.running.port)) for _ in range(5)]
    for connection in sockets:
        connection.sendall(request_bytes(10.0)[:-10])
    server.wait_until(lambda: server.running.service.body_budget.used_bytes > 0)

    assert server.ask(20.0).status_code == 200

    for connection in sockets:
        connection.sendall(request_bytes(10.0)[-10:])
        assert connection.recv(12) == b"HTTP/1.1 200"
        connection.close()


def test_a_content_length_that_is_no_length_is_refused(start: Start, tmp_path) -> None:
    server = held(start, tmp_path)

    with socket.create_connection(("127.0.0.1", server.running.port)) as connection:
        connection.sendall(request_bytes(10.0).replace(b"Content-Length: ", b"Content-Length: " + b"0" * 5000))
        answer = connection.makefile("rb").readline()

    assert answer.startswith(b"HTTP/1.1 400")


def test_bodies_that_are_too_many_bytes_together_are_refused(start: Start, tmp_path) -> None:
    server = held(start, tmp_path, max_bodies_bytes=1_000)

    with socket.create_connection(("127.0.0.1", server.running.port)) as connection:
        head = request_bytes(10.0).replace(b"Content-Length: 5", b"Content-Length: 9005")
        connection.sendall(head + b" " * 900)
        server.wait_until(lambda: server.running.service.body_budget.used_bytes > 900)
        refused = server.ask(20.0)

    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
    assert refused.headers["retry-after"] == "1"
    server.wait_until(lambda: server.running.service.body_budget.used_bytes == 0)
    server.device.open.set()
    assert server.ask(20.0).status_code == 200


def test_a_client_that_hangs_up_in_the_middle_of_its_body_frees_its_place(start: Start, tmp_path) -> None:
    server = held(start, tmp_path)

    with socket.create_connection(("127.0.0.1", server.running.port)) as connection:
        connection.sendall(request_bytes(10.0)[:-10])
        server.wait_until(lambda: server.running.service.body_budget.used_bytes > 0)
    server.wait_until(lambda: server.running.service.body_budget.used_bytes == 0)

    server.device.open.set()
    assert server.ask(20.0).status_code == 200
    assert server.device.seen == [[20.0]]
    metrics = server.running.client.get("/metrics").text
    assert 'sevenfold_requests_total{model="credit",status="499"} 1.0' in metrics
    assert 'status="500"' not in metrics


def test_what_the_runtime_cannot_run_is_a_failed_batch_of_that_request_alone(start: Start, tmp_path) -> None:
    from tests.model_folders import CREDIT, fussy_credit_graph, publish

    jobless = {"rows": [{"income": 50, "debt": 5, "job": None}]}
    publish(tmp_path, "credit", CREDIT, fussy_credit_graph(), request=jobless)
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


def test_whoever_sets_a_delay_gets_batches_from_the_first_request_on(start: Start, tmp_path) -> None:
    server = held(start, tmp_path, max_batch=2, max_delay_ms=60_000.0)
    server.device.open.set()

    answers = [server.pool.submit(server.ask, income) for income in (10.0, 20.0)]

    assert [answer.result().status_code for answer in answers] == [200, 200]
    assert [sorted(batch) for batch in server.device.seen] == [[10.0, 20.0]]


def test_a_request_of_many_samples_that_is_given_up_runs_no_more_of_them(start: Start, tmp_path) -> None:
    server = held(start, tmp_path, max_batch=1)
    rows = [{"income": float(i), "debt": 5, "job": "baker"} for i in range(20)]

    answer = server.running.client.post(URL, json={"rows": rows}, headers={"X-Request-Timeout-Ms": "1000"})
    server.device.open.set()
    server.wait_until(lambda: server.pipeline.admission.abandoned == 0)

    assert answer.status_code == 504
    assert len(server.device.seen) < 20


def test_the_time_in_the_graph_is_that_of_all_the_samples_of_a_request(start: Start, tmp_path) -> None:
    server = held(start, tmp_path, max_batch=1)
    server.device.open.set()
    rows = [{"income": float(i), "debt": 5, "job": "baker"} for i in range(20)]

    answer = server.running.client.post(URL, json={"rows": rows})

    timing = {part.split(";")[0].strip(): part for part in answer.headers["server-timing"].split(",")}
    assert float(timing["infer"].partition("dur=")[2]) >= 20 * 2  # Each of them takes the fake two milliseconds.
