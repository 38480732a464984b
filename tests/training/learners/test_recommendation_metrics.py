"""Metrics of recommendation lists, and co-occurrence as a baseline."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.learners.recommendations import metrics, sar_baseline
from training.learners.recommendations.sar_baseline import SarVariant


def test_ndcg_recall_and_hit_rate_follow_their_formulas():
    lists = np.array([[7, 3, 9], [1, 2, 3], [4, -1, -1]])
    targets = [[3], [1, 3, 8, 9], [5]]

    ndcg = metrics.ndcg(lists, targets)

    ideal = 1 + 1 / math.log2(3) + 1 / 2
    assert ndcg.tolist() == pytest.approx([1 / math.log2(3), (1 + 1 / 2) / ideal, 0])
    assert metrics.recall(lists, targets).tolist() == [1, 0.5, 0]
    assert metrics.hit_rate(lists, targets) == pytest.approx(2 / 3)


def test_exposure_coverage_and_gini_follow_their_formulas():
    exposures = metrics.exposure(np.array([[0, 1], [0, 2], [0, -1]]), 4)

    assert exposures.tolist() == [3, 1, 1, 0]
    assert metrics.coverage(exposures) == 0.75
    # Of sorted 0, 1, 1, 3: (-3·0 - 1·1 + 1·1 + 3·3) / (4·5).
    assert metrics.gini(exposures) == pytest.approx(9 / 20)
    assert metrics.gini(np.full(9, 4)) == pytest.approx(0)
    assert metrics.exposure_of_most_popular(exposures, np.array([1, 9, 2, 3]), 0.25) == pytest.approx(1 / 5)
    assert metrics.mean_popularity(np.array([[0, 1], [2, -1]]), np.array([3, 6, 9])) == 6


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30))
def test_gini_lies_between_zero_and_one(counts):
    assert -1e-9 <= metrics.gini(np.array(counts)) < 1


def test_top_items_exclude_hidden_ones_and_prefer_the_first_of_equal_ones():
    scores = np.array([[5.0, 1, 5, 9, 1], [0, 0, 0, 0, 0]])

    assert metrics.top_k_items(scores, [[3], [1, 2, 3]], 3).tolist() == [[0, 2, 1], [0, 4, -1]]


def test_similarity_and_affinity_follow_their_formulas():
    histories = [np.array([0, 1]), np.array([0, 1, 2]), np.array([0])]

    count = sar_baseline.item_similarity(histories, 4, "count").todense()
    jaccard = sar_baseline.item_similarity(histories, 4, "jaccard").todense()
    affinity = sar_baseline.user_affinity([np.array([2, 0, 1])], 4, 2.0).todense()

    assert count[0].tolist() == [[3, 2, 1, 0]]
    assert jaccard[0].tolist() == [pytest.approx([1, 2 / 3, 1 / 3, 0])]
    assert affinity.tolist() == [pytest.approx([0.5**0.5, 1, 0.5, 0])]
    assert SarVariant("jaccard", 2.0).description == "jaccard, affinity halves after 2 more items"
