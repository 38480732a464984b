"""Tiny real models, made with onnx in milliseconds: published folders that the service loads like any other."""

import json
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from tasks.contract import Arrays, Run, Task, parameters_of
from tasks.goldens import Golden, write_goldens
from tasks.manifest import DataSource, Manifest, entries_of, write_manifest, write_task_files


def runner(graph: bytes) -> Run:
    """Return a function that runs a graph on plain ONNX Runtime."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(arrays: Arrays) -> Arrays:
        return dict(zip(names, session.run(names, dict(arrays)), strict=True))

    return run


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
