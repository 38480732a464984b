"""Items and tastes: the table of what can be recommended, and what somebody rated as numbers for the graph.

The graph knows an item by its number, from 1 on: 0 stands for no item. The numbers are the rows of the table, in its
order; rows beyond what the network learnt of have none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

NO_ITEM, NO_RATING = 0, 0
"""What fills a history up to its bucket; the level of an item that was chosen but not rated."""
LENGTH_BUCKETS = (8, 32, 128, 512)
"""To these lengths histories are filled up, so that those of like length share a batch."""
MAX_HISTORY = LENGTH_BUCKETS[-1]


@dataclass(frozen=True)
class Scale:
    """The ratings that people gave: the graph knows each by its level, 1 for the lowest.

    Attributes:
        low: the lowest rating.
        high: the highest.
        levels: how many there are, evenly spaced.
        liked: ratings from this on say that somebody liked an item.
    """

    low: float
    high: float
    levels: int
    liked: float

    def level(self, rating: float) -> int:
        """The level of a rating within the scale, 1…levels: the nearest one that is liked just where the rating is."""
        nearest = 1 + round((rating - self.low) / (self.high - self.low) * (self.levels - 1))
        if rating >= self._threshold:
            return max(nearest, self.liked_from)
        return min(nearest, self.liked_from - 1)

    @property
    def _threshold(self) -> float:
        """What a rating is compared with; the least bit lower than `liked`, since levels' ratings are rounded."""
        return min(self.liked, self.high) - 1e-9

    @cached_property
    def liked_from(self) -> int:
        """The lowest level that counts as liked."""
        return next(i for i in range(1, self.levels + 1) if self.rating(i) >= self._threshold or i == self.levels)

    def rating(self, level: int) -> float:
        """The rating that a level stands for."""
        return self.low + (level - 1) * (self.high - self.low) / max(1, self.levels - 1)


@dataclass(frozen=True)
class ItemTable:
    """What can be recommended, by columns: all of one length, but for the last two.

    Attributes:
        ids: what requests call the items.
        titles: what people call them.
        likes: how many people liked each, of those the network learnt from.
        details: further columns by name (genres), for whoever shows an item.
        withdrawn: ids that are recommended no more; they still tell something of the taste of who liked them.
    """

    ids: tuple[str, ...]
    titles: tuple[str, ...]
    likes: tuple[int, ...]
    details: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    withdrawn: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        columns = {"titles": self.titles, "likes": self.likes, **self.details}
        for name, column in columns.items():
            if len(column) != len(self.ids):
                raise ValueError(f"the items have {len(self.ids)} ids and {len(column)} {name}")
        if len(set(self.ids)) != len(self.ids):
            raise ValueError("two items have the same id")
        if unknown := set(self.withdrawn) - set(self.ids):
            raise ValueError(f"the withdrawn item '{min(unknown)}' is not in the table")

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def rows(self) -> dict[str, int]:
        """Each item's row."""
        return {name: row for row, name in enumerate(self.ids)}

    @cached_property
    def withdrawn_rows(self) -> NDArray[np.int64]:
        """The rows of the withdrawn items."""
        return np.array(sorted(self.rows[name] for name in self.withdrawn), np.int64)

    def details_of(self, row: int) -> dict[str, str]:
        """What else is known of an item."""
        return {name: column[row] for name, column in self.details.items() if column[row]}


@dataclass(frozen=True)
class UserHistory:
    """What is known of somebody, and what is asked: the raw thing of this task.

    Attributes:
        history: numbers of the items they rated or chose, the latest last.
        levels: of their ratings, as many.
        hidden: numbers of the items that are not to be recommended.
        similar: whether items like the only one of the history are wanted, not what its friends like next.
        notices: what the client should know of how the request was read.
    """

    history: tuple[int, ...]
    levels: tuple[int, ...]
    hidden: frozenset[int] = frozenset()
    similar: bool = False
    notices: tuple[str, ...] = ()

    @property
    def latest(self) -> tuple[int, ...]:
        """As much of the history as the graph reads."""
        return self.history[-MAX_HISTORY:]


def bucket(length: int) -> int:
    """The length to which a history of this length is filled up."""
    return next((each for each in LENGTH_BUCKETS if length <= each), MAX_HISTORY)


def filled(rows: Sequence[Sequence[int]], length: int) -> NDArray[np.int64]:
    """The last `length` of each row, from the left, filled up with zeros: int64 (n, length)."""
    found = np.zeros((len(rows), length), np.int64)
    for place, row in enumerate(rows):
        latest = row[-length:]
        found[place, : len(latest)] = latest
    return found
