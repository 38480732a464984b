"""Ends the process where it could not end itself: its event loop has stopped turning, or it does not come to its end.

Knows nothing of what the process does.
"""

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
"""The exit code of a process that cannot go on: EX_SOFTWARE (sysexits.h). Its supervisor is to start a new one."""

_LOG = logging.getLogger(__name__)
_TICK_S = 0.25
_TELLING_S = 2.0
"""How long the last line of the log may take: whoever reads the log may hang as well."""


class Watchdog:
    """A thread that looks at the event loop four times a second.

    Time is counted in its own ticks: while the process is stopped (SIGSTOP) or the machine sleeps none of them pass,
    and so none of that counts. A call that never returns and keeps Python's lock is not noticed, since no thread runs
    then; no probe is answered either.
    """

    def __init__(self, hang_s: float, *, end: Callable[[int], object] = os._exit) -> None:
        """`hang_s`: seconds that the loop may be busy with one thing; 0 for any number. `end`: ends the process."""
        self._hang_s = hang_s
        self._end = end
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked = False
        self._still = 0  # Ticks since the loop was asked to turn, and has not.
        self._left = math.inf  # Ticks until the process ends, whatever it does.
        self._code = 0
        self._stopped = threading.Event()

    def start(self) -> None:
        """Begins to count, in a thread of its own."""
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Looks at this loop from now on."""
        self._loop = loop

    def stop(self) -> None:
        """Counts no more."""
        self._stopped.set()

    def end_within(self, seconds: float, code: int) -> None:
        """Ends the process with this exit code where it has not ended by itself until then. May be called again."""
        self._left, self._code = seconds / _TICK_S, code

    def _run(self) -> None:
        while not self._stopped.wait(_TICK_S):
            self.tick()

    def tick(self) -> None:
        """What happens four times a second."""
        self._left -= 1
        if self._left <= 0:
            self._tell_and_end("the process does not come to its end", self._code)
        elif self._hang_s and self._loop is not None:
            self._look_at(self._loop)

    def _look_at(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._asked:
            self._asked, self._still = True, 0
            with suppress(RuntimeError):  # It is closed: what is left is to end.
                loop.call_soon_threadsafe(self._turned)
            return
        self._still += 1
        if self._still * _TICK_S >= self._hang_s and not loop.is_closed():
            self._tell_and_end(f"the event loop has not turned for {self._hang_s:g} s", EXIT_BROKEN)

    def _turned(self) -> None:
        self._asked = False

    def _tell_and_end(self, message: str, code: int) -> None:
        stacks = stacks_of_all()
        telling = threading.Thread(
            target=_LOG.critical, args=[message], kwargs={"extra": {"fields": {"stacks": stacks}}}, daemon=True
        )
        telling.start()
        telling.join(_TELLING_S)
        self._end(code)


def stacks_of_all() -> Mapping[str, list[str]]:
    """What each thread of Python is in the middle of, outermost call first: file, line and function."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return {
        f"{names.get(ident, 'unknown')} ({ident})": [
            f"{entry.filename}:{entry.lineno} {entry.name}" for entry in traceback.extract_stack(frame)
        ]
        for ident, frame in sys._current_frames().items()
    }
