"""Keypoint metrics: normalised errors, PCK, confidence intervals, and calibration of the confidences."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from training.core.results import Table

Numbers = NDArray[np.floating]
_RIDGE = 1e-3
"""Penalty on each point's offset from the common one: the offset of a point that is always correct would diverge."""
_MIN_SLOPE = 0.01
"""A slope of 0 could not be undone, and with a negative one, points that are more spread would be more certain."""
_UNRELATED = "on the validation images, how far a point is spread says nothing about its error"
_ALL_CORRECT = "on the validation images, every point is within the tolerance, so how sure they should be is unknown"
_NONE_CORRECT = "on the validation images, no point is within the tolerance"
_LARGE_ERROR = 0.10
_MIN_GROUPS = 10
"""With fewer groups, resampling them says little about the uncertainty of their mean."""


def normalising_sizes(
    points: Sequence[Numbers], normalisation_pair: tuple[int, int] | None, max_sides: Sequence[int]
) -> Numbers:
    """Return the sizes that normalise errors, in pixels (n,): a pair's distance, or the diagonal of the points' box.

    For a single point it is the image's longer side (`max_sides`). NaN if the points needed are missing.
    """
    sizes = []
    for image_points, max_side in zip(points, max_sides, strict=True):
        known = image_points[~np.isnan(image_points).any(axis=1)]
        if normalisation_pair is not None:
            first, second = normalisation_pair
            size = float(np.linalg.norm(image_points[first] - image_points[second]))
        else:
            extent = np.ptp(known, axis=0) if len(known) else np.zeros(2)
            size = float(np.linalg.norm(extent)) if len(image_points) > 1 else float(max_side)
        sizes.append(size if size >= 1 else np.nan)
    return np.array(sizes)


def relative_errors(predicted: Numbers, target: Numbers, sizes: Numbers) -> Numbers:
    """Return distances (n, k) between points (n, k, 2) as fractions of the sizes (n,); NaN if either is unknown."""
    errors: Numbers = np.linalg.norm(predicted - target, axis=2) / sizes[:, np.newaxis]
    return errors


def image_errors(errors: Numbers) -> Numbers:
    """Return the mean error of each image's known points, (n,); NaN for an image without any."""
    counts = (~np.isnan(errors)).sum(axis=1)
    means: Numbers = np.divide(np.nansum(errors, axis=1), counts, out=np.full(len(errors), np.nan), where=counts > 0)
    return means


def mean_error(errors: Numbers) -> float:
    """Return the mean over images of each image's mean error."""
    means = image_errors(errors)
    return float(np.nanmean(means)) if not np.isnan(means).all() else float("nan")


def pck(errors: Numbers, threshold: float) -> float:
    """Return the percentage of correct keypoints, as a fraction: errors of at most `threshold` among known points."""
    known = errors[~np.isnan(errors)]
    return float((known <= threshold).mean()) if known.size else float("nan")


