"""Weights of n-grams: naive Bayes in a linear classifier (Wang and Manning 2012, "Baselines and Bigrams").

With a language model's classifier beside it, each makes up for what the other misses (Mesnil et al. 2014, "Ensemble of
Generative and Discriminative Techniques for Sentiment Analysis of Movie Reviews").
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.learners.sentiment.dataset import Tokens
from training.learners.sentiment.ngram_network import Hashing, NGrams

_STRENGTH = 5.0
"""C of the logistic regression: the inverse of its penalty."""


def fitted(texts: Sequence[Tokens], targets: NDArray[np.integer], classes: int, hashing: Hashing) -> NGrams:
    """N-grams weighted for each class against the others, from training texts (BEGIN first)."""
    features = _features(texts, hashing)
    columns = [_column(features, targets == label) for label in range(1 if classes == 2 else 0, classes)]
    if classes == 2:
        columns = [-columns[0] / 2, columns[0] / 2]
    return NGrams(hashing, torch.from_numpy(np.stack(columns, axis=1).astype(np.float32)))


def _features(texts: Sequence[Tokens], hashing: Hashing) -> Any:
    """How often each text has each n-gram, over the root of its length: sparse (texts, rows)."""
    from scipy.sparse import csr_matrix

    places = [hashing.places(text) for text in texts]
    values = np.concatenate([np.full(len(p), len(t) ** -0.5, np.float32) for p, t in zip(places, texts, strict=True)])
    bounds = np.cumsum([0, *map(len, places)])
    found = csr_matrix((values, np.concatenate(places), bounds), shape=(len(texts), hashing.rows))
    found.sum_duplicates()
    return found


def _column(features: Any, members: NDArray[np.bool_]) -> NDArray[np.floating]:
    """The weights of one class: those of a regression on n-grams scaled by how much oftener its texts have them."""
    from sklearn.linear_model import LogisticRegression

    there = features.astype(bool)
    inside, outside = (1.0 + np.asarray(there[rows].sum(axis=0)).ravel() for rows in (members, ~members))
    ratio = np.log((inside / inside.sum()) / (outside / outside.sum()))
    scaled = features.multiply(ratio[None]).tocsr()
    regression = LogisticRegression(C=_STRENGTH, solver="liblinear", dual=True, max_iter=500, random_state=0)
    regression.fit(scaled, members)
    weights: NDArray[np.floating] = ratio * regression.coef_[0]
    return weights
