"""Liveness fails where something has died, readiness falls with it; and the watchdog ends what cannot end itself."""

import asyncio
import ctypes
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.process.liveness import Liveness, watch_over
from service.process.watchdog import EXIT_BROKEN, Watchdog, stacks_of_all
from tests.model_folders import COLOURS
from tests.service.conftest import Running, Start
from tests.service.program import program
from tests.waiting import wait_until

TICKS_A_SECOND = 4


def kill(thread: threading.Thread) -> None:
    """Raises SystemExit in a thread as soon as it runs Python again: outside of all work, where nothing expects it."""
    assert thread.ident is not None
    assert ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)) == 1


def test_a_process_that_is_well_is_alive_and_ready(server: Running) -> None:
    live, ready = server.client.get("/health/live"), server.client.get("/health/ready")

    assert (live.status_code, live.json()) == (200, {"live": True, "failures": {}})
    assert (ready.status_code, ready.json()["ready"]) == (200, True)


def test_what_fails_is_told_with_its_reason_until_it_is_mended(start: Start) -> None:
    server = start()

    server.service.liveness.fail("cpu", "A run has not come back.")
    live, ready = server.client.get("/health/live"), server.client.get("/health/ready")
    server.service.liveness.resolve("cpu")

    assert (live.status_code, live.json()) == (503, {"live": False, "failures": {"cpu": "A run has not come back."}})
    assert (ready.status_code, ready.json()["reason"]) == (503, "cpu: A run has not come back.")
    assert server.client.get("/health/live").status_code == 200
    assert server.client.get("/health/ready").status_code == 200


@pytest.mark.parametrize("pool", ["worker", "cpu"])
def test_an_idle_thread_that_dies_makes_liveness_fail(start: Start, pool: str) -> None:
    before = set(threading.enumerate())
    server = start(workers=1, batches_at_once=1)
    clients = ThreadPoolExecutor(2)

    def ask() -> list[httpx.Response]:
        """Two at a time go by both pools: one alone would go all the way in the device's."""
        url, picture, headers = "/v1/models/colours/predict", COLOURS.example(), {"X-Request-Timeout-Ms": "500"}
        asked = [clients.submit(server.client.post, url, json=picture, headers=headers) for _ in range(2)]
        return [each.result() for each in asked]

    def threads() -> list[threading.Thread]:
        return [new for new in set(threading.enumerate()) - before if new.name.startswith(pool)]

    wait_until(lambda: [answer.status_code for answer in ask()] == [200, 200] and threads() != [])
    (thread,) = threads()
    kill(thread)
    answers = ask()  # One of them wakes the thread, and is never seen by it.
    wait_until(lambda: server.client.get("/health/live").status_code == 503)

    failures = server.client.get("/health/live").json()["failures"]
    assert failures[f"thread {thread.name}"] == f"A thread of the pool '{pool}' has died, and nothing replaces it."
    assert server.client.get("/health/ready").status_code == 503
    assert 504 in [answer.status_code for answer in answers]
    clients.shutdown()


def stray_errors(address: str) -> float:
    (line,) = [
        line
        for line in httpx.get(f"{address}/metrics").text.splitlines()
        if line.startswith("sevenfold_stray_errors_total ")
    ]
    return float(line.split()[-1])


@pytest.mark.parametrize(("part", "status"), [("callback", 200), ("scheduler", 503)])
def test_an_error_that_nobody_awaits_is_logged_and_counted_and_ends_the_scheduler(
    tiny_models: Path, part: str, status: int
) -> None:
    with program(tiny_models, module="tests.service.breakable") as (process, address, _):
        httpx.post(f"{address}/break/{part}")
        wait_until(lambda: stray_errors(address) == 1)
        live = httpx.get(f"{address}/health/live")
        process.terminate()
        _, logged = process.communicate(timeout=30)

    lines = [json.loads(line) for line in logged.splitlines()]
    (line,) = [line for line in lines if "LookupError" in line.get("exception", "")]
    assert line["level"] == "error"
    assert live.status_code == status
    assert process.returncode == 0


@pytest.mark.parametrize("part", ["thread", "finalizer"])
def test_an_error_that_can_be_raised_to_nobody_is_a_line_of_the_log(tiny_models: Path, part: str) -> None:
    with program(tiny_models, module="tests.service.breakable") as (process, address, _):
        httpx.post(f"{address}/break/{part}")
        process.terminate()
        _, logged = process.communicate(timeout=30)

    lines = [json.loads(line) for line in logged.splitlines()]
    assert len([line for line in lines if "LookupError: broken" in line.get("exception", "")]) == 1
    assert process.returncode == 0


def test_work_that_is_to_go_on_and_dies_makes_liveness_fail() -> None:
    async def die() -> None:
        raise LookupError("no more")

    async def main() -> tuple[Liveness, int]:
        liveness, count = Liveness(), [0]
        async with watch_over(liveness, die(), lambda: count.__setitem__(0, count[0] + 1)):
            while not liveness.failures:
                await asyncio.sleep(0)
        return liveness, count[0]

    liveness, count = asyncio.run(main())

    assert liveness.failures == {"event loop": "A task that keeps watch has died: LookupError('no more')."}
    assert count == 1


