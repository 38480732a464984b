"""The repository: which versions are listed, loaded, verified, served, replaced and retired."""

import json
import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from service.backends.base import Backend
from service.backends.fake import FakeBackend
from service.backends.onnx import OnnxRuntime
from tasks.contract import Arrays, Run, TensorSpec, parameters_of
from tests.model_folders import edit_manifest, publish, runner, update_checksums
from tests.service.conftest import Running, Start
from tests.tiny.classification import COLOURS, colours_graph
from tests.tiny.tabular import CREDIT, credit_graph
from tests.waiting import wait_until

CREDIT_ROW = {"rows": [{"income": 50, "debt": 5, "job": "baker"}]}


def predict(server: Running, model: str = "credit") -> int:
    """Send a request; return its status."""
    return server.client.post(f"/v1/models/{model}/predict", json=CREDIT_ROW).status_code


def predicted_label(server: Running) -> tuple[str, str]:
    """Send a request; return the version that answered, and the label."""
    answer = server.client.post("/v1/models/credit/predict", json=CREDIT_ROW).json()
    return answer["version"], answer["predictions"][0]["label"]


def listed_models(server: Running) -> dict[str, dict]:
    return {model["name"]: model for model in server.client.get("/v1/models").json()["models"]}


def flip_a_byte(folder: Path) -> None:
    content = bytearray((folder / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.onnx").write_bytes(content)


def change_golden_label(folder: Path) -> None:
    goldens = json.loads((folder / "goldens.json").read_text())
    answer = goldens[0]["answer"]
    answer.get("predictions", [answer])[0]["label"] = "wrong"
    (folder / "goldens.json").write_text(json.dumps(goldens))
    update_checksums(folder)


def replace_graph(folder: Path, graph: bytes) -> None:
    (folder / "model.onnx").write_bytes(graph)
    update_checksums(folder)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip_a_byte, "checksum differs"),
        (change_golden_label, "golden 0 alone: answer.label is 'blue', not 'wrong'"),
        (lambda folder: replace_graph(folder, b"not a graph"), "cannot be loaded"),
        (lambda folder: replace_graph(folder, credit_graph()), "the task requires image"),
        (lambda folder: (folder / "goldens.json").unlink(), "goldens.json is missing"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json is not valid"),
        (lambda folder: edit_manifest(folder, task="divination"), "'divination' is not one of"),
        (lambda folder: edit_manifest(folder, version="2"), "The manifest belongs to colours/2"),
        (lambda folder: edit_manifest(folder, parameters={"labels": 3}), "do not describe a task"),
        (lambda folder: edit_manifest(folder, surprise=1), "manifest.json is not valid: surprise"),
    ],
)
def test_broken_model_is_listed_with_the_reason_and_the_others_are_served(
    tmp_path: Path, start: Start, damage: Callable[[Path], object], reason: str
) -> None:
    folder = publish(tmp_path, "colours", COLOURS, colours_graph())
    publish(tmp_path, "credit", CREDIT, credit_graph())
    damage(folder)

    server = start(models=tmp_path)

    listed = listed_models(server)["colours"]
    rejected = server.client.post("/v1/models/colours/predict", json={})
    assert listed["state"] == "unavailable"
    assert reason in listed["versions"][0]["reason"]
    assert (rejected.status_code, rejected.json()["error"]["code"]) == (503, "model_unavailable")
    assert server.client.get("/health/ready").json()["models"] == {"colours": False, "credit": True}
    assert predict(server) == 200


def test_previous_version_serves_if_the_newest_is_broken(tmp_path: Path, start: Start) -> None:
    publish(tmp_path, "credit", CREDIT, credit_graph(), version=9)
    flip_a_byte(publish(tmp_path, "credit", CREDIT, credit_graph(), version=10))

    server = start(models=tmp_path)

    assert predicted_label(server)[0] == "9"
    assert predict(server, "credit/versions/10") == 503
    assert predict(server, "credit/versions/11") == 404


