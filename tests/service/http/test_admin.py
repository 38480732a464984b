"""Operators load, unload and promote versions over HTTP; what they choose holds until they choose again."""

import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.backends.base import Backend
from service.backends.fake import FakeBackend, Gate
from service.backends.onnx import OnnxRuntime
from tasks.contract import Arrays, Run, TensorSpec
from tests.model_folders import publish, with_other_checksum
from tests.service.conftest import Running, Start
from tests.service.models.shadow_server import LENIENT, report
from tests.tiny.tabular import CREDIT, credit_graph
from tests.waiting import wait_until

ROW = {"rows": [{"income": 50, "debt": 5, "job": "baker"}]}


def publish_credit(root: Path, *versions: int) -> None:
    for version in versions:
        publish(root, "credit", CREDIT, credit_graph(), version=version)


def act(server: Running, action: str, version: int | str, model: str = "credit", **options: Any) -> httpx.Response:
    return server.client.post(f"/v1/models/{model}/versions/{version}/{action}", **options)


def answering_version(server: Running, model: str = "credit") -> str | int:
    """Return the version that answers, or the status of the error."""
    response = server.client.post(f"/v1/models/{model}/predict", json=ROW)
    return str(response.json()["version"]) if response.status_code == 200 else response.status_code


def served_versions(server: Running) -> list[str]:
    (model,) = server.client.get("/v1/models").json()["models"]
    return [version["version"] for version in model["versions"] if version["state"] == "ready"]


def message_of(response: httpx.Response) -> str:
    return str(response.json()["error"]["message"])


def rescan(server: Running) -> None:
    server.service.repository.rescan()


@pytest.fixture
def two_versions(tmp_path: Path, start: Start) -> Running:
    """A server with versions 1 and 2, of which the newest is served."""
    publish_credit(tmp_path, 1, 2)
    return start(models=tmp_path, rescan_seconds=0, admin=True)


def test_roll_back_is_one_request_that_holds_when_newer_versions_are_published(
    tmp_path: Path, two_versions: Running
) -> None:
    before = answering_version(two_versions)

    response = act(two_versions, "promote", 1)
    publish_credit(tmp_path, 3)
    rescan(two_versions)

    assert before == "2"
    assert response.json() == {
        "model": "credit",
        "version": {"version": "1", "state": "ready", "reason": None},
        "default": "1",
    }
    assert answering_version(two_versions) == "1"
    assert served_versions(two_versions) == ["1"]


def test_promoting_the_newest_version_lets_newer_ones_replace_it_again(tmp_path: Path, two_versions: Running) -> None:
    act(two_versions, "promote", 1)

    act(two_versions, "promote", 2)
    promoted = answering_version(two_versions)
    publish_credit(tmp_path, 3)
    rescan(two_versions)

    assert (promoted, answering_version(two_versions)) == ("2", "3")


def test_an_unloaded_version_stays_out_until_it_is_loaded_or_promoted(two_versions: Running) -> None:
    response = act(two_versions, "unload", 2)
    rescan(two_versions)
    after_unload = answering_version(two_versions)
    rejected = two_versions.client.post("/v1/models/credit/versions/2/predict", json=ROW)
    act(two_versions, "promote", 2)

    assert (response.status_code, response.json()["default"]) == (200, "1")
    assert response.json()["version"]["state"] == "unavailable"
    assert (after_unload, answering_version(two_versions)) == ("1", "2")
    assert rejected.status_code == 404
    assert "unloaded by an operator" in message_of(rejected)


def test_the_only_version_can_be_unloaded(tmp_path: Path, start: Start) -> None:
    publish_credit(tmp_path, 1)
    server = start(models=tmp_path, rescan_seconds=0, admin=True)

    response = act(server, "unload", 1)
    rejected = server.client.post("/v1/models/credit/predict", json=ROW)

    assert (response.status_code, response.json()["default"]) == (200, None)
    assert rejected.status_code == 503
    assert "unloaded by an operator" in message_of(rejected)


def test_a_loaded_version_answers_under_its_own_path_and_is_not_the_default(two_versions: Running) -> None:
    older = act(two_versions, "load", 1)
    rescan(two_versions)

    assert (older.status_code, older.json()["default"]) == (200, "2")
    assert served_versions(two_versions) == ["2", "1"]
    assert answering_version(two_versions, "credit/versions/1") == "1"
    assert answering_version(two_versions) == "2"


