"""A server whose device runs nothing until the test lets it."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest

from service.backends.fake import FakeBackend, Gate, backend_error, slow
from tasks.contract import Arrays, Run, count_samples
from tests.model_folders import publish, update_checksums
from tests.service.conftest import Running, Start
from tests.tiny.tabular import CREDIT, credit_graph
from tests.waiting import wait_until

URL = "/v1/models/credit/predict"
FAILS, RETURNS_NAN = 66.0, 77.0
"""Incomes for which the device raises, and for which it returns NaN."""
RUN_S = 0.005
"""The duration of a run: the pipeline would do shorter ones on the event loop, which must not be blocked."""
EXPIRES_MS = 1_000
"""A deadline that a request cannot meet because the device is blocked, long enough to be admitted on a busy machine."""


def incomes(arrays: Arrays) -> np.ndarray:
    """Return the incomes of a batch; zeros if the model has no such input."""
    return arrays.get("numbers", np.zeros((count_samples(arrays), 2)))[:, 0]


class BlockableDevice:
    """Returns income / 100 as the probability of "yes"; while the gate is closed, runs do not return.

    Attributes:
        batches: the incomes of each batch that was started.
    """

    def __init__(self) -> None:
        self.gate = Gate(timeout_s=120)
        self.batches: list[list[float]] = []
        fails = backend_error(lambda arrays: FAILS in incomes(arrays))
        self.backend = FakeBackend(self._compute, faults=[slow(RUN_S), self._record, self.gate, fails])

    def _record(self, arrays: Arrays, run: Run) -> Arrays:
        self.batches.append(incomes(arrays).tolist())
        return run(arrays)

    def _compute(self, arrays: Arrays) -> Arrays:
        yes = np.where(incomes(arrays) == RETURNS_NAN, np.nan, incomes(arrays) / 100).astype(np.float32)
        return {"probabilities": np.stack([1 - yes, yes], axis=1)}


@dataclass
class BlockableServer:
    """A server with one model, `credit`, on a device that is blocked until `unblock` is called."""

    running: Running
    device: BlockableDevice
    threads: ThreadPoolExecutor

    @property
    def pipeline(self):
        return self.running.service.repository.find("credit").pipeline

    @property
    def used_body_bytes(self) -> int:
        return self.running.service.body_budget.used_bytes

    def ask(self, income: float, **headers: str) -> httpx.Response:
        row = {"income": income, "debt": 5, "job": "baker"}
        return self.running.client.post(URL, json={"rows": [row]}, headers=headers)

    def submit(self, income: float, **headers: str) -> Future[httpx.Response]:
        """Send a request in another thread."""
        return self.threads.submit(self.ask, income, **headers)

    def occupy_device(self) -> Future[httpx.Response]:
        """Send a request with income 1 and wait until it blocks the device, so that further requests queue."""
        response = self.submit(1.0)
        wait_until(lambda: self.device.batches == [[1.0]])
        return response

    def wait_for_batches(self, batches: list[list[float]]) -> None:
        wait_until(lambda: self.device.batches == batches)

    def wait_for_queue(self, samples: int) -> None:
        wait_until(lambda: self.pipeline.queue_depth == samples)

    def set_measured_latency(self, seconds: float) -> None:
        """Make the server believe that each batch takes this long."""
        profile = self.pipeline.latency_profile
        for shape, size, _, _ in profile.table() * 100:
            profile.record(shape, size, seconds)

    def block(self) -> None:
        self.device.gate.close()
        self.device.batches.clear()

    def unblock(self) -> None:
        self.device.gate.open()


StartBlocked = Callable[..., BlockableServer]


@pytest.fixture
def start_blocked(start: Start, tmp_path: Path) -> Iterator[StartBlocked]:
    """Starts servers whose device is blocked once the model has been loaded."""
    servers: list[BlockableServer] = []

    def start_one(**settings: object) -> BlockableServer:
        device = BlockableDevice()
        device.gate.open()

        folder = publish(tmp_path, "credit", CREDIT, credit_graph())
        _expect_even_odds(folder)
        running = start(lambda graph, inputs, outputs: device.backend, models=tmp_path, batches_at_once=1, **settings)
        assert [model["state"] for model in running.client.get("/v1/models").json()["models"]] == ["ready"]
        server = BlockableServer(running, device, ThreadPoolExecutor(64))
        server.block()
        servers.append(server)
        return server

    yield start_one

    for server in servers:
        server.unblock()
        server.threads.shutdown()


def _expect_even_odds(folder: Path) -> None:
    """Replace the golden answers by those of the fake device to the example's income of 50."""
    goldens = json.loads((folder / "goldens.json").read_text())
    prediction = {"label": "no", "probability": 0.5, "probabilities": {"no": 0.5, "yes": 0.5}}
    for golden in goldens:
        golden["answer"] = {"predictions": [prediction], "notices": []}
    (folder / "goldens.json").write_text(json.dumps(goldens))
    update_checksums(folder)


def request_bytes(income: float) -> bytes:
    """The HTTP/1.1 request that `ask` sends, for tests that need the socket."""
    body = json.dumps({"rows": [{"income": income, "debt": 5, "job": "baker"}]}).encode()
    head = f"POST {URL} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body
