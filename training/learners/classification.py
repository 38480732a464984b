"""How the classifier of pictures is trained: a pretrained body, and a head that shows where it looked."""

import base64
import copy
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tasks._images import Fit, decode_picture
from tasks.classification import Classification
from tasks.contract import Arrays, Limits, Task
from training import calibration, figures, metrics
from training.class_folders import Photo, read_folder
from training.data import predicted
from training.learner import Figure, Findings, Table, Trained
from training.learners._pictures import PictureLearner, PictureOptions
from training.metrics import classification_metrics
from training.networks.bodies import body
from training.networks.classifier import Classifier, Mirrored, ServedClassifier
from training.pictures import Photos, augmentation
from training.runtime import Batch, Runtime
from training.settings import option


@dataclass(frozen=True)
class Options(PictureOptions):
    """What can be chosen for classes of pictures."""

    mixup: float = option(0.0, "alpha of mixup (Zhang et al. 2018); 0: none")
    size: int = option(224, "side length of the network's input, in pixels")
    train_size: int = option(0, "the same while training (smaller is faster; 0: as --size)")
    fit: str = option("squash", "how a picture becomes a square", choices=("squash", "pad", "crop"))
    smallest_crop: float = option(0.5, "the least share of the picture that a random crop shows")
    dropout: float = option(0.2, "share of the features that are dropped in training")
    tta: bool = option(False, "average over the picture and its mirror image, also in service: twice the cost")


