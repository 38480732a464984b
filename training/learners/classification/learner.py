"""Image classification: a pretrained backbone and a head that returns a class activation map."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tasks._images import decode_image
from tasks.contract import Limits, Task
from training.core.config import Settings
from training.core.results import Evaluation, Figure, Table, Trained
from training.core.sources import SourceFetcher
from training.engine.runtime import Runtime
from training.evaluation import calibration, classification
from training.evaluation.classification import classification_metrics
from training.learners.classification.base import BaseClassificationLearner, PathsAndTargets
from training.learners.classification.image_folder import LabelledImage, read_folder
from training.learners.classification.label_csv import find_table
from training.learners.classification.multilabel import MultiLabelLearner
from training.learners.classification.network import ServedClassifier
from training.reporting import plots
from training.vision.learner import ImageLearner

_MAX_NAMED = 12
"""Classes that the summary of the data names."""


class ClassificationLearner(BaseClassificationLearner):
    """Trains an image classifier from one folder per class, or, for a table of tags, a multi-label classifier."""

    summary: ClassVar[str] = "classify images: one label per image, or several"
    data_kind: ClassVar[str] = (
        "a folder with one subfolder of images per class (optionally inside train/ and validation/), or a folder of "
        "images with a labels.csv (columns image_name, tags, and optionally split)"
    )

    @classmethod
    def from_data(cls, data: Path, settings: Settings, options: Any, fetcher: SourceFetcher) -> ImageLearner:
        """Read class folders or a table of tags. Raises CannotTrain."""
        if find_table(data):
            return MultiLabelLearner.from_data(data, settings, options, fetcher)
        return super().from_data(data, settings, options, fetcher)

    def _load_data(self, data: Path) -> None:
        options = self.options
        self.folder = read_folder(
            data, unreadable=options.unreadable, valid_fraction=options.valid_fraction, size=options.size
        )
        task = self._new_task(self.folder.labels)
        self._load_samples(task, _paths_and_targets(self.folder.train), _paths_and_targets(self.folder.validation))

    def data_summary(self) -> str:
        """Return the classes, the counts, the split, and any warnings."""
        folder = self.folder
        labels = ", ".join([*folder.labels[:_MAX_NAMED], "…"] if len(folder.labels) > _MAX_NAMED else folder.labels)
        counts = f"{len(folder.train):,} pictures to train on, {len(folder.validation):,} to validate"
        return "\n".join([f"{len(folder.labels)} classes ({labels}), {counts}: {folder.split}.", *folder.warnings])

    def _loss_of_logits(self, logits: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(logits, target, label_smoothing=self.settings.label_smoothing)

    def scores(self, network: nn.Module, runtime: Runtime) -> dict[str, float]:
        """Return accuracy and cross entropy on the validation images."""
        logits = self._validation_logits(self._with_tta(network), runtime)
        accuracy = (logits.argmax(dim=1) == self.targets).float().mean()
        return {"accuracy": float(accuracy), "loss": float(cross_entropy(logits, self.targets))}

    def to_inference_module(self, network: nn.Module) -> nn.Module:
        """Return the module to export, calibrated on the validation images."""
        float32 = self._float32_copy(network)
        logits = self._validation_logits(float32, Runtime(torch.device("cpu")))
        return ServedClassifier(float32, calibration.fit_temperature(logits, self.targets)).eval()

    def evaluate(self, trained: Sequence[Trained], served: nn.Module, exported: nn.Module) -> Evaluation:
        """Report accuracy, calibration, the confusion matrix, and the worst mistakes with their activation maps."""
        temperature = float(cast(ServedClassifier, served).temperature)
        labels, targets = self.task.labels, self.targets.numpy()
        uncalibrated, probabilities = self._validation_probabilities(served)
        matrix = classification.confusion_matrix(probabilities, targets, labels)
        per_class = classification.per_class_table(probabilities, targets, labels)
        confused = classification.most_confused_table(matrix, labels)
        bins = {
            "uncalibrated": calibration.reliability_bins(uncalibrated, targets),
            "calibrated": calibration.reliability_bins(probabilities, targets),
        }
        samples = f"{len(targets)} validation images"
        accuracy = float((probabilities.argmax(axis=1) == targets).mean())
        return Evaluation(
            metrics=classification_metrics(probabilities, uncalibrated, targets, samples),
            notes=self._notes(trained, targets, temperature, accuracy),
            tables=(per_class, confused),
            figures=(
                Figure("Confusion matrix", plots.draw_confusion_matrix(matrix, labels)),
                Figure("Reliability", plots.draw_reliability(bins), f"Temperature {temperature:.3f}."),
                *self._worst_mistakes(probabilities, targets, served),
                self._augmentation_figure(),
            ),
            failures=_failures(per_class, confused),
        )

    def _notes(
        self, trained: Sequence[Trained], targets: NDArray[np.integer], temperature: float, accuracy: float
    ) -> tuple[str, ...]:
        counts = np.bincount(targets, minlength=len(self.task.labels))
        majority = self.task.labels[int(counts.argmax())]
        notes = [
            f"Split: {self.folder.split}. The best epoch and the temperature ({temperature:.3f}) were chosen on the "
            "same validation images, so expect slightly lower scores on new images.",
            classification.accuracy_interval_note(accuracy, len(targets)),
            f"Baseline: always predicting '{majority}' has an accuracy of {counts.max() / len(targets):.1%}.",
        ]
        if len(trained) > 1:
            scores = [run.scores["accuracy"] for run in trained]
            notes.append(
                f"Accuracy over {len(trained)} seeds: {classification.mean_and_std(scores)}; the first is published."
            )
        return (*notes, *self._network_notes())

    def _worst_mistakes(
        self, probabilities: NDArray[np.floating], targets: NDArray[np.integer], served: nn.Module, count: int = 12
    ) -> tuple[Figure, ...]:
        """Show the mistakes with the lowest probability of the true class, beside the evidence for the prediction."""
        predicted = probabilities.argmax(axis=1)
        wrong = np.flatnonzero(predicted != targets)
        wrong = wrong[np.argsort(probabilities[wrong, targets[wrong]], kind="stable")][:count]
        labels = self.task.labels
        captions = [
            f"true: {labels[targets[i]]}, predicted: {labels[predicted[i]]} {probabilities[i].max():.2f}" for i in wrong
        ]
        entries = list(zip(wrong.tolist(), predicted[wrong].tolist(), captions, strict=True))
        return self._evidence_figures(entries, served, "Worst mistakes", "Orange: evidence for the predicted class.")

    def golden_requests(self, served: nn.Module) -> tuple[Task, list[dict[str, Any]]]:
        """Return requests with one clear image per class, the most frequent first; the second asks for the heat map."""
        probabilities, targets = self._validation_probabilities(served).calibrated, self.targets.numpy()
        counts = np.bincount(targets, minlength=len(self.task.labels))
        correct = probabilities.argmax(axis=1) == targets
        bodies: list[dict[str, Any]] = []
        for label in np.argsort(-counts, kind="stable").tolist():
            members = np.flatnonzero(correct & (targets == label))
            for index in members[np.argsort(-probabilities[members, label], kind="stable")][:3].tolist():
                image = self._downscaled_jpeg(index)
                if len(bodies) < 4 and self._is_clear(served, image, label):
                    bodies.append({"image": base64.b64encode(image).decode("ascii"), "top_k": 3})
                    break
        if len(bodies) > 1:
            bodies[1]["heatmap"] = True
        return self.task, bodies or [self.task.example()]

    def _is_clear(self, served: nn.Module, image: bytes, label: int) -> bool:
        """Return whether the image is classified correctly by a margin that rounding on other machines cannot close."""
        decoded = decode_image(image, max_pixels=Limits().pixels, min_side=self.task.size)
        pixels = self.task.preprocess(decoded).arrays["image"]
        with torch.no_grad():
            probabilities = served(torch.from_numpy(pixels.copy()))[0][0]
        first, second = probabilities.topk(2).values.tolist()
        return int(probabilities.argmax()) == label and first - second > 0.5


def _failures(per_class: Table, confused: Table) -> tuple[str, ...]:
    """Describe the most frequent confusions and the class with the lowest recall."""
    mistakes = [
        f"{count} of the images of {true_label} were predicted as {predicted_label} ({fraction})."
        for true_label, predicted_label, count, fraction in confused.rows[:5]
    ]
    weakest = min((row for row in per_class.rows if row[4] != "0"), key=lambda row: float(row[2]))
    return (
        *mistakes,
        f"The weakest class is {weakest[0]}: the model finds {float(weakest[2]):.0%} of its {weakest[4]} images.",
    )


def _paths_and_targets(images: Sequence[LabelledImage]) -> PathsAndTargets:
    return [image.path for image in images], torch.tensor([image.label for image in images])
