"""Multi-label image classification: the classifier's network with a sigmoid and one threshold per label."""

import base64
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from tasks.contract import Task
from training.core.errors import CannotTrain
from training.core.results import Comparison, Evaluation, Figure, SampleScores, Trained
from training.data.delimited import CsvFormat
from training.engine.runtime import Runtime
from training.evaluation import calibration, classification
from training.evaluation.comparison import compare_statistics
from training.learners.classification.base import BaseClassificationLearner
from training.learners.classification.label_csv import find_table, read_tags
from training.learners.classification.multilabel_metrics import (
    as_binary_samples,
    best_constant,
    best_thresholds,
    cross_fitted_predictions,
    f_score,
    image_f1,
    mean_precision,
    micro_f1,
    multilabel_metrics,
    per_label_table,
    sigmoid_at_temperature,
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
        # The thresholds are placeholders; `to_inference_module` sets them from the validation images after training.
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
        logits = self._validation_logits(self._with_tta(network), runtime)
        targets = self.targets.numpy()
        loss = binary_cross_entropy_with_logits(logits, self.targets)
        return {
            "average_precision": mean_precision(logits.numpy(), targets),
            "micro_f1": f_score((logits > 0).numpy(), targets.astype(int)),
            "loss": float(loss),
        }

    def to_inference_module(self, network: nn.Module) -> nn.Module:
        """Return the module to export, calibrated on the validation images if they are enough.

        Also sets the thresholds of the task to those that are best on the validation images.
        """
        float32 = self._float32_copy(network)
        logits = self._validation_logits(float32, Runtime(torch.device("cpu")))
        self.calibration = calibration.calibrate(
            logits, self.targets, "validation images", loss=binary_cross_entropy_with_logits
        )
        served = ServedMultiLabelClassifier(float32, self.calibration.temperature).eval()
        probabilities = served.probabilities(logits / served.temperature).numpy()
        self.task = replace(self.task, thresholds=best_thresholds(probabilities, self.targets.numpy().astype(int)))
        return served

    def evaluate(self, trained: Sequence[Trained], served: nn.Module, exported: nn.Module) -> Evaluation:
        """Report F scores, thresholds, calibration, and the worst mistakes with their activation maps."""
        probabilities = self._validation_probabilities(exported)
        uncalibrated = sigmoid_at_temperature(probabilities, 1 / self.calibration.temperature)
        targets, labels = self.targets.numpy().astype(int), self.task.labels
        thresholds = self.task.thresholds
        predictions = probabilities >= np.array(thresholds)
        bins = [
            calibration.reliability_bins(*as_binary_samples(each, targets)) for each in (uncalibrated, probabilities)
        ]
        is_calibrated = not self.calibration.reason
        samples = self._validation_count()
        return Evaluation(
            metrics=multilabel_metrics(
                probabilities, uncalibrated, targets, thresholds, samples, is_calibrated=is_calibrated
            ),
            notes=self._notes(trained, targets),
            tables=(per_label_table(probabilities, targets, thresholds, labels),),
            figures=(
                *_f1_figure(predictions, targets, labels),
                self._reliability_figure(*bins),
                *self._worst_mistakes(probabilities, targets, thresholds, exported),
                self._augmentation_figure(),
            ),
            failures=describe_failures(predictions, targets, labels),
            caveats=() if is_calibrated else (self.calibration.caveat,),
            comparisons=(self._compare_with_constant(probabilities, targets),),
        )

    def sample_scores(self, exported: nn.Module) -> SampleScores:
        """Return the F1 of each validation image, with thresholds tuned on the other half of the images."""
        probabilities, targets = self._validation_probabilities(exported), self.targets.numpy().astype(int)
        values = image_f1(cross_fitted_predictions(probabilities, targets), targets)
        return SampleScores("image_f1_crossed", values, "validation images")

    def _compare_with_constant(self, probabilities: NDArray[np.floating], targets: NDArray[np.integer]) -> Comparison:
        """Compare with the labels whose F1 on the training images is highest if they are always predicted."""
        constant = best_constant(self.samples.targets.numpy().astype(int))
        always = np.zeros(targets.shape, bool)
        always[:, constant] = True
        return compare_statistics(
            "micro_f1_crossed",
            f"always predicting {_name_labels([self.task.labels[i] for i in constant])}",
            (micro_f1(cross_fitted_predictions(probabilities, targets), targets), micro_f1(always, targets)),
            len(targets),
            samples="validation images",
            is_constant=True,
        )

    def _notes(self, trained: Sequence[Trained], targets: NDArray[np.integer]) -> tuple[str, ...]:
        notes = [
            f"Split: {self.table.split}. {self._selection_note('the thresholds', *self._temperature_words())} "
            "`micro_f1_crossed` uses thresholds tuned on other images."
        ]
        absent = [self.task.labels[i] for i in np.flatnonzero(targets.sum(axis=0) == 0).tolist()]
        if absent:
            names = f"{_name_labels(absent)}, so {'its threshold is' if len(absent) == 1 else 'their thresholds are'}"
            notes.append(f"No validation image has {names} 0.5, which was not tuned.")
        if len(trained) > 1:
            scores = [run.scores["average_precision"] for run in trained]
            notes.append(f"Mean average precision over {len(trained)} seeds: {classification.mean_and_std(scores)}.")
        return (*notes, *self._network_notes())

    def _worst_mistakes(
        self,
        probabilities: NDArray[np.floating],
        targets: NDArray[np.integer],
        thresholds: Sequence[float],
        exported: nn.Module,
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
        return self._evidence_figures(entries, exported, "Worst mistakes", "Orange: evidence for the named label.")

    def golden_requests(self, served: nn.Module) -> tuple[Task, list[dict[str, Any]]]:
        """Return requests with images whose probabilities are all far from their thresholds.

        The second request also asks for the heat map and for all labels.
        """
        probabilities = self._validation_probabilities(served)
        targets = self.targets.numpy().astype(bool)
        thresholds = np.array(self.task.thresholds)
        margins = np.abs(probabilities - thresholds).min(axis=1)
        correct = ((probabilities >= thresholds) == targets).all(axis=1)
        clearest = np.argsort(-margins * correct, kind="stable")[:3].tolist()
        bodies: list[dict[str, Any]] = [
            {"image": base64.b64encode(self._downscaled_jpeg(index)).decode("ascii")}
            for index in clearest
            if margins[index] > 0.05 and correct[index]
        ]
        if len(bodies) > 1:
            bodies[1] = {**bodies[1], "heatmap": True, "all_labels": True}
        return self.task, bodies or [self.task.example()]


def _name_labels(labels: Sequence[str], shown: int = 4) -> str:
    """List labels in a sentence."""
    names = [f"'{label}'" for label in labels[:shown]]
    more = len(labels) - len(names)
    rest = [f"{more:,} more"] if more else []
    *first, last = [*names, *rest]
    return f"{', '.join(first)} and {last}" if first else last


def _f1_figure(
    predictions: NDArray[np.bool_], targets: NDArray[np.integer], labels: Sequence[str]
) -> tuple[Figure, ...]:
    """Draw the F1 of the labels that occur."""
    f1 = [f_score(predictions[:, i], targets[:, i], average="binary") for i in range(len(labels))]
    occurring = np.flatnonzero(targets.any(axis=0)).tolist()
    if not occurring:
        return ()
    bars = plots.draw_bars([labels[i] for i in occurring], [f1[i] for i in occurring], "F1", "F1")
    return (Figure("F1 per label", bars),)


def describe_failures(
    predictions: NDArray[np.bool_], targets: NDArray[np.integer], labels: Sequence[str]
) -> tuple[str, ...]:
    """Describe the three labels with the lowest F1; those without a mistake, and those that do not occur, are left out.

    `predictions` and `targets` are (n, labels).
    """
    counts = targets.sum(axis=0)
    f1 = [f_score(predictions[:, i], targets[:, i], average="binary") for i in range(len(labels))]
    weakest = sorted((i for i in range(len(labels)) if counts[i] and f1[i] < 1), key=lambda i: f1[i])[:3]
    return tuple(_describe_label(labels[i], f1[i], predictions[:, i], targets[:, i].astype(bool)) for i in weakest)


def _describe_label(label: str, f1: float, predicted: NDArray[np.bool_], has_label: NDArray[np.bool_]) -> str:
    count, found, answers = int(has_label.sum()), int((predicted & has_label).sum()), int(predicted.sum())
    images = "the only image that has it" if count == 1 else f"any of the {count:,} images that have it"
    if not answers:
        return f"'{label}' is not predicted for {images}, nor for others."
    return (
        f"'{label}' has an F1 of {f1:.3f}: it is predicted for {found:,} of the {count:,} validation images that have "
        f"it, and for {answers - found or 'no'} others."
    )
