"""Deadlines of requests, and which requests are admitted; on the virtual clock."""

import asyncio
import math
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.admission import Admission, ModelLimits, RequestOptions
from service.engine.scheduler import Deadline, MissedDeadline, Scheduler
from service.errors import DeadlineExceeded, DeviceHung, Overloaded
from tests.fake_device import HANGS, FakeDevice, FakeModel, expected
from tests.virtual_clock import now, run_virtually

SERVICE_S = 1.1


def make_admission(wait_s: float = 0.0, limits: ModelLimits | None = None, full_batch_s: float = 1.0) -> Admission:
    return Admission(limits or ModelLimits(), full_batch_s=lambda: full_batch_s, predict_wait_s=lambda target: wait_s)


limits = st.builds(
    ModelLimits,
    timeout_s=st.floats(0.01, 100),
    deadline_s=st.none() | st.floats(0.01, 100),
    weight=st.floats(0.1, 10),
)


@given(limits, st.floats(0, 10), st.floats(0.001, 1000), st.floats(1.0, 100.0))
def test_longer_timeout_never_brings_the_deadline_forward_and_no_timeout_gives_the_latest(
    limits: ModelLimits, full_batch_s: float, timeout_s: float, factor: float
) -> None:
    admission = make_admission(limits=limits, full_batch_s=full_batch_s)
    short, long, default = (
        admission.make_deadline(RequestOptions(timeout), 5.0) for timeout in (timeout_s, timeout_s * factor, None)
    )

    assert short.target <= long.target <= default.target
    assert short.limit <= long.limit <= default.limit
    assert default.limit <= 5.0 + limits.timeout_s
    assert default.limit <= 5.0 + (limits.deadline_s or math.inf)


@given(limits, st.floats(0, 10), st.none() | st.floats(0.001, 1000))
def test_priority_changes_the_target_and_not_the_limit(
    limits: ModelLimits, full_batch_s: float, timeout_s: float | None
) -> None:
    admission = make_admission(limits=limits, full_batch_s=full_batch_s)
    high, normal, low = (
        admission.make_deadline(RequestOptions(timeout_s, priority), 0.0)  # type: ignore[arg-type]
        for priority in ("high", "normal", "low")
    )

    assert high.target < normal.target < low.target
    assert high.limit == normal.limit == low.limit
    assert normal.target == pytest.approx(8 * high.target) == pytest.approx(low.target / 8)


@given(st.floats(0, 10), st.floats(0.001, 10), st.integers(0, 200))
def test_idle_device_never_rejects_a_possible_request_however_wrong_predictions_were(
    service_s: float, left_s: float, slow_requests: int
) -> None:
    async def main() -> float:
        admission = make_admission()
        for _ in range(slow_requests):
            with admission.permit(Deadline(0, math.inf), 1.0, 1.0):
                await asyncio.sleep(100)
        return admission.check(Deadline(now(), now() + left_s), service_s, min_service_s=0.99 * left_s)

    assert run_virtually(main()) == service_s


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.integers(1, 3), st.floats(1.2, 60.0), st.integers(1, 4))
def test_rejected_request_that_retries_after_the_given_time_is_answered_in_time_if_no_other_arrived(
    queued: int, concurrency: int, timeout_s: float, max_size: int
) -> None:
    async def main() -> None:
        device, scheduler = FakeDevice(), Scheduler(concurrency)
        model = FakeModel(device, scheduler, max_size=max_size)
        full_batch_s = model.speed.seconds(max_size)
        admission = Admission(ModelLimits(), full_batch_s=lambda: full_batch_s, predict_wait_s=scheduler.predict_wait_s)
        others = [model.start_predict(float(i)) for i in range(queued)]
        admission.in_flight = queued
        await asyncio.sleep(0.05)
        deadline = Deadline(now(), now() + timeout_s)
        try:
            admission.check(deadline, SERVICE_S, SERVICE_S)
        except Overloaded as rejected:
            await asyncio.sleep(rejected.retry_after_s or math.nan)
            deadline = Deadline(now(), now() + timeout_s)
            admission.check(deadline, SERVICE_S, SERVICE_S)
        assert await model.predict(1.0, target=deadline.target, limit=deadline.limit) == expected(1.0)
        assert now() <= deadline.limit + full_batch_s
        await asyncio.gather(*others)

    run_virtually(main())


def test_prediction_learns_that_requests_take_three_times_as_long() -> None:
    async def main() -> None:
        admission = make_admission(wait_s=1.0, full_batch_s=0.0)
        for _ in range(200):
            with admission.permit(Deadline(0, math.inf), 1.0, 1.0):
                await asyncio.sleep(6)
        with admission.permit(Deadline(0, math.inf), 1.0, 1.0):
            with pytest.raises(Overloaded, match="about 6"):
                admission.check(Deadline(now(), now() + 5.9), 1.0, 1.0)
            admission.check(Deadline(now(), now() + 6.2), 1.0, 1.0)

    run_virtually(main())


@pytest.mark.parametrize(
    ("error", "after_s", "is_compared"),
    [
        (None, 0.0, True),
        (ValueError(), 0.0, False),
        (asyncio.CancelledError(), 0.0, False),
        (asyncio.CancelledError(), 5.0, True),
        (MissedDeadline(), 0.0, True),
        (DeadlineExceeded("late"), 0.0, True),
        (DeadlineExceeded("late"), 5.0, True),
    ],
)
def test_prediction_learns_from_answered_and_late_requests_but_not_from_failed_or_cancelled_ones(
    error: BaseException | None, after_s: float, is_compared: bool
) -> None:
    async def main() -> tuple[float, float]:
        admission = make_admission(wait_s=1.0)
        before = admission._correction
        suppressed = suppress(ValueError, asyncio.CancelledError, MissedDeadline, DeadlineExceeded)
        with suppressed, admission.permit(Deadline(0, now() + 4.0), 1.0, 1.0):
            await asyncio.sleep(after_s)
            if error is not None:
                raise error
        assert admission.in_flight == 0
        return before, admission._correction

    before, after = run_virtually(main())

    assert (after != before) is is_compared
    assert after >= before or error is None


def test_full_model_rejects_and_abandoned_requests_count_until_their_thread_ends() -> None:
    async def main() -> None:
        admission = make_admission(limits=ModelLimits(max_in_flight=2))
        deadline = Deadline(0, math.inf)
        with admission.permit(deadline, 0.0, 0.0):
            admission.abandoned += 1
            with pytest.raises(Overloaded, match=r"Too many concurrent requests .*limit 2") as rejected:
                admission.check(deadline, 0.0, 0.0)
            admission.abandoned -= 1
            admission.check(deadline, 0.0, 0.0)
        assert rejected.value.retry_after_s == 1

    run_virtually(main())


def test_hung_device_rejects_every_request_until_it_responds() -> None:
    async def main() -> None:
        device, scheduler = FakeDevice(), Scheduler(1, hang_timeout_s=5)
        model = FakeModel(device, scheduler)
        admission = Admission(ModelLimits(), full_batch_s=lambda: 1.0, predict_wait_s=scheduler.predict_wait_s)
        hung = model.start_predict(HANGS)
        await asyncio.gather(hung, return_exceptions=True)
        with pytest.raises(DeviceHung):
            admission.check(Deadline(now(), math.inf), 0.0, 0.0)
        with pytest.raises(DeviceHung):
            admission.check_deadline(Deadline(now(), now() + 1), scheduler.predict_wait_s(now()), 0.0, 0.0)
        device.released.set()
        await asyncio.sleep(2)
        admission.check(Deadline(now(), math.inf), 0.0, 0.0)

    run_virtually(main())
