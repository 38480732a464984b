"""How points in pictures are learnt: from a table of coordinates, with the geometry of each change followed."""

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
from tasks.contract import Arrays, Task
from tasks.keypoints import Keypoints, to_image_points
from tasks.manifest import Metric
from training.core.config import option
from training.core.errors import CannotTrain
from training.core.results import Evaluation, Figure, Table, Trained
from training.data.splits import validation_split
from training.engine.inference import collect_outputs
from training.engine.runtime import Batch, Runtime
from training.evaluation.calibration import BINS
from training.evaluation.classification import mean_and_std
from training.learners.keypoints import metrics
from training.learners.keypoints import plots as keypoint_plots
from training.learners.keypoints.annotations import Marked, PointData, TableRules, read_points
from training.learners.keypoints.dataset import KeypointImages, Turning
from training.learners.keypoints.network import (
    HEADS,
    FlipTTA,
    Nearness,
    ServedKeypoints,
    keypoint_loss,
    keypoint_network,
    spoken_probability,
)
from training.learners.keypoints.plots import Shown
from training.learners.keypoints.skeleton import pair_of, pairs_of, twins_of
from training.reporting import plots
from training.vision.backbones import load_body
from training.vision.learner import ImageLearner, ImageOptions

_CPU = Runtime(torch.device("cpu"))


@dataclass(frozen=True)
class Options(ImageOptions):
    """What can be chosen for points in pictures."""

    head: str = option("heatmaps", "how points are said: by heat maps, or by coordinates (faster)", choices=HEADS)
    size: int = option(128, "side length of the network's input, in pixels")
    dropout: float = option(0.2, "share of the features that are dropped in training, with coordinates")
    tables: tuple[str, ...] = option((), "the CSV files, within the data's folder; none: the only one there")
    pictures: tuple[str, ...] = option((), "for each table the folder of its pictures, beside the table; none: its own")
    names: tuple[str, ...] = option((), "of the points, where the header does not name them")
    group_column: str = option("", "column that says which pictures belong together (a person, a film)")
    group_pattern: str = option("", "regular expression that finds the same in the file's name")
    between: tuple[str, ...] = option((), "two points whose distance errors are relative to; none: the box around all")
    twins: tuple[str, ...] = option((), "mirror twins, as a=b; none: names that differ by left and right")
    links: tuple[str, ...] = option((), "points to join with a line in overlays, as a=b")
    near: float = option(0.05, "error up to which a point counts as right, for its confidence")
    outside: str = option("refuse", "points outside their pictures", choices=("refuse", "clip", "drop"))
    rotation: float = option(25.0, "largest random rotation, in degrees")
    smallest: float = option(0.75, "smallest random scale")
    largest: float = option(1.6, "largest random scale")
    hidden: float = option(0.4, "how often a block of the picture is hidden")
    tta: bool = option(False, "average over the picture and its mirror image, in service too: twice the cost")


@dataclass(frozen=True)
class _Measured:
    """What the served network found in the validation pictures, n of them with k points.

    Attributes:
        points: (n, k, 2), in pixels of the pictures.
        errors: (n, k), shares of the sizes; NaN where nothing can be told.
        confidence: (n, k), calibrated.
        nearness: (n, k), what the confidences were calibrated from.
    """

    points: NDArray[np.floating]
    errors: NDArray[np.floating]
    confidence: NDArray[np.floating]
    nearness: Tensor


