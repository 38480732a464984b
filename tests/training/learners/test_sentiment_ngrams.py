"""N-grams: their rows in the table, what they learn, and blending them with a network."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks._text import BEGIN, PADDING
from training.evaluation.calibration import fit_blend_weights
from training.learners.sentiment.nbsvm import fit_nbsvm
from training.learners.sentiment.ngram_network import NGramClassifier, NGramHashing, NGrams

VOCABULARY = 30
HASHING = NGramHashing(VOCABULARY, bits=8)
TEXTS = st.lists(st.integers(2, VOCABULARY - 1), max_size=12).map(lambda tokens: np.array([BEGIN, *tokens], np.int32))


def batch(texts: list[np.ndarray], length: int = 16) -> torch.Tensor:
    rows = torch.full((len(texts), length), PADDING)
    for row, text in zip(rows, texts, strict=True):
        row[: len(text)] = torch.from_numpy(text.astype(np.int64))
    return rows


@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_graph_looks_up_the_rows_that_training_counted(texts: list[np.ndarray]) -> None:
    weights = torch.randn(HASHING.row_count, 2, generator=torch.Generator().manual_seed(0))

    (summed,) = NGramClassifier(NGrams(HASHING, weights))(batch(texts))

    expected = torch.stack([weights[HASHING.rows_of(text)].sum(0) / len(text) ** 0.5 for text in texts])
    torch.testing.assert_close(summed, expected)


@given(TEXTS)
def test_each_n_gram_has_a_row(text: np.ndarray) -> None:
    rows = HASHING.rows_of(text)

    assert len(rows) == sum(max(0, len(text) - n) for n in range(3))
    assert ((rows >= 0) & (rows < HASHING.row_count)).all()


def texts_with_pair(order: tuple[int, int], count: int, seed: int) -> list[np.ndarray]:
    """Texts of random tokens with two tokens in this order; only the order tells classes apart."""
    random = np.random.default_rng(seed)
    return [np.array([BEGIN, *random.integers(10, 30, 4), *order, *random.integers(10, 30, 4)]) for _ in range(count)]


def test_pairs_separate_classes_that_single_tokens_do_not() -> None:
    texts = [*texts_with_pair((4, 5), 60, 0), *texts_with_pair((5, 4), 60, 1)]
    network = NGramClassifier(fit_nbsvm(texts, np.repeat([0, 1], 60), 2, HASHING))

    (logits,) = network(batch([*texts_with_pair((4, 5), 20, 2), *texts_with_pair((5, 4), 20, 3)]))

    assert logits.argmax(1).tolist() == [0] * 20 + [1] * 20


def test_three_classes_are_separated() -> None:
    texts = [np.array([BEGIN, label + 4, 20, 21]) for label in range(3) for _ in range(20)]
    network = NGramClassifier(fit_nbsvm(texts, np.repeat([0, 1, 2], 20), 3, HASHING))

    (logits,) = network(batch(texts))

    assert logits.argmax(1).tolist() == np.repeat([0, 1, 2], 20).tolist()


def test_better_part_gets_the_larger_blend_weight() -> None:
    targets = torch.arange(200) % 2
    good = torch.nn.functional.one_hot(targets, 2) * 2.0 + torch.randn(
        200, 2, generator=torch.Generator().manual_seed(0)
    )
    noise = torch.randn(200, 2, generator=torch.Generator().manual_seed(1))

    good_weight, noise_weight = fit_blend_weights([good, noise], targets)

    assert good_weight > 5 * noise_weight
