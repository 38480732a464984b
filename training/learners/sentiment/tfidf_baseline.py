"""What a classifier of texts is shown beside: tf-idf of words and pairs of words, and logistic regression on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.splits import validation_split

_STRENGTHS = (1.0, 3.0, 10.0, 30.0)
_INNER_SHARE = 0.15


@dataclass(frozen=True)
class Baseline:
    """Its probabilities of the validation texts, float64 (n, classes), and how it was made, in words."""

    probabilities: NDArray[np.floating]
    words: str


def tf_idf(
    texts: Sequence[str], labels: Sequence[int], groups: Sequence[str], valid: Sequence[str], classes: int
) -> Baseline:
    """Learns from the same texts, and chooses the strength of its penalty on a part of them, by their groups."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    least = 2 if len(texts) > 1000 else 1
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=least, strip_accents="unicode")
    features = vectors.fit_transform(texts)
    targets, inner = np.array(labels), np.array(validation_split(groups, labels, _INNER_SHARE))
    strength = _STRENGTHS[2]
    if inner.any() and len(set(targets[~inner].tolist())) > 1:
        known, new = features[~inner], features[inner]
        scores = {
            each: float((_fitted(known, targets[~inner], each).predict(new) == targets[inner]).mean())
            for each in _STRENGTHS
        }
        strength = max(scores, key=lambda each: scores[each])
    regression = _fitted(features, targets, strength)
    probabilities: NDArray[np.floating] = np.zeros((len(valid), classes))
    probabilities[:, regression.classes_] = regression.predict_proba(vectors.transform(valid))
    words = (
        f"tf-idf of {features.shape[1]:,} words and pairs of words, sublinear, and logistic regression with C = "
        f"{strength:g}, chosen on {_INNER_SHARE:.0%} of the training texts"
    )
    return Baseline(probabilities, words)


def _fitted(features: Any, targets: NDArray[np.integer], strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    two = len(set(targets.tolist())) == 2
    solver = "liblinear" if two else "lbfgs"
    return LogisticRegression(C=strength, solver=solver, dual=two, max_iter=1000, random_state=0).fit(features, targets)
