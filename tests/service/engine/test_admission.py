"""Who may come in, and when to come again who may not: on a clock that does not wait."""

import asyncio
import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.admission import Admission, ModelLimits, RequestOptions, parse_options
from service.engine.scheduler import Deadline, Scheduler, TooLate
from service.errors import DeadlineExceeded, DeviceHung, InvalidRequest, Overloaded
from tests.fake_device import HANGS, FakeDevice, Model, right
from tests.virtual_clock import run_virtually

OWN_S = 1.1


def now() -> float:
    return asyncio.get_running_loop().time()


def admission_of(wait_s: float = 0.0, limits: ModelLimits | None = None, full_batch_s: float = 1.0) -> Admission:
    return Admission(limits or ModelLimits(), full_batch_s=lambda: full_batch_s, wait_s=lambda due: wait_s)


@pytest.mark.parametrize(
    ("fields", "rest", "options"),
    [
        ({}, {}, RequestOptions()),
        ({"a": 1}, {"a": 1}, RequestOptions()),
        ({"a": 1, "timeout_ms": 250}, {"a": 1}, RequestOptions(0.25)),
        ({"timeout_ms": "250.5"}, {}, RequestOptions(0.2505)),
        ({"priority": "low"}, {}, RequestOptions(None, "low")),
        ({"timeout_ms": None, "priority": None, "b": None}, {"b": None}, RequestOptions()),
        ({"priority": "high", "timeout_ms": 1e9}, {}, RequestOptions(1e6, "high")),
    ],
)
def test_options_are_told_apart_from_what_is_asked(
    fields: Mapping[str, Any], rest: Mapping[str, Any], options: RequestOptions
) -> None:
    assert parse_options(fields) == (rest, options)


@pytest.mark.parametrize(
    ("name", "value"),
    [("timeout_ms", value) for value in (0, -1, "soon", "", "nan", "inf", math.nan, math.inf, True, [], {}, "1" * 999)]
    + [("timeout_ms", 10**400)]
    + [("priority", value) for value in ("urgent", "HIGH", "", 1, [], {}, True, "x" * 9999)],
)
def test_an_option_that_makes_no_sense_is_refused_by_its_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=name) as refused:
        parse_options({name: value})

    assert [problem.where for problem in refused.value.details] == [name]
    assert len(str(refused.value)) < 200


def test_a_field_of_the_models_own_is_no_option() -> None:
    assert parse_options({"priority": "whatever"}, names=("timeout_ms",)) == (
        {"priority": "whatever"},
        RequestOptions(),
    )


def test_of_two_times_the_shorter_counts_and_of_two_priorities_the_later() -> None:
    assert RequestOptions(2.0, "low").joined(RequestOptions(1.0, "high")) == RequestOptions(1.0, "high")
    assert RequestOptions(1.0, "low").joined(RequestOptions(2.0)) == RequestOptions(1.0, "low")
    assert RequestOptions().joined(RequestOptions()) == RequestOptions()
    assert not RequestOptions()


limits = st.builds(
    ModelLimits,
    timeout_s=st.floats(0.01, 100),
    deadline_s=st.none() | st.floats(0.01, 100),
    weight=st.floats(0.1, 10),
)


@given(limits, st.floats(0, 10), st.floats(0.001, 1000), st.floats(1.0, 100.0))
def test_a_longer_time_makes_nothing_more_urgent_and_one_beyond_the_models_own_nothing_less(
    limits: ModelLimits, full_batch_s: float, timeout_s: float, times: float
) -> None:
    admission = admission_of(limits=limits, full_batch_s=full_batch_s)
    short, long, without = (
        admission.deadline(RequestOptions(option), 5.0) for option in (timeout_s, timeout_s * times, None)
    )

    assert short.due <= long.due <= without.due
    assert short.until <= long.until <= without.until
    assert without.until <= 5.0 + limits.timeout_s
    assert without.until <= 5.0 + (limits.deadline_s or math.inf)


@given(limits, st.floats(0, 10), st.none() | st.floats(0.001, 1000))
def test_the_more_urgent_is_due_earlier_and_too_late_at_the_same_time(
    limits: ModelLimits, full_batch_s: float, timeout_s: float | None
) -> None:
    admission = admission_of(limits=limits, full_batch_s=full_batch_s)
    high, normal, low = (admission.deadline(RequestOptions(timeout_s, p), 0.0) for p in ("high", "normal", "low"))  # type: ignore[arg-type]

    assert high.due < normal.due < low.due
    assert high.until == normal.until == low.until
    assert normal.due == pytest.approx(8 * high.due) == pytest.approx(low.due / 8)


@given(st.floats(0, 10), st.floats(0.001, 10), st.integers(0, 200))
def test_what_an_idle_device_can_do_is_never_refused_however_wrong_it_has_been(
    own_s: float, left: float, slow_ones: int
) -> None:
    async def main() -> float:
        admission = admission_of()
        for _ in range(slow_ones):
            with admission.permit(Deadline(0, math.inf), 1.0, 1.0):
                await asyncio.sleep(100)
        return admission.check(Deadline(now(), now() + left), own_s, least_s=0.99 * left)

    assert run_virtually(main()) == own_s


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.integers(1, 3), st.floats(1.2, 60.0), st.integers(1, 4))
def test_who_is_refused_and_comes_again_when_told_is_answered_in_time_if_nobody_else_came(
    queued: int, concurrency: int, patience_s: float, most: int
) -> None:
    async def main() -> None:
        device, scheduler = FakeDevice(), Scheduler(concurrency)
        model = Model(device, scheduler, most=most)
        admission = Admission(ModelLimits(), full_batch_s=lambda: model.speed.seconds(most), wait_s=scheduler.wait_s)
        others = [model.asked(float(i)) for i in range(queued)]
        admission.in_flight = queued
        await asyncio.sleep(0.05)
        deadline = Deadline(now(), now() + patience_s)
        try:
            admission.check(deadline, OWN_S, OWN_S)
        except Overloaded as refused:
            await asyncio.sleep(refused.retry_after_s or math.nan)
            deadline = Deadline(now(), now() + patience_s)
            admission.check(deadline, OWN_S, OWN_S)
        assert await model.ask(1.0, due=deadline.due, until=deadline.until) == right(1.0)
        assert now() <= deadline.until + model.speed.seconds(most)
        await asyncio.gather(*others)

    run_virtually(main())


