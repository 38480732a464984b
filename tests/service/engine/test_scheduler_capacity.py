"""How much runs on the device at a time: concurrency, memory and exclusive jobs; on the virtual clock."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.backends.base import OutOfMemory
from service.engine.scheduler import Scheduler
from tests.fake_device import FITS_EXCLUSIVELY, FakeDevice, FakeModel, Run, Speed, expected
from tests.service.engine.arrivals import Arrival, arrival_lists
from tests.virtual_clock import now, run_virtually


@settings(max_examples=100, deadline=None)
@given(arrival_lists, st.integers(1, 3), st.integers(1, 6))
def test_device_runs_up_to_its_concurrency_and_never_idles_while_work_waits(
    arrivals: list[Arrival], concurrency: int, max_size: int
) -> None:
    waits: list[tuple[float, float]] = []

    async def main() -> FakeDevice:
        device, scheduler = FakeDevice(), Scheduler(concurrency)
        models = [FakeModel(device, scheduler, str(i), max_size=max_size) for i in range(2)]

        async def client(arrival: Arrival) -> None:
            arrived_at = now()
            await models[arrival.model].predict(*range(1, arrival.size + 1))
            runs = [run for run in device.runs if run.model == str(arrival.model)]
            waits.append((arrived_at, min(run.started_at for run in runs if run.started_at >= arrived_at)))

        clients = []
        for arrival in arrivals:
            await asyncio.sleep(arrival.after_s)
            clients.append(asyncio.create_task(client(arrival)))
        await asyncio.gather(*clients)
        return device

    device = run_virtually(main())

    assert device.max_running <= concurrency
    for arrived_at, started_at in waits:
        for moment in [arrived_at, *(run.ended_at for run in device.runs if arrived_at < run.ended_at < started_at)]:
            running = sum(run.started_at <= moment < run.ended_at for run in device.runs)
            assert moment >= started_at or running == concurrency


@settings(max_examples=100, deadline=None)
@given(arrival_lists, st.integers(1, 3), st.integers(1, 9))
def test_concurrent_batches_never_need_more_memory_than_there_is(
    arrivals: list[Arrival], concurrency: int, memory_bytes: int
) -> None:
    """A sample of the one model takes 1 byte, one of the other 3."""
    was_too_large: list[bool] = []

    async def client(model: FakeModel, size: int) -> None:
        try:
            assert await model.predict(*range(1, size + 1)) == expected(*range(1, size + 1))
        except OutOfMemory:
            was_too_large.append(model.speed.bytes_per_sample > memory_bytes)

    async def main() -> FakeDevice:
        device, scheduler = FakeDevice(), Scheduler(concurrency)
        scheduler.memory_bytes = memory_bytes
        models = [FakeModel(device, scheduler, str(i), speed=Speed(1.0, 0.1, 1 + 2 * i)) for i in range(2)]
        clients = []
        for arrival in arrivals:
            await asyncio.sleep(arrival.after_s)
            clients.append(asyncio.create_task(client(models[arrival.model], arrival.size)))
        await asyncio.gather(*clients)
        return device

    device = run_virtually(main())

    assert device.max_bytes <= memory_bytes
    assert all(run.error is None for run in device.runs)
    assert all(was_too_large)


def test_batch_that_does_not_fit_beside_others_runs_next_and_is_not_overtaken() -> None:
    async def main() -> tuple[list[Run], list[float]]:
        device, scheduler = FakeDevice(), Scheduler(2)
        scheduler.memory_bytes = 4
        small = FakeModel(device, scheduler, "small", speed=Speed(1.0, 0.0, 1), max_size=1)
        large = FakeModel(device, scheduler, "large", speed=Speed(1.0, 0.0, 4), max_size=1)
        requests = [small.start_predict(1.0, target=0.0)]
        await asyncio.sleep(0.5)
        requests.append(large.start_predict(2.0, target=10.0))
        requests.append(small.start_predict(3.0, target=11.0))
        requests.append(small.start_predict(4.0, target=12.0))
        await asyncio.gather(*requests)
        return device.runs, [run.started_at for run in device.runs]

    runs, starts = run_virtually(main())

    assert [run.values for run in runs] == [[1], [2], [3], [4]]
    assert starts == [0, 1, 2, 2]


def test_sample_that_never_fits_is_rejected_and_not_run() -> None:
    async def main() -> int:
        device, scheduler = FakeDevice(), Scheduler(2)
        scheduler.memory_bytes = 3
        with pytest.raises(OutOfMemory, match="do not fit into memory"):
            await FakeModel(device, scheduler, speed=Speed(1.0, 0.0, 4)).predict(1.0)
        return len(device.runs)

    assert run_virtually(main()) == 0


def test_no_job_starts_while_an_exclusive_one_runs() -> None:
    async def main() -> tuple[list[float], list[Run]]:
        device, scheduler = FakeDevice(), Scheduler(2)
        model, other = (FakeModel(device, scheduler, name, max_size=1) for name in ("model", "other"))
        others = [other.start_predict(float(i), target=100.0) for i in range(6)]
        answer = await model.predict(FITS_EXCLUSIVELY, target=50.0)
        await asyncio.gather(*others)
        return answer, device.runs

    answer, runs = run_virtually(main())

    assert answer == expected(FITS_EXCLUSIVELY)
    assert [run.overlapped for run in runs if FITS_EXCLUSIVELY in run.values] == [True, False]
