"""Learns a class from the other columns of a table, with gradient boosting as the baseline.

A target that is a number goes to the learner in regression.py.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
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
from training.data.tables import class_labels, is_number, merge_labels, request_values
from training.engine.inference import collect_outputs
from training.engine.runtime import Batch, Runtime
from training.evaluation import calibration, classification
from training.evaluation.subgroups import subgroup_table
from training.learners.tabular.base import INPUTS, Options, TabularBase, read_target_table
from training.learners.tabular.boosting_baseline import boost_classifier
from training.learners.tabular.embedding_transfer import EmbeddingTransfer
from training.learners.tabular.network import ServedTabular, TabularNetwork
from training.learners.tabular.regression import RegressionLearner
from training.reporting import plots

__all__ = ["Options", "TabularLearner"]

_BATCH = 4096
_CPU = Runtime(torch.device("cpu"))


class TabularLearner(TabularBase):
    """Learns a class from the other columns of a table."""

    summary: ClassVar[str] = "predict one column of a table, a class or a number, from the others"
    hub_tag: ClassVar[str] = "tabular-classification"

    @classmethod
    def from_data(cls, data: Path, settings: Settings, options: Options, fetcher: SourceFetcher) -> TabularBase:  # noqa: ARG003
        """Read the table and return the learner for its kind of target. Raises CannotTrain."""
        path, table = read_target_table(data, options)
        if is_number(table.frame, options.target, options.kind, path):
            return RegressionLearner(path, table, settings, options)
        frame, notes = merge_labels(table.frame, options.target)
        return cls(path, replace(table, frame=frame, warnings=(*table.warnings, *notes)), settings, options)

    def _read_target(self, path: Path, frame: pl.DataFrame) -> None:
        self.labels = class_labels(frame, self.options.target)
        if self.options.kind == "auto" and frame[self.options.target].dtype.is_numeric():
            self.warnings.append(
                f"'{self.options.target}' has {len(self.labels)} distinct numbers, which are treated as classes; to "
                "predict a number, use --kind number."
            )

    def _strata(self, frame: pl.DataFrame) -> NDArray[np.integer]:
        return self._label_indices(frame)

    def _make_task(self, columns: tuple[Column, ...], ignored: tuple[str, ...]) -> Tabular:
        optional = self._incomplete_columns(columns)
        return Tabular(self.options.target, self.labels, columns, ignored, optional=optional)

    def _targets(self, frame: pl.DataFrame) -> NDArray[np.generic]:
        return self._label_indices(frame)

    def _label_indices(self, frame: pl.DataFrame) -> NDArray[np.int64]:
        indices = {label: i for i, label in enumerate(self.labels)}
        return np.array([indices[value] for value in frame[self.options.target].cast(pl.String).to_list()], np.int64)

    def _describe_target(self) -> str:
        return f"{len(self.labels)} classes"

    @property
    def targets(self) -> NDArray[np.integer]:
        """The classes of the validation rows."""
        targets: NDArray[np.integer] = self.held_out.targets.numpy()
        return targets

    def network(self) -> TabularNetwork:
        """Return a new network with an output for each class."""
        return self._tabular_network(len(self.labels))

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy."""
        logits = network(*(batch[name] for name in INPUTS))[0]
        return cross_entropy(logits, batch["target"], label_smoothing=self.settings.label_smoothing)

    def scores(self, network: nn.Module, runtime: Runtime) -> dict[str, float]:
        """Return ROC AUC (for two classes), accuracy and cross-entropy on the validation rows."""
        logits = collect_outputs(network, INPUTS, self.held_out, runtime, batch_size=_BATCH)
        probabilities = logits.softmax(dim=1).numpy()
        accuracy = float((probabilities.argmax(axis=1) == self.targets).mean())
        loss = float(cross_entropy(logits, torch.from_numpy(self.targets)))
        roc_auc = {"roc_auc": _roc_auc(probabilities, self.targets)} if len(self.task.labels) == 2 else {}
        return {**roc_auc, "accuracy": accuracy, "loss": loss}

    def to_inference_module(self, network: nn.Module) -> nn.Module:
        """Return the module to export, calibrated on the validation rows."""
        exact = copy.deepcopy(network).float().cpu()
        logits = collect_outputs(exact, INPUTS, self.held_out, _CPU, batch_size=_BATCH)
        return ServedTabular(exact, calibration.fit_temperature(logits, torch.from_numpy(self.targets))).eval()

    def evaluate(self, trained: Sequence[Trained], served: nn.Module, exported: nn.Module) -> Evaluation:
        """Evaluate over the seeds, against gradient boosting, by class and by audit group."""
        calibrated = cast(ServedTabular, served)
        temperature = float(calibrated.temperature)
        targets, labels = self.targets, self.task.labels
        probabilities = collect_outputs(served, INPUTS, self.held_out, _CPU, batch_size=_BATCH).numpy()
        logits = collect_outputs(calibrated.network, INPUTS, self.held_out, _CPU, batch_size=_BATCH)
        uncalibrated = logits.softmax(dim=1).numpy()
        samples = f"{len(targets):,} validation rows"
        comparison, verdict = self._compare_with_boosting(trained, probabilities)
        by_class = classification.per_class_table(probabilities, targets, labels)
        by_group = tuple(
            subgroup_table(self.valid_frame[name], probabilities, targets, labels) for name in self.options.audit
        )
        matrix = classification.confusion_matrix(probabilities, targets, labels)
        bins = {
            "as trained": calibration.reliability_bins(uncalibrated, targets),
            "calibrated": calibration.reliability_bins(probabilities, targets),
        }
        importance = self._importance(served, self._error_rate, "accuracy lost")
        transfer = EmbeddingTransfer(
            self.samples,
            self.held_out,
            is_classification=True,
            metric="accuracy",
            score=lambda classes, rows: float((classes == targets[rows]).mean()),
        )
        tables, planes = self.embedding_views(trained[0].network, transfer)
        return Evaluation(
            metrics=(
                *classification.classification_metrics(probabilities, uncalibrated, targets, samples),
                *_metrics_over_seeds(trained, samples),
            ),
            notes=(
                f"Validated on {self._describe_split()}. The best epoch was chosen, and the temperature "
                f"({temperature:.3f}) was fitted, on the same rows.",
                verdict,
            ),
            tables=(comparison, by_class, *by_group, *tables),
            figures=(
                Figure("Confusion matrix", plots.draw_confusion_matrix(matrix, labels)),
                Figure("Reliability", plots.draw_reliability(bins), f"Temperature {temperature:.3f}."),
                importance,
                *planes,
            ),
            failures=_failures(matrix, labels, by_group),
        )

    def _compare_with_boosting(
        self, trained: Sequence[Trained], probabilities: NDArray[np.floating]
    ) -> tuple[Table, str]:
        """Tabulate the network beside gradient boosting on the same split, and say which is better."""
        seed = self.settings.seed
        boosted = boost_classifier(self.task.schema, self.samples, self.held_out, len(self.task.labels), seed)
        names = ["accuracy", *(["roc_auc"] if len(self.task.labels) == 2 else []), "cross_entropy"]
        network_metrics = classification.classification_scores(probabilities, self.targets)
        boosting_metrics = classification.classification_scores(boosted, self.targets)
        rows = [
            ("this network (published)", *(f"{network_metrics[name]:.4f}" for name in names)),
            ("gradient boosting", *(f"{boosting_metrics[name]:.4f}" for name in names)),
        ]
        if len(trained) > 1:
            spreads = [classification.mean_and_std([run.scores[name] for run in trained]) for name in names[:-1]]
            rows.insert(1, (f"the network, {len(trained)} seeds", *spreads, "–"))
        header = ("", *(name.replace("_", " ") for name in names))
        note = (
            "scikit-learn's HistGradientBoostingClassifier on the same columns and rows, with early stopping on a "
            "tenth of the training rows, not tuned."
        )
        table = Table("Comparison with gradient boosting", header, tuple(rows), note)
        return table, _verdict(network_metrics, boosting_metrics, names)

    def _error_rate(self, probabilities: Tensor, count: int) -> float:
        classes = probabilities[:count].argmax(dim=1).numpy()
        return float((classes != self.targets[:count]).mean())

    def _describe_split(self) -> str:
        if self.options.split_column or self.options.split_time:
            return f"rows held out {self.split.method}"
        return f"{self.options.valid_fraction:.0%} of the rows of each class, held out by a hash of the row"

    def golden_requests(self, served: nn.Module) -> tuple[Task, list[dict[str, Any]]]:
        """Return requests of clear rows: a complete one, one of another class, and several with a missing value."""
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
        incomplete = [row for row in rows if None in row.values()]
        several = [*complete[1:3], *incomplete[:1]] or [first]
        return with_examples(self.task, first), [{"rows": [first]}, {"rows": other[:1] or [first]}, {"rows": several}]


