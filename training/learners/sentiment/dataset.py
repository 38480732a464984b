"""Tokenized texts as samples: a stream for the language model, and batches of similar length for the classifier."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from tasks._text import PADDING, pad_tokens
from training.engine.batches import Key, SampleSet, derived_seed, global_batch_size
from training.engine.runtime import Batch

Tokens = NDArray[np.int32]
"""(n,), BEGIN first."""


class Stream(SampleSet):
    """All texts joined, in a new order each epoch, and cut into rows that are read in parallel.

    A batch continues where the previous one ended. A sample is a row of a step: `tokens` int64 (n, window + 1), each
    but the first to be predicted, and `begins`, whether nothing came before.
    """

    def __init__(self, texts: Sequence[Tokens], *, rows: int, window: int, seed: int) -> None:
        self.texts, self.seed = texts, seed
        total = sum(map(len, texts))
        self.rows = max(1, min(rows, total // 2))
        self.window = max(1, min(window, total // self.rows - 1))
        self._row_length = total // self.rows
        self._epoch = -1
        self._table = np.zeros((self.rows, 0), np.int32)

    def __len__(self) -> int:
        return self.steps(self.rows) * self.rows

    def steps(self, batch_size: int) -> int:
        """Return how many windows fit into a row."""
        return max(1, (self._row_length - 1) // self.window)

    def batch_keys(
        self, batch_size: int, *, seed: int, epoch: int, rank: int = 0, world_size: int = 1
    ) -> list[list[Key]]:
        """Return the keys of each step's rows, in the order of the text."""
        return [
            [(epoch, step * self.rows + row) for row in range(rank, self.rows, world_size)]
            for step in range(self.steps(batch_size))
        ]

    def sequential_keys(self, batch_size: int, *, rank: int = 0, world_size: int = 1) -> list[list[Key]]:
        """Return the keys of each step's rows: a process reads its rows from step to step, and no others."""
        keys = self.batch_keys(batch_size, seed=0, epoch=0, rank=rank, world_size=world_size)
        return [step for step in keys if step]

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """Return the windows of these rows, which must belong to one step."""
        epoch, first = keys[0]
        table = self._epoch_table(epoch)
        step = first // self.rows
        rows = [index - step * self.rows for _, index in keys]
        start = step * self.window
        tokens = torch.from_numpy(table[rows, start : start + self.window + 1].astype(np.int64))
        begins = torch.full((len(keys),), step == 0)
        return {"tokens": tokens, "begins": begins, "index": torch.tensor([index for _, index in keys])}

    def _epoch_table(self, epoch: int) -> Tokens:
        """Return the rows of an epoch, (rows, row length); the order of texts depends on the seed and the epoch."""
        if epoch != self._epoch:
            order = np.random.default_rng(derived_seed(self.seed, epoch)).permutation(len(self.texts))
            tokens = np.concatenate([self.texts[i] for i in order])
            self._table = tokens[: self.rows * self._row_length].reshape(self.rows, self._row_length)
            self._epoch = epoch
        return self._table


def truncate_middle(tokens: Tokens, max_tokens: int) -> Tokens:
    """Keep a quarter of `max_tokens` from the beginning and the rest from the end, which says most of the opinion."""
    if len(tokens) <= max_tokens:
        return tokens
    return np.concatenate([tokens[: max_tokens // 4], tokens[-(max_tokens - max_tokens // 4) :]])


class LabelledTexts(SampleSet):
    """Texts with their labels: `tokens` int64 (n, time), padded to the longest of the batch, and `target` (n,).

    In training, texts of similar length share a batch, so that there is little padding. Texts longer than `max_tokens`
    are truncated; 0: none is.
    """

    _POOL_BATCHES = 50

    def __init__(self, texts: Sequence[Tokens], targets: Sequence[int], *, max_tokens: int = 0) -> None:
        self.texts = [truncate_middle(text, max_tokens) if max_tokens else text for text in texts]
        self.targets = torch.tensor(list(targets))
        self.lengths = np.array([len(text) for text in self.texts])

    def __len__(self) -> int:
        return len(self.texts)

    def batch_keys(
        self, batch_size: int, *, seed: int, epoch: int, rank: int = 0, world_size: int = 1
    ) -> list[list[Key]]:
        """Return random batches of similar length: pools of fifty batches are sorted, and the batches shuffled."""
        random = np.random.default_rng(derived_seed(seed, epoch))
        steps = self.steps(batch_size)
        size = global_batch_size(len(self), batch_size, world_size)
        order = random.permutation(len(self))[: steps * size]
        pool_size = size * self._POOL_BATCHES
        pools = [order[i : i + pool_size] for i in range(0, len(order), pool_size)]
        by_length = np.concatenate([pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools])
        batches = random.permutation(by_length.reshape(steps, size))
        return [[(epoch, int(index)) for index in batch[rank::world_size]] for batch in batches]

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """Return the batch of these texts."""
        indices = [index for _, index in keys]
        texts = [self.texts[i] for i in indices]
        tokens = torch.from_numpy(pad_tokens(texts, max(map(len, texts))))
        return {"tokens": tokens, "target": self.targets[indices], "index": torch.tensor(indices)}


def count_tokens(texts: Sequence[Tokens], vocabulary: int) -> NDArray[np.int64]:
    """Count how often each token occurs, int64 (vocabulary,); padding counts 0."""
    counts = np.zeros(vocabulary, np.int64)
    for text in texts:
        counts += np.bincount(text, minlength=vocabulary)
    counts[PADDING] = 0
    return counts
