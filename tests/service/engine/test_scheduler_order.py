"""Which work runs next, over all models: by target time, and fairly; on the virtual clock."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.admission import Admission, ModelLimits, RequestOptions
from service.engine.scheduler import Priority, Scheduler
from tests.fake_device import FakeDevice, FakeModel, Run, Speed, expected
from tests.virtual_clock import now, run_virtually

TINY = Speed(0.002, 0.0)


def make_admission(model: FakeModel, limits: ModelLimits, scheduler: Scheduler) -> Admission:
    return Admission(limits, full_batch_s=lambda: model.speed.seconds(1), predict_wait_s=scheduler.predict_wait_s)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 50)), min_size=1, max_size=20, unique_by=lambda pair: pair[1])
)
def test_earliest_target_runs_first_over_all_models(work: list[tuple[int, int]]) -> None:
    async def main() -> list[Run]:
        device, scheduler = FakeDevice(), Scheduler()
        models = [FakeModel(device, scheduler, str(i), max_size=1) for i in range(3)]
        running = models[0].start_predict(99, target=0)
        await asyncio.sleep(0.5)
        waiting = [models[i].start_predict(float(target), target=1000.0 + target) for i, target in work]
        await asyncio.gather(running, *waiting)
        return device.runs

    runs = run_virtually(main())

    assert [run.values[0] for run in runs[1:]] == sorted(float(target) for _, target in work)


@pytest.mark.parametrize("order", [("low", "normal", "high"), ("normal", "high", "low"), ("high", "low", "normal")])
def test_requests_that_arrive_together_run_by_priority(order: tuple[Priority, ...]) -> None:
    async def main() -> list[Run]:
        device, scheduler = FakeDevice(), Scheduler()
        model = FakeModel(device, scheduler, max_size=1)
        admission = make_admission(model, ModelLimits(timeout_s=1000), scheduler)
        value = {"high": 1.0, "normal": 2.0, "low": 3.0}
        targets = {
            priority: admission.make_deadline(RequestOptions(priority=priority), now()).target for priority in order
        }
        await asyncio.gather(
            model.predict(0.0, target=-1.0),
            *(model.predict(value[priority], target=target) for priority, target in targets.items()),
        )
        return device.runs

    assert [run.values for run in run_virtually(main())] == [[0], [1], [2], [3]]


def test_model_with_more_weight_overtakes_an_earlier_request_of_one_with_less() -> None:
    async def main() -> list[str]:
        device, scheduler = FakeDevice(), Scheduler()
        light, heavy = (FakeModel(device, scheduler, name, max_size=1) for name in ("light", "heavy"))
        weights = {light: 1.0, heavy: 4.0}
        requests = [light.start_predict(0.0, target=-1.0)]
        for model in (light, heavy):
            await asyncio.sleep(0.1)
            admission = make_admission(model, ModelLimits(timeout_s=1000, weight=weights[model]), scheduler)
            requests.append(model.start_predict(1.0, target=admission.make_deadline(RequestOptions(), now()).target))
        await asyncio.gather(*requests)
        return [run.model for run in device.runs]

    assert run_virtually(main()) == ["light", "heavy", "light"]


def test_work_that_is_not_overdue_never_runs_after_work_with_a_later_target() -> None:
    async def main() -> list[float]:
        device, scheduler = FakeDevice(), Scheduler(1)
        model = FakeModel(device, scheduler, max_size=1, speed=Speed(1.0, 0.0))
        others = [FakeModel(device, scheduler, f"other {i}", max_size=1, speed=Speed(0.5, 0.0)) for i in range(3)]
        first = model.start_predict(0.0)
        await asyncio.sleep(0.5)
        later = [other.start_predict(1.0, target=1.9) for other in others]
        answer = await model.predict(2.0, target=1.2, limit=2.3)
        await asyncio.gather(first, *later)
        assert [run.model for run in device.runs] == ["model", "model", "other 0", "other 1", "other 2"]
        return answer

    assert run_virtually(main()) == expected(2.0)


@given(st.lists(st.tuples(st.integers(0, 2), st.floats(7.0, 10.0)), min_size=2, max_size=12))
def test_work_that_is_not_overdue_runs_by_target_whichever_model_ran_last(
    work: Sequence[tuple[int, float]],
) -> None:
    async def main() -> list[float]:
        device, scheduler = FakeDevice(), Scheduler(1)
        models = [FakeModel(device, scheduler, f"{i}", max_size=50, speed=Speed(0.0, 0.1)) for i in range(3)]
        long = models[0].start_predict(*[0.0] * 50)  # By fairness alone, its model's next turn is in ten seconds.
        await asyncio.sleep(1)
        await asyncio.gather(long, *(models[i].start_predict(target, target=target) for i, target in work))
        return [run.values[0] for run in device.runs]

    targets = run_virtually(main())

    assert targets == sorted(targets)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 3),
    st.floats(0.2, 1.0),
    st.lists(st.floats(0.0, 20.0), min_size=1, max_size=5),
    st.floats(0.1, 30.0),
)
def test_no_work_starves_under_a_flood_of_urgent_work_for_another_model(
    concurrency: int, interval_s: float, arrivals: list[float], slack_s: float
) -> None:
    """Waiting work runs after the urgent work with an earlier target, and one later job for each waiting request."""
    spans: list[tuple[float, float]] = []

    async def patient_client(model: FakeModel, arrived_at: float) -> None:
        await asyncio.sleep(arrived_at)
        await model.predict(1.0, target=arrived_at + slack_s)
        spans.append((arrived_at, now()))

    async def main() -> None:
        device, scheduler = FakeDevice(), Scheduler(concurrency)
        slow, urgent = (FakeModel(device, scheduler, name, max_size=1) for name in ("slow", "urgent"))
        clients = [asyncio.create_task(patient_client(slow, arrived_at)) for arrived_at in arrivals]
        flood = []
        while not all(client.done() for client in clients):
            flood.append(urgent.start_predict(2.0, target=now() + 0.01))
            await asyncio.sleep(interval_s)
        for task in flood:
            task.cancel()
        await asyncio.gather(*flood, return_exceptions=True)

    run_virtually(main())

    for arrived_at, ended_at in spans:
        jobs = (arrived_at + slack_s) / interval_s + 1 + 4 * len(arrivals)
        assert ended_at <= arrived_at + slack_s + 1.1 * (jobs / concurrency + 2)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 60),
    st.booleans(),
    st.lists(st.floats(0.0, 3.0), min_size=1, max_size=20),
)
def test_burst_of_slow_batches_delays_a_cheap_row_by_one_of_them_at_most(
    concurrency: int, tiles: int, in_one_request: bool, gaps: list[float]
) -> None:
    """The tiles' target is 20 times the duration of their batch; the burst may take longer and become overdue."""
    waits = []
    tile_s = 0.3

    async def main() -> None:
        device, scheduler = FakeDevice(), Scheduler(concurrency)
        slow = FakeModel(device, scheduler, "tiles", speed=Speed(0.0, tile_s), max_size=1)
        quick = FakeModel(device, scheduler, "rows", speed=TINY)
        if in_one_request:
            burst = [slow.start_predict(*(float(i) for i in range(tiles)), target=20 * tile_s)]
        else:
            burst = [slow.start_predict(float(i), target=20 * tile_s) for i in range(tiles)]
        for gap in gaps:
            await asyncio.sleep(gap)
            arrived_at = now()
            await quick.predict(1.0, target=arrived_at + 0.05)
            waits.append(now() - arrived_at - TINY.seconds(1))
        await asyncio.gather(*burst)

    run_virtually(main())

    assert max(waits) <= tile_s + 1e-9
