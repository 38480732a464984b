"""Training samples of the recommender: histories and targets."""

import numpy as np
import torch

from tests.training.learners.shop import write_shop
from training.learners.recommendations.dataset import NO_TARGET, HistorySamples
from training.learners.recommendations.interactions import ColumnNames, read_ratings


def test_samples_contain_nothing_held_out_and_nothing_later_than_their_targets(tmp_path):
    ratings = read_ratings(write_shop(tmp_path), ColumnNames(), liked=4.0, seed=0)
    samples = HistorySamples(ratings, window=64, targets_per_sample=2, rating_dropout=0.0)
    likes = np.zeros(ratings.known, int)
    for user in ratings.users:
        liked = user.items[: user.train_end][user.liked[: user.train_end]]
        likes += np.bincount(liked, minlength=ratings.known)

    for epoch in range(3):
        for index in range(len(samples)):
            batch = samples.__getitems__([(epoch, index)])
            user = samples.users[samples.starts[index][0]]
            order = user.items.tolist()
            history = [row - 1 for row in batch["history"][0].tolist() if row]
            targets = [row for row in batch["target"][0].tolist() if row != NO_TARGET]
            assert history == order[: len(history)]
            assert all(len(history) <= order.index(row) < user.train_end for row in targets)
            assert all(user.liked[order.index(row)] for row in targets)
            assert batch["candidates"][0].nonzero()[:, 0].tolist() == sorted(set(range(24)) - set(history))
    assert likes.tolist() == ratings.likes.tolist()


def test_without_times_the_order_follows_from_the_seed_and_a_history_is_everything_else(tmp_path):
    def read(name, seed):
        return read_ratings(write_shop(tmp_path / name, times=False), ColumnNames(), liked=4.0, seed=seed)

    ratings = read("a", 0)
    orders = [[user.items.tolist() for user in shuffled.users] for shuffled in (ratings, read("b", 0), read("c", 1))]
    samples = HistorySamples(ratings, window=64, targets_per_sample=1, rating_dropout=0.0)
    batch = samples.__getitems__([(0, 0)])
    user = samples.users[0]
    trained = set(user.items[: user.train_end].tolist())

    assert not ratings.ordered
    assert orders[0] == orders[1] != orders[2]
    assert {row - 1 for row in batch["history"][0].tolist() if row} == trained - {int(batch["target"])}


def test_each_seed_cuts_histories_and_drops_ratings_otherwise(tmp_path):
    ratings = read_ratings(write_shop(tmp_path), ColumnNames(), liked=4.0, seed=0)
    samples = HistorySamples(ratings, window=64, targets_per_sample=2, rating_dropout=0.5)
    keys = [(0, index) for index in range(len(samples))]

    first, second, again = (samples.for_seed(seed).__getitems__(keys) for seed in (0, 1, 0))

    assert torch.equal(first["levels"], again["levels"])
    assert not torch.equal(first["target"], second["target"])
