"""Figures for points: errors relative to the size of what was marked, and how far confidences are frequencies."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from training.core.results import Table
from training.evaluation.calibration import BINS

Numbers = NDArray[np.floating]
_RIDGE = 1e-3
"""Pull of each point's offset toward the common one: a point whose answers are all right would ask for infinity."""


def sizes_of(points: Sequence[Numbers], between: tuple[int, int] | None, longest: Sequence[int]) -> Numbers:
    """What errors are relative to, in pixels (n,): the distance of two points, or the diagonal of the box around all.

    A single point has no size: there it is the picture's longer side (`longest`). NaN where it cannot be told.
    """
    found = []
    for each, side in zip(points, longest, strict=True):
        known = each[~np.isnan(each).any(axis=1)]
        if between is not None:
            size = float(np.linalg.norm(each[between[0]] - each[between[1]]))
        else:
            size = float(np.linalg.norm(np.ptp(known, axis=0))) if len(each) > 1 else float(side)
        found.append(size if size >= 1 else np.nan)
    return np.array(found)


def relative_errors(found: Numbers, points: Numbers, sizes: Numbers) -> Numbers:
    """Distances (n, k) of points (n, k, 2), in shares of the sizes (n,); NaN where a point or a size is not known."""
    distances: Numbers = np.linalg.norm(found - points, axis=2) / sizes[:, np.newaxis]
    return distances


def mean_error(errors: Numbers) -> float:
    """The mean over pictures of each one's mean over its known points."""
    counted = ~np.isnan(errors)
    measured = counted.any(axis=1)
    sums, counts = np.nansum(errors[measured], axis=1), counted[measured].sum(axis=1)
    return float((sums / counts).mean()) if measured.any() else float("nan")


def share_within(errors: Numbers, share: float) -> float:
    """The share of the known points whose error is at most `share` (PCK)."""
    known = errors[~np.isnan(errors)]
    return float((known <= share).mean()) if known.size else float("nan")


def interval(errors: Numbers, groups: Sequence[str], draws: int = 1000) -> tuple[float, float]:
    """The 95 % interval of the mean error, by a bootstrap over groups: pictures of one person resemble each other."""
    counted = (~np.isnan(errors)).any(axis=1)
    each = np.nanmean(errors[counted], axis=1)
    _, places = np.unique(np.asarray(groups)[counted], return_inverse=True)
    sums, counts = np.bincount(places, each), np.bincount(places)
    drawn = np.random.default_rng(0).integers(0, len(sums), (draws, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True)
class Calibration:
    """A logistic of nearness: `slope`, and an offset for each point, float32 (k,)."""

    slope: float
    offsets: Tensor

    def probabilities(self, nearness: Tensor) -> Tensor:
        """Nearness (n, k) to probabilities (n, k)."""
        return (self.slope * nearness + self.offsets).sigmoid()


def calibrated(nearness: Tensor, right: Tensor, known: Tensor) -> Calibration:
    """The logistic under which these answers are likeliest, by Newton-like steps; all tensors (n, k).

    `right` says which points were near enough, `known` which can be told. The offsets are drawn a little toward their
    mean.
    """
    exact, wanted = nearness.double()[known], right.double()[known]
    point = torch.arange(nearness.shape[1]).expand_as(nearness)[known]
    slope = torch.ones((), dtype=torch.float64, requires_grad=True)
    common = torch.zeros((), dtype=torch.float64, requires_grad=True)
    own = torch.zeros(nearness.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([slope, common, own], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = slope * exact + common + own[point]
        loss = binary_cross_entropy_with_logits(logits, wanted)
        loss = loss + _RIDGE * (own.pow(2).mean() + slope.pow(2) + 0.1 * common.pow(2))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    offsets = (common + own).detach().float()
    if not (bool(offsets.isfinite().all()) and bool(slope.isfinite())):
        return Calibration(1.0, torch.zeros(nearness.shape[1]))
    return Calibration(float(slope.detach()), offsets)


def reliability(probabilities: Numbers, right: NDArray[np.bool_], bins: int = BINS) -> list[tuple[float, float, int]]:
    """(mean probability, share that is right, count) of each bin of equal width that holds points; both (m,)."""
    places = np.minimum((probabilities * bins).astype(int), bins - 1)
    members = [places == i for i in range(bins)]
    return [(float(probabilities[m].mean()), float(right[m].mean()), int(m.sum())) for m in members if m.any()]


def calibration_error(probabilities: Numbers, right: NDArray[np.bool_]) -> float:
    """The mean distance of probability and frequency over the bins, weighted by their counts."""
    found = reliability(probabilities, right)
    return sum(abs(said - was) * count for said, was, count in found) / max(1, len(right))


def cross_fitted(nearness: Tensor, right: Tensor, known: Tensor, groups: Sequence[str]) -> Tensor:
    """Probabilities (n, k), each by a logistic fitted on the other half of the groups."""
    order = {group: number for number, group in enumerate(sorted(set(groups)))}
    half = torch.tensor([order[group] % 2 == 0 for group in groups])
    found = torch.zeros_like(nearness)
    for mine in (half, ~half):
        if bool(mine.any()) and bool(known[~mine].any()):
            fit = calibrated(nearness[~mine], right[~mine], known[~mine])
            found[mine] = fit.probabilities(nearness[mine])
    return found


def part_of(name: str) -> str:
    """The part that a point belongs to: its name without a number at the end."""
    return name.rstrip("0123456789").rstrip("_ -.") or name


def by_part(errors: Numbers, names: Sequence[str]) -> Table:
    """Errors of each group of points."""
    rows = []
    for part in dict.fromkeys(map(part_of, names)):
        mine = errors[:, [part_of(name) == part for name in names]]
        count = int((~np.isnan(mine)).sum())
        if count:
            figures = [
                f"{value:.1%}" for value in (np.nanmean(mine), share_within(mine, 0.05), share_within(mine, 0.1))
            ]
            rows.append((part, str(sum(part_of(name) == part for name in names)), *figures, str(count)))
    return Table("By part", ("part", "points", "mean error", "within 5 %", "within 10 %", "n"), tuple(rows))


def by_group(errors: Numbers, groups: Sequence[str], word: str, count: int = 10) -> Table:
    """The groups with the largest errors and the one in the middle, numbered and not named."""
    ranked = []
    for group in sorted(set(groups)):
        mine = errors[[other == group for other in groups]]
        if not np.isnan(mine).all():
            ranked.append((mean_error(mine), len(mine), share_within(mine, 0.1)))
    ranked.sort(key=lambda entry: -entry[0])
    shown = [*range(min(count, len(ranked)))]
    shown += [place for place in (len(ranked) // 2, len(ranked) - 1) if place not in shown]
    rows = tuple(
        (f"{place + 1} of {len(ranked)}", str(ranked[place][1]), f"{ranked[place][0]:.1%}", f"{ranked[place][2]:.1%}")
        for place in shown
    )
    title = f"By {word}, the largest errors first"
    return Table(title, (word, "pictures", "mean error", "within 10 %"), rows)
