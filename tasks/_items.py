"""Items and user histories: the table of items to recommend, and a user's ratings as numbers for the graph.

The graph identifies an item by its number: its row in the table plus 1; 0 means no item. Items after the first `known`
rows, which the network has not learnt, have no number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

NO_ITEM, NO_RATING = 0, 0
"""The padding of a history; the level of an item that was chosen but not rated."""
LENGTH_BUCKETS = (8, 32, 128, 512)
"""The lengths to which histories are padded, so that histories of similar length share a batch."""
MAX_HISTORY = LENGTH_BUCKETS[-1]


@dataclass(frozen=True)
class Scale:
    """A rating scale. The graph knows each rating by its level, 1 for the lowest.

    Attributes:
        low: the lowest rating.
        high: the highest rating.
        levels: the number of levels, evenly spaced.
        liked: the lowest rating that means that the user liked the item.
    """

    low: float
    high: float
    levels: int
    liked: float

    def level(self, rating: float) -> int:
        """Return the level of a rating, 1…levels: the nearest one that counts as liked exactly if the rating does."""
        nearest = 1 + round((rating - self.low) / (self.high - self.low) * (self.levels - 1))
        if rating >= self._threshold:
            return max(nearest, self.liked_from)
        return min(nearest, self.liked_from - 1)

    @property
    def _threshold(self) -> float:
        """The limit for ratings that count as liked; slightly below `liked`, since ratings of levels are rounded."""
        return min(self.liked, self.high) - 1e-9

    @cached_property
    def liked_from(self) -> int:
        """The lowest level that counts as liked."""
        return next(i for i in range(1, self.levels + 1) if self.rating(i) >= self._threshold or i == self.levels)

    def rating(self, level: int) -> float:
        """Return the rating that a level represents."""
        return self.low + (level - 1) * (self.high - self.low) / max(1, self.levels - 1)


@dataclass(frozen=True)
class ItemTable:
    """The items that can be recommended, as columns of equal length (except the last two attributes).

    Attributes:
        ids: the items' ids in requests.
        titles: the items' titles.
        likes: how many users of the training data liked each item.
        details: further columns by name (genres), returned with an item.
        withdrawn: ids that are no longer recommended; in a history they still count.
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
        """The row of each item, by id."""
        return {name: row for row, name in enumerate(self.ids)}

    @cached_property
    def withdrawn_rows(self) -> NDArray[np.int64]:
        """The rows of the withdrawn items."""
        return np.array(sorted(self.rows[name] for name in self.withdrawn), np.int64)

    def details_of(self, row: int) -> dict[str, str]:
        """Return the non-empty details of an item."""
        return {name: column[row] for name, column in self.details.items() if column[row]}


@dataclass(frozen=True)
class UserHistory:
    """The decoded content of a request: what is known of a user, and which items to leave out.

    Attributes:
        history: numbers of the items that the user rated or chose, latest last.
        levels: the levels of their ratings.
        hidden: numbers of the items not to recommend.
        similar: True to find items similar to the only one of the history, False to recommend the next item.
        notices: messages to the client about how the request was read.
    """

    history: tuple[int, ...]
    levels: tuple[int, ...]
    hidden: frozenset[int] = frozenset()
    similar: bool = False
    notices: tuple[str, ...] = ()

    @property
    def latest(self) -> tuple[int, ...]:
        """The end of the history, as much as the graph reads."""
        return self.history[-MAX_HISTORY:]


def bucket_length(length: int) -> int:
    """Return the length to which a history of this length is padded."""
    return next((bucket for bucket in LENGTH_BUCKETS if length <= bucket), MAX_HISTORY)


def pad_histories(histories: Sequence[Sequence[int]], length: int) -> NDArray[np.int64]:
    """Stack the last `length` elements of each history, padded with zeros on the right: int64 (n, length)."""
    rows = np.zeros((len(histories), length), np.int64)
    for row, history in zip(rows, histories, strict=True):
        latest = history[-length:]
        row[: len(latest)] = latest
    return rows
