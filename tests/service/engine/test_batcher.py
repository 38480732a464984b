"""How the batcher forms batches and returns each request its own outputs; on the virtual clock."""

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
from tests.virtual_clock import now, run_virtually

POISON = -1.0


@dataclass
class Device:
    """Doubles each value; fails batches with poison in them; takes 1 s per batch and 0.1 s per sample."""

    batches: list[list[float]] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    running: int = 0
    max_running: int = 0

    async def run(self, parts: Sequence[Arrays]) -> Arrays:
        stacked = np.concatenate([part["x"] for part in parts])
        self.batches.append(stacked.reshape(len(stacked), -1)[:, 0].tolist())
        self.starts.append(now())
        self.running += 1
        self.max_running = max(self.max_running, self.running)
        await asyncio.sleep(1 + 0.1 * len(stacked))
        self.running -= 1
        if (stacked == POISON).any():
            raise ValueError("poison")
        return {"y": stacked * 2}


def make_batcher(run: RunBatch, policy: BatchPolicy, *, concurrency: int = 1, **options: object) -> Batcher:
    """Return a batcher with a device of its own that reports times of the event loop's clock."""
    options.setdefault("clock", asyncio.get_running_loop().time)
    return Batcher(run, policy, Scheduler(concurrency), **options)  # type: ignore[arg-type]


def sample(*values: float, width: int = 1) -> Arrays:
    return {"x": np.repeat(np.array(values, np.float64)[:, None], width, axis=1)}


def outputs_of(result: BatchResult) -> list[float]:
    return result.outputs["y"][:, 0].tolist()


def test_single_sample_runs_immediately() -> None:
    async def main() -> BatchResult:
        return await make_batcher(Device().run, BatchPolicy(max_size=8)).submit(sample(3))

    result = run_virtually(main())

    assert outputs_of(result) == [6]
    assert result.batch_size == 1


def test_samples_that_arrive_while_the_device_is_busy_share_the_next_batch() -> None:
    device = Device()

    async def main() -> None:
        batcher = make_batcher(device.run, BatchPolicy(max_size=8))
        first = asyncio.create_task(batcher.submit(sample(1)))
        await asyncio.sleep(0.5)
        others = [asyncio.create_task(batcher.submit(sample(i))) for i in (2, 3, 4)]
        await asyncio.gather(first, *others)

    run_virtually(main())

    assert device.batches == [[1], [2, 3, 4]]


def test_batch_with_a_delay_runs_once_its_oldest_sample_has_waited_the_delay() -> None:
    device = Device()

    async def main() -> None:
        batcher = make_batcher(device.run, BatchPolicy(max_size=8, max_delay_s=5))
        first = asyncio.create_task(batcher.submit(sample(1)))
        await asyncio.sleep(4)
        await asyncio.gather(first, batcher.submit(sample(2)))

    run_virtually(main())

    assert device.batches == [[1, 2]]
    assert device.starts == [5]


def test_full_batch_does_not_wait_for_the_delay() -> None:
    device = Device()

    async def main() -> None:
        batcher = make_batcher(device.run, BatchPolicy(max_size=2, max_delay_s=5))
        await asyncio.gather(batcher.submit(sample(1)), batcher.submit(sample(2)))

    run_virtually(main())

    assert device.starts == [0]


def test_request_larger_than_a_batch_gets_its_outputs_in_order() -> None:
    device = Device()

    async def main() -> BatchResult:
        return await make_batcher(device.run, BatchPolicy(max_size=4)).submit(sample(*range(10)))

    result = run_virtually(main())

    assert outputs_of(result) == [2.0 * i for i in range(10)]
    assert [len(batch) for batch in device.batches] == [4, 4, 2]


def test_cancelling_a_large_request_drops_the_parts_that_have_not_started() -> None:
    device = Device()

    async def main() -> None:
        batcher = make_batcher(device.run, BatchPolicy(max_size=2))
        task = asyncio.create_task(batcher.submit(sample(*range(10))))
        await asyncio.sleep(0.5)
        task.cancel()
        await asyncio.sleep(100)
        assert batcher.depth == 0

    run_virtually(main())

    assert device.batches == [[0, 1]]


def test_request_behind_a_large_one_does_not_wait_for_all_of_it() -> None:
    device = Device()

    async def main() -> None:
        batcher = make_batcher(device.run, BatchPolicy(max_size=2))
        large = asyncio.create_task(batcher.submit(sample(*range(100))))
        await asyncio.sleep(0.5)
        await batcher.submit(sample(1000))
        assert not large.done()
        large.cancel()

    run_virtually(main())

    assert [1000] in device.batches[:3]


