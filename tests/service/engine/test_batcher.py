"""What a batcher promises, on a clock that does not wait."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.batcher import Batcher, BatchPolicy, BatchReport, BatchResult, RunBatch
from service.engine.scheduler import Scheduler
from tasks.contract import Arrays
from tests.virtual_clock import run_virtually

POISON = -1.0


@dataclass
class Device:
    """Doubles each number; fails a batch that has poison in it; takes a second, and a tenth more for each sample."""

    batches: list[list[float]] = field(default_factory=list)
    began: list[float] = field(default_factory=list)
    running: int = 0
    most_running: int = 0

    async def run(self, parts: Sequence[Arrays]) -> Arrays:
        stacked = np.concatenate([part["x"] for part in parts])
        self.batches.append(stacked.reshape(len(stacked), -1)[:, 0].tolist())
        self.began.append(asyncio.get_running_loop().time())
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(1 + 0.1 * len(stacked))
        self.running -= 1
        if (stacked == POISON).any():
            raise ValueError("poison")
        return {"y": stacked * 2}


def batcher_of(run: RunBatch, policy: BatchPolicy, *, concurrency: int = 1, **others: object) -> Batcher:
    """A batcher that has a device to itself, and whose clock is that of the loop."""
    others.setdefault("clock", asyncio.get_running_loop().time)
    return Batcher(run, policy, Scheduler(concurrency), **others)  # type: ignore[arg-type]


def sample(*values: float, width: int = 1) -> Arrays:
    return {"x": np.repeat(np.array(values, np.float64)[:, None], width, axis=1)}


def answer_of(ran: BatchResult) -> list[float]:
    return ran.outputs["y"][:, 0].tolist()


def test_a_lone_sample_leaves_at_once() -> None:
    async def main() -> BatchResult:
        return await batcher_of(Device().run, BatchPolicy(max_size=8)).submit(sample(3))

    ran = run_virtually(main())

    assert answer_of(ran) == [6]
    assert ran.batch_size == 1


def test_what_comes_while_the_device_is_busy_shares_the_next_batch() -> None:
    device = Device()

    async def main() -> None:
        batcher = batcher_of(device.run, BatchPolicy(max_size=8))
        first = asyncio.create_task(batcher.submit(sample(1)))
        await asyncio.sleep(0.5)
        others = [asyncio.create_task(batcher.submit(sample(i))) for i in (2, 3, 4)]
        await asyncio.gather(first, *others)

    run_virtually(main())

    assert device.batches == [[1], [2, 3, 4]]


def test_a_batch_that_waits_for_company_leaves_when_its_oldest_has_waited_the_delay() -> None:
    device = Device()

    async def main() -> None:
        batcher = batcher_of(device.run, BatchPolicy(max_size=8, max_delay_s=5))
        first = asyncio.create_task(batcher.submit(sample(1)))
        await asyncio.sleep(4)
        await asyncio.gather(first, batcher.submit(sample(2)))

    run_virtually(main())

    assert device.batches == [[1, 2]]
    assert device.began == [5]


def test_a_full_batch_does_not_wait_for_the_delay() -> None:
    device = Device()

    async def main() -> None:
        batcher = batcher_of(device.run, BatchPolicy(max_size=2, max_delay_s=5))
        await asyncio.gather(batcher.submit(sample(1)), batcher.submit(sample(2)))

    run_virtually(main())

    assert device.began == [0]


def test_a_request_larger_than_a_batch_is_answered_in_order() -> None:
    device = Device()

    async def main() -> BatchResult:
        return await batcher_of(device.run, BatchPolicy(max_size=4)).submit(sample(*range(10)))

    ran = run_virtually(main())

    assert answer_of(ran) == [2.0 * i for i in range(10)]
    assert [len(batch) for batch in device.batches] == [4, 4, 2]


def test_cancelling_a_large_request_gives_up_what_has_not_begun() -> None:
    device = Device()

    async def main() -> None:
        batcher = batcher_of(device.run, BatchPolicy(max_size=2))
        task = asyncio.create_task(batcher.submit(sample(*range(10))))
        await asyncio.sleep(0.5)
        task.cancel()
        await asyncio.sleep(100)
        assert batcher.depth == 0

    run_virtually(main())

    assert device.batches == [[0, 1]]


def test_who_comes_after_a_large_request_does_not_wait_for_all_of_it() -> None:
    device = Device()

    async def main() -> None:
        batcher = batcher_of(device.run, BatchPolicy(max_size=2))
        large = asyncio.create_task(batcher.submit(sample(*range(100))))
        await asyncio.sleep(0.5)
        await batcher.submit(sample(1000))
        assert not large.done()
        large.cancel()

    run_virtually(main())

    assert [1000] in device.batches[:3]


def test_a_large_request_of_which_a_part_fails_gets_the_error_and_leaves_nothing_behind() -> None:
    async def run(parts: Sequence[Arrays]) -> Arrays:
        if any((part["x"] == 3).any() for part in parts):
            raise ValueError("three")
        return {"y": np.concatenate([part["x"] for part in parts]) * 2}

    async def main() -> int:
        batcher = batcher_of(run, BatchPolicy(max_size=1), concurrency=2)
        with pytest.raises(ValueError, match="three"):
            await batcher.submit(sample(*range(10)))
        await asyncio.sleep(0)
        return batcher.depth

    assert run_virtually(main()) == 0


def test_a_failed_batch_blames_only_the_culprit() -> None:
    reports: list[BatchReport] = []

    async def main() -> list[BatchResult | BaseException]:
        batcher = batcher_of(Device().run, BatchPolicy(max_size=8), on_batch=reports.append)
        values = [1.0, 2.0, POISON, 4.0]
        return await asyncio.gather(*(batcher.submit(sample(v)) for v in values), return_exceptions=True)

    answers = run_virtually(main())

    assert isinstance(answers[2], ValueError)
    assert [answer_of(a) for a in answers if isinstance(a, BatchResult)] == [[2], [4], [8]]
    assert sum(report.error is not None for report in reports) == 3


def test_two_batches_are_given_at_once_where_the_policy_says_so() -> None:
    device = Device()

    async def main() -> None:
        batcher = batcher_of(device.run, BatchPolicy(max_size=1), concurrency=2)
        await asyncio.gather(*(batcher.submit(sample(i)) for i in range(6)))

    run_virtually(main())

    assert device.most_running == 2


@dataclass(frozen=True)
class Arrival:
    """A request: how long after the one before, its samples, their width, how long its client waits."""

    after: float
    values: tuple[float, ...]
    width: int
    patience: float | None


arrivals = st.lists(
    st.builds(
        Arrival,
        after=st.sampled_from([0.0, 0.0, 0.05, 0.7, 3.0]),
        values=st.lists(st.integers(1, 1000).map(float) | st.just(POISON), min_size=1, max_size=6).map(tuple),
        width=st.integers(1, 2),
        patience=st.none() | st.sampled_from([0.0, 0.3, 1.15, 4.0]),
    ),
    min_size=1,
    max_size=25,
)
policies = st.builds(
    BatchPolicy,
    max_size=st.integers(1, 5),
    max_delay_s=st.sampled_from([0.0, 0.5, 2.0]),
)


@settings(max_examples=300, deadline=None)
@given(arrivals, policies, st.integers(1, 2))
def test_whatever_comes_each_gets_its_own_answer_and_nobody_elses_fate(
    requests: list[Arrival], policy: BatchPolicy, concurrency: int
) -> None:
    device, ends, dropped = Device(), {}, []

    async def client(batcher: Batcher, number: int, request: Arrival) -> None:
        try:
            async with asyncio.timeout(request.patience):
                ends[number] = answer_of(await batcher.submit(sample(*request.values, width=request.width)))
        except (TimeoutError, ValueError) as error:
            ends[number] = error

    async def main() -> None:
        batcher = batcher_of(device.run, policy, concurrency=concurrency, on_dropped=dropped.append)
        clients = []
        for number, request in enumerate(requests):
            await asyncio.sleep(request.after)
            clients.append(asyncio.create_task(client(batcher, number, request)))
        await asyncio.gather(*clients)
        await asyncio.sleep(1000)
        assert batcher.depth == 0
        assert device.running == 0

    run_virtually(main())

    for number, request in enumerate(requests):
        if isinstance(ends[number], TimeoutError):
            assert request.patience is not None
        elif isinstance(ends[number], ValueError):
            assert POISON in request.values
        else:
            assert ends[number] == [2 * value for value in request.values]
    assert all(len(batch) <= policy.max_size for batch in device.batches)
    assert device.most_running <= concurrency


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.6]), st.booleans()), min_size=2, max_size=20))
def test_a_sample_nobody_waits_for_is_not_run(clients: list[tuple[float, bool]]) -> None:
    device, dropped, hasty = Device(), [], set()

    async def main() -> None:
        batcher = batcher_of(device.run, BatchPolicy(max_size=2), on_dropped=dropped.append)
        tasks = [asyncio.create_task(batcher.submit(sample(0.0)))]
        for number, (after, leaves) in enumerate(clients, 1):
            await asyncio.sleep(after)
            task = asyncio.create_task(batcher.submit(sample(float(number))))
            tasks.append(task)
            await asyncio.sleep(0)
            if leaves and not any(number in batch for batch in device.batches):
                task.cancel()
                hasty.add(float(number))
        await asyncio.gather(*tasks, return_exceptions=True)

    run_virtually(main())

    run = {value for batch in device.batches for value in batch}
    assert run.isdisjoint(hasty)
    assert sum(dropped) == len(hasty)
    assert run | hasty == {float(i) for i in range(len(clients) + 1)}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.2, 1.0, 2.5]), min_size=1, max_size=20), st.integers(1, 4))
def test_the_device_never_idles_while_somebody_waits(gaps: list[float], max_size: int) -> None:
    device, arrived = Device(), []

    async def main() -> None:
        batcher = batcher_of(device.run, BatchPolicy(max_size=max_size))
        tasks = []
        for gap in gaps:
            await asyncio.sleep(gap)
            arrived.append(asyncio.get_running_loop().time())
            tasks.append(asyncio.create_task(batcher.submit(sample(1.0))))
        await asyncio.gather(*tasks)

    run_virtually(main())

    free, served = 0.0, 0
    for batch, began in zip(device.batches, device.began, strict=True):
        assert began == pytest.approx(max(free, arrived[served]))
        free, served = began + 1 + 0.1 * len(batch), served + len(batch)


@pytest.mark.parametrize("width", [1, 2])
def test_samples_of_unequal_shape_never_share_a_batch(width: int) -> None:
    shapes: list[set[int]] = []

    async def run(parts: Sequence[Arrays]) -> Arrays:
        shapes.append({part["x"].shape[1] for part in parts})
        await asyncio.sleep(1)
        return {"y": np.concatenate([part["x"] for part in parts])}

    async def main() -> None:
        batcher = batcher_of(run, BatchPolicy(max_size=8))
        await asyncio.gather(*(batcher.submit(sample(1, width=width if i % 2 else 3)) for i in range(8)))

    run_virtually(main())

    assert sorted(shapes, key=min) == [{width}, {3}]


def test_the_shape_that_has_waited_longest_goes_first_however_many_wait_behind_another() -> None:
    device = Device()

    async def main() -> None:
        batcher = batcher_of(device.run, BatchPolicy(max_size=2))
        tasks = [asyncio.create_task(batcher.submit(sample(0.0)))]
        await asyncio.sleep(0.1)
        tasks += [asyncio.create_task(batcher.submit(sample(i))) for i in (1.0, 2.0)]
        await asyncio.sleep(0.1)
        tasks.append(asyncio.create_task(batcher.submit(sample(9.0, width=2))))
        for i in (3.0, 4.0, 5.0, 6.0):
            await asyncio.sleep(0.1)
            tasks.append(asyncio.create_task(batcher.submit(sample(i))))
        await asyncio.gather(*tasks)

    run_virtually(main())

    assert device.batches == [[0], [1, 2], [9], [3, 4], [5, 6]]


def test_a_full_batch_of_another_shape_does_not_wait_for_the_oldests_delay() -> None:
    device = Device()

    async def main() -> None:
        batcher = batcher_of(device.run, BatchPolicy(max_size=2, max_delay_s=10))
        tasks = [asyncio.create_task(batcher.submit(sample(1.0)))]
        await asyncio.sleep(1)
        tasks.append(asyncio.create_task(batcher.submit(sample(5.0, 6.0, width=2))))
        await asyncio.gather(*tasks)

    run_virtually(main())

    assert (device.batches, device.began) == ([[5, 6], [1]], [1, 10])


def test_samples_of_unequal_type_never_share_a_batch() -> None:
    device = Device()

    async def main() -> None:
        batcher = batcher_of(device.run, BatchPolicy(max_size=8))
        narrow = {"x": np.ones((1, 1), np.float32)}
        await asyncio.gather(batcher.submit(sample(1.0)), batcher.submit(narrow))

    run_virtually(main())

    assert [len(batch) for batch in device.batches] == [1, 1]


def test_a_ticket_knows_the_size_of_its_batch_and_the_queue_its_depth_in_samples() -> None:
    async def main() -> tuple[list[BatchResult], int]:
        batcher = batcher_of(Device().run, BatchPolicy(max_size=8))
        first = asyncio.create_task(batcher.submit(sample(0.0)))
        await asyncio.sleep(0.5)
        others = [asyncio.create_task(batcher.submit(sample(*values))) for values in ((1.0, 2.0), (3.0,))]
        await asyncio.sleep(0)
        depth = batcher.depth
        await first
        return await asyncio.gather(*others), depth

    rans, depth = run_virtually(main())

    assert depth == 3
    assert [ran.batch_size for ran in rans] == [3, 3]


def test_where_a_batch_is_cancelled_its_tickets_are_told() -> None:
    async def main() -> bool:
        batcher = batcher_of(Device().run, BatchPolicy())
        entry = asyncio.create_task(batcher.submit(sample(1.0)))
        await asyncio.sleep(0.5)
        (batch,) = batcher._scheduler._running.values()
        batch.cancel()
        await asyncio.wait([entry])
        return entry.cancelled()

    assert run_virtually(main())


def test_the_reported_time_is_that_of_the_clock() -> None:
    ticks = iter([10.0, 10.25])

    async def main() -> BatchResult:
        return await batcher_of(Device().run, BatchPolicy(), clock=lambda: next(ticks)).submit(sample(1.0))

    assert run_virtually(main()).ran_s == 0.25
