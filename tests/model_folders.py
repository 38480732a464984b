"""Tiny real models, made with onnx in milliseconds: published folders that the service loads like any other."""

import json
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from tasks.contract import Arrays, Run, Task, parameters_of
from tasks.goldens import Golden, read_goldens, write_goldens
from tasks.manifest import (
    DataSource,
    Latency,
    Manifest,
    PrecisionLoss,
    Variant,
    entries_of,
    read_manifest,
    write_manifest,
    write_task_files,
)


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


def add_variant(
    folder: Path, graph: bytes, *, precision: Any = "int8", points: float = 0.1, speedup: float | None = 2.0
) -> Variant:
    """Add a variant with this graph to a model folder, with its answers to the goldens; return its description.

    `speedup` is what the manifest says was measured on a CPU; None: nothing was.
    """
    manifest = read_manifest(folder)
    task, run = manifest.load_task(folder), runner(graph)
    variant = Variant(
        precision=precision,
        file=f"model.{precision}.onnx",
        goldens=f"goldens.{precision}.json",
        golden_tolerance=0.01,
        loss=PrecisionLoss(
            metric="accuracy",
            value=0.9 - points / 100,
            fp32_value=0.9,
            points=points,
            interval=(points - 0.1, points + 0.1),
            samples="100 validation rows",
        ),
        latency=()
        if speedup is None
        else (Latency(device="cpu", processor="any", batch=1, milliseconds=1.0, fp32_milliseconds=speedup),),
    )
    (folder / variant.file).write_bytes(graph)
    requests = [golden.request for golden in read_goldens(folder)]
    goldens = [Golden(request=body, answer=task.answer(run, body).plain()) for body in requests]
    write_goldens(folder, goldens, variant.goldens)
    variants = (*manifest.variants, variant)
    write_manifest(folder, manifest.model_copy(update={"variants": variants, "files": entries_of(folder)}))
    return variant


def edit_manifest(folder: Path, **values: object) -> None:
    """Replace values in the manifest of a model folder."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def update_checksums(folder: Path) -> None:
    """Write the current checksums of the files into the manifest, as a publisher would who skips the verification."""
    edit_manifest(folder, files={name: entry.model_dump() for name, entry in entries_of(folder).items()})
