"""What runs of a graph are predicted to take: seconds, memory, and how large batches may be."""

import asyncio
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.latency import LatencyProfile, Shape, shape_of
from service.engine.scheduler import Scheduler
from tests.fake_device import HANGS, FakeDevice, FakeModel, Speed, sample
from tests.virtual_clock import run_virtually

ONE_ELEMENT: Shape = (("x", "<f8", (1,)),)


def shape_with(elements: int) -> Shape:
    return (("x", "<f8", (elements,)),)


def profile_with(seconds: dict[int, float], shape: Shape = ONE_ELEMENT) -> LatencyProfile:
    profile = LatencyProfile()
    for size, size_s in seconds.items():
        profile.record(shape, size, size_s)
    return profile


# Seconds


@pytest.mark.parametrize(
    ("size", "seconds"),
    [(1, 1.0), (2, 1.0), (4, 3.0), (5, 4.0), (6, 5.0), (8, 7.0), (16, 14.0)],
    ids=["below all", "measured", "between", "between", "measured", "beyond all", "far beyond all"],
)
def test_seconds_are_linear_between_sizes_and_proportional_beyond_the_largest(size: int, seconds: float) -> None:
    profile = profile_with({2: 1.0, 6: 5.0, 8: 7.0})

    assert profile.predict_s(ONE_ELEMENT, size) == pytest.approx(seconds)


@given(st.dictionaries(st.integers(1, 256), st.floats(1e-6, 1e3), min_size=1, max_size=20), st.integers(1, 1000))
def test_prediction_lies_between_the_measurements_of_the_nearest_sizes(seconds: dict[int, float], size: int) -> None:
    predicted_s = profile_with(seconds).predict_s(ONE_ELEMENT, size)

    below = [seconds[measured] for measured in sorted(seconds) if measured <= size]
    above = [seconds[measured] for measured in sorted(seconds) if measured >= size]
    nearest = below[-1:] + above[:1]
    assert predicted_s >= min(nearest) * (1 - 1e-9)
    assert not above or predicted_s <= max(nearest) * (1 + 1e-9)


def test_empty_profile_predicts_zero() -> None:
    profile = LatencyProfile()

    assert profile.predict_s(ONE_ELEMENT, 4) == profile.min_s(ONE_ELEMENT, 4) == 0
    assert not profile.has_shape(ONE_ELEMENT)
    assert profile.table() == []


@pytest.mark.parametrize(
    ("elements", "seconds"), [(100, 1.0), (50, 0.5), (200, 2.0), (900, 18.0), (2000, 40.0), (1, 0.01)]
)
def test_unknown_shape_is_predicted_from_the_nearest_one_in_proportion_to_its_elements(
    elements: int, seconds: float
) -> None:
    profile = profile_with({1: 1.0}, shape_with(100))
    profile.record(shape_with(1000), 1, 20.0)

    assert profile.predict_s(shape_with(elements), 1) == pytest.approx(seconds)


def test_later_runs_change_the_mean_slowly_and_the_minimum_immediately() -> None:
    profile = profile_with({4: 1.0})

    for _ in range(3):
        profile.record(ONE_ELEMENT, 4, 2.0)
    assert 1.0 < profile.predict_s(ONE_ELEMENT, 4) < 1.5
    assert profile.min_s(ONE_ELEMENT, 4) == 1.0
    profile.record(ONE_ELEMENT, 4, 0.5)
    assert profile.min_s(ONE_ELEMENT, 4) == 0.5
    for _ in range(100):
        profile.record(ONE_ELEMENT, 4, 2.0)
    assert profile.predict_s(ONE_ELEMENT, 4) == pytest.approx(2.0, rel=0.01)


def test_profile_is_bounded_and_keeps_the_measurements_of_warm_up() -> None:
    profile = profile_with({size: float(size) for size in (1, 8)})

    for elements in range(2, 1000):
        for size in range(1, 100, 7):
            profile.record(shape_with(elements), size, 1.0)
            profile.record_out_of_memory(shape_with(elements), size)
    for size in range(1, 1000):
        profile.record(ONE_ELEMENT, size, float(size))

    assert len(profile.table()) <= 64 * 64
    assert len(profile._limits) <= 64
    assert profile.has_shape(ONE_ELEMENT)
    assert profile.predict_s(ONE_ELEMENT, 8) == 8.0
    assert profile.has_shape(shape_with(999))


def test_run_that_hung_and_ended_hardly_changes_the_prediction() -> None:
    async def main() -> LatencyProfile:
        device, scheduler = FakeDevice(), Scheduler(2, hang_timeout_s=5)
        model = FakeModel(device, scheduler, max_size=1, speed=Speed(0.01, 0.0))
        hung = model.start_predict(HANGS)
        await asyncio.sleep(100)
        device.released.set()
        await asyncio.sleep(1)
        await asyncio.gather(hung, return_exceptions=True)
        assert device.runs[0].ended_at > 100
        return model.profile

    assert run_virtually(main()).predict_s(shape_of(sample(0.0)), 1) <= 4 * 0.01


