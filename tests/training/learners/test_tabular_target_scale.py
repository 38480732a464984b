"""The scale of a regression target: when its logarithm is learnt, and the bounds of predictions."""

import numpy as np
import pytest

from training.core.errors import CannotTrain
from training.learners.tabular.target_scale import TargetScale, fit_target_scale

COUNTS = np.random.default_rng(0).geometric(0.02, 400).astype(float)


def fit(values, log="auto", bounds=()):
    return fit_target_scale("y", np.asarray(values, float), log=log, bounds=bounds)


def test_skewed_counts_are_learnt_as_log_of_one_plus_count():
    scale = fit(COUNTS)

    assert (scale.log, scale.shift, scale.low) == (True, 1.0, 0.0)
    assert scale.high == pytest.approx(COUNTS.max() + 0.2 * (COUNTS.max() - 1))


def test_symmetric_or_negative_targets_are_learnt_as_they_are():
    even = np.linspace(100, 200, 60)

    assert fit(even) == TargetScale(log=False, shift=0.0, low=80.0, high=220.0)
    assert fit(even - 150) == TargetScale(log=False, shift=0.0, low=-70.0, high=70.0)


def test_prices_are_learnt_as_log_without_a_shift_and_with_finite_bounds():
    prices = np.exp(np.random.default_rng(1).normal(0, 2, 300)) + 1

    scale = fit(prices)

    assert (scale.log, scale.shift) == (True, 0.0)
    assert 0 < scale.low < prices.min()
    assert np.isfinite(scale.bounds).all()


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([5.0] * 60, {}, "is 5 in every training row"),
        (range(20), {}, "Only 20 training rows have a 'y'; at least 50"),
        (range(-5, 60), {"log": "yes"}, "--log-target yes: 'y' contains -5"),
        (range(60), {"bounds": ("0",)}, "--bounds 0: give two numbers"),
        (range(60), {"bounds": ("a", "b")}, "give two numbers"),
        (range(60), {"bounds": ("10", "90")}, "exclude values of 'y', which are 0 to 59"),
    ],
)
def test_unlearnable_target_gets_a_clear_error(values, options, message):
    with pytest.raises(CannotTrain, match=message):
        fit(list(values), **options)
