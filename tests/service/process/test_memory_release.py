"""Memory is released when the process is idle and has grown, and not otherwise."""

import asyncio

from service.process.memory_release import release_memory_when_idle
from tests.virtual_clock import now, run_virtually


class FakeProcess:
    """A process whose memory grows with requests, and of which some can be given back."""

    def __init__(self, needed: int = 100) -> None:
        self.resident: int | None = needed
        self.needed = needed
        self.is_busy = False
        self.released_at: list[float] = []

    async def release(self) -> None:
        self.released_at.append(now())
        self.resident = self.needed

    def start(self) -> asyncio.Task[None]:
        work = release_memory_when_idle(
            is_idle=lambda: not self.is_busy, resident_bytes=lambda: self.resident, release=self.release
        )
        return asyncio.create_task(work)


def test_memory_is_released_once_after_the_process_has_grown_and_become_idle() -> None:
    async def main() -> FakeProcess:
        process = FakeProcess()
        process.start()
        await asyncio.sleep(10)
        process.is_busy, process.resident = True, 300
        await asyncio.sleep(10)
        process.is_busy = False
        await asyncio.sleep(100)
        return process

    (released_at,) = run_virtually(main()).released_at

    assert 20 < released_at <= 21.5


def test_memory_of_requests_that_come_before_the_process_was_ever_idle_is_released() -> None:
    async def main() -> FakeProcess:
        process = FakeProcess()
        process.start()
        await asyncio.sleep(0)
        process.is_busy, process.resident = True, 300
        await asyncio.sleep(10)
        process.is_busy = False
        await asyncio.sleep(100)
        return process

    assert len(run_virtually(main()).released_at) == 1


def test_nothing_is_released_while_the_process_is_busy_or_its_memory_unknown() -> None:
    async def main() -> list[FakeProcess]:
        busy, unknown = FakeProcess(), FakeProcess()
        for process in (busy, unknown):
            process.start()
        await asyncio.sleep(10)
        busy.is_busy, busy.resident, unknown.resident = True, 300, None
        await asyncio.sleep(100)
        return [busy, unknown]

    assert [process.released_at for process in run_virtually(main())] == [[], []]


def test_memory_that_is_needed_from_now_on_is_released_only_once() -> None:
    async def main() -> FakeProcess:
        process = FakeProcess()
        process.start()
        await asyncio.sleep(10)
        process.resident = process.needed = 300  # A new version has been loaded.
        await asyncio.sleep(100)
        return process

    assert len(run_virtually(main()).released_at) == 1


def test_small_requests_between_two_looks_do_not_keep_the_process_from_being_idle() -> None:
    async def main() -> FakeProcess:
        process = FakeProcess()
        process.start()
        await asyncio.sleep(10)
        process.resident = 300
        for _ in range(1_000):
            process.is_busy = True
            await asyncio.sleep(0.001)
            process.is_busy = False
            await asyncio.sleep(0.0101)
        return process

    assert len(run_virtually(main()).released_at) == 1
