import warnings

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tasks._tables import CategoryColumn, NumberColumn
from tasks.contract import TensorSpec
from tasks.tabular import Tabular
from training.core.errors import CannotTrain
from training.learners.tabular.network import ServedTabular, TabularNetwork
from training.publishing.export import OPSET, TORCHSCRIPT, Artefacts, export, onnx_runner

FULL = Artefacts(fp16=False)
CITY, AGE = CategoryColumn("city", ("Oslo", "Lima")), NumberColumn("age", 0, 99)


def make_served(columns) -> ServedTabular:
    torch.manual_seed(0)
    numbers = torch.randn(50, sum(column is AGE for column in columns)) * 20 + 40
    cities = [2 for column in columns if column is CITY]
    settings = {"layers": [8], "dropout": 0.1, "bins": 8, "value_dropout": 0.01}
    return ServedTabular(TabularNetwork(cities, numbers, 3, **settings), 1.3)


def make_samples(task, count=20):
    random = np.random.default_rng(0)
    rows = {
        column.name: [random.choice(["Oslo", "Lima", "Rome", None]) for _ in range(count)]
        if column is CITY
        else [None if i % 5 == 0 else float(random.uniform(-10, 200)) for i in range(count)]
        for column in task.columns
    }
    return task.preprocess(rows).arrays


def task_of(*columns) -> Tabular:
    return Tabular("y", ("a", "b", "c"), columns)


@pytest.mark.parametrize("columns", [(CITY, AGE), (CITY,), (AGE,)], ids=["both", "categories", "numbers"])
def test_the_graph_agrees_with_the_network_at_every_batch_size(tmp_path, columns):
    task, module = task_of(*columns), make_served(columns)

    parity = export(module, task, make_samples(task), tmp_path, FULL)

    assert parity.batches == (1, 2, 7, 20)
    assert parity.largest < 1e-5
    (between,) = parity.batch_deviation
    assert float(between.removeprefix("probabilities by ")) < 1e-5
    assert parity.rounding == ()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx"]
    graph = onnx.load(tmp_path / "model.onnx")
    assert {entry.domain: entry.version for entry in graph.opset_import}[""] == OPSET
    assert [tensor.type.tensor_type.shape.dim[0].dim_param for tensor in graph.graph.input] == ["batch", "batch"]


def test_the_graph_contains_no_paths_of_this_machine(tmp_path):
    export(Painter(), Painting("y", ("a", "b"), ()), make_images(), tmp_path, FULL)

    content = (tmp_path / "model.onnx").read_bytes()
    assert b".py" not in content
    assert b"stack_trace" not in content


def test_a_network_in_training_mode_is_exported_in_evaluation_mode(tmp_path):
    task, module = task_of(CITY, AGE), make_served((CITY, AGE)).train()

    assert export(module, task, make_samples(task), tmp_path, FULL).largest < 1e-5


def test_torchscript_is_written_on_request_with_equal_outputs(tmp_path):
    task, module = task_of(CITY, AGE), make_served((CITY, AGE))
    arrays = make_samples(task)

    export(module, task, arrays, tmp_path, Artefacts(fp16=False, torchscript=True))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns since 2.11 that TorchScript is deprecated.
        loaded = torch.jit.load(tmp_path / TORCHSCRIPT)
    (probabilities,) = loaded(*(torch.from_numpy(arrays[spec.name].copy()) for spec in task.inputs))
    assert probabilities.detach().numpy() == pytest.approx(
        onnx_runner(tmp_path / "model.onnx", task)(arrays)["probabilities"], abs=1e-5
    )


