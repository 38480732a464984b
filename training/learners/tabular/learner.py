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
from training.core.results import Comparison, Evaluation, Figure, SampleScores, Table, Trained
from training.core.sources import SourceFetcher
from training.data.tables import class_labels, is_number, merge_labels, request_values
from training.engine.inference import collect_outputs
from training.engine.runtime import Batch, Runtime
from training.evaluation import calibration, classification
from training.evaluation.comparison import compare_means
from training.evaluation.roc_auc import compare_roc_auc
from training.evaluation.subgroups import subgroup_table
from training.learners.tabular.base import INPUTS, Options, TabularBase, read_target_table
from training.learners.tabular.boosting_baseline import BOOSTING, BoostedClassification, advise, boost_classifier
from training.learners.tabular.embedding_transfer import EmbeddingTransfer
from training.learners.tabular.network import ServedTabular, TabularNetwork
from training.learners.tabular.regression import RegressionLearner
from training.reporting import plots

__all__ = ["Options", "TabularLearner"]

_BATCH = 4096
_MAX_PAIRS = 10
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
        """Return ROC AUC (with two classes among them), accuracy and cross-entropy on the validation rows."""
        logits = collect_outputs(network, INPUTS, self.held_out, runtime, batch_size=_BATCH)
        probabilities = logits.softmax(dim=1).numpy()
        accuracy = float((probabilities.argmax(axis=1) == self.targets).mean())
        loss = float(cross_entropy(logits, torch.from_numpy(self.targets)))
        roc_auc = {"roc_auc": _roc_auc(probabilities, self.targets)} if self._has_roc_auc else {}
        return {**roc_auc, "accuracy": accuracy, "loss": loss}

    def to_inference_module(self, network: nn.Module) -> nn.Module:
        """Return the module to export, calibrated on the validation rows."""
        exact = copy.deepcopy(network).float().cpu()
        logits = collect_outputs(exact, INPUTS, self.held_out, _CPU, batch_size=_BATCH)
        return ServedTabular(exact, self._calibrate(logits).temperature).eval()

    def _calibrate(self, logits: Tensor) -> calibration.Calibration:
        return calibration.calibrate(logits, torch.from_numpy(self.targets), "validation rows")

    def sample_scores(self, exported: nn.Module) -> SampleScores:
        """Return whether the class of each validation row is right."""
        return self._accuracy_scores(self._probabilities(exported))

    def _accuracy_scores(self, probabilities: NDArray[np.floating]) -> SampleScores:
        is_right = probabilities.argmax(axis=1) == self.targets
        return self._sample_scores("accuracy", is_right.astype(np.float64), lower_is_better=False)

    def _probabilities(self, exported: nn.Module) -> NDArray[np.floating]:
        probabilities: NDArray[np.floating] = collect_outputs(
            exported, INPUTS, self.held_out, _CPU, batch_size=_BATCH
        ).numpy()
        return probabilities

    def evaluate(self, trained: Sequence[Trained], served: nn.Module, exported: nn.Module) -> Evaluation:
        """Evaluate over the seeds, against gradient boosting, by class and by audit group."""
        network = cast(ServedTabular, served).network
        fitted = self._calibrate(collect_outputs(network, INPUTS, self.held_out, _CPU, batch_size=_BATCH))
        targets, labels = self.targets, self.task.labels
        probabilities = self._probabilities(exported)
        uncalibrated = classification.at_temperature(probabilities, 1 / fitted.temperature)
        samples = f"{len(targets):,} validation rows"
        boosted = self._boost()
        by_class = classification.per_class_table(probabilities, targets, labels)
        by_group = tuple(
            subgroup_table(self.valid_frame[name], probabilities, targets, labels) for name in self.options.audit
        )
        matrix = classification.confusion_matrix(probabilities, targets, labels)
        importance = self._importance(exported, self._error_rate, "accuracy lost")
        transfer = EmbeddingTransfer(
            self.samples,
            self.held_out,
            is_classification=True,
            metric="accuracy",
            score=lambda classes, rows: float((classes == targets[rows]).mean()),
        )
        tables, planes = self.embedding_views(trained[0].network, transfer)
        comparisons = self._compare(probabilities, boosted.probabilities)
        return Evaluation(
            metrics=(
                *classification.classification_metrics(
                    probabilities,
                    uncalibrated,
                    targets,
                    samples,
                    is_calibrated=not fitted.reason,
                    groups=self.split.calibration.astype(np.int64),
                ),
                *_metrics_over_seeds(trained, samples),
            ),
            notes=(self._describe_validation(fitted), *advise(comparisons)),
            tables=(self._tabulate_boosting(trained, probabilities, boosted), by_class, *by_group, *tables),
            figures=(
                Figure("Confusion matrix", plots.draw_confusion_matrix(matrix, labels)),
                _draw_reliability(uncalibrated, probabilities, targets, fitted),
                importance,
                *planes,
            ),
            failures=_failures(matrix, labels, by_group),
            caveats=(fitted.caveat,) if fitted.reason else (),
            comparisons=comparisons,
        )

    def _boost(self) -> BoostedClassification:
        classes = len(self.task.labels)
        return boost_classifier(self.task.schema, self.samples, self.held_out, classes, self.settings.seed)

    def _compare(self, probabilities: NDArray[np.floating], boosted: NDArray[np.floating]) -> tuple[Comparison, ...]:
        """Compare with the most frequent class of the training rows, and with gradient boosting."""
        scores, targets = self._accuracy_scores(probabilities), self.targets
        majority = int(np.bincount(self.samples.targets.numpy()).argmax())
        constant = f"always predicting '{self.task.labels[majority]}'"
        comparisons = [
            compare_means(scores, constant, (targets == majority).astype(np.float64), is_constant=True),
            compare_means(scores, BOOSTING, (boosted.argmax(axis=1) == targets).astype(np.float64)),
        ]
        if self._has_roc_auc:
            is_positive, what = targets == 1, "validation rows"
            comparisons.append(compare_roc_auc(BOOSTING, probabilities[:, 1], boosted[:, 1], is_positive, what))
        return tuple(comparisons)

    @property
    def _has_roc_auc(self) -> bool:
        """Whether there are two classes, and validation rows of both."""
        return len(self.labels) == 2 and len(set(self.targets.tolist())) == 2

    def _tabulate_boosting(
        self, trained: Sequence[Trained], probabilities: NDArray[np.floating], boosted: BoostedClassification
    ) -> Table:
        """Tabulate the network beside gradient boosting on the same split."""
        names = ["accuracy", *(["roc_auc"] if self._has_roc_auc else []), "cross_entropy"]
        network_metrics = classification.classification_scores(probabilities, self.targets)
        boosting_metrics = classification.classification_scores(boosted.probabilities, self.targets)
        rows = [
            ("this network (published)", *(f"{network_metrics[name]:.4f}" for name in names)),
            (BOOSTING, *(f"{boosting_metrics[name]:.4f}" for name in names)),
        ]
        if len(trained) > 1:
            spreads = [classification.mean_and_std([run.scores[name] for run in trained]) for name in names[:-1]]
            rows.insert(1, (f"the network, {len(trained)} seeds", *spreads, "–"))
        header = ("", *(name.replace("_", " ") for name in names))
        return Table("Comparison with gradient boosting", header, tuple(rows), f"{boosted.description}.")

    def _error_rate(self, probabilities: Tensor, count: int) -> float:
        classes = probabilities[:count].argmax(dim=1).numpy()
        return float((classes != self.targets[:count]).mean())

    def _describe_validation(self, fitted: calibration.Calibration) -> str:
        held_out, rows = len(self.held_out), len(self.held_out) + len(self.samples)
        of_each = "" if self.options.split_column or self.options.split_time else ", in proportion to the classes"
        chosen = ["The best epoch was chosen on them"] if self.settings.epochs > 1 else []
        if not fitted.reason:
            chosen.append(f"the temperature ({fitted.temperature:.3f}) was fitted on them")
        sentences = [f"Validated on {held_out:,} of {rows:,} rows, held out {self.split.method}{of_each}"]
        if chosen:
            sentence = ", and ".join(chosen)
            sentences.append(sentence[0].upper() + sentence[1:])
        if fitted.reason:
            sentences.append(fitted.caveat.removesuffix("."))
        return ". ".join(sentences) + "."

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


