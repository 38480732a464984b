"""How good a list of recommendations is, and how evenly a catalogue is shown; knows nothing of networks.

Every item that a user has not rated is a candidate: no metric here is sampled.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Lists = NDArray[np.integer]
"""A list of items for each user, the best first: (users, k); -1 where a list is shorter."""


def discounted_gain(lists: Lists, wanted: Sequence[Sequence[int]]) -> NDArray[np.floating]:
    """NDCG of each list, (users,): Σ 1/log2(1 + rank) over the wanted items in it, divided by the most there can be.

    Järvelin and Kekäläinen 2002, "Cumulated gain-based evaluation of IR techniques", with gains of 0 and 1.
    """
    discounts = 1 / np.log2(np.arange(2, lists.shape[1] + 2))
    best = [discounts[: len(set(items))].sum() for items in wanted]
    gains: NDArray[np.floating] = (hits(lists, wanted) @ discounts) / np.array(best)
    return gains


def hits(lists: Lists, wanted: Sequence[Sequence[int]]) -> NDArray[np.bool_]:
    """Which places of the lists hold a wanted item, bool (users, k)."""
    return np.stack([np.isin(row, list(items)) for row, items in zip(lists, wanted, strict=True)])


def found(lists: Lists, wanted: Sequence[Sequence[int]]) -> NDArray[np.bool_]:
    """Which lists hold a wanted item, bool (users,)."""
    return np.array([bool(row.any()) for row in hits(lists, wanted)])


def recall(lists: Lists, wanted: Sequence[Sequence[int]]) -> NDArray[np.floating]:
    """The share of the wanted items that is in each list, (users,)."""
    sizes = np.array([len(set(items)) for items in wanted])
    shares: NDArray[np.floating] = hits(lists, wanted).sum(axis=1) / sizes
    return shares


def hit_rate(lists: Lists, wanted: Sequence[Sequence[int]]) -> float:
    """The share of the lists that hold a wanted item."""
    return float(found(lists, wanted).mean())


def exposure(lists: Lists, items: int) -> NDArray[np.int64]:
    """In how many lists each item is, (items,)."""
    return np.bincount(lists[lists >= 0], minlength=items)


def coverage(shown: NDArray[np.integer]) -> float:
    """The share of the items that is shown to anybody."""
    return float((shown > 0).mean())


def gini(shown: NDArray[np.integer]) -> float:
    """How unevenly items are shown: 0 where all are shown equally often, nearly 1 where one has everything."""
    total = shown.sum()
    if not total:
        return 0.0
    ranks = np.arange(1, len(shown) + 1)
    return float((2 * ranks - len(shown) - 1) @ np.sort(shown) / (len(shown) * total))


def share_of_most_popular(shown: NDArray[np.integer], likes: NDArray[np.integer], share: float) -> float:
    """The share of what is shown that goes to the most popular `share` of the items (one at least)."""
    top = np.argsort(-likes, kind="stable")[: max(1, round(share * len(likes)))]
    return float(shown[top].sum() / max(1, shown.sum()))


def mean_popularity(lists: Lists, likes: NDArray[np.integer]) -> float:
    """How many people like what is recommended, on average."""
    return float(likes[lists[lists >= 0]].mean())


def best_items(scores: NDArray[np.floating], hidden: Sequence[Sequence[int]], k: int) -> Lists:
    """The k items of the highest scores but the hidden ones, (users, k); of equal ones the first. Changes `scores`."""
    for row, items in zip(scores, hidden, strict=True):
        row[list(items)] = -np.inf
    k = min(k, scores.shape[1])
    lists = np.full((len(scores), k), -1)
    for place, row in enumerate(scores):
        least = np.partition(row, -k)[-k]
        best = np.flatnonzero((row >= least) & np.isfinite(row))
        best = best[np.argsort(-row[best], kind="stable")][:k]
        lists[place, : len(best)] = best
    return lists


def interval(values: NDArray[np.floating], *, draws: int = 2_000, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of the mean over users, by bootstrap over them."""
    random = np.random.default_rng(seed)
    means = [values[random.integers(0, len(values), len(values))].mean() for _ in range(draws)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
