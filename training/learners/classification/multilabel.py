"""Multi-label image classification: the classifier's network with a sigmoid and one threshold per label."""

import base64
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from tasks.classification import Classification
from tasks.contract import Task
from training.core.errors import CannotTrain
from training.core.results import Evaluation, Figure, Table, Trained
from training.data.delimited import CsvFormat
from training.engine.runtime import Runtime
from training.evaluation import calibration, classification
from training.learners.classification.base import BaseClassificationLearner
from training.learners.classification.label_csv import find_table, read_tags
from training.learners.classification.multilabel_metrics import (
    as_binary_samples,
    best_thresholds,
    f_score,
    majority_predictions,
    multilabel_metrics,
    per_label_table,
)
from training.learners.classification.network import ServedMultiLabelClassifier
from training.reporting import plots


class MultiLabelLearner(BaseClassificationLearner):
    """Trains a multi-label image classifier from a table of tags."""

    def _load_data(self, data: Path) -> None:
        options, table = self.options, find_table(data)
        if table is None:
            raise CannotTrain(f"There is no labels.csv in {data}.")
        form = CsvFormat(options.separator, options.encoding)
        self.table = read_tags(
            table, form, unreadable=options.unreadable, valid_fraction=options.valid_fraction, size=options.size
        )
        train, validation = self.table.train, self.table.validation
        # The thresholds are placeholders; `calibrated_task` sets them from the validation images after training.
        task = self._new_task(self.table.labels, (0.5,) * len(self.table.labels))
        self._load_samples(
            task,
            ([image.path for image in train], self.table.targets(train)),
            ([image.path for image in validation], self.table.targets(validation)),
        )

    def data_summary(self) -> str:
        """Return the counts, the split, and any warnings."""
        table = self.table
        tags = float(self.samples.targets.sum()) / len(table.train)
        counts = f"{len(table.train):,} pictures to train on, {len(table.validation):,} to validate: {table.split}"
        return "\n".join([f"{len(table.labels)} labels, {tags:.1f} per image; {counts}.", *table.warnings])

    def _loss_of_logits(self, logits: Tensor, target: Tensor) -> Tensor:
        # Half the smoothing of a single-label class: the absence of a tag says nothing about the other tags.
        smoothing = self.settings.label_smoothing / 2
        return binary_cross_entropy_with_logits(logits, target * (1 - smoothing) + smoothing / 2)

    def scores(self, network: nn.Module, runtime: Runtime) -> dict[str, float]:
        """Return mean average precision, micro F1 at threshold 0.5, and loss on the validation images."""
        from sklearn.metrics import average_precision_score

        logits = self._validation_logits(self._with_tta(network), runtime)
        targets, known = self.targets.numpy(), self.targets.numpy().any(axis=0)
        precision = average_precision_score(targets[:, known], logits.numpy()[:, known], average="macro")
        loss = binary_cross_entropy_with_logits(logits, self.targets)
        micro_f1 = f_score((logits > 0).numpy(), targets.astype(int))
        return {"average_precision": float(precision), "micro_f1": micro_f1, "loss": float(loss)}

    def to_inference_module(self, network: nn.Module) -> nn.Module:
        """Return the module to export, calibrated on the validation images."""
        float32 = self._float32_copy(network)
        logits = self._validation_logits(float32, Runtime(torch.device("cpu")))
        temperature = calibration.fit_temperature(logits, self.targets, loss=binary_cross_entropy_with_logits)
        return ServedMultiLabelClassifier(float32, temperature).eval()

    def calibrated_task(self, served: nn.Module) -> Task:
        """Return the task with the thresholds that are best on the validation images."""
        return self._with_thresholds(self._validation_probabilities(served).calibrated)

    def _with_thresholds(self, probabilities: NDArray[np.floating]) -> Classification:
        return replace(self.task, thresholds=best_thresholds(probabilities, self.targets.numpy().astype(int)))

    def evaluate(self, trained: Sequence[Trained], served: nn.Module, exported: nn.Module) -> Evaluation:
        """Report F scores, thresholds, calibration, and the worst mistakes with their activation maps."""
        temperature = float(cast(ServedMultiLabelClassifier, served).temperature)
        uncalibrated, probabilities = self._validation_probabilities(served)
        targets = self.targets.numpy().astype(int)
        thresholds = self._with_thresholds(probabilities).thresholds
        table = per_label_table(probabilities, targets, thresholds, self.task.labels)
        samples = f"{len(targets)} validation images"
        bins = {
            "uncalibrated": calibration.reliability_bins(*as_binary_samples(uncalibrated, targets)),
            "calibrated": calibration.reliability_bins(*as_binary_samples(probabilities, targets)),
        }
        f1_by_label = [float(row[4]) for row in table.rows]
        return Evaluation(
            metrics=multilabel_metrics(probabilities, uncalibrated, targets, thresholds, samples),
            notes=self._notes(trained, targets, temperature),
            tables=(table,),
            figures=(
                Figure("F1 per label", plots.draw_bars(self.task.labels, f1_by_label, "F1", "F1")),
                Figure("Reliability", plots.draw_reliability(bins), f"Temperature {temperature:.3f}."),
                *self._worst_mistakes(probabilities, targets, thresholds, served),
                self._augmentation_figure(),
            ),
            failures=_failures(table),
        )

    def _notes(self, trained: Sequence[Trained], targets: NDArray[np.integer], temperature: float) -> tuple[str, ...]:
        majority = majority_predictions(self.samples.targets.numpy().astype(int), len(targets))
        all_labels = np.ones_like(targets, bool)
        notes = [
            f"Split: {self.table.split}. The best epoch, the thresholds and the temperature ({temperature:.3f}) were "
            "chosen on the same validation images, so expect slightly lower scores on new images; `micro_f1_crossed` "
            "uses thresholds tuned on other images.",
            f"Baselines: always predicting each label's majority has a micro F1 of {f_score(majority, targets):.3f}; "
            f"always predicting every label, {f_score(all_labels, targets):.3f}.",
        ]
        if len(trained) > 1:
            scores = [run.scores["average_precision"] for run in trained]
            notes.append(f"Mean average precision over {len(trained)} seeds: {classification.mean_and_std(scores)}.")
        return (*notes, *self._network_notes())

    def _worst_mistakes(
        self,
        probabilities: NDArray[np.floating],
        targets: NDArray[np.integer],
        thresholds: Sequence[float],
        served: nn.Module,
    ) -> tuple[Figure, ...]:
        """Show the most confident wrong labels, at most one per image."""
        wrong = (probabilities >= np.array(thresholds)) != targets.astype(bool)
        error = np.where(wrong, np.abs(targets - probabilities), 0.0)
        indices = np.argsort(-error.max(axis=1), kind="stable")[:12]
        entries = []
        for index in indices[error[indices].max(axis=1) > 0].tolist():
            label = int(error[index].argmax())
            kind = "missed" if targets[index, label] else "false positive"
            entries.append((index, label, f"{self.task.labels[label]} {kind}, {probabilities[index, label]:.2f}"))
        return self._evidence_figures(entries, served, "Worst mistakes", "Orange: evidence for the named label.")

    def golden_requests(self, served: nn.Module) -> tuple[Task, list[dict[str, Any]]]:
        """Return requests with images whose probabilities are all far from their thresholds.

        The second request also asks for the heat map and for all labels.
        """
        probabilities = self._validation_probabilities(served).calibrated
        targets = self.targets.numpy().astype(bool)
        task = self._with_thresholds(probabilities)
        margins = np.abs(probabilities - np.array(task.thresholds)).min(axis=1)
        correct = ((probabilities >= np.array(task.thresholds)) == targets).all(axis=1)
        clearest = np.argsort(-margins * correct, kind="stable")[:3].tolist()
        bodies: list[dict[str, Any]] = [
            {"image": base64.b64encode(self._downscaled_jpeg(index)).decode("ascii")}
            for index in clearest
            if margins[index] > 0.05 and correct[index]
        ]
        if len(bodies) > 1:
            bodies[1] = {**bodies[1], "heatmap": True, "all_labels": True}
        return task, bodies or [task.example()]


def _failures(table: Table) -> tuple[str, ...]:
    """Describe the labels with the lowest F1."""
    weakest = sorted((row for row in table.rows if row[-1] != "0"), key=lambda row: float(row[4]))[:3]
    return tuple(
        f"'{name}' has an F1 of {f1}: the model finds {float(recall):.0%} of its {count} images, and "
        f"{float(precision):.0%} of the images predicted to have it do."
        for name, _, precision, recall, f1, _, count in weakest
    )
