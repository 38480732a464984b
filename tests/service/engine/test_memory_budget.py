"""The account of memory: what is divided among whom, who waits, and in which order; on the virtual clock."""

import asyncio
import math

import pytest

from service.engine.memory_budget import MAX_WORK_BYTES, MemoryBudget, MemoryPlan, model_bytes
from service.engine.queue import StepQueue
from service.engine.scheduler import Deadline, MissedDeadline, Scheduler
from tests.virtual_clock import now, run_virtually

GB = 1_000_000_000


class Pool:
    """A scheduler that shares a budget, and the steps that it has run: name, start and end."""

    def __init__(self, budget: MemoryBudget, log: list[tuple[str, float, float]], concurrency: int = 4) -> None:
        self.scheduler = Scheduler(concurrency, shared_memory=budget)
        self.queue = StepQueue(self.scheduler)
        self.log = log

    async def run(self, name: str, memory_bytes: int, seconds: float = 1.0, limit: float = math.inf) -> None:
        async def step() -> None:
            started_at = now()
            await asyncio.sleep(seconds)
            self.log.append((name, started_at, now()))

        await self.queue.run(step, Deadline(now(), limit), predicted_s=seconds, memory_bytes=memory_bytes)


def budget_of(work: float) -> MemoryBudget:
    return MemoryBudget(MemoryPlan(100.0, work))


def starts(log: list[tuple[str, float, float]]) -> dict[str, float]:
    return {name: started_at for name, started_at, _ in log}


def test_a_container_of_1_gib_is_tight_and_a_machine_of_24_gb_is_not() -> None:
    container, machine = MemoryPlan.of(0.5 * GB, processes=5, started=3), MemoryPlan.of(20 * GB, processes=5)

    assert container.is_tight
    assert 0.2 * GB < container.work < 0.4 * GB
    assert container.held + container.work < 0.5 * GB
    assert not machine.is_tight
    assert machine.held > GB


def test_unknown_memory_limits_nothing() -> None:
    plan = MemoryPlan.of(None, processes=5)

    assert not plan.is_tight
    assert MemoryBudget(plan).decoding_bytes(0, 20_000_000) == MAX_WORK_BYTES


def test_nothing_is_left_rather_than_less_than_nothing_if_memory_is_short() -> None:
    plan = MemoryPlan.of(10_000_000, processes=8)

    assert (plan.held, plan.work) == (0, 0)


def test_the_first_attempt_gets_less_than_the_second_so_that_several_decode_at_a_time() -> None:
    budget = MemoryBudget(MemoryPlan(0.1 * GB, 0.3 * GB), decoders=2)

    first, second = budget.decoding_bytes(0, 1_000_000), budget.decoding_bytes(1, 1_000_000)

    assert 2 * first <= budget.plan.work
    assert second == budget.plan.work


def test_a_large_body_may_need_more() -> None:
    budget = MemoryBudget(MemoryPlan(0.1 * GB, 0.3 * GB), decoders=2)

    assert budget.decoding_bytes(0, 20_000_000) >= budget.decoding_bytes(0, 0) + 60_000_000


def test_work_of_two_schedulers_runs_together_only_if_it_fits() -> None:
    log: list[tuple[str, float, float]] = []

    async def main() -> None:
        budget = budget_of(100)
        one, other = Pool(budget, log), Pool(budget, log)
        await asyncio.gather(one.run("a", 60), other.run("b", 60), other.run("c", 40))

    run_virtually(main())

    assert starts(log) == {"a": 0.0, "b": 1.0, "c": 1.0}


def test_a_large_piece_of_work_is_not_overtaken_for_ever_by_small_ones_of_others() -> None:
    log: list[tuple[str, float, float]] = []

    async def main() -> None:
        budget = budget_of(100)
        small, large = Pool(budget, log), Pool(budget, log)
        tasks = [asyncio.create_task(small.run("first", 60))]
        await asyncio.sleep(0.5)
        tasks.append(asyncio.create_task(large.run("large", 100)))
        await asyncio.sleep(0.1)
        tasks += [asyncio.create_task(small.run(f"later {i}", 30)) for i in range(3)]
        await asyncio.gather(*tasks)

    run_virtually(main())

    assert starts(log)["large"] == 1.0
    assert min(starts(log)[f"later {i}"] for i in range(3)) == 2.0


