"""Histories as samples: what a user did up to some time, and what they liked next."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tasks._items import MAX_HISTORY, NO_RATING, bucket_length, pad_histories
from training.engine.batches import Key, SampleSet, derived_seed
from training.engine.runtime import Batch
from training.learners.recommendations.interactions import Ratings, User

NO_TARGET = -1


def make_batch(
    histories: Sequence[NDArray[np.integer]],
    levels: Sequence[NDArray[np.integer]],
    hidden: Sequence[NDArray[np.integer]],
    items: int,
    max_history: int = MAX_HISTORY,
) -> Batch:
    """Return the inputs of the task.

    Args:
        histories: rows of the item table for each sample, latest last; the inputs number the items from 1.
        levels: the levels of the ratings in the histories.
        hidden: rows that are not candidates.
        items: how many items there are.
        max_history: the most items of a history to use, the latest.
    """
    length = bucket_length(min(max_history, max(map(len, histories), default=0)))
    numbers = [(history[-max_history:] + 1).tolist() for history in histories]
    candidates = torch.ones(len(numbers), items, dtype=torch.uint8)
    for row, rows in zip(candidates, hidden, strict=True):
        row[torch.from_numpy(rows)] = 0
    return {
        "history": torch.from_numpy(pad_histories(numbers, length)),
        "levels": torch.from_numpy(pad_histories([values[-max_history:].tolist() for values in levels], length)),
        "candidates": candidates,
        "similar": torch.zeros(len(numbers), 1, dtype=torch.uint8),
    }


class HistorySamples(SampleSet):
    """Runs of liked items as targets, with the history before each run as input.

    Each user's liked items are cut into runs of `targets_per_sample`, and where the runs begin shifts from epoch to
    epoch. If the data has no order, the history is everything else that the user rated. A history is cut to its latest
    `window` items. A fraction `rating_dropout` of its liked items loses the rating, so that the network learns what an
    item without a rating means.
    """

    def __init__(self, ratings: Ratings, *, window: int, targets_per_sample: int, rating_dropout: float) -> None:
        self.items, self.ordered, self.window = ratings.known, ratings.ordered, window
        self.targets_per_sample = targets_per_sample
        self.rating_dropout = rating_dropout if ratings.scale else 0.0
        self.users, self.starts = list[User](), list[tuple[int, int]]()
        self.liked_places = list[NDArray[np.int64]]()
        for user in ratings.users:
            places = np.flatnonzero(user.liked[: user.train_end])
            first = 1 if self.ordered else 0
            places = places[places >= first]
            if len(places) and user.train_end > 1:
                self.starts += [(len(self.users), start) for start in range(0, len(places), targets_per_sample)]
                self.users.append(user)
                self.liked_places.append(places)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """Return the task's inputs, and `target`: int64 (n, targets_per_sample), filled up with NO_TARGET."""
        histories, levels, targets = [], [], np.full((len(keys), self.targets_per_sample), NO_TARGET)
        for target, (epoch, index) in zip(targets, keys, strict=True):
            random = np.random.default_rng(derived_seed(epoch, index, self.seed))
            user, run = self._draw_run(index, random)
            history, history_levels = self._history_of(user, run)
            without_rating = user.liked[history] & (random.random(len(history)) < self.rating_dropout)
            histories.append(user.items[history])
            levels.append(np.where(without_rating, NO_RATING, history_levels))
            target[: len(run)] = user.items[run]
        inputs = make_batch(histories, levels, histories, self.items, self.window)
        return {**inputs, "target": torch.from_numpy(targets), "index": torch.tensor([index for _, index in keys])}

    def _draw_run(self, index: int, random: np.random.Generator) -> tuple[User, NDArray[np.int64]]:
        """Return the user of a sample and the places of its targets among the user's items."""
        user, start = self.starts[index]
        places = self.liked_places[user]
        begin = min(start + int(random.integers(self.targets_per_sample)), len(places) - 1)
        return self.users[user], places[begin : begin + self.targets_per_sample]

    def _history_of(self, user: User, run: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the places of the history that goes with a run of targets, and its levels."""
        places = np.arange(run[0]) if self.ordered else np.setdiff1d(np.arange(user.train_end), run)
        return places, user.levels[places]


@dataclass(frozen=True)
class EvalQuery:
    """A user at the time before a held-out item, which is at `place` among the user's items."""

    user: User
    place: int

    @property
    def history(self) -> NDArray[np.int64]:
        """Rows of all items that the user rated before."""
        return self.user.items[: self.place]

    @property
    def levels(self) -> NDArray[np.int64]:
        """Levels of the ratings in the history."""
        return self.user.levels[: self.place]

    @property
    def liked(self) -> NDArray[np.int64]:
        """Rows of the liked items of the history."""
        return self.history[self.user.liked[: self.place]]

    @property
    def target(self) -> int:
        """The row of the held-out item."""
        return int(self.user.items[self.place])


class EvalQueries(SampleSet):
    """A query for the held-out item of each user, or of every n-th user if there are more than `max_queries`."""

    def __init__(self, ratings: Ratings, *, test: bool, max_queries: int = 5_000) -> None:
        self.items = ratings.known
        queries = [EvalQuery(user, user.held_out[test]) for user in ratings.users if user.held_out]
        self.queries = queries[:: -(-len(queries) // max_queries)]

    def __len__(self) -> int:
        return len(self.queries)

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """Return the task's inputs, with the histories hidden, and `target`: the held-out item's row, int64 (n, 1)."""
        queries = [self.queries[index] for _, index in keys]
        histories = [query.history for query in queries]
        inputs = make_batch(histories, [query.levels for query in queries], histories, self.items)
        targets = torch.tensor([[query.target] for query in queries])
        return {**inputs, "target": targets, "index": torch.tensor([index for _, index in keys])}
