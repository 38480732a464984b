"""Counting as a language model: its probabilities add up to one, and it predicts what it has seen."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.learners.sentiment.ngram_baseline import Predicted, bigram, language_table, unigram

VOCABULARY = 6
TOKENS = st.lists(st.integers(0, VOCABULARY - 1), min_size=2, max_size=60).map(np.array)


@settings(max_examples=60, deadline=None)
@given(TOKENS, st.integers(0, VOCABULARY - 1), st.sampled_from([unigram, bigram]))
def test_the_probabilities_of_what_may_follow_add_up_to_one(train, before, model) -> None:
    shares = [1 / model(train, np.array([before, after]), VOCABULARY).perplexity for after in range(VOCABULARY)]

    assert sum(shares) == pytest.approx(1)


@settings(max_examples=60, deadline=None)
@given(TOKENS, st.integers(0, VOCABULARY - 1))
def test_the_likeliest_is_the_one_of_the_largest_probability(train, before) -> None:
    found = [bigram(train, np.array([before, after]), VOCABULARY) for after in range(VOCABULARY)]

    best = max(1 / each.perplexity for each in found)
    (chosen,) = [each for each in found if each.accuracy]
    assert 1 / chosen.perplexity == pytest.approx(best)


def test_a_bigram_knows_what_follows_and_a_unigram_what_is_frequent() -> None:
    train = np.tile([0, 1, 0, 2, 3], 200)

    assert unigram(train, train, VOCABULARY).accuracy == pytest.approx(0.4, abs=0.01)
    assert bigram(train, train, VOCABULARY).accuracy == pytest.approx(0.8, abs=0.01)
    assert bigram(train, train, VOCABULARY).perplexity < 1.5 < unigram(train, train, VOCABULARY).perplexity


def test_the_table_shows_the_model_beside_both() -> None:
    texts = [np.array([1, 2, 3, 2]), np.array([1, 2])]

    table = language_table({"language model": Predicted(3.21, 0.5)}, texts, texts, VOCABULARY)

    assert [row[0] for row in table.rows] == ["language model", "bigram, Kneser and Ney", "unigram"]
    assert table.rows[0][1:] == ("3.2", "50.0%")
    assert "the 6 tokens" in table.note