def test_large_request_with_a_failing_part_raises_its_error_and_leaves_nothing_queued() -> None:
    async def run(parts: Sequence[Arrays]) -> Arrays:
        if any((part["x"] == 3).any() for part in parts):
            raise ValueError("three")
        return {"y": np.concatenate([part["x"] for part in parts]) * 2}

    async def main() -> int:
        batcher = make_batcher(run, BatchPolicy(max_size=1), concurrency=2)
        with pytest.raises(ValueError, match="three"):
            await batcher.submit(sample(*range(10)))
        await asyncio.sleep(0)
        return batcher.depth

    assert run_virtually(main()) == 0


def test_failed_batch_fails_only_the_request_that_caused_it() -> None:
    reports: list[BatchReport] = []

    async def main() -> list[BatchResult | BaseException]:
        batcher = make_batcher(Device().run, BatchPolicy(max_size=8), on_batch=reports.append)
        values = [1.0, 2.0, POISON, 4.0]
        return await asyncio.gather(*(batcher.submit(sample(v)) for v in values), return_exceptions=True)

    outcomes = run_virtually(main())

    assert isinstance(outcomes[2], ValueError)
    assert [outputs_of(outcome) for outcome in outcomes if isinstance(outcome, BatchResult)] == [[2], [4], [8]]
    assert sum(report.error is not None for report in reports) == 3


def test_two_batches_run_at_the_same_time_with_a_concurrency_of_two() -> None:
    device = Device()

    async def main() -> None:
        batcher = make_batcher(device.run, BatchPolicy(max_size=1), concurrency=2)
        await asyncio.gather(*(batcher.submit(sample(i)) for i in range(6)))

    run_virtually(main())

    assert device.max_running == 2


@dataclass(frozen=True)
class Arrival:
    """A request: seconds after the one before, samples and their width, and seconds until the client disconnects."""

    after_s: float
    values: tuple[float, ...]
    width: int
    timeout_s: float | None


arrival_lists = st.lists(
    st.builds(
        Arrival,
        after_s=st.sampled_from([0.0, 0.0, 0.05, 0.7, 3.0]),
        values=st.lists(st.integers(1, 1000).map(float) | st.just(POISON), min_size=1, max_size=6).map(tuple),
        width=st.integers(1, 2),
        timeout_s=st.none() | st.sampled_from([0.0, 0.3, 1.15, 4.0]),
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
@given(arrival_lists, policies, st.integers(1, 2))
def test_each_request_gets_its_own_outputs_or_its_own_error(
    arrivals: list[Arrival], policy: BatchPolicy, concurrency: int
) -> None:
    device, outcomes, dropped = Device(), {}, []

    async def client(batcher: Batcher, number: int, request: Arrival) -> None:
        try:
            async with asyncio.timeout(request.timeout_s):
                outcomes[number] = outputs_of(await batcher.submit(sample(*request.values, width=request.width)))
        except (TimeoutError, ValueError) as error:
            outcomes[number] = error

    async def main() -> None:
        batcher = make_batcher(device.run, policy, concurrency=concurrency, on_dropped=dropped.append)
        clients = []
        for number, request in enumerate(arrivals):
            await asyncio.sleep(request.after_s)
            clients.append(asyncio.create_task(client(batcher, number, request)))
        await asyncio.gather(*clients)
        await asyncio.sleep(1000)
        assert batcher.depth == 0
        assert device.running == 0

    run_virtually(main())

    for number, request in enumerate(arrivals):
        if isinstance(outcomes[number], TimeoutError):
            assert request.timeout_s is not None
        elif isinstance(outcomes[number], ValueError):
            assert POISON in request.values
        else:
            assert outcomes[number] == [2 * value for value in request.values]
    assert all(len(batch) <= policy.max_size for batch in device.batches)
    assert device.max_running <= concurrency


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.6]), st.booleans()), min_size=2, max_size=20))
def test_sample_of_a_cancelled_request_is_not_run(clients: list[tuple[float, bool]]) -> None:
    device, dropped, cancelled = Device(), [], set()

    async def main() -> None:
        batcher = make_batcher(device.run, BatchPolicy(max_size=2), on_dropped=dropped.append)
        tasks = [asyncio.create_task(batcher.submit(sample(0.0)))]
        for number, (after_s, disconnects) in enumerate(clients, 1):
            await asyncio.sleep(after_s)
            task = asyncio.create_task(batcher.submit(sample(float(number))))
            tasks.append(task)
            await asyncio.sleep(0)
            if disconnects and not any(number in batch for batch in device.batches):
                task.cancel()
                cancelled.add(float(number))
        await asyncio.gather(*tasks, return_exceptions=True)

    run_virtually(main())

    values = {value for batch in device.batches for value in batch}
    assert values.isdisjoint(cancelled)
    assert sum(dropped) == len(cancelled)
    assert values | cancelled == {float(i) for i in range(len(clients) + 1)}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.2, 1.0, 2.5]), min_size=1, max_size=20), st.integers(1, 4))
