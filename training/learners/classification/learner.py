"""Image classification: a pretrained backbone and a head that returns a class activation map."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tasks._images import decode_image
from tasks.contract import Limits, Task
from training.core.config import Settings
from training.core.results import Comparison, Evaluation, Figure, SampleScores, Trained
from training.core.sources import SourceFetcher
from training.engine.runtime import Runtime
from training.evaluation import calibration, classification
from training.evaluation.classification import at_temperature, classification_metrics
from training.evaluation.comparison import compare_means
from training.learners.classification.base import BaseClassificationLearner, PathsAndTargets
from training.learners.classification.image_folder import LabelledImage, read_folder
from training.learners.classification.label_csv import find_table
from training.learners.classification.multilabel import MultiLabelLearner
from training.learners.classification.network import ServedClassifier
from training.reporting import plots
from training.vision.learner import ImageLearner

_MAX_NAMED = 12
"""Classes that the summary of the data names."""
_FEW_IMAGES = 100
"""Without a mistake on fewer images, the accuracy on new images may still be well below 1."""
_MIN_FOR_PERCENT = 30
"""With fewer images, counts are given without a percentage."""


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
        """Return the module to export, calibrated on the validation images if they are enough."""
        float32 = self._float32_copy(network)
        logits = self._validation_logits(float32, Runtime(torch.device("cpu")))
        self.calibration = calibration.calibrate(logits, self.targets, "validation images")
        return ServedClassifier(float32, self.calibration.temperature).eval()

    def evaluate(self, trained: Sequence[Trained], served: nn.Module, exported: nn.Module) -> Evaluation:
        """Report accuracy, calibration, the confusion matrix, and the worst mistakes with their activation maps."""
        labels, targets = self.task.labels, self.targets.numpy()
        probabilities = self._validation_probabilities(exported)
        uncalibrated = at_temperature(probabilities, 1 / self.calibration.temperature)
        matrix = classification.confusion_matrix(probabilities, targets, labels)
        samples = self._validation_count()
        reliability = self._reliability_figure(
            calibration.reliability_bins(uncalibrated, targets), calibration.reliability_bins(probabilities, targets)
        )
        is_calibrated = not self.calibration.reason
        return Evaluation(
            metrics=classification_metrics(probabilities, uncalibrated, targets, samples, is_calibrated=is_calibrated),
            notes=self._notes(trained, matrix),
            tables=(
                classification.per_class_table(probabilities, targets, labels),
                classification.most_confused_table(matrix, labels),
            ),
            figures=(
                Figure("Confusion matrix", plots.draw_confusion_matrix(matrix, labels)),
                reliability,
                *self._worst_mistakes(probabilities, targets, exported),
                self._augmentation_figure(),
            ),
            failures=describe_failures(matrix, labels),
            caveats=() if is_calibrated else (self.calibration.caveat,),
            comparisons=(self._compare_with_majority(self._scores_of(probabilities)),),
        )

    def sample_scores(self, exported: nn.Module) -> SampleScores:
        """Return 1 for each validation image that is classified correctly, and 0 for the others."""
        return self._scores_of(self._validation_probabilities(exported))

    def _scores_of(self, probabilities: NDArray[np.floating]) -> SampleScores:
        is_right = probabilities.argmax(axis=1) == self.targets.numpy()
        return SampleScores("accuracy", is_right.astype(float), "validation images")

    def _compare_with_majority(self, scores: SampleScores) -> Comparison:
        """Compare with the most frequent class of the training images."""
        majority = int(torch.bincount(self.samples.targets, minlength=len(self.task.labels)).argmax())
        is_right = (self.targets == majority).double().numpy()
        return compare_means(scores, f"always predicting '{self.task.labels[majority]}'", is_right, is_constant=True)

    def _notes(self, trained: Sequence[Trained], matrix: NDArray[np.integer]) -> tuple[str, ...]:
        count, right = int(matrix.sum()), int(np.diagonal(matrix).sum())
        notes = [
            f"Split: {self.folder.split}. {self._selection_note(*self._temperature_words())}",
            classification.accuracy_interval_note(right / count, count),
        ]
        if right == count:
            few = " They are few: see the confidence interval." if count < _FEW_IMAGES else ""
            notes.append(f"No mistake on the validation images.{few}")
        if len(trained) > 1:
            scores = [run.scores["accuracy"] for run in trained]
            notes.append(
                f"Accuracy over {len(trained)} seeds: {classification.mean_and_std(scores)}; the first is published."
            )
        return (*notes, *self._network_notes())

    def _worst_mistakes(
        self, probabilities: NDArray[np.floating], targets: NDArray[np.integer], exported: nn.Module, count: int = 12
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
        return self._evidence_figures(entries, exported, "Worst mistakes", "Orange: evidence for the predicted class.")

    def golden_requests(self, served: nn.Module) -> tuple[Task, list[dict[str, Any]]]:
        """Return requests with one clear image per class, the most frequent first; the second asks for the heat map."""
        probabilities, targets = self._validation_probabilities(served), self.targets.numpy()
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


def describe_failures(matrix: NDArray[np.integer], labels: Sequence[str]) -> tuple[str, ...]:
    """Describe the most frequent confusions and the class with the lowest recall; empty without a mistake.

    `matrix` holds counts (true class, predicted class).
    """
    counts, right = matrix.sum(axis=1), np.diagonal(matrix)
    if (right == counts).all():
        return ()
    wrong = matrix - np.diag(right)
    pairs = sorted(((-int(wrong[i, j]), i, j) for i, j in np.argwhere(wrong).tolist()))
    recall = np.divide(right, counts, out=np.ones(len(counts)), where=counts > 0)
    weakest = int(recall.argmin())
    return (
        *(_describe_confusion(-n, int(counts[i]), labels[i], labels[j]) for n, i, j in pairs[:5]),
        f"The weakest class is '{labels[weakest]}': the model finds {right[weakest]:,} of its "
        f"{counts[weakest]:,} {'image' if counts[weakest] == 1 else 'images'}.",
    )


def _describe_confusion(mistakes: int, count: int, true_label: str, predicted_label: str) -> str:
    fraction = f" ({mistakes / count:.1%})" if count >= _MIN_FOR_PERCENT else ""
    images, were = "image" if count == 1 else "images", "was" if mistakes == 1 else "were"
    return f"{mistakes:,} of {count:,} {images} of '{true_label}' {were} predicted as '{predicted_label}'{fraction}."


def _paths_and_targets(images: Sequence[LabelledImage]) -> PathsAndTargets:
    return [image.path for image in images], torch.tensor([image.label for image in images])
