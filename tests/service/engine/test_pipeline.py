"""What is decided from what was measured."""

import asyncio
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.latency import LatencyProfile, StepCost, fastest, settled, shape_of, useful_batch
from service.engine.scheduler import Scheduler
from tests.fake_device import HANGS, FakeDevice, Model, Speed, sample
from tests.virtual_clock import run_virtually

ONE = shape_of({"x": np.zeros((1, 3))})


@pytest.mark.parametrize(
    ("seconds_of", "most", "size"),
    [
        (lambda size: 0.010 + 0.0001 * size, 32, 32),
        (lambda size: 0.010 + 0.0001 * size, 24, 24),
        (lambda size: 0.010 + 0.0001 * size, 1, 1),
        (lambda size: 0.030 * size, 32, 1),
        (lambda size: 0.001 * size * (1 if size <= 4 else 1.2), 32, 2),
        (lambda size: 0.010 * max(1, size / 8), 32, 8),
    ],
    ids=["a GPU", "up to the setting", "no batches wanted", "no gain", "a cache of four", "eight side by side"],
)
def test_a_batch_is_as_large_as_makes_a_sample_cheaper(seconds_of: object, most: int, size: int) -> None:
    assert useful_batch(seconds_of, most) == size  # type: ignore[arg-type]


def test_what_grows_dearer_is_not_tried_at_its_dearest() -> None:
    tried = []

    def seconds_of(size: int) -> float:
        tried.append(size)
        return 0.1 * size**1.5

    useful_batch(seconds_of, 1024)

    assert max(tried) <= 8


def test_a_slow_batch_that_gains_nothing_is_the_last_one_tried() -> None:
    tried = []

    def seconds_of(size: int) -> float:
        tried.append(size)
        return 0.1 * size

    assert useful_batch(seconds_of, 1024) == 1
    assert tried == [1, 2]


def test_what_is_slow_is_not_tried_twice() -> None:
    tries = []

    def slow() -> None:
        tries.append(0)
        until = time.perf_counter() + 0.06
        while time.perf_counter() < until:
            pass

    assert fastest(slow) >= 0.06
    assert settled(StepCost(), 1, slow) is None
    assert len(tries) == 2


def test_a_step_is_cheap_only_where_it_was_measured_so_for_input_of_that_size() -> None:
    cost = StepCost()
    assert not cost.is_cheap(1)

    cost.add(0.0001, size=100)

    assert cost.is_cheap(50)
    assert cost.is_cheap(400)
    assert not cost.is_cheap(1000)


@given(st.floats(1e-5, 10.0), st.floats(0.0, 1e6))
def test_one_run_counts_as_no_more_than_four_times_the_mean(usual: float, exception: float) -> None:
    cost, curve = StepCost(), LatencyProfile()
    for seconds in (usual, exception):
        cost.add(seconds, size=1)
        curve.add(ONE, 1, seconds)

    assert cost.expected(1) <= 1.3 * usual * (1 + 1e-9)
    assert curve.seconds(ONE, 1) <= 1.3 * usual * (1 + 1e-9)


def test_a_run_that_hung_and_came_back_leaves_a_model_as_quick_as_it_was() -> None:
    async def main() -> LatencyProfile:
        device, scheduler = FakeDevice(), Scheduler(2, hang_s=5)
        model = Model(device, scheduler, most=1, speed=Speed(0.01, 0.0))
        hung = model.asked(HANGS)
        await asyncio.sleep(100)
        device.released.set()
        await asyncio.sleep(1)
        await asyncio.gather(hung, return_exceptions=True)
        assert device.runs[0].ended > 100
        return model.curve

    assert run_virtually(main()).seconds(shape_of(sample(0.0)), 1) <= 4 * 0.01


def test_what_is_really_slower_by_now_is_known_to_be_after_a_while() -> None:
    cost, curve = StepCost(), LatencyProfile()
    cost.add(0.01, size=1)
    curve.add(ONE, 1, 0.01)

    for _ in range(100):
        cost.add(1.0, size=1)
        curve.add(ONE, 1, 1.0)

    assert cost.expected(1) > 0.9
    assert curve.seconds(ONE, 1) > 0.9


@pytest.mark.parametrize(("of_late", "stays"), [(0.9, True), (1.5, True), (6.0, True), (10.0, False), (100.0, False)])
def test_a_small_model_stays_on_the_event_loop_though_its_runs_take_longer_of_late_up_to_a_bound(
    of_late: float, stays: bool
) -> None:
    hop_s = 0.001
    cost, curve = StepCost(hop_s), LatencyProfile()
    cost.add(0.5 * hop_s, size=10)
    curve.add(ONE, 1, 0.5 * hop_s)

    for _ in range(200):
        cost.add(of_late * hop_s, size=10)
        curve.add(ONE, 1, of_late * hop_s)

    assert cost.is_cheap(10) is stays
    assert curve.is_cheap(hop_s, ONE, 1) is stays
    assert curve.is_cheap(hop_s) is stays


def test_what_never_was_cheap_does_not_come_onto_the_event_loop() -> None:
    hop_s = 0.001
    cost, curve = StepCost(hop_s), LatencyProfile()

    for _ in range(200):
        cost.add(1.5 * hop_s, size=10)
        curve.add(ONE, 1, 1.5 * hop_s)

    assert not cost.is_cheap(10)
    assert not curve.is_cheap(hop_s, ONE, 1)
