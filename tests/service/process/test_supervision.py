"""Errors that nothing awaits are logged and counted; liveness fails if a background task or the scheduler dies."""

import asyncio
import json
from pathlib import Path

import httpx
import pytest

from service.process.liveness import Liveness, supervise
from tests.service.program import program
from tests.waiting import wait_until


def count_stray_errors(address: str) -> float:
    (line,) = [
        line
        for line in httpx.get(f"{address}/metrics").text.splitlines()
        if line.startswith("sevenfold_stray_errors_total ")
    ]
    return float(line.split()[-1])


@pytest.mark.parametrize(("part", "status"), [("callback", 200), ("scheduler", 503)])
def test_error_in_a_callback_is_logged_and_counted_and_fatal_in_the_scheduler(
    tiny_models: Path, part: str, status: int
) -> None:
    with program(tiny_models, module="tests.service.faulty_server") as (process, address, _):
        httpx.post(f"{address}/fault/{part}")
        wait_until(lambda: count_stray_errors(address) == 1)
        live = httpx.get(f"{address}/health/live")
        process.terminate()
        _, log = process.communicate(timeout=30)

    lines = [json.loads(line) for line in log.splitlines()]
    (line,) = [line for line in lines if "LookupError" in line.get("exception", "")]
    assert line["level"] == "error"
    assert live.status_code == status
    assert process.returncode == 0


@pytest.mark.parametrize("part", ["thread", "finalizer"])
def test_error_in_a_thread_or_finalizer_is_logged(tiny_models: Path, part: str) -> None:
    with program(tiny_models, module="tests.service.faulty_server") as (process, address, _):
        httpx.post(f"{address}/fault/{part}")
        process.terminate()
        _, log = process.communicate(timeout=30)

    lines = [json.loads(line) for line in log.splitlines()]
    assert len([line for line in lines if "LookupError: broken" in line.get("exception", "")]) == 1
    assert process.returncode == 0


def test_liveness_fails_if_the_background_task_dies() -> None:
    async def die() -> None:
        raise LookupError("no more")

    async def main() -> tuple[Liveness, list[int]]:
        liveness, errors = Liveness(), list[int]()
        async with supervise(liveness, die(), on_error=lambda: errors.append(1)):
            while not liveness.failures:
                await asyncio.sleep(0)
        return liveness, errors

    liveness, errors = asyncio.run(main())

    assert liveness.failures == {"event loop": "A background task has died: LookupError('no more')."}
    assert errors == [1]


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_background_task_that_ends_or_is_cancelled_has_not_died(is_cancelled: bool) -> None:
    async def main() -> Liveness:
        liveness, started = Liveness(), asyncio.Event()

        async def run_in_background() -> None:
            started.set()
            if is_cancelled:
                await asyncio.Event().wait()

        async with supervise(liveness, run_in_background(), on_error=lambda: None):
            await started.wait()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            await asyncio.sleep(0)
        await asyncio.gather(*tasks, return_exceptions=True)
        return liveness

    assert asyncio.run(main()).failures == {}


def test_result_that_nothing_retrieves_is_counted_but_no_failure() -> None:
    async def main() -> tuple[Liveness, list[int]]:
        liveness, errors = Liveness(), list[int]()
        async with supervise(liveness, asyncio.sleep(0), on_error=lambda: errors.append(1)):
            asyncio.get_running_loop().create_future().set_exception(LookupError("the client has disconnected"))
            await asyncio.sleep(0)
        return liveness, errors

    liveness, errors = asyncio.run(main())

    assert liveness.failures == {}
    assert errors == [1]