def _draw_reliability(
    uncalibrated: NDArray[np.floating],
    probabilities: NDArray[np.floating],
    targets: NDArray[np.integer],
    fitted: calibration.Calibration,
) -> Figure:
    if fitted.reason:
        bins = {"not calibrated": calibration.reliability_bins(probabilities, targets)}
        return Figure("Reliability", plots.draw_reliability(bins), fitted.caveat)
    bins = {
        "as trained": calibration.reliability_bins(uncalibrated, targets),
        "calibrated": calibration.reliability_bins(probabilities, targets),
    }
    return Figure("Reliability", plots.draw_reliability(bins), f"Temperature {fitted.temperature:.3f}.")


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
    """Return sentences on the classes that are confused most often, and on the groups with the lowest accuracy."""
    failures = _describe_confusions(matrix, labels)
    for table in by_group:
        large = [row for row in table.rows if not row[1].endswith("*")]
        worst = min(large, key=lambda row: float(row[2]), default=None)
        if worst and float(worst[2]) < max(float(row[2]) for row in large):
            failures.append(
                f"{table.title}, accuracy is lowest for {worst[0]}: {float(worst[2]):.1%} of {worst[1]} rows."
            )
    return tuple(failures)


def _describe_confusions(matrix: NDArray[np.integer], labels: Sequence[str]) -> list[str]:
    mistakes = matrix - np.diag(matrix.diagonal())
    pairs = sorted(zip(*np.nonzero(mistakes), strict=True), key=lambda pair: -mistakes[pair])
    sentences = [
        _describe_confusion(int(mistakes[i, j]), int(matrix[i].sum()), labels[i], labels[j])
        for i, j in pairs[:_MAX_PAIRS]
    ]
    if more := len(pairs) - _MAX_PAIRS:
        if more == 1:
            sentences.append("One more pair of classes is confused, less often.")
        elif more > 1:
            sentences.append(f"{more:,} more pairs of classes are confused, less often.")
    return sentences


def _describe_confusion(count: int, rows: int, true: str, predicted: str) -> str:
    if rows == 1:
        return f"The only validation row of {true} is predicted as {predicted}."
    if count == rows:
        return f"All {rows:,} validation rows of {true} are predicted as {predicted}."
    verb = "is" if count == 1 else "are"
    return f"{count:,} of the {rows:,} validation rows of {true} {verb} predicted as {predicted}."


def _roc_auc(probabilities: NDArray[np.floating], targets: NDArray[np.integer]) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(targets, probabilities[:, 1]))
