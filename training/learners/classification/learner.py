"""How the classifier of pictures is trained: a pretrained body, and a head that shows where it looked."""

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
from training.learners.classification.base import ClassesLearner
from training.learners.classification.image_folder import LabelledImage, read_folder
from training.learners.classification.label_csv import table_file
from training.learners.classification.multilabel import TagsLearner
from training.learners.classification.network import ServedClassifier
from training.reporting import plots
from training.vision.learner import ImageLearner


class ClassificationLearner(ClassesLearner):
    """Learns the label of a picture from folders, one a class; hands tables of tags to the learner of several."""

    summary: ClassVar[str] = "what is in this picture? one label a photo, from a folder for each class, or several"
    data_kind: ClassVar[str] = (
        "a folder with a folder of pictures for each class (with or without train/validation), or a folder of pictures "
        "with labels.csv (columns image_name, tags, and split if you like)"
    )

    @classmethod
    def from_data(cls, data: Path, settings: Settings, options: Any, fetcher: SourceFetcher) -> ImageLearner:
        """Reads the data: folders of classes, or a table of tags. Raises CannotTrain."""
        if table_file(data):
            return TagsLearner.from_data(data, settings, options, fetcher)
        return super().from_data(data, settings, options, fetcher)

    def _load_data(self, data: Path) -> None:
        options = self.options
        self.folder = read_folder(
            data, unreadable=options.unreadable, valid_fraction=options.valid_fraction, size=options.size
        )
        task = self._new_task(self.folder.labels)
        self._prepare(task, _listed(self.folder.train), _listed(self.folder.validation))

    def data_summary(self) -> str:
        """Counts, and what was found on reading."""
        folder = self.folder
        counts = f"{len(folder.train):,} pictures to train on, {len(folder.validation):,} to validate"
        return "\n".join([f"{len(folder.labels)} classes, {counts}: {folder.split}.", *folder.notices])

    def _loss(self, logits: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(logits, target, label_smoothing=self.trained_with.label_smoothing)

    def scores(self, network: nn.Module, runtime: Runtime) -> dict[str, float]:
        """Accuracy and cross entropy on the validation pictures."""
        logits = self._logits(self._whole(network), runtime)
        right = (logits.argmax(dim=1) == self.targets).float().mean()
        return {"accuracy": float(right), "loss": float(cross_entropy(logits, self.targets))}

    def to_inference_module(self, network: nn.Module) -> nn.Module:
        """Calibrated on the validation pictures."""
        whole = self._on_cpu(network)
        logits = self._logits(whole, Runtime(torch.device("cpu")))
        return ServedClassifier(whole, calibration.fit_temperature(logits, self.targets)).eval()

    def evaluate(self, trained: Sequence[Trained], served: nn.Module) -> Evaluation:
        """Accuracy, calibration, confusions, and the worst mistakes with what the network looked at."""
        temperature = float(cast(ServedClassifier, served).temperature)
        labels, targets = self.task.labels, self.targets.numpy()
        probabilities = self._probabilities(served)
        before = calibration.undo_temperature(probabilities, temperature)
        matrix = classification.confusion_matrix(probabilities, targets, labels)
        classes = classification.per_class_table(probabilities, targets, labels)
        confused = classification.most_confused_table(matrix, labels)
        bins = {
            "as trained": calibration.reliability_bins(before, targets),
            "calibrated": calibration.reliability_bins(probabilities, targets),
        }
        return Evaluation(
            metrics=classification_metrics(probabilities, before, targets, f"{len(targets)} validation pictures"),
            notes=self._notes(trained, targets, temperature, float((probabilities.argmax(axis=1) == targets).mean())),
            tables=(classes, confused),
            figures=(
                Figure("Confusion matrix", plots.draw_confusion_matrix(matrix, labels)),
                Figure("Reliability", plots.draw_reliability(bins), f"Temperature {temperature:.3f}."),
                *self._worst(probabilities, targets, served),
                self._augmentation_figure(),
            ),
            failures=_failures(classes, confused),
        )

    def _notes(
        self, trained: Sequence[Trained], targets: NDArray[np.integer], temperature: float, accuracy: float
    ) -> tuple[str, ...]:
        counts = np.bincount(targets, minlength=len(self.task.labels))
        common = self.task.labels[int(counts.argmax())]
        notes = [
            f"Split: {self.folder.split}. The best epoch was chosen and the temperature ({temperature:.3f}) fitted on "
            "the same validation pictures, so expect a little less on new ones.",
            classification.accuracy_interval_note(accuracy, len(targets)),
            f"Always answering '{common}' would be right for {counts.max() / len(targets):.1%} of them.",
        ]
        if len(trained) > 1:
            accuracies = [each.scores["accuracy"] for each in trained]
            notes.append(
                f"Accuracy over {len(trained)} seeds: {classification.mean_and_std(accuracies)}; "
                "the first is published."
            )
        return (*notes, *self._notes_on_the_network())

    def _worst(
        self, probabilities: NDArray[np.floating], targets: NDArray[np.integer], served: nn.Module, count: int = 12
    ) -> tuple[Figure, ...]:
        """The mistakes it was surest of, beside what speaks for the answer it gave."""
        said = probabilities.argmax(axis=1)
        wrong = np.flatnonzero(said != targets)
        wrong = wrong[np.argsort(probabilities[wrong, targets[wrong]], kind="stable")][:count]
        labels = self.task.labels
        captions = [f"is {labels[targets[i]]}, said {labels[said[i]]} {probabilities[i].max():.2f}" for i in wrong]
        chosen = list(zip(wrong.tolist(), said[wrong].tolist(), captions, strict=True))
        return self._shown(chosen, served, "Worst mistakes", "Orange: what spoke for the answer it gave.")

    def golden_requests(self, served: nn.Module) -> tuple[Task, list[dict[str, Any]]]:
        """A picture of the commonest class, and others of other classes; one asks for the heat map."""
        probabilities, targets = self._probabilities(served), self.targets.numpy()
        counts = np.bincount(targets, minlength=len(self.task.labels))
        right = probabilities.argmax(axis=1) == targets
        bodies: list[dict[str, Any]] = []
        for label in np.argsort(-counts, kind="stable").tolist():
            members = np.flatnonzero(right & (targets == label))
            for index in members[np.argsort(-probabilities[members, label], kind="stable")][:3].tolist():
                image = self._small_jpeg(index)
                if len(bodies) < 4 and self._is_clear(served, image, label):
                    bodies.append({"image": base64.b64encode(image).decode("ascii"), "top_k": 3})
                    break
        if len(bodies) > 1:
            bodies[1]["heatmap"] = True
        return self.task, bodies or [self.task.example()]

    def _is_clear(self, served: nn.Module, image: bytes, label: int) -> bool:
        """Whether the answer has a margin that rounding on another machine cannot use up."""
        picture = decode_image(image, max_pixels=Limits().pixels, min_side=self.task.size)
        pixels = self.task.preprocess(picture).arrays["image"]
        with torch.no_grad():
            probabilities = served(torch.from_numpy(pixels.copy()))[0][0]
        first, second = probabilities.topk(2).values.tolist()
        return int(probabilities.argmax()) == label and first - second > 0.5


def _failures(classes: Table, confused: Table) -> tuple[str, ...]:
    found = [
        f"{count} of the pictures of {is_} were called {said} ({share})."
        for is_, said, count, share in confused.rows[:5]
    ]
    weakest = min(classes.rows, key=lambda row: float(row[2]))
    return (
        *found,
        f"Its weakest class is {weakest[0]}: {float(weakest[2]):.0%} of its {weakest[4]} pictures are found.",
    )


def _listed(photos: Sequence[LabelledImage]) -> tuple[list[Path], Tensor]:
    return [photo.path for photo in photos], torch.tensor([photo.label for photo in photos])
