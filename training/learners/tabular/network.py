"""The network for tables: embeddings for categories, piecewise-linear encodings for numbers, and a perceptron."""

import math
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from tasks._tables import FIRST_KNOWN, MISSING, UNKNOWN
from training.learners.tabular.target_scale import TargetScale


def embedding_size(categories: int) -> int:
    """Return the embedding size for a number of categories: min(600, 1.6·n^0.56), a fast.ai rule of thumb."""
    return min(600, round(1.6 * math.pow(categories, 0.56)))


class NumericEncoder(nn.Module):
    """Encodes numeric columns as features that are robust against heavy tails.

    The features of a column are its standardised value, clipped to ±5; a piecewise-linear encoding over bins between
    quantiles of the training data (Gorishniy et al. 2022, "On Embeddings for Numerical Features"); and whether the
    value is missing. A missing value is replaced by the mean, with all bins empty.
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    width: Tensor

    def __init__(self, numbers: Tensor, bins: int) -> None:
        """Fit the statistics to training data: `numbers` is float32 (n, columns), NaN where missing."""
        super().__init__()
        columns = numbers.shape[1]
        known = ~numbers.isnan()
        exact = numbers.double().nan_to_num()
        rows = known.sum(dim=0).clamp(min=1)
        mean = exact.sum(dim=0) / rows
        variance = (((exact - mean) * known) ** 2).sum(dim=0) / rows
        self.register_buffer("mean", mean.float())
        self.register_buffer("std", variance.sqrt().clamp(min=1e-6).float())
        edges = torch.stack([_bin_edges(numbers[known[:, i], i], bins) for i in range(columns)]) if columns else None
        edges = edges if edges is not None else torch.zeros(0, bins + 1)
        self.register_buffer("low", edges[:, :-1].clone())
        self.register_buffer("width", edges.diff(dim=1))
        self.features = columns * (bins + 2)

    def forward(self, numbers: Tensor) -> Tensor:
        """Encode float32 (n, columns) as (n, features)."""
        missing = numbers.isnan()
        known = torch.where(missing, self.mean, numbers)
        standardised = ((known - self.mean) / self.std).clamp(-5, 5)
        bins = ((known.unsqueeze(2) - self.low) / self.width.clamp(min=1e-12)).clamp(0, 1)
        bins = torch.where((self.width > 0) & ~missing.unsqueeze(2), bins, 0.0)
        return torch.cat([standardised, missing.float(), bins.flatten(1)], dim=1)


def _bin_edges(values: Tensor, bins: int) -> Tensor:
    """Return `bins` + 1 rising edges; the last one is repeated if the column has too few distinct values.

    Half of the edges are quantiles of the rows and half are quantiles of the distinct values: if most rows share one
    value, quantiles of the rows alone would put all other values into one bin.
    """
    if not len(values):
        return torch.zeros(bins + 1)
    exact = values.double().numpy()
    quantiles = np.linspace(0, 1, bins // 2 + 1)
    edges = np.union1d(np.quantile(exact, quantiles), np.quantile(np.unique(exact), quantiles))[: bins + 1]
    return torch.from_numpy(np.pad(edges, (0, bins + 1 - len(edges)), mode="edge")).float()


class TabularNetwork(nn.Module):
    """A perceptron on embedded categories and encoded numbers.

    In training, a fraction `value_dropout` of the categories becomes UNKNOWN, the same fraction MISSING, and the same
    fraction of the numbers NaN, so that the network learns what these mean even if the training data is complete.
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
        unbinned: Sequence[int] = (),
    ) -> None:
        """Build the network and fit its encoder.

        Args:
            categories: how many values each categorical column has.
            numbers: the numeric columns of the training data, float32 (n, columns).
            classes: how many outputs there are.
            layers: sizes of the hidden layers.
            dropout: after each hidden layer; half of it after the embeddings.
            bins: of each numeric column.
            value_dropout: see the class.
            unbinned: indices of numeric columns without bins, because their values go on beyond the training data.
        """
        super().__init__()
        self.value_dropout = value_dropout
        sizes = [FIRST_KNOWN + n for n in categories]
        self.embeddings = nn.ModuleList(nn.Embedding(size, embedding_size(size)) for size in sizes)
        for table in self.embeddings:
            # Small, so that embeddings end up far apart only by learning.
            nn.init.trunc_normal_(cast(nn.Embedding, table).weight, std=0.01)
        self.numbers = NumericEncoder(numbers, bins)
        self.numbers.width[list(unbinned)] = 0
        self.embedding_dropout = nn.Dropout(dropout / 2)
        width = sum(map(embedding_size, sizes)) + self.numbers.features
        modules: list[nn.Module] = []
        for size in layers:
            modules += [nn.Linear(width, size), nn.LayerNorm(size), nn.ReLU(), nn.Dropout(dropout)]
            width = size
        self.layers = nn.Sequential(*modules, nn.Linear(width, classes))

    def forward(self, categories: Tensor, numbers: Tensor) -> tuple[Tensor]:
        """Map int64 (n, columns) and float32 (n, columns) to logits (n, classes)."""
        if self.training and self.value_dropout:
            categories, numbers = self._drop_values(categories, numbers)
        return (self.layers(self._features(categories, numbers)),)

    def hidden(self, categories: Tensor, numbers: Tensor) -> Tensor:
        """As `forward`, up to the input of the last layer, (n, its width)."""
        if self.training and self.value_dropout:
            categories, numbers = self._drop_values(categories, numbers)
        return cast(Tensor, self.layers[:-1](self._features(categories, numbers)))

    def _features(self, categories: Tensor, numbers: Tensor) -> Tensor:
        features = [table(categories[:, i]) for i, table in enumerate(self.embeddings)]
        embedded = [self.embedding_dropout(torch.cat(features, dim=1))] if features else []
        return torch.cat([*embedded, self.numbers(numbers)], dim=1)

    def _drop_values(self, categories: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        random = torch.rand(categories.shape, device=categories.device)
        categories = categories.masked_fill(random < self.value_dropout, UNKNOWN)
        categories = categories.masked_fill(random > 1 - self.value_dropout, MISSING)
        return categories, numbers.masked_fill(torch.rand_like(numbers) < self.value_dropout, torch.nan)


class ServedTabular(nn.Module):
    """The exported classifier: calibrated probabilities."""

    temperature: Tensor

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("temperature", torch.tensor(temperature))

    def forward(self, categories: Tensor, numbers: Tensor) -> tuple[Tensor]:
        """Map int64 (n, columns) and float32 (n, columns) to probabilities (n, classes)."""
        return ((self.network(categories, numbers)[0] / self.temperature).softmax(dim=1),)


class RegressionNetwork(nn.Module):
    """Predicts a value, bounded by a sigmoid, and the distances to the lower and upper end of an interval around it.

    The distances are read from the same hidden layer as the value, but without a gradient: learning them does not
    change the value.
    """

    low: Tensor
    high: Tensor
    unit: Tensor

    def __init__(self, backbone: TabularNetwork, scale: TargetScale, targets: Tensor) -> None:
        """`backbone` has one output; `targets` are the transformed targets of the training data, (n,)."""
        super().__init__()
        self.backbone = backbone
        width = cast(nn.Linear, backbone.layers[-1]).in_features
        self.distances = nn.Linear(width, 2)
        low, high = scale.bounds
        self.register_buffer("low", torch.tensor(low, dtype=torch.float32))
        self.register_buffer("high", torch.tensor(high, dtype=torch.float32))
        self.register_buffer("unit", targets.std().clamp(min=1e-6).float())
        fraction = ((targets.mean() - low) / (high - low)).clamp(0.02, 0.98)
        with torch.no_grad():
            # Training begins with the mean as prediction.
            cast(nn.Linear, backbone.layers[-1]).bias.fill_(float((fraction / (1 - fraction)).log()))

    def forward(self, categories: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Map int64 (n, columns) and float32 (n, columns) to transformed values (n,) and distances (n, 2)."""
        hidden = self.backbone.hidden(categories, numbers)
        value = self.low + (self.high - self.low) * self.backbone.layers[-1](hidden)[:, 0].sigmoid()
        return value, self.unit * softplus(self.distances(hidden.detach()))


def pinball_loss(value: Tensor, distances: Tensor, target: Tensor, outside: float) -> Tensor:
    """Compute the mean quantile loss of both ends of an interval, `value` − and + `distances`.

    It is smallest if a fraction `outside`/2 of the targets lies below the interval and the same fraction above it
    (Koenker and Bassett 1978).
    """
    tail = outside / 2
    below = (value - distances[:, 0]) - target
    above = target - (value + distances[:, 1])
    errors = torch.stack([below, above])
    return 2 * torch.maximum((1 - tail) * errors, -tail * errors).mean()


class ServedRegression(nn.Module):
    """The exported regression: the value in the target's unit, and its interval, scaled by calibration."""

    conformal_scale: Tensor

    def __init__(self, network: RegressionNetwork, scale: TargetScale, conformal_scale: float) -> None:
        super().__init__()
        self.network, self.scale = network, scale
        self.register_buffer("conformal_scale", torch.tensor(conformal_scale, dtype=torch.float32))

    def forward(self, categories: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Map int64 (n, columns) and float32 (n, columns) to values (n,) and intervals (n, 2)."""
        value, distances = self.network(categories, numbers)
        signed = torch.stack([-distances[:, 0], distances[:, 1]], dim=1)
        ends = value.unsqueeze(1) + self.conformal_scale * signed
        ends = torch.minimum(torch.maximum(ends, self.network.low), self.network.high)
        return self._inverse_transform(value), self._inverse_transform(ends)

    def _inverse_transform(self, transformed: Tensor) -> Tensor:
        return transformed.exp() - self.scale.shift if self.scale.log else transformed
