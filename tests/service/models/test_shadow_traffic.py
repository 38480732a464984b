"""Shadow traffic over HTTP: new versions are evaluated on mirrored requests, which no client notices."""

import base64
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.backends.base import Backend
from service.backends.fake import FakeBackend, Fault, Gate, failing, slow
from service.backends.onnx import OnnxRuntime
from tasks.contract import TensorSpec
from tests.model_folders import publish, with_other_checksum
from tests.service.conftest import Running, Start
from tests.service.models.shadow_server import (
    LENIENT,
    ROW,
    is_decided,
    listed_version,
    predict,
    predict_until_decided,
    publish_credit,
    report,
)
from tests.tiny.classification import COLOURS, colours_graph
from tests.tiny.tabular import CREDIT, credit_graph
from tests.waiting import wait_until


def test_version_with_the_same_answers_is_promoted_and_serves(tmp_path: Path, start: Start) -> None:
    publish_credit(tmp_path, 1)
    server = start(models=tmp_path, **LENIENT)
    publish_credit(tmp_path, 2)
    server.service.repository.rescan()
    before = listed_version(server, 2)
    rejected = server.client.post("/v1/models/credit/versions/2/predict", json=ROW)

    versions = predict_until_decided(server)

    final = report(server)
    assert (before["state"], before["reason"]) == ("shadow", "It is being evaluated on shadow traffic.")
    assert rejected.status_code == 503
    assert versions[0] == "credit/1"
    assert versions == sorted(versions)
    assert predict(server).json()["version"] == "2"
    assert (final["verdict"], final["requests"], final["errors"], final["agreement"]) == ("promoted", 5, 0, 1.0)
    assert final["shadow"]["work"]["p95"] >= final["shadow"]["work"]["median"] > 0
    assert listed_version(server, 1)["reason"] == "A newer version is served."
    metrics = server.client.get("/metrics").text
    assert 'sevenfold_shadow_requests_total{model="credit",outcome="compared",version="2"} 5.0' in metrics
    assert 'sevenfold_shadow_decisions_total{decision="promoted",model="credit",version="2"} 1.0' in metrics
    for version in ("1", "2"):  # The request after the decision was answered by version 2.
        count = versions.count(f"credit/{version}") + (version == "2")
        assert f'sevenfold_requests_total{{model="credit",status="200",version="{version}"}} {count}.0' in metrics


def test_version_with_other_answers_is_rolled_back_until_its_files_change(tmp_path: Path, start: Start) -> None:
    publish_credit(tmp_path, 1)
    server = start(models=tmp_path, **LENIENT)
    folder = publish_credit(tmp_path, 2, labels=("refuses", "pays"))
    server.service.repository.rescan()

    predict_until_decided(server, json=ROW, headers={"x-request-id": "mine"})
    server.service.repository.rescan()

    final, listed = report(server), listed_version(server, 2)
    assert final["verdict"] == "rolled_back"
    assert final["requests"] < 5
    assert final["worst"][0] == {"request_id": "mine", "agreement": 0.0}
    assert listed["state"] == "unavailable"
    assert "It was rolled back. Its mean agreement with the served version is 0.000" in listed["reason"]
    assert predict(server).json()["version"] == "1"

    (folder / "README.md").touch()
    server.service.repository.rescan()

    assert listed_version(server, 2)["state"] == "shadow"
    assert report(server)["requests"] == 0


def test_version_that_rejects_the_clients_requests_is_rolled_back(tmp_path: Path, start: Start) -> None:
    publish_credit(tmp_path, 1)
    server = start(models=tmp_path, **LENIENT)
    renamed = replace(CREDIT, columns=(replace(CREDIT.columns[0], name="salary"), *CREDIT.columns[1:]))
    publish(tmp_path, "credit", renamed, credit_graph(), version=2)
    server.service.repository.rescan()

    predict_until_decided(server)

    final = report(server)
    assert (final["verdict"], final["requests"], final["errors"]) == ("rolled_back", 1, 1)
    assert final["failed"][0]["reason"].startswith("invalid_request: ")
    assert predict(server).json()["version"] == "1"


