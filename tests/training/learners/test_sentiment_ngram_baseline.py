"""Unigram and bigram language models: their probabilities sum to one, and they predict what they have seen."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.learners.sentiment.ngram_baseline import (
    LanguageModelScores,
    language_model_table,
    score_bigram,
    score_unigram,
)

VOCABULARY = 6
TOKENS = st.lists(st.integers(0, VOCABULARY - 1), min_size=2, max_size=60).map(np.array)


@settings(max_examples=60, deadline=None)
@given(TOKENS, st.integers(0, VOCABULARY - 1), st.sampled_from([score_unigram, score_bigram]))
def test_probabilities_of_the_next_token_sum_to_one(train, previous, score) -> None:
    probabilities = [
        1 / score(train, np.array([previous, following]), VOCABULARY).perplexity for following in range(VOCABULARY)
    ]

    assert sum(probabilities) == pytest.approx(1)


@settings(max_examples=60, deadline=None)
@given(TOKENS, st.integers(0, VOCABULARY - 1))
def test_most_likely_token_has_the_largest_probability(train, previous) -> None:
    scores = [score_bigram(train, np.array([previous, following]), VOCABULARY) for following in range(VOCABULARY)]

    best = max(1 / score.perplexity for score in scores)
    (most_likely,) = [score for score in scores if score.accuracy]
    assert 1 / most_likely.perplexity == pytest.approx(best)


def test_bigram_predicts_what_follows_and_unigram_what_is_frequent() -> None:
    train = np.tile([0, 1, 0, 2, 3], 200)

    assert score_unigram(train, train, VOCABULARY).accuracy == pytest.approx(0.4, abs=0.01)
    assert score_bigram(train, train, VOCABULARY).accuracy == pytest.approx(0.8, abs=0.01)
    assert score_bigram(train, train, VOCABULARY).perplexity < 1.5 < score_unigram(train, train, VOCABULARY).perplexity


def test_table_shows_the_model_beside_both_baselines() -> None:
    texts = [np.array([1, 2, 3, 2]), np.array([1, 2])]

    table = language_model_table({"language model": LanguageModelScores(3.21, 0.5)}, texts, texts, VOCABULARY)

    assert [row[0] for row in table.rows] == ["language model", "bigram, Kneser-Ney", "unigram"]
    assert table.rows[0][1:] == ("3.2", "50.0%")
    assert "the 6 tokens" in table.note