def test_work_that_needs_no_memory_does_not_wait() -> None:
    log: list[tuple[str, float, float]] = []

    async def main() -> None:
        budget = budget_of(100)
        one, other = Pool(budget, log), Pool(budget, log)
        await asyncio.gather(one.run("a", 100), other.run("waits", 100), one.run("free", 0))

    run_virtually(main())

    assert starts(log)["free"] == 0.0


def test_work_whose_client_has_gone_lets_others_pass() -> None:
    log: list[tuple[str, float, float]] = []

    async def main() -> None:
        budget = budget_of(100)
        one, gone, other = Pool(budget, log), Pool(budget, log), Pool(budget, log)
        running = asyncio.create_task(one.run("a", 90))
        await asyncio.sleep(0.1)
        waiting = asyncio.create_task(gone.run("gone", 50))
        await asyncio.sleep(0.1)
        last = asyncio.create_task(other.run("b", 50))
        await asyncio.sleep(0.1)
        waiting.cancel()
        await asyncio.gather(running, last)

    run_virtually(main())

    assert starts(log) == {"a": 0.0, "b": 1.0}


def test_work_that_waits_for_memory_beyond_its_deadline_is_dropped() -> None:
    async def main() -> None:
        budget = budget_of(100)
        one, other = Pool(budget, []), Pool(budget, [])
        running = asyncio.create_task(one.run("a", 100, seconds=5.0))
        await asyncio.sleep(0)
        with pytest.raises(MissedDeadline):
            await other.run("late", 100, limit=3.0)
        await running

    run_virtually(main())


def test_work_that_needs_more_than_there_is_runs_while_nothing_else_does() -> None:
    log: list[tuple[str, float, float]] = []

    async def main() -> None:
        budget = budget_of(100)
        one, other = Pool(budget, log), Pool(budget, log)
        await asyncio.gather(one.run("a", 10), other.run("huge", 1_000))

    run_virtually(main())

    assert starts(log) == {"a": 0.0, "huge": 1.0}


def test_what_runs_have_left_in_memory_is_released_for_others() -> None:
    log: list[tuple[str, float, float]] = []
    asked_at: list[float] = []

    async def main() -> None:
        budget = budget_of(100)
        device, decoders = Pool(budget, log), Pool(budget, log)
        budget.keeper = device.scheduler

        def release() -> None:
            asked_at.append(now())
            asyncio.get_running_loop().call_later(0.5, budget.on_released)

        budget.on_shortage = release
        await device.run("run", 80)
        await decoders.run("decode", 60)

    run_virtually(main())

    assert asked_at == [1.0]
    assert starts(log) == {"run": 0.0, "decode": 1.5}


def test_further_runs_use_what_earlier_ones_have_left() -> None:
    log: list[tuple[str, float, float]] = []

    async def main() -> None:
        budget = budget_of(100)
        device = Pool(budget, log)
        budget.keeper = device.scheduler
        await device.run("first", 80)
        await device.run("second", 80)

    run_virtually(main())

    assert starts(log) == {"first": 0.0, "second": 1.0}


def test_everything_is_given_back_at_the_end() -> None:
    async def main() -> MemoryBudget:
        budget = budget_of(100)
        pools = [Pool(budget, []) for _ in range(3)]
        await asyncio.gather(*(pools[i % 3].run(str(i), 10 * i, seconds=0.1 * i) for i in range(12)))
        return budget

    budget = run_virtually(main())

    assert budget.reserved == 0
    assert budget.free_for(Scheduler()) == 100


def test_the_ten_shipped_models_are_estimated_at_a_third_of_a_gigabyte() -> None:
    assert 0.3 * GB < 10 * model_bytes(4_600_000) < 0.45 * GB
