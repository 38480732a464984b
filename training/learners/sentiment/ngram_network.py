"""A linear classifier of hashed n-grams (single tokens, pairs and triples) that the exported graph contains."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import pad

from tasks._text import PADDING

_PREVIOUS, _SECOND_PREVIOUS = 8_009, 64_168_087
"""Multipliers of the previous token and of the one before it: odd, and far apart."""


@dataclass(frozen=True)
class NGramHashing:
    """Maps n-grams to rows of a table: one per token, then 2^bits for pairs, then as many for triples."""

    vocabulary: int
    bits: int

    @property
    def row_count(self) -> int:
        """How many rows the table has."""
        return self.vocabulary + 2 * (1 << self.bits)

    def rows_of(self, tokens: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the rows of all n-grams of one text (time,), without padding: int64 (at most 3 · time,)."""
        now = tokens.astype(np.int64)
        # One less than a power of two: the low bits of a product carry little information.
        size = (1 << self.bits) - 1
        pairs = self.vocabulary + (now[1:] + now[:-1] * _PREVIOUS) % size
        triples = now[2:] + now[1:-1] * _PREVIOUS + now[:-2] * _SECOND_PREVIOUS
        return np.concatenate([now, pairs, self.vocabulary + (1 << self.bits) + triples % size])


class NGrams(nn.Module):
    """Adds up the weights of a text's n-grams, divided by the root of its length."""

    weights: Tensor

    def __init__(self, hashing: NGramHashing, weights: Tensor) -> None:
        """`weights` is float32 (rows, classes)."""
        super().__init__()
        self.hashing = hashing
        self.register_buffer("weights", weights)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (n, time) to what the n-grams that end at each add to each class, (n, time, classes).

        It is 0 at padding.
        """
        hashing, size = self.hashing, (1 << self.hashing.bits) - 1
        previous, second = pad(tokens[:, :-1], (1, 0)), pad(tokens[:, :-2], (2, 0))[:, : tokens.shape[1]]
        pairs = hashing.vocabulary + (tokens + previous * _PREVIOUS) % size
        triples = tokens + previous * _PREVIOUS + second * _SECOND_PREVIOUS
        rows = torch.stack([tokens, pairs, hashing.vocabulary + (1 << hashing.bits) + triples % size], dim=-1)
        is_token = tokens != PADDING
        exists = torch.stack([is_token, is_token & (previous != PADDING), is_token & (second != PADDING)], dim=-1)
        added = (self.weights[rows] * exists[..., None]).sum(2)
        return added / is_token.sum(1).to(added.dtype).sqrt()[:, None, None]


class NGramClassifier(nn.Module):
    """The n-grams as a classifier of their own."""

    def __init__(self, n_grams: NGrams) -> None:
        super().__init__()
        self.n_grams = n_grams

    def forward(self, tokens: Tensor) -> tuple[Tensor]:
        """Map tokens (n, time) to logits (n, classes), up to a constant."""
        return (self.n_grams(tokens).sum(1),)
