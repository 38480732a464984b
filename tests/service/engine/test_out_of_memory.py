"""Batches that run out of memory are split and retried, and later ones are smaller; on the virtual clock."""

import asyncio
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.backends.base import OutOfMemory
from service.engine.latency import shape_of
from service.engine.scheduler import Scheduler
from tests.fake_device import (
    FITS_EXCLUSIVELY,
    FITS_UNBATCHED,
    NEVER_FITS,
    FakeDevice,
    FakeModel,
    Speed,
    end_of,
    expected,
    sample,
)
from tests.virtual_clock import now, run_virtually

SAMPLE_SHAPE = shape_of(sample(0.0))


async def run_in_one_batch(model: FakeModel, *values: float) -> list[object]:
    """Send requests of one sample each while the model is busy, so that they share a batch; return their outcomes."""
    running = model.start_predict(0.0)
    await asyncio.sleep(0.5)
    tasks = [model.start_predict(value) for value in values]
    await running
    return [outcome for _, outcome in [await end_of(task) for task in tasks]]


def test_too_large_batch_is_split_and_the_next_ones_are_smaller() -> None:
    async def main() -> tuple[list[object], list[int], int]:
        device = FakeDevice()
        model = FakeModel(device, Scheduler(2), speed=Speed(1.0, 0.1, max_size=4))
        outcomes = await run_in_one_batch(model, *range(1, 9))
        runs_before = len(device.runs)
        await run_in_one_batch(model, *range(1, 9))
        later_sizes = [len(run.values) for run in device.runs[runs_before:]]
        return outcomes, later_sizes, model.profile.max_batch_size(SAMPLE_SHAPE, 8, math.inf)

    outcomes, later_sizes, max_size = run_virtually(main())

    assert outcomes == [expected(float(i)) for i in range(1, 9)]
    assert max_size == 4
    assert max(later_sizes) <= 4


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 8), st.integers(0, 7), st.integers(1, 3))
def test_sample_that_never_fits_fails_on_its_own_and_batches_stay_as_large(
    size: int, position: int, concurrency: int
) -> None:
    values = [float(i) for i in range(1, size + 1)]
    values[position % size] = NEVER_FITS

    async def main() -> tuple[list[object], int]:
        model = FakeModel(FakeDevice(), Scheduler(concurrency))
        outcomes = await run_in_one_batch(model, *values)
        return outcomes, model.profile.max_batch_size(SAMPLE_SHAPE, 8, math.inf)

    outcomes, max_size = run_virtually(main())

    for value, outcome in zip(values, outcomes, strict=True):
        assert isinstance(outcome, OutOfMemory) if value == NEVER_FITS else outcome == expected(value)
    assert max_size == 8


def test_larger_batches_are_tried_again_after_many_have_fitted() -> None:
    async def main() -> list[int]:
        device = FakeDevice()
        model = FakeModel(device, Scheduler(), speed=Speed(1.0, 0.1, max_size=4))
        await run_in_one_batch(model, *range(1, 9))
        model.speed = Speed(1.0, 0.1)
        await asyncio.gather(*(model.predict(float(i)) for i in range(2500)))
        return [len(run.values) for run in device.runs]

    sizes = run_virtually(main())

    assert sizes[-2] == 8


@pytest.mark.parametrize("poison", [FITS_UNBATCHED, FITS_EXCLUSIVELY])
def test_sample_that_only_fits_without_others_is_answered(poison: float) -> None:
    async def main() -> list[object]:
        device, scheduler = FakeDevice(), Scheduler(2)
        model, other = FakeModel(device, scheduler), FakeModel(device, scheduler, "other", max_size=1)
        others = [other.start_predict(float(i)) for i in range(9)]
        outcomes = await run_in_one_batch(model, 1.0, poison, 3.0)
        await asyncio.gather(*others)
        return outcomes

    assert run_virtually(main()) == [expected(1.0), expected(poison), expected(3.0)]


def test_exclusive_retry_whose_client_has_disconnected_delays_no_other_request() -> None:
    async def main() -> float:
        device, scheduler = FakeDevice(), Scheduler(2)
        long = FakeModel(device, scheduler, "long", max_size=1, speed=Speed(50.0))
        model = FakeModel(device, scheduler, max_size=1)
        tasks = [long.start_predict(0.0), model.start_predict(FITS_EXCLUSIVELY)]
        await asyncio.sleep(2)
        tasks[1].cancel()
        await model.predict(1.0)
        ended_at = now()
        await asyncio.gather(*tasks, return_exceptions=True)
        return ended_at

    assert run_virtually(main()) == pytest.approx(3.1)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 20), st.integers(1, 5), st.integers(1, 3))
def test_request_with_more_samples_than_fit_is_run_in_parts(size: int, max_size: int, concurrency: int) -> None:
    async def main() -> tuple[list[float], int]:
        device = FakeDevice()
        model = FakeModel(device, Scheduler(concurrency), speed=Speed(1.0, 0.1, max_size=max_size))
        answer = await model.predict(*range(1, size + 1))
        assert model.batcher.depth == 0
        return answer, max(len(run.values) for run in device.runs if run.error is None)

    answer, largest = run_virtually(main())

    assert answer == expected(*range(1, size + 1))
    assert largest <= max_size


def test_request_with_one_sample_that_never_fits_fails_as_a_whole_and_other_requests_do_not() -> None:
    async def main() -> list[object]:
        model = FakeModel(FakeDevice(), Scheduler(2))
        running = model.start_predict(0.0)
        await asyncio.sleep(0.5)
        tasks = [model.start_predict(1.0, NEVER_FITS, 3.0), model.start_predict(4.0, 5.0)]
        await running
        ends = [await end_of(task) for task in tasks]
        assert model.batcher.depth == 0
        return [outcome for _, outcome in ends]

    failed, answered = run_virtually(main())

    assert isinstance(failed, OutOfMemory)
    assert answered == expected(4.0, 5.0)
