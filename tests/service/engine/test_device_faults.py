"""What a device may do to us, and what the neighbours of whoever made it do so notice: in virtual time."""

import asyncio
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.backends.base import DeviceLost, OutOfMemory
from service.engine.latency import shape_of
from service.engine.scheduler import Hung, Scheduler, TooLate
from tests.fake_device import (
    FAILS,
    FITS_ALONE,
    FITS_QUITE_ALONE,
    HANGS,
    LOSES,
    NEVER_FITS,
    FakeDevice,
    Model,
    Speed,
    right,
    sample,
)
from tests.virtual_clock import run_virtually

ONE = shape_of(sample(0.0))


def now() -> float:
    return asyncio.get_running_loop().time()


async def end_of(task: asyncio.Task[list[float]]) -> tuple[float, object]:
    """When a request was answered, and how."""
    (result,) = await asyncio.gather(task, return_exceptions=True)
    return now(), result


def test_the_requests_of_a_run_that_hangs_are_answered_and_its_place_stays_taken() -> None:
    counts: list[int] = []

    async def main() -> tuple[list[tuple[float, object]], list[float], list[float]]:
        device, scheduler = FakeDevice(), Scheduler(2, hang_s=5, on_hung=counts.append)
        model = Model(device, scheduler, most=1, speed=Speed(1.0, 0.0))
        await asyncio.sleep(0.25)
        hung = await end_of(model.asked(HANGS))
        others = [model.asked(float(i)) for i in range(3)]
        await asyncio.gather(*others)
        exclusive = [run.began for run in device.runs[1:]]
        device.released.set()
        await asyncio.sleep(1.5)
        assert scheduler.hung == 0
        await asyncio.gather(*(model.ask(float(i)) for i in range(2)))
        return [hung], exclusive, [run.began for run in device.runs[-2:]]

    ends, exclusive, together = run_virtually(main())

    assert ends[0][0] == 5.25
    assert isinstance(ends[0][1], Hung)
    assert exclusive == [5.25, 6.25, 7.25]
    assert together[0] == together[1]
    assert counts == [1, 0]


def test_where_all_hangs_whoever_waits_or_comes_is_answered_until_something_comes_back() -> None:
    counts: list[int] = []

    async def main() -> None:
        device, scheduler = FakeDevice(), Scheduler(2, hang_s=5, on_hung=counts.append)
        one, other = Model(device, scheduler, "one", most=1), Model(device, scheduler, "other", most=1)
        hanging = [one.asked(HANGS), one.asked(HANGS)]
        await asyncio.sleep(1)
        waiting = [other.asked(1.0, 2.0, 3.0), one.asked(2.0)]
        ends = await asyncio.gather(*(end_of(task) for task in hanging + waiting))
        assert [when for when, _ in ends] == [5] * 4
        assert all(isinstance(error, Hung) for _, error in ends)
        assert scheduler.wait_s(math.inf) == math.inf
        when, error = await end_of(other.asked(1.0))
        assert (when, type(error)) == (5, Hung)
        assert one.batcher.depth == other.batcher.depth == 0

        device.released.set()
        await asyncio.sleep(2)
        assert scheduler.wait_s(math.inf) == 0
        assert await other.ask(1.0) == right(1.0)

    run_virtually(main())

    assert counts == [1, 2, 1, 0]


def test_a_hung_run_that_fails_in_the_end_is_not_tried_again() -> None:
    async def main() -> tuple[int, list[int]]:
        device, scheduler = FakeDevice(), Scheduler(1, hang_s=5)
        model = Model(device, scheduler)
        busy = model.asked(0.0)
        await asyncio.sleep(0.5)
        tasks = [model.asked(value) for value in (HANGS, FAILS, 3.0)]
        ends = [await end_of(task) for task in [busy, *tasks]]
        assert [type(result) for _, result in ends] == [list, Hung, Hung, Hung]
        device.released.set()
        await asyncio.sleep(10)
        return len(device.runs), model.dropped

    assert run_virtually(main()) == (2, [])