def start_with_faulty_shadow(root: Path, start: Start, fault: Fault, **settings: Any) -> Running:
    """Start a server with a second version in the shadow whose graph has a fault once it is loaded."""
    runtime, shadow_graph = OnnxRuntime("cpu", threads=1), with_other_checksum(credit_graph())
    faults = [slow(0.003)]

    def open_backend(graph: bytes, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Backend:
        backend = runtime(graph, inputs, outputs)
        return FakeBackend(backend.run, device=backend.device, faults=faults) if graph == shadow_graph else backend

    publish_credit(root, 1)
    server = start(open_backend, models=root, **LENIENT | settings)
    publish_credit(root, 2, graph=shadow_graph)
    server.service.repository.rescan()
    faults[:] = [fault]
    return server


def test_slower_version_is_rolled_back(tmp_path: Path, start: Start) -> None:
    server = start_with_faulty_shadow(tmp_path, start, slow(0.05), shadow_slowdown=1.5)

    predict_until_decided(server)

    assert report(server)["verdict"] == "rolled_back"
    assert "times as long as the served version's" in report(server)["reason"]
    assert predict(server).json()["version"] == "1"


def test_version_that_raises_is_rolled_back_without_an_error_for_clients(tmp_path: Path, start: Start) -> None:
    server = start_with_faulty_shadow(tmp_path, start, failing(lambda: ValueError("out of order")))

    versions = predict_until_decided(server)

    assert set(versions) == {"credit/1"}
    assert (report(server)["verdict"], report(server)["errors"]) == ("rolled_back", 1)
    assert server.client.get("/health/live").status_code == 200


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A gate that is open after the test, even if it fails: a blocked thread would keep the server from stopping."""
    gate = Gate(timeout_s=60)
    yield gate
    gate.open()


def test_clients_are_answered_while_a_version_hangs(tmp_path: Path, start: Start, gate: Gate) -> None:
    server = start_with_faulty_shadow(tmp_path, start, gate, hang_seconds=0.3, batches_at_once=3)

    versions = predict_until_decided(server)
    gate.open()

    final = report(server)
    assert set(versions) == {"credit/1"}
    assert (final["verdict"], final["errors"]) == ("rolled_back", 1)
    assert final["failed"][0]["reason"].startswith("device_hung")


def test_number_of_mirrored_requests_in_flight_is_limited(tmp_path: Path, start: Start, gate: Gate) -> None:
    server = start_with_faulty_shadow(tmp_path, start, gate, hang_seconds=0, batches_at_once=3)

    for _ in range(30):
        predict(server)

    current = report(server)
    assert (current["verdict"], current["requests"]) == ("running", 0)
    assert current["skipped"] == 26
    gate.open()


def test_requests_are_mirrored_in_every_format(tmp_path: Path, start: Start) -> None:
    publish(tmp_path, "colours", COLOURS, colours_graph(), version=1)
    server = start(models=tmp_path, **LENIENT | {"shadow_requests": 9})
    publish(tmp_path, "colours", COLOURS, with_other_checksum(colours_graph()), version=2)
    server.service.repository.rescan()
    body = COLOURS.example()
    image = base64.b64decode(body["image"])
    requests = [
        {"json": body},
        {"content": image, "headers": {"content-type": "image/jpeg"}, "params": {"heatmap": "true"}},
        {"files": {"image": ("x.jpg", image)}, "data": {"top_k": "1", "priority": "high"}},
    ]

    def predict_in_every_format() -> bool:
        for request in requests:
            predict(server, "colours", **request)
        return is_decided(server, 2, "colours")

    wait_until(predict_in_every_format, interval_s=0)

    final = report(server, 2, "colours")
    assert (final["verdict"], final["errors"], final["agreement"]) == ("promoted", 0, 1.0)


def test_requests_with_several_inputs_are_answered_and_not_mirrored(tmp_path: Path, start: Start) -> None:
    publish(tmp_path, "colours", COLOURS, colours_graph(), version=1)
    server = start(models=tmp_path, **LENIENT | {"shadow_requests": 1})
    publish(tmp_path, "colours", COLOURS, with_other_checksum(colours_graph()), version=2)
    server.service.repository.rescan()
    image = COLOURS.example()["image"]

    for images in ([image, image], [image, "AAAA"], [image]):
        answers = predict(server, "colours", json={"image": images}).json()["answers"]
        assert len(answers) == len(images)
    predict(server, "colours", json={"image": image}, headers={"x-request-id": "single"})
    wait_until(lambda: is_decided(server, 2, "colours"))

    assert [answer["request_id"] for answer in report(server, 2, "colours")["worst"]] == ["single"]


def test_requests_with_options_of_their_own_are_mirrored(tmp_path: Path, start: Start) -> None:
    publish_credit(tmp_path, 1)
    server = start(models=tmp_path, **LENIENT)
    publish_credit(tmp_path, 2)
    server.service.repository.rescan()
    options = {"timeout_ms": 20_000, "priority": "high"}

    predict_until_decided(server, json=ROW | options, headers={"x-request-priority": "low"})

    assert (report(server)["verdict"], report(server)["errors"]) == ("promoted", 0)


def test_newest_version_is_evaluated_against_its_predecessor_after_a_start(tmp_path: Path, start: Start) -> None:
    for version in (1, 2, 3):
        publish_credit(tmp_path, version)

    server = start(models=tmp_path, **LENIENT)

    states = {version: listed_version(server, version)["state"] for version in (1, 2, 3)}
    assert states == {1: "unavailable", 2: "ready", 3: "shadow"}
    assert predict(server).json()["version"] == "2"


def test_newest_version_serves_without_evaluation_if_no_older_one_can_serve(tmp_path: Path, start: Start) -> None:
    broken = publish_credit(tmp_path, 1)
    (broken / "model.onnx").write_bytes(b"not a graph")
    publish_credit(tmp_path, 2)

    server = start(models=tmp_path, **LENIENT)

    assert predict(server).json()["version"] == "2"
    assert server.client.get("/v1/models/credit/versions/2/shadow").status_code == 404


def test_version_published_during_an_evaluation_is_evaluated_first(tmp_path: Path, start: Start) -> None:
    publish_credit(tmp_path, 1)
    server = start(models=tmp_path, **LENIENT)
    publish_credit(tmp_path, 2)
    server.service.repository.rescan()
    publish_credit(tmp_path, 3, labels=("refuses", "pays"))
    server.service.repository.rescan()
    during = {version: listed_version(server, version)["state"] for version in (1, 2, 3)}

    predict_until_decided(server, 3)
    server.service.repository.rescan()
    predict_until_decided(server, 2)

    assert during == {1: "ready", 2: "unavailable", 3: "shadow"}
    assert (report(server, 3)["verdict"], report(server, 2)["verdict"]) == ("rolled_back", "promoted")


def test_new_version_of_a_model_without_shadow_traffic_serves_at_once(tmp_path: Path, start: Start) -> None:
    publish_credit(tmp_path, 1)
    server = start(models=tmp_path, **LENIENT | {"shadow": {"all": 1.0, "credit": 0.0, "nobody": 0.5}})
    publish_credit(tmp_path, 2)
    server.service.repository.rescan()

    rejected = server.client.get("/v1/models/credit/versions/2/shadow")

    assert predict(server).json()["version"] == "2"
    assert (rejected.status_code, rejected.json()["error"]["code"]) == (404, "not_found")
    assert server.service.shadows.unknown_models() == ["nobody"]


def test_no_more_than_the_configured_fraction_is_mirrored(tmp_path: Path, start: Start) -> None:
    publish_credit(tmp_path, 1)
    server = start(models=tmp_path, **LENIENT | {"shadow": {"credit": 1e-9}})
    publish_credit(tmp_path, 2)
    server.service.repository.rescan()

    for _ in range(20):
        predict(server)

    current = report(server)
    assert (current["requests"], current["skipped"]) == (0, 0)