def bootstrap_interval(errors: Numbers, groups: Sequence[str], draws: int = 1000) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean error by a bootstrap over groups: images of a group resemble each other.

    With fewer than ten groups it is None, as for a comparison.
    """
    means = image_errors(errors)
    has_points = ~np.isnan(means)
    _, group_indices = np.unique(np.asarray(groups)[has_points], return_inverse=True)
    sums, counts = np.bincount(group_indices, means[has_points]), np.bincount(group_indices)
    if len(sums) < _MIN_GROUPS:
        return None
    resampled = np.random.default_rng(0).integers(0, len(sums), (draws, len(sums)))
    resampled_means = sums[resampled].sum(axis=1) / counts[resampled].sum(axis=1)
    low, high = np.quantile(resampled_means, [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True)
class ConfidenceCalibration:
    """A logistic model of the log tolerance ratio.

    Attributes:
        slope: positive.
        offsets: one per point, float32 (k,).
        reason: why it is not fitted to the validation images; empty if it is.
    """

    slope: float
    offsets: Tensor
    reason: str = ""

    def probabilities(self, log_ratios: Tensor) -> Tensor:
        """Return probabilities (n, k) for log tolerance ratios (n, k)."""
        return (self.slope * log_ratios + self.offsets).sigmoid()

    def log_ratios(self, probabilities: Tensor) -> Tensor:
        """Return the log tolerance ratios (n, k) that have these probabilities (n, k), up to rounding."""
        return ((probabilities.double().logit(eps=1e-7) - self.offsets) / self.slope).float()


def gaussian_confidence(points: int, reason: str) -> ConfidenceCalibration:
    """Return the logistic model of the confidence that is not calibrated, for a reason.

    A Gaussian with the predicted spread has the mass 1 - exp(-exp(2 r) / 2) within the tolerance, where r is the log
    tolerance ratio. The logistic curve has the same value and slope where that is one half, at exp(2 r) = 2 ln 2.
    """
    slope = 4 * math.log(2)
    return ConfidenceCalibration(slope, torch.full((points,), -slope / 2 * math.log(2 * math.log(2))), reason)


def fit_calibration(log_ratios: Tensor, correct: Tensor, known: Tensor) -> ConfidenceCalibration:
    """Fit the logistic model by penalised maximum likelihood with L-BFGS; all tensors (n, k).

    `correct` marks points within the tolerance, `known` those that are annotated. The offsets are shrunk towards their
    mean. If the slope is at its bound, or all points are correct or all are wrong, the probabilities hardly differ
    between points, and the result says why it is no calibration.
    """
    exact_ratios, exact_correct = log_ratios.double()[known], correct.double()[known]
    point = torch.arange(log_ratios.shape[1]).expand_as(log_ratios)[known]
    slope = torch.ones((), dtype=torch.float64, requires_grad=True)
    common = torch.zeros((), dtype=torch.float64, requires_grad=True)
    deviations = torch.zeros(log_ratios.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([slope, common, deviations], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = slope * exact_ratios + common + deviations[point]
        loss = binary_cross_entropy_with_logits(logits, exact_correct)
        loss = loss + _RIDGE * (deviations.pow(2).mean() + slope.pow(2) + 0.1 * common.pow(2))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    offsets = (common + deviations).detach().float()
    fitted = float(slope.detach())
    if not (bool(offsets.isfinite().all()) and math.isfinite(fitted)):
        return gaussian_confidence(log_ratios.shape[1], _UNRELATED)
    if bool(exact_correct.all()) or not bool(exact_correct.any()):
        reason = _ALL_CORRECT if bool(exact_correct.all()) else _NONE_CORRECT
    else:
        reason = "" if fitted > _MIN_SLOPE else _UNRELATED
    return ConfidenceCalibration(max(_MIN_SLOPE, fitted), offsets, reason)


def cross_fitted_probabilities(log_ratios: Tensor, correct: Tensor, known: Tensor, groups: Sequence[str]) -> Tensor:
    """Return probabilities (n, k) from calibrations fitted on one half of the groups and applied to the other."""
    number_of_group = {group: number for number, group in enumerate(sorted(set(groups)))}
    half = torch.tensor([number_of_group[group] % 2 == 0 for group in groups])
    probabilities = torch.zeros_like(log_ratios)
    for part in (half, ~half):
        if bool(part.any()) and bool(known[~part].any()):
            fitted = fit_calibration(log_ratios[~part], correct[~part], known[~part])
            probabilities[part] = fitted.probabilities(log_ratios[part])
    return probabilities


def part_name(point_name: str) -> str:
    """Return the part that a point belongs to: its name without a trailing number."""
    return point_name.rstrip("0123456789").rstrip("_ -.") or point_name


def error_by_part(errors: Numbers, names: Sequence[str]) -> Table:
    """Return the errors of each part."""
    rows = []
    for part in dict.fromkeys(map(part_name, names)):
        part_errors = errors[:, [part_name(name) == part for name in names]]
        count = int((~np.isnan(part_errors)).sum())
        if count:
            values = (np.nanmean(part_errors), pck(part_errors, 0.05), pck(part_errors, 0.1))
            point_count = sum(part_name(name) == part for name in names)
            rows.append((part, str(point_count), *(f"{value:.1%}" for value in values), str(count)))
    return Table("By part", ("part", "points", "mean error", "within 5 %", "within 10 %", "n"), tuple(rows))


def error_by_group(errors: Numbers, groups: Sequence[str], word: str, count: int = 10) -> Table:
    """Return the groups with the largest, the median and the smallest error, numbered instead of named."""
    ranked = []
    for group in sorted(set(groups)):
        group_errors = errors[[name == group for name in groups]]
        if not np.isnan(group_errors).all():
            ranked.append((mean_error(group_errors), len(group_errors), pck(group_errors, 0.1)))
    ranked.sort(key=lambda entry: -entry[0])
    shown = [*range(min(count, len(ranked)))]
    shown += [rank for rank in (len(ranked) // 2, len(ranked) - 1) if rank not in shown]
    rows = tuple(
        (f"{rank + 1} of {len(ranked)}", str(ranked[rank][1]), f"{ranked[rank][0]:.1%}", f"{ranked[rank][2]:.1%}")
        for rank in shown
    )
    title = f"By {word}, largest errors first"
    return Table(title, (word, "images", "mean error", "within 10 %"), rows)


def describe_failures(errors: Numbers, confidence: Numbers, names: Sequence[str], tolerance: float) -> tuple[str, ...]:
    """Describe images with large errors, the weakest part and confident mistakes, as far as there are any.

    Args:
        errors: (n, k), NaN where unknown.
        confidence: (n, k).
        names: names of the points.
        tolerance: largest error of a point that counts as correct.
    """
    means = image_errors(errors)
    large, measured = int((means > _LARGE_ERROR).sum()), int((~np.isnan(means)).sum())
    sentences = []
    if large:
        images = "image" if measured == 1 else "images"
        sentences.append(
            f"In {large:,} of {measured:,} validation {images}, the mean error is above {_LARGE_ERROR:.0%}."
        )
    return (
        *sentences,
        *_describe_weakest_part(errors, names),
        *_describe_overconfidence(errors, confidence, tolerance),
    )


def _describe_weakest_part(errors: Numbers, names: Sequence[str]) -> tuple[str, ...]:
    """Name the part with the largest mean error, if there are several parts and it has points beyond 5 %."""
    parts = {part: errors[:, [part_name(name) == part for name in names]] for part in map(part_name, names)}
    known = {part: values[~np.isnan(values)] for part, values in parts.items()}
    annotated = {part: values for part, values in known.items() if len(values)}
    if len(annotated) < 2:
        return ()
    weakest = max(annotated, key=lambda part: float(annotated[part].mean()))
    values = annotated[weakest]
    within = int((values <= 0.05).sum())
    if within == len(values):
        return ()
    return (
        f"The weakest part is {weakest}: its mean error is {values.mean():.1%}, and {within:,} of its {len(values):,} "
        f"{'point is' if len(values) == 1 else 'points are'} within 5 %.",
    )


def _describe_overconfidence(errors: Numbers, confidence: Numbers, tolerance: float) -> tuple[str, ...]:
    """Count the errors among the tenth of the points with the highest confidence."""
    known = ~np.isnan(errors)
    if not known.any():
        return ()
    known_errors, known_confidence = errors[known], confidence[known]
    is_confident = known_confidence >= np.quantile(known_confidence, 0.9)
    count, wrong = int(is_confident.sum()), int((known_errors[is_confident] > tolerance).sum())
    if not wrong:
        return ()
    return (
        f"Of the {count:,} {'point' if count == 1 else 'points'} with the highest confidence "
        f"({known_confidence[is_confident].mean():.2f} on average), {wrong:,} {'has' if wrong == 1 else 'have'} an "
        f"error above {tolerance:.0%}.",
    )
