"""The recommender network: a user embedding from the history, and a score for each item.

A user embedding is a weighted sum over the items that the user rated (asymmetric factorisation: Paterek 2007,
"Improving regularized singular value decomposition for collaborative filtering"; Kabbur et al. 2013, "FISM"). So a user
who was not in the training data needs only a history, and each item of the history has an exact share in the score of
each recommendation.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, embedding, softplus

from tasks._items import MAX_HISTORY, NO_ITEM, NO_RATING
from tasks.recommendations import EXCLUDED_SCORE

_FAR_BELOW = -1e4
_EXACT_RANKS = 4
_RANK_BANDS = 19


def rank_bands(ranks: int) -> Tensor:
    """Return the band of each rank from the latest on, int64 (ranks,): one each at first, then two per octave."""
    bands = [rank if rank < _EXACT_RANKS else int(2 * math.log2(rank)) for rank in range(ranks)]
    return torch.tensor(bands).clamp(max=_RANK_BANDS - 1)


class RecommenderNetwork(nn.Module):
    """Predicts which item a user with this history will like next.

        user = Σ w·p(item) / √Σ |w|   w = weight of the rank from the latest on × weight of the rating's level
        logit of item j = user · q(j) + b(j)

    p and q are each the sum of an embedding of the item itself and embeddings of its features (genres), so that rare
    items learn from others with the same features.
    """

    bands: Tensor
    features: Tensor

    def __init__(
        self,
        features: Tensor,
        likes: Tensor,
        *,
        embedding_size: int,
        levels: int,
        liked_from: int,
        ordered: bool,
        dropout: float,
        history_dropout: float,
    ) -> None:
        """Build the network.

        Args:
            features: of the items, float32 (items, features), each row's sum 1 or 0.
            likes: how many users like each item, float32 (items,).
            embedding_size: of users and items.
            levels: how many levels of ratings there are.
            liked_from: the lowest level of a liked item.
            ordered: whether the weights depend on the rank.
            dropout: fraction of the user embedding that training drops.
            history_dropout: fraction of the history that training drops.
        """
        super().__init__()
        items = len(features)
        self.dropout, self.history_dropout = dropout, history_dropout
        self.ordered, self.liked_from = ordered, liked_from
        self.register_buffer("features", features)
        self.register_buffer("bands", rank_bands(MAX_HISTORY))
        self.history_items = nn.Embedding(items + 1, embedding_size)
        self.target_items = nn.Embedding(items, embedding_size)
        self.history_features = nn.Parameter(torch.empty(features.shape[1], embedding_size))
        self.target_features = nn.Parameter(torch.empty(features.shape[1], embedding_size))
        for parameter in (
            self.history_items.weight,
            self.target_items.weight,
            self.history_features,
            self.target_features,
        ):
            nn.init.normal_(parameter, std=0.05)
        self.bias = nn.Parameter((likes + 1).log() - (likes.max() + 1).log())
        self.log_band_weights = nn.Parameter(-0.35 * torch.arange(_RANK_BANDS))
        self.raw_level_weights = nn.Parameter(torch.full((levels + 1,), 0.5))

    def history_embeddings(self) -> Tensor:
        """Return the embedding p of each item, (items + 1, embedding_size); the first row stands for no item."""
        items = self.history_items.weight[1:] + self.features @ self.history_features
        return torch.cat([torch.zeros_like(items[:1]), items])

    def target_embeddings(self) -> Tensor:
        """Return the embedding q of each item, (items, embedding_size)."""
        return self.target_items.weight + self.features @ self.target_features

    def rank_weights(self) -> Tensor:
        """Return the weight of each rank from the latest on, (MAX_HISTORY,)."""
        weights = self.log_band_weights.exp()[self.bands]
        return weights if self.ordered else torch.ones_like(weights)

    def level_weights(self) -> Tensor:
        """Return the weight of each level of ratings, (levels + 1,); the first is for no rating.

        Levels of liked items, and no rating, have positive weights; others may have negative ones.
        """
        levels = torch.arange(len(self.raw_level_weights), device=self.raw_level_weights.device)
        liked = (levels == NO_RATING) | (levels >= self.liked_from)
        return torch.where(liked, softplus(self.raw_level_weights), self.raw_level_weights)

    def forward(self, history: Tensor, levels: Tensor, candidates: Tensor, similar: Tensor) -> tuple[Tensor]:
        """Map int64 (n, length) twice and uint8 (n, items) to logits (n, items), far below zero if not a candidate."""
        weights = history_weights(history, levels, self.rank_weights(), self.level_weights())
        if self.training and self.history_dropout:
            weights = weights * (torch.rand_like(weights) >= self.history_dropout)
        user = (weights.unsqueeze(2) * embedding(history, self.history_embeddings())).sum(dim=1)
        user = dropout(user / normaliser(weights), self.dropout, self.training)
        logits = user @ self.target_embeddings().T + self.bias
        return (logits.masked_fill(candidates == 0, _FAR_BELOW),)


def history_weights(history: Tensor, levels: Tensor, rank_weights: Tensor, level_weights: Tensor) -> Tensor:
    """Return the weight of each place of the histories, (n, length); 0 where there is no item."""
    is_filled = history != NO_ITEM
    ranks = is_filled.sum(dim=1, keepdim=True) - 1 - torch.arange(history.shape[1], device=history.device)
    return rank_weights[ranks.clamp(0, len(rank_weights) - 1)] * level_weights[levels] * is_filled


def normaliser(weights: Tensor) -> Tensor:
    """Return the divisor of each user embedding, √Σ |w|, (n, 1); 1 if the history is empty."""
    total = weights.abs().sum(dim=1, keepdim=True)
    return torch.where(total > 0, total, 1.0).sqrt()


class ServedRecommender(nn.Module):
    """The exported recommender: the best items with their probabilities, and the liked item that adds most to each.

    Embeddings and biases are rounded to float16 here, so that a file in half precision ranks items in the same order.
    """

    history_embeddings: Tensor
    target_embeddings: Tensor
    bias: Tensor
    popularity: Tensor
    rank_weights: Tensor
    level_weights: Tensor
    norms: Tensor

    def __init__(self, network: RecommenderNetwork, likes: Tensor, *, k: int, liked_from: int) -> None:
        """`likes` counts the users who like each item, (items,): they rank the items for an empty history."""
        super().__init__()
        self.k, self.liked_from = k, liked_from
        with torch.no_grad():
            self.register_buffer("history_embeddings", _round_to_half(network.history_embeddings()))
            self.register_buffer("target_embeddings", _round_to_half(network.target_embeddings()))
            self.register_buffer("bias", _round_to_half(network.bias))
            self.register_buffer("popularity", _round_to_half((likes + 0.01).log()))
            self.register_buffer("rank_weights", network.rank_weights().clone())
            self.register_buffer("level_weights", network.level_weights().clone())
            self.register_buffer("norms", _round_to_half(self.target_embeddings.norm(dim=1).clamp(min=1e-3)))

    def user_embedding(self, history: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the user embedding (n, size), and what each place of the history adds to it (n, length, size)."""
        weights = history_weights(history, levels, self.rank_weights, self.level_weights)
        parts = (weights / normaliser(weights)).unsqueeze(2) * embedding(history, self.history_embeddings)
        return parts.sum(dim=1), parts

    def forward(
        self, history: Tensor, levels: Tensor, candidates: Tensor, similar: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Map int64 (n, length) twice, uint8 (n, items) and uint8 (n, 1) to the task's four outputs, each (n, k)."""
        user, parts = self.user_embedding(history, levels)
        has_history = (history != NO_ITEM).any(dim=1, keepdim=True)
        logits = torch.where(has_history, user @ self.target_embeddings.T + self.bias, self.popularity)
        is_candidate = candidates != 0
        probabilities = torch.where(is_candidate, logits, _FAR_BELOW).softmax(dim=1)
        scores = torch.where(similar != 0, self._cosines(history[:, 0]), probabilities)
        best, items = torch.where(is_candidate, scores, EXCLUDED_SCORE).topk(self.k, dim=1)
        contributions = parts @ embedding(items, self.target_embeddings).transpose(1, 2)
        liked = (history != NO_ITEM) & ((levels == NO_RATING) | (levels >= self.liked_from))
        # An item is not its own reason.
        may_explain = liked.unsqueeze(2) & (history.unsqueeze(2) != items.unsqueeze(1) + 1)
        largest, because = torch.where(may_explain, contributions, _FAR_BELOW).max(dim=1)
        # Items that are not candidates all have the same score, so their order is undefined: hide which ones they are.
        shown = best > EXCLUDED_SCORE / 2
        largest = torch.where(shown & (largest > _FAR_BELOW / 2), largest, 0.0)
        return torch.where(shown, items, 0), best, torch.where(largest != 0, because, 0), largest

    def _cosines(self, number: Tensor) -> Tensor:
        """Return the cosine similarity of the items with these numbers (from 1) and all items, (n, items)."""
        row = (number - 1).clamp(min=0)
        unit = embedding(row, self.target_embeddings) / embedding(row, self.norms.unsqueeze(1))
        return unit @ self.target_embeddings.T / self.norms


def _round_to_half(values: Tensor) -> Tensor:
    return values.half().float()