def test_what_takes_three_times_as_long_as_foreseen_is_soon_foreseen_right() -> None:
    async def main() -> None:
        admission = admission_of(wait_s=1.0, full_batch_s=0.0)
        for _ in range(200):
            with admission.permit(Deadline(0, math.inf), 1.0, 1.0):
                await asyncio.sleep(6)
        with admission.permit(Deadline(0, math.inf), 1.0, 1.0):
            with pytest.raises(Overloaded, match="about 6"):
                admission.check(Deadline(now(), now() + 5.9), 1.0, 1.0)
            admission.check(Deadline(now(), now() + 6.2), 1.0, 1.0)

    run_virtually(main())


@pytest.mark.parametrize(
    ("error", "after", "learns"),
    [
        (None, 0.0, True),
        (ValueError(), 0.0, False),
        (asyncio.CancelledError(), 0.0, False),
        (asyncio.CancelledError(), 5.0, True),
        (TooLate(), 0.0, True),
        (DeadlineExceeded("late"), 0.0, True),
        (DeadlineExceeded("late"), 5.0, True),
    ],
)
def test_how_long_those_take_that_fail_or_leave_is_not_learnt_from_but_being_late_is(
    error: BaseException | None, after: float, learns: bool
) -> None:
    async def main() -> tuple[float, float]:
        admission = admission_of(wait_s=1.0)
        before = admission._wrong
        expected = suppress(ValueError, asyncio.CancelledError, TooLate, DeadlineExceeded)
        with expected, admission.permit(Deadline(0, now() + 4.0), 1.0, 1.0):
            await asyncio.sleep(after)
            if error is not None:
                raise error
        assert admission.in_flight == 0
        return before, admission._wrong

    before, wrong = run_virtually(main())

    assert (wrong != before) is learns
    assert wrong >= before or error is None


def test_no_more_are_let_in_than_may_be_under_way_and_those_count_whose_thread_has_not_ended() -> None:
    async def main() -> None:
        admission = admission_of(limits=ModelLimits(most=2))
        deadline = Deadline(0, math.inf)
        with admission.permit(deadline, 0.0, 0.0):
            admission.abandoned += 1
            with pytest.raises(Overloaded, match="2 requests are under way") as refused:
                admission.check(deadline, 0.0, 0.0)
            admission.abandoned -= 1
            admission.check(deadline, 0.0, 0.0)
        assert refused.value.retry_after_s == 1

    run_virtually(main())


def test_where_the_device_hangs_nobody_is_let_in() -> None:
    async def main() -> None:
        device, scheduler = FakeDevice(), Scheduler(1, hang_s=5)
        model = Model(device, scheduler)
        admission = Admission(ModelLimits(), full_batch_s=lambda: 1.0, wait_s=scheduler.wait_s)
        hanging = model.asked(HANGS)
        await asyncio.gather(hanging, return_exceptions=True)
        with pytest.raises(DeviceHung):
            admission.check(Deadline(now(), math.inf), 0.0, 0.0)
        with pytest.raises(DeviceHung):
            admission.check_time(Deadline(now(), now() + 1), scheduler.wait_s(now()), 0.0, 0.0)
        device.released.set()
        await asyncio.sleep(2)
        admission.check(Deadline(now(), math.inf), 0.0, 0.0)

    run_virtually(main())


@pytest.mark.parametrize("over", [1.5, 3.0, 10.0])
def test_under_overload_who_is_let_in_is_answered_in_time_and_the_device_is_kept_busy(over: float) -> None:
    in_time, late = [], []

    async def client(admission: Admission, model: Model) -> None:
        deadline = admission.deadline(RequestOptions(), now())
        try:
            with admission.permit(deadline, OWN_S, OWN_S):
                await model.ask(1.0, due=deadline.due, until=deadline.until)
        except Overloaded:
            return
        except TooLate:
            late.append(now())
        else:
            (in_time if now() <= deadline.until else late).append(now())

    async def main() -> float:
        device, scheduler = FakeDevice(), Scheduler(2)
        model = Model(device, scheduler)
        speed = model.speed.seconds(8)
        admission = Admission(
            ModelLimits(timeout_s=10.0, most=10**6), full_batch_s=lambda: speed, wait_s=scheduler.wait_s
        )
        clients = []
        for _ in range(round(2000 * over)):
            clients.append(asyncio.create_task(client(admission, model)))
            await asyncio.sleep(speed / 16 / over)
        await asyncio.gather(*clients)
        return now() * 16 / speed

    capacity = run_virtually(main())

    assert len(late) <= 0.02 * len(in_time)
    assert len(in_time) >= 0.9 * capacity
