"""Tiny real models, made with onnx in milliseconds: published folders that the service loads like any other."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from tasks._tables import CategoryColumn, NumberColumn
from tasks.classification import Classification
from tasks.contract import Arrays, Run, Task, parameters_of
from tasks.goldens import Golden, write_goldens
from tasks.manifest import DataSource, Manifest, entries_of, write_manifest, write_task_files
from tasks.tabular import Tabular

COLOURS = Classification(labels=("red", "green", "blue"), size=32)
"""Predicts the most frequent colour of an image."""

CREDIT = Tabular(
    target="paid",
    labels=("no", "yes"),
    columns=(
        NumberColumn("income", 0.0, 100.0, example=50.0),
        NumberColumn("debt", 0.0, 50.0, example=5.0),
        CategoryColumn("job", ("baker", "clerk"), example="baker"),
    ),
    ignored=("sex",),
)
"""Predicts whether a loan is paid back."""


def colours_graph() -> bytes:
    """Make a graph of the mean of each colour: activation maps (batch, 3, 32, 32) and the softmax of their means."""
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["planes", "scale"], ["activation_map"]),
        helper.make_node("ReduceMean", ["activation_map", "axes"], ["means"], keepdims=0),
        helper.make_node("Softmax", ["means"], ["probabilities"], axis=1),
    ]
    constants = [
        numpy_helper.from_array(np.array(1 / 25, np.float32), "scale"),
        numpy_helper.from_array(np.array([2, 3], np.int64), "axes"),
    ]
    return _graph(
        nodes,
        constants,
        {"image": ("uint8", [32, 32, 3])},
        {"probabilities": ("float32", [3]), "activation_map": ("float32", [3, 32, 32])},
    )


def credit_graph() -> bytes:
    """Make a graph that is linear in income and debt. A missing number (NaN) counts as zero; the job is ignored."""
    weight = np.array([[-0.05, 0.05], [0.1, -0.1]], np.float32)
    nodes = [
        helper.make_node("IsNaN", ["numbers"], ["missing"]),
        helper.make_node("Where", ["missing", "zero", "numbers"], ["known"]),
        helper.make_node("MatMul", ["known", "weight"], ["scores"]),
        helper.make_node("Cast", ["categories"], ["jobs"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["jobs", "zero"], ["nothing"]),
        helper.make_node("Add", ["scores", "nothing"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    constants = [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(np.float32(0)[None], "zero")]
    inputs = {"categories": ("int64", [1]), "numbers": ("float32", [2])}
    return _graph(nodes, constants, inputs, {"probabilities": ("float32", [2])})


def _graph(nodes: Sequence[Any], constants: Sequence[Any], inputs: dict[str, Any], outputs: dict[str, Any]) -> bytes:
    def value_infos(specs: dict[str, Any]) -> list[Any]:
        dtypes = {"uint8": TensorProto.UINT8, "int64": TensorProto.INT64, "float32": TensorProto.FLOAT}
        return [
            helper.make_tensor_value_info(name, dtypes[dtype], ["batch", *shape])
            for name, (dtype, shape) in specs.items()
        ]

    graph = helper.make_graph(nodes, "tiny", value_infos(inputs), value_infos(outputs), constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def runner(graph: bytes) -> Run:
    """Return a function that runs a graph on plain ONNX Runtime."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(arrays: Arrays) -> Arrays:
        return dict(zip(names, session.run(names, dict(arrays)), strict=True))

    return run


def failing_credit_graph() -> bytes:
    """Make a credit graph that fails in ONNX Runtime, with an index out of range, if the job is known."""
    model = onnx.load_model_from_string(credit_graph())
    table = numpy_helper.from_array(np.zeros((2, 1), np.float32), "table")
    model.graph.initializer.append(table)
    jobs = next(node for node in model.graph.node if node.output[0] == "jobs")
    gather = helper.make_node("Gather", ["table", "categories"], ["looked_up"], axis=0)
    squeeze = helper.make_node("Squeeze", ["looked_up", "last"], ["jobs"])
    model.graph.initializer.append(numpy_helper.from_array(np.array([2], np.int64), "last"))
    index = list(model.graph.node).index(jobs)
    model.graph.node.remove(jobs)
    model.graph.node.insert(index, squeeze)
    model.graph.node.insert(index, gather)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def with_other_checksum(graph: bytes) -> bytes:
    """Return the same graph with another checksum, so that the service does not share it."""
    model = onnx.load_model_from_string(graph)
    model.doc_string = "other"
    return bytes(model.SerializeToString())


def publish(
    root: Path, name: str, task: Task, graph: bytes, *, version: int = 1, request: dict[str, Any] | None = None
) -> Path:
    """Write a model folder whose goldens are the task's examples, or the given request twice."""
    requests = [request, request] if request else [*task.examples(), task.example()]
    folder = root / name / str(version)
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(graph)
    (folder / "README.md").write_text(f"# {name}\n")
    write_task_files(folder, task)
    run = runner(graph)
    write_goldens(folder, [Golden(request=body, answer=task.answer(run, body).plain()) for body in requests])
    manifest = Manifest(
        name=name,
        version=str(version),
        task=type(task).__module__.rpartition(".")[2],
        title=f"Tiny {name}",
        parameters=parameters_of(task),
        opset=20,
        parity=0.0,
        golden_tolerance=2e-3,
        metrics=(),
        data=DataSource(name="made up", licence="CC0-1.0"),
        licence="CC0-1.0",
        created="2026-01-01T00:00:00Z",
        code="unknown",
        files=entries_of(folder),
    )
    write_manifest(folder, manifest)
    return folder


def edit_manifest(folder: Path, **values: object) -> None:
    """Replace values in the manifest of a model folder."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def update_checksums(folder: Path) -> None:
    """Write the current checksums of the files into the manifest, as a publisher would who skips the verification."""
    edit_manifest(folder, files={name: entry.model_dump() for name, entry in entries_of(folder).items()})
