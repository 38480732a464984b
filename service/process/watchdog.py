"""Watchdog: kills the process if its event loop is blocked or its shutdown hangs."""

import asyncio
import logging
import math
import os
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress

EXIT_BROKEN = 70
"""Exit code of a process that cannot continue: EX_SOFTWARE (sysexits.h). Its supervisor should start a new one."""

_LOG = logging.getLogger(__name__)
_TICK_S = 0.25
_LOG_TIMEOUT_S = 2.0
"""Time limit for writing the last log line: the reader of the log may hang as well."""


class Watchdog:
    """A thread that checks the event loop four times a second.

    Time is counted in the thread's own ticks, so that time during which the process is stopped (SIGSTOP) or the machine
    sleeps does not count. A call that never releases the GIL is not detected, since no other thread runs then; liveness
    probes fail in that case.
    """

    def __init__(self, hang_s: float, *, exit_process: Callable[[int], object] = os._exit) -> None:
        """`hang_s`: how long the loop may be blocked, in seconds; 0 for no limit."""
        self._hang_s = hang_s
        self._exit_process = exit_process
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_callback_pending = False
        self._ticks_pending = 0
        self._ticks_until_kill = math.inf
        self._exit_code = 0
        self._stopped = threading.Event()

    def start(self) -> None:
        """Start the thread."""
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Check this loop from now on."""
        self._loop = loop

    def stop(self) -> None:
        """Stop the thread."""
        self._stopped.set()

    def kill_after(self, seconds: float, exit_code: int) -> None:
        """Kill the process if it has not ended by then. A further call replaces the limit."""
        self._ticks_until_kill, self._exit_code = seconds / _TICK_S, exit_code

    def _run(self) -> None:
        while not self._stopped.wait(_TICK_S):
            self.tick()

    def tick(self) -> None:
        """Run the checks. Called by the thread four times a second."""
        self._ticks_until_kill -= 1
        if self._ticks_until_kill <= 0:
            self._log_and_exit("the process did not shut down in time", self._exit_code)
        elif self._hang_s and self._loop is not None:
            self._check_loop(self._loop)

    def _check_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Schedule a callback, and measure how long the loop takes to run it."""
        if not self._is_callback_pending:
            self._is_callback_pending, self._ticks_pending = True, 0
            with suppress(RuntimeError):  # The loop is closed: only the shutdown is left to wait for.
                loop.call_soon_threadsafe(self._on_callback)
            return
        self._ticks_pending += 1
        if self._ticks_pending * _TICK_S >= self._hang_s and not loop.is_closed():
            self._log_and_exit(f"the event loop has been blocked for {self._hang_s:g} s", EXIT_BROKEN)

    def _on_callback(self) -> None:
        self._is_callback_pending = False

    def _log_and_exit(self, message: str, exit_code: int) -> None:
        writer = threading.Thread(target=_log_and_flush, args=[message, thread_stacks()], daemon=True)
        writer.start()
        writer.join(_LOG_TIMEOUT_S)
        self._exit_process(exit_code)


def _log_and_flush(message: str, stacks: Mapping[str, list[str]]) -> None:
    _LOG.critical(message, extra={"fields": {"stacks": stacks}})
    for handler in logging.getLogger().handlers:
        handler.flush()


def thread_stacks() -> Mapping[str, list[str]]:
    """Return the stack of each Python thread, outermost call first: file, line and function."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return {
        f"{names.get(ident, 'unknown')} ({ident})": [
            f"{entry.filename}:{entry.lineno} {entry.name}" for entry in traceback.extract_stack(frame)
        ]
        for ident, frame in sys._current_frames().items()
    }
