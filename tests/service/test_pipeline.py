"""What is decided from what was measured."""

import time

import pytest

from service.costs import Cost, fastest, settled, useful_batch


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
    assert settled(Cost(), 1, slow) is None
    assert len(tries) == 2


def test_a_step_is_cheap_only_where_it_was_measured_so_for_input_of_that_size() -> None:
    cost = Cost()
    assert not cost.is_cheap(1)

    cost.add(0.0001, size=100)

    assert cost.is_cheap(50)
    assert cost.is_cheap(400)
    assert not cost.is_cheap(1000)
