"""The ratings study: its baselines, its split, and training of its networks."""

import numpy as np
import pytest
import torch

from training.core.config import Settings
from training.engine.batches import shuffled_keys
from training.studies._rating_networks import RatingNetwork
from training.studies.ratings import RATING_MODELS, RankingTest, RatingPrediction, Ratings, fit_biases, read_split, rmse


def make_ratings(*rows):
    users, items, values = zip(*rows, strict=True)
    return Ratings(torch.tensor(users), torch.tensor(items), torch.tensor(values, dtype=torch.float32))


@pytest.fixture
def folder(tmp_path):
    """Twelve users and ten films of two kinds; users give films of their kind five stars, the others one."""
    lines = [f"{u + 1}\t{i + 1}\t{5 if u % 2 == i % 2 else 1}\t{100 * u + i}" for u in range(12) for i in range(10)]
    (tmp_path / "u1.base").write_text("\n".join(line for n, line in enumerate(lines) if n % 7) + "\n")
    (tmp_path / "u1.test").write_text("\n".join(line for n, line in enumerate(lines) if n % 7 == 0) + "\n")
    return tmp_path


def test_biases_of_a_known_case():
    mean, user, item = fit_biases(make_ratings((0, 0, 5), (0, 1, 3), (1, 0, 4), (1, 1, 4)), (3, 3), shrinkage=0.0)

    assert mean == 4
    assert item.tolist()[:2] == [0.5, -0.5]
    assert user.tolist()[:2] == [0, 0]


def test_the_epoch_is_selected_on_ratings_of_the_training_part_only(folder):
    split = read_split(folder, 0.1)

    pairs = [
        set(zip(part.users.tolist(), part.items.tolist(), strict=True))
        for part in (split.train, split.valid, split.test)
    ]
    assert split.counts == (12, 10)
    assert [len(part) for part in pairs] == [92, 10, 18]
    assert not pairs[0] & pairs[1] | pairs[1] & pairs[2] | pairs[0] & pairs[2]
    assert len(split.base.users) == 102


def test_items_rated_in_training_are_never_recommended(folder):
    split = read_split(folder, 0.1)
    test = RankingTest(split)
    scores = split.base.matrix(*split.counts)[test.users].numpy().copy()

    gain, coverage = test.evaluate(scores + 1)

    assert all(
        set(excluded).isdisjoint(relevant) for excluded, relevant in zip(test.excluded, test.relevant, strict=True)
    )
    assert 0 < gain <= 1
    assert 0 < coverage <= 1


@pytest.mark.parametrize("model", RATING_MODELS, ids=lambda model: model.description)
def test_a_network_learns_two_kinds_of_users(folder, model):
    split = read_split(folder, 0.1)
    torch.manual_seed(0)
    trainable = RatingPrediction(model, split.train, split.valid, Settings(), 4, split.counts)
    network = trainable.network()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    before = rmse(network, split.test)

    for epoch in range(60):
        for keys in shuffled_keys(len(trainable.samples), 46, seed=0, epoch=epoch):
            optimizer.zero_grad()
            trainable.loss(network.train(), trainable.samples.__getitems__(keys)).backward()
            optimizer.step()

    assert before > 1.5
    assert rmse(network, split.test) < 0.8


def test_ratings_stay_within_bounds_and_all_items_agree_with_single_ones():
    network = RatingNetwork(3, 4, size=2, bounds=(0.0, 5.5), rated=torch.eye(3, 4)).eval()
    with torch.no_grad():
        network.item_bias.weight.add_(100)
        assert float(network(torch.tensor([0]), torch.tensor([1]))[0]) == 5.5
        network.item_bias.weight.sub_(100)
        scores = network.all_items(torch.tensor([2, 0]))
        single = network(torch.tensor([0]), torch.tensor([3]))[0]

    assert scores.shape == (2, 4)
    np.testing.assert_allclose(scores[1, 3], single[0], atol=1e-6)
