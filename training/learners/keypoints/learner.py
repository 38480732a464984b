"""Keypoint detection: named points in images, learned from tables of coordinates."""

import base64
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from tasks._images import Frame, encode_image
from tasks.contract import Task
from tasks.keypoints import Keypoints, to_image_points
from tasks.manifest import Metric
from training.core.config import option
from training.core.errors import CannotTrain
from training.core.results import Evaluation, Figure, Table, Trained
from training.data.delimited import CsvOptions
from training.data.hash_split import validation_split
from training.engine.inference import collect_outputs
from training.engine.runtime import Batch, Runtime
from training.evaluation import calibration
from training.evaluation.classification import mean_and_std
from training.learners.keypoints import metrics
from training.learners.keypoints.annotations import AnnotatedImage, KeypointData, TableRules, read_keypoints
from training.learners.keypoints.dataset import AugmentParams, KeypointImages
from training.learners.keypoints.network import (
    HEADS,
    FlipTTA,
    LogToleranceRatio,
    ServedKeypoints,
    build_keypoint_network,
    keypoint_loss,
    uncalibrated_probability,
)
from training.learners.keypoints.plots import (
    KeypointComparison,
    draw_augmentations,
    draw_comparisons,
    draw_cumulative_error,
)
from training.learners.keypoints.skeleton import find_flip_indices, parse_normalisation_pair, parse_pairs
from training.reporting import plots
from training.vision.backbones import load_body
from training.vision.learner import ImageLearner, ImageOptions

_CPU = Runtime(torch.device("cpu"))


@dataclass(frozen=True)
class Options(CsvOptions, ImageOptions):
    """Options of the keypoint learner."""

    head: str = option("heatmaps", "predict points by heat maps, or by coordinates (faster)", choices=HEADS)
    size: int = option(128, "side length of the network's input, in pixels", at_least=32)
    dropout: float = option(
        0.2, "fraction of the features dropped in training (coordinates head only)", at_least=0, below=1
    )
    tables: tuple[str, ...] = option((), "the CSV files in the data folder; default: the only one in it")
    image_folders: tuple[str, ...] = option(
        (), "the image folder of each table, relative to the table; default: the table's own folder"
    )
    names: tuple[str, ...] = option((), "names of the points, if the header does not contain them")
    group_column: str = option("", "column with each image's group (a person, a video); groups are never split")
    group_pattern: str = option("", "regular expression that finds the group in the file name")
    normalisation_pair: tuple[str, ...] = option(
        (), "two points, as a,b, whose distance normalises errors; default: the diagonal of the box around all points"
    )
    flip_pairs: tuple[str, ...] = option(
        (), "pairs of points that swap when the image is flipped, as a=b; default: names that differ by left and right"
    )
    links: tuple[str, ...] = option((), "pairs of points to connect by a line in overlays, as a=b")
    tolerance: float = option(
        0.05, "largest error of a point that counts as correct, for the confidence", above=0, at_most=1
    )
    outside: str = option("refuse", "what to do with points outside their image", choices=("refuse", "clip", "drop"))
    zero: str = option(
        "refuse",
        "what points at exactly (0, 0) are, if no column of visibility says so: missing, or points in the corner",
        choices=("refuse", "missing", "point"),
    )
    max_rotation: float = option(25.0, "largest random rotation, in degrees", at_least=0, at_most=180)
    min_scale: float = option(0.75, "smallest random scale", above=0)
    max_scale: float = option(1.6, "largest random scale", above=0)
    erase_probability: float = option(0.4, "probability that a block of the image is erased", at_least=0, at_most=1)
    tta: bool = option(False, "average over the image and its mirror image, also when served; doubles the cost")


@dataclass(frozen=True)
class _Predictions:
    """Predictions of the served network for the n validation images with k points each.

    Attributes:
        points: (n, k, 2), in pixels of the images.
        errors: (n, k), as fractions of the normalising sizes; NaN where unknown.
        confidence: (n, k), calibrated.
        log_ratios: (n, k), the log tolerance ratios that the confidences are computed from.
    """

    points: NDArray[np.floating]
    errors: NDArray[np.floating]
    confidence: NDArray[np.floating]
    log_ratios: Tensor


