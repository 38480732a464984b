"""What follows from measured costs: which steps run on the event loop, and how outliers and slow phases count."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.latency import LatencyProfile, StepCost, shape_of

SAMPLE_SHAPE = shape_of({"x": np.zeros((1, 3))})


def test_step_is_cheap_only_if_measured_so_for_an_input_of_that_size() -> None:
    cost = StepCost()
    assert not cost.is_cheap(1)

    cost.record(0.0001, size=100)

    assert cost.is_cheap(50)
    assert cost.is_cheap(400)
    assert not cost.is_cheap(1000)


@given(st.floats(1e-5, 10.0), st.floats(0.0, 1e6))
def test_outlier_counts_as_four_times_the_mean_at_most(usual_s: float, outlier_s: float) -> None:
    cost, profile = StepCost(), LatencyProfile()
    for seconds in (usual_s, outlier_s):
        cost.record(seconds, size=1)
        profile.record(SAMPLE_SHAPE, 1, seconds)

    assert cost.predict_s(1) <= 1.3 * usual_s * (1 + 1e-9)
    assert profile.predict_s(SAMPLE_SHAPE, 1) <= 1.3 * usual_s * (1 + 1e-9)


def test_lasting_slowdown_is_learnt_after_a_while() -> None:
    cost, profile = StepCost(), LatencyProfile()
    cost.record(0.01, size=1)
    profile.record(SAMPLE_SHAPE, 1, 0.01)

    for _ in range(100):
        cost.record(1.0, size=1)
        profile.record(SAMPLE_SHAPE, 1, 1.0)

    assert cost.predict_s(1) > 0.9
    assert profile.predict_s(SAMPLE_SHAPE, 1) > 0.9


@pytest.mark.parametrize(
    ("recent_hops", "stays_cheap"), [(0.9, True), (1.5, True), (6.0, True), (10.0, False), (100.0, False)]
)
def test_cheap_work_stays_on_the_event_loop_while_it_is_slower_up_to_a_bound(
    recent_hops: float, stays_cheap: bool
) -> None:
    hop_s = 0.001
    cost, profile = StepCost(hop_s), LatencyProfile()
    cost.record(0.5 * hop_s, size=10)
    profile.record(SAMPLE_SHAPE, 1, 0.5 * hop_s)

    for _ in range(200):
        cost.record(recent_hops * hop_s, size=10)
        profile.record(SAMPLE_SHAPE, 1, recent_hops * hop_s)

    assert cost.is_cheap(10) is stays_cheap
    assert profile.is_cheap(hop_s, SAMPLE_SHAPE, 1) is stays_cheap
    assert profile.is_cheap(hop_s) is stays_cheap


def test_work_that_never_was_cheap_stays_off_the_event_loop() -> None:
    hop_s = 0.001
    cost, profile = StepCost(hop_s), LatencyProfile()

    for _ in range(200):
        cost.record(1.5 * hop_s, size=10)
        profile.record(SAMPLE_SHAPE, 1, 1.5 * hop_s)

    assert not cost.is_cheap(10)
    assert not profile.is_cheap(hop_s, SAMPLE_SHAPE, 1)
