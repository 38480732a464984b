"""Co-occurrence as a baseline: "Smart Adaptive Recommendations" (SAR), as in the recommenders library.

The score of an item is its similarity to the items that a user liked, weighted by the user's affinity to these. There
is nothing to learn; the variant is chosen on the same validation items as the network's best epoch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Histories = Sequence[NDArray[np.integer]]
"""Rows of the items that each user liked, the latest last."""


@dataclass(frozen=True)
class SarVariant:
    """A variant of SAR.

    Attributes:
        similarity: of items: jaccard, cosine or count.
        half_life: after how many more liked items the affinity to an item halves; 0: never.
    """

    similarity: str = "jaccard"
    half_life: float = 0.0

    @property
    def description(self) -> str:
        """The variant in words, for a report."""
        decay = f"affinity halves after {self.half_life:g} more items" if self.half_life else "equal affinities"
        return f"{self.similarity}, {decay}"


_HALF_LIVES = (0.0, 20.0, 5.0, 3.0, 2.0, 1.0)
VARIANTS = tuple(SarVariant(kind, half_life) for kind in ("jaccard", "cosine", "count") for half_life in _HALF_LIVES)


def item_similarity(histories: Histories, items: int, kind: str) -> Any:
    """Compute the similarity of items as a sparse matrix (items, items).

    Similarity is the number of users who liked both items: as it is ("count"), divided by the number of users who liked
    either ("jaccard"), or divided by the root of the product of both items' numbers of users ("cosine").
    """
    from scipy.sparse import csr_matrix

    rows = np.concatenate([np.full(len(liked), user) for user, liked in enumerate(histories)])
    columns = np.concatenate(list(histories))
    liked = csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=(len(histories), items))
    both = (liked.T @ liked).tocoo()
    likes = np.asarray(liked.sum(axis=0)).ravel()
    left, right = likes[both.row], likes[both.col]
    if kind == "jaccard":
        both.data = both.data / (left + right - both.data)
    elif kind == "cosine":
        both.data = both.data / np.sqrt(left * right)
    return both.tocsr()


def user_affinity(histories: Histories, items: int, half_life: float) -> Any:
    """Compute the affinity of users to items as a sparse matrix (users, items): 1 for the latest liked item."""
    from scipy.sparse import csr_matrix

    rows = np.concatenate([np.full(len(liked), user) for user, liked in enumerate(histories)])
    ages = np.concatenate([np.arange(len(liked))[::-1] for liked in histories])
    weights = 0.5 ** (ages / half_life) if half_life else np.ones(len(ages))
    shape = (len(histories), items)
    return csr_matrix((weights.astype(np.float32), (rows, np.concatenate(list(histories)))), shape=shape)


def score_items(similarity: Any, histories: Histories, items: int, half_life: float) -> NDArray[np.floating]:
    """Score all items for each user, float32 (users, items)."""
    scores: NDArray[np.floating] = np.asarray((user_affinity(histories, items, half_life) @ similarity).todense())
    return scores
