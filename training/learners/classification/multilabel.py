"""How pictures with several tags each are learnt: the classifier's network, a sigmoid, and a threshold for each tag."""

import base64
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from tasks.classification import Classification
from tasks.contract import Task
from training.core.errors import CannotTrain
from training.core.results import Evaluation, Figure, Table, Trained
from training.engine.runtime import Runtime
from training.evaluation import calibration, classification
from training.learners.classification.base import ClassesLearner
from training.learners.classification.label_csv import read_tags, table_file
from training.learners.classification.multilabel_metrics import (
    best_thresholds,
    f_score,
    majority,
    per_label,
    tag_metrics,
    two_sided,
)
from training.learners.classification.network import ServedTags
from training.reporting import plots


class TagsLearner(ClassesLearner):
    """Learns each tag of a picture from a table of them."""

    def _load_data(self, data: Path) -> None:
        options, table = self.options, table_file(data)
        if table is None:
            raise CannotTrain(f"{data} holds no labels.csv.")
        self.table = read_tags(
            table, unreadable=options.unreadable, valid_fraction=options.valid_fraction, size=options.size
        )
        train, kept = self.table.train, self.table.validation
        # Until training is over; then validation chooses them.
        task = self._new_task(self.table.labels, (0.5,) * len(self.table.labels))
        self._prepare(
            task,
            ([picture.path for picture in train], self.table.targets(train)),
            ([picture.path for picture in kept], self.table.targets(kept)),
        )

    def data_summary(self) -> str:
        """Counts, and what was found on reading."""
        table = self.table
        tags = float(self.samples.targets.sum()) / len(table.train)
        counts = f"{len(table.train):,} pictures to train on, {len(table.validation):,} to validate: {table.split}"
        return "\n".join([f"{len(table.labels)} labels, {tags:.1f} a picture; {counts}.", *table.notices])

    def _loss(self, logits: Tensor, target: Tensor) -> Tensor:
        # Smoothed half as much as a class: a tag that is surely absent is no evidence for the others.
        smoothing = self.trained_with.label_smoothing / 2
        return binary_cross_entropy_with_logits(logits, target * (1 - smoothing) + smoothing / 2)

    def scores(self, network: nn.Module, runtime: Runtime) -> dict[str, float]:
        """Mean average precision, micro F1 at 0.5, and the loss on the validation pictures."""
        from sklearn.metrics import average_precision_score

        logits = self._logits(self._whole(network), runtime)
        targets, known = self.targets.numpy(), self.targets.numpy().any(axis=0)
        precision = average_precision_score(targets[:, known], logits.numpy()[:, known], average="macro")
        loss = binary_cross_entropy_with_logits(logits, self.targets)
        at_half = f_score((logits > 0).numpy(), targets.astype(int))
        return {"average_precision": float(precision), "micro_f1": at_half, "loss": float(loss)}

    def to_inference_module(self, network: nn.Module) -> nn.Module:
        """Calibrated on the validation pictures."""
        whole = self._on_cpu(network)
        logits = self._logits(whole, Runtime(torch.device("cpu")))
        found = calibration.fit_temperature(logits, self.targets, loss=binary_cross_entropy_with_logits)
        return ServedTags(whole, found).eval()

    def calibrated_task(self, served: nn.Module) -> Task:
        """With the thresholds that validation chose."""
        return self._settled(self._probabilities(served))

    def _settled(self, probabilities: Any) -> Classification:
        return replace(self.task, thresholds=best_thresholds(probabilities, self.targets.numpy().astype(int)))

    def evaluate(self, trained: Sequence[Trained], served: nn.Module) -> Evaluation:
        """F scores, thresholds, calibration, and the worst mistakes with what the network looked at."""
        temperature = float(cast(ServedTags, served).temperature)
        probabilities, targets = self._probabilities(served), self.targets.numpy().astype(int)
        before = _at_temperature_one(probabilities, temperature)
        thresholds = self._settled(probabilities).thresholds
        labels = per_label(probabilities, targets, thresholds, self.task.labels)
        samples = f"{len(targets)} validation pictures"
        bins = {
            "as trained": calibration.reliability_bins(*two_sided(before, targets)),
            "calibrated": calibration.reliability_bins(*two_sided(probabilities, targets)),
        }
        return Evaluation(
            metrics=tag_metrics(probabilities, before, targets, thresholds, samples),
            notes=self._notes(trained, targets, temperature),
            tables=(labels,),
            figures=(
                Figure("F1 of each label", plots.draw_bars(self.task.labels, _column(labels, 4), "F1", "F1")),
                Figure("Reliability", plots.draw_reliability(bins), f"Temperature {temperature:.3f}."),
                *self._worst(probabilities, targets, thresholds, served),
                self._augmentation_figure(),
            ),
            failures=_failures(labels),
        )

    def _notes(self, trained: Sequence[Trained], targets: Any, temperature: float) -> tuple[str, ...]:
        train = self.samples.targets.numpy().astype(int)
        always = majority(train, len(targets))
        course = np.ones_like(targets, bool)
        notes = [
            f"Split: {self.table.split}. The best epoch, the thresholds and the temperature ({temperature:.3f}) were "
            "chosen on the same validation pictures; `micro_f1_crossed` says what thresholds cost that are not.",
            f"Always answering each label's majority would have a micro F1 of {f_score(always, targets):.3f}; always "
            f"answering every label, one of {f_score(course, targets):.3f}.",
        ]
        if len(trained) > 1:
            found = [each.scores["average_precision"] for each in trained]
            notes.append(f"Mean average precision over {len(trained)} seeds: {classification.mean_and_std(found)}.")
        return (*notes, *self._notes_on_the_network())

    def _worst(
        self, probabilities: Any, targets: Any, thresholds: Sequence[float], served: nn.Module
    ) -> tuple[Figure, ...]:
        """The tags that were missed, or given, against the greatest odds: one a picture."""
        wrong = (probabilities >= np.array(thresholds)) != targets.astype(bool)
        surprise = np.where(wrong, np.abs(targets - probabilities), 0.0)
        indices = np.argsort(-surprise.max(axis=1), kind="stable")[:12]
        chosen = []
        for index in indices[surprise[indices].max(axis=1) > 0].tolist():
            label = int(surprise[index].argmax())
            said = "missed" if targets[index, label] else "wrongly given"
            chosen.append((index, label, f"{self.task.labels[label]} {said}, {probabilities[index, label]:.2f}"))
        return self._shown(chosen, served, "Worst mistakes", "Orange: what speaks for the tag that is named.")

    def golden_requests(self, served: nn.Module) -> tuple[Task, list[dict[str, Any]]]:
        """Pictures whose probabilities all lie far from their thresholds; one asks for everything there is."""
        probabilities, targets = self._probabilities(served), self.targets.numpy().astype(bool)
        task = self._settled(probabilities)
        margins = np.abs(probabilities - np.array(task.thresholds)).min(axis=1)
        right = ((probabilities >= np.array(task.thresholds)) == targets).all(axis=1)
        clearest = np.argsort(-margins * right, kind="stable")[:3].tolist()
        clear = [index for index in clearest if margins[index] > 0.05 and right[index]]
        bodies: list[dict[str, Any]] = [
            {"image": base64.b64encode(self._small_jpeg(index)).decode("ascii")} for index in clear
        ]
        if len(bodies) > 1:
            bodies[1] = {**bodies[1], "heatmap": True, "all_labels": True}
        return task, bodies or [task.example()]


def _at_temperature_one(probabilities: Any, temperature: float) -> Any:
    """What the probabilities were before they were calibrated."""
    exact = np.clip(probabilities.astype(np.float64), 1e-12, 1 - 1e-12)
    return 1 / (1 + np.exp(-np.log(exact / (1 - exact)) * temperature))


def _column(table: Table, index: int) -> list[float]:
    return [float(row[index]) for row in table.rows]


def _failures(labels: Table) -> tuple[str, ...]:
    """The labels that are found least reliably."""
    weakest = sorted((row for row in labels.rows if row[-1] != "0"), key=lambda row: float(row[4]))[:3]
    return tuple(
        f"'{name}' has an F1 of {f1}: {float(recall):.0%} of its {count} pictures are found, and "
        f"{float(precision):.0%} of those that get it have it."
        for name, _, precision, recall, f1, _, count in weakest
    )
