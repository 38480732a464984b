"""Requests that would miss their deadline are not run, and batches are kept small enough; on the virtual clock."""

import asyncio

from service.engine.scheduler import MissedDeadline, Scheduler
from tests.fake_device import FakeDevice, FakeModel, Speed, end_of
from tests.virtual_clock import run_virtually


def test_request_that_would_be_late_fails_without_being_run() -> None:
    async def main() -> tuple[list[object], list[list[float]], list[int]]:
        device, scheduler = FakeDevice(), Scheduler(1)
        model = FakeModel(device, scheduler, speed=Speed(1.0, 0.0), max_size=2)
        running = model.start_predict(0.0)
        await asyncio.sleep(0.5)
        limits = (0.9, 1.2, 1.9, 2.1, 9.0)
        tasks = [model.start_predict(float(i), limit=limit) for i, limit in enumerate(limits, 1)]
        ends = [await end_of(task) for task in [running, *tasks]]
        return [type(outcome) for _, outcome in ends], [run.values for run in device.runs], model.dropped

    outcomes, runs, dropped = run_virtually(main())

    assert outcomes == [list, MissedDeadline, MissedDeadline, MissedDeadline, list, list]
    assert runs == [[0], [4, 5]]
    assert dropped == [1, 1, 1]


def test_batch_stops_growing_before_a_member_would_be_late() -> None:
    async def main() -> tuple[list[list[float]], list[float]]:
        device, scheduler = FakeDevice(), Scheduler(1)
        model = FakeModel(device, scheduler, speed=Speed(1.0, 0.5))
        running = model.start_predict(0.0)
        await asyncio.sleep(0.5)
        tasks = [model.start_predict(float(i), limit=limit) for i, limit in enumerate((4.0, 9.0, 9.0, 9.0), 1)]
        ends = [await end_of(task) for task in [running, *tasks]]
        return [run.values for run in device.runs], [ended_at for ended_at, _ in ends]

    runs, ends = run_virtually(main())

    assert runs == [[0], [1, 2, 3], [4]]
    assert ends[1] <= 4
