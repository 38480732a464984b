"""The AWD-LSTM language model, and a classifier on its encoder; they read what tasks/_text.py makes of a text.

Merity et al. 2017, "Regularizing and Optimizing LSTM Language Models"; Howard and Ruder 2018, "Universal Language Model
Fine-tuning for Text Classification" (ULMFiT).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, dropout

from tasks._text import PADDING

_SHARPNESS = 30.0
"""How close to a largest value is close: a token that is 0.1 below it has a twentieth of its share."""
State = tuple[tuple[Tensor, Tensor], ...]
"""(hidden, cell) of each layer, each (n, width)."""


@dataclass(frozen=True)
class Sizes:
    """Of the encoder: `layers` LSTMs of `hidden` units, but the last, whose outputs are embeddings again."""

    vocabulary: int
    embedding: int = 400
    hidden: int = 1152
    layers: int = 3

    @property
    def widths(self) -> tuple[int, ...]:
        """Of what each layer gives, the embedding's first."""
        return (self.embedding, *([self.hidden] * (self.layers - 1)), self.embedding)


@dataclass(frozen=True)
class Dropouts:
    """Shares that are dropped in training: whole words, inputs, recurrent weights, between layers, and at the end."""

    words: float = 0.02
    inputs: float = 0.25
    weights: float = 0.2
    hidden: float = 0.15
    outputs: float = 0.1

    def times(self, factor: float) -> "Dropouts":
        """All of them scaled, as suits the amount of data."""
        shares = (self.words, self.inputs, self.weights, self.hidden, self.outputs)
        return Dropouts(*(min(0.9, share * factor) for share in shares))


def locked(x: Tensor, share: float, *, training: bool) -> Tensor:
    """Drops the same features at all times: x (n, time, width); Gal and Ghahramani 2016."""
    if not training or not share:
        return x
    return x * dropout(x.new_ones(len(x), 1, x.shape[2]), share)