class ClassificationLearner(PictureLearner):
    """Learns the label of a picture from folders, one a class."""

    summary: ClassVar[str] = "what is in this picture? one label from photos in a folder for each class"
    data_kind: ClassVar[str] = "a folder with a folder of pictures for each class (with or without train/validation)"
    hub_tag: ClassVar[str] = "image-classification"
    options: ClassVar[Options] = Options()
    samples: Photos
    held_out: Photos

    def _open(self, data: Path) -> None:
        options = self.chosen
        self.folder = read_folder(
            data, unreadable=options.unreadable, valid_share=options.valid_share, size=options.size
        )
        self.task: Classification = Classification(self.folder.labels, options.size, cast(Fit, options.fit))
        size = options.train_size or options.size
        augment = augmentation(size, options.smallest_crop) if options.augment else None
        self.samples = self._photos(self.folder.train, seed=self.trained_with.seed, augment=augment, size=size)
        self.held_out = self._photos(self.folder.validation, cache_bytes=self.room // 4)
        self.targets = self.held_out.targets

    def _photos(self, photos: Sequence[Photo], **more: Any) -> Photos:
        targets = torch.tensor([photo.label for photo in photos])
        made = Photos([photo.path for photo in photos], targets, self.task, **{"cache_bytes": self.room} | more)
        made.fill()
        return made

    def described(self) -> str:
        """Counts, and what was found on reading."""
        folder = self.folder
        counts = f"{len(folder.train):,} pictures to train on, {len(folder.validation):,} to validate"
        return "\n".join([f"{len(folder.labels)} classes, {counts}: {folder.split}.", *folder.notices])

    def network(self) -> nn.Module:
        """The classifier; channels last, the layout that convolutions run fastest in."""
        options = self.chosen
        network = Classifier(body(options.backbone, self.weights), len(self.task.labels), dropout=options.dropout)
        return network.to(memory_format=torch.channels_last)

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """Cross entropy with label smoothing, of mixed pictures where mixup is on."""
        image, target, smoothing = batch["image"], batch["target"], self.trained_with.label_smoothing
        if not self.chosen.mixup:
            return cross_entropy(network(image)[0], target, label_smoothing=smoothing)
        share = float(torch.distributions.Beta(self.chosen.mixup, self.chosen.mixup).sample())
        other = torch.randperm(len(target)).to(target.device)
        logits = network(torch.lerp(image[other].float(), image.float(), share))[0]
        own = cross_entropy(logits, target, label_smoothing=smoothing)
        return share * own + (1 - share) * cross_entropy(logits, target[other], label_smoothing=smoothing)

    def scores(self, network: nn.Module, runtime: Runtime) -> dict[str, float]:
        """Accuracy and cross entropy on the validation pictures."""
        logits = predicted(self._whole(network), ["image"], self.held_out, runtime, batch_size=64)
        right = (logits.argmax(dim=1) == self.targets).float().mean()
        return {"accuracy": float(right), "loss": float(cross_entropy(logits, self.targets))}

    def _whole(self, network: nn.Module) -> nn.Module:
        return Mirrored(network) if self.chosen.tta else network

    def served(self, network: nn.Module) -> nn.Module:
        """Calibrated on the validation pictures."""
        whole = copy.deepcopy(self._whole(network)).float().cpu()
        exact = Runtime(torch.device("cpu"))
        logits = predicted(whole, ["image"], self.held_out, exact, batch_size=64)
        return ServedClassifier(whole, calibration.temperature(logits, self.targets)).eval()

    def findings(self, trained: Sequence[Trained], served: nn.Module) -> Findings:
        """Accuracy, calibration, confusions, and the worst mistakes with what the network looked at."""
        temperature = float(cast(ServedClassifier, served).temperature)
        labels, targets = self.task.labels, self.targets.numpy()
        probabilities = self._probabilities(served)
        before = calibration.at_temperature_one(probabilities, temperature)
        matrix = metrics.confusions(probabilities, targets, labels)
        classes = metrics.per_class(probabilities, targets, labels)
        confused = metrics.most_confused(matrix, labels)
        bins = {
            "as trained": calibration.reliability(before, targets),
            "calibrated": calibration.reliability(probabilities, targets),
        }
        return Findings(
            metrics=classification_metrics(probabilities, before, targets, f"{len(targets)} validation pictures"),
            notes=self._notes(trained, targets, temperature, float((probabilities.argmax(axis=1) == targets).mean())),
            tables=(classes, confused),
            figures=(
                Figure("Confusion matrix", figures.confusion(matrix, labels)),
                Figure("Reliability", figures.reliability(bins), f"Temperature {temperature:.3f}."),
                *self._worst(probabilities, targets, served),
            ),
            failures=_failures(classes, confused),
        )

    def _probabilities(self, served: nn.Module) -> NDArray[np.float32]:
        found = predicted(served, ["image"], self.held_out, Runtime(torch.device("cpu")), batch_size=64)
        array: NDArray[np.float32] = found.numpy()
        return array

    def _notes(
        self, trained: Sequence[Trained], targets: NDArray[np.integer], temperature: float, accuracy: float
    ) -> tuple[str, ...]:
        counts = np.bincount(targets, minlength=len(self.task.labels))
        common = self.task.labels[int(counts.argmax())]
        notes = [
            f"Split: {self.folder.split}. The best epoch was chosen and the temperature ({temperature:.3f}) fitted on "
            "the same validation pictures, so expect a little less on new ones.",
            metrics.certainty(accuracy, len(targets)),
            f"Always answering '{common}' would be right for {counts.max() / len(targets):.1%} of them.",
        ]
        if len(trained) > 1:
            accuracies = [each.scores["accuracy"] for each in trained]
            notes.append(f"Accuracy over {len(trained)} seeds: {metrics.spread(accuracies)}; the first is published.")
        notes.append(self._body_note())
        if self.chosen.tta:
            notes.append("The graph averages over the picture and its mirror image (test-time augmentation).")
        return tuple(notes)

    def _worst(
        self, probabilities: NDArray[np.floating], targets: NDArray[np.integer], served: nn.Module, count: int = 12
    ) -> tuple[Figure, ...]:
        """The mistakes it was surest of, beside what speaks for the answer it gave."""
        said = probabilities.argmax(axis=1)
        wrong = np.flatnonzero(said != targets)
        wrong = wrong[np.argsort(probabilities[wrong, targets[wrong]], kind="stable")][:count]
        if not len(wrong):
            return ()
        shown = []
        for index in wrong.tolist():
            batch = self.held_out.__getitems__([(0, index)])
            with torch.no_grad():
                evidence = served(batch["image"])[1][0, said[index]].numpy()
            labels, picture = self.task.labels, self.held_out.picture(index)
            caption = f"is {labels[targets[index]]}, said {labels[said[index]]} {probabilities[index].max():.2f}"
            caption += f"\n{self.held_out.paths[index].name[:40]}"
            shown.append((picture.image, evidence, caption))
        return (Figure("Worst mistakes", figures.pictures(shown), "Orange: what spoke for the answer it gave."),)

    def validation(self, count: int) -> Arrays:
        """Pictures from all over the validation set."""
        chosen = np.linspace(0, len(self.held_out) - 1, min(count, len(self.held_out))).round().astype(int)
        return {"image": self.held_out.__getitems__([(0, int(index)) for index in chosen])["image"].numpy()}

    def golden_requests(self, served: nn.Module) -> tuple[Task, list[dict[str, Any]]]:
        """A picture of the commonest class, and others of other classes; one asks for the heat map."""
        probabilities, targets = self._probabilities(served), self.targets.numpy()
        counts = np.bincount(targets, minlength=len(self.task.labels))
        right = probabilities.argmax(axis=1) == targets
        bodies: list[dict[str, Any]] = []
        for label in np.argsort(-counts, kind="stable").tolist():
            members = np.flatnonzero(right & (targets == label))
            for index in members[np.argsort(-probabilities[members, label], kind="stable")][:3].tolist():
                image = _small_jpeg(self.held_out.picture(index).image, self.task.size)
                if len(bodies) < 4 and self._is_clear(served, image, label):
                    bodies.append({"image": base64.b64encode(image).decode("ascii"), "top_k": 3})
                    break
        if len(bodies) > 1:
            bodies[1]["heatmap"] = True
        return self.task, bodies or [self.task.example()]

    def _is_clear(self, served: nn.Module, image: bytes, label: int) -> bool:
        """Whether the answer has a margin that rounding on another machine cannot use up."""
        picture = decode_picture(image, max_pixels=Limits().pixels, enough=self.task.size)
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


def _small_jpeg(image: Image.Image, size: int) -> bytes:
    """The picture, small enough for a repository: its shorter side no longer than the network sees."""
    ratio = min(1.0, size / min(image.size))
    small = image.resize((round(image.width * ratio), round(image.height * ratio)), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    return file.getvalue()
