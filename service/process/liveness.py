"""Liveness of the process: temporary faults, and faults that only a restart can fix.

Independent of HTTP, devices and models. Any part of the service, in any thread, reports its faults here;
`service/http/health.py` exposes them.
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
_PROCESS = "process"
_CHECK_INTERVAL_S = 0.25
_CRITICAL_MODULES = ("service.engine.scheduler", "service.engine.batcher", "service.process.liveness")
"""Modules whose tasks and callbacks update the queues: an exception in one of them may leave a queue inconsistent."""


class Liveness:
    """The faults of the process. All methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures: dict[str, str] = {}
        self._fatal_reason: str | None = None
        self._on_fatal: Callable[[str], None] | None = None
        self._threads: dict[threading.Thread, str] = {}

    @property
    def failures(self) -> Mapping[str, str]:
        """A snapshot of the components that are failing now, with the reasons; empty if the process is healthy."""
        with self._lock:
            return MappingProxyType(dict(self._failures))

    @property
    def fatal_reason(self) -> str | None:
        """Why the process must be restarted; None if it need not be."""
        with self._lock:
            return self._fatal_reason

    @property
    def is_fatal(self) -> bool:
        """Whether the process must be restarted."""
        return self.fatal_reason is not None

    def fail(self, component: str, reason: str) -> None:
        """Report that a component fails, until it is resolved. `reason` is a sentence for operators."""
        with self._lock:
            is_new = self._failures.get(component) != reason
            if component != _PROCESS:
                self._failures[component] = reason
        if is_new:
            _LOG.error("%s is failing: %s", component, reason)

    def resolve(self, component: str) -> None:
        """Report that a component works again. Has no effect if it was not failing, or on a fatal failure."""
        with self._lock:
            was_failing = component != _PROCESS and self._failures.pop(component, None) is not None
        if was_failing:
            _LOG.info("%s has recovered", component)

    def mark_fatal(self, reason: str) -> None:
        """Report that the process cannot recover. The first time, this calls the function set by `on_fatal`."""
        with self._lock:
            if self._fatal_reason is not None:
                return
            self._fatal_reason = self._failures[_PROCESS] = reason
            callback = self._on_fatal
        _LOG.critical("the process must be restarted: %s", reason)
        if callback is not None:
            callback(reason)

    def on_fatal(self, callback: Callable[[str], None]) -> None:
        """Set the function to call with the reason when a failure is fatal; call it now if one already is.

        It is called in the thread that reports the failure.
        """
        with self._lock:
            self._on_fatal = callback
            reason = self._fatal_reason
        if reason is not None:
            callback(reason)

    def thread_initializer(self, pool: str) -> Callable[[], None]:
        """Return an `initializer` for a ThreadPoolExecutor that registers its threads for `check_threads`.

        A pool does not replace a thread that has died, and the work item that the thread had taken is never done.
        """

        def register() -> None:
            with self._lock:
                self._threads[threading.current_thread()] = pool

        return register

    def check_threads(self) -> None:
        """Report a failure for every registered thread that has died. Not to be called after the pools shut down."""
        with self._lock:
            dead = [thread for thread in self._threads if not thread.is_alive()]
            pools = {thread.name: self._threads.pop(thread) for thread in dead}
        for thread, pool in pools.items():
            self.fail(f"thread {thread}", f"A thread of the pool '{pool}' has died and will not be replaced.")

    def wait_for_threads(self, timeout_s: float = 2.0) -> None:
        """Wait until all registered threads have ended, or the timeout has passed."""
        deadline = time.monotonic() + timeout_s
        for thread in self._live_threads():
            thread.join(max(0.0, deadline - time.monotonic()))

    def live_threads(self) -> list[str]:
        """Return the names of the registered threads that have not ended."""
        return [thread.name for thread in self._live_threads()]

    def _live_threads(self) -> list[threading.Thread]:
        with self._lock:
            return [thread for thread in self._threads if thread.is_alive()]


@asynccontextmanager
async def supervise(
    liveness: Liveness, *background: Coroutine[Any, Any, None], on_error: Callable[[], None]
) -> AsyncIterator[None]:
    """Run background coroutines while the context is open, and report what fails in the event loop.

    Exceptions of tasks and callbacks that nothing awaits are logged and passed to `on_error`, which counts them.
    Liveness fails if a background coroutine, a registered thread, or a part of the scheduler dies.
    """
    asyncio.get_running_loop().set_exception_handler(
        lambda loop, context: _handle_loop_exception(liveness, on_error, context)
    )
    tasks = [asyncio.create_task(work) for work in (*background, _check_threads_regularly(liveness))]
    for task in tasks:
        task.add_done_callback(lambda task: _on_task_done(liveness, on_error, task))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()


async def _check_threads_regularly(liveness: Liveness) -> None:
    while True:
        liveness.check_threads()
        await asyncio.sleep(_CHECK_INTERVAL_S)


def _on_task_done(liveness: Liveness, on_error: Callable[[], None], task: asyncio.Task[None]) -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None:
        on_error()
        _LOG.error("a background task has died", exc_info=error)
        liveness.fail("event loop", f"A background task has died: {error!r}.")


def _handle_loop_exception(liveness: Liveness, on_error: Callable[[], None], context: dict[str, Any]) -> None:
    """Handle an exception that nothing awaits (the event loop's exception handler, `call_exception_handler`)."""
    error, message = context.get("exception"), context["message"]
    on_error()
    _LOG.error("%s", message, exc_info=error)
    # A plain future whose exception was never retrieved is harmless: its client has disconnected.
    has_died = "handle" in context or isinstance(context.get("future") or context.get("task"), asyncio.Task)
    if has_died and error is not None and _origin_module(error.__traceback__) in _CRITICAL_MODULES:
        liveness.fail("event loop", f"A part of the scheduler has died: {error!r}.")


def _origin_module(traceback: TracebackType | None) -> str:
    """Return the first module of this service in the traceback; empty if there is none."""
    while traceback is not None:
        name = str(traceback.tb_frame.f_globals.get("__name__", ""))
        if name.startswith("service."):
            return name
        traceback = traceback.tb_next
    return ""
