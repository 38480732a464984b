"""Publish a version of a model with the same graph and another task: new parameters or files, without training."""

import datetime
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.contract import Task, parameters_of
from tasks.goldens import Golden, write_goldens
from tasks.manifest import (
    CARD,
    Manifest,
    entries_of,
    graph_and_goldens,
    read_manifest,
    write_manifest,
    write_task_files,
)
from tasks.version_folder import find_last_version, write_version
from training.core.errors import CannotTrain
from training.core.provenance import code_version
from training.publishing.export import onnx_runner
from training.publishing.publish import replay


def last_version(model: Path) -> Path:
    """Return the folder of a model's last version. Raises CannotTrain if there is none."""
    version = find_last_version(model)
    if version is None:
        raise CannotTrain(f"{model} contains no model versions; expected a folder such as models/movielens.")
    return version


def republish(
    last: Path,
    task: Task,
    requests: Sequence[dict[str, Any]],
    card_section: Callable[[Manifest], str],
    metrics: Mapping[str, float] | None = None,
) -> Path:
    """Publish the version `last` again with this task, and the task's answers to these requests as goldens.

    The graph is copied unchanged, so that a service that has loaded it keeps using it. The card gets a section, written
    for the new manifest; `metrics` are those of the manifest that have other values now, by name. Raises BrokenModel if
    the new version does not reproduce its goldens, and InvalidInput if the task rejects a request; nothing is left of
    it then.
    """

    def write(folder: Path, version: str) -> None:
        shutil.copytree(last, folder, dirs_exist_ok=True)
        write_task_files(folder, task)
        old = read_manifest(last)
        for graph, goldens in map(graph_and_goldens, (None, *old.variants)):
            run = onnx_runner(folder / graph, task)
            answered = [Golden(request=body, answer=task.answer(run, body).plain()) for body in requests]
            write_goldens(folder, answered, goldens)
        manifest = _next_manifest(old, version, task, metrics or {})
        update_card(folder / CARD, manifest, card_section(manifest))
        write_manifest(folder, manifest.model_copy(update={"files": entries_of(folder)}))
        replay(folder)

    return write_version(last.parent, write)


def _next_manifest(manifest: Manifest, version: str, task: Task, metrics: Mapping[str, float]) -> Manifest:
    values = tuple(
        metric.model_copy(update={"value": metrics.get(metric.name, metric.value)}) for metric in manifest.metrics
    )
    facts = {
        "version": version,
        "parameters": parameters_of(task),
        "metrics": values,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "code": code_version(),
    }
    return manifest.model_copy(update=facts)


def update_card(card: Path, manifest: Manifest, section: str) -> None:
    """Write the version and metrics of the manifest into the card, if there is one, and append the section."""
    if not card.exists():
        return
    text = card.read_text(encoding="utf-8")
    text = re.sub(
        rf"^`{manifest.name}`, version \d+:", f"`{manifest.name}`, version {manifest.version}:", text, flags=re.M
    )
    for metric in manifest.metrics:
        places = rf"^( *- type: {metric.name}\n +value: |\| {metric.name} \| )[-.\d]+"
        text = re.sub(places, rf"\g<1>{metric.value:.4f}", text, flags=re.M)
    card.write_text(f"{text.rstrip()}\n\n{section.strip()}\n", encoding="utf-8")
