"""The network for tables: embeddings for categories, piecewise-linear encodings for numbers, and a perceptron."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from tasks._tables import FIRST_KNOWN, MISSING, UNKNOWN


def embedding_size(categories: int) -> int:
    """How many numbers a category becomes: min(600, 1.6·n^0.56), a rule of thumb from the fast.ai course."""
    return min(600, round(1.6 * math.pow(categories, 0.56)))


class Numbers(nn.Module):
    """Numbers to features, robust against heavy tails.

    Each column becomes: its standardised value, bounded to ±5; where it lies between the quantiles of the training
    data, a bin each (Gorishniy et al. 2022, "On Embeddings for Numerical Features"); and whether it is missing. A
    missing number counts as the mean, with all bins empty.
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    width: Tensor

    def __init__(self, numbers: Tensor, bins: int) -> None:
        """`numbers` are those of the training data, float32 (n, columns), NaN where missing."""
        super().__init__()
        count = numbers.shape[1]
        known = ~numbers.isnan()
        exact = numbers.double().nan_to_num()
        rows = known.sum(dim=0).clamp(min=1)
        mean = exact.sum(dim=0) / rows
        variance = (((exact - mean) * known) ** 2).sum(dim=0) / rows
        self.register_buffer("mean", mean.float())
        self.register_buffer("std", variance.sqrt().clamp(min=1e-6).float())
        edges = torch.stack([_edges(numbers[known[:, i], i], bins) for i in range(count)]) if count else None
        edges = edges if edges is not None else torch.zeros(0, bins + 1)
        self.register_buffer("low", edges[:, :-1].clone())
        self.register_buffer("width", edges.diff(dim=1))
        self.features = count * (bins + 2)

    def forward(self, numbers: Tensor) -> Tensor:
        """float32 (n, columns) to (n, features)."""
        missing = numbers.isnan()
        known = torch.where(missing, self.mean, numbers)
        standard = ((known - self.mean) / self.std).clamp(-5, 5)
        places = ((known.unsqueeze(2) - self.low) / self.width.clamp(min=1e-12)).clamp(0, 1)
        places = torch.where((self.width > 0) & ~missing.unsqueeze(2), places, 0.0)
        return torch.cat([standard, missing.float(), places.flatten(1)], dim=1)


def _edges(known: Tensor, bins: int) -> Tensor:
    """`bins` + 1 edges, rising; the last one is repeated where the column has fewer values.

    Half of them are quantiles of the rows, half of the distinct values: where most rows share one value, the quantiles
    of the rows alone would not tell the others apart.
    """
    if not len(known):
        return torch.zeros(bins + 1)
    values = known.double().numpy()
    shares = np.linspace(0, 1, bins // 2 + 1)
    edges = np.union1d(np.quantile(values, shares), np.quantile(np.unique(values), shares))[: bins + 1]
    return torch.from_numpy(np.pad(edges, (0, bins + 1 - len(edges)), mode="edge")).float()


class TabularNetwork(nn.Module):
    """Embedded categories beside encoded numbers, through a perceptron.

    In training a share `blanked` of the categories is replaced by UNKNOWN and as many by MISSING, and of the numbers
    by NaN: so their meaning is learnt even where the training data is complete.
    """

    def __init__(
        self,
        categories: Sequence[int],
        numbers: Tensor,
        classes: int,
        *,
        layers: Sequence[int],
        dropout: float,
        bins: int,
        blanked: float,
    ) -> None:
        """`categories` are the numbers of values of each column; `numbers` those of the training data."""
        super().__init__()
        self.blanked = blanked
        sizes = [FIRST_KNOWN + n for n in categories]
        self.embeddings = nn.ModuleList(nn.Embedding(size, embedding_size(size)) for size in sizes)
        self.numbers = Numbers(numbers, bins)
        self.embedding_dropout = nn.Dropout(dropout / 2)
        width = sum(map(embedding_size, sizes)) + self.numbers.features
        parts: list[nn.Module] = []
        for size in layers:
            parts += [nn.Linear(width, size), nn.LayerNorm(size), nn.ReLU(), nn.Dropout(dropout)]
            width = size
        self.layers = nn.Sequential(*parts, nn.Linear(width, classes))

    def forward(self, categories: Tensor, numbers: Tensor) -> tuple[Tensor]:
        """int64 (n, columns) and float32 (n, columns) to logits (n, classes)."""
        if self.training and self.blanked:
            categories, numbers = self._blank(categories, numbers)
        features = [table(categories[:, i]) for i, table in enumerate(self.embeddings)]
        embedded = [self.embedding_dropout(torch.cat(features, dim=1))] if features else []
        return (self.layers(torch.cat([*embedded, self.numbers(numbers)], dim=1)),)

    def _blank(self, categories: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        chance = torch.rand(categories.shape, device=categories.device)
        categories = categories.masked_fill(chance < self.blanked, UNKNOWN)
        categories = categories.masked_fill(chance > 1 - self.blanked, MISSING)
        return categories, numbers.masked_fill(torch.rand_like(numbers) < self.blanked, torch.nan)


class ServedTabular(nn.Module):
    """What is exported: calibrated probabilities."""

    temperature: Tensor

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("temperature", torch.tensor(temperature))

    def forward(self, categories: Tensor, numbers: Tensor) -> tuple[Tensor]:
        """int64 (n, columns) and float32 (n, columns) to probabilities (n, classes)."""
        return ((self.network(categories, numbers)[0] / self.temperature).softmax(dim=1),)