class Encoder(nn.Module):
    """From tokens to what each layer makes of them."""

    def __init__(self, sizes: Sizes, dropouts: Dropouts) -> None:
        super().__init__()
        self.sizes, self.dropouts = sizes, dropouts
        self.embedding = nn.Embedding(sizes.vocabulary, sizes.embedding, padding_idx=PADDING)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        with torch.no_grad():
            self.embedding.weight[PADDING] = 0
        widths = sizes.widths
        self.layers = nn.ModuleList(nn.LSTM(a, b, batch_first=True) for a, b in pairwise(widths))

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[list[Tensor], list[Tensor], State]:
        """What each layer gives for tokens (n, time), and the state at the end.

        The outputs (n, time, width), the embedding's first, come twice: as they are, and after dropout. Padding is on
        the right, where it changes nothing before it.
        """
        shares = self.dropouts
        raw = [self._embedded(tokens)]
        dropped = [locked(raw[0], shares.inputs, training=self.training)]
        after = []
        for i, layer in enumerate(self.layers):
            given = None if state is None else (state[i][0][None], state[i][1][None])
            x, (hidden, cell) = self._run(layer, dropped[-1], given)
            last = i == len(self.layers) - 1
            raw.append(x)
            dropped.append(locked(x, shares.outputs if last else shares.hidden, training=self.training))
            after.append((hidden[0], cell[0]))
        return raw, dropped, tuple(after)

    def _embedded(self, tokens: Tensor) -> Tensor:
        x: Tensor = self.embedding(tokens)
        if not self.training or not self.dropouts.words:
            return x
        kept = dropout(x.new_ones(self.sizes.vocabulary), self.dropouts.words)
        return x * kept[tokens][..., None]

    def _run(
        self, layer: nn.Module, x: Tensor, state: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The layer with part of its recurrent weights dropped: the same part at all times (DropConnect)."""
        if not self.training or not self.dropouts.weights:
            return cast(tuple[Tensor, tuple[Tensor, Tensor]], layer(x, state))
        weights: dict[str, Tensor] = dict(layer.named_parameters())
        weights["weight_hh_l0"] = dropout(weights["weight_hh_l0"], self.dropouts.weights)
        return cast(tuple[Tensor, tuple[Tensor, Tensor]], functional_call(layer, weights, (x, state)))


class TwoLevelSoftmax(nn.Module):
    """The exact softmax over a vocabulary in two levels (Grave et al. 2017), its weights tied to the embedding's.

    The first has the frequent tokens and "another one"; which of the others it is, is asked only where it is needed.
    """

    frequent: Tensor
    rare: Tensor
    place: Tensor

    def __init__(self, order: Sequence[int], frequent: int, width: int) -> None:
        super().__init__()
        ranked = torch.tensor(list(order))
        self.register_buffer("frequent", ranked[:frequent])
        self.register_buffer("rare", ranked[frequent:])
        self.register_buffer("place", torch.argsort(ranked))
        self.bias = nn.Parameter(torch.zeros(len(ranked) + 1))
        self.other = nn.Parameter(torch.zeros(1, width))

    def forward(self, x: Tensor, targets: Tensor, embedding: Tensor) -> Tensor:
        """The negative logarithm of each target's probability, (n,).

        x is (n, width), targets (n,), embedding (vocabulary, width).
        """
        many = len(self.frequent)
        places = self.place[targets]
        loss = cross_entropy(self._first(x, embedding), places.clamp(max=many), reduction="none")
        far = (places >= many).nonzero()[:, 0]
        if not len(self.rare):
            return loss
        beyond = cross_entropy(self._second(x[far], embedding), places[far] - many, reduction="none")
        return loss.index_add(0, far, beyond)

    def likeliest(self, x: Tensor, embedding: Tensor) -> Tensor:
        """The likeliest token for each of x (n, width): int64 (n,)."""
        many = len(self.frequent)
        first = self._first(x, embedding)
        found = first[:, :many].argmax(1)
        # A rare token can be the likeliest only where "another one" is.
        far = (first.argmax(1) == many).nonzero()[:, 0]
        if len(self.rare) and len(far):
            best, which = self._second(x[far], embedding).log_softmax(1).max(1)
            wins = first[far, many] + best > first[far, :many].amax(1)
            found = found.index_put((far,), torch.where(wins, which + many, found[far]))
        return torch.cat([self.frequent, self.rare])[found]

    def _first(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Logits (n, frequent + 1); only (n, frequent) where there are no others."""
        if not len(self.rare):
            return (x @ embedding[self.frequent].T + self.bias[:-1]).float()
        weight = torch.cat([embedding[self.frequent], self.other])
        return (x @ weight.T + torch.cat([self.bias[: len(self.frequent)], self.bias[-1:]])).float()

    def _second(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Logits (n, rare)."""
        return (x @ embedding[self.rare].T + self.bias[len(self.frequent) : -1]).float()


class LanguageModel(nn.Module):
    """Says at each token which one comes next. `state` is where the last step of training left each row."""

    def __init__(self, encoder: Encoder, order: Sequence[int], frequent: int, rows: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.softmax = TwoLevelSoftmax(order, frequent, encoder.sizes.embedding)
        self.names = []
        for i, width in enumerate(encoder.sizes.widths[1:]):
            for name in ("hidden", "cell"):
                self.register_buffer(f"{name}_{i}", torch.zeros(rows, width))
                self.names.append(f"{name}_{i}")
        # Each process reads texts of its own: DistributedDataParallel must not make their states the first one's.
        self._ddp_params_and_buffers_to_ignore = self.names

    def forward(self, tokens: Tensor, begins: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """How well each token of (n, time + 1) but the first was foreseen.

        The tokens go on where the last ones ended, unless `begins`. Returns negative log-likelihoods (n · time,),
        whether each was the likeliest, and the last layer's outputs (n, time, width) before and after dropout.
        """
        rows = len(tokens)
        state = None if bool(begins.any()) else self._state(rows)
        raw, dropped, after = self.encoder(tokens[:, :-1], state)
        with torch.no_grad():
            for i, pair in enumerate(after):
                for name, value in zip(("hidden", "cell"), pair, strict=True):
                    getattr(self, f"{name}_{i}")[:rows] = value
        targets = tokens[:, 1:].flatten()
        last, embedding = dropped[-1].flatten(0, 1), self.encoder.embedding.weight
        loss = self.softmax(last, targets, embedding)
        # In training nobody asks.
        right = torch.zeros_like(targets) if self.training else self.softmax.likeliest(last, embedding) == targets
        return loss, right, raw[-1], dropped[-1]

    def _state(self, rows: int) -> State:
        return tuple(
            (getattr(self, f"hidden_{i}")[:rows].clone(), getattr(self, f"cell_{i}")[:rows].clone())
            for i in range(len(self.encoder.layers))
        )


class TextClassifier(nn.Module):
    """A linear head on the largest and the mean value over time of all that the encoder's layers give."""

    def __init__(self, encoder: Encoder, classes: int, share: float) -> None:
        super().__init__()
        self.encoder = encoder
        width = 2 * sum(encoder.sizes.widths)
        self.norm = nn.BatchNorm1d(width)
        self.dropout = nn.Dropout(share)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> tuple[Tensor]:
        """Logits (n, classes) of tokens (n, time), padded on the right."""
        _, layers, _ = self.encoder(tokens)
        features = pooled(layers, tokens != PADDING)
        return (self.head(self.dropout(self.norm(features.float()))),)


def pooled(layers: Sequence[Tensor], there: Tensor) -> Tensor:
    """The mean and the largest value over time of each layer's outputs: (n, 2 · sum of the widths).

    `there` (n, time) says which tokens are no padding.
    """
    mask = there[..., None]
    count = mask.sum(1)
    means = [(x * mask).sum(1) / count for x in layers]
    peaks = [x.masked_fill(~mask, -torch.inf).amax(1) for x in layers]
    return torch.cat([*means, *peaks], dim=1)


class Explained(nn.Module):
    """The classifier as it is served: probabilities, and what each token adds to each class's logit.

    The head is linear in the pooled features, so a logit is a sum over tokens: a mean is made of all of them, a largest
    value of the token that has it. (The same is true of class activation maps for pictures, Zhou et al. 2016.) What
    n-grams add, where there are any, is such a sum too. `shares` say how much each of the two counts for.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self, trained: TextClassifier, n_grams: nn.Module | None = None, shares: Sequence[float] = (1.0,)
    ) -> None:
        super().__init__()
        self.encoder, self.n_grams, self.shares = trained.encoder, n_grams, tuple(shares)
        norm, head = trained.norm, trained.head
        assert norm.running_var is not None  # noqa: S101 — it is tracked: that is BatchNorm's default.
        assert norm.running_mean is not None  # noqa: S101
        with torch.no_grad():
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            weight = shares[0] * head.weight * scale
            bias = shares[0] * (head.bias + head.weight @ (norm.bias - norm.running_mean * scale))
        # Only differences between classes count.
        self.register_buffer("weight", weight - weight.mean(0))
        self.register_buffer("bias", bias - bias.mean())

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities (n, classes) and evidence (n, time, classes), 0 at padding."""
        evidence = self._of_layers(tokens)
        if self.n_grams is not None:
            added = self.shares[1] * self.n_grams(tokens)
            evidence = evidence + added - added.mean(2, keepdim=True)
        return (evidence.sum(1) + self.bias).softmax(1), evidence

    def _of_layers(self, tokens: Tensor) -> Tensor:
        _, layers, _ = self.encoder(tokens)
        mask = (tokens != PADDING)[..., None]
        widths = self.encoder.sizes.widths
        parts = torch.split(self.weight, [*widths, *widths], dim=1)
        count = mask.sum(1, keepdim=True)
        evidence = torch.zeros_like(layers[0][..., :1])
        for x, mean, peak in zip(layers, parts[: len(widths)], parts[len(widths) :], strict=True):
            known = x.masked_fill(~mask, -torch.inf)
            largest = known.amax(1, keepdim=True)
            # Tokens that come close share the peak: rounding must not decide between them.
            at = (_SHARPNESS * (known - largest)).softmax(1) * largest
            evidence = evidence + (x * mask / count) @ mean.T + at @ peak.T
        return evidence