class _StackedOutputs(nn.Module):
    """Returns points and spreads as one tensor (n, k, 3)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor]:
        points, spread = self.network(image)[:2]
        return (torch.cat([points.float(), spread.float().unsqueeze(2)], dim=2),)


class KeypointsLearner(ImageLearner):
    """Trains a keypoint detector from images and CSV files."""

    summary: ClassVar[str] = "locate named points in images; trained on images and a table of coordinates"
    data_kind: ClassVar[str] = (
        "a folder with images and a CSV file: the image's name, and x and y of each point (nose_x, nose_y, …)"
    )
    hub_tag: ClassVar[str] = "keypoint-detection"
    lower_is_better: bool = True
    default_options: ClassVar[Options] = Options()
    body_name: ClassVar[str] = "features.body"
    samples: KeypointImages
    held_out: KeypointImages

    def _load_data(self, data: Path) -> None:
        options: Options = self.options
        rules = {name: getattr(options, name) for name in TableRules.__dataclass_fields__}
        self.data: KeypointData = read_keypoints(data, TableRules(**rules))
        names = self.data.names
        self.flip_indices = find_flip_indices(names, options.flip_pairs)
        if options.tta and not self.flip_indices:
            raise CannotTrain(
                "--tta requires the pairs of points that swap when an image is flipped: set --flip-pairs or omit --tta."
            )
        self.normalisation_pair = parse_normalisation_pair(names, options.normalisation_pair)
        self.task: Keypoints = Keypoints(names, options.size, "pad", parse_pairs(names, options.links, "links"))
        groups = [image.group for image in self.data.images]
        is_validation = validation_split(groups, [0] * len(groups), options.valid_fraction)
        params = AugmentParams(
            max_rotation=options.max_rotation,
            min_scale=options.min_scale,
            max_scale=options.max_scale,
            erase_probability=options.erase_probability,
            flip_indices=self.flip_indices,
        )
        train = [image for image, held in zip(self.data.images, is_validation, strict=True) if not held]
        self.validation_images = [image for image, held in zip(self.data.images, is_validation, strict=True) if held]
        augment = params if options.augment else None
        self.samples = self._load_images(train, self.cache_bytes, seed=self.settings.seed, augment=augment)
        self.held_out = self._load_images(self.validation_images, self.cache_bytes // 4)
        self._prepare_validation_targets()

    def _load_images(
        self,
        images: Sequence[AnnotatedImage],
        cache_bytes: int,
        *,
        seed: int = 0,
        augment: AugmentParams | None = None,
    ) -> KeypointImages:
        paths, points = [image.path for image in images], [image.points for image in images]
        samples = KeypointImages(paths, points, self.task, seed=seed, augment=augment, cache_bytes=cache_bytes)
        samples.fill_cache()
        return samples

    def _prepare_validation_targets(self) -> None:
        """Set the frames, points and sizes of the validation images. Raises CannotTrain if no error can be measured."""
        contexts = [self.task.preprocess(self.held_out.image(i)).context for i in range(len(self.held_out))]
        self.frames: list[Frame] = [frame for frame, _ in contexts]
        max_sides = [max(frame.width, frame.height) for frame in self.frames]
        self.validation_points = np.stack([image.points for image in self.validation_images])
        self.sizes = metrics.normalising_sizes(list(self.validation_points), self.normalisation_pair, max_sides)
        if np.isnan(self.sizes).all():
            raise CannotTrain(
                "No validation image has both points of --normalisation-pair. Choose others, or omit the option."
            )

    def data_summary(self) -> str:
        """Return the counts, the split, and any warnings."""
        word = "groups" if self.data.has_groups else "distinct images (copies count once)"
        counts = f"{len(self.samples):,} pictures to train on, {len(self.held_out):,} to validate"
        lines = [f"{len(self.task.names)} points; {counts}, of {self._group_count} {word} not seen in training."]
        if not self.flip_indices:
            lines.append("No flip pairs are known (--flip-pairs), so images are not flipped in training.")
        return "\n".join([*lines, *self.data.warnings])

    @property
    def _group_count(self) -> int:
        return len({image.group for image in self.validation_images})

    def network(self) -> nn.Module:
        """Return a new network, in channels-last memory format (the fastest for convolutions)."""
        options = self.options
        network = build_keypoint_network(
            load_body(options.backbone, self.weights),
            options.head,
            points=len(self.task.names),
            size=options.size,
            dropout=options.dropout,
        )
        return network.to(memory_format=torch.channels_last)

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """Return the mean distance plus the head's term; see `keypoint_loss`."""
        return keypoint_loss(network(batch["image"]), batch["target"], self.task.size)

    def scores(self, network: nn.Module, runtime: Runtime) -> dict[str, float]:
        """Return the mean error on the validation images, and the fraction of points within 5 %."""
        outputs = collect_outputs(network, ["image"], self.held_out, runtime, batch_size=64).numpy()
        errors = self._relative_errors(self._to_image_pixels(outputs))
        return {"error": metrics.mean_error(errors), "pck_5": metrics.pck(errors, 0.05)}

    def _to_image_pixels(self, points: NDArray[np.floating]) -> NDArray[np.floating]:
        """Map points (n, k, 2) of the square to pixels of the validation images, as the service does."""
        return np.stack([to_image_points(row, frame) for row, frame in zip(points, self.frames, strict=True)])

    def _relative_errors(self, points: NDArray[np.floating]) -> NDArray[np.floating]:
        return metrics.relative_errors(points, self.validation_points, self.sizes)

    def to_inference_module(self, network: nn.Module) -> nn.Module:
        """Return the module to export, with confidences calibrated on the validation images."""
        float32: nn.Module = copy.deepcopy(network).float().cpu().eval()
        if self.options.tta:
            float32 = FlipTTA(float32, self.flip_indices, self.task.size)
        log_tolerance_ratio = LogToleranceRatio(self.normalisation_pair, self.options.tolerance)
        outputs = collect_outputs(_StackedOutputs(float32), ["image"], self.held_out, _CPU, batch_size=64)
        errors = self._relative_errors(self._to_image_pixels(outputs[..., :2].numpy()))
        log_ratios = log_tolerance_ratio(outputs[..., :2], outputs[..., 2])
        known = torch.from_numpy(~np.isnan(errors))
        correct = torch.from_numpy(errors <= self.options.tolerance)
        fitted = metrics.fit_calibration(log_ratios, correct, known)
        return ServedKeypoints(float32, log_tolerance_ratio, fitted.slope, fitted.offsets).eval()

    def _predict_validation(self, served: ServedKeypoints) -> _Predictions:
        outputs = collect_outputs(_StackedOutputs(served.network), ["image"], self.held_out, _CPU, batch_size=64)
        points = self._to_image_pixels(outputs[..., :2].numpy())
        log_ratios = served.log_tolerance_ratio(outputs[..., :2], outputs[..., 2])
        confidence = (served.slope * log_ratios + served.offsets).sigmoid()
        return _Predictions(points, self._relative_errors(points), confidence.numpy(), log_ratios)

    def evaluate(self, trained: Sequence[Trained], served: nn.Module, exported: nn.Module) -> Evaluation:
        """Report errors by point, part and group, calibration, and images with their points, the worst first."""
        predictions = self._predict_validation(cast(ServedKeypoints, served))
        groups = [image.group for image in self.validation_images]
        by_part = metrics.error_by_part(predictions.errors, self.task.names)
        tables = [by_part]
        if self.data.has_groups:
            tables.append(metrics.error_by_group(predictions.errors, groups, "group"))
        if self.normalisation_pair:
            tables.append(self._error_by_rotation(predictions))
        return Evaluation(
            metrics=self._metrics(predictions, groups),
            notes=self._notes(trained, predictions, groups),
            tables=tuple(tables),
            figures=self._figures(predictions),
            failures=self._failures(predictions, by_part),
        )

    def _normalisation(self) -> str:
        """Describe in words what normalises errors."""
        if not self.normalisation_pair:
            return "the diagonal of the box around the annotated points"
        first, second = (self.task.names[index] for index in self.normalisation_pair)
        return f"the distance between {first} and {second}"

    def _metrics(self, predictions: _Predictions, groups: Sequence[str]) -> tuple[Metric, ...]:
        tolerance, errors = self.options.tolerance, predictions.errors
        known = ~np.isnan(errors)
        samples = f"{len(errors)} validation images"
        samples += f" of {self._group_count} groups not seen in training" if self.data.has_groups else ""
        relative = f"relative to {self._normalisation()}"
        correct, known_tensor = torch.from_numpy(errors <= tolerance), torch.from_numpy(known)
        cross_fitted = metrics.cross_fitted_probabilities(predictions.log_ratios, correct, known_tensor, groups).numpy()
        uncalibrated = uncalibrated_probability(predictions.log_ratios).numpy()

        def calibration_error(probabilities: NDArray[np.floating]) -> float:
            bins = calibration.bin_by_confidence(probabilities[known], errors[known] <= tolerance)
            return calibration.mean_calibration_gap(bins)

        ece = (
            f"expected calibration error of the confidence that a point lies within {tolerance:.0%}, "
            f"{calibration.BINS} bins of equal width"
        )
        median = float(np.nanmedian(np.nanmean(errors[known.any(axis=1)], axis=1)))
        rows = (
            ("mean_error", metrics.mean_error(errors), f"mean over {samples} of their points' mean error, {relative}"),
            ("median_error", median, f"median over {samples} of their points' mean error, {relative}"),
            ("pck_5", metrics.pck(errors, 0.05), f"fraction of points within 5 %, {samples}"),
            ("pck_10", metrics.pck(errors, 0.10), f"fraction of points within 10 %, {samples}"),
            (
                "calibration_error",
                calibration_error(cross_fitted),
                f"{ece}, calibrated on one half of the groups and measured on the other",
            ),
            ("calibration_error_before", calibration_error(uncalibrated), f"{ece}, uncalibrated"),
        )
        return tuple(Metric(name=name, value=value, protocol=protocol) for name, value, protocol in rows)

    def _notes(self, trained: Sequence[Trained], predictions: _Predictions, groups: Sequence[str]) -> tuple[str, ...]:
        low, high = metrics.bootstrap_interval(predictions.errors, groups)
        unit = "group" if self.data.has_groups else "image, with copies on one side"
        notes = [
            f"Split by {unit}: {self.options.valid_fraction:.0%}, chosen by a hash, are held out for validation. The "
            "best epoch and the confidence were chosen on the same images, so expect slightly higher errors on new "
            "images.",
            f"The 95 % confidence interval of the mean error is {low:.2%} to {high:.2%} (bootstrap over "
            f"{self._group_count} groups).",
            f"Confidence: the probability that a point's error is at most {self.options.tolerance:.0%} of "
            f"{self._normalisation()}.",
        ]
        if len(trained) > 1:
            errors = [run.scores["error"] for run in trained]
            notes.append(f"Mean error over {len(trained)} seeds: {mean_and_std(errors)}; the first is published.")
        if self.options.tta:
            notes.append("The graph averages over the image and its mirror image (test-time augmentation).")
        return (*notes, f"Head: {self.options.head}.", self._backbone_note())

    def _error_by_rotation(self, predictions: _Predictions) -> Table:
        """Return errors by thirds of the ratio of the normalising distance to the box: small if a head is turned."""
        diagonals = metrics.normalising_sizes(list(self.validation_points), None, [1] * len(self.validation_points))
        ratio = self.sizes / diagonals
        measured = np.flatnonzero(~np.isnan(ratio) & ~np.isnan(predictions.errors).all(axis=1))
        thirds = np.array_split(measured[np.argsort(ratio[measured], kind="stable")], 3)
        rows = []
        for name, indices in zip(("smallest, turned away", "middle", "largest, facing"), thirds, strict=True):
            if len(indices):
                errors, ratios = predictions.errors[indices], ratio[indices]
                size, diagonal = self.sizes[indices, np.newaxis], diagonals[indices, np.newaxis]
                of_diagonal = float(np.nanmean(errors * size / diagonal))
                values = (f"{metrics.mean_error(errors):.1%}", f"{of_diagonal:.1%}", str(len(indices)))
                rows.append((name, f"{ratios.min():.2f}–{ratios.max():.2f}", *values))
        header = ("third", "ratio", "mean error", "error / box diagonal", "images")
        note = f"Thirds by the ratio of {self._normalisation()} to the diagonal of the box around all points."
        return Table("By apparent rotation", header, tuple(rows), note)

    def _figures(self, predictions: _Predictions) -> tuple[Figure, ...]:
        errors, tolerance = predictions.errors, self.options.tolerance
        known = ~np.isnan(errors)
        image_errors = np.full(len(errors), np.nan)
        image_errors[known.any(axis=1)] = np.nanmean(errors[known.any(axis=1)], axis=1)
        order = np.argsort(-np.nan_to_num(image_errors, nan=-1), kind="stable")
        median = order[len(order) // 2 - 4 :][:8]
        correct = errors[known] <= tolerance
        uncalibrated = uncalibrated_probability(predictions.log_ratios).numpy()
        bins = {
            "uncalibrated": calibration.bin_by_confidence(uncalibrated[known], correct),
            "calibrated": calibration.bin_by_confidence(predictions.confidence[known], correct),
        }
        colours = "Blue: true points; orange: predicted points."
        annotated = [i for i in range(len(self.task.names)) if known[:, i].any()]
        point_errors = [float(np.nanmean(errors[:, i])) * 100 for i in annotated]
        point_names = [self.task.names[i] for i in annotated]
        bars = plots.draw_bars(point_names, point_errors, "Error by point", "mean error, %")
        return (
            Figure("Largest errors", self._draw_comparisons(order[:12], predictions, image_errors), colours),
            Figure("Typical predictions", self._draw_comparisons(median, predictions, image_errors), colours),
            Figure("Cumulative error", draw_cumulative_error(image_errors, errors[known])),
            Figure("Reliability", plots.draw_reliability(bins), f"Confidence to be within {tolerance:.0%}."),
            Figure("Error by point", bars),
            Figure("One image with different augmentations", self._draw_augmentations()),
        )

    def _draw_comparisons(
        self, indices: NDArray[np.integer], predictions: _Predictions, image_errors: NDArray[np.floating]
    ) -> bytes:
        comparisons = []
        for index in indices.tolist():
            frame = self.frames[index]
            image = self.held_out.image(index).image.resize((frame.width, frame.height), Image.Resampling.BILINEAR)
            confidence = float(predictions.confidence[index].mean())
            caption = f"error {image_errors[index]:.1%}, confidence {confidence:.2f}"
            true_points, predicted_points = self.validation_points[index], predictions.points[index]
            comparisons.append(KeypointComparison(image, true_points, predicted_points, caption))
        return draw_comparisons(comparisons)

    def _draw_augmentations(self) -> bytes:
        keys = [(epoch, len(self.samples) // 2) for epoch in range(18)]
        batch = self.samples.__getitems__(keys)
        pairs = zip(batch["image"].numpy(), batch["target"].numpy(), strict=True)
        return draw_augmentations([(Image.fromarray(pixels), points) for pixels, points in pairs])

    def _failures(self, predictions: _Predictions, by_part: Table) -> tuple[str, ...]:
        errors, confidence, tolerance = predictions.errors, predictions.confidence, self.options.tolerance
        worst = max(by_part.rows, key=lambda row: float(row[2].rstrip("%")))
        annotated = errors[~np.isnan(errors).all(axis=1)]
        large = float((np.nanmean(annotated, axis=1) > 0.10).mean())
        known = ~np.isnan(errors)
        most_confident = known & (confidence >= np.quantile(confidence[known], 0.9))
        wrong = float((errors[most_confident] > tolerance).mean())
        mean_confidence = float(confidence[most_confident].mean())
        return (
            f"The mean error is above 10 % in {large:.1%} of the validation images.",
            f"The weakest part is {worst[0]}: its mean error is {worst[2]}, and {worst[3]} of its points are within "
            "5 %.",
            f"Of the tenth of the points with the highest confidence ({mean_confidence:.2f} on average), {wrong:.1%} "
            f"have an error above {tolerance:.0%}.",
            "The model always returns all points, even if the image shows none of them.",
        )

    def golden_requests(self, served: nn.Module) -> tuple[Task, list[dict[str, Any]]]:
        """Return requests with the three images of smallest error, best first; the second asks for an overlay."""
        errors = self._predict_validation(cast(ServedKeypoints, served)).errors
        image_errors = np.where(np.isnan(errors), np.inf, errors).mean(axis=1)
        bodies: list[dict[str, Any]] = []
        for index in np.argsort(image_errors, kind="stable")[:3].tolist():
            image = self.held_out.image(index).image
            ratio = min(1.0, self.task.size / max(image.size))
            small = image.resize((max(1, round(image.width * ratio)), max(1, round(image.height * ratio))))
            bodies.append({"image": base64.b64encode(encode_image(small, "jpeg")).decode("ascii")})
        bodies[min(1, len(bodies) - 1)]["overlay"] = True
        return self.task, bodies