@pytest.mark.parametrize(("versions", "served"), [(1, [False, False, True]), (2, [False, True, True]), (0, [True] * 3)])
def test_setting_limits_how_many_of_the_newest_versions_are_served(
    tmp_path: Path, start: Start, versions: int, served: list[bool]
) -> None:
    for version in (1, 2, 10):
        publish(tmp_path, "credit", CREDIT, credit_graph(), version=version)

    server = start(models=tmp_path, versions=versions)

    assert [predict(server, f"credit/versions/{version}") == 200 for version in (1, 2, 10)] == served


def test_server_without_models_is_alive_and_started_but_not_ready(tmp_path: Path, start: Start) -> None:
    server = start(models=tmp_path)

    assert server.client.get("/health/started").json() == {"started": True}
    assert server.client.get("/health/live").status_code == 200
    assert server.client.get("/health/ready").status_code == 503


def test_unfinished_version_folders_are_not_listed(tmp_path: Path, start: Start) -> None:
    publish(tmp_path, "credit", CREDIT, credit_graph())
    (tmp_path / "credit" / ".2.partial").mkdir()
    (tmp_path / "credit" / "3").mkdir()

    server = start(models=tmp_path)

    assert [version["version"] for version in listed_models(server)["credit"]["versions"]] == ["1"]


def test_model_whose_answers_depend_on_the_batch_is_not_served(tmp_path: Path, start: Start) -> None:
    publish(tmp_path, "credit", CREDIT, credit_graph())

    def wrong_in_batches(arrays: Arrays, run: Run) -> Arrays:
        outputs = run(arrays)
        return outputs if len(arrays["numbers"]) == 1 else {name: 1 - array for name, array in outputs.items()}

    server = start(lambda graph, *specs: FakeBackend(runner(graph), faults=[wrong_in_batches]), models=tmp_path)

    (version,) = listed_models(server)["credit"]["versions"]
    assert version["state"] == "unavailable"
    assert "golden 0 in a batch" in version["reason"]


