"""Versions that come while clients ask: nobody notices but by the version that answers."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import onnx
import pytest

from tasks.contract import Task
from tests.model_folders import COLOURS, CREDIT, colours_graph, credit_graph, publish
from tests.service.conftest import Running, Start
from tests.waiting import wait_until

_A_SECOND = 50
_LABELS = {"1": ("no", "yes"), "2": ("refuses", "pays")}
_COLOURS = {"1": ("red", "green", "blue"), "2": ("rot", "grün", "blau")}
_ROWS = {"rows": [{"income": 50, "debt": 5, "job": "baker"}, {"income": 1, "debt": 50, "job": "clerk"}]}


def another(graph: bytes) -> bytes:
    """The same graph as another file: it is loaded anew."""
    model = onnx.load_model_from_string(graph)
    model.doc_string = "another"
    return bytes(model.SerializeToString())


@dataclass
class Seen:
    """What clients got: (status, version in the header, version in the body, labels)."""

    answers: dict[str, list[tuple[int, str, str, tuple[str, ...]]]] = field(
        default_factory=lambda: {"credit": [], "colours": []}
    )

    def versions(self, model: str) -> list[str]:
        return [version for _, _, version, _ in self.answers[model]]


def labels_of(answer: dict[str, Any]) -> tuple[str, ...]:
    if "predictions" in answer:
        return tuple(row["label"] for row in answer["predictions"])
    return tuple(sorted(each["label"] for each in answer["labels"]))


class Clients:
    """Requests to two models in turn, at a steady rate, each on its way whether or not the one before is answered."""

    def __init__(self, client: httpx.AsyncClient, picture: dict[str, Any]) -> None:
        self.seen = Seen()
        self._client = client
        self._bodies = {"credit": _ROWS, "colours": picture}

    async def ask(self, model: str) -> None:
        response = await self._client.post(f"/v1/models/{model}/predict", json=self._bodies[model])
        answer = response.json()
        named = response.headers.get("x-model", "").rpartition("/")[2]
        got = (response.status_code, named, answer.get("version", ""), labels_of(answer) if "version" in answer else ())
        self.seen.answers[model].append(got)

    async def go_on(self, until: Callable[[], bool], *, at_least: int = 20, at_most: int = 1500) -> None:
        """Asks until so many were answered and `until` holds."""
        tasks = []
        for number in range(at_most):
            if number >= at_least and until():
                break
            tasks.append(asyncio.create_task(self.ask("credit" if number % 2 else "colours")))
            await asyncio.sleep(1 / _A_SECOND)
        await asyncio.gather(*tasks)

        assert until()


def arrive(root: Path, elsewhere: Path, name: str, task: Task, graph: bytes, version: int, *, broken: bool) -> None:
    """A version appears as training publishes it: whole, by a rename."""
    folder = publish(elsewhere, name, task, graph, version=version)
    if broken:
        (folder / "model.onnx").write_bytes(graph[:-1])
    folder.rename(root / name / str(version))


def states(server: Running) -> dict[str, list[tuple[str, str]]]:
    listed = server.service.repository.entries()
    found: dict[str, list[tuple[str, str]]] = {}
    for entry in listed:
        state = "ready" if entry.model else "not loaded" if entry.reason == "It is not loaded yet." else "unavailable"
        found.setdefault(entry.name, []).append((entry.version, state))
    return found


@pytest.mark.parametrize("versions", [1, 2])
def test_at_fifty_requests_a_second_versions_come_and_break_and_nobody_gets_an_error_or_two_versions_in_one_answer(
    tmp_path: Path, start: Start, versions: int
) -> None:
    root, elsewhere = tmp_path / "models", tmp_path / "elsewhere"
    publish(root, "credit", CREDIT, credit_graph(), version=1)
    publish(root, "colours", COLOURS, colours_graph(), version=1)
    server = start(models=root, rescan_seconds=0.05, versions=versions)
    newer = {
        "credit": (replace(CREDIT, labels=_LABELS["2"]), another(credit_graph())),
        "colours": (replace(COLOURS, labels=_COLOURS["2"]), another(colours_graph())),
    }

    async def main() -> Seen:
        async with httpx.AsyncClient(base_url=str(server.client.base_url), timeout=30) as client:
            clients = Clients(client, COLOURS.example())
            await clients.go_on(lambda: True)
            for name, (task, graph) in newer.items():
                arrive(root, elsewhere, name, task, graph, 2, broken=False)
            await clients.go_on(lambda: all(clients.seen.versions(name)[-1] == "2" for name in newer))
            for name, (task, graph) in newer.items():
                arrive(root, elsewhere, name, task, graph, 3, broken=True)
            await clients.go_on(lambda: all(states(server)[name][0] == ("3", "unavailable") for name in newer))
            await clients.go_on(lambda: True)
            return clients.seen

    seen = asyncio.run(main())

    for name, labels in (("credit", _LABELS), ("colours", _COLOURS)):
        got = seen.answers[name]
        assert {status for status, *_ in got} == {200}
        assert all(named == version for _, named, version, _ in got)
        assert all(set(given) == set(labels[version]) for _, _, version, given in got)
        assert seen.versions(name)[0] == "1"
        assert seen.versions(name)[-1] == "2"
    assert states(server)["credit"][0] == ("3", "unavailable")


def test_a_request_that_began_with_a_version_ends_with_it_though_that_was_retired_meanwhile(
    tmp_path: Path, start: Start
) -> None:
    publish(tmp_path, "credit", CREDIT, credit_graph(), version=1)
    server = start(models=tmp_path, rescan_seconds=0)
    body = json.dumps(_ROWS).encode()
    repository = server.service.repository

    def slowly() -> Any:
        yield body[:10]
        wait_until(lambda: server.service.body_budget.used_bytes >= 10)
        while repository.find("credit").manifest.version == "1":
            publish(tmp_path, "credit", replace(CREDIT, labels=_LABELS["2"]), credit_graph(), version=2)
            repository.rescan()
        yield body[10:]

    headers = {"content-type": "application/json", "content-length": str(len(body))}
    began_before = server.client.post("/v1/models/credit/predict", content=slowly(), headers=headers)
    after = server.client.post("/v1/models/credit/predict", json=_ROWS)

    assert (began_before.status_code, began_before.json()["version"]) == (200, "1")
    assert labels_of(began_before.json()) == ("yes", "no")
    assert (after.json()["version"], labels_of(after.json())) == ("2", ("pays", "refuses"))