def test_device_never_idles_while_a_request_waits(gaps: list[float], max_size: int) -> None:
    device, arrived = Device(), []

    async def main() -> None:
        batcher = make_batcher(device.run, BatchPolicy(max_size=max_size))
        tasks = []
        for gap in gaps:
            await asyncio.sleep(gap)
            arrived.append(now())
            tasks.append(asyncio.create_task(batcher.submit(sample(1.0))))
        await asyncio.gather(*tasks)

    run_virtually(main())

    free_at, started = 0.0, 0
    for batch, started_at in zip(device.batches, device.starts, strict=True):
        assert started_at == pytest.approx(max(free_at, arrived[started]))
        free_at, started = started_at + 1 + 0.1 * len(batch), started + len(batch)


@pytest.mark.parametrize("width", [1, 2])
def test_samples_of_different_shape_never_share_a_batch(width: int) -> None:
    shapes: list[set[int]] = []

    async def run(parts: Sequence[Arrays]) -> Arrays:
        shapes.append({part["x"].shape[1] for part in parts})
        await asyncio.sleep(1)
        return {"y": np.concatenate([part["x"] for part in parts])}

    async def main() -> None:
        batcher = make_batcher(run, BatchPolicy(max_size=8))
        await asyncio.gather(*(batcher.submit(sample(1, width=width if i % 2 else 3)) for i in range(8)))

    run_virtually(main())

    assert sorted(shapes, key=min) == [{width}, {3}]


def test_shape_that_has_waited_longest_runs_first_however_many_samples_another_has() -> None:
    device = Device()

    async def main() -> None:
        batcher = make_batcher(device.run, BatchPolicy(max_size=2))
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


def test_full_batch_of_one_shape_does_not_wait_for_the_delay_of_another() -> None:
    device = Device()

    async def main() -> None:
        batcher = make_batcher(device.run, BatchPolicy(max_size=2, max_delay_s=10))
        tasks = [asyncio.create_task(batcher.submit(sample(1.0)))]
        await asyncio.sleep(1)
        tasks.append(asyncio.create_task(batcher.submit(sample(5.0, 6.0, width=2))))
        await asyncio.gather(*tasks)

    run_virtually(main())

    assert (device.batches, device.starts) == ([[5, 6], [1]], [1, 10])


def test_samples_of_different_dtype_never_share_a_batch() -> None:
    device = Device()

    async def main() -> None:
        batcher = make_batcher(device.run, BatchPolicy(max_size=8))
        narrow = {"x": np.ones((1, 1), np.float32)}
        await asyncio.gather(batcher.submit(sample(1.0)), batcher.submit(narrow))

    run_virtually(main())

    assert [len(batch) for batch in device.batches] == [1, 1]


def test_result_has_the_batch_size_and_depth_counts_samples() -> None:
    async def main() -> tuple[list[BatchResult], int]:
        batcher = make_batcher(Device().run, BatchPolicy(max_size=8))
        first = asyncio.create_task(batcher.submit(sample(0.0)))
        await asyncio.sleep(0.5)
        others = [asyncio.create_task(batcher.submit(sample(*values))) for values in ((1.0, 2.0), (3.0,))]
        await asyncio.sleep(0)
        depth = batcher.depth
        await first
        return await asyncio.gather(*others), depth

    results, depth = run_virtually(main())

    assert depth == 3
    assert [result.batch_size for result in results] == [3, 3]


def test_cancelled_batch_cancels_its_requests() -> None:
    async def main() -> bool:
        batcher = make_batcher(Device().run, BatchPolicy())
        request = asyncio.create_task(batcher.submit(sample(1.0)))
        await asyncio.sleep(0.5)
        (batch,) = batcher._scheduler._running.values()
        batch.cancel()
        await asyncio.wait([request])
        return request.cancelled()

    assert run_virtually(main())


def test_run_time_is_measured_by_the_given_clock() -> None:
    ticks = iter([10.0, 10.25])

    async def main() -> BatchResult:
        return await make_batcher(Device().run, BatchPolicy(), clock=lambda: next(ticks)).submit(sample(1.0))

    assert run_virtually(main()).run_s == 0.25