# Memory


@given(
    st.integers(0, 10**9),
    st.integers(0, 10**7),
    st.integers(1, 100),
    st.integers(2, 64),
    st.integers(0, 10**10),
    st.integers(1, 64),
)
def test_largest_batch_fits_and_one_more_sample_would_not(
    fixed_bytes: int, bytes_per_element: int, elements: int, large_size: int, free_bytes: int, max_size: int
) -> None:
    def needed_bytes(size: int) -> int:
        return fixed_bytes + bytes_per_element * elements * size

    profile, shape = LatencyProfile(), shape_with(elements)
    profile.fit_memory((elements, needed_bytes(1)), (large_size * elements, needed_bytes(large_size)))

    largest = profile.max_batch_size(shape, max_size, free_bytes)

    assert 0 <= largest <= max_size
    assert profile.memory_bytes(shape, max_size) == pytest.approx(needed_bytes(max_size), rel=1e-9, abs=1)
    assert largest == 0 or needed_bytes(largest) <= free_bytes + 1e-6 * free_bytes + 1
    assert largest == max_size or needed_bytes(largest + 1) >= free_bytes - 1e-6 * free_bytes - 1


@pytest.mark.parametrize(
    ("small", "large", "bytes_of_four"),
    [((1, 100), (8, 100), 100), ((1, 100), (8, 50), 100), ((1, 0), (8, 0), 0), ((4, 400), (4, 400), 400)],
    ids=["none for a sample", "noise", "nothing", "one size only"],
)
def test_memory_model_is_plausible_even_for_noisy_measurements(
    small: tuple[int, int], large: tuple[int, int], bytes_of_four: int
) -> None:
    profile = LatencyProfile()
    profile.fit_memory(small, large)

    assert profile.memory_bytes(ONE_ELEMENT, 4) == bytes_of_four
    assert profile.max_batch_size(ONE_ELEMENT, 8, math.inf) == 8
    assert profile.max_batch_size(ONE_ELEMENT, 8, bytes_of_four - 1) < 4


def test_any_batch_fits_if_memory_was_never_measured() -> None:
    assert LatencyProfile().memory_bytes(ONE_ELEMENT, 8) == 0
    assert LatencyProfile().max_batch_size(ONE_ELEMENT, 8, 0) == 8


@pytest.mark.parametrize(
    ("failed", "max_size"), [([8], 4), ([7], 4), ([2], 1), ([1], 1), ([8, 8], 4), ([8, 4], 2), ([4, 8], 2)]
)
def test_batch_that_ran_out_of_memory_limits_later_ones_to_half_its_size(failed: list[int], max_size: int) -> None:
    profile = LatencyProfile()
    for size in failed:
        profile.record_out_of_memory(ONE_ELEMENT, size)

    assert profile.max_batch_size(ONE_ELEMENT, 8, math.inf) == max_size
    assert profile.max_batch_size(shape_with(2), 8, math.inf) == 8


def test_limit_is_raised_by_many_batches_of_its_size_and_not_by_smaller_ones() -> None:
    profile = LatencyProfile()
    profile.record_out_of_memory(ONE_ELEMENT, 8)

    for _ in range(1000):
        profile.record(ONE_ELEMENT, 3, 1.0)
    assert profile.max_batch_size(ONE_ELEMENT, 8, math.inf) == 4
    for _ in range(64):
        profile.record(ONE_ELEMENT, 4, 1.0)
    assert profile.max_batch_size(ONE_ELEMENT, 8, math.inf) == 5
    for _ in range(1000):
        profile.record(ONE_ELEMENT, profile.max_batch_size(ONE_ELEMENT, 8, math.inf), 1.0)
    assert profile.max_batch_size(ONE_ELEMENT, 8, math.inf) == 8


def test_table_lists_all_measurements() -> None:
    profile = profile_with({8: 2.0, 1: 1.0})
    profile.fit_memory((1, 10), (8, 80))

    assert profile.table() == [(ONE_ELEMENT, 1, 1.0, 10), (ONE_ELEMENT, 8, 2.0, 80)]


# Threads


class YieldingShape(tuple):
    """A shape that lets other threads run in the middle of each look-up."""

    __slots__ = ()

    def __hash__(self) -> int:
        time.sleep(0)
        return super().__hash__()


def test_threads_may_record_and_predict_while_shapes_are_evicted() -> None:
    profile, all_started = LatencyProfile(), threading.Barrier(4)

    def record(thread: int) -> None:
        all_started.wait()
        for number in range(200):
            shape = YieldingShape(shape_with(1 + number * 4 + thread))
            profile.record(shape, 1 + number % 5, 1.0)
            profile.record_out_of_memory(shape, 8)
            profile.max_batch_size(shape, 8, math.inf)
            profile.predict_s(shape, 2)
            profile.is_cheap(1.0)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(record, range(4)))

    assert {seconds for _, _, seconds, _ in profile.table()} == {1.0}