def test_work_that_is_done_or_was_cancelled_has_not_died() -> None:
    async def main() -> Liveness:
        liveness = Liveness()
        for work in (asyncio.sleep(0), asyncio.sleep(3600)):
            async with watch_over(liveness, work, lambda: None):
                await asyncio.sleep(0.01)
        return liveness

    assert asyncio.run(main()).failures == {}


def test_an_answer_that_nobody_fetched_is_no_sign_of_illness() -> None:
    async def main() -> tuple[Liveness, list[int]]:
        liveness, count = Liveness(), list[int]()
        async with watch_over(liveness, asyncio.sleep(0), lambda: count.append(1)):
            asyncio.get_running_loop().create_future().set_exception(LookupError("whose client has gone"))
            await asyncio.sleep(0)
        return liveness, count

    liveness, count = asyncio.run(main())

    assert liveness.failures == {}
    assert count == [1]


def test_a_lost_process_stays_lost_and_is_told_once() -> None:
    liveness, told = Liveness(), list[str]()
    liveness.on_lost(told.append)

    liveness.mark_fatal("The device is gone.")
    liveness.mark_fatal("The device is gone, still.")
    liveness.resolve("process")
    liveness.fail("process", "Something else.")

    assert told == ["The device is gone."]
    assert liveness.lost == "The device is gone."
    assert liveness.failures == {"process": "The device is gone."}


def test_who_asks_only_when_the_process_is_lost_is_told_at_once() -> None:
    liveness, told = Liveness(), list[str]()
    liveness.mark_fatal("The device is gone.")

    liveness.on_lost(told.append)

    assert told == ["The device is gone."]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.one_of(st.none(), st.sampled_from("xyz")))))
def test_what_fails_is_what_failed_last_and_was_not_mended(events: list[tuple[str, str | None]]) -> None:
    liveness, expected = Liveness(), dict[str, str]()
    for what, reason in events:
        if reason is None:
            liveness.resolve(what)
            expected.pop(what, None)
        else:
            liveness.fail(what, reason)
            expected[what] = reason

    assert liveness.failures == expected


def test_many_threads_may_report_at_once() -> None:
    liveness, all_there = Liveness(), threading.Barrier(8)

    def report(number: int) -> None:
        all_there.wait()
        for _ in range(50):
            liveness.fail(f"part {number}", "It fails.")
            liveness.check()
            liveness.resolve(f"part {number}")

    with ThreadPoolExecutor(8, initializer=liveness.thread_started("reporters")) as pool:
        list(pool.map(report, range(8)))
        assert liveness.failures == {}
        assert len(liveness.threads_alive()) == 8

    liveness.check()
    assert len(liveness.failures) == 8
    assert liveness.threads_alive() == []


class Loop:
    """As much of an event loop as the watchdog knows; it turns when it is told to."""

    def __init__(self) -> None:
        self.asked: list[Callable[[], object]] = []
        self.closed = False

    def call_soon_threadsafe(self, call: Callable[[], object]) -> None:
        self.asked.append(call)

    def is_closed(self) -> bool:
        return self.closed

    def turn(self) -> None:
        asked, self.asked = self.asked, []
        for call in asked:
            call()


def watchdog_of(loop: Loop, hang_s: float) -> tuple[Watchdog, list[int]]:
    ended: list[int] = []
    watchdog = Watchdog(hang_s, end=ended.append)
    watchdog.watch(loop)  # type: ignore[arg-type]
    return watchdog, ended


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 5))
def test_a_loop_is_given_up_when_it_has_not_turned_for_so_many_ticks(turns: list[bool], hang_s: int) -> None:
    loop = Loop()
    watchdog, ended = watchdog_of(loop, float(hang_s))
    still = 0

    for turned in turns:
        watchdog.tick()
        still += 1
        if still > hang_s * TICKS_A_SECOND:
            break
        if turned:
            loop.turn()
            still = 0

    assert ended == ([EXIT_BROKEN] if still > hang_s * TICKS_A_SECOND else [])


def test_a_loop_may_be_busy_for_ever_where_that_is_the_setting() -> None:
    watchdog, ended = watchdog_of(Loop(), 0.0)

    for _ in range(10_000):
        watchdog.tick()

    assert ended == []


def test_a_loop_that_is_closed_has_nothing_more_to_do() -> None:
    loop = Loop()
    watchdog, ended = watchdog_of(loop, 1.0)
    watchdog.tick()
    loop.closed = True

    for _ in range(100):
        watchdog.tick()

    assert ended == []


def test_a_process_that_does_not_come_to_its_end_is_ended() -> None:
    watchdog, ended = watchdog_of(Loop(), 0.0)
    watchdog.end_within(2.0, 7)

    for _ in range(2 * TICKS_A_SECOND - 1):
        watchdog.tick()
    before = list(ended)
    watchdog.tick()

    assert before == []
    assert ended == [7]


def test_the_stacks_tell_what_each_thread_is_doing() -> None:
    let_go = threading.Event()

    def wait_for_what_never_comes() -> None:
        let_go.wait()

    thread = threading.Thread(target=wait_for_what_never_comes, name="waiting")
    thread.start()
    wait_until(lambda: any("wait_for_what_never_comes" in line for lines in stacks_of_all().values() for line in lines))
    stacks = stacks_of_all()
    let_go.set()
    thread.join()

    assert any(name.startswith("waiting") for name in stacks)
    assert any(name.startswith("MainThread") for name in stacks)
