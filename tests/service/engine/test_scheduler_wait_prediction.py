"""How well the scheduler predicts the wait of a request; on the virtual clock."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.scheduler import Deadline, Scheduler
from tests.fake_device import FakeDevice, FakeModel, Speed, sample
from tests.service.engine.arrivals import Arrival, arrival_lists
from tests.virtual_clock import now, run_virtually


def test_overdue_burst_of_another_model_does_not_count_as_wait() -> None:
    async def main() -> tuple[float, float]:
        device, scheduler = FakeDevice(), Scheduler()
        slow = FakeModel(device, scheduler, "tiles", speed=Speed(0.0, 0.3), max_size=1)
        quick = FakeModel(device, scheduler, "rows", speed=Speed(0.002, 0.0))
        burst = [slow.start_predict(float(i), target=1.0) for i in range(100)]
        await asyncio.sleep(10)
        quick_wait_s = scheduler.predict_wait_s(10.05, own_sources=[quick.batcher])
        slow_wait_s = scheduler.predict_wait_s(10.05, own_sources=[slow.batcher])
        for task in burst:
            task.cancel()
        await asyncio.gather(*burst, return_exceptions=True)
        return quick_wait_s, slow_wait_s

    quick_wait_s, slow_wait_s = run_virtually(main())

    assert quick_wait_s <= 0.3 + 0.05
    assert slow_wait_s == pytest.approx(20.0, abs=0.3)


def prediction_errors(arrivals: Sequence[Arrival], concurrency: int, speeds: Sequence[Speed]) -> list[float]:
    """Return actual minus predicted wait of each request, in seconds; no request overtakes another.

    Each has one sample: larger ones may leave batches half empty, which can double the wait.
    """
    errors: list[float] = []

    async def client(scheduler: Scheduler, model: FakeModel) -> None:
        deadline = Deadline(now() + 1000)
        predicted_start = now() + scheduler.predict_wait_s(deadline.target, own_sources=[model.batcher])
        starts: list[float] = []
        await model.batcher.submit(sample(1.0), deadline, on_start=lambda: starts.append(now()))
        errors.append(starts[0] - predicted_start)

    async def main() -> None:
        device, scheduler = FakeDevice(), Scheduler(concurrency)
        models = [FakeModel(device, scheduler, str(i), speed=speed, max_size=4) for i, speed in enumerate(speeds)]
        clients = []
        for arrival in arrivals:
            await asyncio.sleep(arrival.after_s)
            clients.append(asyncio.create_task(client(scheduler, models[arrival.model % len(models)])))
        await asyncio.gather(*clients)

    run_virtually(main())
    return errors


@settings(max_examples=100, deadline=None)
@given(arrival_lists, st.integers(1, 3))
def test_predicted_wait_is_right_to_within_one_batch(arrivals: list[Arrival], concurrency: int) -> None:
    speed = Speed(1.0, 0.1)

    assert max(map(abs, prediction_errors(arrivals, concurrency, [speed]))) <= speed.seconds(4) + 1e-9


@settings(max_examples=100, deadline=None)
@given(arrival_lists, st.integers(1, 3))
def test_with_two_models_the_wait_exceeds_the_prediction_by_one_batch_of_each_at_most(
    arrivals: list[Arrival], concurrency: int
) -> None:
    """The wait may be shorter: a request can join a batch that runs before work of the other model."""
    speeds = [Speed(1.0, 0.1), Speed(0.2, 0.4)]

    assert max(prediction_errors(arrivals, concurrency, speeds)) <= sum(speed.seconds(4) for speed in speeds) + 1e-9
