"""Texts in tokens as samples: a stream for the language model, and batches of like length for the classifier."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from tasks._text import PADDING, pad_tokens
from training.engine.batches import Key, SampleSet, derived_seed
from training.engine.runtime import Batch

Tokens = NDArray[np.int32]
"""(n,), BEGIN first."""


class Stream(SampleSet):
    """All texts one after the other, in another order each epoch, dealt to rows that are read side by side.

    A batch goes on where the last one ended. A sample is a row of a step: `tokens` int64 (n, window + 1), of which
    each but the first is to be predicted, and `begins`, whether nothing came before.
    """

    def __init__(self, texts: Sequence[Tokens], *, rows: int, window: int, seed: int) -> None:
        self.texts, self.seed = texts, seed
        total = sum(map(len, texts))
        self.rows = max(1, min(rows, total // 2))
        self.window = max(1, min(window, total // self.rows - 1))
        self._length = total // self.rows
        self._epoch = -1
        self._table = np.zeros((self.rows, 0), np.int32)

    def __len__(self) -> int:
        return self.steps(self.rows) * self.rows

    def steps(self, batch_size: int) -> int:
        """As many as windows fit into a row."""
        return max(1, (self._length - 1) // self.window)

    def batch_keys(
        self, batch_size: int, *, seed: int, epoch: int, rank: int = 0, world_size: int = 1
    ) -> list[list[Key]]:
        """The rows of each step, in the order of the text."""
        return [
            [(epoch, step * self.rows + row) for row in range(rank, self.rows, world_size)]
            for step in range(self.steps(batch_size))
        ]

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """The windows of these rows, which are of one step."""
        epoch, first = keys[0]
        table = self._of(epoch)
        step = first // self.rows
        rows = [index - step * self.rows for _, index in keys]
        start = step * self.window
        tokens = torch.from_numpy(table[rows, start : start + self.window + 1].astype(np.int64))
        begins = torch.full((len(keys),), step == 0)
        return {"tokens": tokens, "begins": begins, "index": torch.tensor([index for _, index in keys])}

    def _of(self, epoch: int) -> Tokens:
        """The table of an epoch: its texts in an order that follows from seed and epoch."""
        if epoch != self._epoch:
            order = np.random.default_rng(derived_seed(self.seed, epoch)).permutation(len(self.texts))
            joined = np.concatenate([self.texts[i] for i in order])
            self._table = joined[: self.rows * self._length].reshape(self.rows, self._length)
            self._epoch = epoch
        return self._table


def shortened(tokens: Tokens, most: int) -> Tokens:
    """The first quarter and the last three of what may be kept: how a text ends says most of what it thinks."""
    if len(tokens) <= most:
        return tokens
    return np.concatenate([tokens[: most // 4], tokens[-(most - most // 4) :]])


class Labelled(SampleSet):
    """Texts with their labels: `tokens` int64 (n, time), padded to the longest of the batch, and `target` (n,).

    In training, texts of like length share a batch, so that little of it is padding; `most` bounds the length.
    """

    _POOL = 50

    def __init__(self, texts: Sequence[Tokens], targets: Sequence[int], *, most: int = 0) -> None:
        self.texts = [shortened(text, most) if most else text for text in texts]
        self.targets = torch.tensor(list(targets))
        self.lengths = np.array([len(text) for text in self.texts])

    def __len__(self) -> int:
        return len(self.texts)

    def batch_keys(
        self, batch_size: int, *, seed: int, epoch: int, rank: int = 0, world_size: int = 1
    ) -> list[list[Key]]:
        """Random batches of like length: pools of fifty batches are sorted by length, and dealt in random order."""
        random = np.random.default_rng(derived_seed(seed, epoch))
        steps = self.steps(batch_size)
        size = min(batch_size, len(self) // world_size * world_size)
        order = random.permutation(len(self))[: steps * size]
        pool = size * self._POOL
        parts = [order[i : i + pool] for i in range(0, len(order), pool)]
        ranked = np.concatenate([part[np.argsort(self.lengths[part], kind="stable")] for part in parts])
        batches = random.permutation(ranked.reshape(steps, size))
        return [[(epoch, int(index)) for index in batch[rank::world_size]] for batch in batches]

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """The batch of these texts."""
        index = [index for _, index in keys]
        parts = [self.texts[i] for i in index]
        tokens = torch.from_numpy(pad_tokens(parts, max(map(len, parts))))
        return {"tokens": tokens, "target": self.targets[index], "index": torch.tensor(index)}


def counts(texts: Sequence[Tokens], vocabulary: int) -> NDArray[np.int64]:
    """How often each token occurs, int64 (vocabulary,); padding never does."""
    found = np.zeros(vocabulary, np.int64)
    for text in texts:
        found += np.bincount(text, minlength=vocabulary)
    found[PADDING] = 0
    return found
