"""Publish a trained network as a folder under models/, which appears only when it is complete and verified."""

import datetime
import math
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
    graph_and_goldens,
    read_manifest,
    verify_files,
    write_manifest,
    write_task_files,
)
from tasks.version_folder import write_version
from training.core.errors import CannotTrain
from training.core.provenance import code_version
from training.core.recipe import Recipe
from training.core.results import Comparison, Evaluation
from training.engine.learner import Learner
from training.publishing.export import OPSET, Export, Parity, onnx_runner

_MODEL_LICENCE = "Apache-2.0"


@dataclass(frozen=True)
class Publication:
    """What to publish, and where."""

    recipe: Recipe
    evaluation: Evaluation
    data_sha256: str
    models: Path
    export: Export


def publish(
    publication: Publication, learner: Learner, served: nn.Module, card: Callable[[Manifest, Parity], str]
) -> Path:
    """Verify and publish an exported network; return the new version's folder. `card` returns the text of the README.

    Raises CannotTrain if a golden request is not reproduced, or a metric is NaN or does not reach the recipe's limit,
    and OSError if the folder cannot be written; nothing of it is left then.
    """
    _check_limits(publication.recipe, publication.evaluation)

    def write(folder: Path, version: str) -> None:
        _write_model(folder, version, publication, learner, served, card)

    return write_version(publication.models / publication.recipe.name, write)


def refuse_worse_model(evaluation: Evaluation) -> None:
    """Raise CannotTrain if the model is worse than a baseline or the version it replaces.

    Worse than the same answer to every request counts as measured; worse than another model counts if the interval of
    the difference says so.
    """
    if objections := find_objections(evaluation):
        raise CannotTrain(
            f"Not published: {'; '.join(objections)}. Train it better, or publish it all the same with --anyway: the "
            "same command with it does not train again."
        )


def find_objections(evaluation: Evaluation) -> tuple[str, ...]:
    """Return clauses that say than what the model is worse: `the model is worse than always predicting 'cat': …`."""
    return tuple(
        _describe_objection(comparison)
        for comparison in evaluation.comparisons
        if comparison.is_surely_worse or (comparison.is_constant and comparison.is_worse)
    )


def _describe_objection(comparison: Comparison) -> str:
    how = "surely worse" if comparison.is_surely_worse else "worse"
    return (
        f"the model is {how} than {comparison.other}: {comparison.metric} is {comparison.value:.4f}, not "
        f"{comparison.other_value:.4f} (on {comparison.counted})"
    )


def _check_limits(recipe: Recipe, evaluation: Evaluation) -> None:
    values = {metric.name: metric.value for metric in evaluation.metrics}
    if unknown := [name for name, value in values.items() if not math.isfinite(value)]:
        raise CannotTrain(
            f"Not published: {' and '.join(unknown)} cannot be measured on these validation samples (infinite or not a "
            "number). Validate on more or other samples."
        )
    for name, limit in (*recipe.min_metrics, *recipe.max_metrics):
        if name not in values:
            raise CannotTrain(
                f"Not published: the recipe limits {name} ({limit:g}), which was not measured with these options."
            )
    for name, minimum in recipe.min_metrics:
        if values[name] < minimum:
            raise CannotTrain(f"Not published: {name} is {values[name]:.4f}; the recipe requires at least {minimum:g}.")
    for name, maximum in recipe.max_metrics:
        if values[name] > maximum:
            raise CannotTrain(f"Not published: {name} is {values[name]:.4f}; the recipe allows at most {maximum:g}.")


def _write_model(
    folder: Path,
    version: str,
    publication: Publication,
    learner: Learner,
    served: nn.Module,
    card: Callable[[Manifest, Parity], str],
) -> None:
    """Write all files, the manifest last, and verify the folder as the service will."""
    task = learner.calibrated_task(served)
    requests = task.examples()
    if publication.recipe.data.redistributable:
        task, requests = learner.golden_requests(served)
    write_task_files(folder, task)
    for file in publication.export.folder.iterdir():
        shutil.copyfile(file, folder / file.name)
    parity = publication.export.parity
    run = onnx_runner(folder / MODEL, task)
    write_goldens(folder, [Golden(request=body, answer=_answer(task, run, body)) for body in requests])
    manifest = _manifest(version, publication, task, parity)
    (folder / CARD).write_text(card(manifest, parity), encoding="utf-8")
    write_manifest(folder, manifest.model_copy(update={"files": entries_of(folder)}))
    try:
        replay(folder)
    except BrokenModel as error:
        raise CannotTrain(f"Not published: {error}") from None


def _answer(task: Task, run: Run, body: dict[str, Any]) -> dict[str, Any]:
    return task.answer(run, body).plain()


def replay(folder: Path) -> None:
    """Load the folder as the service does and replay its golden requests, with each graph. Raises BrokenModel."""
    manifest = read_manifest(folder)
    verify_files(folder, manifest)
    task = manifest.load_task(folder)
    for variant in (None, *manifest.variants):
        graph, goldens = graph_and_goldens(variant)
        run, tolerance = onnx_runner(folder / graph, task), manifest.of_variant(variant).golden_tolerance
        for number, golden in enumerate(read_goldens(folder, goldens)):
            answer = _answer(task, run, golden.request)
            if deviation := first_difference(golden.answer, answer, tolerance):
                raise BrokenModel(f"golden request {number} is not reproduced by {graph}: {deviation}.")


def _manifest(version: str, publication: Publication, task: Task, parity: Parity) -> Manifest:
    recipe = publication.recipe
    return Manifest(
        name=recipe.name,
        version=version,
        task=recipe.task,
        title=recipe.title,
        description=recipe.description,
        parameters=parameters_of(task),
        opset=OPSET,
        parity=parity.largest,
        batch_invariance=parity.invariance,
        golden_tolerance=task.golden_tolerance,
        metrics=publication.evaluation.metrics,
        data=DataSource(
            name=recipe.data.name,
            licence=recipe.data.licence,
            sha256=publication.data_sha256 or None,
            address=recipe.data.address or None,
            redistributable=recipe.data.redistributable,
        ),
        licence=_licence(recipe),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        code=code_version(),
        files={},
    )


def _licence(recipe: Recipe) -> str:
    """The model's licence: that of the data, where the data is not redistributable or is share-alike."""
    if not recipe.source:
        return "unknown"
    is_free = recipe.data.redistributable and not recipe.data.share_alike
    return _MODEL_LICENCE if is_free else recipe.data.licence
