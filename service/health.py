"""The vital signs of the process: what is wrong with it that only a new start would mend, or that may yet pass.

Knows nothing of HTTP, of devices and of models. Whoever notices something says so here, from whichever thread it is in;
`routes/health.py` tells it to whoever keeps the service running.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType

_LOG = logging.getLogger(__name__)
_LOST = "process"


class Vitals:
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

    def mended(self, what: str) -> None:
        """`what` is well again; nothing happens where it has not failed, or where the process is lost."""
        with self._lock:
            was_failing = what != _LOST and self._failures.pop(what, None) is not None
        if was_failing:
            _LOG.info("%s is well again", what)

    def lose(self, reason: str) -> None:
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
            self.fail(
                f"thread {thread}", f"A thread of the pool '{pool}' has died; the process has to be started anew."
            )
