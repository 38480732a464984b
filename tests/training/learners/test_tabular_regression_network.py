"""The regression network: its interval, its bounds, and its loss."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.learners.tabular.network import RegressionNetwork, ServedRegression, TabularNetwork, pinball_loss
from training.learners.tabular.target_scale import TargetScale

UP_TO_TEN = TargetScale(log=False, shift=0.0, low=0.0, high=10.0)


def network(scale):
    torch.manual_seed(0)
    backbone = TabularNetwork(
        [3], torch.randn(100, 2), 1, layers=[8], dropout=0.0, bins=4, value_dropout=0.0, unbinned=(1,)
    )
    targets = scale.transform(torch.linspace(scale.low + 1, scale.high - 1, 100, dtype=torch.float64))
    return RegressionNetwork(backbone, scale, targets)


@pytest.mark.parametrize("outside", [0.2, 0.5])
def test_pinball_loss_is_smallest_at_the_quantiles(outside):
    targets = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    low, high = (-torch.quantile(targets, outside / 2)).item(), torch.quantile(targets, 1 - outside / 2).item()

    def loss(below, above):
        distances = torch.tensor([[below, above]]).expand(len(targets), 2)
        return float(pinball_loss(torch.zeros(len(targets)), distances, targets, outside))

    best = loss(low, high)
    assert all(best <= loss(low + a, high + b) for a in (-0.1, 0, 0.1) for b in (-0.1, 0, 0.1))


@given(st.floats(-1e6, 1e6, width=32), st.sampled_from([True, False]), st.floats(0.1, 5))
def test_predictions_stay_within_the_bounds_and_their_interval(number, log, conformal_scale):
    scale = TargetScale(log=log, shift=1.0 if log else 0.0, low=0.0, high=1000.0)
    served = ServedRegression(network(scale), scale, conformal_scale).eval()

    with torch.no_grad():
        value, interval = served(torch.tensor([[2]]), torch.tensor([[number, -number]]))

    assert -1e-3 <= interval[0, 0] <= value[0] <= interval[0, 1] <= 1000.5


def test_loss_of_the_distances_has_no_gradient_for_the_value():
    regression = network(UP_TO_TEN)

    value, distances = regression(torch.tensor([[2], [3]]), torch.randn(2, 2))
    pinball_loss(value.detach(), distances, torch.ones(2), 0.2).backward()

    learning = {name for name, p in regression.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert learning == {"distances.weight", "distances.bias"}


def test_unbinned_number_is_encoded_beyond_the_training_data():
    encoder = network(UP_TO_TEN).backbone.numbers

    features = encoder(torch.tensor([[0.0, 2.0], [0.0, 3.0]]))

    changed = (features[0] != features[1]).nonzero().flatten().tolist()
    assert changed == [1], "the standardised value alone"
