"""The watchdog kills a process whose event loop is blocked or whose shutdown hangs; time is counted in its ticks."""

import threading
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from service.process.watchdog import EXIT_BROKEN, Watchdog, thread_stacks
from tests.waiting import wait_until

TICKS_PER_SECOND = 4


class FakeLoop:
    """The part of an event loop that the watchdog uses; its callbacks run when the test says so."""

    def __init__(self) -> None:
        self.callbacks: list[Callable[[], object]] = []
        self.closed = False

    def call_soon_threadsafe(self, callback: Callable[[], object]) -> None:
        self.callbacks.append(callback)

    def is_closed(self) -> bool:
        return self.closed

    def run_callbacks(self) -> None:
        callbacks, self.callbacks = self.callbacks, []
        for callback in callbacks:
            callback()


def watch(loop: FakeLoop, hang_s: float) -> tuple[Watchdog, list[int]]:
    """Return a watchdog of the loop, and the list of exit codes that it kills the process with."""
    exit_codes: list[int] = []
    watchdog = Watchdog(hang_s, exit_process=exit_codes.append)
    watchdog.watch(loop)  # type: ignore[arg-type]
    return watchdog, exit_codes


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 5))
def test_process_is_killed_after_the_loop_has_been_blocked_for_the_limit(
    is_loop_running: list[bool], hang_s: int
) -> None:
    loop = FakeLoop()
    watchdog, exit_codes = watch(loop, float(hang_s))
    ticks_blocked = 0

    for is_running in is_loop_running:
        watchdog.tick()
        ticks_blocked += 1
        if ticks_blocked > hang_s * TICKS_PER_SECOND:
            break
        if is_running:
            loop.run_callbacks()
            ticks_blocked = 0

    assert exit_codes == ([EXIT_BROKEN] if ticks_blocked > hang_s * TICKS_PER_SECOND else [])


def test_limit_of_zero_lets_the_loop_be_blocked_for_ever() -> None:
    watchdog, exit_codes = watch(FakeLoop(), 0.0)

    for _ in range(10_000):
        watchdog.tick()

    assert exit_codes == []


def test_closed_loop_is_not_blocked() -> None:
    loop = FakeLoop()
    watchdog, exit_codes = watch(loop, 1.0)
    watchdog.tick()
    loop.closed = True

    for _ in range(100):
        watchdog.tick()

    assert exit_codes == []


def test_process_is_killed_if_its_shutdown_takes_too_long() -> None:
    watchdog, exit_codes = watch(FakeLoop(), 0.0)
    watchdog.kill_after(2.0, 7)

    for _ in range(2 * TICKS_PER_SECOND - 1):
        watchdog.tick()
    before = list(exit_codes)
    watchdog.tick()

    assert before == []
    assert exit_codes == [7]


def test_stacks_show_what_each_thread_is_doing() -> None:
    released = threading.Event()

    def wait_for_release() -> None:
        released.wait()

    thread = threading.Thread(target=wait_for_release, name="waiting")
    thread.start()
    wait_until(lambda: any("wait_for_release" in line for lines in thread_stacks().values() for line in lines))
    stacks = thread_stacks()
    released.set()
    thread.join()

    assert any(name.startswith("waiting") for name in stacks)
    assert any(name.startswith("MainThread") for name in stacks)
