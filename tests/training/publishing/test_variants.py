"""Variants of lower precision: how they are made, measured, refused and published."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tasks.contract import TensorSpec
from tasks.goldens import read_goldens
from tasks.manifest import DataSource, read_manifest, write_manifest
from tests.model_folders import publish, update_checksums
from tests.tiny.classification import BARE
from tests.tiny.graphs import build_graph
from training.core.errors import CannotTrain
from training.core.results import SampleScores
from training.engine.batches import SampleSet
from training.evaluation.comparison import compare_means
from training.publish_variants import main
from training.publishing.export import onnx_runner
from training.publishing.fp16 import store_as_fp16
from training.publishing.publish import replay
from training.publishing.quantization import convert_to_fp16, output_error, quantize
from training.publishing.republish import republish
from training.publishing.variants import VariantMaker, precision_loss, publish_variants, variants_table

SIZE = BARE.size


def network_graph(outlier: float = 1.0) -> bytes:
    """Return a small convolutional classifier with random weights.

    The first layer's first channel is larger by the factor `outlier`, and the second layer reduces it again: the
    result is the same, but with a large factor, the other channels have few of the 256 steps between the layers.
    """
    random = np.random.default_rng(0)
    first = random.normal(size=(16, 3, 3, 3)).astype(np.float32) / 5
    second = random.normal(size=(32, 16, 3, 3)).astype(np.float32) / 12
    first[0] *= outlier
    second[:, 0] /= outlier
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["planes", "scale"], ["scaled"]),
        helper.make_node("Conv", ["scaled", "first"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "second"], ["c"], strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Conv", ["d", "third"], ["e"]),
        helper.make_node("Relu", ["e"], ["f"]),
        helper.make_node("ReduceMean", ["f", "axes"], ["means"], keepdims=0),
        helper.make_node("MatMul", ["means", "last"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    constants = {
        "scale": np.float32(1 / 255),
        "first": first,
        "second": second,
        "third": random.normal(size=(32, 32, 1, 1)).astype(np.float32) / 5,
        "last": random.normal(size=(32, 3)).astype(np.float32) * 4,
        "axes": np.array([2, 3], np.int64),
    }
    return build_graph(BARE, nodes, constants)


def images(count: int, seed: int = 0) -> dict:
    """Return images of one colour each, with noise."""
    random = np.random.default_rng(seed)
    colours = random.integers(0, 256, (count, 1, 1, 3))
    return {"image": np.clip(colours + random.normal(size=(count, SIZE, SIZE, 3)) * 20, 0, 255).astype(np.uint8)}


@pytest.fixture
def graph(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(network_graph())
    return path


def largest_change(path, other) -> float:
    samples = images(16, seed=5)
    outputs = [onnx_runner(file, BARE)(samples)["probabilities"] for file in (path, other)]
    return float(np.abs(outputs[0] - outputs[1]).max())


def test_int8_graph_computes_in_8_bits_and_answers_almost_the_same(graph, tmp_path):
    result = quantize(graph, BARE, images(64), images(64, seed=1), tmp_path / "int8.onnx")

    types = {tensor.data_type for tensor in onnx.load(result.path).graph.initializer if len(tensor.dims) == 4}
    assert types == {TensorProto.INT8}
    assert result.float_layers == ()
    assert result.layers == 4
    assert result.error < 0.1
    assert 0 < largest_change(graph, result.path) < 0.1


def test_layers_that_suffer_stay_in_floating_point(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(network_graph(outlier=3000.0))

    result = quantize(path, BARE, images(64), images(64, seed=1), tmp_path / "int8.onnx")

    types = {tensor.data_type for tensor in onnx.load(result.path).graph.initializer if len(tensor.dims) == 4}
    assert set(result.float_layers) == {"Conv_3", "Conv_5"}
    assert types == {TensorProto.INT8, TensorProto.FLOAT, TensorProto.FLOAT16}
    assert result.error < 0.1


def test_fp16_graph_computes_in_16_bits_between_inputs_and_outputs_of_the_same_types(graph, tmp_path):
    convert_to_fp16(graph, tmp_path / "fp16.onnx")

    model = onnx.load(tmp_path / "fp16.onnx")
    types = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) == 4}
    assert types == {TensorProto.FLOAT16}
    assert [output.type.tensor_type.elem_type for output in model.graph.output] == [TensorProto.FLOAT]
    assert 0 < largest_change(graph, tmp_path / "fp16.onnx") < 0.01


def test_weights_that_are_stored_in_16_bits_are_quantised_too(graph, tmp_path):
    store_as_fp16(graph)

    result = quantize(graph, BARE, images(32), images(32, seed=1), tmp_path / "int8.onnx")

    types = {tensor.data_type for tensor in onnx.load(result.path).graph.initializer if len(tensor.dims) == 4}
    assert types == {TensorProto.INT8}
    assert largest_change(graph, result.path) < 0.1


def test_a_graph_without_layers_cannot_be_quantised(tmp_path):
    from tests.tiny.classification import bare_graph

    path = tmp_path / "model.onnx"
    path.write_bytes(bare_graph())

    with pytest.raises(CannotTrain, match="nothing to quantise"):
        quantize(path, BARE, images(8), images(8), tmp_path / "int8.onnx")


@pytest.mark.parametrize(
    ("kind", "expected", "actual", "error"),
    [
        ("value", [[0.0], [2.0]], [[0.0], [2.0]], 0.0),
        ("value", [[0.0], [2.0]], [[0.5], [2.5]], 0.5),
        ("value", [[0.0], [2.0]], [[np.nan], [2.0]], float("inf")),
        ("value", [[1.0], [1.0]], [[1.0], [1.5]], 1.0),
        ("class", [[0, 1, 2, 3]], [[0, 1, 2, 0]], 0.25),
    ],
)
def test_error_of_an_output_is_relative_to_what_varies_between_samples(kind, expected, actual, error):
    spec = TensorSpec("y", "float32", (1,), kind=kind)

    assert output_error(spec, np.array(expected), np.array(actual)) == pytest.approx(error)


def test_loss_is_in_percentage_points_for_fractions_and_in_percent_for_others():
    right = np.array([1.0] * 18 + [0.0] * 2)
    accuracy = SampleScores("accuracy", np.where(np.arange(20) == 0, 0.0, right), "validation images")
    fp32 = replace(accuracy, values=right)
    errors = SampleScores("mae", np.full(20, 5.0), "validation rows", lower_is_better=True)

    loss = precision_loss(compare_means(accuracy, "fp32", right), fp32)
    worse = replace(errors, values=errors.values * 1.02)
    error_loss = precision_loss(compare_means(worse, "fp32", errors.values), errors)

    assert loss.points == pytest.approx(5.0)
    assert (loss.value, loss.fp32_value) == pytest.approx((0.85, 0.9))
    assert loss.interval[0] < 5.0 < loss.interval[1]
    assert loss.samples == "20 validation images"
    assert error_loss.points == pytest.approx(2.0)


class Images(SampleSet):
    """Images of `images`."""

    def __init__(self, count, seed):
        self.arrays = images(count, seed)

    def __len__(self):
        return len(self.arrays["image"])


class ImageLearner:
    """What variants need of a learner: training inputs and scores of validation samples."""

    task = BARE

    def __init__(self, graph, *, is_comparable=True):
        self._labels = onnx_runner(graph, BARE)(images(60, seed=9))["probabilities"].argmax(axis=1)
        self._is_comparable = is_comparable

    def is_comparable(self, previous):
        return self._is_comparable

    def training_inputs(self, count):
        return images(min(count, 64))

    def sample_scores(self, exported):
        import torch

        (probabilities,) = exported(torch.from_numpy(images(60, seed=9)["image"]))
        is_right = probabilities.numpy().argmax(axis=1) == self._labels
        return SampleScores("accuracy", is_right.astype(float), "validation images")


@pytest.fixture
def version(tmp_path):
    folder = publish(tmp_path / "models", "colours", BARE, network_graph())
    (folder / "README.md").write_text("`colours`, version 1: colours.\n")
    update_checksums(folder)
    return folder


@pytest.fixture
def variants(version, tmp_path):
    maker = VariantMaker(version, BARE, ImageLearner(version / "model.onnx"), tmp_path, latency_budget_s=0.0)
    return maker.make(("fp16", "int8"))


def test_variants_are_measured_beside_fp32_on_the_same_samples(variants, version):
    table = variants_table(100_000, variants)

    assert [variant.precision for variant in variants] == ["fp16", "int8"]
    assert all(variant.loss.fp32_value == 1.0 for variant in variants)
    assert all(variant.loss.samples == "60 validation images" for variant in variants)
    assert {latency.batch for latency in variants[1].latency if latency.device == "cpu"} == {1, 8}
    assert [row[0] for row in table.rows] == ["fp32", "fp16", "int8"]
    assert "32 training samples" in variants[1].method


def test_published_version_has_the_variants_without_objections_and_describes_the_others(variants, version):
    int8 = replace(variants[1], objections=())
    fp16 = replace(variants[0], objections=("it loses 3.00 points of accuracy; the limit is 0.5",))

    folder = publish_variants(version, [fp16, int8], lambda new: f"## Version {new.version}")

    manifest = read_manifest(folder)
    assert (folder.name, manifest.version) == ("2", "2")
    assert [variant.precision for variant in manifest.variants] == ["int8"]
    assert manifest.files["model.onnx"] == read_manifest(version).files["model.onnx"]
    assert not (folder / "model.fp16.onnx").exists()
    assert manifest.variants[0].loss == int8.loss
    assert "`colours`, version 2" in (folder / "README.md").read_text()
    replay(folder)


def test_next_version_with_other_parameters_has_the_variants_with_their_new_answers(variants, version):
    folder = publish_variants(version, [replace(variants[1], objections=())], lambda new: "## Version")
    task = replace(BARE, labels=("rot", "grün", "blau"))

    third = republish(folder, task, [BARE.example()], lambda new: "## Version")

    (golden,) = read_goldens(third, "goldens.int8.json")
    assert golden.answer["label"] in task.labels
    replay(third)


def test_variant_that_loses_too_much_is_objected_to(version, tmp_path):
    maker = VariantMaker(
        version, BARE, ImageLearner(version / "model.onnx"), tmp_path, max_loss=-1.0, latency_budget_s=0.0
    )

    (variant,) = maker.make(("fp16",))

    assert variant.objections == (
        "it loses 0.00 points of accuracy; the limit is -1",
        "it was not measured on a GPU, where it would run",
    )


def test_model_of_other_data_is_not_measured(version, tmp_path):
    maker = VariantMaker(version, BARE, ImageLearner(version / "model.onnx", is_comparable=False), tmp_path)

    with pytest.raises(CannotTrain, match="not those of the data"):
        maker.make(("fp16",))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precisions", "int4"], "name some of fp16, int8"),
        (["--config", "settings.json"], "needs both --config and --data"),
        ([], "not the model of a recipe"),
    ],
)
def test_mistakes_on_the_command_line_are_named(version, capsys, arguments, message):
    assert main([str(version.parent), *arguments]) == 2

    assert message in capsys.readouterr().err


def test_other_data_than_that_of_training_is_refused(version, tmp_path, capsys):
    data = tmp_path / "data"
    for label in ("red", "green"):
        (data / label).mkdir(parents=True)
        for number in range(6):
            from PIL import Image

            pixels = images(1, seed=number + 10 * (label == "red"))["image"][0]
            Image.fromarray(pixels).save(data / label / f"{number}.png")
    manifest = read_manifest(version)
    source = DataSource(name="data", licence="CC0-1.0", sha256="0" * 64)
    write_manifest(version, manifest.model_copy(update={"data": source}))
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"task": "classification", "size": SIZE, "weights": "none"}))

    assert main([str(version.parent), "--config", str(settings), "--data", str(data)]) == 2

    assert "The data has the SHA-256" in capsys.readouterr().err