def test_a_newer_version_can_be_tried_under_its_own_path_before_it_is_promoted(
    tmp_path: Path, two_versions: Running
) -> None:
    act(two_versions, "promote", 1)
    publish_credit(tmp_path, 3)
    rescan(two_versions)

    loaded = act(two_versions, "load", 3)
    rescan(two_versions)
    beside = (answering_version(two_versions, "credit/versions/3"), answering_version(two_versions))
    act(two_versions, "promote", 3)

    assert loaded.json()["default"] == "1"
    assert beside == ("3", "1")
    assert answering_version(two_versions) == "3"
    assert served_versions(two_versions) == ["3"]


def test_a_loaded_version_takes_its_turn_when_newer_ones_are_removed(tmp_path: Path, two_versions: Running) -> None:
    act(two_versions, "load", 1)

    shutil.rmtree(tmp_path / "credit" / "2")
    rescan(two_versions)

    assert answering_version(two_versions) == "1"


def test_the_choice_of_a_version_ends_with_its_folder(tmp_path: Path, two_versions: Running) -> None:
    act(two_versions, "promote", 1)

    shutil.rmtree(tmp_path / "credit" / "1")
    rescan(two_versions)
    without = answering_version(two_versions)
    publish_credit(tmp_path, 1)
    rescan(two_versions)

    assert (without, answering_version(two_versions)) == ("2", "2")


def test_with_two_versions_served_a_promoted_one_is_served_beside_the_newest(tmp_path: Path, start: Start) -> None:
    publish_credit(tmp_path, 1, 2, 3)
    server = start(models=tmp_path, rescan_seconds=0, admin=True, versions=2)

    act(server, "promote", 1)

    assert answering_version(server) == "1"
    assert served_versions(server) == ["3", "1"]


def test_a_version_that_cannot_be_loaded_is_refused_with_the_reason_and_changes_nothing(
    tmp_path: Path, two_versions: Running
) -> None:
    publish_credit(tmp_path, 3)
    (tmp_path / "credit" / "3" / "model.onnx").write_bytes(b"not a graph")
    rescan(two_versions)

    refused = [act(two_versions, action, 3) for action in ("load", "promote")]

    assert [response.status_code for response in refused] == [422, 422]
    assert all("its checksum differs" in message_of(response) for response in refused)
    assert answering_version(two_versions) == "2"


@pytest.mark.parametrize("action", ["load", "unload", "promote"])
@pytest.mark.parametrize(
    ("model", "version", "message"),
    [("nobody", 1, "Model 'nobody' does not exist"), ("credit", 9, "credit has no version '9'")],
)
def test_unknown_models_and_versions_are_named(
    two_versions: Running, action: str, model: str, version: int, message: str
) -> None:
    response = act(two_versions, action, version, model)

    assert response.status_code == 404
    assert message in message_of(response)


def test_a_pin_holds_against_operators_and_newer_versions(tmp_path: Path, start: Start) -> None:
    publish_credit(tmp_path, 1, 2, 3)
    server = start(models=tmp_path, rescan_seconds=0, admin=True, versions=0, pin={"credit": 2})

    refused = [act(server, "promote", 1), act(server, "load", 3), act(server, "unload", 1), act(server, "unload", 2)]
    publish_credit(tmp_path, 4)
    rescan(server)

    assert [response.status_code for response in refused] == [409] * 4
    assert all("pinned to version 2 by --pin" in message_of(response) for response in refused)
    assert act(server, "promote", 2).status_code == 200
    assert served_versions(server) == ["2"]
    assert answering_version(server) == "2"


