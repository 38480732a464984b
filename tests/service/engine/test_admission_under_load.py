"""Admission, batcher and scheduler together: overload, and a device that becomes fast again; on the virtual clock."""

import asyncio

import pytest

from service.engine.admission import Admission, ModelLimits, RequestOptions
from service.engine.latency import shape_of
from service.engine.scheduler import MissedDeadline, Scheduler
from service.errors import Overloaded
from tests.fake_device import FakeDevice, FakeModel, Speed, sample
from tests.virtual_clock import now, run_virtually

SAMPLE_SHAPE = shape_of(sample(0.0))
SERVICE_S = 1.1


@pytest.mark.parametrize("load", [1.5, 3.0, 10.0])
def test_overloaded_device_stays_busy_and_answers_admitted_requests_in_time(load: float) -> None:
    in_time, late = [], []

    async def client(admission: Admission, model: FakeModel) -> None:
        deadline = admission.make_deadline(RequestOptions(), now())
        try:
            with admission.permit(deadline, SERVICE_S, SERVICE_S):
                await model.predict(1.0, target=deadline.target, limit=deadline.limit)
        except Overloaded:
            return
        except MissedDeadline:
            late.append(now())
        else:
            (in_time if now() <= deadline.limit else late).append(now())

    async def main() -> float:
        device, scheduler = FakeDevice(), Scheduler(2)
        model = FakeModel(device, scheduler)
        full_batch_s = model.speed.seconds(8)
        admission = Admission(
            ModelLimits(timeout_s=10.0, max_in_flight=10**6),
            full_batch_s=lambda: full_batch_s,
            predict_wait_s=scheduler.predict_wait_s,
        )
        clients = []
        for _ in range(round(2000 * load)):
            clients.append(asyncio.create_task(client(admission, model)))
            await asyncio.sleep(full_batch_s / 16 / load)
        await asyncio.gather(*clients)
        return now() * 16 / full_batch_s

    capacity = run_virtually(main())

    assert len(late) <= 0.02 * len(in_time)
    assert len(in_time) >= 0.9 * capacity


class TemporarilySlow(Speed):
    """Five times as slow for a while."""

    slow_from, slow_to, factor = 20.0, 60.0, 5.0

    def seconds(self, size: int) -> float:
        is_slow = self.slow_from <= now() < self.slow_to
        return 0.1 * (self.factor if is_slow else 1.0)


def make_admission(model: FakeModel, scheduler: Scheduler, limits: ModelLimits) -> Admission:
    return Admission(
        limits,
        full_batch_s=lambda: model.profile.predict_s(SAMPLE_SHAPE, 1),
        predict_wait_s=lambda target: scheduler.predict_wait_s(target, own_sources=(model.batcher,)),
    )


async def keep_busy(model: FakeModel, admission: Admission, end: float) -> None:
    """Send one request after the other."""
    while now() < end:
        deadline = admission.make_deadline(RequestOptions(), now())
        await model.predict(1.0, target=deadline.target, limit=deadline.limit)


async def outcome_of_request(model: FakeModel, admission: Admission) -> str:
    deadline = admission.make_deadline(RequestOptions(), now())
    service_s, min_service_s = model.profile.predict_s(SAMPLE_SHAPE, 1), model.profile.min_s(SAMPLE_SHAPE, 1)
    try:
        async with asyncio.timeout_at(deadline.limit):
            with admission.permit(deadline, service_s, min_service_s):
                await model.predict(2.0, target=deadline.target, limit=deadline.limit)
    except Overloaded:
        return "rejected"
    except (MissedDeadline, TimeoutError):
        return "late"
    return "answered"


@pytest.mark.parametrize("interval_s", [0.93, 5.0])
def test_model_with_a_short_deadline_is_answered_again_once_a_slow_device_is_fast_again(interval_s: float) -> None:
    end = 400.0

    async def main() -> list[tuple[float, str]]:
        device, scheduler = FakeDevice(), Scheduler(1)
        model, other = (
            FakeModel(device, scheduler, name, max_size=1, speed=TemporarilySlow()) for name in ("model", "other")
        )
        admission = make_admission(model, scheduler, ModelLimits(deadline_s=1.0))
        other_admission = make_admission(other, scheduler, ModelLimits())
        load = [asyncio.create_task(keep_busy(other, other_admission, end)) for _ in range(2)]
        requests: list[tuple[float, asyncio.Task[str]]] = []
        while now() < end - 5:
            requests.append((now(), asyncio.create_task(outcome_of_request(model, admission))))
            await asyncio.sleep(interval_s)
        await asyncio.gather(*load)
        return [(arrived_at, await task) for arrived_at, task in requests]

    outcomes = run_virtually(main())

    before = [outcome for arrived_at, outcome in outcomes if arrived_at < TemporarilySlow.slow_from - 1]
    after = [outcome for arrived_at, outcome in outcomes if arrived_at > TemporarilySlow.slow_to + 2]
    assert set(before) == {"answered"}
    assert after.count("answered") > 0.95 * len(after)
