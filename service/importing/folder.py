"""Write the folder of an imported model: goldens, card, hashes, and the manifest last; verified as the service does."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.backends.base import BackendError
from service.importing.adapt import Adapted
from service.importing.errors import CannotImport
from service.models.verification import verify
from tasks.contract import InvalidInput, InvalidOutput, Task, parameters_of
from tasks.deviation import describe_difference
from tasks.goldens import Golden, read_goldens, write_goldens
from tasks.manifest import (
    CARD,
    MODEL,
    BrokenModel,
    DataSource,
    Manifest,
    entries_of,
    read_manifest,
    verify_files,
    write_manifest,
    write_task_files,
)


@dataclass(frozen=True)
class Description:
    """What people should know of a model; the graph cannot say it."""

    name: str
    title: str
    description: str = ""
    licence: str = "unknown"
    data: str = "unknown"
    data_licence: str = "unknown"


def write_model(
    folder: Path,
    version: str,
    *,
    about: Description,
    task_name: str,
    task: Task,
    adapted: Adapted,
    requests: Sequence[Mapping[str, Any]],
    command: str,
) -> None:
    """Write all files of a version and verify it as the service will. Raises CannotImport or OSError."""
    (folder / MODEL).write_bytes(adapted.graph)
    write_task_files(folder, task)
    write_goldens(folder, _record_goldens(task, adapted, requests))
    manifest = Manifest(
        name=about.name,
        version=version,
        task=task_name,
        title=about.title,
        description=about.description,
        parameters=parameters_of(task),
        opset=adapted.opset,
        parity=None,
        batch_invariance=dict(adapted.invariance),
        golden_tolerance=task.golden_tolerance,
        metrics=(),
        data=DataSource(name=about.data, licence=about.data_licence),
        licence=about.licence,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        code="unknown",
        files={},
    )
    (folder / CARD).write_text(_card(manifest, task, adapted, command), encoding="utf-8")
    write_manifest(folder, manifest.model_copy(update={"files": entries_of(folder)}))
    _verify(folder, adapted)


def _record_goldens(task: Task, adapted: Adapted, requests: Sequence[Mapping[str, Any]]) -> list[Golden]:
    goldens = []
    for body in requests:
        try:
            answer = task.answer(adapted.backend.run_exclusive, dict(body))
        except InvalidOutput as error:
            raise CannotImport(f"The graph's answer to an example cannot be used: {error}") from None
        goldens.append(Golden(request=dict(body), answer=answer.plain()))
    return goldens


def _verify(folder: Path, adapted: Adapted) -> None:
    """Read the folder and replay its goldens, as the service does before it serves a version."""
    try:
        manifest = read_manifest(folder)
        verify_files(folder, manifest)
        verify(manifest, manifest.load_task(folder), adapted.backend, read_goldens(folder))
    except (BrokenModel, BackendError, InvalidInput) as error:
        raise CannotImport(f"Not imported: {error}") from None


def _card(manifest: Manifest, task: Task, adapted: Adapted, command: str) -> str:
    tensors = [
        f"| {kind} | `{spec.name}` | {spec.dtype} | {' × '.join(map(str, ('batch', *spec.shape)))} |"
        for kind, specs in (("input", task.inputs), ("output", task.outputs))
        for spec in specs
    ]
    deviation = "; ".join(describe_difference(spec, adapted.invariance[spec.name]) for spec in task.outputs)
    lines = [
        f"# {manifest.title}",
        "",
        f"`{manifest.name}`, version {manifest.version}: a graph of another program, imported for the task "
        f"`{manifest.task}`. It has not been evaluated here: this card states no metrics.",
        *(["", manifest.description] if manifest.description else []),
        "",
        f"Licence of the model: {manifest.licence}. Training data: {manifest.data.name}, licence "
        f"{manifest.data.licence}.",
        "",
        "## Graph",
        "",
        "| | name | type | shape |",
        "|---|---|---|---|",
        *tensors,
        "",
        *(f"- {note}" for note in adapted.notes),
        f"- Opset {manifest.opset}, created {manifest.created}.",
        f"- Largest change of a sample's output depending on its batch: {deviation} (ONNX Runtime on a CPU).",
        "",
        "## Reproduce",
        "",
        "```",
        command,
        "```",
        "",
    ]
    return "\n".join(lines)
