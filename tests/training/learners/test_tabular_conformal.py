"""Conformal calibration of prediction intervals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.learners.tabular.conformal import fit_conformal_scale, likely_coverage, min_calibration_rows


@given(st.integers(0, 99), st.floats(0.5, 0.95))
def test_scaled_interval_covers_the_wanted_fraction_of_calibration_rows(seed, coverage):
    random = np.random.default_rng(seed)
    value, true = random.normal(size=200), random.normal(size=200)
    distances = random.exponential(1, (200, 2)) + 0.01

    scale = fit_conformal_scale(value, distances, true, coverage)

    low, high = value - scale * distances[:, 0], value + scale * distances[:, 1]
    inside = (low <= true + 1e-9) & (true - 1e-9 <= high)
    assert coverage <= inside.mean() <= coverage + 0.02


def test_few_rows_leave_the_coverage_uncertain():
    few, many = likely_coverage(20, 0.8), likely_coverage(2000, 0.8)

    assert few == pytest.approx((0.62, 0.95), abs=0.03)
    assert many == pytest.approx((0.78, 0.82), abs=0.005)


def test_likely_coverage_is_that_of_repeated_calibration():
    random = np.random.default_rng(0)
    ends = np.sort(random.random((20_000, 20)), axis=1)[:, min(20, int(np.ceil(21 * 0.8))) - 1]

    assert np.quantile(ends, [0.025, 0.975]) == pytest.approx(likely_coverage(20, 0.8), abs=0.01)


@pytest.mark.parametrize(("coverage", "rows"), [(0.8, 4), (0.9, 9), (0.5, 1)])
def test_interval_needs_rows_enough_for_its_coverage(coverage, rows):
    assert min_calibration_rows(coverage) == rows
