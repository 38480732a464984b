import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.core.errors import CannotTrain
from training.learners.tabular.network import NumberNetwork, Scale, ServedNumber, TabularNetwork, pinball
from training.learners.tabular.target_scale import error, explained, measures_for, scale_of, stretch_for

COUNTS = np.random.default_rng(0).geometric(0.02, 400).astype(float)


def scale(numbers, log="auto", bounds=()):
    return scale_of("y", np.asarray(numbers, float), log=log, bounds=bounds)


def test_skewed_counts_are_learnt_by_their_logarithm_from_one_up():
    found = scale(COUNTS)

    assert (found.log, found.shift, found.low) == (True, 1.0, 0.0)
    assert found.high == pytest.approx(COUNTS.max() + 0.2 * (COUNTS.max() - 1))


def test_what_is_not_skewed_or_may_be_negative_is_learnt_as_it_is():
    even = np.linspace(100, 200, 60)

    assert scale(even) == Scale(log=False, shift=0.0, low=80.0, high=220.0)
    assert scale(even - 150) == Scale(log=False, shift=0.0, low=-70.0, high=70.0)


def test_prices_have_no_one_added_and_a_bound_that_has_a_logarithm():
    prices = np.exp(np.random.default_rng(1).normal(0, 2, 300)) + 1

    found = scale(prices)

    assert (found.log, found.shift) == (True, 0.0)
    assert 0 < found.low < prices.min()
    assert np.isfinite(found.bounds).all()


@pytest.mark.parametrize(
    ("numbers", "options", "sentence"),
    [
        ([5.0] * 60, {}, "is 5 in every row to train on"),
        (range(20), {}, "There are 20 rows with a 'y' to train on; at least 50"),
        (range(-5, 60), {"log": "yes"}, "--log-target yes: 'y' holds -5"),
        (range(60), {"bounds": ("0",)}, "--bounds 0: two numbers"),
        (range(60), {"bounds": ("a", "b")}, "two numbers are wanted"),
        (range(60), {"bounds": ("10", "90")}, "leave out what 'y' holds: 0 to 59"),
    ],
)
def test_a_target_that_cannot_be_learnt_gets_one_sentence(numbers, options, sentence):
    with pytest.raises(CannotTrain, match=sentence):
        scale(list(numbers), **options)


def test_what_may_be_measured_follows_from_the_signs():
    assert measures_for(np.array([1.0, 2.0]), log=True, options="auto") == ("rmsle", "rmspe", "rmse", "mae")
    assert measures_for(np.array([0.0, 2.0]), log=False, options="auto") == ("rmse", "rmsle", "mae")
    assert measures_for(np.array([-1.0, 2.0]), log=False, options="mae") == ("mae", "rmse")
    with pytest.raises(CannotTrain, match="--measure rmspe needs a target whose numbers are all above zero"):
        measures_for(np.array([0.0, 2.0]), log=False, options="rmspe")


def test_errors_are_those_of_their_formulas():
    found, truth = np.array([2.0, 4.0]), np.array([1.0, 8.0])

    assert error("rmse", found, truth) == pytest.approx(np.sqrt(17 / 2))
    assert error("mae", found, truth) == 2.5
    assert error("rmspe", found, truth) == pytest.approx(np.sqrt((1 + 0.25) / 2))
    assert error("rmsle", found, truth) == pytest.approx(np.sqrt((np.log(1.5) ** 2 + np.log(5 / 9) ** 2) / 2))
    assert explained(truth, truth) == 1
    assert explained(np.full(2, 4.5), truth) == 0


@given(st.integers(0, 99), st.floats(0.5, 0.95))
def test_the_stretched_interval_holds_at_least_as_often_as_asked_where_it_was_calibrated(seed, coverage):
    random = np.random.default_rng(seed)
    number, truth = random.normal(size=200), random.normal(size=200)
    distances = random.exponential(1, (200, 2)) + 0.01

    stretch = stretch_for(number, distances, truth, coverage)

    inside = (number - stretch * distances[:, 0] <= truth + 1e-9) & (truth - 1e-9 <= number + stretch * distances[:, 1])
    assert coverage <= inside.mean() <= coverage + 0.02


@pytest.mark.parametrize("outside", [0.2, 0.5])
def test_the_quantile_loss_is_least_at_the_quantiles(outside):
    targets = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    low, high = (-torch.quantile(targets, outside / 2)).item(), torch.quantile(targets, 1 - outside / 2).item()

    def loss(below, above):
        distances = torch.tensor([[below, above]]).expand(len(targets), 2)
        return float(pinball(torch.zeros(len(targets)), distances, targets, outside))

    best = loss(low, high)
    assert all(best <= loss(low + a, high + b) for a in (-0.1, 0, 0.1) for b in (-0.1, 0, 0.1))


def network(scaled):
    torch.manual_seed(0)
    rows = TabularNetwork(
        [3], torch.randn(100, 2), 1, layers=[8], dropout=0.0, bins=4, value_dropout=0.0, straight=(1,)
    )
    targets = scaled.learnt(torch.linspace(scaled.low + 1, scaled.high - 1, 100, dtype=torch.float64))
    return NumberNetwork(rows, scaled, targets)


@given(st.floats(-1e6, 1e6, width=32), st.sampled_from([True, False]), st.floats(0.1, 5))
def test_no_answer_leaves_the_bounds_and_the_number_lies_in_its_interval(value, log, stretch):
    scaled = Scale(log=log, shift=1.0 if log else 0.0, low=0.0, high=1000.0)
    served = ServedNumber(network(scaled), scaled, stretch).eval()

    with torch.no_grad():
        number, interval = served(torch.tensor([[2]]), torch.tensor([[value, -value]]))

    assert -1e-3 <= interval[0, 0] <= number[0] <= interval[0, 1] <= 1000.5


def test_the_distances_teach_the_number_nothing():
    made = network(Scale(log=False, shift=0.0, low=0.0, high=10.0))

    number, distances = made(torch.tensor([[2], [3]]), torch.randn(2, 2))
    pinball(number.detach(), distances, torch.ones(2), 0.2).backward()

    taught = {name for name, each in made.named_parameters() if each.grad is not None and each.grad.abs().sum() > 0}
    assert taught == {"distances.weight", "distances.bias"}


def test_a_number_that_counts_the_time_is_not_cut_into_bins_and_goes_on():
    made = network(Scale(log=False, shift=0.0, low=0.0, high=10.0)).rows.numbers

    features = made(torch.tensor([[0.0, 2.0], [0.0, 3.0]]))

    changed = (features[0] != features[1]).nonzero().flatten().tolist()
    assert changed == [1], "the standardised value alone"
