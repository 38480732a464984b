"""A linear part beside the language model's classifier: weights of single tokens, pairs and triples, by their hash."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import pad

from tasks._text import PADDING

_FIRST, _SECOND = 8_009, 64_168_087
"""Multipliers of the tokens before: odd, and apart from each other."""


@dataclass(frozen=True)
class Hashing:
    """Where n-grams lie in a table: tokens as they are, then 2^bits rows of pairs, then as many of triples."""

    vocabulary: int
    bits: int

    @property
    def rows(self) -> int:
        """Of the table."""
        return self.vocabulary + 2 * (1 << self.bits)

    def places(self, tokens: NDArray[np.integer]) -> NDArray[np.int64]:
        """The rows of all n-grams of one text (time,), without padding: int64 (at most 3 · time,)."""
        now = tokens.astype(np.int64)
        # One less than a power of two: the low bits of a product say little.
        size = (1 << self.bits) - 1
        pairs = self.vocabulary + (now[1:] + now[:-1] * _FIRST) % size
        triples = now[2:] + now[1:-1] * _FIRST + now[:-2] * _SECOND
        return np.concatenate([now, pairs, self.vocabulary + (1 << self.bits) + triples % size])


class NGrams(nn.Module):
    """Adds up the weights of a text's n-grams, over the root of its length."""

    weights: Tensor

    def __init__(self, hashing: Hashing, weights: Tensor) -> None:
        super().__init__()
        self.hashing = hashing
        self.register_buffer("weights", weights)

    def forward(self, tokens: Tensor) -> Tensor:
        """What each token of (n, time), with those before it, adds to each class: (n, time, classes), 0 at padding."""
        hashing, size = self.hashing, (1 << self.hashing.bits) - 1
        before, first = pad(tokens[:, :-1], (1, 0)), pad(tokens[:, :-2], (2, 0))[:, : tokens.shape[1]]
        pairs = hashing.vocabulary + (tokens + before * _FIRST) % size
        triples = tokens + before * _FIRST + first * _SECOND
        rows = torch.stack([tokens, pairs, hashing.vocabulary + (1 << hashing.bits) + triples % size], dim=-1)
        there = tokens != PADDING
        known = torch.stack([there, there & (before != PADDING), there & (first != PADDING)], dim=-1)
        added = (self.weights[rows] * known[..., None]).sum(2)
        return added / there.sum(1).to(added.dtype).sqrt()[:, None, None]


class Summed(nn.Module):
    """What the n-grams of a text add up to, as a classifier of its own."""

    def __init__(self, n_grams: NGrams) -> None:
        super().__init__()
        self.n_grams = n_grams

    def forward(self, tokens: Tensor) -> tuple[Tensor]:
        """Logits (n, classes), but for a constant."""
        return (self.n_grams(tokens).sum(1),)