class DiffersWhenTraced(nn.Module):
    """Computes something else when traced than when called."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(1, 3)

    def forward(self, categories, numbers):
        factor = 1.0 if torch.jit.is_tracing() or torch.compiler.is_compiling() else 2.0
        return ((self.head(numbers.nan_to_num() / 100) * factor).softmax(dim=1),)


def test_a_graph_that_differs_from_the_network_is_rejected(tmp_path):
    task = task_of(AGE)

    with pytest.raises(CannotTrain, match=r"and the network disagree by .* in probabilities with a batch of 1"):
        export(DiffersWhenTraced(), task, make_samples(task), tmp_path, FULL)


def test_a_graph_with_other_tensors_than_the_task_declares_is_rejected(tmp_path):
    task = Tabular("y", ("a", "b"), (CITY, AGE))

    with pytest.raises(CannotTrain, match=r"probabilities is float32 .*3.*, not float32 \(2,\)"):
        export(make_served((CITY, AGE)), task, make_samples(task), tmp_path, FULL)


class Painter(nn.Module):
    """A class per pixel, and an image: outputs that are compared by their kind."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.Conv2d(3, 64, 3, padding=1)
        self.classes = nn.Conv2d(64, 5, 1)
        self.colours = nn.Conv2d(64, 3, 1)

    def forward(self, image):
        features = self.mix(image.permute(0, 3, 1, 2).float() / 255).relu()
        painting = (self.colours(features) * 255).clamp(0, 255).round().to(torch.uint8)
        return self.classes(features).argmax(dim=1).to(torch.uint8), painting.permute(0, 2, 3, 1)


class Painting(Tabular):
    """A task with such outputs, as far as the exporter needs it."""

    inputs = (TensorSpec("image", "uint8", (16, 16, 3)),)
    outputs = (
        TensorSpec("mask", "uint8", (16, 16), "class"),
        TensorSpec("painting", "uint8", (16, 16, 3), "pixel"),
    )


def make_images(count=9):
    return {"image": np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), np.uint8)}


def test_classes_are_compared_by_fraction_and_pixels_by_levels(tmp_path):
    parity = export(Painter(), Painting("y", ("a", "b"), ()), make_images(), tmp_path, FULL)

    assert parity.batch_deviation == ("mask in 0.000% of its elements", "painting by 0 levels of 255")
    assert parity.largest is None
    assert [words.split()[0] for words in parity.agreement] == ["mask", "painting"]


def test_weights_are_stored_in_16_bits_and_the_change_is_measured(tmp_path):
    (tmp_path / "half").mkdir()
    export(Painter(), Painting("y", ("a", "b"), ()), make_images(), tmp_path, FULL)
    parity = export(Painter(), Painting("y", ("a", "b"), ()), make_images(), tmp_path / "half", Artefacts())

    full_size, half_size = (path.stat().st_size for path in (tmp_path / "model.onnx", tmp_path / "half" / "model.onnx"))
    kinds = {tensor.data_type for tensor in onnx.load(tmp_path / "half" / "model.onnx").graph.initializer}
    assert half_size < full_size - 3000
    assert onnx.TensorProto.FLOAT16 in kinds
    assert [word.split()[0] for word in parity.rounding] == ["mask", "painting"]


def test_weights_that_lose_too_much_in_16_bits_are_not_published(tmp_path):
    painter = Painter()
    with torch.no_grad():
        painter.mix.weight.mul_(1e-6)
        painter.mix.bias.zero_()
        painter.classes.weight.mul_(1e6)
        painter.colours.weight.mul_(1e6)

    with pytest.raises(CannotTrain, match=r"16 bits changes .* --full-precision"):
        export(painter, Painting("y", ("a", "b"), ()), make_images(), tmp_path, Artefacts())


def test_classes_that_differ_too_often_are_rejected(tmp_path):
    class Undecided(Painter):
        def forward(self, image):
            mask, painting = super().forward(image)
            traced = torch.jit.is_tracing() or torch.compiler.is_compiling()
            return (mask + 1 if traced else mask), painting

    with pytest.raises(CannotTrain, match=r"disagree by .* in mask"):
        export(Undecided(), Painting("y", ("a", "b"), ()), make_images(), tmp_path, FULL)
