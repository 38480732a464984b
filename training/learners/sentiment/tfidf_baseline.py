"""Logistic regression on tf-idf of words and word pairs: the baseline for a text classifier."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.hash_split import validation_split

_INVERSE_PENALTIES = (1.0, 3.0, 10.0, 30.0)
_DEFAULT_INVERSE_PENALTY = 10.0
_TUNING_FRACTION = 0.15


@dataclass(frozen=True)
class Baseline:
    """Probabilities of the validation texts, float64 (n, classes), and a description of the model."""

    probabilities: NDArray[np.floating]
    description: str


def fit_tfidf(
    texts: Sequence[str], labels: Sequence[int], groups: Sequence[str], valid: Sequence[str], classes: int
) -> Baseline:
    """Train on the training texts, with a penalty chosen on groups held out of them, and predict the valid ones."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    min_count = 2 if len(texts) > 1000 else 1
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=min_count, strip_accents="unicode")
    features = vectorizer.fit_transform(texts)
    targets, held_out = np.array(labels), np.array(validation_split(groups, labels, _TUNING_FRACTION))
    best = _DEFAULT_INVERSE_PENALTY
    if held_out.any() and len(set(targets[~held_out].tolist())) > 1:
        inner, inner_targets = features[~held_out], targets[~held_out]
        accuracies = {}
        for c in _INVERSE_PENALTIES:
            predicted = _fit_regression(inner, inner_targets, c).predict(features[held_out])
            accuracies[c] = float((predicted == targets[held_out]).mean())
        best = max(accuracies, key=lambda c: accuracies[c])
    regression = _fit_regression(features, targets, best)
    probabilities: NDArray[np.floating] = np.zeros((len(valid), classes))
    probabilities[:, regression.classes_] = regression.predict_proba(vectorizer.transform(valid))
    description = (
        f"tf-idf of {features.shape[1]:,} words and word pairs, sublinear, and logistic regression with C = {best:g}, "
        f"chosen on {_TUNING_FRACTION:.0%} of the training texts"
    )
    return Baseline(probabilities, description)


def _fit_regression(features: Any, targets: NDArray[np.integer], inverse_penalty: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    binary = len(set(targets.tolist())) == 2
    solver = "liblinear" if binary else "lbfgs"
    regression = LogisticRegression(C=inverse_penalty, solver=solver, dual=binary, max_iter=1000, random_state=0)
    return regression.fit(features, targets)