class CountingRuntime:
    """ONNX Runtime that counts the graphs it opens."""

    def __init__(self) -> None:
        self.runtime = OnnxRuntime("cpu")
        self.opened = 0

    def __call__(self, graph: bytes, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Backend:
        self.opened += 1
        return self.runtime(graph, inputs, outputs)


def test_versions_with_the_same_graph_share_it_and_differ_in_their_task(tmp_path: Path, start: Start) -> None:
    renamed = replace(CREDIT, labels=("refuses", "pays"))
    publish(tmp_path, "credit", CREDIT, credit_graph(), version=1)
    publish(tmp_path, "credit", renamed, credit_graph(), version=2)
    publish(tmp_path, "other", CREDIT, credit_graph())
    runtime = CountingRuntime()

    server = start(runtime, models=tmp_path, versions=0)

    labels = [
        server.client.post(f"/v1/models/{model}/predict", json=CREDIT_ROW).json()["predictions"][0]["label"]
        for model in ("credit/versions/1", "credit/versions/2", "other")
    ]
    assert labels == ["yes", "pays", "yes"]
    assert runtime.opened == 1


def test_shared_graph_is_verified_with_the_goldens_of_each_version(tmp_path: Path, start: Start) -> None:
    publish(tmp_path, "credit", CREDIT, credit_graph())
    change_golden_label(publish(tmp_path, "zebra", CREDIT, credit_graph()))

    server = start(models=tmp_path)

    listed = listed_models(server)
    assert listed["credit"]["state"] == "ready"
    assert "does not reproduce its published answers" in listed["zebra"]["versions"][0]["reason"]


def test_graph_is_not_shared_with_a_task_that_has_other_tensors(tmp_path: Path, start: Start) -> None:
    publish(tmp_path, "credit", CREDIT, credit_graph())
    mismatched = publish(tmp_path, "mismatched", CREDIT, credit_graph())
    edit_manifest(mismatched, parameters=parameters_of(replace(CREDIT, columns=CREDIT.columns[:2])))

    server = start(CountingRuntime(), models=tmp_path)

    listed = listed_models(server)
    assert listed["credit"]["state"] == "ready"
    assert "the task requires int64" in listed["mismatched"]["versions"][0]["reason"]


def test_new_version_replaces_the_old_one_without_opening_the_same_graph_again(tmp_path: Path, start: Start) -> None:
    publish(tmp_path, "credit", CREDIT, credit_graph(), version=1)
    runtime = CountingRuntime()
    server = start(runtime, models=tmp_path, rescan_seconds=0)
    before = predicted_label(server)

    publish(tmp_path, "credit", replace(CREDIT, labels=("refuses", "pays")), credit_graph(), version=2)
    server.service.repository.rescan()

    assert (before, predicted_label(server)) == (("1", "yes"), ("2", "pays"))
    assert runtime.opened == 1
    assert listed_models(server)["credit"]["versions"][1]["reason"] == "A newer version is served."


def test_broken_new_version_is_listed_and_the_old_one_keeps_serving(tmp_path: Path, start: Start) -> None:
    publish(tmp_path, "credit", CREDIT, credit_graph(), version=1)
    server = start(models=tmp_path, rescan_seconds=0)

    flip_a_byte(publish(tmp_path, "credit", CREDIT, credit_graph(), version=2))
    server.service.repository.rescan()
    server.service.repository.rescan()

    assert predicted_label(server) == ("1", "yes")
    newest = listed_models(server)["credit"]["versions"][0]
    assert (newest["version"], newest["state"]) == ("2", "unavailable")


def test_server_rescans_the_folder_regularly(tmp_path: Path, start: Start) -> None:
    root = tmp_path / "models"
    publish(root, "credit", CREDIT, credit_graph(), version=1)
    server = start(models=root, rescan_seconds=0.01)

    publish(tmp_path / "elsewhere", "other", CREDIT, credit_graph())
    (tmp_path / "elsewhere" / "other").rename(root / "other")

    wait_until(lambda: predict(server, "other") == 200)


def test_version_seen_half_copied_is_loaded_once_it_is_complete(tmp_path: Path, start: Start) -> None:
    publish(tmp_path, "credit", CREDIT, credit_graph(), version=1)
    server = start(models=tmp_path, rescan_seconds=0)
    folder = publish(tmp_path, "credit", replace(CREDIT, labels=("refuses", "pays")), credit_graph(), version=2)
    graph = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").unlink()
    server.service.repository.rescan()
    before = predicted_label(server)

    (folder / "model.onnx").write_bytes(graph)
    server.service.repository.rescan()

    assert (before, predicted_label(server)) == (("1", "yes"), ("2", "pays"))


def test_request_to_a_replaced_version_is_answered_with_404(tmp_path: Path, start: Start) -> None:
    publish(tmp_path, "credit", CREDIT, credit_graph(), version=1)
    publish(tmp_path, "credit", CREDIT, credit_graph(), version=2)
    server = start(models=tmp_path)

    rejected = server.client.post("/v1/models/credit/versions/1/predict", json=CREDIT_ROW)

    assert rejected.status_code == 404
    assert "no longer served" in rejected.json()["error"]["message"]


def test_published_and_measured_batch_deviation_are_shown(tmp_path: Path, start: Start) -> None:
    folder = publish(tmp_path, "credit", CREDIT, credit_graph())
    edit_manifest(folder, batch_invariance={"probabilities": 3e-7})

    server = start(models=tmp_path)

    (shown,) = server.client.get("/v1/models/credit").json()["batch_invariance"]
    assert (shown["output"], shown["published"]) == ("probabilities", 3e-7)
    assert 0 <= shown["measured"] < 1e-4


def test_manifest_without_batch_deviation_is_accepted(tmp_path: Path, start: Start) -> None:
    folder = publish(tmp_path, "credit", CREDIT, credit_graph())
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.pop("batch_invariance")
    (folder / "manifest.json").write_text(json.dumps(manifest))

    server = start(models=tmp_path)

    assert server.client.get("/v1/models/credit").json()["batch_invariance"][0]["published"] is None


@pytest.mark.parametrize(
    ("published", "bias", "rejected"),
    [(None, 5e-5, False), (None, 5e-4, True), (1e-7, 5e-4, True), (2e-4, 5e-4, False), (1e-7, 5e-5, False)],
)
def test_batch_may_change_outputs_by_what_the_manifest_or_the_parity_gate_allows(
    tmp_path: Path, start: Start, published: float | None, bias: float, rejected: bool
) -> None:
    folder = publish(tmp_path, "credit", CREDIT, credit_graph())
    if published is not None:
        edit_manifest(folder, batch_invariance={"probabilities": published})

    def open_backend(graph: bytes, *specs: object) -> FakeBackend:
        run = runner(graph)

        def run_biased(arrays: Arrays) -> Arrays:
            return {name: array + array.dtype.type(bias) for name, array in run(arrays).items()}

        return FakeBackend(run_biased, function_exclusive=run, device="cpu")

    server = start(open_backend, models=tmp_path)

    (version,) = listed_models(server)["credit"]["versions"]
    assert (version["state"] == "unavailable") == rejected
    if rejected:
        stated = "states no value" if published is None else f"states {published:.1e}"
        assert version["reason"] == (
            f"Batching changes output probabilities by 5.0e-04 on this device; the manifest {stated}, and at most "
            "1.0e-04 is accepted."
        )


def test_pipeline_of_a_retired_version_is_closed_after_its_last_lease(tmp_path: Path, start: Start) -> None:
    publish(tmp_path, "credit", CREDIT, credit_graph(), version=1)
    server = start(models=tmp_path, rescan_seconds=0)
    repository, retired = server.service.repository, []
    repository.on_retired = retired.append
    publish(tmp_path, "credit", CREDIT, credit_graph(), version=2)
    repository.rescan()
    publish(tmp_path, "credit", CREDIT, credit_graph(), version=3)

    with repository.lease("credit") as model, repository.lease("credit", "2"):  # As requests in progress do.
        repository.rescan()
        with repository.lease("credit") as newer:
            assert newer.manifest.version == "3"
        before = list(retired)

    assert (before, retired) == ([], [model.pipeline])
    assert predicted_label(server) == ("3", "yes")


def test_a_retired_version_is_freed_although_its_parts_refer_to_each_other(tmp_path: Path, start: Start) -> None:
    root = tmp_path / "models"
    publish(root, "credit", CREDIT, credit_graph(), version=1)
    server = start(models=root, rescan_seconds=0.01)
    pipeline = weakref.ref(server.service.repository.find("credit").pipeline)

    publish(tmp_path, "credit", CREDIT, credit_graph(), version=2).rename(root / "credit" / "2")

    wait_until(lambda: pipeline() is None)
    assert predicted_label(server)[0] == "2"


def test_served_version_keeps_serving_after_its_files_are_overwritten(tmp_path: Path, start: Start) -> None:
    folder = publish(tmp_path, "credit", CREDIT, credit_graph(), version=1)
    server = start(models=tmp_path, rescan_seconds=0)

    flip_a_byte(folder)
    (folder / "README.md").unlink()
    server.service.repository.rescan()

    assert predicted_label(server) == ("1", "yes")
    assert server.client.get("/v1/models/credit").json()["card"] == "# credit\n"


def test_deleted_broken_version_is_no_longer_listed(tmp_path: Path, start: Start) -> None:
    publish(tmp_path, "credit", CREDIT, credit_graph(), version=1)
    server = start(models=tmp_path, rescan_seconds=0)
    broken = publish(tmp_path, "credit", CREDIT, credit_graph(), version=2)
    flip_a_byte(broken)
    server.service.repository.rescan()

    shutil.rmtree(broken)
    server.service.repository.rescan()

    assert [version["version"] for version in listed_models(server)["credit"]["versions"]] == ["1"]
