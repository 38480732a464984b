"""The vital signs of the process: what is wrong with it that only a new start would mend, or that may yet pass.

Knows nothing of HTTP, of devices and of models. Whoever notices something says so here, from whichever thread it is in;
`routes/health.py` tells it to whoever keeps the service running.
"""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType, TracebackType
from typing import Any

_LOG = logging.getLogger(__name__)
_LOST = "process"
_CHECK_SECONDS = 0.25
_SCHEDULING = ("service.engine.scheduler", "service.engine.batcher", "service.process.liveness")
"""Modules whose callbacks and tasks keep the state of the queues: one that broke off has left it as it was."""


class Liveness:
    """What is wrong with the process. All methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures: dict[str, str] = {}
        self._lost: str | None = None
        self._on_lost: Callable[[str], None] | None = None
        self._threads: dict[threading.Thread, str] = {}

    @property
    def failures(self) -> Mapping[str, str]:
        """What fails now, and the reason of each; empty where all is well. A copy: it does not change."""
        with self._lock:
            return MappingProxyType(dict(self._failures))

    @property
    def lost(self) -> str | None:
        """Why the process can never be well again; None where it is not lost."""
        with self._lock:
            return self._lost

    def fail(self, what: str, reason: str) -> None:
        """Liveness fails from now on, until `what` is mended; `reason` is a sentence for whoever reads the log."""
        with self._lock:
            is_news = self._failures.get(what) != reason
            if what != _LOST:
                self._failures[what] = reason
        if is_news:
            _LOG.error("%s fails: %s", what, reason)

    def resolve(self, what: str) -> None:
        """`what` is well again; nothing happens where it has not failed, or where the process is lost."""
        with self._lock:
            was_failing = what != _LOST and self._failures.pop(what, None) is not None
        if was_failing:
            _LOG.info("%s is well again", what)

    def mark_fatal(self, reason: str) -> None:
        """Nothing can mend this process: liveness fails for good, and whoever asked by `on_lost` is told, once."""
        with self._lock:
            if self._lost is not None:
                return
            self._lost = self._failures[_LOST] = reason
            tell = self._on_lost
        _LOG.critical("the process is lost and has to be started anew: %s", reason)
        if tell is not None:
            tell(reason)

    def on_lost(self, call: Callable[[str], None]) -> None:
        """Whom to call, with the reason, when the process is lost: in the thread that notices, or now if it is lost."""
        with self._lock:
            self._on_lost = call
            reason = self._lost
        if reason is not None:
            call(reason)

    def thread_started(self, pool: str) -> Callable[[], None]:
        """An `initializer` for a ThreadPoolExecutor: its threads are looked after by `check` from then on.

        A pool does not replace a thread that has died, and what that thread was about to do is never done.
        """

        def register() -> None:
            with self._lock:
                self._threads[threading.current_thread()] = pool

        return register

    def check(self) -> None:
        """Fails what belongs to a thread that has died. Not to be called once the pools are shut down."""
        with self._lock:
            dead = [thread for thread in self._threads if not thread.is_alive()]
            pools = {thread.name: self._threads.pop(thread) for thread in dead}
        for thread, pool in pools.items():
            self.fail(f"thread {thread}", f"A thread of the pool '{pool}' has died, and nothing replaces it.")

    def wait_for_threads(self, seconds: float = 2.0) -> None:
        """Returns as soon as all threads of the pools have ended, at the latest after so many seconds."""
        until = time.monotonic() + seconds
        for thread in self._alive():
            thread.join(max(0.0, until - time.monotonic()))

    def threads_alive(self) -> list[str]:
        """Names of the threads of the pools that have not ended."""
        return [thread.name for thread in self._alive()]

    def _alive(self) -> list[threading.Thread]:
        with self._lock:
            return [thread for thread in self._threads if thread.is_alive()]


@asynccontextmanager
async def watch_over(
    liveness: Liveness, work: Coroutine[Any, Any, None], on_error: Callable[[], None]
) -> AsyncIterator[None]:
    """Does `work` in the event loop, as long as that serves, and takes note of all in the loop that dies meanwhile.

    An error that a task or a callback ends with and that nobody awaits would be heard of by nobody: it is logged here
    and counted by `on_error`. Liveness fails where it was `work`, a thread of a pool, or a part of the scheduler.
    """
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: _on_stray(liveness, on_error, context))
    tasks = [asyncio.create_task(work), asyncio.create_task(_check(liveness))]
    for task in tasks:
        task.add_done_callback(lambda task: _on_end(liveness, on_error, task))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()


async def _check(liveness: Liveness) -> None:
    while True:
        liveness.check()
        await asyncio.sleep(_CHECK_SECONDS)


def _on_end(liveness: Liveness, on_error: Callable[[], None], task: asyncio.Task[None]) -> None:
    """A task that keeps watch has ended: because it was cancelled, or it had nothing more to do, or it died."""
    error = None if task.cancelled() else task.exception()
    if error is not None:
        on_error()
        _LOG.error("a task that keeps watch has died", exc_info=error)
        liveness.fail("event loop", f"A task that keeps watch has died: {error!r}.")


def _on_stray(liveness: Liveness, on_error: Callable[[], None], context: dict[str, Any]) -> None:
    """The exception handler of the loop: it hears of what nobody awaits (asyncio, `call_exception_handler`)."""
    error, message = context.get("exception"), context["message"]
    on_error()
    _LOG.error("%s", message, exc_info=error)
    # A future that nobody looked at is not a part that died: its client had gone.
    died = "handle" in context or isinstance(context.get("future") or context.get("task"), asyncio.Task)
    if died and error is not None and _origin(error.__traceback__) in _SCHEDULING:
        liveness.fail("event loop", f"A part of the scheduler has died: {error!r}.")


def _origin(traceback: TracebackType | None) -> str:
    """The module of this service that was entered first; empty where there is none."""
    while traceback is not None:
        name = str(traceback.tb_frame.f_globals.get("__name__", ""))
        if name.startswith("service."):
            return name
        traceback = traceback.tb_next
    return ""