def test_one_hung_run_does_not_keep_from_running_what_had_to_be_quite_alone() -> None:
    async def main() -> None:
        device, scheduler = FakeDevice(), Scheduler(2, hang_s=5)
        hanging, model = Model(device, scheduler, "hanging", most=1), Model(device, scheduler, most=1)
        tasks = [hanging.asked(HANGS), model.asked(FITS_QUITE_ALONE), model.asked(1.0)]
        ends = [await end_of(task) for task in tasks]
        assert [type(result) for _, result in ends] == [Hung, OutOfMemory, list]
        assert max(when for when, _ in ends) < 9
        device.released.set()
        await asyncio.sleep(10)

    run_virtually(main())


def test_what_waits_to_be_quite_alone_and_whose_client_has_gone_keeps_nobody_waiting() -> None:
    async def main() -> float:
        device, scheduler = FakeDevice(), Scheduler(2)
        long, model = Model(device, scheduler, "long", most=1, speed=Speed(50.0)), Model(device, scheduler, most=1)
        tasks = [long.asked(0.0), model.asked(FITS_QUITE_ALONE)]
        await asyncio.sleep(2)
        tasks[1].cancel()
        await model.ask(1.0)
        done = now()
        await asyncio.gather(*tasks, return_exceptions=True)
        return done

    assert run_virtually(main()) == pytest.approx(3.1)


def test_who_would_be_too_late_is_told_so_and_the_device_never_sees_it() -> None:
    async def main() -> tuple[list[object], list[list[float]], list[int]]:
        device, scheduler = FakeDevice(), Scheduler(1)
        model = Model(device, scheduler, speed=Speed(1.0, 0.0), most=2)
        busy = model.asked(0.0)
        await asyncio.sleep(0.5)
        tasks = [model.asked(float(i), until=until) for i, until in enumerate((0.9, 1.2, 1.9, 2.1, 9.0), 1)]
        ends = [await end_of(task) for task in [busy, *tasks]]
        return [type(result) for _, result in ends], [run.values for run in device.runs], model.dropped

    ends, runs, dropped = run_virtually(main())

    assert ends == [list, TooLate, TooLate, TooLate, list, list]
    assert runs == [[0], [4, 5]]
    assert dropped == [1, 1, 1]


def test_a_batch_grows_no_larger_than_lets_all_its_members_be_in_time() -> None:
    async def main() -> tuple[list[list[float]], list[float]]:
        device, scheduler = FakeDevice(), Scheduler(1)
        model = Model(device, scheduler, speed=Speed(1.0, 0.5))
        busy = model.asked(0.0)
        await asyncio.sleep(0.5)
        tasks = [model.asked(float(i), until=until) for i, until in enumerate((4.0, 9.0, 9.0, 9.0), 1)]
        ends = [await end_of(task) for task in [busy, *tasks]]
        return [run.values for run in device.runs], [when for when, _ in ends]

    runs, ends = run_virtually(main())

    assert runs == [[0], [1, 2, 3], [4]]
    assert ends[1] <= 4


async def outcomes(device: FakeDevice, model: Model, *values: float) -> list[object]:
    """What requests get that come together while the model is busy."""
    busy = model.asked(0.0)
    await asyncio.sleep(0.5)
    tasks = [model.asked(value) for value in values]
    await busy
    return [result for _, result in [await end_of(task) for task in tasks]]


