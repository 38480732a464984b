"""Conformal calibration of prediction intervals."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from training.learners.tabular.conformal import fit_conformal_scale


@given(st.integers(0, 99), st.floats(0.5, 0.95))
def test_scaled_interval_covers_the_wanted_fraction_of_calibration_rows(seed, coverage):
    random = np.random.default_rng(seed)
    value, true = random.normal(size=200), random.normal(size=200)
    distances = random.exponential(1, (200, 2)) + 0.01

    scale = fit_conformal_scale(value, distances, true, coverage)

    low, high = value - scale * distances[:, 0], value + scale * distances[:, 1]
    inside = (low <= true + 1e-9) & (true - 1e-9 <= high)
    assert coverage <= inside.mean() <= coverage + 0.02