def _verdict(network: dict[str, float], boosting: dict[str, float], names: Sequence[str]) -> str:
    """Say whether the network or gradient boosting is better, from their metrics by name."""
    lower_is_better = {"cross_entropy"}
    better = [
        name.replace("_", " ")
        for name in names
        if (network[name] < boosting[name] if name in lower_is_better else network[name] > boosting[name])
    ]
    shown = ", ".join(f"{name.replace('_', ' ')} {network[name]:.4f} against {boosting[name]:.4f}" for name in names)
    if len(better) == len(names):
        return f"The network beats gradient boosting: {shown}."
    if not better:
        return f"Gradient boosting beats the network: {shown} (network first). For accuracy alone, use it instead."
    return (
        f"Neither is better in all metrics: the network is better only in {', '.join(better)}; {shown} (network first)."
    )


def _metrics_over_seeds(trained: Sequence[Trained], samples: str) -> tuple[Metric, ...]:
    """Return the mean and standard deviation of the scores of several seeds."""
    metrics = []
    for name in ("accuracy", "roc_auc"):
        values = [run.scores[name] for run in trained if name in run.scores]
        if len(values) > 1:
            protocol = f"over {len(values)} seeds, best epoch of each, {samples}"
            metrics.append(Metric(name=f"{name}_mean", value=float(np.mean(values)), protocol=f"mean {protocol}"))
            deviation = float(np.std(values, ddof=1))
            metrics.append(Metric(name=f"{name}_sd", value=deviation, protocol=f"standard deviation {protocol}"))
    return tuple(metrics)


def _failures(matrix: NDArray[np.integer], labels: Sequence[str], by_group: Sequence[Table]) -> tuple[str, ...]:
    failures = [
        f"{matrix[i, j]} of the {matrix[i].sum()} validation rows of {labels[i]} are predicted as {labels[j]}."
        for i in range(len(labels))
        for j in range(len(labels))
        if i != j and matrix[i, j]
    ]
    for table in by_group:
        large = [row for row in table.rows if not row[1].endswith("*")]
        if len(large) > 1:
            worst = min(large, key=lambda row: float(row[2]))
            failures.append(
                f"{table.title}, accuracy is lowest for {worst[0]}: {float(worst[2]):.1%} of {worst[1]} rows."
            )
    return tuple(failures[:12])


def _roc_auc(probabilities: NDArray[np.floating], targets: NDArray[np.integer]) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(targets, probabilities[:, 1]))
