"""Networks that tell a rating from who rates and what: the course's, and one that also reads what else was rated."""

import torch
from torch import Tensor, nn


class RatingNetwork(nn.Module):
    """A user's and an item's vector, their product, a bias for each, and a sigmoid that bounds the rating.

    The collaborative filter of the fast.ai course (2019, lesson 4). With `rated`, a user's vector has a part that is
    the sum over all they rated, whatever the rating (Koren 2008, "Factorization meets the neighborhood": SVD++).
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
        """`rated` float32 (users, items): 1/√n where a user rated an item, n of them in all, else 0."""
        super().__init__()
        self.low, self.high = bounds
        self.user, self.item = nn.Embedding(users, size), nn.Embedding(items, size)
        self.user_bias, self.item_bias = nn.Embedding(users, 1), nn.Embedding(items, 1)
        self.register_buffer("rated", torch.zeros(0, 0) if rated is None else rated)
        self.others = nn.Parameter(torch.empty(items if rated is not None else 0, size))
        self.drop = nn.Dropout(drop)
        for weight in (self.user.weight, self.item.weight, self.user_bias.weight, self.item_bias.weight, self.others):
            nn.init.normal_(weight, std=0.01)

    def forward(self, user: Tensor, item: Tensor) -> tuple[Tensor]:
        """int64 (n,) twice to ratings (n,)."""
        vector = self.user(user)
        if len(self.rated):
            vector = vector + self.rated[user] @ self.others
        product = (self.drop(vector) * self.item(item)).sum(dim=1)
        total = product + self.user_bias(user)[:, 0] + self.item_bias(item)[:, 0]
        return (total.sigmoid() * (self.high - self.low) + self.low,)

    def all_items(self, user: Tensor) -> Tensor:
        """int64 (n,) to the ratings that are expected of these users for all items, (n, items)."""
        items = torch.arange(len(self.item.weight))
        return torch.stack([self(each.expand(len(items)), items)[0] for each in user])
