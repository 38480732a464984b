"""The batch size that warm-up chooses, and how often it measures on the way."""

import time

import pytest

from service.engine.latency import StepCost, choose_batch_size, measure_fastest, measure_step


@pytest.mark.parametrize(
    ("measure_s", "max_size", "size"),
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
def test_batch_is_as_large_as_lowers_the_cost_per_sample(measure_s: object, max_size: int, size: int) -> None:
    assert choose_batch_size(measure_s, max_size) == size  # type: ignore[arg-type]


def test_batches_with_growing_cost_per_sample_are_not_measured_at_large_sizes() -> None:
    measured = []

    def measure_s(size: int) -> float:
        measured.append(size)
        return 0.1 * size**1.5

    choose_batch_size(measure_s, 1024)

    assert max(measured) <= 8


def test_slow_batch_without_gain_is_the_last_one_measured() -> None:
    measured = []

    def measure_s(size: int) -> float:
        measured.append(size)
        return 0.1 * size

    assert choose_batch_size(measure_s, 1024) == 1
    assert measured == [1, 2]


def test_slow_work_is_measured_once() -> None:
    calls = []

    def slow() -> None:
        calls.append(0)
        end = time.perf_counter() + 0.06
        while time.perf_counter() < end:
            pass

    assert measure_fastest(slow) >= 0.06
    assert measure_step(StepCost(), 1, slow) is None
    assert len(calls) == 2
