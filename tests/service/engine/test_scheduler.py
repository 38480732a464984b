"""What a device does next, of all models: on a clock that does not wait."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.backends.base import OutOfMemory
from service.engine.admission import Admission, ModelLimits, RequestOptions
from service.engine.scheduler import Capacity, Deadline, InsufficientMemory, Job, NextWork, Priority, Scheduler
from tests.fake_device import FITS_QUITE_ALONE, FakeDevice, Model, Run, Speed, right, sample
from tests.virtual_clock import run_virtually

TINY = Speed(0.002, 0.0)


def now() -> float:
    return asyncio.get_running_loop().time()


def admission_of(model: Model, limits: ModelLimits, scheduler: Scheduler) -> Admission:
    return Admission(limits, full_batch_s=lambda: model.speed.seconds(1), wait_s=scheduler.wait_s)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 50)), min_size=1, max_size=20, unique_by=lambda pair: pair[1])
)
def test_what_is_due_first_runs_first_over_all_models(work: list[tuple[int, int]]) -> None:
    async def main() -> list[Run]:
        device, scheduler = FakeDevice(), Scheduler()
        models = [Model(device, scheduler, str(i), most=1) for i in range(3)]
        busy = models[0].asked(99, due=0)
        await asyncio.sleep(0.5)
        waiting = [models[which].asked(float(due), due=1000.0 + due) for which, due in work]
        await asyncio.gather(busy, *waiting)
        return device.runs

    runs = run_virtually(main())

    assert [run.values[0] for run in runs[1:]] == sorted(float(due) for _, due in work)


@pytest.mark.parametrize("order", [("low", "normal", "high"), ("normal", "high", "low"), ("high", "low", "normal")])
def test_of_requests_that_came_together_the_more_urgent_runs_first(order: tuple[Priority, ...]) -> None:
    async def main() -> list[Run]:
        device, scheduler = FakeDevice(), Scheduler()
        model = Model(device, scheduler, most=1)
        deadline = admission_of(model, ModelLimits(timeout_s=1000), scheduler).deadline
        number = {"high": 1.0, "normal": 2.0, "low": 3.0}
        await asyncio.gather(
            model.ask(0.0, due=-1.0),
            *(
                model.ask(number[priority], due=deadline(RequestOptions(priority=priority), now()).due)
                for priority in order
            ),
        )
        return device.runs

    assert [run.values for run in run_virtually(main())] == [[0], [1], [2], [3]]


def test_a_model_of_more_weight_goes_before_one_of_less_that_came_a_little_earlier() -> None:
    async def main() -> list[str]:
        device, scheduler = FakeDevice(), Scheduler()
        light, heavy = (Model(device, scheduler, name, most=1) for name in ("light", "heavy"))
        weights = {light: 1.0, heavy: 4.0}
        asked = [light.asked(0.0, due=-1.0)]
        for model in (light, heavy):
            await asyncio.sleep(0.1)
            deadline = admission_of(model, ModelLimits(timeout_s=1000, weight=weights[model]), scheduler).deadline
            asked.append(model.asked(1.0, due=deadline(RequestOptions(), now()).due))
        await asyncio.gather(*asked)
        return [run.model for run in device.runs]

    assert run_virtually(main()) == ["light", "heavy", "light"]


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 3),
    st.floats(0.2, 1.0),
    st.lists(st.floats(0.0, 20.0), min_size=1, max_size=5),
    st.floats(0.1, 30.0),
)
def test_nothing_starves_however_much_urgent_work_of_another_model_comes(
    concurrency: int, every_s: float, arrivals: list[float], allowance_s: float
) -> None:
    """What waits runs once all the urgent work that is due before it is done, and one job of each that is not."""
    ended: list[tuple[float, float]] = []

    async def patient(model: Model, came: float) -> None:
        await asyncio.sleep(came)
        await model.ask(1.0, due=came + allowance_s)
        ended.append((came, now()))

    async def main() -> None:
        device, scheduler = FakeDevice(), Scheduler(concurrency)
        slow, urgent = Model(device, scheduler, "slow", most=1), Model(device, scheduler, "urgent", most=1)
        clients = [asyncio.create_task(patient(slow, came)) for came in arrivals]
        flood = []
        while not all(client.done() for client in clients):
            flood.append(urgent.asked(2.0, due=now() + 0.01))
            await asyncio.sleep(every_s)
        for task in flood:
            task.cancel()
        await asyncio.gather(*flood, return_exceptions=True)

    run_virtually(main())

    for came, end in ended:
        jobs = (came + allowance_s) / every_s + 1 + 4 * len(arrivals)
        assert end <= came + allowance_s + 1.1 * (jobs / concurrency + 2)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 60),
    st.booleans(),
    st.lists(st.floats(0.0, 3.0), min_size=1, max_size=20),
)
def test_a_burst_of_slow_batches_keeps_a_cheap_row_waiting_for_one_of_them_at_most(
    concurrency: int, tiles: int, in_one_request: bool, gaps: list[float]
) -> None:
    """The tiles are due after 20 times what their batch takes: the burst may be at work for longer than that."""
    waits = []
    tile_s = 0.3

    async def main() -> None:
        device, scheduler = FakeDevice(), Scheduler(concurrency)
        slow = Model(device, scheduler, "tiles", speed=Speed(0.0, tile_s), most=1)
        quick = Model(device, scheduler, "rows", speed=TINY)
        if in_one_request:
            burst = [slow.asked(*(float(i) for i in range(tiles)), due=20 * tile_s)]
        else:
            burst = [slow.asked(float(i), due=20 * tile_s) for i in range(tiles)]
        for gap in gaps:
            await asyncio.sleep(gap)
            came = now()
            await quick.ask(1.0, due=came + 0.05)
            waits.append(now() - came - TINY.seconds(1))
        await asyncio.gather(*burst)

    run_virtually(main())

    assert max(waits) <= tile_s + 1e-9


def test_a_row_is_not_thought_to_wait_for_a_burst_that_is_overdue() -> None:
    async def main() -> tuple[float, float]:
        device, scheduler = FakeDevice(), Scheduler()
        slow = Model(device, scheduler, "tiles", speed=Speed(0.0, 0.3), most=1)
        quick = Model(device, scheduler, "rows", speed=TINY)
        burst = [slow.asked(float(i), due=1.0) for i in range(100)]
        await asyncio.sleep(10)
        of_quick = scheduler.wait_s(10.05, own=[quick.batcher])
        of_slow = scheduler.wait_s(10.05, own=[slow.batcher])
        for task in burst:
            task.cancel()
        await asyncio.gather(*burst, return_exceptions=True)
        return of_quick, of_slow

    of_quick, of_slow = run_virtually(main())

    assert of_quick <= 0.3 + 0.05
    assert of_slow == pytest.approx(20.0, abs=0.3)


@dataclass(frozen=True)
class Coming:
    """A request of one of two models: how long after the one before, and how many samples."""

    after: float
    which: int
    size: int


coming = st.lists(
    st.builds(Coming, st.sampled_from([0.0, 0.0, 0.1, 0.5, 1.1, 5.0]), st.integers(0, 1), st.integers(1, 4)),
    min_size=1,
    max_size=25,
)


def surprises_of(requests: Sequence[Coming], concurrency: int, speeds: Sequence[Speed]) -> list[float]:
    """By how many seconds each waited longer than was foreseen when it came; nobody overtakes.

    Of one sample each: larger ones may leave batches half empty, and then it may take twice as long.
    """
    surprises: list[float] = []

    async def client(scheduler: Scheduler, model: Model) -> None:
        deadline = Deadline(now() + 1000)
        expected = now() + scheduler.wait_s(deadline.due, own=[model.batcher])
        began: list[float] = []
        await model.batcher.submit(sample(1.0), deadline, on_start=lambda: began.append(now()))
        surprises.append(began[0] - expected)

    async def main() -> None:
        device, scheduler = FakeDevice(), Scheduler(concurrency)
        models = [Model(device, scheduler, str(i), speed=speed, most=4) for i, speed in enumerate(speeds)]
        clients = []
        for request in requests:
            await asyncio.sleep(request.after)
            clients.append(asyncio.create_task(client(scheduler, models[request.which % len(models)])))
        await asyncio.gather(*clients)

    run_virtually(main())
    return surprises


@settings(max_examples=100, deadline=None)
@given(coming, st.integers(1, 3))
def test_how_long_a_request_will_wait_is_known_to_within_one_batch(requests: list[Coming], concurrency: int) -> None:
    speed = Speed(1.0, 0.1)

    assert max(map(abs, surprises_of(requests, concurrency, [speed]))) <= speed.seconds(4) + 1e-9


@settings(max_examples=100, deadline=None)
@given(coming, st.integers(1, 3))
def test_beside_another_model_no_request_waits_longer_than_was_foreseen_by_more_than_a_batch_of_each(
    requests: list[Coming], concurrency: int
) -> None:
    """It may wait less: it joins a batch of its model that comes before work of the other that was counted."""
    speeds = [Speed(1.0, 0.1), Speed(0.2, 0.4)]

    assert max(surprises_of(requests, concurrency, speeds)) <= sum(speed.seconds(4) for speed in speeds) + 1e-9


@settings(max_examples=100, deadline=None)
@given(coming, st.integers(1, 3), st.integers(1, 6))
def test_the_device_is_given_as_much_as_it_takes_at_once_and_never_idles_while_anything_waits(
    requests: list[Coming], concurrency: int, most: int
) -> None:
    starts: list[tuple[float, float]] = []

    async def main() -> FakeDevice:
        device, scheduler = FakeDevice(), Scheduler(concurrency)
        models = [Model(device, scheduler, str(i), most=most) for i in range(2)]

        async def client(request: Coming) -> None:
            came, started = now(), math.inf
            await models[request.which].ask(*range(1, request.size + 1))
            values = [run for run in device.runs if run.model == str(request.which)]
            started = min(run.began for run in values if run.began >= came)
            starts.append((came, started))

        clients = []
        for request in requests:
            await asyncio.sleep(request.after)
            clients.append(asyncio.create_task(client(request)))
        await asyncio.gather(*clients)
        return device

    device = run_virtually(main())

    assert device.most_running <= concurrency
    for came, started in starts:
        for moment in [came, *(run.ended for run in device.runs if came < run.ended < started)]:
            busy = sum(run.began <= moment < run.ended for run in device.runs)
            assert moment >= started or busy == concurrency


@settings(max_examples=100, deadline=None)
@given(coming, st.integers(1, 3), st.integers(1, 9))
def test_what_runs_together_never_takes_more_memory_than_there_is(
    requests: list[Coming], concurrency: int, budget: int
) -> None:
    """A sample of the one model takes 1 byte, one of the other 3."""
    refused: list[bool] = []

    async def client(model: Model, size: int) -> None:
        try:
            assert await model.ask(*range(1, size + 1)) == right(*range(1, size + 1))
        except OutOfMemory:
            refused.append(model.speed.each_bytes > budget)

    async def main() -> FakeDevice:
        device, scheduler = FakeDevice(), Scheduler(concurrency)
        scheduler.memory_bytes = budget
        models = [Model(device, scheduler, str(i), speed=Speed(1.0, 0.1, 1 + 2 * i)) for i in range(2)]
        clients = []
        for request in requests:
            await asyncio.sleep(request.after)
            clients.append(asyncio.create_task(client(models[request.which], request.size)))
        await asyncio.gather(*clients)
        return device

    device = run_virtually(main())

    assert device.most_bytes <= budget
    assert all(run.error is None for run in device.runs)
    assert all(refused)


def test_what_does_not_fit_beside_others_is_the_next_and_nobody_overtakes_it() -> None:
    async def main() -> tuple[list[Run], list[float]]:
        device, scheduler = FakeDevice(), Scheduler(2)
        scheduler.memory_bytes = 4
        small = Model(device, scheduler, "small", speed=Speed(1.0, 0.0, 1), most=1)
        large = Model(device, scheduler, "large", speed=Speed(1.0, 0.0, 4), most=1)
        asked = [small.asked(1.0, due=0.0)]
        await asyncio.sleep(0.5)
        asked += [large.asked(2.0, due=10.0), small.asked(3.0, due=11.0), small.asked(4.0, due=12.0)]
        await asyncio.gather(*asked)
        return device.runs, [run.began for run in device.runs]

    runs, began = run_virtually(main())

    assert [run.values for run in runs] == [[1], [2], [3], [4]]
    assert began == [0, 1, 2, 2]


def test_what_does_not_fit_alone_is_refused_and_never_run() -> None:
    async def main() -> int:
        device, scheduler = FakeDevice(), Scheduler(2)
        scheduler.memory_bytes = 3
        with pytest.raises(OutOfMemory, match="no room"):
            await Model(device, scheduler, speed=Speed(1.0, 0.0, 4)).ask(1.0)
        return len(device.runs)

    assert run_virtually(main()) == 0


def test_nothing_is_begun_beside_what_has_to_be_quite_alone() -> None:
    async def main() -> tuple[list[float], list[Run]]:
        device, scheduler = FakeDevice(), Scheduler(2)
        one, other = (Model(device, scheduler, name, most=1) for name in ("one", "other"))
        others = [other.asked(float(i), due=100.0) for i in range(6)]
        answer = await one.ask(FITS_QUITE_ALONE, due=50.0)
        await asyncio.gather(*others)
        return answer, device.runs

    answer, runs = run_virtually(main())

    assert answer == right(FITS_QUITE_ALONE)
    assert [run.had_company for run in runs if FITS_QUITE_ALONE in run.values] == [True, False]


class Broken:
    """A source with a fault in one of its methods, and work that is due before any other."""

    def __init__(self, method: str, times: float = math.inf) -> None:
        self.method, self.times = method, times

    def offer(self) -> NextWork | None:
        self._fail("offer")
        return NextWork(-math.inf, -math.inf)

    def take(self, now: float, room: Capacity) -> Job | None:
        self._fail("take")
        raise InsufficientMemory

    def _fail(self, method: str) -> None:
        if method == self.method and self.times > 0:
            self.times -= 1
            raise LookupError(method)

    def seconds_ahead(self, due: float) -> float:
        return 0.0

    def refuse(self, error: Exception) -> None:
        """Nothing waits."""


@pytest.mark.parametrize("method", ["offer", "take"])
def test_a_fault_in_one_source_is_told_and_does_not_stop_the_others(method: str) -> None:
    faults: list[BaseException] = []

    async def main() -> list[list[float]]:
        device, scheduler = FakeDevice(), Scheduler(2, on_fault=faults.append)
        scheduler.attach(Broken(method))
        model = Model(device, scheduler, most=1)
        return await asyncio.gather(*(model.ask(float(i)) for i in range(5)))

    assert run_virtually(main()) == [right(float(i)) for i in range(5)]
    assert {str(fault) for fault in faults} == {method}


def test_a_job_that_raises_is_told_and_frees_its_place() -> None:
    faults: list[BaseException] = []

    async def main() -> list[float]:
        scheduler = Scheduler(on_fault=faults.append)
        model = Model(FakeDevice(), scheduler)

        def broken() -> None:
            raise LookupError("on_start")

        with pytest.raises(RuntimeError):
            await model.batcher.submit({"x": np.ones((1, 1))}, on_start=broken)
        return await model.ask(1.0)

    assert run_virtually(main()) == right(1.0)
    assert [str(fault) for fault in faults] == ["on_start"]
