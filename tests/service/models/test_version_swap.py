"""Versions are swapped while clients send requests: only the version in the answers changes."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from service.models.model import LoadState
from tasks.contract import Task
from tests.model_folders import publish, with_other_checksum
from tests.service.conftest import Running, Start
from tests.tiny.classification import COLOURS, colours_graph
from tests.tiny.tabular import CREDIT, credit_graph
from tests.waiting import wait_until

_CLIENTS_PER_MODEL = 2
_CREDIT_LABELS = {"1": ("no", "yes"), "2": ("refuses", "pays")}
_COLOURS_LABELS = {"1": ("red", "green", "blue"), "2": ("rot", "grün", "blau")}
_ROWS = {"rows": [{"income": 50, "debt": 5, "job": "baker"}, {"income": 1, "debt": 50, "job": "clerk"}]}
_BODIES = {"credit": _ROWS, "colours": COLOURS.example()}


class Received(NamedTuple):
    """What a client received."""

    status: int
    version_in_header: str
    version: str
    labels: tuple[str, ...]


def labels_of(answer: dict[str, Any]) -> tuple[str, ...]:
    if "predictions" in answer:
        return tuple(row["label"] for row in answer["predictions"])
    return tuple(sorted(label["label"] for label in answer["labels"]))


class Clients:
    """Several clients for each of two models, each of which sends one request after another."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.received: dict[str, list[Received]] = defaultdict(list)
        self._client = client

    def last_version(self, model: str) -> str:
        return self.received[model][-1].version

    async def predict(self, model: str) -> None:
        response = await self._client.post(f"/v1/models/{model}/predict", json=_BODIES[model])
        answer = response.json()
        version_in_header = response.headers.get("x-model", "").rpartition("/")[2]
        labels = labels_of(answer) if "version" in answer else ()
        self.received[model].append(
            Received(response.status_code, version_in_header, answer.get("version", ""), labels)
        )

    async def predict_until(self, condition: Callable[[], bool], *, min_requests: int = 20) -> None:
        """Send at least so many requests to each model, until the condition holds."""
        before = {model: len(self.received[model]) for model in _BODIES}

        async def run_client(model: str) -> None:
            while len(self.received[model]) < before[model] + min_requests or not condition():
                await self.predict(model)

        async with asyncio.timeout(60):
            await asyncio.gather(*(run_client(model) for model in _BODIES for _ in range(_CLIENTS_PER_MODEL)))

        assert condition()


def publish_atomically(
    root: Path, staging: Path, name: str, task: Task, graph: bytes, version: int, *, is_broken: bool = False
) -> None:
    """Publish a version as training does: complete, by renaming its folder."""
    folder = publish(staging, name, task, graph, version=version)
    if is_broken:
        (folder / "model.onnx").write_bytes(graph[:-1])
    folder.rename(root / name / str(version))


def newest_versions(server: Running) -> dict[str, tuple[str, LoadState]]:
    """Return the newest version of each model, and its state."""
    newest: dict[str, tuple[str, LoadState]] = {}
    for entry in server.service.repository.entries():
        newest.setdefault(entry.name, (entry.version, entry.state))
    return newest


@pytest.mark.parametrize("versions", [1, 2])
def test_clients_see_no_error_and_no_mixed_versions_while_good_and_broken_versions_are_published(
    tmp_path: Path, start: Start, versions: int
) -> None:
    root, staging = tmp_path / "models", tmp_path / "staging"
    publish(root, "credit", CREDIT, credit_graph(), version=1)
    publish(root, "colours", COLOURS, colours_graph(), version=1)
    server = start(models=root, rescan_seconds=0.05, versions=versions)
    newer = {
        "credit": (replace(CREDIT, labels=_CREDIT_LABELS["2"]), with_other_checksum(credit_graph())),
        "colours": (replace(COLOURS, labels=_COLOURS_LABELS["2"]), with_other_checksum(colours_graph())),
    }
    broken = dict.fromkeys(newer, ("3", LoadState.FAILED))

    async def main() -> Clients:
        async with httpx.AsyncClient(base_url=str(server.client.base_url), timeout=30) as client:
            clients = Clients(client)
            await clients.predict_until(lambda: True)
            for name, (task, graph) in newer.items():
                publish_atomically(root, staging, name, task, graph, 2)
            await clients.predict_until(lambda: all(clients.last_version(name) == "2" for name in newer))
            for name, (task, graph) in newer.items():
                publish_atomically(root, staging, name, task, graph, 3, is_broken=True)
            await clients.predict_until(lambda: newest_versions(server) == broken)
            await clients.predict_until(lambda: True)
            return clients

    clients = asyncio.run(main())

    for name, labels in (("credit", _CREDIT_LABELS), ("colours", _COLOURS_LABELS)):
        received = clients.received[name]
        assert {answer.status for answer in received} == {200}
        assert all(answer.version_in_header == answer.version for answer in received)
        assert all(set(answer.labels) == set(labels[answer.version]) for answer in received)
        assert received[0].version == "1"
        assert received[-1].version == "2"
    assert newest_versions(server) == broken


def test_request_is_answered_by_the_version_it_started_with(tmp_path: Path, start: Start) -> None:
    publish(tmp_path, "credit", CREDIT, credit_graph(), version=1)
    server = start(models=tmp_path, rescan_seconds=0)
    body = json.dumps(_ROWS).encode()
    repository = server.service.repository

    def body_in_two_parts() -> Iterator[bytes]:
        yield body[:10]
        wait_until(lambda: server.service.body_budget.used_bytes >= 10)
        publish(tmp_path, "credit", replace(CREDIT, labels=_CREDIT_LABELS["2"]), credit_graph(), version=2)
        repository.rescan()
        assert repository.find("credit").manifest.version == "2"
        yield body[10:]

    headers = {"content-type": "application/json", "content-length": str(len(body))}
    during = server.client.post("/v1/models/credit/predict", content=body_in_two_parts(), headers=headers)
    after = server.client.post("/v1/models/credit/predict", json=_ROWS)

    assert (during.status_code, during.json()["version"]) == (200, "1")
    assert labels_of(during.json()) == ("yes", "no")
    assert (after.json()["version"], labels_of(after.json())) == ("2", ("pays", "refuses"))
