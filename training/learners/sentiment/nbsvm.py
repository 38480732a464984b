"""A linear classifier of n-grams on naive Bayes features (Wang and Manning 2012, "Baselines and Bigrams").

Beside a language model's classifier, each corrects errors of the other (Mesnil et al. 2014, "Ensemble of Generative and
Discriminative Techniques for Sentiment Analysis of Movie Reviews").
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.learners.sentiment.dataset import Tokens
from training.learners.sentiment.ngram_network import NGramHashing, NGrams

_INVERSE_PENALTY = 5.0
"""C of the logistic regression."""


def fit_nbsvm(texts: Sequence[Tokens], targets: NDArray[np.integer], classes: int, hashing: NGramHashing) -> NGrams:
    """Fit the weights of n-grams for each class against the others, from training texts (BEGIN first)."""
    features = _features(texts, hashing)
    columns = [_fit_class(features, targets == label) for label in range(1 if classes == 2 else 0, classes)]
    if classes == 2:
        columns = [-columns[0] / 2, columns[0] / 2]
    return NGrams(hashing, torch.from_numpy(np.stack(columns, axis=1).astype(np.float32)))


def _features(texts: Sequence[Tokens], hashing: NGramHashing) -> Any:
    """Count the n-grams of each text, divided by the root of its length: sparse (texts, rows)."""
    from scipy.sparse import csr_matrix

    rows = [hashing.rows_of(text) for text in texts]
    values = np.concatenate([np.full(len(r), len(t) ** -0.5, np.float32) for r, t in zip(rows, texts, strict=True)])
    bounds = np.cumsum([0, *map(len, rows)])
    features = csr_matrix((values, np.concatenate(rows), bounds), shape=(len(texts), hashing.row_count))
    features.sum_duplicates()
    return features


def _fit_class(features: Any, members: NDArray[np.bool_]) -> NDArray[np.floating]:
    """Fit the weights of one class: a regression on n-grams scaled by their log-count ratio."""
    from sklearn.linear_model import LogisticRegression

    present = features.astype(bool)
    inside, outside = (1.0 + np.asarray(present[rows].sum(axis=0)).ravel() for rows in (members, ~members))
    ratio = np.log((inside / inside.sum()) / (outside / outside.sum()))
    scaled = features.multiply(ratio[None]).tocsr()
    regression = LogisticRegression(C=_INVERSE_PENALTY, solver="liblinear", dual=True, max_iter=500, random_state=0)
    regression.fit(scaled, members)
    weights: NDArray[np.floating] = ratio * regression.coef_[0]
    return weights
