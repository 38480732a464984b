"""Networks that predict a rating from user and item: the course's, and one that also uses the user's other ratings."""

import torch
from torch import Tensor, nn


class RatingNetwork(nn.Module):
    """The product of a user's and an item's embedding plus a bias for each, bounded by a sigmoid.

    The collaborative filter of the fast.ai course (2019, lesson 4). With `rated`, a sum over all items that the user
    rated, whatever the rating, is added to the user's embedding (SVD++: Koren 2008, "Factorization meets the
    neighborhood").
    """

    rated: Tensor

    def __init__(
        self,
        users: int,
        items: int,
        *,
        size: int,
        bounds: tuple[float, float],
        rated: Tensor | None = None,
        drop: float = 0.0,
    ) -> None:
        """`rated` float32 (users, items): 1/√n where a user rated the item, n being the number they rated; else 0."""
        super().__init__()
        self.low, self.high = bounds
        self.user, self.item = nn.Embedding(users, size), nn.Embedding(items, size)
        self.user_bias, self.item_bias = nn.Embedding(users, 1), nn.Embedding(items, 1)
        self.register_buffer("rated", torch.zeros(0, 0) if rated is None else rated)
        self.implicit = nn.Parameter(torch.empty(items if rated is not None else 0, size))
        self.drop = nn.Dropout(drop)
        for weight in (self.user.weight, self.item.weight, self.user_bias.weight, self.item_bias.weight, self.implicit):
            nn.init.normal_(weight, std=0.01)

    def forward(self, user: Tensor, item: Tensor) -> tuple[Tensor]:
        """Map users and items, int64 (n,) each, to ratings (n,)."""
        vector = self.user(user)
        if len(self.rated):
            vector = vector + self.rated[user] @ self.implicit
        product = (self.drop(vector) * self.item(item)).sum(dim=1)
        total = product + self.user_bias(user)[:, 0] + self.item_bias(item)[:, 0]
        return (total.sigmoid() * (self.high - self.low) + self.low,)

    def all_items(self, user: Tensor) -> Tensor:
        """Return the predicted ratings of these users, int64 (n,), for all items, (n, items)."""
        items = torch.arange(len(self.item.weight))
        return torch.stack([self(single.expand(len(items)), items)[0] for single in user])
