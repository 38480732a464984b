"""The network for tables: embeddings for categories, piecewise-linear encodings for numbers, and a perceptron."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import softplus

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

    In training, `value_dropout` of the categories become UNKNOWN and as many become MISSING, and as many of the numbers
    become NaN: so their meaning is learnt even where the training data is complete.
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
        value_dropout: float,
        straight: Sequence[int] = (),
    ) -> None:
        """`categories` are the numbers of values of each column; `numbers` those of the training data.

        `straight` are the places of numbers that are not spread into bins: such as go on beyond what training saw.
        """
        super().__init__()
        self.value_dropout = value_dropout
        sizes = [FIRST_KNOWN + n for n in categories]
        self.embeddings = nn.ModuleList(nn.Embedding(size, embedding_size(size)) for size in sizes)
        for table in self.embeddings:
            # Small at first, so that what is far apart at last is so by what was learnt.
            nn.init.trunc_normal_(cast(nn.Embedding, table).weight, std=0.01)
        self.numbers = Numbers(numbers, bins)
        self.numbers.width[list(straight)] = 0
        self.embedding_dropout = nn.Dropout(dropout / 2)
        width = sum(map(embedding_size, sizes)) + self.numbers.features
        parts: list[nn.Module] = []
        for size in layers:
            parts += [nn.Linear(width, size), nn.LayerNorm(size), nn.ReLU(), nn.Dropout(dropout)]
            width = size
        self.layers = nn.Sequential(*parts, nn.Linear(width, classes))

    def forward(self, categories: Tensor, numbers: Tensor) -> tuple[Tensor]:
        """int64 (n, columns) and float32 (n, columns) to logits (n, classes)."""
        if self.training and self.value_dropout:
            categories, numbers = self._blank(categories, numbers)
        return (self.layers(self._features(categories, numbers)),)

    def hidden(self, categories: Tensor, numbers: Tensor) -> Tensor:
        """As `forward`, to what the last layer reads, (n, its width)."""
        if self.training and self.value_dropout:
            categories, numbers = self._blank(categories, numbers)
        return cast(Tensor, self.layers[:-1](self._features(categories, numbers)))

    def _features(self, categories: Tensor, numbers: Tensor) -> Tensor:
        features = [table(categories[:, i]) for i, table in enumerate(self.embeddings)]
        embedded = [self.embedding_dropout(torch.cat(features, dim=1))] if features else []
        return torch.cat([*embedded, self.numbers(numbers)], dim=1)

    def _blank(self, categories: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        chance = torch.rand(categories.shape, device=categories.device)
        categories = categories.masked_fill(chance < self.value_dropout, UNKNOWN)
        categories = categories.masked_fill(chance > 1 - self.value_dropout, MISSING)
        return categories, numbers.masked_fill(torch.rand_like(numbers) < self.value_dropout, torch.nan)


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


@dataclass(frozen=True)
class Scale:
    """How a number is learnt: as it is, or as the logarithm of itself and `shift`; and within which bounds.

    Attributes:
        log: whether it is the logarithm that is learnt.
        shift: what is added before it is taken: 1 for counts, else 0.
        low: the least number that is ever answered.
        high: the largest.
    """

    log: bool
    shift: float
    low: float
    high: float

    def learnt(self, numbers: Tensor) -> Tensor:
        """Float64 numbers in their own unit to what the network learns."""
        return (numbers + self.shift).log() if self.log else numbers

    def in_its_unit(self, learnt: NDArray[np.floating]) -> NDArray[np.floating]:
        """What the network says, in the target's own unit, float64."""
        exact = learnt.astype(np.float64)
        return np.exp(exact) - self.shift if self.log else exact

    def bounded(self, learnt: NDArray[np.floating]) -> NDArray[np.floating]:
        """As `in_its_unit`, within the bounds."""
        return self.in_its_unit(learnt).clip(self.low, self.high)

    @property
    def bounds(self) -> tuple[float, float]:
        """`low` and `high` as the network learns them."""
        low, high = self.learnt(torch.tensor([self.low, self.high], dtype=torch.float64)).tolist()
        return low, high


class NumberNetwork(nn.Module):
    """A number, bounded by a sigmoid, and how far below and above it the truth is to be looked for.

    The two distances are read from what the number is read from, but teach it nothing: a number is learnt as if they
    were not there.
    """

    low: Tensor
    high: Tensor
    unit: Tensor

    def __init__(self, rows: TabularNetwork, scale: Scale, targets: Tensor) -> None:
        """`rows` is a network of one class, `targets` are those of the training data, as they are learnt."""
        super().__init__()
        self.rows = rows
        width = cast(nn.Linear, rows.layers[-1]).in_features
        self.distances = nn.Linear(width, 2)
        low, high = scale.bounds
        self.register_buffer("low", torch.tensor(low, dtype=torch.float32))
        self.register_buffer("high", torch.tensor(high, dtype=torch.float32))
        self.register_buffer("unit", targets.std().clamp(min=1e-6).float())
        share = ((targets.mean() - low) / (high - low)).clamp(0.02, 0.98)
        with torch.no_grad():
            # It begins at the mean.
            cast(nn.Linear, rows.layers[-1]).bias.fill_(float((share / (1 - share)).log()))

    def forward(self, categories: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """int64 (n, columns) and float32 (n, columns) to the number as it is learnt (n,), and distances (n, 2)."""
        hidden = self.rows.hidden(categories, numbers)
        number = self.low + (self.high - self.low) * self.rows.layers[-1](hidden)[:, 0].sigmoid()
        return number, self.unit * softplus(self.distances(hidden.detach()))


def pinball(number: Tensor, distances: Tensor, target: Tensor, outside: float) -> Tensor:
    """The mean quantile loss of `number - distances[:, 0]` and `number + distances[:, 1]`, each with half of `outside`.

    Koenker and Bassett 1978: it is least where a share of outside/2 of the targets lies below, and as much above.
    """
    tail = outside / 2
    below = (number - distances[:, 0]) - target
    above = target - (number + distances[:, 1])
    gaps = torch.stack([below, above])
    return 2 * torch.maximum((1 - tail) * gaps, -tail * gaps).mean()


class ServedNumber(nn.Module):
    """What is exported: the number in its own unit, and its interval, the distances times what calibration found."""

    stretch: Tensor

    def __init__(self, network: NumberNetwork, scale: Scale, stretch: float) -> None:
        super().__init__()
        self.network, self.scale = network, scale
        self.register_buffer("stretch", torch.tensor(stretch, dtype=torch.float32))

    def forward(self, categories: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """int64 (n, columns) and float32 (n, columns) to numbers (n,) and intervals (n, 2)."""
        number, distances = self.network(categories, numbers)
        signed = torch.stack([-distances[:, 0], distances[:, 1]], dim=1)
        ends = number.unsqueeze(1) + self.stretch * signed
        ends = torch.minimum(torch.maximum(ends, self.network.low), self.network.high)
        return self._in_its_unit(number), self._in_its_unit(ends)

    def _in_its_unit(self, learnt: Tensor) -> Tensor:
        return learnt.exp() - self.scale.shift if self.scale.log else learnt
