"""The AWD-LSTM language model, and a text classifier on its encoder. Both read tokens as encoded by tasks/_text.py.

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
"""Sharpness of the softmax that shares a maximum: a value 0.1 below the maximum gets a twentieth of its weight."""
State = tuple[tuple[Tensor, Tensor], ...]
"""(hidden, cell) of each layer, each (n, width)."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the encoder: `layers` LSTMs with `hidden` units each, except the last: its outputs are embeddings."""

    vocabulary: int
    embedding: int = 400
    hidden: int = 1152
    layers: int = 3

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths of the embedding's output and of each layer's."""
        return (self.embedding, *([self.hidden] * (self.layers - 1)), self.embedding)


@dataclass(frozen=True)
class Dropouts:
    """Dropout rates of whole words, the embeddings, recurrent weights, the output of inner layers, and of the last."""

    words: float = 0.02
    inputs: float = 0.25
    weights: float = 0.2
    hidden: float = 0.15
    outputs: float = 0.1

    def times(self, factor: float) -> "Dropouts":
        """Scale all rates, each to 0.9 at most; less data needs larger ones."""
        rates = (self.words, self.inputs, self.weights, self.hidden, self.outputs)
        return Dropouts(*(min(0.9, rate * factor) for rate in rates))


def variational_dropout(x: Tensor, rate: float, *, training: bool) -> Tensor:
    """Drop the same features at all time steps of x (n, time, width); Gal and Ghahramani 2016."""
    if not training or not rate:
        return x
    return x * dropout(x.new_ones(len(x), 1, x.shape[2]), rate)


class Encoder(nn.Module):
    """Embeds tokens and runs the LSTM layers."""

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
        """Run tokens (n, time), padded on the right, from a state; from zeros if there is none.

        Returns the outputs (n, time, width) of the embedding and of each layer, first without and then with dropout,
        and the state at the end.
        """
        rates = self.dropouts
        raw = [self._embed(tokens)]
        dropped = [variational_dropout(raw[0], rates.inputs, training=self.training)]
        next_state = []
        for i, layer in enumerate(self.layers):
            layer_state = None if state is None else (state[i][0][None], state[i][1][None])
            x, (hidden, cell) = self._run_layer(layer, dropped[-1], layer_state)
            rate = rates.outputs if i == len(self.layers) - 1 else rates.hidden
            raw.append(x)
            dropped.append(variational_dropout(x, rate, training=self.training))
            next_state.append((hidden[0], cell[0]))
        return raw, dropped, tuple(next_state)

    def _embed(self, tokens: Tensor) -> Tensor:
        x: Tensor = self.embedding(tokens)
        if not self.training or not self.dropouts.words:
            return x
        word_mask = dropout(x.new_ones(self.sizes.vocabulary), self.dropouts.words)
        return x * word_mask[tokens][..., None]

    def _run_layer(
        self, layer: nn.Module, x: Tensor, state: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Run a layer with some of its recurrent weights dropped, the same at all time steps (DropConnect)."""
        if not self.training or not self.dropouts.weights:
            return cast(tuple[Tensor, tuple[Tensor, Tensor]], layer(x, state))
        weights: dict[str, Tensor] = dict(layer.named_parameters())
        weights["weight_hh_l0"] = dropout(weights["weight_hh_l0"], self.dropouts.weights)
        return cast(tuple[Tensor, tuple[Tensor, Tensor]], functional_call(layer, weights, (x, state)))