def test_a_batch_that_is_too_large_is_split_and_the_next_ones_are_smaller() -> None:
    async def main() -> tuple[list[object], list[int], int]:
        device = FakeDevice()
        model = Model(device, Scheduler(2), speed=Speed(1.0, 0.1, fits=4))
        first = await outcomes(device, model, *range(1, 9))
        seen = len(device.runs)
        await outcomes(device, model, *range(1, 9))
        return first, [len(run.values) for run in device.runs[seen:]], model.curve.limit(ONE, 8, math.inf)

    first, sizes, limit = run_virtually(main())

    assert first == [right(float(i)) for i in range(1, 9)]
    assert limit == 4
    assert max(sizes) <= 4


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 8), st.integers(0, 7), st.integers(1, 3))
def test_of_a_batch_with_one_that_never_fits_the_culprit_alone_is_refused_and_batches_stay_as_large(
    size: int, at: int, concurrency: int
) -> None:
    values = [float(i) for i in range(1, size + 1)]
    values[at % size] = NEVER_FITS

    async def main() -> tuple[list[object], int]:
        device = FakeDevice()
        model = Model(device, Scheduler(concurrency))
        return await outcomes(device, model, *values), model.curve.limit(ONE, 8, math.inf)

    results, limit = run_virtually(main())

    for value, result in zip(values, results, strict=True):
        assert isinstance(result, OutOfMemory) if value == NEVER_FITS else result == right(value)
    assert limit == 8


def test_after_many_batches_that_fitted_larger_ones_are_tried_again() -> None:
    async def main() -> list[int]:
        device = FakeDevice()
        model = Model(device, Scheduler(), speed=Speed(1.0, 0.1, fits=4))
        await outcomes(device, model, *range(1, 9))
        model.speed = Speed(1.0, 0.1)
        await asyncio.gather(*(model.ask(float(i)) for i in range(2500)))
        return [len(run.values) for run in device.runs]

    sizes = run_virtually(main())

    assert sizes[-2] == 8


@pytest.mark.parametrize("poison", [FITS_ALONE, FITS_QUITE_ALONE])
def test_what_only_others_had_taken_the_memory_of_gets_its_answer(poison: float) -> None:
    async def main() -> list[object]:
        device, scheduler = FakeDevice(), Scheduler(2)
        model, other = Model(device, scheduler), Model(device, scheduler, "other", most=1)
        others = [other.asked(float(i)) for i in range(9)]
        results = await outcomes(device, model, 1.0, poison, 3.0)
        await asyncio.gather(*others)
        return results

    assert run_virtually(main()) == [right(1.0), right(poison), right(3.0)]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 20), st.integers(1, 5), st.integers(1, 3))
def test_a_request_of_more_samples_than_fit_is_run_in_parts(size: int, fits: int, concurrency: int) -> None:
    async def main() -> tuple[list[float], int]:
        device = FakeDevice()
        model = Model(device, Scheduler(concurrency), speed=Speed(1.0, 0.1, fits=fits))
        answer = await model.ask(*range(1, size + 1))
        assert model.batcher.depth == 0
        return answer, max(len(run.values) for run in device.runs if run.error is None)

    answer, largest = run_virtually(main())

    assert answer == right(*range(1, size + 1))
    assert largest <= fits


def test_a_request_with_a_sample_that_never_fits_is_refused_as_a_whole_and_its_neighbours_are_not() -> None:
    async def main() -> list[object]:
        device = FakeDevice()
        model = Model(device, Scheduler(2))
        busy = model.asked(0.0)
        await asyncio.sleep(0.5)
        tasks = [model.asked(1.0, NEVER_FITS, 3.0), model.asked(4.0, 5.0)]
        await busy
        ends = [await end_of(task) for task in tasks]
        assert model.batcher.depth == 0
        return [result for _, result in ends]

    refused, answered = run_virtually(main())

    assert isinstance(refused, OutOfMemory)
    assert answered == right(4.0, 5.0)


def test_where_the_device_is_lost_all_of_the_batch_are_told_and_nothing_is_tried_again() -> None:
    async def main() -> tuple[list[object], int]:
        device = FakeDevice()
        results = await outcomes(device, Model(device, Scheduler(2)), 1.0, LOSES, 3.0)
        return results, len(device.runs)

    results, runs = run_virtually(main())

    assert [type(result) for result in results] == [DeviceLost] * 3
    assert runs == 2
