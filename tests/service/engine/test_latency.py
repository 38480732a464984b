"""What runs are expected to take, from what they took: seconds, memory, and how large batches may be."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.latency import LatencyProfile, Shape

ONE: Shape = (("x", "<f8", (1,)),)


def shape_of_elements(count: int) -> Shape:
    return (("x", "<f8", (count,)),)


def curve_of(seconds: dict[int, float], shape: Shape = ONE) -> LatencyProfile:
    curve = LatencyProfile()
    for size, taken in seconds.items():
        curve.add(shape, size, taken)
    return curve


@pytest.mark.parametrize(
    ("size", "seconds"),
    [(1, 1.0), (2, 1.0), (4, 3.0), (5, 4.0), (6, 5.0), (8, 7.0), (16, 14.0)],
    ids=["below all", "measured", "between", "between", "measured", "beyond all", "far beyond all"],
)
def test_between_two_sizes_it_is_a_straight_line_and_beyond_one_through_the_origin(size: int, seconds: float) -> None:
    assert curve_of({2: 1.0, 6: 5.0, 8: 7.0}).seconds(ONE, size) == pytest.approx(seconds)


@given(st.dictionaries(st.integers(1, 256), st.floats(1e-6, 1e3), min_size=1, max_size=20), st.integers(1, 1000))
def test_what_is_foreseen_lies_between_what_the_sizes_beside_it_took(seconds: dict[int, float], size: int) -> None:
    foreseen = curve_of(seconds).seconds(ONE, size)

    below = [seconds[other] for other in sorted(seconds) if other <= size]
    above = [seconds[other] for other in sorted(seconds) if other >= size]
    sides = below[-1:] + above[:1]
    assert foreseen >= min(sides) * (1 - 1e-9)
    assert not above or foreseen <= max(sides) * (1 + 1e-9)


def test_where_nothing_was_run_nothing_is_foreseen() -> None:
    curve = LatencyProfile()

    assert curve.seconds(ONE, 4) == curve.least(ONE, 4) == 0
    assert not curve.knows(ONE)
    assert curve.table() == []


@pytest.mark.parametrize(
    ("elements", "seconds"), [(100, 1.0), (50, 0.5), (200, 2.0), (900, 18.0), (2000, 40.0), (1, 0.01)]
)
def test_a_shape_that_was_never_run_is_judged_by_its_elements_from_the_one_that_is_nearest(
    elements: int, seconds: float
) -> None:
    curve = curve_of({1: 1.0}, shape_of_elements(100))
    curve.add(shape_of_elements(1000), 1, 20.0)

    assert curve.seconds(shape_of_elements(elements), 1) == pytest.approx(seconds)


def test_later_runs_move_the_mean_slowly_and_the_shortest_at_once() -> None:
    curve = curve_of({4: 1.0})

    for _ in range(3):
        curve.add(ONE, 4, 2.0)
    assert 1.0 < curve.seconds(ONE, 4) < 1.5
    assert curve.least(ONE, 4) == 1.0
    curve.add(ONE, 4, 0.5)
    assert curve.least(ONE, 4) == 0.5
    for _ in range(100):
        curve.add(ONE, 4, 2.0)
    assert curve.seconds(ONE, 4) == pytest.approx(2.0, rel=0.01)


def test_it_does_not_grow_without_bound_and_keeps_what_warm_up_has_measured() -> None:
    curve = curve_of({size: float(size) for size in (1, 8)})

    for elements in range(2, 1000):
        for size in range(1, 100, 7):
            curve.add(shape_of_elements(elements), size, 1.0)
            curve.no_room(shape_of_elements(elements), size)
    for size in range(1, 1000):
        curve.add(ONE, size, float(size))

    assert len(curve.table()) <= 64 * 64
    assert len(curve._limits) <= 64
    assert curve.knows(ONE)
    assert curve.seconds(ONE, 8) == 8.0
    assert curve.knows(shape_of_elements(999))


byte_counts = st.integers(0, 10**9)


@given(
    byte_counts,
    st.integers(0, 10**7),
    st.integers(1, 100),
    st.integers(2, 64),
    st.integers(0, 10**10),
    st.integers(1, 64),
)
def test_the_largest_batch_fits_and_one_more_sample_would_not(
    fixed: int, each: int, elements: int, many: int, free: int, most: int
) -> None:
    curve, shape = LatencyProfile(), shape_of_elements(elements)
    curve.took((elements, fixed + each * elements), (many * elements, fixed + each * elements * many))

    limit = curve.limit(shape, most, free)

    def needed(size: int) -> int:
        return fixed + each * elements * size

    assert 0 <= limit <= most
    assert curve.memory_bytes(shape, most) == pytest.approx(needed(most), rel=1e-9, abs=1)
    assert limit == 0 or needed(limit) <= free + 1e-6 * free + 1
    assert limit == most or needed(limit + 1) >= free - 1e-6 * free - 1


@pytest.mark.parametrize(
    ("small", "large", "bytes_of_four"),
    [((1, 100), (8, 100), 100), ((1, 100), (8, 50), 100), ((1, 0), (8, 0), 0), ((4, 400), (4, 400), 400)],
    ids=["none for a sample", "noise", "nothing", "one size only"],
)
def test_what_was_measured_of_memory_makes_sense_also_where_it_is_noise(
    small: tuple[int, int], large: tuple[int, int], bytes_of_four: int
) -> None:
    curve = LatencyProfile()
    curve.took(small, large)

    assert curve.memory_bytes(ONE, 4) == bytes_of_four
    assert curve.limit(ONE, 8, math.inf) == 8
    assert curve.limit(ONE, 8, bytes_of_four - 1) < 4


def test_where_memory_was_never_measured_any_batch_fits() -> None:
    assert LatencyProfile().memory_bytes(ONE, 8) == 0
    assert LatencyProfile().limit(ONE, 8, 0) == 8


@pytest.mark.parametrize(
    ("failed", "limit"), [([8], 4), ([7], 4), ([2], 1), ([1], 1), ([8, 8], 4), ([8, 4], 2), ([4, 8], 2)]
)
def test_after_a_batch_found_no_room_none_is_larger_than_its_half(failed: list[int], limit: int) -> None:
    curve = LatencyProfile()
    for size in failed:
        curve.no_room(ONE, size)

    assert curve.limit(ONE, 8, math.inf) == limit
    assert curve.limit(shape_of_elements(2), 8, math.inf) == 8


def test_a_limit_is_raised_by_many_batches_as_large_and_not_by_smaller_ones() -> None:
    curve = LatencyProfile()
    curve.no_room(ONE, 8)

    for _ in range(1000):
        curve.add(ONE, 3, 1.0)
    assert curve.limit(ONE, 8, math.inf) == 4
    for _ in range(64):
        curve.add(ONE, 4, 1.0)
    assert curve.limit(ONE, 8, math.inf) == 5
    for _ in range(1000):
        curve.add(ONE, curve.limit(ONE, 8, math.inf), 1.0)
    assert curve.limit(ONE, 8, math.inf) == 8


def test_all_that_is_known_can_be_told() -> None:
    curve = curve_of({8: 2.0, 1: 1.0})
    curve.took((1, 10), (8, 80))

    assert curve.table() == [(ONE, 1, 1.0, 10), (ONE, 8, 2.0, 80)]