class TwoLevelSoftmax(nn.Module):
    """The exact softmax over a vocabulary in two levels (Grave et al. 2017), with the embedding's weights.

    The first level holds the frequent tokens and one class for all rare ones; the second level, over the rare tokens,
    is computed only where it is needed.
    """

    frequent: Tensor
    rare: Tensor
    place: Tensor

    def __init__(self, order: Sequence[int], frequent: int, width: int) -> None:
        """`order` holds all tokens, the most frequent first; the first `frequent` ones are in the first level."""
        super().__init__()
        ranked = torch.tensor(list(order))
        self.register_buffer("frequent", ranked[:frequent])
        self.register_buffer("rare", ranked[frequent:])
        self.register_buffer("place", torch.argsort(ranked))
        self.bias = nn.Parameter(torch.zeros(len(ranked) + 1))
        self.other = nn.Parameter(torch.zeros(1, width))

    def forward(self, x: Tensor, targets: Tensor, embedding: Tensor) -> Tensor:
        """Return the negative log-likelihood of each target, (n,).

        x is (n, width), targets (n,), embedding (vocabulary, width).
        """
        frequent = len(self.frequent)
        places = self.place[targets]
        loss = cross_entropy(self._first_level(x, embedding), places.clamp(max=frequent), reduction="none")
        is_rare = (places >= frequent).nonzero()[:, 0]
        if not len(self.rare):
            return loss
        second = self._second_level(x[is_rare], embedding)
        return loss.index_add(0, is_rare, cross_entropy(second, places[is_rare] - frequent, reduction="none"))

    def most_likely(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return the most likely token for each of x (n, width): int64 (n,)."""
        frequent = len(self.frequent)
        first = self._first_level(x, embedding)
        places = first[:, :frequent].argmax(1)
        # A rare token can be the most likely one only if the class of rare tokens is.
        may_be_rare = (first.argmax(1) == frequent).nonzero()[:, 0]
        if len(self.rare) and len(may_be_rare):
            best, which = self._second_level(x[may_be_rare], embedding).log_softmax(1).max(1)
            is_rare = first[may_be_rare, frequent] + best > first[may_be_rare, :frequent].amax(1)
            places = places.index_put((may_be_rare,), torch.where(is_rare, which + frequent, places[may_be_rare]))
        return torch.cat([self.frequent, self.rare])[places]

    def _first_level(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return logits (n, frequent + 1), or (n, frequent) if no token is rare."""
        if not len(self.rare):
            return (x @ embedding[self.frequent].T + self.bias[:-1]).float()
        weight = torch.cat([embedding[self.frequent], self.other])
        return (x @ weight.T + torch.cat([self.bias[: len(self.frequent)], self.bias[-1:]])).float()

    def _second_level(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return logits (n, rare)."""
        return (x @ embedding[self.rare].T + self.bias[len(self.frequent) : -1]).float()


class LanguageModel(nn.Module):
    """Predicts each next token. Buffers hold the state in which the last batch left each row."""

    def __init__(self, encoder: Encoder, order: Sequence[int], frequent: int, rows: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.softmax = TwoLevelSoftmax(order, frequent, encoder.sizes.embedding)
        self.state_names = []
        for i, width in enumerate(encoder.sizes.widths[1:]):
            for name in ("hidden", "cell"):
                self.register_buffer(f"{name}_{i}", torch.zeros(rows, width))
                self.state_names.append(f"{name}_{i}")
        # Each process reads its own texts: DistributedDataParallel must not overwrite their states by the first's.
        self._ddp_params_and_buffers_to_ignore = self.state_names

    def forward(self, tokens: Tensor, begins: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Predict each token of (n, time + 1) except the first, starting from the last state unless `begins`.

        Returns the negative log-likelihoods (n · time,), whether each token was the most likely one (n · time,; zeros
        in training), and the last layer's outputs (n, time, width) without and with dropout.
        """
        rows = len(tokens)
        state = None if bool(begins.any()) else self._state(rows)
        raw, dropped, next_state = self.encoder(tokens[:, :-1], state)
        with torch.no_grad():
            for i, pair in enumerate(next_state):
                for name, value in zip(("hidden", "cell"), pair, strict=True):
                    getattr(self, f"{name}_{i}")[:rows] = value
        targets = tokens[:, 1:].flatten()
        last, embedding = dropped[-1].flatten(0, 1), self.encoder.embedding.weight
        loss = self.softmax(last, targets, embedding)
        is_right = torch.zeros_like(targets) if self.training else self.softmax.most_likely(last, embedding) == targets
        return loss, is_right, raw[-1], dropped[-1]

    def _state(self, rows: int) -> State:
        return tuple(
            (getattr(self, f"hidden_{i}")[:rows].clone(), getattr(self, f"cell_{i}")[:rows].clone())
            for i in range(len(self.encoder.layers))
        )


class TextClassifier(nn.Module):
    """A linear head on the mean and the maximum over time of the outputs of the encoder's embedding and layers."""

    def __init__(self, encoder: Encoder, classes: int, head_dropout: float) -> None:
        super().__init__()
        self.encoder = encoder
        width = 2 * sum(encoder.sizes.widths)
        self.norm = nn.BatchNorm1d(width)
        self.dropout = nn.Dropout(head_dropout)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> tuple[Tensor]:
        """Map tokens (n, time), padded on the right, to logits (n, classes)."""
        _, layers, _ = self.encoder(tokens)
        features = pool(layers, tokens != PADDING)
        return (self.head(self.dropout(self.norm(features.float()))),)


def pool(layers: Sequence[Tensor], is_token: Tensor) -> Tensor:
    """Return the mean and the maximum over time of each layer's outputs: (n, 2 · sum of the widths).

    `is_token` (n, time) is False at padding.
    """
    mask = is_token[..., None]
    count = mask.sum(1)
    means = [(x * mask).sum(1) / count for x in layers]
    maxima = [x.masked_fill(~mask, -torch.inf).amax(1) for x in layers]
    return torch.cat([*means, *maxima], dim=1)


class ServedSentiment(nn.Module):
    """The exported classifier: probabilities, and the evidence of each token for each class.

    The head is linear in the pooled features, so a logit is a sum over tokens: every token contributes to a mean, and
    the token with the largest value to a maximum. (Class activation maps of images use the same fact, Zhou et al.
    2016.) The logits of n-grams, if there are any, are such a sum too; `blend_weights` weight the two.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self, classifier: TextClassifier, n_grams: nn.Module | None = None, blend_weights: Sequence[float] = (1.0,)
    ) -> None:
        super().__init__()
        self.encoder, self.n_grams, self.blend_weights = classifier.encoder, n_grams, tuple(blend_weights)
        norm, head = classifier.norm, classifier.head
        assert norm.running_var is not None  # noqa: S101 — BatchNorm tracks it by default.
        assert norm.running_mean is not None  # noqa: S101
        with torch.no_grad():
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            weight = blend_weights[0] * head.weight * scale
            bias = blend_weights[0] * (head.bias + head.weight @ (norm.bias - norm.running_mean * scale))
        # Only differences between classes matter.
        self.register_buffer("weight", weight - weight.mean(0))
        self.register_buffer("bias", bias - bias.mean())

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Map tokens (n, time) to probabilities (n, classes) and evidence (n, time, classes), which is 0 at padding."""
        evidence = self._network_evidence(tokens)
        if self.n_grams is not None:
            added = self.blend_weights[1] * self.n_grams(tokens)
            evidence = evidence + added - added.mean(2, keepdim=True)
        return (evidence.sum(1) + self.bias).softmax(1), evidence

    def _network_evidence(self, tokens: Tensor) -> Tensor:
        _, layers, _ = self.encoder(tokens)
        mask = (tokens != PADDING)[..., None]
        widths = self.encoder.sizes.widths
        weights = torch.split(self.weight, [*widths, *widths], dim=1)
        count = mask.sum(1, keepdim=True)
        evidence = torch.zeros_like(layers[0][..., :1])
        for x, mean_weight, max_weight in zip(layers, weights[: len(widths)], weights[len(widths) :], strict=True):
            values = x.masked_fill(~mask, -torch.inf)
            maximum = values.amax(1, keepdim=True)
            # Tokens close to the maximum share it: rounding must not decide which of them has it.
            maximum_parts = (_SHARPNESS * (values - maximum)).softmax(1) * maximum
            evidence = evidence + (x * mask / count) @ mean_weight.T + maximum_parts @ max_weight.T
        return evidence
