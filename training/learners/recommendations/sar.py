"""What every recommender is measured against: popularity, and items that were liked together (SAR).

"Smart Adaptive Recommendations" as in the recommenders library: the affinity of a user to items times the similarity
of items. It has no parameters to learn; those to choose are chosen on the same validation items as the network's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Histories = Sequence[NDArray[np.integer]]
"""What each user liked, the latest last, by rows of the table."""


@dataclass(frozen=True)
class Sar:
    """A variant: how items are alike, and after how many liked items one counts half (0: all count alike)."""

    similarity: str = "jaccard"
    half_life: float = 0.0

    @property
    def words(self) -> str:
        """For a table."""
        decay = f"an item counts half after {self.half_life:g} more" if self.half_life else "all count alike"
        return f"{self.similarity}, {decay}"


_HALF_LIVES = (0.0, 20.0, 5.0, 3.0, 2.0, 1.0)
VARIANTS = tuple(Sar(kind, half) for kind in ("jaccard", "cosine", "count") for half in _HALF_LIVES)


def similarities(trained: Histories, items: int, kind: str) -> Any:
    """A sparse matrix (items, items) from what people liked together: their number, or that divided.

    jaccard: by how many liked either; cosine: by the root of the product of how many liked each.
    """
    from scipy.sparse import csr_matrix

    rows = np.concatenate([np.full(len(liked), user) for user, liked in enumerate(trained)])
    columns = np.concatenate(list(trained))
    liked = csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=(len(trained), items))
    together = (liked.T @ liked).tocoo()
    each = np.asarray(liked.sum(axis=0)).ravel()
    left, right = each[together.row], each[together.col]
    if kind == "jaccard":
        together.data = together.data / (left + right - together.data)
    elif kind == "cosine":
        together.data = together.data / np.sqrt(left * right)
    return together.tocsr()


def affinities(asked: Histories, items: int, half_life: float) -> Any:
    """A sparse matrix (users, items): 1 for the latest liked item, and less for earlier ones."""
    from scipy.sparse import csr_matrix

    rows = np.concatenate([np.full(len(liked), user) for user, liked in enumerate(asked)])
    ages = np.concatenate([np.arange(len(liked))[::-1] for liked in asked])
    weights = 0.5 ** (ages / half_life) if half_life else np.ones(len(ages))
    return csr_matrix((weights.astype(np.float32), (rows, np.concatenate(list(asked)))), shape=(len(asked), items))


def scores(similarity: Any, asked: Histories, items: int, half_life: float) -> NDArray[np.floating]:
    """How much each user is expected to like each item, float32 (users, items)."""
    found: NDArray[np.floating] = np.asarray((affinities(asked, items, half_life) @ similarity).todense())
    return found
