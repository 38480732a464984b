"""Metrics of recommendation lists: ranking quality, and how evenly a catalogue is shown.

No metric is sampled: every item that a user has not rated is a candidate.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Lists = NDArray[np.integer]
"""A list of items for each user, the best first: (users, k); -1 after the end of a shorter list."""
Targets = Sequence[Sequence[int]]
"""The items that each user should get."""


def ndcg(lists: Lists, targets: Targets) -> NDArray[np.floating]:
    """Compute the nDCG of each list, (users,): Σ 1/log2(1 + rank) over the targets in it, divided by its maximum.

    Järvelin and Kekäläinen 2002, "Cumulated gain-based evaluation of IR techniques", with gains of 0 and 1.
    """
    discounts = 1 / np.log2(np.arange(2, lists.shape[1] + 2))
    ideal = [discounts[: len(set(items))].sum() for items in targets]
    gains: NDArray[np.floating] = (hit_matrix(lists, targets) @ discounts) / np.array(ideal)
    return gains


def hit_matrix(lists: Lists, targets: Targets) -> NDArray[np.bool_]:
    """Return which places of the lists hold a target, bool (users, k)."""
    return np.stack([np.isin(row, list(items)) for row, items in zip(lists, targets, strict=True)])


def has_hit(lists: Lists, targets: Targets) -> NDArray[np.bool_]:
    """Return which lists hold a target, bool (users,)."""
    return np.array([bool(row.any()) for row in hit_matrix(lists, targets)])


def recall(lists: Lists, targets: Targets) -> NDArray[np.floating]:
    """Compute the fraction of the targets that is in each list, (users,)."""
    counts = np.array([len(set(items)) for items in targets])
    fractions: NDArray[np.floating] = hit_matrix(lists, targets).sum(axis=1) / counts
    return fractions


def hit_rate(lists: Lists, targets: Targets) -> float:
    """Compute the fraction of the lists that hold a target."""
    return float(has_hit(lists, targets).mean())


def exposure(lists: Lists, items: int) -> NDArray[np.int64]:
    """Count how many lists each item is in, (items,)."""
    return np.bincount(lists[lists >= 0], minlength=items)


def coverage(exposures: NDArray[np.integer]) -> float:
    """Compute the fraction of the items that is in any list."""
    return float((exposures > 0).mean())


def gini(exposures: NDArray[np.integer]) -> float:
    """Compute the Gini coefficient: 0 if all items are shown equally often, nearly 1 if only one is shown."""
    total = exposures.sum()
    if not total:
        return 0.0
    ranks = np.arange(1, len(exposures) + 1)
    return float((2 * ranks - len(exposures) - 1) @ np.sort(exposures) / (len(exposures) * total))


def exposure_of_most_popular(exposures: NDArray[np.integer], likes: NDArray[np.integer], fraction: float) -> float:
    """Compute which fraction of the exposure goes to the most popular `fraction` of the items (at least one item)."""
    top = np.argsort(-likes, kind="stable")[: max(1, round(fraction * len(likes)))]
    return float(exposures[top].sum() / max(1, exposures.sum()))


def mean_popularity(lists: Lists, likes: NDArray[np.integer]) -> float:
    """Compute how many users like a recommended item on average."""
    return float(likes[lists[lists >= 0]].mean())


def top_k_items(scores: NDArray[np.floating], hidden: Sequence[Sequence[int]], k: int) -> Lists:
    """Return the k best items of each user that are not hidden, (users, k); the first of equal ones.

    Overwrites the `scores` of hidden items.
    """
    for row, items in zip(scores, hidden, strict=True):
        row[list(items)] = -np.inf
    k = min(k, scores.shape[1])
    lists = np.full((len(scores), k), -1)
    for top, row in zip(lists, scores, strict=True):
        threshold = np.partition(row, -k)[-k]
        best = np.flatnonzero((row >= threshold) & np.isfinite(row))
        best = best[np.argsort(-row[best], kind="stable")][:k]
        top[: len(best)] = best
    return lists


def bootstrap_interval(values: NDArray[np.floating], *, draws: int = 2_000, seed: int = 0) -> tuple[float, float]:
    """Compute the 95 % interval of the mean of `values`, one per user, by bootstrap over the users."""
    random = np.random.default_rng(seed)
    means = [values[random.integers(0, len(values), len(values))].mean() for _ in range(draws)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
