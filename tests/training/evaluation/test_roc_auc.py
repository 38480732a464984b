import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from training.evaluation.roc_auc import compare_roc_auc


def draw(count, noise, seed):
    """Return whether samples are positive, and scores that say so with some noise."""
    random = np.random.default_rng(seed)
    is_positive = random.random(count) < 0.3
    return is_positive, is_positive + random.normal(0, noise, count)


def test_areas_are_those_of_scikit_learn_with_ties_too():
    is_positive, scores = draw(300, 1.0, 0)
    coarse = scores.round()

    comparison = compare_roc_auc("another", scores, coarse, is_positive, "rows")

    assert comparison.value == pytest.approx(roc_auc_score(is_positive, scores))
    assert comparison.other_value == pytest.approx(roc_auc_score(is_positive, coarse))


def test_interval_has_the_coverage_it_states():
    covered = []
    for seed in range(400):
        is_positive, scores = draw(200, 1.0, seed)
        other = is_positive + np.random.default_rng(1000 + seed).normal(0, 1.0, 200)
        low, high = compare_roc_auc("one as good", scores, other, is_positive, "rows").interval
        covered.append(low <= 0 <= high)

    assert np.mean(covered) == pytest.approx(0.95, abs=0.03)


def test_clearly_better_scores_are_surely_better_and_few_samples_are_not():
    is_positive, scores = draw(400, 0.5, 1)
    chance = np.random.default_rng(2).random(400)

    assert compare_roc_auc("chance", scores, chance, is_positive, "rows").verdict == "surely better"
    few = compare_roc_auc("chance", scores[:12], chance[:12], np.arange(12) < 3, "rows")
    assert few.interval == (-math.inf, math.inf)
