"""From a trained network to a folder under models/: whole and verified, or not there at all."""

import datetime
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from tasks.contract import Run, Task, parameters_of
from tasks.goldens import Golden, first_difference, read_goldens, write_goldens
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
from training.core.errors import CannotTrain
from training.core.provenance import code_version
from training.core.recipe import Recipe
from training.core.results import Evaluation
from training.engine.learner import Learner
from training.publishing.export import OPSET, Artefacts, Parity, export, runner

_COMPARED = 64
_MODEL_LICENCE = "Apache-2.0"


@dataclass(frozen=True)
class Publication:
    """What is published of a training run, and where."""

    recipe: Recipe
    findings: Evaluation
    data_sha256: str
    models: Path
    artefacts: Artefacts = Artefacts()


def published(what: Publication, learner: Learner, served: nn.Module, card: Callable[[Manifest, Parity], str]) -> Path:
    """Exports, verifies and publishes; returns the new version's folder. `card` writes the README.

    Raises CannotTrain where the graph disagrees with the network, a golden request is not reproduced, or a figure is
    below what the recipe demands; nothing is left behind then.
    """
    _check_limits(what.recipe, what.findings)
    home = what.models / what.recipe.name
    home.mkdir(parents=True, exist_ok=True)
    while True:
        version = str(_next_version(home))
        partial = home / f".{version}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            _fill(partial, version, what, learner, served, card)
            partial.rename(home / version)
        except OSError:
            if (home / version).exists():  # Another process published this version meanwhile.
                shutil.rmtree(partial)
                continue
            raise
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        return home / version


def _check_limits(recipe: Recipe, findings: Evaluation) -> None:
    values = {metric.name: metric.value for metric in findings.metrics}
    for name, least in recipe.limits:
        if values[name] < least:
            raise CannotTrain(f"Not published: {name} is {values[name]:.4f}, and the recipe demands {least:g}.")
    for name, most in recipe.ceilings:
        if values[name] > most:
            raise CannotTrain(f"Not published: {name} is {values[name]:.4f}, and the recipe allows {most:g}.")


def _next_version(home: Path) -> int:
    return max((int(path.name) for path in home.iterdir() if path.name.isdigit()), default=0) + 1


def _fill(
    folder: Path,
    version: str,
    what: Publication,
    learner: Learner,
    served: nn.Module,
    card: Callable[[Manifest, Parity], str],
) -> None:
    """Writes everything, the manifest last, and checks it as the service will."""
    task = learner.calibrated_task(served)
    requests = task.examples()
    if what.recipe.data.redistributable:
        task, requests = learner.golden_requests(served)
    write_task_files(folder, task)
    parity = export(served, task, learner.validation(_COMPARED), folder, what.artefacts)
    run = runner(folder / MODEL, task)
    write_goldens(folder, [Golden(request=body, answer=_answer(task, run, body)) for body in requests])
    manifest = _manifest(version, what, task, parity)
    (folder / CARD).write_text(card(manifest, parity), encoding="utf-8")
    write_manifest(folder, manifest.model_copy(update={"files": entries_of(folder)}))
    try:
        replay(folder)
    except BrokenModel as error:
        raise CannotTrain(f"Not published: {error}") from None


def _answer(task: Task, run: Run, body: dict[str, Any]) -> dict[str, Any]:
    return task.answer(run, body).plain()


def replay(folder: Path) -> None:
    """Reads the folder as the service does and asks the golden requests. Raises BrokenModel."""
    manifest = read_manifest(folder)
    verify_files(folder, manifest)
    task = manifest.load_task(folder)
    run = runner(folder / MODEL, task)
    for number, golden in enumerate(read_goldens(folder)):
        got = _answer(task, run, golden.request)
        if found := first_difference(golden.answer, got, manifest.golden_tolerance):
            raise BrokenModel(f"golden request {number} is not reproduced: {found}.")


def _manifest(version: str, what: Publication, task: Task, parity: Parity) -> Manifest:
    recipe = what.recipe
    return Manifest(
        name=recipe.name,
        version=version,
        task=recipe.task,
        title=recipe.title,
        parameters=parameters_of(task),
        opset=OPSET,
        parity=parity.largest,
        batch_invariance=parity.invariance,
        golden_tolerance=task.golden_tolerance,
        metrics=what.findings.metrics,
        data=DataSource(
            name=recipe.data.name,
            licence=recipe.data.licence,
            sha256=what.data_sha256 or None,
            address=recipe.data.address or None,
            redistributable=recipe.data.redistributable,
        ),
        licence=_licence(recipe),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        code=code_version(),
        files={},
    )


def _licence(recipe: Recipe) -> str:
    """Of the model: data that may not be passed on, or not be sold, binds what was learnt from it."""
    if not recipe.source:
        return "unknown"
    free = recipe.data.redistributable and not recipe.data.binds
    return _MODEL_LICENCE if free else recipe.data.licence
