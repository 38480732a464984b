import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks._tables import MISSING, UNKNOWN
from training.learners.tabular.network import NumericEncoder, TabularNetwork, embedding_size


def make_network(categories=(3, 5), columns=2, **options):
    torch.manual_seed(0)
    numbers = torch.randn(200, columns) * 50
    settings = {"layers": [16], "dropout": 0.0, "bins": 8, "value_dropout": 0.0} | options
    return TabularNetwork(categories, numbers, 3, **settings)


@given(st.integers(2, 5000))
def test_embeddings_grow_with_the_number_of_categories_and_stay_smaller(count):
    assert 1 <= embedding_size(count) <= min(600, 2 * count)
    assert embedding_size(count) <= embedding_size(count + 1)


def test_unknown_and_missing_values_give_finite_logits_that_differ_from_known_ones():
    network = make_network().eval()
    categories = torch.tensor([[2, 2], [UNKNOWN, 2], [MISSING, 2], [2, 2]])
    numbers = torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0], [torch.nan, 2.0]])

    with torch.no_grad():
        (logits,) = network(categories, numbers)

    assert logits.isfinite().all()
    assert len({tuple(row) for row in logits.tolist()}) == 4


@given(st.floats(-(2.0**99), 2.0**99, width=32))
def test_any_finite_number_gives_bounded_features(value):
    numbers = NumericEncoder(torch.tensor([[0.0], [0.0], [5.0], [99999.0]]), 8)

    features = numbers(torch.tensor([[value]]))

    assert features.isfinite().all()
    assert features.abs().max() <= 5


def test_the_other_values_of_a_mostly_zero_column_are_distinguished():
    values = torch.cat([torch.zeros(950), torch.linspace(100, 20000, 50)]).unsqueeze(1)
    numbers = NumericEncoder(values, 16)

    low, high = numbers(torch.tensor([[150.0]])), numbers(torch.tensor([[9000.0]]))

    assert (low - high).abs()[:, 2:].sum() > 1


def test_a_column_without_known_numbers_and_a_table_without_numbers_work():
    empty = NumericEncoder(torch.full((5, 1), torch.nan), 4)
    no_numbers = make_network(columns=0).eval()

    assert empty(torch.tensor([[3.0], [torch.nan]])).isfinite().all()
    assert no_numbers(torch.tensor([[2, 2]]), torch.zeros(1, 0))[0].shape == (1, 3)


def test_training_drops_a_fraction_of_the_values_and_serving_none():
    network = make_network(value_dropout=0.5)
    categories, numbers = torch.full((400, 2), 2), torch.ones(400, 2)

    dropped_categories, dropped_numbers = network._drop_values(categories, numbers)

    assert {UNKNOWN, MISSING} <= set(dropped_categories.flatten().tolist())
    assert 0.4 < dropped_numbers.isnan().float().mean() < 0.6
    network.eval()
    with torch.no_grad():
        assert np.unique(network(categories, numbers)[0].numpy(), axis=0).shape[0] == 1
