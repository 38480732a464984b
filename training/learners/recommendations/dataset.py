"""Histories as samples: what somebody had done up to a moment, and what they liked next."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tasks._items import MAX_HISTORY, NO_RATING, bucket_length, pad_histories
from training.engine.batches import Key, SampleSet, derived_seed
from training.engine.runtime import Batch
from training.learners.recommendations.interactions import Person, Ratings

NO_TARGET = -1


def batch_of(
    histories: Sequence[NDArray[np.integer]],
    levels: Sequence[NDArray[np.integer]],
    hidden: Sequence[NDArray[np.integer]],
    items: int,
    longest: int = MAX_HISTORY,
) -> Batch:
    """The task's inputs: `histories` and `hidden` are rows of the table (the graph's numbers less one)."""
    length = bucket_length(min(longest, max(map(len, histories), default=0)))
    cut = [(history[-longest:] + 1).tolist() for history in histories]
    candidates = torch.ones(len(cut), items, dtype=torch.uint8)
    for row, rows in zip(candidates, hidden, strict=True):
        row[torch.from_numpy(rows)] = 0
    return {
        "history": torch.from_numpy(pad_histories(cut, length)),
        "levels": torch.from_numpy(pad_histories([each[-longest:].tolist() for each in levels], length)),
        "candidates": candidates,
        "similar": torch.zeros(len(cut), 1, dtype=torch.uint8),
    }


class HistorySamples(SampleSet):
    """Of each user, runs of `ahead` liked items: the history before a run is the sample, the run its targets.

    Where a run begins is shifted from epoch to epoch. Where the data has no order, the history is all else that the
    user rated. A history is the latest `window` items; a share of the liked ones loses its rating, so that the network
    learns what an item without one says.
    """

    def __init__(self, ratings: Ratings, *, window: int, ahead: int, unrated: float) -> None:
        self.items, self.ordered, self.window, self.ahead = ratings.known, ratings.ordered, window, ahead
        self.unrated = unrated if ratings.scale else 0.0
        self.people, self.starts = list[Person](), list[tuple[int, int]]()
        self.liked = list[NDArray[np.int64]]()
        for person in ratings.people:
            places = np.flatnonzero(person.liked[: person.trained_until])
            first = 1 if self.ordered else 0
            places = places[places >= first]
            if len(places) and person.trained_until > 1:
                self.starts += [(len(self.people), run) for run in range(0, len(places), ahead)]
                self.people.append(person)
                self.liked.append(places)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """The task's inputs, and `target`: rows of the table (n, ahead), NO_TARGET where there are fewer."""
        histories, levels, targets = [], [], np.full((len(keys), self.ahead), NO_TARGET)
        for place, (epoch, index) in enumerate(keys):
            random = np.random.default_rng(derived_seed(epoch, index))
            person, run = self._run(index, random)
            history, level = self._before(person, run)
            forgotten = person.liked[history] & (random.random(len(history)) < self.unrated)
            histories.append(person.items[history])
            levels.append(np.where(forgotten, NO_RATING, level))
            targets[place, : len(run)] = person.items[run]
        found = batch_of(histories, levels, histories, self.items, self.window)
        return {**found, "target": torch.from_numpy(targets), "index": torch.tensor([index for _, index in keys])}

    def _run(self, index: int, random: np.random.Generator) -> tuple[Person, NDArray[np.int64]]:
        who, start = self.starts[index]
        places = self.liked[who]
        begin = min(start + int(random.integers(self.ahead)), len(places) - 1)
        return self.people[who], places[begin : begin + self.ahead]

    def _before(self, person: Person, run: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The places of the history, and its levels."""
        places = np.arange(run[0]) if self.ordered else np.setdiff1d(np.arange(person.trained_until), run)
        return places, person.levels[places]


@dataclass(frozen=True)
class EvalQuery:
    """A user at the moment before a held-out item."""

    person: Person
    until: int

    @property
    def history(self) -> NDArray[np.int64]:
        """All that was rated before, as rows."""
        return self.person.items[: self.until]

    @property
    def liked(self) -> NDArray[np.int64]:
        """What of it was liked."""
        return self.history[self.person.liked[: self.until]]

    @property
    def wanted(self) -> int:
        """The row of the held-out item."""
        return int(self.person.items[self.until])


class EvalQueries(SampleSet):
    """The held-out items of all users, or of as many as `most`: what the network is asked, and what it should say."""

    def __init__(self, ratings: Ratings, *, test: bool, most: int = 5_000) -> None:
        self.items = ratings.known
        asked = [EvalQuery(each, each.held_out[test]) for each in ratings.people if each.held_out]
        self.asked = asked[:: -(-len(asked) // most)]

    def __len__(self) -> int:
        return len(self.asked)

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """The task's inputs with all that was rated hidden, and `target`: the held-out item's row, (n, 1)."""
        chosen = [self.asked[index] for _, index in keys]
        histories = [each.history for each in chosen]
        levels = [each.person.levels[: each.until] for each in chosen]
        found = batch_of(histories, levels, histories, self.items)
        targets = torch.tensor([[each.wanted] for each in chosen])
        return {**found, "target": targets, "index": torch.tensor([index for _, index in keys])}
