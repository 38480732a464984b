"""What is there is what is served: versions and models are removed, half copied, half removed, unreadable."""

import logging
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic_core import to_json

from tests.model_folders import publish
from tests.service.conftest import Running, Start
from tests.tiny.tabular import CREDIT, credit_graph
from tests.waiting import wait_until

ROW = {"rows": [{"income": 50, "debt": 5, "job": "baker"}]}


def publish_credit(root: Path, *versions: int, name: str = "credit") -> None:
    for version in versions:
        publish(root, name, CREDIT, credit_graph(), version=version)


def answering_version(server: Running, model: str = "credit") -> str | int:
    """Return the version that answers, or the status of the error."""
    response = server.client.post(f"/v1/models/{model}/predict", json=ROW)
    return str(response.json()["version"]) if response.status_code == 200 else response.status_code


def listed(server: Running) -> dict[str, dict[str, str | None]]:
    """Return the reason of each version of each model; None for a version that is served."""
    models = server.client.get("/v1/models").json()["models"]
    return {m["name"]: {version["version"]: version["reason"] for version in m["versions"]} for m in models}


def rescan(server: Running) -> None:
    server.service.repository.rescan()


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged at WARNING or above: the path or model, and the reason."""
    fields: list[dict[str, Any]] = [
        getattr(record, "fields", {}) for record in caplog.records if record.levelno >= logging.WARNING
    ]
    return [f"{Path(entry.get('path', '')).name}: {entry.get('reason')}" for entry in fields]


def test_a_removed_version_is_no_longer_served_and_the_one_before_it_is(tmp_path: Path, start: Start) -> None:
    publish_credit(tmp_path, 1, 2, 3)
    server = start(models=tmp_path, rescan_seconds=0)

    shutil.rmtree(tmp_path / "credit" / "3")
    rescan(server)

    assert answering_version(server) == "2"
    assert answering_version(server, "credit/versions/3") == 404
    assert list(listed(server)["credit"]) == ["2", "1"]
    assert server.client.get("/health/ready").status_code == 200


def test_a_removed_model_is_no_longer_served_and_the_others_are(tmp_path: Path, start: Start) -> None:
    publish_credit(tmp_path, 1)
    publish_credit(tmp_path, 1, name="other")
    server = start(models=tmp_path, rescan_seconds=0.01)

    shutil.rmtree(tmp_path / "credit")
    wait_until(lambda: answering_version(server) == 404)

    assert answering_version(server, "other") == "1"
    assert list(listed(server)) == ["other"]
    assert server.client.get("/health/ready").json()["models"] == {"other": True}


def test_the_last_model_can_be_removed_and_added_again(tmp_path: Path, start: Start) -> None:
    publish_credit(tmp_path, 1)
    server = start(models=tmp_path, rescan_seconds=0)

    shutil.rmtree(tmp_path / "credit")
    rescan(server)
    without = answering_version(server)
    publish_credit(tmp_path, 7)
    rescan(server)

    assert (without, answering_version(server)) == (404, "7")


def test_a_request_in_progress_is_answered_by_the_version_that_is_removed(tmp_path: Path, start: Start) -> None:
    publish_credit(tmp_path, 1)
    server = start(models=tmp_path, rescan_seconds=0)

    with server.service.repository.lease("credit") as model:
        shutil.rmtree(tmp_path / "credit")
        rescan(server)
        is_answered = model.task.answer(model.pipeline.backend.run, ROW).plain()["predictions"][0]["label"]

    assert (is_answered, answering_version(server)) == ("yes", 404)


def test_with_two_versions_served_a_removed_one_is_made_up_for_by_an_older_one(tmp_path: Path, start: Start) -> None:
    publish_credit(tmp_path, 1, 2, 3)
    server = start(models=tmp_path, rescan_seconds=0, versions=2)

    shutil.rmtree(tmp_path / "credit" / "2")
    rescan(server)

    assert listed(server)["credit"] == {"3": None, "1": None}


def test_a_half_removed_version_is_not_served(tmp_path: Path, start: Start) -> None:
    publish_credit(tmp_path, 1, 2)
    server = start(models=tmp_path, rescan_seconds=0)

    (tmp_path / "credit" / "2" / "manifest.json").unlink()
    rescan(server)

    assert answering_version(server) == "1"
    assert "manifest.json is missing" in str(listed(server)["credit"]["2"])


def test_a_half_copied_version_is_served_once_its_manifest_is_there(tmp_path: Path, start: Start) -> None:
    publish_credit(tmp_path, 1, 2)
    manifest = tmp_path / "credit" / "2" / "manifest.json"
    content = manifest.read_bytes()
    manifest.unlink()
    server = start(models=tmp_path, rescan_seconds=0)
    before = answering_version(server)

    manifest.write_bytes(content)
    rescan(server)

    assert (before, answering_version(server)) == ("1", "2")


@pytest.mark.parametrize("graph", ["model.onnx", "My net.onnx", os.fsdecode(b"\xff.onnx")])
def test_a_graph_without_a_manifest_is_listed_with_what_is_missing_and_what_to_do(
    tmp_path: Path, start: Start, caplog: pytest.LogCaptureFixture, graph: str
) -> None:
    publish_credit(tmp_path, 1)
    folder = tmp_path / "mine" / "1"
    folder.mkdir(parents=True)
    (folder / graph).write_bytes(credit_graph())

    server = start(models=tmp_path, rescan_seconds=0)
    rescan(server)

    reason = str(listed(server)["mine"]["1"])
    rejected = server.client.post("/v1/models/mine/predict", json=ROW)
    assert "manifest.json is missing" in reason
    path = shlex.quote(f"mine/1/{graph}".encode("utf-8", "backslashreplace").decode())
    assert f"python -m service import {path} --task TASK --name mine" in reason
    assert rejected.status_code == 503
    assert reason in rejected.json()["error"]["message"]
    assert messages(caplog) == [f"1: {reason}"], "it is logged once, not at every rescan"


def test_folders_whose_names_are_no_models_or_versions_are_logged_once(
    tmp_path: Path, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    publish_credit(tmp_path, 1)
    for folder in ("My Model", "lost+found", "credit/v2", "credit/007", "credit/old", ".cache", "credit/.partial"):
        (tmp_path / folder).mkdir()
    for graph in ("loose.onnx", "credit/direct.onnx"):
        (tmp_path / graph).write_bytes(b"")

    server = start(models=tmp_path, rescan_seconds=0)
    rescan(server)
    rescan(server)

    named = sorted(message.partition(":")[0] for message in messages(caplog))
    assert named == ["007", "My Model", "direct.onnx", "loose.onnx", "lost+found", "old", "v2"]
    assert list(listed(server)) == ["credit"]


def test_a_folder_that_cannot_be_found_for_a_moment_takes_nothing_down(
    tmp_path: Path, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "models"
    publish_credit(root, 1)
    server = start(models=root, rescan_seconds=0)

    root.rename(tmp_path / "away")
    rescan(server)
    rescan(server)
    while_away = answering_version(server)
    (tmp_path / "away").rename(root)
    publish_credit(root, 2)
    rescan(server)

    assert (while_away, answering_version(server)) == ("1", "2")
    assert len(messages(caplog)) == 1
    assert "does not exist" in messages(caplog)[0]


def test_the_empty_folder_that_an_unmounted_volume_leaves_takes_nothing_down(
    tmp_path: Path, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "models"
    publish_credit(root, 1)
    server = start(models=root, rescan_seconds=0)

    root.rename(tmp_path / "volume")
    root.mkdir()
    rescan(server)

    assert answering_version(server) == "1"
    assert "Is its volume mounted?" in messages(caplog)[0]


@pytest.fixture
def forbid() -> Callable[[Path], Path]:
    """Makes a folder or file unreadable; skipped for a user to whom permissions do not apply."""

    def take_permissions(path: Path) -> Path:
        path.chmod(0)
        if os.access(path, os.R_OK):
            path.chmod(0o755)
            pytest.skip("This user may read everything.")
        return path

    return take_permissions


@pytest.mark.parametrize("place", [".", "credit", "credit/1"])
def test_what_is_served_stays_if_its_folder_cannot_be_read(
    tmp_path: Path, start: Start, forbid: Callable[[Path], Path], place: str
) -> None:
    publish_credit(tmp_path, 1)
    server = start(models=tmp_path, rescan_seconds=0)

    folder = forbid(tmp_path / place)
    rescan(server)
    during = answering_version(server)
    folder.chmod(0o755)
    rescan(server)

    assert (during, answering_version(server)) == ("1", "1")


@pytest.mark.parametrize("file", ["manifest.json", "model.onnx"])
def test_a_file_that_cannot_be_read_is_named_without_its_folder_and_tried_again(
    tmp_path: Path, start: Start, caplog: pytest.LogCaptureFixture, file: str
) -> None:
    """A link to itself cannot be read, by any user."""
    root = tmp_path / "models"
    publish_credit(root, 1, 2)
    path = root / "credit" / "2" / file
    path.rename(tmp_path / file)
    path.symlink_to(path)
    server = start(models=root, rescan_seconds=0)
    before, reason = answering_version(server), str(listed(server)["credit"]["2"])
    rescan(server)
    logged = len(messages(caplog))

    path.unlink()
    (tmp_path / file).rename(path)
    rescan(server)

    assert (before, answering_version(server)) == ("1", "2")
    assert file in reason
    assert str(tmp_path) not in reason
    assert logged == 1


def test_links_to_themselves_pipes_and_names_that_are_no_text_affect_no_other_model(
    tmp_path: Path, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    publish_credit(tmp_path, 1)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "credit" / "2").symlink_to(tmp_path / "credit" / "2")
    os.mkfifo(tmp_path / "credit" / "pipe.onnx")
    (tmp_path / "piped" / "1").mkdir(parents=True)
    os.mkfifo(tmp_path / "piped" / "1" / "manifest.json")
    os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")

    server = start(models=tmp_path, rescan_seconds=0)
    rescan(server)

    assert listed(server) == {"credit": {"1": None}, "piped": {"1": "manifest.json is not a file."}}
    assert all(to_json(message) for message in messages(caplog))


def test_the_files_that_are_served_are_those_that_were_verified(tmp_path: Path, start: Start) -> None:
    """Loading reads each file once: what is replaced after the check of its hash has no effect."""
    folder = tmp_path / "credit" / "1"
    publish_credit(tmp_path, 1)

    def open_and_replace(graph: bytes, inputs: Any, outputs: Any) -> Any:
        from service.backends.onnx import OnnxRuntime

        for name in ("model.onnx", "goldens.json", "README.md"):
            (folder / name).write_bytes(b"replaced")
        return OnnxRuntime("cpu", 1)(graph, inputs, outputs)

    server = start(open_and_replace, models=tmp_path, rescan_seconds=0)

    assert answering_version(server) == "1"
    assert server.client.get("/v1/models/credit").json()["card"] == "# credit\n"
