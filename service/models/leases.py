"""Leases: a version of a model that is no longer served is closed when its last user is done with it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from types import TracebackType


@dataclass(eq=False)
class Leases:
    """Counts the requests that use a version. All methods may be called from any thread.

    Use it as a context manager after `try_acquire` has succeeded: the lease ends with the block.

    Attributes:
        on_end: called once, when the version is retired and has no lease left; in the thread that caused it.
    """

    on_end: Callable[[], None]
    _count: int = field(default=0, init=False)
    _is_retired: bool = field(default=False, init=False)
    _lock: Lock = field(default_factory=Lock, init=False, repr=False)

    def try_acquire(self) -> bool:
        """Take a lease; return False if the version is retired, so that it must not be used any more."""
        with self._lock:
            if self._is_retired:
                return False
            self._count += 1
            return True

    def release(self) -> None:
        """End a lease."""
        with self._lock:
            self._count -= 1
            has_ended = self._is_retired and not self._count
        if has_ended:
            self.on_end()

    def retire(self) -> None:
        """Grant no further leases. Has no effect if the version is retired already."""
        with self._lock:
            has_ended = not self._is_retired and not self._count
            self._is_retired = True
        if has_ended:
            self.on_end()

    def __enter__(self) -> None:
        """Enter the block for which a lease was taken."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the lease."""
        self.release()