class _Joined(nn.Module):
    """Points and what goes with each as one tensor (n, k, 3)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor]:
        found = self.network(image)
        return (torch.cat([found[0].float(), found[1].float().unsqueeze(2)], dim=2),)


class KeypointsLearner(ImageLearner):
    """Learns named points from pictures and a CSV file."""

    summary: ClassVar[str] = "where are the points? from pictures and a table of coordinates"
    data_kind: ClassVar[str] = "a folder with pictures and a CSV file: the picture's name, then x and y of each point"
    hub_tag: ClassVar[str] = "keypoint-detection"
    lower_is_better: bool = True
    default_options: ClassVar[Options] = Options()
    body_name: ClassVar[str] = "features.body"
    samples: KeypointImages
    held_out: KeypointImages

    def _load_data(self, data: Path) -> None:
        options: Options = self.options
        rules = {name: getattr(options, name) for name in TableRules.__dataclass_fields__}
        self.data: PointData = read_points(data, TableRules(**rules))
        names = self.data.names
        self.twins = twins_of(names, options.twins)
        if options.tta and not self.twins:
            raise CannotTrain("--tta needs to know what a mirror makes of each point: name --twins, or leave it out.")
        self.between = pair_of(names, options.between)
        self.task: Keypoints = Keypoints(names, options.size, "pad", pairs_of(names, options.links, "links"))
        groups = [each.group for each in self.data.marked]
        held = validation_split(groups, [0] * len(groups), options.valid_fraction)
        turning = Turning(
            degrees=options.rotation,
            smallest=options.smallest,
            largest=options.largest,
            hidden=options.hidden,
            twins=self.twins,
        )
        train = [each for each, out in zip(self.data.marked, held, strict=True) if not out]
        self.marked = [each for each, out in zip(self.data.marked, held, strict=True) if out]
        self.samples = self._pictures(train, seed=self.trained_with.seed, turning=turning if options.augment else None)
        self.held_out = self._pictures(self.marked, cache_bytes=self.cache_bytes // 4)
        self._measure_truth()

    def _pictures(self, marked: Sequence[Marked], **more: Any) -> KeypointImages:
        paths, points = [each.path for each in marked], [each.points for each in marked]
        made = KeypointImages(paths, points, self.task, **{"cache_bytes": self.cache_bytes} | more)
        made.fill_cache()
        return made

    def _measure_truth(self) -> None:
        """Frames and sizes of the validation pictures. Raises CannotTrain where no error could be measured."""
        made = [self.task.preprocess(self.held_out.image(i)).context for i in range(len(self.held_out))]
        self.frames: list[Frame] = [frame for frame, _ in made]
        longest = [max(frame.width, frame.height) for frame in self.frames]
        self.truth = np.stack([each.points for each in self.marked])
        self.sizes = metrics.sizes_of(list(self.truth), self.between, longest)
        if np.isnan(self.sizes).all():
            raise CannotTrain("No validation picture shows the two points of --between: name others, or leave it out.")

    def data_summary(self) -> str:
        """Counts, how it was split, and what was found on reading."""
        word = "groups" if self.data.grouped else "kinds of picture (copies count once)"
        counts = f"{len(self.samples):,} pictures to train on, {len(self.held_out):,} to validate"
        lines = [f"{len(self.task.names)} points; {counts}, of {self._group_count} {word} that training never sees."]
        if not self.twins:
            lines.append("No points are each other's mirror twins (--twins), so pictures are not mirrored.")
        return "\n".join([*lines, *self.data.notices])

    @property
    def _group_count(self) -> int:
        return len({each.group for each in self.marked})

    def network(self) -> nn.Module:
        """The network; channels last, the layout that convolutions run fastest in."""
        options = self.options
        made = keypoint_network(
            load_body(options.backbone, self.weights),
            options.head,
            points=len(self.task.names),
            size=options.size,
            dropout=options.dropout,
        )
        return made.to(memory_format=torch.channels_last)

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """Distances, and what the head needs beside."""
        return keypoint_loss(network(batch["image"]), batch["target"], self.task.size)

    def scores(self, network: nn.Module, runtime: Runtime) -> dict[str, float]:
        """The mean error on the validation pictures, and the share of points within 5 %."""
        found = collect_outputs(network, ["image"], self.held_out, runtime, batch_size=64).numpy()
        errors = self._errors(self._placed(found))
        return {"error": metrics.mean_error(errors), "pck_5": metrics.share_within(errors, 0.05)}

    def _placed(self, found: NDArray[np.floating]) -> NDArray[np.floating]:
        """Points (n, k, 2) of the square as the service would answer them."""
        return np.stack([to_image_points(points, frame) for points, frame in zip(found, self.frames, strict=True)])

    def _errors(self, points: NDArray[np.floating]) -> NDArray[np.floating]:
        return metrics.relative_errors(points, self.truth, self.sizes)

    def to_inference_module(self, network: nn.Module) -> nn.Module:
        """Calibrated on the validation pictures."""
        whole: nn.Module = copy.deepcopy(network).float().cpu().eval()
        if self.options.tta:
            whole = FlipTTA(whole, self.twins, self.task.size)
        nearness = Nearness(self.between, self.options.near)
        joined = collect_outputs(_Joined(whole), ["image"], self.held_out, _CPU, batch_size=64)
        errors = self._errors(self._placed(joined[..., :2].numpy()))
        near = nearness(joined[..., :2], joined[..., 2])
        known = torch.from_numpy(~np.isnan(errors))
        right = torch.from_numpy(errors <= self.options.near)
        fit = metrics.calibrated(near, right, known)
        return ServedKeypoints(whole, nearness, fit.slope, fit.offsets).eval()

    def _measured(self, served: ServedKeypoints) -> _Measured:
        joined = collect_outputs(_Joined(served.network), ["image"], self.held_out, _CPU, batch_size=64)
        points = self._placed(joined[..., :2].numpy())
        near = served.nearness(joined[..., :2], joined[..., 2])
        confidence = (served.slope * near + served.offsets).sigmoid()
        return _Measured(points, self._errors(points), confidence.numpy(), near)

    def evaluate(self, trained: Sequence[Trained], served: nn.Module) -> Evaluation:
        """Errors by point, part and person, calibration, and pictures with their points, the worst first."""
        found = self._measured(cast(ServedKeypoints, served))
        groups = [each.group for each in self.marked]
        parts = metrics.by_part(found.errors, self.task.names)
        tables = [parts]
        if self.data.grouped:
            tables.append(metrics.by_group(found.errors, groups, "group"))
        if self.between:
            tables.append(self._by_turn(found))
        return Evaluation(
            metrics=self._metrics(found, groups),
            notes=self._notes(trained, found, groups),
            tables=tuple(tables),
            figures=self._figures(found),
            failures=self._failures(found, parts),
        )

    def _relative_to(self) -> str:
        if not self.between:
            return "the diagonal of the box around the marked points"
        one, other = (self.task.names[index] for index in self.between)
        return f"the distance between {one} and {other}"

    def _metrics(self, found: _Measured, groups: Sequence[str]) -> tuple[Metric, ...]:
        near, errors = self.options.near, found.errors
        known = ~np.isnan(errors)
        right, samples = errors[known] <= near, f"{len(errors)} validation pictures"
        samples += f" of {self._group_count} groups that training never saw" if self.data.grouped else ""
        relative = f"in shares of {self._relative_to()}"
        cross = metrics.cross_fitted(found.nearness, torch.from_numpy(errors <= near), torch.from_numpy(known), groups)
        spoken = spoken_probability(found.nearness).numpy()
        fitted_apart = metrics.calibration_error(cross.numpy()[known], right)
        before = metrics.calibration_error(spoken[known], right)
        what = f"of the confidence that a point lies within {near:.0%}, {BINS} bins of equal width"
        median = float(np.nanmedian(np.nanmean(errors[known.any(axis=1)], axis=1)))
        rows = (
            ("mean_error", metrics.mean_error(errors), f"mean over {samples} of the points' mean, {relative}"),
            ("median_error", median, f"the same, the picture in the middle, {relative}"),
            ("pck_5", metrics.share_within(errors, 0.05), f"share of points within 5 %, {samples}"),
            ("pck_10", metrics.share_within(errors, 0.10), f"share of points within 10 %, {samples}"),
            ("calibration_error", fitted_apart, f"{what}, fitted on one half of the groups and measured on the other"),
            ("calibration_error_before", before, f"{what}, as the spread says by itself"),
        )
        return tuple(Metric(name=name, value=value, protocol=protocol) for name, value, protocol in rows)

    def _notes(self, trained: Sequence[Trained], found: _Measured, groups: Sequence[str]) -> tuple[str, ...]:
        low, high = metrics.interval(found.errors, groups)
        how = "by group" if self.data.grouped else "by picture, copies on one side"
        notes = [
            f"Split {how}: {self.options.valid_fraction:.0%} held out for validation by a hash. The best epoch was "
            "chosen and the confidence fitted on the same pictures, so expect a little less on new ones.",
            f"With {self._group_count} groups, the mean error stands for one between {low:.2%} and {high:.2%} "
            "(95 %, bootstrap over groups).",
            f"Confidence: the probability that a point lies within {self.options.near:.0%} of "
            f"{self._relative_to()} from where it was marked.",
        ]
        if len(trained) > 1:
            errors = [each.scores["error"] for each in trained]
            notes.append(f"Mean error over {len(trained)} seeds: {mean_and_std(errors)}; the first is published.")
        if self.options.tta:
            notes.append("The graph averages over the picture and its mirror image (test-time augmentation).")
        return (*notes, f"Head: {self.options.head}.", self._backbone_note())

    def _by_turn(self, found: _Measured) -> Table:
        """A head that is turned away shows less between its eyes: thirds by that share of the whole."""
        whole = metrics.sizes_of(list(self.truth), None, [1] * len(self.truth))
        ratio = self.sizes / whole
        measured = np.flatnonzero(~np.isnan(ratio) & ~np.isnan(found.errors).all(axis=1))
        thirds = np.array_split(measured[np.argsort(ratio[measured], kind="stable")], 3)
        rows = []
        for name, places in zip(("least, turned away", "middle", "most, facing"), thirds, strict=True):
            if len(places):
                errors, share = found.errors[places], ratio[places]
                pixels = float(np.nanmean(errors * self.sizes[places, np.newaxis] / whole[places, np.newaxis]))
                figures_of = (f"{metrics.mean_error(errors):.1%}", f"{pixels:.1%}", str(len(places)))
                rows.append((name, f"{share.min():.2f}–{share.max():.2f}", *figures_of))
        header = ("third", "share", "mean error", "of the box's diagonal", "pictures")
        note = f"Thirds by {self._relative_to()} as a share of the diagonal of the box around all points."
        return Table("By how far it is turned away", header, tuple(rows), note)

    def _figures(self, found: _Measured) -> tuple[Figure, ...]:
        known = ~np.isnan(found.errors)
        by_picture = np.full(len(found.errors), np.nan)
        by_picture[known.any(axis=1)] = np.nanmean(found.errors[known.any(axis=1)], axis=1)
        order = np.argsort(-np.nan_to_num(by_picture, nan=-1), kind="stable")
        middle = order[len(order) // 2 - 4 :][:8]
        right = found.errors[known] <= self.options.near
        bins = {
            "the spread by itself": metrics.reliability(spoken_probability(found.nearness).numpy()[known], right),
            "calibrated": metrics.reliability(found.confidence[known], right),
        }
        colours = "Blue: where a point was marked; orange: where it was found."
        with_any = [i for i in range(len(self.task.names)) if known[:, i].any()]
        values = [float(np.nanmean(found.errors[:, i])) * 100 for i in with_any]
        bars = plots.draw_bars([self.task.names[i] for i in with_any], values, "Error by point", "mean error, %")
        return (
            Figure("The largest errors", self._drawn(order[:12], found, by_picture), colours),
            Figure("Typical answers", self._drawn(middle, found, by_picture), colours),
            Figure("Cumulative error", keypoint_plots.cumulative(by_picture, found.errors[known])),
            Figure(
                "Reliability", plots.draw_reliability(bins), f"Of the confidence to be within {self.options.near:.0%}."
            ),
            Figure("Error by point", bars),
            Figure("One picture, as it is seen in training", self._seen()),
        )

    def _drawn(self, places: NDArray[np.integer], found: _Measured, by_picture: NDArray[np.floating]) -> bytes:
        shown = []
        for index in places.tolist():
            picture, frame = self.held_out.image(index), self.frames[index]
            image = picture.image.resize((frame.width, frame.height), Image.Resampling.BILINEAR)
            sure = float(found.confidence[index].mean())
            caption = f"error {by_picture[index]:.1%}, confidence {sure:.2f}"
            shown.append(Shown(image, self.truth[index], found.points[index], caption))
        return keypoint_plots.points(shown)

    def _seen(self) -> bytes:
        keys = [(epoch, len(self.samples) // 2) for epoch in range(18)]
        batch = self.samples.__getitems__(keys)
        pairs = zip(batch["image"].numpy(), batch["target"].numpy(), strict=True)
        return keypoint_plots.augmented([(Image.fromarray(pixels), points) for pixels, points in pairs])

    def _failures(self, found: _Measured, parts: Table) -> tuple[str, ...]:
        worst = max(parts.rows, key=lambda row: float(row[2].rstrip("%")))
        each = found.errors[~np.isnan(found.errors).all(axis=1)]
        large = float((np.nanmean(each, axis=1) > 0.10).mean())
        known = ~np.isnan(found.errors)
        surest = known & (found.confidence >= np.quantile(found.confidence[known], 0.9))
        wrong = float((found.errors[surest] > self.options.near).mean())
        said = float(found.confidence[surest].mean())
        return (
            f"In {large:.1%} of the validation pictures the mean error is above 10 %.",
            f"The weakest part is {worst[0]}: a mean error of {worst[2]}, {worst[3]} of its points within 5 %.",
            f"Of the tenth of its points that it is surest of (confidence {said:.2f} on average), {wrong:.1%} are "
            f"further away than {self.options.near:.0%}.",
            "It always answers with all of its points, also where the picture shows none of them.",
        )

    def validation_inputs(self, count: int) -> Arrays:
        """Pictures from all over the validation set."""
        chosen = np.linspace(0, len(self.held_out) - 1, min(count, len(self.held_out))).round().astype(int)
        return {"image": self.held_out.__getitems__([(0, int(index)) for index in chosen])["image"].numpy()}

    def golden_requests(self, served: nn.Module) -> tuple[Task, list[dict[str, Any]]]:
        """Three pictures of the smaller errors, the best first; the second asks for an overlay."""
        found = self._measured(cast(ServedKeypoints, served))
        each = np.where(np.isnan(found.errors), np.inf, found.errors).mean(axis=1)
        bodies: list[dict[str, Any]] = []
        for index in np.argsort(each, kind="stable")[:3].tolist():
            image = self.held_out.image(index).image
            ratio = min(1.0, self.task.size / max(image.size))
            small = image.resize((max(1, round(image.width * ratio)), max(1, round(image.height * ratio))))
            bodies.append({"image": base64.b64encode(encode_image(small, "jpeg")).decode("ascii")})
        bodies[min(1, len(bodies) - 1)]["overlay"] = True
        return self.task, bodies
