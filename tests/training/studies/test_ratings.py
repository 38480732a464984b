"""The study of ratings: its baselines by hand, its split, and networks that learn what there is to learn."""

import numpy as np
import pytest
import torch

from training.core.config import Settings
from training.engine.batches import shuffled_keys
from training.studies._rating_networks import RatingNetwork
from training.studies.ratings import KINDS, Asked, Rated, Raters, biases, rmse, split


def rated(*rows):
    users, items, ratings = zip(*rows, strict=True)
    return Rated(torch.tensor(users), torch.tensor(items), torch.tensor(ratings, dtype=torch.float32))


@pytest.fixture
def folder(tmp_path):
    """Twelve users, ten films: two kinds of each, who give their own kind five stars and the other one."""
    lines = [f"{u + 1}\t{i + 1}\t{5 if u % 2 == i % 2 else 1}\t{100 * u + i}" for u in range(12) for i in range(10)]
    (tmp_path / "u1.base").write_text("\n".join(line for n, line in enumerate(lines) if n % 7) + "\n")
    (tmp_path / "u1.test").write_text("\n".join(line for n, line in enumerate(lines) if n % 7 == 0) + "\n")
    return tmp_path


def test_biases_by_hand():
    mean, user, item = biases(rated((0, 0, 5), (0, 1, 3), (1, 0, 4), (1, 1, 4)), (3, 3), shrunk=0.0)

    assert mean == 4
    assert item.tolist()[:2] == [0.5, -0.5]
    assert user.tolist()[:2] == [0, 0]


def test_the_epoch_is_chosen_by_ratings_of_the_training_part_alone(folder):
    found = split(folder, 0.1)

    pairs = [
        set(zip(each.users.tolist(), each.items.tolist(), strict=True))
        for each in (found.train, found.valid, found.test)
    ]
    assert found.counts == (12, 10)
    assert [len(each) for each in pairs] == [92, 10, 18]
    assert not pairs[0] & pairs[1] | pairs[1] & pairs[2] | pairs[0] & pairs[2]
    assert len(found.base.users) == 102


def test_what_was_rated_in_training_is_never_recommended(folder):
    found = split(folder, 0.1)
    asked = Asked(found)
    scores = found.base.matrix(*found.counts)[asked.users].numpy().copy()

    gain, covered = asked.judged(scores + 1)

    assert all(set(hidden).isdisjoint(wanted) for hidden, wanted in zip(asked.hidden, asked.wanted, strict=True))
    assert 0 < gain <= 1
    assert 0 < covered <= 1


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.words)
def test_a_network_learns_two_kinds_of_people(folder, kind):
    found = split(folder, 0.1)
    torch.manual_seed(0)
    trainee = Raters(kind, found.train, found.valid, Settings(), 4, found.counts)
    network = trainee.network()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    before = rmse(network, found.test)

    for epoch in range(60):
        for keys in shuffled_keys(len(trainee.samples), 46, seed=0, epoch=epoch):
            optimizer.zero_grad()
            trainee.loss(network.train(), trainee.samples.__getitems__(keys)).backward()
            optimizer.step()

    assert before > 1.5
    assert rmse(network, found.test) < 0.8


def test_ratings_stay_within_their_bounds_and_all_items_are_those_of_each():
    network = RatingNetwork(3, 4, size=2, bounds=(0.0, 5.5), rated=torch.eye(3, 4)).eval()
    with torch.no_grad():
        network.item_bias.weight.add_(100)
        assert float(network(torch.tensor([0]), torch.tensor([1]))[0]) == 5.5
        network.item_bias.weight.sub_(100)
        scores = network.all_items(torch.tensor([2, 0]))
        one = network(torch.tensor([0]), torch.tensor([3]))[0]

    assert scores.shape == (2, 4)
    np.testing.assert_allclose(scores[1, 3], one[0], atol=1e-6)
