"""Who is next, and who finds out that a device is fast again: on the virtual clock."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.admission import Admission, ModelLimits, RequestOptions
from service.engine.latency import shape_of
from service.engine.scheduler import Scheduler, TooLate
from service.errors import Overloaded
from tests.fake_device import FakeDevice, Model, Speed, right, sample
from tests.virtual_clock import run_virtually

ONE = shape_of(sample(0.0))


def now() -> float:
    return asyncio.get_running_loop().time()


def test_who_is_not_overdue_is_not_sent_behind_what_is_due_later() -> None:
    async def main() -> list[float]:
        device, scheduler = FakeDevice(), Scheduler(1)
        model = Model(device, scheduler, most=1, speed=Speed(1.0, 0.0))
        others = [Model(device, scheduler, f"other {i}", most=1, speed=Speed(0.5, 0.0)) for i in range(3)]
        first = model.asked(0.0)
        await asyncio.sleep(0.5)
        later = [other.asked(1.0, due=1.9) for other in others]
        answer = await model.ask(2.0, due=1.2, until=2.3)
        await asyncio.gather(first, *later)
        assert [run.model for run in device.runs] == ["model", "model", "other 0", "other 1", "other 2"]
        return answer

    assert run_virtually(main()) == right(2.0)


@given(st.lists(st.tuples(st.integers(0, 2), st.floats(7.0, 10.0)), min_size=2, max_size=12))
def test_of_what_is_not_overdue_the_order_is_that_of_being_due_whosever_turn_it_was(
    work: Sequence[tuple[int, float]],
) -> None:
    async def main() -> list[float]:
        device, scheduler = FakeDevice(), Scheduler(1)
        models = [Model(device, scheduler, f"{i}", most=50, speed=Speed(0.0, 0.1)) for i in range(3)]
        long = models[0].asked(*[0.0] * 50)  # It would not have its turn again before ten seconds have passed.
        await asyncio.sleep(1)
        await asyncio.gather(long, *(models[model].asked(due, due=due) for model, due in work))
        return [run.values[0] for run in device.runs]

    ran = run_virtually(main())

    assert ran == sorted(ran)


class Moody(Speed):
    """Slow for a while."""

    slow_from, slow_to, times = 20.0, 60.0, 5.0

    def seconds(self, size: int) -> float:
        slow = self.slow_from <= now() < self.slow_to
        return 0.1 * (self.times if slow else 1.0)


def admission_for(model: Model, scheduler: Scheduler, limits: ModelLimits) -> Admission:
    return Admission(
        limits,
        full_batch_s=lambda: model.curve.seconds(ONE, 1),
        wait_s=lambda due: scheduler.wait_s(due, own=(model.batcher,)),
    )


async def kept_busy(model: Model, admission: Admission, until: float) -> None:
    """A client that asks again as soon as it has its answer."""
    while now() < until:
        deadline = admission.deadline(RequestOptions(), now())
        await model.ask(1.0, due=deadline.due, until=deadline.until)


async def outcome(model: Model, admission: Admission) -> str:
    """What becomes of one request: answered, refused or late."""
    deadline = admission.deadline(RequestOptions(), now())
    try:
        async with asyncio.timeout_at(deadline.until):
            with admission.permit(deadline, model.curve.seconds(ONE, 1), model.curve.least(ONE, 1)):
                await model.ask(2.0, due=deadline.due, until=deadline.until)
    except Overloaded:
        return "refused"
    except (TooLate, TimeoutError):
        return "late"
    return "answered"


@pytest.mark.parametrize("every_s", [0.93, 5.0])
def test_a_model_with_a_short_deadline_that_was_refused_while_the_device_was_slow_is_answered_again_once_it_is_fast(
    every_s: float,
) -> None:
    end = 400.0

    async def main() -> list[tuple[float, str]]:
        device, scheduler = FakeDevice(), Scheduler(1)
        model, other = (Model(device, scheduler, name, most=1, speed=Moody()) for name in ("model", "other"))
        admission = admission_for(model, scheduler, ModelLimits(deadline_s=1.0))
        of_other = admission_for(other, scheduler, ModelLimits())
        busy = [asyncio.create_task(kept_busy(other, of_other, end)) for _ in range(2)]
        asked: list[tuple[float, asyncio.Task[str]]] = []
        while now() < end - 5:
            asked.append((now(), asyncio.create_task(outcome(model, admission))))
            await asyncio.sleep(every_s)
        await asyncio.gather(*busy)
        return [(came, await task) for came, task in asked]

    seen = run_virtually(main())

    before = [what for came, what in seen if came < Moody.slow_from - 1]
    after = [what for came, what in seen if came > Moody.slow_to + 2]
    assert set(before) == {"answered"}
    assert after.count("answered") > 0.95 * len(after)