def test_a_pinned_version_that_is_not_there_is_reported_and_not_replaced_by_another(
    tmp_path: Path, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    publish_credit(tmp_path, 1, 3)
    server = start(models=tmp_path, rescan_seconds=0, pin={"credit": 2})

    rejected = server.client.post("/v1/models/credit/predict", json=ROW)
    listed = server.client.get("/v1/models").json()["models"][0]["versions"]
    assert {version["reason"] for version in listed} == {"The setting --pin selects version 2, which is not there."}
    assert "a pinned version is not there, so the model is not served" in [record.message for record in caplog.records]
    publish_credit(tmp_path, 2)
    rescan(server)

    assert rejected.status_code == 503
    assert "--pin selects version 2, which is not there" in message_of(rejected)
    assert answering_version(server) == "2"


def test_a_pinned_version_that_is_not_there_is_named_in_the_log_the_list_and_the_readiness(
    tmp_path: Path, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    publish_credit(tmp_path, 1, 3)

    server = start(models=tmp_path, rescan_seconds=0, pin={"credit": 2})

    expected = {"setting": "pin", "model": "credit", "version": "2", "available": ["3", "1"]}
    (model,) = server.client.get("/v1/models").json()["models"]
    assert expected in [getattr(record, "fields", None) for record in caplog.records]
    assert {version["reason"] for version in model["versions"]} == {
        "The setting --pin selects version 2, which is not there."
    }
    assert "--pin selects version 2, which is not there" in server.client.get("/health/ready").json()["reason"]


def test_a_token_without_permission_to_use_it_is_a_warning(
    tmp_path: Path, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    publish_credit(tmp_path, 1)

    start(models=tmp_path, admin_token="secret")  # noqa: S106 -- of this test

    assert "no effect without --admin" in caplog.text


@pytest.mark.parametrize("token", ["", "secret"])
def test_the_document_lists_the_errors_of_a_change_and_the_token(tmp_path: Path, start: Start, token: str) -> None:
    publish_credit(tmp_path, 1)
    server = start(models=tmp_path, admin=True, admin_token=token)

    document = server.client.get("/openapi.json").json()

    operation = document["paths"]["/v1/models/{name}/versions/{version}/{action}"]["post"]
    assert list(operation["responses"]) == ["200", "401", "403", "404", "409", "422"]
    assert ("security" in operation) == bool(token)
    assert "ErrorResponse" in str(operation["responses"]["422"])


def test_only_the_named_models_are_served(tmp_path: Path, start: Start) -> None:
    publish_credit(tmp_path, 1)
    publish(tmp_path, "other", CREDIT, credit_graph())

    server = start(models=tmp_path, only=("other",))

    assert (answering_version(server), answering_version(server, "other")) == (404, "1")


def test_pins_and_names_of_unknown_models_are_logged(
    tmp_path: Path, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    publish_credit(tmp_path, 1)

    start(models=tmp_path, pin={"nobody": 1}, only=("credit", "noone"))

    named = {tuple(record.fields.values()) for record in caplog.records if "unknown models" in record.message}
    assert named == {("pin", "nobody"), ("only", "noone")}


@pytest.mark.parametrize(
    ("settings", "headers", "status", "message"),
    [
        ({}, {}, 403, "Start it with --admin"),
        ({"admin_token": "secret"}, {"authorization": "Bearer secret"}, 403, "Start it with --admin"),
        ({"admin": True, "admin_token": "secret"}, {}, 401, "--admin-token"),
        ({"admin": True, "admin_token": "secret"}, {"authorization": "Bearer no"}, 401, "--admin-token"),
        ({"admin": True, "admin_token": "secret"}, {"authorization": "Basic secret"}, 401, "--admin-token"),
        ({"admin": True}, {"origin": "https://elsewhere.example"}, 403, "pages of other sites"),
    ],
)
def test_only_operators_may_change_versions(
    tmp_path: Path,
    start: Start,
    settings: dict[str, Any],
    headers: dict[str, str],
    status: int,
    message: str,
) -> None:
    publish_credit(tmp_path, 1)
    server = start(models=tmp_path, **settings)

    response = act(server, "unload", 1, headers=headers)

    assert response.status_code == status
    assert message in message_of(response)
    assert response.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
    assert answering_version(server) == "1"


def test_the_token_is_accepted(tmp_path: Path, start: Start) -> None:
    publish_credit(tmp_path, 1, 2)
    server = start(models=tmp_path, admin=True, admin_token="secret")  # noqa: S106 -- of this test

    response = act(server, "promote", 1, headers={"authorization": "bearer secret"})

    assert (response.status_code, answering_version(server)) == (200, "1")


def test_the_action_must_be_known(two_versions: Running) -> None:
    response = act(two_versions, "rollback", 1)

    assert response.status_code == 422
    assert message_of(response) == "action: Input should be 'load', 'unload' or 'promote', not 'rollback'."
    assert [detail["where"] for detail in response.json()["error"]["details"]] == ["action"]


def test_another_method_is_refused_with_the_one_to_use(two_versions: Running) -> None:
    response = two_versions.client.get("/v1/models/credit/versions/1/load")

    assert response.status_code == 405
    assert response.headers["allow"] == "OPTIONS, POST"
    assert message_of(response).endswith("/load; use POST.")


def test_the_reason_of_a_version_that_cannot_be_loaded_outlives_rescans(tmp_path: Path, two_versions: Running) -> None:
    act(two_versions, "unload", 2)
    (tmp_path / "credit" / "2" / "model.onnx").write_bytes(b"not a graph")

    refused = act(two_versions, "promote", 2)
    rescan(two_versions)

    newest = two_versions.client.get("/v1/models/credit").json()["versions"][0]
    assert refused.status_code == 422
    assert "its checksum differs" in newest["reason"]


def test_if_no_version_is_served_the_reason_of_each_is_stated(two_versions: Running) -> None:
    act(two_versions, "unload", 2)
    act(two_versions, "unload", 1)

    error = two_versions.client.get("/v1/models/credit").json()["error"]
    ready = two_versions.client.get("/health/ready").json()

    assert [detail["where"] for detail in error["details"]] == ["versions.2", "versions.1"]
    assert all("unloaded by an operator" in detail["message"] for detail in error["details"])
    assert "credit/2 is not served: It was unloaded by an operator." in ready["reason"]


def test_changes_of_versions_are_logged_with_the_new_default(
    tmp_path: Path, two_versions: Running, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        act(two_versions, "promote", 1)
        shutil.rmtree(tmp_path / "credit" / "1")
        rescan(two_versions)

    logged = [(record.message, record.fields) for record in caplog.records if hasattr(record, "fields")]
    operator = {"model": "credit", "version": "1", "action": "promote", "default": "1"}
    defaults = [fields["version"] for message, fields in logged if message == "default version changed"]
    assert ("version changed by an operator", operator) in logged
    assert defaults[0] == "1"
    assert defaults[-1] == "2"


# With shadow traffic


def start_with_shadow(root: Path, start: Start, **settings: Any) -> Running:
    """Start a server with version 1 served, and version 2 evaluated on shadow traffic."""
    publish_credit(root, 1)
    server = start(models=root, **LENIENT | {"admin": True} | settings)
    publish_credit(root, 2)
    rescan(server)
    assert report(server)["verdict"] == "running"
    return server


def test_a_version_can_be_promoted_before_its_evaluation_ends(tmp_path: Path, start: Start) -> None:
    server = start_with_shadow(tmp_path, start)

    response = act(server, "promote", 2)
    answers = {answering_version(server) for _ in range(10)}

    assert (response.status_code, answers) == (200, {"2"})
    assert report(server)["verdict"] == "stopped"
    assert served_versions(server) == ["2"]


def test_promoting_the_served_version_ends_the_evaluation_of_a_newer_one(tmp_path: Path, start: Start) -> None:
    server = start_with_shadow(tmp_path, start)

    act(server, "promote", 1)
    rescan(server)
    answers = {answering_version(server) for _ in range(10)}

    assert answers == {"1"}
    assert report(server)["verdict"] == "stopped"


def test_unloading_a_version_ends_its_evaluation(tmp_path: Path, start: Start) -> None:
    server = start_with_shadow(tmp_path, start)

    act(server, "unload", 2)
    rescan(server)

    assert report(server)["verdict"] == "stopped"
    assert served_versions(server) == ["1"]


def test_a_version_loaded_beside_the_served_one_does_not_replace_it(tmp_path: Path, start: Start) -> None:
    server = start_with_shadow(tmp_path, start)

    act(server, "load", 2)
    rescan(server)

    assert answering_version(server) == "1"
    assert answering_version(server, "credit/versions/2") == "2"


def test_if_the_served_version_is_removed_the_evaluated_one_serves(tmp_path: Path, start: Start) -> None:
    server = start_with_shadow(tmp_path, start)

    shutil.rmtree(tmp_path / "credit" / "1")
    rescan(server)

    assert answering_version(server) == "2"
    assert report(server)["verdict"] == "stopped"


def test_a_removed_shadow_version_is_evaluated_no_longer(tmp_path: Path, start: Start) -> None:
    server = start_with_shadow(tmp_path, start)

    shutil.rmtree(tmp_path / "credit" / "2")
    rescan(server)

    assert {answering_version(server) for _ in range(10)} == {"1"}
    assert report(server)["verdict"] == "stopped"


def test_a_pinned_model_is_not_evaluated(tmp_path: Path, start: Start) -> None:
    publish_credit(tmp_path, 1, 2)
    server = start(models=tmp_path, **LENIENT | {"pin": {"credit": 1}})

    assert served_versions(server) == ["1"]
    assert server.client.get("/v1/models/credit/versions/2/shadow").status_code == 404


# At the same time


@dataclass
class SlowVersion:
    """A version whose graph waits for a gate when it is loaded."""

    gate: Gate
    is_loading: threading.Event = field(default_factory=threading.Event)
    graph: bytes = field(default_factory=lambda: with_other_checksum(credit_graph()))

    def open_backend(self, graph: bytes, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Backend:
        backend = OnnxRuntime("cpu", 1)(graph, inputs, outputs)
        return FakeBackend.wrap(backend, faults=[self._wait]) if graph == self.graph else backend

    def _wait(self, arrays: Arrays, run: Run) -> Arrays:
        self.is_loading.set()
        return self.gate(arrays, run)


@pytest.fixture
def slow() -> Iterator[SlowVersion]:
    """A version that can be loaded after the test, even if it fails: a blocked thread would keep the server running."""
    version = SlowVersion(Gate(timeout_s=60))
    yield version
    version.gate.open()


def start_with_slow_version(root: Path, start: Start, slow: SlowVersion) -> Running:
    """Start a server with version 1 promoted; version 3 is there and not loaded."""
    publish_credit(root, 1, 2)
    server = start(slow.open_backend, models=root, rescan_seconds=0, admin=True, hang_seconds=0)
    act(server, "promote", 1)
    publish(root, "credit", CREDIT, slow.graph, version=3)
    rescan(server)
    return server


@pytest.mark.parametrize("how", ["remove", "unload"])
def test_a_version_that_goes_serves_until_the_one_before_it_is_loaded(
    tmp_path: Path, start: Start, slow: SlowVersion, how: str
) -> None:
    publish(tmp_path, "credit", CREDIT, slow.graph, version=1)
    publish_credit(tmp_path, 2)
    server = start(slow.open_backend, models=tmp_path, rescan_seconds=0, admin=True, hang_seconds=0)

    with ThreadPoolExecutor(1) as threads:
        if how == "remove":
            shutil.rmtree(tmp_path / "credit" / "2")
            going = threads.submit(rescan, server)
        else:
            going = threads.submit(act, server, "unload", 2)
        slow.is_loading.wait(60)
        meanwhile = answering_version(server)
        slow.gate.open()
        going.result()

    assert (meanwhile, answering_version(server)) == ("2", "1")
    assert served_versions(server) == ["1"]


def test_requests_of_operators_wait_for_each_other_and_clients_do_not(
    tmp_path: Path, start: Start, slow: SlowVersion
) -> None:
    server = start_with_slow_version(tmp_path, start, slow)

    with ThreadPoolExecutor(3) as threads:
        promoting = threads.submit(act, server, "promote", 3)
        slow.is_loading.wait(60)
        unloading = threads.submit(act, server, "unload", 1)
        meanwhile = answering_version(server)
        were_done = promoting.done() or unloading.done()
        slow.gate.open()

    assert (meanwhile, were_done) == ("1", False)
    assert (promoting.result().status_code, unloading.result().status_code) == (200, 200)
    assert answering_version(server) == "3"


def test_a_change_is_made_even_if_the_client_does_not_wait_for_it(
    tmp_path: Path, start: Start, slow: SlowVersion
) -> None:
    server = start_with_slow_version(tmp_path, start, slow)

    with pytest.raises(httpx.ReadTimeout):
        act(server, "promote", 3, timeout=0.3)
    slow.gate.open()
    wait_until(lambda: answering_version(server) == "3")

    assert served_versions(server) == ["3"]
