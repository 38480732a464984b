"""Runs that hang and devices that fail for good, and what other requests notice of them; on the virtual clock."""

import asyncio
import math

from service.backends.base import DeviceLost, OutOfMemory
from service.engine.scheduler import HungRun, Scheduler
from tests.fake_device import (
    FAILS,
    FITS_EXCLUSIVELY,
    HANGS,
    LOSES_DEVICE,
    FakeDevice,
    FakeModel,
    Speed,
    end_of,
    expected,
)
from tests.virtual_clock import run_virtually


def test_hung_run_fails_its_requests_and_occupies_its_slot_until_it_ends() -> None:
    hung_counts: list[int] = []

    async def main() -> tuple[tuple[float, object], list[float], list[float]]:
        device, scheduler = FakeDevice(), Scheduler(2, hang_timeout_s=5, on_hung=hung_counts.append)
        model = FakeModel(device, scheduler, max_size=1, speed=Speed(1.0, 0.0))
        await asyncio.sleep(0.25)
        hung = await end_of(model.start_predict(HANGS))
        others = [model.start_predict(float(i)) for i in range(3)]
        await asyncio.gather(*others)
        starts_beside_hung = [run.started_at for run in device.runs[1:]]
        device.released.set()
        await asyncio.sleep(1.5)
        assert scheduler.hung_count == 0
        await asyncio.gather(*(model.predict(float(i)) for i in range(2)))
        return hung, starts_beside_hung, [run.started_at for run in device.runs[-2:]]

    (ended_at, error), starts_beside_hung, starts_after_release = run_virtually(main())

    assert ended_at == 5.25
    assert isinstance(error, HungRun)
    assert starts_beside_hung == [5.25, 6.25, 7.25]
    assert starts_after_release[0] == starts_after_release[1]
    assert hung_counts == [1, 0]


def test_device_whose_slots_all_hang_fails_waiting_and_new_requests_until_a_run_ends() -> None:
    hung_counts: list[int] = []

    async def main() -> None:
        device, scheduler = FakeDevice(), Scheduler(2, hang_timeout_s=5, on_hung=hung_counts.append)
        model, other = (FakeModel(device, scheduler, name, max_size=1) for name in ("model", "other"))
        hanging = [model.start_predict(HANGS), model.start_predict(HANGS)]
        await asyncio.sleep(1)
        waiting = [other.start_predict(1.0, 2.0, 3.0), model.start_predict(2.0)]
        ends = await asyncio.gather(*(end_of(task) for task in hanging + waiting))
        assert [ended_at for ended_at, _ in ends] == [5] * 4
        assert all(isinstance(error, HungRun) for _, error in ends)
        assert scheduler.predict_wait_s(math.inf) == math.inf
        ended_at, error = await end_of(other.start_predict(1.0))
        assert (ended_at, type(error)) == (5, HungRun)
        assert model.batcher.depth == other.batcher.depth == 0

        device.released.set()
        await asyncio.sleep(2)
        assert scheduler.predict_wait_s(math.inf) == 0
        assert await other.predict(1.0) == expected(1.0)

    run_virtually(main())

    assert hung_counts == [1, 2, 1, 0]


def test_hung_run_that_ends_with_an_error_is_not_retried() -> None:
    async def main() -> tuple[int, list[int]]:
        device, scheduler = FakeDevice(), Scheduler(1, hang_timeout_s=5)
        model = FakeModel(device, scheduler)
        running = model.start_predict(0.0)
        await asyncio.sleep(0.5)
        tasks = [model.start_predict(value) for value in (HANGS, FAILS, 3.0)]
        ends = [await end_of(task) for task in [running, *tasks]]
        assert [type(outcome) for _, outcome in ends] == [list, HungRun, HungRun, HungRun]
        device.released.set()
        await asyncio.sleep(10)
        return len(device.runs), model.dropped

    assert run_virtually(main()) == (2, [])


def test_exclusive_retry_runs_beside_a_hung_run() -> None:
    async def main() -> None:
        device, scheduler = FakeDevice(), Scheduler(2, hang_timeout_s=5)
        hanging, model = (FakeModel(device, scheduler, name, max_size=1) for name in ("hanging", "model"))
        tasks = [hanging.start_predict(HANGS), model.start_predict(FITS_EXCLUSIVELY), model.start_predict(1.0)]
        ends = [await end_of(task) for task in tasks]
        assert [type(outcome) for _, outcome in ends] == [HungRun, OutOfMemory, list]
        assert max(ended_at for ended_at, _ in ends) < 9
        device.released.set()
        await asyncio.sleep(10)

    run_virtually(main())


def test_lost_device_fails_the_whole_batch_and_no_part_is_retried() -> None:
    async def main() -> tuple[list[object], int]:
        device = FakeDevice()
        model = FakeModel(device, Scheduler(2))
        running = model.start_predict(0.0)
        await asyncio.sleep(0.5)
        tasks = [model.start_predict(value) for value in (1.0, LOSES_DEVICE, 3.0)]
        await running
        return [outcome for _, outcome in [await end_of(task) for task in tasks]], len(device.runs)

    outcomes, run_count = run_virtually(main())

    assert [type(outcome) for outcome in outcomes] == [DeviceLost] * 3
    assert run_count == 2
