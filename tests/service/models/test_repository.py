"""A model is served only where it is what was published; whatever is wrong with one costs the others nothing."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from service.backends.onnx import OnnxBackend, OnnxRuntime
from tasks.contract import Arrays, Run, TensorSpec, parameters_of
from tests.model_folders import COLOURS, CREDIT, colours_graph, credit_graph, publish, runner
from tests.service.conftest import Running, Start
from tests.waiting import wait_until

CREDIT_ROW = {"rows": [{"income": 50, "debt": 5, "job": "baker"}]}


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def flip_a_byte(folder: Path) -> None:
    content = bytearray((folder / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.onnx").write_bytes(content)


def other_goldens(folder: Path) -> None:
    goldens = json.loads((folder / "goldens.json").read_text())
    goldens[0]["answer"]["label"] = "nobody"
    (folder / "goldens.json").write_text(json.dumps(goldens))
    republish(folder)


def republish(folder: Path) -> None:
    """Writes the checksums anew: what a careless publisher would do."""
    from tasks.manifest import entries_of

    entries = {name: entry.model_dump() for name, entry in entries_of(folder).items()}
    change(folder / "manifest.json", files=entries)


def not_a_graph(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"not a graph")
    republish(folder)


def other_graph(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(credit_graph())
    republish(folder)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (flip_a_byte, "checksum differs"),
        (other_goldens, "golden 0 alone: answer.label is 'blue', not 'nobody'"),
        (not_a_graph, "cannot be loaded"),
        (other_graph, "the task promises image"),
        (lambda folder: (folder / "goldens.json").unlink(), "goldens.json is missing"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json is not valid"),
        (lambda folder: change(folder / "manifest.json", task="divination"), "'divination' is not one of"),
        (lambda folder: change(folder / "manifest.json", version="2"), "The manifest is that of colours/2"),
        (lambda folder: change(folder / "manifest.json", parameters={"labels": 3}), "do not describe a task"),
        (lambda folder: change(folder / "manifest.json", surprise=1), "manifest.json is not valid: surprise"),
    ],
)
def test_a_model_that_is_not_what_was_published_is_listed_with_the_reason_and_the_rest_are_served(
    tmp_path: Path, start: Start, harm: object, reason: str
) -> None:
    folder = publish(tmp_path, "colours", COLOURS, colours_graph())
    publish(tmp_path, "credit", CREDIT, credit_graph())
    harm(folder)  # type: ignore[operator]

    server = start(models=tmp_path)

    listed = {model["name"]: model for model in server.client.get("/v1/models").json()["models"]}
    refused = server.client.post("/v1/models/colours/predict", json={})
    assert listed["colours"]["state"] == "unavailable"
    assert reason in listed["colours"]["versions"][0]["reason"]
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_unavailable")
    assert server.client.get("/health/ready").json()["models"] == {"colours": False, "credit": True}
    assert server.client.post("/v1/models/credit/predict", json=CREDIT_ROW).status_code == 200


def test_where_the_newest_version_is_broken_the_one_before_it_serves(tmp_path: Path, start: Start) -> None:
    publish(tmp_path, "credit", CREDIT, credit_graph(), version=9)
    flip_a_byte(publish(tmp_path, "credit", CREDIT, credit_graph(), version=10))

    server = start(models=tmp_path)

    assert server.client.post("/v1/models/credit/predict", json=CREDIT_ROW).json()["version"] == "9"
    assert server.client.post("/v1/models/credit/versions/10/predict", json=CREDIT_ROW).status_code == 503
    assert server.client.post("/v1/models/credit/versions/11/predict", json=CREDIT_ROW).status_code == 404


@pytest.mark.parametrize(("versions", "served"), [(1, [False, False, True]), (2, [False, True, True]), (0, [True] * 3)])
def test_as_many_of_the_newest_versions_are_served_as_the_setting_says(
    tmp_path: Path, start: Start, versions: int, served: list[bool]
) -> None:
    for version in (1, 2, 10):
        publish(tmp_path, "credit", CREDIT, credit_graph(), version=version)

    server = start(models=tmp_path, versions=versions)

    got = [
        server.client.post(f"/v1/models/credit/versions/{version}/predict", json=CREDIT_ROW).status_code == 200
        for version in (1, 2, 10)
    ]
    assert got == served


def test_a_folder_without_a_servable_model_is_alive_and_not_ready(tmp_path: Path, start: Start) -> None:
    server = start(models=tmp_path)

    assert server.client.get("/health/live").status_code == 200
    assert server.client.get("/health/ready").status_code == 503


def test_a_half_written_version_is_not_there_yet(tmp_path: Path, start: Start) -> None:
    publish(tmp_path, "credit", CREDIT, credit_graph())
    (tmp_path / "credit" / ".2.partial").mkdir()
    (tmp_path / "credit" / "3").mkdir()

    server = start(models=tmp_path)

    assert [v["version"] for v in server.client.get("/v1/models").json()["models"][0]["versions"]] == ["1"]


class Unsteady:
    """A device that is right about one sample and wrong about two."""

    device = "fake"

    def __init__(self, run: Run) -> None:
        self._run = run

    def run(self, arrays: Arrays) -> Arrays:
        outputs = self._run(arrays)
        return outputs if len(arrays["numbers"]) == 1 else {name: 1 - array for name, array in outputs.items()}

    run_exclusive = run

    def release(self) -> None:
        """It keeps nothing."""

    def memory_in_use(self) -> None:
        """It does not know."""

    memory_free = memory_in_use


def test_a_model_whose_answers_depend_on_the_batch_is_not_served(tmp_path: Path, start: Start) -> None:
    publish(tmp_path, "credit", CREDIT, credit_graph())

    server = start(lambda graph, inputs, outputs: Unsteady(runner(graph)), models=tmp_path)

    (version,) = server.client.get("/v1/models").json()["models"][0]["versions"]
    assert version["state"] == "unavailable"
    assert "golden 0 in a batch" in version["reason"]


class Counting:
    """The real runtime, which counts the graphs that it loads."""

    def __init__(self) -> None:
        self.runtime = OnnxRuntime("cpu")
        self.loaded = 0

    def __call__(self, graph: bytes, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> OnnxBackend:
        self.loaded += 1
        return self.runtime(graph, inputs, outputs)


def test_versions_with_the_same_graph_share_it_and_differ_by_their_task(tmp_path: Path, start: Start) -> None:
    renamed = replace(CREDIT, labels=("refuses", "pays"))
    publish(tmp_path, "credit", CREDIT, credit_graph(), version=1)
    publish(tmp_path, "credit", renamed, credit_graph(), version=2)
    publish(tmp_path, "other", CREDIT, credit_graph())
    runtime = Counting()

    server = start(runtime, models=tmp_path, versions=0)

    answers = [
        server.client.post(f"/v1/models/{model}/predict", json=CREDIT_ROW).json()["predictions"][0]["label"]
        for model in ("credit/versions/1", "credit/versions/2", "other")
    ]
    assert answers == ["yes", "pays", "yes"]
    assert runtime.loaded == 1


def test_a_graph_that_is_shared_is_proved_by_the_goldens_of_each_version(tmp_path: Path, start: Start) -> None:
    publish(tmp_path, "credit", CREDIT, credit_graph())
    harmed = publish(tmp_path, "zebra", CREDIT, credit_graph())
    goldens = json.loads((harmed / "goldens.json").read_text())
    goldens[0]["answer"]["predictions"][0]["label"] = "nobody"
    (harmed / "goldens.json").write_text(json.dumps(goldens))
    republish(harmed)

    server = start(models=tmp_path)

    listed = {model["name"]: model for model in server.client.get("/v1/models").json()["models"]}
    assert listed["credit"]["state"] == "ready"
    assert "does not give the answers" in listed["zebra"]["versions"][0]["reason"]


def test_the_same_graph_for_a_task_with_other_tensors_is_not_shared(tmp_path: Path, start: Start) -> None:
    publish(tmp_path, "credit", CREDIT, credit_graph())
    twisted = publish(tmp_path, "twisted", CREDIT, credit_graph())
    change(twisted / "manifest.json", parameters=parameters_of(replace(CREDIT, columns=CREDIT.columns[:2])))

    server = start(Counting(), models=tmp_path)

    listed = {model["name"]: model for model in server.client.get("/v1/models").json()["models"]}
    assert listed["credit"]["state"] == "ready"
    assert "the task promises int64" in listed["twisted"]["versions"][0]["reason"]


def label_of(server: Running) -> tuple[str, str]:
    answer = server.client.post("/v1/models/credit/predict", json=CREDIT_ROW).json()
    return answer["version"], answer["predictions"][0]["label"]


def test_a_version_that_comes_later_is_taken_up_without_loading_the_network_again(tmp_path: Path, start: Start) -> None:
    publish(tmp_path, "credit", CREDIT, credit_graph(), version=1)
    runtime = Counting()
    server = start(runtime, models=tmp_path, rescan_seconds=0)
    before = label_of(server)

    publish(tmp_path, "credit", replace(CREDIT, labels=("refuses", "pays")), credit_graph(), version=2)
    server.service.repository.rescan()

    assert (before, label_of(server)) == (("1", "yes"), ("2", "pays"))
    assert runtime.loaded == 1
    versions = server.client.get("/v1/models").json()["models"][0]["versions"]
    assert versions[1]["reason"] == "A newer version is served."


def test_a_broken_version_that_comes_later_changes_nothing_but_the_list(tmp_path: Path, start: Start) -> None:
    publish(tmp_path, "credit", CREDIT, credit_graph(), version=1)
    server = start(models=tmp_path, rescan_seconds=0)

    flip_a_byte(publish(tmp_path, "credit", CREDIT, credit_graph(), version=2))
    server.service.repository.rescan()
    server.service.repository.rescan()

    assert label_of(server) == ("1", "yes")
    newest = server.client.get("/v1/models").json()["models"][0]["versions"][0]
    assert (newest["version"], newest["state"]) == ("2", "unavailable")


def test_the_folder_is_looked_at_again_and_again(tmp_path: Path, start: Start) -> None:
    root = tmp_path / "models"
    publish(root, "credit", CREDIT, credit_graph(), version=1)
    server = start(models=root, rescan_seconds=0.01)

    publish(tmp_path / "elsewhere", "other", CREDIT, credit_graph())
    (tmp_path / "elsewhere" / "other").rename(root / "other")

    wait_until(lambda: server.client.post("/v1/models/other/predict", json=CREDIT_ROW).status_code == 200)


def test_a_version_that_was_seen_half_copied_is_taken_up_when_it_is_whole(tmp_path: Path, start: Start) -> None:
    publish(tmp_path, "credit", CREDIT, credit_graph(), version=1)
    server = start(models=tmp_path, rescan_seconds=0)
    folder = publish(tmp_path, "credit", replace(CREDIT, labels=("refuses", "pays")), credit_graph(), version=2)
    graph = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").unlink()
    server.service.repository.rescan()
    before = label_of(server)

    (folder / "model.onnx").write_bytes(graph)
    server.service.repository.rescan()

    assert (before, label_of(server)) == (("1", "yes"), ("2", "pays"))


def test_a_version_that_was_replaced_is_not_found(tmp_path: Path, start: Start) -> None:
    publish(tmp_path, "credit", CREDIT, credit_graph(), version=1)
    publish(tmp_path, "credit", CREDIT, credit_graph(), version=2)
    server = start(models=tmp_path)

    refused = server.client.post("/v1/models/credit/versions/1/predict", json=CREDIT_ROW)

    assert refused.status_code == 404
    assert "no longer served" in refused.json()["error"]["message"]


def test_how_far_the_batch_changes_an_output_is_shown_as_published_and_as_measured(
    tmp_path: Path, start: Start
) -> None:
    folder = publish(tmp_path, "credit", CREDIT, credit_graph())
    change(folder / "manifest.json", batch_invariance={"probabilities": 3e-7})

    server = start(models=tmp_path)

    (shown,) = server.client.get("/v1/models/credit").json()["batch_invariance"]
    assert (shown["output"], shown["published"]) == ("probabilities", 3e-7)
    assert 0 <= shown["measured"] < 1e-4


def test_a_manifest_without_that_figure_is_read_as_before(tmp_path: Path, start: Start) -> None:
    folder = publish(tmp_path, "credit", CREDIT, credit_graph())
    written = json.loads((folder / "manifest.json").read_text())
    written.pop("batch_invariance")
    (folder / "manifest.json").write_text(json.dumps(written))

    server = start(models=tmp_path)

    assert server.client.get("/v1/models/credit").json()["batch_invariance"][0]["published"] is None


class Leaning:
    """A device whose answers lean to one side by a little in company: less than goldens may differ by."""

    device = "cpu"

    def __init__(self, run: Run, lean: float) -> None:
        self._run = run
        self._lean = lean

    def run_exclusive(self, arrays: Arrays) -> Arrays:
        return self._run(arrays)

    def run(self, arrays: Arrays) -> Arrays:
        return {name: array + array.dtype.type(self._lean) for name, array in self._run(arrays).items()}

    def release(self) -> None:
        """It keeps nothing."""

    def memory_in_use(self) -> int | None:
        return None

    def memory_free(self) -> int | None:
        return None


@pytest.mark.parametrize(
    ("published", "lean", "refused"),
    [(None, 5e-5, False), (None, 5e-4, True), (1e-7, 5e-4, True), (2e-4, 5e-4, False), (1e-7, 5e-5, False)],
)
def test_a_batch_may_change_an_answer_by_what_the_manifest_says_or_the_gate_lets_through(
    tmp_path: Path, start: Start, published: float | None, lean: float, refused: bool
) -> None:
    folder = publish(tmp_path, "credit", CREDIT, credit_graph())
    if published is not None:
        change(folder / "manifest.json", batch_invariance={"probabilities": published})

    server = start(lambda graph, inputs, outputs: Leaning(runner(graph), lean), models=tmp_path)

    (version,) = server.client.get("/v1/models").json()["models"][0]["versions"]
    assert (version["state"] == "unavailable") == refused
    if refused:
        stated = "does not say by how much" if published is None else f"says {published:.1e}"
        assert version["reason"] == (
            "The batch that a sample is in changes probabilities by 5.0e-04 on this device; the manifest "
            f"{stated}, and at most 1.0e-04 is accepted."
        )


def test_the_pipeline_of_a_retired_version_is_closed_when_its_last_request_has_ended(
    tmp_path: Path, start: Start
) -> None:
    publish(tmp_path, "credit", CREDIT, credit_graph(), version=1)
    server = start(models=tmp_path, rescan_seconds=0)
    repository, retired = server.service.repository, []
    repository.on_retired = retired.append
    publish(tmp_path, "credit", CREDIT, credit_graph(), version=2)
    repository.rescan()
    publish(tmp_path, "credit", CREDIT, credit_graph(), version=3)
    held = repository.find("credit")  # As a request under way does.
    repository.rescan()
    before = list(retired)
    pipeline = held.pipeline

    del held

    assert (before, retired) == ([], [pipeline])
    assert label_of(server) == ("3", "yes")


def test_a_version_that_is_deleted_or_overwritten_while_it_is_served_goes_on_serving(
    tmp_path: Path, start: Start
) -> None:
    folder = publish(tmp_path, "credit", CREDIT, credit_graph(), version=1)
    server = start(models=tmp_path, rescan_seconds=0)

    flip_a_byte(folder)
    server.service.repository.rescan()
    overwritten = label_of(server)
    shutil.rmtree(folder.parent)
    server.service.repository.rescan()

    assert (overwritten, label_of(server)) == (("1", "yes"), ("1", "yes"))
    assert server.client.get("/v1/models/credit").json()["card"] == "# credit\n"


def test_a_broken_version_that_is_taken_away_is_no_longer_listed(tmp_path: Path, start: Start) -> None:
    publish(tmp_path, "credit", CREDIT, credit_graph(), version=1)
    server = start(models=tmp_path, rescan_seconds=0)
    broken = publish(tmp_path, "credit", CREDIT, credit_graph(), version=2)
    flip_a_byte(broken)
    server.service.repository.rescan()

    shutil.rmtree(broken)
    server.service.repository.rescan()

    assert [v["version"] for v in server.client.get("/v1/models").json()["models"][0]["versions"]] == ["1"]
