"""How the classifier of rows is trained: embeddings and a perceptron, with gradient boosting beside it to beat.

A target that is a number is handed to the learner of numbers.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tasks._tables import Column
from tasks.contract import Task
from tasks.manifest import Metric
from tasks.tabular import Tabular, with_examples
from training.core.config import Settings
from training.core.results import Evaluation, Figure, Table, Trained
from training.core.sources import SourceFetcher
from training.data.tables import class_labels, is_number, request_values
from training.engine.inference import collect_outputs
from training.engine.runtime import Batch, Runtime
from training.evaluation import calibration, classification
from training.evaluation.subgroups import subgroup_table
from training.learners.tabular.base import INPUTS, Options, RowsLearner, table_at
from training.learners.tabular.boosting import boosted_classes
from training.learners.tabular.embedding_transfer import Reuse
from training.learners.tabular.network import ServedTabular, TabularNetwork
from training.learners.tabular.regression import NumbersLearner
from training.reporting import plots

__all__ = ["Options", "TabularLearner"]


class TabularLearner(RowsLearner):
    """Learns a class from the other columns of a table."""

    summary: ClassVar[str] = "what does this row predict? a class or a number, from the columns of a table"
    hub_tag: ClassVar[str] = "tabular-classification"

    @classmethod
    def from_data(cls, data: Path, settings: Settings, options: Options, fetcher: SourceFetcher) -> RowsLearner:  # noqa: ARG003
        """Reads the table, and gives it to whoever learns such a target. Raises CannotTrain."""
        path, frame = table_at(data, options)
        number = is_number(frame, options.target, options.kind, path)
        return (NumbersLearner if number else cls)(path, frame, settings, options)

    def _read_target(self, path: Path, frame: pl.DataFrame) -> None:
        self.labels = class_labels(frame, self.chosen.target)
        if self.chosen.kind == "auto" and frame[self.chosen.target].dtype.is_numeric():
            self.notices.append(
                f"'{self.chosen.target}' holds {len(self.labels)} different numbers and is taken for so many classes; "
                "to predict it as a number, say --kind number."
            )

    def _strata(self, frame: pl.DataFrame) -> NDArray[np.integer]:
        return _indices(frame[self.chosen.target], self.labels)

    def _task(self, columns: tuple[Column, ...], left_out: tuple[str, ...]) -> Tabular:
        return Tabular(self.chosen.target, self.labels, columns, left_out)

    def _targets(self, frame: pl.DataFrame) -> NDArray[np.generic]:
        return _indices(frame[self.chosen.target], self.labels)

    def _kind_of_target(self) -> str:
        return f"{len(self.labels)} classes"

    @property
    def targets(self) -> NDArray[np.integer]:
        """The classes of the validation rows."""
        found: NDArray[np.integer] = self.held_out.targets.numpy()
        return found

    def network(self) -> TabularNetwork:
        """An output for each class."""
        return self._network_of(len(self.labels))

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """Cross entropy."""
        logits = network(*(batch[name] for name in INPUTS))[0]
        return cross_entropy(logits, batch["target"], label_smoothing=self.trained_with.label_smoothing)

    def scores(self, network: nn.Module, runtime: Runtime) -> dict[str, float]:
        """ROC AUC (with two classes), accuracy and cross entropy on the validation rows."""
        logits = collect_outputs(network, INPUTS, self.held_out, runtime, batch_size=4096)
        probabilities = logits.softmax(dim=1).numpy()
        accuracy = float((probabilities.argmax(axis=1) == self.targets).mean())
        loss = float(cross_entropy(logits, torch.from_numpy(self.targets)))
        first = {"roc_auc": _auc(probabilities, self.targets)} if len(self.task.labels) == 2 else {}
        return {**first, "accuracy": accuracy, "loss": loss}

    def to_inference_module(self, network: nn.Module) -> nn.Module:
        """Calibrated on the validation rows."""
        exact = copy.deepcopy(network).float().cpu()
        logits = collect_outputs(exact, INPUTS, self.held_out, Runtime(torch.device("cpu")), batch_size=4096)
        return ServedTabular(exact, calibration.fit_temperature(logits, torch.from_numpy(self.targets))).eval()

    def evaluate(self, trained: Sequence[Trained], served: nn.Module) -> Evaluation:
        """Figures with their spread over the seeds, against gradient boosting, by class and by audit group."""
        temperature = float(cast(ServedTabular, served).temperature)
        targets, labels = self.targets, self.task.labels
        probabilities = collect_outputs(
            served, INPUTS, self.held_out, Runtime(torch.device("cpu")), batch_size=4096
        ).numpy()
        before = calibration.undo_temperature(probabilities, temperature)
        samples = f"{len(targets):,} validation rows"
        seeds = _over_seeds(trained, samples)
        baseline, verdict = self._against_boosting(trained, probabilities)
        classes = classification.per_class_table(probabilities, targets, labels)
        by_group = tuple(
            subgroup_table(self.valid_frame[name], probabilities, targets, labels) for name in self.chosen.audit
        )
        matrix = classification.confusion_matrix(probabilities, targets, labels)
        bins = {
            "as trained": calibration.reliability_bins(before, targets),
            "calibrated": calibration.reliability_bins(probabilities, targets),
        }
        importance = self._importance(served, self._share_wrong, "accuracy lost")
        reuse = Reuse(
            self.samples,
            self.held_out,
            classes=True,
            measure="accuracy",
            judged=lambda said, rows: float((said == targets[rows]).mean()),
        )
        tables, planes = self.embedding_views(trained[0].network, reuse)
        return Evaluation(
            metrics=(*classification.classification_metrics(probabilities, before, targets, samples), *seeds),
            notes=(
                f"Validated on {self._validated()}. "
                f"The best epoch was chosen and the temperature ({temperature:.3f}) fitted on them too.",
                verdict,
            ),
            tables=(baseline, classes, *by_group, *tables),
            figures=(
                Figure("Confusion matrix", plots.draw_confusion_matrix(matrix, labels)),
                Figure("Reliability", plots.draw_reliability(bins), f"Temperature {temperature:.3f}."),
                importance,
                *planes,
            ),
            failures=_failures(matrix, labels, by_group),
        )

    def _against_boosting(self, trained: Sequence[Trained], probabilities: NDArray[np.floating]) -> tuple[Table, str]:
        """A table of the network beside gradient boosting on the same split, and who wins."""
        seed = self.trained_with.seed
        boosted = boosted_classes(self.task.schema, self.samples, self.held_out, len(self.task.labels), seed)
        names = ["accuracy", *(["roc_auc"] if len(self.task.labels) == 2 else []), "cross_entropy"]
        own = classification.classification_scores(probabilities, self.targets)
        theirs = classification.classification_scores(boosted, self.targets)
        rows = [
            ("this network (published)", *(f"{own[name]:.4f}" for name in names)),
            ("gradient boosting", *(f"{theirs[name]:.4f}" for name in names)),
        ]
        if len(trained) > 1:
            spreads = [classification.mean_and_std([each.scores[name] for each in trained]) for name in names[:-1]]
            rows.insert(1, (f"the network, {len(trained)} seeds", *spreads, "–"))
        title = "Against gradient boosting"
        note = (
            "scikit-learn's HistGradientBoostingClassifier on the same columns and rows, stopped early on a tenth of "
            "the training rows; it has not been tuned."
        )
        return Table(title, ("", *(name.replace("_", " ") for name in names)), tuple(rows), note), _verdict(
            own, theirs, names
        )

    def _share_wrong(self, probabilities: Tensor, count: int) -> float:
        said = probabilities[:count].argmax(dim=1).numpy()
        return float((said != self.targets[:count]).mean())

    def _validated(self) -> str:
        if self.chosen.split_column or self.chosen.split_time:
            return f"rows held out {self.split.method}"
        return f"{self.chosen.valid_fraction:.0%} of the rows of each class, held out by a hash of the row"

    def golden_requests(self, served: nn.Module) -> tuple[Task, list[dict[str, Any]]]:
        """A clear and complete row, the clearest of another class, and three rows at once, with a missing value."""
        with torch.no_grad():
            probabilities = served(*(self.held_out.inputs[name] for name in INPUTS))[0].numpy()
        top = np.sort(probabilities, axis=1)
        right = probabilities.argmax(axis=1) == self.targets
        clear = np.flatnonzero(right & (top[:, -1] - top[:, -2] > 0.3))
        table = request_values(self.valid_frame, self.task.columns)
        rows = [{name: values[index] for name, values in table.items()} for index in clear.tolist()]
        complete = [row for row in rows if None not in row.values()]
        if not complete:
            return self.task, [self.task.example()]
        first = complete[0]
        other = [row for row, index in zip(rows, clear, strict=True) if self.targets[index] != self.targets[clear[0]]]
        holed = [row for row in rows if None in row.values()]
        several = [*complete[1:3], *holed[:1]] or [first]
        return with_examples(self.task, first), [{"rows": [first]}, {"rows": other[:1] or [first]}, {"rows": several}]


def _verdict(own: dict[str, float], theirs: dict[str, float], names: Sequence[str]) -> str:
    """Which of the two is better, plainly."""
    better = [
        name for name in names if (own[name] < theirs[name] if name == "cross_entropy" else own[name] > theirs[name])
    ]
    figures_ = ", ".join(f"{name.replace('_', ' ')} {own[name]:.4f} against {theirs[name]:.4f}" for name in names)
    if len(better) == len(names):
        return f"The network beats gradient boosting: {figures_}."
    if not better:
        return f"Gradient boosting beats the network: {figures_} (network first). For accuracy alone, use it instead."
    wins = ", ".join(better).replace("_", " ")
    return f"Neither wins: the network is better in {wins} only; {figures_} (network first)."


def _over_seeds(trained: Sequence[Trained], samples: str) -> tuple[Metric, ...]:
    """Mean and standard deviation of the scores of the seeds."""
    found = []
    for name in ("accuracy", "roc_auc"):
        values = [each.scores[name] for each in trained if name in each.scores]
        if len(values) > 1:
            protocol = f"over {len(values)} seeds, best epoch of each, {samples}"
            found.append(Metric(name=f"{name}_mean", value=float(np.mean(values)), protocol=f"mean {protocol}"))
            deviation = float(np.std(values, ddof=1))
            found.append(Metric(name=f"{name}_sd", value=deviation, protocol=f"standard deviation {protocol}"))
    return tuple(found)


def _failures(matrix: NDArray[np.integer], labels: Sequence[str], by_group: Sequence[Table]) -> tuple[str, ...]:
    found = [
        f"{matrix[i, j]} of the {matrix[i].sum()} validation rows of {labels[i]} were taken for {labels[j]}."
        for i in range(len(labels))
        for j in range(len(labels))
        if i != j and matrix[i, j]
    ]
    for table in by_group:
        large = [row for row in table.rows if not row[1].endswith("*")]
        if len(large) > 1:
            worst = min(large, key=lambda row: float(row[2]))
            found.append(
                f"{table.title}, it is right least often for {worst[0]}: {float(worst[2]):.1%} of {worst[1]} rows."
            )
    return tuple(found[:12])


def _indices(column: pl.Series, labels: Sequence[str]) -> NDArray[np.int64]:
    places = {label: i for i, label in enumerate(labels)}
    return np.array([places[value] for value in column.cast(pl.String).to_list()], np.int64)


def _auc(probabilities: NDArray[np.floating], targets: NDArray[np.integer]) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(targets, probabilities[:, 1]))
