"""Keypoint detection: named points in images, learned from tables of coordinates."""

import base64
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

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
from training.core.results import Comparison, Evaluation, Figure, SampleScores, Table, Trained
from training.data.delimited import CsvOptions
from training.data.hash_split import validation_split
from training.engine.inference import collect_outputs
from training.engine.runtime import Batch, Runtime
from training.evaluation import calibration
from training.evaluation.classification import mean_and_std
from training.evaluation.comparison import compare_means
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
    """Predictions of the served or exported module for the n validation images with k points each.

    Attributes:
        points: (n, k, 2), in pixels of the images.
        errors: (n, k), as fractions of the normalising sizes; NaN where unknown.
        confidence: (n, k).
    """

    points: NDArray[np.floating]
    errors: NDArray[np.floating]
    confidence: NDArray[np.floating]


class _StackedOutputs(nn.Module):
    """Returns points and spreads (of a network), or points and confidences (of a module), as one tensor (n, k, 3)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor]:
        points, values = self.network(image)[:2]
        return (torch.cat([points.float(), values.float().unsqueeze(2)], dim=2),)


class KeypointsLearner(ImageLearner):
    """Trains a keypoint detector from images and CSV files.

    Attributes:
        confidence: how confidences are computed; set by `to_inference_module`.
    """

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
    confidence: metrics.ConfidenceCalibration

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
        """Return the module to export, with confidences calibrated on the validation images if they are enough."""
        float32: nn.Module = copy.deepcopy(network).float().cpu().eval()
        if self.options.tta:
            float32 = FlipTTA(float32, self.flip_indices, self.task.size)
        log_tolerance_ratio = LogToleranceRatio(self.normalisation_pair, self.options.tolerance)
        outputs = collect_outputs(_StackedOutputs(float32), ["image"], self.held_out, _CPU, batch_size=64)
        errors = self._relative_errors(self._to_image_pixels(outputs[..., :2].numpy()))
        self.confidence = self._fit_confidence(log_tolerance_ratio(outputs[..., :2], outputs[..., 2]), errors)
        return ServedKeypoints(float32, log_tolerance_ratio, self.confidence.slope, self.confidence.offsets).eval()

    def _fit_confidence(self, log_ratios: Tensor, errors: NDArray[np.floating]) -> metrics.ConfidenceCalibration:
        """Fit the confidences to the errors (n, k) of the validation images, unless the images are too few.

        Images are counted, not points: the errors of an image's points depend on each other.
        """
        known = ~np.isnan(errors)
        count = int(known.any(axis=1).sum())
        if shortage := calibration.describe_shortage(count, "validation images"):
            return metrics.gaussian_confidence(len(self.task.names), shortage)
        correct = torch.from_numpy(errors <= self.options.tolerance)
        return metrics.fit_calibration(log_ratios, correct, torch.from_numpy(known))

    def _predict_validation(self, module: nn.Module) -> _Predictions:
        """Run the served or exported module over the validation images."""
        outputs = collect_outputs(_StackedOutputs(module), ["image"], self.held_out, _CPU, batch_size=64).numpy()
        points = self._to_image_pixels(outputs[..., :2])
        return _Predictions(points, self._relative_errors(points), outputs[..., 2])

    def evaluate(self, trained: Sequence[Trained], served: nn.Module, exported: nn.Module) -> Evaluation:
        """Report errors by point, part and group, calibration, and images with their points, the worst first."""
        predictions = self._predict_validation(exported)
        groups = [image.group for image in self.validation_images]
        tables = [metrics.error_by_part(predictions.errors, self.task.names)]
        if self.data.has_groups:
            tables.append(metrics.error_by_group(predictions.errors, groups, "group"))
        if self.normalisation_pair:
            tables.append(self._error_by_rotation(predictions))
        caveat = calibration.uncalibrated_caveat(self.confidence.reason)
        return Evaluation(
            metrics=self._metrics(predictions, groups),
            notes=self._notes(trained, predictions, groups),
            tables=tuple(table for table in tables if table.rows),
            figures=self._figures(predictions),
            failures=self._failures(predictions),
            caveats=(caveat,) if caveat else (),
            comparisons=(self._compare_with_mean_positions(self._scores_of(predictions.errors)),),
        )

    def sample_scores(self, exported: nn.Module) -> SampleScores:
        """Return the mean error of each validation image; NaN where none of its points is known."""
        return self._scores_of(self._predict_validation(exported).errors)

    def _scores_of(self, errors: NDArray[np.floating]) -> SampleScores:
        samples = "groups of validation images" if self.data.has_groups else "distinct validation images"
        _, groups = np.unique([image.group for image in self.validation_images], return_inverse=True)
        return SampleScores("mean_error", metrics.image_errors(errors), samples, lower_is_better=True, groups=groups)

    def is_comparable(self, previous: Task) -> bool:
        """Return whether both have the same points, and fit images into the square in the same way."""
        return (
            super().is_comparable(previous)
            and isinstance(previous, Keypoints)
            and (previous.names, previous.fit) == (self.task.names, self.task.fit)
        )

    def _compare_with_mean_positions(self, scores: SampleScores) -> Comparison:
        """Compare with the mean training position of each point in the network's square, mapped back to each image."""
        size = self.task.size
        frames = (self.task.preprocess(self.samples.image(i)).context[0] for i in range(len(self.samples)))
        points = np.stack([frame.to_network(own) for frame, own in zip(frames, self.samples.points, strict=True)])
        known = ~np.isnan(points).any(axis=2)
        sums, counts = np.where(known[..., np.newaxis], points, 0).sum(axis=0), known.sum(axis=0)[:, np.newaxis]
        # A point that is annotated in no training image is expected in the centre.
        mean = np.divide(sums, counts, out=np.full(sums.shape, size / 2), where=counts > 0)
        errors = self._relative_errors(self._to_image_pixels(np.stack([mean] * len(self.held_out))))
        other = "always answering the mean position of each point"
        return compare_means(scores, other, metrics.image_errors(errors), is_constant=True)

    def _normalisation(self) -> str:
        """Describe in words what normalises errors."""
        if not self.normalisation_pair:
            return "the diagonal of the box around the annotated points"
        first, second = (self.task.names[index] for index in self.normalisation_pair)
        return f"the distance between {first} and {second}"

    def _metrics(self, predictions: _Predictions, groups: Sequence[str]) -> tuple[Metric, ...]:
        errors = predictions.errors
        median = float(np.nanmedian(metrics.image_errors(errors)))
        samples = self._validation_count()
        samples += f" of {self._group_count:,} groups not seen in training" if self.data.has_groups else ""
        relative = f"relative to {self._normalisation()}"
        rows = (
            ("mean_error", metrics.mean_error(errors), f"mean over {samples} of their points' mean error, {relative}"),
            ("median_error", median, f"median over {samples} of their points' mean error, {relative}"),
            ("pck_5", metrics.pck(errors, 0.05), f"fraction of points within 5 %, {samples}"),
            ("pck_10", metrics.pck(errors, 0.10), f"fraction of points within 10 %, {samples}"),
            *self._calibration_rows(predictions, groups),
        )
        return tuple(Metric(name=name, value=value, protocol=protocol) for name, value, protocol in rows)

    def _calibration_rows(self, predictions: _Predictions, groups: Sequence[str]) -> list[tuple[str, float, str]]:
        """Return the calibration errors as (name, value, protocol), without those that there are too few groups for."""
        tolerance, errors = self.options.tolerance, predictions.errors
        known = ~np.isnan(errors)

        def calibration_error(probabilities: NDArray[np.floating]) -> float:
            bins = calibration.bin_by_confidence(probabilities[known], errors[known] <= tolerance)
            return calibration.mean_calibration_gap(bins)

        protocol = (
            f"expected calibration error of the confidence that a point lies within {tolerance:.0%}, "
            f"{calibration.BINS} bins of equal width"
        )
        if self.confidence.reason:
            error = calibration_error(predictions.confidence)
            return [("calibration_error", error, f"{protocol}, not calibrated")]
        log_ratios = self._log_ratios(predictions)
        uncalibrated = uncalibrated_probability(log_ratios).numpy()
        rows = [("calibration_error_before", calibration_error(uncalibrated), f"{protocol}, uncalibrated")]
        if len(set(groups)) > 1:
            correct = torch.from_numpy(errors <= tolerance)
            crossed = metrics.cross_fitted_probabilities(log_ratios, correct, torch.from_numpy(known), groups).numpy()
            halves = f"{self._group_word}, calibrated on one half of them and measured on the other"
            rows.insert(
                0, ("calibration_error", calibration_error(crossed), f"{protocol}, {len(set(groups))} {halves}")
            )
        return rows

    def _log_ratios(self, predictions: _Predictions) -> Tensor:
        """Return the log tolerance ratios (n, k) that the confidences were computed from."""
        return self.confidence.log_ratios(torch.from_numpy(predictions.confidence))

    @property
    def _group_word(self) -> str:
        return "groups" if self.data.has_groups else "distinct images"

    def _notes(self, trained: Sequence[Trained], predictions: _Predictions, groups: Sequence[str]) -> tuple[str, ...]:
        unit = "group" if self.data.has_groups else "image, with copies on one side"
        held_out, count = len(self.held_out), len(self.samples) + len(self.held_out)
        chosen = [] if self.confidence.reason else ["the calibration of the confidence"]
        caveat = calibration.uncalibrated_caveat(self.confidence.reason)
        notes = [
            f"Split by {unit}: {held_out:,} of {count:,} images are held out for validation, as a hash decides. "
            f"{self._selection_note(*chosen)}",
            self._interval_note(predictions, groups),
            f"Confidence: the probability that a point's error is at most {self.options.tolerance:.0%} of "
            f"{self._normalisation()}.",
            *([caveat] if caveat else []),
        ]
        if len(trained) > 1:
            errors = [run.scores["error"] for run in trained]
            notes.append(f"Mean error over {len(trained)} seeds: {mean_and_std(errors)}; the first is published.")
        if self.options.tta:
            notes.append("The graph averages over the image and its mirror image (test-time augmentation).")
        return (*notes, f"Head: {self.options.head}.", self._backbone_note())

    def _interval_note(self, predictions: _Predictions, groups: Sequence[str]) -> str:
        interval = metrics.bootstrap_interval(predictions.errors, groups)
        if interval is None:
            return f"Too few {self._group_word} to validate with for a confidence interval of the mean error."
        low, high = interval
        return (
            f"The 95 % confidence interval of the mean error is {low:.2%} to {high:.2%} (bootstrap over "
            f"{self._group_count:,} {self._group_word})."
        )

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
        image_errors = metrics.image_errors(errors)
        order = np.argsort(-np.nan_to_num(image_errors, nan=-1), kind="stable")
        typical = order[max(0, len(order) // 2 - 4) :][:8]
        correct = errors[known] <= tolerance
        bins = {"not calibrated": calibration.bin_by_confidence(predictions.confidence[known], correct)}
        if not self.confidence.reason:
            uncalibrated = uncalibrated_probability(self._log_ratios(predictions)).numpy()
            bins = {
                "uncalibrated": calibration.bin_by_confidence(uncalibrated[known], correct),
                "calibrated": bins["not calibrated"],
            }
        colours = "Blue: true points; orange: predicted points."
        annotated = [i for i in range(len(self.task.names)) if known[:, i].any()]
        point_errors = [float(np.nanmean(errors[:, i])) * 100 for i in annotated]
        point_names = [self.task.names[i] for i in annotated]
        bars = plots.draw_bars(point_names, point_errors, "Error by point", "mean error, %")
        typical_figure = Figure(
            "Typical predictions", self._draw_comparisons(typical, predictions, image_errors), colours
        )
        return (
            Figure("Largest errors", self._draw_comparisons(order[:12], predictions, image_errors), colours),
            *([typical_figure] if len(order) > len(typical) else []),
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

    def _failures(self, predictions: _Predictions) -> tuple[str, ...]:
        return (
            *metrics.describe_failures(
                predictions.errors, predictions.confidence, self.task.names, self.options.tolerance
            ),
            "The model always returns all points, even if the image shows none of them.",
        )

    def golden_requests(self, served: nn.Module) -> tuple[Task, list[dict[str, Any]]]:
        """Return requests with the three images of smallest error, best first; the second asks for an overlay."""
        errors = self._predict_validation(served).errors
        image_errors = np.where(np.isnan(errors), np.inf, errors).mean(axis=1)
        bodies: list[dict[str, Any]] = []
        for index in np.argsort(image_errors, kind="stable")[:3].tolist():
            image = self.held_out.image(index).image
            ratio = min(1.0, self.task.size / max(image.size))
            small = image.resize((max(1, round(image.width * ratio)), max(1, round(image.height * ratio))))
            bodies.append({"image": base64.b64encode(encode_image(small, "jpeg")).decode("ascii")})
        bodies[min(1, len(bodies) - 1)]["overlay"] = True
        return self.task, bodies
