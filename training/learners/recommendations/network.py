"""Networks that factorise who likes what: tastes for recommendations, and the rating model of the course.

A taste is a sum over what somebody rated (asymmetric factorisation: Paterek 2007, "Improving regularized singular value
decomposition for collaborative filtering"; Kabbur et al. 2013, "FISM"), so nobody needs a vector of their own: who
comes with a history has a taste, and each item of it has its exact share in the score of each recommendation.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, embedding, softplus

from tasks._items import MAX_HISTORY, NO_ITEM, NO_RATING
from tasks.recommendations import EXCLUDED_SCORE

_FAR_BELOW = -1e4
_EXACT_RANKS = 4
_RANKS = 19


def rank_bands(longest: int) -> Tensor:
    """The band of each rank from the latest on: the first ones alone, then two bands an octave; int64 (longest,)."""
    bands = [rank if rank < _EXACT_RANKS else int(2 * math.log2(rank)) for rank in range(longest)]
    return torch.tensor(bands).clamp(max=_RANKS - 1)


class TasteNetwork(nn.Module):
    """How much somebody with this history will like each item next.

        taste = Σ w·p(item) / √Σ |w|   w = weight of the rank from the latest on × weight of the rating's level
        logit of item j = taste · q(j) + b(j)

    p and q are an embedding of the item itself and one of its features (genres), so that rare items borrow from others
    of their kind.
    """

    bands: Tensor
    features: Tensor

    def __init__(
        self,
        features: Tensor,
        likes: Tensor,
        *,
        size: int,
        levels: int,
        liked_from: int,
        ordered: bool,
        dropped: float,
        forgotten: float,
    ) -> None:
        """`features` float32 (items, features), each row's sum 1 or 0; `likes` float32 (items,), counts.

        `dropped` is the share of a taste that training drops, `forgotten` that of a history.
        """
        super().__init__()
        count = len(features)
        self.dropped, self.forgotten, self.ordered, self.liked_from = dropped, forgotten, ordered, liked_from
        self.register_buffer("features", features)
        self.register_buffer("bands", rank_bands(MAX_HISTORY))
        self.given = nn.Embedding(count + 1, size)
        self.wanted = nn.Embedding(count, size)
        self.given_features = nn.Parameter(torch.empty(features.shape[1], size))
        self.wanted_features = nn.Parameter(torch.empty(features.shape[1], size))
        for parameter in (self.given.weight, self.wanted.weight, self.given_features, self.wanted_features):
            nn.init.normal_(parameter, std=0.05)
        self.bias = nn.Parameter((likes + 1).log() - (likes.max() + 1).log())
        self.rank_weight = nn.Parameter(-0.35 * torch.arange(_RANKS))
        self.level_weight = nn.Parameter(torch.full((levels + 1,), 0.5))

    def given_table(self) -> Tensor:
        """What each item says of who rated it: (items + 1, size), the first row for no item."""
        items = self.given.weight[1:] + self.features @ self.given_features
        return torch.cat([torch.zeros_like(items[:1]), items])

    def wanted_table(self) -> Tensor:
        """What each item asks of a taste: (items, size)."""
        return self.wanted.weight + self.features @ self.wanted_features

    def weights_of_ranks(self) -> Tensor:
        """The weight of each rank from the latest on, (LONGEST,)."""
        weights = self.rank_weight.exp()[self.bands]
        return weights if self.ordered else torch.ones_like(weights)

    def weights_of_levels(self) -> Tensor:
        """The weight of each level of ratings, the first for no rating: (levels + 1,).

        What says that an item was liked has a positive one; another may speak against what the item stands for.
        """
        levels = torch.arange(len(self.level_weight), device=self.level_weight.device)
        liked = (levels == NO_RATING) | (levels >= self.liked_from)
        return torch.where(liked, softplus(self.level_weight), self.level_weight)

    def forward(self, history: Tensor, levels: Tensor, candidates: Tensor, similar: Tensor) -> tuple[Tensor]:
        """int64 (n, length) twice, uint8 (n, items) to logits (n, items), far below zero for what is no candidate."""
        weights = weights_in(history, levels, self.weights_of_ranks(), self.weights_of_levels())
        if self.training and self.forgotten:
            weights = weights * (torch.rand_like(weights) >= self.forgotten)
        taste = (weights.unsqueeze(2) * embedding(history, self.given_table())).sum(dim=1)
        taste = dropout(taste / total(weights), self.dropped, self.training)
        logits = taste @ self.wanted_table().T + self.bias
        return (logits.masked_fill(candidates == 0, _FAR_BELOW),)


def weights_in(history: Tensor, levels: Tensor, of_ranks: Tensor, of_levels: Tensor) -> Tensor:
    """The weight of each place of the histories, (n, length); 0 where no item is."""
    filled = history != NO_ITEM
    ranks = filled.sum(dim=1, keepdim=True) - 1 - torch.arange(history.shape[1], device=history.device)
    return of_ranks[ranks.clamp(0, len(of_ranks) - 1)] * of_levels[levels] * filled


def total(weights: Tensor) -> Tensor:
    """By what a taste is divided, (n, 1); 1 where the history is empty."""
    whole = weights.abs().sum(dim=1, keepdim=True)
    return torch.where(whole > 0, whole, 1.0).sqrt()


class ServedTaste(nn.Module):
    """What is exported: the best items with their probabilities, and what of the history speaks for each most.

    The tables are rounded to what 16 bits can hold, once and for all: so storing them so changes no order.
    """

    given: Tensor
    wanted: Tensor
    bias: Tensor
    popularity: Tensor
    of_ranks: Tensor
    of_levels: Tensor
    norms: Tensor

    def __init__(self, network: TasteNetwork, likes: Tensor, *, most: int, liked_from: int) -> None:
        """`likes` are counts, (items,): what is said where nothing is known of a taste."""
        super().__init__()
        self.most, self.liked_from = most, liked_from
        with torch.no_grad():
            self.register_buffer("given", _rounded(network.given_table()))
            self.register_buffer("wanted", _rounded(network.wanted_table()))
            self.register_buffer("bias", _rounded(network.bias))
            self.register_buffer("popularity", _rounded((likes + 0.01).log()))
            self.register_buffer("of_ranks", network.weights_of_ranks().clone())
            self.register_buffer("of_levels", network.weights_of_levels().clone())
            self.register_buffer("norms", _rounded(self.wanted.norm(dim=1).clamp(min=1e-3)))

    def taste(self, history: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        """The taste (n, size), and what each place of the history adds to it (n, length, size)."""
        weights = weights_in(history, levels, self.of_ranks, self.of_levels)
        parts = (weights / total(weights)).unsqueeze(2) * embedding(history, self.given)
        return parts.sum(dim=1), parts

    def forward(
        self, history: Tensor, levels: Tensor, candidates: Tensor, similar: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """int64 (n, length) twice, uint8 (n, items) and (n, 1) to the four outputs, each (n, most)."""
        taste, parts = self.taste(history, levels)
        known = (history != NO_ITEM).any(dim=1, keepdim=True)
        logits = torch.where(known, taste @ self.wanted.T + self.bias, self.popularity)
        wanted = candidates != 0
        probabilities = torch.where(wanted, logits, _FAR_BELOW).softmax(dim=1)
        scores = torch.where(similar != 0, self._cosines(history[:, 0]), probabilities)
        best, places = torch.where(wanted, scores, EXCLUDED_SCORE).topk(self.most, dim=1)
        shares = parts @ embedding(places, self.wanted).transpose(1, 2)
        liked = (history != NO_ITEM) & ((levels == NO_RATING) | (levels >= self.liked_from))
        speaks = liked.unsqueeze(2) & (history.unsqueeze(2) != places.unsqueeze(1) + 1)  # No item is its own reason.
        most, because = torch.where(speaks, shares, _FAR_BELOW).max(dim=1)
        # Of what is not to be recommended all scores are equal, and their order nobody's: it is not shown.
        there = best > EXCLUDED_SCORE / 2
        most = torch.where(there & (most > _FAR_BELOW / 2), most, 0.0)
        return torch.where(there, places, 0), best, torch.where(most != 0, because, 0), most

    def _cosines(self, number: Tensor) -> Tensor:
        """Of the angles between the items of these numbers and all items, (n, items)."""
        row = (number - 1).clamp(min=0)
        ours = embedding(row, self.wanted) / embedding(row, self.norms.unsqueeze(1))
        return ours @ self.wanted.T / self.norms


def _rounded(values: Tensor) -> Tensor:
    return values.half().float()
