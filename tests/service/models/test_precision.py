"""Which graph of a version runs: that in 32 bits, or a variant of lower precision."""

import json
import logging
from pathlib import Path

import onnx
import pytest
from onnx import helper

from service.models.precision import PrecisionPolicy
from tasks.manifest import BrokenModel, read_files, read_manifest
from tests.model_folders import add_variant, edit_manifest, publish, update_checksums, with_other_checksum
from tests.service.conftest import Running, Start
from tests.tiny.tabular import CREDIT, credit_graph

ROW = {"rows": [{"income": 50, "debt": 5, "job": "baker"}]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return publish(tmp_path, "credit", CREDIT, credit_graph())


def flipped_graph() -> bytes:
    """Return a graph that predicts the other label, so that its answers tell which graph gave them."""
    return subtracted_from(1.0)


def nan_graph() -> bytes:
    """Return a graph whose outputs are no numbers, as after an overflow in 16 bits."""
    return subtracted_from(float("nan"))


def subtracted_from(number: float) -> bytes:
    model = onnx.load_model_from_string(credit_graph())
    name = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["original" if output == name else output for output in node.output]
    model.graph.initializer.append(helper.make_tensor("one", onnx.TensorProto.FLOAT, [], [number]))
    model.graph.node.append(helper.make_node("Sub", ["one", "original"], [name]))
    return bytes(model.SerializeToString())


def predicted_label(server: Running) -> str:
    return server.client.post("/v1/models/credit/predict", json=ROW).json()["predictions"][0]["label"]


def precision_of(server: Running) -> str:
    return server.client.get("/v1/models/credit").json()["precision"]


def chosen(folder: Path, policy: PrecisionPolicy) -> list[str]:
    return [variant.precision for variant in policy.variants_of(read_manifest(folder))]


def test_automatically_a_cpu_runs_a_faster_int8_variant_and_a_gpu_one_in_fp16(folder: Path) -> None:
    add_variant(folder, credit_graph(), precision="fp16", speedup=0.5)
    add_variant(folder, credit_graph(), precision="int8", speedup=2.0)

    assert chosen(folder, PrecisionPolicy(device="cpu", has_int8_dot_product=True)) == ["int8"]
    assert chosen(folder, PrecisionPolicy(device="cpu", has_int8_dot_product=False)) == []
    assert chosen(folder, PrecisionPolicy(device="cuda", has_int8_dot_product=True)) == ["fp16"]
    assert chosen(folder, PrecisionPolicy("fp32", device="cuda")) == []


@pytest.mark.parametrize("speedup", [1.02, None], ids=["hardly faster", "not measured"])
def test_an_int8_variant_that_has_not_been_measured_to_be_faster_is_run_on_request_only(
    folder: Path, speedup: float | None
) -> None:
    add_variant(folder, credit_graph(), speedup=speedup)

    assert chosen(folder, PrecisionPolicy(has_int8_dot_product=True)) == []
    assert chosen(folder, PrecisionPolicy("int8")) == ["int8"]


def test_a_variant_that_loses_more_than_the_limit_is_not_run_even_on_request(folder: Path) -> None:
    add_variant(folder, credit_graph(), points=0.7)

    assert chosen(folder, PrecisionPolicy("int8", max_loss=0.5)) == []
    assert chosen(folder, PrecisionPolicy("int8", max_loss=1.0)) == ["int8"]


def test_the_variant_answers_and_the_model_page_describes_it(folder: Path, start: Start) -> None:
    variant = add_variant(folder, flipped_graph(), points=0.3)

    server = start(models=folder.parents[1], precision="int8")

    page = server.client.get("/v1/models/credit").json()
    assert predicted_label(server) == "no"
    assert page["precision"] == "int8"
    assert page["variants"] == [json.loads(variant.model_dump_json())]
    assert page["example"] == ROW | page["example"]
    sha256 = read_manifest(folder).files["model.int8.onnx"].sha256
    metrics = server.client.get("/metrics").text
    (info,) = (line for line in metrics.splitlines() if line.startswith("sevenfold_model_info{"))
    assert 'variant="int8"' in info
    assert f'sha256="{sha256}"' in info


def test_a_model_without_variants_runs_in_fp32_whatever_is_asked_for(folder: Path, start: Start) -> None:
    server = start(models=folder.parents[1], precision="int8")

    assert precision_of(server) == "fp32"
    assert predicted_label(server) == "yes"


def test_a_variant_that_does_not_reproduce_its_answers_is_replaced_by_fp32(
    folder: Path, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    add_variant(folder, credit_graph())
    (folder / "model.int8.onnx").write_bytes(flipped_graph())
    update_checksums(folder)

    with caplog.at_level(logging.WARNING):
        server = start(models=folder.parents[1], precision="int8")

    assert precision_of(server) == "fp32"
    assert predicted_label(server) == "yes"
    (record,) = (record for record in caplog.records if "variant unusable" in record.message)
    assert "does not reproduce its published answers" in record.__dict__["fields"]["reason"]


def test_a_variant_that_is_no_graph_is_replaced_by_fp32(folder: Path, start: Start) -> None:
    add_variant(folder, credit_graph())
    (folder / "model.int8.onnx").write_bytes(b"no graph")
    update_checksums(folder)

    server = start(models=folder.parents[1], precision="int8")

    assert precision_of(server) == "fp32"


def test_a_variant_whose_outputs_are_no_numbers_is_replaced_by_fp32(folder: Path, start: Start) -> None:
    add_variant(folder, credit_graph())
    (folder / "model.int8.onnx").write_bytes(nan_graph())
    update_checksums(folder)

    server = start(models=folder.parents[1], precision="int8")

    assert precision_of(server) == "fp32"


def test_a_variant_is_verified_with_its_own_tolerance(folder: Path, start: Start) -> None:
    add_variant(folder, with_other_checksum(credit_graph()))
    goldens = json.loads((folder / "goldens.int8.json").read_text())
    prediction = goldens[0]["answer"]["predictions"][0]
    prediction["probability"] -= 0.004
    (folder / "goldens.int8.json").write_text(json.dumps(goldens))
    update_checksums(folder)

    server = start(models=folder.parents[1], precision="int8")

    assert precision_of(server) == "int8"


def test_a_server_reads_only_the_graph_that_it_runs(folder: Path) -> None:
    variant = add_variant(folder, with_other_checksum(credit_graph()))
    manifest = read_manifest(folder)
    (folder / "model.int8.onnx").unlink()

    assert "model.onnx" in read_files(folder, manifest)
    with pytest.raises(BrokenModel, match=r"model\.int8\.onnx is missing"):
        read_files(folder, manifest, variant)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda variant: [variant, variant], "two variants of the same precision"),
        (lambda variant: [variant | {"file": "other.onnx"}], "other.onnx of a variant is not among the files"),
    ],
)
def test_a_manifest_whose_variants_contradict_it_is_refused(folder: Path, change, problem: str) -> None:
    variant = json.loads(add_variant(folder, credit_graph()).model_dump_json())

    edit_manifest(folder, variants=change(variant))

    with pytest.raises(BrokenModel, match=problem):
        read_manifest(folder)


def test_the_manifest_of_a_folder_without_variants_does_not_mention_them(folder: Path) -> None:
    assert "variants" not in json.loads((folder / "manifest.json").read_text())
