"""Weighted n-grams: their places, what they learn, and that they add up."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks._text import BEGIN, PADDING
from training.evaluation.calibration import fit_blend_weights
from training.learners.sentiment import nbsvm
from training.learners.sentiment.ngram_network import Hashing, NGrams, Summed

VOCABULARY = 30
HASHING = Hashing(VOCABULARY, bits=8)
TEXTS = st.lists(st.integers(2, VOCABULARY - 1), max_size=12).map(lambda tokens: np.array([BEGIN, *tokens], np.int32))


def batch(texts: list[np.ndarray], length: int = 16) -> torch.Tensor:
    rows = torch.full((len(texts), length), PADDING)
    for row, text in zip(rows, texts, strict=True):
        row[: len(text)] = torch.from_numpy(text.astype(np.int64))
    return rows


@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_the_graph_looks_up_the_rows_that_training_counted(texts: list[np.ndarray]) -> None:
    weights = torch.randn(HASHING.rows, 2, generator=torch.Generator().manual_seed(0))

    (summed,) = Summed(NGrams(HASHING, weights))(batch(texts))

    expected = torch.stack([weights[HASHING.places(text)].sum(0) / len(text) ** 0.5 for text in texts])
    torch.testing.assert_close(summed, expected)


@given(TEXTS)
def test_every_n_gram_has_a_row(text: np.ndarray) -> None:
    places = HASHING.places(text)

    assert len(places) == sum(max(0, len(text) - n) for n in range(3))
    assert ((places >= 0) & (places < HASHING.rows)).all()


def sides(order: tuple[int, int], count: int, seed: int) -> list[np.ndarray]:
    """Texts whose side is told by which of two tokens comes first, and by no token alone."""
    random = np.random.default_rng(seed)
    return [np.array([BEGIN, *random.integers(10, 30, 4), *order, *random.integers(10, 30, 4)]) for _ in range(count)]


def test_pairs_tell_what_single_tokens_do_not() -> None:
    texts = [*sides((4, 5), 60, 0), *sides((5, 4), 60, 1)]
    network = Summed(nbsvm.fitted(texts, np.repeat([0, 1], 60), 2, HASHING))

    (logits,) = network(batch([*sides((4, 5), 20, 2), *sides((5, 4), 20, 3)]))

    assert logits.argmax(1).tolist() == [0] * 20 + [1] * 20


def test_three_classes_are_each_told_from_the_others() -> None:
    texts = [np.array([BEGIN, label + 4, 20, 21]) for label in range(3) for _ in range(20)]
    network = Summed(nbsvm.fitted(texts, np.repeat([0, 1, 2], 20), 3, HASHING))

    (logits,) = network(batch(texts))

    assert logits.argmax(1).tolist() == np.repeat([0, 1, 2], 20).tolist()


def test_of_two_parts_the_better_one_counts_for_more() -> None:
    targets = torch.arange(200) % 2
    good = torch.nn.functional.one_hot(targets, 2) * 2.0 + torch.randn(
        200, 2, generator=torch.Generator().manual_seed(0)
    )
    noise = torch.randn(200, 2, generator=torch.Generator().manual_seed(1))

    of_good, of_noise = fit_blend_weights([good, noise], targets)

    assert of_good > 5 * of_noise
